"""Sequences that are decoded together: a slot each, in rings that they share.

All of them end at the same place of a ring, so a step stores in one place; `starts` says where each began, and so which
positions its keys have. A ring turns: there is no end that sequences which come and go could reach.

    8 slots of a ring, before it turns        0  1  2  3  4  5  6  7
    a sequence of 7, and one of 2 that        a  a  a  a  a  a  a
    came when the first had 5                          b  b  b  b

Sequences share rings of one size, so those of like length belong together: a long one would make all others as large.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx

from mistral_mlx.config import ModelConfig
from mistral_mlx.model.cache import Cache, layer_limits
from mistral_mlx.model.packing import Packing
from mistral_mlx.model.ring import Span, fitted, latest


class Sequences(NamedTuple):
    """What some sequences have left in a model.

    Attributes:
        lengths: tokens of each.
        layers: for each layer its arrays (B, kv_heads, n, …) in order of time, at whose end every sequence ends. They
            may come one by one, and are then there once.
    """

    lengths: list[int]
    layers: Iterable[list[mx.array]]

    @classmethod
    def of(cls, cache: Cache) -> Sequences:
        """The one that a cache holds."""
        return cls([cache.position], cache.held)

    def only(self, chosen: list[int]) -> Sequences:
        """Those at some places, of which one may be chosen several times."""
        if chosen == list(range(len(self.lengths))):
            return self
        layers = [[x[mx.array(chosen)] for x in arrays] for arrays in self.layers]
        return Sequences([self.lengths[i] for i in chosen], layers)


class Slots:
    """Some slots of one size, which is the most tokens that a sequence in them may have, but in a window.

    Attributes:
        packing: how keys and values are stored; None as they are.
        position: where the next token is stored, counted over all turns.
    """

    def __init__(self, config: ModelConfig, size: int, packing: Packing | None) -> None:
        self.packing = packing
        self.position = 0
        self._windows = config.windows
        self._capacities = [min(size, limit) for limit in layer_limits(config)]
        self._rings: list[list[mx.array]] = []  # of each layer
        self._starts: list[int] = []  # where each slot's sequence begins, counted as `position` is; may be before 0

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def starts(self) -> mx.array:
        """(B,): the `position` at which each sequence began."""
        return mx.array(self._starts)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each."""
        return [self.position - start for start in self._starts]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(ring.nbytes for ring in self.arrays())

    def put(self, sequences: Sequences, places: Sequence[int]) -> None:
        """Take sequences in: the first into the slots at `places`, the others into new ones behind the last.

        What they hold is taken and let go of layer by layer, so that only one layer stands in memory twice.
        """
        if not self._starts:
            self.position = max(sequences.lengths)
        used = len(places)
        laid: list[list[mx.array]] = []
        for i, arrays in enumerate(sequences.layers):
            new = [fitted(array, self._capacities[i], self.position) for array in arrays]
            arrays.clear()
            rings = self._rings[i] if self._rings else [ring[:0] for ring in new]
            for ring, rows in zip(rings, new, strict=True):
                for row, place in enumerate(places):
                    ring[place] = rows[row]
            if used < len(sequences.lengths):
                rings = [mx.concatenate([ring, rows[used:]]) for ring, rows in zip(rings, new, strict=True)]
            del new
            mx.eval(rings)
            laid.append(rings)
            if self._rings:
                self._rings[i] = rings
        self._rings = laid
        starts = [self.position - length for length in sequences.lengths]
        for place, start in zip(places, starts, strict=False):
            self._starts[place] = start
        self._starts += starts[used:]

    def take(self, places: list[int]) -> Sequences:
        """What the slots at `places` hold, copied."""
        lengths = [self.lengths[place] for place in places]
        layers = [self._held(rings, places, max(lengths)) for rings in self._rings]
        return Sequences(lengths, layers)

    def move_out(self, places: list[int]) -> Sequences:
        """What the slots at `places` hold, which are given up, each layer when it is taken."""
        lengths = [self.lengths[place] for place in places]
        rest = [place for place in range(len(self)) if place not in places]
        self._starts = [self._starts[place] for place in rest]
        return Sequences(lengths, self._layers_out(places, rest, max(lengths)))

    def _layers_out(self, places: list[int], rest: list[int], longest: int) -> Iterator[list[mx.array]]:
        for i, rings in enumerate(self._rings):
            moved = self._held(rings, places, longest)
            self._rings[i] = [ring[mx.array(rest)] for ring in rings] if rest else []
            mx.eval(self._rings[i])
            del rings
            yield moved

    def _held(self, rings: list[mx.array], places: list[int], longest: int) -> list[mx.array]:
        """What the slots at `places` hold in one layer, in order of time, where the longest sequence is so long."""
        count = min(longest, rings[0].shape[2])
        held = [latest(ring[mx.array(places)], self.position, count) for ring in rings]
        mx.eval(held)
        return held

    def keep(self, places: list[int]) -> None:
        """Let go of all slots but those at `places`, of which there is one at least."""
        self._starts = [self._starts[place] for place in places]
        for i, rings in enumerate(self._rings):
            self._rings[i] = [ring[mx.array(places)] for ring in rings]
            mx.eval(self._rings[i])

    # ---- what a step needs ------------------------------------------------------------------------------------------

    def spans(self, length: int) -> list[Span]:
        """What each layer attends over in a step of `length` tokens."""
        # Slots that no sequence has reached are left out, while there are any behind all of them.
        turned = min(self._starts) < 0
        ends = [size if turned else self.position + length for size in self._capacities]
        return [Span.of(*each) for each in zip(self._windows, self._capacities, ends, strict=True)]

    def arrays(self) -> list[mx.array]:
        """The rings of all layers, in turn."""
        return [ring for rings in self._rings for ring in rings]

    def reserve(self, tokens: int) -> None:
        """There is room: whoever has outgrown these slots has left them."""

    def advance(self, rings: Sequence[mx.array], tokens: int) -> None:
        """Go on by a step: take over the rings of all layers, in turn, with `tokens` more tokens stored."""
        each = len(rings) // len(self._windows)
        self._rings = [list(rings[each * i : each * (i + 1)]) for i in range(len(self._windows))]
        self.position += tokens
