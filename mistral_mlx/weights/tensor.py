"""A tensor as a file stores it: described first, read only when it is wanted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx


class Quantized(NamedTuple):
    """A matrix in MLX's affine layout: each group of `group_size` in a row is `scale * q + bias`, q in `bits` bits.

    weight is (rows, columns * bits / 32) uint32; scales and biases are (rows, columns / group_size) float32.
    """

    weight: mx.array
    scales: mx.array
    biases: mx.array
    group_size: int
    bits: int

    def expand(self) -> mx.array:
        """The matrix itself, (rows, columns) float32."""
        return mx.dequantize(self.weight, self.scales, self.biases, group_size=self.group_size, bits=self.bits)


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
