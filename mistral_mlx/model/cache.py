"""The rotating key/value cache: what attention remembers, in a number of bytes known before the first token.

One layer keeps its keys and values in a ring. The key of position p lies in slot `p % capacity`, already rotated by
its absolute position, so slots never have to move. With window W and slack S the ring has W + S slots at most:

    capacity 6 (W = 4, S = 2), after 8 tokens     slot   0  1  2  3  4  5
                                                  holds  6  7  2  3  4  5
    position 8 goes to slot 2 and sees 5 6 7 8           6  7 [8] 3  4  5     3 and 4 are kept, but out of sight

The slack is what makes going back exact: `rewind` only lowers the position. What lies beyond it, a future that did not
happen, is then taken for positions one turn earlier, which are outside every window, until it is overwritten.

A layer without a window is the same ring, as long as the longest sequence, so that it never turns.

A ring is several arrays whose axis 2 is slots: keys and values as they are, or what a `Packing` makes of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx

from mistral_mlx.config import ModelConfig
from mistral_mlx.errors import ContextError, InputError
from mistral_mlx.model.packing import Packing

SMALLEST_CAPACITY = 256
DEFAULT_SLACK = 128

Mask = mx.array | str | None


class LayerState(NamedTuple):
    """All that a layer remembers: its rings, [] or several arrays (B, kv_heads, capacity, …), and where."""

    rings: list[mx.array]
    position: int
    written: int


class Span(NamedTuple):
    """Which slots of a layer's ring a step attends over.

    Attributes:
        attended: the first so many; what a short context does not fill is left out.
    """

    window: int | None
    capacity: int
    attended: int


class LayerCache:
    """Keys and values of one attention layer.

    Attributes:
        window: positions that a query sees, itself included; None for all.
        limit: slots that the ring has at most.
        packing: how they are stored; None as they are.
        position: tokens it stands after, which is the position of the next one.
    """

    def __init__(self, window: int | None, limit: int, packing: Packing | None = None) -> None:
        self.window = window
        self.limit = limit
        self.packing = packing
        self.position = 0
        self._written = 0  # tokens ever stored: the ring holds the last `capacity` of these
        self._rings: list[mx.array] = []

    @property
    def capacity(self) -> int:
        """Slots allocated now."""
        return self._rings[0].shape[2] if self._rings else 0

    @property
    def nbytes(self) -> int:
        """Bytes allocated now."""
        return sum(ring.nbytes for ring in self._rings)

    @property
    def rewindable(self) -> int:
        """How many tokens can be taken back now, exactly."""
        oldest = max(0, self._written - self.capacity)
        if self.window is None or oldest == 0:
            return self.position
        # The next query sees window - 1 stored keys: those must still be there.
        return self.position - (oldest + self.window - 1)

    def rewind(self, tokens: int) -> None:
        """Forget the last `tokens` tokens, as if they had never been seen; the caller keeps to `rewindable`."""
        self.position -= tokens

    @property
    def rings(self) -> list[mx.array]:
        """Keys and values as they are stored, each array (B, kv_heads, capacity, …); nothing before the first token."""
        return self._rings

    @property
    def state(self) -> LayerState:
        """Everything there is to save, as it stands now: what this cache does later leaves it alone."""
        return LayerState(_settled(self._rings), self.position, self._written)

    @state.setter
    def state(self, state: LayerState) -> None:
        capacities = {ring.shape[2] for ring in state.rings} or {0}
        if capacities != {capacity_for(state.written, self.limit) if state.written else 0}:
            raise InputError(
                f"A state of {state.written} tokens in {max(capacities)} slots does not fit a cache of {self.limit}.",
                "Give it to a cache made for the same model, length and slack.",
            )
        if state.rings and not (self.packing.fits(state.rings) if self.packing else len(state.rings) == 2):
            raise InputError(
                "The state's keys and values are stored in other bits than this cache's.",
                "Give it to a cache made with the same kv_bits.",
            )
        self._rings, self.position, self._written = _settled(state.rings), state.position, state.written

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

    def reserve(self, tokens: int, like: Sequence[mx.array]) -> None:
        """Make room for what the next `tokens` tokens bring: arrays like these, each (B, kv_heads, T, …)."""
        self._grow(self.position + tokens, like)

    @property
    def step_room(self) -> int:
        """How many tokens can be stored in one piece before any of them attends."""
        if self.window is None:
            return self.limit - self.position
        return min(self.limit - self.position % self.limit, self.limit - self.window + 1)

    def span(self, length: int) -> Span:
        """What the next `length` tokens attend over once they are stored."""
        end, part = self.position + length, max(SMALLEST_CAPACITY, self.capacity // 8)
        attended = min(-(-end // part) * part, self.capacity)
        return Span(self.window, self.capacity, attended)

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


class Cache:
    """The caches of all layers, which always stand at the same position.

    Attributes:
        layers: one LayerCache for each layer.
        packing: how keys and values are stored; None as they are.
        max_bytes: the most that `nbytes` ever becomes, for a batch of one.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: mx.Dtype,
        *,
        max_tokens: int | None = None,
        slack: int = DEFAULT_SLACK,
        packing: Packing | None = None,
    ) -> None:
        """An empty cache.

        Args:
            dtype: the type of keys and values, before they are packed.
            max_tokens: the longest sequence it will hold, which bounds layers without a window; the model's own
                limit if None.
            slack: how many tokens can be taken back once the windows are full.
            packing: how they are stored; as they are if None.
        """
        limits = layer_limits(config, max_tokens, slack)
        self.layers = [LayerCache(*pair, packing) for pair in zip(config.windows, limits, strict=True)]
        self.packing = packing
        self.starts = mx.zeros(1, mx.int32)
        self.max_bytes = sum(limits) * bytes_per_slot(config, dtype.size, packing)

    @property
    def position(self) -> int:
        """Tokens seen, which is the position of the next one."""
        return self.layers[0].position

    @property
    def nbytes(self) -> int:
        """Bytes allocated now."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def rewindable(self) -> int:
        """How many tokens can be taken back now, exactly: all of them until a window has turned by the slack."""
        return min(layer.rewindable for layer in self.layers)

    def rewind(self, tokens: int) -> None:
        """Forget the last `tokens` tokens, as if they had never been seen.

        Raises:
            InputError: more than `rewindable`; nothing is changed.
        """
        if not 0 <= tokens <= self.rewindable:
            raise InputError(
                f"Cannot take back {tokens} tokens: {self.rewindable} are still held exactly.",
                "Start from an empty cache, or from a copy made earlier.",
            )
        for layer in self.layers:
            layer.rewind(tokens)

    def copy(self) -> Cache:
        """An independent cache in the same state, which costs memory only once one of the two goes on."""
        other = Cache.__new__(Cache)
        other.layers = [LayerCache(layer.window, layer.limit, self.packing) for layer in self.layers]
        other.packing = self.packing
        other.starts = self.starts
        other.max_bytes = self.max_bytes
        other.state = self.state
        return other

    @property
    def state(self) -> list[LayerState]:
        """Everything there is to save, layer by layer; setting it needs a cache made for the same model and limits."""
        return [layer.state for layer in self.layers]

    @state.setter
    def state(self, state: list[LayerState]) -> None:
        for layer, layer_state in zip(self.layers, state, strict=True):
            layer.state = layer_state

    def arrays(self) -> list[mx.array]:
        """What must be evaluated for the cache to be settled."""
        return [ring for layer in self.layers for ring in layer.rings]

    @property
    def step_room(self) -> int:
        """The most tokens that one step takes."""
        return max(1, min(layer.step_room for layer in self.layers))

    def reserve(self, tokens: int) -> None:
        """Make room for the next `tokens` tokens in a cache that has begun.

        Raises:
            ContextError: a layer without a window has none; nothing is changed.
        """
        self._check_room(tokens)
        for layer in self.layers:
            layer.reserve(tokens, layer.rings)

    def spans(self, length: int) -> list[Span]:
        """What each layer attends over in a step of `length` tokens, for which there is room."""
        return [layer.span(length) for layer in self.layers]

    def advance(self, rings: Sequence[mx.array], tokens: int) -> None:
        """Go on by a step: take over the rings of all layers, in turn, with `tokens` more tokens stored."""
        each = len(rings) // len(self.layers)
        for i, layer in enumerate(self.layers):
            layer.advance(list(rings[each * i : each * (i + 1)]), tokens)

    def _check_room(self, tokens: int) -> None:
        end, longest = self.position + tokens, min((c.limit for c in self.layers if c.window is None), default=None)
        if longest is not None and end > longest:
            raise ContextError(
                f"{end} tokens are more than the {longest} that this cache was made for.",
                "Shorten the prompt, or ask for fewer tokens.",
            )

    def masks(self, length: int) -> list[Mask]:
        """The mask of each layer for the next `length` tokens; layers with one window share one array.

        Raises:
            ContextError: a layer without a window has no room for them; nothing is changed.
        """
        self._check_room(length)
        made = {layer.window: layer for layer in self.layers}
        masks = {window: layer.mask(length) for window, layer in made.items()}
        return [masks[layer.window] for layer in self.layers]


# ---- arithmetic, shared with what is said of a model before it is loaded -------------------------------------------


def capacity_for(tokens: int, limit: int) -> int:
    """Slots allocated for `tokens` tokens: 256, doubled as often as needed, and never more than `limit`."""
    capacity = SMALLEST_CAPACITY
    while capacity < tokens:
        capacity *= 2
    return min(capacity, limit)


def layer_limits(config: ModelConfig, max_tokens: int | None = None, slack: int = DEFAULT_SLACK) -> list[int]:
    """The most slots that each layer's ring has."""
    longest = min(max_tokens or config.max_position_embeddings, config.max_position_embeddings)
    return [longest if window is None else window + slack for window in config.windows]


def bytes_per_slot(config: ModelConfig, itemsize: int, packing: Packing | None = None) -> int:
    """Bytes of one token's keys and values in one layer."""
    row = packing.row_bytes(config.head_dim, itemsize) if packing else config.head_dim * itemsize
    return 2 * config.num_key_value_heads * row


def cache_bytes(
    config: ModelConfig, tokens: int, itemsize: int, slack: int = DEFAULT_SLACK, packing: Packing | None = None
) -> int:
    """Bytes that a cache holds after `tokens` tokens, all layers together."""
    slots = sum(capacity_for(tokens, limit) for limit in layer_limits(config, slack=slack))
    return slots * bytes_per_slot(config, itemsize, packing)


def window_mask(queries: int, keys: int, window: int | None) -> Mask:
    """The mask of the last `queries` of `keys` consecutive positions.

    The query at position i sees the keys at j with i - window < j <= i: `window` of them, itself included.

    Returns:
        "causal" where the window hides nothing, else a boolean (queries, keys) array.
    """
    if window is None or keys <= window:
        return "causal"
    age = mx.arange(keys - queries, keys)[:, None] - mx.arange(keys)[None]
    return (age >= 0) & (age < window)


def step_mask(slots: mx.array, end: mx.array, positions: mx.array, length: int, span: Span) -> mx.array:
    """Which of the ring's `slots` a step's queries see.

    The query stored at end + i sees the slots written at most `window` tokens ago, itself included, and none from
    before its sequence began. What the step stores after it counts as one turn ago, which is outside every window.

    Args:
        end: where the step's first token is stored, counted over all turns.
        positions: (B,) its position in each sequence.

    Returns:
        (B, 1, length, slots), boolean.
    """
    queries = mx.arange(length)[:, None]
    age = (end + queries - slots) % span.capacity
    seen = positions[:, None, None, None] + queries + 1
    return age < (seen if span.window is None else mx.minimum(seen, span.window))


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
