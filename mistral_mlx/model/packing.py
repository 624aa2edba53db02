"""Keys and values in 8 or 4 bits: MLX's affine quantization, in groups along each head.

A number x of a group is stored as round((x - bias) / scale), in words of 32 bits, as in mlx-lm's QuantizedKVCache. Each
token is packed on its own, and all that attention ever sees of it is what was stored, in its own chunk too. So a layer
gives the same however a text is cut, but for numbers halfway between two steps: sums in another order may round those
the other way, and later layers see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from mistral_mlx.errors import InputError

_BITS = (8, 4)
_GROUP_SIZES = (64, 32)


@dataclass(frozen=True)
class Packing:
    """How keys and values are stored."""

    bits: int
    group_size: int

    @classmethod
    def of(cls, bits: int | None, head_dim: int) -> Packing | None:
        """The packing of heads of this dimension in so many bits, in groups of 64 where these divide it, else of 32.

        Returns:
            None for None, which leaves them as they are.

        Raises:
            InputError: other bits than 8 or 4, or no group divides the dimension.
        """
        if bits is None:
            return None
        if type(bits) is not int or bits not in _BITS:
            raise InputError(f"kv_bits is {bits!r}.", "Give 8, 4, or None.")
        for group_size in _GROUP_SIZES:
            if head_dim % group_size == 0:
                return cls(bits, group_size)
        raise InputError(
            f"Keys and values are packed in groups of 64 or 32; this model's head_dim is {head_dim}.",
            "Leave out kv_bits.",
        )

    def row_bytes(self, head_dim: int, itemsize: int) -> int:
        """Bytes of one packed row: its words, and a scale and a bias of `itemsize` for each group."""
        return head_dim * self.bits // 8 + head_dim // self.group_size * 2 * itemsize

    def pack(self, keys: mx.array, values: mx.array) -> list[mx.array]:
        """Words, scales and biases of keys (B, heads, n, head_dim), then of values; each is (B, heads, n, …)."""
        return [part for x in (keys, values) for part in mx.quantize(x, self.group_size, self.bits)]

    def split(self, arrays: Sequence[mx.array]) -> tuple[Packed, Packed]:
        """What `pack` returned as keys and values, still packed."""
        keys, values = arrays[:3], arrays[3:]
        return Packed(self, *keys), Packed(self, *values)

    def unpack(self, arrays: Sequence[mx.array]) -> tuple[mx.array, mx.array]:
        """What `pack` returned as keys and values, each (B, heads, n, head_dim)."""
        keys, values = (mx.dequantize(*x.parts, self.group_size, self.bits) for x in self.split(arrays))
        return keys, values

    def fits(self, arrays: Sequence[mx.array]) -> bool:
        """Whether these are packed so."""
        return len(arrays) == 6 and all(
            x.words.dtype == mx.uint32 and 32 * x.words.shape[3] == self.bits * self.group_size * x.scales.shape[3]
            for x in self.split(arrays)
        )


class Packed(NamedTuple):
    """Rows (B, heads, n, head_dim), packed."""

    packing: Packing
    words: mx.array
    scales: mx.array
    biases: mx.array

    @property
    def parts(self) -> tuple[mx.array, mx.array, mx.array]:
        return self.words, self.scales, self.biases

    def multiply(self, x: mx.array, *, transpose: bool) -> mx.array:
        """x (B, heads, m, head_dim) times the rows transposed, or x (B, heads, m, n) times the rows."""
        group_size, bits = self.packing.group_size, self.packing.bits
        return mx.quantized_matmul(x, *self.parts, transpose=transpose, group_size=group_size, bits=bits)
