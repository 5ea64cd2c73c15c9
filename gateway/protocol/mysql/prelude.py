"""Swallows the replies to the gateway's own commands that stand in front of a client's."""

from __future__ import annotations

from struct import Struct
from typing import Final

from gateway.protocol.mysql.ok_packet import STATE_CHANGED, ServerError, parse_err, parse_ok
from gateway.protocol.mysql.packets import PacketError

_SHORTEST_OK: Final = 7  # bytes
_PRELUDE_LIMIT: Final = 1 << 20  # bytes; a reply to a SET is some hundred, with state perhaps thousands

_HEAD: Final = Struct("<IB").unpack_from  # length and sequence id in one, first byte: a quarter faster than indexing
_SHORT_OK: Final = Struct("<BBBHH").unpack_from  # header, affected rows, insert id, status, warnings


class Prelude:
    """Swallows the replies to `count` commands that the gateway sent in front of a client's: one OK or ERR each.

        prelude = Prelude(2)  # COM_RESET_CONNECTION and one SET
        rest = prelude.feed(data)  # b"" until all have come; then the beginning of the next reply, or b""
        if prelude.done: ...

    `error` is the first ERR among the replies and `failed` its command's number, counted from 0: the connection is
    not in the state that was asked for. `status` is that of the last OK.
    """

    __slots__ = ("_held", "_remaining", "count", "done", "error", "failed", "status")

    def __init__(self, count: int) -> None:
        self.count = count
        self._remaining = count
        self._held = b""
        self.done = count == 0
        self.error: ServerError | None = None
        self.failed: int | None = None
        self.status = 0

    def feed(self, data: bytes) -> bytes:
        """Take what the server sent; return what lies behind the last reply. Raises PacketError."""
        if self._held:
            data = self._held + data
            self._held = b""
        at = 0
        last = len(data) - 5
        while not self.done:
            if at > last:
                break
            word, first = _HEAD(data, at)
            length = word & 0xFFFFFF
            end = at + 4 + length
            if word >> 24 != 1 or (first != 0x00 and first != 0xFF) or not 0 < length <= _PRELUDE_LIMIT:
                raise PacketError(f"neither OK nor ERR in reply to a prelude: {data[at : at + 5].hex()}")
            if end > len(data):
                break
            self._on_reply(data[at + 4 : end])
            at = end
        if self.done:
            return data[at:] if at else data
        self._held = data[at:]
        return b""

    def _on_reply(self, payload: bytes) -> None:
        if payload[0] == 0xFF:
            if self.error is None:
                self.error = parse_err(payload)
                self.failed = self.count - self._remaining
        elif len(payload) == _SHORTEST_OK:
            self.status = _SHORT_OK(payload)[3]
        else:
            self.status = parse_ok(payload).status & ~STATE_CHANGED
        self._remaining -= 1
        self.done = not self._remaining
