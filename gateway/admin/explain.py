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
from gateway.admin.unix_socket import ANSWER_BYTES, receive_all, serve_unix
from gateway.errors import ConfigError, Unavailable
from gateway.rules.verdict import Verdict

ASK_SECONDS: Final = 30.0  # for the whole answer
QUESTION_BYTES: Final = 64 << 20
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

    async def answer(stream: trio.SocketStream) -> None:
        try:
            question = msgspec.json.decode(await receive_all(stream, QUESTION_BYTES), type=Question)
        except msgspec.MsgspecError as error:
            log.debug("a question was not understood", error=str(error))
            return
        for verdicts in _answers(question, explainer):
            await stream.send_all(msgspec.json.encode(verdicts) + b"\n")

    await serve_unix(data_dir / EXPLAIN_SOCKET, answer, seconds=ASK_SECONDS, task_status=task_status)


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


async def ask_explain(data_dir: Path, question: Question) -> Sequence[Verdict]:
    """The verdicts of the gateway that runs on `data_dir`. Raises Unavailable, and ConfigError for a wrong question."""
    path = data_dir / EXPLAIN_SOCKET
    try:
        with trio.fail_after(ASK_SECONDS):
            async with await trio.open_unix_socket(str(path)) as stream:
                await stream.send_all(msgspec.json.encode(question))
                await stream.send_eof()
                told = await receive_all(stream, ANSWER_BYTES)
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
