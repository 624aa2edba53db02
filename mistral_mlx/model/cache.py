"""The key/value cache of one sequence: its layers' rings, which stand at the same position, and the bytes they take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from typing import Any, NamedTuple, Protocol

import mlx.core as mx

from mistral_mlx.config import ModelConfig
from mistral_mlx.errors import ContextError, InputError
from mistral_mlx.model.masks import Mask
from mistral_mlx.model.packing import Packing
from mistral_mlx.model.ring import LayerCache, LayerState, Span, capacity_for

DEFAULT_SLACK = 128


class LayerView(Protocol):
    """What attention needs of a layer's cache: where the next tokens stand, and what they see."""

    @property
    def position(self) -> int | mx.array: ...

    def update(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]: ...


class Parts(NamedTuple):
    """Keys or values of several rows that lie in different rings: those of the first rows, of the next, and so on."""

    parts: Sequence[Any]


class View(Protocol):
    """What a pass of the model needs of a cache."""

    @property
    def layers(self) -> Sequence[LayerView]: ...

    def masks(self, length: int) -> Sequence[Mask]: ...


class Cache:
    """The caches of all layers, which always stand at the same position.

    Attributes:
        layers: one LayerCache for each layer.
        packing: how keys and values are stored; None as they are.
        max_bytes: the most that `nbytes` ever becomes.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: mx.Dtype,
        *,
        max_tokens: int | None = None,
        slack: int = DEFAULT_SLACK,
        packing: Packing | None = None,
        log: int = 0,
    ) -> None:
        """An empty cache.

        Args:
            dtype: the type of keys and values, before they are packed.
            max_tokens: the longest sequence it will hold, which bounds layers without a window; the model's own
                limit if None.
            slack: how many tokens can be taken back once the windows are full.
            packing: how they are stored; as they are if None.
            log: how many more, for which what leaves the windows is kept.
        """
        limits = layer_limits(config, max_tokens, slack)
        self.layers = [LayerCache(*pair, packing, log) for pair in zip(config.windows, limits, strict=True)]
        self.packing = packing
        self.max_bytes = sum(limits) * bytes_per_slot(config, dtype.size, packing)

    @property
    def held(self) -> list[list[mx.array]]:
        """What each layer still holds, in order of time: arrays (1, kv_heads, n, …)."""
        return [layer.held for layer in self.layers]

    def fill(self, held: Iterable[Sequence[mx.array]], position: int) -> None:
        """Take up what `held` gave, which ends at `position`, into this empty cache."""
        for layer, arrays in zip(self.layers, held, strict=True):
            layer.lay(arrays, position)
        mx.eval(self.arrays())

    @property
    def position(self) -> int:
        """Tokens seen, which is the position of the next one."""
        return self.layers[0].position

    @property
    def starts(self) -> mx.array:
        """(1,): the `position` at which the sequence began."""
        return mx.zeros(1, mx.int32)

    @property
    def nbytes(self) -> int:
        """Bytes allocated now, but for the log."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def log_bytes(self) -> int:
        """Bytes of what is kept of tokens that have left the windows."""
        return sum(layer.log_bytes for layer in self.layers)

    @property
    def rewindable(self) -> int:
        """How many tokens can be taken back now, exactly: all of them until a window has turned by slack and log."""
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

    def trim(self) -> None:
        """Give back what was allocated for tokens that have been taken back."""
        for layer in self.layers:
            layer.trim()

    def copy(self) -> Cache:
        """An independent cache in the same state, which costs memory only once one of the two goes on."""
        other = copy(self)
        other.layers = [layer.copy() for layer in self.layers]
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
            layer.reserve(tokens)

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
