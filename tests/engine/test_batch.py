"""Sequences decoded together: each says what it would have said alone, whenever others join and leave."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_mlx.engine.batch import Batch
from mistral_mlx.engine.choice import Row, Token
from mistral_mlx.engine.decode import decode
from mistral_mlx.engine.reading import prefill, read_together
from mistral_mlx.engine.sampling import SamplingParams
from mistral_mlx.model import ring as ring_module
from mistral_mlx.model.slots import Sequences
from mistral_mlx.model.transformer import Transformer
from tests.conftest import TINY, make_model

WINDOWS: dict[str, Any] = {"window": 8, "full": None, "mix": (None, 8), "one": 1, "two windows": (8, 13)}
MODELS = {name: make_model(sliding_window=window) for name, window in WINDOWS.items()}
LONGEST = 120


@pytest.fixture(autouse=True)
def _small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module, "SMALLEST_CAPACITY", 4)


def alone(model: Transformer, prompt: list[int], params: SamplingParams) -> list[Token]:
    cache = model.make_cache()
    logits = prefill(model, prompt, cache)
    assert logits is not None
    return list(decode(model, logits, cache, params, prompt))


def join(batch: Batch, model: Transformer, prompt: list[int], params: SamplingParams) -> tuple[Row, Token]:
    cache = model.make_cache()
    logits = prefill(model, prompt, cache, chunk=5)
    assert logits is not None
    row = Row(params, prompt, TINY.vocab_size, len(prompt))
    return row, batch.join([row], logits[None], Sequences.of(cache))[0]


prompts = st.lists(st.integers(0, TINY.vocab_size - 1), min_size=1, max_size=40)
options = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0.0, 0.8]), "seed": st.integers(0, 99), "max_tokens": st.integers(1, 25)},
    optional={
        "top_k": st.integers(1, 20), "top_p": st.floats(0.5, 1), "repetition_penalty": st.floats(0.8, 1.4),
        "logprobs": st.integers(0, 3), "frequency_penalty": st.floats(-1, 1),
    },
)  # fmt: skip


@settings(max_examples=40)
@given(st.sampled_from(list(MODELS)), st.lists(st.tuples(st.integers(0, 12), prompts, options), min_size=1, max_size=5))
def test_a_row_says_what_it_would_say_alone(name: str, arrivals: list[tuple[int, list[int], dict[str, Any]]]) -> None:
    """Rows join after any number of steps and leave when they have all their tokens."""
    model, batch = MODELS[name], Batch(MODELS[name])
    waiting = [(when, prompt, SamplingParams(**given)) for when, prompt, given in arrivals]
    said: dict[Row, list[Token]] = {}
    asked: dict[Row, tuple[list[int], SamplingParams]] = {}
    step = 0
    while waiting or batch.rows:
        for arrival in [a for a in waiting if a[0] <= step]:
            waiting.remove(arrival)
            row, first = join(batch, model, *arrival[1:])
            said[row], asked[row] = [first], arrival[1:]
        if done := [row for row in batch.rows if len(said[row]) == row.params.max_tokens]:
            batch.leave(done)
        if batch.rows:
            for row, token in batch.step():
                said[row].append(token)
        step += 1
    for row, (prompt, params) in asked.items():
        expected = alone(model, prompt, params)
        assert [t.id for t in said[row]] == [t.id for t in expected]
        np.testing.assert_allclose([t.logprob for t in said[row]], [t.logprob for t in expected], atol=2e-5)
        assert [list(t.top) for t in said[row]] == [list(t.top) for t in expected]


def test_far_beyond_the_window_a_batch_takes_constant_memory() -> None:
    model = MODELS["window"]
    batch = Batch(model)
    for prompt in ([3], [1, 2, 3], list(range(30))):
        join(batch, model, prompt, SamplingParams(max_tokens=10_000))
    held = []
    for _ in range(400):
        batch.step()
        held.append(batch.nbytes)
    assert held[-1] == held[200] == 3 * model.make_cache().max_bytes


@settings(max_examples=40)
@given(st.sampled_from(list(MODELS)), st.lists(prompts, min_size=1, max_size=5), st.integers(1, 20))
def test_prompts_read_together_are_read_as_alone(name: str, texts: list[list[int]], steps: int) -> None:
    model, batch = MODELS[name], Batch(MODELS[name])
    logits, read = read_together(model, texts)
    params = SamplingParams(max_tokens=steps, temperature=0.8, seed=3)
    rows = [Row(params, text, TINY.vocab_size, len(text)) for text in texts]
    said = [[token] for token in batch.join(rows, logits, read)]
    for _ in range(steps - 1):
        for row, token in batch.step():
            said[rows.index(row)].append(token)
    for text, tokens in zip(texts, said, strict=True):
        expected = alone(model, text, params)
        assert [t.id for t in tokens] == [t.id for t in expected]
        np.testing.assert_allclose([t.logprob for t in tokens], [t.logprob for t in expected], atol=2e-5)


@pytest.mark.slow
def test_rows_that_outgrow_their_slots_together_take_one_layer_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module, "SMALLEST_CAPACITY", 1024)
    model = make_model(num_hidden_layers=16, sliding_window=None, max_position_embeddings=4096)
    batch, rows = Batch(model), 8
    logits, read = read_together(model, [[5] * 1023] * rows)
    batch.join([Row(SamplingParams(), [5], TINY.vocab_size, 1023) for _ in range(rows)], logits, read)
    del logits, read
    batch.step()
    before = batch.nbytes
    mx.clear_cache()
    mx.reset_peak_memory()
    held = mx.get_active_memory() - before
    batch.step()  # into slots twice as large
    assert batch.nbytes == 2 * before
    assert mx.get_peak_memory() - held < 2.4 * before
