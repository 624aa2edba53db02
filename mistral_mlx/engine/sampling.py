"""How the next token is chosen from the logits: pure functions, and one that composes them.

A token is drawn as the argmax of the filtered logits plus Gumbel noise, which draws from their softmax. The noise is a
pure function of the seed and the position in the sequence, so a seed gives the same text on any thread, in any batch
and however often it was cancelled and taken up again.
"""

from __future__ import annotations

import math
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import mlx.core as mx

from mistral_mlx.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to generate. Temperature is applied first, as in mistral-inference; then top-k, top-p and min-p.

    Attributes:
        max_tokens: the most tokens to generate.
        temperature: divides the logits; 0 takes the most likely token each time.
        top_k: keep the k most likely tokens; None for all.
        top_p: keep the most likely tokens that together reach this probability; 1 for all.
        min_p: keep tokens at least this times as likely as the most likely one; 0 for all.
        seed: from 0 to 2^64 - 1. None draws one, which is then found here: the same seed gives the same text.

    Raises:
        InputError: a value outside its range.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("max_tokens", _is_whole(self.max_tokens) and self.max_tokens >= 1, "a whole number from 1", self)
        _check("temperature", _is_real(self.temperature) and self.temperature >= 0, "a number from 0", self)
        _check(
            "top_k", self.top_k is None or (_is_whole(self.top_k) and self.top_k >= 1), "a whole number from 1", self
        )
        _check("top_p", _is_real(self.top_p) and 0 < self.top_p <= 1, "above 0 and at most 1", self)
        _check("min_p", _is_real(self.min_p) and 0 <= self.min_p <= 1, "from 0 to 1", self)
        seeded = self.seed is None or (_is_whole(self.seed) and 0 <= self.seed < 2**64)
        _check("seed", seeded, "a whole number from 0 to 2^64 - 1", self)
        if self.seed is None:
            object.__setattr__(self, "seed", secrets.randbits(32))

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> SamplingParams:
        """From options by name; raises InputError for one that does not exist."""
        unknown = options.keys() - set(cls.names())
        if unknown:
            raise InputError(f"There is no option {', '.join(sorted(unknown))}.", f"Options: {', '.join(cls.names())}.")
        return cls(**options)

    @classmethod
    def names(cls) -> list[str]:
        """The options there are."""
        return [f.name for f in fields(cls)]


def sample(logits: mx.array, params: SamplingParams, position: int) -> tuple[mx.array, mx.array]:
    """Choose the token at `position` of the sequence.

    Args:
        logits: (vocab,), any float type.

    Returns:
        The token, and the log-probability that the model itself gives it, before temperature and filters; both
        scalars, not yet evaluated.
    """
    logits = logits.astype(mx.float32)
    if params.temperature == 0:
        token = mx.argmax(logits)
    else:
        # From the largest down, so that no temperature overflows; below 1e-30 nothing but the largest is left anyway.
        scaled = (logits - mx.max(logits)) / max(params.temperature, 1e-30)
        kept = keep_top(scaled, params.top_k, params.top_p)
        kept = keep_min_p(kept, params.min_p)
        token = mx.argmax(kept + gumbel(params.seed or 0, position, logits.shape[-1]))
    return token, logits[token] - mx.logsumexp(logits)


def keep_top(logits: mx.array, top_k: int | None, top_p: float) -> mx.array:
    """Set to -inf all but the `top_k` largest, and of these all after those that together reach `top_p`.

    The token that crosses `top_p` stays, so one always does. Of equal logits the lower id counts as the larger.
    """
    size = logits.shape[-1]
    if (top_k is None or top_k >= size) and top_p >= 1:
        return logits
    order = mx.argsort(-logits)[: top_k or size]
    ranked = logits[order]
    probabilities = mx.softmax(ranked)
    before = mx.cumsum(probabilities) - probabilities
    kept = mx.where((before < top_p) | (mx.arange(ranked.size) == 0), ranked, -mx.inf)
    return mx.put_along_axis(mx.full(logits.shape, -mx.inf), order, kept, axis=-1)


def keep_min_p(logits: mx.array, min_p: float) -> mx.array:
    """Set to -inf the logits of tokens less than `min_p` times as likely as the most likely one."""
    if min_p == 0:
        return logits
    return mx.where(logits >= mx.max(logits) + math.log(min_p), logits, -mx.inf)


def gumbel(seed: int, position: int, size: int) -> mx.array:
    """Standard Gumbel noise (size,) that depends on the seed and the position alone."""
    # Threefry keys are two words: one of this seed's, and its other one stirred by the position.
    words = mx.random.split(mx.random.key(seed), 1)[0]
    return mx.random.gumbel((size,), key=mx.bitwise_xor(words, mx.array([0, position], mx.uint32)))


def _check(name: str, good: bool, allowed: str, params: SamplingParams) -> None:
    if not good:
        raise InputError(f"{name} is {getattr(params, name)!r}.", f"It must be {allowed}.")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
