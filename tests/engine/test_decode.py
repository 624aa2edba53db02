"""The generator of ids: it equals re-reading everything each step, and stops where it is told."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_mlx.engine.decode import decode
from mistral_mlx.engine.reading import prefill
from mistral_mlx.engine.sampling import SamplingParams
from mistral_mlx.engine.score import score, whole_logits
from mistral_mlx.model.transformer import Transformer
from tests.conftest import make_model

MODELS = {
    "window": make_model(sliding_window=8),
    "full": make_model(sliding_window=None),
    "mix": make_model(1, sliding_window=(None, 8)),
}
PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9]


def run(model: Transformer, prompt: list[int], chunk: int = 512, **options: object) -> tuple[list[int], list[float]]:
    cache = model.make_cache()
    logits = prefill(model, prompt, cache, chunk=chunk)
    assert logits is not None
    tokens = list(decode(model, logits, cache, SamplingParams(**options)))
    return [t.id for t in tokens], [t.logprob for t in tokens]


@pytest.mark.parametrize("name", MODELS)
def test_greedy_equals_reading_everything_again_each_step(name: str) -> None:
    ids, _ = run(MODELS[name], PROMPT, max_tokens=40)
    sequence = list(PROMPT)
    for token in ids:
        assert token == int(mx.argmax(whole_logits(MODELS[name], sequence)[-1]))
        sequence.append(token)


@settings(max_examples=25)
@given(st.sampled_from(list(MODELS)), st.integers(0, 2**64 - 1), st.sampled_from([0.0, 0.7, 1.5]), st.integers(1, 20))
def test_same_seed_same_tokens_however_the_prompt_is_cut(name: str, seed: int, temperature: float, chunk: int) -> None:
    options = {"seed": seed, "temperature": temperature, "top_p": 0.9, "max_tokens": 12}
    assert run(MODELS[name], PROMPT, **options)[0] == run(MODELS[name], PROMPT, chunk, **options)[0]


@settings(max_examples=25)
@given(st.sampled_from(list(MODELS)), st.integers(0, 1000), st.integers(1, 30))
def test_generated_logprobs_equal_rescored_ones(name: str, seed: int, chunk: int) -> None:
    model = MODELS[name]
    ids, logprobs = run(model, PROMPT, seed=seed, temperature=1.0, max_tokens=30)
    scores = np.array(score(model, PROMPT + ids, model.make_cache(), chunk=chunk))
    np.testing.assert_allclose(scores[len(PROMPT) - 1 :], logprobs, atol=2e-5)
    logits = np.array(whole_logits(model, PROMPT + ids))
    rows = logits[:-1] - np.log(np.exp(logits[:-1] - logits[:-1].max(-1, keepdims=True)).sum(-1, keepdims=True))
    rows -= logits[:-1].max(-1, keepdims=True)
    expected = rows[np.arange(len(rows)), (PROMPT + ids)[1:]]
    np.testing.assert_allclose(scores, expected, atol=2e-5)


def test_cancelling_stops_before_the_next_token() -> None:
    model = MODELS["window"]
    cache = model.make_cache()
    logits = prefill(model, PROMPT, cache)
    assert logits is not None
    seen: list[int] = []
    for token in decode(model, logits, cache, SamplingParams(max_tokens=50), cancelled=lambda: len(seen) == 3):
        seen.append(token.id)
    assert len(seen) == 3
    assert cache.position == len(PROMPT) + 2  # the last token was never fed


def test_memory_of_a_long_generation_is_constant() -> None:
    """Far beyond the window nothing grows: neither the cache nor what MLX holds besides."""
    model = make_model(sliding_window=8)
    cache = model.make_cache()
    logits = prefill(model, PROMPT, cache)
    assert logits is not None
    active: list[int] = []
    for _ in decode(model, logits, cache, SamplingParams(max_tokens=400)):
        active.append(mx.get_active_memory())
    assert cache.nbytes == cache.max_bytes
    assert max(active[200:]) - min(active[200:]) <= 16  # a number may be in flight


@pytest.mark.parametrize("name", MODELS)
def test_penalties_follow_what_was_generated(name: str) -> None:
    """Each step against the rule written out over the whole text so far."""
    options = {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.7, "logit_bias": {9: 1.5}}
    model, cache = MODELS[name], MODELS[name].make_cache()
    logits = prefill(model, PROMPT, cache)
    assert logits is not None
    said: list[int] = []
    for token in decode(model, logits, cache, SamplingParams(**options, max_tokens=30), PROMPT):
        row = np.array(whole_logits(model, PROMPT + said)[-1])
        for i in set(PROMPT + said):
            row[i] = row[i] / 1.3 if row[i] > 0 else row[i] * 1.3
        for i in set(said):
            row[i] -= 0.4 + 0.7 * said.count(i)
        row[9] += 1.5
        assert token.id == int(np.argmax(row))
        said.append(token.id)
    assert said != run(model, PROMPT, max_tokens=30)[0]


@pytest.mark.parametrize(
    ("whole", "same"),
    [
        ({"temperature": 10**30}, {"temperature": 1e30}),
        ({"temperature": 1, "top_k": 10**30, "top_p": 0.9}, {"temperature": 1.0, "top_p": 0.9}),
        ({"presence_penalty": 10**30}, {"presence_penalty": 1e30}),
        ({"frequency_penalty": -(10**30)}, {"frequency_penalty": -1e30}),
        ({"logit_bias": {7: 10**30}}, {"logit_bias": {7: 1e30}}),
    ],
)
def test_a_whole_number_of_any_size_is_a_number(whole: dict[str, Any], same: dict[str, Any]) -> None:
    """MLX takes those of 64 bits."""
    options = {"max_tokens": 10, "seed": 4}
    assert run(MODELS["full"], PROMPT, **options, **whole) == run(MODELS["full"], PROMPT, **options, **same)


def test_a_banned_token_never_comes_and_a_wanted_one_always() -> None:
    free, _ = run(MODELS["full"], PROMPT, max_tokens=20)
    banned, _ = run(MODELS["full"], PROMPT, max_tokens=20, logit_bias={free[0]: -1e9})
    assert free[0] not in banned
    wanted, _ = run(MODELS["full"], PROMPT, max_tokens=5, temperature=1.0, logit_bias={7: 1e9})
    assert wanted == [7] * 5


@pytest.mark.parametrize("count", [1, 5, 64, 1000, 10**30])
def test_alternatives_are_the_likeliest_tokens_of_the_model_itself(count: int) -> None:
    model, cache = MODELS["window"], MODELS["window"].make_cache()
    logits = prefill(model, PROMPT, cache)
    assert logits is not None
    params = SamplingParams(max_tokens=6, temperature=0.8, seed=2, logprobs=count, logit_bias={3: 2.0})
    sequence = list(PROMPT)
    for token in decode(model, logits, cache, params, PROMPT):
        row = whole_logits(model, sequence)[-1]
        expected = np.array(row - mx.logsumexp(row))
        assert list(token.top) == np.argsort(-expected, kind="stable")[:count].tolist()
        np.testing.assert_allclose(list(token.top.values()), -np.sort(-expected)[:count], atol=1e-5)
        assert token.logprob == pytest.approx(expected[token.id], abs=1e-5)
        sequence.append(token.id)
