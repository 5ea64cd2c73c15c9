"""A unix socket in data_dir on which the running gateway answers one question per connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import structlog
import trio

from gateway.net.listener import bind_unix

CHUNK_BYTES: Final = 65_536
ANSWER_BYTES: Final = 1 << 30  # more than any

log = structlog.get_logger(__name__)


async def serve_unix(
    path: Path,
    answer: Callable[[trio.SocketStream], Awaitable[None]],
    *,
    seconds: float,
    task_status: trio.TaskStatus[Path],
) -> None:
    """Answers until cancelled, each question within `seconds`; removes the socket then.

    Raises ConfigError if another gateway has it. The socket is readable for its owner alone. `answer` may raise
    BrokenResourceError where whoever asked has gone.
    """
    await trio.Path(path.parent).mkdir(parents=True, exist_ok=True)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(bind_unix(str(path))))

    async def serve(stream: trio.SocketStream) -> None:
        try:
            with trio.move_on_after(seconds):
                await answer(stream)
        except trio.BrokenResourceError as error:
            log.debug("whoever asked has gone", socket=path.name, error=str(error))
        finally:
            await trio.aclose_forcefully(stream)

    try:
        async with trio.open_nursery() as nursery:
            task_status.started(path)
            await trio.serve_listeners(serve, [listener], handler_nursery=nursery)
    finally:
        with trio.CancelScope(shield=True):
            await trio.Path(path).unlink(missing_ok=True)


async def receive_all(stream: trio.SocketStream, limit: int) -> bytes:
    """What comes until the other side ends its side. Raises BrokenResourceError for more than `limit` bytes."""
    parts: list[bytes] = []
    size = 0
    while chunk := await stream.receive_some(CHUNK_BYTES):
        parts.append(chunk)
        size += len(chunk)
        if size > limit:
            raise trio.BrokenResourceError(f"more than {limit} bytes were sent")
    return b"".join(parts)
