"""From a checkpoint to a folder of MLX weights, tensor by tensor: what each becomes, and what it loses.

One tensor at a time is read, changed and put into the shard that is being filled, so that the memory taken is bounded
by the largest tensor and one shard, whatever the model's size. Knows neither tokenizers nor where the folder will lie.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import mlx.core as mx

from mistral_mlx.backend import worker_streams
from mistral_mlx.errors import InputError, WeightsError
from mistral_mlx.weights.checkpoint import Checkpoint
from mistral_mlx.weights.loading import COMPUTE_DTYPES
from mistral_mlx.weights.quantize import Recipe
from mistral_mlx.weights.quantized import MODES
from mistral_mlx.weights.tensor import DTYPES, Layout, Packed, Quantized, Tensor

SHARD_BYTES = 2**30
_PIECE = 2**19  # numbers worked on at a time: they and what becomes of them fit a core's cache

_WORDS = {dtype: word for word, dtype in DTYPES.items()}
AS_IT_WAS = "as it was"  # the note of a change that leaves a packed matrix alone

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Change:
    """What becomes of a tensor.

    Attributes:
        layout: in which it is written; None for floats.
        dtype: of floats, and of an affine layout's scales.
        note: why it is not quantized where others are.
    """

    tensor: Tensor
    layout: Layout | None
    dtype: mx.Dtype
    note: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes that are written."""
        size = self.dtype.size
        return self.layout.nbytes(self.tensor.elements, size) if self.layout else self.tensor.elements * size

    @property
    def names(self) -> list[str]:
        """What it is written as."""
        if self.layout is None:
            return [self.tensor.name]
        module = self.tensor.name.removesuffix(".weight")
        parts = ("weight", "scales", "biases") if self.layout.mode == "affine" else ("weight", "scales")
        return [f"{module}.{part}" for part in parts]


@dataclass(frozen=True)
class Record:
    """What became of a tensor.

    Attributes:
        stored, written: its type before and after, such as BF16, or "affine 4 bits / 64".
        bytes_before, bytes_after: on disk.
        error: Frobenius norm of what was lost, relative to that of the whole; 0 if nothing was; None if not told.
        cosine: of the angle between what was read and what is written.
        note: why it was not quantized where others were.
    """

    name: str
    shape: tuple[int, ...]
    stored: str
    written: str
    bytes_before: int
    bytes_after: int
    error: float | None
    cosine: float | None
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """What becomes of each tensor of a checkpoint, known before any is read; `dtype` is that of floats."""

    changes: list[Change]
    dtype: str

    @cached_property
    def shards(self) -> list[list[Change]]:
        """In which files they are written: in order, each file as full as SHARD_BYTES lets it be."""
        shards: list[list[Change]] = [[]]
        size = 0
        for change in self.changes:
            if shards[-1] and size + change.nbytes > SHARD_BYTES:
                shards.append([])
                size = 0
            shards[-1].append(change)
            size += change.nbytes
        return shards

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as they are written."""
        return sum(change.nbytes for change in self.changes)

    @property
    def parameters(self) -> int:
        """Numbers in the model."""
        return sum(change.tensor.elements for change in self.changes)

    @property
    def layouts(self) -> dict[str, Layout]:
        """The layout of every module that is written packed."""
        return {c.tensor.name.removesuffix(".weight"): c.layout for c in self.changes if c.layout}


def check_dtype(dtype: str | None) -> None:
    """Raise InputError if there is no such type."""
    if dtype is not None and dtype not in COMPUTE_DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown.", f"Choose {', '.join(COMPUTE_DTYPES)}.")


def plan_conversion(checkpoint: Checkpoint, recipe: Recipe | None, dtype: str | None = None) -> Plan:
    """Decide what becomes of each tensor.

    Args:
        recipe: how to quantize; None keeps packed matrices packed, exactly, and floats float. What is packed with as
            many bits as asked for, and scales as fine, stays as it is.
        dtype: float32, float16 or bfloat16 for floats and scales. By default scales that are there stay as they are,
            and floats take the type of the float matrices, float32 if there are several; where there are none, that
            of the scales, or bfloat16 if there are several or some matrices are neither.

    Raises:
        InputError: an unknown dtype, or a recipe that does not fit the model.
    """
    check_dtype(dtype)
    asked = COMPUTE_DTYPES[dtype] if dtype else None
    floats = asked or _float_dtype(checkpoint)
    layouts = {} if recipe is None else recipe.layouts(checkpoint.config)
    changes = []
    for name, tensor in checkpoint.tensors.items():
        layout = layouts.get(name, tensor.layout or "")
        if isinstance(layout, str):
            changes.append(Change(tensor, None, floats, layout))
        elif tensor.layout and (recipe is None or _will_do(tensor.layout, layout, exact=recipe.exact)):
            note = "" if recipe is None or tensor.layout == layout else AS_IT_WAS
            changes.append(Change(tensor, tensor.layout, asked or tensor.scales or floats, note))
        else:
            changes.append(Change(tensor, layout, floats))
    return Plan(changes, str(floats).removeprefix("mlx.core."))


def _will_do(there: Layout, asked: Layout, *, exact: bool) -> bool:
    """Whether a matrix has the bits that are asked for, with scales as fine: quantized again it would only lose."""
    fine = there.group_size == asked.group_size if exact else there.group_size <= asked.group_size
    return there.mode == asked.mode and there.bits == asked.bits and fine


def write_weights(plan: Plan, folder: Path, progress: Progress = lambda done, total: None) -> list[Record]:
    """Write the shards and, if there are several, their index.

    Args:
        progress: told (bytes read, all bytes) of the source.

    Raises:
        WeightsError: the source became unreadable or holds numbers that are not finite, or a shard cannot be written,
            as on a full disk, or does not read back as it was.
    """
    total, done = sum(change.tensor.nbytes for change in plan.changes), 0
    records: list[Record] = []
    place: dict[str, str] = {}
    broken: list[str] = []
    progress(0, total)
    for number, shard in enumerate(plan.shards, 1):
        single = len(plan.shards) == 1
        file = folder / ("model.safetensors" if single else f"model-{number:05}-of-{len(plan.shards):05}.safetensors")
        arrays: dict[str, mx.array] = {}
        for change in shard:
            try:
                values, products, finite = _convert(change)
            except (RuntimeError, ValueError, OSError) as error:
                name = change.tensor.name
                raise WeightsError(f"{name} cannot be read: {error}.", "Fetch the file again.") from error
            if not finite:
                broken.append(change.tensor.name)
            arrays |= zip(change.names, values, strict=True)
            records.append(_record(change, sum(v.nbytes for v in values), *_loss(products)))
            del values
            mx.clear_cache()
            done += change.tensor.nbytes
            progress(done, total)
        if not broken:  # what will be thrown away need not be written
            _save(file, arrays)
            place |= dict.fromkeys(arrays, file.name)
    if broken:
        more = f" and {len(broken) - 8} more" if len(broken) > 8 else ""
        raise WeightsError(
            f"{len(broken)} tensors have numbers that are not finite: {', '.join(broken[:8])}{more}.",
            "The model is damaged: fetch it again. With --dtype float16, large numbers overflow: take bfloat16.",
        )
    if len(plan.shards) > 1:
        index = {
            "metadata": {"total_size": sum(r.bytes_after for r in records), "total_parameters": plan.parameters},
            "weight_map": dict(sorted(place.items())),
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return records


def _save(file: Path, arrays: dict[str, mx.array]) -> None:
    """Write a shard, and see that it reads back as it is in memory."""
    try:
        mx.save_safetensors(str(file), arrays, metadata={"format": "mlx"})
        back = mx.load(str(file))
        assert isinstance(back, dict)
        same = all(mx.array_equal(arrays[name], back.pop(name)) for name in arrays)
    except RuntimeError as error:
        raise WeightsError(f"{file.name} cannot be written: {error}", "Is the disk full?") from error
    if not same:
        raise WeightsError(f"{file.name} does not read back as it was written.", "Check the disk.")


def _record(change: Change, nbytes: int, error: float | None, cosine: float | None) -> Record:
    tensor = change.tensor
    stored = str(tensor.layout) if tensor.layout and tensor.stored in MODES else tensor.stored
    written = str(change.layout) if change.layout else _WORDS[change.dtype]
    return Record(tensor.name, tensor.shape, stored, written, tensor.nbytes, nbytes, error, cosine, change.note)


# ---- one tensor -------------------------------------------------------------------------------------------------


def _convert(change: Change) -> tuple[list[mx.array], list[float], bool]:
    """What is written of a tensor, the sums of `_products` over all of it, and whether every number is finite."""
    value = change.tensor.read()
    mx.eval(value if isinstance(value, mx.array) else [part for part in value if isinstance(part, mx.array)])
    rows = change.tensor.shape[0]
    step = max(1, _PIECE * rows // change.tensor.elements)
    cuts = [(start, min(start + step, rows)) for start in range(0, rows, step)]
    # Floats that stay floats need no putting together.
    whole = value.astype(change.dtype) if change.layout is None and isinstance(value, mx.array) else None
    streams = worker_streams()
    written: list[list[mx.array]] = []
    sums: list[mx.array] = []
    for number, cut in enumerate(cuts):
        with mx.stream(streams[number % len(streams)]):
            piece, before = _rows(value, *cut)
            parts, after = _change(piece, before, change) if whole is None else ([], whole[slice(*cut)])
            written.append(parts)
            sums.append(_products(before, after))
            mx.async_eval(parts, sums[-1])  # type: ignore[no-untyped-call]
    values = [mx.concatenate(list(parts)) for parts in zip(*written, strict=True)] if whole is None else [whole]
    mx.eval(values, sums)
    totals = [math.fsum(column) for column in zip(*(s.tolist() for s in sums), strict=True)]
    finite = math.isfinite(sum(totals)) or (
        all(_all_finite(_rows(value, *cut)[1]) for cut in cuts) and all(map(_all_finite, values))
    )
    return values, totals, finite


def _rows(value: mx.array | Packed, start: int, stop: int) -> tuple[mx.array | Packed, mx.array]:
    """Some rows as they are stored, and the numbers that they stand for."""
    if isinstance(value, mx.array):
        return value[start:stop], value[start:stop]
    piece = value.rows(start, stop)
    return piece, piece.expand()


def _all_finite(value: mx.array) -> bool:
    return value.dtype not in _WORDS or bool(mx.isfinite(value).all())


def _change(piece: mx.array | Packed, before: mx.array, change: Change) -> tuple[list[mx.array], mx.array]:
    """What is written of some rows, and the numbers that it will stand for; `before` are those that they stood for."""
    if change.layout is None:
        after = before.astype(change.dtype)
        return [after], after
    if isinstance(piece, Quantized) and piece.layout == change.layout:
        packed = piece.cast(change.dtype)
    else:
        layout = asdict(change.layout)
        weight, scales, *biases = mx.quantize(before.astype(change.dtype), **layout)
        packed = Quantized(weight, scales, biases[0] if biases else None, change.layout)
    return [part for part in packed[:3] if part is not None], packed.expand()


def _products(before: mx.array, after: mx.array) -> mx.array:
    """Of what was there, w, and what was lost, d: the products ww, wd and dd."""
    w = before.astype(mx.float32).reshape(-1)
    d = w - after.astype(mx.float32).reshape(-1)
    return mx.stack([mx.inner(w, w), mx.inner(w, d), mx.inner(d, d)])


def _loss(products: Sequence[float]) -> tuple[float | None, float | None]:
    """Error and cosine (see Record) from the sums of `_products`; None where these are out of float32's range."""
    ww, wd, dd = products
    if dd == 0 and math.isfinite(ww):
        return 0.0, 1.0
    after = ww - 2 * wd + dd
    if not (math.isfinite(after) and ww > 0 and after > 0):
        return None, None
    return math.sqrt(dd / ww), (ww - wd) / math.sqrt(ww * after)


def _float_dtype(checkpoint: Checkpoint) -> mx.Dtype:
    """The type for floats where none is asked for: see `plan_conversion`."""
    tensors = checkpoint.tensors.values()
    matrices = [t for t in tensors if len(t.shape) > 1]
    floats = {t.stored for t in matrices if t.stored in DTYPES}
    if floats:
        return DTYPES[floats.pop()] if len(floats) == 1 else mx.float32
    if any(t.layout is None for t in matrices):
        return mx.bfloat16
    types = {t.scales for t in matrices if t.scales} or {DTYPES[t.stored] for t in tensors if t.stored in DTYPES}
    return types.pop() if len(types) == 1 else mx.bfloat16
