"""PyTorch's `.pth` and `.pt`, read without PyTorch: a zip of raw numbers and one pickle that says what they are.

Nothing in the file is trusted: every offset, size and stride is held against the bytes that are there before it is
used, and the pickle is interpreted, never run (pickles.py). The format is that of torch.save since PyTorch 1.6.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mistral_mlx.errors import WeightsError
from mistral_mlx.weights.formats.pickles import Storage, View, read_pickle
from mistral_mlx.weights.tensor import Tensor

_DAMAGED = "The file is damaged or its download did not finish; fetch it again."
# torch's word for a type that weights have, and our own with the NumPy type that holds its bits.
_KINDS: dict[str, tuple[str, np.dtype[Any]]] = {
    "Float": ("F32", np.dtype("<f4")), "Half": ("F16", np.dtype("<f2")), "BFloat16": ("BF16", np.dtype("<u2")),
    "Double": ("F64", np.dtype("<f8")),
}  # fmt: skip
_DIMENSIONS = 8
_LARGEST = 2**48  # more numbers than any file holds, and small enough for NumPy to count in bytes
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_PART = re.compile(r"consolidated\.(\d+)\.(pth|pt)")


def find_parts(folder: Path) -> list[Path]:
    """The files `consolidated.00.pth`, `.01.pth`, … of a folder, or `.pt`, in order; empty if it holds none.

    Raises:
        WeightsError: one in between is missing.
    """
    parts = sorted((int(m[1]), path) for path in folder.iterdir() if (m := _PART.fullmatch(path.name)))
    numbers = [number for number, _ in parts]
    if numbers != list(range(len(parts))):
        missing = next(n for n in range(len(parts) + 1) if n not in numbers or numbers.count(n) > 1)
        raise WeightsError(
            f"{folder} has {len(parts)} consolidated parts, but not one consolidated.{missing:02}.pth.",
            "Fetch the missing part, or remove what is there twice.",
        )
    return [path for _, path in parts]


def read_tensors(files: Iterable[Path]) -> dict[str, Tensor]:
    """Describe every tensor of the files, of which each holds other ones; their data stay on disk.

    Raises:
        WeightsError: a file is none of PyTorch's, is damaged or hostile, or two of them hold the same name.
    """
    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in _Archive(file).tensors().items():
            if name in tensors:
                raise WeightsError(
                    f"{name[:100]} is in {file.name} and in another part: they hold slices of tensors.",
                    "Mistral's parts hold whole tensors; join these with their publisher's program first.",
                )
            tensors[name] = tensor
    return tensors


class _Archive:
    """The zip around one state dictionary."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                magic = file.read(4)
            if magic[:1] in (b"\x80", b"c", b"("):
                raise WeightsError(
                    f"{path} was written by PyTorch before 1.6, as one bare pickle, which is not read here.",
                    "Save it anew with a current PyTorch: torch.save(torch.load(PATH, weights_only=True), NEW).",
                )
            with zipfile.ZipFile(path) as archive:
                infos = archive.infolist()
            self.entries = self._locate(infos)
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as error:
            raise self.damage(f"it is no PyTorch archive ({error})") from error

    def _locate(self, infos: list[zipfile.ZipInfo]) -> dict[str, tuple[int, int]]:
        """Where the bytes of each entry begin, and how many they are."""
        size = self.path.stat().st_size
        entries: dict[str, tuple[int, int]] = {}
        end = 0
        with self.path.open("rb") as file:
            for info in sorted(infos, key=lambda i: i.header_offset):
                name = info.filename
                if name in entries:
                    raise self.damage(f"entry {name} is there twice")
                if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                    raise self.damage(f"entry {name} is compressed, which torch.save never does")
                if info.header_offset < end:
                    raise self.damage(f"entry {name} overlaps another")
                # Names and extra fields may differ in length from the directory's, so the data's place is told here.
                file.seek(info.header_offset)
                signature, *_, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
                if signature != b"PK\3\4":
                    raise self.damage(f"entry {name} has no header")
                start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
                end = start + info.file_size
                if end > size:
                    raise self.damage(f"entry {name} of {info.file_size} bytes ends past the end of the file")
                entries[name] = (start, info.file_size)
        return entries

    def tensors(self) -> dict[str, Tensor]:
        pickles = [name for name in self.entries if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise self.damage(f"it has {len(pickles)} entries data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in self.entries and self._bytes(order) != b"little":
            raise WeightsError(
                f"{self.path} was written on a big-endian machine, and is not read here.",
                "Save it anew on another machine, or use the model's safetensors.",
            )
        try:
            state = read_pickle(self._bytes(pickles[0]), self.path.name)
        except WeightsError:
            raise
        except Exception as error:  # whatever a damaged pickle leads to
            raise self.damage(f"its pickle cannot be followed ({error!r:.200})") from error
        for key in ("model", "state_dict"):
            if isinstance(state, dict) and isinstance(state.get(key), dict):
                state = state[key]
        if not isinstance(state, dict):
            raise self.damage("it holds no dictionary of tensors")
        return {str(name): self._tensor(str(name), value, root) for name, value in state.items()}

    def _tensor(self, name: str, view: Any, root: str) -> Tensor:
        if not isinstance(view, View):
            raise WeightsError(
                f"{name[:100]} in {self.path.name} is no tensor.",
                "A file of weights holds a dictionary of tensors, by itself or under model or state_dict.",
            )
        storage, shape, strides = view.storage, view.shape, view.strides
        kind = storage.kind if isinstance(storage, Storage) else "unknown"
        if kind not in _KINDS:
            raise WeightsError(
                f"{name[:100]} in {self.path.name} is of type {kind[:100]}, which is not read here.",
                "Use a copy of the model in BF16, F16 or F32.",
            )
        kind, dtype = _KINDS[kind]
        if not (isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= _DIMENSIONS):
            raise self.damage(f"tensor {name} has no shape")
        sizes = (storage.elements, view.offset, *shape, *strides)
        if any(type(n) is not int or not 0 <= n < _LARGEST for n in sizes):
            raise self.damage(f"tensor {name} has sizes that no tensor has")
        entry = f"{root}data/{storage.key}"
        if entry not in self.entries:
            raise self.damage(f"tensor {name} lies in {entry}, which is not there")
        start, size = self.entries[entry]
        if size != storage.elements * dtype.itemsize:
            raise self.damage(f"{entry} has {size} bytes for {storage.elements} numbers of type {kind}")
        elements = math.prod(shape)
        last = view.offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if elements and (last >= storage.elements or elements > storage.elements):
            raise self.damage(f"tensor {name} reaches past the end of {entry}")
        read = partial(self._read, kind, dtype, start, size, view)
        return Tensor(name, shape, kind, elements * dtype.itemsize, None, read)

    def _read(self, kind: str, dtype: np.dtype[Any], start: int, size: int, view: View) -> mx.array:
        raw = np.memmap(self.path, np.uint8, "r", start, (size,)) if size else b""
        step, strides = dtype.itemsize, tuple(s * dtype.itemsize for s in view.strides)
        values = np.require(np.ndarray(view.shape, dtype, raw, view.offset * step, strides), requirements=["C", "A"])
        return mx.array(values).view(mx.bfloat16) if kind == "BF16" else mx.array(values)

    def _bytes(self, name: str) -> bytes:
        start, size = self.entries[name]
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(size)

    def damage(self, what: str) -> WeightsError:
        return WeightsError(f"{self.path} cannot be read: {what:.300}.", _DAMAGED)
