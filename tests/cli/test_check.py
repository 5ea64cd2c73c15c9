"""`gateway check`: exit code, lines on standard error, and what it says when all is well."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.cli.main import main

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "gateway.toml"

CONFIG = """\
[[listener]]
name = "sql"
protocol = "mysql"
listen = "127.0.0.1:6033"
group = "orders"
[[group]]
name = "orders"
engine = "mysql"
members = ["127.0.0.1:3306", "127.0.0.1:3307"]
monitor = {user = "gateway", password = "m"}
users = [{name = "app", password = "a"}]
"""


def check(capsys: pytest.CaptureFixture[str], file: Path, *more: str) -> tuple[int, str, list[str]]:
    """Exit code, standard output, and the lines of standard error without the folder's name."""
    code = main(["check", "-c", str(file), *more])
    out, err = capsys.readouterr()
    return code, out, [line.replace(f"{file.parent}/", "") for line in err.splitlines()]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "gateway.toml"
    file.write_text(CONFIG)
    return file


def rules(config: Path, text: str) -> None:
    (config.parent / "rules").mkdir(exist_ok=True)
    (config.parent / "rules" / "10.toml").write_text(text)


def test_the_example_passes_with_a_warning_about_redis(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("APP_DB_PASSWORD", raising=False)
    code, out, err = check(capsys, EXAMPLE)
    assert code == 0, err
    assert "ok: mysql at 127.0.0.1:6033, memcached at 127.0.0.1:11311; 5 rules in 1 files, 3 tests passed" in out
    assert 'gateway.toml:119: warning: Redis is not served yet: listener "redis" stays closed' in err
    assert "gateway.toml:54: warning: the environment variable APP_DB_PASSWORD is not set" in err
    assert all(": warning: " in line for line in err)


def test_a_good_configuration_says_so_in_one_line(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    code, out, err = check(capsys, config)
    assert (code, err) == (0, [])
    assert out == f"{config}: ok: mysql at 127.0.0.1:6033; 0 rules in 0 files, 0 tests passed\n"
    assert check(capsys, config, "--quiet") == (0, "", [])


def test_every_problem_of_the_configuration_is_a_line(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    config.write_text(CONFIG.replace('"sql"', "3").replace("[{name", "[{nam"))
    code, out, err = check(capsys, config)
    assert (code, out) == (1, "")
    assert [line.split(": ")[0] for line in err] == ["gateway.toml:2", "gateway.toml:11", "gateway.toml:11"]


def test_an_option_of_a_later_version_fails(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    config.write_text(CONFIG.replace('engine = "mysql"', 'engine = "mysql"\nfailover = "promote"'))
    code, _, err = check(capsys, config)
    assert (code, err) == (1, ['gateway.toml:9: failover = "promote" is not available in this version'])


def test_a_file_that_is_not_there_fails_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = check(capsys, tmp_path / "gateway.toml")
    assert (code, err) == (1, ["gateway.toml: cannot be read: No such file or directory"])


def test_problems_of_rules_fail_with_their_line(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    rules(config, '[[rule]]\nname = "x"\nmatch = {kind = "write"}\nroute = {to = "replica"}\n')
    code, _, err = check(capsys, config)
    assert code == 1
    assert err[0].startswith('rules/10.toml:4: rule "x": a write must never go to a replica')


RULES = """\
[[rule]]
name = "exact"
match = {protocol = "mysql", columns = "accounts.balance"}
route = {to = "primary"}

[[rule]]
name = "no deletes"
match = {user = "web", statement = "delete", without_where = true}
block = "no"

"""


def test_tests_beside_the_rules_are_run(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    rules(
        config,
        RULES
        + """
[[test]]
sql = "SELECT id FROM accounts WHERE id = 7"
expect = {to = "replica", rule = "", consistency = "session", max_lag = "1s", kind = "read", block = false}
[[test]]
sql = "SELECT * FROM accounts"
expect = {to = "primary", rule = "exact"}
[[test]]
sql = "DELETE FROM orders"
user = "web"
expect = {block = "no", rule = "no deletes"}
[[test]]
sql = "DELETE FROM orders WHERE id = 7"
user = "web"
expect = {to = "primary", block = false, rule = ""}
[[test]]
command = "get k"
expect = {to = "replica"}
""",
    )
    code, out, err = check(capsys, config)
    assert code == 0
    assert err == []
    assert "2 rules in 1 files, 5 tests passed" in out


def test_a_failing_test_says_what_was_expected_and_what_came(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    rules(
        config,
        RULES
        + """[[test]]
sql = "SELECT balance FROM accounts"
expect = {to = "replica", rule = "", max_lag = "2s"}
[[test]]
sql = "DELETE FROM orders"
user = "web"
expect = {to = "primary"}
[[test]]
sql = "SELECT 1"
expect = {block = true}
[[test]]
sql = "SELECT 1"
listener = "cache"
expect = {to = "replica"}
[[test]]
command = "set k 0 0 5"
expect = {replicate = "sync"}
""",
    )
    code, _, err = check(capsys, config, "-q")
    assert code == 1
    assert err == [
        "rules/10.toml:11: test failed: SELECT balance FROM accounts: "
        'expected to = "replica", got "primary" (the rule "exact" sends it to the primary)',
        'rules/10.toml:11: test failed: SELECT balance FROM accounts: expected rule = "", got "exact"',
        "rules/10.toml:11: test failed: SELECT balance FROM accounts: expected max_lag = 2 s, got 1 s",
        'rules/10.toml:14: test failed: DELETE FROM orders: expected to = "primary", '
        'got refused with "no" (refused by the rule "no deletes")',
        "rules/10.toml:18: test failed: SELECT 1: expected block = true, got not refused",
        'rules/10.toml:21: test: there is no mysql listener "cache"; known are sql',
        'rules/10.toml:25: test failed: set k 0 0 5: expected replicate = "sync", got "async"',
    ]
