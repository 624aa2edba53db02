"""Read prompts: in pieces, each after what was read before, or several short ones in one pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from math import inf, isinf
from time import perf_counter
from typing import Any

import mlx.core as mx
import numpy as np

from mistral_mlx.backend import on_gpu
from mistral_mlx.config import ModelConfig
from mistral_mlx.model.cache import Cache
from mistral_mlx.model.masks import reading_mask
from mistral_mlx.model.packing import Packing
from mistral_mlx.model.slots import Sequences
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
    """How long it takes to read, and so how many tokens of a prompt to read at a time where somebody waits.

    It learns from pass to pass and from prompt to prompt. The logits do not depend on it, but for rounding.
    """

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._passes: deque[tuple[int, float]] = deque(maxlen=16)

    def took(self, tokens: int, seconds: float) -> None:
        """Take note of a pass."""
        self._passes.append((tokens, max(seconds, 1e-6)))  # some clocks are coarse

    def within(self, seconds: float) -> int:
        """How many tokens a pass reads in about so long, where they are so many that a pass makes sense."""
        if isinf(seconds):
            return PREFILL_CHUNK
        if not self._passes:
            return 4 * _SMALLEST_CHUNK
        once, each = self._cost
        steps = min((seconds - once) / each, PREFILL_CHUNK) // _SMALLEST_CHUNK
        known = 2 * max(tokens for tokens, _ in self._passes)  # nothing is of larger ones
        return max(_SMALLEST_CHUNK, min(int(steps) * _SMALLEST_CHUNK, known))

    @property
    def _cost(self) -> tuple[float, float]:
        """Seconds that a pass takes, and that each of its tokens adds."""
        if len({tokens for tokens, _ in self._passes}) > 1:
            tokens, seconds = np.array(self._passes).T
            each, once = np.polyfit(tokens, seconds, 1, w=0.8 ** np.arange(len(tokens))[::-1])  # the last ones most
            if each > 0 and once >= 0:
                return float(once), float(each)
        tokens, seconds = self._passes[-1]
        each = seconds / (tokens + _SMALLEST_CHUNK)
        return _SMALLEST_CHUNK * each, each


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
    seconds: float = inf,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> mx.array | None:
    """Read `ids`, at least one, into the cache.

    Args:
        chunk: tokens read at a time, at most; the result does not depend on it.
        pace: knows how many take how long, and learns from these.
        seconds: what a chunk may take, where somebody waits for progress or may cancel.
        progress: told (tokens read, all tokens) before the first chunk and after each.
        cancelled: asked before each chunk; once it says yes, nothing more is read.

    Returns:
        The logits (vocab,) after the last id; None if cancelled.
    """
    if progress:
        progress(0, len(ids))
    pace = pace or ReadingPace()
    logits, done = None, 0
    while done < len(ids):
        if cancelled and cancelled():
            return None
        began = perf_counter()
        piece = ids[done : done + min(chunk, pace.within(seconds))]
        done += len(piece)
        logits = read_chunk(model, piece, cache, last=done == len(ids))
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


def read_together(model: Transformer, prompts: Sequence[Sequence[int]]) -> tuple[mx.array, Sequences]:
    """Read short prompts in one pass.

    Returns:
        The logits (B, vocab) after each, and what each has left.
    """
    lengths = [len(prompt) for prompt in prompts]
    end = max(lengths)
    view = _Prompts(model, mx.array([end - n for n in lengths]), end)
    logits = model(mx.array([[0] * (end - len(prompt)) + list(prompt) for prompt in prompts]), view, last_only=True)
    read = Sequences(lengths, [layer.stored for layer in view.layers])
    mx.eval(logits, read.layers)
    return logits[:, -1], read


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


class _Prompts:
    """What stands in for a cache while rows that end together are read from their beginnings."""

    def __init__(self, model: Transformer, starts: mx.array, length: int) -> None:
        windows = model.config.windows
        masks = {window: reading_mask(starts, length, window) for window in windows}
        self.layers = [_Layer(-starts, model.packing) for _ in windows]
        self._masks = [masks[window] for window in windows]

    def masks(self, length: int) -> list[mx.array]:
        return self._masks


class _Layer:
    def __init__(self, position: mx.array, packing: Packing | None) -> None:
        self.position = position  # of the first column in each row, negative before the row begins
        self.stored: list[mx.array] = []
        self._packing = packing

    def update(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        if not self._packing:
            self.stored = [keys, values]
            return keys, values
        self.stored = self._packing.pack(keys, values)
        return self._packing.unpack(self.stored)
