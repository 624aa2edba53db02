"""Quantized folders as MLX writes them: what `config.json` says of a module's layout, and its parts as one tensor.

A quantized module `m` is stored as `m.weight` (uint32), `m.scales` and, in affine mode, `m.biases`. The configuration
states a layout for all of them and, under a module's own name, where one differs (mlx-lm, utils.py, `load_model`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from mistral_mlx.config_keys import CHECK_FILE, integer
from mistral_mlx.errors import ConfigError, WeightsError
from mistral_mlx.weights import fp8
from mistral_mlx.weights.tensor import DTYPES, Layout, Quantized, Tensor

MODES = {  # group sizes and bits that MLX computes with; the first of each is its default
    "affine": ((64, 32, 128), (4, 1, 2, 3, 5, 6, 8)),
    "mxfp4": ((32,), (4,)),
    "mxfp8": ((32,), (8,)),
    "nvfp4": ((16,), (4,)),
}
_KEYS = ("group_size", "bits", "mode")


def _layout(keys: Mapping[str, Any], where: str) -> Layout:
    """From a table with `group_size`, `bits` and `mode`; raises ConfigError for what MLX does not compute."""
    more = [k for k, v in keys.items() if k not in _KEYS and not isinstance(v, (Mapping, bool))]
    if more:
        raise ConfigError(f"{where} has {', '.join(more)}, which is not known here.", CHECK_FILE)
    mode = keys.get("mode", "affine")
    if not isinstance(mode, str) or mode not in MODES:
        raise ConfigError(f"{where} has mode {mode!r}.", f"Modes that MLX computes: {', '.join(MODES)}.")
    sizes, bits = MODES[mode]
    layout = Layout(integer(keys, "group_size", sizes[0]), integer(keys, "bits", bits[0]), mode)
    if layout.group_size not in sizes or layout.bits not in bits:
        raise ConfigError(
            f"{where} has {layout.bits} bits in groups of {layout.group_size}, mode {mode}.",
            f"MLX computes that mode with {_any(bits)} bits in groups of {_any(sizes)}.",
        )
    return layout


class Layouts:
    """The layout of every quantized module in a folder."""

    def __init__(self, keys: Any) -> None:
        """Read the table `quantization` of config.json; raises ConfigError if it is damaged."""
        where = "quantization in config.json"
        if not isinstance(keys, Mapping):
            raise ConfigError(f"{where} must be a table, not {keys!r}.", CHECK_FILE)
        self._default = _layout(keys, where)
        self._own: dict[str, Layout] = {}
        for name, value in keys.items():
            if isinstance(value, Mapping):
                self._own[name] = _layout(value, f"{name} of {where}")

    def __getitem__(self, module: str) -> Layout:
        return self._own.get(module, self._default)


def refuse_other_schemes(keys: Mapping[str, Any]) -> None:
    """Raise ConfigError if config.json describes quantized weights in another way than MLX's or FP8."""
    settings = keys.get("quantization_config")
    if isinstance(settings, Mapping) and fp8.block_size(settings):
        return
    method = settings.get("quant_method") if isinstance(settings, Mapping) else settings
    if method or (settings and not keys.get("quantization")):  # mlx-lm writes one table under both names
        raise ConfigError(
            f"The weights are quantized by {method!r}, which is not read here.",
            "Use the model's float or FP8 weights, an MLX folder of it, or a GGUF file.",
        )


def join_parts(tensors: dict[str, Tensor], layouts: Layouts) -> dict[str, Tensor]:
    """Put weight, scales and biases of each quantized module together under the name of its weight.

    Raises:
        WeightsError: parts that are missing or do not fit each other.
    """
    joined = dict(tensors)
    for name in tensors:
        module, _, part = name.rpartition(".")
        if part == "scales":
            weight, scales, biases = (joined.pop(f"{module}.{p}", None) for p in ("weight", "scales", "biases"))
            joined[f"{module}.weight"] = _join(module, layouts[module], weight, scales, biases)
    return joined


def _join(module: str, layout: Layout, weight: Tensor | None, scales: Tensor | None, biases: Tensor | None) -> Tensor:
    affine = layout.mode == "affine"
    parts = [weight, scales, biases] if affine else [weight, scales]
    there = [p for p in parts if p is not None]
    mixed = "Files of two models may be mixed up; fetch them again."
    if weight is None or scales is None or len(there) < len(parts):
        missing = "weight" if weight is None else "biases"
        raise WeightsError(f"{module} has scales, but no {missing}.", mixed)
    if biases is not None and not affine:
        raise WeightsError(f"{module} has biases, which mode {layout.mode} does not have.", mixed)
    columns = weight.shape[-1] * 32 // layout.bits
    kinds = DTYPES if affine else ("U8",)
    fits = (
        weight.stored == "U32"
        and weight.shape[-1] * 32 % layout.bits == 0
        and all(p.shape == (*weight.shape[:-1], columns // layout.group_size) for p in there[1:])
        and all(p.stored in kinds for p in there[1:])
    )
    if not fits:
        shapes = ", ".join(f"{p.stored} {p.shape}" for p in there)
        raise WeightsError(
            f"The parts of {module} ({shapes}) are not {layout.bits} bits in groups of {layout.group_size}, "
            f"mode {layout.mode}.",
            "config.json is another model's, or the file is damaged; fetch them again.",
        )
    return Tensor(
        name=f"{module}.weight",
        shape=(*weight.shape[:-1], columns),
        stored=layout.mode,
        nbytes=sum(p.nbytes for p in there),
        layout=layout,
        read=partial(_read, layout, weight, scales, biases),
        scales=DTYPES[scales.stored] if affine else None,
    )


def _read(layout: Layout, weight: Tensor, scales: Tensor, biases: Tensor | None) -> Quantized:
    return Quantized(weight.array(), scales.array(), biases.array() if biases else None, layout)


def _any(values: tuple[int, ...]) -> str:
    return " or ".join(map(str, sorted(values)))
