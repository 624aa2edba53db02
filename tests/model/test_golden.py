"""Logits against transformers', from folders that transformers wrote (tests/golden/make.py)."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import mlx.core as mx
import pytest

import mistral_mlx as mm
from mistral_mlx.model import attention
from tests.conftest import GOLDEN, make_model

CASES = ["window", "full", "mix", "head_dim", "yarn"]
TOLERANCE = 1e-4


def golden(name: str) -> tuple[list[int], mx.array]:
    stored = mx.load(str(GOLDEN / name / "logits.safetensors"))
    return stored["ids"].tolist(), stored["logits"]


def furthest(a: mx.array, b: mx.array) -> float:
    return float(mx.max(mx.abs(a - b)))


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(name: str) -> None:
    ids, expected = golden(name)
    assert furthest(mm.load(GOLDEN / name, dtype="float32").logits(ids), expected) < TOLERANCE


@pytest.mark.parametrize("chunk", [1, 3, 7, 8, 9, 33, 64])
@pytest.mark.parametrize("name", CASES)
def test_logits_through_the_cache_equal_transformers(name: str, chunk: int) -> None:
    ids, expected = golden(name)
    model = mm.load(GOLDEN / name, dtype="float32").model
    cache = model.make_cache()
    pieces = [model(mx.array([ids[i : i + chunk]]), cache) for i in range(0, len(ids), chunk)]
    assert furthest(mx.concatenate(pieces, axis=1)[0], expected) < TOLERANCE


def test_the_window_that_mlx_lm_drops(capsys: pytest.CaptureFixture[str]) -> None:
    """mlx-lm on the same folder: equal inside the window, and another model past it."""
    from mlx_lm.utils import load_model

    ids, expected = golden("window")
    theirs, _ = load_model(GOLDEN / "window")
    theirs.set_dtype(mx.float32)
    their_logits = theirs(mx.array([ids]))[0]
    ours = mm.load(GOLDEN / "window", dtype="float32").logits(ids)
    with capsys.disabled():
        print(
            f"\nlargest distance from transformers, window 8, positions 0-7 and 8-63: "
            f"ours {furthest(ours[:8], expected[:8]):.1e} and {furthest(ours[8:], expected[8:]):.1e}, "
            f"mlx-lm {furthest(their_logits[:8], expected[:8]):.1e} and {furthest(their_logits[8:], expected[8:]):.1e}"
        )
    assert furthest(ours, expected) < TOLERANCE
    assert furthest(their_logits[:1], expected[:1]) < 1e-2  # the same weights: this is a comparison of like with like


def test_a_window_of_w_sees_w_keys_itself_included() -> None:
    """With one layer and W = 8, position 20 still feels a change of token 13, and no longer one of token 12."""
    model = make_model(num_hidden_layers=1, sliding_window=8)
    ids = list(range(1, 22))

    def last_logits(changed: int) -> mx.array:
        return model(mx.array([[0 if i == changed else token for i, token in enumerate(ids)]]))[0, 20]

    unchanged = last_logits(-1)
    assert furthest(last_logits(12), unchanged) == 0
    assert furthest(last_logits(13), unchanged) > 1e-4


@pytest.mark.parametrize(
    "old",
    [
        {"rope_theta": 10_000.0, "rope_parameters": None, "torch_dtype": "bfloat16"},
        {"rope_theta": 10_000.0, "rope_parameters": None, "rope_scaling": None, "sliding_window": "8"},
        {"layer_types": ["sliding_attention"] * 2, "model_type": "ministral"},
    ],
    ids=["before transformers 5", "window as a string", "all layers sliding"],
)
def test_other_spellings_of_the_same_config(old: dict[str, object], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "window", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in {**config, **old}.items() if v is not None}))
    ids, expected = golden("window")
    assert furthest(mm.load(folder, dtype="float32").logits(ids), expected) < TOLERANCE


@pytest.mark.metal
@pytest.mark.parametrize("name", CASES)
def test_logits_on_metal_with_fused_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 on the GPU, fused attention or an error: within bfloat16's reach of transformers' float32."""
    fused = partial(mx.fast.scaled_dot_product_attention, force_fused=True)
    if name not in ("mix", "head_dim"):  # Metal's fused kernels take head dimensions 64, 80 and 128
        monkeypatch.setattr(attention.mx.fast, "scaled_dot_product_attention", fused)
    ids, expected = golden(name)
    model = mm.load(GOLDEN / name, dtype="bfloat16").model
    cache = model.make_cache()
    for start, stop in ((0, 30), (30, 60), *((i, i + 1) for i in range(60, 64))):
        got = model(mx.array([ids[start:stop]]), cache)[0].astype(mx.float32)
        error = mx.linalg.norm(got - expected[start:stop]) / mx.linalg.norm(expected[start:stop])
        assert float(error) < 0.05
