"""Weights in FP8 (e4m3): floats of 8 bits, and scales that they are multiplied by. They are read as floats.

Three spellings of one thing: `qscale_weight` in Mistral's own files, `weight_scale_inv` in transformers' (its name
notwithstanding, it multiplies), `weight_scale` in compressed-tensors'. A scale belongs to the whole matrix, to each
row, or to each square block of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx

from mistral_mlx.errors import ConfigError, WeightsError
from mistral_mlx.weights.tensor import Tensor

STORED = "FP8"  # with its scale, where safetensors say F8_E4M3 of the bytes alone
_SCALES = ("qscale_weight", "weight_scale_inv", "weight_scale")
_OF_ACTIVATIONS = ("qscale_act", "activation_scale", "input_scale")  # activations are not quantized here
_BLOCK = 128  # where nothing states it; every release has this


def block_size(keys: Mapping[str, Any]) -> int | None:
    """The side of the blocks that a configuration states for FP8 weights; None if its weights are not FP8.

    Args:
        keys: config.json's `quantization_config`, or `quantization` of params.json.

    Raises:
        ConfigError: blocks that are not square.
    """
    method, form = keys.get("quant_method"), keys.get("format")
    fp8 = method == "fp8" or (method == "compressed-tensors" and form == "float-quantized")
    if not fp8 and keys.get("qformat_weight") != "fp8_e4m3":
        return None
    block = keys.get("weight_block_size") or [_BLOCK, _BLOCK]
    if not isinstance(block, list) or len(set(map(str, block))) != 1 or not isinstance(block[0], int) or block[0] < 1:
        raise ConfigError(f"weight_block_size is {block!r}, which is not read here.", "Blocks must be square.")
    return block[0]


def join_scales(tensors: dict[str, Tensor], block: int) -> dict[str, Tensor]:
    """Put FP8 matrices and their scales together, and leave out those of activations.

    Raises:
        WeightsError: a scale is missing, or does not fit.
    """
    joined = {name: t for name, t in tensors.items() if name.rpartition(".")[2] not in _OF_ACTIVATIONS}
    for name, weight in tensors.items():
        if weight.stored != "F8_E4M3":
            continue
        module = name.rpartition(".")[0]
        scales = [joined.pop(f"{module}.{word}") for word in _SCALES if f"{module}.{word}" in joined]
        if len(scales) != 1 or len(weight.shape) != 2:
            raise WeightsError(
                f"{name} is FP8 and has {len(scales) or 'no'} scales.",
                "Files of two models may be mixed up; fetch them again.",
            )
        joined[name] = _join(weight, scales[0], block)
    return joined


def _join(weight: Tensor, scale: Tensor, block: int) -> Tensor:
    rows, columns = weight.shape
    blocks = (-(-rows // block), -(-columns // block))
    if scale.stored not in ("F32", "F16", "BF16") or scale.shape not in ((), (1,), (rows,), (rows, 1), blocks):
        raise WeightsError(
            f"{scale.name} is {scale.stored} {scale.shape} for a matrix of {rows} x {columns}.",
            f"Read are one number, one for each row, or one for each block of {block} x {block}.",
        )
    nbytes = weight.nbytes + scale.nbytes
    return replace(weight, stored=STORED, nbytes=nbytes, read=partial(_read, weight, scale, block))


class Scaled(NamedTuple):
    """An FP8 matrix.

    weight is (rows, columns) uint8; scale is float32: (1, 1), (rows, 1), or one number for each square of `block`,
    the first of which begin `offset` rows above the matrix.
    """

    weight: mx.array
    scale: mx.array
    block: int
    offset: int = 0

    def rows(self, start: int, stop: int) -> Scaled:
        weight, scale, block, offset = self
        if scale.shape[0] == weight.shape[0] and scale.shape[1] == 1:
            scale = scale[start:stop]
        elif scale.size > 1:
            first = (offset + start) // block
            scale, offset = scale[first : -(-(offset + stop) // block)], (offset + start) % block
        return Scaled(weight[start:stop], scale, block, offset)

    def expand(self) -> mx.array:
        rows, columns = self.weight.shape
        values, scale = mx.from_fp8(self.weight, dtype=mx.float32), self.scale
        if scale.size > 1 and scale.shape != (rows, 1):
            scale = mx.repeat(scale, self.block, 1)[:, :columns]
            scale = mx.repeat(scale, self.block, 0)[self.offset : self.offset + rows]
        return values * scale


def _read(weight: Tensor, scale: Tensor, block: int) -> Scaled:
    factor = scale.array().astype(mx.float32)
    return Scaled(weight.array(), factor.reshape(-1, 1) if factor.ndim < 2 else factor, block)
