"""Which rule decides: the first that matches, and what matching means for every key of `match`."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.routing.operation import Column, Kind, SqlOperation, Table
from gateway.rules.compile import NO_RULES, RuleSet
from gateway.rules.load import load_rules

ACCOUNTS = Table("accounts")
SHOP_ACCOUNTS = Table("accounts", "shop")


def ruleset(folder: Path, *matches: str) -> RuleSet:
    """Rules named r0, r1, ... that send what matches to the primary."""
    text = "".join(
        f'[[rule]]\nname = "r{index}"\nmatch = {{{match}}}\nroute = {{to = "primary"}}\n'
        for index, match in enumerate(matches)
    )
    (folder / "rules.toml").write_text(text)
    return RuleSet(load_rules(folder))


def read(*columns: Column, reads: tuple[Table, ...] = (ACCOUNTS,)) -> SqlOperation:
    return SqlOperation(Kind.READ, "select", "a read", reads=reads, columns=frozenset(columns))


def decides(rules: RuleSet, operation: SqlOperation, *, user: str = "web", database: str | None = "shop") -> str | None:
    rule = rules.sql(operation, user, database, "10.1.2.3", "sql")
    return rule.name if rule else None


SELECT = read()
DELETE = SqlOperation(Kind.WRITE, "delete", "a write", writes=(ACCOUNTS,), without_where=True)
CREATE = SqlOperation(Kind.WRITE, "create table", "a write", writes=(Table("New"),))
BEGIN = SqlOperation(Kind.TRANSACTION, "begin", "begins a transaction")
CALL = SqlOperation(Kind.UNKNOWN, "call", "nothing is known about the procedure")
SLEEP = SqlOperation(Kind.READ, "select", "a read", functions=frozenset({"sleep", "now"}))


@pytest.mark.parametrize(
    ("match", "fitting"),
    [
        ("protocol = 'mysql'", [SELECT, DELETE, CREATE, BEGIN, CALL, SLEEP]),
        ("user = 'web'", [SELECT, DELETE, CREATE, BEGIN, CALL, SLEEP]),
        ("user = ['a', 'w?b*']", [SELECT, DELETE, CREATE, BEGIN, CALL, SLEEP]),
        ("user = 'WEB'", []),
        ("listener = 'sql'", [SELECT, DELETE, CREATE, BEGIN, CALL, SLEEP]),
        ("listener = 'other'", []),
        ("client = ['192.168.0.0/16', '10.0.0.0/8']", [SELECT, DELETE, CREATE, BEGIN, CALL, SLEEP]),
        ("client = '10.1.2.4'", []),
        ("client = '::/0'", []),
        ("database = 's*'", [SELECT, DELETE, CREATE, BEGIN, CALL, SLEEP]),
        ("database = 'shop2'", []),
        ("kind = 'read'", [SELECT, SLEEP]),
        ("kind = ['write', 'unknown']", [DELETE, CREATE, CALL]),
        ("statement = 'DELETE'", [DELETE]),
        ("statement = 'create *'", [CREATE]),
        ("without_where = true", [DELETE]),
        ("tables = 'Accounts'", [SELECT, DELETE]),
        ("tables = ['x', 'shop.new']", [CREATE]),
        ("tables = 'other.accounts'", []),
        ("functions = 'SLEEP'", [SLEEP]),
        ("user = 'web', kind = 'read', functions = 's*'", [SLEEP]),
        ("user = 'web', kind = 'write', functions = 's*'", []),
    ],
)
def test_every_key_that_is_given_must_fit(tmp_path: Path, match: str, fitting: list[SqlOperation]) -> None:
    rules = ruleset(tmp_path, match)
    operations = [SELECT, DELETE, CREATE, BEGIN, CALL, SLEEP]
    assert [each for each in operations if decides(rules, each)] == fitting


@pytest.mark.parametrize(
    ("operation", "database", "matches"),
    [
        (read(Column("balance", ACCOUNTS)), "shop", True),
        (read(Column("BALANCE", Table("Accounts"))), "shop", True),
        (read(Column("id", ACCOUNTS)), "shop", False),
        (read(Column("*", ACCOUNTS)), "shop", True),
        (read(Column("*", Table("orders")), Column("id", ACCOUNTS)), "shop", False),
        (read(Column("balance", Table("orders")), reads=(ACCOUNTS, Table("orders"))), "shop", False),
        # Without a table the column may be of any table that the statement names.
        (read(Column("balance"), reads=(ACCOUNTS, Table("orders"))), "shop", True),
        (read(Column("balance"), reads=(Table("orders"),)), "shop", False),
        (read(Column("*"), reads=(Table("orders"), ACCOUNTS)), "shop", True),
        (read(Column("balance"), reads=()), "shop", True),
        # The database: named, the session's, or nobody's.
        (read(Column("balance", SHOP_ACCOUNTS)), "other", True),
        (read(Column("balance", ACCOUNTS)), "other", False),
        (read(Column("balance", ACCOUNTS)), None, True),
        (read(Column("balance", Table("accounts", "other"))), "shop", False),
        # Nothing is known about it, so it cannot be excluded.
        (CALL, "shop", True),
        (BEGIN, "shop", False),
    ],
)
def test_a_column_rule_matches_when_it_cannot_be_excluded(
    tmp_path: Path, operation: SqlOperation, database: str | None, matches: bool
) -> None:
    rules = ruleset(tmp_path, "columns = 'shop.accounts.balance'")
    assert (decides(rules, operation, database=database) is not None) == matches


def test_the_first_rule_that_matches_decides(tmp_path: Path) -> None:
    rules = ruleset(tmp_path, "user = 'report_*'", "kind = 'write'", "tables = 'accounts'", "kind = 'read'")
    assert decides(rules, SELECT) == "r2"
    assert decides(rules, SELECT, user="report_1") == "r0"
    assert decides(rules, DELETE) == "r1"
    assert decides(rules, SLEEP) == "r3"
    assert decides(rules, BEGIN) is None


def test_connections_with_the_same_rules_share_them(tmp_path: Path) -> None:
    rules = ruleset(tmp_path, "user = 'report_*'", "protocol = 'mysql', kind = 'write'")
    one, other = rules.sql_rules("sql", "a", "10.0.0.1"), rules.sql_rules("sql", "b", "")
    assert one is other
    assert rules.sql_rules("sql", "report_1", "") is not one
    assert one
    assert not ruleset(tmp_path, "user = 'x'").sql_rules("sql", "y", "")


def test_without_rules_nothing_decides() -> None:
    assert not NO_RULES.has_sql_rules
    assert not NO_RULES.has_key_rules
    assert decides(NO_RULES, SELECT) is None
    assert NO_RULES.key(Kind.READ, b"k", "", "", "") is None
    assert not NO_RULES.key_rules("", "", "")


# ---------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("pattern", "fitting", "others"),
    [
        ("'session:*'", [b"session:", b"session:42"], [b"session", b"xsession:1"]),
        ("'frag'", [b"frag"], [b"frag:", b"fra"]),
        ("'*'", [b"", b"k"], []),
        ("['a:*', 'b']", [b"a:1", b"b"], [b"b1", b"c"]),
        ("'*:ttl'", [b":ttl", b"a:ttl"], [b"a:ttl2"]),
        ("'u?er:[0-9]*'", [b"user:1", b"u\xffer:9x"], [b"user:x", b"uuser:1"]),
        ("'\u00e9*'", ["\u00e9".encode(), "\u00e9t".encode()], [b"\xc3", b"e"]),
    ],
)
def test_keys_match_by_prefix_whole_or_wildcard(
    tmp_path: Path, pattern: str, fitting: list[bytes], others: list[bytes]
) -> None:
    rules = ruleset(tmp_path, f"key = {pattern}")
    assert rules.has_key_rules
    assert not rules.has_sql_rules
    assert [key for key in fitting + others if rules.key(Kind.READ, key, "", "", "")] == fitting
    assert all(rules.key_rules("", "", "").concern(key) for key in fitting)


def test_keys_that_concern_no_rule_are_known_at_once(tmp_path: Path) -> None:
    rules = ruleset(tmp_path, "key = 'a:*'", "key = ['b', 'c:*']").key_rules("", "", "")
    assert [rules.concern(key) for key in (b"a:1", b"b", b"c:", b"d", b"b1")] == [True, True, True, False, False]


def test_a_key_rule_asks_for_kind_user_client_and_listener_too(tmp_path: Path) -> None:
    rules = ruleset(
        tmp_path,
        "protocol = 'memcached', key = 'a*', kind = 'write'",
        "protocol = 'memcached', user = 'u'",
        "protocol = 'memcached', listener = 'l', client = '::1'",
    )

    def name(kind: Kind, key: bytes, user: str = "", listener: str = "", client: str = "") -> str | None:
        rule = rules.key(kind, key, user, listener, client)
        return rule.name if rule else None

    assert name(Kind.WRITE, b"a1", "u") == "r0"
    assert name(Kind.READ, b"a1", "u") == "r1"
    assert name(Kind.READ, b"a1") is None
    assert name(Kind.READ, b"x", "", "l", "::1") == "r2"
    assert name(Kind.READ, b"x", "", "l", "127.0.0.1") is None


def test_a_rule_for_both_protocols_decides_in_both(tmp_path: Path) -> None:
    rules = ruleset(tmp_path, "user = 'web'")
    assert decides(rules, SELECT) == "r0"
    assert rules.key(Kind.WRITE, b"k", "web", "", "") is not None
