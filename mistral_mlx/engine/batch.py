"""Sequences of any length that are decoded together: one pass of the model gives each its next token."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mistral_mlx.engine.choice import Row, Token, choose, read
from mistral_mlx.model.cache import Cache
from mistral_mlx.model.masks import reading_mask
from mistral_mlx.model.packing import Packing
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
            max_tokens: the longest that any sequence becomes, but for its last token, which nothing follows.
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

    def join(self, rows: Sequence[Row], logits: mx.array, cache: Cache) -> list[Token]:
        """Take in sequences, and draw the first token of each.

        Args:
            logits: (B, vocab), of these tokens; (1, vocab) where all have read the same.
            cache: what the sequences have read, a row each, or one for all; the batch takes it over.
        """
        read_once = logits.shape[0] == 1
        tokens = read(choose(mx.broadcast_to(logits, (len(rows), logits.shape[1])), rows), rows)
        self.rows += rows
        self._places += [(cache, 0 if read_once else i) for i in range(len(rows))]
        self._tokens += [token.id for token in tokens]
        self._cache = self._ahead = None
        return tokens

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


def read_together(model: Transformer, prompts: Sequence[Sequence[int]]) -> tuple[mx.array, Cache]:
    """Read short prompts in one pass.

    Returns:
        The logits (B, vocab) after each, and a cache with a row for each.
    """
    lengths = [len(prompt) for prompt in prompts]
    end = max(lengths)
    view = _Reading(model, mx.array([end - n for n in lengths]), end)
    logits = model(mx.array([[0] * (end - len(prompt)) + list(prompt) for prompt in prompts]), view, last_only=True)
    cache = model.make_cache()
    cache.take_in(lengths, [layer.stored for layer in view.layers])
    mx.eval(logits, cache.arrays())
    return logits[:, -1], cache


class _Reading:
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

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if not self._packing:
            self.stored = [keys, values]
            return keys, values
        self.stored = self._packing.pack(keys, values)
        return self._packing.unpack(self.stored)
