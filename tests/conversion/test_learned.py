"""Quantization that mlx-lm fits to a text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, pre_tokenizers

import mistral_mlx as mm
from mistral_mlx.conversion import convert
from mistral_mlx.errors import MistralError
from tests.conftest import GOLDEN

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEXT, HELD_OUT = ("".join(Random(seed).choices(f"{LETTERS} ", k=1500)) for seed in range(2))
WITHIN = list(range(3, 11))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A golden model with a tokenizer of letters."""
    folder = Path(shutil.copytree(GOLDEN / "window", tmp_path_factory.mktemp("learned") / "source"))
    letters = ["<s>", "</s>", "\u0120", *LETTERS]
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    (folder / "tokenizer.json").write_text(bpe.to_str())
    return folder


@pytest.mark.parametrize("method", ["gptq", *(pytest.param(m, marks=pytest.mark.slow) for m in ("awq", "dwq"))])
def test_what_is_learned_opens_in_mlx_lm_and_computes_the_same(method: str, source: Path, tmp_path: Path) -> None:
    from mlx_lm.utils import load_model

    receipt = convert(source, tmp_path / "out", 4, group_size=32, learn=method, calibrate=TEXT, text=HELD_OUT)
    theirs, _ = load_model(tmp_path / "out")
    theirs.set_dtype(mx.float32)
    ours = mm.load(tmp_path / "out", dtype="float32")
    np.testing.assert_allclose(np.array(ours.logits(WITHIN)), np.array(theirs(mx.array([WITHIN]))[0]), atol=1e-4)
    assert ours.config.sliding_window == 8
    assert {r.written for r in receipt.tensors if len(r.shape) == 2} >= {"4 bits / 32"}
    assert all(r.error is None for r in receipt.tensors)
    assert receipt.recipe == f"4: 4 bits / 32, learned by {method}"
    assert receipt.evaluation is not None
    plain = convert(source, tmp_path / "plain", 4, group_size=32, text=HELD_OUT)
    assert plain.evaluation is not None
    assert receipt.evaluation.kl < plain.evaluation.kl * (0.9 if method == "gptq" else 1.1)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "plain"}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"learn": "magic"}, "'magic' cannot be learned"),
        ({"calibrate": None}, "learns from a text"),
        ({"learn": None}, "nothing to learn"),
        ({"quantize": "mxfp4", "group_size": None}, "decides itself"),
        ({"quantize": "mixed_3_6"}, "decides itself"),
        ({"keep": ["output=8"]}, "decides itself"),
        ({"quantize": None, "group_size": None}, "how many bits"),
        ({"group_size": 64}, "columns, which groups of 64"),
        ({"calibrate": "a"}, "less than two tokens"),
        ({"quantize": 3}, "gptq failed: Unsupported bits 3"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], word: str, source: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"quantize": 4, "group_size": 32, "learn": "gptq", "calibrate": TEXT} | options
    with pytest.raises(MistralError) as caught:
        convert(source, tmp_path / "out", **asked)
    assert word in caught.value.message
    assert caught.value.hint
    assert not any(tmp_path.iterdir())


def test_quantized_weights_and_models_without_a_tokenizer_are_refused(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "packed", 4, group_size=32)
    with pytest.raises(MistralError, match="the source is quantized"):
        convert(tmp_path / "packed", tmp_path / "out", 4, group_size=32, learn="gptq", calibrate=TEXT, requantize=True)
    with pytest.raises(MistralError, match="no tokenizer"):
        convert(GOLDEN / "window", tmp_path / "out", 4, group_size=32, learn="gptq", calibrate=TEXT)
    assert json.loads((tmp_path / "packed/conversion.json").read_text())["recipe"] == "4: 4 bits / 32"
