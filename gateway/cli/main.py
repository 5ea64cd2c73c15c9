"""The command `gateway`: its sub-commands, its exit codes, and errors in one line.

A sub-command is imported when it is called, so that `gateway explain` does not pay for the server. Each lives in
`gateway.cli.NAME` as a function NAME that returns its exit code; help texts are here, so that `gateway --help` imports
none of them.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import sys
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

from cyclopts import App, CycloptsError

from gateway.errors import ConfigError, GatewayError


class Exit(IntEnum):
    """What the process tells its caller."""

    OK = 0
    CHECK_FAILED = 1  # configuration, rules, their tests, or the demo's own checks
    USAGE = 2
    UNREACHABLE = 3  # could not start the gateway, or not reach the running one
    INTERRUPTED = 130  # by Ctrl-C, as shells have it: 128 + SIGINT


COMMANDS: Final = {
    "run": "Start the gateway and serve until SIGTERM.",
    "check": "Check configuration, rules and the tests beside the rules.",
    "explain": "Say where statements would go, and why.",
    "status": "Ask the running gateway who serves what, positions, lag and ledger.",
    "demo": "Start real servers and a gateway on this machine, and watch reads and writes being split.",
}

HELP: Final = """\
Read/write-splitting gateway for MySQL, MariaDB and memcached.

Applications connect to it as to a server. It sends writes to the primary,
and reads to a replica that is fresh enough.
"""

EXIT_CODES: Final = """\
Exit codes: 0 ok, 1 a check failed (configuration, rules, tests),
2 usage error, 3 the gateway could not start or be reached.
"""

EXAMPLES: Final = """\
Examples:

    gateway demo
    gateway check -c gateway.toml
    gateway run -c gateway.toml
    gateway explain "SELECT * FROM orders"
    gateway explain --user web --json - < statements.sql
    gateway status --json
"""


def make_app(command: str | None = None) -> App:
    """The command line, with those sub-commands that this installation has; `command` is the one that is called.

    That one shows its own help, which its docstring has; the short texts are for the list of them all.
    """
    app = App(
        name="gateway",
        help=HELP,
        help_epilogue=EXIT_CODES if command in COMMANDS else f"{EXAMPLES}\n{EXIT_CODES}",
        help_format="plaintext",
        version=gateway_version,
        result_action="return_value",
    )
    for name, text in COMMANDS.items():
        module = f"gateway.cli.{name}"
        if importlib.util.find_spec(module) is not None:
            app.command(f"{module}:{name}", name=name, help=None if name == command else text)
    return app


def gateway_version() -> str:
    """As `gateway --version` prints it."""
    from importlib.metadata import version

    return f"gateway {version('rw-gateway')}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (None: the process's own) and return its exit code; nothing is raised for mistakes."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    command = next((word for word in words if not word.startswith("-")), None)
    if command is not None and command not in COMMANDS:
        # cyclopts would import every command to say this.
        near = difflib.get_close_matches(command, COMMANDS, 1)
        advice = f"Did you mean {near[0]}?" if near else "Try gateway --help."
        return _fail(f'There is no command "{command}". {advice}', Exit.USAGE)
    if words.count("-") == 1:
        # cyclopts takes it for an option; after "--" it is what it is everywhere, standard input.
        words = [word for word in words if word != "-"] + ["--", "-"]
    try:
        result = make_app(command)(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return _fail(f"{_one_line(error)} Try gateway {command or ''} --help.".replace("  ", " "), Exit.USAGE)
    except ConfigError as error:
        return _fail(str(error), Exit.CHECK_FAILED)
    except GatewayError as error:
        return _fail(str(error), Exit.UNREACHABLE)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough (`gateway explain ... | head`). What is still buffered must not raise
        # again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    return result if isinstance(result, int) else Exit.OK


def _one_line(error: CycloptsError) -> str:
    return " ".join(str(error).split())


def _fail(message: str, code: Exit) -> int:
    print(f"gateway: {message}", file=sys.stderr)
    return code
