"""Arguments that several commands take: which model, and how it is loaded."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from mistral_mlx.cli.terminal import size, status_line
from mistral_mlx.errors import InputError


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m",
        "--model",
        required=True,
        metavar="MODEL",
        help='an alias ("demo", "7b"; see `models list`), a folder, a .gguf file, or owner/name on the hub',
    )


def add_loading(parser: argparse.ArgumentParser, *, draft: bool = True) -> None:
    """How a model is loaded; `draft` is for commands that give one answer at a time."""
    group = parser.add_argument_group("loading")
    group.add_argument("--dtype", metavar="TYPE", help="float32, float16 or bfloat16; keep: leave weights packed")
    group.add_argument(
        "--window",
        metavar="N",
        help="tokens that each one sees, or none for all; none,4096 repeats over the layers",
    )
    if draft:
        group.add_argument(
            "--draft",
            metavar="DRAFT",
            help="guess tokens ahead, for the same answer sooner: ngram, or a smaller model with the same vocabulary",
        )
    group.add_argument("--kv-bits", type=int, metavar="N", help="8 or 4: keep keys and values quantized")
    group.add_argument("--wired", action="store_true", help="keep the model's memory resident (macOS 15 and newer)")


def loading(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `add_loading` as options of `llm.load`."""
    draft = getattr(arguments, "draft", None)
    options: dict[str, Any] = {
        "dtype": arguments.dtype,
        "kv_bits": arguments.kv_bits,
        "wired": arguments.wired,
        "draft": draft,
        "progress": fetching(arguments.model if draft in (None, "ngram") else f"{arguments.model} or {draft}"),
    }
    if arguments.window is not None:
        options["window"] = window(arguments.window)
    return options


def fetching(model: str) -> Callable[[int, int], None]:
    """A status line for a download, silent where stderr is no terminal."""
    began: list[tuple[float, int]] = []

    def describe(done: int, total: int) -> str:
        began.append((time.monotonic(), done))
        del began[1:]  # the first says what was there before
        seconds, fetched = time.monotonic() - began[0][0], done - began[0][1]
        line = f"fetching {model}: {size(done)} of {size(total)}"
        if not fetched:
            return line
        return f"{line}, {fetched / seconds / 1e6:.1f} MB/s, {(total - done) / fetched * seconds:.0f} s left"

    return status_line(describe) or (lambda done, total: None)


def window(text: str) -> int | list[int | None] | None:
    """A window as it is typed: a number, none, or several with commas, which repeat over the layers."""
    try:
        pattern = [None if part.strip().lower() == "none" else int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"--window is {text!r}.", "Give a number, none, or several with commas, as none,4096,4096,4096."
        ) from None
    return pattern[0] if len(pattern) == 1 else pattern
