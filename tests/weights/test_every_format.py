"""One checkpoint in every form that Mistral weights come in: the same logits, to the last bit where nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

import mistral_mlx as mm
from mistral_mlx import models
from mistral_mlx.errors import ConfigError, MistralError, WeightsError
from mistral_mlx.weights.checkpoint import open_checkpoint
from mistral_mlx.weights.names import expected_shapes, to_consolidated
from tests.conftest import GOLDEN, TINY
from tests.weights.conftest import Write, golden_weights, interleave, rotated

IDS = list(range(1, 40))
CASES = ["window", "full", "mix", "head_dim", "yarn"]
Weights = Mapping[str, np.ndarray]

# The words of Mistral's own files once more, written out anew.
MISTRAL = {
    "embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output", "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3",
}  # fmt: skip


def mistral_name(name: str) -> str:
    (ours,) = (word for word in MISTRAL if name.endswith(f"{word}.weight"))
    layer = f"layers.{name.split('.')[2]}." if ".layers." in name else ""
    return f"{layer}{MISTRAL[ours]}.weight"


def params(name: str) -> dict[str, Any]:
    """params.json of a golden model."""
    c = mm.load(GOLDEN / name).config
    keys = {
        "dim": c.hidden_size, "n_layers": c.num_hidden_layers, "head_dim": c.head_dim,
        "hidden_dim": c.intermediate_size, "n_heads": c.num_attention_heads, "n_kv_heads": c.num_key_value_heads,
        "norm_eps": c.rms_norm_eps, "vocab_size": c.vocab_size, "rope_theta": c.rope_theta,
        "max_position_embeddings": c.max_position_embeddings, "tied_embeddings": c.tie_word_embeddings,
    }  # fmt: skip
    if c.sliding_window is not None:
        keys["sliding_window"] = [None, 8, 8, 8] if name == "mix" else c.sliding_window
    if c.yarn:
        keys["yarn"] = {
            "factor": c.yarn.factor, "original_max_position_embeddings": c.yarn.original_context,
            "beta": c.yarn.beta_fast, "alpha": c.yarn.beta_slow, "apply_scale": True,
        }  # fmt: skip
    return keys


def consolidated(name: str, folder: Path, shards: int = 1) -> Path:
    """A golden model as Mistral would publish it, in bfloat16."""
    config = mm.load(GOLDEN / name).config
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(params(name)))
    tensors = {}
    for key, value in golden_weights(name).items():
        rows = interleave(value, heads) if (heads := rotated(key, config)) else value
        tensors[mistral_name(key)] = mx.array(rows).astype(mx.bfloat16)
    if shards == 1:
        mx.save_safetensors(str(folder / "consolidated.safetensors"), tensors)
        return folder
    names = sorted(tensors)
    places = {n: f"consolidated-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, n in enumerate(names)}
    for file in set(places.values()):
        mx.save_safetensors(str(folder / file), {n: t for n, t in tensors.items() if places[n] == file})
    index = {"metadata": {}, "weight_map": places}
    (folder / "consolidated.safetensors.index.json").write_text(json.dumps(index))
    return folder


def sharded(name: str, folder: Path) -> Path:
    shutil.copytree(GOLDEN / name, folder)
    tensors = {k: v for file in folder.glob("model*.safetensors") for k, v in mx.load(str(file)).items()}
    mx.eval(tensors)
    for file in folder.glob("model*"):
        file.unlink()
    names = sorted(tensors)
    places = {n: f"model-{i % 3 + 1:05}-of-00003.safetensors" for i, n in enumerate(names)}
    for file in set(places.values()):
        mx.save_safetensors(str(folder / file), {n: t for n, t in tensors.items() if places[n] == file})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


@pytest.fixture
def forms(tmp_path: Path, write: Write) -> Callable[[str], dict[str, Path]]:
    """Every lossless form of a golden model."""

    def forms(name: str) -> dict[str, Path]:
        config = mm.load(GOLDEN / name).config
        made = {
            "shards": sharded(name, tmp_path / "shards"),
            "consolidated": consolidated(name, tmp_path / "consolidated"),
            "consolidated shards": consolidated(name, tmp_path / "consolidated-shards", shards=4),
        }
        if config.sliding_window is None:  # GGUF cannot say more
            made |= {kind: write(config, golden_weights(name), kind) for kind in ("F32", "BF16")}
        return made

    return forms


@pytest.mark.parametrize("name", CASES)
def test_the_same_model_in_every_form_gives_the_same_logits(name: str, forms: Callable[[str], dict[str, Path]]) -> None:
    expected = mm.load(GOLDEN / name, dtype="float32")
    for form, path in forms(name).items():
        llm = mm.load(path, dtype="float32")
        assert mx.array_equal(llm.logits(IDS), expected.logits(IDS)), form
        assert llm.config.windows == expected.config.windows, form


@pytest.mark.parametrize("name", ["window", "full"])
def test_consolidated_files_equal_transformers(name: str, tmp_path: Path) -> None:
    golden = load_file(GOLDEN / name / "logits.safetensors")
    ids = golden["ids"].reshape(-1).tolist()
    llm = mm.load(consolidated(name, tmp_path / "model"), dtype="float32")
    np.testing.assert_allclose(np.array(llm.logits(ids)), golden["logits"].reshape(len(ids), -1), atol=1e-4)


def test_names_are_mistrals() -> None:
    for name in expected_shapes(TINY):
        assert to_consolidated(name) == mistral_name(name)


def test_with_both_layouts_hugging_faces_is_read(tmp_path: Path) -> None:
    folder = consolidated("full", tmp_path / "model")
    shutil.copy(GOLDEN / "window" / "config.json", folder)
    shutil.copy(GOLDEN / "window" / "model.safetensors", folder)
    assert open_checkpoint(folder).config.sliding_window == 8
    (folder / "config.json").unlink()
    assert open_checkpoint(folder).config.sliding_window is None


def test_a_config_beside_consolidated_files_alone_does_no_harm(tmp_path: Path) -> None:
    """Downloads that leave out the model's other layout have both configurations."""
    folder = consolidated("window", tmp_path / "model")
    shutil.copy(GOLDEN / "full" / "config.json", folder)
    assert open_checkpoint(folder).config.sliding_window == 8


def test_a_folder_with_only_params_can_be_described(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text(json.dumps(params("mix")))
    assert models.info(tmp_path).config.windows == (None, 8, 8, 8)


def test_tables_beside_consolidated_weights_are_left_alone(tmp_path: Path) -> None:
    folder = consolidated("full", tmp_path / "model")
    tensors = dict(mx.load(str(folder / "consolidated.safetensors"))) | {"rope.freqs": mx.zeros(3)}
    mx.save_safetensors(str(folder / "consolidated.safetensors"), tensors)
    assert "rope.freqs" not in open_checkpoint(folder).tensors


@pytest.mark.parametrize(
    ("change", "kind", "word"),
    [
        (lambda f: (f / "params.json").unlink(), ConfigError, "params.json is missing"),
        (lambda f: (f / "params.json").write_text("[]"), ConfigError, "params.json"),
        (lambda f: (f / "params.json").write_text(json.dumps(params("full") | {"moe": {"num_experts": 8}})),
         ConfigError, "moe"),
        (lambda f: (f / "params.json").write_text(json.dumps(params("full") | {"n_layers": 3})),
         WeightsError, "layers.2"),
        (lambda f: (f / "consolidated.safetensors").write_bytes(b"short"), WeightsError, "cannot be read"),
    ],
)  # fmt: skip
def test_a_damaged_consolidated_folder_is_refused(
    change: Callable[[Path], Any], kind: type[MistralError], word: str, tmp_path: Path
) -> None:
    folder = consolidated("full", tmp_path / "model")
    change(folder)
    with pytest.raises(kind, match=word) as caught:
        mm.load(folder)
    assert caught.value.hint
