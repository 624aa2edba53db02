"""Which keys a query sees: the window's rule (Mistral 7B, arXiv 2310.06825, section 2) for each way that keys lie.

The query at position i sees the keys at j with i - window < j <= i: `window` of them, itself included. Masks are
boolean, for a kernel can leave out what they hide.
"""

from __future__ import annotations

import mlx.core as mx

Mask = mx.array | str | None


def window_mask(queries: int, keys: int, window: int | None) -> Mask:
    """The mask of the last `queries` of `keys` consecutive positions.

    Returns:
        "causal" where the window hides nothing, else a boolean (queries, keys) array.
    """
    if window is None or keys <= window:
        return "causal"
    age = mx.arange(keys - queries, keys)[:, None] - mx.arange(keys)[None]
    return (age >= 0) & (age < window)


def step_mask(
    slots: mx.array, end: mx.array, positions: mx.array, length: int, capacity: int, window: int | None
) -> mx.array:
    """Which of the ring's `slots` a step's queries see.

    The query stored at end + i sees the slots written at most `window` tokens ago, itself included, and none from
    before its sequence began. What the step stores after it counts as one turn ago, which is outside every window.

    Args:
        end: where the step's first token is stored, counted over all turns.
        positions: (B,) its position in each sequence.
        capacity: slots of the whole ring.

    Returns:
        (B, 1, length, slots), boolean.
    """
    queries = mx.arange(length)[:, None]
    age = (end + queries - slots) % capacity
    seen = positions[:, None, None, None] + queries + 1
    return age < (seen if window is None else mx.minimum(seen, window))


def reading_mask(starts: mx.array, length: int, window: int | None) -> mx.array:
    """The mask of rows (B, 1, length, length) that begin at `starts` and end together.

    What stands before a row's beginning sees itself alone: nothing else looks at it, and it stays a number.
    """
    place = mx.arange(length)
    age = place[:, None] - place
    seen = (age >= 0) & (place >= starts[:, None, None, None])
    return (seen if window is None else seen & (age < window)) | (age == 0)
