"""Sequences of any length that are decoded together: one pass of the model gives each its next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from mistral_mlx.engine.choice import Row, Token, choose, read_each
from mistral_mlx.model.cache import Cache, layer_limits
from mistral_mlx.model.ring import capacity_for
from mistral_mlx.model.slots import Sequences, Slots
from mistral_mlx.model.step import Stepped
from mistral_mlx.model.transformer import Transformer

Outcome = Token | Exception


class Batch:
    """Rows that join and leave between steps.

    Each draws with its own seed and position, so it says what it would have said alone. Those of like length share
    rings; one that outgrows its slot moves to a larger one. A row that left leaves its slot to the next; until half of
    the slots are free they are decoded along, for giving them up costs a copy of all others.
    """

    def __init__(self, model: Transformer) -> None:
        """An empty batch."""
        self._model = model
        self._longest = max(layer_limits(model.config))
        self._groups: dict[int, _Group] = {}  # by the size of their slots
        self._ahead: Stepped | None = None  # the next step, built while the last one was computed

    @property
    def rows(self) -> list[Row]:
        """Those in it now."""
        return [row for group in self._groups.values() for row in group.rows if row.live]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(group.slots.nbytes for group in self._groups.values())

    @property
    def free_bytes(self) -> int:
        """Bytes of slots that are free."""
        groups = self._groups.values()
        return sum(g.slots.nbytes // len(g.rows) * (len(g.rows) - len(g.taken)) for g in groups)

    def join(self, rows: Sequence[Row], logits: mx.array, read: Sequences) -> list[Outcome]:
        """Take in sequences, and draw the first token of each; one whose token cannot be drawn is not taken in.

        Args:
            logits: (B, vocab), of these tokens.
            read: what each of them has read.
        """
        self._place(list(rows), [0] * len(rows), read)  # before the first tokens count: this may fail
        drawn = read_each(choose(logits, rows), rows)
        for row, token in zip(rows, drawn, strict=True):
            group = self._group_of(row)
            group.tokens[group.rows.index(row)] = _fed(token)
        self.leave([row for row, token in zip(rows, drawn, strict=True) if isinstance(token, Exception)])
        return drawn

    def absorb(self, other: Batch) -> None:
        """Take over all rows of another batch of the same model."""
        for group in other._groups.values():
            self._move(group, group.taken)
        other._groups = {}

    def leave(self, rows: Sequence[Row]) -> None:
        """Let go of sequences; the others go on."""
        for group in self._groups.values():
            group.rows = [row.resting() if row in rows else row for row in group.rows]
        self._tidy()

    def give_up_slots(self) -> None:
        """Let go of all slots that are free."""
        self._tidy(least=1)

    def cache_of(self, row: Row, *, log: int = 0) -> Cache:
        """What a row has read and said, but for its last token, as a cache of its own; the row stays."""
        group = self._group_of(row)
        place = group.rows.index(row)
        held, cache = group.slots.take([place]), self._model.make_cache(log=log)
        cache.fill(held.layers, held.lengths[0])
        return cache

    def nbytes_of(self, row: Row) -> int:
        """Bytes of the slot that a row is in."""
        slots = self._group_of(row).slots
        return slots.nbytes // len(slots)

    def step(self) -> list[tuple[Row, Outcome]]:
        """The next token of each row; one whose token cannot be drawn is for the caller to let go of."""
        if any(self._outgrown(size) for size in self._groups):
            self._ahead = None
            for size in sorted(self._groups, reverse=True):
                self._move(self._groups[size], self._outgrown(size))
            self._tidy()
        groups = list(self._groups.values())
        slots = [group.slots for group in groups]
        tokens = mx.array([token for group in groups for token in group.tokens])[:, None]
        stepped = self._ahead or self._model.step(tokens, *slots)
        self._ahead = None
        done = 0
        for each in slots:
            count = len(each.arrays())
            each.advance(stepped.rings[done : done + count], 1)
            done += count
        rows = [row for group in groups for row in group.rows]
        chosen = choose(stepped.logits[:, -1], rows)
        mx.async_eval(chosen, [array for each in slots for array in each.arrays()])
        if not any(self._outgrown(size) for size in self._groups):
            # As when decoding alone: the step after this one is built while this one is computed.
            self._ahead = self._model.step(chosen.tokens[:, None], *slots)
        drawn = iter(read_each(chosen, rows))
        found: list[tuple[Row, Outcome]] = []
        for group in groups:
            for place, row in enumerate(group.rows):
                token = next(drawn)
                group.tokens[place] = _fed(token)
                if row.live:
                    found.append((row, token))
        return found

    def _group_of(self, row: Row) -> _Group:
        return next(group for group in self._groups.values() if row in group.rows)

    def _place(self, rows: list[Row], tokens: list[int], held: Sequences) -> None:
        self._ahead = None
        sizes = [self._size(length) for length in held.lengths]
        if len(set(sizes)) > 1:
            held = Sequences(held.lengths, list(held.layers))
        for size in dict.fromkeys(sizes):
            group = self._groups.setdefault(size, _Group(Slots(self._model.config, size, self._model.packing)))
            chosen = [i for i, each in enumerate(sizes) if each == size]
            group.put([rows[i] for i in chosen], [tokens[i] for i in chosen], held.only(chosen))

    def _move(self, group: _Group, places: list[int]) -> None:
        """Put rows of a group where they belong now."""
        if places:
            self._place(*group.move_out(places))

    def _outgrown(self, size: int) -> list[int]:
        """The places of rows that have no room for another token in slots of this size."""
        group = self._groups[size]
        lengths = group.slots.lengths
        return [i for i in group.taken if self._size(lengths[i]) != size]

    def _size(self, length: int) -> int:
        """The size of the slots in which a sequence of so many tokens has room for another."""
        return capacity_for(length + 1, self._longest)

    def _tidy(self, least: int | None = None) -> None:
        """Give up slots where so many are free, by default as many as are not."""
        for size, group in list(self._groups.items()):
            taken = group.taken
            if not taken:
                del self._groups[size]
                self._ahead = None
            elif len(group.rows) - len(taken) >= (least or len(taken)):
                group.keep(taken)
                self._ahead = None


@dataclass
class _Group:
    """Slots of one size, with the row in each, or that was last, and the last token of each, which is not yet fed."""

    slots: Slots
    rows: list[Row] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    @property
    def taken(self) -> list[int]:
        """The places of rows that are live."""
        return [i for i, row in enumerate(self.rows) if row.live]

    def put(self, rows: list[Row], tokens: list[int], held: Sequences) -> None:
        places = [i for i, row in enumerate(self.rows) if not row.live][: len(rows)]
        self.slots.put(held, places)
        for place, row, token in zip(places, rows, tokens, strict=False):
            self.rows[place], self.tokens[place] = row, token
        self.rows += rows[len(places) :]
        self.tokens += tokens[len(places) :]

    def move_out(self, places: list[int]) -> tuple[list[Row], list[int], Sequences]:
        held = self.slots.move_out(places)
        rows, tokens = [self.rows[i] for i in places], [self.tokens[i] for i in places]
        rest = [i for i in range(len(self.rows)) if i not in places]
        self.rows, self.tokens = [self.rows[i] for i in rest], [self.tokens[i] for i in rest]
        return rows, tokens, held

    def keep(self, places: list[int]) -> None:
        self.slots.keep(places)
        self.rows, self.tokens = [self.rows[i] for i in places], [self.tokens[i] for i in places]


def _fed(outcome: Outcome) -> int:
    """What a row is fed next."""
    return outcome.id if isinstance(outcome, Token) else 0
