"""gateway.toml as frozen structs: every key, its default, its unit, and where the number comes from.

`examples/gateway.toml` is the same thing for people who write one. Attribute names are the file's keys; times are float
seconds, sizes int bytes, shares floats from 0 to 1. Paths are relative to the folder of the file. Secrets are read when
they are needed (`Secret.reveal`), so that a configuration can be checked where they are not known.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import msgspec

from gateway.config_check import contradictions
from gateway.errors import ConfigError
from gateway.toml_lines import Place
from gateway.toml_struct import ByteCount, Count, Document, Positive, Reader, Seconds, Share, read_document

KIB = 1024
MIB = 1024 * KIB


# ---------------------------------------------------------------- values


class Address(msgspec.Struct, frozen=True):
    """Where a server listens: host and port, or the path of a unix socket (then host is "" and port 0)."""

    host: str
    port: int
    path: str | None = None

    EXPECTED: ClassVar[str] = 'an address such as "127.0.0.1:3306", "[::1]:3306" or "unix:/run/server.sock"'

    @classmethod
    def parse(cls, text: str) -> Address:
        """`host:port`, `[ipv6]:port`, `unix:/path` or `/path`; ValueError says what was expected."""
        if text.startswith(("unix:/", "/")):
            return cls("", 0, text.removeprefix("unix:"))
        host, colon, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
            _ipv6(host)
        elif ":" in host:
            raise ValueError(f"must be {cls.EXPECTED}")
        good_port = port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) <= 65535
        if not (colon and host and good_port) or any(character.isspace() for character in host):
            raise ValueError(f"must be {cls.EXPECTED}")
        return cls(host, int(port))

    @classmethod
    def from_toml(cls, value: object, document: Document, place: Place) -> Address:
        if not isinstance(value, str):
            raise ValueError(f"must be {cls.EXPECTED}")  # noqa: TRY004 - the reader's contract
        return cls.parse(value)

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def _ipv6(host: str) -> None:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        raise ValueError(f"must be {Address.EXPECTED}") from None


class Secret:
    """A password or key: a literal, `{env = "NAME"}` or `{file = "path"}`. It never shows in a repr or an error."""

    __slots__ = ("_document", "_env", "_file", "_literal", "_place")

    EXPECTED: ClassVar[str] = 'a text, {env = "NAME"} or {file = "path"}'
    TOML_TYPES: ClassVar[tuple[type, ...]] = (str, dict)

    def __init__(self, literal: str | None = None, *, env: str | None = None, file: Path | None = None) -> None:
        self._literal = literal
        self._env = env
        self._file = file
        self._document: Document | None = None
        self._place: Place = ()

    @classmethod
    def from_toml(cls, value: object, document: Document, place: Place) -> Secret:
        secret = cls._read(value, document)
        secret._document = document
        secret._place = place
        return secret

    @classmethod
    def _read(cls, value: object, document: Document) -> Secret:
        if isinstance(value, str):
            return cls(value)
        if isinstance(value, dict) and len(value) == 1:
            ((source, name),) = value.items()
            if isinstance(name, str) and name:
                if source == "env":
                    return cls(env=name)
                if source == "file":
                    return cls(file=document.folder / name)
        raise ValueError(f"must be {cls.EXPECTED}")

    def reveal(self) -> str:
        """The secret itself; ConfigError with file and line if its variable is not set or its file unreadable."""
        if self._literal is not None:
            return self._literal
        if self._env is not None:
            value = os.environ.get(self._env)
            if value is None:
                raise self._problem(f"the environment variable {self._env} is not set")
            return value
        assert self._file is not None
        try:
            # Editors and `echo` end files with a newline that is not part of the secret.
            return self._file.read_text().removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise self._problem(f"the secret's file {self._file} cannot be read: {reason}") from None

    def _problem(self, message: str) -> ConfigError:
        return self._document.problem(self._place, message) if self._document else ConfigError(message)

    def __repr__(self) -> str:
        if self._literal is not None:
            return "Secret(...)"
        return f"Secret(env={self._env!r})" if self._env is not None else f"Secret(file={str(self._file)!r})"


# ---------------------------------------------------------------- the process


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """[gateway]. `drain_timeout`: as the 30 s that Kubernetes gives a container between SIGTERM and SIGKILL."""

    name: str = "gw-1"  # shown in metrics, logs and the epoch record
    data_dir: Path = Path("var")
    rules: Path = Path("rules")
    workers: Positive | Literal["auto"] = 1  # anything but 1 is an error until there are workers
    drain_timeout: Seconds = 30.0
    token_key: Secret | None = None  # None: tokens are neither given nor taken


class AdminSettings(msgspec.Struct, frozen=True, kw_only=True):
    """[admin]: HTTP API, metrics and dashboard."""

    listen: Address = Address("127.0.0.1", 8080)
    token: Secret | None = None  # required unless `listen` is a loopback address


class LogSettings(msgspec.Struct, frozen=True, kw_only=True):
    """[log]."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"


# ---------------------------------------------------------------- listeners


class ListenerTls(msgspec.Struct, frozen=True, kw_only=True):
    """`tls` of a listener; `required` refuses clients that do not switch to TLS (a unix socket is secure without)."""

    cert: Path
    key: Path
    required: bool = False
    client_ca: Path | None = None  # None: clients' certificates are not asked for
    client_certificates: Literal["required", "optional"] = "required"  # where there is a client_ca


class LogInFailures(msgspec.Struct, frozen=True, kw_only=True):
    """When a client address is blocked (error 1129): `max` failed log-ins within `window`, without a success between.

    Precedents: MySQL's max_connect_errors (100), and its error; there the block lasts until FLUSH HOSTS, here `block`.
    """

    max: Count = 100  # 0: nobody is blocked
    window: Seconds = 60.0
    block: Seconds = 60.0


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """[[listener]].

    Precedents: `idle_timeout` is MySQL's wait_timeout (28800 s), `handshake_timeout` its connect_timeout (10 s),
    `max_allowed_packet` its default since 8.0 (64 MiB), `max_connections` ProxySQL's mysql-max_connections with room.
    `freshness_wait` is a few times the usual lag of a healthy replica, and less than a person notices.
    `max_unauthenticated` times 64 KiB is what strangers can make the gateway hold.
    """

    name: str
    protocol: Literal["mysql", "memcached", "redis"]
    listen: Address
    group: str
    consistency: Literal["eventual", "bounded", "session", "strong"] = "session"
    max_lag: Seconds = 1.0
    max_connections: Positive = 10_000
    idle_timeout: Seconds = 28_800.0
    handshake_timeout: Seconds = 10.0
    max_unauthenticated: Positive = 1000  # mysql
    log_in_failures: LogInFailures = LogInFailures()  # mysql
    max_allowed_packet: ByteCount = 64 * MIB  # mysql
    freshness_wait: Seconds = 0.05  # mysql
    autocommit_off_reads: Literal["primary", "replica"] = "primary"  # mysql
    local_infile: bool = False  # mysql: LOAD DATA LOCAL; MySQL's own default since 8.0
    proxy_protocol_from: tuple[str, ...] = ()  # networks, CIDR
    tls: ListenerTls | None = None


# ---------------------------------------------------------------- groups


class BackendTls(msgspec.Struct, frozen=True, kw_only=True):
    """TLS towards servers; `ca` None means the system's authorities.

    `verify`: the certificate is one of the authority's and for the member's host name or address; "ca": only the
    former, as for the certificates that MySQL makes for itself; false: nothing is verified. `cert` and `key` are the
    gateway's own, for accounts that ask for one (REQUIRE X509).
    """

    ca: Path | None = None
    verify: bool | Literal["ca"] = True
    cert: Path | None = None
    key: Path | None = None


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One server of a MySQL or Redis group; also written as just its address."""

    address: Address
    weight: Count = 1  # its share of reads among its equals; 0 takes it out of the choice
    zone: str = ""
    max_connections: Positive | None = None  # None: the pool's size
    backup: bool = False  # serves only when the others cannot

    SHORTHAND: ClassVar[str] = "address"

    @property
    def name(self) -> str:
        """What it is called in status, logs and metrics: its address."""
        return str(self.address)


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """The gateway's own account on the servers."""

    user: str
    password: Secret


class User(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who may log in through the gateway; the same name and password open the backend connections.

    While a password is changed clients may use `old_password` as well, and servers are tried with both.
    """

    name: str
    password: Secret
    old_password: Secret | None = None
    max_connections: Positive | None = None  # over all listeners of the group
    database: str | None = None  # selected for clients that name none
    consistency: Literal["eventual", "bounded", "session", "strong"] | None = None  # None: the listener's
    read_only: bool = False
    sessions: Literal["own", "any"] = "own"  # whose sessions KILL ends and SHOW GATEWAY PINS ALL shows

    def passwords(self) -> tuple[str, ...]:
        """What its clients may prove, the current one first. Raises ConfigError."""
        secrets = [self.password, self.old_password] if self.old_password else [self.password]
        return tuple(dict.fromkeys(secret.reveal() for secret in secrets))


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """Backend connections per member, over all users.

    `size` leaves room below MySQL's max_connections (151) for two gateways; `max_lifetime` bounds what a server keeps
    per connection; `acquire_timeout` is well below the 30 s after which web servers give a request up.
    """

    size: Positive = 64
    min_idle: Count = 2
    acquire_timeout: Seconds = 5.0
    max_lifetime: Seconds = 3600.0


class PrimaryReads(msgspec.Struct, frozen=True, kw_only=True):
    """How many reads that wanted a replica may be at the primary at once, so that late replicas do not melt it."""

    max_in_flight: Positive = 256
    then: Literal["wait", "error"] = "wait"


class MysqlGroup(msgspec.Struct, frozen=True, kw_only=True):
    """[[group]] with engine = "mysql": MySQL 8.0 and later, MariaDB 10.6 and later.

    `check_interval` bounds how much lag is overestimated, `failure_detection` is twenty checks; `min_replicas_max_lag`
    is Redis's min-replicas-max-lag (10 s).
    """

    name: str
    engine: Literal["mysql"]
    members: tuple[Member, ...]
    primary: Address | Literal["auto"] = "auto"
    writers: Literal["any", "gateway"] = "any"
    monitor: Account
    users: tuple[User, ...] | Literal["backend"]
    proof_interval: Seconds = 60.0  # users = "backend": how long a server's word for a credential holds
    check_interval: Seconds = 0.1
    pool: Pool = Pool()
    primary_reads: PrimaryReads = PrimaryReads()
    reads_without_primary: Literal["serve", "refuse"] = "serve"
    balance: Literal["least-busy", "weighted", "round-robin", "lowest-latency"] = "least-busy"
    min_replicas_to_write: Count = 0
    min_replicas_max_lag: Seconds = 10.0
    failover: Literal["follow", "promote", "off"] = "follow"
    failover_wait: Seconds = 10.0
    failure_detection: Seconds = 2.0
    promote_unfenced: bool = False
    backend_tls: BackendTls | None = None
    backend_compression: Literal["off", "zlib", "zstd"] = "off"


class ReplicaBufferLimit(msgspec.Struct, frozen=True, kw_only=True):
    """Redis's client-output-buffer-limit for replicas (256 MiB hard, 64 MiB for 60 s soft)."""

    hard: ByteCount = 256 * MIB
    soft: ByteCount = 64 * MIB
    soft_for: Seconds = 60.0


class PoolServer(msgspec.Struct, frozen=True, kw_only=True):
    """One memcached server of a pool; `id` (from 1, by default its place in the list) is what kvproxy's ring hashes."""

    address: Address
    id: Positive | None = None
    weight: Positive = 1

    SHORTHAND: ClassVar[str] = "address"


class MemcachedPool(msgspec.Struct, frozen=True, kw_only=True):
    """[group.pools.NAME]: the servers that shard the keys of one member."""

    servers: tuple[PoolServer, ...]
    protocol: Literal["ascii", "binary"] = "ascii"
    zone: str = ""
    user: str | None = None
    password: Secret | None = None
    tls: BackendTls | None = None


class MemcachedGroup(msgspec.Struct, frozen=True, kw_only=True):
    """[[group]] with engine = "memcached".

    `backlog` is larger than Redis's 1 MiB because values are; `replica_timeout` is Redis's repl-timeout (60 s).
    """

    name: str
    engine: Literal["memcached"]
    primary: str
    replicas: tuple[str, ...] = ()
    read_from: Literal["replica", "primary"] = "replica"
    replication: Literal["async", "sync"] = "async"
    sync_prefixes: tuple[str, ...] = ()
    sync_failure: Literal["error", "degrade"] = "error"
    sync_timeout: Seconds = 1.0
    backlog: ByteCount = 64 * MIB
    journal: Literal["off", "async", "fsync"] = "off"
    replica_timeout: Seconds = 60.0
    replica_buffer_limit: ReplicaBufferLimit = ReplicaBufferLimit()
    min_replicas_to_write: Count = 0
    min_replicas_max_lag: Seconds = 10.0
    hash: Literal["ketama", "kvproxy", "jump", "rendezvous", "modula"] = "ketama"
    key_hash: Literal["fnv1a_64", "md5", "crc32", "one_at_a_time"] = "fnv1a_64"
    on_primary_restart: Literal["refill", "flush"] = "refill"
    on_primary_server_down: Literal["error", "use-replica"] = "error"
    failover: Literal["manual", "auto"] = "manual"
    serve_stale: bool = False
    fill_on_miss: bool = False
    replicate_evictions: bool = False
    primary_read_share: Share = 0.0
    pools: dict[str, MemcachedPool]


class Sentinel(msgspec.Struct, frozen=True, kw_only=True):
    """Where Redis Sentinel says who is primary."""

    name: str
    nodes: tuple[Address, ...]


class RedisGroup(msgspec.Struct, frozen=True, kw_only=True):
    """[[group]] with engine = "redis": Redis 6 and later, Valkey."""

    name: str
    engine: Literal["redis"]
    members: tuple[Member, ...]
    primary: Address | Literal["auto"] = "auto"
    sentinel: Sentinel | None = None
    failover: Literal["follow", "promote", "off"] = "follow"
    user: str = "default"
    password: Secret | None = None


Group: TypeAlias = MysqlGroup | MemcachedGroup | RedisGroup
_GROUPS: dict[str, type[Group]] = {"mysql": MysqlGroup, "memcached": MemcachedGroup, "redis": RedisGroup}


# ---------------------------------------------------------------- the whole


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """One gateway.toml. `listeners` and `groups` are in the order of the file, so their indexes are places in it."""

    gateway: GatewaySettings
    admin: AdminSettings
    log: LogSettings
    listeners: tuple[Listener, ...]
    groups: tuple[Group, ...]
    document: Document

    def group(self, name: str) -> Group:
        """The group of that name, which a listener's `group` always has."""
        return next(group for group in self.groups if group.name == name)

    def secrets(self) -> list[Secret]:
        """Every secret that serving needs: monitors, users, pools; not the token keys."""
        found: list[Secret] = []
        for group in self.groups:
            if isinstance(group, MysqlGroup):
                found.append(group.monitor.password)
                if group.users != "backend":
                    for user in group.users:
                        found += [user.password, user.old_password] if user.old_password else [user.password]
            elif isinstance(group, MemcachedGroup):
                found.extend(pool.password for pool in group.pools.values() if pool.password)
        return found


def read_config(file: str | os.PathLike[str]) -> tuple[Config | None, list[ConfigError]]:
    """The configuration, or None and everything that is wrong with it, in the order of the file."""
    try:
        document = read_document(file)
    except ConfigError as error:
        return None, [error]
    reader = Reader(document)
    tables: Mapping[str, Any] = document.tables
    reader.refuse_unknown(tables, ["gateway", "admin", "log", "listener", "group"], ())
    gateway = reader.struct(GatewaySettings, tables.get("gateway", {}), ("gateway",))
    admin = reader.struct(AdminSettings, tables.get("admin", {}), ("admin",))
    log = reader.struct(LogSettings, tables.get("log", {}), ("log",))
    listeners = [
        reader.struct(Listener, table, ("listener", index)) for index, table in enumerate(_tables(reader, "listener"))
    ]
    groups = [_group(reader, table, index) for index, table in enumerate(_tables(reader, "group"))]
    good_listeners = tuple(listener for listener in listeners if listener)
    good_groups = tuple(group for group in groups if group)
    if reader.problems or not (gateway and admin and log):
        return None, reader.problems
    config = Config(
        gateway=_beside(gateway, document), admin=admin, log=log,
        listeners=good_listeners, groups=good_groups, document=document,
    )  # fmt: skip
    problems = contradictions(config)
    return (None, problems) if problems else (config, [])


def load_config(file: str | os.PathLike[str]) -> Config:
    """The configuration; ConfigError for the first problem (`gateway check` shows them all)."""
    config, problems = read_config(file)
    if config is None:
        raise problems[0]
    return config


def _tables(reader: Reader, name: str) -> list[Any]:
    tables = reader.document.tables.get(name, [])
    if isinstance(tables, list):
        return tables
    reader.report((name,), f"{name} must be written as [[{name}]], once for each")
    return []


def _group(reader: Reader, table: Any, index: int) -> Group | None:
    engine = table.get("engine") if isinstance(table, dict) else None
    cls = _GROUPS.get(engine) if isinstance(engine, str) else None
    if cls is not None:
        return reader.struct(cls, table, ("group", index))
    wrong = "has no engine" if engine is None else f'has the engine "{engine}"'
    reader.report(("group", index, "engine"), f"group[{index + 1}] {wrong}: it must be mysql, memcached or redis")
    return None


def _beside(gateway: GatewaySettings, document: Document) -> GatewaySettings:
    """Defaults of paths are beside the file, too."""
    return msgspec.structs.replace(
        gateway,
        data_dir=gateway.data_dir if gateway.data_dir != Path("var") else document.folder / "var",
        rules=gateway.rules if gateway.rules != Path("rules") else document.folder / "rules",
    )
