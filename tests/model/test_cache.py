"""The rotating cache: however a sequence is cut, rewound or copied, it gives what a fresh pass gives."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_mlx.config import ModelConfig
from mistral_mlx.errors import ContextError, InputError
from mistral_mlx.model import ring as ring_module
from mistral_mlx.model.cache import Cache, cache_bytes
from mistral_mlx.model.masks import window_mask
from mistral_mlx.model.ring import LayerCache, capacity_for
from tests.conftest import TINY, make_model
from tests.model.reading import read, took_a_wrong_turn

LENGTH = 150
WINDOWS = {"window": 8, "full": None, "mix": (None, 8), "two windows": (8, 13)}
MODELS = {name: make_model(sliding_window=window) for name, window in WINDOWS.items()}
IDS = np.random.default_rng(0).integers(0, TINY.vocab_size, LENGTH).tolist()
WHOLE = {name: np.array(model(mx.array([IDS]))[0]) for name, model in MODELS.items()}


@pytest.fixture(autouse=True)
def _small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets of 4, 8, 16, … so that short sequences cross many."""
    monkeypatch.setattr(ring_module, "SMALLEST_CAPACITY", 4)


names = st.sampled_from(list(MODELS))
slacks = st.sampled_from([0, 1, 5, 20])
cut_lists = st.lists(st.integers(1, LENGTH - 1), max_size=40)


@settings(max_examples=60)
@given(names, slacks, cut_lists)
def test_any_split_into_chunks_equals_the_whole(name: str, slack: int, cuts: list[int]) -> None:
    cache = Cache(MODELS[name].config, mx.float32, slack=slack)
    np.testing.assert_allclose(read(MODELS[name], cache, IDS, cuts), WHOLE[name], atol=2e-5)


@settings(max_examples=120)
@given(names, slacks, st.sampled_from([0, 1, 7, 40, 1000]), st.integers(1, LENGTH - 20), cut_lists, st.data())
def test_rewound_equals_fresh(
    name: str, slack: int, log: int, length: int, cuts: list[int], data: st.DataObject
) -> None:
    """Before, at and after the wrap, across bucket changes, from ring and log, and several times over."""
    model = MODELS[name]
    cache = Cache(model.config, mx.float32, slack=slack, log=log)
    read(model, cache, IDS[:length], cuts)
    for again in range(3):
        assert again or cache.rewindable >= min(cache.position, log)
        back = data.draw(st.integers(0, min(cache.rewindable, 100)))
        cache.rewind(back)
        if not took_a_wrong_turn(model, cache, data):
            return
    start = cache.position
    got = read(model, cache, IDS[start:], [c - start for c in cuts])
    np.testing.assert_allclose(got, WHOLE[name][start:], atol=2e-5)


@settings(max_examples=30)
@given(names, st.integers(1, 100), st.integers(0, 30), st.integers(1, 30))
def test_a_copy_is_independent(name: str, length: int, first: int, second: int) -> None:
    model = MODELS[name]
    cache = Cache(model.config, mx.float32, slack=5)
    read(model, cache, IDS[:length])
    twin = cache.copy()
    saved = Cache(model.config, mx.float32, slack=5)
    saved.state = cache.state
    if first:
        read(model, cache, [1] * first, list(range(first)))
    for other in (twin, saved):
        assert other.position == length
        got = read(model, other, IDS[length : length + second], [1, 2])
        np.testing.assert_allclose(got, WHOLE[name][length : length + second], atol=2e-5)


@settings(max_examples=40)
@given(names, slacks, st.lists(st.integers(1, 30), min_size=1, max_size=30))
def test_bytes_never_pass_the_bound_and_stay_constant_once_full(name: str, slack: int, steps: list[int]) -> None:
    model = MODELS[name]
    cache = Cache(model.config, mx.float32, slack=slack)
    slot = 2 * TINY.num_key_value_heads * TINY.head_dim * 4
    seen = [0]
    for step in steps:
        if cache.position + step > 5 * 13:
            break
        model(mx.array([[0] * step]), cache)
        assert cache.nbytes <= cache.max_bytes
        assert cache.nbytes == cache_bytes(model.config, cache.position, 4, slack)
        seen.append(cache.nbytes)
        for layer in cache.layers:
            if layer.window is not None and cache.position >= layer.window + slack:
                assert layer.nbytes == (layer.window + slack) * slot
    assert seen == sorted(seen)


def test_windowed_bytes_from_the_first_token_to_five_windows() -> None:
    model = MODELS["window"]
    cache = Cache(model.config, mx.float32, slack=4)
    sizes = []
    for token in IDS[: 5 * 8]:
        model(mx.array([[token]]), cache)
        sizes.append(cache.nbytes)
    assert max(sizes) == cache.max_bytes
    assert set(sizes[11:]) == {cache.max_bytes}  # 12 slots are full after 12 tokens
    assert sizes[0] < cache.max_bytes


def test_rewinding_further_than_the_slack_is_refused_and_changes_nothing() -> None:
    model = MODELS["mix"]
    cache = Cache(model.config, mx.float32, slack=5)
    read(model, cache, IDS[:60])
    assert cache.rewindable == 6
    with pytest.raises(InputError, match="6 are still held"):
        cache.rewind(7)
    with pytest.raises(InputError):
        cache.rewind(-1)
    assert {layer.position for layer in cache.layers} == {60}
    np.testing.assert_allclose(read(model, cache, IDS[60:]), WHOLE["mix"][60:], atol=2e-5)


def test_before_the_wrap_everything_can_be_taken_back() -> None:
    cache = Cache(MODELS["window"].config, mx.float32, slack=100)
    read(MODELS["window"], cache, IDS[:90])
    assert cache.rewindable == 90


def test_full_attention_is_bounded_by_what_it_was_made_for() -> None:
    model = MODELS["full"]
    cache = Cache(model.config, mx.float32, max_tokens=20)
    read(model, cache, IDS[:20])
    assert cache.nbytes == cache.max_bytes
    with pytest.raises(ContextError, match="21 tokens are more than the 20"):
        read(model, cache, IDS[:1])


def test_a_full_layer_refuses_before_any_layer_has_changed() -> None:
    model = MODELS["mix"]
    cache = Cache(model.config, mx.float32, max_tokens=20)
    read(model, cache, IDS[:18])
    with pytest.raises(ContextError, match="21 tokens are more than the 20"):
        read(model, cache, IDS[:3])
    assert {layer.position for layer in cache.layers} == {18}
    np.testing.assert_allclose(read(model, cache, IDS[18:20]), WHOLE["mix"][18:20], atol=2e-5)


def test_a_saved_state_does_not_change_with_the_cache() -> None:
    model = MODELS["mix"]
    cache, later = Cache(model.config, mx.float32, slack=5), Cache(model.config, mx.float32, slack=5)
    read(model, cache, IDS[:60])
    saved = cache.state
    read(model, cache, IDS[:30], list(range(30)))
    later.state = saved
    np.testing.assert_allclose(read(model, later, IDS[60:90], [3, 4]), WHOLE["mix"][60:90], atol=2e-5)


def test_a_state_of_another_cache_is_refused() -> None:
    model = MODELS["window"]
    cache = Cache(model.config, mx.float32, slack=5)
    read(model, cache, IDS[:60])
    with pytest.raises(InputError, match="does not fit"):
        Cache(model.config, mx.float32, slack=6).state = cache.state


def test_a_copy_costs_no_memory_and_may_go_to_another_thread() -> None:
    model = MODELS["full"]
    cache = Cache(model.config, mx.float32)
    read(model, cache, IDS)
    mx.eval(cache.arrays())
    before = mx.get_active_memory()
    twin = cache.copy()
    assert mx.get_active_memory() == before
    with ThreadPoolExecutor(1) as pool:
        got = pool.submit(read, model, twin, [5]).result()
    np.testing.assert_allclose(got, read(model, cache, [5]), atol=2e-5)


def test_masks_are_boolean_and_shared_by_layers_with_one_window() -> None:
    model = MODELS["window"]
    cache = Cache(model.config, mx.float32, slack=4)
    read(model, cache, IDS[:30])
    for length in (1, 5):
        first, second = cache.masks(length)
        assert first is second
        assert isinstance(first, mx.array)
        assert first.dtype == mx.bool_


def test_a_short_chat_pays_for_a_short_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module, "SMALLEST_CAPACITY", 256)
    assert [capacity_for(n, 4224) for n in (1, 256, 257, 4096, 4097, 10**6)] == [256, 256, 512, 4096, 4224, 4224]


@pytest.mark.parametrize(("queries", "keys", "window"), [(5, 5, 3), (4, 9, 3), (6, 6, 6), (3, 7, None), (1, 4, 2)])
def test_window_mask_is_the_rule(queries: int, keys: int, window: int | None) -> None:
    mask = window_mask(queries, keys, window)
    rule = [[j <= i and (window is None or i - window < j) for j in range(keys)] for i in range(keys - queries, keys)]
    causal = [[j <= i for j in range(keys)] for i in range(keys - queries, keys)]
    assert (causal if mask == "causal" else mask.tolist()) == rule


def test_a_layer_keeps_state_as_plain_arrays() -> None:
    layer = LayerCache(4, 6)
    new = mx.random.normal((1, 2, 5, 8))
    layer.update(new, new)
    state = layer.state
    assert (state.position, state.written) == (5, 5)
    assert [r.shape for r in state.rings] == [(1, 2, 6, 8)] * 2


def test_mistral_7b_in_figures() -> None:
    """The paper's 8x at 32k, less the slack that makes rewinding exact."""
    config = ModelConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, vocab_size=32000, rms_norm_eps=1e-5, rope_theta=1e4, sliding_window=4096,
    )  # fmt: skip
    cache = Cache(config, mx.bfloat16)
    assert cache.max_bytes == 32 * (4096 + 128) * 2 * 8 * 128 * 2
