"""What held of all that the demo's clients checked, and what the servers themselves say in the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pymysql
from pymemcache.exceptions import MemcacheError

from gateway.demo.cache import compare
from gateway.demo.course import Course
from gateway.demo.mysql_servers import APP
from gateway.demo.shop import PRIMARY_ID, TABLES, connect
from gateway.errors import GatewayError


@dataclass(frozen=True)
class Check:
    """One thing that must hold; `words` say by what it was seen, or what was wrong."""

    name: str
    held: bool
    words: str


def judge(course: Course) -> list[Check]:
    """All checks of a course whose clients have ended; its servers and its gateway still run."""
    checks = [*_clients(course), *_replica_down(course)]
    try:
        course.settle()
        checks += [*_shop(course), *_cache(course)]
        checks.append(_log(course))
    except (GatewayError, pymysql.MySQLError, MemcacheError, OSError) as error:
        checks.append(Check("servers and gateway answer to the end", False, f"{type(error).__name__}: {error}"))
    return checks


def _log(course: Course) -> Check:
    lines = course.gateway.log.read_text(errors="replace").splitlines()
    errors = [line for line in lines if "[error" in line or "[critical" in line or line.startswith("Traceback")]
    return Check("the gateway's log has no error", not errors, "; ".join(errors[:3]) or f"{len(lines)} lines")


def _clients(course: Course) -> Iterator[Check]:
    failed = [f"{client.name}: {client.failure}" for client in course.clients if client.failure is not None]
    held = course.tally().held
    yield Check("nothing failed", not failed, "; ".join(failed) or f"{len(course.clients)} clients")
    for name in sorted(held):
        yield Check(name, not any(name in words for words in failed), f"{held[name]} checks")


def _shop(course: Course) -> Iterator[Check]:
    reads = course.tally().reads
    counts = ", ".join(f"{server.address} {reads[server.server_id]}" for server in course.group.servers)
    yield Check("every replica served reads", all(reads[one.server_id] for one in course.group.replicas), counts)
    elsewhere = sum(
        int(
            course.group.primary.query(f"SELECT COUNT(*) FROM shop.{table} WHERE written_on <> %s", (PRIMARY_ID,))[0][0]
        )
        for table in ("orders", "customers")
    )
    words = f"{course.tally().writes[PRIMARY_ID]} of the clients, {elsewhere} rows of other servers"
    yield Check("writes ran on the primary only", elsewhere == 0, words)
    checksums = f"CHECKSUM TABLE {', '.join(f'shop.{table}' for table in TABLES)}"
    contents = [server.query(checksums) for server in course.group.servers]
    same = all(content == contents[0] for content in contents)
    yield Check("the replicas have what the primary has", same, checksums if same else f"{contents}")
    yield _rule_refuses(course)


def _rule_refuses(course: Course) -> Check:
    name = "a rule refuses a DELETE without WHERE"
    connection = connect(course.gateway, APP)
    try:
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM orders")
    except pymysql.MySQLError as error:
        return Check(name, "WHERE" in str(error), str(error))
    finally:
        connection.close()
    return Check(name, False, "it was carried out")


def _replica_down(course: Course) -> Iterator[Check]:
    address = course.down.address
    failed = [
        f"{client.name}: {client.failure}"
        for client in course.clients
        if client.failure is not None and course.down_at <= client.failed_at <= course.back_at
    ]
    words = "; ".join(failed) or f"{course.reads_meanwhile} SQL reads meanwhile"
    yield Check(f"nothing failed while {address} was down", not failed and course.reads_meanwhile > 0, words)
    words = f"{course.reads_after_return} SQL reads"
    yield Check(f"{address} serves again since it came back", course.reads_after_return > 0, words)


def _cache(course: Course) -> Iterator[Check]:
    values = {key: value for client in course.cache for key, value in client.values.items()}
    differing = compare(course.pools, values)
    words = "; ".join(differing[:5]) or f"{len(values)} keys"
    yield Check("the memcached replicas equal the primary key by key", not differing, words)
    groups = course.watch.last["groups"]
    servers = [server for pool in groups["cache"]["replicas"] for server in pool["servers"]]
    words = ", ".join(f"{server['server']} {server['reads']}" for server in servers)
    yield Check("every memcached replica server served reads", all(server["reads"] for server in servers), words)
    ledgers = [server["ledger"] for server in servers]
    applied = all(ledger["applied"] == ledger["accepted"] for ledger in ledgers)
    words = ", ".join(f"{server['server']} {server['ledger']['applied']}" for server in servers)
    yield Check("every accepted memcached write was applied", applied, words if applied else f"{ledgers}")
