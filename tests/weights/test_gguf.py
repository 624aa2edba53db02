"""GGUF files that the gguf package wrote, and files that nobody should have written."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

import mistral_mlx as mm
from mistral_mlx.config import ModelConfig
from mistral_mlx.errors import MistralError, WeightsError
from mistral_mlx.weights.checkpoint import open_checkpoint
from mistral_mlx.weights.formats.gguf import read_header
from mistral_mlx.weights.loading import load_model, plan_loading
from mistral_mlx.weights.names import expected_shapes, to_gguf
from tests.conftest import GOLDEN, TINY
from tests.weights.conftest import Write, assert_refused, golden_weights, rotated

IDS = list(range(1, 40))
# Dimensions that blocks of 32 divide.
BLOCKY = replace(
    TINY, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
    vocab_size=80, sliding_window=None, max_position_embeddings=256,
)  # fmt: skip
QUANTIZED = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4"]  # those that the package writes


def halve(rows: np.ndarray, heads: int) -> np.ndarray:
    """Back again."""
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def random_weights(config: ModelConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(1 if len(shape) == 1 else 0, 0.25, shape).astype(np.float32)
        for name, shape in expected_shapes(config).items()
    }


def refused(path: Path, *words: str) -> MistralError:
    return assert_refused(path, MistralError, *words)


# ---- lossless types ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["full", "head_dim", "yarn"])
def test_float32_gives_the_golden_models_logits_exactly(name: str, write: Write) -> None:
    llm = mm.load(GOLDEN / name, dtype="float32")
    path = write(llm.config, golden_weights(name))
    assert mx.array_equal(mm.load(path, dtype="float32").logits(IDS), llm.logits(IDS))


@pytest.mark.parametrize("kind", ["F16", "BF16"])
@pytest.mark.parametrize("name", ["full", "head_dim"])
def test_sixteen_bits_give_the_logits_of_weights_rounded_alike(kind: str, name: str, write: Write) -> None:
    dtype = {"F16": mx.float16, "BF16": mx.bfloat16}[kind]
    model = load_model(open_checkpoint(GOLDEN / name), "float32")
    weights = {key: value * 1.001 for key, value in golden_weights(name).items()}
    rounded = {k: mx.array(v).astype(dtype) if v.ndim > 1 else mx.array(v) for k, v in weights.items()}
    model.load_weights([(key, value.astype(mx.float32)) for key, value in rounded.items()])
    path = write(model.config, weights, kind)
    assert mx.array_equal(load_model(open_checkpoint(path), "float32")(mx.array([IDS])), model(mx.array([IDS])))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_stored_types_are_kept_if_asked(kind: str, write: Write) -> None:
    model = load_model(open_checkpoint(write(BLOCKY, random_weights(BLOCKY), kind)), "keep")
    assert model.dtype == {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}[kind]


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_are_tied_where_there_is_no_output_matrix(tied: bool, write: Write) -> None:
    config = replace(BLOCKY, tie_word_embeddings=tied)
    assert open_checkpoint(write(config, random_weights(config))).config.tie_word_embeddings is tied


# ---- quantized types ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", QUANTIZED)
def test_expanded_weights_equal_the_gguf_packages_bit_for_bit(
    kind: str, tied: bool, write: Write, gguf_package: Any
) -> None:
    config = replace(BLOCKY, tie_word_embeddings=tied)
    path = write(config, random_weights(config), kind)
    stored = {t.name: t for t in gguf_package.GGUFReader(path).tensors}
    loaded = dict(tree_flatten(load_model(open_checkpoint(path), "float32").parameters()))
    assert loaded.keys() == expected_shapes(config).keys()
    for name, value in loaded.items():
        tensor = stored[to_gguf(name)]
        expected = gguf_package.quants.dequantize(tensor.data, tensor.tensor_type)
        if heads := rotated(name, config):
            expected = halve(expected, heads)
        np.testing.assert_array_equal(np.array(value), expected, err_msg=name)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", QUANTIZED)
def test_packed_weights_give_the_logits_of_expanded_ones(kind: str, tied: bool, write: Write) -> None:
    config = replace(BLOCKY, tie_word_embeddings=tied)
    path = write(config, random_weights(config), kind)
    packed = mm.load(path, dtype="keep")
    expanded = mm.load(path, dtype="float32")
    assert isinstance(packed.model.model.layers[1].self_attn.qkv_proj, nn.QuantizedLinear)
    assert isinstance(packed.model.model.embed_tokens, nn.QuantizedEmbedding)
    assert not any(isinstance(m, nn.QuantizedLinear) for m in expanded.model.modules())
    assert float(mx.max(mx.abs(packed.logits(IDS) - expanded.logits(IDS)))) < 1e-4
    for llm, dtype in ((packed, "keep"), (expanded, "float32")):
        assert llm.model.nbytes == plan_loading(open_checkpoint(path), dtype).nbytes


def test_types_may_be_mixed(write: Write, gguf_package: Any) -> None:
    mixture = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"]
    weights = random_weights(BLOCKY)
    kinds = {name: mixture[i % 6] for i, name in enumerate(n for n, v in weights.items() if v.ndim > 1)}
    path = write(BLOCKY, weights, kinds=kinds)
    checkpoint = open_checkpoint(path)
    assert {name: checkpoint.tensors[name].stored for name in kinds} == kinds
    packed, expanded = (mm.load(path, dtype=dtype).logits(IDS) for dtype in ("keep", "float32"))
    assert float(mx.max(mx.abs(packed - expanded))) < 1e-4


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # of the writer
def test_extreme_scales_are_expanded_exactly(write: Write, gguf_package: Any) -> None:
    """Blocks of zeros, of subnormal scales, and of values past what 16 bits hold, whose scales fit all the same."""
    weights = random_weights(BLOCKY)
    for row, size in enumerate((0.0, 1e-6, 1e-3, 3e4, 6e4, 4e5)):
        weights["lm_head.weight"][row] *= size / np.abs(weights["lm_head.weight"][row]).max()
    for kind in QUANTIZED:
        path = write(BLOCKY, weights, kind)
        loaded = dict(tree_flatten(load_model(open_checkpoint(path), "float32").parameters()))["lm_head.weight"]
        (tensor,) = (t for t in gguf_package.GGUFReader(path).tensors if t.name == "output.weight")
        expected = gguf_package.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(np.array(loaded), expected)


def test_a_quantized_vector_is_read_or_refused(write: Write) -> None:
    """llama.cpp never writes one, but the format allows it."""
    path = write(BLOCKY, random_weights(BLOCKY), kinds={"model.norm.weight": "Q8_0"})
    try:
        model = load_model(open_checkpoint(path), "float32")
    except MistralError as error:
        assert "norm" in error.message  # noqa: PT017
    else:
        assert model.model.norm.weight.shape == (64,)


def test_sizes_are_those_of_the_file(write: Write) -> None:
    checkpoint = open_checkpoint(write(BLOCKY, random_weights(BLOCKY), "Q4_0"))
    matrices = sum(np.prod(s) for s in expected_shapes(BLOCKY).values() if len(s) > 1)
    assert checkpoint.stored_bytes == matrices * 18 // 32 + 5 * 64 * 4
    assert checkpoint.tensors["model.norm.weight"].stored == "F32"
    assert checkpoint.tensors["lm_head.weight"].layout


# ---- what is in the file beside ----------------------------------------------------------------------------------


def test_metadata_is_what_the_gguf_package_wrote(write: Write) -> None:
    def more(writer: Any) -> None:
        writer.add_name("a name")
        writer.add_token_list(["a", "", "\N{LLAMA}"])
        writer.add_token_types([1, 3, 1])
        writer.add_eos_token_id(2)
        writer.add_add_bos_token(True)

    path = write(BLOCKY, random_weights(BLOCKY), more=more)
    metadata = open_checkpoint(path).metadata
    assert metadata["general.name"] == "a name"
    assert metadata["tokenizer.ggml.tokens"] == ["a", "", "\N{LLAMA}"]
    assert list(metadata["tokenizer.ggml.token_type"]) == [1, 3, 1]
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert open_checkpoint(path).config.eos_token_ids == (2,)


@pytest.mark.parametrize("alignment", [8, 64, 1024])
def test_alignment_is_honoured(alignment: int, write: Write) -> None:
    weights = random_weights(BLOCKY)
    path = write(BLOCKY, weights, more=lambda writer: writer.add_custom_alignment(alignment))
    loaded = dict(tree_flatten(load_model(open_checkpoint(path)).parameters()))
    np.testing.assert_array_equal(np.array(loaded["model.norm.weight"]), weights["model.norm.weight"])


def test_a_file_without_write_permission_loads(write: Write) -> None:
    path = write(BLOCKY, random_weights(BLOCKY))
    path.chmod(0o444)
    load_model(open_checkpoint(path))


def test_a_tensor_that_is_not_understood_is_refused_by_name(write: Write) -> None:
    weights = random_weights(BLOCKY) | {"rope_freqs.weight": np.ones(16, np.float32)}
    refused(write(BLOCKY, weights), "rope_freqs.weight is unknown")


def test_a_tensor_under_hugging_faces_name_is_not_taken_for_ours(write: Write) -> None:
    def more(writer: Any) -> None:
        writer.add_tensor("model.norm.weight", np.zeros(64, np.float32))

    refused(write(BLOCKY, random_weights(BLOCKY), more=more), "model.norm.weight")


def test_missing_and_misshapen_tensors_are_reported_at_once(write: Write) -> None:
    weights = random_weights(BLOCKY)
    del weights["model.norm.weight"]
    weights["model.layers.0.self_attn.q_proj.weight"] = np.zeros((256, 64), np.float32)
    refused(write(BLOCKY, weights), "model.norm.weight is missing", "q_proj.weight is 256 x 64, not 128 x 64")


def test_a_file_that_goes_away_after_it_was_opened_is_an_error(write: Write) -> None:
    path = write(BLOCKY, random_weights(BLOCKY))
    checkpoint = open_checkpoint(path)
    path.unlink()
    with pytest.raises(WeightsError):
        load_model(checkpoint)


def test_a_file_that_shrinks_after_it_was_opened_is_an_error(write: Write) -> None:
    path = write(BLOCKY, random_weights(BLOCKY))
    checkpoint = open_checkpoint(path)
    with path.open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(WeightsError):
        load_model(checkpoint)


def test_a_file_cut_short_is_refused_at_any_length(write: Write, tmp_path: Path) -> None:
    whole = write(BLOCKY, random_weights(BLOCKY), "Q8_0").read_bytes()
    start = min(len(whole), 4096)
    path = tmp_path / "short.gguf"
    for length in [*range(0, start, 7), *range(start, len(whole), 5003), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused(path)


# ---- hand-made headers -------------------------------------------------------------------------------------------

U8, U32, F32, STRING, ARRAY, U64 = 0, 4, 6, 8, 9, 10


def text(value: str | bytes, length: int | None = None) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def key(name: str, kind: int, payload: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + payload


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def header(*parts: bytes, tensors: int = 0, keys: int = 0, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts)


ARCHITECTURE = key("general.architecture", STRING, text("llama"))
BODY = bytes(4096)  # tensor data, or room for what a header claims


@pytest.fixture
def bad(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        (tmp_path / "bad.gguf").write_bytes(data)
        return tmp_path / "bad.gguf"

    return write


NOT_GGUF: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "bad.gguf"),
    "one byte": (b"G", "not a GGUF file"),
    "magic alone": (b"GGUF", "past the end"),
    "another magic": (header(magic=b"GGML"), "not a GGUF file"),
    "lower case": (header(magic=b"gguf"), "not a GGUF file"),
    "text": (b'{"model_type": "mistral"}', "not a GGUF file"),
    "version 1": (b"GGUF" + struct.pack("<III", 1, 0, 0) + BODY, "version 1"),
    "version 4": (header(BODY, version=4), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + BODY, "version"),
}


@pytest.mark.parametrize("name", NOT_GGUF)
def test_what_is_not_gguf_of_version_2_or_3_is_refused(name: str, bad: Callable[[bytes], Path]) -> None:
    data, word = NOT_GGUF[name]
    refused(bad(data), word)


def test_version_2_is_read_like_version_3(bad: Callable[[bytes], Path]) -> None:
    assert read_header(bad(header(ARCHITECTURE, keys=1, version=2))).metadata == {"general.architecture": "llama"}


HUGE = [2**32, 2**40, 2**62, 2**63, 2**64 - 1]
CLAIMS: dict[str, Callable[[int], bytes]] = {
    "tensors": lambda n: header(ARCHITECTURE, BODY, tensors=n, keys=1),
    "keys": lambda n: header(ARCHITECTURE, BODY, keys=n),
    "both": lambda n: header(ARCHITECTURE, BODY, tensors=n, keys=n),
    "a key's length": lambda n: header(text("k", n), BODY, keys=1),
    "a string's length": lambda n: header(key("k", STRING, text("v", n)), BODY, keys=1),
    "an array of bytes": lambda n: header(key("k", ARRAY, struct.pack("<IQ", U8, n)), BODY, keys=1),
    "an array of numbers": lambda n: header(key("k", ARRAY, struct.pack("<IQ", U64, n)), BODY, keys=1),
    "an array of strings": lambda n: header(key("k", ARRAY, struct.pack("<IQ", STRING, n)), BODY, keys=1),
    "a name's length": lambda n: header(ARCHITECTURE, text("t", n), BODY, tensors=1, keys=1),
    "a dimension": lambda n: header(ARCHITECTURE, tensor("t", (n, 1)), BODY, tensors=1, keys=1),
    "every dimension": lambda n: header(ARCHITECTURE, tensor("t", (n,) * 4), BODY, tensors=1, keys=1),
    "an offset": lambda n: header(ARCHITECTURE, tensor("t", (1, 1), offset=n), BODY, tensors=1, keys=1),
    "the alignment": lambda n: header(
        ARCHITECTURE, key("general.alignment", U64, struct.pack("<Q", n)), tensor("t", (1, 1)), BODY, tensors=1, keys=2
    ),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_header_may_claim_any_size_and_costs_nothing(claim: str, bad: Callable[[bytes], Path]) -> None:
    tracemalloc.start()
    start = time.perf_counter()
    for number in HUGE:
        refused(bad(CLAIMS[claim](number)))
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 1
    assert peak < 2**20


def test_a_damaged_count_of_heads_costs_nothing(write: Write) -> None:
    """The order of rows is as long as the configuration says, which the tensors must be held against first."""
    path = write(BLOCKY, random_weights(BLOCKY))
    field = text("llama.attention.head_count") + struct.pack("<I", U32)
    before, after = path.read_bytes().split(field)
    path.write_bytes(before + field + struct.pack("<I", 2**18) + after[4:])
    tracemalloc.start()
    refused(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


DAMAGED: dict[str, tuple[bytes, str]] = {
    "a key twice": (header(ARCHITECTURE, ARCHITECTURE, keys=2), "general.architecture appears twice"),
    "a tensor twice": (
        header(ARCHITECTURE, tensor("t", (1, 1)), tensor("t", (1, 1)), BODY, tensors=2, keys=1),
        "tensor t appears twice",
    ),
    "no dimensions": (header(ARCHITECTURE, tensor("t", ()), BODY, tensors=1, keys=1), "t has 0 dimensions"),
    "five dimensions": (header(ARCHITECTURE, tensor("t", (1,) * 5), BODY, tensors=1, keys=1), "t has 5 dimensions"),
    "a dimension of zero": (header(ARCHITECTURE, tensor("t", (0, 4)), BODY, tensors=1, keys=1), "tensor t"),
    "a row of half a block": (header(ARCHITECTURE, tensor("t", (16, 2), 8), BODY, tensors=1, keys=1), "tensor t"),
    "data past the end": (
        header(ARCHITECTURE, tensor("t", (8, 1), offset=4096), BODY, tensors=1, keys=1),
        "t of 32 bytes ends past the end",
    ),
    "an unknown value type": (header(key("k", 13, b""), BODY, keys=1), "unknown type 13"),
    "an unknown element type": (header(key("k", ARRAY, struct.pack("<IQ", 99, 1)), BODY, keys=1), "unknown type 99"),
    "alignment 0": (header(ARCHITECTURE, key("general.alignment", U32, bytes(4)), keys=2), "alignment is 0"),
    "alignment of text": (header(ARCHITECTURE, key("general.alignment", STRING, text("x")), keys=2), "alignment"),
    "alignment of half": (header(ARCHITECTURE, key("general.alignment", F32, struct.pack("<f", 0.5)), keys=2), "0.5"),
    "no architecture": (header(), "architecture"),
    "a number for an architecture": (header(key("general.architecture", U32, bytes(4)), keys=1), "architecture"),
    "nothing but an architecture": (header(ARCHITECTURE, keys=1), "embedding_length"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_header_is_refused(name: str, bad: Callable[[bytes], Path]) -> None:
    data, word = DAMAGED[name]
    refused(bad(data), word)


def test_arrays_of_arrays_are_refused(bad: Callable[[bytes], Path]) -> None:
    """However deep: a walk that followed them would recurse."""
    refused(bad(header(key("k", ARRAY, struct.pack("<IQ", ARRAY, 1) * 10_000), keys=1)), "damaged")


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (4, "Q4_2"),
        (9, "Q8_1"),
        (24, "I8"),
        (26, "I32"),
        (28, "F64"),
        (31, "Q4_0_4_4"),
        (200, "200"),
        (2**32 - 1, "42949"),
    ],
)
def test_types_that_are_not_read_are_refused_by_tensor_and_name(
    number: int, kind: str, bad: Callable[[bytes], Path]
) -> None:
    one = tensor("blk.0.attn_q.weight", (256, 4), number)
    error = refused(bad(header(ARCHITECTURE, one, BODY, tensors=1, keys=1)), "blk.0.attn_q.weight", kind)
    assert "Q8_0" in error.hint


def test_text_that_is_not_utf_8_is_replaced(bad: Callable[[bytes], Path]) -> None:
    path = bad(header(key("k", STRING, text(b"a\xff")), keys=1))
    assert read_header(path).metadata == {"k": "a\ufffd"}


# ---- fuzz --------------------------------------------------------------------------------------------------------

SMALL = replace(BLOCKY, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
                num_key_value_heads=1, vocab_size=4)  # fmt: skip


@pytest.fixture(scope="module")
def whole(write: Write) -> tuple[bytes, int]:
    """A file with something of everything, and where its header ends."""

    def more(writer: Any) -> None:
        writer.add_string("llama.rope.scaling.type", "yarn")
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(16)
        writer.add_token_list(["a", "b", "c", "d"])
        writer.add_token_types([1, 1, 1, 3])
        writer.add_eos_token_id(3)

    path = write(SMALL, random_weights(SMALL), "Q8_0", more=more)
    return path.read_bytes(), min(entry.offset for entry in read_header(path).entries.values())


edits = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4)
cuts = st.none() | st.floats(0, 1)


@settings(max_examples=250)
@given(edits=edits, cut=cuts)
def test_any_damage_to_the_header_loads_or_is_refused(
    edits: list[tuple[float, int]],
    cut: float | None,
    whole: tuple[bytes, int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data, end = bytearray(whole[0]), whole[1]
    for place, byte in edits:
        data[int(place * end)] = byte
    path = tmp_path_factory.getbasetemp() / "fuzz.gguf"
    path.write_bytes(data if cut is None else data[: int(cut * len(data))])
    try:
        load_model(open_checkpoint(path))
    except MistralError as error:
        assert error.message  # noqa: PT017


def test_any_single_bit_of_the_header_may_flip(whole: tuple[bytes, int], tmp_path: Path) -> None:
    """Each seventh is tried."""
    data, end = bytearray(whole[0]), whole[1]
    path = tmp_path / "flip.gguf"
    for bit in range(3, 8 * end, 7):
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        data[bit // 8] ^= 1 << bit % 8
        try:
            load_model(open_checkpoint(path))
        except MistralError as error:
            assert error.message  # noqa: PT017
