"""PyTorch's archives, written without PyTorch: what torch.save writes of a dictionary of tensors, at protocol 2."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np

import mistral_mlx as mm
from tests.conftest import GOLDEN
from tests.weights.conftest import golden_weights, interleave, rotated
from tests.weights.test_every_format import mistral_name, params

KINDS = {mx.bfloat16: "BFloat16", mx.float16: "Half", mx.float32: "Float"}
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"


def tensor(key: str, kind: str, elements: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """The opcodes of one tensor."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text(key) + text("cpu")
    storage += b"J" + struct.pack("<i", elements) + b"tQ"
    view = b"J" + struct.pack("<i", offset) + numbers(*shape) + numbers(*strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"\x89" + ORDERED_DICT + b"tR"


def write_pth(path: Path, tensors: Mapping[str, mx.array]) -> Path:
    """Each tensor in a storage of its own."""
    pickle = b"\x80\x02" + ORDERED_DICT + b"("
    for key, (name, value) in enumerate(tensors.items()):
        strides = tuple(int(np.prod(value.shape[i + 1 :])) for i in range(value.ndim))
        pickle += text(name) + tensor(str(key), KINDS[value.dtype], value.size, 0, value.shape, strides)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle + b"u.")
        archive.writestr("archive/byteorder", "little")
        for key, value in enumerate(tensors.values()):
            bits = value.view(mx.uint16) if value.dtype == mx.bfloat16 else value
            archive.writestr(f"archive/data/{key}", np.array(bits).tobytes())
        archive.writestr("archive/version", "3\n")
    return path


def pth_folder(name: str, folder: Path, parts: int = 1, suffix: str = "pth") -> Path:
    """A golden model as Mistral first published theirs, in bfloat16, over one file or several."""
    config = mm.load(GOLDEN / name).config
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(params(name)))
    tensors = {}
    for key, value in golden_weights(name).items():
        rows = interleave(value, heads) if (heads := rotated(key, config)) else value
        tensors[mistral_name(key)] = mx.array(rows).astype(mx.bfloat16)
    for part in range(parts):
        names = list(tensors)[part::parts]
        write_pth(folder / f"consolidated.{part:02}.{suffix}", {n: tensors[n] for n in names})
    return folder
