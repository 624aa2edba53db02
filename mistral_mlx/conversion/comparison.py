"""Several recipes for one model side by side: what each costs in bytes, and in what the model then says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mistral_mlx.conversion.companions import write_config
from mistral_mlx.conversion.evaluation import Evaluation, evaluate, load_quietly
from mistral_mlx.conversion.pipeline import Progress, describe_source, stage
from mistral_mlx.conversion.source import open_source
from mistral_mlx.conversion.target import check_space
from mistral_mlx.errors import InputError
from mistral_mlx.weights.checkpoint import open_checkpoint
from mistral_mlx.weights.convert import plan_conversion, write_weights
from mistral_mlx.weights.quantize import Recipe
from mistral_mlx.weights.quantized import MODES

_NOTHING = 1e-6  # where a logarithmic axis shows no divergence at all

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Row:
    """One recipe: its bytes, the bits for a parameter on average, and how its model reads the text."""

    recipe: str
    nbytes: int
    bits_per_weight: float
    evaluation: Evaluation


@dataclass(frozen=True)
class Comparison:
    """Recipes for one model, in the order asked for; `nbytes` are the source's, `notes` as in Receipt."""

    source: str
    nbytes: int
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


def compare(
    source: str | Path,
    recipes: Sequence[str | int],
    text: str,
    *,
    group_size: int | None = None,
    keep: Sequence[str] = (),
    requantize: bool = False,
    work: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Comparison:
    """Convert a model by each recipe in turn, read a text with it, and forget it.

    Args:
        source: as for `load`, or a .tar; loaded beside each of its copies.
        recipes: as `quantize` of `convert`.
        text: what is read.
        group_size, keep, requantize: as for `convert`; float formats have group sizes of their own.
        work: a folder for the copies, of which one is there at a time; the system's for temporary files if None.

    Raises:
        MistralError: as `convert` does.
    """
    parsed = [Recipe.parse(str(name), None if name in MODES else group_size, keep) for name in recipes]
    if not parsed:
        raise InputError("There are no recipes to compare.", "Name some, as in --compare 3 4 6 8.")
    with TemporaryDirectory(dir=work, prefix=".comparing-") as name:
        place = Path(name)
        path, notes = open_source(source, place, stage(progress, "fetching"), stage(progress, "unpacking"))
        checkpoint = open_checkpoint(path)
        notes += describe_source(checkpoint, parsed[0], None, requantize=requantize)  # or refuse it
        largest = max(plan_conversion(checkpoint, recipe).nbytes for recipe in parsed)
        check_space(place, largest, "The largest copy")
        original = load_quietly(path)
        rows = []
        for recipe in parsed:
            plan = plan_conversion(open_checkpoint(path), recipe)  # opened anew, for a tensor can be read once
            with TemporaryDirectory(dir=place) as folder:
                copy = Path(folder)
                write_config(checkpoint, plan, copy)
                write_weights(plan, copy, stage(progress, f"converting {recipe.name}"))
                result = evaluate(original, load_quietly(copy), text, stage(progress, f"evaluating {recipe.name}"))
            rows.append(Row(recipe.name, plan.nbytes, 8 * plan.nbytes / plan.parameters, result))
    return Comparison(str(source), checkpoint.stored_bytes, rows, notes)


def check_plot(file: Path, *, force: bool) -> None:
    """Raise InputError if `plot` could not draw into the file: better before an hour's work than after."""
    if file.suffix.lower() != ".png":
        raise InputError(f"{file} is no name for a picture.", "With --compare, OUT is a .png file.")
    if not file.absolute().parent.is_dir():
        raise InputError(f"There is no folder {file.absolute().parent}.", "Make it, or choose another.")
    if file.exists() and not force:
        raise InputError(f"{file} is there already.", "Choose another name, or replace it with --force.")
    if find_spec("matplotlib") is None:
        raise InputError("A plot needs matplotlib.", "pip install 'mistral-mlx[plot]'")


def plot(comparison: Comparison, file: Path) -> None:
    """Draw size against divergence and against perplexity, as PNG; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = comparison.rows
    _points(left, rows, [row.evaluation.kl for row in rows], "KL divergence from the original, nats per token")
    _points(right, rows, [row.evaluation.perplexity for row in rows], "perplexity")
    original = rows[0].evaluation.perplexity_source
    right.axhline(original, color="0.5", linestyle="--", linewidth=1)
    right.annotate(f"original: {original:.4g}", (0.5, original), xytext=(0, -4), textcoords="offset points",
                   xycoords=("axes fraction", "data"), ha="center", va="top", color="0.4")  # fmt: skip
    figure.suptitle(f"{comparison.source}: what each recipe costs ({rows[0].evaluation.tokens:,} tokens)")
    unfinished = file.with_name(f".{file.name}.partial")
    try:
        figure.savefig(unfinished, format="png")
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def _points(axes: Axes, rows: Sequence[Row], values: Sequence[float], label: str) -> None:
    values = [max(value, _NOTHING) for value in values]
    if max(values) > 10 * min(values):
        axes.set_yscale("log")
    for row, value in zip(rows, values, strict=True):
        mebibytes = row.nbytes / 2**20
        axes.plot([mebibytes], [value], marker="o", color="#fa520f")
        name = f"{row.recipe} bits" if row.recipe.isdecimal() else row.recipe
        axes.annotate(name, (mebibytes, value), xytext=(0, 6), textcoords="offset points", ha="center")
    axes.set_xlabel("weights, MiB")
    axes.set_ylabel(label)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.margins(0.12)
