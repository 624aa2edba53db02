"""From a folder to a model: what fits is loaded as it is stored, and what does not is refused before it is read."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

import mistral_mlx as mm
from mistral_mlx.config import ModelConfig, Yarn
from mistral_mlx.errors import ConfigError, InputError, OutOfMemoryError, WeightsError
from mistral_mlx.model.transformer import Transformer
from mistral_mlx.weights import checkpoint as checkpoint_module
from mistral_mlx.weights import loading
from mistral_mlx.weights.checkpoint import Checkpoint, open_checkpoint, read_config
from mistral_mlx.weights.loading import load_model
from mistral_mlx.weights.names import expected_shapes, rotated_heads, to_gguf
from mistral_mlx.weights.tensor import Layout, Tensor
from tests.conftest import GOLDEN, TINY
from tests.weights.conftest import assert_refused

CASES = ["window", "full", "mix", "head_dim", "yarn"]
Change = Callable[[dict[str, mx.array]], Any]


def stored_weights(name: str) -> dict[str, mx.array]:
    files = (GOLDEN / name).glob("model*.safetensors")
    return {key: value for file in files for key, value in mx.load(str(file)).items()}


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """A golden folder, with another config.json or other weights; a config key of None is left out."""

    def make(name: str = "window", weights: Change | None = None, **config: Any) -> Path:
        path = tmp_path / "model"
        shutil.copytree(GOLDEN / name, path)
        (path / "logits.safetensors").unlink()
        keys = json.loads((path / "config.json").read_text()) | config
        (path / "config.json").write_text(json.dumps({k: v for k, v in keys.items() if v is not None}))
        if weights:
            tensors = stored_weights(name)
            weights(tensors)
            mx.save_safetensors(str(path / "model.safetensors"), tensors)
        return path

    return make


# ---- what fits ---------------------------------------------------------------------------------------------------

CONFIGS = {
    "untied": TINY,
    "tied": replace(TINY, tie_word_embeddings=True),
    "wide heads": replace(TINY, head_dim=20, num_key_value_heads=1),
    "one layer of many windows": replace(TINY, num_hidden_layers=3, sliding_window=(None, 4, 8)),
    "yarn": replace(TINY, yarn=Yarn(factor=4.0, original_context=16)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_expected_shapes_are_the_models_parameters(name: str) -> None:
    tree = tree_flatten(Transformer(CONFIGS[name]).parameters())
    assert expected_shapes(CONFIGS[name]) == {key: value.shape for key, value in tree}


def test_every_parameter_has_one_name_in_gguf() -> None:
    names = [to_gguf(name) for name in expected_shapes(TINY)]
    assert len(set(names)) == len(names)
    assert to_gguf("model.layers.11.mlp.down_proj.weight") == "blk.11.ffn_down.weight"


def test_only_queries_and_keys_are_put_in_order() -> None:
    heads = {name: rotated_heads(name, TINY) for name in expected_shapes(TINY)}
    assert {(name.split(".")[-2], n) for name, n in heads.items() if n} == {("q_proj", 4), ("k_proj", 2)}


@pytest.mark.parametrize("name", CASES)
def test_weights_are_loaded_as_they_are_stored(name: str) -> None:
    stored = stored_weights(name)
    model = load_model(open_checkpoint(GOLDEN / name), "bfloat16")
    loaded = dict(tree_flatten(model.parameters()))
    assert loaded.keys() == stored.keys()
    assert all(mx.array_equal(loaded[key], stored[key]) for key in stored)
    assert not tree_flatten(model.trainable_parameters())


@pytest.mark.parametrize(
    ("dtype", "loaded"),
    [("float32", mx.float32), ("float16", mx.float16), ("bfloat16", mx.bfloat16), ("keep", mx.bfloat16)],
)
def test_a_dtype_is_honoured(dtype: str, loaded: mx.Dtype) -> None:
    model = load_model(open_checkpoint(GOLDEN / "full"), dtype)
    assert {value.dtype for _, value in tree_flatten(model.parameters())} == {loaded}
    assert model.dtype == loaded


@pytest.mark.skipif(mx.default_device().type == mx.DeviceType.gpu, reason="a GPU keeps 16 bits")
def test_the_cpu_computes_in_float32_by_default() -> None:
    assert load_model(open_checkpoint(GOLDEN / "full")).dtype == mx.float32


@pytest.mark.parametrize("dtype", ["float64", "int8", "FLOAT32", "", "bf16"])
def test_an_unknown_dtype_is_refused(dtype: str) -> None:
    with pytest.raises(InputError, match=re.escape(repr(dtype))) as caught:
        mm.load(GOLDEN / "window", dtype=dtype)
    assert "bfloat16" in caught.value.hint


def test_a_checkpoint_tells_its_size() -> None:
    checkpoint = open_checkpoint(GOLDEN / "full")
    assert checkpoint.stored_bytes == 2 * sum(value.size for value in stored_weights("full").values())


def test_a_derived_table_is_ignored(folder: Callable[..., Path]) -> None:
    def add(weights: dict[str, mx.array]) -> None:
        for i in range(2):
            weights[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = mx.zeros((32,))

    checkpoint = open_checkpoint(folder("window", add))
    assert not [name for name in checkpoint.tensors if "inv_freq" in name]
    load_model(checkpoint)


# ---- tied embeddings ---------------------------------------------------------------------------------------------


def copy_embedding(weights: dict[str, mx.array]) -> None:
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]


def test_a_copy_of_a_tied_embedding_is_accepted(folder: Callable[..., Path]) -> None:
    ids = list(range(20))
    path = folder("head_dim", copy_embedding)
    assert open_checkpoint(path).config.tie_word_embeddings
    assert mx.array_equal(mm.load(path).logits(ids), mm.load(GOLDEN / "head_dim").logits(ids))


def test_where_the_config_says_nothing_the_weights_decide(folder: Callable[..., Path]) -> None:
    path = folder("head_dim", tie_word_embeddings=None)
    assert open_checkpoint(path).config.tie_word_embeddings
    tensors = stored_weights("head_dim")
    copy_embedding(tensors)
    mx.save_safetensors(str(path / "model.safetensors"), tensors)
    assert open_checkpoint(path).config.tie_word_embeddings is False


def test_an_untied_model_needs_its_output_matrix(folder: Callable[..., Path]) -> None:
    assert_refused(folder("head_dim", tie_word_embeddings=False), WeightsError, "lm_head.weight is missing")


# ---- what does not fit -------------------------------------------------------------------------------------------


def test_missing_unknown_and_misshapen_tensors_are_reported_at_once(folder: Callable[..., Path]) -> None:
    def damage(weights: dict[str, mx.array]) -> None:
        del weights["model.norm.weight"]
        weights["model.layers.0.self_attn.q_proj.bias"] = mx.zeros((512,))
        weights["lm_head.weight"] = mx.zeros((95, 32))

    faults = ("model.norm.weight is missing", "model.layers.0.self_attn.q_proj.bias is unknown",
              "lm_head.weight is 95 x 32, not 96 x 32")  # fmt: skip
    assert_refused(folder("window", damage), WeightsError, *faults)


def test_many_faults_are_counted(folder: Callable[..., Path]) -> None:
    error = assert_refused(folder("window", num_hidden_layers=5), WeightsError, "and 23 more")
    assert error.message.count("is missing") == 4


@pytest.mark.parametrize(
    "change",
    [{"head_dim": 32}, {"vocab_size": 97}, {"hidden_size": 64}, {"intermediate_size": 65}, {"num_hidden_layers": 1},
     {"num_hidden_layers": 10_000}, {"num_key_value_heads": 8}],
    ids=repr,
)  # fmt: skip
def test_another_models_configuration_is_refused(change: dict[str, int], folder: Callable[..., Path]) -> None:
    assert_refused(folder("window", **change), WeightsError, "do not fit")


def test_a_transposed_matrix_is_refused(folder: Callable[..., Path]) -> None:
    def damage(weights: dict[str, mx.array]) -> None:
        name = "model.layers.1.mlp.down_proj.weight"
        weights[name] = weights[name].T

    assert_refused(
        folder("window", damage), WeightsError, "model.layers.1.mlp.down_proj.weight is 64 x 32, not 32 x 64"
    )


@pytest.mark.parametrize("shape", [(1, 96, 32), (96 * 32,), (96, 32, 1)])
def test_a_matrix_of_other_dimensions_is_refused(shape: tuple[int, ...], folder: Callable[..., Path]) -> None:
    def damage(weights: dict[str, mx.array]) -> None:
        weights["lm_head.weight"] = mx.zeros(shape)

    assert_refused(folder("window", damage), WeightsError, "lm_head.weight")


def test_a_missing_shard_is_named_before_the_config_is_read(folder: Callable[..., Path]) -> None:
    path = folder("full")
    (path / "model-00002-of-00003.safetensors").unlink()
    assert_refused(path, WeightsError, "1 of 3 shards", "model-00002-of-00003.safetensors")


def test_a_shard_of_another_model_is_refused(folder: Callable[..., Path]) -> None:
    path = folder("full")
    shutil.copy(GOLDEN / "window" / "model.safetensors", path / "model-00003-of-00003.safetensors")
    assert_refused(path, WeightsError, "stored twice")


def test_a_shard_that_was_cut_short_is_named(folder: Callable[..., Path]) -> None:
    path = folder("full")
    shard = path / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert_refused(path, WeightsError, "model-00002-of-00003.safetensors")


# ---- what is not there -------------------------------------------------------------------------------------------


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nothing", WeightsError, "nothing")
    with pytest.raises(InputError, match="nothing"):
        mm.load(tmp_path / "nothing")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path, WeightsError, "model.safetensors")


def test_a_folder_with_only_a_gguf_says_to_give_the_file(tmp_path: Path) -> None:
    (tmp_path / "model-Q8_0.gguf").touch()
    assert "model-Q8_0.gguf" in assert_refused(tmp_path, WeightsError, "model.safetensors").hint


def test_a_missing_config_is_named(folder: Callable[..., Path]) -> None:
    path = folder()
    (path / "config.json").unlink()
    assert_refused(path, ConfigError, "config.json is missing")


TEXTS = ["", "{", "nonsense", "[]", "5", "null", '"text"', "{}", "[" * 100_000, b"\xff\xfe{}", "1" * 5000, "\ufeff{}"]


@pytest.mark.parametrize("text", TEXTS, ids=lambda t: repr(t)[:20])
def test_a_broken_config_is_refused(text: str | bytes, folder: Callable[..., Path]) -> None:
    path = folder()
    (path / "config.json").write_bytes(text.encode() if isinstance(text, str) else text)
    assert_refused(path, ConfigError)


def test_a_config_that_is_a_folder_is_refused(folder: Callable[..., Path]) -> None:
    path = folder()
    (path / "config.json").unlink()
    (path / "config.json").mkdir()
    assert_refused(path, ConfigError, "config.json")


@pytest.mark.parametrize("kind", ["U8", "U32"])
def test_whole_numbers_that_belong_to_no_quantized_matrix_are_refused(kind: str, folder: Callable[..., Path]) -> None:
    def store(tensors: dict[str, mx.array]) -> None:
        norm = "model.norm.weight"
        tensors[norm] = mx.zeros(tensors[norm].shape, {"U8": mx.uint8, "U32": mx.uint32}[kind])

    assert_refused(folder(weights=store), WeightsError, "model.norm.weight", kind)


def test_a_config_of_another_model_is_refused_before_its_weights_are_read(folder: Callable[..., Path]) -> None:
    path = folder(model_type="mixtral")
    (path / "model.safetensors").write_bytes(b"damaged")
    assert_refused(path, ConfigError, "mixtral")


@pytest.mark.parametrize(("more", "stops"), [(None, (2,)), (7, (2, 7)), ([2, 7, 9], (2, 7, 9)), ([], (2,))], ids=repr)
def test_stop_ids_of_the_generation_config_are_added(
    more: Any, stops: tuple[int, ...], folder: Callable[..., Path]
) -> None:
    path = folder()
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": more, "temperature": 0.7}))
    assert open_checkpoint(path).config.eos_token_ids == stops


@pytest.mark.parametrize("text", ["{", "[]", '{"eos_token_id": "2"}', '{"eos_token_id": [true]}', "[" * 100_000])
def test_a_broken_generation_config_is_refused(text: str, folder: Callable[..., Path]) -> None:
    path = folder()
    (path / "generation_config.json").write_text(text)
    assert_refused(path, ConfigError, "generation_config.json")


def test_a_folder_without_a_tokenizer_loads() -> None:
    llm = mm.load(GOLDEN / "window")
    assert llm.generate([1, 2, 3], max_tokens=2).tokens
    with pytest.raises(mm.TokenizerError, match="tokenizer"):
        llm.generate("text")


# ---- memory ------------------------------------------------------------------------------------------------------


def never(*_: Any) -> NoReturn:
    raise AssertionError("nothing may be read")


def unread(config: ModelConfig, kind: str = "BF16", bits: int = 16, layout: Layout | None = None) -> Checkpoint:
    """A checkpoint of that size, which fails where anything of it is read."""
    tensors = {
        name: Tensor(name, shape, kind, math.prod(shape) * bits // 8, layout, never)
        for name, shape in expected_shapes(config).items()
    }
    return Checkpoint(Path("large"), config, tensors)


LARGE = replace(TINY, hidden_size=2**16, vocab_size=2**17, num_hidden_layers=1)


@pytest.mark.parametrize(("dtype", "size"), [("float32", "64.1 GiB"), ("bfloat16", "32.0 GiB"), ("keep", "32.0 GiB")])
def test_a_model_larger_than_memory_is_refused_before_anything_is_read(
    dtype: str, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "memory_limit", lambda: 30 * 2**30)
    monkeypatch.setattr(loading, "Transformer", never)
    with pytest.raises(OutOfMemoryError) as caught:
        load_model(unread(LARGE), dtype)
    assert size in caught.value.message
    assert "30.0 GiB" in caught.value.message
    assert caught.value.hint


def test_quantized_weights_that_do_not_fit_are_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "memory_limit", lambda: 2**30)
    for dtype in (None, "keep", "float32"):
        with pytest.raises(OutOfMemoryError, match=r"20\.0 GiB.* has 1\.0 GiB"):
            load_model(unread(LARGE, "Q8_0", 8, layout=Layout(32, 8)), dtype)


def test_a_folder_larger_than_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "memory_limit", lambda: 1000)
    monkeypatch.setattr(nn.Module, "load_weights", never)
    with pytest.raises(OutOfMemoryError, match="GiB"):
        mm.load(GOLDEN / "window")


def test_a_model_as_large_as_memory_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(GOLDEN / "window")
    monkeypatch.setattr(loading, "memory_limit", lambda: checkpoint.stored_bytes)
    load_model(checkpoint, "bfloat16")


def test_a_file_that_shrinks_after_it_was_opened_is_an_error(folder: Callable[..., Path]) -> None:
    path = folder()
    checkpoint = open_checkpoint(path)
    with (path / "model.safetensors").open("r+b") as file:
        file.truncate(20_000)
    with pytest.raises(WeightsError, match="cannot be read") as caught:
        load_model(checkpoint)
    assert caught.value.hint


def test_a_gguf_of_mistral_7b_v01_tells_that_its_window_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    v01 = replace(read_config(GOLDEN / "configs/mistral-7b-v0.1"), sliding_window=None)
    checkpoint_module._tell_of_lost_window(replace(v01, rope_theta=1e6))
    checkpoint_module._tell_of_lost_window(replace(v01, num_key_value_heads=32, intermediate_size=11008))  # Llama 2
    assert not caplog.messages
    checkpoint_module._tell_of_lost_window(v01)
    assert "window of 4096" in caplog.text
