"""The gateway's own questions: what is answered comes out as rows, in both forms of a reply and every chunking."""

from __future__ import annotations

import pytest

from gateway.protocol.mysql import answers, commands
from gateway.protocol.mysql.constants import MAX_PAYLOAD, Capability, Command, Status
from gateway.protocol.mysql.packets import PacketError, lenenc_bytes, packet
from gateway.protocol.mysql.results import ResultReader

FORMS = pytest.mark.parametrize("capabilities", [0, int(Capability.DEPRECATE_EOF)])
ROWS = [("1", None, "ünïcode"), ("", "x" * 300, "\xfe")]


@FORMS
def test_rows_come_back_as_they_went_in_for_every_cut(capabilities: int) -> None:
    data = answers.resultset(["a", "b", "c"], ROWS, capabilities=capabilities, status=3, warnings=4) + b"more"
    for cut in range(len(data)):
        reader = ResultReader()
        reader.feed(data[:cut])
        if not reader.done:
            reader.feed(data[cut:])
            assert reader.leftover == b"more"
        assert reader.done
        assert reader.columns == ["a", "b", "c"]
        assert reader.rows == ROWS
        assert (reader.status, reader.warnings, reader.error) == (3, 4, None)


@FORMS
def test_a_row_over_16_mib_is_read(capabilities: int) -> None:
    rows = [("x" * (2 * MAX_PAYLOAD), "y"), ("z", None)]
    reader = ResultReader(limit=1 << 30)
    reader.feed(answers.resultset(["a", "b"], rows, capabilities=capabilities))
    assert reader.rows == rows


@FORMS
def test_the_last_of_several_results_counts(capabilities: int) -> None:
    reader = ResultReader()
    reader.feed(answers.resultset(["a"], [["1"]], capabilities=capabilities, status=int(Status.MORE_RESULTS_EXISTS)))
    assert not reader.done
    reader.feed(answers.resultset(["b"], [["2"]], capabilities=capabilities))
    assert (reader.done, reader.columns, reader.rows) == (True, ["b"], [("2",)])


def test_ok_and_err_are_told() -> None:
    reader = ResultReader()
    reader.feed(answers.ok(status=2) + b"x")
    assert (reader.done, reader.rows, reader.error, reader.leftover) == (True, [], None, b"x")
    reader = ResultReader()
    reader.feed(answers.err(1, 1227, "Access denied; you need SUPER", "42000"))
    assert reader.error is not None
    assert (reader.error.code, reader.error.sqlstate) == (1227, "42000")


def test_binary_strings_are_bytes_and_numbers_are_text() -> None:
    def column(kind: int) -> bytes:
        return b"\x03def\0\0\0\x01c\x01c\x0c" + (63).to_bytes(2, "little") + bytes(4) + bytes((kind,)) + bytes(5)

    blob, longlong = 0xFC, 0x08
    row = lenenc_bytes(b"\xff\0") + lenenc_bytes(b"42")
    reader = ResultReader()
    for sequence, payload in enumerate((b"\x02", column(blob), column(longlong), row, b"\xfe\0\0\x02\0\0\0"), 1):
        reader.feed(packet(sequence, payload))
    assert reader.rows == [(b"\xff\0", "42")]


def test_a_result_over_the_limit_is_an_error() -> None:
    data = answers.resultset(["a"], [["x" * 100]] * 20, capabilities=0)
    reader = ResultReader(limit=1000)
    reader.feed(data[:1000])
    with pytest.raises(PacketError, match="too large"):
        reader.feed(data[1000:1100])


@pytest.mark.parametrize("row", [b"\x011\x012", b"\x05abc", b""])
def test_a_row_that_does_not_fit_its_columns_is_an_error(row: bytes) -> None:
    head = answers.resultset(["a"], [], capabilities=0)[: -len(answers.eof(4))]
    reader = ResultReader()
    with pytest.raises(PacketError):
        reader.feed(head + packet(4, row))


def test_the_fields_of_commands() -> None:
    raw = commands.query("SELECT 'ü'")
    assert commands.command_of(raw) == Command.QUERY
    assert commands.argument_of(raw) == "SELECT 'ü'".encode()
    large = commands.query(b"x" * (2 * MAX_PAYLOAD))
    assert commands.argument_of(large) == b"x" * (2 * MAX_PAYLOAD)
    assert commands.database_of(commands.init_db("shop")) == "shop"
    execute = packet(0, b"\x17" + (77).to_bytes(4, "little") + b"\x01" + bytes(4))
    assert (commands.statement_id_of(execute), commands.cursor_type_of(execute)) == (77, 1)
    for broken in (packet(0, b"\x17"), packet(0, b"\x17abc")):
        with pytest.raises(PacketError):
            commands.statement_id_of(broken)
    with pytest.raises(PacketError):
        commands.cursor_type_of(packet(0, b"\x17abcd"))
