"""A forward pass of one or a few tokens at the end of a cache: compiled, because its shapes are few.

The window bounds a cache, so positions can be arrays and a step is one function for each stretch of slots that it
attends over. Python builds it anew for a new shape only; otherwise a step is one call that replays the graph.

A step stores, then attends: the ring's slack keeps what its early queries still need. So it takes `Cache.step_room`
tokens at most; longer chunks are read by the model itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import mlx.core as mx

from mistral_mlx.model.cache import Parts
from mistral_mlx.model.masks import step_mask
from mistral_mlx.model.packing import Packed, Packing
from mistral_mlx.model.ring import Span

# Compiled functions kept. A sequence goes through its shapes in order and seldom returns to one; speculation feeds four
# lengths, and rows that come and go return to the same few numbers of them.
_KEPT = 32


class Stepped(NamedTuple):
    """What a step computes, not yet evaluated.

    Attributes:
        logits: (B, T, vocab).
        rings: what the cache holds after it; `Cache.advance` takes them over.
    """

    logits: mx.array
    rings: list[mx.array]


class Stored(Protocol):
    """What a step needs of a cache, of one row or several."""

    @property
    def packing(self) -> Packing | None: ...

    @property
    def position(self) -> int: ...

    @property
    def starts(self) -> mx.array: ...

    def reserve(self, tokens: int) -> None: ...

    def spans(self, length: int) -> list[Span]: ...

    def arrays(self) -> list[mx.array]: ...

    def advance(self, rings: Sequence[mx.array], tokens: int) -> None: ...


class Step:
    """The steps of one model, whose weights do not change any more."""

    def __init__(self, model: Callable[..., mx.array], *, compiled: bool = True) -> None:
        self._model = weakref.ref(model)  # which owns this
        self._compiled = compiled
        self._functions: dict[tuple[Any, ...], Callable[..., list[mx.array]]] = {}

    def __call__(self, tokens: mx.array, *caches: Stored) -> Stepped:
        """Feed tokens (B, T): the first rows belong to the first cache. The caches get room, and else stay as they are
        until they are advanced.

        Raises:
            ContextError: a layer without a window has no room for them.
        """
        length, packing = tokens.shape[1], caches[0].packing
        for cache in caches:
            cache.reserve(length)
        starts = [cache.starts for cache in caches]
        groups = [(rows.size, tuple(cache.spans(length))) for rows, cache in zip(starts, caches, strict=True)]
        shape = (length, packing, *groups)
        function = self._functions.pop(shape, None) or self._build([spans for _, spans in groups], packing)
        self._functions[shape] = function  # last in the row
        if len(self._functions) > _KEPT:
            del self._functions[next(iter(self._functions))]
        ends = [mx.array(cache.position) for cache in caches]
        logits, *rings = function(tokens, *ends, *starts, *(ring for cache in caches for ring in cache.arrays()))
        return Stepped(logits, rings)

    def _build(self, groups: Sequence[Sequence[Span]], packing: Packing | None) -> Callable[..., list[mx.array]]:
        """The step in which each group of rows attends over its spans, one for each layer."""
        slots = {span: mx.arange(span.attended) for spans in groups for span in spans}
        mx.eval(slots)  # constants of the graph
        count = len(groups)

        def forward(tokens: mx.array, *arrays: mx.array) -> list[mx.array]:
            ends, starts, rings = arrays[:count], arrays[count : 2 * count], arrays[2 * count :]
            each = len(rings) // sum(map(len, groups))
            parts: list[list[_Part]] = []
            for g, (end, start, spans) in enumerate(zip(ends, starts, groups, strict=True)):
                positions, own = end - start, rings[each * g * len(spans) :]
                masks = {
                    span: step_mask(slots[span], end, positions, tokens.shape[1], span.capacity, span.window)
                    for span in dict.fromkeys(spans)
                }
                places = {span: end % span.capacity for span in masks}
                parts.append(
                    [
                        _Part(own[each * i : each * (i + 1)], span, places[span], positions, masks[span], packing)
                        for i, span in enumerate(spans)
                    ]
                )
            layers = [_Layer(list(layer)) for layer in zip(*parts, strict=True)]
            model = self._model()
            assert model is not None
            logits = model(tokens, _View(layers))
            return [logits, *(ring for group in parts for part in group for ring in part.rings)]

        return mx.compile(forward) if self._compiled else forward


class _Part:
    """A layer's cache of one group of rows within a step."""

    def __init__(
        self,
        rings: Sequence[mx.array],
        span: Span,
        place: mx.array,
        positions: mx.array,
        mask: mx.array,
        packing: Packing | None,
    ) -> None:
        self.rings = list(rings)
        self.position = positions
        self.mask = mask
        self._span = span
        self._place = place
        self._packing = packing

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array] | tuple[Packed, Packed]:
        new = self._packing.pack(keys, values) if self._packing else [keys, values]
        self.rings = [mx.slice_update(ring, x, self._place, (2,)) for ring, x in zip(self.rings, new, strict=True)]
        attended = [ring[:, :, : self._span.attended] for ring in self.rings]
        return self._packing.split(attended) if self._packing else (attended[0], attended[1])


class _Layer:
    """A layer's cache of all rows within a step."""

    def __init__(self, parts: list[_Part]) -> None:
        self.position = mx.concatenate([part.position for part in parts]) if len(parts) > 1 else parts[0].position
        self.mask: Any = parts[0].mask if len(parts) == 1 else [part.mask for part in parts]
        self._parts = parts

    def update(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        if len(self._parts) == 1:
            return self._parts[0].update(keys, values)
        ends = list(accumulate(part.position.size for part in self._parts))[:-1]
        rows = zip(self._parts, mx.split(keys, ends), mx.split(values, ends), strict=True)
        seen = [part.update(k, v) for part, k, v in rows]
        return Parts([k for k, _ in seen]), Parts([v for _, v in seen])


class _View:
    """All layers' caches within a step."""

    def __init__(self, layers: list[_Layer]) -> None:
        self.layers = layers

    def masks(self, length: int) -> list[Any]:
        return [layer.mask for layer in self.layers]
