"""One MySQL client: its commands, the state it keeps, and the backend connection that serves it at the moment.

`try_now` serves a command within the lane's batch if everything it needs is at hand: the class is known, a member is
fresh enough, an idle connection is in the session's state. Everything else is declined and goes to `handle`, in the
connection's own task: waiting for a replica, opening or resetting a connection, retrying, refusing. Both meet in
`_begin`, which sends the command, and in `reply`, through which every byte of an answer passes undecoded.

A session *holds* its connection while a transaction is open or a pin says so. Otherwise the connection goes back to
its pool after every reply, and remembers who used it last.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import trio

from gateway.backends.mysql import Credentials, MysqlConnection
from gateway.backends.mysql_state import State, assignments_sql, state_of
from gateway.errors import BackendRefused, OutcomeUnknown, Refused, Unavailable
from gateway.net.endpoint import Endpoint
from gateway.net.requests import Requests
from gateway.protocol.mysql import answers
from gateway.protocol.mysql.commands import argument_of, database_of, query
from gateway.protocol.mysql.constants import Command, ErrorCode, Status
from gateway.protocol.mysql.handshake import LoggedIn
from gateway.protocol.mysql.packets import PacketError, PacketReader, packets_in
from gateway.protocol.mysql.replies import ReplyTracker
from gateway.routing.operation import Assignment, Kind, PinCause, Scope, SqlOperation, TransactionEffect
from gateway.routing.route import Policy, Target
from gateway.sessions.mysql_freshness import Freshness
from gateway.sessions.mysql_gateway import answer_gateway_statement
from gateway.topology.mysql import SqlMember

if TYPE_CHECKING:
    from gateway.sessions.mysql_service import MysqlService

BACKLOG_BYTES: Final = 1 << 20  # commands that a client may pipeline behind the one that is being served

_QUERY: Final = int(Command.QUERY)
_PING: Final = int(Command.PING)
_IN_TRANSACTION: Final = int(Status.IN_TRANS | Status.IN_TRANS_READONLY)
_AUTOCOMMIT: Final = int(Status.AUTOCOMMIT)
_NO_BACKSLASH_ESCAPES: Final = int(Status.NO_BACKSLASH_ESCAPES)
_REFUSED_AS_WRITE: Final = frozenset((ErrorCode.READ_ONLY, ErrorCode.READ_ONLY_TRANSACTION, ErrorCode.READ_ONLY_MODE))
_PREPARED_COMMANDS: Final = frozenset(
    {
        Command.STMT_PREPARE,
        Command.STMT_EXECUTE,
        Command.STMT_SEND_LONG_DATA,
        Command.STMT_CLOSE,
        Command.STMT_RESET,
        Command.STMT_FETCH,
    }
)
_WITHOUT_REPLY: Final = frozenset((Command.STMT_SEND_LONG_DATA, Command.STMT_CLOSE))
_WITHOUT_STATUS: Final = _WITHOUT_REPLY | {Command.STMT_PREPARE, Command.STATISTICS}  # replies that end without flags


@dataclass(frozen=True, slots=True)
class Pin:
    """Why a session keeps its connection, which statement caused it, and since when (Trio's clock, seconds)."""

    cause: PinCause
    statement: str
    since: float


@dataclass(frozen=True, slots=True)
class Declined:
    """A command for the session's task. After a failure, `error` is what happened on the way and `member` where."""

    raw: bytes
    error: Exception | None = None
    member: str | None = None


def _command(statement: str, reason: str) -> SqlOperation:
    return SqlOperation(Kind.UNKNOWN, statement, reason)


_STATEMENT_COMMAND: Final = SqlOperation(
    Kind.UNKNOWN,
    "prepared statement",
    "prepared statements run on the session's own connection to the primary",
    pin=PinCause.PREPARED_STATEMENT,
)
_OTHER_COMMANDS: Final = {
    int(Command.FIELD_LIST): _command("field list", "COM_FIELD_LIST is answered by the primary"),
    int(Command.STATISTICS): _command("statistics", "COM_STATISTICS is answered by the primary"),
}


@lru_cache(maxsize=1024)
def _use(database: str) -> SqlOperation:
    return SqlOperation(Kind.SESSION, "use", "selects a database", database=database)


class MysqlSession:
    """A client that has logged in. Owner of its endpoint, taker of the connection that serves it."""

    def __init__(self, service: MysqlService, endpoint: Endpoint, login: LoggedIn, credentials: Credentials, id_: int):
        self.service = service
        self.topology = service.topology
        self.endpoint = endpoint
        self.credentials = credentials
        self.user = login.user
        self.capabilities = login.capabilities
        self.id = id_
        self.requests: Requests[Declined] = Requests(service.lane, self._resume)
        self.freshness = Freshness(service.topology)
        self.state = self.initial = state_of(login.database, login.collation)
        self.reading = service.reading(self.state, 0, login.capabilities)
        self.policies = service.policies_for(login.user, service.client_of(endpoint))
        self.rules_version = service.rules_version
        self.status = _AUTOCOMMIT
        self.pins: dict[PinCause, Pin] = {}
        self.held: MysqlConnection | None = None
        self.commands = 0
        # The last command and where it went, for SHOW GATEWAY LAST ROUTE.
        self.operation: SqlOperation | None = None
        self.policy: Policy | None = None
        self.reason = ""
        self.member: SqlMember | None = None
        self._tracker = ReplyTracker(login.capabilities)
        self._reader = PacketReader(limit=service.config.max_allowed_packet)
        self._backlog: deque[bytes] = deque()
        self._connection: MysqlConnection | None = None  # serves the command under way
        self._last: MysqlConnection | None = None  # served the statement before
        self._writer: MysqlConnection | None = None  # served the last write; LAST_INSERT_ID() lives there
        self._insert_id: int | None = None  # LAST_INSERT_ID(), once `_writer` was lent to somebody else
        self._insert_id_lost = False
        self._warned = False  # the last reply left warnings or an error
        self._ran_in_transaction = 0  # statements since the open transaction began
        self._state_lost: str | None = None  # the next command is told that the held connection went away
        self._attempts = 0  # of the command that the task has
        self._raw = b""
        self._sent = False  # bytes of the reply under way were passed on
        self._statements = 0  # prepared and not closed
        self._finished: trio.Event | None = None  # set when the command that the task waits for has ended
        self._failure: Exception | None = None
        self._closing = False
        endpoint.deadline = trio.current_time() + service.config.idle_timeout

    # ---------------------------------------------------------------- the lane's side

    def received(self, chunk: bytes) -> None:
        try:
            messages = self._reader.feed(chunk)
        except PacketError as error:
            self._end_with(error.code, str(error), error.sqlstate)
            return
        if self._connection is not None or self.requests.with_task or self._backlog:
            self._backlog.extend(messages)
            if sum(map(len, self._backlog)) > BACKLOG_BYTES:
                self.endpoint.pause_reading()
            return
        if len(messages) == 1:
            if not self.try_now(messages[0]):
                self.requests.decline(Declined(messages[0]))
        else:
            self._backlog.extend(messages)
            self._resume()

    def _resume(self) -> None:
        """Goes on with what the client has sent meanwhile."""
        backlog = self._backlog
        while backlog and self._connection is None and not self.requests.with_task:
            raw = backlog.popleft()
            if not self.try_now(raw):
                self.requests.decline(Declined(raw))
        if not self.endpoint.reading and not backlog:
            self.endpoint.resume_reading()
        if self._closing and not backlog and self._connection is None and not self.requests.with_task:
            self.requests.end()

    def try_now(self, raw: bytes) -> bool:
        """Serves a command without awaiting anything; False if that cannot be done. Never half of it."""
        command = raw[4]
        if command != _QUERY:
            if command == _PING:
                self.endpoint.write(answers.ok(1, status=self.status))
                return True
            return False
        service = self.service
        if self.rules_version != service.rules_version:
            return False
        operation = service.classifier.classify(raw[5:] if len(raw) < 0xFFFFFF else argument_of(raw), self.reading)
        policy = self.policies.policy(operation, self.state.database)
        if policy.block is not None or operation.gateway is not None:
            return False
        held = self.held
        if held is not None:
            if held.arming.replica and operation.pin is not None:
                return False
            member = self.topology.members[held.member]
            self._begin(held, member, raw, operation, policy, "the session keeps its connection")
            return True
        if operation.last_connection:
            return False
        if policy.target is Target.REPLICA:
            if self._stays_at_primary() is not None:
                return False
            chosen = self.freshness.choose_now(policy, service.lane.now)
            if chosen is None or chosen.pool.arming is None:
                return False
            connection = chosen.pool.take_now(self.credentials, self.state)
            if connection is None:
                if operation.transaction is not TransactionEffect.NONE:
                    return False
                connection = chosen.pool.take_other_now(self.credentials, self.state)
                if connection is None:
                    return False
                commands = connection.commands_to(self.state)
                if commands:
                    connection.begin_prelude(commands, self.state, self)
            self._begin(connection, chosen, raw, operation, policy, policy.reason)
            return True
        primary = self.topology.primary_member
        if primary is None or self.topology.config.min_replicas_to_write:
            return False
        writer = self._writer
        if writer is not None and writer.state is self.state and writer.member == primary.name:
            if not primary.pool.take_bound(writer, self):
                return False
        elif self._insert_id is not None or self._insert_id_lost:
            return False
        else:
            writer = primary.pool.take_now(self.credentials, self.state)
            if writer is None:
                return False
        self._begin(writer, primary, raw, operation, policy, policy.reason)
        return True

    def _stays_at_primary(self) -> str | None:
        """Why the session itself keeps even proven reads at the primary, in words."""
        if not self.status & _AUTOCOMMIT:
            return "autocommit is off: every statement belongs to a transaction"
        if self.state.assignments and _is_serializable(self.state):
            return "isolation level SERIALIZABLE: reads take locks"
        return None

    def _begin(
        self,
        connection: MysqlConnection,
        member: SqlMember,
        raw: bytes,
        operation: SqlOperation,
        policy: Policy,
        reason: str,
    ) -> None:
        self._connection = connection
        self.operation, self.policy, self.member, self.reason = operation, policy, member, reason
        self._raw = raw
        self._sent = False
        self.commands += 1
        member.in_flight += 1
        if operation.kind is Kind.READ:
            member.reads += 1
        else:
            member.writes += 1
        tracker = self._tracker
        if len(raw) < 0xFFFFFF:
            tracker.begin(raw[4])
        else:
            tracker.begin(raw[4], packets_in(raw))
        connection.taker = self
        connection.endpoint.write(raw)
        if policy.timeout is not None:
            connection.endpoint.deadline = self.service.lane.now + policy.timeout
        if tracker.done:
            self._complete(b"")

    # -- what the backend connection calls

    def reply(self, chunk: bytes) -> None:
        tracker = self._tracker
        try:
            answer = tracker.feed(chunk)
        except PacketError as error:
            connection = self._connection
            assert connection is not None
            connection.taker = None
            connection.close()
            self.backend_lost(connection, error)
            return
        if tracker.done:
            self._complete(answer)
        elif answer:
            self._sent = True
            self.endpoint.write(answer)

    def _complete(self, answer: bytes) -> None:
        """The reply has ended: passes its last bytes on, follows what it did, and gives the connection back."""
        connection, operation, member, tracker = self._connection, self.operation, self.member, self._tracker
        assert connection is not None
        assert operation is not None
        assert member is not None
        self._connection = None
        member.in_flight -= 1
        error = tracker.error
        if (
            error is not None
            and error.code in _REFUSED_AS_WRITE
            and connection.arming.replica
            and tracker.refused
            and self.held is None
            and operation.transaction is TransactionEffect.NONE
        ):
            # The second fence: it was no read after all. Nothing was sent to the client, nothing was carried out.
            member.pool.give_back(connection)
            self.service.learn_write(self._raw, self.reading, operation)
            self._task_takes(Declined(self._raw, BackendRefused(error.message, error.code), member.name))
            return
        if answer:
            self.endpoint.write(answer)
        if self.policy is not None and self.policy.timeout is not None:
            connection.endpoint.deadline = math.inf
        if error is None:
            if self._raw[4] not in _WITHOUT_STATUS:
                self.status = tracker.status
            in_transaction = self.status & _IN_TRANSACTION
            if operation.kind is not Kind.READ or operation.pin is not None:
                self._follow(connection, operation)
        else:
            # An ERR has no status flags: what was open may be open still, and autocommit=0 may have opened something.
            in_transaction = self.held is not None or not self.status & _AUTOCOMMIT
            if operation.pin is not None and (operation.multi or operation.kind is Kind.UNKNOWN):
                self._pin(operation)
        changes = tracker.changes
        position = (changes.last_gtid or changes.gtids) if changes is not None else None
        if position:
            self.freshness.wrote(connection.member, position)
        elif operation.kind is not Kind.SESSION:
            self.freshness.saw(connection.member, self.service.lane.now)
        self._last = connection
        connection.last_session = self
        warned = tracker.warnings > 0 or error is not None
        connection.warned = self._warned = warned
        kind = operation.kind
        if kind is Kind.WRITE or kind is Kind.UNKNOWN or warned or operation.found_rows or operation.pin is not None:
            connection.tainted = True
            if not connection.arming.replica:
                self._writer = connection
        if in_transaction or self.pins:
            self._ran_in_transaction = self._ran_in_transaction + 1 if self.held is connection else 0
            self.held = connection
            connection.taker = self
        else:
            self.held = None
            member.pool.give_back(connection)
        self.endpoint.deadline = self.service.lane.now + self.service.config.idle_timeout
        if self._finished is not None:
            self._finish_for_task(None)
        elif self._backlog or self._closing:
            self._resume()

    def backend_lost(self, connection: MysqlConnection, error: Exception) -> None:
        """The connection broke. It is closed already, and its place given back."""
        if self.held is connection:
            self.held = None
            self.status &= ~_IN_TRANSACTION
        if self._connection is not connection:  # held, and idle between two statements
            self._lose_state(connection, error)
            return
        self._connection = None
        if self.member is not None:
            self.member.in_flight -= 1
        if self._sent:
            # Part of a result is with the client: nothing but the connection's end tells it apart from a whole one.
            self._lose_client(error)
        else:
            self._task_takes(Declined(self._raw, error, connection.member))

    def prelude_refused(self, connection: MysqlConnection, error: BackendRefused) -> None:
        self._connection = None
        if self.member is not None:
            self.member.in_flight -= 1
        self._task_takes(Declined(self._raw, error, connection.member))

    def losing(self, connection: MysqlConnection, insert_id: int | None) -> None:
        if connection is self._writer:
            self._writer = None
            if insert_id is None:
                self._insert_id_lost = True
            else:
                self._insert_id = insert_id or None
        if connection is self._last:
            self._last = None

    def _task_takes(self, declined: Declined) -> None:
        if self._finished is not None:
            self._finish_for_task(declined.error)
        else:
            self.requests.decline(declined)

    def _finish_for_task(self, failure: Exception | None) -> None:
        self._failure = failure
        if self._finished is not None:
            self._finished.set()
            self.service.lane.woke = True

    def _lose_state(self, connection: MysqlConnection, error: Exception) -> None:
        """A connection that was held went away between two statements, with what only it knew: the next one is told."""
        what = ", ".join(pin.value for pin in self.pins) or "open transaction"
        self._state_lost = (
            f"gateway: the connection to {connection.member} was lost ({error}), and with it this session's {what}"
        )
        self.rules_version = -1  # declines whatever comes next

    def _lose_client(self, error: Exception) -> None:
        self.service.log_lost(self, error)
        if self._finished is not None:
            self._finish_for_task(None)
        self.endpoint.reset()
        self.requests.end()

    # -- what the endpoint calls

    def ended(self) -> None:
        self._closing = True
        if self._connection is None and not self.requests.with_task and not self._backlog:
            self.requests.end()

    def end_if_idle(self) -> None:
        """Ends the session if it is between transactions: the gateway is about to stop."""
        busy = self._connection is not None or self.requests.with_task or self._backlog
        if not busy and not self.status & _IN_TRANSACTION:
            self._end_with(ErrorCode.SERVER_SHUTDOWN, "Server shutdown in progress")

    def lost(self, error: OSError) -> None:
        self.requests.end()
        if self._finished is not None:
            self._finish_for_task(error)

    def expired(self) -> None:
        if self._connection is None and not self.requests.with_task:
            self._end_with(
                4031,  # ER_CLIENT_INTERACTION_TIMEOUT
                "The client was disconnected by the server because of inactivity.",
            )

    def overfull(self) -> None:
        if self._connection is not None:
            self._connection.endpoint.pause_reading()

    def drained(self) -> None:
        if self._connection is not None:
            self._connection.endpoint.resume_reading()

    def raised(self, error: Exception) -> None:
        self.requests.fail(error)
        if self._finished is not None:
            self._finish_for_task(error)

    def _end_with(self, code: int, message: str, sqlstate: str | None = None) -> None:
        self.endpoint.write(answers.err(1, code, message, sqlstate))
        self.endpoint.finish()
        self.requests.end()

    # ---------------------------------------------------------------- following the session's state

    def _follow(self, connection: MysqlConnection, operation: SqlOperation) -> None:
        """After success: what the statement did to the session."""
        state = self.state
        if operation.database is not None:
            state = state.with_database(operation.database)
        if operation.assignments:
            state = state.with_assignments(operation.assignments)
        changes = self._tracker.changes
        if changes is not None and changes.database is not None and changes.database != state.database:
            state = state.with_database(changes.database)  # a USE within something that is not followed otherwise
        if self.status & Status.DB_DROPPED and connection.selected == state.database:
            state = state_of(None, state.collation, state.assignments)
            connection.state = None
        if state is not self.state:
            self.state = state
            self.reading = self.service.reading(state, self.status, self.capabilities)
            if connection.state is not None:
                connection.brought_to(state)
        elif bool(self.status & _NO_BACKSLASH_ESCAPES) != self.reading.no_backslash_escapes:
            self.reading = self.service.reading(state, self.status, self.capabilities)
        if operation.pin is not None:
            self._pin(operation)
        if operation.unpin is not None:
            self.pins.pop(operation.unpin, None)
        if operation is _STATEMENT_COMMAND:
            self._count_statements()

    def _pin(self, operation: SqlOperation) -> None:
        cause = operation.pin
        if cause is not None and cause not in self.pins:
            text = argument_of(self._raw)[:200].decode("utf-8", "replace")
            self.pins[cause] = Pin(
                cause, text if self._raw[4] == _QUERY else operation.statement, self.service.lane.now
            )

    def _count_statements(self) -> None:
        command = self._raw[4]
        if command == Command.STMT_PREPARE:
            self._statements += 1
        elif command == Command.STMT_CLOSE:
            self._statements = max(0, self._statements - 1)
        if not self._statements:
            self.pins.pop(PinCause.PREPARED_STATEMENT, None)

    # ---------------------------------------------------------------- the task's side

    async def serve(self, leftover: bytes) -> None:
        """Serves until the client leaves; then gives back what the session held."""
        try:
            if leftover:
                self.service.lane.batch(lambda: self.received(leftover))
            async for declined in self.requests:
                await self.handle(declined)
        finally:
            self._leave()

    def _leave(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:  # a reply is under way: nobody will read it
            connection.taker = None
            if self.member is not None:
                self.member.in_flight -= 1
            connection.close()
        held, self.held = self.held, None
        if held is not None and held is not connection:
            self.service.recycle(held)
        for bound in {self._writer, self._last} - {None, held, connection}:
            assert bound is not None
            pool = self.topology.members[bound.member].pool
            if bound.tainted and pool.take_bound(bound, self):
                self.service.recycle(bound)
            elif bound.last_session is self:
                bound.last_session = None
        self.endpoint.finish()

    async def handle(self, declined: Declined) -> None:
        """Serves a command with whatever waiting it takes."""
        try:
            await self._handle(declined)
        except Refused as error:
            self._refuse(error, error.code, error.sqlstate)
        except BackendRefused as error:
            self._refuse(error, error.code or ErrorCode.UNKNOWN_ERROR, error.sqlstate)

    def _refuse(self, error: Exception, code: int, sqlstate: str) -> None:
        self.service.refusals += 1
        self.endpoint.write(answers.err(1, code, str(error), sqlstate))

    async def _handle(self, declined: Declined) -> None:
        service, raw = self.service, declined.raw
        command = raw[4]
        if command in _WITHOUT_REPLY and self.held is None:
            return  # closes what is gone already; whatever is answered would be taken for another command's reply
        if self.rules_version != service.rules_version:
            self.policies = service.policies_for(self.user, service.client_of(self.endpoint))
            self.rules_version = service.rules_version
        if command == Command.QUIT:
            self.requests.end()
            return
        if self._state_lost is not None:
            lost, self._state_lost = self._state_lost, None
            if self.pins:
                self._end_with(ErrorCode.UNKNOWN_ERROR, lost)
                return
            raise Refused(lost)
        if command == Command.PING:
            self.endpoint.write(answers.ok(1, status=self.status))
            return
        if command == Command.RESET_CONNECTION:
            self._reset()
            return
        operation = self._operation(raw)
        policy = self.policies.policy(operation, self.state.database)
        if policy.block is not None:
            self.operation, self.policy, self.member, self.reason = operation, policy, None, policy.reason
            raise Refused(f"gateway: {policy.block}", code=ErrorCode.READ_ONLY, sqlstate="HY000")
        if operation.gateway is not None:
            self.endpoint.write(answer_gateway_statement(self, operation.gateway))
            return
        self._attempts = 1
        if declined.error is not None:
            await self._after_failure(declined, operation, policy)
        else:
            await self._run(raw, operation, policy)

    def _operation(self, raw: bytes) -> SqlOperation:
        command = raw[4]
        if command == _QUERY:
            return self.service.classifier.classify(argument_of(raw), self.reading)
        if command == Command.INIT_DB:
            return _use(database_of(raw))
        if command in _PREPARED_COMMANDS:
            if self._statements == 0 and command != Command.STMT_PREPARE:
                raise Refused(
                    "Unknown prepared statement handler given to the gateway",
                    code=ErrorCode.UNKNOWN_STATEMENT,
                )
            return _STATEMENT_COMMAND
        other = _OTHER_COMMANDS.get(command)
        if other is None:
            raise Refused(
                f"gateway: command 0x{command:02x} is not supported", code=ErrorCode.UNKNOWN_COMMAND, sqlstate="08S01"
            )
        return other

    async def _after_failure(self, declined: Declined, operation: SqlOperation, policy: Policy) -> None:
        """A command that was sent and not answered, or that a replica refused as a write."""
        error = declined.error
        assert error is not None
        if isinstance(error, BackendRefused) and error.code not in _REFUSED_AS_WRITE:
            raise error
        if isinstance(error, BackendRefused):
            self.service.fenced += 1
            await self._run_at_primary(declined.raw, operation, policy, "a replica refused it as a write")
        elif self._may_retry(operation, policy):
            self._attempts += 1
            self.service.retried += 1
            await self._run_read(declined.raw, operation, policy, avoid=declined.member)
        else:
            self._raise_unknown(declined, operation, error)

    def _may_retry(self, operation: SqlOperation, policy: Policy) -> bool:
        """Whether a statement that was cut off before its first byte can be sent again: a proven read on its own."""
        alone = not self.pins and not self.status & _IN_TRANSACTION and self.status & _AUTOCOMMIT
        return bool(alone) and operation.kind is Kind.READ and policy.target is Target.REPLICA and self._attempts < 3

    def _raise_unknown(self, declined: Declined, operation: SqlOperation, error: Exception) -> None:
        lost = f"gateway: the connection to {declined.member} was lost while the statement ran ({error})"
        if self.pins:
            names = ", ".join(pin.value for pin in self.pins)
            self._end_with(
                ErrorCode.UNKNOWN_ERROR, f"{lost}; its outcome is unknown, and this session's {names} is gone"
            )
            return
        if operation.kind is Kind.READ:
            raise OutcomeUnknown(f"{lost}; if a transaction was open, it was rolled back")
        if operation.transaction is TransactionEffect.COMMIT:
            raise OutcomeUnknown(f"{lost}; whether the transaction was committed is unknown")
        raise OutcomeUnknown(f"{lost}; its outcome is unknown, and an open transaction was rolled back")

    async def _run(self, raw: bytes, operation: SqlOperation, policy: Policy) -> None:
        held = self.held
        if held is not None and held.arming.replica and operation.pin is not None:
            await self._move_to_primary()
            held = self.held
        if held is not None:
            member = self.topology.members[held.member]
            await self._exchange(held, member, raw, operation, policy, "the session keeps its connection")
        elif operation.last_connection:
            await self._run_at_last(raw, operation, policy)
        elif policy.target is Target.REPLICA:
            staying = self._stays_at_primary()
            if staying is None:
                await self._run_read(raw, operation, policy)
            else:
                await self._run_at_primary(raw, operation, policy, staying)
        else:
            await self._run_at_primary(raw, operation, policy, policy.reason)

    async def _move_to_primary(self) -> None:
        """A READ ONLY transaction began on a replica, and now something would pin the session there for good."""
        if self._ran_in_transaction:
            raise Refused(
                "gateway: this READ ONLY transaction reads from a replica, and the statement would tie the session to "
                "it; run it before the transaction's first read, or give START TRANSACTION the hint "
                "/* gateway: primary */",
                code=ErrorCode.NOT_SUPPORTED_YET,
                sqlstate="42000",
            )
        held, self.held = self.held, None
        if held is not None:
            self.service.recycle(held)
        primary = await self._await_primary()
        connection = await primary.pool.take(self.credentials, self.state)
        try:
            await connection.acknowledge([query("START TRANSACTION READ ONLY")])
        except BaseException:
            connection.close()
            raise
        connection.taker = self
        self.held = connection

    async def _run_read(self, raw: bytes, operation: SqlOperation, policy: Policy, avoid: str | None = None) -> None:
        """At a replica; where none will do, at the primary. `avoid` is a member that has just failed."""
        topology = self.topology
        chosen, reason = await self.freshness.choose(policy)
        if chosen is not None and chosen.name == avoid:
            reason = f"{avoid} has just failed"
        elif chosen is not None:
            try:
                connection = await chosen.pool.take(self.credentials, self.state)
            except Unavailable as error:
                reason = str(error)
            else:
                await self._exchange(connection, chosen, raw, operation, policy, reason)
                return
        if topology.primary_member is None:
            raise Unavailable(f"gateway: {reason}, and group {topology.name} has no primary at the moment")
        async with self.service.primary_reads(reason):
            await self._run_at_primary(raw, operation, policy, reason)

    async def _run_at_primary(self, raw: bytes, operation: SqlOperation, policy: Policy, reason: str) -> None:
        primary = await self._await_primary()
        self._require_replicas(operation)
        writer = self._writer
        if writer is not None and writer.member == primary.name and primary.pool.take_bound(writer, self):
            try:
                await writer.bring_to(self.state)
            except OSError as error:
                raise Unavailable(f"gateway: the connection to {primary.name} was lost: {error}") from error
            except BackendRefused:
                writer.close()
                raise
        else:
            writer = await primary.pool.take(self.credentials, self.state)
            await self._restore_insert_id(writer)
        await self._exchange(writer, primary, raw, operation, policy, reason)

    async def _run_at_last(self, raw: bytes, operation: SqlOperation, policy: Policy) -> None:
        """LAST_INSERT_ID(), warnings, FOUND_ROWS(): on the very connection that knows."""
        about_insert = "last_insert_id" in operation.functions
        wanted = self._writer if about_insert and self._last is not self._writer else self._last
        reason = "it speaks of the statement before: same connection"
        if wanted is not None:
            member = self.topology.members[wanted.member]
            if member.pool.take_bound(wanted, self):
                await self._exchange(wanted, member, raw, operation, policy, reason)
                return
        nothing_to_show = operation.statement.startswith("show") and not self._warned
        if not about_insert and self.commands and not nothing_to_show:
            raise Refused(
                "gateway: the connection of the statement before was lent to another session meanwhile, and what it "
                "knew (warnings, row counts) is gone; ask right after the statement, or in a transaction",
            )
        await self._run_at_primary(raw, operation, policy, "no statement before it left anything behind")

    async def _restore_insert_id(self, connection: MysqlConnection) -> None:
        if self._insert_id_lost:
            self._insert_id_lost = False
            if self.operation is not None and "last_insert_id" in self.operation.functions:
                raise Refused("gateway: the connection that knew LAST_INSERT_ID() was lost")
        if self._insert_id is not None:
            made = Assignment(Scope.SESSION, "last_insert_id", str(self._insert_id))
            for command in assignments_sql((made,)):
                await connection.acknowledge([command])
            self._insert_id = None
        connection.tainted = True
        connection.last_session = self

    async def _await_primary(self) -> SqlMember:
        """The primary, after waiting at most `failover_wait` for one. Raises Unavailable."""
        topology = self.topology
        with trio.move_on_after(topology.config.failover_wait):
            while (primary := topology.primary_member) is None or primary.pool.arming is None:
                await topology.changed()
            return primary
        trouble = f" ({topology.trouble})" if topology.trouble else ""
        raise Unavailable(
            f"gateway: group {topology.name} has had no primary for {topology.config.failover_wait:g} s{trouble}; "
            "nothing of the statement was carried out",
            code=ErrorCode.READ_ONLY,
        )

    def _require_replicas(self, operation: SqlOperation) -> None:
        config = self.topology.config
        if config.min_replicas_to_write and operation.kind in (Kind.WRITE, Kind.UNKNOWN):
            within = self.topology.replicas_within(config.min_replicas_max_lag, trio.current_time())
            if within < config.min_replicas_to_write:
                raise Refused(
                    f"gateway: {within} replicas are within {config.min_replicas_max_lag:g} s, "
                    f"{config.min_replicas_to_write} are required for a write (min_replicas_to_write)",
                    code=ErrorCode.READ_ONLY,
                )

    async def _exchange(
        self,
        connection: MysqlConnection,
        member: SqlMember,
        raw: bytes,
        operation: SqlOperation,
        policy: Policy,
        reason: str,
    ) -> None:
        """Sends the command and waits for the end of its reply."""
        self._finished = trio.Event()
        self._failure = None
        try:
            self.service.lane.batch(lambda: self._begin(connection, member, raw, operation, policy, reason))
            await self._finished.wait()
        finally:
            self._finished = None
        failure = self._failure
        if failure is not None and not self.endpoint.closed:
            await self._after_failure(Declined(raw, failure, member.name), operation, policy)

    def _reset(self) -> None:
        """COM_RESET_CONNECTION: everything but user, database and what was read is as after the log-in."""
        self.pins.clear()
        self._statements = 0
        held, self.held = self.held, None
        for connection in {held, self._writer, self._last} - {None}:
            assert connection is not None
            if connection is held or self.topology.members[connection.member].pool.take_bound(connection, self):
                self.service.recycle(connection)
        self._writer = self._last = None
        self._insert_id = None
        self._insert_id_lost = False
        self.state = state_of(self.state.database, self.initial.collation)
        self.reading = self.service.reading(self.state, 0, self.capabilities)
        self.status = _AUTOCOMMIT
        self.endpoint.write(answers.ok(1, status=self.status))


def _is_serializable(state: State) -> bool:
    value = state.value_of("transaction_isolation") or state.value_of("tx_isolation")
    return value is not None and "SERIALIZABLE" in value.upper()
