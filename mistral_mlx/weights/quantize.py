"""Recipes: into which layout each matrix is quantized, and which tensors are left alone.

Names, layouts and choices are mlx-lm's, so a folder quantized by either opens in the other; but embeddings that are
tied to the output get at least 6 bits here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from mistral_mlx.config import ModelConfig
from mistral_mlx.errors import InputError
from mistral_mlx.weights.names import expected_shapes
from mistral_mlx.weights.quantized import MODES
from mistral_mlx.weights.tensor import Layout

# Bits of most matrices, and of those that errors hurt most.
MIXED = {"mixed_2_6": (2, 6), "mixed_3_4": (3, 4), "mixed_3_6": (3, 6), "mixed_4_6": (4, 6)}
BITS = (2, 3, 4, 5, 6, 8)
_GROUPS = MODES["affine"][0]
_FLOATS = [name for name in MODES if name != "affine"]
NAMES = [*map(str, BITS), *_FLOATS, *MIXED]


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized.

    Attributes:
        name: what it was asked for by, such as "4", "mxfp4" or "mixed_3_6".
        layout: of every matrix for which nothing else is said.
        sensitive: of the matrices that errors hurt most; None if they are like the others.
        keep: patterns of modules with their own layout, None for float; the last one that fits counts.
        exact: whether its groups were asked for, so that finer ones that are there will not do.
    """

    name: str
    layout: Layout
    sensitive: Layout | None = None
    keep: tuple[tuple[str, Layout | None], ...] = ()
    exact: bool = False

    @classmethod
    def parse(cls, name: str, group_size: int | None = None, keep: Iterable[str] = ()) -> Recipe:
        """From the words of a user.

        Args:
            name: 2, 3, 4, 5, 6 or 8 bits; mxfp4, mxfp8 or nvfp4; or mixed_LOW_HIGH.
            group_size: 32, 64 or 128 numbers that share a scale, 64 if None; the float formats have their own.
            keep: `MODULE=BITS`, `MODULE=MODE` or `MODULE=float`, where MODULE is output, embeddings, or the end of a
                module's name, such as v_proj or layers.0.self_attn.q_proj, with * for anything.

        Raises:
            InputError: something else.
        """
        high: int | None = None
        low: int | str = name
        if name in MIXED:
            low, high = MIXED[name]
        return cls(
            name,
            _layout(str(low), group_size),
            None if high is None else _layout(str(high), group_size),
            tuple(_keep(text, group_size) for text in keep),
            group_size is not None,
        )

    def layouts(self, config: ModelConfig) -> dict[str, Layout | str]:
        """For each parameter of a model its layout, or why it stays float.

        Raises:
            InputError: groups that do not divide the columns of a matrix, where others would; a pattern that fits no
                module; or nothing to quantize.
        """
        shapes = expected_shapes(config)
        fitted: set[str] = set()
        chosen = {name: self._choose(name, shape, config, fitted) for name, shape in shapes.items()}
        idle = [pattern for pattern, _ in self.keep if pattern not in fitted]
        if idle:
            raise InputError(
                f"No module is called {idle[0]!r}.",
                "Give output, embeddings, or the end of a name, such as v_proj or layers.0.mlp.down_proj; * for any.",
            )
        odd = {
            name: layout
            for name, layout in chosen.items()
            if isinstance(layout, Layout) and shapes[name][-1] % layout.group_size
        }
        for name, layout in odd.items():
            columns = shapes[name][-1]
            others = [g for g in MODES[layout.mode][0] if columns % g == 0]
            if others:
                fitting = " or ".join(map(str, sorted(others)))
                raise InputError(
                    f"{name} has {columns} columns, which groups of {layout.group_size} do not divide.",
                    f"Take groups of {fitting} (--group-size), or leave it float: --keep {name.split('.')[-2]}=float.",
                )
            chosen[name] = f"{columns} columns are no multiple of {layout.group_size}"
        if not any(isinstance(layout, Layout) for layout in chosen.values()):
            raise InputError("Nothing would be quantized.", "Leave out -q, or keep less.")
        return chosen

    def _choose(self, name: str, shape: tuple[int, ...], config: ModelConfig, fitted: set[str]) -> Layout | str:
        if len(shape) < 2:
            return "a vector"
        module = name.removesuffix(".weight")
        layout: Layout | None = self.layout
        if self.sensitive and _is_sensitive(module, config):
            layout = self.sensitive
        elif module == _output(config) and config.tie_word_embeddings:
            layout = at_both_ends(self.layout)
        for pattern, own in self.keep:
            if _fits(pattern, module, config):
                fitted.add(pattern)
                layout = own
        return layout or "kept"


def at_both_ends(layout: Layout) -> Layout:
    """For embeddings that are the output as well: errors of a few bits there cost more than all others together."""
    return replace(layout, bits=max(layout.bits, 6)) if layout.mode == "affine" else _layout("mxfp8", None)


def describe(layouts: Mapping[str, Layout]) -> dict[str, Any]:
    """The table `quantization` of config.json for modules with these layouts, as mlx-lm writes and reads it."""
    counts: dict[Layout, int] = {}
    for layout in layouts.values():
        counts[layout] = counts.get(layout, 0) + 1
    common = max(counts, key=lambda layout: counts[layout])
    return asdict(common) | {module: asdict(own) for module, own in layouts.items() if own != common}


def _layout(name: str, group_size: int | None) -> Layout:
    if name.isdecimal() and int(name) in BITS:
        if group_size is not None and group_size not in _GROUPS:
            raise InputError(f"The group size is {group_size}.", f"Choose {', '.join(map(str, sorted(_GROUPS)))}.")
        return Layout(group_size or _GROUPS[0], int(name))
    if name not in _FLOATS:
        raise InputError(f"There is no recipe {name!r}.", f"Choose {', '.join(NAMES)}.")
    (size,), (bits,) = MODES[name]
    if group_size not in (None, size):
        raise InputError(f"{name} has groups of {size}, not {group_size}.", "Leave out the group size.")
    return Layout(size, bits, name)


def _keep(text: str, group_size: int | None) -> tuple[str, Layout | None]:
    pattern, found, value = (part.strip() for part in text.rpartition("="))
    if not found or not pattern:
        raise InputError(f"{text!r} does not say what is kept as what.", "Write MODULE=BITS, as in output=8.")
    if value not in (*map(str, BITS), *_FLOATS, "float"):
        raise InputError(
            f"{pattern} cannot be kept as {value!r}.",
            f"Choose {', '.join(map(str, BITS))}, {', '.join(_FLOATS)} or float.",
        )
    return pattern, None if value == "float" else _layout(value, group_size if value.isdecimal() else None)


def _fits(pattern: str, module: str, config: ModelConfig) -> bool:
    if pattern == "output":
        return module == _output(config)
    if pattern == "embeddings":
        return module == "model.embed_tokens"
    return fnmatchcase(module, pattern) or fnmatchcase(module, f"*.{pattern}")


def _output(config: ModelConfig) -> str:
    return "model.embed_tokens" if config.tie_word_embeddings else "lm_head"


def _is_sensitive(module: str, config: ModelConfig) -> bool:
    """The output; values and down projections of the first and last eighth of the layers, and of every third between.

    mlx-lm, convert.py, `mixed_quant_predicate`; there embeddings count as no output where they are tied.
    """
    if module == _output(config):
        return True
    if not module.endswith(("v_proj", "down_proj")):
        return False
    layer, layers = int(module.split(".")[2]), config.num_hidden_layers
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
