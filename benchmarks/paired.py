"""Two sides measured in turn, and what is kept of it: medians, the ratio of each round, on what, with what, when."""

from __future__ import annotations

import gc
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

OURS, PEER = "mistral-mlx", "mlx-lm"
RESULTS = Path(__file__).parent / "results"


class CannotMeasure(Exception):
    """A case that would measure something else than it says; told in one sentence."""


@dataclass(frozen=True)
class Row:
    """One quantity of both sides, less being better.

    Attributes:
        ours, theirs: medians over the rounds, in `unit`.
        ratio: the median over the rounds of theirs / ours, so above 1 is better for us.
        low, high: the least and the largest of these.
        target: the ratio aimed at; None where it is only told.
        peer: who the other side is.
    """

    what: str
    unit: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    rounds: int
    target: float | None = None
    peer: str = PEER

    @classmethod
    def of(
        cls,
        what: str,
        unit: str,
        ours: Sequence[float],
        theirs: Sequence[float],
        target: float | None = None,
        peer: str = PEER,
    ) -> Row:
        """From what the rounds gave, pair by pair."""
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        numbers = (median(ours), median(theirs), median(ratios), min(ratios), max(ratios))
        return cls(what, unit, *numbers, len(ratios), target, peer)

    @property
    def met(self) -> bool | None:
        """Whether the target was reached, where there is one."""
        return None if self.target is None else self.ratio >= self.target


@dataclass(frozen=True)
class Result:
    """What a case found, as it is stored.

    Attributes:
        chunks: tokens of a prompt that each side reads at a time; empty where no prompt is read.
        details: what else the numbers depend on or were held against.
    """

    case: str
    rows: list[Row]
    chunks: dict[str, int] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    sides: dict[str, str] = field(default_factory=lambda: {"ours": OURS, "theirs": PEER})
    machine: dict[str, Any] = field(default_factory=lambda: describe_machine())
    versions: dict[str, str] = field(default_factory=lambda: {p: version(p) for p in ("mlx", PEER, OURS)})
    date: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())

    def save(self, folder: Path = RESULTS) -> Path:
        """Write it as CASE.json."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.case}.json"
        path.write_text(json.dumps(_rounded(asdict(self)), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, case: str, folder: Path = RESULTS) -> Result | None:
        """What was stored; None if nothing was."""
        path = folder / f"{case}.json"
        if not path.exists():
            return None
        stored = json.loads(path.read_text(encoding="utf-8"))
        return cls(**stored | {"rows": [Row(**row) for row in stored["rows"]]})


def interleave(rounds: int, *sides: Callable[[], float]) -> list[list[float]]:
    """Measure in turn, A B A B …, so that what else the machine does meets all alike.

    Returns:
        For each side, what it said in each round.
    """
    said: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for column, once in zip(said, sides, strict=True):
            gc.collect()
            column.append(once())
    return said


def describe_machine() -> dict[str, Any]:
    """What the numbers were measured on; nothing that tells whose it is."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _cpu() -> str:
    if sys.platform == "darwin":
        done = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
        return done.stdout.strip()
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _rounded(value: Any) -> Any:
    """Four digits of every float: more would be noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, Iterable) and not isinstance(value, str) else value
