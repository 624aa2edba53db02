"""An answer as it comes: from tokens to chunks of text, thoughts and calls, until it is over."""

from __future__ import annotations

import time

from mistral_mlx.backend import peak_memory
from mistral_mlx.completion import Chunk, Stats
from mistral_mlx.engine.choice import Token
from mistral_mlx.engine.sampling import SamplingParams
from mistral_mlx.text.decoder import StopStrings
from mistral_mlx.text.grammar import FormMatcher
from mistral_mlx.text.reply import Piece, Reply


class Answer:
    """What is made of the tokens of one answer.

    Attributes:
        count: tokens so far.
        finish: why it is over, once it is.
    """

    def __init__(
        self,
        params: SamplingParams,
        stop_ids: frozenset[int],
        reply: Reply | None,
        constraint: FormMatcher | None = None,
        begun: str = "",
    ) -> None:
        """An answer that has not begun.

        Args:
            stop_ids: the ids that end it.
            reply: what takes it apart; without a tokenizer there are only ids.
            begun: text of it that the prompt ends with.
        """
        self.count = 0
        self.finish: str | None = None
        self._params = params
        self._stop_ids = stop_ids
        self._stops = StopStrings(params.stop or ())
        self._reply = reply
        self._constraint = constraint
        self._text = begun

    def again(self, params: SamplingParams, constraint: FormMatcher | None) -> Answer:
        """The same with other parameters. It has not begun."""
        return Answer(params, self._stop_ids, self._reply and self._reply.copy(), constraint, self._text)

    def feed(self, token: Token) -> Chunk:
        """What a token brings."""
        self.count += 1
        stopped = token.id in self._stop_ids
        piece = Piece() if stopped or not self._reply else self._reply.feed(token.id)
        top = [token.top] if self._params.logprobs else []
        said = self._stops.feed(piece.text)
        if piece.tool_calls or piece.thinking:
            said += self._stops.flush()  # no stop string goes on behind them
        self._text += said
        if stopped or self._stops.found or (self._constraint and self._constraint.over):
            self.finish = "stop"
        elif self.count == self._params.max_tokens:
            self.finish = "length"
        return Chunk(said, piece.thinking, piece.tool_calls, [token.id], [token.logprob], top)

    def end(self, stats: Stats) -> Chunk:
        """What was held back, and why it ended: it was cancelled if nothing else."""
        piece = self._reply.flush() if self._reply and not self._stops.found else Piece()
        rest = self._stops.feed(piece.text)
        finish = "stop" if self._stops.found else self.finish or "cancelled"
        rest += self._stops.flush()
        if self._stops.found and self._constraint and not self._constraint.accepts(self._text + rest):
            finish = "cut"
        return Chunk(rest, piece.thinking, piece.tool_calls, finish_reason=finish, stats=stats)


def stats(
    prompt: int, reused: int, count: int, times: tuple[float, float], cache_bytes: int, reading: tuple[int, ...]
) -> Stats:
    """What a generation cost that ends now; `times` are when it began and when its first token came."""
    start, first = times
    after = time.perf_counter() - first
    return Stats(
        prompt_tokens=prompt,
        reused_tokens=reused,
        completion_tokens=count,
        ttft_s=first - start,
        prompt_tps=(prompt - reused) / (first - start) if first > start else 0.0,
        decode_tps=(count - 1) / after if count > 1 else 0.0,
        cache_bytes=cache_bytes,
        peak_memory_bytes=peak_memory(),
        reading=reading,
    )
