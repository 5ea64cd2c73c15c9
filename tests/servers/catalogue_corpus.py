"""The catalogue of tests/corpus/catalogue, as the two families of servers tell it."""

from __future__ import annotations

import json
from pathlib import Path

from gateway.demo.mysql_servers import MONITOR
from gateway.routing.catalogue import Catalogue, Grants, Sight
from gateway.topology.catalogue import contents_of

CATALOGUE_CORPUS = Path(__file__).parent.parent / "corpus" / "catalogue"
ALL_SEEN = "GRANT SELECT, SHOW VIEW, TRIGGER ON *.* TO `gateway`@`%`"


def captured(family: str) -> dict[str, list[list[str]]]:
    """The rows of each kind that a server of the family ("mariadb" or "mysql") told."""
    rows: dict[str, list[list[str]]] = json.loads((CATALOGUE_CORPUS / f"{family}.json").read_text(encoding="utf-8"))
    return rows


def catalogue(family: str, *grants: str, ignore_case: bool = False, version: int = 1) -> Catalogue:
    """The corpus's catalogue, as an account with these grants may use it; without any, one that sees everything."""
    sight = Sight(
        Grants(grants or (ALL_SEEN,)), family == "mariadb", (10, 11) if family == "mariadb" else (9, 7), MONITOR.user
    )
    loadable = frozenset[str]() if sight.grants.on_table("mysql", "func", "SELECT") else None
    contents = contents_of(captured(family), loadable, (), mariadb=family == "mariadb")
    return Catalogue(contents, sight, version=version, ignore_case=ignore_case)


def schema() -> list[str]:
    """The statements that make the schema."""
    return [line for line in (CATALOGUE_CORPUS / "schema.sql").read_text(encoding="utf-8").splitlines() if line]
