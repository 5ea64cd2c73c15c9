"""One MySQL client: its commands, the state it keeps, and the backend connection that serves it at the moment.

`try_now` serves a command within the lane's batch if everything it needs is at hand: the class is known, a member is
fresh enough, an idle connection is in the session's state. Everything else is declined and goes to `handle`, in the
connection's own task: waiting for a replica, opening or resetting a connection, retrying, refusing. Both meet in
`begin`, which sends the command, and in `reply`, through which every byte of an answer passes undecoded.

A session *holds* its connection while a transaction is open or a pin says so. Otherwise the connection goes back to
its pool after every reply, and remembers who used it last.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import trio

from gateway.backends.mysql import Credentials, Left, MysqlConnection
from gateway.backends.mysql_trackers import Heard, heard
from gateway.errors import BackendRefused, Refused
from gateway.net.endpoint import Endpoint
from gateway.protocol.mysql import answers
from gateway.protocol.mysql.attributes import as_expected
from gateway.protocol.mysql.commands import argument_of
from gateway.protocol.mysql.compression import packets_ahead
from gateway.protocol.mysql.constants import Capability, Command, ErrorCode
from gateway.protocol.mysql.handshake import LoggedIn
from gateway.protocol.mysql.ok_packet import ServerError
from gateway.protocol.mysql.packets import HEADER, TOO_LARGE, PacketError, packets_in
from gateway.protocol.mysql.renumbered import RenumberedTracker
from gateway.protocol.mysql.replies import ReplyTracker
from gateway.routing.operation import Kind, SqlOperation, TransactionEffect
from gateway.routing.route import Policy, Target
from gateway.sessions.mysql_client import UNASKED, MysqlClient
from gateway.sessions.mysql_freshness import Freshness
from gateway.sessions.mysql_infile import WantedFiles
from gateway.sessions.mysql_prepared import ABOUT_CURSORS, COMMANDS, EXECUTE, FETCH, PREPARE, PreparedStatements
from gateway.sessions.mysql_residue import Residue
from gateway.sessions.mysql_state import AUTOCOMMIT, IN_TRANSACTION, WITHOUT_STATUS, SessionState
from gateway.sessions.mysql_task import REFUSED_AS_WRITE, CommandTask, Declined, stays_at_replica
from gateway.topology.mysql import SqlMember

if TYPE_CHECKING:
    from gateway.backends.pool import MemberPool
    from gateway.sessions.mysql_service import MysqlService


LONG_BYTES: Final = 16_384  # from here on a command is looked at for whether the server takes it; all take as much

_QUERY: Final = int(Command.QUERY)
_PING: Final = int(Command.PING)
_WITH_RESULTS: Final = (_QUERY, EXECUTE)


class MysqlSession:
    """A client that has logged in: what it wants, and the taker of the connection that serves it."""

    def __init__(self, service: MysqlService, endpoint: Endpoint, login: LoggedIn, credentials: Credentials, id_: int):
        self.service = service
        self.topology = service.topology
        self.endpoint = endpoint
        self.credentials = credentials
        self.user = login.user
        self.capabilities = login.capabilities
        self.id = id_
        self.freshness = Freshness(service.topology)
        self.kept = SessionState(service, login)
        self.residue = Residue()
        self.prepared = PreparedStatements(self)
        self.policies = service.policies_for(login.user, service.client_of(endpoint))
        self.rules_version = service.rules_version
        self.held: MysqlConnection | None = None
        self.commands = 0
        # The last command and where it went, for SHOW GATEWAY LAST ROUTE.
        self.operation: SqlOperation | None = None
        self.policy: Policy | None = None
        self.reason = ""
        self.member: SqlMember | None = None
        self._wanted_files = WantedFiles(self)
        self._heard = Heard()
        self._tracker = self._new_tracker()
        self.answer_at: int | None = None  # sequence id of the next error, where the command's does not tell it
        self._plain = not login.capabilities & Capability.QUERY_ATTRIBUTES
        self.client = MysqlClient(self, endpoint, plain=self._plain)
        self.connection: MysqlConnection | None = None  # serves the command under way
        self.ran_in_transaction = 0  # statements since the open transaction began
        self.state_lost: str | None = None  # the next command is told that the held connection went away
        self.retired: str | None = None  # why the session ends when its transaction does
        self.raw = b""
        self._sent = False  # bytes of the reply under way were passed on
        self.finished: trio.Event | None = None  # set when the command that the task waits for has ended
        self.failure: Exception | None = None
        self.failure_held = False  # see Declined
        self.has_primary_place = False  # see leave_primary_reads
        # Under autocommit=0: the transaction at a replica is one that may still write, at the primary then; and it has
        # only read so far at the primary, where it is for want of READ COMMITTED or of autocommit_off_reads.
        self.reads_first = False
        self.kept_reading = False
        self.waiting: trio.CancelScope | None = None  # around what the task does for a declined command
        self.frozen: trio.Event | None = None  # a KILL QUERY is under way: set when it was answered
        endpoint.deadline = trio.current_time() + service.config.idle_timeout

    # ---------------------------------------------------------------- the lane's side

    def try_now(self, raw: bytes) -> bool:
        """Serves a command without awaiting anything; False if that cannot be done. Never half of it."""
        command = raw[4]
        service = self.service
        kept = self.kept
        state = kept.state
        if command == _QUERY:
            if self.rules_version != service.rules_version:
                return False
            operation = service.classifier.classify(raw[5:] if len(raw) < 0xFFFFFF else argument_of(raw), kept.reading)
            policy = self.policies.policy(operation, state.database)
        elif command in COMMANDS:
            if self.prepared.serve_here(raw):
                return True
            if self.rules_version != service.rules_version:
                return False
            try:
                operation, policy = self.prepared.decide(raw)
            except (Refused, BackendRefused):
                return False  # the task says so
        elif command == _PING:
            self.endpoint.write(answers.ok(1, status=kept.status))
            self.endpoint.deadline = service.lane.now + kept.idle_timeout
            return True
        else:
            return False
        if policy.block is not None or operation.by_task:
            return False
        held = self.held
        if held is not None:
            if held.arming.replica and not stays_at_replica(operation, self.reads_first):
                return False
            if self.kept_reading:
                if operation.kind is Kind.READ:
                    service.kept_by_autocommit += 1
                else:
                    self.kept_reading = False
            member = self.topology.members[held.member]
            self.begin(held, member, raw, operation, policy, "the session keeps its connection")
            return True
        if operation.last_connection:
            return False
        if policy.target is Target.REPLICA and self.topology.has_replicas:
            if not kept.status & AUTOCOMMIT or state.stays_at_primary is not None:
                return False
            chosen = self.freshness.choose_now(policy, service.lane.now)
            if chosen is None:
                return self.freshness.hopeless is not None and self._read_at_primary_now(raw, operation, policy)
            pool = chosen.pool
            if pool.arming is None:
                return False
            connection = (
                pool.take_now(self.credentials, state) if command == _QUERY else self._take_prepared(pool, command)
            )
            if connection is None:
                if operation.transaction is not TransactionEffect.NONE:
                    return False
                connection = pool.take_other_now(self.credentials, state)
                if connection is None:
                    return False
                commands = connection.commands_to(state)
                if commands:
                    connection.begin_prelude(commands, state, self)
            self.begin(connection, chosen, raw, operation, policy, policy.reason)
            return True
        if self.topology.config.min_replicas_to_write:
            return False
        return self._run_at_primary_now(raw, operation, policy, policy.reason)

    def _read_at_primary_now(self, raw: bytes, operation: SqlOperation, policy: Policy) -> bool:
        """No replica can serve this read, however long it waits."""
        reason = self.freshness.hopeless
        assert reason is not None
        if not self.service.enter_primary_reads_now(reason):
            return False
        self.has_primary_place = True
        if self._run_at_primary_now(raw, operation, policy, reason):
            return True
        self.leave_primary_reads()
        return False

    def _run_at_primary_now(self, raw: bytes, operation: SqlOperation, policy: Policy, reason: str) -> bool:
        primary = self.topology.primary_member
        if primary is None:
            return False
        writer = self.residue.writer
        if writer is not None and writer.member == primary.name:
            if writer.state is not self.kept.state or not primary.pool.take_bound(writer, self):
                return False
        elif self.residue.insert_id is not None or self.residue.insert_id_lost:
            return False
        else:
            pool = primary.pool
            if raw[4] == _QUERY:
                writer = pool.take_now(self.credentials, self.kept.state)
            else:
                writer = self._take_prepared(pool, raw[4])
            if writer is None:
                return False
        self.begin(writer, primary, raw, operation, policy, reason)
        return True

    def _take_prepared(self, pool: MemberPool, command: int) -> MysqlConnection | None:
        """An idle connection in the session's state; of several, for an execution, one that has the statement."""
        if command == EXECUTE and self.prepared.current is not None:
            return pool.take_prepared_now(self.credentials, self.kept.state, self.prepared.current.shared)
        return pool.take_now(self.credentials, self.kept.state)

    def begin(
        self,
        connection: MysqlConnection,
        member: SqlMember,
        raw: bytes,
        operation: SqlOperation,
        policy: Policy,
        reason: str,
    ) -> None:
        self.connection = connection
        self.operation, self.policy, self.member, self.reason = operation, policy, member, reason
        self.raw = raw
        self._sent = False
        self.commands += 1
        member.in_flight += 1
        if operation.kind is Kind.READ:
            member.reads += 1
        else:
            member.writes += 1
        tracker = self._tracker
        command = raw[4]
        if not self._plain:
            raw = as_expected(raw)
        connection.taker = self
        if len(raw) < LONG_BYTES:
            tracker.begin(command)
        else:
            long = self._begin_long(connection, raw)
            if long is None:
                return
            tracker = long
        if policy.timeout is not None:
            connection.endpoint.deadline = self.service.lane.now + policy.timeout
        if command < PREPARE:
            connection.endpoint.send(raw)
            return
        self.prepared.send(connection, raw, tracker)
        if tracker.done:
            self._complete(b"")

    def _begin_long(self, connection: MysqlConnection, raw: bytes) -> ReplyTracker | None:
        """Expects the reply to a long command; None if the server would not take it, which the client is told then.

        It would end the connection, and nobody could tell its refusal from a loss in the middle of a write.
        """
        count = packets_in(raw)
        tracker = self._tracker
        ahead = packets_ahead(len(raw)) if connection.compressed else 0
        if ahead:
            self._tracker = tracker = renumbered = RenumberedTracker(self.capabilities)
            self._set_up(renumbered)
            renumbered.begin(raw[4], count, ahead)
        else:
            tracker.begin(raw[4], count)
        if len(raw) - count * HEADER < connection.max_packet:
            return tracker
        if connection.prelude is not None:
            connection.retired = True  # nobody else may have it before that was answered
        self.reply(answers.err(count + ahead, ErrorCode.PACKET_TOO_LARGE, TOO_LARGE))
        self.residue.refused(self.commands, ErrorCode.PACKET_TOO_LARGE, TOO_LARGE, "08S01")
        self.rules_version = -1  # declines the next command: it may ask about this one
        return None

    def _may_have_written(self, connection: MysqlConnection, held: bool) -> None:
        """After an unknown outcome the session must not read behind what may have been committed."""
        if held or self.operation is None or self.operation.kind is not Kind.READ:
            self.freshness.saw(connection.member, trio.current_time())
        if self.operation is not None and self.operation.kind is not Kind.READ:
            self.topology.catalogue.seen(self.operation)
            self.kept.follow_accounts(self.prepared.as_query(self.raw), self.operation)

    def _new_tracker(self) -> ReplyTracker:
        tracker = ReplyTracker(self.capabilities)
        self._set_up(tracker)
        return tracker

    def _set_up(self, tracker: ReplyTracker) -> None:
        tracker.on_file = self._wanted_files
        tracker.keep_positions, tracker.keep_schema = self._heard

    def hear(self) -> None:
        """Passes on what the client has asked servers to track, and nothing that the gateway asks for."""
        identity = self.topology.identity
        self._heard = heard(self.kept.state, mariadb=identity is not None and identity.mariadb)
        self._set_up(self._tracker)

    @property
    def rows(self) -> int:
        """How many the last result set had."""
        return self._tracker.rows

    def begin_file(self) -> bytes:
        """A file of the client's follows the command at hand; returns what has come of it."""
        self._sent = self._sent and self.operation is not None and self.operation.multi
        return self.client.take_unread()

    def file_asked_for(self) -> int:
        """The sequence id of the server's request."""
        return self._tracker.infile_at

    def file_sent(self) -> None:
        """The client's file is with the server, which goes on with its reply."""
        self._tracker.file_sent()

    def _break_off(self) -> None:
        """The command under way gets no reply: it occupies its connection and its member no more."""
        self.connection = None
        if self.member is not None:
            self.member.in_flight -= 1
        self.leave_primary_reads()
        self._tracker = self._new_tracker()  # the old one may hold the beginning of a packet

    def leave_primary_reads(self) -> None:
        """Gives back the place among the reads that wanted a replica and went to the primary, if there is one."""
        if self.has_primary_place:
            self.has_primary_place = False
            self.service.primary_reads.release()

    # -- what the backend connection calls

    def reply(self, chunk: bytes) -> None:
        tracker = self._tracker
        try:
            answer = tracker.feed(chunk)
        except PacketError as error:
            connection = self.connection
            assert connection is not None
            connection.taker = None
            connection.close()
            self.backend_lost(connection, error)
            return
        if tracker.done:
            self._complete(answer)
        elif answer:
            self._sent = True
            self.endpoint.send(answer)

    def _complete(self, answer: bytes) -> None:
        """The reply has ended: passes its last bytes on, follows what it did, and gives the connection back."""
        connection, operation, member, tracker = self.connection, self.operation, self.member, self._tracker
        assert connection is not None
        assert operation is not None
        assert member is not None
        command = self.raw[4]
        if command >= PREPARE and not self.prepared.ran(connection, command, tracker):
            tracker.begin(command, packets_in(self.raw))
            self.prepared.send(connection, self.raw, tracker)
            return
        self.connection = None
        member.in_flight -= 1
        if self.has_primary_place:
            self.leave_primary_reads()
        if self.policy is not None and self.policy.timeout is not None:
            connection.endpoint.deadline = math.inf
        kept = self.kept
        noted = tracker.told or tracker.warnings or self.held is not None or kept.pins
        if not noted and tracker.status == kept.status and operation.plain and command in _WITH_RESULTS:
            # What nearly every reply is: of a read that changed nothing and left nothing behind.
            self.endpoint.send(answer)
            self.freshness.saw(connection.member, self.service.lane.now)
            self.residue.last = connection
            connection.last_session = self
            connection.warned = self.residue.warned = False
            self.give_back(connection)
            self._go_on()
            return
        error = tracker.error
        if error is not None and (elsewhere := self._to_be_asked_elsewhere(connection, operation, error)):
            self._task_takes(elsewhere)
            return
        if answer:
            self.endpoint.send(answer)
        if command == FETCH:
            self.prepared.settle(connection)
            self._go_on()
            return
        if error is None:
            if command == _QUERY:
                kept.status = tracker.status
            elif command not in WITHOUT_STATUS:
                kept.status = tracker.status & ~ABOUT_CURSORS
            in_transaction = kept.status & IN_TRANSACTION
            if operation.release:  # the server ends its connection now, and the client's with it
                connection.retired = True
                self.endpoint.finish()
                self.client.requests.end()
            if operation.kind is not Kind.READ or operation.pin is not None:
                kept.follow(connection, self.prepared.as_query(self.raw), operation, tracker.changes)
                if operation.transaction is TransactionEffect.IMPLICIT_COMMIT or operation.kind is Kind.UNKNOWN:
                    self.topology.catalogue.seen(operation)
        else:
            in_transaction = self._failed(connection, operation, error)
        self._left_behind(connection, operation, command)
        if in_transaction or kept.pins:
            self.ran_in_transaction = self.ran_in_transaction + 1 if self.held is connection else 0
            self.held = connection
            connection.taker = self
        else:
            self.held = None
            self.give_back(connection)
        self._go_on()

    def _failed(self, connection: MysqlConnection, operation: SqlOperation, error: ServerError) -> bool:
        """What is true although the server has answered with an error; returns whether a transaction may be open."""
        kept, tracker = self.kept, self._tracker
        in_part = operation.multi and not tracker.refused  # statements before it in the text were carried out
        if operation.kind is not Kind.READ:
            self.topology.catalogue.seen(operation)
            kept.failed(self.prepared.as_query(self.raw), operation, error.code, in_part=in_part)
        # An ERR has no status flags: what was open may be open still, and autocommit=0 may have opened something.
        in_transaction = self.held is not None or not kept.status & AUTOCOMMIT
        if in_part:
            kept.status = tracker.status
            in_transaction = in_transaction or bool(tracker.status & IN_TRANSACTION)
        if operation.pin is not None or operation.unpin is not None:
            connection.role_in_doubt = True
            kept.stuck(self.prepared.as_query(self.raw), operation, error)
        if tracker.changes is not None and tracker.changes.database is not None:
            kept.follow_database(connection, tracker.changes.database)
        return in_transaction

    def _left_behind(self, connection: MysqlConnection, operation: SqlOperation, command: int) -> None:
        """Keeps what later statements may depend on: the position, and what SHOW WARNINGS and its kin would tell."""
        tracker = self._tracker
        changes = tracker.changes
        position = (changes.last_gtid or changes.gtids) if changes is not None else None
        if position:
            self.freshness.wrote(connection.member, position)
        may_have_read = not position or operation.multi or operation.kind is Kind.UNKNOWN
        warned = tracker.warnings > 0 or tracker.error is not None
        if command != PREPARE or warned:  # which leaves alone what the statement before it left behind
            if may_have_read and operation.kind is not Kind.SESSION:
                self.freshness.saw(connection.member, self.service.lane.now)
            self.residue.last = connection
            connection.last_session = self
            connection.warned = self.residue.warned = warned
        kind = operation.kind
        if kind is Kind.WRITE or kind is Kind.UNKNOWN or warned or operation.found_rows or operation.pin is not None:
            connection.tainted = True
            if not connection.arming.replica:
                self.residue.writer = connection
                if tracker.insert_id:
                    self.residue.insert_id_lost = False

    def give_back(self, connection: MysqlConnection) -> None:
        """Ends the lease of a connection that the session need not keep, unless it has an open cursor."""
        if self.prepared.cursors and self.prepared.keeps(connection):
            self.prepared.put_aside(connection)
        else:
            connection.home.give_back(connection)

    def _go_on(self) -> None:
        """A command has ended: turns to whoever waits for that, or to the next one."""
        client = self.client
        if not client.stalled:
            self.endpoint.deadline = self.service.lane.now + self.kept.idle_timeout
        if self.finished is not None:
            self.finish_for_task(None)
        elif client.backlog or client.closing:
            client.resume()

    def _to_be_asked_elsewhere(
        self, connection: MysqlConnection, operation: SqlOperation, error: ServerError
    ) -> Declined | None:
        """A replica's refusal that is no answer for the client: nothing was sent to it, nothing was carried out."""
        alone = (self.held is None or self.reads_first) and operation.transaction is TransactionEffect.NONE
        if not (alone and connection.arming.replica and self._tracker.refused):
            return None
        if error.code in REFUSED_AS_WRITE:  # the second fence: it was no read after all
            connection.last_session = None  # the error that it left is nobody's
            if self.held is None:
                connection.home.give_back(connection)
            else:
                self._leave_held()
                self.prepared.lost(connection)
                self.service.recycle(connection)
            self.service.learn_write(*self.prepared.text_and_reading(self.raw), operation)
            return Declined(self.raw, BackendRefused(error.message, error.code), connection.member)
        if error.code == ErrorCode.SERVER_SHUTDOWN:
            self._leave_held()
            connection.close()
            return Declined(self.raw, ConnectionResetError(error.message), connection.member)
        return None

    def _leave_held(self) -> None:
        self.held = None
        self.kept.status &= ~IN_TRANSACTION

    def backend_lost(self, connection: MysqlConnection, error: Exception) -> None:
        """The connection broke. It is closed already, and its place given back."""
        held = self.held is connection
        if self.prepared.cursors:
            self.prepared.lost(connection)
        if held:
            self.held = None
            self.kept.status &= ~IN_TRANSACTION
        if self.connection is not connection:  # idle between two statements
            if held:
                self._lose_state(connection, error)
            return
        self._break_off()
        self._may_have_written(connection, held)
        if self._sent:
            # Part of a result is with the client: nothing but the connection's end tells it apart from a whole one.
            self.client.lose(error)
        else:
            self._task_takes(Declined(self.raw, error, connection.member, held))

    def prelude_refused(self, connection: MysqlConnection, error: BackendRefused) -> None:
        self._break_off()
        self._task_takes(Declined(self.raw, error, connection.member))

    def overdue(self, connection: MysqlConnection) -> None:
        policy = self.policy
        assert policy is not None
        self.prepared.lost(connection)
        self._break_off()
        self._may_have_written(connection, self.held is connection)
        if self.held is connection:
            self.held = None
            self.kept.status &= ~IN_TRANSACTION
            if self.kept.pins:
                self._lose_state(connection, TimeoutError("its statement was ended"))
        self.service.kill(connection)
        limit = Refused(
            f"gateway: the statement took longer than {policy.timeout:g} s and was ended "
            f'(the rule "{policy.rule}" sets the limit)',
            code=ErrorCode.QUERY_TIMEOUT,
        )
        if self._sent:
            self.client.lose(limit)
        else:
            self._task_takes(Declined(self.raw, limit, connection.member))

    def losing(self, connection: MysqlConnection, left: Left | None) -> None:
        # MariaDB's RETURNING makes a result of a change, and ROW_COUNT() of it -1.
        told = None if b"RETURNING" in self.raw.upper() else self.operation
        self.residue.losing(connection, left, self.commands, told, self._tracker.affected_rows)

    def _task_takes(self, declined: Declined) -> None:
        if self.finished is not None:
            self.failure_held = declined.held
            self.finish_for_task(declined.error)
        else:
            self.client.requests.decline(declined)

    def finish_for_task(self, failure: Exception | None) -> None:
        self.failure = failure
        if self.finished is not None:
            self.finished.set()
            self.service.lane.woke = True

    def _lose_state(self, connection: MysqlConnection, error: Exception) -> None:
        """A connection that was held went away between two statements, with what only it knew: the next one is told."""
        what = ", ".join(pin.value for pin in self.kept.pins) or "open transaction"
        self.state_lost = (
            f"gateway: the connection to {connection.member} was lost ({error}), and with it this session's {what}"
        )
        self.rules_version = -1  # declines whatever comes next

    # -- how it ends

    def end_if_idle(self) -> None:
        """Ends the session if it is between transactions: the gateway is about to stop."""
        if self._is_idle():
            self.client.end_with(ErrorCode.SERVER_SHUTDOWN, "Server shutdown in progress", sequence=UNASKED)

    def end_by_kill(self) -> None:
        """Ends the session, and what runs for it, in the middle of whatever it does."""
        self.client.end_at_once()
        if self.waiting is not None:
            self.waiting.cancel()

    def retire(self, why: str) -> None:
        """Ends the session as soon as it is between transactions: it would not be let in any more."""
        self.retired = why
        self.rules_version = -1  # declines whatever comes next
        if self._is_idle():
            self.client.end_with(ErrorCode.ACCESS_DENIED, why, sequence=UNASKED)

    def _is_idle(self) -> bool:
        busy = self.connection is not None or self.client.requests.with_task or self.client.backlog
        return not busy and not self.kept.status & IN_TRANSACTION

    # ---------------------------------------------------------------- the task's side

    async def serve(self, leftover: bytes) -> None:
        """Serves until the client leaves; then gives back what the session held."""
        try:
            if leftover:
                self.service.lane.batch(lambda: self.client.received(leftover))
            task = CommandTask(self)
            async for declined in self.client.requests:
                await task.handle(declined)
        finally:
            self._leave()

    def let_go(self, connection: MysqlConnection) -> None:
        """Leaves a connection for good."""
        self.prepared.lost(connection)
        self.service.recycle(connection)

    def forget_all(self) -> None:
        """Gives back whatever the session has on connections: its client begins anew."""
        self._heard = Heard()
        self._set_up(self._tracker)
        held, self.held = self.held, None
        for connection in {held, self.residue.writer, self.residue.last} - {None}:
            assert connection is not None
            pool = self.topology.members[connection.member].pool
            if connection is held or pool.take_bound(connection, self):
                self.let_go(connection)
        self.prepared.clear()
        self.residue.forget()

    def become(self, login: LoggedIn, credentials: Credentials) -> None:
        """Goes on as another user, as after a log-in."""
        self.forget_all()
        self.user = login.user
        self.credentials = credentials
        self.retired = None  # it was who it no longer is
        self.kept = SessionState(self.service, login)
        self.policies = self.service.policies_for(self.user, self.service.client_of(self.endpoint))
        self.operation = self.policy = self.member = None

    def _leave(self) -> None:
        connection = self.connection
        if connection is not None:  # a reply is under way: nobody will read it
            self.prepared.lost(connection)
            self._break_off()
            self.service.kill(connection)
        held, self.held = self.held, None
        if held is not None and held is not connection:
            self.let_go(held)
        self.prepared.clear()
        for bound in {self.residue.writer, self.residue.last} - {None, held, connection}:
            assert bound is not None
            pool = self.topology.members[bound.member].pool
            if bound.tainted and pool.take_bound(bound, self):
                self.let_go(bound)
            elif bound.last_session is self:
                bound.last_session = None
        self.endpoint.finish()
