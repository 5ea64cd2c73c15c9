"""Proofs of `users = "backend"`, asked of a real primary by log-ins that the test lets through one at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha1
from pathlib import Path
from typing import Any

import pytest
import trio
from backend_accounts import REMOTE, account, is_mysql, may_read_accounts

from gateway.backends.mysql import Credentials, Passwords
from gateway.backends.mysql_log_in import log_in
from gateway.config import MysqlGroup as Settings
from gateway.config import load_config
from gateway.demo.mysql_servers import MONITOR, MysqlGroup
from gateway.errors import BackendRefused, Refused
from gateway.net.lane import Lane
from gateway.protocol.mysql.auth import Password, Sha1
from gateway.protocol.mysql.greeting import raw
from gateway.replication.observe import monitor_credentials
from gateway.topology import backend_users
from gateway.topology.backend_users import PASSWORDS_KEPT, BackendUsers
from gateway.topology.mysql import Topology

pytestmark = pytest.mark.servers

SECONDS = 30.0


@asynccontextmanager
async def users_of(group: MysqlGroup, folder: Path, interval: float = 60.0) -> AsyncIterator[BackendUsers]:
    """The users of a group's primary, whose background task does not run."""
    group.primary.query(f"GRANT {may_read_accounts(group)} TO '{MONITOR.user}'@'%'")
    file = folder / "gateway.toml"
    file.write_text(
        '[[listener]]\nname = "sql"\nprotocol = "mysql"\nlisten = "127.0.0.1:6033"\ngroup = "orders"\n'
        f'[[group]]\nname = "orders"\nengine = "mysql"\nmembers = ["{group.primary.address}"]\nusers = "backend"\n'
        f'monitor = {{user = "{MONITOR.user}", password = "{MONITOR.password}"}}\n'
    )
    [settings] = load_config(file).groups
    assert isinstance(settings, Settings)
    lane = Lane()
    topology = Topology(lane, settings, MONITOR.password)
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lane.run)
            await nursery.start(topology.run)
            monitor = monitor_credentials(MONITOR.user, MONITOR.password)
            users = BackendUsers(topology, lane, monitor, interval)
            while topology.primary_member is None:
                await topology.changed()
            yield users
            with trio.CancelScope() as end:
                end.cancel()
                await users.run()  # which closes what it reads accounts on
            nursery.cancel_scope.cancel()


def proof_of(group: MysqlGroup, password: str) -> Password:
    """What a client of `b_user` proves."""
    return password if is_mysql(group) else Sha1(sha1(raw(password)).digest())


async def admitted(users: BackendUsers, group: MysqlGroup, password: str = "pw", client: str = REMOTE) -> Passwords:
    candidate = await users.find("b_user", client, encrypted=False)
    passwords = await users.admit(candidate, proof_of(group, password))
    assert users.holds(candidate, passwords)
    return passwords


async def test_those_who_prove_the_same_share_one_object(sql_group: MysqlGroup, tmp_path: Path) -> None:
    with account(sql_group):
        async with users_of(sql_group, tmp_path) as users:
            assert await admitted(users, sql_group) is await admitted(users, sql_group)
            users.account_changed()
            first = await admitted(users, sql_group)
            assert await admitted(users, sql_group) is first


async def test_a_proof_holds_for_its_interval(sql_group: MysqlGroup, tmp_path: Path) -> None:
    """The account's own row stays as it is, and another one takes its place for the gateway."""
    with account(sql_group):
        for interval, holds in ((60.0, True), (0.0, False)):
            async with users_of(sql_group, tmp_path, interval) as users:
                passwords = await admitted(users, sql_group)
                with account(sql_group, host="127.0.0.1"):
                    if holds:
                        assert await admitted(users, sql_group) is passwords
                        users.account_changed()
                    with pytest.raises(Refused, match=r"takes the gateway's connections for b_user@127\.0\.0\.1"):
                        await admitted(users, sql_group)


async def test_a_refusal_that_an_accepted_log_in_has_overtaken_ends_nothing(
    sql_group: MysqlGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Passwords] = []
    refused, told = trio.Event(), trio.Event()

    async def slow(*arguments: Any, **more: Any) -> Any:
        try:
            return await log_in(*arguments, **more)
        except BackendRefused:
            refused.set()
            await told.wait()
            raise

    with account(sql_group):
        async with users_of(sql_group, tmp_path, interval=0.0) as users:
            users.on_end.append(lambda passwords, why: ended.append(passwords))
            first = await admitted(users, sql_group)
            candidate = await users.find("b_user", REMOTE, encrypted=False)
            sql_group.primary.query("ALTER USER 'b_user'@'%' ACCOUNT LOCK")
            monkeypatch.setattr(backend_users, "log_in", slow)
            async with trio.open_nursery() as nursery:

                async def late() -> None:
                    with pytest.raises(BackendRefused):
                        await users.admit(candidate, proof_of(sql_group, "pw"))

                nursery.start_soon(late)
                await refused.wait()
                sql_group.primary.query("ALTER USER 'b_user'@'%' ACCOUNT UNLOCK")
                assert await admitted(users, sql_group) is first
                told.set()
            assert ended == []
            assert users.holds(candidate, first)
            sql_group.primary.query("ALTER USER 'b_user'@'%' ACCOUNT LOCK")
            with pytest.raises(BackendRefused):
                await admitted(users, sql_group)
            assert ended == [first]
            assert not users.holds(candidate, first)


async def test_passwords_of_open_sessions_are_not_forgotten_and_others_are_few(
    sql_group: MysqlGroup, tmp_path: Path
) -> None:
    with account(sql_group):
        async with users_of(sql_group, tmp_path) as users:
            found = [await admitted(users, sql_group)]
            users.entered(Credentials("b_user", found[0], 0, 45))
            for number in range(PASSWORDS_KEPT + 1):
                sql_group.primary.query(f"ALTER USER 'b_user'@'%' IDENTIFIED BY 'pw{number}'")
                found.append(await admitted(users, sql_group, f"pw{number}"))
            candidate = await users.find("b_user", REMOTE, encrypted=False)
            assert [users.holds(candidate, passwords) for passwords in found] == [True, False, True, True]


async def test_an_account_statement_during_a_log_in_makes_its_proof_void(
    sql_group: MysqlGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    async def counted(*arguments: Any, **more: Any) -> Any:
        nonlocal asked
        asked += 1
        found = await log_in(*arguments, **more)
        if asked == 1:
            users.account_changed()
        return found

    with account(sql_group):
        async with users_of(sql_group, tmp_path) as users:
            monkeypatch.setattr(backend_users, "log_in", counted)
            await users.find("b_user", REMOTE, encrypted=False)  # the reader's own log-in
            before, asked = asked, 0
            assert before == 1
            for _ in range(3):
                await admitted(users, sql_group)
            assert asked == 2
