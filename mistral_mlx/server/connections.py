"""Connections that are slow, idle or too many: none of them can keep others from being answered."""

from __future__ import annotations

import asyncio
import re
import resource
from functools import partial
from typing import Any

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from mistral_mlx.server.faults import Refusal
from mistral_mlx.server.journal import Record, new_id
from mistral_mlx.server.settings import Settings

# Files that the process needs for other things than connections.
_OTHER_FILES = 64
# Connections above the limit that are told so; more are closed without a word.
_TOLD = 32
_AUTHORITY = re.compile(r"^https?://[^/]*")


def protocol(settings: Settings) -> Any:
    """What uvicorn makes a connection with."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = settings.max_connections
    if files != resource.RLIM_INFINITY:
        most = max(1, min(most, files - _OTHER_FILES - _TOLD))
    return partial(Connection, settings=settings, most=most)


class Connection(H11Protocol):
    """A connection that is closed when the head of a request takes too long to come, or its answers to go.

    Attributes:
        idle_since: when its last answer was complete; None while it has something to do.
    """

    def __init__(self, *args: Any, settings: Settings, most: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self.app = _named_by_path(self.app)
        self.idle_since: float | None = None
        self._settings = settings
        self._most = most
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()
        if len(self.connections) <= self._most:
            return
        idle = [c for c in self.connections if isinstance(c, Connection) and c.idle_since is not None]
        if idle:
            min(idle, key=lambda c: c.idle_since or 0.0).leave()
        elif len(self.connections) <= self._most + _TOLD:
            self.app = _too_many
        else:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.idle_since is not None:
            self.idle_since = None
            self._expect_head()
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        before = self.cycle
        super().on_response_complete()
        if self.cycle is before and not self.transport.is_closing():
            # The rest of a body that nobody wants is given no longer than a head.
            self._expect_head()
            if self.conn.their_state is h11.IDLE:
                self._stop_waiting()  # uvicorn's own timer ends idle connections
                self.idle_since = self.loop.time()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self._settings.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread:
            self._unread.cancel()

    def send_400_response(self, msg: str) -> None:
        """What answers to what is no HTTP."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            record, refused = Record(new_id(), "", "", status=400), Refusal(400, msg, code="invalid_http")
            record.refused(refused)
            record.write()
            told = {"content-type": "application/json", "connection": "close", "x-request-id": record.request_id}
            for event in (
                h11.Response(status_code=400, headers=list(told.items()), reason="Bad Request"),
                h11.Data(data=refused.body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        if self._unread:
            self._unread.cancel()
        super().connection_lost(exc)

    def leave(self) -> None:
        """Close it: it has nothing to do."""
        self.timeout_keep_alive_handler()
        self.connections.discard(self)

    def _expect_head(self) -> None:
        self._stop_waiting()
        self._deadline = self.loop.call_later(self._settings.header_s, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None


def _named_by_path(app: ASGIApp) -> ASGIApp:
    """The same, where clients may name what they want with scheme and host, as they do to a proxy."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "path": _AUTHORITY.sub("", scope["path"]) or "/"}, receive, send)

    return call


async def _too_many(scope: Scope, receive: Receive, send: Send) -> None:
    headers = {"retry-after": "1", "connection": "close"}
    busy = Refusal(503, "There are too many connections.", kind="server_error", code="overloaded", headers=headers)
    await busy.response()(scope, receive, send)
