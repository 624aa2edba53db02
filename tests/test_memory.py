"""Bytes that are told before they are taken, held against what MLX then took."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

import mistral_mlx as mm
from mistral_mlx import models
from mistral_mlx.engine.reading import prefill, prefill_bytes
from mistral_mlx.model.packing import Packing
from tests.conftest import GOLDEN, make_model

SHAPES: dict[str, tuple[dict[str, Any], int]] = {
    "full, long": ({"hidden_size": 256, "num_attention_heads": 8, "head_dim": 32, "sliding_window": None}, 4096),
    "full, heads of 64": ({"hidden_size": 512, "num_attention_heads": 8, "head_dim": 64, "sliding_window": None}, 3000),
    "window": ({"hidden_size": 512, "num_attention_heads": 8, "head_dim": 64, "sliding_window": 1024}, 4000),
    "wide feed-forward": ({"hidden_size": 512, "intermediate_size": 14336, "sliding_window": 256}, 1000),
    "wide stream": ({"hidden_size": 2048, "head_dim": 16, "sliding_window": 512}, 1500),
    "short": ({"hidden_size": 1024, "num_attention_heads": 16, "head_dim": 64, "sliding_window": 4096}, 100),
    "deep, as many key heads": (
        {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64, "sliding_window": 512,
         "num_hidden_layers": 12},
        2000,
    ),
    "two windows": (
        {"hidden_size": 512, "num_attention_heads": 8, "head_dim": 64, "sliding_window": (None, 128)}, 2000,
    ),
}  # fmt: skip
DEEP = pytest.param("deep, as many key heads", marks=pytest.mark.slow)


@pytest.mark.parametrize("shape", [*(shape for shape in SHAPES if not shape.startswith("deep")), DEEP])
def test_reading_a_prompt_takes_no_more_than_was_told_nor_far_less(shape: str) -> None:
    changes, tokens = SHAPES[shape]
    model = make_model(vocab_size=1000, max_position_embeddings=8192, **changes)
    cache = model.make_cache(tokens)
    mx.eval(model.parameters())
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    logits = prefill(model, [i % 1000 for i in range(tokens)], cache)
    mx.eval(logits)
    taken = mx.get_peak_memory() - before - cache.nbytes
    told = prefill_bytes(model.config, tokens, 4)
    print(f"{shape}: told {told / 1e6:.1f} MB, taken {taken / 1e6:.1f} MB")
    assert told / 3 < taken <= told


def test_a_model_tells_what_it_takes() -> None:
    llm = mm.load(GOLDEN / "window", dtype="float32")
    memory = llm.memory(1000)
    assert memory.weights == llm.model.nbytes
    cache = llm.model.make_cache()
    prefill(llm.model, [5] * 1000, cache)
    assert memory.cache == cache.nbytes
    assert memory.total == memory.weights + memory.cache + memory.prefill
    assert memory.fits
    assert llm.memory(10**6).cache == llm.memory(10**5).cache  # windows bound it


@pytest.mark.parametrize("kv_bits", [8, 4])
def test_quantized_keys_and_values_are_told_as_they_are(kv_bits: int) -> None:
    llm, plain = mm.load(GOLDEN / "window", kv_bits=kv_bits), mm.load(GOLDEN / "window")
    memory = llm.memory(1000)
    done = llm.generate([5] * 990, max_tokens=10)
    assert done.stats is not None
    assert memory.cache == done.stats.cache_bytes < plain.memory(1000).cache / 3
    assert memory.cache == models.info(GOLDEN / "window", kv_bits=kv_bits).memory.cache
    assert mx.array_equal(llm.logits([1, 2, 3]), plain.logits([1, 2, 3]))  # they need no cache


@pytest.mark.parametrize("shape", ["full, heads of 64", "window", DEEP])
def test_reading_into_a_quantized_cache_takes_no_more_than_was_told(shape: str) -> None:
    changes, tokens = SHAPES[shape]
    model = make_model(vocab_size=1000, max_position_embeddings=8192, **changes)
    model.packing = Packing.of(4, model.config.head_dim)
    cache = model.make_cache(tokens)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(prefill(model, [i % 1000 for i in range(tokens)], cache))
    told = prefill_bytes(model.config, tokens, 4)
    assert told / 3 < mx.get_peak_memory() - before - cache.nbytes <= told


def test_a_long_answer_to_a_short_prompt_takes_little_to_read() -> None:
    llm = mm.load(GOLDEN / "window")
    assert llm.memory(10_000, prompt=10).prefill < llm.memory(10_000).prefill / 10
    assert llm.memory(10_000, prompt=10).cache == llm.memory(10_000).cache


def test_more_than_the_context_is_refused() -> None:
    llm = mm.load(GOLDEN / "full")
    assert llm.memory(256).fits
    with pytest.raises(mm.ContextError, match="256"):
        llm.memory(257)


@pytest.mark.parametrize("tokens", [0, -1, 1.5, True, None, "4"])
def test_what_is_no_length_is_refused(tokens: object) -> None:
    with pytest.raises(mm.InputError, match="tokens is"):
        mm.load(GOLDEN / "window").memory(tokens)  # type: ignore[arg-type]


def test_a_prompt_that_would_not_fit_is_refused_with_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = mm.load(GOLDEN / "window")
    whole = llm.memory(600)
    monkeypatch.setattr("mistral_mlx.memory.memory_limit", lambda: whole.total - 1)
    assert llm.memory(600).fits  # read in smaller pieces
    assert llm.memory(600).chunk < whole.chunk
    llm.generate([5] * 599, max_tokens=1)
    monkeypatch.setattr("mistral_mlx.memory.memory_limit", lambda: whole.weights + whole.cache)
    with pytest.raises(mm.OutOfMemoryError, match=r"weights.*keys and values.*to read") as error:
        llm.generate([5] * 600, max_tokens=1)
    assert "max_tokens" in error.value.hint


@pytest.mark.skipif(mx.metal.is_available(), reason="Metal can")
def test_memory_is_wired_on_a_mac_only() -> None:
    with pytest.raises(mm.InputError, match="Mac"):
        mm.load(GOLDEN / "window", wired=True)


@pytest.mark.metal
def test_wired_memory_is_asked_for_and_only_then() -> None:
    mm.load(GOLDEN / "window")
    assert mx.set_wired_limit(0) == 0
    mm.load(GOLDEN / "window", wired=True)
    assert mx.set_wired_limit(0) > 0
