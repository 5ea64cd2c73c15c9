"""Gets the servers that the demo, the tests and the benchmarks start, from Debian's packages.

    python3 scripts/set_up.py demo       what `gateway demo` starts
    python3 scripts/set_up.py servers    everything, with MySQL 9, MySQL Router and the newest memcached
    python3 scripts/set_up.py suites     what other people's test suites need besides: compilers and Node.js
    python3 scripts/set_up.py python     what a virtual environment needs

What is there is left alone. Nothing is started: packages without a service are taken where there is a choice, and
policy-rc.d (see invoke-rc.d(8)) forbids the others to start while they are installed. The programs of Debian unstable
are unpacked by debootstrap into a folder outside the tree, with the mirror that this machine's apt uses.

It runs on a machine's own Python, before anything is installed, so it imports the standard library and, from the
project, only what does the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gateway.demo.programs import FOLDER_VARIABLE, MARIADB_PLUGINS, unpacked_plugins, unstable_folder

MIRROR_VARIABLE = "RW_GATEWAY_MIRROR"
"""The environment variable that names a Debian mirror, where apt's own configuration does not."""

DEMO_PACKAGES = ("mariadb-server-core", "mariadb-client-core", "memcached")
SERVER_PACKAGES = (
    *DEMO_PACKAGES,
    "redis-server",
    "nutcracker",
    "haproxy",
    "sysbench",
    "iproute2",
    "util-linux",
)
UNPACKING_PACKAGES = ("debootstrap", "debian-archive-keyring", "gpgv", "wget", "ca-certificates", "xz-utils", "mount")
PYTHON_PACKAGES = ("python3-venv",)
SUITE_PACKAGES = ("libmariadb-dev", "gcc", "pkg-config", "python3-dev", "git")
NODE_PACKAGES = ("nodejs", "npm")

UNSTABLE_PACKAGES = ("mysql-server-core", "mysql-client-core", "mysql-router", "memcached")
UNSTABLE_PROGRAMS = ("usr/sbin/mysqld", "usr/bin/mysql", "usr/bin/mysqlrouter", "usr/bin/memcached")

MARIADB_PLUGIN_PACKAGE = "mariadb-server"
MARIADB_PLUGIN_FILES = ("auth_ed25519.so",)

RELEASES = frozenset({"oldoldstable", "oldstable", "stable", "testing", "unstable", "sid"})

INSTALL = """
if [ ! -e /usr/sbin/policy-rc.d ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    trap 'exit 130' INT TERM
    printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -q update || echo 'apt-get update failed; going on with the package lists that are here' >&2
apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@" < /dev/null
"""


class SetUpError(Exception):
    """Something that this machine does not allow; the text says what a person can do."""


def say(text: str) -> None:
    """One line of what happens."""
    print(f"set-up: {text}", flush=True)


def as_root() -> list[str]:
    """What goes before a command that needs root. sudo asks for a password only where somebody can type one."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") is None:
        raise SetUpError("this needs root, and there is no sudo")
    prefix = ["sudo"] if sys.stdin.isatty() else ["sudo", "-n"]
    if subprocess.run([*prefix, "true"], check=False).returncode != 0:
        raise SetUpError("this needs root, and sudo refused")
    return prefix


def installed(package: str) -> bool:
    """Whether dpkg has the package, configured."""
    status = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Status}", package], capture_output=True, text=True, check=False
    )
    return status.stdout == "install ok installed"


def install(packages: tuple[str, ...]) -> None:
    """Installs what is missing of these packages, without starting a service."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-query") is None:
        raise SetUpError(
            "this machine has no apt: install these programs by its own means, then start the demo or the tests "
            f"without `make` ({', '.join(packages)} are Debian's names of them)"
        )
    missing = [package for package in packages if not installed(package)]
    if not missing:
        say(f"Debian packages: all {len(packages)} are here")
        return
    try:
        command = [*as_root(), "sh", "-ec", INSTALL, "install", *missing]
    except SetUpError as error:
        raise SetUpError(f"{error}: install with `apt-get install {' '.join(missing)}`") from error
    say(f"installing the Debian packages {' '.join(missing)}; no service of theirs is started now")
    if subprocess.run(command, check=False).returncode != 0:
        raise SetUpError(f"apt-get could not install {' '.join(missing)}: see above")


def codename() -> str:
    """This Debian's release name, "bookworm"; empty where os-release has none."""
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    return ""


def mirror() -> str:
    """The mirror from which this machine's apt takes Debian itself; apt reads both forms of its configuration."""
    chosen = os.environ.get(MIRROR_VARIABLE)
    if chosen:
        return chosen
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    )
    for line in targets.stdout.splitlines():
        uri, release, component = [*line.split(), "", "", ""][:3]
        if component != "main" or release not in RELEASES | {codename()}:
            continue
        if uri.startswith("mirror+file:"):  # a list of mirrors, as Debian's cloud images have it
            uri = Path(uri.removeprefix("mirror+file:").rstrip("/")).read_text().split()[0]
        if uri.startswith(("http:", "https:", "file:")):
            return uri
    raise SetUpError(f"apt's sources name no Debian mirror: set {MIRROR_VARIABLE} to the address of one")


def apt_proxies() -> list[str]:
    """The proxy that apt uses, as assignments for env(1): debootstrap does not read apt's configuration."""
    found = []
    for scheme in ("http", "https"):
        setting = subprocess.run(
            ["apt-config", "shell", "proxy", f"Acquire::{scheme}::Proxy"], capture_output=True, text=True, check=True
        )
        value = "".join(shlex.split(setting.stdout)).removeprefix("proxy=")
        value = value or os.environ.get(f"{scheme}_proxy", "")
        if value and value != "DIRECT":
            found.append(f"{scheme}_proxy={value}")
    return found


def unpack_unstable() -> None:
    """Unpacks MySQL, MySQL Router and the newest memcached of Debian unstable, unless they are there."""
    folder = unstable_folder()
    if all((folder / program).exists() for program in UNSTABLE_PROGRAMS):
        say(f"MySQL, MySQL Router and the newest memcached: are in {folder}")
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise SetUpError(
            f"{folder} is not empty but lacks {' or '.join(UNSTABLE_PROGRAMS)}: remove it, or set {FOLDER_VARIABLE} "
            "to another folder"
        )
    install(UNPACKING_PACKAGES)
    partial = folder.with_name(folder.name + ".partial")
    debootstrap = shutil.which("debootstrap", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if debootstrap is None:
        raise SetUpError("debootstrap is not installed")
    source = mirror()
    include = f"--include={','.join(UNSTABLE_PACKAGES)}"
    command = [debootstrap, "--variant=minbase", include, "sid", str(partial), source]
    say(f"unpacking {', '.join(UNSTABLE_PACKAGES)} of Debian unstable into {folder} (700 MB, about a minute)")
    try:
        root = as_root()
    except SetUpError as error:
        raise SetUpError(f"{error}: run `{' '.join(command)}` as root, then move {partial} to {folder}") from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    with only_one(folder.parent):
        if (folder / UNSTABLE_PROGRAMS[0]).exists():
            return
        remove(partial, root)
        # sudo passes no environment on, and PATH of a plain user lacks sbin, which debootstrap needs
        environment = ["env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *apt_proxies()]
        log = partial / "debootstrap/debootstrap.log"
        done = subprocess.run([*root, *environment, *command], stdin=subprocess.DEVNULL, check=False)
        if done.returncode != 0:
            raise SetUpError(f"debootstrap failed: see above, and {log} if it is there; the next run begins anew")
        if folder.is_dir():
            folder.rmdir()
        subprocess.run([*root, "mv", str(partial), str(folder)], check=True)
        subprocess.run(
            [*root, "sh", "-c", f"rm -f {shlex.quote(str(folder))}/var/cache/apt/archives/*.deb"], check=True
        )


def unpack_mariadb_plugins() -> None:
    """Takes the plugins that tests use out of the package whose installation would start a server."""
    folder = unpacked_plugins()
    if any(all((place / name).exists() for name in MARIADB_PLUGIN_FILES) for place in (MARIADB_PLUGINS, folder)):
        say(f"MariaDB's plugins {', '.join(MARIADB_PLUGIN_FILES)}: are here")
        return
    say(f"unpacking {', '.join(MARIADB_PLUGIN_FILES)} of the package {MARIADB_PLUGIN_PACKAGE} into {folder}")
    with tempfile.TemporaryDirectory() as scratch:
        for command in (
            ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", MARIADB_PLUGIN_PACKAGE],
            ["sh", "-c", "dpkg-deb --extract *.deb ."],
        ):
            if subprocess.run(command, cwd=scratch, check=False).returncode != 0:
                raise SetUpError(f"`{' '.join(command)}` failed: see above; `apt-get update` as root may help")
        root = [] if os.access(folder.parent, os.W_OK) else as_root()
        subprocess.run([*root, "mkdir", "-p", str(folder)], check=True)
        found = [f"{scratch}{MARIADB_PLUGINS}/{name}" for name in MARIADB_PLUGIN_FILES]
        subprocess.run([*root, "cp", *found, str(folder)], check=True)


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Waits for another set-up that unpacks into the same place."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove(partial: Path, root: list[str]) -> None:
    """Removes what an interrupted debootstrap left; what it had mounted inside is unmounted first."""
    if not partial.exists():
        return
    say(f"removing {partial}, which an interrupted run left")
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((mount for mount in mounts if mount.startswith(f"{partial}/")), reverse=True):
        subprocess.run([*root, "umount", mount], check=True)
    subprocess.run([*root, "rm", "-rf", "--one-file-system", str(partial)], check=True)


def has_venv() -> bool:
    """Whether this Python can make a virtual environment; Debian packs ensurepip apart."""
    return importlib.util.find_spec("ensurepip") is not None and importlib.util.find_spec("venv") is not None


def main(what: str) -> int:
    """Gets what is missing; returns the exit status."""
    try:
        if what == "demo":
            install(DEMO_PACKAGES)
        elif what == "servers":
            install(SERVER_PACKAGES)
            unpack_unstable()
            unpack_mariadb_plugins()
        elif what == "suites":
            install(SUITE_PACKAGES)
            if shutil.which("npm") is None:  # Node.js is often here from elsewhere, and brings npm
                install(NODE_PACKAGES)
        elif what == "python":
            if not has_venv():
                install(PYTHON_PACKAGES)
        else:
            raise SetUpError(f"nothing is called {what!r}: demo, servers, suites or python")
    except SetUpError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2] or ["servers"]))
