"""Gets other people's test suites and the clients that they test into a cache folder outside of the tree.

    cache = Cache()                          # $RW_GATEWAY_SUITES, or rw-gateway/suites in the user's cache folder
    cache.python                             # a virtual environment of its own, with the clients in it
    cache.source("django", "Django")         # the unpacked source distribution of the version that is installed there

Everything comes by pip and npm, as this machine has them configured, but for PyMySQL, which leaves its tests out of
its source distributions since 1.0: they come from its repository by git, with the package of the same tag.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

FOLDER_VARIABLE: Final = "RW_GATEWAY_SUITES"
"""The environment variable that names another cache folder."""

CLIENTS: Final = ("PyMySQL", "mysqlclient", "mysql-connector-python", "SQLAlchemy", "Django")
TOOLS: Final = ("pytest", "cryptography", "setuptools")

PYMYSQL_REPOSITORY: Final = "https://github.com/PyMySQL/PyMySQL"
PYMYSQL_VERSION: Final = "1.2.0"


class SourceMissingError(Exception):
    """A suite cannot be had on this machine; the text says what was tried and what a person can do."""


class Cache:
    """The folder with the virtual environment, the unpacked sources and npm's packages."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()
        self.environment = self.folder / "venv"

    @property
    def python(self) -> Path:
        """The interpreter of the clients' virtual environment."""
        return self.environment / "bin" / "python"

    def make_environment(self) -> None:
        """Makes the virtual environment and installs what is missing in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.python.exists():
            _run([sys.executable, "-m", "venv", str(self.environment)], "make a virtual environment")
        missing = [name for name in (*TOOLS, *CLIENTS) if self.version(name) is None]
        if missing:
            _run(
                [str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *missing],
                f"install {', '.join(missing)} (mysqlclient is compiled: it needs the packages libmariadb-dev, gcc, "
                "pkg-config and python3-dev)",
            )
        if not (self.folder / "node_modules" / "mysql2").is_dir():
            _run(["npm", "install", "--silent", "--no-fund", "--prefix", str(self.folder), "mysql2"], "install mysql2")

    def version(self, name: str) -> str | None:
        """The installed version of a distribution; None if it is not there."""
        asked = f"import importlib.metadata as m; print(m.version({name!r}))"
        done = subprocess.run([str(self.python), "-c", asked], capture_output=True, text=True, check=False)
        return done.stdout.strip() or None

    def source(self, name: str) -> Path:
        """The folder of a distribution's source with its tests: of the installed version, or of PYMYSQL_VERSION."""
        version = PYMYSQL_VERSION if name == "PyMySQL" else self.version(name)
        if version is None:
            raise SourceMissingError(f"{name} is not installed in {self.environment}")
        folder = self.folder / "sources" / f"{name}-{version}"
        if not folder.is_dir():
            if name == "PyMySQL":
                self._clone(PYMYSQL_REPOSITORY, f"v{version}", folder)
            else:
                self._unpack(name, version, folder)
        return folder

    def _unpack(self, name: str, version: str, folder: Path) -> None:
        downloads = self.folder / "downloads" / f"{name}-{version}"
        shutil.rmtree(downloads, ignore_errors=True)
        downloads.mkdir(parents=True)
        pip = [str(self.python), "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        _run(
            [*pip, "--no-deps", "--no-binary", name, "--dest", str(downloads), f"{name}=={version}"],
            f"download the source of {name} {version}",
        )
        (archive,) = downloads.glob("*.tar.gz")
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(archive) as packed:
            packed.extractall(partial, filter="data")
        (only,) = partial.iterdir()
        only.rename(folder)
        partial.rmdir()

    def _clone(self, repository: str, tag: str, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _run(
            ["git", "clone", "--quiet", "--depth", "1", "--branch", tag, repository, str(folder)],
            f"get {repository} at {tag} (where that cannot be reached, put its tree into {folder})",
        )


def default_folder() -> Path:
    """The cache folder: $RW_GATEWAY_SUITES, or one in the user's cache."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    if chosen:
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "rw-gateway" / "suites"


def _run(command: list[str], what: str) -> None:
    print(f"suites: {what.partition(' (')[0]}", flush=True)
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False)
    except FileNotFoundError as error:
        raise SourceMissingError(f"could not {what}: {error}") from error
    if done.returncode != 0:
        raise SourceMissingError(f"could not {what}: see above")
