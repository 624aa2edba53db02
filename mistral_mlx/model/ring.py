"""The rotating cache of one layer: what its attention remembers, in a number of bytes known before the first token.

One layer keeps its keys and values in a ring. The key of position p lies in slot `p % capacity`, already rotated by
its absolute position, so slots never have to move. With window W and slack S the ring has W + S slots at most:

    capacity 6 (W = 4, S = 2), after 8 tokens     slot   0  1  2  3  4  5
                                                  holds  6  7  2  3  4  5
    position 8 goes to slot 2 and sees 5 6 7 8           6  7 [8] 3  4  5     3 and 4 are kept, but out of sight

The slack is what makes going back exact: `rewind` only lowers the position. What lies beyond it, a future that did not
happen, is then taken for positions one turn earlier, which are outside every window, until it is overwritten.

To go back further, a layer may keep a log of what its ring pushed out: blocks of keys and values, a bounded number of
tokens. `rewind` then lays the ring anew from both.

A layer without a window is the same ring, as long as the longest sequence, so that it never turns.

A ring is several arrays whose axis 2 is slots: keys and values as they are, or what a `Packing` makes of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import NamedTuple

import mlx.core as mx

from mistral_mlx.errors import InputError
from mistral_mlx.model.masks import Mask, window_mask
from mistral_mlx.model.packing import Packing

SMALLEST_CAPACITY = 256
# Tokens logged at a time while decoding: one copy for many steps.
_LOG_BLOCK = 128


class LayerState(NamedTuple):
    """All that a layer remembers but its log: its rings, [] or several arrays (B, kv_heads, capacity, …), and where.

    Attributes:
        position: tokens it stands after.
        written: the position after the last token ever stored.
        oldest: the first position that the ring may still hold.
    """

    rings: list[mx.array]
    position: int
    written: int
    oldest: int = 0


class Span(NamedTuple):
    """Which slots of a layer's ring a step attends over.

    Attributes:
        attended: the first so many; what a short context does not fill is left out.
    """

    window: int | None
    capacity: int
    attended: int

    @classmethod
    def of(cls, window: int | None, capacity: int, end: int) -> Span:
        """Of a ring in which position `end` is the next one."""
        part = max(SMALLEST_CAPACITY // 2, capacity // 16)
        return cls(window, capacity, min(-(-end // part) * part, capacity))


class LayerCache:
    """Keys and values of one attention layer.

    Attributes:
        window: positions that a query sees, itself included; None for all.
        limit: slots that the ring has at most.
        packing: how they are stored; None as they are.
        log_limit: tokens pushed out of the ring that are kept, so that they can be taken back to.
        position: tokens it stands after, which is the position of the next one.
    """

    def __init__(self, window: int | None, limit: int, packing: Packing | None = None, log_limit: int = 0) -> None:
        self.window = window
        self.limit = limit
        self.packing = packing
        self.log_limit = 0 if window is None else log_limit
        self.position = 0
        self._written = 0  # tokens ever stored: the ring holds the last `capacity` of these
        self._oldest = 0  # but none before this position
        self._rings: list[mx.array] = []
        self._log: list[list[mx.array]] = []  # blocks in order of time, the last up to `_logged`
        self._logged = 0

    @property
    def capacity(self) -> int:
        """Slots allocated now."""
        return self._rings[0].shape[2] if self._rings else 0

    @property
    def nbytes(self) -> int:
        """Bytes allocated now, but for the log."""
        return sum(ring.nbytes for ring in self._rings)

    @property
    def log_bytes(self) -> int:
        """Bytes of the log."""
        return sum(array.nbytes for block in self._log for array in block)

    @property
    def rewindable(self) -> int:
        """How many tokens can be taken back now, exactly."""
        first = self._first_logged if self._log else self._first_held
        if self.window is None or first == 0:
            return self.position
        # The next query sees window - 1 stored keys: those must still be there.
        return max(0, self.position - (first + self.window - 1))

    def rewind(self, tokens: int) -> None:
        """Forget the last `tokens` tokens, as if they had never been seen; the caller keeps to `rewindable`."""
        self.position -= tokens
        visible = self.position - self._visible_before
        if visible < self._first_held:
            first = max(self._first_logged, self.position - self.limit)
            self._lay_anew(first)
        self._cut_log(self.position)

    @property
    def _first_held(self) -> int:
        return max(self._oldest, self._written - self.capacity)

    @property
    def _first_logged(self) -> int:
        return self._logged - sum(block[0].shape[2] for block in self._log)

    def _lay_anew(self, first: int) -> None:
        """Fill the ring with positions first..position, the early ones from the log."""
        parts = [*self._logged_slices(first, min(self.position, self._first_held))]
        parts.append([mx.concatenate([ring[:, :, :0], *_slices(ring, self._first_held, self.position)], axis=2)
                      for ring in self._rings])  # fmt: skip
        ordered = [mx.concatenate(list(pieces), axis=2) for pieces in zip(*parts, strict=True)]
        self.lay(ordered, self.position)
        mx.eval(self._rings)
        self._oldest = first

    def _logged_slices(self, first: int, last: int) -> Iterator[list[mx.array]]:
        """Positions first..last of the log."""
        start = self._first_logged
        for block in self._log:
            end = start + block[0].shape[2]
            if first < end and start < last:
                yield [array[:, :, max(first - start, 0) : last - start] for array in block]
            start = end

    def _cut_log(self, end: int) -> None:
        """Forget what is logged from position `end` on."""
        while self._log and self._logged > end:
            start = self._logged - self._log[-1][0].shape[2]
            block = self._log.pop()
            if start < end:
                self._log.append(_copied([array[:, :, : end - start] for array in block]))
            self._logged = max(start, end)
        self._logged = min(self._logged, end)

    def _log_until(self, end: int, new: Sequence[mx.array] = ()) -> None:
        """Log what the ring still holds before position `end`, and of `new`, which follows it; no more than allowed."""
        if not self.log_limit or end <= self._logged:
            return
        self._drop_logged(end - self.log_limit)
        pieces = [list(_slices(ring, self._logged, min(end, self.position))) for ring in self._rings]
        for pushed, array in zip(pieces, new, strict=False):
            pushed.append(array[:, :, max(0, self._logged - self.position) : max(0, end - self.position)])
        self._log.append(_copied([mx.concatenate(pushed, axis=2) for pushed in pieces]))
        self._logged = end

    def _drop_logged(self, start: int) -> None:
        """Forget what is logged before position `start`."""
        while self._log and (first := self._first_logged) < start:
            block = self._log.pop(0)
            if first + block[0].shape[2] > start:
                self._log.insert(0, _copied([array[:, :, start - first :] for array in block]))
        if not self._log:
            self._logged = max(self._logged, start, self._oldest)

    @property
    def rings(self) -> list[mx.array]:
        """Keys and values as they are stored, each array (B, kv_heads, capacity, …); nothing before the first token."""
        return self._rings

    @property
    def state(self) -> LayerState:
        """Everything there is to save, as it stands now: what this cache does later leaves it alone."""
        return LayerState(_settled(self._rings), self.position, self._written, self._oldest)

    @state.setter
    def state(self, state: LayerState) -> None:
        capacity = max((ring.shape[2] for ring in state.rings), default=0)
        # A ring that has not its full size yet has not turned: slots are positions.
        if capacity > self.limit or (capacity < self.limit and state.written > capacity):
            raise InputError(
                f"A state of {state.written} tokens in {capacity} slots does not fit a cache of {self.limit}.",
                "Give it to a cache made for the same model, length and slack.",
            )
        if state.rings and not (self.packing.fits(state.rings) if self.packing else len(state.rings) == 2):
            raise InputError(
                "The state's keys and values are stored in other bits than this cache's.",
                "Give it to a cache made with the same kv_bits.",
            )
        self._rings, self.position, self._written, self._oldest = _settled(state.rings), *state[1:]
        self._log, self._logged = [], self._first_held

    def copy(self) -> LayerCache:
        """An independent one in the same state; memory is shared until one of the two goes on."""
        other = copy(self)
        other._rings, other._log = _settled(self._rings), list(self._log)
        return other

    def mask(self, length: int) -> Mask:
        """Which of the keys that `update` will return the next `length` queries see.

        Returns:
            None where each sees all, "causal" where each sees all up to its own, else a boolean (length, n) array.
        """
        if length > 1:
            return window_mask(length, self._visible_before + length, self.window)
        if self.window is None or self.position < self.limit:
            return None
        age = (self.position - mx.arange(self.limit)) % self.limit
        return (age < self.window)[None]

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Store what the next T tokens bring, and return what they attend over.

        Args:
            keys, values: (B, kv_heads, T, head_dim), keys rotated by their absolute position.

        Returns:
            Keys and values, each (B, kv_heads, n, head_dim), ordered as `mask(T)` is when asked before this, and as
            they are read back from where they were stored.
        """
        new = self.packing.pack(keys, values) if self.packing else [keys, values]
        attended = self._update(new)
        return self.packing.unpack(attended) if self.packing else (attended[0], attended[1])

    def _update(self, new: list[mx.array]) -> list[mx.array]:
        length, before = new[0].shape[2], self._visible_before
        end = self.position + length
        if end <= self.limit:  # the ring has not turned: slots are positions
            self._store(new)
            return [ring[:, :, end - length - before : end] for ring in self._rings]
        if length == 1:
            self._store(new)
            return self._rings
        # A chunk's late keys push out what its early queries still need: attend over both, then store.
        attended = [
            mx.concatenate([*_slices(ring, self.position - before, self.position), chunk], axis=2)
            for ring, chunk in zip(self._rings, new, strict=True)
        ] if self._rings else new  # fmt: skip
        self._store(new)
        return attended

    def reserve(self, tokens: int) -> None:
        """Make room for what the next `tokens` tokens bring to a ring that has begun."""
        end = self.position + tokens
        self._grow(end, self._rings)
        if self.log_limit and end - self.capacity > self._logged:
            self._log_until(min(end - self.capacity + _LOG_BLOCK, self.position))

    @property
    def step_room(self) -> int:
        """How many tokens can be stored in one piece before any of them attends."""
        if self.window is None:
            return self.limit - self.position
        return min(self.limit - self.position % self.limit, self.limit - self.window + 1)

    def span(self, length: int) -> Span:
        """What the next `length` tokens attend over once they are stored."""
        return Span.of(self.window, self.capacity, self.position + length)

    @property
    def held(self) -> list[mx.array]:
        """All that can still be seen or taken back to, in order of time: arrays (1, kv_heads, n, …)."""
        return [latest(ring, self.position, self.position - self._first_held) for ring in self._rings]

    def lay(self, held: Sequence[mx.array], position: int) -> None:
        """Fill the ring with what ends at `position`, in order of time."""
        capacity = capacity_for(position, self.limit)
        self._rings = [fitted(array, capacity, position) for array in held]
        self.position = self._written = position
        self._oldest = position - min(held[0].shape[2], capacity)

    def trim(self) -> None:
        """Give back slots that were allocated for tokens which have been taken back, if the ring has not turned."""
        capacity = capacity_for(self.position, self.limit)
        if capacity < self.capacity and self._written <= self.capacity:
            self._rings = _copied([ring[:, :, :capacity] for ring in self._rings])
            self._written = self.position

    def advance(self, rings: list[mx.array], tokens: int) -> None:
        """Take over the rings with `tokens` more tokens stored."""
        self._rings = rings
        self.position += tokens
        self._written = max(self._written, self.position)

    @property
    def _visible_before(self) -> int:
        """Stored positions that the next query sees."""
        return self.position if self.window is None else min(self.position, self.window - 1)

    def _store(self, new: list[mx.array]) -> None:
        start, end = self.position, self.position + new[0].shape[2]
        self._grow(end, new)
        self._log_until(end - self.capacity, new)
        kept = max(start, end - self.capacity)  # of a chunk longer than the ring only the end stays
        for ring, chunk in zip(self._rings, new, strict=True):
            for first, last, slot in _runs(kept, end, self.capacity):
                ring[:, :, slot : slot + last - first] = chunk[:, :, first - start : last - start]
        self.position = end
        self._written = max(self._written, end)

    def _grow(self, tokens: int, like: Sequence[mx.array]) -> None:
        capacity = capacity_for(tokens, self.limit)
        if capacity <= self.capacity:
            return
        more = capacity - self.capacity
        rooms = [mx.zeros((*x.shape[:2], more, *x.shape[3:]), dtype=x.dtype) for x in like]
        if self._rings:
            rooms = [mx.concatenate([ring, room], axis=2) for ring, room in zip(self._rings, rooms, strict=True)]
        self._rings = rooms


def capacity_for(tokens: int, limit: int) -> int:
    """Slots allocated for `tokens` tokens: 256, doubled as often as needed, and never more than `limit`."""
    capacity = SMALLEST_CAPACITY
    while capacity < tokens:
        capacity *= 2
    return min(capacity, limit)


def latest(ring: mx.array, position: int, count: int) -> mx.array:
    """The last `count` slots before `position`, in order of time."""
    return mx.concatenate([ring[:, :, :0], *_slices(ring, position - count, position)], axis=2)


def fitted(held: mx.array, capacity: int, position: int) -> mx.array:
    """A ring of `capacity` slots with the last of `held` in it, which is in order of time and ends at `position`."""
    held = held[:, :, -capacity:]
    if held.shape[2] <= position < capacity:  # it has not turned: slots are positions
        before, after = position - held.shape[2], capacity - position
    else:
        before, after = capacity - held.shape[2], 0
    ring = mx.pad(held, [(0, 0), (0, 0), (before, after), (0, 0)])
    return ring if after or not position % capacity else mx.roll(ring, position % capacity, 2)


def _copied(arrays: list[mx.array]) -> list[mx.array]:
    """The same values in memory of their own: a slice would hold on to the whole ring."""
    copies = [mx.array(array) for array in arrays]
    mx.eval(copies)
    return copies


def _settled(rings: list[mx.array]) -> list[mx.array]:
    """The same arrays as other objects: assigning to a slice changes an array object, whoever else holds it.

    Their memory is shared until one of the two is written to. Evaluated, so that another thread may take them over.
    """
    mx.eval(rings)
    return [ring.reshape(ring.shape) for ring in rings]  # mx.array(ring) would copy the memory too


def _runs(start: int, end: int, capacity: int) -> Iterator[tuple[int, int, int]]:
    """Cut positions start..end where the ring turns: (first, last + 1, slot of first) of each piece."""
    while start < end:
        slot = start % capacity
        stop = min(end, start + capacity - slot)
        yield start, stop, slot
        start = stop


def _slices(ring: mx.array, start: int, end: int) -> list[mx.array]:
    """Positions start..end of a ring in order of time, in one or two pieces."""
    return [ring[:, :, slot : slot + stop - first] for first, stop, slot in _runs(start, end, ring.shape[2])]
