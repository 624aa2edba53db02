"""One call of the API from its body to its answer: read, run by the engine, answered whole or as events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from mistral_mlx.completion import Chunk, Completion
from mistral_mlx.server.answers import Answers, ChatAnswers, Served, TextAnswers, usage
from mistral_mlx.server.asked import Asked, read_chat, read_completion
from mistral_mlx.server.engine import Engine
from mistral_mlx.server.faults import refusal, stopping
from mistral_mlx.server.journal import Record
from mistral_mlx.server.metrics import Metrics
from mistral_mlx.server.recall import Recall
from mistral_mlx.server.running import run, unless_gone
from mistral_mlx.server.schema import ChatRequest, CompletionRequest, Sampling, Usage
from mistral_mlx.server.settings import Settings

# Threads on which requests become ids. More would take turns with each other, and with the model's.
_READERS = 4


class Calls:
    """Answers calls, with one model."""

    def __init__(self, engine: Engine, settings: Settings, metrics: Metrics) -> None:
        self.served = Served.of(engine.llm, settings.name)
        self._engine = engine
        self._settings = settings
        self._metrics = metrics
        self._recall = Recall()
        self._readers = ThreadPoolExecutor(_READERS, "mistral-mlx reader")

    async def chat(self, body: ChatRequest, http: Request) -> Response:
        """Answer a conversation."""
        self._note(body, http, body.messages)
        asked = await self._read(http, read_chat, body, self._engine.llm, self._settings, self._recall)
        return await self._answer(body, http, asked, ChatAnswers(asked, self.served, _with_usage(body)))

    async def completion(self, body: CompletionRequest, http: Request) -> Response:
        """Carry on a text."""
        self._note(body, http, body.prompt)
        asked = await self._read(http, read_completion, body, self._engine.llm, self._settings)
        answers = TextAnswers(asked, self.served, _with_usage(body), body.logprobs or 0)
        return await self._answer(body, http, asked, answers)

    async def _read(self, http: Request, read: Callable[..., Asked], *given: Any) -> Asked:
        """What is asked, unless the client leaves before its turn to be read."""
        return await unless_gone(http, asyncio.get_running_loop().run_in_executor(self._readers, read, *given))

    def _note(self, body: Sampling, http: Request, prompt: Any) -> None:
        if self._engine.draining:
            raise stopping("The server is stopping.")
        record: Record = http.state.record
        record.model = body.model
        names = ("user", "safety_identifier", "prompt_cache_key")
        record.user = {name: value for name in names if (value := getattr(body, name, None))} or None
        record.asked(prompt)

    async def _answer(self, body: Sampling, http: Request, asked: Asked, answers: Answers) -> Response:
        call = _Call(asked, self.served, http.state.record)
        chunks = call.run(self._engine, self._metrics)
        if not body.stream:
            return await unless_gone(http, call.whole(chunks, answers))
        # What fails before the first token is told by a status.
        first = await unless_gone(http, _next(chunks))
        return _Events(call.events(first, chunks, answers, usage=_with_usage(body)))


class _Call:
    """One of them while it is answered."""

    def __init__(self, asked: Asked, served: Served, record: Record) -> None:
        self._asked = asked
        self._served = served
        self._record = record
        self._chunks: list[list[Chunk]] = [[] for _ in asked.requests]
        self._completions: dict[int, Completion] = {}
        self._asked_at = time.perf_counter()
        self._heard: dict[int, float] = {}  # when each answer's last token came
        record.choices = len(asked.requests)
        record.prompt_tokens = sum(len(r.ids) for r in asked.requests[:: asked.tries])

    async def run(self, engine: Engine, metrics: Metrics) -> AsyncGenerator[tuple[int, Chunk]]:
        """The chunks of all answers, of which note is taken."""
        async with aclosing(run(engine, self._asked.requests)) as came:
            async for index, chunk in came:
                first = index % self._asked.tries == 0
                if first and not self._chunks[index]:
                    metrics.read(len(self._asked.requests[index].ids))
                self._chunks[index].append(chunk)
                if chunk.tokens:
                    now, before = time.perf_counter(), self._heard.get(index)
                    metrics.said(len(chunk.tokens), now - (before or self._asked_at), first=before is None)
                    self._heard[index] = now
                if chunk.stats:
                    metrics.ended(chunk.stats, first=first)
                    self._completions[index] = Completion.join(self._chunks[index])
                    self._asked.keep(index, self._chunks[index])
                    self._record.told(self._completions)
                yield index, chunk

    async def whole(self, chunks: AsyncGenerator[tuple[int, Chunk]], answers: Answers) -> Response:
        """The answer in one piece."""
        async with aclosing(chunks):
            async for _ in chunks:
                pass
        # With log-probabilities this may take seconds, while which others want to hear.
        return await asyncio.to_thread(lambda: _json(answers.whole(self._chunks, self._usage())))

    async def events(
        self, first: tuple[int, Chunk], chunks: AsyncGenerator[tuple[int, Chunk]], answers: Answers, *, usage: bool
    ) -> AsyncGenerator[bytes]:
        """The answer as server-sent events."""
        self._record.error = "the client left"  # until it is known better
        try:
            async with aclosing(chunks):
                for event in (*answers.begin(), *answers.events(*first)):
                    yield _event(event)
                async for index, chunk in chunks:
                    for event in answers.events(index, chunk):
                        yield _event(event)
            if usage:
                yield _event(answers.end(self._usage()))
            yield b"data: [DONE]\n\n"
            self._record.error = None
        except Exception as error:
            refused = refusal(error, self._record.request_id)
            self._record.refused(refused)
            yield b"data: " + refused.body + b"\n\n"

    def _usage(self) -> Usage:
        return usage(self._asked, self._completions, self._served)


class _Events(StreamingResponse):
    """Server-sent events, whose source is closed however it ends."""

    body_iterator: AsyncGenerator[bytes]

    def __init__(self, events: AsyncGenerator[bytes]) -> None:
        super().__init__(events, headers={"cache-control": "no-cache"}, media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self.body_iterator):
            await super().__call__(scope, receive, send)


async def _next(chunks: AsyncGenerator[tuple[int, Chunk]]) -> tuple[int, Chunk]:
    return await anext(chunks)


def _with_usage(body: Sampling) -> bool:
    return bool(body.stream_options and body.stream_options.include_usage)


def _json(model: BaseModel) -> Response:
    return Response(model.model_dump_json(exclude_unset=True), media_type="application/json")


def _event(model: BaseModel) -> bytes:
    return b"data: " + model.model_dump_json(exclude_unset=True).encode() + b"\n\n"
