"""What a client has its server track (`SET session_track_...`) it hears, and only that, on whatever connection."""

from __future__ import annotations

import pytest
from gateways import SqlGateway, busy
from wire_client import WireClient

from gateway.protocol.mysql import commands
from gateway.protocol.mysql.constants import Command
from gateway.protocol.mysql.packets import packet

pytestmark = pytest.mark.servers

SETTINGS = {
    "mysql": [
        [],
        ["SET SESSION session_track_gtids = OWN_GTID"],
        ["SET session_track_gtids = 'OWN_GTID'", "SET session_track_gtids = OFF"],
        ["SET session_track_gtids = OWN_GTID", "SET @@session_track_gtids = DEFAULT"],
        ["SET session_track_system_variables = ''"],
        ["SET @v = 'sql_mode'", "SET session_track_system_variables = @v"],
    ],
    "mariadb": [
        [],
        ["SET SESSION session_track_system_variables = 'autocommit,last_gtid'"],
        ["SET session_track_system_variables = ''"],
        ["SET session_track_system_variables = 'last_gtid'", "SET session_track_system_variables = DEFAULT"],
        ["SET session_track_system_variables = CONCAT(@@session_track_system_variables, ',sql_mode')"],
        ["SET @v = 'sql_mode,last_gtid'", "SET session_track_system_variables = @v"],
    ],
}
BOTH = [
    ["SET session_track_schema = OFF"],
    ["SET session_track_schema = 0, session_track_state_change = 1", "SET session_track_schema = ON"],
    ["SET session_track_state_change = ON, session_track_system_variables = '*'"],
    ["SET session_track_transaction_info = 'STATE'"],
    ["SET session_track_transaction_info = CHARACTERISTICS"],
]
STATEMENTS = (
    "INSERT INTO t VALUES (1)",
    "USE shop",
    "SET autocommit = 1",
    "SET NAMES latin1",
    "DO 1",
    "SET sql_mode = 'ANSI_QUOTES'",
    "BEGIN",
    "INSERT INTO t VALUES (2)",
    "COMMIT",
    "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ WRITE",
    "INSERT INTO t VALUES (3)",
    "ROLLBACK AND CHAIN",
    "COMMIT",
)

UNSTABLE = ("timestamp", "statement_id")


def tracked(client: WireClient, statement: str) -> tuple[object, ...]:
    """What the reply says of the session; of positions only whether there are any."""
    client.reply(commands.query(statement))
    assert client.tracker.error is None, (statement, client.tracker.error)
    changes = client.tracker.changes
    if changes is None:
        return ()
    variables = tuple(sorted((name, value) for name, value in changes.variables if name not in UNSTABLE))
    return changes._replace(gtids=str(bool(changes.gtids)), last_gtid=str(bool(changes.last_gtid)), variables=variables)


@pytest.mark.parametrize("number", range(11))
def test_trackers_follow_the_session_without_a_pin(small: SqlGateway, number: int) -> None:
    settings = [*SETTINGS[small.group.primary.flavor], *BOTH][number]
    with WireClient(small) as through, WireClient(small.group.primary) as direct:
        through.rows("CREATE TABLE t (a INT)")
        for statement in ["DO 1", *settings]:
            told = tracked(through, statement), tracked(direct, statement)
            # Whether a state is told with the SET itself depends on what the connection has told before.
            assert told[0] == told[1] or "transaction_info" in statement, statement
            assert through.rows("SHOW GATEWAY PINS") == []
        for statement in STATEMENTS:
            if not through.tracker.status & 1:  # SERVER_STATUS_IN_TRANS
                busy(small)
            assert tracked(through, statement) == tracked(direct, statement), statement
        # The gateway has not lost its own: the position is known, and a replica may serve what was written.
        through.rows("INSERT INTO t VALUES (4)")
        assert ("token", "") not in through.rows("SHOW GATEWAY LAST ROUTE")
        for _ in range(3):
            through.rows("INSERT INTO t VALUES (4)")
            assert through.rows("SELECT COUNT(*) FROM t") == direct.rows("SELECT COUNT(*) FROM t")
        through.reply(packet(0, bytes((Command.RESET_CONNECTION,))))
        direct.reply(packet(0, bytes((Command.RESET_CONNECTION,))))
        for statement in ("INSERT INTO t VALUES (3)", "USE shop"):
            assert tracked(through, statement) == tracked(direct, statement), statement


def test_all_gtids_are_told_where_they_are_asked_for(small: SqlGateway) -> None:
    if small.group.primary.flavor == "mariadb":
        pytest.skip("MariaDB has no such tracker")
    with WireClient(small) as one, WireClient(small) as other:
        one.rows("CREATE TABLE t (a INT)")
        one.rows("SET session_track_gtids = ALL_GTIDS")
        for _ in range(3):
            one.reply(commands.query("INSERT INTO t VALUES (1)"))
            assert one.tracker.changes is not None
            assert "-" in (one.tracker.changes.gtids or "").partition(":")[2]
            other.reply(commands.query("INSERT INTO t VALUES (1)"))
            assert other.tracker.changes is None
            busy(small)


def test_a_tracker_that_a_server_refuses_changes_nothing(small: SqlGateway) -> None:
    with WireClient(small) as through, WireClient(small.group.primary) as direct:
        for statement in ("SET session_track_state_change = 7.5", "SET session_track_transaction_info = 'x'"):
            errors = [client.error(commands.query(statement)) for client in (through, direct)]
            assert errors[0] == errors[1]
            assert errors[0] is not None
        assert through.rows("SHOW GATEWAY PINS") == []
        assert tracked(through, "USE shop") == tracked(direct, "USE shop")
