"""Safetensors: one file, `model.safetensors` or `consolidated.safetensors`, or shards that an index lists."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import mlx.core as mx
from safetensors import SafetensorError, safe_open

from mistral_mlx.errors import WeightsError
from mistral_mlx.weights.tensor import Tensor

# Floats; FP8, which MLX reads as bytes; and parts of quantized matrices.
_TYPES = ("F32", "F16", "BF16", "F8_E4M3", "U32", "U8")


def find_files(folder: Path, stem: str = "model", suffix: str = "safetensors") -> list[Path]:
    """The weight files of a folder that begin with `stem`, in order; empty if it holds none.

    Args:
        suffix: of the files; PyTorch's shards are listed in the same way.

    Raises:
        WeightsError: the index is broken, or names a shard that is not there.
    """
    index = folder / f"{stem}.{suffix}.index.json"
    if not index.exists():
        return sorted(folder.glob(f"{stem}*.{suffix}"))
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{index} is not a valid index: {error}.", "Fetch it again.") from error
    # Names of this folder's own files only: an index must not reach outside it.
    there = {path.name for path in folder.iterdir()}
    missing = [name for name in names if name not in there]
    if missing:
        raise WeightsError(
            f"{len(missing)} of {len(names)} shards are missing in {folder}: {', '.join(map(str, missing[:3]))}"
            f"{' …' if len(missing) > 3 else ''}.",
            "The download did not finish; fetch them again.",
        )
    return [folder / name for name in names]


def read_tensors(files: list[Path]) -> dict[str, Tensor]:
    """Describe every tensor of the files; their data stay on disk.

    Raises:
        WeightsError: a file is damaged or cut short, holds a type that is not read here, or two hold the same name.
    """
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            # The library's own check of the header: sizes, overlaps, and that the file is as long as it says.
            with safe_open(file, framework="np") as header:
                entries = {name: header.get_slice(name) for name in header.keys()}  # noqa: SIM118
                described = {name: (e.get_dtype(), tuple(e.get_shape())) for name, e in entries.items()}
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{file} cannot be read: {error}.", "The file is damaged; fetch it again.") from error
        unread = {name: kind for name, (kind, _) in described.items() if kind not in _TYPES}
        if unread:
            name, kind = next(iter(unread.items()))
            raise WeightsError(
                f"{name} in {file.name} is of type {kind}, which is not read here.",
                "Use a copy of the model in BF16, F16 or F32, an MLX folder of it, or a GGUF file.",
            )
        lazy = mx.load(str(file), format="safetensors")
        assert isinstance(lazy, dict)
        for name, (kind, shape) in described.items():
            if name in tensors:
                raise WeightsError(f"{name} is stored twice in {file.parent}.", "Remove the file that is left over.")
            # Popped, so that the stored form is freed as soon as it has been converted.
            tensors[name] = Tensor(name, shape, kind, lazy[name].nbytes, None, partial(lazy.pop, name))
    return tensors
