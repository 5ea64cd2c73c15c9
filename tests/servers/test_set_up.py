"""The set-up finds this machine's mirror, leaves alone what is there, and says what to do where it may not go on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import set_up
from set_up import SetUpError

from gateway.demo.programs import FOLDER_VARIABLE

APT_TARGETS = """\
https://packages.example.org/other/ bookworm stable
http://mirror.example.org/debian-security/ bookworm-security main
http://mirror.example.org/debian/ bookworm-updates main
http://mirror.example.org/debian/ bookworm main
"""


@pytest.fixture
def apt_says(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replaces the answer of `apt-get indextargets` on a Debian 12; what matters is how it is read."""

    def answer(text: str) -> None:
        def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            assert command[:2] == ["apt-get", "indextargets"]
            return subprocess.CompletedProcess(command, 0, text, "")

        monkeypatch.setattr(subprocess, "run", run)
        monkeypatch.setattr(set_up, "codename", lambda: "bookworm")
        monkeypatch.delenv(set_up.MIRROR_VARIABLE, raising=False)

    return answer


def test_the_mirror_is_where_apt_takes_the_release_itself_from(apt_says: Callable[[str], None]) -> None:
    apt_says(APT_TARGETS)
    assert set_up.mirror() == "http://mirror.example.org/debian/"


def test_a_list_of_mirrors_is_followed_to_its_first(apt_says: Callable[[str], None], tmp_path: Path) -> None:
    mirrors = tmp_path / "debian.list"
    mirrors.write_text("https://near.example.org/debian\nhttps://far.example.org/debian\n")
    apt_says(f"mirror+file:{mirrors}/ bookworm main\n")
    assert set_up.mirror() == "https://near.example.org/debian"


def test_without_a_mirror_the_variable_to_set_is_named(
    apt_says: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    apt_says("https://packages.example.org/other/ bookworm stable\n")
    with pytest.raises(SetUpError, match=set_up.MIRROR_VARIABLE):
        set_up.mirror()
    monkeypatch.setenv(set_up.MIRROR_VARIABLE, "http://chosen.example.org/debian")
    assert set_up.mirror() == "http://chosen.example.org/debian"


def test_a_folder_of_somebodys_own_is_never_touched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("something")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(SetUpError, match="remove it, or set"):
        set_up.unpack_unstable()
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_what_an_interrupted_run_left_is_removed(tmp_path: Path) -> None:
    partial = tmp_path / "sid.partial"
    (partial / "debootstrap").mkdir(parents=True)
    (partial / "debootstrap/debootstrap.log").write_text("interrupted")
    set_up.remove(partial, [])
    assert not partial.exists()


def test_plugins_that_are_here_are_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "sid"))
    (tmp_path / "mariadb-plugins").mkdir()
    for name in set_up.MARIADB_PLUGIN_FILES:
        (tmp_path / "mariadb-plugins" / name).write_text("precious")
    monkeypatch.setattr(subprocess, "run", None)
    set_up.unpack_mariadb_plugins()


def test_an_unknown_word_is_an_error_in_one_line() -> None:
    done = subprocess.run([sys.executable, set_up.__file__, "everything"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "set-up: nothing is called 'everything': demo, servers, suites or python\n"
