"""Leases of connections to a real server: first come first served, limits, who is told what they lose."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from gateway.backends.mysql import Credentials, Left, MysqlConnection
from gateway.backends.mysql_server import MysqlServer
from gateway.backends.mysql_state import Arming, State, state_of
from gateway.backends.pool import MemberPool
from gateway.config import Address, Pool
from gateway.demo.mysql_servers import APP, MysqlGroup
from gateway.errors import BackendRefused, Unavailable
from gateway.net.lane import Lane

pytestmark = pytest.mark.servers

COLLATION = 45
CREDENTIALS = Credentials(APP.user, APP.password, 0, COLLATION)
OTHERS = Credentials(APP.user, APP.password, 2, COLLATION)  # CLIENT_FOUND_ROWS: not interchangeable
NOTHING = state_of(None, COLLATION)
SHOP = state_of("shop", COLLATION)


class Session:
    """A session, as far as pools know one."""

    def __init__(self) -> None:
        self.lost: list[Left | None] = []

    def losing(self, connection: MysqlConnection, left: Left | None) -> None:
        self.lost.append(left)


@asynccontextmanager
async def pool_of(group: MysqlGroup, size: int, acquire_timeout: float = 5.0) -> AsyncIterator[MemberPool]:
    lane = Lane()
    settings = Pool(size=size, min_idle=0, acquire_timeout=acquire_timeout)
    primary = group.primary
    pool = MemberPool(lane, primary.address, MysqlServer(Address(primary.host, primary.port), None), settings, size)
    mariadb = primary.flavor == "mariadb"
    pool.arming = Arming(mariadb=mariadb, replica=False, collations={COLLATION: ("utf8mb4", "utf8mb4_general_ci")})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lane.run)
        try:
            yield pool
        finally:
            pool.close_all()
        assert (pool.opened, pool.in_use, pool.waiting) == (0, 0, 0)
        nursery.cancel_scope.cancel()


async def test_waiters_are_served_in_the_order_in_which_they_came(mariadb_group: MysqlGroup) -> None:
    served: list[int] = []
    async with pool_of(mariadb_group, 1) as pool:
        held = await pool.take(CREDENTIALS, SHOP)

        async def client(number: int, credentials: Credentials) -> None:
            connection = await pool.take(credentials, SHOP)
            served.append(number)
            await trio.lowlevel.checkpoint()
            pool.give_back(connection)

        async with trio.open_nursery() as clients:
            for number in range(8):
                clients.start_soon(client, number, OTHERS if number % 3 == 1 else CREDENTIALS)
                await trio.testing.wait_all_tasks_blocked()
            assert pool.waiting == 8
            pool.give_back(held)
    assert served == list(range(8))


async def test_a_waiter_gives_up_after_the_acquire_timeout_and_says_so(mariadb_group: MysqlGroup) -> None:
    async with pool_of(mariadb_group, 1, acquire_timeout=0.1) as pool:
        held = await pool.take(CREDENTIALS, SHOP)
        with pytest.raises(Unavailable, match=r"busy for 0\.1 s") as refused:
            await pool.take(CREDENTIALS, SHOP)
        assert refused.value.code == 1040
        assert pool.waiting == 0
        pool.give_back(held)
        assert await pool.take(CREDENTIALS, SHOP) is held


@pytest.mark.parametrize("given", [False, True], ids=["while waiting", "as the connection is given to it"])
async def test_a_waiter_that_is_cancelled_loses_nothing(mariadb_group: MysqlGroup, given: bool) -> None:
    async with pool_of(mariadb_group, 1) as pool:
        held = await pool.take(CREDENTIALS, SHOP)

        async def client() -> None:
            pool.give_back(await pool.take(CREDENTIALS, SHOP))

        async with trio.open_nursery() as waiting:
            waiting.start_soon(client)
            await trio.testing.wait_all_tasks_blocked()
            if given:
                pool.give_back(held)
            waiting.cancel_scope.cancel()
        if not given:
            pool.give_back(held)
        assert (pool.opened, pool.in_use, pool.waiting) == (1, 0, 0)
        assert await pool.take(CREDENTIALS, SHOP) is held


async def test_a_place_goes_to_whoever_waits_when_a_connection_is_closed(mariadb_group: MysqlGroup) -> None:
    async with pool_of(mariadb_group, 1) as pool:
        held = await pool.take(CREDENTIALS, SHOP)
        got: list[MysqlConnection] = []

        async def client() -> None:
            got.append(await pool.take(CREDENTIALS, SHOP))

        async with trio.open_nursery() as waiting:
            waiting.start_soon(client)
            await trio.testing.wait_all_tasks_blocked()
            held.close()
        assert got != [held]
        pool.give_back(got[0])


async def test_who_loses_a_bound_connection_is_told_what_it_left_there(mariadb_group: MysqlGroup) -> None:
    mariadb_group.primary.query("CREATE TABLE shop.t (a INT PRIMARY KEY AUTO_INCREMENT)")
    session = Session()
    async with pool_of(mariadb_group, 1) as pool:
        connection = await pool.take(CREDENTIALS, SHOP)
        await connection.ask("INSERT INTO t VALUES (NULL), (NULL)")
        await connection.ask("SET @a = 5")
        connection.tainted = True
        connection.last_session = session
        pool.give_back(connection)
        assert await pool.take(CREDENTIALS, SHOP) is connection
        assert session.lost == [Left(insert_id=1, row_count=0, found_rows=1, warnings=[], sqlstates=[])]
        assert await connection.ask("SELECT @a, LAST_INSERT_ID()") == [(None, "0")]
        pool.give_back(connection)
        assert pool.taken_over == 1


async def test_a_session_takes_its_own_connection_back_and_no_other_does(mariadb_group: MysqlGroup) -> None:
    one, other = Session(), Session()
    async with pool_of(mariadb_group, 2) as pool:
        connection = await pool.take(CREDENTIALS, SHOP)
        connection.tainted = True
        connection.last_session = one
        pool.give_back(connection)
        assert not pool.take_bound(connection, other)
        assert pool.take_bound(connection, one)
        assert not pool.take_bound(connection, one), "it is leased"
        pool.give_back(connection)


async def test_a_refused_state_closes_the_connection_and_frees_its_place(mariadb_group: MysqlGroup) -> None:
    async with pool_of(mariadb_group, 1) as pool:
        nowhere: State = state_of("nowhere", COLLATION)
        with pytest.raises(BackendRefused) as refused:
            await pool.take(CREDENTIALS, nowhere)
        assert refused.value.code in (1044, 1049)
        assert (pool.opened, pool.in_use) == (0, 0)
        connection = await pool.take(CREDENTIALS, NOTHING)
        pool.give_back(connection)


async def test_a_refused_log_in_frees_its_place(mariadb_group: MysqlGroup) -> None:
    async with pool_of(mariadb_group, 1) as pool:
        for _ in range(3):
            with pytest.raises(BackendRefused) as refused:
                await pool.take(Credentials(APP.user, "wrong", 0, COLLATION), SHOP)
            assert refused.value.code == 1045
            assert (pool.opened, pool.in_use) == (0, 0)


async def test_what_was_armed_for_another_role_is_not_given_out_again(mariadb_group: MysqlGroup) -> None:
    async with pool_of(mariadb_group, 2) as pool:
        held = await pool.take(CREDENTIALS, SHOP)
        idle = await pool.take(CREDENTIALS, SHOP)
        pool.give_back(idle)
        assert pool.arming is not None
        pool.arming = Arming(pool.arming.mariadb, replica=True, collations=pool.arming.collations)
        pool.close_idle()
        assert idle.endpoint.closed
        pool.give_back(held)
        assert held.endpoint.closed
        again = await pool.take(CREDENTIALS, SHOP)
        assert await again.ask("SELECT @@tx_read_only") == [("1",)]
        pool.give_back(again)


async def test_a_connection_that_is_retired_while_it_is_opened_serves_once(mariadb_group: MysqlGroup) -> None:
    """What has begun goes on, with the arming that sessions compare with the member's; only nobody else gets it."""
    async with pool_of(mariadb_group, 1) as pool:
        taken: list[MysqlConnection] = []

        async def client() -> None:
            taken.append(await pool.take(CREDENTIALS, SHOP))

        async with trio.open_nursery() as opening:
            opening.start_soon(client)
            while not pool.opened:
                await trio.lowlevel.checkpoint()
            pool.retire(APP.user)
        assert taken[0].arming is pool.arming
        pool.give_back(taken[0])
        assert taken[0].endpoint.closed
        assert pool.opened == 0
