"""Looks at one MySQL member again and again: its position, whether it is writable, how its replication runs.

One connection per member, the gateway's own codec, two short questions per look. Whoever needs a newer look than the
last asks for one (`seen_after`); all who ask while one is under way share the next. A member's position dies with
this connection: a server that crashed can come back older, so what is known is thrown away and learnt anew.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import structlog
import trio

from gateway.backends.mysql import Credentials
from gateway.backends.mysql_log_in import ask, log_in, log_in_errors
from gateway.backends.mysql_server import MysqlServer
from gateway.errors import BackendRefused, ProtocolError, Unavailable
from gateway.net.connect import Conversation
from gateway.net.lane import Lane
from gateway.protocol.mysql.commands import query
from gateway.protocol.mysql.constants import Collation
from gateway.protocol.mysql.greeting import Greeting
from gateway.protocol.mysql.results import ResultReader
from gateway.replication.freshness import Observation, ReplicationState
from gateway.replication.position import MariadbGtidPosition, MysqlGtidSet, Position

RECONNECT_SECONDS: Final = (0.05, 1.0)  # doubling, with jitter; a server that restarts is found within a second
FILTERS: Final = (
    "Replicate_Do_DB",
    "Replicate_Ignore_DB",
    "Replicate_Do_Table",
    "Replicate_Ignore_Table",
    "Replicate_Wild_Do_Table",
    "Replicate_Wild_Ignore_Table",
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """What a server says of itself once per connection. `collations` maps ids to (charset, collation)."""

    version: str
    greets_as: str  # the version in its greeting: MariaDB 10 puts 5.5.5- before it, and drivers look for that
    mariadb: bool
    server_id: int
    server_uuid: str
    started_at: float  # seconds since the epoch, give or take the second in which Uptime counts
    sql_mode: str
    collations: Mapping[int, tuple[str, str]]
    charset: str  # of clients that ask for none
    capabilities: int = 0  # of its greeting
    max_prepared_statements: int = 16_382  # of all its connections together
    isolation: str = ""  # of transactions whose session asks for none: "READ-COMMITTED"


class Observer:
    """The looks at one member. `failure` says why there is none at the moment, None while it answers."""

    def __init__(
        self,
        lane: Lane,
        member: str,
        server: MysqlServer,
        credentials: Credentials,
        *,
        interval: float,
        patience: float,
        seen: Callable[[ServerIdentity, Observation], None],
        failed: Callable[[str, str, bool], None],
    ) -> None:
        """`interval` between looks and `patience` with a silent server are in seconds."""
        self.member = member
        self.failure: str | None = "has not answered yet"
        self.last: Observation | None = None
        self.looks = 0
        self.generation = 0  # see Observation
        self._lane = lane
        self._server = server
        self._credentials = credentials
        self._interval = interval
        self._patience = patience
        self._seen = seen
        self._failed = failed
        self._wanted = trio.Event()
        self._news = trio.Event()

    async def run(self) -> None:
        """Observes until cancelled."""
        wait = RECONNECT_SECONDS[0]
        while True:
            try:
                with log_in_errors(self._server):
                    conversation, connected = await log_in(self._lane, self._server, self._credentials)
            except (Unavailable, BackendRefused) as error:
                self._fail(str(error))
            else:
                try:
                    await self._observe(conversation, connected.greeting)
                    wait = RECONNECT_SECONDS[0]
                except trio.TooSlowError:
                    self._fail(f"did not answer for {self._patience:g} s", silent=True)
                except (OSError, BackendRefused, ProtocolError) as error:
                    if self.failure is None:
                        wait = RECONNECT_SECONDS[0]
                    self._fail(str(error))
                finally:
                    conversation.close()
            await trio.sleep(wait * (0.5 + random.random()))
            wait = min(wait * 2, RECONNECT_SECONDS[1])

    async def seen_after(self, moment: float) -> bool:
        """Waits for a look that was begun after `moment`; False if the member fails meanwhile. The caller bounds it."""
        while True:
            if self.failure is not None:
                return False
            if self.last is not None and self.last.sent_at > moment:
                return True
            news = self._news
            self._wanted.set()
            await news.wait()

    async def _observe(self, conversation: Conversation, greeting: Greeting) -> None:
        self.generation += 1
        with trio.fail_after(self._patience):
            identity = await _identify(conversation, greeting)
            replication = await self._look(conversation, identity, None)
        due = trio.current_time() + self._interval
        while True:
            with trio.move_on_at(due):
                await self._wanted.wait()
            now = trio.current_time()
            full = now >= due
            if full:
                due = max(due + self._interval, now)
            with trio.fail_after(self._patience):
                replication = await self._look(conversation, identity, None if full else replication)

    async def _look(
        self, conversation: Conversation, identity: ServerIdentity, known: ReplicationState | bool | None
    ) -> ReplicationState | bool:
        """One look. `known` replication (False: it replicates from nobody) spares the second question."""
        self._wanted = trio.Event()
        flavour = MARIADB if identity.mariadb else MYSQL
        commands = [flavour.position] if known is not None else [flavour.position, flavour.replication]
        sent_at = trio.current_time()
        answers = await ask(conversation, commands)
        if known is None:
            known = replication_of(answers[1]) or False
        state = known if isinstance(known, ReplicationState) else None
        found = flavour.read(answers[0], state)
        self.looks += 1
        self.failure = None
        self.last = Observation(
            member=self.member,
            sent_at=sent_at,
            position=found.position,
            read_only=found.read_only,
            super_read_only=found.super_read_only,
            replication=state,
            server_id=identity.server_id,
            server_uuid=identity.server_uuid,
            version=identity.version,
            started_at=identity.started_at,
            bound=found.bound,
            generation=self.generation,
        )
        self._seen(identity, self.last)
        self._tell()
        return known

    def refuse(self, fault: str) -> None:
        """What was just seen is of no use to the group, and why."""
        self.last = None
        self.failure = fault

    def _fail(self, failure: str, *, silent: bool = False) -> None:
        self.last = None
        self.failure = failure
        self._failed(self.member, failure, silent)
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()


class Found(NamedTuple):
    """What one answer about positions says.

    `position` is surely visible. `bound` is surely not exceeded by what was visible before the question: a commit is
    visible a moment before the server counts it as applied, so what is on its way is included.
    """

    position: Position
    bound: Position | None
    read_only: bool
    super_read_only: bool


class _Flavour:
    """The questions that one of the two families of servers understands."""

    def __init__(
        self, position: str, replication: str, read: Callable[[ResultReader, ReplicationState | None], Found]
    ) -> None:
        self.position = query(position)
        self.replication = query(replication)
        self._read = read

    def read(self, answer: ResultReader, replication: ReplicationState | None) -> Found:
        return self._read(answer, replication)


def _read_mariadb(answer: ResultReader, replication: ReplicationState | None) -> Found:
    binlog_text, applied_text, read_only_text = texts(answer)[0]
    applied, binlog = MariadbGtidPosition.parse(applied_text), MariadbGtidPosition.parse(binlog_text)
    read_only = _is_on(read_only_text)
    everything = applied.merge(binlog)  # the binary log is written before a commit is visible
    if replication is None or not read_only:  # a primary's own writes are in its binary log alone
        return Found(everything, everything, read_only, False)
    # Without a binary log of its own nothing says what is being committed.
    return Found(applied, everything if binlog_text else None, read_only, False)


def _read_mysql(answer: ResultReader, replication: ReplicationState | None) -> Found:
    owned, executed, read_only, super_read_only = texts(answer)[0]
    position = MysqlGtidSet.parse(executed)
    # Owned by a thread that is committing: "uuid:23#15", read before what is executed.
    bound = position.merge(MysqlGtidSet.parse(_OWNER.sub("", owned))) if owned else position
    return Found(position, bound, _is_on(read_only), _is_on(super_read_only))


_OWNER: Final = re.compile(r"#[0-9]+")


def _is_on(value: str) -> bool:
    return value.upper() not in ("0", "OFF", "NO")  # MariaDB 12 has several kinds of read_only


MARIADB: Final = _Flavour(
    "SELECT @@global.gtid_binlog_pos, @@global.gtid_slave_pos, @@global.read_only",
    "SHOW ALL SLAVES STATUS",
    _read_mariadb,
)
MYSQL: Final = _Flavour(
    "SELECT @@global.gtid_owned, @@global.gtid_executed, @@global.read_only, @@global.super_read_only",
    "SHOW REPLICA STATUS",
    _read_mysql,
)


async def _identify(conversation: Conversation, greeting: Greeting) -> ServerIdentity:
    mariadb = "MariaDB" in greeting.server_version
    uuid = "''" if mariadb else "@@global.server_uuid"
    isolation = "@@global.tx_isolation" if mariadb else "@@global.transaction_isolation"
    own, uptime, collations = await ask(
        conversation,
        [
            query(
                f"SELECT @@global.version, @@global.server_id, {uuid}, @@global.sql_mode, "
                f"@@global.character_set_client, @@global.max_prepared_stmt_count, {isolation}"
            ),
            query("SHOW GLOBAL STATUS LIKE 'Uptime'"),
            query(
                "SELECT ID, CHARACTER_SET_NAME, COLLATION_NAME FROM information_schema.COLLATIONS "
                "WHERE ID IS NOT NULL AND CHARACTER_SET_NAME IS NOT NULL"
            ),
        ],
    )
    shown, server_id, server_uuid, sql_mode, charset, prepared, isolation = texts(own)[0]
    return ServerIdentity(
        version=shown,
        greets_as=greeting.server_version,
        mariadb=mariadb,
        server_id=int(server_id),
        server_uuid=server_uuid,
        started_at=time.time() - int(texts(uptime)[0][1]),
        sql_mode=sql_mode,
        collations={int(number): (its, name) for number, its, name in texts(collations)},
        charset=charset,
        capabilities=greeting.capabilities,
        max_prepared_statements=int(prepared),
        isolation=isolation,
    )


def texts(result: ResultReader) -> list[list[str]]:
    """The rows as text, NULL as the empty string."""
    return [
        [value.decode("utf-8", "replace") if isinstance(value, bytes) else value or "" for value in row]
        for row in result.rows
    ]


def replication_of(status: ResultReader) -> ReplicationState | None:
    """What the rows of SHOW REPLICA STATUS or SHOW ALL SLAVES STATUS say, one per source: all have to run."""
    rows = [dict(zip(status.columns, row, strict=True)) for row in texts(status)]
    if not rows:
        return None

    def field(row: Mapping[str, str], name: str) -> str:
        old = name.replace("Replica_", "Slave_").replace("Source_", "Master_")
        return row.get(name, row.get(old, ""))

    def every(name: str) -> str:
        values = [field(row, name) for row in rows]
        return next((value for value in values if value != "Yes"), "Yes")

    return ReplicationState(
        io_running=every("Replica_IO_Running"),
        sql_running=every("Replica_SQL_Running"),
        source=", ".join(f"{field(row, 'Source_Host')}:{field(row, 'Source_Port')}" for row in rows),
        io_error="; ".join(filter(None, (field(row, "Last_IO_Error") for row in rows))),
        sql_error="; ".join(filter(None, (field(row, "Last_SQL_Error") for row in rows))),
        filters=", ".join(f"{name}={row[name]}" for row in rows for name in FILTERS if row.get(name)),
        received="; ".join(
            filter(None, (row.get("Retrieved_Gtid_Set") or row.get("Gtid_IO_Pos") or "" for row in rows))
        ),
    )


def monitor_credentials(user: str, password: str) -> Credentials:
    """What an observer logs in as: no capability that would change an answer's shape."""
    return Credentials(user, password, 0, int(Collation.UTF8MB4_GENERAL_CI))
