"""What one decode step asks of the backend: the nodes of its lazy graph, and the Python time to build it.

Both sides are looked at from outside: whatever they give to mx.eval or mx.async_eval between two tokens is drawn with
mx.export_to_dot first, and its primitives are counted. A compiled kernel is one; views, which launch nothing, are none.
MLX's CPU backend takes its fused kernels apart, on both sides alike.
"""

from __future__ import annotations

import io
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from benchmarks.paired import Result, Row
from benchmarks.sides import Sides, demo, filled, filled_peer, our_steps, synthetic, their_steps

VIEWS = frozenset({
    "AsStrided", "Broadcast", "BroadcastAxes", "Copy", "Depends", "ExpandDims", "Flatten", "NumberOfElements",
    "Reshape", "Slice", "Split", "Squeeze", "StopGradient", "Transpose", "Unflatten", "View",
})  # fmt: skip
CONTEXT, STEPS = 128, 12
# Deep in the window the ring has turned, and the slots out of sight are masked.
TURNED = 8192


def measure(rounds: int) -> Result:
    """Primitives per step, and ms to build it."""
    rows, kinds = [], {}
    for name, sides, tokens in (
        ("tiny32, 128 tokens", synthetic("tiny32"), CONTEXT),
        ("tiny32, 8,192 tokens", synthetic("tiny32"), TURNED),
        ("demo, 128 tokens", demo()[0], CONTEXT),
    ):
        pairs = [(_ours(sides, tokens), _theirs(sides, tokens)) for _ in range(rounds)]
        for what, unit in (("dispatched", "primitives"), ("milliseconds", "ms")):
            values = [[float(getattr(pair[i], what)) for pair in pairs] for i in (0, 1)]
            label = name if unit == "primitives" else f"{name}, building the graph"
            rows.append(Row.of(label, unit, *values, target=1 / 0.75 if unit == "primitives" else None))
        kinds[name] = {"ours": dict(pairs[0][0].kinds.most_common()), "theirs": dict(pairs[0][1].kinds.most_common())}
    return Result("graph", rows, details={"primitives": kinds, "views": sorted(VIEWS)})


def build_ms() -> float:
    """Milliseconds of Python that a step of a model with as many layers as Mistral 7B needs before MLX can run it."""
    return _ours(synthetic("tiny32"), CONTEXT).milliseconds


@dataclass
class Step:
    """What came to be evaluated between two tokens.

    Attributes:
        kinds: how many primitives of each name, views apart.
        milliseconds: time of Python outside of evaluation.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    milliseconds: float = 0.0

    @property
    def dispatched(self) -> int:
        return self.kinds.total()


def primitives(*arrays: Any) -> Counter[str]:
    """The primitives of a graph that has not been evaluated, views apart."""
    leaves = [leaf for _, leaf in tree_flatten(arrays) if isinstance(leaf, mx.array)]
    drawn = io.StringIO()
    mx.export_to_dot(drawn, *leaves)
    # A node each, though calls of one compiled function share its primitives, and with them the names of nodes.
    return Counter(name for name in re.findall(r'\[label ="(\w+)', drawn.getvalue()) if name not in VIEWS)


@contextmanager
def watched(step: Step, *, count: bool) -> Iterator[None]:
    """Meanwhile, note what is given to MLX to evaluate: counted, or timed, for counting takes time."""
    originals = {name: getattr(mx, name) for name in ("eval", "async_eval")}
    resumed = time.perf_counter()

    def watch(name: str) -> Any:
        def evaluate(*arrays: Any) -> None:
            nonlocal resumed
            step.milliseconds += 1e3 * (time.perf_counter() - resumed)
            if count:
                step.kinds += primitives(*arrays)
            originals["eval"](*arrays)  # also in place of async_eval: nothing else shall run while a graph is built
            resumed = time.perf_counter()

        return evaluate

    try:
        for name in originals:
            setattr(mx, name, watch(name))
        yield
    finally:
        step.milliseconds += 1e3 * (time.perf_counter() - resumed)
        for name, original in originals.items():
            setattr(mx, name, original)


def _step(steps: Iterator[object]) -> Step:
    """One step in the middle: its primitives, and the median time of those around it."""
    for _ in range(3):
        next(steps)
    counted, timed = Step(), []
    with watched(counted, count=True):
        next(steps)
    for _ in range(STEPS - 5):
        step = Step()
        with watched(step, count=False):
            next(steps)
        timed.append(step.milliseconds)
    steps.close()  # type: ignore[attr-defined]
    return Step(counted.kinds, sorted(timed)[len(timed) // 2])


def _ours(sides: Sides, tokens: int) -> Step:
    cache = filled(sides.ours, tokens)
    step = _step(our_steps(sides.ours, cache, STEPS + 4))
    mx.eval(cache.arrays())
    return step


def _theirs(sides: Sides, tokens: int) -> Step:
    cache = filled_peer(sides.config, tokens)
    step = _step(their_steps(sides.theirs, cache, STEPS + 4))
    mx.eval([layer.state for layer in cache])
    return step
