"""Drawings for the README: speed and the cache's bytes against the length of the context, and speed against clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.paired import OURS, PEER, RESULTS, Result

# Each readable on white and on black.
_GREY, _COLOURS = "#7d8590", {"ours": "#2f81f7", "theirs": "#d29922"}


def draw(folder: Path = RESULTS) -> list[Path]:
    """Draw what the stored results of `decode`, `cache` and `serve` have; returns the files written."""
    written = []
    if decode := Result.load("decode", folder):
        for shape, curve in decode.details["curves"].items():
            speeds = {side: [1e3 / ms for ms in curve[side]] for side in ("ours", "theirs")}
            path = folder / f"decode-{shape}.svg"
            _curves(
                path, f"Decoding, shape “{shape}”", "tokens per second", "tokens of context", curve["tokens"], speeds
            )
            written.append(path)
    if cache := Result.load("cache", folder):
        curve = cache.details["curve"]
        _curves(folder / "cache.svg", "Keys and values", "MiB", "tokens of context", curve["tokens"], curve)
        written.append(folder / "cache.svg")
    if serve := Result.load("serve", folder):
        curve = serve.details["curve"]
        _curves(folder / "serve.svg", "Serving", "tokens per second", "clients at once", curve["clients"], curve)
        written.append(folder / "serve.svg")
    return written


def _curves(path: Path, title: str, unit: str, along: str, ticks: list[int], curves: dict[str, Any]) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    grey = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _GREY)
    # Text as text, and no date or random names: the same numbers draw the same bytes.
    settings = {"svg.fonttype": "none", "svg.hashsalt": "benchmarks", "font.size": 9, **grey}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(4.4, 2.8), layout="constrained")
        axes = figure.subplots()
        for side, name in (("ours", OURS), ("theirs", PEER)):
            axes.plot(ticks, curves[side], "o-", ms=3, color=_COLOURS[side], label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{n // 1024}k" if n >= 1024 else str(n) for n in ticks])
        axes.set_ylim(bottom=0)
        axes.set(title=title, xlabel=along, ylabel=unit)
        axes.grid(alpha=0.25, color=_GREY)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        figure.savefig(path, transparent=True, metadata={"Date": None})
