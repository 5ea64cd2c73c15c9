"""What is wrong with a configuration as a whole: contradictions, options not built yet, and warnings.

`contradictions` can never be meant; `unserved` is meant but not built yet, so that it is refused instead of silently
ignored; `warnings` are things that a person should know although the gateway runs with them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gateway.errors import ConfigError
from gateway.toml_lines import Place

if TYPE_CHECKING:
    from gateway.config import Address, Config, Listener, MemcachedGroup, MysqlGroup, RedisGroup

# Keys that mean something for listeners of one protocol only.
_MYSQL_LISTENER_KEYS = (
    "max_allowed_packet",
    "freshness_wait",
    "autocommit_off_reads",
    "local_infile",
    "max_unauthenticated",
    "log_in_failures",
)


def contradictions(config: Config) -> list[ConfigError]:
    """Everything that contradicts itself, in the order of the file."""
    found = [config.document.problem(place, message) for place, message in _contradictions(config)]
    return sorted(found, key=lambda problem: problem.line or 0)


def unserved(config: Config) -> list[str]:
    """`file:line: ... is not available in this version`, for each option that asks for a feature of a later one."""
    found = [
        config.document.problem(place, f"{what} is not available in this version")
        for place, what in sorted(_unserved(config), key=lambda each: config.document.line(each[0]))
    ]
    if config.listeners and all(listener.protocol == "redis" for listener in config.listeners):
        place = ("listener", 0, "protocol")
        found.append(config.document.problem(place, "Redis is not served yet, and there is no other listener"))
    return [str(problem) for problem in found]


def warnings(config: Config) -> list[str]:
    """`file:line: ...` for what does not keep the gateway from running."""
    found = [config.document.problem(place, message) for place, message in _warnings(config)]
    secrets = config.secrets()
    if config.gateway.token_key is not None:
        secrets.append(config.gateway.token_key)  # not needed before there are tokens
    for secret in secrets:
        try:
            secret.reveal()
        except ConfigError as error:
            found.append(error)
    return [str(problem) for problem in sorted(found, key=lambda problem: problem.line or 0)]


# ---------------------------------------------------------------- contradictions


def _contradictions(config: Config) -> Iterator[tuple[Place, str]]:
    if config.gateway.workers != 1:
        yield ("gateway", "workers"), "workers must be 1: more than one worker process comes in a later version"
    if config.admin.token is None and not config.admin.listen.is_loopback:
        yield ("admin", "listen"), f"admin.token is required, because {config.admin.listen} is not a loopback address"
    if not config.listeners:
        yield (), "there is no [[listener]]: nothing could connect"
    yield from _names(config)
    yield from _addresses(config)
    for index, listener in enumerate(config.listeners):
        yield from _listener(config, listener, ("listener", index))
    for index, group in enumerate(config.groups):
        place: Place = ("group", index)
        if group.engine == "mysql":
            yield from _mysql_group(group, place)
        elif group.engine == "memcached":
            yield from _memcached_group(group, place)
        else:
            yield from _members(group, place)


def _names(config: Config) -> Iterator[tuple[Place, str]]:
    for kind, things in (("listener", config.listeners), ("group", config.groups)):
        seen: dict[str, int] = {}
        for index, thing in enumerate(things):
            if not thing.name or not thing.name.isprintable():
                yield (kind, index, "name"), f"a {kind}'s name must not be empty"
            elif thing.name in seen:
                line = config.document.line((kind, seen[thing.name], "name"))
                yield (kind, index, "name"), f'there is a {kind} "{thing.name}" already, in line {line}'
            seen.setdefault(thing.name, index)


def _addresses(config: Config) -> Iterator[tuple[Place, str]]:
    taken: dict[str, str] = {str(config.admin.listen): "admin"}
    for index, listener in enumerate(config.listeners):
        address = str(listener.listen)
        if address in taken:
            yield ("listener", index, "listen"), f"{address} is the address of {taken[address]} already"
        taken.setdefault(address, f'listener "{listener.name}"')
    for place, server in _servers(config):
        if str(server) in taken and taken[str(server)] != "admin":
            yield place, f"{server} is where {taken[str(server)]} listens: the gateway would connect to itself"


def _servers(config: Config) -> Iterator[tuple[Place, Address]]:
    for index, group in enumerate(config.groups):
        if group.engine == "memcached":
            for name, pool in group.pools.items():
                for number, server in enumerate(pool.servers):
                    yield ("group", index, "pools", name, "servers", number), server.address
        else:
            for number, member in enumerate(group.members):
                yield ("group", index, "members", number), member.address


def _listener(config: Config, listener: Listener, place: Place) -> Iterator[tuple[Place, str]]:
    group = next((group for group in config.groups if group.name == listener.group), None)
    if group is None:
        known = ", ".join(group.name for group in config.groups) or "none"
        yield (*place, "group"), f'there is no group "{listener.group}"; known are {known}'
    elif group.engine != listener.protocol:
        yield (
            (*place, "protocol"),
            f'listener "{listener.name}" speaks {listener.protocol}, but its group "{group.name}" is {group.engine}',
        )
    if listener.protocol != "mysql":
        for key in _MYSQL_LISTENER_KEYS:
            if (*place, key) in config.document.lines:
                yield (*place, key), f'{key} is for mysql listeners; "{listener.name}" speaks {listener.protocol}'
    if listener.tls is not None and listener.tls.client_ca is None:
        client_certificates: Place = (*place, "tls", "client_certificates")
        if client_certificates in config.document.lines:
            yield client_certificates, "client_certificates means nothing without client_ca"
    if listener.log_in_failures.max and not (listener.log_in_failures.window and listener.log_in_failures.block):
        yield (*place, "log_in_failures"), "window and block must be more than 0; max = 0 blocks nobody"
    for number, network in enumerate(listener.proxy_protocol_from):
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            yield (*place, "proxy_protocol_from", number), f"not a network: {error}"


def _members(group: MysqlGroup | RedisGroup, place: Place) -> Iterator[tuple[Place, str]]:
    if not group.members:
        yield (*place, "members"), f'group "{group.name}" has no members'
    seen = set()
    for number, member in enumerate(group.members):
        if member.name in seen:
            yield (*place, "members", number), f'{member.name} is in group "{group.name}" twice'
        seen.add(member.name)
    if group.primary != "auto" and str(group.primary) not in seen:
        yield (*place, "primary"), f'primary {group.primary} is not among the members of "{group.name}"'


def _mysql_group(group: MysqlGroup, place: Place) -> Iterator[tuple[Place, str]]:
    yield from _members(group, place)
    tls = group.backend_tls
    if tls is not None:
        if (tls.cert is None) != (tls.key is None):
            yield (*place, "backend_tls"), "cert and key of backend_tls belong together"
        if tls.verify is False and tls.ca is not None:
            yield (*place, "backend_tls"), "backend_tls has a ca, but verify = false: nothing would be verified"
    if group.check_interval <= 0:
        yield (*place, "check_interval"), "check_interval must be more than 0"
    if group.min_replicas_to_write >= max(len(group.members), 1):
        yield (
            (*place, "min_replicas_to_write"),
            f"min_replicas_to_write is {group.min_replicas_to_write}, "
            f"but the group has {len(group.members) - 1} replicas: every write would be refused",
        )
    if group.pool.min_idle > group.pool.size:
        yield (*place, "pool", "min_idle"), f"min_idle {group.pool.min_idle} is more than the pool's size"
    if group.users == "backend" and group.proof_interval <= 0:
        yield (*place, "proof_interval"), "proof_interval must be more than 0"
    if group.users != "backend":
        if not group.users:
            yield (*place, "users"), "users is empty: nobody could log in"
        names = set()
        for number, user in enumerate(group.users):
            if not user.name:
                yield (*place, "users", number), "a user's name must not be empty: anonymous accounts cannot be used"
            if user.name in names:
                yield (*place, "users", number), f'there is a user "{user.name}" already'
            names.add(user.name)


def _memcached_group(group: MemcachedGroup, place: Place) -> Iterator[tuple[Place, str]]:
    known = ", ".join(group.pools) or "none"
    if group.primary not in group.pools:
        yield (*place, "primary"), f'there is no pool "{group.primary}"; known are {known}'
    seen_names = {group.primary}
    for number, name in enumerate(group.replicas):
        if name not in group.pools:
            yield (*place, "replicas", number), f'there is no pool "{name}"; known are {known}'
        elif name in seen_names:
            yield (*place, "replicas", number), f'pool "{name}" has a place in the group already'
        seen_names.add(name)
    if group.min_replicas_to_write > len(group.replicas):
        yield (
            (*place, "min_replicas_to_write"),
            f"min_replicas_to_write is {group.min_replicas_to_write}, "
            f"but the group has {len(group.replicas)} replicas: every write would be refused",
        )
    if group.replica_buffer_limit.soft > group.replica_buffer_limit.hard:
        yield (*place, "replica_buffer_limit"), "the soft limit is above the hard limit"
    pool_of: dict[str, str] = {}
    for name, pool in group.pools.items():
        if name not in seen_names:
            yield (*place, "pools", name), f'pool "{name}" is neither primary nor among the replicas'
        if not pool.servers:
            yield (*place, "pools", name, "servers"), f'pool "{name}" has no servers'
        ids: set[int] = set()
        for number, server in enumerate(pool.servers):
            at: Place = (*place, "pools", name, "servers", number)
            address = str(server.address)
            # kvproxy's own sample has one: emptying the backup would empty the primary (KV.md).
            if address in pool_of and pool_of[address] != name:
                yield at, f'{address} is in pool "{pool_of[address]}" too: a server holds one member\'s data only'
            elif address in pool_of:
                yield at, f'{address} is in pool "{name}" twice'
            pool_of.setdefault(address, name)
            server_id = server.id if server.id is not None else number + 1
            if server_id in ids:
                yield at, f'there is a server with id {server_id} in pool "{name}" already'
            ids.add(server_id)


# ---------------------------------------------------------------- later versions


def _unserved(config: Config) -> Iterator[tuple[Place, str]]:
    for index, listener in enumerate(config.listeners):
        place: Place = ("listener", index)
        if listener.protocol == "redis":
            continue
        if listener.tls is not None and listener.protocol != "mysql":
            yield (*place, "tls"), f"tls of {listener.protocol} listeners"
        if listener.proxy_protocol_from and listener.protocol != "mysql":
            yield (*place, "proxy_protocol_from"), f"proxy_protocol_from of {listener.protocol} listeners"
    for index, group in enumerate(config.groups):
        place = ("group", index)
        if group.engine == "mysql":
            yield from _unserved_mysql(group, place)
        elif group.engine == "memcached":
            yield from _unserved_memcached(group, place)


def _unserved_mysql(group: MysqlGroup, place: Place) -> Iterator[tuple[Place, str]]:
    if group.failover == "promote":
        yield (*place, "failover"), 'failover = "promote"'
    if group.balance != "least-busy":
        yield (*place, "balance"), f'balance = "{group.balance}"'
    if group.promote_unfenced:
        yield (*place, "promote_unfenced"), "promote_unfenced"


def _unserved_memcached(group: MemcachedGroup, place: Place) -> Iterator[tuple[Place, str]]:
    if group.journal != "off":
        yield (*place, "journal"), f'journal = "{group.journal}"'
    if group.failover == "auto":
        yield (*place, "failover"), 'failover = "auto"'
    if group.on_primary_server_down == "use-replica":
        yield (*place, "on_primary_server_down"), 'on_primary_server_down = "use-replica"'
    for key in ("serve_stale", "fill_on_miss", "replicate_evictions"):
        if getattr(group, key):
            yield (*place, key), key
    if group.primary_read_share != 0:
        yield (*place, "primary_read_share"), "primary_read_share"
    for name, pool in group.pools.items():
        at: Place = (*place, "pools", name)
        if pool.protocol == "binary":
            yield (*at, "protocol"), 'protocol = "binary"'
        for key in ("user", "password", "tls"):
            if getattr(pool, key) is not None:
                yield (*at, key), key


# ---------------------------------------------------------------- warnings


def _warnings(config: Config) -> Iterator[tuple[Place, str]]:
    if ("admin",) in config.document.lines:
        yield ("admin",), "the HTTP interface is not served in this version; gateway status asks by a unix socket"
    for index, listener in enumerate(config.listeners):
        if listener.protocol == "redis":
            yield ("listener", index), f'Redis is not served yet: listener "{listener.name}" stays closed'
    used = {listener.group for listener in config.listeners}
    for index, group in enumerate(config.groups):
        place: Place = ("group", index)
        if group.name not in used:
            yield place, f'no listener leads to group "{group.name}"'
        if group.engine == "mysql":
            if group.writers == "gateway":
                yield (*place, "writers"), "writers has no effect in this version: strong reads go to the primary"
            for number, member in enumerate(group.members):
                if member.zone:
                    yield (*place, "members", number, "zone"), "zone has no effect in this version"
        elif group.engine == "memcached":
            if not group.replicas:
                yield place, f'group "{group.name}" has no replicas'
            for name, pool in group.pools.items():
                if pool.zone:
                    yield (*place, "pools", name, "zone"), "zone has no effect in this version"
