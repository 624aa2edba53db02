"""From logits to tokens, a row for each sequence: what each asked for, what it must look like, and what it has said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from mistral_mlx.engine.sampling import Noise, Penalties, SamplingParams, sample
from mistral_mlx.errors import WeightsError


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


class Row:
    """One sequence, and how its next token is chosen.

    Attributes:
        params: how to sample.
        position: of the next token in the sequence.
        live: whether its tokens are wanted.
    """

    live = True

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        vocab_size: int,
        position: int,
        constraint: Constraint | None = None,
        begun: int = 0,
    ) -> None:
        """A sequence that has read `prompt`, of which the last `begun` ids began the answer; its next token is at
        `position`.
        """
        self.params = params
        self.position = position
        self._penalties = Penalties(params, prompt, vocab_size, begun)
        self._constraint = constraint
        self._fault: Exception | None = None  # which kept its scores from being made
        self._noise = Noise(params.seed or 0) if params.temperature else None

    @property
    def over(self) -> bool:
        """Whether the form that the sequence must have is complete."""
        return self._constraint is not None and self._constraint.over

    @property
    def plain(self) -> bool:
        """Whether the next token is drawn from the logits as they are."""
        return self._constraint is None and not self._penalties.any

    @property
    def key(self) -> list[int]:
        """The key (2,) of the noise that the next token is drawn with."""
        return self._noise.key(self.position) if self._noise else [0, 0]

    def scores(self, logits: mx.array) -> mx.array:
        """Logits (vocab,) float32 of the next token, with penalties and what may not come at -inf."""
        try:
            scores = self._penalties.apply(logits)
            if self._constraint is not None:
                scores = mx.where(mx.array(self._constraint.allowed()), scores, -mx.inf)
        except Exception as fault:  # it is this row's alone: told by `take`
            self._fault = fault
            return logits
        return scores

    def follow(self, token: mx.array) -> None:
        """Go on by a token, a scalar, whose value need not be known yet."""
        self._penalties.count(token)
        self.position += 1

    def take(self, token: int, logprob: float, top: dict[int, float]) -> Token:
        """The token that came, to which what follows is held.

        Raises:
            WeightsError: its logits are not numbers.
            MistralError: what the row must look like cannot be followed.
        """
        if self._fault:
            raise self._fault
        if math.isnan(logprob):
            raise WeightsError(
                f"What the model computed for position {self.position - 1} is not a number.",
                "Its weights are damaged, or overflow in this precision: try dtype bfloat16 or float32.",
            )
        if self._constraint is not None:
            self._constraint.accept(token)
        return Token(token, logprob, top)

    def copy(self) -> Row:
        """A row in the same state that goes its own way; it has no constraint."""
        row = copy(self)
        row._penalties = copy(row._penalties)
        return row

    def resting(self) -> Row:
        """A row that draws as this one does, so that both can be drawn together, and whose tokens nobody wants."""
        row = copy(self)
        row.live, row._constraint, row._penalties = False, None, Penalties(SamplingParams(seed=0), (), 0)
        return row

    def assuming(self, tokens: Sequence[int]) -> list[Row]:
        """This row, and as it would be after each of the tokens; it has no constraint."""
        rows = [self]
        for token in tokens:
            row = rows[-1].copy()
            row.follow(mx.array(token))
            rows.append(row)
        return rows


class Chosen(NamedTuple):
    """The tokens of some rows (B,), not yet evaluated, and their log-probabilities.

    Attributes:
        top_ids, top_logprobs: (B, n), of the likeliest tokens, from the likeliest on.
    """

    tokens: mx.array
    logprobs: mx.array
    top_ids: mx.array
    top_logprobs: mx.array


def choose(logits: mx.array, rows: Sequence[Row]) -> Chosen:
    """Choose the next token of each row, and let the rows follow.

    Args:
        logits: (B, vocab), of the next token of each.
    """
    logits = logits.astype(mx.float32)
    scores = logits
    if not all(row.plain for row in rows):
        scores = mx.stack([row.scores(each) for row, each in zip(rows, logits, strict=True)])
    tokens = _draw(scores, rows)
    for i, row in enumerate(rows):
        row.follow(tokens[i])
    totals = mx.logsumexp(logits, axis=-1, keepdims=True)
    logprobs = mx.take_along_axis(logits, tokens[:, None], axis=-1) - totals
    count = min(max(row.params.logprobs for row in rows), logits.shape[-1])
    top_ids = mx.argsort(-logits, axis=-1)[:, :count] if count else mx.zeros((len(rows), 0), mx.uint32)
    top = mx.take_along_axis(logits, top_ids, axis=-1) - totals if count else mx.zeros((len(rows), 0))
    return Chosen(tokens, logprobs[:, 0], top_ids, top)


def read(chosen: Chosen, rows: Sequence[Row]) -> list[Token]:
    """Wait for the tokens, and hold the rows to them; errors as for `Row.take`."""
    tokens = []
    for token in read_each(chosen, rows):
        if isinstance(token, Exception):
            raise token
        tokens.append(token)
    return tokens


def read_each(chosen: Chosen, rows: Sequence[Row]) -> list[Token | Exception]:
    """The same, with the error of a row in the place of its token."""
    tokens: list[int] = chosen.tokens.tolist()  # type: ignore[assignment]
    logprobs: list[float] = chosen.logprobs.tolist()  # type: ignore[assignment]
    found: list[Token | Exception] = []
    for i, (row, token, logprob) in enumerate(zip(rows, tokens, logprobs, strict=True)):
        try:
            found.append(row.take(token, logprob, _likeliest(chosen, i, row.params.logprobs)))
        except Exception as error:
            found.append(error)
    return found


def _likeliest(chosen: Chosen, row: int, count: int) -> dict[int, float]:
    if not count:
        return {}
    ids: list[int] = chosen.top_ids[row].tolist()  # type: ignore[assignment]
    logprobs: list[float] = chosen.top_logprobs[row].tolist()  # type: ignore[assignment]
    return dict(zip(ids[:count], logprobs[:count], strict=True))


def _draw(scores: mx.array, rows: Sequence[Row]) -> mx.array:
    """A token for each row: together where the rows sample alike, which leaves out their seeds."""
    ways = {(p.temperature, p.top_k, p.top_p, p.min_p) for p in (row.params for row in rows)}
    keys = mx.array([row.key for row in rows], mx.uint32)
    if len(ways) == 1:
        return sample(scores, rows[0].params, keys)
    return mx.stack([sample(scores[i], row.params, keys[i]) for i, row in enumerate(rows)])
