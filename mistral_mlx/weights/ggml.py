"""ggml's block types, by which GGUF stores matrices: kept packed where MLX has the same layout, else read as floats.

A row is a sequence of blocks. What MLX can express is `scale * q + bias` over groups, or a float of 4 bits times its
group's scale; repacking it rounds nothing. The rest is dequantized by the `gguf` package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mistral_mlx.weights.tensor import Layout, Packed, Quantized

# ggml.h, enum ggml_type. Gaps in the numbers are types that were withdrawn.
TYPE_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 4: "Q4_2", 5: "Q4_3", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64",
    28: "F64", 29: "IQ1_M", 30: "BF16", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 34: "TQ1_0", 35: "TQ2_0",
    36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
# Elements and bytes of a block, for every type that is read.
BLOCKS = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q1_0": (128, 18), "Q4_0": (32, 18), "Q4_1": (32, 20),
    "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34), "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144),
    "Q5_K": (256, 176), "Q6_K": (256, 210), "IQ1_S": (256, 50), "IQ1_M": (256, 56), "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74), "IQ2_S": (256, 82), "IQ3_XXS": (256, 98), "IQ3_S": (256, 110), "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136), "TQ1_0": (256, 54), "TQ2_0": (256, 66), "MXFP4": (32, 17), "NVFP4": (64, 36),
}  # fmt: skip
_PIECE = 2**22  # elements dequantized at a time, for the library takes several times their bytes


def read_blocks(kind: str, data: np.ndarray) -> mx.array | Packed:
    """A tensor of a type in BLOCKS from its bytes.

    Args:
        data: (..., bytes of a row) uint8; two dimensions if the type is quantized.

    Returns:
        Quantized if the type is in PACKED, an array of the stored float type, or Blocks.
    """
    if kind == "BF16":
        return mx.array(data.view(np.uint16)).view(mx.bfloat16)
    if kind in ("F32", "F16"):
        return mx.array(data.view(np.float32 if kind == "F32" else np.float16))
    if kind in PACKED:
        layout, parts = PACKED[kind]
        with np.errstate(invalid="ignore", over="ignore"):  # a scale that is not a number stays one
            return _pack(layout, *parts(data.reshape(len(data), -1, BLOCKS[kind][1])))
    return Blocks(kind, data)


class Blocks(NamedTuple):
    """A matrix of a type that MLX has no layout for: (rows, bytes of a row) uint8."""

    kind: str
    data: np.ndarray

    def rows(self, start: int, stop: int) -> Blocks:
        return Blocks(self.kind, self.data[start:stop])

    def expand(self) -> mx.array:
        # Imported here: it takes a second, and most files need none of it.
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        elements, size = BLOCKS[self.kind]
        count, columns = len(self.data), self.data.shape[1] // size * elements
        values = mx.zeros((count, columns))
        step = max(1, _PIECE // columns)
        for start in range(0, count, step):
            with np.errstate(invalid="ignore", over="ignore"):
                piece = dequantize(self.data[start : start + step], GGMLQuantizationType[self.kind])
            values[start : start + step] = mx.array(piece)
            mx.eval(values)  # one by one they are written in place
        return values


def scale_dtype(kind: str) -> mx.Dtype | None:
    """The type that holds the scales and biases of a type in PACKED exactly; None where scales are no floats."""
    if kind not in PACKED or PACKED[kind][0].mode != "affine":
        return None
    return mx.float32 if kind.endswith("_K") else mx.float16  # products of a half and six bits, or halves


# ---- the same numbers in MLX's layout -------------------------------------------------------------------------------
# Each takes (rows, blocks, bytes of a block) uint8, and gives values, one in a byte, with scales and biases of groups.

Parts = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def _q1_0(data: np.ndarray) -> Parts:
    scales = _half(data[..., :2])  # a bit says whether it is added or subtracted
    return np.unpackbits(data[..., 2:], axis=-1, bitorder="little"), 2 * scales, -scales


def _q4_0(data: np.ndarray) -> Parts:
    scales = _half(data[..., :2])
    return _nibbles(data[..., 2:]), scales, -8 * scales


def _q4_1(data: np.ndarray) -> Parts:
    return _nibbles(data[..., 4:]), _half(data[..., :2]), _half(data[..., 2:4])


def _q5_0(data: np.ndarray) -> Parts:
    scales = _half(data[..., :2])
    return _nibbles(data[..., 6:]) | _fifth(data[..., 2:6]), scales, -16 * scales


def _q5_1(data: np.ndarray) -> Parts:
    return _nibbles(data[..., 8:]) | _fifth(data[..., 4:8]), _half(data[..., :2]), _half(data[..., 2:4])


def _q8_0(data: np.ndarray) -> Parts:
    scales = _half(data[..., :2])
    return data[..., 2:] ^ 0x80, scales, -128 * scales  # signed to offset binary


def _q4_k(data: np.ndarray) -> Parts:
    return _nibbles(data[..., 16:].reshape(*data.shape[:2], 4, 32)), *_sub_scales(data)


def _q5_k(data: np.ndarray) -> Parts:
    values = _nibbles(data[..., 48:].reshape(*data.shape[:2], 4, 32)).reshape(*data.shape[:2], 8, 32)
    # Bit i of byte j is the fifth of value j in group i.
    fifth = (data[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1) << 4
    return values | fifth, *_sub_scales(data)


def _mxfp4(data: np.ndarray) -> Parts:
    return _nibbles(data[..., 1:]), data[..., 0], None


def _nvfp4(data: np.ndarray) -> Parts:
    scales = data[..., :4] & 0x7F  # unsigned there, and zero where E4M3 has NaN
    scales[scales == 0x7F] = 0
    return _nibbles(data[..., 4:].reshape(*data.shape[:2], 4, 8)), scales, None


PACKED: dict[str, tuple[Layout, Callable[[np.ndarray], Parts]]] = {
    "Q1_0": (Layout(128, 1), _q1_0),
    "Q4_0": (Layout(32, 4), _q4_0),
    "Q4_1": (Layout(32, 4), _q4_1),
    "Q5_0": (Layout(32, 5), _q5_0),
    "Q5_1": (Layout(32, 5), _q5_1),
    "Q8_0": (Layout(32, 8), _q8_0),
    "Q4_K": (Layout(32, 4), _q4_k),
    "Q5_K": (Layout(32, 5), _q5_k),
    "MXFP4": (Layout(32, 4, "mxfp4"), _mxfp4),
    "NVFP4": (Layout(16, 4, "nvfp4"), _nvfp4),
}


def _pack(layout: Layout, values: np.ndarray, scales: np.ndarray, biases: np.ndarray | None) -> Quantized:
    rows = len(values)
    weight = np.ascontiguousarray(_join(values, layout.bits)).reshape(rows, -1).view(np.uint32)
    return Quantized(
        mx.array(weight),
        mx.array(scales.reshape(rows, -1)),
        None if biases is None else mx.array(biases.reshape(rows, -1)),
        layout,
    )


def _join(values: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of so many bits, each in a byte, side by side from the lowest bit on: eight of them in `bits` bytes."""
    if bits == 8:
        return values
    if bits == 4:
        pairs: np.ndarray = values[..., 0::2] | values[..., 1::2] << 4
        return pairs
    words = np.zeros(values.size // 8, np.uint64)
    for i in range(8):
        words |= values.reshape(-1, 8)[:, i].astype(np.uint64) << np.uint64(i * bits)
    return words.view(np.uint8).reshape(-1, 8)[:, :bits]


def _half(data: np.ndarray) -> np.ndarray:
    """The float16 in the two bytes of each block, (rows, blocks) float32."""
    halves: np.ndarray = np.ascontiguousarray(data).view(np.float16)[..., 0]
    return halves.astype(np.float32)


def _nibbles(data: np.ndarray) -> np.ndarray:
    """The lower nibbles of a run of bytes, then its upper ones, (..., 2 * bytes)."""
    return np.concatenate([data & 0x0F, data >> 4], axis=-1)


def _fifth(data: np.ndarray) -> np.ndarray:
    """From 32 bits in four bytes the fifth bits of 32 values, in place."""
    return np.unpackbits(data, axis=-1, bitorder="little") << 4


def _sub_scales(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and biases of the eight groups in a block of Q4_K or Q5_K, (rows, blocks, 8) float32 each.

    Twelve bytes a, b, c of four: six bits of each of the groups 0-3 are in a (scale) and b (minimum); of the groups 4-7
    four bits are in the nibbles of c and two at the top of a and b (ggml-quants.c, get_scale_min_k4).
    """
    a, b, c = (data[..., i : i + 4] for i in (4, 8, 12))
    scales = np.concatenate([a & 0x3F, c & 0x0F | a >> 2 & 0x30], axis=-1)
    minima = np.concatenate([b & 0x3F, c >> 4 | b >> 2 & 0x30], axis=-1)
    return _half(data[..., :2])[..., None] * scales, -_half(data[..., 2:4])[..., None] * minima
