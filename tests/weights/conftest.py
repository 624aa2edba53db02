"""A writer of GGUF files, and the golden weights to write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten

from mistral_mlx.config import ModelConfig
from mistral_mlx.errors import MistralError
from mistral_mlx.weights.checkpoint import open_checkpoint
from mistral_mlx.weights.loading import load_model
from mistral_mlx.weights.names import expected_shapes, to_gguf
from tests.conftest import GOLDEN

Write = Callable[..., Path]


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """From halves to pairs side by side: what a converter does to queries and keys."""
    return rows.reshape(heads, 2, -1, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def rotated(name: str, config: ModelConfig) -> int:
    """The heads whose rows a converter interleaves, 0 for all but queries and keys."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return heads.get(name.split(".")[-2], 0)


def golden_weights(name: str) -> dict[str, np.ndarray]:
    model = load_model(open_checkpoint(GOLDEN / name), "float32")
    return {key: np.array(value) for key, value in tree_flatten(model.parameters())}


@pytest.fixture(scope="module")
def gguf_package() -> Any:
    """Slow to import."""
    import gguf

    return gguf


@pytest.fixture(scope="module")
def write(gguf_package: Any, tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Write a llama file as a converter would: matrices as `kind`, vectors as F32 or as `kinds` says."""
    count = iter(range(10**6))

    def write(
        config: ModelConfig,
        weights: Mapping[str, np.ndarray],
        kind: str = "F32",
        kinds: Mapping[str, str] = {},
        more: Callable[[Any], None] = lambda writer: None,
    ) -> Path:
        types = gguf_package.GGMLQuantizationType
        path = tmp_path_factory.getbasetemp() / f"{next(count)}-{kind}.gguf"
        writer = gguf_package.GGUFWriter(path, "llama")
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_vocab_size(config.vocab_size)
        if config.yarn:
            writer.add_rope_scaling_type(gguf_package.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(config.yarn.factor)
            writer.add_rope_scaling_orig_ctx_len(config.yarn.original_context)
            writer.add_rope_scaling_yarn_beta_fast(config.yarn.beta_fast)
            writer.add_rope_scaling_yarn_beta_slow(config.yarn.beta_slow)
        for name, value in weights.items():
            stored = types[kinds.get(name, kind if value.ndim > 1 else "F32")]
            data = interleave(value, heads) if (heads := rotated(name, config)) else value
            known = name in expected_shapes(config)
            writer.add_tensor(
                to_gguf(name) if known else name, gguf_package.quants.quantize(data, stored), raw_dtype=stored
            )
        more(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def assert_refused(path: Path, kind: type[MistralError], *words: str) -> MistralError:
    """An error that names all of `words` and says what to do."""
    with pytest.raises(kind) as caught:
        open_checkpoint(path)
    for word in words:
        assert word in caught.value.message
    assert caught.value.hint
    return caught.value
