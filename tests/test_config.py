"""gateway.toml: the example is the contract, and whatever is wrong is told with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.config import Address, Config, MemcachedGroup, MysqlGroup, RedisGroup, Secret, load_config, read_config
from gateway.config_check import unserved, warnings
from gateway.errors import ConfigError

EXAMPLE = Path(__file__).parent.parent / "examples" / "gateway.toml"

SMALL = """\
[[listener]]
name = "sql"
protocol = "mysql"
listen = "127.0.0.1:6033"
group = "orders"

[[listener]]
name = "cache"
protocol = "memcached"
listen = "127.0.0.1:11311"
group = "sessions"

[[group]]
name = "orders"
engine = "mysql"
members = ["127.0.0.1:3306", {address = "127.0.0.1:3307"}]
monitor = {user = "gateway", password = "m"}
users = [{name = "app", password = "a"}]

[[group]]
name = "sessions"
engine = "memcached"
primary = "master"
replicas = ["slave"]
[group.pools.master]
servers = ["127.0.0.1:11211"]
[group.pools.slave]
servers = [{address = "127.0.0.1:11221"}]
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "gateway.toml"
    file.write_text(text)
    return file


def load(folder: Path, text: str) -> Config:
    return load_config(write(folder, text))


def problems(folder: Path, text: str) -> list[str]:
    config, found = read_config(write(folder, text))
    assert (config is None) == bool(found)
    return [str(problem).removeprefix(str(folder) + "/") for problem in found]


def test_the_example_loads_as_it_stands() -> None:
    config = load_config(EXAMPLE)
    sql, cache, redis = config.listeners
    assert (sql.name, sql.listen, sql.max_lag, sql.freshness_wait) == ("sql", Address("127.0.0.1", 6033), 1.0, 0.05)
    assert (sql.max_allowed_packet, sql.idle_timeout) == (64 * 1024 * 1024, 8 * 3600)
    assert (cache.protocol, redis.protocol) == ("memcached", "redis")
    orders, sessions, counters = config.groups
    assert isinstance(orders, MysqlGroup)
    assert [member.name for member in orders.members] == ["127.0.0.1:3306", "127.0.0.1:3307", "127.0.0.1:3308"]
    assert [member.backup for member in orders.members] == [False, False, True]
    assert (orders.members[1].weight, orders.members[1].max_connections) == (2, 200)
    assert (orders.check_interval, orders.pool.max_lifetime, orders.primary_reads.then) == (0.1, 3600, "wait")
    assert isinstance(sessions, MemcachedGroup)
    assert list(sessions.pools) == ["master", "slave"]
    assert [server.weight for server in sessions.pools["slave"].servers] == [50, 100, 50]
    assert (sessions.sync_prefixes, sessions.backlog) == (("+",), 64 * 1024 * 1024)
    assert (sessions.replica_buffer_limit.soft_for, sessions.primary_read_share) == (60.0, 0.0)
    assert isinstance(counters, RedisGroup)
    assert counters.members[1].address.port == 6389
    assert config.group("orders") is orders


def test_the_example_spells_out_every_default(tmp_path: Path) -> None:
    whole, small = load_config(EXAMPLE), load(tmp_path, SMALL)
    assert whole.log == small.log
    assert whole.admin.listen == small.admin.listen
    assert (whole.gateway.name, whole.gateway.drain_timeout) == (small.gateway.name, small.gateway.drain_timeout)
    assert whole.listeners[:2] == small.listeners
    theirs, ours = whole.groups[0], small.groups[0]
    for key in theirs.__struct_fields__:
        if key not in ("members", "monitor", "users"):
            assert getattr(theirs, key) == getattr(ours, key), key
    theirs, ours = whole.groups[1], small.groups[1]
    for key in theirs.__struct_fields__:
        if key not in ("pools", "sync_prefixes"):
            assert getattr(theirs, key) == getattr(ours, key), key


def test_the_example_names_every_key_that_there_is() -> None:
    text = EXAMPLE.read_text()
    config = load_config(EXAMPLE)
    structs = [config.gateway, config.admin, config.log, *config.listeners, *config.groups]
    for struct in structs:
        for key in struct.__struct_fields__:
            assert re.search(rf"\b{key}\b", text), f"{type(struct).__name__}.{key}"


def test_the_example_is_served_but_for_redis() -> None:
    config = load_config(EXAMPLE)
    assert unserved(config) == []
    assert any("Redis is not served yet" in warning for warning in warnings(config))


def test_paths_are_beside_the_file(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL)
    assert (config.gateway.data_dir, config.gateway.rules) == (tmp_path / "var", tmp_path / "rules")
    config = load(tmp_path, '[gateway]\ndata_dir = "/var/lib/gateway"\nrules = "../rules"\n' + SMALL)
    assert (config.gateway.data_dir, config.gateway.rules) == (Path("/var/lib/gateway"), tmp_path / "../rules")


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("text", "seconds"), [("50ms", 0.05), ("1s", 1.0), ("1.5s", 1.5), ("5m", 300.0), ("8h", 28800.0), ("0s", 0.0)]
)
def test_times_are_seconds(tmp_path: Path, text: str, seconds: float) -> None:
    config = load(tmp_path, SMALL.replace('group = "orders"', f'group = "orders"\nmax_lag = "{text}"'))
    assert config.listeners[0].max_lag == pytest.approx(seconds)


@pytest.mark.parametrize(("text", "size"), [("1KiB", 1024), ("1.5MiB", 1572864), ("2GiB", 2 * 1024**3), ("7B", 7)])
def test_sizes_are_bytes(tmp_path: Path, text: str, size: int) -> None:
    config = load(tmp_path, SMALL.replace('primary = "master"', f'primary = "master"\nbacklog = "{text}"'))
    group = config.groups[1]
    assert isinstance(group, MemcachedGroup)
    assert group.backlog == size


@pytest.mark.parametrize("value", ['"50"', "50", '"-1s"', '"1 day"', "true", '"1e3s"', '"s"', "[1]", '"٣s"'])
def test_a_time_without_unit_or_sense_is_refused(tmp_path: Path, value: str) -> None:
    (problem,) = problems(tmp_path, SMALL.replace('group = "orders"', f'group = "orders"\nmax_lag = {value}'))
    assert problem.startswith("gateway.toml:6: listener[1].max_lag must be a time with its unit")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:3306", Address("127.0.0.1", 3306)),
        ("db.example.com:3306", Address("db.example.com", 3306)),
        ("[::1]:3306", Address("::1", 3306)),
        ("unix:/run/db.sock", Address("", 0, "/run/db.sock")),
    ],
)
def test_addresses_read_and_print_the_same(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert str(address) == text
    assert str(Address.parse("/run/db.sock")) == "unix:/run/db.sock"


@pytest.mark.parametrize(
    "text", ["", ":1", "host", "host:", "host:0", "host:65536", "::1:80", "[x]:1", "a b:1", "h:-1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be an address such as"):
        Address.parse(text)


def test_loopback_is_known() -> None:
    addresses = ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "unix:/x", "0.0.0.0:1", "db:1", "10.0.0.1:1"]
    assert [Address.parse(text).is_loopback for text in addresses] == [True] * 5 + [False] * 3


# ---------------------------------------------------------------- secrets


def test_secrets_are_read_when_needed_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("from file\n")
    text = SMALL.replace('password = "m"', 'password = {file = "secret"}')
    config = load(tmp_path, text.replace('password = "a"', 'password = {env = "APP_PASSWORD_OF_TEST"}'))
    monitor, user = config.secrets()
    assert monitor.reveal() == "from file"
    monkeypatch.delenv("APP_PASSWORD_OF_TEST", raising=False)
    with pytest.raises(
        ConfigError, match=r"gateway\.toml:18: the environment variable APP_PASSWORD_OF_TEST is not set"
    ):
        user.reveal()
    assert any("APP_PASSWORD_OF_TEST" in warning for warning in warnings(config))
    monkeypatch.setenv("APP_PASSWORD_OF_TEST", "from environment")
    assert user.reveal() == "from environment"
    (tmp_path / "secret").unlink()
    with pytest.raises(ConfigError, match=r"gateway\.toml:17: .* cannot be read: No such file"):
        monitor.reveal()
    assert "hunter2" not in repr(Secret("hunter2"))


@pytest.mark.parametrize("value", ["3", "{}", '{env = "A", file = "b"}', '{path = "x"}', "{env = 3}", '{env = ""}'])
def test_what_is_no_secret_is_refused(tmp_path: Path, value: str) -> None:
    (problem,) = problems(tmp_path, SMALL.replace('password = "m"', f"password = {value}"))
    assert problem.startswith('gateway.toml:17: group[1].monitor.password must be a text, {env = "NAME"} or')


# ---------------------------------------------------------------- what is wrong, and where


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'group = "orders"',
            'group = "orders"\nmax_lgs = 1',
            "6: unknown key max_lgs in listener[1], did you mean max_lag?",
        ),
        ('group = "orders"', 'groups = "orders"', "5: unknown key groups in listener[1], did you mean group?"),
        ('name = "sql"', "name = 3", "2: listener[1].name must be a text in quotes, not 3"),
        (
            'protocol = "mysql"',
            'protocol = "http"',
            '3: listener[1].protocol must be "mysql", "memcached" or "redis", not "http"',
        ),
        ('group = "orders"', 'group = "order"', '5: there is no group "order"; known are orders, sessions'),
        (
            'protocol = "mysql"',
            'protocol = "memcached"',
            '3: listener "sql" speaks memcached, but its group "orders" is mysql',
        ),
        ("127.0.0.1:11311", "127.0.0.1:6033", '10: 127.0.0.1:6033 is the address of listener "sql" already'),
        ('name = "cache"', 'name = "sql"', '8: there is a listener "sql" already, in line 2'),
        ('name = "sessions"', 'name = "orders"', '21: there is a group "orders" already, in line 14'),
        (
            'engine = "mysql"',
            'engine = "oracle"',
            '15: group[1] has the engine "oracle": it must be mysql, memcached or redis',
        ),
        ("127.0.0.1:3307", "127.0.0.1:3306", '16: 127.0.0.1:3306 is in group "orders" twice'),
        (
            "127.0.0.1:3307",
            "127.0.0.1:6033",
            '16: 127.0.0.1:6033 is where listener "sql" listens: the gateway would connect to itself',
        ),
        ("127.0.0.1:3307", "nowhere", "16: group[1].members[2].address must be an address such as"),
        (
            "127.0.0.1:11221",
            "127.0.0.1:11211",
            '28: 127.0.0.1:11211 is in pool "master" too: a server holds one member\'s data only',
        ),
        ('primary = "master"', 'primary = "main"', '23: there is no pool "main"; known are master, slave'),
        ('["slave"]', '["slave", "master"]', '24: pool "master" has a place in the group already'),
        ('["slave"]', "[]", '27: pool "slave" is neither primary nor among the replicas'),
        ('["slave"]', '"slave"', '24: group[2].replicas must be an array [...], not "slave"'),
        ('users = [{name = "app", password = "a"}]', "", "13: group[1] has no users"),
        ('users = [{name = "app", password = "a"}]', "users = []", "18: users is empty: nobody could log in"),
        (
            'users = [{name = "app", password = "a"}]',
            "users = 3",
            '18: group[1].users must be "backend" or an array [...], not 3',
        ),
        (
            'group = "sessions"',
            'group = "sessions"\nfreshness_wait = "1s"',
            '12: freshness_wait is for mysql listeners; "cache" speaks memcached',
        ),
        (
            'primary = "master"',
            'primary = "master"\nmin_replicas_to_write = 2',
            "24: min_replicas_to_write is 2, but the group has 1 replicas",
        ),
        (
            "users = [",
            'primary = "127.0.0.1:9"\nusers = [',
            '18: primary 127.0.0.1:9 is not among the members of "orders"',
        ),
        ("users = [", "pool = {size = true}\nusers = [", "18: group[1].pool.size must be a whole number, not true"),
        ("users = [", "pool = {size = 0}\nusers = [", "18: group[1].pool.size must be at least 1, not 0"),
        ("[[listener]]\nname", "[gateway]\nworkers = 4\n[[listener]]\nname", "2: workers must be 1"),
        ("[[listener]]\nname", '[gateway]\nworkers = "auto"\n[[listener]]\nname', "2: workers must be 1"),
        ("[[listener]]\nname", '[admin]\nlisten = "0.0.0.0:80"\n[[listener]]\nname', "2: admin.token is required"),
        ("[[listener]]\nname", "[gatway]\n[[listener]]\nname", "1: unknown key gatway, did you mean gateway?"),
        ("[[listener]]\nname", "x = = 1\n[[listener]]\nname", "1: is not TOML: Invalid value"),
    ],
)
def test_whatever_is_wrong_is_told_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in SMALL
    found = problems(tmp_path, SMALL.replace(old, new, 1))
    assert any(problem.startswith(f"gateway.toml:{message}") for problem in found), found


def test_all_problems_of_a_file_are_told_at_once_and_in_order(tmp_path: Path) -> None:
    text = SMALL.replace('name = "sql"', "name = 3").replace('primary = "master"', "primary = 5").replace("6033", "x")
    assert [problem.split(":")[1] for problem in problems(tmp_path, text)] == ["2", "4", "23"]


def test_a_file_that_cannot_be_read_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gateway\.toml: cannot be read: No such file or directory$"):
        load_config(tmp_path / "gateway.toml")
    (tmp_path / "gateway.toml").write_bytes(b"a = 1\nb = '\xff'")
    with pytest.raises(ConfigError, match=r"gateway\.toml:2: is not UTF-8 text"):
        load_config(tmp_path / "gateway.toml")
    write(tmp_path, "a = 1\nb = '''")
    with pytest.raises(ConfigError, match=r"gateway\.toml:2: is not TOML: "):
        load_config(tmp_path / "gateway.toml")
    write(tmp_path, "a = " + "[" * 20_000)
    with pytest.raises(ConfigError, match="nested too deeply"):
        load_config(tmp_path / "gateway.toml")
    write(tmp_path, "")
    with pytest.raises(ConfigError, match=r"there is no \[\[listener\]\]"):
        load_config(tmp_path / "gateway.toml")
    write(tmp_path, "listener = 3\n[group]\nname = 'x'")
    found = read_config(tmp_path / "gateway.toml")[1]
    assert [problem.message for problem in found] == [
        "listener must be written as [[listener]], once for each",
        "group must be written as [[group]], once for each",
    ]


# ---------------------------------------------------------------- options of later versions


@pytest.mark.parametrize(
    ("after", "option", "what"),
    [
        ('group = "sessions"', 'tls = {cert = "a", key = "b"}', "tls of memcached listeners"),
        ('group = "sessions"', 'proxy_protocol_from = ["10.0.0.0/8"]', "proxy_protocol_from of memcached listeners"),
        ('engine = "mysql"', 'failover = "promote"', 'failover = "promote"'),
        ('engine = "mysql"', "promote_unfenced = true", "promote_unfenced"),
        ('primary = "master"', 'journal = "fsync"', 'journal = "fsync"'),
        ('primary = "master"', 'failover = "auto"', 'failover = "auto"'),
        ('primary = "master"', 'on_primary_server_down = "use-replica"', 'on_primary_server_down = "use-replica"'),
        ('primary = "master"', "serve_stale = true", "serve_stale"),
        ('primary = "master"', "fill_on_miss = true", "fill_on_miss"),
        ('primary = "master"', "replicate_evictions = true", "replicate_evictions"),
        ('primary = "master"', 'primary_read_share = "1%"', "primary_read_share"),
        ("[group.pools.slave]", 'protocol = "binary"', 'protocol = "binary"'),
        ("[group.pools.slave]", 'user = "x"', "user"),
    ],
)
def test_an_option_of_a_later_version_is_refused(tmp_path: Path, after: str, option: str, what: str) -> None:
    line = SMALL[: SMALL.index(after)].count("\n") + 2
    config = load(tmp_path, SMALL.replace(after, f"{after}\n{option}", 1))
    assert unserved(config) == [f"{tmp_path}/gateway.toml:{line}: {what} is not available in this version"]


def test_users_of_the_backend_are_served(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL.replace('[{name = "app", password = "a"}]', '"backend"'))
    assert unserved(config) == []


def test_redis_alone_is_not_served(tmp_path: Path) -> None:
    text = (
        '[[listener]]\nname = "r"\nprotocol = "redis"\nlisten = "127.0.0.1:1"\ngroup = "g"\n'
        '[[group]]\nname = "g"\nengine = "redis"\nmembers = ["127.0.0.1:6379"]\n'
        'sentinel = {name = "mymaster", nodes = ["127.0.0.1:26379"]}\n'
    )
    assert unserved(load(tmp_path, text)) == [
        f"{tmp_path}/gateway.toml:3: Redis is not served yet, and there is no other listener"
    ]


VALUES = ["3", "-1", "true", '""', '"x"', "[]", "{}", "{a = 1}", "[[1]]", "1.5", "1979-05-27", '"1s"', "inf", "[{}]"]


@pytest.mark.parametrize("value", VALUES)
def test_any_value_anywhere_is_told_in_one_line_and_never_breaks_the_reader(tmp_path: Path, value: str) -> None:
    lines = SMALL.splitlines()
    for number, line in enumerate(lines):
        key, equals, _ = line.partition(" = ")
        changed = f"{key} = {value}" if equals else f"{line}\nextra = {value}"
        file = write(tmp_path, "\n".join([*lines[:number], changed, *lines[number + 1 :]]))
        config, found = read_config(file)
        assert (config is None) == bool(found)
        for problem in found:
            assert re.match(r".*gateway\.toml:\d+: [^\n]+$", str(problem)), problem
