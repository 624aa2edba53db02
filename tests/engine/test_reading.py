"""Reading prompts: in pieces that can be told and stopped, of a length that takes about so long."""

from __future__ import annotations

import random
from itertools import pairwise
from math import inf

import pytest

from mistral_mlx.engine.reading import PREFILL_CHUNK, ReadingPace, prefill
from tests.conftest import make_model

MODEL = make_model(sliding_window=8)
PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9]


def test_progress_is_told_before_and_after_each_chunk() -> None:
    told: list[tuple[int, int]] = []
    prefill(MODEL, PROMPT, MODEL.make_cache(), chunk=4, progress=lambda *p: told.append(p))
    assert told == [(0, 11), (4, 11), (8, 11), (11, 11)]


def test_a_cancelled_prompt_stops_before_the_next_chunk() -> None:
    cache = MODEL.make_cache()
    answers = iter([False, True])
    assert prefill(MODEL, PROMPT, cache, chunk=4, cancelled=lambda: next(answers)) is None
    assert cache.position == 4


@pytest.mark.parametrize(("once", "each"), [(0.077, 0.0037), (0.01, 0.0005), (0.0, 0.02), (0.03, 0.00001)])
def test_the_pace_finds_how_much_is_read_in_a_time(once: float, each: float) -> None:
    """On a machine whose passes take as long as they took here, and half as long again now and then."""
    chance, pace, seconds = random.Random(1), ReadingPace(), 0.3

    def read(tokens: int) -> None:
        noise = 1.5 if chance.random() < 0.03 else chance.uniform(0.97, 1.03)
        pace.took(tokens, (once + each * tokens) * noise)

    for _ in range(40):
        read(min(chance.randint(1, 600), pace.within(seconds)))
    exact = (seconds - once) / each
    found = [pace.within(seconds)]
    for _ in range(40):
        read(min(chance.randint(1, 600), pace.within(seconds)))
        found.append(pace.within(seconds))
    assert all(tokens % 16 == 0 and 16 <= tokens <= PREFILL_CHUNK for tokens in found)
    middle = sorted(found)[20]
    assert 0.7 * min(exact, PREFILL_CHUNK) - 16 <= middle <= max(16, 1.2 * exact)


def test_the_pace_grows_no_faster_than_it_learns() -> None:
    pace = ReadingPace()
    assert pace.within(0.3) == 64
    assert pace.within(inf) == PREFILL_CHUNK
    pace.took(64, 0.001)
    assert pace.within(0.3) == 128  # nothing is known of more
    pace.took(128, 0.4)
    assert pace.within(0.3) < 128


@pytest.mark.parametrize("length", [20, 50, 96, 100])
def test_prompts_of_one_length_come_to_be_read_together(length: int) -> None:
    """As many at a time as there is time for, though each was read alone at first."""
    pace = ReadingPace()
    for _ in range(20):
        together = max(1, pace.within(0.3) // length)
        pace.took(together * length, 0.05 + 0.0005 * together * length)
    assert together == 500 // length or together == 496 // length


def test_a_prompt_is_read_in_pieces_that_take_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def read(model: object, ids: list[int], cache: object, *, last: bool) -> None:
        clock[0] += 0.1 + 0.01 * len(ids)

    monkeypatch.setattr("mistral_mlx.engine.reading.perf_counter", lambda: clock[0])
    monkeypatch.setattr("mistral_mlx.engine.reading.read_chunk", read)
    told: list[int] = []
    prefill(MODEL, [5] * 600, MODEL.make_cache(), pace=ReadingPace(), seconds=0.5, progress=lambda n, _: told.append(n))
    pieces = [b - a for a, b in pairwise(told)]
    assert pieces[0] == 64
    assert set(pieces[3:-1]) == {32}  # 0.42 s: 48 would take longer than was asked for
