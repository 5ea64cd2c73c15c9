"""What comes of one statement or command line by itself, as `gateway explain` and the tests in rule files tell it.

Nothing of a session or of members is known here: not what an earlier statement did, and not who is fresh enough.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from gateway.protocol.memcached.lines import parse_line
from gateway.protocol.memcached.request import Rejected, Request
from gateway.routing import kv
from gateway.routing.operation import Effect, Kind, SqlOperation, TransactionEffect
from gateway.routing.route import Consistency, Target
from gateway.rules.policy import Context, KeyPolicies, Replicate, SqlPolicies

if TYPE_CHECKING:
    from gateway.routing.fingerprint import Reading
    from gateway.routing.sql import Classifier

TRANSACTION_PIN: Final = "transaction until COMMIT or ROLLBACK"
READ_ONLY_TRANSACTION_PIN: Final = "read-only transaction, on one replica until COMMIT or ROLLBACK"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where a request would go, and why. What the protocol has no notion of is None. Times in seconds."""

    statement: str  # the text as it was given
    operation: str  # its name: "select", "create table", "set" of memcached
    kind: Kind
    target: Target
    pin: str | None
    rule: str | None
    reason: str
    block: str | None  # refused, and what the client is told
    consistency: Consistency | None = None
    max_lag: float | None = None
    freshness_wait: float | None = None
    timeout: float | None = None
    replicate: Replicate | None = None  # of a memcached write to one key
    protocol: str = "mysql"


def pin_words(operation: SqlOperation) -> str | None:
    """Why a session keeps its backend connection after the operation, in words; None if it does not."""
    if operation.pin is not None:
        return operation.pin.value
    if operation.transaction is TransactionEffect.BEGIN_READ_ONLY:
        return READ_ONLY_TRANSACTION_PIN
    if operation.transaction is TransactionEffect.BEGIN or operation.chain:
        return TRANSACTION_PIN
    return None


class SqlExplainer:
    """Explains SQL statements, each as the first of a session of its own."""

    def __init__(
        self,
        classifier: Classifier,
        policies: SqlPolicies,
        context: Context,
        reading: Reading,
        staying: str | None = None,
    ) -> None:
        """`staying`: why such a session keeps everything at the primary, in words; None if it does not."""
        self._staying = staying
        self._classifier = classifier
        self._policies = policies
        self._database = context.database
        self._reading = reading

    def explain(self, text: bytes) -> Verdict:
        operation = self._classifier.classify(text, self._reading)
        policy = self._policies.policy(operation, self._database)
        if self._staying is not None and policy.target is Target.REPLICA:
            policy = replace(policy, target=Target.PRIMARY, reason=self._staying)
        return Verdict(
            statement=text.decode(errors="replace"),
            operation=operation.statement,
            kind=operation.kind,
            target=policy.target,
            pin=pin_words(operation),
            rule=policy.rule,
            reason=policy.reason,
            block=policy.block,
            consistency=policy.consistency,
            max_lag=policy.max_lag,
            freshness_wait=policy.freshness_wait,
            timeout=policy.timeout,
        )


class KeyExplainer:
    """Explains memcached command lines, such as `set k 0 0 5`; a value is not asked for."""

    def __init__(self, policies: KeyPolicies) -> None:
        self._policies = policies

    def explain(self, text: bytes) -> Verdict:
        request, _ = parse_line(text.rstrip(b"\r\n"))
        if isinstance(request, Rejected):
            answer = request.answer.decode(errors="replace").strip() or None
            return _at_primary(text, "unknown", Kind.UNKNOWN, request.reason or "it cannot be understood", answer)
        operation = kv.classify(request)
        name, kind = operation.verb, operation.kind
        if kind is Kind.SESSION:
            return _at_primary(text, name, kind, "the gateway answers it itself")
        if operation.effect is Effect.FLUSH:
            return _at_primary(text, name, kind, "a write of all keys at every server, and one record of the log")
        if kind is Kind.READ:
            return self._read(text, name, request)
        policy = self._policies.write(request.key)
        verdict = _at_primary(text, name, kind, policy.reason, policy.block)
        return replace(verdict, rule=policy.rule, replicate=policy.replicate)

    def _read(self, text: bytes, name: str, request: Request) -> Verdict:
        """A multiget is split by key; told is the first key that keeps it from being served by replicas alone."""
        policies = [self._policies.read(key) for key in request.keys]
        policy = next((each for each in policies if each.target is Target.PRIMARY), policies[0])
        verdict = replace(_at_primary(text, name, Kind.READ, policy.reason, policy.block), rule=policy.rule)
        if policy.target is Target.PRIMARY:
            return verdict
        if name == "gets":
            return replace(verdict, reason="a read for cas, and the CAS that counts is the primary server's")
        return replace(verdict, target=Target.REPLICA)


def _at_primary(text: bytes, name: str, kind: Kind, reason: str, block: str | None = None) -> Verdict:
    statement = text.decode(errors="replace")
    return Verdict(statement, name, kind, Target.PRIMARY, None, None, reason, block, protocol="memcached")
