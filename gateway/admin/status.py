"""Answers `gateway status` over a unix socket in data_dir: one JSON document per connection, then the end.

The socket is readable for its owner alone: what it tells names servers, users and statements.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import trio

from gateway.admin.unix_socket import ANSWER_BYTES, receive_all, serve_unix
from gateway.errors import Unavailable

SOCKET_NAME: Final = "gateway.sock"
ASK_SECONDS: Final = 5.0  # for the whole answer


async def serve_status(
    data_dir: Path, status: Callable[[], object], *, task_status: trio.TaskStatus[Path] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answers until cancelled; removes the socket then. Raises ConfigError if another gateway uses `data_dir`."""

    async def answer(stream: trio.SocketStream) -> None:
        await stream.send_all(msgspec.json.encode(status()) + b"\n")

    await serve_unix(data_dir / SOCKET_NAME, answer, seconds=ASK_SECONDS, task_status=task_status)


async def ask_status(data_dir: Path) -> bytes:
    """The JSON document of the gateway that runs on `data_dir`. Raises Unavailable."""
    path = data_dir / SOCKET_NAME
    try:
        with trio.fail_after(ASK_SECONDS):
            async with await trio.open_unix_socket(str(path)) as stream:
                told = await receive_all(stream, ANSWER_BYTES)
    except (OSError, trio.BrokenResourceError) as error:
        raise Unavailable(f"no gateway answers at {path} ({error}); is `gateway run` running?") from error
    except trio.TooSlowError:
        raise Unavailable(f"the gateway at {path} did not answer within {ASK_SECONDS:g} s") from None
    if not told:
        raise Unavailable(f"the gateway at {path} closed without an answer")
    return told
