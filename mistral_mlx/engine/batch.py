"""Sequences of any length that are decoded together: one pass of the model gives each its next token."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mistral_mlx.engine.choice import Row, Token, choose, read
from mistral_mlx.model.cache import Cache
from mistral_mlx.model.step import Stepped
from mistral_mlx.model.transformer import Transformer


class Batch:
    """Rows that join and leave between steps.

    Each draws with its own seed and position, so it says what it would have said alone.

    Attributes:
        rows: those in it now, in the order of what `step` gives.
    """

    def __init__(self, model: Transformer, max_tokens: int) -> None:
        """An empty batch.

        Args:
            max_tokens: the longest that any sequence becomes, prompt and answer.
        """
        self.rows: list[Row] = []
        self._model = model
        self._max_tokens = max_tokens
        self._places: list[tuple[Cache, int]] = []  # where each row's keys and values are
        self._tokens: list[int] = []  # the last of each row, not yet fed
        self._cache: Cache | None = None  # that holds all rows, in order; None once rows joined or left
        self._ahead: Stepped | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(cache.nbytes for cache in {id(cache): cache for cache, _ in self._places}.values())

    def join(self, row: Row, logits: mx.array, cache: Cache) -> Token:
        """Take in a sequence, and draw its first token.

        Args:
            logits: (vocab,), of that token.
            cache: what it has read; the batch takes it over.
        """
        (token,) = read(choose(logits[None], [row]), [row])
        self.rows.append(row)
        self._places.append((cache, 0))
        self._tokens.append(token.id)
        self._cache = self._ahead = None
        return token

    def leave(self, rows: Sequence[Row]) -> None:
        """Let go of sequences; the others go on."""
        kept = [i for i, row in enumerate(self.rows) if row not in rows]
        self.rows = [self.rows[i] for i in kept]
        self._places = [self._places[i] for i in kept]
        self._tokens = [self._tokens[i] for i in kept]
        self._cache = self._ahead = None

    def step(self) -> list[Token]:
        """The next token of each row.

        Raises:
            WeightsError: the logits of a row are not numbers.
        """
        cache = self._cache or self._gathered()
        # As when decoding alone: the step after this one is built while this one is computed.
        stepped = self._ahead or self._model.step(mx.array(self._tokens)[:, None], cache)
        cache.advance(stepped.rings, 1)
        chosen = choose(stepped.logits[:, -1], self.rows)
        mx.async_eval(chosen, cache.arrays())
        self._ahead = None
        if max(cache.lengths) < self._max_tokens:
            self._ahead = self._model.step(chosen.tokens[:, None], cache)
        tokens = read(chosen, self.rows)
        self._tokens = [token.id for token in tokens]
        return tokens

    def _gathered(self) -> Cache:
        self._cache = self._model.make_cache(self._max_tokens)
        self._cache.gather(self._places)
        self._places = [(self._cache, i) for i in range(len(self.rows))]
        return self._cache
