"""The thread that owns the model: whoever asks from whatever thread gets an answer, an error, or an end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import pytest

import mistral_mlx as mm
from mistral_mlx.errors import TokenizerError
from mistral_mlx.request import Request
from mistral_mlx.scheduling import Scheduler
from mistral_mlx.server.engine import Engine
from mistral_mlx.text.files import Text
from tests.conftest import make_model

NO_TEXT = Text(TokenizerError("none", ""), TokenizerError("none", ""), False)


def tiny(job: object = None) -> mm.LLM:
    return mm.LLM(make_model(eos_token_ids=()), NO_TEXT)


@pytest.fixture
def start() -> Iterator[Callable[..., Engine]]:
    started: list[Engine] = []

    def begin(**options: Any) -> Engine:
        started.append(Engine(tiny, **options))
        return started[-1]

    yield begin
    for engine in started:
        engine.close()


class Ear:
    """Hears what is delivered."""

    def __init__(self) -> None:
        self.heard: SimpleQueue[mm.Chunk | Exception] = SimpleQueue()

    def __call__(self, chunk: mm.Chunk | Exception) -> None:
        self.heard.put(chunk)

    def whole(self) -> mm.Completion:
        """All of an answer; raises what ended it."""
        chunks: list[mm.Chunk] = []
        while not (chunks and chunks[-1].stats):
            chunk = self.heard.get(timeout=30)
            if isinstance(chunk, Exception):
                raise chunk
            chunks.append(chunk)
        return mm.Completion.join(chunks)


def ask(engine: Engine, ids: list[int], **options: Any) -> tuple[Request, Ear]:
    request, ear = engine.llm.ask(ids, **options), Ear()
    engine.submit(request, ear)
    return request, ear


def test_from_many_threads_each_gets_its_own_answer(start: Callable[..., Engine]) -> None:
    engine, llm = start(max_batch=5), tiny()
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0.9}
    said: dict[int, list[int]] = {}

    def talk(k: int) -> None:
        said[k] = ask(engine, [1, 3 + k, 5], seed=k, **options)[1].whole().tokens

    threads = [threading.Thread(target=talk, args=[k]) for k in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert said == {k: llm.generate([1, 3 + k, 5], seed=k, **options).tokens for k in range(16)}
    assert (engine.state.waiting, engine.state.reading, engine.state.decoding) == (0, 0, 0)
    assert engine.state.alive


def test_a_model_that_cannot_be_loaded_leaves_nothing_behind() -> None:
    def load(job: object) -> mm.LLM:
        raise mm.InputError("There is none.")

    before = threading.active_count()
    with pytest.raises(mm.InputError, match="There is none"):
        Engine(load)
    assert threading.active_count() == before


def test_more_than_may_wait_are_told_to_come_again(start: Callable[..., Engine]) -> None:
    engine = start(max_batch=1, max_queue=1)
    first, ear = ask(engine, [1, 3], max_tokens=100_000)
    ask(engine, [1, 4], max_tokens=3)
    with pytest.raises(mm.BusyError) as caught:
        ask(engine, [1, 5], max_tokens=3)
    assert caught.value.retry_after > 0
    engine.cancel(first)
    assert ear.whole().finish_reason == "cancelled"
    while engine.state.waiting:
        pass
    assert len(ask(engine, [1, 5], max_tokens=3)[1].whole().tokens) == 3


def test_who_cannot_be_told_is_cancelled_and_others_go_on(start: Callable[..., Engine]) -> None:
    engine = start()
    told = []

    def deaf(chunk: mm.Chunk | Exception) -> None:
        told.append(chunk)
        raise RuntimeError("gone")

    engine.submit(engine.llm.ask([1, 3], max_tokens=100_000), deaf)
    assert len(ask(engine, [1, 4], max_tokens=30)[1].whole().tokens) == 30
    while engine.state.decoding:
        pass
    assert len(told) <= 3


def test_a_fault_of_our_own_ends_what_was_begun_and_nothing_later(
    start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start()
    whole, fail = Scheduler.step, threading.Event()

    def step(self: Scheduler) -> Any:
        if fail.is_set():
            fail.clear()
            raise AssertionError("ours")
        return whole(self)

    monkeypatch.setattr(Scheduler, "step", step)
    ears = [ask(engine, [1, 3 + k], max_tokens=100_000)[1] for k in range(3)]
    fail.set()
    for ear in ears:
        with pytest.raises(AssertionError, match="ours"):
            ear.whole()
    assert len(ask(engine, [1, 4], max_tokens=3)[1].whole().tokens) == 3


def test_while_it_drains_what_was_begun_is_answered(start: Callable[..., Engine]) -> None:
    engine = start()
    _, ear = ask(engine, [1, 3], max_tokens=50)
    engine.drain()
    with pytest.raises(mm.BusyError, match="stopping"):
        ask(engine, [1, 4])
    assert len(ear.whole().tokens) == 50
    engine.close()
    assert not engine.state.alive


def test_closed_it_ends_everything_as_it_stands(start: Callable[..., Engine]) -> None:
    engine = start(max_batch=1)
    ears = [ask(engine, [1, 3 + k], max_tokens=100_000)[1] for k in range(2)]
    assert isinstance(ears[0].heard.get(timeout=30), mm.Chunk)
    engine.close()
    assert [ear.whole().finish_reason for ear in ears] == ["cancelled"] * 2


def test_what_comes_just_before_the_end_is_ended_too(start: Callable[..., Engine]) -> None:
    for _ in range(5):
        engine = start()
        ears = [ask(engine, [1, 3 + k], max_tokens=100_000)[1] for k in range(3)]
        engine.close()
        assert [ear.whole().finish_reason for ear in ears] == ["cancelled"] * 3


def test_an_engine_that_dies_leaves_nobody_waiting(
    start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start()
    _, ear = ask(engine, [1, 3], max_tokens=100_000)
    monkeypatch.setattr(engine, "_count", lambda: 1 / 0)
    with pytest.raises(mm.BusyError):
        ear.whole()
    with pytest.raises(mm.BusyError):
        ask(engine, [1, 4])
    assert not engine.state.alive


def test_what_is_kept_for_later_has_a_limit(start: Callable[..., Engine]) -> None:
    engine = start(reuse_bytes=0)
    for k in range(4):
        ask(engine, [1, 3 + k, *[7] * 50], max_tokens=3)[1].whole()
    assert engine.state.reuse_bytes <= engine.llm.memory(256).cache  # the last one's
    assert engine.state.cache_bytes == 0


def test_what_had_not_begun_when_all_were_told_of_a_failure_is_not_answered(
    start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, step = start(), Scheduler.step
    late: list[Ear] = []

    def fails(self: Scheduler) -> Iterator[Any]:
        if not late:
            late.append(ask(engine, [1, 4], max_tokens=1_000_000)[1])
            raise RuntimeError("once")
        return step(self)

    monkeypatch.setattr(Scheduler, "step", fails)
    _, ear = ask(engine, [1, 3], max_tokens=3)
    with pytest.raises(RuntimeError, match="once"):
        ear.whole()
    with pytest.raises(RuntimeError, match="once"):
        late[0].whole()
    assert len(ask(engine, [1, 5], max_tokens=3)[1].whole().tokens) == 3
    end = time.monotonic() + 20
    while engine.state.reading or engine.state.decoding:
        assert time.monotonic() < end
    assert late[0].heard.empty()
