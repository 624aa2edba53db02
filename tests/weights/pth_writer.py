"""PyTorch's archives, written without PyTorch: a zip, and a pickle put together from instructions."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from tests.weights.test_every_format import consolidated

KINDS = {"float32": "Float", "float16": "Half", "uint16": "BFloat16"}  # bfloat16 by its bits: NumPy has none
REBUILD = "torch._utils _rebuild_tensor_v2"
SIX = bytes(range(24))  # a storage of six floats
Infos = list[zipfile.ZipInfo]


@dataclass
class Name:
    """Something to import: module and name, with a space between."""

    text: str


@dataclass
class Call:
    function: str
    arguments: Any


@dataclass
class Storage:
    kind: Any = "Float"
    key: Any = "0"
    elements: Any = 6


def program(value: Any) -> bytes:
    """The instructions that leave a value on the stack; bytes are instructions already."""
    match value:
        case bytes():
            return value
        case tuple():
            return b"(" + b"".join(map(program, value)) + b"t"
        case dict():
            return b"}(" + b"".join(program(key) + program(item) for key, item in value.items()) + b"u"
        case Name(text):
            return b"c" + text.replace(" ", "\n").encode() + b"\n"
        case Call(function, arguments):
            return program(Name(function)) + program(arguments) + b"R"
        case Storage(kind, key, elements):
            return program(("storage", Name(f"torch {kind}Storage"), key, "cpu", elements)) + b"Q"
        case _:
            return pickle.dumps(value, protocol=2)[2:-1]


def tensor(
    storage: Any = Storage(),  # noqa: B008
    offset: Any = 0,
    shape: Any = (2, 3),
    strides: Any = (3, 1),
) -> Call:
    return Call(REBUILD, (storage, offset, shape, strides, False, Call("collections OrderedDict", ())))


def entries(state: Any, data: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """What an archive holds, by name."""
    head = {"archive/data.pkl": b"\x80\x02" + program(state) + b".", "archive/byteorder": b"little"}
    return head | {f"archive/data/{key}": raw for key, raw in ({"0": SIX} if data is None else data).items()}


def pack(
    held: Mapping[str, bytes], change: Callable[[Infos], Any] = lambda infos: None, how: int = zipfile.ZIP_STORED
) -> bytes:
    """A zip, after a change to its directory."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as archive:
        for name, data in held.items():
            archive.writestr(zipfile.ZipInfo(name), data, how)
        change(archive.filelist)
    return file.getvalue()


def of_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """What an archive of these holds."""
    state = {
        name: tensor(
            Storage(KINDS[a.dtype.name], str(i), a.size), 0, a.shape, tuple(s // a.itemsize for s in a.strides)
        )
        for i, (name, a) in enumerate(arrays.items())
    }
    data = {str(i): a.tobytes() for i, a in enumerate(arrays.values())}
    return entries(state, data) | {"archive/version": b"3\n"}  # which PyTorch wants


def as_pth(folder: Path, *names: str) -> Path:
    """The folder with its safetensors turned into files of these names, in turn, each with some of the tensors."""
    stored: dict[str, mx.array] = {}
    for file in [*folder.glob("model*.safetensors"), *folder.glob("consolidated*.safetensors")]:
        stored |= dict(mx.load(str(file)))
        mx.eval(stored)
        file.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    assert {value.dtype for value in stored.values()} == {mx.bfloat16}
    arrays = {key: np.array(value.view(mx.uint16)) for key, value in sorted(stored.items())}
    for i, name in enumerate(names):
        (folder / name).write_bytes(pack(of_arrays(dict(list(arrays.items())[i :: len(names)]))))
    return folder


def pth_folder(name: str, folder: Path, parts: int = 1) -> Path:
    """A golden model as Mistral first published theirs, over one file or several with different tensors."""
    return as_pth(consolidated(name, folder), *(f"consolidated.{i:02}.pth" for i in range(parts)))
