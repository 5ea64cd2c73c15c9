"""`gateway explain`: one JSON object per statement, words for people, and usage errors."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.main import main

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = str(ROOT / "examples" / "gateway.toml")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder without a gateway.toml, so that the defaults hold."""
    monkeypatch.chdir(tmp_path)


def explain(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, text: bytes, *arguments: str
) -> list[dict[str, Any]]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert main(["explain", "--json", *arguments, "-"]) == 0
    return [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]


def test_every_line_gives_one_object_without_any_configuration(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = b"""SELECT * FROM orders WHERE id = 7
INSERT INTO orders VALUES (1)

SELECT GET_LOCK('a', 1)
  START TRANSACTION READ ONLY\r
BEGIN
SELECT id FROM orders FOR UPDATE
SET @a = UUID()
SELECT \xff\xfe
no such statement"""
    got = explain(capsysbinary, monkeypatch, text)
    keys = ["statement", "kind", "target", "pin", "rule", "reason", "block"]
    assert all(list(each) == keys for each in got)
    assert [(each["kind"], each["target"], each["pin"]) for each in got[:6]] == [
        ("read", "replica", None),
        ("write", "primary", None),
        (got[2]["kind"], "primary", "named lock (GET_LOCK)"),
        ("transaction", "replica", "read-only transaction, on one replica until COMMIT or ROLLBACK"),
        ("transaction", "primary", "transaction until COMMIT or ROLLBACK"),
        (got[5]["kind"], "primary", None),
    ]
    assert got[0]["statement"] == "SELECT * FROM orders WHERE id = 7"
    assert got[3]["statement"] == "START TRANSACTION READ ONLY"
    assert [each["target"] for each in got[6:]] == ["primary"] * 3
    assert got[6]["pin"] == "user variable set to something that cannot be replayed"
    assert all(each["reason"] for each in got)


def test_rules_and_user_come_from_configuration_and_options(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = b"SELECT a.balance FROM accounts a\nDELETE FROM orders\nSELECT 1"
    got = explain(capsysbinary, monkeypatch, text, "-c", EXAMPLE, "--user", "web")
    assert [(each["target"], each["rule"], each["block"]) for each in got] == [
        ("primary", "balances are always exact", None),
        ("primary", "no full deletes from the web", "DELETE without WHERE is not allowed for web"),
        ("replica", None, None),
    ]
    got = explain(capsysbinary, monkeypatch, b"SELECT 1", "-c", EXAMPLE, "-u", "report_1")
    assert got[0]["rule"] == "reports may lag"


def test_a_gateway_toml_in_the_folder_is_used(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT / "examples")
    assert explain(capsysbinary, monkeypatch, b"SELECT 1", "-u", "report_1")[0]["rule"] == "reports may lag"


def test_commands_of_memcached(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        b"set session:1 0 0 5\nset +a 0 0 4\nset k 0 0 5\nget k\ngets k\nget frag:1\nget k frag:1\n"
        b"incr k 1\nflush_all\nstats\nnonsense\nset x"
    )
    got = explain(capsysbinary, monkeypatch, text, "--protocol", "memcached", "-c", EXAMPLE)
    assert [(each["kind"], each["target"], each["replicate"]) for each in got] == [
        ("write", "primary", "sync"),
        ("write", "primary", "sync"),
        ("write", "primary", "async"),
        ("read", "replica", None),
        ("read", "primary", None),
        ("read", "primary", None),
        ("read", "primary", None),
        ("write", "primary", "async"),
        ("write", "primary", None),
        ("session", "primary", None),
        ("unknown", "primary", None),
        ("unknown", "primary", None),
    ]
    assert got[0]["rule"] == "logged-in sessions are replicated before the answer"
    assert got[5]["rule"] == "page fragments stay local"
    assert got[10]["block"] == "ERROR"


def test_words_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "SELECT * FROM orders", "-d", "shop"]) == 0
    out = capsys.readouterr().out
    lines = {line[:13].strip(): line[13:].strip() for line in out.splitlines()[1:]}
    assert out.splitlines()[0] == "SELECT * FROM orders"
    assert lines["operation"] == "select (read)"
    assert lines["goes to"] == "replica"
    assert lines["consistency"].startswith("session, at most 1 s behind, waits 50 ms for a fresh one")
    assert (lines["rule"], lines["pin"]) == ("none", "none")
    assert main(["explain", "-c", EXAMPLE, "-u", "web", "DELETE FROM [orders] -- [bold]"]) == 0
    assert "DELETE FROM [orders] -- [bold]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["explain", "--jsno", "SELECT 1"], 2, "--jsno"),
        (["explain", " "], 2, "Give a statement"),
        (["explain", "--protocol", "redis", "GET a"], 2, "redis"),
        (["explain", "SELECT 1", "SELECT 2"], 2, "SELECT 2"),
        (["explain", "-c", "nowhere.toml", "SELECT 1"], 1, "nowhere.toml: cannot be read"),
        (["explain", "-c", EXAMPLE, "-l", "cache", "SELECT 1"], 1, 'there is no mysql listener "cache"; known are sql'),
        (["explian"], 2, 'There is no command "explian". Did you mean explain?'),
    ],
)
def test_mistakes_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gateway: ")
    assert message in err
    assert err.count("\n") == 1


def test_help_lists_the_commands_and_exit_codes_and_teaches_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "check " in out
    assert "explain " in out
    assert "Exit codes: 0 ok, 1 a check failed" in out
    assert main(["explain", "--help"]) == 0
    out = capsys.readouterr().out
    assert 'gateway explain --protocol memcached "set session:42 0 0 5"' in out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("gateway ")


def test_it_imports_nothing_that_serving_needs() -> None:
    program = (
        "import sys; from gateway.cli.main import main; code = main(['explain', '--json', 'SELECT 1']);"
        "sys.exit(code or int(any(name in sys.modules for name in ('trio', 'structlog', 'pymysql'))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30)
    assert done.returncode == 0, done


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    program = "import sys; from gateway.cli.main import main; sys.exit(main(['explain', '--json', '-']))"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        try:
            process.stdin.write(b"SELECT 1\n" * 20_000)
            process.stdin.close()
        except BrokenPipeError:
            pass
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


def test_the_same_statement_without_newline_at_the_end_and_an_empty_input(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(explain(capsysbinary, monkeypatch, b"SELECT 1")) == 1
    assert explain(capsysbinary, monkeypatch, b"\n \n") == []
