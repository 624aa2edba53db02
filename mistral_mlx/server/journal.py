"""One line of JSON in the log for each request, and the id by which a client can ask about it."""

from __future__ import annotations

import json
import re
import secrets
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mistral_mlx.completion import Completion
from mistral_mlx.server.faults import Refusal
from mistral_mlx.server.metrics import Metrics
from mistral_mlx.server.settings import Settings

_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# What clients of a closed connection get; nginx's number for it, for they get nothing.
CLIENT_LEFT = 499


def new_id() -> str:
    """An id for a request that brings none."""
    return f"req_{secrets.token_hex(12)}"


@dataclass
class Record:
    """What the log says of a request; what was not reached stays out of it.

    Attributes:
        user: who asked, as far as the client tells.
        says_prompts: whether the log may say what was asked.
    """

    request_id: str
    method: str
    path: str
    says_prompts: bool = False
    status: int = CLIENT_LEFT
    seconds: float = 0.0
    model: str | None = None
    choices: int | None = None
    prompt_tokens: int | None = None
    reused_tokens: int | None = None
    completion_tokens: int | None = None
    ttft_s: float | None = None
    finish_reason: list[str] | None = None
    error: str | None = None
    user: Mapping[str, str] | None = None
    prompt: Any = field(default=None, repr=False)

    def asked(self, prompt: Any) -> None:
        """Take note of what was asked."""
        self.prompt = prompt if self.says_prompts else None

    def refused(self, why: Refusal) -> None:
        """Take note of what went wrong; what the client is told of it may quote the prompt."""
        self.error = str(why) if self.says_prompts else ", ".join(filter(None, (why.code or why.kind, why.param)))

    def told(self, answers: Mapping[int, Completion]) -> None:
        """Take note of how answers ended and what they cost."""
        ends = [answers[index] for index in sorted(answers)]
        self.finish_reason = [end.finish_reason for end in ends]
        self.reused_tokens = max(end.stats.reused_tokens for end in ends)
        self.completion_tokens = sum(end.stats.completion_tokens for end in ends)
        self.ttft_s = round(min(end.stats.ttft_s for end in ends), 4)

    def write(self) -> None:
        """Write the line."""
        told = {name: value for name, value in asdict(self).items() if value is not None and name != "says_prompts"}
        write_line(**told)


def write_line(**told: Any) -> None:
    """Write a line of the log."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    with suppress(OSError):  # nobody reads it any more
        print(json.dumps({"time": now, **told}, default=str), file=sys.stderr, flush=True)


class Journal:
    """ASGI middleware that writes the log to stderr and counts what it says."""

    def __init__(self, app: ASGIApp, metrics: Metrics, settings: Settings) -> None:
        self._app = app
        self._metrics = metrics
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        ident = given if _GIVEN_ID.fullmatch(given) else new_id()
        record = Record(ident, scope["method"], scope["path"], self._settings.log_prompts)
        scope.setdefault("state", {})["record"] = record
        start = time.perf_counter()

        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = ident
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            record.seconds = round(time.perf_counter() - start, 4)
            endpoint = getattr(scope.get("route"), "path", "none")
            self._metrics.answered(endpoint, record.status, record.seconds)
            record.write()
