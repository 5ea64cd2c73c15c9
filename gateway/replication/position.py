"""Positions: points in a group's history, partially ordered by `covers()`, for every engine.

A position of MySQL is a set of GTIDs, of MariaDB a sequence number per domain, of a memcached group an offset on the
timeline that a run id names. All are immutable: growing one gives a new one, and what did not change is shared.

They are read from text at every poll and after every write, so `parse` remembers recent texts and `add` has a short way
for the single GTID that an OK packet carries. Positions of different engines are never compared: that is a mistake in
the program and raises TypeError.

Sources: MySQL 9 manual, "GTID Format and Storage" (grammar of sets, tags, upper bound 2^63 - 1), and mysql bug 116789
for how servers print tags; MariaDB knowledge base, "Global Transaction ID" (domain and server id 32 bits, sequence
number 64 bits).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from functools import lru_cache
from typing import ClassVar, Self, TypeAlias

from gateway.errors import ProtocolError

# Texts that `parse` remembers per engine. A poll of an idle group gives the same few texts again and again.
PARSE_CACHE_TEXTS = 256

Interval: TypeAlias = tuple[int, int]  # first and last transaction number, both included
Intervals: TypeAlias = tuple[Interval, ...]  # ascending, disjoint, never adjacent
Source: TypeAlias = tuple[str, str]  # server uuid in lower case, tag in lower case ("" for none)


class Position(ABC):
    """A point in a group's history. `str()` gives the canonical text, which `parse` reads back to an equal position."""

    __slots__ = ()

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> Self:
        """Read a server's text; ProtocolError if it is malformed. The empty text is the start of all history."""

    @abstractmethod
    def covers(self, other: Position) -> bool:
        """Whether everything up to `other` is contained; TypeError for a position of another engine."""

    @abstractmethod
    def merge(self, other: Position) -> Self:
        """The least position that covers both; TypeError for a position of another engine."""

    @abstractmethod
    def add(self, gtid: str) -> Self:
        """`merge(parse(gtid))`, cheap for the single GTID that one write gives."""

    @abstractmethod
    def __bool__(self) -> bool:
        """False only for the start of all history, which every position covers."""


def _different(one: Position, other: Position) -> TypeError:
    return TypeError(f"cannot compare a {type(one).__name__} with a {type(other).__name__}")


# ---------------------------------------------------------------- MySQL

_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\Z")
_TAG = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,31}\Z")
_NUMBER = re.compile(r"[0-9]{1,19}\Z")
_MAX_TRANSACTION = 2**63 - 1


def _number(text: str, whole: str) -> int:
    if not _NUMBER.match(text):
        raise ProtocolError(f"malformed GTID set {whole[:200]!r}: {text[:60]!r} is not a transaction number")
    number = int(text)
    if not 1 <= number < _MAX_TRANSACTION:
        raise ProtocolError(f"malformed GTID set {whole[:200]!r}: transaction number {number} is out of range")
    return number


def _normal(intervals: list[Interval]) -> Intervals:
    """Sort, and join what overlaps or touches."""
    intervals.sort()
    joined: list[Interval] = []
    for first, last in intervals:
        if joined and first <= joined[-1][1] + 1:
            if last > joined[-1][1]:
                joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return tuple(joined)


def _contains(outer: Intervals, inner: Intervals) -> bool:
    if len(outer) == 1:
        # The usual case: a server without gaps.
        return outer[0][0] <= inner[0][0] and inner[-1][1] <= outer[0][1]
    for first, last in inner:
        at = bisect_right(outer, (first, _MAX_TRANSACTION)) - 1
        if at < 0 or outer[at][1] < last:
            return False
    return True


def _insert(intervals: Intervals, number: int) -> Intervals:
    """`intervals` with one more number; the end of the last interval, where new GTIDs arrive, is tried first."""
    first, last = intervals[-1]
    if number == last + 1:
        return (*intervals[:-1], (first, number))
    if number > last:
        return (*intervals, (number, number))
    if number >= first:
        return intervals
    if _contains(intervals, ((number, number),)):
        return intervals
    return _normal([*intervals, (number, number)])


class MysqlGtidSet(Position):
    """A set of MySQL GTIDs: per server uuid and tag (MySQL 8.3 and later), intervals of transaction numbers."""

    __slots__ = ("_hash", "_sources")
    _sources: dict[Source, Intervals]  # no empty intervals; never changed once the object is made

    EMPTY: ClassVar[MysqlGtidSet]

    def __init__(self, sources: dict[Source, Intervals]) -> None:
        """Use `parse`; `sources` must be normal already and is not copied."""
        self._sources = sources
        self._hash: int | None = None

    @classmethod
    def parse(cls, text: str) -> MysqlGtidSet:
        """`uuid[:tag]:n[-m][:n[-m]]...[:tag:...],...` with the blanks and newlines that servers print."""
        return _parse_mysql(text)

    def __str__(self) -> str:
        parts: list[str] = []
        uuid_before = None
        for (uuid, tag), intervals in sorted(self._sources.items()):
            text = ":".join(str(first) if first == last else f"{first}-{last}" for first, last in intervals)
            if uuid == uuid_before:
                # Within one uuid the untagged numbers come first, then every tag with its own, as servers print it.
                parts[-1] += f":{tag}:{text}"
            else:
                parts.append(f"{uuid}:{tag}:{text}" if tag else f"{uuid}:{text}")
            uuid_before = uuid
        return ",".join(parts)

    def __repr__(self) -> str:
        return f"MysqlGtidSet({str(self)!r})"

    def __bool__(self) -> bool:
        return bool(self._sources)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MysqlGtidSet):
            return NotImplemented
        return self._sources == other._sources

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self._sources.items()))
        return self._hash

    def covers(self, other: Position) -> bool:
        """Superset or equal."""
        if other is self:
            return True
        if not isinstance(other, MysqlGtidSet):
            raise _different(self, other)
        mine = self._sources
        for source, intervals in other._sources.items():
            own = mine.get(source)
            if own is None or not (own is intervals or _contains(own, intervals)):
                return False
        return True

    def merge(self, other: Position) -> MysqlGtidSet:
        """The union."""
        if not isinstance(other, MysqlGtidSet):
            raise _different(self, other)
        if self.covers(other):
            return self
        if other.covers(self):
            return other
        union = dict(self._sources)
        for source, intervals in other._sources.items():
            own = union.get(source)
            union[source] = intervals if own is None else _normal([*own, *intervals])
        return MysqlGtidSet(union)

    def add(self, gtid: str) -> MysqlGtidSet:
        """With the GTIDs of one write: usually `uuid:n`, but any set that OWN_GTID reports is taken."""
        uuid, _, number = gtid.partition(":")
        if not (number.isascii() and number.isdigit()):
            return self.merge(_parse_mysql(gtid))
        if not _UUID.match(uuid):
            raise ProtocolError(f"malformed GTID {gtid[:200]!r}")
        return self._with((uuid.lower(), ""), _number(number, gtid))

    def _with(self, source: Source, number: int) -> MysqlGtidSet:
        own = self._sources.get(source)
        grown = ((number, number),) if own is None else _insert(own, number)
        if grown is own:
            return self
        return MysqlGtidSet({**self._sources, source: grown})

    @property
    def interval_count(self) -> int:
        """How many intervals it has, the measure of its memory. Writes of one session leave gaps; see `merge`."""
        return sum(map(len, self._sources.values()))

    @property
    def sources(self) -> dict[Source, Intervals]:
        """(uuid, tag) -> intervals, a copy."""
        return dict(self._sources)


@lru_cache(maxsize=PARSE_CACHE_TEXTS)
def _parse_mysql(text: str) -> MysqlGtidSet:
    found: dict[Source, list[Interval]] = {}
    if not text.strip():
        return MysqlGtidSet.EMPTY
    for uuid_set in text.split(","):
        fields = [field.strip() for field in uuid_set.split(":")]
        uuid = fields[0]
        if not _UUID.match(uuid) or len(fields) < 2:
            raise ProtocolError(f"malformed GTID set {text[:200]!r}: {uuid_set.strip()[:80]!r} is no uuid with numbers")
        uuid, tag = uuid.lower(), ""
        tag_without_number = False
        for field in fields[1:]:
            if field[:1].isdigit():
                first_text, dash, last_text = field.partition("-")
                first = _number(first_text.strip(), text)
                last = _number(last_text.strip(), text) if dash else first
                if last < first:
                    raise ProtocolError(f"malformed GTID set {text[:200]!r}: {field!r} ends before it begins")
                found.setdefault((uuid, tag), []).append((first, last))
                tag_without_number = False
            elif _TAG.match(field) and not tag_without_number:
                tag, tag_without_number = field.lower(), True
            else:
                raise ProtocolError(f"malformed GTID set {text[:200]!r}: {field[:60]!r} is neither number nor tag")
        if tag_without_number:
            raise ProtocolError(f"malformed GTID set {text[:200]!r}: tag {tag!r} has no numbers")
    return MysqlGtidSet({source: _normal(intervals) for source, intervals in found.items()})


MysqlGtidSet.EMPTY = MysqlGtidSet({})


# ---------------------------------------------------------------- MariaDB

_MARIADB_GTID = re.compile(r"([0-9]{1,10})-([0-9]{1,10})-([0-9]{1,20})\Z")


class MariadbGtidPosition(Position):
    """A MariaDB position: per replication domain the last sequence number, and the server that wrote it.

    The server id is kept for printing and takes no part in comparisons: sequence numbers of a domain go on across
    servers (which is also why a position says nothing across a failover; tokens carry the epoch for that).
    """

    __slots__ = ("_domains",)
    _domains: dict[int, tuple[int, int]]  # domain -> (sequence number, server id); never changed once made

    EMPTY: ClassVar[MariadbGtidPosition]

    def __init__(self, domains: dict[int, tuple[int, int]]) -> None:
        """Use `parse`; `domains` is not copied."""
        self._domains = domains

    @classmethod
    def parse(cls, text: str) -> MariadbGtidPosition:
        """`domain-server-sequence,...`; of a domain that comes twice (gtid_binlog_state) the highest counts."""
        return _parse_mariadb(text)

    def __str__(self) -> str:
        return ",".join(f"{domain}-{server}-{seq}" for domain, (seq, server) in sorted(self._domains.items()))

    def __repr__(self) -> str:
        return f"MariadbGtidPosition({str(self)!r})"

    def __bool__(self) -> bool:
        return bool(self._domains)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MariadbGtidPosition):
            return NotImplemented
        mine, theirs = self._domains, other._domains
        return mine.keys() == theirs.keys() and all(mine[domain][0] == theirs[domain][0] for domain in mine)

    def __hash__(self) -> int:
        return hash(frozenset((domain, seq) for domain, (seq, _) in self._domains.items()))

    def covers(self, other: Position) -> bool:
        """In every domain of the other at least as far."""
        if other is self:
            return True
        if not isinstance(other, MariadbGtidPosition):
            raise _different(self, other)
        mine = self._domains
        for domain, (seq, _) in other._domains.items():
            own = mine.get(domain)
            if own is None or own[0] < seq:
                return False
        return True

    def merge(self, other: Position) -> MariadbGtidPosition:
        """Per domain the further one."""
        if not isinstance(other, MariadbGtidPosition):
            raise _different(self, other)
        if self.covers(other):
            return self
        furthest = dict(self._domains)
        for domain, reached in other._domains.items():
            own = furthest.get(domain)
            if own is None or own[0] < reached[0]:
                furthest[domain] = reached
        return MariadbGtidPosition(furthest)

    def add(self, gtid: str) -> MariadbGtidPosition:
        """With the value of `last_gtid` that one write gives."""
        return self.merge(_parse_mariadb(gtid))

    @property
    def domains(self) -> dict[int, tuple[int, int]]:
        """Domain id -> (server id, sequence number), a copy."""
        return {domain: (server, seq) for domain, (seq, server) in self._domains.items()}


@lru_cache(maxsize=PARSE_CACHE_TEXTS)
def _parse_mariadb(text: str) -> MariadbGtidPosition:
    domains: dict[int, tuple[int, int]] = {}
    if not text.strip():
        return MariadbGtidPosition.EMPTY
    for gtid in text.split(","):
        fields = _MARIADB_GTID.match(gtid.strip())
        if not fields:
            raise ProtocolError(f"malformed MariaDB position {text[:200]!r}: {gtid.strip()[:80]!r} is no GTID")
        domain, server, seq = map(int, fields.groups())
        if domain >= 2**32 or server >= 2**32 or seq >= 2**64:
            raise ProtocolError(f"malformed MariaDB position {text[:200]!r}: {gtid.strip()!r} is out of range")
        if domain not in domains or domains[domain][0] < seq:
            domains[domain] = (seq, server)
    return MariadbGtidPosition(domains)


MariadbGtidPosition.EMPTY = MariadbGtidPosition({})


# ---------------------------------------------------------------- the log of a memcached group

_RUN_ID = re.compile(r"[0-9a-zA-Z]{1,64}\Z")


class LogPosition(Position):
    """A point in a memcached group's log: `offset` records of the timeline `run_id` have been applied.

    Another run id is another timeline, of which a position covers nothing. No position covers two timelines, so merging
    them raises ValueError: whoever starts a new timeline starts new tokens.
    """

    __slots__ = ("offset", "run_id")
    offset: int
    run_id: str

    EMPTY: ClassVar[LogPosition]

    def __init__(self, run_id: str, offset: int) -> None:
        self.run_id = run_id
        self.offset = offset

    @classmethod
    def parse(cls, text: str) -> LogPosition:
        """`run_id:offset`."""
        if not text:
            return LogPosition.EMPTY
        run_id, colon, offset = text.partition(":")
        if not (colon and _RUN_ID.match(run_id) and _NUMBER.match(offset)):
            raise ProtocolError(f"malformed log position {text[:200]!r}: expected run_id:offset")
        return LogPosition(run_id, int(offset))

    def __str__(self) -> str:
        return f"{self.run_id}:{self.offset}" if self.run_id else ""

    def __repr__(self) -> str:
        return f"LogPosition({self.run_id!r}, {self.offset})"

    def __bool__(self) -> bool:
        return bool(self.run_id)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LogPosition):
            return NotImplemented
        return self.run_id == other.run_id and self.offset == other.offset

    def __hash__(self) -> int:
        return hash((self.run_id, self.offset))

    def covers(self, other: Position) -> bool:
        """On the same timeline, and at least as far."""
        if not isinstance(other, LogPosition):
            raise _different(self, other)
        return not other.run_id or (self.run_id == other.run_id and self.offset >= other.offset)

    def merge(self, other: Position) -> LogPosition:
        """The further one; ValueError if they are on different timelines."""
        if not isinstance(other, LogPosition):
            raise _different(self, other)
        if self.covers(other):
            return self
        if other.covers(self):
            return other
        raise ValueError(f"{self} and {other} are on different timelines: no position covers both")

    def add(self, gtid: str) -> LogPosition:
        """`merge(parse(gtid))`."""
        return self.merge(LogPosition.parse(gtid))


LogPosition.EMPTY = LogPosition("", 0)
