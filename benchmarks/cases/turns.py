"""Twenty turns of one chat with the real model, each going on from the answers before, on both sides alike."""

from __future__ import annotations

import gc
import time

from benchmarks.cases.chat import Ours, Side, Theirs
from benchmarks.paired import Result, Row
from benchmarks.sides import CHUNKS, demo, prompt

TURNS, QUESTION, ANSWER = 20, 24, 16


def measure(rounds: int) -> Result:
    """Seconds of the whole chat, and to the first token of its last turn."""
    sides, _ = demo()
    ours, theirs = Ours(sides), Theirs(sides)
    _play(ours, 2), _play(theirs, 2)
    played: list[list[tuple[float, float]]] = [[], []]
    for _ in range(rounds):
        for side, said in zip((ours, theirs), played, strict=True):
            gc.collect()
            said.append(_play(side, TURNS))
    columns = [[[once[i] for once in said] for said in played] for i in (0, 1)]
    rows = [
        Row.of(f"demo, {TURNS} turns", "s", *columns[0], target=1.0),
        Row.of(f"demo, turn {TURNS}, first token", "s", *columns[1], target=1.0),
    ]
    kept = {"cache": ours.llm.prefixes.cache_bytes, "kept besides": ours.llm.prefixes.reuse_bytes}
    tokens = {"turns": TURNS, "question": QUESTION, "answer": ANSWER, "reused at the end": ours.reused}
    return Result("turns", rows, CHUNKS, {"tokens": tokens, "our bytes at the end": kept})


def _play(side: Side, turns: int) -> tuple[float, float]:
    side.forget()
    history: list[int] = []
    first, start = 0.0, time.perf_counter()
    for turn in range(turns):
        history += prompt(QUESTION, side.sides.config, turn)
        first, answer = side.ask(history, ANSWER)
        history += answer
    return time.perf_counter() - start, first
