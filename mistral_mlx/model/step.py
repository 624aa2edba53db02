"""A forward pass of one or a few tokens at the end of a cache: compiled, because its shapes are few.

The window bounds a cache, so positions can be arrays and a step is one function for each stretch of slots that it
attends over. Python builds it anew for a new shape only; otherwise a step is one call that replays the graph.

A step stores, then attends: the ring's slack keeps what its early queries still need. So it takes `Cache.step_room`
tokens at most; longer chunks are read by the model itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from mistral_mlx.model.cache import Cache
from mistral_mlx.model.masks import step_mask
from mistral_mlx.model.packing import Packed, Packing
from mistral_mlx.model.ring import Span

# Compiled functions kept; a sequence goes through its shapes in order and seldom returns to one. Speculation feeds
# four lengths, the longer of which reach the next stretch of slots before the shorter.
_KEPT = 8


class Stepped(NamedTuple):
    """What a step computes, not yet evaluated.

    Attributes:
        logits: (B, T, vocab).
        rings: what the cache holds after it; `Cache.advance` takes them over.
    """

    logits: mx.array
    rings: list[mx.array]


class Step:
    """The steps of one model, whose weights do not change any more."""

    def __init__(self, model: Callable[..., mx.array], *, compiled: bool = True) -> None:
        self._model = weakref.ref(model)  # which owns this
        self._compiled = compiled
        self._functions: dict[tuple[Any, ...], Callable[..., list[mx.array]]] = {}

    def __call__(self, tokens: mx.array, cache: Cache) -> Stepped:
        """Feed tokens (B, T). The cache gets room, and else stays as it is until it is advanced.

        Raises:
            ContextError: a layer without a window has no room for them.
        """
        length = tokens.shape[1]
        cache.reserve(length)
        spans = cache.spans(length)
        shape = (tokens.shape, cache.packing, *spans)
        function = self._functions.pop(shape, None) or self._build(spans, cache.packing)
        self._functions[shape] = function  # last in the row
        if len(self._functions) > _KEPT:
            del self._functions[next(iter(self._functions))]
        logits, *rings = function(tokens, mx.array(cache.position), cache.starts, *cache.arrays())
        return Stepped(logits, rings)

    def _build(self, spans: Sequence[Span], packing: Packing | None) -> Callable[..., list[mx.array]]:
        """The step that attends over `spans`, one for each layer."""
        slots = {span: mx.arange(span.attended) for span in spans}
        mx.eval(slots)  # constants of the graph

        def forward(tokens: mx.array, end: mx.array, starts: mx.array, *rings: mx.array) -> list[mx.array]:
            positions = end - starts
            masks = {
                span: step_mask(slots[span], end, positions, tokens.shape[1], span.capacity, span.window)
                for span in slots
            }
            places = {span: end % span.capacity for span in slots}
            each = len(rings) // len(spans)
            layers = [
                _Layer(rings[each * i : each * (i + 1)], span, places[span], positions, packing)
                for i, span in enumerate(spans)
            ]
            model = self._model()
            assert model is not None
            logits = model(tokens, _View(layers, [masks[span] for span in spans]))
            return [logits, *(ring for layer in layers for ring in layer.rings)]

        return mx.compile(forward) if self._compiled else forward


class _Layer:
    """A layer's cache within a step."""

    def __init__(
        self, rings: Sequence[mx.array], span: Span, place: mx.array, positions: mx.array, packing: Packing | None
    ) -> None:
        self.rings = list(rings)
        self.position = positions
        self._span = span
        self._place = place
        self._packing = packing

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array] | tuple[Packed, Packed]:
        new = self._packing.pack(keys, values) if self._packing else [keys, values]
        self.rings = [mx.slice_update(ring, x, self._place, (2,)) for ring, x in zip(self.rings, new, strict=True)]
        attended = [ring[:, :, : self._span.attended] for ring in self.rings]
        return self._packing.split(attended) if self._packing else (attended[0], attended[1])


class _View:
    """All layers' caches within a step."""

    def __init__(self, layers: list[_Layer], masks: list[mx.array]) -> None:
        self.layers = layers
        self._masks = masks

    def masks(self, length: int) -> list[mx.array]:
        return self._masks
