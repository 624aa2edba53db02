"""How likely a model finds a given text."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mistral_mlx.engine.decode import PREFILL_CHUNK
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
        piece, following = list(ids[start : start + chunk]), list(ids[start + 1 : start + 1 + chunk])
        logits = model(mx.array([piece]), cache)[0, : len(following)].astype(mx.float32)
        chosen = mx.take_along_axis(logits, mx.array(following)[:, None], axis=-1)[:, 0]
        scores.append(chosen - mx.logsumexp(logits, axis=-1))
        mx.eval(scores[-1], cache.arrays())
    return mx.concatenate(scores)
