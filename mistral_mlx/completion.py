"""What a generation gives: chunks while it runs, a completion in the end, and what it cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from mistral_mlx.errors import InputError


@dataclass(frozen=True)
class Stats:
    """What a generation cost.

    Attributes:
        prompt_tokens: tokens of the whole prompt, those reused from an earlier turn among them.
        reused_tokens: of these, tokens that were not read again.
        completion_tokens: tokens generated, a stop token among them.
        ttft_s: seconds from the call to the first token.
        prompt_tps: prompt tokens read per second.
        decode_tps: tokens generated per second after the first; 0 if there was only one.
        cache_bytes: bytes of keys and values at the end.
        peak_memory_bytes: the most that MLX held meanwhile, weights included.
        drafted_tokens: tokens that were guessed and checked; 0 without a draft (`LLM.draft`).
        accepted_tokens: of these, tokens that are in the answer.
        reading: how many tokens of the prompt were read at a time, piece by piece: all but those reused.
        batch: the most answers that were decoded together with this one, itself among them.
    """

    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    ttft_s: float
    prompt_tps: float
    decode_tps: float
    cache_bytes: int
    peak_memory_bytes: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    reading: tuple[int, ...] = ()
    batch: int = 1


@dataclass(frozen=True)
class Forecast:
    """What an answer would have to read.

    Attributes:
        prompt_tokens: tokens of the whole prompt.
        reused_tokens: of these, tokens that need not be read again.
    """

    prompt_tokens: int
    reused_tokens: int


@dataclass(frozen=True)
class ToolCall:
    """A tool that a model wants called.

    Attributes:
        id: what the result names it by; Mistral's formats want nine letters and digits.
        arguments: a JSON object, as the model wrote it: it may be broken.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ToolCallDelta:
    """A piece of a tool call as it comes.

    Attributes:
        index: which of the answer's calls it belongs to, from 0.
        name: in a call's first piece.
        arguments: new JSON text of them.
        id: in one of a call's pieces: the first, or the last where the format writes it there (v3, v7).
    """

    index: int
    name: str | None = None
    arguments: str = ""
    id: str | None = None


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer as it comes. The last one has a finish reason and the stats.

    An answer that calls tools which are run goes on after that: another follows, with a last chunk of its own.

    Attributes:
        text: new text; empty while a character is incomplete.
        thinking: new text of what the model reasons before it answers.
        tool_calls: new pieces of the tools that it wants called.
        tokens: new ids, with `logprobs`, the log-probability that the model gave each, and `top_logprobs`, the
            likeliest ids at each step with theirs, as many as the option `logprobs` asks for.
        finish_reason: "stop" (a stop token or string, or the end of the form that was asked for), "length" (max_tokens
            or the context is used up), "cancelled", "tool_rounds" (it still calls tools after as many rounds as were
            allowed), "cut" (a stop string came before the form was complete).
    """

    text: str
    thinking: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    finish_reason: str | None = None
    stats: Stats | None = None


@dataclass(frozen=True)
class Completion:
    """A whole answer, after the last tool that was run: its text, what was reasoned before it, and the tools that it
    wants called; the ids that were sampled, of which a stop token is the last, or some wrote a stop string that is not
    in the text; and their log-probabilities, as in `Chunk`.
    """

    text: str
    thinking: str
    tool_calls: list[ToolCall]
    tokens: list[int]
    logprobs: list[float]
    top_logprobs: list[dict[int, float]]
    finish_reason: str
    stats: Stats

    @classmethod
    def join(cls, chunks: Iterable[Chunk]) -> Completion:
        """A whole stream as one; raises InputError if it was ended before."""
        every: list[Chunk] = []
        for chunk in chunks:  # to the very end: a chat takes note of the answer there
            if every and every[-1].stats:
                every = []  # tools have been run; this is the answer to their results
            every.append(chunk)
        if not every:
            raise InputError("This answer was ended before it was read.", "A new message ends the one before it.")
        last = every[-1]
        assert last.finish_reason is not None
        assert last.stats is not None
        return cls(
            text="".join(c.text for c in every),
            thinking="".join(c.thinking for c in every),
            tool_calls=join_calls(d for c in every for d in c.tool_calls),
            tokens=[i for c in every for i in c.tokens],
            logprobs=[p for c in every for p in c.logprobs],
            top_logprobs=[t for c in every for t in c.top_logprobs],
            finish_reason=last.finish_reason,
            stats=last.stats,
        )


def join_calls(deltas: Iterable[ToolCallDelta]) -> list[ToolCall]:
    """The calls that the pieces make up."""
    calls: dict[int, ToolCall] = {}
    for d in deltas:
        so_far = calls.get(d.index, ToolCall("", "", ""))
        calls[d.index] = ToolCall(d.id or so_far.id, d.name or so_far.name, so_far.arguments + d.arguments)
    return list(calls.values())
