"""SHOW GATEWAY ...: what the gateway tells a client that has nothing but SQL at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio

from gateway.errors import Refused
from gateway.protocol.mysql import answers
from gateway.protocol.mysql.answers import Value
from gateway.protocol.mysql.constants import ErrorCode
from gateway.sessions.mysql_kill import may_reach_others
from gateway.sessions.mysql_state import Pin

if TYPE_CHECKING:
    from gateway.sessions.mysql import MysqlSession

# What would have avoided a pin, by the name of its cause.
_ADVICE: Final = {
    "TEMPORARY_TABLE": "DROP TEMPORARY TABLE when it is done with; a derived table or CTE instead",
    "USER_VARIABLE": "set the variable by SET, not within a query",
    "SESSION_VARIABLE": "set it in the server's configuration",
    "TABLE_LOCK": "UNLOCK TABLES; transactions with row locks instead",
    "INSTANCE_LOCK": "UNLOCK INSTANCE, BACKUP STAGE END",
    "NAMED_LOCK": "RELEASE_LOCK() of each, or RELEASE_ALL_LOCKS()",
    "PREPARED_STATEMENT": "DEALLOCATE PREPARE of each; prepared statements of the protocol (COM_STMT_*) instead",
    "HANDLER": "HANDLER ... CLOSE of each; SELECT instead",
    "PROCEDURE": "plain statements instead of the call",
    "TRANSACTION_CHARACTERISTIC": "COMMIT or ROLLBACK; SET SESSION TRANSACTION, or START TRANSACTION READ ONLY",
    "ROLE": "a default role of the account",
    "XA": "ordinary transactions",
    "SAVEPOINT": "COMMIT or ROLLBACK; BEGIN before it",
    "CONNECTION_ID": "the thread id that the log-in tells, which is the gateway's own",
    "UNPROVEN": "a statement that the gateway understands; `gateway explain` tells",
}


def answer_gateway_statement(session: MysqlSession, words: str) -> bytes:
    """The reply to SHOW GATEWAY `words`. Raises Refused for what is not known."""
    columns, rows = _table(session, " ".join(words.lower().split()))
    return answers.resultset(columns, rows, capabilities=session.capabilities, status=session.kept.status)


def _table(session: MysqlSession, words: str) -> tuple[Sequence[str], Sequence[Sequence[Value]]]:
    if words == "status":
        return ("name", "value"), [(name, str(value)) for name, value in session.service.figures().items()]
    if words == "members":
        return _members(session)
    if words == "last route":
        return _last_route(session)
    if words == "pins":
        return _PIN_COLUMNS, [_pin_row(pin) for pin in session.kept.pins.values()]
    if words == "pins all":
        return ("session", "user", *_PIN_COLUMNS), [
            (other.id, other.user, *_pin_row(pin))
            for other in session.service.threads
            if other.user == session.user or may_reach_others(session)
            for pin in other.kept.pins.values()
        ]
    raise Refused(
        "gateway: SHOW GATEWAY knows STATUS, MEMBERS, LAST ROUTE, PINS and PINS ALL in this version",
        code=ErrorCode.NOT_SUPPORTED_YET,
        sqlstate="42000",
    )


_PIN_COLUMNS: Final = ("cause", "statement", "since_seconds", "avoid")


def _pin_row(pin: Pin) -> tuple[str, str, str, str]:
    about = f" ({', '.join(sorted(pin.names))})" if pin.names else ""
    since = f"{trio.current_time() - pin.since:.1f}"
    return pin.cause.value + about, pin.statement, since, _ADVICE[pin.cause.name]


def _members(session: MysqlSession) -> tuple[Sequence[str], Sequence[Sequence[Value]]]:
    topology = session.topology
    snapshot, now = topology.snapshot, trio.current_time()
    rows: list[Sequence[Value]] = []
    for view in snapshot.members:
        member = topology.members[view.name]
        lag = snapshot.lag(view, now)
        rows.append(
            (
                view.name,
                view.role.value,
                view.fault or "serves",
                None if lag is None else round(max(lag, 0.0) * 1000),
                None if view.position is None else str(view.position),
                member.reads,
                member.writes,
                f"{member.pool.in_use}/{member.pool.opened}/{member.pool.limit}",
            )
        )
    columns = ("member", "role", "state", "lag_ms", "position", "reads", "writes", "connections_busy_open_limit")
    return columns, rows


def _last_route(session: MysqlSession) -> tuple[Sequence[str], Sequence[Sequence[Value]]]:
    operation, policy = session.operation, session.policy
    if operation is None or policy is None:
        return ("name", "value"), []
    return ("name", "value"), [
        ("statement", operation.statement),
        ("kind", operation.kind.value),
        ("member", session.member.name if session.member else None),
        ("rule", policy.rule),
        ("consistency", policy.consistency.value),
        ("reason", session.reason),
        ("token", str(session.freshness.token or "")),
        ("pins", ", ".join(pin.value for pin in session.kept.pins) or None),
    ]
