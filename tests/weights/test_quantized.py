"""Quantized folders that mlx-lm wrote, and tables and parts that nobody should have written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mistral_mlx as mm
from mistral_mlx import models
from mistral_mlx.errors import ConfigError, WeightsError
from mistral_mlx.weights.checkpoint import open_checkpoint
from mistral_mlx.weights.loading import plan_loading
from tests.conftest import TINY, make_model
from tests.weights.conftest import assert_refused

CONFIG = replace(
    TINY, hidden_size=128, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
    vocab_size=128, sliding_window=16, max_position_embeddings=256,
)  # fmt: skip
IDS = list(range(3, 17))  # within the window, which mlx-lm drops
WORDS = {f"w{i}": i for i in range(CONFIG.vocab_size)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 model in Hugging Face's layout, with the least tokenizer that mlx_lm.convert takes."""
    folder = tmp_path_factory.mktemp("source")
    c = CONFIG
    keys = {
        "model_type": "mistral", "architectures": ["MistralForCausalLM"], "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size, "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads, "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim, "vocab_size": c.vocab_size, "rms_norm_eps": c.rms_norm_eps, "rope_theta": c.rope_theta,
        "sliding_window": c.sliding_window, "max_position_embeddings": c.max_position_embeddings,
        "tie_word_embeddings": False, "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(keys))
    model = make_model(**{k: v for k, v in vars(c).items() if k in type(c).__dataclass_fields__})
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    tokenizer = {
        "version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None, "decoder": None, "truncation": None, "padding": None,
        "model": {"type": "WordLevel", "vocab": WORDS, "unk_token": "w0"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


RECIPES: dict[str, dict[str, Any]] = {
    **{f"affine {bits} bits": {"q_bits": bits, "q_group_size": 64} for bits in (2, 3, 4, 5, 6, 8)},
    "groups of 32": {"q_bits": 4, "q_group_size": 32},
    "groups of 128": {"q_bits": 4, "q_group_size": 128},
    "mxfp4": {"q_mode": "mxfp4"},
    "mxfp8": {"q_mode": "mxfp8"},
    "nvfp4": {"q_mode": "nvfp4"},
    "mixed": {"quant_predicate": "mixed_3_6", "q_group_size": 64},
    "some layers": {
        "q_bits": 4,
        "quant_predicate": lambda path, _: (
            False if "o_proj" in path else {"group_size": 32, "bits": 8} if "lm_head" in path else True
        ),
    },
}


@pytest.fixture(scope="module")
def convert(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Convert the source by mlx_lm.convert, once for each recipe."""
    import mlx_lm

    made: dict[str, Path] = {}

    def convert(recipe: str) -> Path:
        if recipe not in made:
            made[recipe] = tmp_path_factory.mktemp("converted") / "model"
            mlx_lm.convert(str(source), str(made[recipe]), quantize=True, **RECIPES[recipe])
        return made[recipe]

    return convert


@pytest.mark.parametrize("dtype", ["keep", "float32"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_what_mlx_lm_converted_gives_its_logits(recipe: str, dtype: str, convert: Callable[[str], Path]) -> None:
    import mlx_lm

    folder = convert(recipe)
    theirs = mlx_lm.load(str(folder))[0](mx.array([IDS]))[0].astype(mx.float32)
    llm = mm.load(folder, dtype=dtype)
    assert llm.config.sliding_window == 16
    packed = [m for m in llm.model.modules() if isinstance(m, (nn.QuantizedLinear, nn.QuantizedEmbedding))]
    assert bool(packed) == (dtype == "keep")
    assert llm.model.nbytes == plan_loading(open_checkpoint(folder), dtype).nbytes
    assert float(mx.max(mx.abs(theirs))) > 1
    np.testing.assert_allclose(np.array(llm.logits(IDS)), np.array(theirs), atol=1e-4)


def test_packed_embeddings_leave_activations_in_the_models_precision(convert: Callable[[str], Path]) -> None:
    """MLX expands rows of mxfp4, mxfp8 and nvfp4 to bfloat16."""
    model = mm.load(convert("mxfp4"), dtype="keep").model
    assert model(mx.array([IDS])).dtype == mx.float32


def test_info_counts_what_is_stored(convert: Callable[[str], Path]) -> None:
    found = models.info(convert("affine 4 bits"), "keep")
    assert found.parameters == models.info(convert("mxfp8")).parameters
    file = convert("affine 4 bits") / "model.safetensors"
    assert found.stored_bytes is not None
    assert 0.9 * file.stat().st_size < found.stored_bytes < file.stat().st_size
    assert found.loaded_bytes == found.stored_bytes == mm.load(convert("affine 4 bits"), dtype="keep").model.nbytes


# ---- what nobody should have written -----------------------------------------------------------------------------


@pytest.fixture
def damaged(convert: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A converted folder with another table, or other tensors."""

    def make(
        change: Callable[[dict[str, mx.array]], Any] | None = None, recipe: str = "affine 4 bits", **keys: Any
    ) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(convert(recipe), folder)
        config = json.loads((folder / "config.json").read_text())
        config["quantization"] |= keys
        (folder / "config.json").write_text(json.dumps(config))
        if change:
            tensors = dict(mx.load(str(folder / "model.safetensors")))
            change(tensors)
            mx.save_safetensors(str(folder / "model.safetensors"), tensors)
        return folder

    return make


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"bits": 7}, ["7 bits"]),
        ({"group_size": 48}, ["groups of 48"]),
        ({"group_size": "64"}, ["group_size"]),
        ({"bits": 4.5}, ["bits"]),
        ({"mode": "gptq"}, ["'gptq'"]),
        ({"mode": "mxfp4"}, ["mxfp4"]),
        ({"mode": ["affine"]}, ["mode"]),
        ({"global_scale": 2}, ["global_scale"]),
        ({"lm_head": {"bits": 9}}, ["lm_head", "9 bits"]),
        ({"lm_head": {"bits": 4, "twist": 1}}, ["lm_head", "twist"]),
    ],
    ids=repr,
)
def test_a_table_that_mlx_does_not_compute_is_refused(
    keys: dict[str, Any], words: list[str], damaged: Callable[..., Path]
) -> None:
    assert_refused(damaged(**keys), ConfigError, *words)


@pytest.mark.parametrize(
    "keys", [{"bits": 8}, {"group_size": 32}, {"lm_head": {"bits": 2, "group_size": 64}}], ids=repr
)
def test_a_table_of_another_model_is_refused(keys: dict[str, Any], damaged: Callable[..., Path]) -> None:
    assert_refused(damaged(**keys), WeightsError, "bits in groups of")


Q = "model.layers.0.self_attn.q_proj"
FAULTS: dict[str, Callable[[dict[str, mx.array]], Any]] = {
    "no scales": lambda t: t.pop(f"{Q}.scales"),
    "no biases": lambda t: t.pop(f"{Q}.biases"),
    "no weight": lambda t: t.pop(f"{Q}.weight"),
    "short scales": lambda t: t.update({f"{Q}.scales": t[f"{Q}.scales"][:-1]}),
    "scales of whole numbers": lambda t: t.update({f"{Q}.scales": t[f"{Q}.scales"].astype(mx.uint8)}),
    "weight of floats": lambda t: t.update({f"{Q}.weight": t[f"{Q}.weight"].astype(mx.float32)}),
    "scales alone": lambda t: t.update({"model.other.scales": mx.zeros((2, 2))}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_parts_that_do_not_fit_are_refused(fault: str, damaged: Callable[..., Path]) -> None:
    assert_refused(damaged(FAULTS[fault]), WeightsError, "model.other" if "alone" in fault else Q)


def test_biases_of_a_mode_without_them_are_refused(damaged: Callable[..., Path]) -> None:
    assert_refused(damaged(lambda t: t.update({f"{Q}.biases": t[f"{Q}.scales"]}), "mxfp4"), WeightsError, Q, "mxfp4")


@pytest.mark.parametrize("settings", [{"quant_method": "awq", "bits": 4}, {"quant_method": "gptq"}, "odd"], ids=repr)
def test_other_schemes_are_refused_by_name(settings: Any, source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    assert_refused(folder, ConfigError, settings if isinstance(settings, str) else settings["quant_method"])


def test_quantized_activations_are_refused(source: Path, convert: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(convert("nvfp4"), folder)
    config = json.loads((folder / "config.json").read_text()) | {"quantize_activations": True}
    (folder / "config.json").write_text(json.dumps(config))
    assert_refused(folder, ConfigError, "quantize_activations")
