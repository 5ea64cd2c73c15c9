"""The composition root: builds everything from a configuration, owns the nurseries, and the order of start and stop.

Start: the lane, then the groups (their servers need not answer), then the listeners, then the status socket. Stop: the
listeners close, sessions end when they are between transactions or at the latest after `drain_timeout`, then the groups
ship what is pending, then the lane ends.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import structlog
import trio

from gateway.admin.explain import Question, serve_explain
from gateway.admin.status import serve_status
from gateway.config import Config, Listener, MemcachedGroup, MysqlGroup, load_config
from gateway.errors import ConfigError
from gateway.net.lane import Lane
from gateway.net.listener import Acceptor, bind_tcp, bind_unix
from gateway.protocol.mysql.auth import PasswordKey
from gateway.replication.observe import monitor_credentials
from gateway.routing.sql import Classifier
from gateway.rules.compile import RuleSet
from gateway.rules.load import read_rules
from gateway.rules.setting import Protocol, Setting
from gateway.rules.tests import failing_tests
from gateway.rules.verdict import Verdict
from gateway.sessions.memcached import MemcachedService
from gateway.sessions.mysql_service import MysqlService
from gateway.topology.backend_users import BackendUsers
from gateway.topology.memcached import MemcachedTopology
from gateway.topology.mysql import Topology
from gateway.topology.users import ListedUsers, Users

log = structlog.get_logger(__name__)

DRAIN_POLL_SECONDS = 0.05


def load_ruleset(config: Config) -> RuleSet:
    """The rules of the configuration's folder, their own tests passed. Raises ConfigError for the first problem."""
    files, problems = read_rules(config.gateway.rules)
    rules = RuleSet(files)
    problems = problems or failing_tests(files, Setting(rules, config))
    if problems:
        raise problems[0]
    return rules


def with_users_of(config: Config, changed: Config) -> Config:
    """`config` with the users that its groups have in `changed`; the log tells if something else has changed."""
    groups = []
    for group in config.groups:
        other = next((each for each in changed.groups if each.name == group.name), None)
        if (
            isinstance(group, MysqlGroup)
            and isinstance(other, MysqlGroup)
            and "backend" not in (group.users, other.users)
        ):
            group = msgspec.structs.replace(group, users=other.users)
        groups.append(group)
    if _without_users(config) != _without_users(changed):
        log.warning("only users, rules and certificates are reloaded; other changes of the file take a restart")
    return msgspec.structs.replace(config, groups=tuple(groups), document=changed.document)


def _without_users(config: Config) -> dict[str, object]:
    tables = config.document.tables
    groups = [{key: value for key, value in group.items() if key != "users"} for group in tables.get("group", [])]
    return {**tables, "group": groups}


@dataclass(slots=True, eq=False)
class Served:
    """One open listener and what serves it."""

    config: Listener
    service: MysqlService | MemcachedService
    acceptors: list[Acceptor]


class Gateway:
    """One gateway process: `await Gateway(config, rules).run()` until it is told to stop."""

    def __init__(self, config: Config, rules: RuleSet) -> None:
        self.config = config
        self.rules = rules
        self.lane = Lane()
        self.served: list[Served] = []
        self.started_at = time.time()
        self._sql_groups: dict[str, Topology] = {}
        self._users: dict[str, Users] = {}
        self._key_groups: dict[str, MemcachedTopology] = {}
        self._classifiers: dict[str, Classifier] = {}  # one per group, since each has its own catalogue
        self._draining = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serves until `stop` was called and everything has ended. Raises ConfigError if it cannot start."""
        async with trio.open_nursery() as lane_nursery:
            lane_nursery.start_soon(self.lane.run, name="lane")
            async with trio.open_nursery() as group_nursery:
                await self._start_groups(group_nursery)
                async with trio.open_nursery() as sessions:
                    self._open_listeners(sessions, group_nursery)
                    status = await sessions.start(serve_status, self.config.gateway.data_dir, self.status)
                    await sessions.start(serve_explain, self.config.gateway.data_dir, self.explainer)
                    log.info("ready", listeners=[str(one.config.listen) for one in self.served], status=str(status))
                    task_status.started()
                    await self._draining.wait()
                    await self._drain()
                    sessions.cancel_scope.cancel()
                for group in self._key_groups.values():
                    await group.drain()
                group_nursery.cancel_scope.cancel()
            lane_nursery.cancel_scope.cancel()

    async def _start_groups(self, nursery: trio.Nursery) -> None:
        wanted = {listener.group for listener in self.config.listeners if listener.protocol != "redis"}
        for group in self.config.groups:
            if group.name not in wanted:
                continue
            if isinstance(group, MysqlGroup):
                topology = Topology(self.lane, group, group.monitor.password.reveal())
                topology.catalogue.use_column_tables(self.rules.column_tables)
                self._sql_groups[group.name] = topology
                self._users[group.name] = self._users_of(group, topology)
            elif isinstance(group, MemcachedGroup):
                self._key_groups[group.name] = MemcachedTopology(group, self.lane)
        for users in self._users.values():
            if isinstance(users, BackendUsers):
                nursery.start_soon(users.run, name=f"prove credentials of {users.topology.name}")
        async with trio.open_nursery() as starting:
            for sql in self._sql_groups.values():
                starting.start_soon(nursery.start, sql.run)
            for keys in self._key_groups.values():
                starting.start_soon(nursery.start, keys.run)

    def _users_of(self, group: MysqlGroup, topology: Topology) -> Users:
        if group.users != "backend":
            return ListedUsers(topology, group.users)
        monitor = monitor_credentials(group.monitor.user, group.monitor.password.reveal())
        return BackendUsers(topology, self.lane, monitor, group.proof_interval)

    def _open_listeners(self, sessions: trio.Nursery, background: trio.Nursery) -> None:
        key: PasswordKey | None = None
        for listener in self.config.listeners:
            if listener.protocol == "redis":
                log.warning("Redis is not served in this version", listener=listener.name)
                continue
            group = self.config.group(listener.group)
            service: MysqlService | MemcachedService
            if isinstance(group, MysqlGroup):
                key = key or PasswordKey.generate()
                service = MysqlService(
                    self.lane,
                    listener,
                    self._sql_groups[group.name],
                    self._classifiers.setdefault(group.name, Classifier()),
                    self.rules,
                    self._users[group.name],
                    key,
                    background,
                )
            else:
                service = MemcachedService(self.lane, listener, self._key_groups[listener.group], self.rules)
            address = listener.listen
            sockets = [bind_unix(address.path, 0o666)] if address.path else bind_tcp(address.host, address.port)
            acceptors = [
                Acceptor(
                    self.lane,
                    sock,
                    sessions,
                    service.serve,
                    name=listener.name,
                    limit=listener.max_connections,
                    refusal=service.refusal,
                    room=service.entrance.room if isinstance(service, MysqlService) else None,
                )
                for sock in sockets
            ]
            if isinstance(service, MysqlService):
                service.entrance.on_room.extend(acceptor.resume for acceptor in acceptors)
            self.served.append(Served(listener, service, acceptors))

    def stop(self) -> None:
        """Begins to drain; `run` returns when it has ended."""
        self._draining.set()

    async def _drain(self) -> None:
        for served in self.served:
            for acceptor in served.acceptors:
                acceptor.close()
        log.info("draining", sessions=self._open_sessions(), seconds=self.config.gateway.drain_timeout)
        with trio.move_on_after(self.config.gateway.drain_timeout):
            while self._open_sessions():
                for served in self.served:
                    self.lane.batch(served.service.end_idle)
                await trio.sleep(DRAIN_POLL_SECONDS)
        if left := self._open_sessions():
            log.warning("closing sessions that did not end", sessions=left)

    def _open_sessions(self) -> int:
        return sum(acceptor.open for served in self.served for acceptor in served.acceptors)

    def reload(self) -> None:
        """Takes the rule files and the users as they are now, all or nothing, and the files of TLS; logs why not."""
        self._reload_tls()
        try:
            config = with_users_of(self.config, load_config(self.config.document.file))
            rules = load_ruleset(config)
            self._use_users(config)
        except ConfigError as error:
            log.error("nothing was reloaded", error=str(error))
            return
        self.config = config
        self.rules = rules
        for served in self.served:
            served.service.use_rules(rules)
        for topology in self._sql_groups.values():
            topology.catalogue.use_column_tables(rules.column_tables)
        log.info("rules reloaded", rules=len(rules.rules))

    def _reload_tls(self) -> None:
        """For connections opened from now on."""
        used = {
            f"listener {served.config.name}": served.service.tls
            for served in self.served
            if isinstance(served.service, MysqlService)
        }
        used.update({f"group {name}": group.tls for name, group in self._sql_groups.items()})
        for where, files in used.items():
            if files is None:
                continue
            try:
                files.reload()
            except ConfigError as error:
                log.error("certificates were not reloaded, those of before are kept", where=where, error=str(error))
            else:
                log.info("certificates reloaded", where=where)

    def _use_users(self, config: Config) -> None:
        """Raises ConfigError, before anything has changed, if one of the passwords cannot be read."""
        listed = [
            (users, group.users)
            for group in config.groups
            if isinstance(group, MysqlGroup)
            and isinstance(users := self._users.get(group.name), ListedUsers)
            and group.users != "backend"
        ]
        for _, wanted in listed:
            for user in wanted:
                user.passwords()
        for users, wanted in listed:
            users.use(wanted)
        for group in config.groups:
            if isinstance(group, MysqlGroup) and group.users != "backend" and group.name in self._sql_groups:
                self._sql_groups[group.name].use_users(group.users)
        for served in self.served:
            if isinstance(served.service, MysqlService):
                served.service.use_users()

    def explainer(self, question: Question) -> Callable[[bytes], Verdict]:
        """Explains statements as this gateway decides at the moment. Raises ConfigError for an unknown listener."""
        setting = Setting(self.rules, self.config)
        protocol: Protocol = "memcached" if question.protocol == "memcached" else "mysql"
        listener = setting.listener(protocol, question.listener)
        for served in self.served:
            service = served.service
            if listener is not None and served.config.name == listener.name and isinstance(service, MysqlService):
                return service.explainer(question.user, question.client, question.database).explain
        return setting.explainer(
            protocol,
            listener=question.listener,
            user=question.user,
            client=question.client,
            database=question.database,
        ).explain

    def status(self) -> dict[str, object]:
        """Everything that `gateway status --json` prints, as plain values."""
        now = trio.current_time()
        groups: dict[str, object] = {name: group.status(now) for name, group in self._sql_groups.items()}
        groups.update({name: group.status() for name, group in self._key_groups.items()})
        return {
            "name": self.config.gateway.name,
            "pid": os.getpid(),
            "uptime_seconds": round(time.time() - self.started_at, 1),
            "lane": {"sockets": len(self.lane), "batches": self.lane.batches, "events": self.lane.events},
            "rules": len(self.rules.rules),
            "listeners": [self._listener_status(served) for served in self.served],
            "groups": groups,
        }

    @staticmethod
    def _listener_status(served: Served) -> dict[str, object]:
        acceptors = served.acceptors
        return {
            "listener": served.config.name,
            "address": str(served.config.listen),
            "group": served.config.group,
            "protocol": served.config.protocol,
            **served.service.figures(),
            "connections": sum(acceptor.open for acceptor in acceptors),
            "accepted": sum(acceptor.accepted for acceptor in acceptors),
            "refused_connections": sum(acceptor.refused for acceptor in acceptors),
        }


async def run_until_signalled(config: Config, rules: RuleSet) -> None:
    """Runs a gateway that SIGTERM and SIGINT stop (a second one at once) and whose rules SIGHUP reloads."""
    gateway = Gateway(config, rules)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:

            async def obey() -> None:
                stopping = False
                async for number in signals:
                    if number == signal.SIGHUP:
                        gateway.reload()
                    elif stopping:
                        nursery.cancel_scope.cancel()
                    else:
                        stopping = True
                        gateway.stop()

            nursery.start_soon(obey, name="signals")
            await gateway.run()
            nursery.cancel_scope.cancel()
