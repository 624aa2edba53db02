"""FP8 checkpoints in their spellings, written and decoded here anew."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mistral_mlx.errors import ConfigError, MistralError, WeightsError
from mistral_mlx.weights.checkpoint import open_checkpoint
from tests.conftest import GOLDEN
from tests.weights.conftest import assert_refused, golden_weights, interleave, rotated
from tests.weights.test_every_format import mistral_name, params

Stored = tuple[str, np.ndarray]  # safetensors' word for the type, and the bytes as numbers


def e4m3() -> np.ndarray:
    """What the 256 bytes stand for (OCP 8-bit floating point, E4M3: no infinities, one NaN of each sign)."""
    byte = np.arange(256)
    sign, exponent, mantissa = np.where(byte > 127, -1.0, 1.0), byte >> 3 & 15, byte & 7
    values = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    return np.where(byte & 127 == 127, np.nan, sign * values)


VALUES = e4m3()


def to_e4m3(x: np.ndarray) -> np.ndarray:
    """The nearest of the values, as bytes."""
    finite = np.where(np.isnan(VALUES), np.inf, VALUES)
    return np.abs(x[..., None] - finite).argmin(-1).astype(np.uint8)


def test_bytes_are_decoded_by_the_standard() -> None:
    ours = np.array(mx.from_fp8(mx.array(np.arange(256, dtype=np.uint8)), dtype=mx.float32))
    np.testing.assert_array_equal(ours, VALUES.astype(np.float32))


def quantized(matrix: np.ndarray, style: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bytes, scale, and the values that they stand for, in blocks of 16 where there are blocks."""
    if style == "blocks":
        rows, columns = (-(-n // 16) for n in matrix.shape)
        scale = np.array([[np.abs(matrix[16 * i : 16 * i + 16, 16 * j : 16 * j + 16]).max() for j in range(columns)]
                          for i in range(rows)], np.float32) / 448  # fmt: skip
        whole = np.kron(scale, np.ones((16, 16), np.float32))[: matrix.shape[0], : matrix.shape[1]]
    elif style == "rows":
        scale = (np.abs(matrix).max(1, keepdims=True) / 448).astype(np.float32)
        whole = scale
    else:
        scale = np.float32(np.abs(matrix).max() / 448)
        whole = scale
    data = to_e4m3(matrix / whole)
    return data, np.asarray(scale), VALUES[data].astype(np.float32) * whole


def fp8_folder(style: str, folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """The golden model "full" in FP8, and its values by Hugging Face's names, in its order."""
    from mistral_mlx.config import ModelConfig

    folder.mkdir()
    keys = json.loads((GOLDEN / "full" / "config.json").read_text())
    config = ModelConfig.from_hf(keys)
    tensors: dict[str, Stored] = {}
    values: dict[str, np.ndarray] = {}
    word = {"hugging face": "weight_scale_inv", "mistral": "qscale_weight", "rows": "weight_scale"}.get(
        style, "weight_scale_inv"
    )
    for name, value in golden_weights("full").items():
        heads = rotated(name, config) if style == "mistral" else 0
        own = mistral_name(name) if style == "mistral" else name
        if not name.endswith("proj.weight"):
            tensors[own] = ("BF16", np.array(mx.array(value).astype(mx.bfloat16).view(mx.uint16)))
            values[name] = value
            continue
        data, scale, values[name] = quantized(value, style)
        tensors[own] = ("F8_E4M3", interleave(data, heads) if heads else data)
        module = own.removesuffix(".weight")
        tensors[f"{module}.{word}"] = ("F32", scale)
        tensors[f"{module}.{'qscale_act' if style == 'mistral' else 'activation_scale'}"] = ("F32", np.float32(0.5))
    if style == "mistral":
        table = params("full") | {"quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}}
        (folder / "params.json").write_text(json.dumps(table))
    else:
        table = {
            "rows": {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {}},
            "blocks": {"quant_method": "fp8", "weight_block_size": [16, 16]},
            "hugging face": {"quant_method": "fp8", "activation_scheme": "static"},
        }[style]
        (folder / "config.json").write_text(json.dumps(keys | {"quantization_config": table}))
    write_safetensors(folder / ("consolidated.safetensors" if style == "mistral" else "model.safetensors"), tensors)
    return folder, values


def write_safetensors(file: Path, tensors: dict[str, Stored]) -> None:
    """Any type whose bytes are given."""
    header: dict[str, Any] = {}
    data = b""
    for name, (kind, value) in tensors.items():
        raw = np.ascontiguousarray(value).tobytes()
        header[name] = {"dtype": kind, "shape": np.shape(value), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize("style", ["hugging face", "mistral", "rows", "blocks"])
def test_values_are_bytes_times_scales(style: str, tmp_path: Path) -> None:
    folder, values = fp8_folder(style, tmp_path / "model")
    for name, tensor in open_checkpoint(folder).tensors.items():
        np.testing.assert_array_equal(np.array(tensor.array().astype(mx.float32)), values[name], err_msg=name)


@pytest.mark.parametrize("style", ["hugging face", "mistral", "rows", "blocks"])
def test_not_a_number_is_read_as_such(style: str, tmp_path: Path) -> None:
    folder, _ = fp8_folder(style, tmp_path / "model")
    (file,) = folder.glob("*.safetensors")
    raw = bytearray(file.read_bytes())
    (length,) = struct.unpack("<Q", raw[:8])
    entry = next(e for e in json.loads(raw[8 : 8 + length]).values() if e["dtype"] == "F8_E4M3")
    raw[8 + length + entry["data_offsets"][0]] = 0x7F
    file.write_bytes(raw)
    found = [mx.isnan(t.array().astype(mx.float32)).sum().item() for t in open_checkpoint(folder).tensors.values()]
    assert sum(found) == 1


Q = "model.layers.0.self_attn.q_proj"
Change = Callable[[dict[str, Stored]], Any]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda t: t.pop(f"{Q}.weight_scale_inv"), "no scales"),
        (lambda t: t.update({f"{Q}.weight_scale": t[f"{Q}.weight_scale_inv"]}), "2 scales"),
        (lambda t: t.update({f"{Q}.weight_scale_inv": ("F32", np.ones((3, 5), np.float32))}), "(3, 5)"),
        (lambda t: t.update({f"{Q}.weight_scale_inv": ("U8", np.ones((), np.uint8))}), "U8"),
        (lambda t: t.update({f"{Q}.weight": ("F8_E4M3", t[f"{Q}.weight"][1][:, :16])}), "16"),
        (lambda t: t.pop(f"{Q}.weight"), "missing"),
    ],
)  # fmt: skip
def test_scales_that_do_not_fit_are_refused(change: Change, word: str, tmp_path: Path) -> None:
    folder, _ = fp8_folder("hugging face", tmp_path / "model")
    raw = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    kinds = {"BF16": np.uint16, "F32": np.float32, "F8_E4M3": np.uint8}
    tensors: dict[str, Stored] = {}
    for name, entry in json.loads(raw[8 : 8 + length]).items():
        data = np.frombuffer(raw[8 + length :][slice(*entry["data_offsets"])], kinds[entry["dtype"]])
        tensors[name] = entry["dtype"], data.reshape(entry["shape"])
    change(tensors)
    write_safetensors(folder / "model.safetensors", tensors)
    assert_refused(folder, WeightsError, Q, word)


def test_fp8_that_the_configuration_does_not_speak_of_is_refused(tmp_path: Path) -> None:
    folder, _ = fp8_folder("hugging face", tmp_path / "model")
    shutil.copy(GOLDEN / "full" / "config.json", folder)
    assert_refused(folder, WeightsError, "weight_scale_inv")


def test_bytes_without_a_scale_are_no_weights(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "window", tmp_path / "model"))
    tensors: dict[str, Stored] = {
        name: ("F8_E4M3", np.zeros(value.shape, np.uint8)) for name, value in golden_weights("window").items()
    }
    write_safetensors(folder / "model.safetensors", tensors)
    assert_refused(folder, WeightsError, "is of type F8_E4M3")


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ({"quant_method": "fp8", "weight_block_size": [16, 32]}, "weight_block_size"),
        ({"quant_method": "fp8", "weight_block_size": 16}, "weight_block_size"),
        ({"quant_method": "fp8", "weight_block_size": [0, 0]}, "weight_block_size"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
    ],
)
def test_other_quantization_is_refused(table: dict[str, Any], word: str, tmp_path: Path) -> None:
    folder, _ = fp8_folder("hugging face", tmp_path / "model")
    keys = json.loads((folder / "config.json").read_text()) | {"quantization_config": table}
    (folder / "config.json").write_text(json.dumps(keys))
    assert_refused(folder, ConfigError, word)


@pytest.mark.parametrize("table", [{"qformat_weight": "nvfp4"}, "fp8", [1]], ids=str)
def test_other_quantization_in_params_is_refused(table: Any, tmp_path: Path) -> None:
    folder, _ = fp8_folder("mistral", tmp_path / "model")
    (folder / "params.json").write_text(json.dumps(params("full") | {"quantization": table}))
    assert_refused(folder, MistralError, "quantized as")
