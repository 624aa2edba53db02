"""Requests that come and go: each says what it says alone, and whatever goes wrong with one ends that one."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mistral_mlx as mm
from mistral_mlx import scheduling
from mistral_mlx.engine.reading import ReadingPace, prefill_bytes
from mistral_mlx.errors import TokenizerError
from mistral_mlx.model import ring as ring_module
from mistral_mlx.model.cache import Cache
from mistral_mlx.model.step import Step
from mistral_mlx.request import Request
from mistral_mlx.scheduling import Scheduler
from mistral_mlx.text.files import Text
from tests.conftest import make_model

NO_TEXT = Text(TokenizerError("none", ""), TokenizerError("none", ""), False)
WINDOWS: dict[str, Any] = {"window": 8, "full": None, "mix": (None, 8)}
MARK = 63  # of the request that something goes wrong with


@pytest.fixture(autouse=True)
def _small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module, "SMALLEST_CAPACITY", 4)


@pytest.fixture(scope="module", params=WINDOWS)
def llm(request: pytest.FixtureRequest) -> mm.LLM:
    return mm.LLM(make_model(sliding_window=WINDOWS[request.param]), NO_TEXT)


class Hasty(Scheduler):
    """Reads one piece a step, however long the steps take."""

    _patience = 0.0


def scheduler(llm: mm.LLM, kind: type[Scheduler] = Hasty, **options: Any) -> Scheduler:
    llm.forget()
    return kind(llm.model, llm.prefixes, llm.pace, **options)


class Told:
    """What was told of each request."""

    def __init__(self) -> None:
        self.tokens: dict[Request, list[int]] = {}
        self.ends: dict[Request, mm.Stats | Exception] = {}
        self.reasons: dict[Request, str | None] = {}

    def take(self, events: Iterator[Any]) -> None:
        for request, chunk in events:
            assert request not in self.ends, "something came after the end"
            if isinstance(chunk, Exception):
                self.ends[request] = chunk
                continue
            self.tokens.setdefault(request, []).extend(chunk.tokens)
            if chunk.stats:
                self.ends[request], self.reasons[request] = chunk.stats, chunk.finish_reason


def run(s: Scheduler, told: Told | None = None) -> Told:
    told = told or Told()
    while not s.idle:
        told.take(s.step())
    return told


def alone(llm: mm.LLM, ids: list[int], **options: Any) -> list[int]:
    llm.forget()
    return llm.generate(ids, **options).tokens


def some(count: int, seed: int = 0) -> list[tuple[list[int], dict[str, Any]]]:
    chance = random.Random(seed)
    return [
        (
            [1, *chance.choices(range(3, MARK), k=chance.choice([1, 2, 9, 40, 150]))],
            {"max_tokens": chance.randint(1, 30), "temperature": chance.choice([0.0, 0.8]), "seed": k},
        )
        for k in range(count)
    ]


@pytest.mark.parametrize("keep", [False, True])
def test_whenever_they_come_and_go_each_says_what_it_says_alone(llm: mm.LLM, keep: bool) -> None:
    chance, given = random.Random(5), some(24)
    expected = [alone(llm, ids, **options) for ids, options in given]
    s, told, requests = scheduler(llm, Scheduler if keep else Hasty, rows=5, keep=keep), Told(), []
    cancelled: set[int] = set()
    for k, (ids, options) in enumerate(given):
        request = llm.ask(ids, **options)
        requests.append(request)
        s.add(request)
        for _ in range(chance.choice([0, 1, 6])):
            told.take(s.step())
        if chance.random() < 0.25:
            s.cancel(request)
            cancelled.add(k)
    run(s, told)
    for k, request in enumerate(requests):
        said = told.tokens.get(request, [])
        if told.reasons[request] == "cancelled":
            assert k in cancelled
            assert said == expected[k][: len(said)]
        else:
            assert said == expected[k]
        assert told.ends[request].prompt_tokens == len(request.ids)  # type: ignore[union-attr]


def test_what_was_said_need_not_be_read_again(llm: mm.LLM) -> None:
    s = scheduler(llm, keep=True)
    first = llm.ask([1, 5, 6, 7], max_tokens=12)
    s.add(first)
    said = run(s).tokens[first]
    then = llm.ask([1, 5, 6, 7, *said, 9, 10], max_tokens=3)
    s.add(then)
    told = run(s)
    assert told.ends[then].reused_tokens == 4 + 11  # type: ignore[union-attr]  # the last token said was not read
    assert told.tokens[then] == alone(llm, then.ids, max_tokens=3)


def test_a_long_prompt_lets_others_speak(llm: mm.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling._Prompt, "chunk", 16)
    s, told = scheduler(llm), Told()
    short, long = llm.ask([1, 3], max_tokens=40, logit_bias={2: -99}), llm.ask([1, *[4, 5] * 150], max_tokens=4)
    s.add(short)
    told.take(s.step())
    s.add(long)
    before = len(told.tokens[short])
    while long not in told.tokens:
        told.take(s.step())
    assert len(told.tokens[short]) - before >= 301 // 16
    late = llm.ask([1, 7], max_tokens=2)
    s.add(late)
    run(s, told)
    assert told.tokens[late] == alone(llm, [1, 7], max_tokens=2)


def test_a_late_short_prompt_need_not_wait_for_a_long_one(llm: mm.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling._Prompt, "chunk", 16)
    s, told = scheduler(llm), Told()
    long, late = llm.ask([1, *[4, 5] * 150], max_tokens=4), llm.ask([1, 7], max_tokens=2)
    s.add(long)
    told.take(s.step())
    s.add(late)
    for _ in range(3):
        told.take(s.step())
    assert late in told.ends
    assert long not in told.tokens
    run(s, told)


def test_as_many_begin_as_there_is_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = mm.LLM(make_model(sliding_window=None, eos_token_ids=()), NO_TEXT)
    one = llm.memory(300, 20)
    # Room for three of 300 tokens, for what joining takes, and for reading several together.
    together = prefill_bytes(llm.config, one.chunk, 4, one.chunk) + 3 * 16 * llm.config.vocab_size
    limit = one.weights + 5 * one.cache + together
    monkeypatch.setattr("mistral_mlx.memory.memory_limit", lambda: limit)
    s, told = scheduler(llm), Told()
    requests = [llm.ask([1, *range(3, 22)], max_tokens=280, seed=k, temperature=1.0) for k in range(5)]
    for request in requests:
        s.add(request)
    most = 0
    while not s.idle:
        told.take(s.step())
        most = max(most, s.reading + s.decoding)
    assert most == 3
    assert all(len(told.tokens[request]) == 280 for request in requests)
    llm.forget()


# ---- whatever goes wrong ----------------------------------------------------------------------------------------

Fault = Callable[[pytest.MonkeyPatch, Request], None]


def at_admission(patch: pytest.MonkeyPatch, marked: Request) -> None:
    patch.setattr(marked, "params", None)  # of which no row can be made


def at_the_door(patch: pytest.MonkeyPatch, marked: Request) -> None:
    patch.setattr(marked, "memory", None)  # by which nothing can be decided


def at_reading(patch: pytest.MonkeyPatch, marked: Request) -> None:
    for name in ("read_chunk", "read_together"):
        whole = getattr(scheduling, name)

        def reading(model: Any, ids: Any, *args: Any, whole: Any = whole, **given: Any) -> Any:
            if any(MARK in (each if isinstance(each, list) else [each]) for each in ids):
                raise RuntimeError("reading")
            return whole(model, ids, *args, **given)

        patch.setattr(scheduling, name, reading)


def at_a_step(patch: pytest.MonkeyPatch, marked: Request) -> None:
    """Every step that the marked one is in fails, once it has said three tokens."""
    whole = scheduling.Batch.step

    def step(batch: Any) -> Any:
        if marked.answer.count >= 3 and any(row.params is marked.params for row in batch.rows):
            raise RuntimeError("step")
        return whole(batch)

    patch.setattr(scheduling.Batch, "step", step)


def at_sampling(patch: pytest.MonkeyPatch, marked: Request) -> None:
    from mistral_mlx.engine import choice

    whole = choice.sample

    def sample(scores: Any, params: Any, keys: Any = None) -> Any:
        if params is marked.params and marked.answer.count >= 2:
            raise RuntimeError("sample")
        return whole(scores, params, keys)

    patch.setattr(choice, "sample", sample)


def in_the_form(patch: pytest.MonkeyPatch, marked: Request) -> None:
    class Form:
        over = False

        def allowed(self) -> Any:
            raise RuntimeError("form")

        def accept(self, token: int) -> None: ...

    patch.setattr(marked, "constraint", Form())


def at_accepting(patch: pytest.MonkeyPatch, marked: Request) -> None:
    class Form:
        over = False

        def allowed(self) -> Any:
            return mx.ones(64, mx.bool_)

        def accept(self, token: int) -> None:
            raise RuntimeError("accept")

    patch.setattr(marked, "constraint", Form())


def at_decoding_text(patch: pytest.MonkeyPatch, marked: Request) -> None:
    def feed(token: Any) -> Any:
        raise RuntimeError("text")

    patch.setattr(marked.answer, "feed", feed)


def at_the_end(patch: pytest.MonkeyPatch, marked: Request) -> None:
    def end(stats: Any) -> Any:
        raise RuntimeError("end")

    patch.setattr(marked.answer, "end", end)


FAULTS = [
    at_the_door,
    at_admission,
    at_reading,
    at_a_step,
    at_sampling,
    in_the_form,
    at_accepting,
    at_decoding_text,
    at_the_end,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("length", [3, 200], ids=["short", "long"])
def test_one_that_fails_fails_alone(fault: Fault, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = mm.LLM(make_model(sliding_window=WINDOWS["mix"]), NO_TEXT)
    given = some(5, seed=length)
    expected = [alone(llm, ids, **options) for ids, options in given]
    s, told = scheduler(llm, rows=6), Told()
    requests = [llm.ask(ids, **options) for ids, options in given]
    marked = llm.ask([1, *[MARK] * length], max_tokens=20, temperature=1.3, seed=1)
    fault(monkeypatch, marked)
    for request in [*requests[:3], marked, *requests[3:]]:
        s.add(request)
    run(s, told)
    assert isinstance(told.ends[marked], Exception)
    assert [told.tokens[request] for request in requests] == expected
    after = llm.ask([1, 9], max_tokens=5)
    s.add(after)
    assert run(s, told).tokens[after] == alone(llm, [1, 9], max_tokens=5)


@pytest.mark.parametrize("which", [2, 5])
def test_after_a_step_that_failed_by_chance_all_go_on(llm: mm.LLM, which: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [(ids, {**options, "max_tokens": 25, "frequency_penalty": 0.5}) for ids, options in some(5)]
    expected = [alone(llm, ids, **options) for ids, options in given]
    whole, count = Step.__call__, 0

    def step(self: Any, *args: Any) -> Any:
        nonlocal count
        count += 1
        if count == which * 3:
            raise RuntimeError("by chance")
        return whole(self, *args)

    s = scheduler(llm)
    requests = [llm.ask(ids, **options) for ids, options in given]
    for request in requests:
        s.add(request)
    monkeypatch.setattr(Step, "__call__", step)
    told = run(s)
    assert [told.tokens[request] for request in requests] == expected


def test_steps_that_fail_again_and_again_end_all_that_are_in_them(llm: mm.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: Any, *args: Any) -> Any:
        raise RuntimeError("always")

    s = scheduler(llm)
    requests = [llm.ask([1, 5 + k], max_tokens=9) for k in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr(Step, "__call__", step)
        for request in requests:
            s.add(request)
        told = run(s)
    assert all(isinstance(told.ends[request], RuntimeError) for request in requests)
    after = llm.ask([1, 9], max_tokens=5)
    s.add(after)
    assert run(s).tokens[after] == alone(llm, [1, 9], max_tokens=5)


# ---- what prompts are worth -------------------------------------------------------------------------------------


def test_a_prompt_is_scored_as_it_is_read(llm: mm.LLM) -> None:
    ids = [1, *[4, 9, 5] * 30]
    request = llm.ask(ids, max_tokens=3)
    request.score_prompt = 2
    s = scheduler(llm)
    s.add(request)
    s.add(llm.ask([1, 4, 9], max_tokens=9))
    told = run(s)
    scores = [token.logprob for token in request.prompt_scores]
    assert scores == pytest.approx(llm.score(ids).tolist(), abs=2e-5)
    assert [token.id for token in request.prompt_scores] == ids[1:]
    assert all(len(token.top) == 2 and max(token.top.values()) >= token.logprob for token in request.prompt_scores)
    assert told.tokens[request] == alone(llm, ids, max_tokens=3)


def test_a_prompt_may_be_read_only(llm: mm.LLM) -> None:
    request = llm.ask([1, 4, 9], max_tokens=1)
    request.only_read = True
    s = scheduler(llm)
    s.add(request)
    told = run(s)
    assert (told.tokens[request], told.reasons[request]) == ([], "length")
    assert told.ends[request].completion_tokens == 0  # type: ignore[union-attr]


def test_a_prompt_is_scored_once_for_all_who_ask(llm: mm.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, pieces = [1, *range(3, 60)], []
    score_chunk = scheduling.score_chunk

    def scored(model: Any, piece: list[int], *given: Any) -> Any:
        pieces.append(len(piece))
        return score_chunk(model, piece, *given)

    monkeypatch.setattr(scheduling, "score_chunk", scored)
    monkeypatch.setattr(scheduling._Prompt, "chunk", 20)
    s = scheduler(llm)
    requests = [llm.ask(ids, max_tokens=2, seed=k, temperature=1.0) for k in range(3)]
    for request in requests:
        request.score_prompt = 1
    for request in requests[:2]:
        s.add(request)
    list(s.step())
    s.add(requests[2])  # while it is being scored
    told = run(s)
    assert sum(pieces) == len(ids)
    assert requests[0].prompt_scores == requests[1].prompt_scores == requests[2].prompt_scores
    assert len(requests[2].prompt_scores) == len(ids) - 1
    expected = [alone(llm, ids, max_tokens=2, seed=k, temperature=1.0) for k in range(3)]
    assert [told.tokens[request] for request in requests] == expected


class Third:
    """What a form asks for: each third token may come, another third each time."""

    over = False

    def __init__(self) -> None:
        self.said: list[int] = []

    def allowed(self) -> np.ndarray:
        return np.arange(64) % 3 == len(self.said) % 3

    def accept(self, token: int) -> None:
        self.said.append(token)


def test_who_could_not_join_is_held_to_its_form_from_the_beginning(
    llm: mm.LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, failed = scheduling.Batch._place, []

    def fails(*given: Any) -> None:
        if not failed:
            failed.append(True)
            raise RuntimeError("no room")
        place(*given)

    monkeypatch.setattr(scheduling.Batch, "_place", fails)
    s, told = scheduler(llm), Told()
    requests = [llm.ask([7 + k, 9], max_tokens=6, logit_bias={2: -99}) for k in range(2)]
    for request in requests:
        request.constraint = Third()  # type: ignore[assignment]
        s.add(request)
    run(s, told)
    assert failed
    for request in requests:
        assert [token % 3 for token in told.tokens[request]] == [0, 1, 2, 0, 1, 2]


# ---- what it holds ----------------------------------------------------------------------------------------------


def test_no_more_is_held_than_was_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is room for nothing else, a prompt is not kept beside the copy that its answer goes on with."""
    llm = mm.LLM(make_model(sliding_window=None, eos_token_ids=()), NO_TEXT)
    ids = [1, *[4, 5] * 100]
    total, one = llm.memory(300, len(ids)).total, llm.memory(300).cache
    monkeypatch.setattr("mistral_mlx.memory.memory_limit", lambda: total)
    s = scheduler(llm, keep=True)
    s.add(llm.ask(ids, max_tokens=100))
    while not s.idle:
        list(s.step())
        assert s.cache_bytes + llm.prefixes.cache_bytes + llm.prefixes.reuse_bytes <= one


@pytest.mark.parametrize("count", [1, 4])
def test_room_is_made_for_each_who_asks_the_same(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = mm.LLM(make_model(sliding_window=None, eos_token_ids=()), NO_TEXT)
    llm.prefixes.max_reuse_bytes = 2**30
    for k in range(20):
        llm.generate([3 + k, *[5] * 200], max_tokens=1)
    kept = llm.prefixes.cache_bytes + llm.prefixes.reuse_bytes
    s, one = Hasty(llm.model, llm.prefixes, llm.pace), llm.memory(300, 20)
    together = prefill_bytes(llm.config, one.chunk, 4, one.chunk) + 4 * 16 * llm.config.vocab_size
    # Room for four and what joining takes, but not for all that is kept.
    limit = one.weights + together + (count + 2) * one.cache + kept // 2
    monkeypatch.setattr("mistral_mlx.memory.memory_limit", lambda: limit)
    for k in range(count):
        s.add(llm.ask([k % 2, *range(3, 22)], max_tokens=280, seed=k))
    list(s.step())
    assert s.reading + s.decoding == count
    free = s._free(s._begun)
    assert 0 < llm.prefixes.cache_bytes + llm.prefixes.reuse_bytes <= free


def test_what_was_read_before_counts_as_read(llm: mm.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long conversation with a short new turn is done soon, whatever else is asked."""
    monkeypatch.setattr(scheduling._Prompt, "chunk", 16)
    monkeypatch.setattr(llm.prefixes, "max_reuse_bytes", 2**24)
    s, told = scheduler(llm, keep=True), Told()
    before = llm.ask([3, *[6, 7] * 150], max_tokens=2)
    s.add(before)
    run(s, told)
    s.add(llm.ask([1, *[4, 5] * 400], max_tokens=2))
    again = llm.ask([*before.ids, *told.tokens[before], 9, 8, 7], max_tokens=2)
    s.add(again)
    for k in range(6):
        s.add(llm.ask([10 + k, *[11, 12 + k] * 15], max_tokens=2))
        told.take(s.step())
    assert again in told.ends


def test_prompts_that_begin_alike_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling._Prompt, "chunk", 64)
    llm = mm.LLM(make_model(sliding_window=None), NO_TEXT)
    s = scheduler(llm)
    llm.prefixes.max_reuse_bytes = 2**16
    others = {id(cache) for cache in gc.get_objects() if isinstance(cache, Cache)}
    for k in range(40):
        s.add(llm.ask([1, *[7, 8] * 100, *([3 + k % 50] * 90)], max_tokens=1))
        list(s.step())
    run(s)
    held = [cache.nbytes for cache in gc.get_objects() if isinstance(cache, Cache) and id(cache) not in others]
    assert sum(held) <= llm.prefixes.cache_bytes + llm.prefixes.reuse_bytes + 2 * max(held)


def test_a_short_prompt_does_not_wait_for_a_long_one_that_begins_alike(
    llm: mm.LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduling._Prompt, "chunk", 64)
    shared = [1, *[7, 8] * 100]
    s, told = scheduler(llm), Told()
    long, short = llm.ask([*shared, *[4, 5] * 1000], max_tokens=2), llm.ask([*shared, 9], max_tokens=2)
    s.add(long)
    told.take(s.step())
    s.add(short)
    for _ in range(12):
        told.take(s.step())
    assert short in told.ends
    assert long not in told.tokens


def test_short_prompts_that_keep_coming_do_not_hold_a_long_one_up(llm: mm.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling._Prompt, "chunk", 64)
    s, told = scheduler(llm), Told()
    long = llm.ask([1, *[4, 5] * 450], max_tokens=1)
    s.add(long)
    for k in range(40):
        for j in range(2):
            s.add(llm.ask([1, 3 + k % 50, 6 + j], max_tokens=1))
        told.take(s.step())
    assert long in told.ends


class Known(ReadingPace):
    """How much is read at a time is known from the start."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room

    def within(self, seconds: float) -> int:
        return self._room


@pytest.mark.parametrize(
    ("room", "passes"),
    [
        (512, [[5, 5, 6], [60, 66], [90]]),  # a pass that is saved is worth 16 tokens of filling up
        (140, [[5, 5, 6], [60, 66], [90]]),
        (130, [[5, 5, 6], [60], [66], [90]]),  # 132 would be too many
        (12, [[5, 5], [6]]),
    ],
)
def test_prompts_of_like_length_are_read_in_one_pass(
    llm: mm.LLM, room: int, passes: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[int]] = []
    read_together, read_chunk = scheduling.read_together, scheduling.read_chunk

    def together(model: Any, prompts: list[list[int]]) -> Any:
        found.append(sorted(map(len, prompts)))
        return read_together(model, prompts)

    def piece(model: Any, ids: list[int], cache: Cache, *, last: bool) -> Any:
        found.append([len(ids)])
        return read_chunk(model, ids, cache, last=last)

    monkeypatch.setattr(scheduling, "read_together", together)
    monkeypatch.setattr(scheduling, "read_chunk", piece)
    given = [[3 + k] * n for k, n in enumerate((60, 5, 90, 6, 66, 5))]
    expected = [alone(llm, ids, max_tokens=3) for ids in given]
    llm.forget()
    found.clear()
    s, told = Hasty(llm.model, llm.prefixes, Known(room)), Told()
    requests = [llm.ask(ids, max_tokens=3) for ids in given]
    for request in requests:
        s.add(request)
    run(s, told)
    assert [told.tokens[request] for request in requests] == expected
    for lengths in passes:
        assert lengths in found


def test_others_that_begin_as_long_prompts_do_wait_for_them(llm: mm.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """And need not read again what they share, though prompts of the same length are read beside them."""
    monkeypatch.setattr(llm.prefixes, "max_reuse_bytes", 2**24)
    s, told = scheduler(llm), Told()
    shared = [3] * 200
    given = [[*shared, 9], [4] * 201, [*shared, 9, 8], [5] * 201]
    requests = [llm.ask(ids, max_tokens=3) for ids in given]
    for request in requests:
        s.add(request)
    run(s, told)
    assert [told.ends[request].reused_tokens for request in requests] == [0, 0, 201, 0]  # type: ignore[union-attr]
    assert [told.tokens[request] for request in requests] == [alone(llm, ids, max_tokens=3) for ids in given]


def test_prompts_are_read_for_some_steps_time_and_then_the_answers_go_on(
    llm: mm.LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that a pass over a prompt moves by 0.9 s, and a step of the answers by 1."""
    clock, done = [0.0], []
    read_chunk, step = scheduling.read_chunk, scheduling.Batch.step

    def piece(*args: Any, **options: Any) -> Any:
        clock[0] += 0.9
        done.append("read")
        return read_chunk(*args, **options)

    def stepped(batch: Any) -> Any:
        clock[0] += 1.0 if clock[0] else 30.0  # the first of a shape takes long
        done.append("step")
        return step(batch)

    monkeypatch.setattr(scheduling.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(scheduling, "read_chunk", piece)
    monkeypatch.setattr(scheduling.Batch, "step", stepped)
    llm.forget()
    s, told = Scheduler(llm.model, llm.prefixes, Known(16), seconds=0.3), Told()
    short, long = llm.ask([1, 3], max_tokens=40, logit_bias={2: -99}), llm.ask([1, *[4, 5] * 150], max_tokens=1)
    s.add(short)
    for _ in range(3):
        told.take(s.step())
    s.add(long)
    done.clear()
    while long not in told.ends:
        told.take(s.step())
    # Four steps' time: after three passes less than half of it is left, too little for another.
    assert "".join(word[0] for word in done[:12]) == "rrrsrrrsrrrs"


def test_those_at_fault_do_not_wear_out_the_others(llm: mm.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    given = some(1, seed=7)[0][0], {"max_tokens": 60, "seed": 1, "temperature": 0.9}
    expected = alone(llm, given[0], **given[1])
    s, told = scheduler(llm), Told()
    good = llm.ask(given[0], **given[1])
    s.add(good)
    for k in range(4):
        marked = llm.ask([1, MARK], max_tokens=50, temperature=1.3, seed=k, logit_bias={2: -99})
        with monkeypatch.context() as patch:
            at_a_step(patch, marked)
            s.add(marked)
            while marked not in told.ends:
                told.take(s.step())
        assert isinstance(told.ends[marked], RuntimeError)
    run(s, told)
    assert told.tokens[good] == expected
