"""The client's side of a MySQL session: its commands in their order, one at a time, how slowly it reads, how it leaves.

`received` gives a command to the session's `try_now`, within the lane's batch; what that declines goes to the session's
task through `requests`. What a client sends behind the command at hand waits in `backlog`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from gateway.net.endpoint import Endpoint
from gateway.net.requests import Requests
from gateway.protocol.mysql import answers
from gateway.protocol.mysql.attributes import AttributedReader
from gateway.protocol.mysql.constants import ErrorCode
from gateway.protocol.mysql.packets import PacketError, PacketReader
from gateway.sessions.mysql_discard import Discarding
from gateway.sessions.mysql_task import Declined

if TYPE_CHECKING:
    from gateway.sessions.mysql import MysqlSession

STALL_SECONDS: Final = 60.0  # a client that reads nothing for longer is cut off (MySQL's net_write_timeout)
# A client that has closed its side is gone, in all likelihood, and what runs for it is ended; but one that only
# half-closes still gets an answer that comes soon. MySQL's own SLEEP() and GET_LOCK() look every 5 s, too.
HALF_CLOSED_SECONDS: Final = 5.0
BACKLOG_BYTES: Final = 1 << 20  # commands that a client may pipeline behind the one that is being served
UNASKED: Final = 0  # sequence id of an error that answers no command


class MysqlClient:
    """Owner of the client's endpoint. `plain`: its queries come without attributes."""

    def __init__(self, session: MysqlSession, endpoint: Endpoint, *, plain: bool) -> None:
        self.session = session
        self.endpoint = endpoint
        self.requests: Requests[Declined] = Requests(session.service.lane, self.resume)
        self.backlog: deque[bytes] = deque()
        self.stalled = False  # more output waits for the client than it reads
        self.closing = False  # it has closed its side
        self._plain = plain
        self._reader = self._new_reader()

    def _new_reader(self) -> PacketReader | AttributedReader:
        kind = PacketReader if self._plain else AttributedReader
        return kind(limit=self.session.service.config.max_allowed_packet)

    # -- its commands

    def received(self, chunk: bytes) -> None:
        try:
            messages = self._reader.feed(chunk)
        except PacketError as error:
            if error.code == ErrorCode.PACKET_TOO_LARGE:
                Discarding(self.session, error, self._reader.take_held())
            else:
                self.end_with(error.code, str(error), error.sqlstate)
            return
        session = self.session
        if session.connection is not None or self.requests.with_task or self.backlog or self.stalled:
            self.backlog.extend(messages)
            if sum(map(len, self.backlog)) > BACKLOG_BYTES:
                self.endpoint.pause_reading()
            return
        if len(messages) == 1:
            if not session.try_now(messages[0]):
                self.requests.decline(Declined(messages[0]))
        else:
            self.backlog.extend(messages)
            self.resume()

    def resume(self) -> None:
        """Goes on with what the client has sent meanwhile."""
        session, backlog = self.session, self.backlog
        while backlog and session.connection is None and not self.requests.with_task and not self.stalled:
            raw = backlog.popleft()
            if not session.try_now(raw):
                self.requests.decline(Declined(raw))
        if not self.endpoint.reading and not backlog and not self.stalled:
            self.endpoint.resume_reading()
        if self.closing and not backlog and session.connection is None and not self.requests.with_task:
            self.requests.end()

    def take_unread(self) -> bytes:
        """What the client has sent behind the command at hand; the reader begins anew."""
        unread = b"".join((*self.backlog, self._reader.take_held()))
        self.backlog.clear()
        self._reader = self._new_reader()
        return unread

    # -- how it reads

    def overfull(self) -> None:
        """The client does not read: nothing more is begun for it, and nothing more is taken from the server."""
        self.stalled = True
        self.endpoint.pause_reading()
        self.endpoint.deadline = trio.current_time() + STALL_SECONDS
        if self.session.connection is not None:
            self.session.connection.endpoint.pause_reading()

    def drained(self) -> None:
        self.stalled = False
        self.endpoint.deadline = trio.current_time() + self.session.kept.idle_timeout
        if self.session.connection is not None:
            self.session.connection.endpoint.resume_reading()
        self.resume()

    # -- how it leaves

    def ended(self) -> None:
        self.closing = True
        if self.session.connection is None and not self.requests.with_task and not self.backlog:
            self.requests.end()
        else:
            self.endpoint.deadline = trio.current_time() + HALF_CLOSED_SECONDS

    def lost(self, error: OSError) -> None:
        self.requests.end()
        if self.session.finished is not None:
            self.session.finish_for_task(error)

    def expired(self) -> None:
        if self.closing:
            self.session.end_by_kill()
        elif self.stalled:
            self.lose(TimeoutError(f"the client has read nothing for {STALL_SECONDS:g} s"))
        elif self.session.connection is None and not self.requests.with_task:
            self.end_with(
                4031,  # ER_CLIENT_INTERACTION_TIMEOUT
                "The client was disconnected by the server because of inactivity.",
                sequence=UNASKED,
            )

    def raised(self, error: Exception) -> None:
        if isinstance(error, PacketError):  # a layer's: what came is no compressed packet, say
            self.end_with(error.code, str(error), error.sqlstate)
        else:
            self.requests.fail(error)
        if self.session.finished is not None:
            self.session.finish_for_task(error)

    def lose(self, error: Exception) -> None:
        """Cuts the client off: it has part of an answer whose rest will not come."""
        self.session.service.log_lost(self.session, error)
        if self.session.finished is not None:
            self.session.finish_for_task(None)
        self.endpoint.reset()
        self.requests.end()

    def end_with(self, code: int, message: str, sqlstate: str | None = None, *, sequence: int = 1) -> None:
        """Ends the session with an error; UNASKED ones answer no command, which clients see by their number."""
        self.endpoint.write(answers.err(sequence, code, message, sqlstate))
        self.endpoint.finish()
        self.requests.end()

    def end_at_once(self) -> None:
        """Ends the session in the middle of whatever it does; an answer that was written is still sent."""
        self.backlog.clear()
        self.endpoint.finish()
        self.requests.end()
