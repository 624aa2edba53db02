"""Read a prompt, then generate one id after another."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from time import perf_counter

import mlx.core as mx

from mistral_mlx.backend import on_gpu
from mistral_mlx.config import ModelConfig
from mistral_mlx.engine.choice import Constraint, Row, Token, choose, read
from mistral_mlx.engine.sampling import SamplingParams
from mistral_mlx.model.cache import Cache
from mistral_mlx.model.step import Stepped
from mistral_mlx.model.transformer import Transformer

# Large enough to keep a GPU busy, small enough that a mask and its scores stay in the tens of megabytes.
PREFILL_CHUNK = 512
# Where memory or patience is short.
_SMALLEST_CHUNK = 16

# Where MLX's GPU attention keeps no scores (mlx, scaled_dot_product_attention.cpp).
_FUSED_HEAD_DIMS = (64, 80, 128)

Progress = Callable[[int, int], None]
Cancelled = Callable[[], bool]


class ReadingPace:
    """How many tokens of a prompt to read at a time where somebody waits: what takes about `seconds`.

    It learns from chunk to chunk and from prompt to prompt. The logits do not depend on it, but for rounding.
    """

    def __init__(self, seconds: float = 0.15) -> None:
        self.chunk = 64  # until it is known better
        self._seconds = seconds

    def took(self, tokens: int, seconds: float) -> None:
        """Take note of a chunk; the short rest of a prompt says nothing."""
        if tokens < self.chunk:
            return
        if seconds > self._seconds:
            self.chunk = max(_SMALLEST_CHUNK, self.chunk // 2)
        elif seconds < 0.4 * self._seconds:  # twice as many will not be too many
            self.chunk = min(PREFILL_CHUNK, 2 * self.chunk)


class Reading:
    """What `prefill` takes as progress, to know later how it cut the prompt.

    Attributes:
        pieces: tokens that were read at a time.
        known: tokens of the prompt that were known before.
    """

    def __init__(self, progress: Progress | None = None, known: int = 0) -> None:
        """Pass on what is told, with the tokens of the prompt that were `known` before among those read."""
        self.pieces: tuple[int, ...] = ()
        self._progress = progress
        self.known = known

    def __call__(self, done: int, total: int) -> None:
        if done:
            self.pieces += (done - sum(self.pieces),)
        if self._progress:
            self._progress(self.known + done, self.known + total)


def prefill(
    model: Transformer,
    ids: Sequence[int],
    cache: Cache,
    *,
    chunk: int = PREFILL_CHUNK,
    pace: ReadingPace | None = None,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> mx.array | None:
    """Read `ids`, at least one, into the cache.

    Args:
        chunk: tokens read at a time, at most; the result does not depend on it.
        pace: says how many, where somebody waits for progress or may cancel.
        progress: told (tokens read, all tokens) before the first chunk and after each.
        cancelled: asked before each chunk; once it says yes, nothing more is read.

    Returns:
        The logits (vocab,) after the last id; None if cancelled.
    """
    if progress:
        progress(0, len(ids))
    logits, done = None, 0
    while done < len(ids):
        if cancelled and cancelled():
            return None
        began = perf_counter()
        piece = ids[done : done + min(chunk, pace.chunk if pace else chunk)]
        done += len(piece)
        logits = read_chunk(model, piece, cache, last=done == len(ids))
        if pace:
            pace.took(len(piece), perf_counter() - began)
        if progress:
            progress(done, len(ids))
    mx.clear_cache()  # what decoding has no use for
    return logits


def read_chunk(model: Transformer, ids: Sequence[int], cache: Cache, *, last: bool) -> mx.array | None:
    """Read a piece of a prompt; the logits (vocab,) after it, if it is the last."""
    logits = model(mx.array([list(ids)]), cache, last_only=True)
    # Nothing asks for the logits of the pieces before the last, so the output matrix is not touched for them.
    mx.eval(cache.arrays(), *([logits] if last else []))
    return logits[0, -1] if last else None


def fitting_chunk(config: ModelConfig, tokens: int, itemsize: int, free: int) -> int:
    """The most tokens to read at a time for `prefill` to take at most `free` bytes, or the fewest that make sense."""
    chunk = PREFILL_CHUNK
    while chunk > _SMALLEST_CHUNK and prefill_bytes(config, tokens, itemsize, chunk) > free:
        chunk //= 2
    return chunk


def prefill_bytes(config: ModelConfig, tokens: int, itemsize: int, chunk: int = PREFILL_CHUNK) -> int:
    """A bound on what `prefill` takes at once beside weights and cache, measured to hold within a factor of three.

    Args:
        tokens: the length of the prompt.
        itemsize: bytes of a number in activations.
    """
    queries = min(tokens, chunk)
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    windows = set(config.windows)
    keys = max(tokens if window is None else min(tokens, window - 1 + queries) for window in windows)
    # Each several times, for MLX computes ahead of what it has freed.
    stream = 12 * queries * config.hidden_size + 4 * queries * config.intermediate_size
    attention = 5 * queries * (heads + 2 * kv_heads) * dim + 8 * kv_heads * dim * keys
    masks = 8 * queries * keys * len(windows)
    scores = 0 if on_gpu() and dim in _FUSED_HEAD_DIMS else 8 * heads * queries * keys
    return (stream + attention) * itemsize + masks + scores + 64 * config.vocab_size


def decode(
    model: Transformer,
    logits: mx.array,
    cache: Cache,
    params: SamplingParams,
    prompt: Sequence[int] = (),
    *,
    begun: int = 0,
    constraint: Constraint | None = None,
    cancelled: Cancelled | None = None,
) -> Generator[Token]:
    """Generate from where the cache stands, up to `max_tokens` tokens.

    Args:
        logits: (vocab,), of the first token to generate.
        prompt: the ids that came before, for the penalties.
        begun: how many of these, the last, count as generated.
        constraint: what the tokens must make up; once it is over, no more come.
        cancelled: asked before each token; once it says yes, no more come.

    Raises:
        WeightsError: the logits are not numbers.
    """
    row = Row(params, prompt, logits.shape[-1], cache.position, constraint, begun)
    return steps(model, logits[None], cache, row, params.max_tokens, cancelled=cancelled)


def steps(
    model: Transformer,
    start: mx.array | Stepped,
    cache: Cache,
    row: Row,
    count: int,
    *,
    cancelled: Cancelled | None = None,
) -> Generator[Token]:
    """Generate up to `count` tokens, one a step; arguments and errors as for `decode`.

    While a token is computed, Python already builds the step that feeds it to the model; but that step starts only when
    the next token is asked for. So whoever stops after a stop token has not paid for a step past it, and finds the
    cache standing before that token; and no two steps hold the cache at once, for then MLX would copy it.

    Args:
        start: the logits (1, vocab) of the first token, or the step that will compute them.
        row: how they are chosen; it follows them.
    """
    logits, step = (start.logits[:, -1], start) if isinstance(start, Stepped) else (start, None)
    del start  # whoever holds a step holds the cache that it made
    for left in range(count, 0, -1):
        if cancelled and cancelled():
            return
        if step is not None:
            cache.advance(step.rings, 1)
            logits, step = step.logits[:, -1], None
        chosen = choose(logits, [row])
        mx.async_eval(chosen, cache.arrays())
        if left > 1:
            step = model.step(chosen.tokens[:, None], cache)
        yield read(chosen, [row])[0]
        if row.over:
            return
