"""`gateway status`: who serves what, positions, lag and ledger of the running gateway."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import trio
from cyclopts import Parameter
from rich.console import Console, RenderableType
from rich.table import Table

from gateway.admin.status import ask_status
from gateway.cli.main import Exit
from gateway.config import load_config


def status(
    *,
    config: Annotated[Path, Parameter(name=["--config", "-c"])] = Path("gateway.toml"),
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Ask the running gateway who serves what, positions, lag and ledger.

    It is asked by the unix socket in data_dir, which only its owner can open.

    Examples:

        gateway status

        gateway status --json | jq .groups

    Parameters
    ----------
    config
        The configuration file that the gateway was started with: it says where data_dir is.
    json
        Print everything as one JSON document.
    """
    answer = trio.run(ask_status, load_config(config).gateway.data_dir)
    if json:
        sys.stdout.write(answer.decode())
        return Exit.OK
    console = Console()
    for part in render(msgspec.json.decode(answer)):
        console.print(part)
    return Exit.OK


def render(status: Mapping[str, Any]) -> list[RenderableType]:
    """The document of `gateway status --json` as tables; also what `gateway demo` shows."""
    parts: list[RenderableType] = [
        f"[bold]{status['name']}[/] (pid {status['pid']}), up {status['uptime_seconds']:.0f} s, {status['rules']} rules"
    ]
    listeners = _table("listener", "protocol", "address", "group", "connections", "refused")
    for one in status["listeners"]:
        refused = one["refused_connections"]
        listeners.add_row(
            one["listener"], one["protocol"], one["address"], one["group"], str(one["connections"]), str(refused)
        )
    parts.append(listeners)
    for name, group in status["groups"].items():
        parts.append(_sql_group(name, group) if group["engine"] == "mysql" else _key_group(name, group))
        if group.get("trouble"):
            parts.append(f"[red]{group['trouble']}[/]")
    return parts


def _sql_group(name: str, group: Mapping[str, Any]) -> Table:
    table = _table("member", "role", "state", "lag ms", "position", "reads", "writes", "connections")
    table.title = f"group {name}"
    for member in group["members"]:
        connections = member["connections"]
        table.add_row(
            member["name"],
            member["role"],
            f"[red]{member['fault']}[/]" if member["fault"] else "[green]serves[/]",
            "" if member["lag_ms"] is None else str(member["lag_ms"]),
            member["position"] or "",
            str(member["reads"]),
            str(member["writes"]),
            f"{connections['in_use']}/{connections['open']}/{connections['limit']}",
        )
    return table


def _key_group(name: str, group: Mapping[str, Any]) -> Table:
    table = _table("pool", "server", "role", "state", "offset", "lag s", "pending", "reads", "writes", "ledger")
    table.title = (
        f"group {name}: run {group['run_id'][:8]}, offset {group['offset']}, {group['backlog_bytes']} B backlog"
    )
    for server in group["primary"]["servers"]:
        doubtful = f", {server['doubtful_keys']} doubtful" if server["doubtful_keys"] else ""
        table.add_row(
            group["primary"]["pool"],
            server["server"],
            "primary",
            _colored(server["state"] + doubtful, good=server["connected"], why=server["trouble"]),
            str(group["offset"]),
            "",
            "",
            str(server["reads"]),
            str(server["writes"]),
            "",
        )
    for pool in group["replicas"]:
        for server in pool["servers"]:
            table.add_row(
                pool["pool"],
                server["server"],
                "replica",
                _colored(server["state"], good=server["readable"], why=server["reason"] or server["trouble"]),
                str(server["applied_offset"]),
                f"{server['lag_seconds']:.3f}",
                str(server["pending_keys"]),
                str(server["reads"]),
                "",
                _ledger(server["ledger"]),
            )
    return table


def _colored(state: str, *, good: bool, why: str | None) -> str:
    return f"[green]{state}[/]" if good else f"[red]{state}{': ' + why if why else ''}[/]"


def _ledger(ledger: Mapping[str, Any]) -> str:
    dropped = sum(ledger["dropped"].values())
    account = f"{ledger['accepted']} = {ledger['applied']} applied + {ledger['pending']} pending"
    return f"{account} + {dropped} dropped" if dropped else account


def _table(*columns: str) -> Table:
    table = Table(title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
