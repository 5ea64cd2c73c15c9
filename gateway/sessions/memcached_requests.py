"""What a session does with each verb: where its keys are read, how its writes are sent, what is refused.

Each handler is synchronous and runs in the batch in which the request came. It answers whether the request was taken:
False means that it is to be tried again when whatever it waits for has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from gateway.protocol.memcached import encoder
from gateway.protocol.memcached.request import Rejected, Request
from gateway.routing.route import Target
from gateway.sessions.memcached_slots import (
    MISS,
    Instead,
    Merge,
    Read,
    ReplicaMergePart,
    ReplicaRead,
    Slot,
    TouchPart,
)
from gateway.topology.memcached_servers import ReplicaServer
from gateway.topology.memcached_writes import NOBODY, Answer

if TYPE_CHECKING:
    from gateway.sessions.memcached_session import MemcachedSession


def get(session: MemcachedSession, request: Request) -> bool:
    """A get of one key goes to a replica that has it for sure, else to the primary."""
    keys = request.keys
    if len(keys) != 1:
        return multiget(session, request)
    key = keys[0]
    topology = session.topology
    pools = topology.read_pools
    if pools:
        # `_replica_for` in short, for the most frequent case of all
        pool = pools[0]
        replica: ReplicaServer | None = pool.servers[pool.place(key)]
        if (
            len(pools) == 1
            and replica.readable  # type: ignore[union-attr]
            and key not in replica.pending  # type: ignore[union-attr]
            and not session.read_rules
            and not replica.connection.full  # type: ignore[union-attr]
        ):
            session.service.reasons.replica += 1
        else:
            replica = _replica_for(session, key)
        if replica is not None:
            slot = ReplicaRead(session, request, key)
            session.slots.append(slot)
            replica.reads += 1
            replica.connection.send(request, slot)  # type: ignore[union-attr]  # readable means connected
            return True
    else:
        session.service.reasons.configured += 1
    if session.read_rules and _blocked(session, (key,)):
        return True
    return _read_at_primary(session, request, key)


def _read_at_primary(session: MemcachedSession, request: Request, key: bytes) -> bool:
    topology = session.topology
    server = topology.primary[topology.primary_place(key)]
    connection = server.connection
    if connection is None:
        server.down_misses += 1
        session.answer_now(MISS)
        return True
    if connection.full:
        return session.wait_for_group()
    read = Read(session, server)
    session.slots.append(read)
    server.reads += 1
    connection.send(request, read)
    return True


def _replica_for(session: MemcachedSession, key: bytes) -> ReplicaServer | None:
    """The replica server that serves the key; None, and the reason counted, where the primary has to."""
    reasons = session.service.reasons
    if session.read_rules:
        policy = session.policies.read(key)
        if policy.block is not None or policy.target is not Target.REPLICA:
            reasons.rule += 1
            return None
    pools = session.topology.read_pools
    pending = False
    for number in range(session.number, session.number + len(pools)):
        pool = pools[number % len(pools)]
        replica = pool.servers[pool.place(key)]
        if replica.readable and not replica.connection.full:  # type: ignore[union-attr]  # readable means connected
            if key not in replica.pending:
                reasons.replica += 1
                return replica
            pending = True
    if pending:
        reasons.pending += 1
    else:
        reasons.not_readable += 1
    return None


def _blocked(session: MemcachedSession, keys: tuple[bytes, ...]) -> bool:
    """Whether a rule refuses to read one of the keys; then that was answered."""
    for key in keys:
        block = session.policies.read(key).block
        if block is not None:
            session.answer_now(refused(block))
            return True
    return False


def gets(session: MemcachedSession, request: Request) -> bool:
    """At the primary: the CAS that counts is its own."""
    keys = request.keys
    if session.read_rules and _blocked(session, keys):
        return True
    if len(keys) != 1:
        return multiget(session, request)
    session.service.reasons.cas += 1
    return _read_at_primary(session, request, keys[0])


def multiget(session: MemcachedSession, request: Request) -> bool:
    """A get or gets of several keys, one request for each server that is asked."""
    topology = session.topology
    if any(server.connection is not None and server.connection.full for server in topology.primary):
        return session.wait_for_group()
    if session.read_rules and _blocked(session, request.keys):
        return True
    merge = Merge(session, request)
    session.slots.append(merge)
    at_replicas: dict[ReplicaServer, list[bytes]] = {}
    at_primary: list[bytes] = []
    keys = dict.fromkeys(request.keys)
    if request.verb == b"get" and topology.read_pools:
        for key in keys:
            replica = _replica_for(session, key)
            if replica is None:
                at_primary.append(key)
            else:
                at_replicas.setdefault(replica, []).append(key)
    else:
        at_primary.extend(keys)
        if request.verb == b"gets":
            session.service.reasons.cas += len(keys)
        else:
            session.service.reasons.configured += len(keys)
    for replica, some in at_replicas.items():
        merge.missing += 1
        replica.reads += len(some)
        replica.connection.send(encoder.get(some), ReplicaMergePart(merge, some))  # type: ignore[union-attr]
    merge.ask_primary(at_primary, request.verb)
    merge.ended()
    return True


def write(session: MemcachedSession, request: Request, instead: bytes | None = None) -> bool:
    """A write of one key. `instead` is what its client is told, whatever the server answers."""
    key = request.keys[0]
    policy = session.policies.write(key)
    topology = session.topology
    obstacle = refused(policy.block) if policy.block is not None else topology.refusal
    if obstacle is None:
        if topology.flush.frozen:
            return session.wait_for_group()
        if session.at_replica and _own_read(session, key):
            return session.wait_for_answers()
        server = topology.primary[topology.primary_place(key)]
        connection = server.connection
        if connection is None:
            obstacle = server.unreachable
        elif connection.full:
            return session.wait_for_group()
        else:
            answer: Answer = NOBODY
            if not request.noreply:
                slot = Slot(session)
                session.slots.append(slot)
                answer = slot if instead is None else Instead(slot, instead)
            topology.write(server, connection, request, policy.replicate, answer)
            return True
    if not request.noreply:
        session.answer_now(obstacle)
    return True


def _own_read(session: MemcachedSession, key: bytes) -> bool:
    return any(slot.reads(key) for slot in session.slots)


def get_and_touch(session: MemcachedSession, request: Request) -> bool:
    """Each key by itsession, since each is a write with a record of its own."""
    keys = tuple(dict.fromkeys(request.keys))
    if len(request.keys) == 1:
        return write(session, request)
    topology = session.topology
    policies = [session.policies.write(key) for key in keys]
    obstacle = next((refused(policy.block) for policy in policies if policy.block is not None), topology.refusal)
    if obstacle is not None:
        session.answer_now(obstacle)
        return True
    if topology.flush.frozen:
        return session.wait_for_group()
    if session.at_replica and any(_own_read(session, key) for key in keys):
        return session.wait_for_answers()
    servers = [topology.server_of(key) for key in keys]
    if any(server.connection is not None and server.connection.full for server in servers):
        return session.wait_for_group()
    merge = Merge(session, request)
    session.slots.append(merge)
    for key, server, policy in zip(keys, servers, policies, strict=True):
        merge.missing += 1
        part = TouchPart(merge)
        if server.connection is None:
            part.complete(server.unreachable)
        else:
            topology.write(server, server.connection, encoder.split(request, (key,)), policy.replicate, part)
    merge.ended()
    return True


def reject(session: MemcachedSession, rejected: Rejected) -> bool:
    """What the decoder refused; False if it is to be tried again."""
    if rejected.delete is not None:
        # A server deletes the old value when the new one is too large: so that nobody reads it as the new one.
        deletion = encoder.delete(rejected.delete)
        if not rejected.answer:
            deletion = Request(deletion.verb, deletion.keys, deletion.raw, noreply=True)
        if not write(session, deletion, rejected.answer):
            return False
    elif rejected.answer:
        session.answer_now(rejected.answer)
    session.service.rejected += 1
    if rejected.close:
        session.close_after_answers()
    return True


def quit_(session: MemcachedSession, request: Request) -> bool:
    """Ends the connection after the answers that are due."""
    session.close_after_answers()
    return True


def no_op(session: MemcachedSession, request: Request) -> bool:
    """A barrier: answered in its place."""
    session.answer_now(b"MN\r\n")
    return True


def refused(reason: str) -> bytes:
    """How a memcached client is told that a request is not carried out."""
    return f"SERVER_ERROR {reason}\r\n".encode()


HANDLERS: Final[dict[bytes, Callable[[MemcachedSession, Request], bool]]] = {
    b"get": get,
    b"gets": gets,
    b"gat": get_and_touch,
    b"gats": get_and_touch,
    b"mn": no_op,
    b"quit": quit_,
    **dict.fromkeys(
        (b"set", b"add", b"replace", b"cas", b"append", b"prepend", b"incr", b"decr", b"delete", b"touch"), write
    ),
}
"""By verb; what is not here goes to the session's task."""
