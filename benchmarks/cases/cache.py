"""Bytes of keys and values after so many tokens, and the most that decoding takes beside what is settled."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx

from benchmarks.cases.decode import CONTEXTS
from benchmarks.paired import Result, Row
from benchmarks.sides import Sides, filled, filled_peer, our_steps, synthetic, their_steps

MIB = 2**20
# Twelve tokens before the length and twelve after it: caches that grow there do so meanwhile.
BEFORE, STEPS = 12, 24


def measure(rounds: int) -> Result:
    """MiB; the same in each round but for what MLX computes ahead."""
    sides = synthetic("7b")
    settled: dict[int, tuple[list[float], list[float]]] = {n: ([], []) for n in CONTEXTS}
    beside: tuple[list[float], list[float]] = [], []
    for _ in range(rounds):
        for tokens in CONTEXTS:
            last = tokens == CONTEXTS[-1]
            for side, (held, most) in enumerate([_ours(sides, tokens, run=last), _theirs(sides, tokens, run=last)]):
                settled[tokens][side].append(held / MIB)
                if last:
                    beside[side].append(most / MIB)
    rows = [Row.of(f"7b, {n:,} tokens", "MiB", *settled[n], target=7.0 if n == 32768 else None) for n in CONTEXTS]
    rows.append(Row.of("beside it, while decoding at 32,768 tokens", "MiB", *beside))
    curve = {"tokens": list(CONTEXTS), "ours": [r.ours for r in rows[:-1]], "theirs": [r.theirs for r in rows[:-1]]}
    return Result("cache", rows, details={"curve": curve, "weights_mib": sides.ours.nbytes / MIB})


def _ours(sides: Sides, tokens: int, *, run: bool) -> tuple[int, int]:
    cache = filled(sides.ours, tokens)
    held = cache.nbytes
    if not run:
        return held, 0
    del cache
    cache = filled(sides.ours, tokens - BEFORE)
    return held, _most(our_steps(sides.ours, cache, STEPS))


def _theirs(sides: Sides, tokens: int, *, run: bool) -> tuple[int, int]:
    cache = filled_peer(sides.config, tokens)
    held = sum(layer.nbytes for layer in cache)
    if not run:
        return held, 0
    del cache
    cache = filled_peer(sides.config, tokens - BEFORE)
    most = _most(their_steps(sides.theirs, cache, STEPS))
    mx.eval([layer.state for layer in cache])
    return held, most


def _most(steps: Iterator[object]) -> int:
    """The most bytes held meanwhile, above those at the beginning."""
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for _ in steps:
        pass
    return mx.get_peak_memory() - before
