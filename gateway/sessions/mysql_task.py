"""The awaiting side of a MySQL session: serves the commands that could not be served within a batch."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from gateway.backends.mysql import MysqlConnection
from gateway.errors import BackendRefused, OutcomeUnknown, ProtocolError, Refused, Unavailable
from gateway.protocol.mysql import answers
from gateway.protocol.mysql.attributes import as_sent
from gateway.protocol.mysql.commands import argument_of, query, thread_id_of
from gateway.protocol.mysql.constants import Command, ErrorCode
from gateway.protocol.mysql.packets import PacketError, packets_in
from gateway.routing.operation import Kind, SqlOperation, TransactionEffect
from gateway.routing.route import Policy, Target
from gateway.routing.sql_resolve import STALE
from gateway.sessions.mysql_change_user import change_user
from gateway.sessions.mysql_diagnostics import as_assignment, still_known
from gateway.sessions.mysql_freshness import NO_REPLICAS
from gateway.sessions.mysql_gateway import answer_gateway_statement
from gateway.sessions.mysql_kill import interrupted, kill
from gateway.sessions.mysql_last import ABOUT_INSERT, answered_here, restore_insert_id, run_at_last
from gateway.sessions.mysql_options import set_option
from gateway.sessions.mysql_prepared import COMMANDS
from gateway.sessions.mysql_read_back import after_exchange
from gateway.sessions.mysql_residue import insert_id_answer, settle, thread_id_answer
from gateway.sessions.mysql_state import AUTOCOMMIT, IN_TRANSACTION, operation_of_command, refusal_of_command
from gateway.topology.mysql import SqlMember

if TYPE_CHECKING:
    from gateway.sessions.mysql import MysqlSession

# The second fence: what a replica answers to a write.
REFUSED_AS_WRITE: Final = frozenset((ErrorCode.READ_ONLY, ErrorCode.READ_ONLY_TRANSACTION, ErrorCode.READ_ONLY_MODE))
ATTEMPTS: Final = 3  # of a proven read, each at another member, the primary being the last


@dataclass(frozen=True, slots=True)
class Declined:
    """A command for the session's task. After a failure, `error` is what happened on the way and `member` where.

    `held`: the connection that failed was held, so that a transaction or pinned state went with it.
    """

    raw: bytes
    error: Exception | None = None
    member: str | None = None
    held: bool = False


def stays_at_replica(operation: SqlOperation, reads_first: bool) -> bool:
    """Whether a replica can carry out a statement of a READ ONLY transaction that it serves.

    `reads_first`: it is none, but one of autocommit=0 that has only read so far.
    """
    if operation.kind is Kind.READ:
        about_insert = operation.last_connection and ABOUT_INSERT & operation.functions
        return operation.pin is None and operation.needs_primary is None and not about_insert
    if operation.read_back:
        return True
    if reads_first and operation.transaction is TransactionEffect.SAVEPOINT:
        return False
    ends = operation.transaction in (TransactionEffect.BEGIN, TransactionEffect.IMPLICIT_COMMIT)
    return operation.kind in (Kind.TRANSACTION, Kind.SESSION) and operation.pin is None and not ends


class CommandTask:
    """Serves declined commands one after the other. What is refused is told to the client, and the session goes on."""

    def __init__(self, session: MysqlSession) -> None:
        self.session = session
        self._attempts = 0  # of the command at hand

    async def handle(self, declined: Declined) -> None:
        """Serves a command with whatever waiting it takes."""
        session = self.session
        try:
            with trio.CancelScope() as session.waiting:
                await self._handle(declined)
            if session.waiting.cancelled_caught and not session.client.requests.over:
                raise interrupted()
        except Refused as error:
            self._refuse(declined.raw, error, error.code, error.sqlstate)
        except BackendRefused as error:
            self._refuse(declined.raw, error, error.code or ErrorCode.UNKNOWN_ERROR, error.sqlstate)
        except PacketError as error:
            session.client.end_with(error.code, str(error), error.sqlstate)
        finally:
            session.waiting = None

    def _refuse(self, raw: bytes, error: Exception, code: int, sqlstate: str) -> None:
        self.session.service.refusals += 1
        text = str(error)
        if isinstance(error, Refused) and not text.startswith("gateway: "):
            text = f"gateway: {text}"  # so that nobody looks for it in a server
        self.session.residue.refused(self.session.commands, code, text, sqlstate)
        self.session.rules_version = -1  # declines the next command: it may ask about this one
        at, self.session.answer_at = self.session.answer_at, None
        self.session.endpoint.write(answers.err(at or packets_in(as_sent(raw)), code, text, sqlstate))

    async def _handle(self, declined: Declined) -> None:
        service, raw = self.session.service, declined.raw
        command = raw[4]
        if command == Command.PROCESS_KILL:
            raw = query(f"KILL {thread_id_of(raw)}")
            command = raw[4]
        if self.session.frozen is not None:
            await self.session.frozen.wait()
        if self.session.retired is not None and not self.session.kept.status & IN_TRANSACTION:
            self.session.client.end_with(ErrorCode.ACCESS_DENIED, self.session.retired)
            return
        if self.session.rules_version != service.rules_version:
            self.session.policies = service.policies_for(self.session.user, service.client_of(self.session.endpoint))
            # While the catalogue is stale every command comes here first.
            settled = self.session.retired is None and not self.session.topology.catalogue.catalogue.stale
            self.session.rules_version = service.rules_version if settled else -1
        if command == Command.QUIT:
            self.session.client.requests.end()
            return
        if self.session.state_lost is not None:
            lost, self.session.state_lost = self.session.state_lost, None
            if self.session.kept.pins:
                self.session.client.end_with(ErrorCode.UNKNOWN_ERROR, lost)
                return
            raise Refused(lost)
        if command == Command.PING:
            self.session.endpoint.write(answers.ok(1, status=self.session.kept.status))
            return
        if command == Command.RESET_CONNECTION:
            self._reset()
            return
        if command == Command.CHANGE_USER:
            await change_user(self.session, raw)
            return
        if command == Command.SET_OPTION:
            await set_option(self, raw)
            return
        operation, policy = self._decide(raw)
        catalogue = self.session.topology.catalogue
        if (operation.needs_primary is STALE or operation.calls) and catalogue.catalogue.stale:
            await catalogue.settled()
            operation, policy = self._decide(raw)
        if policy.block is not None:
            self.session.operation, self.session.policy, self.session.member, self.session.reason = (
                operation,
                policy,
                None,
                policy.reason,
            )
            raise Refused(f"gateway: {policy.block}", code=ErrorCode.READ_ONLY, sqlstate="HY000")
        if operation.gateway is not None:
            self.session.endpoint.write(await self._own_answer(raw, operation))
            return
        self._attempts = 1
        pinned_before = frozenset(self.session.kept.pins)
        if declined.error is not None:
            await self._after_failure(declined, operation, policy)
        else:
            await self._run(raw, operation, policy)
        if operation.by_task:
            await after_exchange(self.session, operation, pinned_before)

    async def _own_answer(self, raw: bytes, operation: SqlOperation) -> bytes:
        """The reply to what no server is asked about."""
        if operation.kill is not None:
            return await kill(self.session, operation.kill)
        if operation.statement == "select":
            return thread_id_answer(self.session, raw)
        return answer_gateway_statement(self.session, operation.gateway or "")

    def _decide(self, raw: bytes) -> tuple[SqlOperation, Policy]:
        if raw[4] in COMMANDS:
            return self.session.prepared.decide(raw)
        operation = self._operation(raw)
        return operation, self.session.policies.policy(operation, self.session.kept.state.database)

    def _operation(self, raw: bytes) -> SqlOperation:
        command = raw[4]
        if command == Command.QUERY:
            return self.session.service.classifier.classify(argument_of(raw), self.session.kept.reading)
        operation = operation_of_command(raw)
        if operation is None:
            raise refusal_of_command(command)
        return operation

    async def _after_failure(self, declined: Declined, operation: SqlOperation, policy: Policy) -> None:
        """A command that was sent and not answered, or that a replica refused as a write."""
        error = declined.error
        assert error is not None
        if isinstance(error, Refused):
            raise error
        if isinstance(error, BackendRefused) and error.code not in REFUSED_AS_WRITE:
            raise error
        if isinstance(error, BackendRefused):
            self.session.service.fenced += 1
            await self.run_at_primary(declined.raw, operation, policy, "a replica refused it as a write")
        elif not declined.held and self._may_retry(operation, policy):
            self._attempts += 1
            self.session.service.retried += 1
            await self._run_read(declined.raw, operation, policy, avoid=declined.member)
        else:
            self._raise_unknown(declined, operation, error)

    def _may_retry(self, operation: SqlOperation, policy: Policy) -> bool:
        """Whether a statement that was cut off before its first byte can be sent again: a proven read on its own."""
        # Of the statement before, no other connection knows.
        alone = self.session.kept.stays_at_primary() is None and not operation.last_connection
        return alone and operation.kind is Kind.READ and policy.target is Target.REPLICA and self._attempts < ATTEMPTS

    def _raise_unknown(self, declined: Declined, operation: SqlOperation, error: Exception) -> None:
        lost = f"gateway: the connection to {declined.member} was lost while the statement ran ({error})"
        if self.session.kept.pins:
            names = ", ".join(pin.value for pin in self.session.kept.pins)
            self.session.client.end_with(
                ErrorCode.UNKNOWN_ERROR, f"{lost}; its outcome is unknown, and this session's {names} is gone"
            )
            return
        if operation.kind is Kind.READ:
            raise OutcomeUnknown(f"{lost}; if a transaction was open, it was rolled back")
        if operation.transaction is TransactionEffect.COMMIT:
            raise OutcomeUnknown(f"{lost}; whether the transaction was committed is unknown")
        raise OutcomeUnknown(f"{lost}; its outcome is unknown, and an open transaction was rolled back")

    async def _run(self, raw: bytes, operation: SqlOperation, policy: Policy) -> None:
        if operation.statement == "get diagnostics" and self.session.held is None:
            stored = await as_assignment(self.session, raw)
            if stored is not None:
                await self._run(stored[0], *self._decide(stored[0]))
                still_known(self.session, stored[1])
                return
        captured = self.session.residue.captured
        own = captured is not None and captured.first and captured.at == self.session.commands
        if own and operation.last_connection and await answered_here(self, raw, operation):
            return
        held = self.session.held
        if held is not None and held.arming.replica and not stays_at_replica(operation, self.session.reads_first):
            # In the middle of what a replica serves, which knows nothing of the session's inserts.
            answered = await insert_id_answer(self.session, raw) if operation.last_connection else None
            if answered is not None:
                self.session.endpoint.write(answered)
                return
            await self._leave_replica(held, operation)
            held = self.session.held
        if held is not None:
            member = self.session.topology.members[held.member]
            await self.exchange(held, member, raw, operation, policy, "the session keeps its connection")
        elif operation.last_connection:
            await run_at_last(self, raw, operation, policy)
        elif policy.target is Target.REPLICA:
            staying = self.session.kept.stays_at_primary()
            if staying is None and not self.session.topology.has_replicas:
                staying = NO_REPLICAS
            if staying is None:
                # Until it says otherwise: a READ ONLY transaction is one that the client began.
                session = self.session
                session.reads_first = not session.kept.status & AUTOCOMMIT and operation.kind is Kind.READ
                await self._run_read(raw, operation, policy)
            else:
                if not self.session.kept.status & AUTOCOMMIT:
                    self.session.service.kept_by_autocommit += 1
                    self.session.kept_reading = True
                await self.run_at_primary(raw, operation, policy, staying)
        elif self.session.topology.primary_member is None and await self._set_at_replica(raw, operation, policy):
            return
        else:
            await self.run_at_primary(raw, operation, policy, policy.reason)

    async def _set_at_replica(self, raw: bytes, operation: SqlOperation, policy: Policy) -> bool:
        """Without a primary, what only sets what follows the session is proven by any server: reads go on."""
        if operation.kind is not Kind.SESSION or operation.pin is not None or operation.unpin is not None:
            return False
        for view in self.session.topology.snapshot.replicas:
            member = self.session.topology.members[view.name]
            if view.fault is None and member.pool.arming is not None:
                connection = await member.pool.take(self.session.credentials, self.session.kept.state)
                await self.exchange(connection, member, raw, operation, policy, "there is no primary at the moment")
                return True
        return False

    async def _leave_replica(self, held: MysqlConnection, operation: SqlOperation) -> None:
        """A READ ONLY transaction is open at a replica, and this statement cannot be carried out there."""
        if self.session.reads_first or operation.transaction in (
            TransactionEffect.BEGIN,
            TransactionEffect.IMPLICIT_COMMIT,
        ):
            self.session.held = None
            self.session.kept.status &= ~IN_TRANSACTION
            # As the server does before it begins with the statement.
            await self.confirm(held, held.acknowledge([query("COMMIT")]))
            self.session.give_back(held)
        elif operation.pin is not None or operation.needs_primary is not None:
            await self._move_to_primary()
        elif operation.kind is Kind.WRITE and not operation.multi:
            # What the primary would say; a read-only server says that it is read-only.
            text = "Cannot execute statement in a READ ONLY transaction" + ("" if held.arming.mariadb else ".")
            raise BackendRefused(text, ErrorCode.READ_ONLY_TRANSACTION, "25006")
        else:
            raise Refused(
                "gateway: this READ ONLY transaction reads from a replica, and the statement is not known to be a "
                "read; end the transaction first",
                code=ErrorCode.READ_ONLY_TRANSACTION,
                sqlstate="25006",
            )

    async def _move_to_primary(self) -> None:
        """A READ ONLY transaction began on a replica, and now something would pin the session there for good."""
        if self.session.ran_in_transaction:
            raise Refused(
                "gateway: this READ ONLY transaction reads from a replica, and the statement has to run at the "
                "primary; run it before the transaction's first read, or give START TRANSACTION the hint "
                "/* gateway: primary */",
                code=ErrorCode.NOT_SUPPORTED_YET,
                sqlstate="42000",
            )
        session = self.session
        held, session.held = session.held, None
        if held is not None:
            session.prepared.lost(held)
            session.service.recycle(held)
        status = session.kept.status
        session.kept.status = status & ~IN_TRANSACTION  # as long as it is open nowhere
        primary = await self.await_primary()
        connection = await primary.pool.take(session.credentials, session.kept.state)
        await self.confirm(connection, connection.acknowledge([query("START TRANSACTION READ ONLY")]))
        connection.taker = session
        session.held = connection
        session.kept.status = status

    async def _run_read(self, raw: bytes, operation: SqlOperation, policy: Policy, avoid: str | None = None) -> None:
        """At a replica; where none will do, at the primary. `avoid` is a member that has just failed."""
        topology = self.session.topology
        chosen, reason = await self.session.freshness.choose(policy)
        if chosen is not None and chosen.name == avoid:
            reason = f"{avoid} has just failed"
        elif chosen is not None:
            try:
                connection = await chosen.pool.take(self.session.credentials, self.session.kept.state)
            except Unavailable as error:
                reason = str(error)
            else:
                await self.exchange(connection, chosen, raw, operation, policy, reason)
                return
        if topology.primary_member is None:
            raise Unavailable(f"gateway: {reason}, and group {topology.name} has no primary at the moment")
        await self.session.service.enter_primary_reads(reason)
        self.session.has_primary_place = True
        try:
            await self.run_at_primary(raw, operation, policy, reason)
        finally:
            self.session.leave_primary_reads()

    async def run_at_primary(self, raw: bytes, operation: SqlOperation, policy: Policy, reason: str) -> None:
        primary = await self.await_primary()
        self._require_replicas(operation)
        session = self.session
        await settle(session)
        writer = session.residue.writer
        if (
            writer is not None
            and writer.member == primary.name
            and writer.commands_to(session.kept.state) is not None
            and primary.pool.take_bound(writer, session)
        ):
            await self.confirm(writer, writer.bring_to(session.kept.state))
        else:
            writer = await primary.pool.take(session.credentials, session.kept.state)
            await restore_insert_id(self, writer, operation)
        if primary.name != session.topology.primary or writer.arming is not primary.pool.arming:
            writer.close()  # roles changed while it was waited for
            raise Unavailable(
                f"gateway: {primary.name} is not the primary any more; nothing of the statement was carried out",
                code=ErrorCode.READ_ONLY,
            )
        await self.exchange(writer, primary, raw, operation, policy, reason)

    async def confirm(self, connection: MysqlConnection, step: Awaitable[None]) -> None:
        """Awaits a step on a leased connection; what fails in it costs the connection, and is told as it is."""
        try:
            await step
        except (OSError, ProtocolError) as error:
            connection.close()
            raise Unavailable(f"gateway: the connection to {connection.member} was lost: {error}") from error
        except BaseException:
            connection.close()
            raise

    async def await_primary(self) -> SqlMember:
        """The primary, after waiting at most `failover_wait` for one. Raises Unavailable."""
        topology = self.session.topology
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
        config = self.session.topology.config
        if config.min_replicas_to_write and operation.kind in (Kind.WRITE, Kind.UNKNOWN):
            within = self.session.topology.replicas_within(config.min_replicas_max_lag, trio.current_time())
            if within < config.min_replicas_to_write:
                raise Refused(
                    f"gateway: {within} replicas are within {config.min_replicas_max_lag:g} s, "
                    f"{config.min_replicas_to_write} are required for a write (min_replicas_to_write)",
                    code=ErrorCode.READ_ONLY,
                )

    async def exchange(
        self,
        connection: MysqlConnection,
        member: SqlMember,
        raw: bytes,
        operation: SqlOperation,
        policy: Policy,
        reason: str,
    ) -> None:
        """Sends the command and waits for the end of its reply."""
        self.session.finished = trio.Event()
        self.session.failure = None
        try:
            self.session.service.lane.batch(
                lambda: self.session.begin(connection, member, raw, operation, policy, reason)
            )
            await self.session.finished.wait()
        finally:
            self.session.finished = None
        failure = self.session.failure
        if failure is not None and not self.session.endpoint.closed:
            await self._after_failure(Declined(raw, failure, member.name, self.session.failure_held), operation, policy)

    def _reset(self) -> None:
        """COM_RESET_CONNECTION: everything but user, database and what was read is as after the log-in."""
        session = self.session
        session.forget_all()
        session.kept.reset()
        session.endpoint.write(answers.ok(1, status=session.kept.status))
