"""Reading prompts of several lengths, to the logits after the last token."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import mlx.core as mx

from benchmarks.bounds import reading
from benchmarks.paired import OURS, Result, Row, interleave
from benchmarks.sides import CHUNKS, Sides, empty_peer, generate_step, prompt, synthetic
from mistral_mlx.engine.reading import prefill

LENGTHS = (512, 4096, 16384, 32768)
# The long ones take half a minute each.
MOST_ROUNDS = {16384: 2, 32768: 2}


def measure(rounds: int) -> Result:
    """Seconds per prompt."""
    rows, bounds, chunks = [], {}, {}
    for shape in ("reading-7b", "reading-attention"):
        sides = synthetic(shape)
        _ours(sides, 512), _theirs(sides, 512, CHUNKS["theirs"])
        chunk, tried = _best_chunk(sides)
        chunks[shape] = {"taken": chunk, "tried": tried}
        taken: dict[int, tuple[list[float], list[float]]] = {}
        for tokens in LENGTHS:
            times = min(rounds, MOST_ROUNDS.get(tokens, rounds))
            ours, theirs = interleave(times, partial(_ours, sides, tokens), partial(_theirs, sides, tokens, chunk))
            taken[tokens] = ours, theirs
            full, windowed = reading(sides.config, tokens, chunk)[0], reading(sides.config, tokens, CHUNKS["ours"])[1]
            bounds[f"{shape}, {tokens}"] = {"full_s": full, "windowed_s": windowed, "ratio": full / windowed}
            rows.append(Row.of(f"{shape}, {tokens:,} tokens", "s", ours, theirs, 0.9 * full / windowed))
        # Twice the prompt may take 2.1 times as long: the other side is twice our time for the half.
        half, whole = LENGTHS[-2:]
        doubled = [2 * seconds for seconds in taken[half][0]]
        peer = f"{OURS} at {half:,}, twice"
        rows.append(Row.of(f"{shape}, {whole:,} tokens", "s", taken[whole][0], doubled, 2 / 2.1, peer))
    return Result("prefill", rows, CHUNKS, {"their_chunk": chunks, "bounds": bounds})


def _ours(sides: Sides, tokens: int) -> float:
    ids = prompt(tokens, sides.config)
    start = time.perf_counter()
    logits = prefill(sides.ours, ids, sides.ours.make_cache(tokens))
    mx.eval(logits)
    return time.perf_counter() - start


def _theirs(sides: Sides, tokens: int, chunk: int) -> float:
    """To the first token, for that is where its logits are; with none to follow it computes no step ahead."""
    ids, cache = mx.array(prompt(tokens, sides.config)), empty_peer(sides.theirs)
    mx.eval(ids)
    start = time.perf_counter()
    for _ in generate_step(ids, sides.theirs, max_tokens=0, prompt_cache=cache, prefill_step_size=chunk):
        pass
    mx.eval([layer.state for layer in cache])
    return time.perf_counter() - start


def _best_chunk(sides: Sides) -> tuple[int, dict[str, float]]:
    """mlx-lm's own chunk, or ours if that makes it faster; and its seconds for 4,096 tokens with each."""
    sizes = sorted(set(CHUNKS.values()), reverse=True)
    once: list[Callable[[], float]] = [partial(_theirs, sides, 4096, size) for size in sizes]
    seconds = dict(zip(sizes, map(median, interleave(3, *once)), strict=True))
    return min(sizes, key=lambda size: seconds[size]), {str(size): taken for size, taken in seconds.items()}
