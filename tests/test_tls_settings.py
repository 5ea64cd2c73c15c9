"""The files that `tls` and `backend_tls` name: what is wrong with them is told with the line of the setting."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from certificates import Authority
from cryptography.hazmat.primitives import serialization

from gateway.cli.main import main
from gateway.config import read_config
from gateway.tls_settings import tls_problems, tls_warnings

CONFIG = """\
[[listener]]
name = "sql"
protocol = "mysql"
listen = "127.0.0.1:6033"
group = "orders"
tls = {{{tls}}}

[[group]]
name = "orders"
engine = "mysql"
members = ["127.0.0.1:3306"]
monitor = {{user = "gateway", password = "m"}}
users = [{{name = "app", password = "a"}}]
backend_tls = {{{backend}}}
"""

GOOD = 'cert = "server.pem", key = "server.key"'


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Its certificate is test-authority.pem; server.pem, server.key and other.key are there, too."""
    authority = Authority(tmp_path)
    authority.issue("server", "127.0.0.1")
    authority.issue("other", "127.0.0.1")
    return authority


def problems(tmp_path: Path, tls: str = GOOD, backend: str = "") -> list[str]:
    """Without the folder's name."""
    file = tmp_path / "gateway.toml"
    file.write_text(CONFIG.format(tls=tls, backend=backend))
    config, found = read_config(file)
    if config is not None:
        found = tls_problems(config)
    return [str(problem).replace(f"{tmp_path}/", "") for problem in found]


@pytest.mark.parametrize(
    ("tls", "backend"),
    [
        (GOOD, ""),
        (
            GOOD + ', required = true, client_ca = "test-authority.pem", client_certificates = "optional"',
            "verify = true",
        ),
        (GOOD, 'ca = "test-authority.pem", verify = "ca"'),
        (GOOD, "verify = false"),
        (GOOD, GOOD),
    ],
)
@pytest.mark.usefixtures("authority")
def test_good_files_are_good(tmp_path: Path, tls: str, backend: str) -> None:
    assert problems(tmp_path, tls, backend) == []


@pytest.mark.parametrize(
    ("tls", "backend", "found"),
    [
        ('cert = "no.pem", key = "server.key"', "", "6: no.pem cannot be read: No such file or directory"),
        ('cert = "server.pem", key = "/"', "", "6: / cannot be read: Is a directory"),
        (
            'cert = "server.pem", key = "other.key"',
            "",
            "6: the key other.key does not belong to the certificate server.pem",
        ),
        (
            'cert = "encrypted.key", key = "encrypted.key"',
            "",
            "6: encrypted.key and encrypted.key are not a certificate and its key in PEM",
        ),
        (
            'cert = "server.pem", key = "encrypted.key"',
            "",
            "6: the key encrypted.key is encrypted: the gateway has nobody to ask for its password",
        ),
        (
            GOOD + ', client_ca = "server.key"',
            "",
            "6: server.key holds no certificates in PEM",
        ),
        (GOOD, 'ca = "no.pem"', "14: no.pem cannot be read: No such file or directory"),
        (GOOD, 'cert = "server.pem"', "14: cert and key of backend_tls belong together"),
        (GOOD, 'ca = "test-authority.pem", verify = false', "14: backend_tls has a ca, but verify = false: nothing"),
        (GOOD, 'verify = "host"', '14: group[1].backend_tls.verify must be "ca" or true or false, not "host"'),
        (GOOD + ', client_certificates = "optional"', "", "6: client_certificates means nothing without client_ca"),
        (GOOD + ', client_certificates = "no"', "", "6: listener[1].tls.client_certificates must be"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(
    tmp_path: Path, authority: Authority, tls: str, backend: str, found: str
) -> None:
    key = serialization.load_pem_private_key((tmp_path / "server.key").read_bytes(), None)
    (tmp_path / "encrypted.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    (problem,) = problems(tmp_path, tls, backend)
    assert problem.startswith(f"gateway.toml:{found}")


def test_a_certificate_that_ends_soon_is_warned_of(tmp_path: Path, authority: Authority) -> None:
    authority.issue("old", "127.0.0.1", expired=True)
    (tmp_path / "gateway.toml").write_text(CONFIG.format(tls='cert = "old.pem", key = "old.key"', backend=GOOD))
    config, _ = read_config(tmp_path / "gateway.toml")
    assert config is not None
    assert tls_problems(config) == []
    (warning,) = tls_warnings(config)
    assert "gateway.toml:6: the certificate" in str(warning)
    assert "old.pem expired on " in str(warning)
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=355)
    assert ["expired" in str(one) for one in tls_warnings(config, later)] == [True, False]
    assert "server.pem expires on " in str(tls_warnings(config, later)[1])


def test_check_and_run_say_the_same(tmp_path: Path, authority: Authority, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(CONFIG.format(tls='cert = "no.pem", key = "server.key"', backend=""))
    assert main(["check", "-c", str(file)]) == 1
    assert f"{file}:6: {tmp_path}/no.pem cannot be read" in capsys.readouterr().err
    assert main(["run", "-c", str(file)]) == 3
    assert f"{file}:6: {tmp_path}/no.pem cannot be read" in capsys.readouterr().err
