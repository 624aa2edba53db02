"""Sampling: the filters are the published ones, the noise is fair and depends on seed and position alone."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_mlx.engine.sampling import SamplingParams, gumbel, keep_min_p, keep_top, sample
from mistral_mlx.errors import InputError

LOGITS = mx.array([2.0, 1.0, 0.5, 0.0, -1.0])


def kept(logits: mx.array) -> list[int]:
    return [i for i, value in enumerate(logits.tolist()) if value != -math.inf]


def test_temperature_comes_before_top_p() -> None:
    """mistral-inference keeps one token here; filtering first, as some do, keeps three."""
    assert kept(keep_top(LOGITS / 0.5, None, 0.8)) == [0]
    assert kept(keep_top(LOGITS, None, 0.8)) == [0, 1, 2]


@settings(max_examples=200)
@given(
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=30),
    st.none() | st.integers(1, 40),
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
    drawn = mx.stack([sample(LOGITS, params, position)[0] for position in range(4000)])
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
    mx.eval(sample(LOGITS, SamplingParams(temperature=1.0, seed=3), 0))
    assert mx.random.normal((3,)).tolist() == expected


def test_temperature_zero_takes_the_likeliest_and_its_own_probability() -> None:
    token, logprob = sample(LOGITS, SamplingParams(temperature=0, top_p=0.1), 0)
    assert int(token) == 0
    assert float(logprob) == pytest.approx(math.log(math.exp(2) / sum(map(math.exp, LOGITS.tolist()))), abs=1e-6)


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-6])
def test_a_tiny_temperature_is_nearly_greedy(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, seed=1, top_p=0.9, min_p=0.1)
    assert [int(sample(LOGITS * 5, params, position)[0]) for position in range(20)] == [0] * 20


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
    + [("seed", -1), ("seed", 2**64), ("seed", 0.5), ("seed", "x")],
)
def test_nonsense_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name) as error:
        SamplingParams(**{name: value})
    assert error.value.hint
