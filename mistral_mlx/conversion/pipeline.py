"""One conversion from beginning to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from mistral_mlx import __version__
from mistral_mlx.conversion.companions import write_config, write_text
from mistral_mlx.conversion.evaluation import evaluate, load_quietly, text_ids
from mistral_mlx.conversion.learned import check_learning, write_learned
from mistral_mlx.conversion.receipt import Receipt, hashing
from mistral_mlx.conversion.source import open_source
from mistral_mlx.conversion.target import check_space, places, workspace
from mistral_mlx.errors import InputError, MistralError
from mistral_mlx.models import Window, change_window, find
from mistral_mlx.weights.checkpoint import Checkpoint, open_checkpoint
from mistral_mlx.weights.convert import AS_IT_WAS, Plan, Record, check_dtype, plan_conversion, write_weights
from mistral_mlx.weights.quantize import Recipe
from mistral_mlx.weights.quantized import MODES

# Told what is being done ("fetching", "unpacking", "converting", "evaluating"), how much of it, and of how much: bytes,
# or tokens of the text to evaluate on.
Progress = Callable[[str, int, int], None]

_SLACK = 64 * 2**20  # for tokenizers, licences and indices


def convert(
    source: str | Path,
    out: str | Path,
    quantize: str | int | None = None,
    *,
    group_size: int | None = None,
    keep: Sequence[str] = (),
    dtype: str | None = None,
    window: Window = "config",
    learn: str | None = None,
    calibrate: str | None = None,
    requantize: bool = False,
    force: bool = False,
    text: str | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Receipt:
    """Convert a model to a folder of MLX weights, quantizing them if asked to.

    Memory is bounded by the largest tensor and one gibibyte of shard, whatever the model's size; only to evaluate are
    both models loaded. `out` appears whole or not at all.

    Args:
        source: as for `load`, or a .tar as Mistral published them.
        out: the folder to make.
        quantize: 2, 3, 4, 5, 6 or 8 bits; "mxfp4", "mxfp8" or "nvfp4"; "mixed_2_6", "mixed_3_4", "mixed_3_6" or
            "mixed_4_6". None keeps floats float and packed weights packed.
        group_size: 32, 64 or 128 numbers that share a scale; 64 if it is not said.
        keep: exceptions, such as "output=8" or "v_proj=float" (`Recipe.parse`).
        dtype: float32, float16 or bfloat16 for floats and scales; by default what the source stores.
        window: another attention window, which is written into the configuration; as for `load`.
        learn: "awq", "dwq" or "gptq": fit what is quantized to a text, by mlx-lm's implementation. It takes the whole
            model into memory, and needs float weights and plain bits.
        calibrate: that text.
        requantize: quantize weights that MLX has quantized before, which loses more than doing it once.
        force: replace a model folder that is there.
        text: a text to read with both models, to tell what was lost; if they do not fit together, a note says so.

    Raises:
        MistralError: with what to do about it. `out` is then as it was.
    """
    recipe = None if quantize is None else Recipe.parse(str(quantize), group_size, keep)
    if recipe is None and (group_size is not None or keep):
        raise InputError("Group sizes and what is kept mean nothing without quantizing.", "Add -q 4, or leave them.")
    check_dtype(dtype)
    check_learning(learn, calibrate, recipe)
    out = Path(out)
    _refuse_overlap(source, out)
    with workspace(out, force=force) as work:
        path, said = open_source(source, work, stage(progress, "fetching"), stage(progress, "unpacking"))
        checkpoint = open_checkpoint(path)
        checkpoint = replace(checkpoint, config=change_window(checkpoint.config, window))
        notes = said + describe_source(checkpoint, recipe, dtype, requantize=requantize)
        if text is not None:
            text_ids(checkpoint, text)  # before anything takes its time
        folder = work / "new"
        if lack := write_text(checkpoint, folder):
            notes.append(lack)
        described = [checkpoint.described_by] if checkpoint.described_by else []
        with hashing([*checkpoint.files, *described]) as hashes:
            plan, records = _write_weights(checkpoint, recipe, dtype, learn, calibrate, work, progress)
            if any(change.note == AS_IT_WAS for change in plan.changes):
                notes.append("What has as many bits already stays as it was, in its own groups.")
            files = hashes.result()
        open_checkpoint(folder)  # every tensor is there, under its name, in its shape
        evaluation = None
        if text is not None:
            try:
                both = load_quietly(path, window), load_quietly(folder)
                evaluation = evaluate(*both, text, stage(progress, "evaluating"))
            except MistralError as error:  # which the new model need not pay for
                notes.append(f"It was not evaluated. {error.message} {error.hint}")
        written = sum(r.bytes_after for r in records)
        receipt = Receipt(
            versions={"mistral-mlx": __version__, "mlx": version("mlx")},
            source=Path(source).resolve().name if Path(source).exists() else str(source),
            files=files,
            recipe=_recipe(recipe, learn),
            keep=list(keep),
            dtype=plan.dtype,
            parameters=plan.parameters,
            bytes_before=checkpoint.stored_bytes,
            bytes_after=written,
            bits_per_weight=8 * written / plan.parameters,
            tensors=records,
            evaluation=evaluation,
            notes=notes,
        )
        receipt.write(folder)
    return receipt


def _refuse_overlap(source: str | Path, out: Path) -> None:
    """Raise InputError if making or replacing `out` would touch the source."""
    folders = places(out)
    try:
        path = find(source).resolve()
    except InputError:  # not on this machine
        return
    for folder in folders:
        if path == folder:
            raise InputError(f"{source} is to be converted into itself.", "Choose another folder.")
        if path.is_relative_to(folder):
            raise InputError(f"{source} lies in {folder}, which would be replaced.", "Choose another folder.")


def describe_source(checkpoint: Checkpoint, recipe: Recipe | None, dtype: str | None, *, requantize: bool) -> list[str]:
    """What of the source its user should know, or InputError if it should not be quantized again."""
    notes = []
    if checkpoint.passed_over:
        names = ", ".join(path.name for path in checkpoint.passed_over[:3])
        more = f" and {len(checkpoint.passed_over) - 3} more" if len(checkpoint.passed_over) > 3 else ""
        notes.append(f"Read from {checkpoint.files[0].name}; the folder also holds {names}{more}.")
    packed = {str(t.layout) for t in checkpoint.tensors.values() if t.stored in MODES}
    blocks = {t.stored for t in checkpoint.tensors.values() if t.stored not in (*MODES, "F32", "F16", "BF16")}
    if recipe and packed and not requantize:
        raise InputError(
            f"The source is quantized already ({', '.join(sorted(packed))}), and would lose more.",
            "Quantize from float weights, or add --requantize.",
        )
    if recipe and (packed or blocks):
        kinds = ", ".join(sorted(packed | blocks))
        notes.append(f"The source was quantized already ({kinds}): errors are counted from it, not from its original.")
    if not recipe and not dtype and blocks & {"Q4_K", "Q5_K"}:
        notes.append("Scales of Q4_K and Q5_K stay exact, as float32; with --dtype bfloat16 all is smaller and faster.")
    if len(set(checkpoint.config.windows)) > 1:
        notes.append("Windows differ by layer: for transformers, set model_type in config.json to ministral.")
    return notes


def _write_weights(
    checkpoint: Checkpoint,
    recipe: Recipe | None,
    dtype: str | None,
    learn: str | None,
    calibrate: str | None,
    work: Path,
    progress: Progress,
) -> tuple[Plan, list[Record]]:
    told = stage(progress, "converting")
    if learn is not None and recipe is not None and calibrate is not None:
        return write_learned(checkpoint, recipe, learn, calibrate, dtype, work, told)
    plan = plan_conversion(checkpoint, recipe, dtype)
    check_space(work, plan.nbytes + _SLACK, "The new model")
    write_config(checkpoint, plan, work / "new")
    return plan, write_weights(plan, work / "new", told)


def _recipe(recipe: Recipe | None, learn: str | None) -> str | None:
    if recipe is None:
        return None
    sensitive = f", {recipe.sensitive} where errors hurt most" if recipe.sensitive else ""
    learned = f", learned by {learn}" if learn else ""
    return f"{recipe.name}: {recipe.layout}{sensitive}{learned}" if recipe.layout.mode == "affine" else recipe.name


def stage(progress: Progress, name: str) -> Callable[[int, int], None]:
    """What tells the progress of one thing that is being done."""
    return lambda done, total: progress(name, done, total)
