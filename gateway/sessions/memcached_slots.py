"""The places of a client's answers: one slot per request, completed in any order, sent in the order of the requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.protocol.memcached import encoder
from gateway.protocol.memcached.reply import Code, Reply, merge_blocks
from gateway.protocol.memcached.request import Request

if TYPE_CHECKING:
    from gateway.sessions.memcached_session import MemcachedSession
    from gateway.topology.memcached_servers import PrimaryServer

MISS: Final = b"END\r\n"


class Slot:
    """One answer. `reply` is None until it is known."""

    __slots__ = ("reply", "session")

    def __init__(self, session: MemcachedSession) -> None:
        self.session = session
        self.reply: bytes | None = None

    def reads(self, key: bytes) -> bool:
        """Whether the key is being read at a replica for it."""
        return False

    def complete(self, raw: bytes) -> None:
        """The answer is known: it is sent as soon as all before it were."""
        session = self.session
        slots = session.slots
        if slots and slots[0] is self:
            slots.popleft()
            if not slots and not session.looking:
                session.send(raw)
            else:
                session.write(raw)
                if session.looking or slots[0].reply is not None:
                    session.release()
        else:
            self.reply = raw
            session.hold(raw)


class Read(Slot):
    """A get of one key at the primary; its answer is passed on as it came."""

    __slots__ = ("server",)

    writes = False

    def __init__(self, session: MemcachedSession, server: PrimaryServer) -> None:
        self.session = session
        self.reply = None
        self.server = server

    def answered(self, reply: Reply) -> None:
        # as `complete`, for nine of ten answers
        session = self.session
        slots = session.slots
        if slots and slots[0] is self:
            slots.popleft()
            if not slots and not session.looking:
                session.send(reply.raw)
            else:
                session.write(reply.raw)
                if session.looking or slots[0].reply is not None:
                    session.release()
        else:
            self.reply = reply.raw
            session.hold(reply.raw)

    def lost(self, reason: str) -> None:
        self.server.down_misses += 1
        self.complete(MISS)


class ReplicaRead(Slot):
    """A get of one key at a replica. A miss, an error and a loss are asked again at the primary."""

    __slots__ = ("reading", "request")

    writes = False

    def __init__(self, session: MemcachedSession, request: Request, key: bytes) -> None:
        self.session = session
        self.reply = None
        self.request = request
        self.reading: bytes | None = key
        session.at_replica += 1

    def reads(self, key: bytes) -> bool:
        return self.reading == key

    def answered(self, reply: Reply) -> None:
        session = self.session
        session.at_replica -= 1
        if reply.code is not Code.VALUES:
            self._ask_again()
            return
        self.reading = None
        slots = session.slots
        if slots and slots[0] is self:
            slots.popleft()
            if not slots and not session.looking:
                session.send(reply.raw)
            else:
                session.write(reply.raw)
                if session.looking or slots[0].reply is not None:
                    session.release()
        else:
            self.reply = reply.raw
            session.hold(reply.raw)

    def lost(self, reason: str) -> None:
        self.session.at_replica -= 1
        self._ask_again()

    def _ask_again(self) -> None:
        session = self.session
        server = session.topology.server_of(self.request.keys[0])
        self.reading = None
        session.service.reasons.missed += 1
        if server.connection is None:
            server.down_misses += 1
            self.complete(MISS)
        else:
            server.reads += 1
            server.connection.send(self.request, AskedAgain(self, server))


class AskedAgain:
    """The second question of a slot."""

    __slots__ = ("server", "slot")

    writes = False

    def __init__(self, slot: Slot, server: PrimaryServer) -> None:
        self.slot = slot
        self.server = server

    def answered(self, reply: Reply) -> None:
        self.slot.complete(reply.raw)

    def lost(self, reason: str) -> None:
        self.server.down_misses += 1
        self.slot.complete(MISS)


class Merge(Slot):
    """A multiget: the blocks of its parts, in the order of the keys that the client asked for."""

    __slots__ = ("blocks", "error", "held", "keys", "missing")

    def __init__(self, session: MemcachedSession, request: Request) -> None:
        self.session = session
        self.reply = None
        self.keys = request.keys
        self.held = 0
        self.blocks: dict[bytes, bytes] = {}
        self.missing = 1  # parts on their way, and the one that is being dispatched
        self.error: bytes | None = None

    def reads(self, key: bytes) -> bool:
        return self.missing > 0 and key in self.keys

    def part(self, reply: Reply | None) -> None:
        """An answer came; None stands for a server that could not be asked, whose keys are misses."""
        if reply is not None:
            if reply.code is Code.VALUES:
                self.blocks.update(reply.blocks())
                self.hold(reply.raw)
            elif reply.failed:
                self.error = reply.raw
        self.ended()

    def ask_primary(self, keys: list[bytes], verb: bytes = b"get") -> None:
        """Sends one part to each primary server that owns some of these keys."""
        by_server: dict[PrimaryServer, list[bytes]] = {}
        for key in keys:
            by_server.setdefault(self.session.topology.server_of(key), []).append(key)
        for server, some in by_server.items():
            if server.connection is None:
                server.down_misses += len(some)
            else:
                self.missing += 1
                server.reads += len(some)
                server.connection.send(encoder.get(some, verb), MergePart(self, server, len(some)))

    def hold(self, raw: bytes) -> None:
        """Keeps part of the answer."""
        self.held += len(raw)
        self.session.hold(raw)

    def ended(self) -> None:
        """One part less."""
        self.missing -= 1
        if not self.missing:
            self.session.held -= self.held
            self.complete(self.error if self.error is not None else merge_blocks(self.keys, self.blocks))


class MergePart:
    """The keys of a multiget that go to one primary server."""

    __slots__ = ("count", "merge", "server")

    writes = False

    def __init__(self, merge: Merge, server: PrimaryServer, count: int) -> None:
        self.merge = merge
        self.server = server
        self.count = count

    def answered(self, reply: Reply) -> None:
        self.merge.part(reply)

    def lost(self, reason: str) -> None:
        self.server.down_misses += self.count
        self.merge.part(None)


class ReplicaMergePart:
    """The keys of a multiget that go to one replica server; those that it misses are asked again at the primary."""

    __slots__ = ("keys", "merge")

    writes = False

    def __init__(self, merge: Merge, keys: list[bytes]) -> None:
        self.merge = merge
        self.keys = keys
        merge.session.at_replica += 1

    def answered(self, reply: Reply) -> None:
        self._ended(reply if reply.code is Code.VALUES else None)

    def lost(self, reason: str) -> None:
        self._ended(None)

    def _ended(self, reply: Reply | None) -> None:
        merge = self.merge
        session = merge.session
        session.at_replica -= 1
        if reply is not None:
            blocks = reply.blocks()
            if len(blocks) < len(self.keys):
                found = {key for key, _ in blocks}
                missed = [key for key in self.keys if key not in found]
                session.service.reasons.missed += len(missed)
                merge.ask_primary(missed)
        else:
            session.service.reasons.missed += len(self.keys)
            merge.ask_primary(self.keys)
        merge.part(reply)


class TouchPart:
    """One key of a gat; as the answer of a write."""

    __slots__ = ("merge",)

    def __init__(self, merge: Merge) -> None:
        self.merge = merge

    def complete(self, raw: bytes) -> None:
        merge = self.merge
        if raw.startswith(b"VALUE "):
            merge.blocks[raw.split(b" ", 2)[1]] = raw[: -len(MISS)]
            merge.hold(raw)
        elif raw != MISS:
            merge.error = raw
        merge.ended()


class Instead:
    """Gives a slot another answer than the server's."""

    __slots__ = ("raw", "slot")

    def __init__(self, slot: Slot, raw: bytes) -> None:
        self.slot = slot
        self.raw = raw

    def complete(self, raw: bytes) -> None:
        self.slot.complete(self.raw)
