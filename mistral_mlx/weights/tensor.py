"""A tensor as a file stores it: described first, read only when it is wanted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx


class Quantized(NamedTuple):
    """A matrix in one of MLX's quantized layouts, groups of `group_size` in a row sharing a scale.

    In mode "affine" an element is `scale * q + bias`, q in `bits` bits; in "mxfp4", "mxfp8" and "nvfp4" it is a float
    of so many bits times its scale, and there are no biases. (Table in the documentation of mlx.core.quantize.)

    weight is (rows, columns * bits / 32) uint32; scales and biases are (rows, columns / group_size).
    """

    weight: mx.array
    scales: mx.array
    biases: mx.array | None
    group_size: int
    bits: int
    mode: str

    def expand(self) -> mx.array:
        """The matrix itself, (rows, columns) float32."""
        return mx.dequantize(*self[:3], group_size=self.group_size, bits=self.bits, mode=self.mode, dtype=mx.float32)


@dataclass(frozen=True)
class Tensor:
    """What a file says of one of its tensors.

    Attributes:
        name: its name in Hugging Face's scheme.
        shape: its logical shape, matrices as (out, in).
        stored: the file's own word for its type, such as BF16 or Q4_0.
        quantized: whether `read` gives a Quantized.
        read: bring it into memory; at most once.
    """

    name: str
    shape: tuple[int, ...]
    stored: str
    nbytes: int
    quantized: bool
    read: Callable[[], mx.array | Quantized]

    @property
    def elements(self) -> int:
        """Numbers it stands for."""
        return math.prod(self.shape)

    def array(self) -> mx.array:
        """`read` where the tensor is not quantized."""
        value = self.read()
        assert isinstance(value, mx.array)
        return value
