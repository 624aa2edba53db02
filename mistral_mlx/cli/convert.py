"""mistral-mlx convert: any form of weights to a folder of MLX's, quantized or not; or recipes side by side."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mistral_mlx.cli.arguments import window
from mistral_mlx.cli.terminal import size
from mistral_mlx.errors import InputError

if TYPE_CHECKING:
    from mistral_mlx.conversion import Comparison, Receipt
    from mistral_mlx.conversion.pipeline import Progress
    from mistral_mlx.weights.convert import Record

_DESCRIPTION = """\
Convert a model to a folder of MLX weights that mistral-mlx, mlx-lm and LM Studio open, and say what was lost.
Without -q nothing is quantized: floats stay floats, and GGUF's blocks become MLX's where both have the same layout.
"""
_EXAMPLES = """\
examples:
  mistral-mlx convert mistral-7B-v0.1.tar -o mistral-7b-4bit -q 4
  mistral-mlx convert model.Q4_K_M.gguf -o model
  mistral-mlx convert mistralai/Mistral-7B-v0.1 -o 7b -q mixed_3_6 --keep output=8 --evaluate notes.txt
  mistral-mlx convert 7b-float -o sizes.png --compare 3 4 5 6 8
"""


def add_to(commands: Any) -> None:
    """Add the command to a parser's commands."""
    add_arguments(
        commands.add_parser(
            "convert",
            help="convert and quantize weights",
            description=_DESCRIPTION,
            epilog=_EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a model folder, a .tar as Mistral published them, a .gguf, .safetensors or .pth file, a short name like "
        "7b, or owner/name on the hub",
    )
    parser.add_argument(
        "-o", "--out", required=True, type=Path, metavar="OUT", help="the folder to make; with --compare, a .png file"
    )
    recipe = parser.add_argument_group("quantizing")
    recipe.add_argument(
        "-q",
        "--quantize",
        metavar="RECIPE",
        help="2, 3, 4, 5, 6 or 8 bits; mxfp4, mxfp8 or nvfp4; or mixed_2_6, mixed_3_4, mixed_3_6, mixed_4_6, which "
        "give more bits to what errors hurt most",
    )
    recipe.add_argument("--group-size", type=int, metavar="N", help="32, 64 or 128 numbers share a scale; 64 if unsaid")
    recipe.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="MODULE=BITS",
        help="an exception, as output=8, v_proj=6, embeddings=float or 'layers.0.*=8'; may be repeated",
    )
    recipe.add_argument(
        "--learn",
        metavar="METHOD",
        help="awq, dwq or gptq: fit what is quantized to a text, by mlx-lm's implementation, with the model in memory",
    )
    recipe.add_argument("--calibrate", metavar="TEXT", help="the text to learn from, as for --evaluate")
    recipe.add_argument("--requantize", action="store_true", help="quantize what MLX has quantized already")
    parser.add_argument("--dtype", metavar="TYPE", help="float32, float16 or bfloat16 for floats and scales")
    parser.add_argument("--window", metavar="N", help="write another attention window: a number, or none")
    parser.add_argument("--force", action="store_true", help="replace OUT, if it is a model folder")
    judging = parser.add_argument_group("judging")
    judging.add_argument(
        "--evaluate",
        metavar="TEXT",
        help="a text file to read with both models, for perplexity and KL divergence; or sample, for a short text that "
        "comes along",
    )
    judging.add_argument(
        "--compare",
        nargs="+",
        metavar="RECIPE",
        help="convert by each of these recipes, read the text with each, and draw size against loss; keeps no model",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON record instead of a table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    text = None if arguments.evaluate is None else _text(arguments.evaluate)
    return _compare(arguments, text) if arguments.compare else _convert(arguments, text)


def _convert(arguments: argparse.Namespace, text: str | None) -> int:
    from mistral_mlx.conversion import convert

    options = {} if arguments.window is None else {"window": window(arguments.window)}
    with _bars() as progress:
        receipt = convert(
            arguments.source,
            arguments.out,
            arguments.quantize,
            group_size=arguments.group_size,
            keep=arguments.keep,
            dtype=arguments.dtype,
            requantize=arguments.requantize,
            force=arguments.force,
            learn=arguments.learn,
            calibrate=None if arguments.calibrate is None else _text(arguments.calibrate),
            text=text,
            progress=progress,
            **options,
        )
    if arguments.json:
        print(json.dumps(receipt.to_json(), ensure_ascii=False))
    else:
        _show(receipt, arguments.out)
    return 0


def _compare(arguments: argparse.Namespace, text: str | None) -> int:
    from mistral_mlx.conversion import compare
    from mistral_mlx.conversion.comparison import check_plot, plot

    idle = [name for name in ("quantize", "dtype", "window", "learn", "calibrate") if getattr(arguments, name)]
    if idle:
        raise InputError(f"--{idle[0]} means nothing with --compare.", "Leave it out.")
    check_plot(arguments.out, force=arguments.force)
    with _bars() as progress:
        comparison = compare(
            arguments.source,
            arguments.compare,
            _text("sample") if text is None else text,
            group_size=arguments.group_size,
            keep=arguments.keep,
            requantize=arguments.requantize,
            work=arguments.out.absolute().parent,
            progress=progress,
        )
    plot(comparison, arguments.out)
    if arguments.json:
        print(json.dumps(comparison.to_json(), ensure_ascii=False))
    else:
        _show_comparison(comparison, arguments.out)
    return 0


def _text(name: str) -> str:
    """The text of a file, or the one that comes along."""
    if name == "sample":
        return (files("mistral_mlx.conversion") / "sample.txt").read_text(encoding="utf-8")
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"The text {name} cannot be read: {error}.", "Give a text file, or sample.") from error


@contextmanager
def _bars() -> Iterator[Progress]:
    """A bar with bytes, rate and time left for each thing that is done, silent where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda stage, done, total: None
        return
    name, bar = TextColumn("{task.description}"), BarColumn(bar_width=30)
    tasks: dict[str, tuple[Progress, TaskID]] = {}
    current: list[Progress] = []

    def show(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            if current:
                current.pop().stop()
            counted = (MofNCompleteColumn(),) if "evaluating" in stage else (DownloadColumn(), TransferSpeedColumn())
            bars = Progress(name, bar, *counted, TimeRemainingColumn(), console=console, transient=True)
            bars.start()
            current.append(bars)
            tasks[stage] = bars, bars.add_task(stage, total=total)
        bars, task = tasks[stage]
        bars.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        for bars in current:
            bars.stop()


# ---- tables -----------------------------------------------------------------------------------------------------


def _show(receipt: Receipt, out: Path) -> None:
    """The receipt with one line for each kind of tensor; `conversion.json` has them one by one."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    headings = ["tensors", "", "from", "to", "before", "after", "error", "cosine"]
    narrow = console.width < 72
    shown = [h for h in headings if not narrow or h not in ("from", "before", "cosine")]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in shown:
        words = heading in ("tensors", "", "from", "to")
        table.add_column(heading, justify="left" if words else "right", no_wrap=True)

    def add(*cells: str) -> None:
        table.add_row(*(cell for heading, cell in zip(headings, cells, strict=True) if heading in shown))

    for records in _alike(receipt.tensors):
        first = records[0]
        add(
            _kind(first),
            f"x{len(records)}" if len(records) > 1 else "",
            first.stored,
            first.written,
            size(sum(r.bytes_before for r in records)),
            size(sum(r.bytes_after for r in records)),
            _error([r.error for r in records if r.error is not None]),
            f"{min(cosines):.5f}" if (cosines := [r.cosine for r in records if r.cosine is not None]) else "",
        )
    add("all", "", "", "", size(receipt.bytes_before), size(receipt.bytes_after), "", "")
    ratio = f"{receipt.bits_per_weight:.2f} bits a weight on average; what was not quantized is {receipt.dtype}"
    console.print(table)
    console.print(f"\n{ratio}", highlight=False)
    if receipt.evaluation:
        found = receipt.evaluation
        console.print(
            f"\n{found.tokens:,} tokens read: perplexity {found.perplexity:.4g}, of the original "
            f"{found.perplexity_source:.4g}\nKL divergence {found.kl:.3g} nats, 99 % below {found.kl_99:.3g}; the same "
            f"best token in {found.same_top:.1%}",
            highlight=False,
        )
    for note in receipt.notes:
        console.print(f"\n{note}", highlight=False, markup=False)
    console.print(f"\nwritten to {out}", highlight=False, markup=False, soft_wrap=True)


def _show_comparison(comparison: Comparison, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("recipe", "size", "bits a weight", "perplexity", "KL, nats", "99 % below", "same best token"):
        table.add_column(heading, justify="left" if heading == "recipe" else "right")
    first = comparison.rows[0].evaluation
    table.add_row("original", size(comparison.nbytes), "", f"{first.perplexity_source:.4g}", "0", "0", "100.0%")
    for row in comparison.rows:
        found = row.evaluation
        table.add_row(
            row.recipe,
            size(row.nbytes),
            f"{row.bits_per_weight:.2f}",
            f"{found.perplexity:.4g}",
            f"{found.kl:.3g}",
            f"{found.kl_99:.3g}",
            f"{found.same_top:.1%}",
        )
    console = Console()
    console.print(table)
    for note in comparison.notes:
        console.print(f"\n{note}", highlight=False, markup=False)
    console.print(f"\n{first.tokens:,} tokens read; drawn in {out}", highlight=False, markup=False, soft_wrap=True)


def _kind(record: Record) -> str:
    """What a tensor is called in every layer."""
    return "norms" if len(record.shape) == 1 else record.name.removesuffix(".weight").split(".")[-1]


def _alike(records: Sequence[Record]) -> list[list[Record]]:
    """Records by what they are called in each layer, and what became of them."""
    groups: dict[tuple[str, str, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((_kind(record), record.stored, record.written, record.note), []).append(record)
    return list(groups.values())


def _error(values: list[float]) -> str:
    if not values:
        return ""
    return f"{max(values):.3%}" if any(values) else "0"
