"""What is prepared on a connection: shared by text and context, fitted to types on MySQL, bounded by least use."""

from __future__ import annotations

from gateway.backends.mysql_context import context_of, switch
from gateway.backends.mysql_state import Arming, State, state_of
from gateway.backends.statements import (
    TEXT_BYTES,
    Handle,
    Handles,
    SharedStatement,
    shared_statement,
    statements_per_connection,
)
from gateway.protocol.mysql.commands import argument_of
from gateway.routing.operation import Assignment, Scope

ARMING = Arming(False, False, {45: ("utf8mb4", "utf8mb4_general_ci"), 8: ("latin1", "latin1_swedish_ci")})
NOTHING: frozenset[str] = frozenset()
INT, TEXT, NULL = b"\x08\0", b"\xfd\0", b"\x06\0"


def with_set(state: State, **values: str) -> State:
    return state.with_assignments(tuple(Assignment(Scope.SESSION, name, value) for name, value in values.items()))


def prepared(handles: Handles, shared: SharedStatement, number: int, types: bytes | None = None) -> Handle:
    handle = Handle(shared, number)
    if types is not None:
        handle.run_with(types)
    handle.used = float(number)
    handles.add(handle)
    return handle


def texts(commands: list[bytes]) -> list[str]:
    return [argument_of(command).decode() for command in commands]


def test_sessions_share_a_statement_if_what_it_captures_is_the_same() -> None:
    plain = state_of("shop", 45)
    user = plain.with_assignments((Assignment(Scope.USER, "A", "1"),))
    one = shared_statement(b"SELECT 1", plain, NOTHING)
    assert shared_statement(b"SELECT 1", with_set(plain, lock_wait_timeout="5"), NOTHING) is one
    assert shared_statement(b"SELECT 1", user, NOTHING) is one
    assert shared_statement(b"SELECT 1", user, frozenset({"a"})) is not one
    assert shared_statement(b"SELECT 2", plain, NOTHING) is not one
    for other in (
        state_of("sbtest", 45),
        state_of("shop", 8),
        with_set(plain, sql_mode="''"),
        with_set(plain, group_concat_max_len="4"),
    ):
        assert shared_statement(b"SELECT 1", other, NOTHING) is not one


def test_a_connection_is_led_to_a_context_and_back_without_a_reset() -> None:
    plain = state_of("shop", 45)
    ansi = with_set(state_of("db2", 45), sql_mode="'ANSI_QUOTES'", lock_wait_timeout="5")
    variables = frozenset({"v"})
    named = ansi.with_assignments((Assignment(Scope.NAMES, "names", "latin1"), Assignment(Scope.USER, "v", "3")))
    here, there = context_of(plain, variables), context_of(named, variables)
    assert texts(switch(here, there, ARMING)) == [
        "db2",
        "SET NAMES utf8mb4 COLLATE utf8mb4_general_ci",
        "SET SESSION sql_mode = 'ANSI_QUOTES'",
        "SET NAMES latin1",
        "SET @`v` = 3",
    ]
    assert texts(switch(there, here, ARMING)) == [
        "shop",
        "SET @`v` = NULL",
        "SET NAMES utf8mb4 COLLATE utf8mb4_general_ci",
        "SET SESSION sql_mode = DEFAULT",
    ]
    assert switch(here, here, ARMING) == []
    assert texts(switch(here, state_of("other", 45), ARMING)) == ["other"]


def test_mysql_runs_a_handle_with_the_types_that_it_ran_with_first() -> None:
    shared = shared_statement(b"SELECT ?", state_of(None, 45), NOTHING)
    handles = Handles(fitted=True)
    number = prepared(handles, shared, 1, INT)
    assert handles.find(shared, INT) is number
    assert handles.find(shared, NULL) is number
    assert handles.find(shared, TEXT) is None
    fresh = prepared(handles, shared, 2)
    assert handles.find(shared, TEXT) is fresh
    fresh.run_with(NULL)
    assert handles.find(shared, TEXT) is fresh
    fresh.run_with(TEXT)
    assert handles.find(shared, INT) is number
    anything = Handles(fitted=False)
    assert anything.find(shared, TEXT) is None
    other = prepared(anything, shared, 3, INT)
    assert anything.find(shared, TEXT) is other


def test_what_was_used_longest_ago_goes_first_and_never_an_open_cursor() -> None:
    handles = Handles(fitted=False)
    statements = [shared_statement(b"SELECT %d" % number, state_of(None, 45), NOTHING) for number in range(5)]
    made = [prepared(handles, statement, number) for number, statement in enumerate(statements)]
    made[0].cursor = True
    made[1].used = 9.0
    assert handles.find(statements[0], None) is None
    assert handles.evict(6, b"") == []
    assert handles.evict(4, b"") == [made[2], made[3]]
    assert handles.evict(1, b"") == [made[4], made[1]]
    assert handles.evict(1, b"") == []
    assert handles.count == 1
    handles.clear()
    handles.remove(made[0])  # closed by the reset already
    assert (handles.count, handles.text_bytes) == (0, 0)


def test_texts_are_bounded_in_bytes() -> None:
    handles = Handles(fitted=False)
    long = [shared_statement(bytes((65 + n,)) * (TEXT_BYTES // 3), state_of(None, 45), NOTHING) for n in range(4)]
    for number, statement in enumerate(long):
        gone = handles.evict(100, statement.text)
        assert [handle.id for handle in gone] == ([number - 3] if number >= 3 else [])
        prepared(handles, statement, number)
    assert handles.text_bytes <= TEXT_BYTES


def test_a_new_handle_replaces_those_that_it_makes_superfluous() -> None:
    shared = shared_statement(b"SELECT ?", state_of(None, 45), NOTHING)
    fitted, anything = Handles(fitted=True), Handles(fitted=False)
    for handles, superfluous in ((fitted, [2]), (anything, [1, 2])):
        prepared(handles, shared, 1, INT)
        prepared(handles, shared, 2)
        cursor = prepared(handles, shared, 3)
        cursor.cursor = True
        new = prepared(handles, shared, 4)
        assert [handle.id for handle in handles.replaced_by(new)] == superfluous


def test_the_servers_limit_is_shared_by_all_connections() -> None:
    assert statements_per_connection(16_382, 64) == 255
    assert statements_per_connection(1_000_000, 2) == 1_024
    assert statements_per_connection(0, 64) == 1
