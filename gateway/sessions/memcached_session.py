"""One conversation with a memcached client: its answers in order, when it stops taking requests, and how it ends.

Every request with an answer has a slot; slots are answered in any order and sent in theirs. Requests are dispatched in
the batch in which they came (`memcached_requests`); what cannot be finished there goes to the connection's own task:
flush_all and what the gateway answers itself.

A session *stops* taking requests, and reads nothing more from its client, while one of these holds: a request is with
the task; a server connection that it needs is full, or a flush keeps writes waiting; too many answers are due; the
client does not read its answers; a write would overtake a read of the same key that is at a replica, whose miss would
then find the new value at the primary. Whatever ends one of these calls `resume`, which looks at all of them.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import structlog
import trio

from gateway.net.endpoint import Endpoint
from gateway.net.requests import Requests
from gateway.protocol.memcached.decoder import Message, RequestDecoder
from gateway.protocol.memcached.request import Request
from gateway.routing.kv import KEY_OPERATIONS
from gateway.routing.operation import Effect
from gateway.rules.policy import KeyPolicies
from gateway.sessions.memcached_local import answer_locally
from gateway.sessions.memcached_requests import HANDLERS, reject
from gateway.sessions.memcached_slots import Slot

if TYPE_CHECKING:
    from gateway.sessions.memcached import MemcachedService

SLOTS_MAX: Final = 1024  # answers due to one client; twemproxy has no limit, mcrouter 512 by default
SLOTS_LOW: Final = 256
REQUESTS_PER_BATCH: Final = 1024  # of one client: some 5 ms
CLIENT_BUDGET_BYTES: Final = 67_108_864  # values held for one client: 64 of the default largest size

log = structlog.get_logger(__name__)


class MemcachedSession:
    """One client connection."""

    __slots__ = (
        "_bytes_seen",
        "_client",
        "_closing",
        "_decoder",
        "_empty",
        "_eof",
        "_output_full",
        "_queue",
        "_requests",
        "_stopped",
        "at_replica",
        "closed",
        "endpoint",
        "held",
        "looking",
        "number",
        "policies",
        "read_rules",
        "send",
        "service",
        "slots",
        "topology",
        "write",
    )

    numbers = 0

    def __init__(self, service: MemcachedService, sock: socket.socket) -> None:
        self.service = service
        self.topology = service.topology
        peer = sock.getpeername()
        self._client = peer[0] if isinstance(peer, tuple) else ""  # its address, as rules match it
        self.slots: deque[Slot] = deque()
        self.at_replica = 0  # reads that are at a replica
        self.held = 0  # bytes of answers that wait for earlier ones
        self.closed = False
        self.looking = False  # `release` has more to do than to send
        self.number = MemcachedSession.numbers = MemcachedSession.numbers + 1
        self._decoder = RequestDecoder()
        self._queue: deque[Message] = deque()  # decoded and not taken
        self._stopped = False
        self._output_full = False
        self._eof = False
        self._closing = False
        self._bytes_seen = 0
        self._empty: trio.Event | None = None
        self.endpoint = Endpoint(service.lane, sock, self)
        self.endpoint.deadline = trio.current_time() + service.listener.idle_timeout
        self.write: Callable[[bytes], None] = self.endpoint.write  # an answer
        self.send: Callable[[bytes], None] = self.endpoint.send  # the last answer that is due
        self._requests: Requests[Request] = Requests(service.lane, self.resume)
        self.read_rules = False  # whether a rule may say something about a read
        self.take_rules()

    def take_rules(self) -> None:
        """Rules and configuration as they are for this connection."""
        rules, listener, client = self.service.rules, self.service.listener.name, self._client
        self.policies = KeyPolicies.of(rules, self.topology.config, listener, "", client)
        self.read_rules = bool(rules.key_rules(listener, "", client))

    # -- the task

    async def run(self) -> None:
        """Handles what is not finished in a batch, until the connection ends."""
        async for request in self._requests:
            await self._handle(request)
        await self.service.lane.lingered(self.endpoint.sock)

    async def _handle(self, request: Request) -> None:
        if KEY_OPERATIONS[request.verb].effect is Effect.FLUSH:
            await self._settled()
            answer = await self.topology.flush.ask(request.exptime)
        else:
            answer = await answer_locally(self.service, request)
        if not request.noreply:
            self.service.lane.batch(lambda: self.answer_now(answer))

    async def _settled(self) -> None:
        """Returns when all earlier requests were answered."""
        while self.slots:
            self.looking = True
            self._empty = trio.Event()
            await self._empty.wait()

    def close(self) -> None:
        """Ends the connection, whatever is under way; answers that still come are thrown away."""
        self._end()
        self.endpoint.close()

    def end_if_idle(self) -> None:
        if not (self.closed or self.slots or self._queue or self._requests.with_task) and self._decoder.idle:
            self._finish()

    def _finish(self) -> None:
        self._end()
        self.endpoint.finish()

    def _end(self) -> None:
        self.closed = True
        self._queue.clear()
        self.slots.clear()
        self._requests.end()
        if self._empty is not None:
            self._empty.set()

    # -- what the endpoint calls

    def received(self, chunk: bytes) -> None:
        messages = self._decoder.decode(chunk)
        if messages:
            if self._stopped:
                self._queue.extend(messages)
            else:
                self._take(messages)

    def ended(self) -> None:
        self._eof = self.looking = True
        self._look()

    def lost(self, error: OSError) -> None:
        self._end()

    def overfull(self) -> None:
        self._output_full = True
        self.write = self._write_within_budget
        self._stop()

    def drained(self) -> None:
        self._output_full = False
        self.write = self.endpoint.write
        self.resume()

    def expired(self) -> None:
        """Looks whether anything came in the last `idle_timeout`: one look instead of a timer for every request."""
        if self.endpoint.bytes_in == self._bytes_seen and not self.slots:
            self._finish()
        else:
            self._bytes_seen = self.endpoint.bytes_in
            self.endpoint.deadline = self.service.lane.now + self.service.listener.idle_timeout

    def raised(self, error: Exception) -> None:
        self._requests.fail(error)

    # -- answers

    def hold(self, raw: bytes) -> None:
        """An answer, or part of one, has to wait."""
        self.held += len(raw)
        if self.held + self.endpoint.queued > CLIENT_BUDGET_BYTES:
            self._over_budget()

    def _write_within_budget(self, raw: bytes) -> None:
        self.endpoint.write(raw)
        if self.held + self.endpoint.queued > CLIENT_BUDGET_BYTES:
            self._over_budget()

    def _over_budget(self) -> None:
        if not self.closed:
            self.service.over_budget += 1
            log.warning("a client that does not read its answers is closed", listener=self.service.listener.name)
            self._end()
            self.endpoint.reset()

    def release(self) -> None:
        """Sends the answers that waited for one that was just sent."""
        slots = self.slots
        while slots:
            raw = slots[0].reply
            if raw is None:
                break
            slots.popleft()
            self.held -= len(raw)
            self.write(raw)
        if self.looking:
            self._look()

    def _look(self) -> None:
        """An answer was sent, or the client will send nothing more: may the session go on, or end?"""
        if self.closed:
            return
        if self._stopped and not self._closing:
            self.resume()
        if not self.slots:
            if self._empty is not None:
                self._empty.set()
            if (self._closing or self._eof) and not self._queue and not self._requests.with_task:
                self._finish()

    def answer_now(self, raw: bytes) -> None:
        slot = Slot(self)
        self.slots.append(slot)
        slot.complete(raw)

    # -- stopping and going on

    def _stop(self) -> None:
        self._stopped = self.looking = True
        self.endpoint.pause_reading()

    def resume(self) -> None:
        """Goes on if nothing stands against it any more."""
        if self.closed or self._closing or self._requests.with_task or self._output_full or len(self.slots) > SLOTS_LOW:
            return
        self._stopped = False
        if self._queue:
            messages = list(self._queue)
            self._queue.clear()
            self._take(messages)
        if not self._stopped and not self.closed:
            self.looking = self._eof
            self.endpoint.resume_reading()
            if self._eof:
                self._look()

    def _decline(self, request: Request) -> None:
        self._requests.decline(request)
        self._stop()

    def close_after_answers(self) -> None:
        """Takes no more requests, and ends the connection when what is due was sent."""
        self._closing = True
        self._queue.clear()
        self._stop()
        self._look()

    def wait_for_group(self) -> bool:
        """Stops before a request until a server connection takes more, or a flush has ended."""
        self._stop()
        self.topology.stall(self.resume, self.endpoint)
        return False

    def wait_for_answers(self) -> bool:
        """Stops before a request until an answer was sent, whichever: then it is tried again."""
        self._stop()
        return False

    # -- requests

    def _take(self, messages: list[Message]) -> None:
        """Dispatches in order, as far as the session need not stop."""
        if len(messages) > REQUESTS_PER_BATCH:
            self._queue.extendleft(reversed(messages[REQUESTS_PER_BATCH:]))
            messages = messages[:REQUESTS_PER_BATCH]
        taken = 0
        handlers = HANDLERS
        for message in messages:
            if type(message) is Request:
                handler = handlers.get(message.verb)
                if handler is None:
                    self._decline(message)
                elif not handler(self, message):
                    break
            elif not reject(self, message):  # type: ignore[arg-type]  # a message is one of two types
                break
            taken += 1
            if self._stopped:
                break
        if self._closing:
            return
        if taken < len(messages):
            self._queue.extendleft(reversed(messages[taken:]))
        elif self._queue and not self._stopped:
            self._stop()
            self.service.lane.again(self.resume, self.endpoint)
        elif len(self.slots) > SLOTS_MAX:
            self._stop()
