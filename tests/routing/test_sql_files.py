"""Which files of the client a text names."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.routing.fingerprint import DEFAULT_READING
from gateway.routing.sql_files import TEXT_BYTES, local_files


@pytest.mark.parametrize(
    ("sql", "names"),
    [
        (b"LOAD DATA LOCAL INFILE 'a.csv' INTO TABLE t", [b"a.csv"]),
        (b'load data low_priority local infile "a.csv" ignore into table t', [b"a.csv"]),
        (b"LOAD DATA CONCURRENT LOCAL INFILE 'x' REPLACE INTO TABLE t FIELDS TERMINATED BY 'LOCAL INFILE'", [b"x"]),
        (b"LOAD XML LOCAL INFILE '/tmp/p.xml' INTO TABLE t", [b"/tmp/p.xml"]),
        (b"LOAD DATA LOCAL INFILE 'C:\\\\a\\'b\\tc''d' INTO TABLE t", [b"C:\\a'b\tc'd"]),
        (b"LOAD DATA LOCAL INFILE 'a' INTO TABLE t; LOAD DATA LOCAL INFILE 'b' INTO TABLE t", [b"a", b"b"]),
        (b"/* a */ LOAD /* b */ DATA -- c\n LOCAL INFILE N'\xc3\xa9\xff' INTO TABLE t", [b"\xc3\xa9\xff"]),
        (b"/*!40000 LOAD DATA LOCAL INFILE 'x' INTO TABLE t */", [b"x"]),
        (b"SET STATEMENT max_statement_time=5 FOR LOAD DATA LOCAL INFILE 'x' INTO TABLE t", [b"x"]),
        (b"LOAD DATA INFILE 'x' INTO TABLE t", []),
        (b"SELECT 'LOAD DATA LOCAL INFILE ''x'''", []),
        (b"SELECT 1 /* LOAD DATA LOCAL INFILE 'x' */", []),
        (b"INSERT INTO local VALUES ('infile', 'x')", []),
        (b"LOAD DATA LOCAL INFILE 'x", []),
        (b"LOAD DATA LOCAL INFILE 'x' INTO TABLE t -- " + b"y" * TEXT_BYTES, []),
    ],
)
def test_the_names_are_those_of_the_statement(sql: bytes, names: list[bytes]) -> None:
    assert local_files(sql, DEFAULT_READING) == names


def test_what_a_backslash_is_depends_on_the_sql_mode() -> None:
    reading = replace(DEFAULT_READING, no_backslash_escapes=True)
    assert local_files(b"LOAD DATA LOCAL INFILE 'C:\\tmp\\''x' INTO TABLE t", reading) == [b"C:\\tmp\\'x"]
