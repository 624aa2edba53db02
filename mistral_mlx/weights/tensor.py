"""A tensor as a file stores it: described first, read only when it is wanted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import mlx.core as mx

# How files name the types of floats.
DTYPES = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}


@dataclass(frozen=True)
class Layout:
    """How MLX packs a matrix: numbers of `bits` bits, groups of `group_size` in a row sharing a scale.

    In mode "affine" an element is `scale * q + bias`; in "mxfp4", "mxfp8" and "nvfp4" it is a float of so many bits
    times its scale, and there are no biases. (Table in the documentation of mlx.core.quantize.)
    """

    group_size: int
    bits: int
    mode: str = "affine"

    def __str__(self) -> str:
        return f"{self.bits} bits / {self.group_size}" if self.mode == "affine" else self.mode

    def nbytes(self, elements: int, itemsize: int) -> int:
        """Bytes of a matrix in memory, scales and biases being numbers of `itemsize` bytes, floats' scales of one."""
        per_group = 2 * itemsize if self.mode == "affine" else 1
        return elements * self.bits // 8 + elements // self.group_size * per_group


class Packed(Protocol):
    """A matrix in a form that numbers have to be made from, a few rows at a time or all of them; a tuple of parts."""

    def __iter__(self) -> Iterator[Any]: ...

    def rows(self, start: int, stop: int) -> Packed:
        """Some of its rows, in the same form."""
        ...

    def expand(self) -> mx.array:
        """The matrix itself, (rows, columns) float32."""
        ...


class Quantized(NamedTuple):
    """A packed matrix.

    weight is (rows, columns * bits / 32) uint32; scales and biases are (rows, columns / group_size).
    """

    weight: mx.array
    scales: mx.array
    biases: mx.array | None
    layout: Layout

    def rows(self, start: int, stop: int) -> Quantized:
        weight, scales, biases, layout = self
        cut = slice(start, stop)
        return Quantized(weight[cut], scales[cut], None if biases is None else biases[cut], layout)

    def cast(self, dtype: mx.Dtype) -> Quantized:
        """The same with scales and biases of another type, where they are floats: in affine mode."""
        if self.biases is None:
            return self
        return self._replace(scales=self.scales.astype(dtype), biases=self.biases.astype(dtype))

    def expand(self) -> mx.array:
        # MLX computes in the precision of the scales, whatever type it is asked for.
        return mx.dequantize(*self.cast(mx.float32)[:3], **asdict(self.layout), dtype=mx.float32)


@dataclass(frozen=True)
class Tensor:
    """What a file says of one of its tensors.

    Attributes:
        name: its name in Hugging Face's scheme.
        shape: its logical shape, matrices as (out, in).
        stored: the file's own word for its type, such as BF16 or Q4_0.
        nbytes: bytes in the file.
        layout: how it is packed, if `read` gives a Quantized.
        read: bring it into memory, as it is stored; at most once.
        scales: the type of a packed matrix's scales, where they are floats.
    """

    name: str
    shape: tuple[int, ...]
    stored: str
    nbytes: int
    layout: Layout | None
    read: Callable[[], mx.array | Packed]
    scales: mx.Dtype | None = None

    @property
    def elements(self) -> int:
        """Numbers it stands for."""
        return math.prod(self.shape)

    def array(self) -> mx.array:
        """`read`, and all numbers made where it is packed."""
        value = self.read()
        return value if isinstance(value, mx.array) else value.expand()
