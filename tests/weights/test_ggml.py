"""Every block type of GGUF, against blocks that ggml itself wrote and read: `tests/golden/make_ggml.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

import mistral_mlx as mm
from mistral_mlx.conversion import convert
from mistral_mlx.weights.ggml import BLOCKS, PACKED, TYPE_NAMES, Blocks, read_blocks
from mistral_mlx.weights.names import expected_shapes, to_gguf
from mistral_mlx.weights.tensor import Quantized
from tests.conftest import GOLDEN, TINY

WRITTEN = load_file(GOLDEN / "ggml.safetensors")
KINDS = sorted({name.partition(".")[0] for name in WRITTEN})
FLOATS = {"F32", "F16", "BF16"}
# Rows of 256 elements, so that every type fits.
WIDE = replace(
    TINY, hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
    head_dim=64, vocab_size=64, sliding_window=None, max_position_embeddings=64,
)  # fmt: skip


def test_every_type_that_is_read_is_held_against_ggml() -> None:
    assert set(KINDS) == BLOCKS.keys() - FLOATS
    assert PACKED.keys() < set(KINDS)


def test_names_and_sizes_are_the_gguf_packages() -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    for kind in GGMLQuantizationType:
        assert TYPE_NAMES[kind.value] == kind.name
        if kind.name in BLOCKS:
            assert BLOCKS[kind.name] == GGML_QUANT_SIZES[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_read_as_ggml_reads_them(kind: str) -> None:
    found = read_blocks(kind, WRITTEN[f"{kind}.blocks"])
    assert isinstance(found, Quantized) == (kind in PACKED)
    values = found if isinstance(found, mx.array) else found.expand()
    np.testing.assert_array_equal(np.array(values), WRITTEN[f"{kind}.values"])


@pytest.mark.parametrize("kind", sorted(BLOCKS.keys() - FLOATS - {"Q1_0"}))
def test_any_bytes_are_read_as_the_gguf_package_reads_them(kind: str) -> None:
    """Also bytes that no quantizer writes."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    elements, size = BLOCKS[kind]
    data = np.random.default_rng(1).integers(0, 256, (64, 256 // elements * size), np.uint8)
    if kind == "MXFP4":  # of its scales, 255 is NaN
        data[:, ::size] %= 255
    if kind == "NVFP4":  # scales have no sign
        data.reshape(64, -1, size)[..., :4] &= 0x7F
    with np.errstate(all="ignore"):
        theirs = dequantize(data, GGMLQuantizationType[kind])
    found = read_blocks(kind, data)
    ours = np.array(found if isinstance(found, mx.array) else found.expand())
    finite = np.isfinite(theirs)
    assert finite.any()
    # `scale * q + bias` is rounded once here, where the package may round `d * (q - 16)`; both from exact factors.
    np.testing.assert_allclose(ours[finite], theirs[finite], rtol=1e-6, atol=0)


def test_long_tensors_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = read_blocks("Q6_K", np.tile(WRITTEN["Q6_K.blocks"], (5, 3)))
    assert isinstance(blocks, Blocks)
    whole = np.array(blocks.expand())
    monkeypatch.setattr("mistral_mlx.weights.ggml._PIECE", 3000)
    np.testing.assert_array_equal(np.array(blocks.expand()), whole)
    np.testing.assert_array_equal(np.array(blocks.rows(3, 70).expand()), whole[3:70])


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_every_type_computes_with_ggmls_values(kind: str, tmp_path: Path) -> None:
    import gguf

    number = gguf.GGMLQuantizationType[kind]
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    facts: dict[str, Any] = {
        "block_count": 1, "context_length": 64, "embedding_length": 256, "feed_forward_length": 256,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 64,
        "attention.value_length": 64, "vocab_size": 64,
    }  # fmt: skip
    for name, value in facts.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_layer_norm_rms_eps(WIDE.rms_norm_eps)
    writer.add_rope_freq_base(WIDE.rope_theta)
    model = mm.load(GOLDEN / "window").model.__class__(WIDE)
    rng = np.random.default_rng(0)
    for name, shape in expected_shapes(WIDE).items():
        if len(shape) == 1:
            values = rng.uniform(0.5, 1.5, shape).astype(np.float32)
            writer.add_tensor(to_gguf(name), values)
        else:
            order = rng.integers(0, 2, shape[0])
            values = WRITTEN[f"{kind}.values"][order]
            writer.add_tensor(to_gguf(name), WRITTEN[f"{kind}.blocks"][order], raw_dtype=number)
            heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
            if heads:  # pairs lie side by side in the file
                values = values.reshape(heads, -1, 2, 256).swapaxes(1, 2).reshape(shape)
        model.load_weights([(name, mx.array(values))], strict=False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ids = list(range(1, 33))
    expected = model(mx.array([ids]))[0]
    assert mx.array_equal(mm.load(path, dtype="float32").logits(ids), expected)
    assert float(mx.max(mx.abs(mm.load(path, dtype="keep").logits(ids) - expected))) < 1e-4
    receipt = convert(path, tmp_path / "out", dtype="float32")
    assert mx.array_equal(mm.load(tmp_path / "out", dtype="float32").logits(ids), expected)
    assert {record.error for record in receipt.tensors} == {0.0}
