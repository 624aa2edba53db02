"""How the tests read a text through a cache: in any pieces, and with turns that are taken back."""

from __future__ import annotations

import itertools

import mlx.core as mx
import numpy as np
from hypothesis import strategies as st

from mistral_mlx.model.cache import Cache
from mistral_mlx.model.transformer import Transformer
from tests.conftest import TINY


def read(model: Transformer, cache: Cache, ids: list[int], cuts: list[int] = []) -> np.ndarray:  # noqa: B006
    """Feed ids in pieces that end at `cuts`; logits (T, vocab)."""
    edges = [0, *sorted({c for c in cuts if 0 < c < len(ids)}), len(ids)]
    pieces = [model(mx.array([ids[a:b]]), cache) for a, b in itertools.pairwise(edges)]
    return np.array(mx.concatenate(pieces, axis=1)[0])


def took_a_wrong_turn(model: Transformer, cache: Cache, data: st.DataObject) -> bool:
    """Read a future that did not happen, and take it back; whether that could still be done."""
    wrong = data.draw(st.lists(st.integers(0, TINY.vocab_size - 1), max_size=6))
    if wrong:
        read(model, cache, wrong, data.draw(st.lists(st.integers(1, 5), max_size=3)))
        if cache.rewindable < len(wrong):
            return False
        cache.rewind(len(wrong))
    return True
