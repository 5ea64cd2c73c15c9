"""Keeps one connection to a memcached server alive: connects, greets, fences what was lost before, and begins again.

A link that writes gives its connection out only when nothing of an earlier one can be carried out any more
(`memcached_fence`). While there is no connection its users decide for themselves what that means to them.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final

import structlog
import trio

from gateway.backends.memcached import PipelinedConnection
from gateway.backends.memcached_fence import Enquiry, Footprint, Greeting
from gateway.config import Address
from gateway.errors import ProtocolError
from gateway.net.connect import Conversation, connect_tcp, connect_unix
from gateway.net.lane import Lane

SERVER_TIMEOUT_SECONDS: Final = 2.0  # docs/decisions: a silent server; twemproxy's users set 0.4 to 5
BACKOFF_SECONDS: Final = 0.05
BACKOFF_SECONDS_MAX: Final = 1.0
STABLE_SECONDS: Final = 1.0  # a connection that lasted so long is followed by a quick attempt again

log = structlog.get_logger(__name__)


class LinkState(Enum):
    """What a link is doing."""

    CONNECTING = "connecting"
    FENCING = "fencing"  # waits until the server has closed an earlier connection
    CONNECTED = "connected"


class ServerLink:
    """One connection, kept alive by `run`. `ready` and `gone` are called within a batch, `ready` before anybody else
    can use the new connection, `gone` before those who wait on the old one are told."""

    def __init__(
        self,
        lane: Lane,
        name: str,
        address: Address,
        *,
        writes: bool,
        ready: Callable[[PipelinedConnection, Greeting], None],
        gone: Callable[[str], None],
        drained: Callable[[], None],
        patience: float = SERVER_TIMEOUT_SECONDS,
        silence: float | None = None,
    ) -> None:
        """`patience` in seconds bounds connecting and greeting, and unless `silence` says otherwise also how long the
        server may be silent while answers are due."""
        self.name = name
        self.address = address
        self.connection: PipelinedConnection | None = None
        self.greeting: Greeting | None = None
        self.state = LinkState.CONNECTING
        self.trouble: str | None = None  # why there is no connection, in words
        self.connected = 0  # how often
        self._lane = lane
        self._writes = writes
        self._ready = ready
        self._gone = gone
        self._drained = drained
        self._patience = patience
        self._silence = patience if silence is None else silence
        self._footprints: list[Footprint] = []
        self._ending = False
        self._lost = trio.Event()
        self._attempted = trio.Event()

    async def run(self) -> None:
        """Keeps the connection until cancelled."""
        backoff = BACKOFF_SECONDS
        try:
            while True:
                self.state = LinkState.CONNECTING
                try:
                    await self._connect()
                except (OSError, ProtocolError, trio.TooSlowError) as error:
                    self._note(f"no answer for {self._patience:g} s" if isinstance(error, trio.TooSlowError) else error)
                    self._attempted.set()
                    await trio.sleep(backoff)
                    backoff = min(backoff * 2, BACKOFF_SECONDS_MAX)
                    continue
                self._attempted.set()
                began = trio.current_time()
                await self._lost.wait()
                if trio.current_time() - began >= STABLE_SECONDS:
                    backoff = BACKOFF_SECONDS
                else:
                    await trio.sleep(backoff)
                    backoff = min(backoff * 2, BACKOFF_SECONDS_MAX)
        finally:
            self._ending = True
            if self.connection is not None:
                self._lane.batch(self.connection.close)

    async def attempted(self) -> None:
        """Returns when the server was reached, or could not be, once."""
        await self._attempted.wait()

    def _note(self, trouble: object) -> None:
        text = str(trouble)
        if text != self.trouble and not self._ending:
            log.warning("a memcached server is not reachable", server=self.name, reason=text)
        self.trouble = text

    async def _connect(self) -> None:
        address = self.address
        with trio.fail_after(self._patience):
            sock = await (connect_unix(address.path) if address.path else connect_tcp(address.host, address.port))
            conversation = Conversation(self._lane, sock)
        handed_over = False
        try:
            enquiry = Enquiry(conversation)
            with trio.fail_after(self._patience):
                greeting = await enquiry.greet(learn=self._writes)
            if self._writes and greeting.seen is None:
                raise ProtocolError(
                    "it does not show this connection in `stats conns`, so that a lost one could not be fenced"
                )
            if self._footprints:
                self.state = LinkState.FENCING
                self.trouble = "waits until the server has closed a connection that was lost with writes unanswered"
                await enquiry.wait_until_gone(self._footprints, greeting, self._patience)
                self._footprints.clear()
            connection = PipelinedConnection(
                self._lane,
                conversation,
                self.name,
                timeout=self._silence,
                on_loss=self._on_loss,
                drained_again=self._drained,
            )
            handed_over = True
        finally:
            if not handed_over:
                conversation.close()
        log.info("connected", server=self.name, version=greeting.version, pid=greeting.instance.pid)
        self._lost = trio.Event()
        self.greeting = greeting
        self.trouble = None
        self.connected += 1
        self.state = LinkState.CONNECTED
        self._lane.batch(lambda: self._give_out(connection, greeting))

    def _give_out(self, connection: PipelinedConnection, greeting: Greeting) -> None:
        self.connection = connection
        self._ready(connection, greeting)

    def _on_loss(self, connection: PipelinedConnection, reason: str, unanswered_writes: bool) -> None:
        greeting = self.greeting
        if self._writes and unanswered_writes and greeting is not None and greeting.seen is not None:
            local, peer = connection.addresses
            self._footprints.append(Footprint(greeting.instance, greeting.seen, local, peer))
        self.connection = None
        self.state = LinkState.CONNECTING
        self._note(reason)
        self._lost.set()
        self._lane.woke = True
        self._gone(reason)
