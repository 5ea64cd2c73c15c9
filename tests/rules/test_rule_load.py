"""Rule files: what they say, and that whatever makes no sense is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import ConfigError
from gateway.rules.load import load_rules, read_rules

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "rules"


def problems(folder: Path, text: str) -> list[str]:
    (folder / "10-test.toml").write_text(text)
    return [str(problem).removeprefix(str(folder) + "/") for problem in read_rules(folder)[1]]


def test_the_example_rules_load_as_they_stand() -> None:
    (file,) = load_rules(EXAMPLES)
    assert [rule.name for rule in file.rules] == [
        "balances are always exact",
        "reports may lag",
        "no full deletes from the web",
        "logged-in sessions are replicated before the answer",
        "page fragments stay local",
    ]
    reports = file.rules[1]
    assert reports.route is not None
    assert (reports.route.max_lag, reports.route.timeout) == (300.0, 600.0)
    assert file.rules[2].block == "DELETE without WHERE is not allowed for web"
    assert file.rules[0].place.endswith("10-orders.toml:4")
    assert [test.place.rpartition(":")[2] for test in file.tests] == ["30", "35", "40"]


def test_files_are_tried_in_name_order_and_other_files_are_left_alone(tmp_path: Path) -> None:
    for name in ("20-b.toml", "10-a.toml", "readme.md", "30.toml.off"):
        (tmp_path / name).write_text(f'[[rule]]\nname = "{name}"\nroute = {{to = "primary"}}\n')
    assert [rule.name for file in load_rules(tmp_path) for rule in file.rules] == ["10-a.toml", "20-b.toml"]


def test_a_folder_that_is_not_there_has_no_rules(tmp_path: Path) -> None:
    assert load_rules(tmp_path / "rules") == ()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is not a folder"):
        load_rules(tmp_path / "file")


RULE = '[[rule]]\nname = "x"\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[[rule]]\nroute = {to = "primary"}', "1: rule[1] has no name"),
        (RULE + 'rout = {to = "primary"}', "3: unknown key rout in rule[1], did you mean route?"),
        (RULE + 'route = {to = "primery"}', '3: rule[1].route.to must be "primary" or "replica", not "primery"'),
        (RULE + "match = {users = 'a'}\nblock = 'b'", "3: unknown key users in rule[1].match, did you mean user?"),
        (
            RULE + "match = {user = 3}\nblock = 'b'",
            "3: rule[1].match.user must be a text in quotes or an array [...], not 3",
        ),
        (RULE + "match = {kind = 'reads'}\nblock = 'b'", "3: rule[1].match.kind must be"),
        (RULE + "match = {user = ''}\nblock = 'b'", '3: rule "x": user is empty and would never fit'),
        (RULE + "match = {user = []}\nblock = 'b'", '3: rule "x": user is empty and would never fit'),
        (RULE + "match = {client = 'localhost'}\nblock = 'b'", '3: rule "x": client must be an address or a network'),
        (
            RULE + "match = {tables = 'a.b.c'}\nblock = 'b'",
            '3: rule "x": "a.b.c" in tables must be table or database.table',
        ),
        (RULE + "match = {columns = 'balance'}\nblock = 'b'", '3: rule "x": "balance" in columns must be table.column'),
        (
            RULE + "match = {key = 'a', tables = 'b'}\nblock = 'b'",
            '3: rule "x": these keys never fit together: tables, key',
        ),
        (
            RULE + "match = {protocol = 'mysql', key = 'a'}\nblock = 'b'",
            '3: rule "x": these keys never fit together: protocol, key',
        ),
        (RULE + "match = {key = 'a', kind = 'session'}\nblock = 'b'", '3: rule "x": memcached has no kind "session"'),
        (RULE, '1: rule "x": it does nothing'),
        (RULE + "route = {}", '3: rule "x": route is empty'),
        (RULE + "block = 'b'\nroute = {to = 'primary'}", '3: rule "x": block stands alone'),
        (RULE + "block = ''", '3: rule "x": block is the message'),
        (
            RULE + "match = {kind = 'write'}\nroute = {to = 'replica'}",
            '4: rule "x": a write must never go to a replica',
        ),
        (RULE + "match = {user = 'a'}\nroute = {to = 'replica'}", '4: rule "x": a write must never go to a replica'),
        (RULE + "match = {kind = ['read', 'write']}\nroute = {to = 'replica'}", '4: rule "x": a write must never'),
        (RULE + "match = {statement = 'insert'}\nroute = {to = 'replica'}", '4: rule "x": a write must never'),
        (
            RULE + "match = {kind = 'read', database = 'd'}\nroute = {to = 'replica', consistency = 'strong'}",
            '4: rule "x": strong reads go to the primary',
        ),
        (
            RULE + "match = {protocol = 'mysql'}\nroute = {to = 'primary', max_lag = '1s'}",
            '4: rule "x": max_lag means nothing',
        ),
        (
            RULE + "match = {key = 'a'}\nroute = {max_lag = '1s'}",
            '4: rule "x": max_lag is for mysql: memcached requests',
        ),
        (
            RULE + "match = {user = 'a'}\nroute = {max_lag = '1s'}",
            '4: rule "x": max_lag is for mysql: add protocol = "mysql"',
        ),
        (RULE + "match = {user = 'a'}\nroute = {max_lag = 5}", "4: rule[1].route.max_lag must be a time with its unit"),
        (RULE + "match = {protocol = 'mysql'}\nreplicate = 'sync'", '4: rule "x": replicate is for memcached'),
        (RULE + "match = {user = 'a'}\nreplicate = 'sync'", '4: rule "x": replicate is for memcached: add protocol'),
        (RULE + "match = {key = 'a', kind = 'read'}\nreplicate = 'sync'", '4: rule "x": a read is not replicated'),
        (
            RULE + "match = {key = 'a', user = 'u'}\nreplicate = 'none'",
            '4: rule "x": replicate = "none" must depend on the key',
        ),
        ("\nrules = 3", "2: unknown key rules, did you mean rule?"),
        ("rule = 3", "1: rule must be written as [[rule]], once for each"),
        ("[[rule]", "1: is not TOML"),
        ("[[test]]\nexpect = {to = 'primary'}", "1: test: give either sql or command"),
        ("[[test]]\nsql = 'a'\ncommand = 'b'\nexpect = {to = 'primary'}", "1: test: give either sql or command"),
        ("[[test]]\nsql = 'a'", "1: test[1] has no expect"),
        ("[[test]]\nsql = 'a'\nexpect = {}", "3: test: it expects nothing"),
        ("[[test]]\nsql = 'a'\nprotocol = 'memcached'\nexpect = {to = 'primary'}", "3: test: sql is not memcached"),
        ("[[test]]\ncommand = 'a'\nexpect = {max_lag = '1s'}", "3: test: a command has no max_lag"),
        ("[[test]]\nsql = 'a'\nexpect = {replicate = 'sync'}", "3: test: sql has no replicate"),
        ("[[test]]\nsql = 'a'\nclient = 'x'\nexpect = {to = 'primary'}", "3: test: client must be an address"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    found = problems(tmp_path, text)
    assert any(problem.startswith(f"10-test.toml:{expected}") for problem in found), found


def test_a_rule_name_is_given_once_over_all_files(tmp_path: Path) -> None:
    (tmp_path / "00-first.toml").write_text(RULE + "route = {to = 'primary'}")
    (problem,) = problems(tmp_path, RULE + "route = {to = 'primary'}")
    assert problem == f'10-test.toml:2: there is a rule "x" already, at {tmp_path}/00-first.toml:1'


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "00-first.toml").write_text("x = 1")
    found = problems(tmp_path, RULE + "block = 3\n[[rule]]\nname = 'y'\n[[test]]\nsql = 'a'\n")
    assert [problem.split(":")[:2] for problem in found] == [
        ["00-first.toml", "1"],
        ["10-test.toml", "3"],
        ["10-test.toml", "4"],
        ["10-test.toml", "6"],
    ]
