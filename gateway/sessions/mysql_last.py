"""Serves what speaks of the statement before: where that ran, or from what is known of it, and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.backends.mysql import MysqlConnection
from gateway.backends.mysql_state import assignments_sql
from gateway.errors import Refused
from gateway.routing.operation import Assignment, Kind, Scope, SqlOperation
from gateway.routing.route import Policy
from gateway.sessions.mysql_residue import answer, settle

if TYPE_CHECKING:
    from gateway.sessions.mysql_task import CommandTask

# What only the connection of the last insert knows, and what only that of the statement before.
ABOUT_INSERT: Final = frozenset(("last_insert_id", "@@last_insert_id", "@@identity"))
ABOUT_LAST: Final = frozenset(("row_count", "found_rows", "@@warning_count", "@@error_count"))


async def answered_here(task: CommandTask, raw: bytes, operation: SqlOperation) -> bool:
    """Answers a question about a statement that the gateway refused itself, of which no connection knows.

    False for one about what an error leaves alone. Raises Refused for what is no plain question.
    """
    session = task.session
    answered = await answer(session, raw)
    if answered is not None:
        session.endpoint.write(answered)
        session.rules_version = -1  # as _refuse: the next one may ask again
        return True
    if ABOUT_INSERT & operation.functions and not ABOUT_LAST & operation.functions:
        return False
    raise Refused("gateway: the statement before was refused by the gateway, and this one speaks of it")


async def run_at_last(task: CommandTask, raw: bytes, operation: SqlOperation, policy: Policy) -> None:
    """LAST_INSERT_ID(), warnings, FOUND_ROWS(): on the very connection that knows."""
    session = task.session
    await settle(session)
    residue = session.residue
    about_insert = bool(ABOUT_INSERT & operation.functions)
    # What speaks of nothing but the insert id is at home where that was made; all else where the last one ran.
    at_writer = about_insert and not ABOUT_LAST & operation.functions and not operation.statement.startswith("get")
    wanted = residue.writer if at_writer and residue.last is not residue.writer else residue.last
    reason = "it speaks of the statement before: same connection"
    nothing_to_show = operation.statement.startswith("show") and not residue.warned
    before = session.operation
    if "found_rows" in operation.functions and before is not None and before.kind is not Kind.READ:
        raise Refused("gateway: FOUND_ROWS() speaks of the last SELECT; ask right after it, or in a transaction")
    if wanted is not None:
        member = session.topology.members[wanted.member]
        only_reads = operation.kind is Kind.READ and operation.pin is None
        if wanted.arming.replica and not (only_reads and not about_insert):
            raise Refused(
                "gateway: the statement before ran at a replica, and this one, which speaks of it, must run at the "
                "primary; give the statement before the hint /* gateway: primary */, or run both in a transaction",
            )
        in_state = wanted.state is session.kept.state
        if in_state and member.pool.take_bound(wanted, session):
            await task.exchange(wanted, member, raw, operation, policy, reason)
            return
    answered = await answer(session, raw) if not at_writer and session.commands else None
    if answered is not None:
        session.endpoint.write(answered)
        return
    if nothing_to_show and session.commands:
        # Not on the connection of the last write, where older warnings may be.
        primary = await task.await_primary()
        clean = await primary.pool.take(session.credentials, session.kept.state)
        await task.exchange(clean, primary, raw, operation, policy, "no statement before it left anything behind")
        return
    if not at_writer and session.commands:
        raise Refused(
            "gateway: the connection of the statement before was lent to another session meanwhile, and what it "
            "knew (warnings, row counts) is gone; ask right after the statement, or in a transaction",
        )
    await task.run_at_primary(raw, operation, policy, "no statement before it left anything behind")


async def restore_insert_id(task: CommandTask, connection: MysqlConnection, operation: SqlOperation) -> None:
    """Gives a connection that is new to the session the LAST_INSERT_ID() that the session had elsewhere."""
    session = task.session
    residue = session.residue
    if residue.insert_id_lost and ABOUT_INSERT & operation.functions:
        connection.home.give_back(connection)
        raise Refused("gateway: the connection that knew LAST_INSERT_ID() was lost")
    if residue.insert_id is None:
        return
    made = Assignment(Scope.SESSION, "last_insert_id", str(residue.insert_id))
    sql = assignments_sql((made,), mariadb=connection.arming.mariadb)
    await task.confirm(connection, connection.acknowledge(sql))
    connection.tainted = True
    connection.last_session = session
    residue.writer = connection
    residue.insert_id = None
