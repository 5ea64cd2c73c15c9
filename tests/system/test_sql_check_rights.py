"""`gateway check` asks the servers what the monitor account lacks, and names statements that a person can run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from backend_accounts import may_read_accounts

from gateway.cli import rights
from gateway.cli.main import main
from gateway.demo.mysql_servers import MysqlGroup

pytestmark = pytest.mark.servers


def test_every_grant_that_is_missing_is_named_and_helps(
    sql_group: MysqlGroup, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rights, "ASK_SECONDS", 30.0)  # a person's patience, not that of a busy machine
    members = ", ".join(f'"{server.address}"' for server in sql_group.servers)
    file = tmp_path / "gateway.toml"
    file.write_text(
        '[[listener]]\nname = "sql"\nprotocol = "mysql"\nlisten = "127.0.0.1:6033"\ngroup = "orders"\n'
        f'[[group]]\nname = "orders"\nengine = "mysql"\nmembers = [{members}]\nusers = "backend"\n'
        'monitor = {user = "m_blind", password = "pw"}\n'
    )

    def warnings() -> list[str]:
        assert main(["check", "-c", str(file)]) == 0
        return [line for line in capsys.readouterr().err.splitlines() if "GRANT" in line]

    sql_group.primary.query("CREATE USER m_blind IDENTIFIED BY 'pw'")
    try:
        sql_group.wait_caught_up()
        found = warnings()
        mine = f"GRANT {may_read_accounts(sql_group)} TO 'm_blind'@'%'"
        assert f'{file}: warning: group "orders": the monitor account {rights.CLOSED}: {mine}' in found
        assert any(rights.BLIND in line for line in found)
        for line in found:
            statement = re.search("GRANT .*", line)
            assert statement is not None
            sql_group.primary.query(statement[0])
        sql_group.wait_caught_up()
        assert warnings() == []
        file.write_text(file.read_text().replace('"backend"', '[{name = "app", password = "a"}]'))
        sql_group.primary.query(f"REVOKE {may_read_accounts(sql_group)} FROM m_blind")
        sql_group.wait_caught_up()
        assert warnings() == []  # listed users need no accounts to be read
    finally:
        sql_group.primary.query("DROP USER m_blind")
