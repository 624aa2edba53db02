"""Measure mistral-mlx beside mlx-lm, print a table for each case, and store what was found.

uv run python -m benchmarks [CASE ...] [--all] [--list] [--rounds N] [--readme]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.cases import CASES, Case
from benchmarks.paired import RESULTS, CannotMeasure
from benchmarks.plots import draw
from benchmarks.tables import README, fill_readme, on_terminal


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--all", action="store_true", help="every case, in less than half an hour on two cores")
    parser.add_argument("--list", action="store_true", help="say what there is, and measure nothing")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often each side is measured")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where results are stored")
    parser.add_argument("--readme", action="store_true", help="write the README's tables from the stored results")
    arguments = parser.parse_args(argv)
    if unknown := [name for name in arguments.cases if name not in CASES]:
        parser.error(f"there is no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    if arguments.list:
        print("\n".join(f"{name:<12}{case.title} ({case.rounds} rounds)" for name, case in CASES.items()))
        return 0
    names = list(CASES) if arguments.all else arguments.cases
    if not names and not arguments.readme:
        parser.error("name a case, or --all, --list, --readme")
    failed = [name for name in names if not run(CASES[name], arguments.rounds, arguments.results)]
    if names:
        draw(arguments.results)
    if arguments.readme:
        README.write_text(fill_readme(README.read_text(encoding="utf-8")), encoding="utf-8")
    return 1 if failed else 0


def run(case: Case, rounds: int | None, folder: Path) -> bool:
    """Measure, print and store one case; whether that could be done."""
    start = time.perf_counter()
    try:
        result = case.measure(rounds or case.rounds)
    except CannotMeasure as reason:
        print(f"{case.name}: {reason}", file=sys.stderr, flush=True)
        return False
    path = result.save(folder)
    print(f"\n{on_terminal(result)}\n{path.name}, {time.perf_counter() - start:.0f} s", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
