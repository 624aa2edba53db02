"""GGUF, version 2 and 3: a bounded walk of the header, and where each tensor lies.

Every count in the header is held against the bytes that are left before anything of that size is made, so what a
damaged or hostile file can cost is bounded by its own length.
"""

from __future__ import annotations

import math
import mmap
import struct
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mistral_mlx.errors import WeightsError
from mistral_mlx.weights.ggml import BLOCKS, PACKED, TYPE_NAMES, read_blocks, scale_dtype
from mistral_mlx.weights.names import half_split
from mistral_mlx.weights.tensor import Packed, Tensor

_DAMAGED = "The file is damaged or its download did not finish; fetch it again."


@dataclass(frozen=True)
class Entry:
    """One line of the tensor directory. `shape` is (out, in): GGUF itself lists it the other way round."""

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Gguf:
    """The header of a file: metadata, and where each tensor lies."""

    path: Path
    metadata: dict[str, Any]
    entries: dict[str, Entry]

    def tensor(self, gguf_name: str, name: str, heads: int | None = None) -> Tensor:
        """Describe a tensor under the name `name`.

        Args:
            heads: its rows belong to that many heads, in each of which rotated pairs lie side by side; they are read
                half-split, the first of every pair before the second.
        """
        entry = self.entries[gguf_name]
        return Tensor(
            name=name,
            shape=entry.shape,
            stored=entry.kind,
            nbytes=entry.nbytes,
            layout=PACKED[entry.kind][0] if entry.kind in PACKED else None,
            read=lambda: self._read(entry, heads),
            scales=scale_dtype(entry.kind),
        )

    def _read(self, entry: Entry, heads: int | None) -> mx.array | Packed:
        raw = np.memmap(self.path, np.uint8, "r", entry.offset, (entry.nbytes,))
        data = raw.reshape(*entry.shape[:-1], -1)
        return read_blocks(entry.kind, half_split(data, heads) if heads else data)


def read_header(path: Path) -> Gguf:
    """Walk the header of a GGUF file.

    Raises:
        WeightsError: not GGUF, damaged, cut short, or a tensor has a type that is not read here.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Walk(path, data).header()
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise WeightsError(f"{path} cannot be read: {error}.", _DAMAGED) from error


# struct codes of the metadata value types 0 to 12; 8 and 9 are strings and arrays.
_SCALARS = "BbHhIif?..Qqd"
_STRING, _ARRAY = 8, 9


class _Walk:
    """A position in the header that never passes the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def header(self) -> Gguf:
        if self.data[:4] != b"GGUF":
            raise WeightsError(
                f"{self.path} is not a GGUF file.", "Give a model folder, or a .gguf, .safetensors or .pth file."
            )
        self.at = 4
        version = self.scalar("I")
        if version not in (2, 3):
            raise WeightsError(
                f"{self.path} is GGUF version {version}; 2 and 3 are read here.",
                "Convert it anew with a current llama.cpp (little-endian).",
            )
        tensors, keys = self.scalar("Q"), self.scalar("Q")
        self.claim(keys * 13 + tensors * 24)  # the shortest that each can be
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self.string()
            if key in metadata:
                raise self.damage(f"the key {key} appears twice")
            metadata[key] = self.value(self.scalar("I"))
        directory = [self.entry() for _ in range(tensors)]
        return Gguf(self.path, metadata, self.place(directory, metadata.get("general.alignment", 32)))

    def entry(self) -> Entry:
        name = self.string()
        dims = self.scalar("I")
        if not 1 <= dims <= 4:
            raise self.damage(f"tensor {name} has {dims} dimensions")
        shape = tuple(self.scalar("Q") for _ in range(dims))[::-1]
        number, offset = self.scalar("I"), self.scalar("Q")
        kind = TYPE_NAMES.get(number, f"number {number}")
        if kind not in BLOCKS:
            raise WeightsError(
                f"Tensor {name} in {self.path.name} is of type {kind}, which is not read here.",
                "Fetch the model in another type: Q4_K_M, Q8_0 and F16 are common.",
            )
        elements, size = BLOCKS[kind]
        if 0 in shape or shape[-1] % elements or (elements > 1 and len(shape) < 2):
            raise self.damage(f"tensor {name} of type {kind} has shape {shape}")
        return Entry(name, shape, kind, offset, math.prod(shape) // elements * size)

    def place(self, directory: list[Entry], alignment: Any) -> dict[str, Entry]:
        """The directory with offsets from the start of the file, each tensor wholly inside it."""
        if not isinstance(alignment, int) or alignment < 1:
            raise self.damage(f"alignment is {alignment!r}")
        start = -(-self.at // alignment) * alignment
        entries: dict[str, Entry] = {}
        for e in directory:
            if e.name in entries:
                raise self.damage(f"tensor {e.name} appears twice")
            if start + e.offset + e.nbytes > len(self.data):
                raise self.damage(f"tensor {e.name} of {e.nbytes} bytes ends past the end of the file")
            entries[e.name] = Entry(e.name, e.shape, e.kind, start + e.offset, e.nbytes)
        return entries

    def value(self, kind: int, *, nested: bool = False) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY and not nested:
            of, count = self.scalar("I"), self.scalar("Q")
            if of == _STRING:
                self.claim(count * 8)
                return [self.string() for _ in range(count)]
            code = self.code(of)
            size = struct.calcsize(code)
            self.claim(count * size)
            values = array("B" if code == "?" else code, self.data[self.at : self.at + count * size])
            self.at += count * size
            return values
        return self.scalar(self.code(kind))

    def code(self, kind: int) -> str:
        code = _SCALARS[kind] if kind < len(_SCALARS) else "."
        if code == ".":
            raise self.damage(f"a metadata value is of unknown type {kind}")
        return code

    def scalar(self, code: str) -> Any:
        size = struct.calcsize(code)
        self.claim(size)
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += size
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        self.claim(length)
        raw = self.data[self.at : self.at + length]
        self.at += length
        return raw.decode("utf-8", errors="replace")

    def claim(self, size: int) -> None:
        if size > len(self.data) - self.at:
            raise self.damage("its header runs past the end of the file")

    def damage(self, what: str) -> WeightsError:
        return WeightsError(f"{self.path} is damaged: {what}.", _DAMAGED)
