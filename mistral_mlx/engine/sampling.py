"""How the next token is chosen from the logits: pure functions, and one that composes them.

A token is drawn as the argmax of the filtered logits plus Gumbel noise, which draws from their softmax. The noise is a
pure function of the seed and the position in the sequence, so a seed gives the same text on any thread, in any batch
and however often it was cancelled and taken up again.
"""

from __future__ import annotations

import math
import reprlib
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

import mlx.core as mx

from mistral_mlx.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to generate. Penalties and biases change the logits; then comes the temperature, as in mistral-inference;
    then top-k, top-p and min-p.

    Attributes:
        max_tokens: the most tokens to generate.
        repetition_penalty: divides the logits, or multiplies negative ones, of tokens that stand in the prompt or were
            generated (CTRL, arXiv 1909.05858, section 4.1); 1 for none.
        presence_penalty: taken from the logits of tokens that were generated.
        frequency_penalty: taken from them as often as they were generated.
        logit_bias: token ids, and what is added to their logits.
        temperature: divides the logits; 0 takes the most likely token each time.
        top_k: keep the k most likely tokens; None for all.
        top_p: keep the most likely tokens that together reach this probability; 1 for all.
        min_p: keep tokens at least this times as likely as the most likely one; 0 for all.
        seed: from 0 to 2^64 - 1. None draws one, which is then found here: the same seed gives the same text.
        stop: a string or several; the answer ends before the first that it would contain.
        logprobs: how many of the likeliest tokens to report with their log-probabilities at each step; 0 for none.
        json_mode: the answer is a JSON object.
        json_schema: the answer is JSON that this schema allows; a mapping, or a class of pydantic's.
        regex: the whole answer matches this regular expression, in the syntax of Rust's regex crate.

    Raises:
        InputError: a value outside its range.
    """

    max_tokens: int = 512
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] | None = ()
    logprobs: int = 0
    json_mode: bool = False
    json_schema: Mapping[str, Any] | None = None
    regex: str | None = None

    def __post_init__(self) -> None:
        _check("max_tokens", _is_whole(self.max_tokens) and self.max_tokens >= 1, "a whole number from 1", self)
        factor = _is_real(self.repetition_penalty) and 1e-6 <= self.repetition_penalty <= 1e6
        _check("repetition_penalty", factor, "from 1e-6 to 1e6", self)
        for name in ("presence_penalty", "frequency_penalty"):
            _check(name, _is_addend(getattr(self, name)), "a number from -1e30 to 1e30", self)
        biases = isinstance(self.logit_bias, Mapping) and all(
            _is_whole(i) and i >= 0 and _is_addend(bias) for i, bias in self.logit_bias.items()
        )
        _check("logit_bias", biases, "a table of token ids and numbers from -1e30 to 1e30", self)
        _check("temperature", _is_real(self.temperature) and self.temperature >= 0, "a finite number from 0", self)
        _check(
            "top_k", self.top_k is None or (_is_whole(self.top_k) and self.top_k >= 1), "a whole number from 1", self
        )
        _check("top_p", _is_real(self.top_p) and 0 < self.top_p <= 1, "above 0 and at most 1", self)
        _check("min_p", _is_real(self.min_p) and 0 <= self.min_p <= 1, "from 0 to 1", self)
        seeded = self.seed is None or (_is_whole(self.seed) and 0 <= self.seed < 2**64)
        _check("seed", seeded, "a whole number from 0 to 2^64 - 1", self)
        for name in ("repetition_penalty", "presence_penalty", "frequency_penalty", "temperature", "top_p", "min_p"):
            object.__setattr__(self, name, float(getattr(self, name)))  # MLX takes no whole numbers of any size
        object.__setattr__(self, "logit_bias", {i: float(bias) for i, bias in self.logit_bias.items()})
        if self.seed is None:
            object.__setattr__(self, "seed", secrets.randbits(32))
        if self.stop is None:
            object.__setattr__(self, "stop", ())
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        strings = isinstance(self.stop, Sequence) and all(isinstance(s, str) and s for s in self.stop)
        _check("stop", strings, "a string or several, none of them empty", self)
        _check("logprobs", _is_whole(self.logprobs) and self.logprobs >= 0, "a whole number from 0", self)
        _check("json_mode", isinstance(self.json_mode, bool), "true or false", self)
        if describe := getattr(self.json_schema, "model_json_schema", None):
            object.__setattr__(self, "json_schema", describe())
        schema = self.json_schema is None or isinstance(self.json_schema, Mapping)
        _check("json_schema", schema, "a mapping, or a class of pydantic's", self)
        _check("regex", self.regex is None or isinstance(self.regex, str), "a regular expression", self)
        if len(self.forms) > 1:
            raise InputError(f"There are {' and '.join(self.forms)}.", "Give one form of the answer.")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> SamplingParams:
        """From options by name; raises InputError for one that does not exist."""
        unknown = options.keys() - set(cls.names())
        if unknown:
            raise InputError(f"There is no option {', '.join(sorted(unknown))}.", f"Options: {', '.join(cls.names())}.")
        return cls(**options)

    @property
    def forms(self) -> list[str]:
        """The options that say what the answer must look like, as far as they are given: one at most."""
        return [name for name in ("json_mode", "json_schema", "regex") if getattr(self, name) not in (None, False)]

    @classmethod
    def names(cls) -> list[str]:
        """The options there are."""
        return [f.name for f in fields(cls)]


def sample(logits: mx.array, params: SamplingParams, keys: mx.array | None = None) -> mx.array:
    """Choose a token for each row.

    Args:
        logits: (..., vocab) float32, penalties and biases applied.
        keys: (..., 2), what `Noise.key` gives for each; not needed at temperature 0.

    Returns:
        The tokens (...), not yet evaluated.
    """
    if params.temperature == 0:
        return mx.argmax(logits, axis=-1)
    return _sampler(params.temperature, params.top_k, params.top_p, params.min_p)(logits, keys)


@lru_cache(maxsize=64)
def _sampler(temperature: float, top_k: int | None, top_p: float, min_p: float) -> Callable[..., mx.array]:
    def choose(logits: mx.array, keys: mx.array) -> mx.array:
        # From the largest down, so that no temperature overflows; below 1e-30 nothing but the largest is left anyway.
        scaled = (logits - mx.max(logits, axis=-1, keepdims=True)) / max(temperature, 1e-30)
        kept = keep_min_p(keep_top(scaled, top_k, top_p), min_p)
        return mx.argmax(kept + gumbel(keys, logits.shape[-1]), axis=-1)

    return mx.compile(choose)


class Penalties:
    """What a request changes about the logits, by the tokens that have come."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int], vocab_size: int, begun: int = 0) -> None:
        """For what follows `prompt`, whose last `begun` ids were generated before."""
        self._params = params
        self._counts = mx.zeros(vocab_size)  # of generated tokens
        if begun and self._counting:
            said = mx.array(list(prompt[-begun:]), mx.uint32)
            self._counts = self._counts.at[said].add(1)
        self._seen = mx.zeros(vocab_size)  # more than 0 for tokens of the prompt
        self._bias = mx.zeros(vocab_size)
        if params.repetition_penalty != 1:
            self._seen[mx.array(sorted(set(prompt)), mx.uint32)] = 1
        if params.logit_bias:
            self._bias[mx.array(list(params.logit_bias))] = mx.array(list(params.logit_bias.values()), mx.float32)

    @property
    def any(self) -> bool:
        """Whether anything is asked for that changes the logits."""
        return self._counting or bool(self._params.logit_bias)

    @property
    def _counting(self) -> bool:
        p = self._params
        return p.repetition_penalty != 1 or bool(p.presence_penalty or p.frequency_penalty)

    def apply(self, logits: mx.array) -> mx.array:
        """Logits (vocab,) float32 to logits; nothing is added where no penalty or bias is asked for."""
        p = self._params
        if p.repetition_penalty != 1:
            logits = penalize_repetition(logits, self._seen + self._counts > 0, p.repetition_penalty)
        if p.presence_penalty or p.frequency_penalty:
            logits = logits - p.presence_penalty * (self._counts > 0) - p.frequency_penalty * self._counts
        return logits + self._bias if p.logit_bias else logits

    def count(self, token: mx.array) -> None:
        """Take note of a generated token, a scalar."""
        if self._counting:
            self._counts = self._counts.at[token].add(1)


def penalize_repetition(logits: mx.array, seen: mx.array, penalty: float) -> mx.array:
    """Make the tokens that are `seen` (vocab,) less likely: positive logits are divided, negative ones multiplied."""
    return mx.where(seen, mx.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_top(logits: mx.array, top_k: int | None, top_p: float) -> mx.array:
    """Set to -inf all but the `top_k` largest, and of these all after those that together reach `top_p`.

    The token that crosses `top_p` stays, so one always does. Of equal logits the lower id counts as the larger.
    """
    size = logits.shape[-1]
    if (top_k is None or top_k >= size) and top_p >= 1:
        return logits
    order = mx.argsort(-logits, axis=-1)[..., : min(top_k or size, size)]
    ranked = mx.take_along_axis(logits, order, axis=-1)
    probabilities = mx.softmax(ranked, axis=-1)
    before = mx.cumsum(probabilities, axis=-1) - probabilities
    kept = mx.where((before < top_p) | (mx.arange(ranked.shape[-1]) == 0), ranked, -mx.inf)
    return mx.put_along_axis(mx.full(logits.shape, -mx.inf), order, kept, axis=-1)


def keep_min_p(logits: mx.array, min_p: float) -> mx.array:
    """Set to -inf the logits of tokens less than `min_p` times as likely as the most likely one."""
    if min_p == 0:
        return logits
    return mx.where(logits >= mx.max(logits, axis=-1, keepdims=True) + math.log(min_p), logits, -mx.inf)


class Noise:
    """The noise of one seed: a key for each position, which depends on the two alone."""

    def __init__(self, seed: int) -> None:
        # Threefry keys are two words: one of this seed's, and its other one stirred by the position.
        self._words: list[int] = mx.random.split(mx.random.key(seed), 1)[0].tolist()  # type: ignore[assignment]

    def key(self, position: int) -> list[int]:
        """The key (2,) for the token at `position`."""
        return [self._words[0], self._words[1] ^ position]


def gumbel(keys: mx.array, size: int) -> mx.array:
    """Standard Gumbel noise (..., size), a row for each of the keys (..., 2)."""
    if keys.ndim == 1:
        return mx.random.gumbel((size,), key=keys)
    return mx.vmap(lambda key: gumbel(key, size))(keys)


def _check(name: str, good: bool, allowed: str, params: SamplingParams) -> None:
    if not good:
        raise InputError(f"{name} is {reprlib.repr(getattr(params, name))}.", f"It must be {allowed}.")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_addend(value: object) -> bool:
    """What can be added to logits some thousand times without leaving float32."""
    return _is_real(value) and abs(value) <= 1e30  # type: ignore[arg-type]
