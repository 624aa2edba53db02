"""What is measured: one module for each case, imported only when it runs, with `measure(rounds) -> Result`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from benchmarks.paired import CannotMeasure, Result
from mistral_mlx.backend import preload_blas


@dataclass(frozen=True)
class Case:
    """A comparison.

    Attributes:
        title: what is compared, in a line.
        rounds: how often each side is measured, unless it is said.
    """

    title: str
    rounds: int

    @property
    def name(self) -> str:
        """What the command, the module and the file of results are called."""
        return next(name for name, case in CASES.items() if case is self)

    @property
    def measure(self) -> Callable[[int], Result]:
        """What runs it; importing it imports MLX, which by then must have its fast BLAS, for both sides.

        Raises:
            CannotMeasure: there is none on Linux; any comparison would be one of matrix products at their slowest.
        """
        if not preload_blas() and sys.platform == "linux":
            raise CannotMeasure("MLX has its slow BLAS here, so nothing is measured: install cmeel-openblas.")
        measure: Callable[[int], Result] = import_module(f"benchmarks.cases.{self.name}").measure
        return measure


CASES = {
    "decode": Case("Time for a token, against the length of the context", 5),
    "cache": Case("Bytes of keys and values, and what a step takes beside them", 2),
    "prefill": Case("Time to read a prompt, against its length", 3),
    "batch": Case("Time for several answers at once", 3),
    "chat": Case("Time to the first token: cold, warm, late in a chat, after an edit", 3),
    "turns": Case("Twenty turns of one chat with the real model", 2),
    "start": Case("From starting Python to the first token, in processes of their own", 5),
    "graph": Case("Primitives that a step dispatches, and the time to build its graph", 3),
    "speculation": Case("Time for a token of an edited text, with drafts from its own n-grams", 2),
    "serve": Case("Time for a token of many clients' answers over HTTP, and to the first of each", 3),
}
