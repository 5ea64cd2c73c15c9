"""One prepared statement of a client: what it has said about it, and what preparing and fetching are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.routing.operation import Kind, SqlOperation

if TYPE_CHECKING:
    from gateway.backends.mysql import MysqlConnection
    from gateway.backends.statements import Handle, SharedStatement
    from gateway.routing.fingerprint import Reading
    from gateway.routing.route import Policy

FETCHING: Final = SqlOperation(
    Kind.READ, "fetch", "reads from an open cursor", needs_primary="a cursor stays with its connection"
)


class ClientStatement:
    """One statement of a client. `types` are those that it bound last, `cursor` the connection that has its cursor."""

    __slots__ = (
        "cursor",
        "handle",
        "id",
        "long_bytes",
        "long_data",
        "operation",
        "overlong",
        "parameters",
        "policy",
        "reading",
        "shared",
        "types",
        "version",
    )

    def __init__(self, id_: int, shared: SharedStatement, reading: Reading, parameters: int) -> None:
        self.id = id_
        self.shared = shared
        self.reading = reading
        self.parameters = parameters
        self.types: bytes | None = None
        self.operation: SqlOperation | None = None
        self.version = -1  # of the classifier, when it told the operation
        self.long_data: list[bytes] = []  # COM_STMT_SEND_LONG_DATA as they came
        self.long_bytes = 0
        self.overlong = False  # more long data than is allowed was sent
        self.cursor: MysqlConnection | None = None
        self.handle: Handle | None = None  # of the cursor
        self.policy: Policy | None = None  # of the execution that opened the cursor

    def forget_long_data(self) -> int:
        """Returns the number of bytes that are not held any more."""
        count, self.long_bytes = self.long_bytes, 0
        self.long_data = []
        self.overlong = False
        return count


def preparing(operation: SqlOperation) -> SqlOperation:
    """What COM_STMT_PREPARE of a statement is: a read of its tables' definitions, wherever the statement belongs."""
    return SqlOperation(
        Kind.READ,
        "prepare",
        f"prepares: {operation.reason}",
        reads=operation.reads + operation.writes,
        tables_complete=operation.tables_complete,
        functions=operation.functions,
        hint=operation.hint,
    )
