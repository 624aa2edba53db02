"""Time to the first token of a turn, in a chat that has grown past its window.

A round plays the same scenes on both sides, each going on from its own answers:

    cold      a document and a question, with nothing read before
    warm      another question about the document, which alone has been read before
    turn 10   of a chat that began with the document, by then well past the window
    edit      another question in place of the one two turns back
    all       what turn 10 and the edit would take if every token were read again
"""

from __future__ import annotations

import gc
import time
from abc import ABC, abstractmethod
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import trim_prompt_cache

from benchmarks.paired import OURS, Result, Row
from benchmarks.sides import CHUNKS, Sides, empty_peer, generate_step, prompt, synthetic

DOCUMENT, QUESTION, ANSWER, TURNS = 1200, 150, 16, 10


def measure(rounds: int) -> Result:
    """Seconds to the first token."""
    sides = synthetic("chat")
    ours, theirs = Ours(sides), Theirs(sides)
    _play(ours, turns=2), _play(theirs, turns=2)
    scenes: list[list[dict[str, float]]] = [[], []]
    for _ in range(rounds):
        for side, played in zip((ours, theirs), scenes, strict=True):
            gc.collect()
            played.append(_play(side))

    def row(scene: str, beside: str = "", target: float | None = None) -> Row:
        mine = [played[scene] for played in scenes[0]]
        if beside:
            return Row.of(scene, "s", mine, [p[beside] for p in scenes[0]], target, f"{OURS}, reading it all")
        return Row.of(scene, "s", mine, [p[scene] for p in scenes[1]], target)

    late = f"turn {TURNS}"
    rows = [row("cold", target=1.0)]
    for scene, whole in (("warm", "cold"), (late, f"{late}, all"), ("edit", "edit, all")):
        rows += [row(scene, whole, 10.0 if scene != "warm" else None), row(scene, target=1.0)]
    lengths = {"document": DOCUMENT, "question": QUESTION, "answer": ANSWER, "window": sides.config.windows[0]}
    return Result("chat", rows, CHUNKS, {"tokens": lengths | {"reused by ours": ours.reused}})


class Side(ABC):
    """One of the two, asked by ids, and keeping what it can between its answers."""

    def __init__(self, sides: Sides) -> None:
        self.sides = sides

    @abstractmethod
    def forget(self) -> None:
        """Keep nothing of what was read."""

    @abstractmethod
    def ask(self, ids: list[int], tokens: int = ANSWER) -> tuple[float, list[int]]:
        """Seconds to the first token, and the answer."""


class Ours(Side):
    """Ours as it is.

    Attributes:
        reused: tokens of the last prompt that were not read.
    """

    def __init__(self, sides: Sides) -> None:
        super().__init__(sides)
        self.llm = sides.llm
        self.reused = 0

    def forget(self) -> None:
        self.llm.forget()

    def ask(self, ids: list[int], tokens: int = ANSWER) -> tuple[float, list[int]]:
        start, first, answer = time.perf_counter(), 0.0, []
        for chunk in self.llm.stream(ids, max_tokens=tokens, temperature=0.0):
            first = first or time.perf_counter() - start
            answer += chunk.tokens
            if chunk.stats:
                self.reused = chunk.stats.reused_tokens
        return first, answer


class Theirs(Side):
    """mlx-lm with its prompt cache kept between turns, and trimmed to what the next prompt shares with it."""

    def __init__(self, sides: Sides) -> None:
        super().__init__(sides)
        self.forget()

    def forget(self) -> None:
        self.cache: list[Any] = empty_peer(self.sides.theirs)
        self.held: list[int] = []

    def ask(self, ids: list[int], tokens: int = ANSWER) -> tuple[float, list[int]]:
        start = time.perf_counter()
        pairs = enumerate(zip(ids[:-1], self.held, strict=False))
        shared = next((i for i, (a, b) in pairs if a != b), min(len(ids) - 1, len(self.held)))
        if self.held:
            trim_prompt_cache(self.cache, self.cache[0].offset - shared)
        steps = generate_step(mx.array(ids[shared:]), self.sides.theirs, max_tokens=tokens, prompt_cache=self.cache)
        answer = [next(steps)[0]]
        first = time.perf_counter() - start
        answer += [token for token, _ in steps]
        mx.eval([layer.state for layer in self.cache])
        self.held = ids + answer
        return first, answer


def _play(side: Side, turns: int = TURNS) -> dict[str, float]:
    config = side.sides.config
    document = prompt(DOCUMENT, config)
    questions = [prompt(QUESTION, config, seed) for seed in range(1, turns + 2)]
    taken: dict[str, float] = {}
    side.forget()
    taken["cold"] = side.ask(document + questions[-1])[0]
    side.forget()
    side.ask(document, 1)
    taken["warm"] = side.ask(document + questions[-1])[0]
    side.forget()
    history, prompts = document, []
    for question in questions[:turns]:
        prompts.append(history + question)
        seconds, answer = side.ask(prompts[-1])
        history = prompts[-1] + answer
    taken[f"turn {turns}"] = seconds
    edited = prompts[-2][:-QUESTION] + questions[-1]
    taken["edit"] = side.ask(edited)[0]
    for scene, ids in ((f"turn {turns}, all", prompts[-1]), ("edit, all", edited)):
        side.forget()
        taken[scene] = side.ask(ids, 1)[0]
    return taken
