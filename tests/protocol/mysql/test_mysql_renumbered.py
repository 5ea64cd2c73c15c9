"""Replies that a compressing server numbers too high reach their client with the numbers that it expects."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.protocol.mysql import answers
from gateway.protocol.mysql.constants import Capability, Command
from gateway.protocol.mysql.packets import PacketError
from gateway.protocol.mysql.renumbered import RenumberedTracker

NEW = int(Capability.PROTOCOL_41 | Capability.DEPRECATE_EOF | Capability.SESSION_TRACK)


def numbered(reply: bytes, by: int) -> bytes:
    """The same packets with other numbers."""
    out, at = bytearray(reply), 0
    while at < len(out):
        out[at + 3] = (out[at + 3] + by) & 0xFF
        at += 4 + int.from_bytes(out[at : at + 3], "little")
    return bytes(out)


@pytest.mark.parametrize("capabilities", [NEW, int(Capability.PROTOCOL_41)])
@given(st.lists(st.integers(1, 40), min_size=1))
@settings(max_examples=50, deadline=None)
def test_numbers_are_put_right_wherever_the_reply_is_cut(capabilities: int, cuts: list[int]) -> None:
    reply = answers.resultset(
        ("a", "b"),
        [
            (
                number,
                "x" * number,
            )
            for number in range(300)
        ],
        capabilities=capabilities,
        status=2,
    )
    tracker = RenumberedTracker(capabilities)
    for ahead in (1, 0, 2):
        tracker.begin(Command.QUERY, 1, ahead)
        sent, at, turn, passed = numbered(reply, ahead), 0, 0, b""
        while not tracker.done:
            passed += tracker.feed(sent[at : at + cuts[turn % len(cuts)]])
            at += cuts[turn % len(cuts)]
            turn += 1
        assert passed == reply


def test_any_other_number_is_an_error() -> None:
    tracker = RenumberedTracker(NEW)
    tracker.begin(Command.QUERY, 1, 1)
    with pytest.raises(PacketError):
        tracker.feed(answers.ok(1))
