"""What follows the end of a transaction: AND CHAIN, RELEASE and completion_type, as a direct connection sees it."""

from __future__ import annotations

import pytest
from gateways import SqlGateway, busy
from wire_client import NEW, OLD, WireClient

from gateway.protocol.mysql import commands
from gateway.protocol.mysql.constants import Status

pytestmark = pytest.mark.servers

IN_TRANSACTION = int(Status.IN_TRANS | Status.IN_TRANS_READONLY)
CHAINED = (
    ["BEGIN", "COMMIT AND CHAIN", "ROLLBACK AND NO CHAIN"],
    ["BEGIN", "ROLLBACK AND CHAIN", "COMMIT WORK AND CHAIN", "COMMIT"],
    ["START TRANSACTION READ ONLY", "COMMIT AND CHAIN", "SELECT COUNT(*) FROM t", "COMMIT"],
    ["SET completion_type = CHAIN", "BEGIN", "COMMIT", "ROLLBACK", "COMMIT AND NO CHAIN"],
    ["SET completion_type = 1", "BEGIN", "COMMIT", "SET completion_type = 0", "ROLLBACK"],
    ["SET autocommit = 0", "COMMIT AND CHAIN", "SET autocommit = 1"],
)


@pytest.mark.parametrize("statements", CHAINED, ids=lambda one: "; ".join(one))
def test_a_chain_is_followed(small: SqlGateway, statements: list[str]) -> None:
    with WireClient(small) as through, WireClient(small.group.primary) as direct, WireClient(small) as other:
        through.rows("CREATE TABLE t (a INT)")
        for number, statement in enumerate(statements):
            for client in (through, direct):
                assert client.error(commands.query(statement)) is None, statement
            assert through.tracker.status & IN_TRANSACTION == direct.tracker.status & IN_TRANSACTION, statement
            if "READ ONLY" not in statements[0]:
                through.rows(f"INSERT INTO t VALUES ({number})")
                direct.rows(f"INSERT INTO t VALUES ({number + 100})")
        if "completion_type" not in statements[0]:
            busy(small)
        mine = through.rows("SELECT a FROM t WHERE a < 100 ORDER BY a")
        theirs = direct.rows("SELECT a - 100 FROM t WHERE a >= 100 ORDER BY a")
        assert mine == theirs
        for client in (through, direct):
            client.rows("ROLLBACK AND NO CHAIN")
        assert through.rows("SELECT a FROM t WHERE a < 100 ORDER BY a") == direct.rows(
            "SELECT a - 100 FROM t WHERE a >= 100 ORDER BY a"
        )
        assert other.rows("SELECT 1") == [("1",)]


@pytest.mark.parametrize("capabilities", [OLD, NEW], ids=["old client", "new client"])
@pytest.mark.parametrize("statement", ["COMMIT RELEASE", "ROLLBACK RELEASE", "COMMIT AND NO CHAIN RELEASE"])
def test_release_ends_the_connection(small: SqlGateway, statement: str, capabilities: int) -> None:
    with WireClient(small) as maker:
        maker.rows("CREATE TABLE t (a INT)")
    for begun in (True, False):
        for server in (small, small.group.primary):
            with WireClient(server, capabilities=capabilities) as one:
                if begun:
                    one.rows("BEGIN")
                    one.rows("INSERT INTO t VALUES (1)")
                assert one.error(commands.query(statement)) is None
                assert one.is_closed()
    with WireClient(small) as other:
        for _ in range(4):
            other.rows("INSERT INTO t VALUES (7)")  # nobody is given the connection that the server has closed
        count = 4 + (2 if statement.startswith("COMMIT") else 0)
        assert other.rows("SELECT COUNT(*) FROM t") == [(str(count),)]


def test_a_session_that_releases_at_every_end_is_ended(small: SqlGateway) -> None:
    with WireClient(small) as one:
        one.rows("CREATE TABLE t (a INT)")
        one.rows("SET completion_type = 'RELEASE'")
        one.rows("BEGIN")
        one.rows("INSERT INTO t VALUES (1)")
        assert one.error(commands.query("COMMIT")) is None
        one.sock.sendall(commands.query("SELECT 1"))
        assert one.is_closed()
    with WireClient(small) as other:
        assert other.rows("/* gateway: primary */ SELECT COUNT(*) FROM t") == [("1",)]
