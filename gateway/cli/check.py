"""`gateway check`: is this configuration, with its rules and their tests, one that `gateway run` would serve?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gateway.cli.main import Exit
from gateway.config import Config, read_config
from gateway.config_check import unserved, warnings
from gateway.rules.compile import RuleSet
from gateway.rules.load import read_rules
from gateway.rules.setting import Setting
from gateway.tls_settings import tls_problems, tls_warnings


def check(
    *,
    config: Annotated[Path, Parameter(name=["--config", "-c"])] = Path("gateway.toml"),
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative="")] = False,
    offline: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Check configuration, rules and the tests beside the rules.

    Every problem is one line `file:line: message` on standard error. Warnings
    are about what `gateway run` would serve nevertheless. MySQL and MariaDB
    servers that can be reached within two seconds are asked whether the monitor
    account has the rights that it needs; secrets need not be known. The exit
    code is 0 if the configuration can be run, 1 if not.

    Examples:

        gateway check
        gateway check -c examples/gateway.toml

    Parameters
    ----------
    config
        The configuration file.
    quiet
        Say nothing but errors.
    offline
        Ask no server.
    """
    read, problems = read_config(config)
    if read is None:
        return _report([str(problem) for problem in problems])
    files, problems = read_rules(read.gateway.rules)
    errors = [*unserved(read), *map(str, tls_problems(read)), *(str(problem) for problem in problems)]
    if not problems:
        # Tests of rules that are wrong themselves would only hide what is wrong.
        from gateway.rules.tests import failing_tests

        errors += [str(problem) for problem in failing_tests(files, Setting(RuleSet(files), read))]
    if not quiet:
        for warning in [*warnings(read), *map(str, tls_warnings(read))]:
            place, _, message = warning.partition(": ")
            print(f"{place}: warning: {message}", file=sys.stderr)
        if not offline and not errors:
            from gateway.cli.rights import warnings_of_rights

            for warning in warnings_of_rights(read):
                print(f"{config}: warning: {warning}", file=sys.stderr)
    if errors:
        return _report(errors)
    if not quiet:
        rules, tests = sum(len(file.rules) for file in files), sum(len(file.tests) for file in files)
        print(f"{config}: ok: {_served(read)}; {rules} rules in {len(files)} files, {tests} tests passed")
    return Exit.OK


def _report(errors: list[str]) -> int:
    for error in errors:
        print(error, file=sys.stderr)
    return Exit.CHECK_FAILED


def _served(config: Config) -> str:
    listeners = [listener for listener in config.listeners if listener.protocol != "redis"]
    return ", ".join(f"{listener.protocol} at {listener.listen}" for listener in listeners)
