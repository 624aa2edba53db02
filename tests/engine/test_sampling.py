"""Sampling: the filters are the published ones, the noise is fair and depends on seed and position alone."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_mlx.engine.sampling import Noise, Penalties, SamplingParams, keep_min_p, keep_top, sample
from mistral_mlx.engine.sampling import gumbel as gumbel_of
from mistral_mlx.errors import InputError

LOGITS = mx.array([2.0, 1.0, 0.5, 0.0, -1.0])


def keys(seed: int, *positions: int) -> mx.array:
    return mx.array([Noise(seed).key(position) for position in positions], mx.uint32)


def gumbel(seed: int, position: int, size: int) -> mx.array:
    return gumbel_of(keys(seed, position), size)


def kept(logits: mx.array) -> list[int]:
    return [i for i, value in enumerate(logits.tolist()) if value != -math.inf]


def test_temperature_comes_before_top_p() -> None:
    """mistral-inference keeps one token here; filtering first, as some do, keeps three."""
    assert kept(keep_top(LOGITS / 0.5, None, 0.8)) == [0]
    assert kept(keep_top(LOGITS, None, 0.8)) == [0, 1, 2]


@settings(max_examples=200)
@given(
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=30),
    st.none() | st.integers(1, 40) | st.just(10**30),
    st.floats(0.01, 1),
    st.floats(0, 1),
)
def test_filters_equal_their_definitions(values: list[float], top_k: int | None, top_p: float, min_p: float) -> None:
    """Written out token by token in float64: in order of likelihood until top-k or top-p is reached."""
    order = sorted(range(len(values)), key=lambda i: (-np.float32(values[i]), i))[: top_k or len(values)]
    weights = np.exp(np.array([values[i] for i in order]) - max(values))
    weights /= weights.sum()
    before = np.cumsum(weights) - weights
    if np.abs(before - top_p).min() < 1e-5:
        return  # too close to the border for float32
    expected = {i for rank, i in enumerate(order) if rank == 0 or top_p >= 1 or before[rank] < top_p}
    assert set(kept(keep_top(mx.array(values), top_k, top_p))) == expected

    ratios = np.exp(np.array(values) - max(values))
    if np.abs(ratios - min_p).min() < 1e-4 * min_p:
        return
    assert set(kept(keep_min_p(mx.array(values), min_p))) == {i for i, r in enumerate(ratios) if r >= min_p}


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.2}, {"temperature": 2.0}])
def test_samples_follow_the_filtered_distribution(options: dict[str, float]) -> None:
    """Chi-square over 4,000 positions of one seed, at a level that a fair sampler fails once in 10,000 times."""
    params = SamplingParams(**{"temperature": 1.0, "seed": 11, **options})
    filtered = keep_min_p(keep_top(LOGITS / params.temperature, params.top_k, params.top_p), params.min_p)
    expected = np.array(mx.softmax(filtered)) * 4000
    drawn = sample(mx.stack([LOGITS] * 4000), params, keys(11, *range(4000)))
    counts = np.bincount(np.array(drawn), minlength=5)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < {1: 15.1, 2: 18.4, 3: 21.1, 4: 23.5}[int(possible.sum()) - 1]


def test_noise_depends_on_seed_and_position_alone() -> None:
    first = gumbel(7, 100, 50)
    mx.random.seed(99)
    mx.eval(mx.random.normal((10,)))
    assert mx.array_equal(first, gumbel(7, 100, 50))
    others = [gumbel(7, 101, 50), gumbel(8, 100, 50), gumbel(2**64 - 1, 100, 50), gumbel(2**32 + 7, 100, 50)]
    assert not any(mx.array_equal(first, other) for other in others)


def test_sampling_leaves_the_global_random_state_alone() -> None:
    mx.random.seed(5)
    expected = mx.random.normal((3,)).tolist()
    mx.random.seed(5)
    mx.eval(sample(LOGITS, SamplingParams(temperature=1.0, seed=3), keys(3, 0)[0]))
    assert mx.random.normal((3,)).tolist() == expected


def test_temperature_zero_takes_the_likeliest() -> None:
    assert int(sample(LOGITS, SamplingParams(temperature=0, top_p=0.1))) == 0


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-6])
def test_a_tiny_temperature_is_nearly_greedy(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, seed=1, top_p=0.9, min_p=0.1)
    assert sample(mx.stack([LOGITS * 5] * 20), params, keys(1, *range(20))).tolist() == [0] * 20


def test_without_a_seed_one_is_drawn_and_told() -> None:
    a, b = SamplingParams(), SamplingParams()
    assert isinstance(a.seed, int)
    assert a.seed != b.seed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name in ("temperature", "top_p", "min_p")
        for value in (math.nan, math.inf, 10**400, -0.1, "1", None, True)
    ]
    + [("top_p", 0.0), ("top_p", 1.1), ("min_p", 1.1), ("top_k", 0), ("top_k", 1.5), ("top_k", True)]
    + [("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 1.0), ("max_tokens", None)]
    + [("seed", -1), ("seed", 2**64), ("seed", 0.5), ("seed", "x")]
    + [("repetition_penalty", v) for v in (0, -1, 1e-46, 1e39, math.nan, math.inf, None, "1", True)]
    + [(n, v) for n in ("presence_penalty", "frequency_penalty") for v in (1e39, -1e39, math.nan, None, "1", True)]
    + [("logit_bias", v) for v in (None, [1], {"1": 1.0}, {-1: 1.0}, {1.5: 1.0}, {1: 1e39}, {1: None}, {True: 1.0})]
    + [("stop", v) for v in ("", ["a", ""], ["a", 3], 3, {"a"}, b"a")]
    + [("logprobs", v) for v in (-1, 1.5, None, True)],
)
def test_nonsense_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name) as error:
        SamplingParams(**{name: value})
    assert error.value.hint


def test_one_stop_string_is_several_of_one() -> None:
    assert SamplingParams(stop="\n\n").stop == ("\n\n",)
    assert SamplingParams(stop=["a", "b"]).stop == ["a", "b"]
    assert SamplingParams(stop=None).stop == ()


# ---- penalties --------------------------------------------------------------------------------------------------

HISTORIES = st.lists(st.integers(0, 15), max_size=12)


def penalized(logits: mx.array, prompt: list[int], generated: list[int], **options: Any) -> np.ndarray:
    penalties = Penalties(SamplingParams(**options), prompt, logits.size)
    for token in generated:
        penalties.count(mx.array(token))
    return np.array(penalties.apply(logits))


@settings(max_examples=60)
@given(st.lists(st.floats(-8, 8, width=32), min_size=16, max_size=16), HISTORIES, HISTORIES, st.floats(0.5, 2))
def test_each_penalty_equals_mlx_lms(values: list[float], prompt: list[int], said: list[int], penalty: float) -> None:
    """Over the whole text: mlx-lm looks back 20 tokens unless told otherwise, and does not tell prompt from answer."""
    from mlx_lm.sample_utils import make_frequency_penalty, make_presence_penalty, make_repetition_penalty

    logits = mx.array(values)
    made = {
        "repetition_penalty": (make_repetition_penalty, prompt + said),
        "presence_penalty": (make_presence_penalty, said),
        "frequency_penalty": (make_frequency_penalty, said),
    }
    for name, (make, tokens) in made.items():
        theirs = make(penalty, context_size=1000)(mx.array(tokens, mx.int32), mx.array(values)[None])[0]
        ours = penalized(logits, prompt, said, **{name: penalty})
        np.testing.assert_allclose(ours, np.array(theirs), rtol=1e-6, atol=1e-6)


@pytest.mark.torch
@settings(max_examples=30)
@given(st.lists(st.floats(-8, 8, width=32), min_size=16, max_size=16), HISTORIES.filter(bool), st.floats(0.5, 2))
def test_repetition_penalty_equals_transformers(values: list[float], prompt: list[int], penalty: float) -> None:
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt]), torch.tensor([values]))[0]
    np.testing.assert_allclose(
        penalized(mx.array(values), prompt, [], repetition_penalty=penalty), theirs.numpy(), rtol=1e-6
    )


def test_a_bias_is_added_after_the_penalties() -> None:
    logits = mx.array([2.0, 1.0, -1.0, 0.0])
    biased = penalized(logits, [0], [2], repetition_penalty=2.0, logit_bias={2: 5.0, 3: -100.0})
    np.testing.assert_allclose(biased, [1.0, 1.0, 3.0, -100.0])


def test_without_penalties_the_logits_stay_the_very_same() -> None:
    logits = mx.array([2.0, 1.0])
    penalties = Penalties(SamplingParams(), [0], 2)
    penalties.count(mx.array(0))
    assert penalties.apply(logits) is logits
