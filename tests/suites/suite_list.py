"""Which suites there are: what each needs in the server, how it is started, and where it writes its outcomes.

A suite gets a *target* (host, port, account) and does not know whether a server or the gateway is behind it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sources import Cache

from gateway.demo.mysql_servers import Account, Flavor

RECORDER: Final = Path(__file__).with_name("record_unittest.py")
DJANGO_SETTINGS: Final = Path(__file__).with_name("django_settings.py")

ROOT: Final = Account("suite", "suite-secret")
"""May do everything, as the suites expect of the account that they are given."""

SECOND: Final = Account("test2", "some password")
"""PyMySQL's second account, with the rights on database test2 only."""


@dataclass(frozen=True)
class Target:
    """Where a suite connects to, and the folder for what it writes."""

    host: str
    port: int
    flavor: Flavor
    folder: Path

    @property
    def outcomes(self) -> Path:
        """The file of outcomes: JUnit's XML of pytest, or lines of JSON of record_unittest."""
        return self.folder / "outcomes"


@dataclass(frozen=True)
class Run:
    """A command, the folder to start it in, and more of its environment."""

    command: Sequence[str]
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """A test suite of somebody else's. `prepare` may be given arguments that select a part of it."""

    name: str
    package: str
    databases: tuple[str, ...]
    prepare: Callable[[Cache, Target, Sequence[str]], Run]
    flavors: tuple[Flavor, ...] = ("mariadb", "mysql")
    statements: tuple[str, ...] = ()


def _pytest(cache: Cache, target: Target, *arguments: str) -> list[str]:
    command = [str(cache.python), "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={target.outcomes}"]
    return [*command, "-o", "junit_family=xunit1", *arguments]


def _pymysql(cache: Cache, target: Target, only: Sequence[str]) -> Run:
    source = cache.source("PyMySQL")
    place = {"host": target.host, "port": target.port}
    root = {**place, "user": ROOT.user, "password": ROOT.password}
    second = {**place, "user": SECOND.user, "password": SECOND.password, "database": "test2"}
    databases = [{**root, "database": "test1", "use_unicode": True, "local_infile": True}, second]
    (source / "pymysql/tests/databases.json").write_text(json.dumps(databases))
    command = _pytest(cache, target, "-v", *(only or ["pymysql"]))
    environment = {"USER": "root", "PASSWORD": ""}  # what tests/test_auth.py and test_connection.py ask for
    return Run(command, source, environment)


def _sqlalchemy(driver: str) -> Callable[[Cache, Target, Sequence[str]], Run]:
    def prepare(cache: Cache, target: Target, only: Sequence[str]) -> Run:
        uri = f"mysql+{driver}://{ROOT.user}:{ROOT.password}@{target.host}:{target.port}/test?charset=utf8mb4"
        parts = only or ["test/dialect/test_suite.py", "test/dialect/mysql"]
        options = ["--dburi", uri, "--maxfail=10000"]
        return Run(_pytest(cache, target, *options, *parts), cache.source("SQLAlchemy"))

    return prepare


def _mysqlclient(cache: Cache, target: Target, only: Sequence[str]) -> Run:
    source = cache.source("mysqlclient")
    options = target.folder / "mysqlclient.cnf"
    options.write_text(
        f"[MySQLdb-tests]\nhost = {target.host}\nport = {target.port}\nuser = {ROOT.user}\npassword = {ROOT.password}\n"
        "database = test\ndefault-character-set = utf8mb4\nlocal-infile = 1\n"
    )
    return Run(_pytest(cache, target, "-v", *(only or ["tests"])), source, {"TESTDB": str(options)})


def _django(cache: Cache, target: Target, only: Sequence[str]) -> Run:
    tests = cache.source("Django") / "tests"
    parts = only or ["backends", "transactions", "introspection", "queries"]
    options = [f"--settings={DJANGO_SETTINGS.stem}", "--parallel=1", "--noinput", "--verbosity=1"]
    environment = {
        "PYTHONPATH": os.pathsep.join([str(DJANGO_SETTINGS.parent), str(tests.parent)]),
        "SUITES_HOST": target.host,
        "SUITES_PORT": str(target.port),
        "SUITES_USER": ROOT.user,
        "SUITES_PASSWORD": ROOT.password,
    }
    command = [str(cache.python), str(RECORDER), str(target.outcomes), str(tests / "runtests.py"), *options, *parts]
    return Run(command, tests, environment)


def _connector(cache: Cache, target: Target, only: Sequence[str]) -> Run:
    source = cache.source("mysql-connector-python")
    options = ["--use-external-server", "--skip-install", f"--host={target.host}", f"--port={target.port}"]
    options += [f"--user={ROOT.user}", f"--password={ROOT.password}"]
    only = only or ["--test-regex=(?!.*timeout)"]  # those modules wait for minutes for the client's own time-outs
    command = [str(cache.python), str(RECORDER), str(target.outcomes), str(source / "unittests.py"), *options, *only]
    # Its C extension needs the OpenSSL that comes with it, and Python's own ssl would have loaded an older one first.
    libraries = cache.environment.glob("lib/*/site-packages/mysql/vendor")
    environment = {"LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}
    return Run(command, source, environment)


SUITES: Final = (
    Suite(
        "pymysql",
        "PyMySQL",
        ("test1", "test2"),
        _pymysql,
        statements=(
            f"CREATE USER IF NOT EXISTS '{SECOND.user}'@'%' IDENTIFIED BY '{SECOND.password}'",
            f"GRANT ALL ON test2.* TO '{SECOND.user}'@'%'",
        ),
    ),
    Suite("sqlalchemy-pymysql", "SQLAlchemy", ("test", "test_schema"), _sqlalchemy("pymysql")),
    Suite("sqlalchemy-mysqlclient", "SQLAlchemy", ("test", "test_schema"), _sqlalchemy("mysqldb")),
    Suite("mysqlclient", "mysqlclient", ("test",), _mysqlclient),
    Suite("django", "Django", (), _django),
    Suite("mysql-connector-python", "mysql-connector-python", ("myconnpy",), _connector),
)
