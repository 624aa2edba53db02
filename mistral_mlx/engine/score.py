"""How likely a model finds a given text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from mistral_mlx.engine.choice import Token
from mistral_mlx.engine.reading import PREFILL_CHUNK
from mistral_mlx.model.cache import Cache
from mistral_mlx.model.transformer import Transformer


def whole_logits(model: Transformer, ids: Sequence[int]) -> mx.array:
    """One forward pass without a cache: (T, vocab) float32, row t predicts what follows ids[t]."""
    return model(mx.array([list(ids)]))[0].astype(mx.float32)


def score(model: Transformer, ids: Sequence[int], cache: Cache, *, chunk: int = PREFILL_CHUNK) -> mx.array:
    """Read ids through an empty cache as a prompt is read.

    Returns:
        (T - 1,) float32: the log-probability of each of ids[1:] after those before it.
    """
    scores = []
    for start in range(0, len(ids) - 1, chunk):
        piece, following = ids[start : start + chunk], ids[start + 1 : start + 1 + chunk]
        logprobs = _logprobs(model, piece, cache)[: len(following)]
        scores.append(_of_each(logprobs, following))
        mx.eval(scores[-1], cache.arrays())
    return mx.concatenate(scores)


def score_chunk(
    model: Transformer, ids: Sequence[int], following: Sequence[int], cache: Cache, top: int
) -> tuple[list[Token], mx.array]:
    """Read a piece of a text.

    Args:
        following: what each of the ids is followed by; the last may be followed by nothing.
        top: how many of the likeliest to tell in each place.

    Returns:
        How likely each that follows is, and the log-probabilities (vocab,) of what comes after the piece.
    """
    logprobs = _logprobs(model, ids, cache)
    each = _of_each(logprobs[: len(following)], following)
    order = mx.zeros((len(ids), 0), mx.uint32)
    if top:
        order = mx.argpartition(-logprobs, top - 1, axis=-1)[:, :top]
        ranks = mx.argsort(-mx.take_along_axis(logprobs, order, axis=-1), axis=-1)
        order = mx.take_along_axis(order, ranks, axis=-1)
    likeliest = mx.take_along_axis(logprobs, order, axis=-1)
    mx.eval(each, order, likeliest, logprobs[-1], cache.arrays())
    found: list[list[Any]] = [each.tolist(), order.tolist(), likeliest.tolist()]  # type: ignore[list-item]
    return [
        Token(id, logprob, dict(zip(*top, strict=True))) for id, logprob, *top in zip(following, *found, strict=False)
    ], logprobs[-1]


def score_bytes(vocab_size: int) -> int:
    """A bound on what `score_chunk` takes beside what reading does, for as many tokens as `scored_chunk`."""
    return 16 * scored_chunk(vocab_size) * vocab_size


def scored_chunk(vocab_size: int) -> int:
    """How many tokens to score at a time: the numbers are as many as these times the vocabulary."""
    return max(1, 2**22 // vocab_size)


def _logprobs(model: Transformer, ids: Sequence[int], cache: Cache) -> mx.array:
    """(T, vocab) float32."""
    logits = model(mx.array([list(ids)]), cache)[0].astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _of_each(logprobs: mx.array, ids: Sequence[int]) -> mx.array:
    return mx.take_along_axis(logprobs, mx.array(list(ids))[:, None], axis=-1)[:, 0] if ids else mx.zeros(0)
