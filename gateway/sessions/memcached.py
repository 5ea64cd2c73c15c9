"""One conversation with a memcached client: requests are routed and dispatched in the batch in which they came.

Every request with an answer has a slot; slots are answered in any order and sent in theirs. What cannot be finished in
the batch goes to the connection's own task: flush_all and what the gateway answers itself.

A session *stops* taking requests, and reads nothing more from its client, while one of these holds: a request is with
the task; a server connection that it needs is full; too many answers are due; the client does not read its answers; a
write would overtake a read of the same key that is at a replica, whose miss would then find the new value at the
primary. Whatever ends one of these calls `resume`, which looks at all of them.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Final

import structlog
import trio

from gateway.config import Listener
from gateway.net.endpoint import Endpoint
from gateway.net.lane import Lane
from gateway.net.requests import Requests
from gateway.protocol.memcached import encoder
from gateway.protocol.memcached.decoder import Message, RequestDecoder
from gateway.protocol.memcached.request import Rejected, Request
from gateway.routing.kv import KEY_OPERATIONS
from gateway.routing.operation import Effect
from gateway.routing.route import Target
from gateway.rules.compile import RuleSet
from gateway.rules.policy import KeyPolicies
from gateway.sessions.memcached_local import answer_locally
from gateway.sessions.memcached_slots import (
    MISS,
    Instead,
    Merge,
    MergePart,
    Read,
    ReplicaMergePart,
    ReplicaRead,
    Slot,
    TouchPart,
)
from gateway.topology.memcached import MemcachedTopology
from gateway.topology.memcached_servers import PrimaryServer, ReplicaServer
from gateway.topology.memcached_writes import NOBODY, Answer

SLOTS_MAX: Final = 1024  # answers due to one client; twemproxy has no limit, mcrouter 512 by default
SLOTS_LOW: Final = 256
CLIENT_BUDGET_BYTES: Final = 67_108_864  # values held for one client: 64 of the default largest size
REFUSAL: Final = b"SERVER_ERROR too many connections\r\n"

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Reasons:
    """How many keys were read where, and why there."""

    replica: int = 0  # nothing is pending for the key
    pending: int = 0  # at the primary: a write of it has not been applied at the replica yet, or is doubtful
    not_readable: int = 0  # at the primary: the replica is not connected, not in step, or being flushed
    cas: int = 0  # at the primary: gets
    rule: int = 0  # at the primary: by a rule
    configured: int = 0  # at the primary: read_from, or no replica pool serves
    missed: int = 0  # at the primary after a replica that missed


class MemcachedService:
    """What serves the connections of one listener."""

    def __init__(self, lane: Lane, listener: Listener, topology: MemcachedTopology, rules: RuleSet) -> None:
        self.lane = lane
        self.listener = listener
        self.topology = topology
        self.rules = rules
        self.sessions: set[MemcachedSession] = set()
        self.reasons = Reasons()
        self.rejected = 0
        self.over_budget = 0

    async def serve(self, sock: socket.socket) -> None:
        """Owns one client's connection until it ends."""
        try:
            session = MemcachedSession(self, sock)
        except OSError:
            return  # it has gone already
        self.sessions.add(session)
        try:
            await session.run()
        except Exception as error:
            log.error("a session failed", listener=self.listener.name, exc_info=error)
        finally:
            self.sessions.discard(session)
            session.close()

    def refusal(self) -> bytes:
        """What a client over max_connections is told."""
        return REFUSAL

    def use_rules(self, rules: RuleSet) -> None:
        """From the next request on."""
        self.rules = rules
        self.topology.rules_changed()
        for session in self.sessions:
            session.take_rules()

    def end_idle(self) -> None:
        """Closes the connections on which nothing is under way; within a batch."""
        for session in list(self.sessions):
            session.end_if_idle()

    def figures(self) -> dict[str, object]:
        """Counters of the listener, as plain values."""
        return {
            "listener": self.listener.name,
            "group": self.topology.name,
            "sessions": len(self.sessions),
            "reads": {field.name: getattr(self.reasons, field.name) for field in fields(Reasons)},
            "rejected_requests": self.rejected,
            "closed_over_budget": self.over_budget,
        }


class MemcachedSession:
    """One client connection."""

    __slots__ = (
        "_bytes_seen",
        "_client",
        "_closing",
        "_decoder",
        "_empty",
        "_eof",
        "_number",
        "_output_full",
        "_policies",
        "_queue",
        "_read_policy",
        "_requests",
        "_stopped",
        "at_replica",
        "closed",
        "endpoint",
        "held",
        "looking",
        "service",
        "slots",
        "topology",
        "write",
    )

    numbers = 0

    def __init__(self, service: MemcachedService, sock: socket.socket) -> None:
        self.service = service
        self.topology = service.topology
        peer = sock.getpeername()
        self._client = peer[0] if isinstance(peer, tuple) else ""  # its address, as rules match it
        self.slots: deque[Slot] = deque()
        self.at_replica = 0  # reads that are at a replica
        self.held = 0  # bytes of answers that wait for earlier ones
        self.closed = False
        self.looking = False  # `release` has more to do than to send
        self._number = MemcachedSession.numbers = MemcachedSession.numbers + 1
        self._decoder = RequestDecoder()
        self._queue: deque[Message] = deque()  # decoded and not taken
        self._stopped = False
        self._output_full = False
        self._eof = False
        self._closing = False
        self._bytes_seen = 0
        self._empty: trio.Event | None = None
        self.endpoint = Endpoint(service.lane, sock, self)
        self.endpoint.deadline = trio.current_time() + service.listener.idle_timeout
        self.write: Callable[[bytes], None] = self.endpoint.write
        self._requests: Requests[Request] = Requests(service.lane, self.resume)
        self._read_policy = False  # whether a rule may say something about a read
        self.take_rules()

    def take_rules(self) -> None:
        """Rules and configuration as they are for this connection."""
        rules, listener, client = self.service.rules, self.service.listener.name, self._client
        self._policies = KeyPolicies.of(rules, self.topology.config, listener, "", client)
        self._read_policy = bool(rules.key_rules(listener, "", client))

    # -- the task

    async def run(self) -> None:
        """Handles what is not finished in a batch, until the connection ends."""
        async for request in self._requests:
            await self._handle(request)
        await self.service.lane.lingered(self.endpoint.sock)

    async def _handle(self, request: Request) -> None:
        if KEY_OPERATIONS[request.verb].effect is Effect.FLUSH:
            await self._settled()
            answer = await self.topology.flush(request.exptime)
        else:
            answer = await answer_locally(self.service, request)
        if not request.noreply:
            self.service.lane.batch(lambda: self._complete_now(answer))

    async def _settled(self) -> None:
        """Returns when all earlier requests were answered."""
        while self.slots:
            self.looking = True
            self._empty = trio.Event()
            await self._empty.wait()

    def close(self) -> None:
        """Ends the connection, whatever is under way; answers that still come are thrown away."""
        self._end()
        self.endpoint.close()

    def end_if_idle(self) -> None:
        if not (self.closed or self.slots or self._queue or self._requests.with_task) and self._decoder.idle:
            self._finish()

    def _finish(self) -> None:
        self._end()
        self.endpoint.finish()

    def _end(self) -> None:
        self.closed = True
        self._queue.clear()
        self.slots.clear()
        self._requests.end()
        if self._empty is not None:
            self._empty.set()

    # -- what the endpoint calls

    def received(self, chunk: bytes) -> None:
        messages = self._decoder.decode(chunk)
        if messages:
            if self._stopped:
                self._queue.extend(messages)
            else:
                self._take(messages)

    def ended(self) -> None:
        self._eof = self.looking = True
        self._look()

    def lost(self, error: OSError) -> None:
        self._end()

    def overfull(self) -> None:
        self._output_full = True
        self.write = self._write_within_budget
        self._stop()

    def drained(self) -> None:
        self._output_full = False
        self.write = self.endpoint.write
        self.resume()

    def expired(self) -> None:
        """Looks whether anything came in the last `idle_timeout`: one look instead of a timer for every request."""
        if self.endpoint.bytes_in == self._bytes_seen and not self.slots:
            self._finish()
        else:
            self._bytes_seen = self.endpoint.bytes_in
            self.endpoint.deadline = self.service.lane.now + self.service.listener.idle_timeout

    def raised(self, error: Exception) -> None:
        self._requests.fail(error)

    # -- answers

    def hold(self, raw: bytes) -> None:
        """An answer, or part of one, has to wait."""
        self.held += len(raw)
        if self.held + self.endpoint.queued > CLIENT_BUDGET_BYTES:
            self._over_budget()

    def _write_within_budget(self, raw: bytes) -> None:
        self.endpoint.write(raw)
        if self.held + self.endpoint.queued > CLIENT_BUDGET_BYTES:
            self._over_budget()

    def _over_budget(self) -> None:
        if not self.closed:
            self.service.over_budget += 1
            log.warning("a client that does not read its answers is closed", listener=self.service.listener.name)
            self._end()
            self.endpoint.reset()

    def release(self) -> None:
        """Sends the answers that waited for one that was just sent."""
        slots = self.slots
        while slots:
            raw = slots[0].reply
            if raw is None:
                break
            slots.popleft()
            self.held -= len(raw)
            self.write(raw)
        if self.looking:
            self._look()

    def _look(self) -> None:
        """An answer was sent, or the client will send nothing more: may the session go on, or end?"""
        if self.closed:
            return
        if self._stopped and not self._closing:
            self.resume()
        if not self.slots:
            if self._empty is not None:
                self._empty.set()
            if (self._closing or self._eof) and not self._queue and not self._requests.with_task:
                self._finish()

    def _complete_now(self, raw: bytes) -> None:
        slot = Slot(self)
        self.slots.append(slot)
        slot.complete(raw)

    # -- stopping and going on

    def _stop(self) -> None:
        self._stopped = self.looking = True
        self.endpoint.pause_reading()

    def resume(self) -> None:
        """Goes on if nothing stands against it any more."""
        if self.closed or self._closing or self._requests.with_task or self._output_full or len(self.slots) > SLOTS_LOW:
            return
        self._stopped = False
        if self._queue:
            messages = list(self._queue)
            self._queue.clear()
            self._take(messages)
        if not self._stopped and not self.closed:
            self.looking = self._eof
            self.endpoint.resume_reading()
            if self._eof:
                self._look()

    def _decline(self, request: Request) -> bool:
        self._requests.decline(request)
        self._stop()
        return True

    def _wait_for_group(self) -> bool:
        """Stops before a request until a server connection takes more, or a flush has ended."""
        self._stop()
        self.topology.stall(self.resume, self.endpoint)
        return False

    def _wait_for_answers(self) -> bool:
        """Stops before a request until an answer was sent, whichever: then it is tried again."""
        self._stop()
        return False

    # -- requests

    def _take(self, messages: list[Message]) -> None:
        """Dispatches in order, as far as the session need not stop."""
        taken = 0
        handlers = _HANDLERS
        for message in messages:
            if type(message) is Request:
                handler = handlers.get(message.verb, MemcachedSession._decline)
                if not handler(self, message):
                    break
            elif not self._reject(message):  # type: ignore[arg-type]  # a message is one of two types
                break
            taken += 1
            if self._stopped:
                break
        if taken < len(messages):
            if not self._closing:
                self._queue.extendleft(reversed(messages[taken:]))
        elif len(self.slots) > SLOTS_MAX:
            self._stop()

    def _get(self, request: Request) -> bool:
        keys = request.keys
        if len(keys) != 1:
            return self._multiget(request)
        key = keys[0]
        topology = self.topology
        pools = topology.read_pools
        if pools:
            # `_replica_for` in short, for the most frequent case of all
            pool = pools[0]
            replica: ReplicaServer | None = pool.servers[pool.place(key)]
            if (
                len(pools) == 1
                and replica.readable  # type: ignore[union-attr]
                and key not in replica.pending  # type: ignore[union-attr]
                and not self._read_policy
                and not replica.connection.full  # type: ignore[union-attr]
            ):
                self.service.reasons.replica += 1
            else:
                replica = self._replica_for(key)
            if replica is not None:
                slot = ReplicaRead(self, request, key)
                self.slots.append(slot)
                replica.reads += 1
                replica.connection.send(request, slot)  # type: ignore[union-attr]  # readable means connected
                return True
        else:
            self.service.reasons.configured += 1
        if self._read_policy and self._blocked((key,)):
            return True
        server = topology.primary[topology.primary_place(key)]
        connection = server.connection
        if connection is None:
            server.down_misses += 1
            self._complete_now(MISS)
            return True
        if connection.full:
            return self._wait_for_group()
        read = Read(self, server)
        self.slots.append(read)
        server.reads += 1
        connection.send(request, read)
        return True

    def _replica_for(self, key: bytes) -> ReplicaServer | None:
        """The replica server that serves the key; None, and the reason counted, where the primary has to."""
        reasons = self.service.reasons
        if self._read_policy:
            policy = self._policies.read(key)
            if policy.block is not None or policy.target is not Target.REPLICA:
                reasons.rule += 1
                return None
        pools = self.topology.read_pools
        pending = False
        for number in range(self._number, self._number + len(pools)):
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

    def _blocked(self, keys: tuple[bytes, ...]) -> bool:
        """Whether a rule refuses to read one of the keys; then that was answered."""
        for key in keys:
            block = self._policies.read(key).block
            if block is not None:
                self._complete_now(refused(block))
                return True
        return False

    def _gets(self, request: Request) -> bool:
        keys = request.keys
        if self._read_policy and self._blocked(keys):
            return True
        if len(keys) != 1:
            return self._multiget(request)
        self.service.reasons.cas += 1
        server = self.topology.server_of(keys[0])
        connection = server.connection
        if connection is None:
            server.down_misses += 1
            self._complete_now(MISS)
            return True
        if connection.full:
            return self._wait_for_group()
        read = Read(self, server)
        self.slots.append(read)
        server.reads += 1
        connection.send(request, read)
        return True

    def _multiget(self, request: Request) -> bool:
        topology = self.topology
        if any(server.connection is not None and server.connection.full for server in topology.primary):
            return self._wait_for_group()
        if self._read_policy and self._blocked(request.keys):
            return True
        merge = Merge(self, request)
        self.slots.append(merge)
        at_replicas: dict[ReplicaServer, list[bytes]] = {}
        at_primary: list[bytes] = []
        keys = dict.fromkeys(request.keys)
        if request.verb == b"get" and topology.read_pools:
            for key in keys:
                replica = self._replica_for(key)
                if replica is None:
                    at_primary.append(key)
                else:
                    at_replicas.setdefault(replica, []).append(key)
        else:
            at_primary.extend(keys)
            if request.verb == b"gets":
                self.service.reasons.cas += len(keys)
            else:
                self.service.reasons.configured += len(keys)
        for replica, some in at_replicas.items():
            merge.missing += 1
            replica.reads += len(some)
            replica.connection.send(encoder.get(some), ReplicaMergePart(merge, some))  # type: ignore[union-attr]
        self.ask_primary(merge, at_primary, request.verb)
        merge.ended()
        return True

    def ask_primary(self, merge: Merge, keys: list[bytes], verb: bytes = b"get") -> None:
        """Adds the primary's answers for these keys to a multiget."""
        by_server: dict[PrimaryServer, list[bytes]] = {}
        for key in keys:
            by_server.setdefault(self.topology.server_of(key), []).append(key)
        for server, some in by_server.items():
            if server.connection is None:
                server.down_misses += len(some)
            else:
                merge.missing += 1
                server.reads += len(some)
                server.connection.send(encoder.get(some, verb), MergePart(merge, server, len(some)))

    def _write(self, request: Request, instead: bytes | None = None) -> bool:
        """A write of one key. `instead` is what its client is told, whatever the server answers."""
        key = request.keys[0]
        policy = self._policies.write(key)
        topology = self.topology
        obstacle = refused(policy.block) if policy.block is not None else topology.refusal
        if obstacle is None:
            if topology.frozen:
                return self._wait_for_group()
            if self.at_replica and self._reads(key):
                return self._wait_for_answers()
            server = topology.primary[topology.primary_place(key)]
            connection = server.connection
            if connection is None:
                obstacle = server.unreachable
            elif connection.full:
                return self._wait_for_group()
            else:
                answer: Answer = NOBODY
                if not request.noreply:
                    slot = Slot(self)
                    self.slots.append(slot)
                    answer = slot if instead is None else Instead(slot, instead)
                topology.write(server, connection, request, policy.replicate, answer)
                return True
        if not request.noreply:
            self._complete_now(obstacle)
        return True

    def _reads(self, key: bytes) -> bool:
        return any(slot.reads(key) for slot in self.slots)

    def _get_and_touch(self, request: Request) -> bool:
        """Each key by itself, since each is a write with a record of its own."""
        keys = tuple(dict.fromkeys(request.keys))
        if len(request.keys) == 1:
            return self._write(request)
        topology = self.topology
        policies = [self._policies.write(key) for key in keys]
        obstacle = next((refused(policy.block) for policy in policies if policy.block is not None), topology.refusal)
        if obstacle is not None:
            self._complete_now(obstacle)
            return True
        if topology.frozen:
            return self._wait_for_group()
        if self.at_replica and any(self._reads(key) for key in keys):
            return self._wait_for_answers()
        servers = [topology.server_of(key) for key in keys]
        if any(server.connection is not None and server.connection.full for server in servers):
            return self._wait_for_group()
        merge = Merge(self, request)
        self.slots.append(merge)
        for key, server, policy in zip(keys, servers, policies, strict=True):
            merge.missing += 1
            part = TouchPart(merge)
            if server.connection is None:
                part.complete(server.unreachable)
            else:
                topology.write(server, server.connection, encoder.split(request, (key,)), policy.replicate, part)
        merge.ended()
        return True

    def _reject(self, rejected: Rejected) -> bool:
        """What the decoder refused; False if it is to be tried again."""
        if rejected.delete is not None:
            # A server deletes the old value when the new one is too large: so that nobody reads it as the new one.
            deletion = encoder.delete(rejected.delete)
            if not rejected.answer:
                deletion = Request(deletion.verb, deletion.keys, deletion.raw, noreply=True)
            if not self._write(deletion, rejected.answer):
                return False
        elif rejected.answer:
            self._complete_now(rejected.answer)
        self.service.rejected += 1
        if rejected.close:
            self._close_after_answers()
        return True

    def _quit(self, request: Request) -> bool:
        self._close_after_answers()
        return True

    def _close_after_answers(self) -> None:
        self._closing = True
        self._queue.clear()
        self._stop()
        self._look()

    def _no_op(self, request: Request) -> bool:
        self._complete_now(b"MN\r\n")
        return True


def refused(reason: str) -> bytes:
    """How a memcached client is told that a request is not carried out."""
    return f"SERVER_ERROR {reason}\r\n".encode()


_Handler = Callable[[MemcachedSession, Request], bool]
_HANDLERS: Final[dict[bytes, _Handler]] = {
    b"get": MemcachedSession._get,
    b"gets": MemcachedSession._gets,
    b"gat": MemcachedSession._get_and_touch,
    b"gats": MemcachedSession._get_and_touch,
    b"mn": MemcachedSession._no_op,
    b"quit": MemcachedSession._quit,
    **dict.fromkeys(
        (b"set", b"add", b"replace", b"cas", b"append", b"prepend", b"incr", b"decr", b"delete", b"touch"),
        MemcachedSession._write,
    ),
}
