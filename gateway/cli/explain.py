"""`gateway explain`: where statements would go, and why; as the running gateway says, if one answers."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from cyclopts import Parameter

from gateway.admin import EXPLAIN_SOCKET
from gateway.cli.main import Exit
from gateway.errors import Unavailable
from gateway.rules.compile import RuleSet
from gateway.rules.load import load_rules
from gateway.rules.setting import Setting
from gateway.rules.verdict import Verdict

if TYPE_CHECKING:
    from gateway.config import Config

DEFAULT_CONFIG: Final = Path("gateway.toml")


def explain(
    statement: str | None = None,
    /,
    *,
    protocol: Annotated[Literal["mysql", "memcached"], Parameter(name=["--protocol", "-p"])] = "mysql",
    user: Annotated[str, Parameter(name=["--user", "-u"])] = "",
    database: Annotated[str | None, Parameter(name=["--database", "-d"])] = None,
    client: str = "127.0.0.1",
    listener: Annotated[str | None, Parameter(name=["--listener", "-l"])] = None,
    config: Annotated[Path | None, Parameter(name=["--config", "-c"])] = None,
    json: Annotated[bool, Parameter(negative="")] = False,
    offline: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Say where statements would go, and why.

    The statement is judged by itself, as the first one of a session, and
    statements on standard input know nothing of each other. A gateway that runs
    with the configuration is asked: it knows the views and stored functions of
    its servers, and what they refused as writes. Without one, rules and
    defaults come from the configuration, every table is taken for a table, and
    no stored function is known; without a configuration, the listener's
    defaults hold and there are no rules.

    With --json, every statement gives one line: an object with statement, kind,
    target ("primary" or "replica"), pin (why the session would have to keep its
    connection, or null), rule (or null), reason, and block (what the client is
    told if a rule refuses it, or null); for memcached also replicate.

    Examples:

        gateway explain "SELECT * FROM orders"
        gateway explain --user web --database shop "DELETE FROM orders"
        gateway explain --protocol memcached "set session:42 0 0 5"
        gateway explain --json - < statements.sql

    Parameters
    ----------
    statement
        The statement, or - for standard input with one statement per line.
    protocol
        What the statement is written in.
    user
        Who sends it, as far as rules ask for that.
    database
        The database that the session has selected.
    client
        The client's address, as far as rules ask for that.
    listener
        Where it arrives: a listener of the configuration; by default the first of the protocol.
    config
        The configuration file; by default gateway.toml in this folder, if there is one.
    json
        One JSON object per statement, instead of text.
    offline
        Do not ask a running gateway.
    """
    if (statement is None and sys.stdin.isatty()) or (statement is not None and not statement.strip()):
        print("gateway: Give a statement, or - to read them. Try gateway explain --help.", file=sys.stderr)
        return Exit.USAGE
    settings = _configuration(config)
    if statement is None or statement == "-":
        statements: Iterable[bytes] = _statements(sys.stdin.buffer)
    else:
        statements = _statements([statement.encode(errors="surrogateescape")])
    verdicts: Iterable[Verdict] | None = None
    if settings is not None and not offline and (settings.gateway.data_dir / EXPLAIN_SOCKET).is_socket():
        import trio

        from gateway.admin.explain import Question, ask_explain

        statements = list(statements)
        question = Question(protocol, user, client, database, listener, tuple(statements))
        try:
            verdicts = trio.run(ask_explain, settings.gateway.data_dir, question)
        except Unavailable as error:
            print(f"gateway: {error}; explained by the configuration alone", file=sys.stderr)
    if verdicts is None:
        rules = RuleSet(load_rules(settings.gateway.rules)) if settings is not None else RuleSet()
        explainer = Setting(rules, settings).explainer(
            protocol, listener=listener, user=user, client=client, database=database
        )
        verdicts = map(explainer.explain, statements)
    (_print_json if json else _print_words)(verdicts)
    return Exit.OK


def _configuration(file: Path | None) -> Config | None:
    if file is None and not DEFAULT_CONFIG.exists():
        return None
    from gateway.config import load_config

    return load_config(file if file is not None else DEFAULT_CONFIG)


def _statements(lines: Iterable[bytes]) -> Iterable[bytes]:
    for line in lines:
        statement = line.strip(b" \t\r\n")
        if statement:
            yield statement


def _print_json(verdicts: Iterable[Verdict]) -> None:
    encode = msgspec.json.Encoder().encode
    write = sys.stdout.buffer.write
    for verdict in verdicts:
        write(encode(_record(verdict)) + b"\n")
    sys.stdout.buffer.flush()


def _record(verdict: Verdict) -> dict[str, str | None]:
    record = {
        "statement": verdict.statement,
        "kind": verdict.kind.value,
        "target": verdict.target.value,
        "pin": verdict.pin,
        "rule": verdict.rule,
        "reason": verdict.reason,
        "block": verdict.block,
    }
    if verdict.protocol == "memcached":
        record["replicate"] = verdict.replicate.value if verdict.replicate is not None else None
    return record


def _print_words(verdicts: Iterable[Verdict]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for number, verdict in enumerate(verdicts):
        if number:
            console.print()
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        for name, words in _words(verdict):
            style = _STYLES.get(words, "") if name == "goes to" else ""
            table.add_row(name, Text(words, style=style))
        console.print(Text(verdict.statement, style="bold"))
        console.print(table)


_STYLES: Final = {"primary": "yellow", "replica": "green"}


def _words(verdict: Verdict) -> Iterable[tuple[str, str]]:
    yield "operation", f"{verdict.operation} ({verdict.kind.value})"
    if verdict.block is not None:
        yield "refused", verdict.block
    else:
        yield "goes to", verdict.target.value
    yield "reason", verdict.reason
    yield "rule", verdict.rule or "none"
    if verdict.target.value == "replica" and verdict.consistency is not None:
        limits = [verdict.consistency.value, f"at most {verdict.max_lag:g} s behind"]
        if verdict.freshness_wait:
            limits.append(f"waits {verdict.freshness_wait * 1000:g} ms for a fresh one, then the primary")
        yield "consistency", ", ".join(limits)
    if verdict.timeout is not None:
        yield "timeout", f"{verdict.timeout:g} s"
    if verdict.replicate is not None:
        yield (
            "replicated",
            {"sync": "before the answer", "async": "after the answer", "none": "not at all"}[verdict.replicate.value],
        )
    yield "pin", verdict.pin or "none"
