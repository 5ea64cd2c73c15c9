"""States that follow sessions: what replaces what, and the commands that lead from one to another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.backends.mysql_state import Arming, State, assignments_sql, commands_to, state_of
from gateway.routing.operation import Assignment, Scope

COLLATION = 45
ARMING = Arming(mariadb=False, replica=False, collations={COLLATION: ("utf8mb4", "utf8mb4_general_ci")})
LOGGED_IN = state_of(None, COLLATION)


def variable(name: str, value: str) -> Assignment:
    return Assignment(Scope.SESSION, name, value)


def user(name: str, value: str) -> Assignment:
    return Assignment(Scope.USER, name, value)


def names(value: str) -> Assignment:
    return Assignment(Scope.NAMES, "names", value)


def after(*made: Assignment) -> State:
    state = LOGGED_IN
    for one in made:
        state = state.with_assignments((one,))
    return state


def texts(current: State, wanted: State, *, mariadb: bool = False) -> list[str]:
    """The commands as text; "reset" for COM_RESET_CONNECTION and what arms anew."""
    arming = Arming(mariadb, replica=False, collations=ARMING.collations)
    commands = commands_to(current, None, wanted, arming)
    assert commands is not None
    if commands and commands[0][4] == 0x1F:
        return ["reset", *(command[5:].decode() for command in commands[2:])]
    return [command[5:].decode() for command in commands]


def test_states_with_equal_values_are_one_object() -> None:
    assert after(variable("time_zone", "'+01:00'")) is after(variable("time_zone", "'+01:00'"))
    assert after(user("a", "1"), user("a", "2")) is after(user("a", "2"))
    assert after(names("latin1"), names("utf8mb4")) is after(names("utf8mb4"))


def test_what_is_missing_is_assigned_and_nothing_else() -> None:
    before = after(names("latin1"), user("a", "1"))
    assert texts(before, before) == []
    wanted = before.with_assignments((variable("lock_wait_timeout", "5"),))
    assert texts(before, wanted) == ["SET SESSION lock_wait_timeout = 5"]
    assert texts(before, before.with_assignments((user("a", "2"),))) == ["SET @`a` = 2"]


def test_what_is_not_wanted_takes_a_reset() -> None:
    assert texts(after(user("a", "1")), LOGGED_IN) == ["reset"]
    assert texts(after(user("a", "1")), after(user("b", "1"))) == ["reset", "SET @`b` = 1"]


def test_a_text_is_assigned_under_the_mode_in_which_it_was_written() -> None:
    mode = variable("sql_mode", "'ANSI_QUOTES'")
    text = user("a", '"x"')
    assert texts(LOGGED_IN, after(text, mode)) == ["SET @`a` = \"x\", SESSION sql_mode = 'ANSI_QUOTES'"]
    assert texts(after(mode), after(text, mode))[0] == "reset"
    first = variable("sql_mode", "''")
    assert texts(LOGGED_IN, after(first, text, mode)) == [
        "SET SESSION sql_mode = ''",
        "SET @`a` = \"x\", SESSION sql_mode = 'ANSI_QUOTES'",
    ]
    number = user("a", "1")
    assert after(first, number, mode) is after(number, mode)


def test_a_text_keeps_the_character_set_that_it_was_written_in() -> None:
    wanted = after(names("latin1"), user("a", "'x'"), names("utf8mb4"))
    assert texts(after(names("utf8mb4")), wanted)[0] == "reset"
    assert texts(LOGGED_IN, wanted) == ["SET NAMES latin1", "SET @`a` = 'x'", "SET NAMES utf8mb4"]
    assert after(names("latin1"), user("a", "'x'"), names("utf8mb4"), user("a", "'y'")) is after(
        names("utf8mb4"), user("a", "'y'")
    )


@pytest.mark.parametrize(("mariadb", "name"), [(True, "tx_isolation"), (False, "transaction_isolation")])
def test_the_isolation_level_has_the_name_that_the_server_knows(mariadb: bool, name: str) -> None:
    made = (variable("transaction_isolation", "'READ-COMMITTED'"),)
    (command,) = assignments_sql(made, mariadb=mariadb)
    assert command[5:].decode() == f"SET SESSION {name} = 'READ-COMMITTED'"


def test_nothing_unselects_a_database() -> None:
    assert commands_to(state_of("shop", COLLATION), "shop", LOGGED_IN, ARMING) is None


ASSIGNMENTS = st.lists(
    st.sampled_from(
        [
            names("latin1"),
            names("utf8mb4"),
            variable("sql_mode", "'ANSI_QUOTES'"),
            variable("sql_mode", "''"),
            variable("collation_connection", "utf8mb4_bin"),
            variable("lock_wait_timeout", "1"),
            variable("lock_wait_timeout", "2"),
            user("a", "1"),
            user("a", "'x'"),
            user("a", '"y"'),
            user("b", "'z'"),
        ]
    ),
    max_size=8,
)


def carried_out(made: list[Assignment], on: dict[str, str] | None = None) -> dict[str, str]:
    """What a server's variables are after the assignments: texts depend on the mode and character set at that time."""
    values = {"sql_mode": "default", "client": "default", "collation_connection": "default"} if on is None else dict(on)
    for one in made:
        if one.scope is Scope.NAMES:
            values["client"] = values["collation_connection"] = one.value
        elif one.scope is Scope.USER:
            quoted = "'" in one.value or '"' in one.value
            context = f"{values['sql_mode']} {values['client']} {values['collation_connection']}"
            values[f"@{one.name}"] = f"{one.value} {context}" if quoted else one.value
        else:
            values[one.name] = one.value
    return values


def replayed(before: State, wanted: State) -> dict[str, str]:
    commands = texts(before, wanted)
    made = list(wanted.assignments)
    if commands[:1] == ["reset"]:
        return carried_out(made)
    # The commands name what they assign in order, so it is the tail of the wanted assignments.
    count = sum(text.count(" = ") + text.startswith("SET NAMES") for text in commands)
    return carried_out(made[len(made) - count :], on=carried_out(list(before.assignments)))


@given(first=ASSIGNMENTS, second=ASSIGNMENTS)
def test_a_connection_of_any_state_is_brought_to_any_other(first: list[Assignment], second: list[Assignment]) -> None:
    before, wanted = after(*first), after(*second)
    assert replayed(before, wanted) == carried_out(second)
