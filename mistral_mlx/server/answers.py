"""Answers as the API gives them: whole, or as events while they come. Both are made of the same chunks."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from pydantic import BaseModel

from mistral_mlx.completion import Chunk, Completion, ToolCallDelta
from mistral_mlx.llm import LLM
from mistral_mlx.server import schema
from mistral_mlx.server.asked import Asked
from mistral_mlx.server.logprobs import Names, TextScores, chat_logprobs, tokens_of

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Served:
    """The model that answers, and what every answer says of it.

    Attributes:
        fingerprint: changes with the model and what computes it.
        created: when the server was started.
    """

    llm: LLM
    name: str
    names: Names
    fingerprint: str
    created: int

    @classmethod
    def of(cls, llm: LLM, name: str) -> Served:
        """A model under the name that requests call it by."""
        made_of = json.dumps([name, str(llm.path), llm.dtype, llm.build])
        fingerprint = f"fp_{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"
        return cls(llm, name, Names(llm.tokenizer), fingerprint, int(time.time()))

    def reasoned(self, tokens: Sequence[int]) -> int:
        """How many of an answer's tokens are what the model thought."""
        control = self.llm.tokenizer.control
        count, within = 0, False
        for token in tokens:
            within = token == control.get("[THINK]") or (within and token != control.get("[/THINK]"))
            count += within
        return count


class Answers(Protocol):
    """What one call answers: first of all `events` or `whole`, then what it cost."""

    def begin(self) -> Iterator[BaseModel]:
        """The events before the first chunk."""
        ...

    def events(self, index: int, chunk: Chunk) -> Iterator[BaseModel]:
        """The events that a chunk of the answer at `index` brings."""
        ...

    def end(self, usage: schema.Usage) -> BaseModel:
        """The event that says what the answers cost."""
        ...

    def whole(self, chunks: Sequence[Sequence[Chunk]], usage: schema.Usage) -> BaseModel:
        """All answers at once; of several tries the likeliest."""
        ...


def usage(asked: Asked, completions: Mapping[int, Completion], served: Served) -> schema.Usage:
    """What the answers cost; a prompt counts once, however many answers it gets."""
    prompts = [completions[i].stats for i in range(0, len(asked.requests), asked.tries)]
    read, said = sum(s.prompt_tokens for s in prompts), sum(c.stats.completion_tokens for c in completions.values())
    return schema.Usage(
        prompt_tokens=read,
        completion_tokens=said,
        total_tokens=read + said,
        prompt_tokens_details=schema.CachedTokens(cached_tokens=sum(s.reused_tokens for s in prompts)),
        completion_tokens_details=schema.ReasoningTokens(
            reasoning_tokens=sum(served.reasoned(c.tokens) for c in completions.values())
        ),
    )


class ChatAnswers:
    """The answers to a conversation."""

    def __init__(self, asked: Asked, served: Served, usage: bool) -> None:
        """None yet.

        Args:
            usage: whether events have a place for what the answers cost.
        """
        self._asked = asked
        self._served = served
        self._head = _head("chatcmpl", served) | ({"usage": None} if usage else {})
        self._most_calls = 1 if served.llm.chat_format.one_call else None
        self._calls = [_Calls(self._most_calls) for _ in asked.requests]

    def begin(self) -> Iterator[schema.ChatChunk]:
        for index in range(len(self._asked.requests)):
            yield self._event(index, schema.Delta(role="assistant", content=""))

    def events(self, index: int, chunk: Chunk) -> Iterator[schema.ChatChunk]:
        told = self._calls[index].feed(chunk)
        said: dict[str, Any] = {"content": chunk.text, "reasoning_content": chunk.thinking, "tool_calls": told}
        delta = schema.Delta(**{name: value for name, value in said.items() if value})
        logprobs = self._logprobs([chunk])
        if delta.model_fields_set or (logprobs and logprobs.content):
            yield self._event(index, delta, logprobs)
        if chunk.finish_reason:
            yield self._event(index, schema.Delta(), None, _finish(chunk.finish_reason, self._calls[index].any))

    def end(self, usage: schema.Usage) -> schema.ChatChunk:
        return schema.ChatChunk(**self._head | {"choices": [], "usage": usage})

    def whole(self, chunks: Sequence[Sequence[Chunk]], usage: schema.Usage) -> schema.ChatCompletion:
        choices = [self._choice(index, each) for index, each in enumerate(chunks)]
        return schema.ChatCompletion(
            **self._head | {"object": "chat.completion", "service_tier": "default", "choices": choices, "usage": usage}
        )

    def _event(
        self,
        index: int,
        delta: schema.Delta,
        logprobs: schema.ChatLogprobs | None = None,
        finish: FinishReason | None = None,
    ) -> schema.ChatChunk:
        choice = schema.ChatChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish)
        return schema.ChatChunk(**{"object": "chat.completion.chunk"} | self._head | {"choices": [choice]})

    def _choice(self, index: int, chunks: Sequence[Chunk]) -> schema.ChatChoice:
        said = Completion.join(chunks)
        calls = said.tool_calls[: self._most_calls]
        extra: dict[str, Any] = {"reasoning_content": said.thinking} if said.thinking else {}
        if calls:
            extra["tool_calls"] = [
                schema.ToolCall(
                    id=call.id,
                    type="function",
                    function=schema.CalledFunction(name=call.name, arguments=call.arguments),
                )
                for call in calls
            ]
        message = schema.AnswerMessage(
            role="assistant",
            content=said.text if said.text or not calls else None,
            refusal=None,
            **extra,
        )
        return schema.ChatChoice(
            index=index,
            message=message,
            logprobs=self._logprobs(chunks),
            finish_reason=_finish(said.finish_reason, bool(calls)),
        )

    def _logprobs(self, chunks: Sequence[Chunk]) -> schema.ChatLogprobs | None:
        if not self._asked.logprobs:
            return None
        return chat_logprobs(self._served.names, chunks, self._served.llm.stop_ids)


class _Calls:
    """The calls of an answer as they come. Clients want a call's id with its first piece, and some formats write it
    at its end: what comes before that is held back.

    Attributes:
        any: whether there is one.
    """

    def __init__(self, most: int | None) -> None:
        """None yet, and `most` at most: some formats have a place for one."""
        self.any = False
        self._most = most
        self._held: dict[int, ToolCallDelta] = {}
        self._begun: set[int] = set()

    def feed(self, chunk: Chunk) -> list[schema.ToolCallDelta]:
        told = []
        for delta in chunk.tool_calls:
            if self._most is not None and delta.index >= self._most:
                continue
            self.any = True
            before = self._held.pop(delta.index, ToolCallDelta(delta.index))
            piece = replace(
                before,
                name=before.name or delta.name,
                arguments=before.arguments + delta.arguments,
                id=before.id or delta.id,
            )
            if delta.index in self._begun:
                more = schema.FunctionDelta(arguments=piece.arguments)
                told.append(schema.ToolCallDelta(index=piece.index, function=more))
            elif piece.id and piece.name:
                self._begun.add(piece.index)
                first = schema.FunctionDelta(name=piece.name, arguments=piece.arguments)
                told.append(schema.ToolCallDelta(index=piece.index, id=piece.id, type="function", function=first))
            else:
                self._held[piece.index] = piece
        return told


class TextAnswers:
    """What carries on some texts."""

    def __init__(self, asked: Asked, served: Served, usage: bool, top: int) -> None:
        """None yet.

        Args:
            usage: whether events have a place for what the answers cost.
            top: how many of the likeliest tokens are told at each step.
        """
        self._asked = asked
        self._served = served
        self._top = top
        self._head = _head("cmpl", served) | {"object": "text_completion"}
        self._place = {"usage": None} if usage else {}
        self._scores = [self._new_scores() for _ in asked.requests]
        self._begun: set[int] = set()

    def begin(self) -> Iterator[schema.Completion]:
        return iter(())

    def events(self, index: int, chunk: Chunk) -> Iterator[schema.Completion]:
        logprobs = self._logprobs(index, [chunk], self._scores[index], first=index not in self._begun)
        text = chunk.text if index in self._begun else self._echo(index) + chunk.text
        self._begun.add(index)
        if text or chunk.finish_reason or (logprobs and logprobs.tokens):
            choice = schema.TextChoice(
                index=index, text=text, logprobs=logprobs, finish_reason=_text_finish(chunk.finish_reason)
            )
            yield schema.Completion(**self._head | self._place | {"choices": [choice]})

    def end(self, usage: schema.Usage) -> schema.Completion:
        return schema.Completion(**self._head | {"choices": [], "usage": usage})

    def whole(self, chunks: Sequence[Sequence[Chunk]], usage: schema.Usage) -> schema.Completion:
        chosen = [
            index
            for start in range(0, len(chunks), self._asked.tries)
            for index in self._best(range(start, start + self._asked.tries), chunks)
        ]
        choices = [self._choice(place, index, chunks[index]) for place, index in enumerate(chosen)]
        return schema.Completion(**self._head | {"choices": choices, "usage": usage})

    def _choice(self, place: int, index: int, chunks: Sequence[Chunk]) -> schema.TextChoice:
        return schema.TextChoice(
            index=place,
            text=self._echo(index) + "".join(chunk.text for chunk in chunks),
            logprobs=self._logprobs(index, chunks, self._new_scores(), first=True),
            finish_reason=_text_finish(chunks[-1].finish_reason),
        )

    def _best(self, tries: Sequence[int], chunks: Sequence[Sequence[Chunk]]) -> list[int]:
        """The likeliest of some tries, by the mean log-probability of their tokens."""
        if self._asked.given == len(tries):
            return list(tries)

        def mean(index: int) -> float:
            logprobs = [p for chunk in chunks[index] for p in chunk.logprobs]
            return sum(logprobs) / max(1, len(logprobs))

        return sorted(tries, key=mean, reverse=True)[: self._asked.given]

    def _echo(self, index: int) -> str:
        return self._asked.echoes[self._asked.prompt_of(index)] if self._asked.echoes else ""

    def _new_scores(self) -> TextScores:
        return TextScores(self._served.names, self._served.llm.tokenizer, continues=not self._asked.echoes)

    def _logprobs(
        self, index: int, chunks: Sequence[Chunk], scores: TextScores, *, first: bool
    ) -> schema.TextLogprobs | None:
        if not self._asked.logprobs:
            return None
        request = self._asked.requests[index]
        said = list(tokens_of(chunks))
        if not first or not self._asked.echoes:
            return scores.of(said, self._top)
        prompt = scores.prompt(request.ids, request.prompt_scores, self._top)
        answer = scores.of(said, self._top)
        return schema.TextLogprobs(**{name: value + getattr(answer, name) for name, value in prompt})


def _head(kind: str, served: Served) -> dict[str, Any]:
    return {
        "id": f"{kind}-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": served.name,
        "system_fingerprint": served.fingerprint,
    }


def _finish(reason: str, calls: bool) -> FinishReason:
    """OpenAI's word; a stop string that came before a form was complete ("cut") is a stop."""
    if reason == "length":
        return "length"
    return "tool_calls" if calls else "stop"


def _text_finish(reason: str | None) -> Literal["stop", "length"] | None:
    return None if reason is None else "length" if reason == "length" else "stop"
