"""Results as tables: on the terminal, and in the README between its markers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.cases import CASES
from benchmarks.paired import PEER, RESULTS, Result, Row

README = Path(__file__).parents[1] / "README.md"
_MARKED = re.compile(r"(<!-- benchmarks:(\w+) -->\n)(.*?)(<!-- /benchmarks:\2 -->)", re.DOTALL)


def cells(row: Row) -> list[str]:
    """What, ours, theirs, ratio, its range, what was aimed at."""
    what = row.what if row.peer == PEER else f"{row.what}, beside {row.peer}"
    aim = "" if row.target is None else f"{'✓' if row.met else '✗'} {row.target:.2f}"
    return [
        what,
        f"{_figure(row.ours)} {row.unit}",
        f"{_figure(row.theirs)} {row.unit}",
        f"{row.ratio:.2f}",
        f"{row.low:.2f} to {row.high:.2f}",
        aim,
    ]


def on_terminal(result: Result) -> str:
    """A table in columns, with what it was measured on below."""
    head = ["", "ours", "theirs", "ratio", "range", "aim"]
    lines = [head, *(cells(row) for row in result.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    return "\n".join([CASES[result.case].title, *rows, _footnote(result)])


def in_markdown(result: Result | None) -> str:
    """The same for the README; empty while there is no result."""
    if result is None:
        return ""
    head = f"| {CASES[result.case].title} | ours | the other | ratio | range | aim |"
    rows = ["| " + " | ".join(cells(row)) + " |" for row in result.rows]
    return "\n".join([head, "|---|---:|---:|---:|---:|---:|", *rows, "", _footnote(result), ""])


def fill_readme(text: str, load: Callable[[str], Result | None] = Result.load) -> str:
    """The README with what stands between its markers written anew from the stored results."""
    return _MARKED.sub(lambda found: found[1] + _between(found[2], load) + found[4], text)


def marked(text: str) -> dict[str, str]:
    """What stands between the README's markers, by name."""
    return {found[2]: found[3] for found in _MARKED.finditer(text)}


def _between(name: str, load: Callable[[str], Result | None]) -> str:
    if name != "plots":
        return in_markdown(load(name))
    drawn = [f"![{path.stem}](benchmarks/results/{path.name})" for path in sorted(RESULTS.glob("*.svg"))]
    return " ".join(drawn) + "\n" if drawn else ""


def _footnote(result: Result) -> str:
    machine, versions = result.machine, result.versions
    chunks = f"; prompts in chunks of {result.chunks['ours']} and {result.chunks['theirs']}" if result.chunks else ""
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['os']}; "
        f"mlx {versions['mlx']}, mlx-lm {versions['mlx-lm']}{chunks}; {result.date}."
    )


def _figure(value: float) -> str:
    """Three digits, and never an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
