"""What a generation gives: chunks while it runs, a completion in the end, and what it cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


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
    """

    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    ttft_s: float
    prompt_tps: float
    decode_tps: float
    cache_bytes: int
    peak_memory_bytes: int


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer as it comes. The last one has a finish reason and the stats.

    Attributes:
        text: new text; empty while a character is incomplete.
        tokens: new ids, with `logprobs`, the log-probability that the model gave each, and `top_logprobs`, the
            likeliest ids at each step with theirs, as many as the option `logprobs` asks for.
        finish_reason: "stop" (a stop token or string), "length" (max_tokens or the context is used up), "cancelled".
    """

    text: str
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    finish_reason: str | None = None
    stats: Stats | None = None


@dataclass(frozen=True)
class Completion:
    """A whole answer: its text; the ids that were sampled, of which a stop token is the last, or some wrote a stop
    string that is not in the text; and their log-probabilities, as in `Chunk`.
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    top_logprobs: list[dict[int, float]]
    finish_reason: str
    stats: Stats

    @classmethod
    def join(cls, chunks: Iterable[Chunk]) -> Completion:
        """A whole stream as one."""
        every = list(chunks)  # to the very end: a chat takes note of the answer there
        last = every[-1]
        assert last.finish_reason is not None
        assert last.stats is not None
        return cls(
            text="".join(c.text for c in every),
            tokens=[i for c in every for i in c.tokens],
            logprobs=[p for c in every for p in c.logprobs],
            top_logprobs=[t for c in every for t in c.top_logprobs],
            finish_reason=last.finish_reason,
            stats=last.stats,
        )
