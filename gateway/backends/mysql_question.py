"""The gateway's own short questions on a leased connection: its taker until they are answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from gateway.errors import BackendRefused
from gateway.protocol.mysql.prelude import Prelude
from gateway.protocol.mysql.results import ResultReader, Row

if TYPE_CHECKING:
    from gateway.backends.mysql import MysqlConnection

QUESTION_SECONDS: Final = 10.0


class Question:
    """Reads the rows of one command of the gateway's own."""

    def __init__(self, connection: MysqlConnection) -> None:
        self._connection = connection
        self._reader = ResultReader()
        self._finished = trio.Event()
        self._error: Exception | None = None
        self.rows: list[Row] = []
        self.kinds: list[int] = []

    async def ask(self, commands: list[bytes]) -> None:
        """Raises BackendRefused or OSError. A cancelled question closes its connection."""
        connection = self._connection
        if connection.endpoint.closed:
            raise ConnectionResetError("the connection was closed")
        connection.taker = self
        try:
            for command in commands:
                connection.write_own(command)
            with trio.fail_after(QUESTION_SECONDS):
                await self._finished.wait()
        except trio.TooSlowError:
            connection.close()
            raise TimeoutError("no answer from the server") from None
        except BaseException:
            connection.close()
            raise
        if self._error is not None:
            raise self._error

    def reply(self, chunk: bytes) -> None:
        self._reader.feed(chunk)
        if self._reader.done:
            self.rows, self.kinds = self._reader.rows, self._reader.kinds
            refused = self._reader.error
            self._finish(BackendRefused(refused.message, refused.code, refused.sqlstate) if refused else None)

    def backend_lost(self, connection: MysqlConnection, error: Exception) -> None:
        self._finish(error)

    def prelude_refused(self, connection: MysqlConnection, error: BackendRefused) -> None:
        self._finish(error)

    def overdue(self, connection: MysqlConnection) -> None:
        """A question's own limit is QUESTION_SECONDS."""

    def _finish(self, error: Exception | None) -> None:
        self._error = error
        self._connection.taker = None
        self._connection.endpoint.lane.woke = True
        self._finished.set()


class Acknowledgement(Question):
    """Waits until a number of pipelined commands were each answered by OK."""

    def __init__(self, connection: MysqlConnection, count: int) -> None:
        super().__init__(connection)
        self._prelude = Prelude(count)

    def reply(self, chunk: bytes) -> None:
        self._prelude.feed(chunk)
        if self._prelude.done:
            refused = self._prelude.error
            self._finish(BackendRefused(refused.message, refused.code, refused.sqlstate) if refused else None)
