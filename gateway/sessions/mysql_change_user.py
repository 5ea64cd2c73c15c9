"""COM_CHANGE_USER: a client that has logged in logs in again, as whom it likes, on the same connection.

The session's task takes the endpoint from the session and leads the conversation of a log-in over it. Whoever cannot
prove what it says is told why and has its connection closed, as servers do it. After success nothing is left of what
the session was but its thread id and what it has read: transaction, pins, statements, settings are gone, and user,
database and character set are the new ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from gateway.net.connect import Conversation
from gateway.net.layers import has_layer
from gateway.net.tls import TlsLayer
from gateway.protocol.mysql import answers
from gateway.protocol.mysql.packets import BEFORE_LOGIN_LIMIT

if TYPE_CHECKING:
    from gateway.sessions.mysql import MysqlSession


async def change_user(session: MysqlSession, message: bytes) -> None:
    """Carries out the command and answers it. The session ends where that fails."""
    service = session.service
    unread = session.client.take_unread()
    conversation = Conversation(service.lane, session.endpoint, BEFORE_LOGIN_LIMIT)
    conversation.put_back(unread)
    service.users.left(session.credentials)  # so that one's own session is not in the way of a limit
    changed = False
    try:
        with trio.move_on_after(service.config.handshake_timeout) as limit:
            admitted = await service.entrance.change_user(
                conversation, message, session.capabilities, encrypted=has_layer(session.endpoint, TlsLayer)
            )
            if admitted is not None:
                login, credentials = admitted
                session.become(replace(login, collation=login.collation or session.kept.state.collation), credentials)
                conversation.write(answers.ok(login.sequence))
                leftover = login.leftover + conversation.hand_over(session.client)
                changed = True
        if limit.cancelled_caught:
            service.entrance.failed(service.client_of(session.endpoint))
    except OSError:
        changed = False  # the client has gone
    finally:
        service.users.entered(session.credentials)
        session.endpoint.owner = session.client
        if not changed:
            session.endpoint.finish()
            session.client.requests.end()
    if changed and leftover:
        service.lane.batch(lambda: session.client.received(leftover))
