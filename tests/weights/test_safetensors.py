"""Safetensors files and their index: what is described is what the file holds, and damage is told apart."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from mistral_mlx.errors import MistralError, WeightsError
from mistral_mlx.weights.formats.safetensors import find_files, read_tensors
from tests.conftest import GOLDEN

INDEX = "model.safetensors.index.json"
ONE = {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}


def write_raw(file: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


def assert_refused(file: Path) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        read_tensors([file])
    assert file.name in caught.value.message
    assert caught.value.hint
    return caught.value


# ---- which files -------------------------------------------------------------------------------------------------


def test_one_file_needs_no_index() -> None:
    assert find_files(GOLDEN / "window") == [GOLDEN / "window" / "model.safetensors"]


def test_an_index_names_the_shards() -> None:
    assert [f.name for f in find_files(GOLDEN / "full")] == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]


def test_without_weights_nothing_is_found(tmp_path: Path) -> None:
    (tmp_path / "consolidated.safetensors").touch()
    (tmp_path / "pytorch_model.bin").touch()
    assert find_files(tmp_path) == []


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    names = [f"model-0000{n}-of-00005.safetensors" for n in range(1, 6)]
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict(zip("abcde", names, strict=True))}))
    (tmp_path / names[0]).touch()
    with pytest.raises(WeightsError, match=f"4 of 5 shards are missing.*{names[1]}.*…") as caught:
        find_files(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["../evil.safetensors", "sub/evil.safetensors", "{outside}/evil.safetensors", ".."])
def test_an_index_cannot_reach_outside_its_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder / "sub"):
        save_file({"w": np.zeros(3, np.float32)}, place / "evil.safetensors")
    name = name.format(outside=tmp_path)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(WeightsError, match="missing"):
        find_files(folder)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "null", "[]", "{}", '{"weight_map": null}', '{"weight_map": []}', '{"weight_map": {"a": null}}',
        '{"weight_map": {"a": 1}}', '{"weight_map": {"a": 1, "b": "x"}}', '{"weight_map": {"a": ["x"]}}',
        '{"weight_map": {"a": ""}}', '{"weight_map": {"a": "\\u0000"}}', '{"weight_map": {"a": "' + "n" * 5000 + '"}}',
        "[" * 100_000, b"\xff\xfe",
    ],
    ids=lambda t: repr(t)[:36],
)  # fmt: skip
def test_a_broken_index_is_refused(text: str | bytes, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(WeightsError) as caught:
        find_files(tmp_path)
    assert caught.value.message
    assert caught.value.hint


# ---- what they hold ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["window", "full"])
def test_tensors_are_described_as_they_are_stored(name: str) -> None:
    files = find_files(GOLDEN / name)
    stored = {key: value for file in files for key, value in mx.load(str(file)).items()}
    described = read_tensors(files)
    assert described.keys() == stored.keys()
    for key, tensor in described.items():
        assert (tensor.name, tensor.shape, tensor.stored) == (key, stored[key].shape, "BF16")
        assert tensor.nbytes == 2 * tensor.elements == stored[key].nbytes
        assert tensor.layout is None
        assert mx.array_equal(tensor.read(), stored[key])


@pytest.mark.parametrize(("kind", "word"), [(np.float32, "F32"), (np.float16, "F16")])
def test_values_come_as_they_are_stored(kind: type, word: str, tmp_path: Path) -> None:
    values = np.linspace(-3, 3, 12, dtype=kind).reshape(3, 4)
    save_file({"w": values}, tmp_path / "model.safetensors")
    tensor = read_tensors([tmp_path / "model.safetensors"])["w"]
    assert tensor.stored == word
    np.testing.assert_array_equal(np.array(tensor.read()), values)


def test_a_name_in_two_shards_is_refused(tmp_path: Path) -> None:
    files = [tmp_path / f"model-{n}.safetensors" for n in (1, 2)]
    for file in files:
        save_file({"model.norm.weight": np.zeros(3, np.float32)}, file)
    with pytest.raises(WeightsError, match=r"model\.norm\.weight is stored twice") as caught:
        read_tensors(files)
    assert caught.value.hint


@pytest.mark.parametrize("kind", ["I8", "U16", "I32", "I64", "BOOL", "F64", "F8_E5M2", "F4"])
def test_other_types_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    size = {"I32": 4, "I64": 8, "F64": 8, "F4": 1, "U16": 2}.get(kind, 1)
    shape = [2] if kind == "F4" else [1]
    header = {"model.norm.weight": {"dtype": kind, "shape": shape, "data_offsets": [0, size]}}
    error = assert_refused(write_raw(tmp_path / "model.safetensors", header, bytes(size)))
    assert "model.norm.weight" in error.message
    assert kind in error.message


def test_what_counts_is_the_content_not_the_suffix(tmp_path: Path) -> None:
    """MLX tells formats by their suffix, and an index may name any file of the folder."""
    assert read_tensors([write_raw(tmp_path / "model.bin", ONE, bytes(24))]).keys() == ONE.keys()


def test_a_file_cut_short_is_refused_at_any_length(tmp_path: Path) -> None:
    whole = (GOLDEN / "window" / "model.safetensors").read_bytes()
    header = struct.unpack_from("<Q", whole)[0]
    file = tmp_path / "model.safetensors"
    for length in (0, 1, 7, 8, 9, header // 2, header + 7, header + 8, header + 9, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert_refused(file)


def test_a_file_that_is_too_long_is_refused(tmp_path: Path) -> None:
    assert_refused(write_raw(tmp_path / "model.safetensors", ONE, bytes(25)))


@pytest.mark.parametrize("size", [2, 99_999_999, 2**32, 2**40, 2**63, 2**64 - 1])
def test_a_header_may_claim_any_size(size: int, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", size) + b"{" * 100)
    assert_refused(file)


GARBAGE: dict[str, Any] = {
    "noise": bytes(range(200, 256)),
    "not json": b"{'w'}",
    "a list": [],
    "deep": b"[" * 100_000,
    "no dtype": {"w": {"shape": [2, 3], "data_offsets": [0, 24]}},
    "an unknown dtype": {"w": ONE["w"] | {"dtype": "F33"}},
    "a negative shape": {"w": ONE["w"] | {"shape": [-2, -3]}},
    "another shape": {"w": ONE["w"] | {"shape": [2, 4]}},
    "a huge shape": {"w": ONE["w"] | {"shape": [2**62, 2**62]}},
    "a shape that overflows to the right size": {"w": ONE["w"] | {"shape": [2**63, 2, 6]}},
    "offsets past the end": {"w": ONE["w"] | {"data_offsets": [24, 48]}},
    "offsets backwards": {"w": ONE["w"] | {"data_offsets": [24, 0]}},
    "two in one place": ONE | {"v": ONE["w"]},
}


@pytest.mark.parametrize("name", GARBAGE)
def test_a_garbage_header_is_refused(name: str, tmp_path: Path) -> None:
    assert_refused(write_raw(tmp_path / "model.safetensors", GARBAGE[name], bytes(24)))


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    assert_refused(tmp_path / "model.safetensors")


HEADER = json.dumps(ONE | {"v": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}}).encode()


damages = st.dictionaries(
    st.integers(8, len(HEADER) + 7), st.sampled_from(b'0123456789",:[]{}-.ewv BF\\\xff'), min_size=1
)


@settings(max_examples=200)
@given(damage=damages)
def test_any_damage_to_the_header_is_described_or_refused(
    damage: dict[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = bytearray(struct.pack("<Q", len(HEADER)) + HEADER + bytes(32))
    for at, byte in damage.items():
        whole[at] = byte
    file = tmp_path_factory.getbasetemp() / "model.safetensors"
    file.write_bytes(whole)
    try:
        for tensor in read_tensors([file]).values():
            mx.eval(tensor.read())
    except MistralError as error:
        assert error.message  # noqa: PT017
