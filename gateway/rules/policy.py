"""Combines rule, hint and the listener's defaults into a `Policy`: what is wanted, before any member is looked at.

Who may do what:

- Only a proven read without side effects, or START TRANSACTION READ ONLY, may go to a replica. Neither a rule nor a
  hint changes that.
- A rule decides before a hint: a hint can send a read to the primary although the rule says replica, never the
  reverse, and can make stricter what a rule sets, never laxer. What no rule sets, a hint may set freely.
- A hint that was not understood sends its statement to the primary: doubt always does.

For keys the same with less: where a request goes, and how a write gets to the replicas.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from gateway.routing.operation import Kind, PinCause, SqlOperation, TransactionEffect
from gateway.routing.route import Consistency, Policy, Target
from gateway.rules.compile import KeyRules, RuleSet, SqlRules
from gateway.rules.model import RouteAction, Rule

if TYPE_CHECKING:
    from gateway.config import Listener, MemcachedGroup, User

# Policies that are remembered per set of rules and defaults; classification shares as many operations.
POLICIES_REMEMBERED: Final = 4096

_STRENGTH: Final = {
    Consistency.EVENTUAL: 0,
    Consistency.BOUNDED: 1,
    Consistency.SESSION: 2,
    Consistency.STRONG: 3,
}
_NO_ACTION: Final = RouteAction()


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a listener, and before it a user, say where neither rule nor hint does; times in seconds.

    `read_only`: nothing but reads is carried out for the user, whatever rules and hints say.
    """

    consistency: Consistency = Consistency.SESSION
    max_lag: float = 1.0
    freshness_wait: float = 0.05
    read_only: bool = False

    @classmethod
    def of(cls, listener: Listener, user: User | None = None) -> Defaults:
        """The defaults of a configured listener for a configured user; None stands for any other."""
        level = user.consistency if user is not None and user.consistency is not None else listener.consistency
        read_only = user is not None and user.read_only
        return cls(Consistency(level), listener.max_lag, listener.freshness_wait, read_only)


@dataclass(frozen=True, slots=True)
class Context:
    """Who sends a statement: names as rules match them, `client` the address without port ("" for a unix socket)."""

    listener: str = ""
    user: str = ""
    client: str = ""
    database: str | None = None


# ---------------------------------------------------------------- SQL


class SqlPolicies:
    """The policies of one kind of connection, remembered per operation (which the classifier shares) and database.

    A session makes one when it has authenticated and again after a reload: `SqlPolicies.shared` gives sessions with the
    same rules and defaults the same object.
    """

    __slots__ = ("_defaults", "_known", "_rules")

    def __init__(self, rules: SqlRules, defaults: Defaults) -> None:
        self._rules = rules
        self._defaults = defaults
        # By identity, since hashing an operation costs more than deciding; the operation is kept so that its id stays
        # its own.
        self._known: dict[tuple[int, str | None], tuple[SqlOperation, Policy]] = {}

    def policy(self, operation: SqlOperation, database: str | None) -> Policy:
        """What is wanted for one statement; `database` is the session's own."""
        key = (id(operation), database)
        known = self._known.get(key)
        if known is not None:
            return known[1]
        policy = _sql_policy(operation, self._rules.first(operation, database) if self._rules else None, self._defaults)
        if len(self._known) >= POLICIES_REMEMBERED:
            self._known.clear()
        self._known[key] = (operation, policy)
        return policy


class SharedPolicies:
    """One SqlPolicies per set of rules and defaults, for all sessions of a process. Made anew for each RuleSet."""

    __slots__ = ("_rules", "_shared")

    def __init__(self, rules: RuleSet) -> None:
        self._rules = rules
        self._shared: dict[tuple[SqlRules, Defaults], SqlPolicies] = {}

    def for_connection(self, listener: str, user: str, client: str, defaults: Defaults) -> SqlPolicies:
        rules = self._rules.sql_rules(listener, user, client)
        found = self._shared.get((rules, defaults))
        if found is None:
            found = self._shared[rules, defaults] = SqlPolicies(rules, defaults)
        return found


def sql_policy(operation: SqlOperation, rules: RuleSet, context: Context, defaults: Defaults) -> Policy:
    """What is wanted for one statement, computed without remembering anything."""
    rule = rules.sql(operation, context.user, context.database, context.client, context.listener)
    return _sql_policy(operation, rule, defaults)


def _sql_policy(operation: SqlOperation, rule: Rule | None, defaults: Defaults) -> Policy:
    action = rule.route if rule is not None and rule.route is not None else _NO_ACTION
    hint = operation.hint
    consistency = defaults.consistency if action.consistency is None else Consistency(action.consistency)
    if hint.consistency is not None:
        asked = Consistency(hint.consistency)
        if action.consistency is None or _STRENGTH[asked] > _STRENGTH[consistency]:
            consistency = asked
    max_lag = defaults.max_lag if action.max_lag is None else action.max_lag
    if hint.max_lag is not None:
        max_lag = hint.max_lag if action.max_lag is None else min(hint.max_lag, max_lag)
    wait = defaults.freshness_wait if action.freshness_wait is None else action.freshness_wait
    if hint.freshness_wait is not None and action.freshness_wait is None:
        wait = hint.freshness_wait
    target, reason = _side(operation, rule, action, consistency)
    block = rule.block if rule is not None else None
    if block is None and defaults.read_only and not harmless(operation):
        block = f"the user is read_only, and this statement ({operation.statement}) is not proven to read only"
        reason = f"refused, since the user is read_only: {operation.reason}"
    return Policy(
        target=target,
        consistency=consistency,
        max_lag=max_lag,
        freshness_wait=wait,
        timeout=action.timeout,
        rule=rule.name if rule is not None else None,
        block=block,
        reason=reason,
    )


def harmless(operation: SqlOperation) -> bool:
    """Whether a read_only user may do it: a proven read, or what concerns nobody but its own session."""
    if operation.gateway is not None:
        return True
    if operation.writes or operation.temporary_tables:
        return False
    if operation.kind is Kind.SESSION:
        return operation.pin not in (PinCause.TABLE_LOCK, PinCause.INSTANCE_LOCK)
    if operation.kind is Kind.TRANSACTION:
        return operation.statement != "xa"  # it may commit what somebody else has prepared
    return operation.kind is Kind.READ


def _side(
    operation: SqlOperation, rule: Rule | None, action: RouteAction, consistency: Consistency
) -> tuple[Target, str]:
    if rule is not None and rule.block is not None:
        return Target.PRIMARY, f'refused by the rule "{rule.name}"'
    obstacle = primary_only(operation)
    hint = operation.hint
    if obstacle is not None:
        if hint.to == "replica":
            obstacle += "; its hint to use a replica is ignored"
        return Target.PRIMARY, obstacle
    if rule is not None and action.to == "primary":
        return Target.PRIMARY, f'the rule "{rule.name}" sends it to the primary'
    if hint.problem is not None:
        return Target.PRIMARY, f"its hint was not understood: {hint.problem}"
    if hint.to == "primary":
        return Target.PRIMARY, "its hint asks for the primary"
    if consistency is Consistency.STRONG:
        return Target.PRIMARY, "strong consistency reads at the primary"
    return Target.REPLICA, operation.reason


def primary_only(operation: SqlOperation) -> str | None:
    """Why an operation by itself must run at the primary, in words; None if a replica may serve it."""
    if operation.gateway is not None:
        return "the gateway answers it itself"
    if operation.pin is not None:
        return operation.reason
    if operation.transaction is TransactionEffect.BEGIN_READ_ONLY and not operation.multi:
        return None
    if operation.kind is not Kind.READ:
        return operation.reason
    if operation.needs_primary is not None:
        return operation.needs_primary
    if operation.last_connection:
        return "it speaks of the statement before, which only that statement's connection knows"
    # None of these belongs to a read; a classifier that says otherwise is not believed.
    if operation.writes or operation.temporary_tables or operation.transaction is not TransactionEffect.NONE:
        return operation.reason
    return None


# ---------------------------------------------------------------- keys


class Replicate(Enum):
    """How a write gets to the replicas."""

    SYNC = "sync"  # the client is answered when every replica pool has it
    ASYNC = "async"  # the client is answered after the primary
    NONE = "none"  # not at all: the key lives at the primary only


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """What rules and configuration say about one key of a request. `block` is the message that refuses it."""

    target: Target
    replicate: Replicate
    rule: str | None
    block: str | None
    reason: str


class KeyPolicies:
    """The policies of one kind of memcached connection. Where there is no rule, the answers are constants."""

    __slots__ = ("_local", "_no_rules", "_prefixes", "_read", "_remembered", "_rules", "_sync", "_write")

    def __init__(
        self,
        rules: KeyRules,
        *,
        read_from: Target = Target.REPLICA,
        replicate: Replicate = Replicate.ASYNC,
        sync_prefixes: tuple[bytes, ...] = (),
    ) -> None:
        """`read_from`, `replicate` and `sync_prefixes` are the group's."""
        read_reason = (
            "a read, and the group reads from replicas"
            if read_from is Target.REPLICA
            else "the group reads from its primary"
        )
        self._rules = rules
        self._no_rules = not rules
        self._local = rules.some_stay_local
        self._prefixes = sync_prefixes
        self._read = KeyPolicy(read_from, replicate, None, None, read_reason)
        self._write = KeyPolicy(Target.PRIMARY, replicate, None, None, "a write")
        sync_reason = "a write, and its key begins with a prefix of sync_prefixes"
        self._sync = KeyPolicy(Target.PRIMARY, Replicate.SYNC, None, None, sync_reason)
        self._remembered: dict[tuple[str, Kind, bool], KeyPolicy] = {}

    @classmethod
    def of(cls, rules: RuleSet, group: MemcachedGroup, listener: str, user: str, client: str) -> KeyPolicies:
        """The policies of connections like this one to a configured group."""
        return cls(
            rules.key_rules(listener, user, client),
            read_from=Target(group.read_from),
            replicate=Replicate(group.replication),
            sync_prefixes=tuple(prefix.encode() for prefix in group.sync_prefixes),
        )

    def read(self, key: bytes) -> KeyPolicy:
        """Where a read of the key goes, if nothing is pending for it."""
        if self._no_rules or not self._rules.concern(key):
            return self._read
        rule = self._rules.first(Kind.READ, key)
        # A key whose writes are not replicated is read where it is written, whichever rule decides for reads.
        local = self._rules.first(Kind.WRITE, key) if self._local else None
        stays = (local is not None and local.replicate == "none") or (rule is not None and rule.replicate == "none")
        if stays:
            decider = rule if rule is not None and (rule.block is not None or rule.replicate == "none") else local
            assert decider is not None
            return self._by_rule(decider, Kind.READ, True)
        return self._read if rule is None else self._by_rule(rule, Kind.READ, False)

    def write(self, key: bytes) -> KeyPolicy:
        """How a write of the key is replicated; it always goes to the primary."""
        if not self._no_rules and self._rules.concern(key):
            rule = self._rules.first(Kind.WRITE, key)
            if rule is not None:
                return self._by_rule(rule, Kind.WRITE, key.startswith(self._prefixes))
        if self._prefixes and key.startswith(self._prefixes):
            return self._sync
        return self._write

    def _by_rule(self, rule: Rule, kind: Kind, special: bool) -> KeyPolicy:
        """`special`: of a read, that its key stays at the primary; of a write, that it has a sync prefix."""
        remembered = self._remembered.get((rule.name, kind, special))
        if remembered is None:
            make = self._read_by_rule if kind is Kind.READ else self._write_by_rule
            remembered = self._remembered[rule.name, kind, special] = make(rule, special)
        return remembered

    def _read_by_rule(self, rule: Rule, stays: bool) -> KeyPolicy:
        if rule.block is not None:
            return KeyPolicy(
                Target.PRIMARY, self._read.replicate, rule.name, rule.block, f'refused by the rule "{rule.name}"'
            )
        if stays:
            reason = f'the rule "{rule.name}" keeps the key at the primary'
            return KeyPolicy(Target.PRIMARY, Replicate.NONE, rule.name, None, reason)
        to = rule.route.to if rule.route is not None else None
        target = self._read.target if to is None else Target(to)
        reason = self._read.reason if to is None else f'the rule "{rule.name}" sends it to the {to}'
        return KeyPolicy(target, self._read.replicate, rule.name, None, reason)

    def _write_by_rule(self, rule: Rule, prefixed: bool) -> KeyPolicy:
        default = self._sync if prefixed else self._write
        if rule.block is not None:
            return KeyPolicy(
                Target.PRIMARY, default.replicate, rule.name, rule.block, f'refused by the rule "{rule.name}"'
            )
        if rule.replicate is None:
            return KeyPolicy(Target.PRIMARY, default.replicate, rule.name, None, default.reason)
        how = {"sync": "before the answer", "async": "after the answer", "none": "not at all"}[rule.replicate]
        reason = f'a write, and the rule "{rule.name}" replicates it {how}'
        return KeyPolicy(Target.PRIMARY, Replicate(rule.replicate), rule.name, None, reason)
