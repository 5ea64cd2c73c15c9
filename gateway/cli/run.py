"""`gateway run`: start the gateway and serve until it is told to stop."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import structlog
import trio
from cyclopts import Parameter

from gateway.app import load_ruleset, run_until_signalled
from gateway.cli.main import Exit
from gateway.config import LogSettings, read_config
from gateway.config_check import unserved, warnings
from gateway.errors import ConfigError
from gateway.tls_settings import tls_problems, tls_warnings


def run(*, config: Annotated[Path, Parameter(name=["--config", "-c"])] = Path("gateway.toml")) -> int:
    """Start the gateway and serve until SIGTERM or Ctrl-C.

    SIGTERM lets open transactions end (drain_timeout), SIGHUP reloads the rule files: all of them, or, if one is wrong
    or one of its tests fails, none; and the files of TLS. The log goes to standard error.

    Examples:

        gateway run

        gateway run -c /etc/gateway/gateway.toml

    Parameters
    ----------
    config
        The configuration file.
    """
    read, problems = read_config(config)
    if read is None:
        return _refuse([str(problem) for problem in problems])
    if refused := [*unserved(read), *map(str, tls_problems(read))]:
        return _refuse(refused)
    set_up_logging(read.log)
    log = structlog.get_logger("gateway")
    for warning in [*warnings(read), *map(str, tls_warnings(read))]:
        log.warning(warning)
    try:
        trio.run(run_until_signalled, read, load_ruleset(read))
    except ConfigError as error:
        return _refuse([str(error)])
    except BaseExceptionGroup as group:
        configuration, others = group.split(ConfigError)
        if configuration is None or others is not None:
            raise
        return _refuse([str(error) for error in _leaves(configuration)])
    return Exit.OK


def _refuse(problems: list[str]) -> int:
    for problem in problems:
        print(f"gateway: {problem}", file=sys.stderr)
    return Exit.UNREACHABLE


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def set_up_logging(settings: LogSettings) -> None:
    """Structured lines on standard error, as [log] says."""
    renderer = (
        structlog.processors.JSONRenderer()
        if settings.format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[settings.level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
