"""Greedy decoding, one token after another, from caches that stand after so many tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx

from benchmarks.bounds import attention, weight_pass
from benchmarks.paired import OURS, Result, Row, interleave
from benchmarks.sides import Sides, check_filled, demo, filled, filled_peer, our_steps, synthetic, their_steps

CONTEXTS = (128, 1024, 4096, 16384, 32768)
WARM, TIMED = 3, 24
SHORT = 128


def measure(rounds: int) -> Result:
    """ms per token."""
    tiny, real = synthetic("tiny32"), demo()[0]
    check_filled(tiny, 300)
    rows = [
        Row.of("tiny32, 128 tokens", "ms", *_in_turn(tiny, [SHORT], rounds)[SHORT], target=1.6),
        Row.of("demo, 128 tokens", "ms", *_in_turn(real, [SHORT], rounds)[SHORT], target=1.05),
    ]
    curves, bounds = {}, {}
    for shape in ("7b", "attention"):
        sides = synthetic(shape)
        check_filled(sides, 2 * (sides.config.windows[0] or 0))
        taken = _in_turn(sides, CONTEXTS, rounds)
        bounds[shape] = _bounds(sides)
        at = [Row.of(f"{shape}, {n:,} tokens", "ms", *taken[n], _target(bounds[shape], n)) for n in CONTEXTS]
        # The promise of the window: far past it a token costs what it cost at its end.
        promise = taken[32768][0], taken[4096][0], 0.97, f"{OURS} at 4,096 tokens"
        rows += [*at, Row.of(f"{shape}, 32,768 tokens", "ms", *promise)]
        curves[shape] = {"tokens": list(CONTEXTS), "ours": [r.ours for r in at], "theirs": [r.theirs for r in at]}
    return Result("decode", rows, details={"curves": curves, "bounds": bounds, "timed_tokens": TIMED})


def _in_turn(sides: Sides, contexts: Any, rounds: int) -> dict[int, tuple[list[float], list[float]]]:
    """For each context the ms per token of both sides, round by round."""
    timers: list[Callable[[], float]] = []
    for tokens in contexts:
        timers += [_our_timer(sides, tokens), _their_timer(sides, tokens)]
    said = interleave(rounds, *timers)
    return {tokens: (said[2 * i], said[2 * i + 1]) for i, tokens in enumerate(contexts)}


def _our_timer(sides: Sides, tokens: int) -> Callable[[], float]:
    cache = filled(sides.ours, tokens)

    def once() -> float:
        taken = per_token(our_steps(sides.ours, cache, WARM + TIMED + 4))
        mx.eval(cache.arrays())
        cache.rewind(cache.position - tokens)
        return taken

    return once


def _their_timer(sides: Sides, tokens: int) -> Callable[[], float]:
    cache = filled_peer(sides.config, tokens)

    def once() -> float:
        taken = per_token(their_steps(sides.theirs, cache, WARM + TIMED + 4))
        mx.eval([c.state for c in cache])  # it is a step ahead
        for layer in cache:
            layer.trim(layer.offset - tokens)
        return taken

    return once


def per_token(steps: Iterator[object]) -> float:
    """ms per token after the first few, which compile and let the cache grow."""
    for _ in range(WARM):
        next(steps)
    start = time.perf_counter()
    for _ in range(TIMED):
        next(steps)
    taken = time.perf_counter() - start
    steps.close()  # type: ignore[attr-defined]
    return 1e3 * taken / TIMED


def _bounds(sides: Sides) -> dict[str, Any]:
    """What a window can bring at most, by context; and the two times it is made of, in ms."""
    config = sides.config
    weights = weight_pass(config)
    keys = {n: attention(config, n) for n in CONTEXTS}
    windowed = keys[config.windows[0] or CONTEXTS[-1]]
    return {
        "weights_ms": 1e3 * weights,
        "attention_ms": {str(n): 1e3 * taken for n, taken in keys.items()},
        "ratio": {str(n): (weights + taken) / (weights + min(taken, windowed)) for n, taken in keys.items()},
    }


def _target(bounds: dict[str, Any], tokens: int) -> float | None:
    """Never slower while the window hides nothing; nine tenths of what is possible far past it."""
    if tokens == 4096:
        return None
    return 1.0 if tokens < 4096 else 0.9 * bounds["ratio"][str(tokens)]
