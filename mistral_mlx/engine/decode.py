"""Read a prompt, then generate one id after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np

from mistral_mlx.backend import on_gpu
from mistral_mlx.config import ModelConfig
from mistral_mlx.engine.sampling import Penalties, SamplingParams, sample
from mistral_mlx.errors import WeightsError
from mistral_mlx.model.cache import Cache
from mistral_mlx.model.transformer import Transformer

# Large enough to keep a GPU busy, small enough that a mask and its scores stay in the tens of megabytes and that
# a cancelled prompt stops soon.
PREFILL_CHUNK = 512

# Where MLX's GPU attention keeps no scores (mlx, scaled_dot_product_attention.cpp).
_FUSED_HEAD_DIMS = (64, 80, 128)

Progress = Callable[[int, int], None]
Cancelled = Callable[[], bool]


@dataclass(frozen=True)
class Token:
    """A generated token and the log-probability that the model gave it, before penalties, temperature and filters.

    Attributes:
        top: the likeliest tokens and their log-probabilities, from the likeliest on, as many as were asked for.
    """

    id: int
    logprob: float
    top: dict[int, float]


class Constraint(Protocol):
    """What an answer must look like, one token after another.

    Attributes:
        over: whether it is complete and nothing can follow.
    """

    over: bool

    def allowed(self) -> np.ndarray:
        """Which tokens may come next: (vocab,) bool, at least one of them."""
        ...

    def accept(self, token: int) -> None:
        """Take note of the token that came."""
        ...


def prefill(
    model: Transformer,
    ids: Sequence[int],
    cache: Cache,
    *,
    chunk: int = PREFILL_CHUNK,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> mx.array | None:
    """Read `ids`, at least one, into the cache.

    Args:
        chunk: tokens read at a time; the result does not depend on it.
        progress: told (tokens read, all tokens) before the first chunk and after each.
        cancelled: asked before each chunk; once it says yes, nothing more is read.

    Returns:
        The logits (vocab,) after the last id; None if cancelled.
    """
    if progress:
        progress(0, len(ids))
    logits = None
    for start in range(0, len(ids), chunk):
        if cancelled and cancelled():
            return None
        piece = mx.array([ids[start : start + chunk]])
        logits = model(piece, cache, last_only=True)
        done = min(start + chunk, len(ids))
        # Nothing asks for the logits of the chunks before the last, so the output matrix is not touched for them.
        mx.eval(cache.arrays(), *([logits] if done == len(ids) else []))
        if progress:
            progress(done, len(ids))
    return None if logits is None else logits[0, -1]


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
    attention = 2 * queries * (heads + 2 * kv_heads) * dim + 8 * kv_heads * dim * keys
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
    constraint: Constraint | None = None,
    cancelled: Cancelled | None = None,
) -> Iterator[Token]:
    """Generate from where the cache stands, up to `max_tokens` tokens.

    A token is fed to the model only when the next one is asked for: whoever stops after a stop token has not paid for
    a step past it, and finds the cache standing before that token.

    Args:
        logits: (vocab,), of the first token to generate.
        prompt: the ids that came before, for the repetition penalty.
        constraint: what the tokens must make up; once it is over, no more come.
        cancelled: asked before each token; once it says yes, no more come.

    Raises:
        WeightsError: the logits are not numbers.
    """
    token: mx.array | None = None
    penalties = Penalties(params, prompt, logits.shape[-1])
    for _ in range(params.max_tokens):
        if cancelled and cancelled():
            return
        if token is not None:
            logits = model(token.reshape(1, 1), cache)[0, -1]
        logits = logits.astype(mx.float32)
        scores = penalties.apply(logits)
        if constraint is not None:
            scores = mx.where(mx.array(constraint.allowed()), scores, -mx.inf)
        token = sample(scores, params, cache.position)
        penalties.count(token)
        total = mx.logsumexp(logits)
        logprob, top = logits[token] - total, _likeliest(logits, total, params.logprobs)
        mx.eval(token, logprob, top)
        step = Token(int(token), float(logprob), _table(*top))
        if math.isnan(step.logprob):
            raise WeightsError(
                f"What the model computed for position {cache.position} is not a number.",
                "Its weights are damaged, or overflow in this precision: try dtype bfloat16 or float32.",
            )
        if constraint is not None:
            constraint.accept(step.id)
        yield step
        if constraint is not None and constraint.over:
            return


def _table(ids: mx.array, logprobs: mx.array) -> dict[int, float]:
    return dict(zip(ids.tolist(), logprobs.tolist(), strict=True))  # type: ignore[arg-type]


def _likeliest(logits: mx.array, total: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """The ids and the log-probabilities of the `count` likeliest tokens, from the likeliest on."""
    ids = mx.argsort(-logits)[:count] if count else mx.zeros(0, mx.uint32)
    return ids, logits[ids] - total
