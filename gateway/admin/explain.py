"""Answers `gateway explain` for the running gateway over a unix socket in data_dir: what it is asked, it decides.

One question per connection: a JSON object with who asks and the statements, and the end of the stream. The answer is
one JSON object with verdicts per line. Operation, policy and verdict are made by the very objects that serve the
clients, so that the answer cannot differ from what they would do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog
import trio

from gateway.admin import EXPLAIN_SOCKET
from gateway.errors import ConfigError, Unavailable
from gateway.net.listener import bind_unix
from gateway.rules.verdict import Verdict

ASK_SECONDS: Final = 30.0  # for the whole answer
QUESTION_BYTES: Final = 64 << 20
CHUNK_BYTES: Final = 65_536
BATCH: Final = 16  # statements that are explained at once; each may cost a parse

log = structlog.get_logger(__name__)


class Question(msgspec.Struct, frozen=True):
    """Statements and who sends them, as `SqlExplainer` and `KeyExplainer` need it. `statements` are bytes."""

    protocol: str
    user: str
    client: str
    database: str | None
    listener: str | None
    statements: tuple[bytes, ...]


class Answer(msgspec.Struct, frozen=True):
    """A verdict for each statement, or why there is none."""

    verdicts: tuple[Verdict, ...] = ()
    error: str | None = None


async def serve_explain(
    data_dir: Path,
    explainer: Callable[[Question], Callable[[bytes], Verdict]],
    *,
    task_status: trio.TaskStatus[Path] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answers until cancelled; removes the socket then. `explainer` may raise ConfigError."""
    await trio.Path(data_dir).mkdir(parents=True, exist_ok=True)
    path = data_dir / EXPLAIN_SOCKET
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(bind_unix(str(path))))

    async def serve(stream: trio.SocketStream) -> None:
        try:
            with trio.move_on_after(ASK_SECONDS):
                question = msgspec.json.decode(await _receive(stream), type=Question)
                for answer in _answers(question, explainer):
                    await stream.send_all(msgspec.json.encode(answer) + b"\n")
        except (trio.BrokenResourceError, msgspec.MsgspecError) as error:
            log.debug("a question was not understood, or whoever asked it has gone", error=str(error))
        finally:
            await trio.aclose_forcefully(stream)

    try:
        async with trio.open_nursery() as nursery:
            task_status.started(path)
            await trio.serve_listeners(serve, [listener], handler_nursery=nursery)
    finally:
        with trio.CancelScope(shield=True):
            await trio.Path(path).unlink(missing_ok=True)


def _answers(question: Question, explainer: Callable[[Question], Callable[[bytes], Verdict]]) -> Iterator[Answer]:
    """In batches: the sessions want their turn in between."""
    try:
        explain = explainer(question)
    except ConfigError as error:
        yield Answer(error=str(error))
        return
    statements = question.statements
    for start in range(0, max(len(statements), 1), BATCH):
        yield Answer(tuple(map(explain, statements[start : start + BATCH])))


async def _receive(stream: trio.SocketStream) -> bytes:
    parts: list[bytes] = []
    size = 0
    while chunk := await stream.receive_some(CHUNK_BYTES):
        parts.append(chunk)
        size += len(chunk)
        if size > QUESTION_BYTES:
            raise trio.BrokenResourceError("the question is too large")
    return b"".join(parts)


async def ask_explain(data_dir: Path, question: Question) -> Sequence[Verdict]:
    """The verdicts of the gateway that runs on `data_dir`. Raises Unavailable, and ConfigError for a wrong question."""
    path = data_dir / EXPLAIN_SOCKET
    try:
        with trio.fail_after(ASK_SECONDS):
            async with await trio.open_unix_socket(str(path)) as stream:
                await stream.send_all(msgspec.json.encode(question))
                await stream.send_eof()
                told = await _receive(stream)
    except (OSError, trio.BrokenResourceError) as error:
        raise Unavailable(f"no gateway answers at {path} ({error})") from error
    except trio.TooSlowError:
        raise Unavailable(f"the gateway at {path} did not answer within {ASK_SECONDS:g} s") from None
    if not told:
        raise Unavailable(f"the gateway at {path} closed without an answer")
    verdicts: list[Verdict] = []
    for line in told.splitlines():
        answer = msgspec.json.decode(line, type=Answer)
        if answer.error is not None:
            raise ConfigError(answer.error)
        verdicts += answer.verdicts
    if len(verdicts) != len(question.statements):
        raise Unavailable(f"the gateway at {path} did not answer to the end")
    return verdicts
