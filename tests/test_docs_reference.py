"""The reference of the configuration names every key, with the default that holds, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec
import pytest

from gateway import config
from gateway.rules import model
from gateway.toml_struct import SHARE, SIZE, TIME

REFERENCE = Path(__file__).parent.parent / "docs/configuration.md"

SECTIONS: dict[str, type[msgspec.Struct]] = {
    "[gateway]": config.GatewaySettings,
    "[admin]": config.AdminSettings,
    "[log]": config.LogSettings,
    "[[listener]]": config.Listener,
    "log_in_failures": config.LogInFailures,
    "[[listener]] tls": config.ListenerTls,
    "[[group]] of MySQL or MariaDB": config.MysqlGroup,
    "members": config.Member,
    "monitor": config.Account,
    "users": config.User,
    "pool": config.Pool,
    "primary_reads": config.PrimaryReads,
    "backend_tls": config.BackendTls,
    "[[group]] of memcached": config.MemcachedGroup,
    "[group.pools.NAME]": config.MemcachedPool,
    "servers": config.PoolServer,
    "replica_buffer_limit": config.ReplicaBufferLimit,
    "[[rule]]": model.Rule,
    "[[rule]] match": model.Match,
    "[[rule]] route": model.RouteAction,
    "[[test]]": model.Test,
    "[[test]] expect": model.Expect,
}
"""What each table of the reference describes, by its heading."""


def tables() -> dict[str, dict[str, str]]:
    """Heading -> key -> default, as the reference has them."""
    found: dict[str, dict[str, str]] = {}
    heading = ""
    for line in REFERENCE.read_text().splitlines():
        if title := re.fullmatch(r"#+ `(.+)`|#+ (.+)", line):
            heading = (title[1] or title[2]).replace("`", "")
        elif row := re.fullmatch(r"\| `(\w+)` \| (.+?) \| .+ \|", line):
            keys = found.setdefault(heading, {})
            assert row[1] not in keys, f"{heading}: {row[1]} is there twice"
            keys[row[1]] = row[2]
    return found


def default_of(field: msgspec.structs.FieldInfo, hint: Any) -> str:
    """How the reference writes the default of a key: as TOML."""
    if field.default is msgspec.NODEFAULT:
        return "required"
    value = field.default
    if value is None:
        return "none"
    if isinstance(value, config.Address):
        return f'`"{value}"`'
    if isinstance(value, msgspec.Struct):
        return "see below"
    unit = next((each for each in get_args(hint)[1:] if each in (TIME, SIZE, SHARE)), None)
    if get_origin(hint) is Annotated and unit is not None:
        return f"`{with_unit(value, unit)}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return "`[]`"
    return f"`{value}`" if isinstance(value, int) else f'`"{value}"`'


def with_unit(value: float, unit: object) -> str:
    if unit is SHARE:
        return f'"{value * 100:g}%"'
    if unit is SIZE:
        return f'"{value / 2**20:g}MiB"'
    if value >= 3600:
        return f'"{value / 3600:g}h"'
    return f'"{value:g}s"' if value >= 1 else f'"{value * 1000:g}ms"'


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_reference_has_every_key_and_its_default(heading: str) -> None:
    struct = SECTIONS[heading]
    hidden = getattr(struct, "HIDDEN", ())
    hints = get_type_hints(struct, include_extras=True)
    wanted = {
        field.encode_name: default_of(field, hints[field.name])
        for field in msgspec.structs.fields(struct)
        if field.name not in hidden
    }
    assert tables()[heading] == wanted


def test_the_reference_has_no_other_tables() -> None:
    assert set(tables()) == set(SECTIONS)
