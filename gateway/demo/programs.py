"""Finds the real servers on this machine, Debian's own and those unpacked from Debian unstable.

`make servers` unpacks Debian unstable into a folder outside the tree (`unstable_folder`). Its programs run without
chroot and without root: started through that folder's own dynamic linker with that folder's libraries, they see the
machine's ordinary file system, so their data lies in the same temporary folder as everybody's.

This module and what it imports need nothing but the standard library: the set-up runs it before anything is installed.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from gateway.errors import GatewayError

FOLDER_VARIABLE = "RW_GATEWAY_UNSTABLE"
"""The environment variable that names another place for the unpacked Debian unstable."""

SYSTEM_FOLDER = Path("/var/cache/rw-gateway/sid")

MARIADB_PLUGINS = Path("/usr/lib/mysql/plugin")
"""Where Debian's package mariadb-server puts plugins that mariadb-server-core has not."""


class ServerMissingError(GatewayError):
    """A server program is not on this machine; the text says what installs it."""


@dataclass(frozen=True)
class Program:
    """A server program: how its command line begins, and the root of its own files (`/usr`, or the unpacked `usr`)."""

    name: str
    command: tuple[str, ...]
    usr: Path
    environment: dict[str, str] = field(default_factory=dict)


def unstable_folder() -> Path:
    """Where Debian unstable is, or goes to: $RW_GATEWAY_UNSTABLE, the folder of root's set-up, or the user's cache.

    A user without root sees what root has unpacked, where there is such a folder.
    """
    chosen = os.environ.get(FOLDER_VARIABLE)
    if chosen:
        return Path(chosen)
    if os.geteuid() == 0 or (SYSTEM_FOLDER / "usr").is_dir():
        return SYSTEM_FOLDER
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "rw-gateway" / "sid"


def debian(program: str, package: str) -> Program:
    """A program of the machine's own Debian packages; sbin is searched even where PATH lacks it."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    found = shutil.which(program, path=path)
    if found is None:
        raise ServerMissingError(f"{program} is not installed: run `make servers`, or install the package {package}")
    return Program(name=program, command=(found,), usr=Path("/usr"))


def unstable(program: str, package: str, libraries: tuple[str, ...] = ()) -> Program:
    """A program of the unpacked Debian unstable, say "sbin/mysqld"; `libraries` are its folders below usr/lib."""
    root = unstable_folder()
    usr = root / "usr"
    binary = usr / program
    linkers = sorted(usr.glob("lib/*-linux-gnu*/ld-linux*.so.*"))
    if not binary.is_file() or not linkers:
        raise ServerMissingError(
            f"{Path(program).name} of Debian unstable is not in {root}: run `make servers`, which unpacks the package "
            f"{package} there (set {FOLDER_VARIABLE} if it lies elsewhere)"
        )
    linker = linkers[0]
    path = ":".join([str(linker.parent), *(str(usr / "lib" / name) for name in libraries)])
    command = (str(linker), "--argv0", str(binary), "--library-path", path, str(binary))
    return Program(name=binary.name, command=command, usr=usr)


def mariadbd() -> Program:
    """MariaDB's server."""
    return debian("mariadbd", "mariadb-server")


def mariadb_install_db() -> Program:
    """The script that makes a MariaDB data folder."""
    return debian("mariadb-install-db", "mariadb-server")


def unpacked_plugins() -> Path:
    """Where the set-up unpacks them, beside Debian unstable, instead of installing a server that starts."""
    return unstable_folder().parent / "mariadb-plugins"


def mariadb_plugin_folder(plugin: str) -> Path:
    """The folder that has a plugin of MariaDB, say "auth_ed25519"."""
    for folder in (MARIADB_PLUGINS, unpacked_plugins()):
        if (folder / f"{plugin}.so").is_file():
            return folder
    raise ServerMissingError(f"MariaDB's plugin {plugin} is not on this machine: run `make servers`")


def mysqld() -> Program:
    """MySQL's newest server."""
    return unstable("sbin/mysqld", "mysql-server")


def mysqlrouter() -> Program:
    """MySQL Router, of the newest MySQL."""
    return unstable("bin/mysqlrouter", "mysql-router", ("mysql-router",))


def memcached() -> Program:
    """The memcached of the machine's own Debian."""
    return debian("memcached", "memcached")


def newest_memcached() -> Program:
    """The memcached of Debian unstable."""
    return unstable("bin/memcached", "memcached")


def redis_server() -> Program:
    """Redis's server."""
    return debian("redis-server", "redis-server")


def nutcracker() -> Program:
    """twemproxy, which Debian calls nutcracker."""
    return debian("nutcracker", "nutcracker")


def haproxy() -> Program:
    """HAProxy."""
    return debian("haproxy", "haproxy")


def sysbench() -> Program:
    """The load generator for SQL servers."""
    return debian("sysbench", "sysbench")
