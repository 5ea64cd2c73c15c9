"""Answers `gateway status` over a unix socket in data_dir: one JSON document per connection, then the end.

The socket is readable for its owner alone: what it tells names servers, users and statements.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import structlog
import trio

from gateway.errors import Unavailable
from gateway.net.listener import bind_unix

SOCKET_NAME: Final = "gateway.sock"
ASK_SECONDS: Final = 5.0  # for the whole answer
CHUNK_BYTES: Final = 65_536

log = structlog.get_logger(__name__)


async def serve_status(
    data_dir: Path, status: Callable[[], object], *, task_status: trio.TaskStatus[Path] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answers until cancelled; removes the socket then. Raises ConfigError if another gateway uses `data_dir`."""
    await trio.Path(data_dir).mkdir(parents=True, exist_ok=True)
    path = data_dir / SOCKET_NAME
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(bind_unix(str(path))))

    async def answer(stream: trio.SocketStream) -> None:
        try:
            with trio.move_on_after(ASK_SECONDS):
                await stream.send_all(msgspec.json.encode(status()) + b"\n")
        except trio.BrokenResourceError:
            log.debug("whoever asked for the status has gone")
        finally:
            await trio.aclose_forcefully(stream)

    try:
        async with trio.open_nursery() as nursery:
            task_status.started(path)
            await trio.serve_listeners(answer, [listener], handler_nursery=nursery)
    finally:
        with trio.CancelScope(shield=True):
            await trio.Path(path).unlink(missing_ok=True)


async def ask_status(data_dir: Path) -> bytes:
    """The JSON document of the gateway that runs on `data_dir`. Raises Unavailable."""
    path = data_dir / SOCKET_NAME
    parts: list[bytes] = []
    try:
        with trio.fail_after(ASK_SECONDS):
            async with await trio.open_unix_socket(str(path)) as stream:
                while chunk := await stream.receive_some(CHUNK_BYTES):
                    parts.append(chunk)
    except (OSError, trio.BrokenResourceError) as error:
        raise Unavailable(f"no gateway answers at {path} ({error}); is `gateway run` running?") from error
    except trio.TooSlowError:
        raise Unavailable(f"the gateway at {path} did not answer within {ASK_SECONDS:g} s") from None
    if not parts:
        raise Unavailable(f"the gateway at {path} closed without an answer")
    return b"".join(parts)
