"""Rule, hint and default together: a request only ever becomes safer than its kind allows."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from gateway.config import Address, Listener, Secret, User
from gateway.routing.fingerprint import DEFAULT_READING
from gateway.routing.operation import Hint, Kind, PinCause, SqlOperation, Table, TransactionEffect
from gateway.routing.route import Consistency, Policy, Target
from gateway.routing.sql import Classifier
from gateway.rules.compile import NO_RULES, RuleSet
from gateway.rules.load import load_rules
from gateway.rules.policy import (
    POLICIES_REMEMBERED,
    Context,
    Defaults,
    KeyPolicies,
    Replicate,
    SharedPolicies,
    SqlPolicies,
    sql_policy,
)

CLASSIFIER = Classifier()
READ = SqlOperation(Kind.READ, "select", "a proven read", reads=(Table("orders"),))
WRITE = SqlOperation(Kind.WRITE, "insert", "insert writes", writes=(Table("orders"),))


def ruleset(folder: Path, text: str) -> RuleSet:
    (folder / "rules.toml").write_text(text)
    return RuleSet(load_rules(folder))


def policy(operation: SqlOperation, rules: RuleSet = NO_RULES, defaults: Defaults | None = None) -> Policy:
    return sql_policy(operation, rules, Context("sql", "web", "127.0.0.1", "shop"), defaults or Defaults())


def rule(folder: Path, action: str, match: str = "protocol = 'mysql', kind = 'read'") -> RuleSet:
    return ruleset(folder, f'[[rule]]\nname = "r"\nmatch = {{{match}}}\n{action}\n')


# ---------------------------------------------------------------- without rules


def test_a_proven_read_goes_to_a_replica_with_the_listeners_defaults() -> None:
    assert policy(READ) == Policy(
        target=Target.REPLICA, consistency=Consistency.SESSION, max_lag=1.0, freshness_wait=0.05,
        timeout=None, rule=None, block=None, reason="a proven read",
    )  # fmt: skip
    ours = policy(READ, defaults=Defaults(Consistency.BOUNDED, 5.0, 0.0))
    assert (ours.consistency, ours.max_lag, ours.freshness_wait) == (Consistency.BOUNDED, 5.0, 0.0)


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (WRITE, "insert writes"),
        (replace(READ, kind=Kind.UNKNOWN, reason="does not parse"), "does not parse"),
        (replace(READ, kind=Kind.SESSION, reason="sets a variable"), "sets a variable"),
        (replace(READ, kind=Kind.TRANSACTION, transaction=TransactionEffect.BEGIN, reason="begins"), "begins"),
        (replace(READ, needs_primary="SHOW PROCESSLIST: shows one server"), "SHOW PROCESSLIST: shows one server"),
        (replace(READ, pin=PinCause.NAMED_LOCK, reason="takes a lock"), "takes a lock"),
        (replace(READ, last_connection=True), "it speaks of the statement before"),
        (replace(READ, multi=True, writes=(Table("t"),)), "a proven read"),
        (replace(READ, writes=(Table("t"),)), "a proven read"),
        (replace(READ, temporary_tables=(Table("t"),)), "a proven read"),
        (replace(READ, gateway="STATUS"), "the gateway answers it itself"),
    ],
)
def test_everything_else_goes_to_the_primary_whatever_rule_and_hint_say(
    tmp_path: Path, operation: SqlOperation, reason: str
) -> None:
    assert policy(operation).target is Target.PRIMARY
    assert policy(operation).reason.startswith(reason)
    hinted = replace(operation, hint=Hint(to="replica", consistency="eventual"))
    ruled = policy(hinted, rule(tmp_path, 'route = {to = "replica", consistency = "eventual"}'))
    assert ruled.target is Target.PRIMARY
    assert ruled.reason.endswith("; its hint to use a replica is ignored")


def test_several_statements_that_all_only_read_go_to_a_replica() -> None:
    assert policy(replace(READ, multi=True)).target is Target.REPLICA


def test_a_read_only_transaction_goes_to_a_replica() -> None:
    begin = SqlOperation(
        Kind.TRANSACTION, "start transaction", "reads only", transaction=TransactionEffect.BEGIN_READ_ONLY
    )
    assert policy(begin).target is Target.REPLICA
    assert policy(begin, defaults=Defaults(Consistency.STRONG)).target is Target.PRIMARY


def test_strong_consistency_reads_at_the_primary() -> None:
    strong = policy(READ, defaults=Defaults(Consistency.STRONG))
    assert (strong.target, strong.reason) == (Target.PRIMARY, "strong consistency reads at the primary")


# ---------------------------------------------------------------- a read-only user


READ_ONLY = Defaults(read_only=True)


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t VALUES (1)",
        "UPDATE t SET a = 1",
        "SELECT * FROM t FOR UPDATE",
        "SELECT a FROM t INTO OUTFILE 'x'",
        "WITH c AS (SELECT 1) DELETE FROM t",
        "SELECT 1; DELETE FROM t",
        "CREATE TABLE t (a INT)",
        "CREATE TEMPORARY TABLE t (a INT)",
        "SELECT stored(1)",
        "SET @a = stored(1)",
        "SELECT @a := stored(1)",
        "SELECT NEXTVAL(s)",
        "CALL p()",
        "EXECUTE s",
        "DO 1",
        "SET GLOBAL max_connections = 1",
        "SET PASSWORD = 'x'",
        "LOCK TABLES t WRITE",
        "LOCK INSTANCE FOR BACKUP",
        "XA COMMIT 'another one''s'",
        "SET STATEMENT max_statement_time = 1 FOR DELETE FROM t",
        "KILL 5",
        "GRANT ALL ON *.* TO me",
        "FLUSH PRIVILEGES",
        "no such statement",
        "/*!80000 DELETE FROM t */",
    ],
)
def test_a_read_only_user_is_refused_whatever_is_not_proven_to_read_only(tmp_path: Path, sql: str) -> None:
    operation = CLASSIFIER.classify(sql.encode(), DEFAULT_READING)
    assert policy(operation).block is None
    assert (policy(operation, defaults=READ_ONLY).block or "").startswith("the user is read_only")
    ruled = policy(operation, rule(tmp_path, 'route = {to = "primary"}'), defaults=READ_ONLY)
    assert (ruled.block or "").startswith("the user is read_only")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM t",
        "SHOW TABLES",
        "EXPLAIN SELECT 1",
        "BEGIN",
        "START TRANSACTION READ ONLY",
        "SAVEPOINT a",
        "COMMIT",
        "ROLLBACK",
        "SET NAMES utf8mb4",
        "SET @a = 1",
        "SET autocommit = 0",
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
        "USE shop",
        "SELECT 1; SELECT 2",
        "SHOW GATEWAY STATUS",
    ],
)
def test_a_read_only_user_reads_as_anybody_does(sql: str) -> None:
    operation = CLASSIFIER.classify(sql.encode(), DEFAULT_READING)
    assert policy(operation, defaults=READ_ONLY) == policy(operation)


def test_the_defaults_of_a_user_stand_before_the_listener_s_and_behind_rule_and_hint(tmp_path: Path) -> None:
    listener = Listener(name="sql", protocol="mysql", listen=Address("127.0.0.1", 1), group="g", consistency="bounded")
    assert Defaults.of(listener).consistency is Consistency.BOUNDED
    user = User(name="app", password=Secret("x"), consistency="eventual", read_only=True)
    ours = Defaults.of(listener, user)
    assert (ours.consistency, ours.read_only) == (Consistency.EVENTUAL, True)
    assert policy(READ, defaults=ours).consistency is Consistency.EVENTUAL
    ruled = policy(READ, rule(tmp_path, 'route = {consistency = "session"}'), defaults=ours)
    assert ruled.consistency is Consistency.SESSION
    assert policy(hinted(consistency="strong"), defaults=ours).consistency is Consistency.STRONG


# ---------------------------------------------------------------- rules


def test_a_rule_sets_what_it_names_and_leaves_the_rest(tmp_path: Path) -> None:
    rules = rule(tmp_path, 'route = {to = "replica", consistency = "eventual", max_lag = "5m", timeout = "10m"}')
    got = policy(READ, rules)
    assert got == Policy(Target.REPLICA, Consistency.EVENTUAL, 300.0, 0.05, 600.0, "r", None, "a proven read")
    assert policy(WRITE, rules).rule is None


def test_a_rule_sends_a_read_to_the_primary(tmp_path: Path) -> None:
    got = policy(READ, rule(tmp_path, 'route = {to = "primary"}'))
    assert (got.target, got.rule, got.reason) == (Target.PRIMARY, "r", 'the rule "r" sends it to the primary')


def test_a_rule_refuses_with_its_message(tmp_path: Path) -> None:
    got = policy(WRITE, rule(tmp_path, 'block = "not today"', "kind = 'write'"))
    assert (got.block, got.rule, got.reason) == ("not today", "r", 'refused by the rule "r"')


# ---------------------------------------------------------------- hints


def hinted(**hint: object) -> SqlOperation:
    return replace(READ, hint=Hint(**hint))  # type: ignore[arg-type]


def test_a_hint_sends_a_read_to_the_primary_and_sets_what_no_rule_sets(tmp_path: Path) -> None:
    assert policy(hinted(to="primary")).reason == "its hint asks for the primary"
    got = policy(hinted(to="replica", consistency="eventual", max_lag=5.0, freshness_wait=0.2))
    assert (got.target, got.consistency, got.max_lag, got.freshness_wait) == (
        Target.REPLICA, Consistency.EVENTUAL, 5.0, 0.2,
    )  # fmt: skip
    assert policy(hinted(to="primary"), rule(tmp_path, 'route = {to = "replica"}')).target is Target.PRIMARY


def test_a_hint_that_was_not_understood_sends_its_read_to_the_primary() -> None:
    got = policy(hinted(to="replica", problem="unknown word primry"))
    assert (got.target, got.reason) == (Target.PRIMARY, "its hint was not understood: unknown word primry")


def test_a_hint_never_loosens_what_a_rule_sets(tmp_path: Path) -> None:
    order = list(Consistency)
    for ruled, asked in product(order, order):
        rules = rule(tmp_path, f'route = {{consistency = "{ruled.value}", max_lag = "2s", freshness_wait = "1s"}}')
        got = policy(hinted(consistency=asked.value, max_lag=9.0, freshness_wait=0.0), rules)
        assert got.consistency is order[max(order.index(ruled), order.index(asked))]
        assert (got.max_lag, got.freshness_wait) == (2.0, 1.0)
        assert policy(hinted(max_lag=0.5), rules).max_lag == 0.5
    assert policy(hinted(to="replica"), rule(tmp_path, 'route = {to = "primary"}')).target is Target.PRIMARY


# ---------------------------------------------------------------- remembering


def test_remembered_policies_are_those_that_would_be_computed(tmp_path: Path) -> None:
    rules = rule(tmp_path, 'route = {to = "primary"}', "database = 'shop'")
    policies = SharedPolicies(rules).for_connection("sql", "web", "127.0.0.1", Defaults())
    for _ in range(2):
        assert policies.policy(READ, "shop").rule == "r"
        assert policies.policy(READ, "other").rule is None
        assert policies.policy(WRITE, None).target is Target.PRIMARY
    assert policies.policy(READ, "shop") is policies.policy(READ, "shop")


def test_what_is_remembered_is_bounded() -> None:
    policies = SqlPolicies(NO_RULES.sql_rules("", "", ""), Defaults())
    for number in range(POLICIES_REMEMBERED * 2 + 10):
        reason = f"read {number}"
        assert policies.policy(replace(READ, reason=reason), None).reason == reason
    assert len(policies._known) <= POLICIES_REMEMBERED


def test_connections_share_policies_if_rules_and_defaults_are_the_same(tmp_path: Path) -> None:
    shared = SharedPolicies(rule(tmp_path, 'route = {to = "primary"}', "user = 'report_*', protocol = 'mysql'"))
    one = shared.for_connection("sql", "a", "10.0.0.1", Defaults())
    assert shared.for_connection("other", "b", "10.0.0.2", Defaults()) is one
    assert shared.for_connection("sql", "a", "10.0.0.1", Defaults(max_lag=9.0)) is not one
    assert shared.for_connection("sql", "report_1", "10.0.0.1", Defaults()) is not one


# ---------------------------------------------------------------- keys

KEY_RULES = """
[[rule]]
name = "sync"
match = {protocol = "memcached", key = "session:*", kind = "write"}
replicate = "sync"
[[rule]]
name = "local"
match = {protocol = "memcached", key = "frag:*", kind = "write"}
replicate = "none"
[[rule]]
name = "exact"
match = {protocol = "memcached", key = "stock:*", kind = "read"}
route = {to = "primary"}
[[rule]]
name = "later"
match = {protocol = "memcached", key = "+late"}
replicate = "async"
[[rule]]
name = "refuse"
match = {protocol = "memcached", key = "secret*"}
block = "no"
[[rule]]
name = "frags"
match = {protocol = "memcached", key = "frag:*", kind = "read"}
route = {to = "replica"}
"""


def test_without_rules_the_group_decides() -> None:
    policies = KeyPolicies(NO_RULES.key_rules("", "", ""), sync_prefixes=(b"+", b"!"))
    assert (policies.read(b"k").target, policies.read(b"k").rule) == (Target.REPLICA, None)
    assert policies.write(b"k").replicate is Replicate.ASYNC
    assert policies.write(b"!k").replicate is Replicate.SYNC
    assert policies.read(b"k") is policies.read(b"other")
    primary = KeyPolicies(NO_RULES.key_rules("", "", ""), read_from=Target.PRIMARY, replicate=Replicate.SYNC)
    assert primary.read(b"k").target is Target.PRIMARY
    assert primary.write(b"k").replicate is Replicate.SYNC


def test_key_rules_decide_before_the_group(tmp_path: Path) -> None:
    rules = ruleset(tmp_path, KEY_RULES).key_rules("cache", "", "")
    policies = KeyPolicies(rules, sync_prefixes=(b"+",))
    assert [policies.write(key).replicate for key in (b"session:1", b"frag:1", b"stock:1", b"+late", b"+k")] == [
        Replicate.SYNC, Replicate.NONE, Replicate.ASYNC, Replicate.ASYNC, Replicate.SYNC,
    ]  # fmt: skip
    assert (policies.read(b"stock:1").target, policies.read(b"stock:1").rule) == (Target.PRIMARY, "exact")
    assert policies.read(b"session:1").target is Target.REPLICA
    assert policies.write(b"secret").block == "no"
    assert policies.read(b"secret").block == "no"
    assert policies.write(b"session:1") is policies.write(b"session:2")


def test_a_key_that_is_not_replicated_is_read_at_the_primary_whatever_decides_for_reads(tmp_path: Path) -> None:
    policies = KeyPolicies(ruleset(tmp_path, KEY_RULES).key_rules("cache", "", ""))
    got = policies.read(b"frag:1")
    assert (got.target, got.replicate, got.rule) == (Target.PRIMARY, Replicate.NONE, "local")
    assert got.reason == 'the rule "local" keeps the key at the primary'
