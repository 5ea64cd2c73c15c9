"""What README and docs say is there: files, commands, messages, and configurations that pass `gateway check`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli.main import COMMANDS, main
from gateway.config import read_config
from gateway.config_check import unserved
from gateway.rules.compile import RuleSet
from gateway.rules.load import read_rules
from gateway.rules.setting import Setting
from gateway.rules.tests import failing_tests

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
IDS = [page.name for page in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


def texts() -> Iterator[str]:
    """Every text in the program; a place that is filled in at run time is "..."."""
    for path in [*ROOT.glob("gateway/**/*.py"), ROOT / "scripts/set_up.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)):
                value = node.value
                yield value.decode("latin-1") if isinstance(value, bytes) else value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(
                    part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else "..."
                    for part in node.values
                )


def messages() -> list[str]:
    """The first cells of the tables of messages."""
    sections = (ROOT / "docs/troubleshooting.md").read_text().split("\n## ")
    tables = "\n".join(section for section in sections if " errors\n" in section or section.startswith("Starting"))
    return [message for message in re.findall(r"^\| `(.+?)` ", tables, re.MULTILINE) if message != "gateway:"]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), target


MADE = {"benchmarks/reports/", "tests/suites/reports"}  # by commands that the page names


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_paths_and_commands_exist(page: Path) -> None:
    text = page.read_text()
    for path in re.findall(r"`((?:docs|examples|rules|deploy|benchmarks|tests|scripts)/[\w./-]*)`", text):
        assert (ROOT / path).exists() or path in MADE, path
    for command in re.findall(r"(?:^|`)gateway ([a-z]+)", text, re.MULTILINE):
        assert command in COMMANDS, command
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_configurations_and_rules_can_be_used(page: Path, tmp_path: Path) -> None:
    found = blocks(page, "toml")
    whole = [block for block in found if "[[listener]]" in block]
    for number, block in enumerate(whole):
        file = tmp_path / f"{number}.toml"
        file.write_text(block)
        config, problems = read_config(file)
        assert config is not None, problems
        assert unserved(config) == []
    for number, block in enumerate(block for block in found if block not in whole):
        folder = tmp_path / f"rules-{number}"
        folder.mkdir()
        (folder / "rules.toml").write_text(block)
        files, problems = read_rules(folder)
        assert problems == []
        assert files[0].rules
        assert failing_tests(files, Setting(RuleSet(files))) == []


def test_the_program_can_say_every_message_of_the_troubleshooting_page() -> None:
    known = list(texts())
    assert len(messages()) > 25
    for message in messages():
        pattern = re.compile(".*".join(re.escape(part) for part in message.split("...")), re.DOTALL)
        assert any(pattern.search(text) for text in known), message


def test_statements_of_the_guide_go_where_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    for statement, target in (
        ("SELECT id FROM orders WHERE id = 7", "replica"),
        ("SHOW TABLES", "replica"),
        ("CHECKSUM TABLE orders", "replica"),
        ("START TRANSACTION READ ONLY", "replica"),
        ("SELECT /* gateway: replica, max_lag=5s, consistency=eventual */ * FROM orders", "replica"),
        ("SELECT /* gateway: primary */ * FROM orders", "primary"),
        ("SELECT id FROM orders FOR UPDATE", "primary"),
        ("SELECT my_function(1)", "primary"),
        ("SELECT UUID_SHORT()", "primary"),
        ("SHOW PROCESSLIST", "primary"),
        ("SHOW WARNINGS", "primary"),
        ("SELECT 1; SELECT 2", "replica"),
        ("SELECT 1; DO SLEEP(0)", "primary"),
        ("BEGIN", "primary"),
    ):
        assert main(["explain", "--json", statement]) == 0
        assert f'"target":"{target}"' in capsys.readouterr().out, statement
