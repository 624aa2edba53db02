"""The engine, on a fake model and on the demo: everything is told on the draining thread, and nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread, get_ident
from typing import Any

import pytest

import mistral_mlx as mm
from mistral_mlx.text.messages import Message
from tests.conftest import GOLDEN
from tests.hub_server import Hub, point_to
from tests.tui.fake_llm import FakeLLM, loader
from tui.engine import Ask, Engine

pytestmark = pytest.mark.timeout(120)

ASK = Ask("Be brief.", [Message("user", "Tell me of the sea.")], {"max_tokens": 8, "temperature": 0.8, "seed": 3})


class Told:
    """What an engine tells, in order, and on which threads."""

    def __init__(self, engine: Engine, woken: Event) -> None:
        self.engine, self.woken = engine, woken
        self.events: list[tuple[str, tuple[Any, ...]]] = []
        self.threads: set[int] = set()

    def __call__(self, name: str) -> Callable[..., None]:
        def note(*given: Any) -> None:
            self.threads.add(get_ident())
            self.events.append((name, given))

        return note

    def calls(self, *names: str) -> dict[str, Callable[..., None]]:
        """Functions to give to a method: on_done for "done" and so on."""
        return {f"on_{name}": self(name) for name in names}

    def until(self, *names: str) -> tuple[Any, ...]:
        """Drain whenever woken until one of these is told; what it was told with. Then everything is forgotten."""
        end = time.monotonic() + 30
        while not any(name in names for name, _ in self.events):
            assert self.woken.wait(end - time.monotonic()), f"nothing but {self.events}"
            self.woken.clear()
            self.engine.drain()
        assert self.threads == {get_ident()}
        return next(given for name, given in self.events if name in names)

    def given(self, name: str) -> list[Any]:
        return [given[0] if len(given) == 1 else given for told, given in self.events if told == name]

    def forget(self) -> None:
        self.events.clear()


ENDS = ("done", "error", "cancelled")


@pytest.fixture
def start() -> Iterator[Callable[..., Told]]:
    """Engines with models."""
    engines: list[Engine] = []

    def begin(*models: FakeLLM, load: Callable[..., Any] | None = None) -> Told:
        woken = Event()
        engine = Engine(woken.set, load or loader(*models))
        engines.append(engine)
        told = Told(engine, woken)
        if models:
            engine.load(models[0].name, **told.calls(*ENDS))
            told.until("done")
            told.forget()
        return told

    yield begin
    for engine in engines:
        engine.close()


def say(told: Told, ask: Ask = ASK) -> tuple[list[Any], dict[str, Any]]:
    """The chunks and the receipt of an answer."""
    told.forget()
    told.engine.answer(ask, on_chunks=told("chunks"), **told.calls("progress", *ENDS))
    (receipt,) = told.until("done")
    chunks = [chunk for run in told.given("chunks") for chunk in run]
    return chunks, receipt


def ids_of(chunks: list[Any]) -> list[int]:
    return [token for chunk in chunks for token in chunk.tokens]


# ---- loading ----------------------------------------------------------------------------------------------------


def test_beginning_an_engine_waits_for_nothing() -> None:
    """Neither MLX nor the hub's package is imported before a thread needs it."""
    code = "import sys, tui.engine; tui.engine.Engine(print); print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"mlx", "numpy", "huggingface_hub", "tokenizers", "mistral_common"}


def test_a_model_is_loaded_and_described(start: Callable[..., Told]) -> None:
    told = start(load=loader(FakeLLM()))
    assert told.engine.model is None
    told.engine.load("fake", {"kv_bits": 8}, **told.calls("progress", *ENDS))
    assert told.engine.busy
    (loaded,) = told.until("done")
    assert told.engine.model is loaded
    assert not told.engine.busy
    assert told.given("progress")[-1] == ("load", 4000, 4000)
    assert (loaded.name, loaded.quantization, loaded.dtype, loaded.window) == ("fake", "4 bits / 64", "float32", 4096)
    assert (loaded.context_length, loaded.weights, loaded.memory_limit) == (None, 4 * 10**9, 16 * 10**9)
    assert (loaded.kv_bits, loaded.instruct, loaded.notice) == (8, True, "")
    full = start(FakeLLM(window=None)).engine.model
    assert full is not None
    assert (full.window, full.context_length) == (None, 32_768)


def test_what_cannot_be_loaded_is_told_and_the_old_model_stays(start: Callable[..., Told]) -> None:
    told = start(FakeLLM())
    told.engine.load("missing", **told.calls(*ENDS))
    (error,) = told.until("error")
    assert "no model 'missing'" in error.message
    assert told.engine.model is not None
    assert say(told)[1]["model"] == "fake"


class Library:
    """Loads models that it counts, and fails or waits in the middle of one."""

    def __init__(self) -> None:
        self.alive: list[str] = []
        self.most = 0
        self.fails: dict[str, Exception] = {}

    def __call__(self, name: str, *, progress: Any = None, loading: Any = None, **_: Any) -> FakeLLM:
        library = self

        class Counted(FakeLLM):
            def __del__(self) -> None:
                library.alive.remove(self.name)

        if loading:
            loading(0, 10)
        model = Counted(name=name)
        self.alive.append(name)
        self.most = max(self.most, len(self.alive))
        if name in self.fails:
            raise self.fails[name]
        if loading:
            loading(10, 10)
        return model


def test_the_old_model_goes_before_the_new_one_comes(start: Callable[..., Told]) -> None:
    library = Library()
    told = start(load=library)
    for name in ("one", "two", "three"):
        told.engine.load(name, **told.calls(*ENDS))
        told.until("done")
        told.forget()
        assert library.alive == [name]
    assert library.most == 1


@pytest.mark.parametrize("why", [mm.OutOfMemoryError("too large", "smaller"), mm.WeightsError("it vanished")], ids=repr)
def test_where_a_new_model_breaks_off_the_old_one_is_loaded_again(start: Callable[..., Told], why: Exception) -> None:
    library = Library()
    told = start(load=library)
    told.engine.load("one", **told.calls(*ENDS))
    told.until("done")
    told.forget()
    library.fails["two"] = why
    told.engine.load("two", **told.calls(*ENDS))
    assert told.until("error") == (why,)
    assert told.engine.model is not None
    assert told.engine.model.name == "one"
    assert say(told)[1]["model"] == "one"
    assert (library.alive, library.most) == (["one"], 1)
    told.forget()
    library.fails["one"] = mm.WeightsError("and this one too")
    told.engine.load("two", **told.calls(*ENDS))
    assert told.until("error") == (why,)  # the first reason
    assert told.engine.model is None
    told.engine.answer(ASK, on_chunks=told("chunks"), **told.calls("done"), on_error=told("none"))
    assert "No model is loaded" in told.until("none")[0].message


def test_a_load_is_cancelled_and_the_old_model_stays(start: Callable[..., Told]) -> None:
    go, reading = Event(), Event()

    def load(name: str, *, progress: Any = None, loading: Any = None, **_: Any) -> FakeLLM:
        if name == "large" and loading:
            loading(0, 10)
            reading.set()
            assert go.wait(30)
            loading(5, 10)
            raise AssertionError("it went on")
        return FakeLLM(name=name)

    told = start(load=load)
    told.engine.load("fake", **told.calls(*ENDS))
    told.until("done")
    told.forget()
    job = told.engine.load("large", **told.calls(*ENDS))
    assert reading.wait(30)
    job.cancel()
    go.set()
    told.until("cancelled")
    assert told.engine.model is not None
    assert told.engine.model.name == "fake"


def test_a_file_that_vanished_is_told(start: Callable[..., Told], tmp_path: Path) -> None:
    woken = Event()
    told = Told(Engine(woken.set), woken)
    told.engine.load(str(tmp_path / "gone.gguf"), **told.calls(*ENDS))
    (error,) = told.until("error")
    assert isinstance(error, mm.MistralError)
    assert "gone.gguf" in error.message
    told.engine.close()


# ---- answers ----------------------------------------------------------------------------------------------------


def test_an_answer_comes_in_order_with_its_receipt(start: Callable[..., Told]) -> None:
    told = start(FakeLLM(lambda text: f"{text} The sea is wide."))
    chunks, receipt = say(told)
    assert "".join(chunk.text for chunk in chunks) == "Tell me of the sea. The sea is wide."[:24]
    assert chunks[-1].finish_reason == "length"
    assert (receipt["tokens"], receipt["finish"]) == (8, "length")
    assert receipt["sampling"] == ASK.options
    assert json.loads(json.dumps(receipt)) == receipt
    progress = told.given("progress")
    assert progress[-1][0] == progress[-1][1]


def test_the_seed_that_was_drawn_is_on_the_receipt(start: Callable[..., Told]) -> None:
    told = start(FakeLLM(varies=True))
    chunks, receipt = say(told, replace(ASK, options={"temperature": 1.0}))
    assert "".join(c.text for c in chunks).startswith(f"[{receipt['sampling']['seed']}]")
    assert say(told, replace(ASK, options={"temperature": 1.0, "seed": None}))[1]["sampling"]["seed"] is not None


def test_chunks_that_came_together_are_told_together_and_wake_once(start: Callable[..., Told]) -> None:
    told = start(FakeLLM(lambda _: "word " * 200))
    wakes: list[int] = []
    told.engine._threads._wake = lambda: wakes.append(get_ident())
    told.engine.answer(replace(ASK, options={}), on_chunks=told("chunks"), **told.calls("progress", *ENDS))
    finished = Event()
    told.engine.forecast(ASK, on_done=lambda _: finished.set())
    end = time.monotonic() + 30
    while told.engine._threads._workers["model"].messages.qsize() < 340:
        assert time.monotonic() < end
        time.sleep(0.001)
    assert len(wakes) == 1
    while not finished.is_set():
        told.engine.drain()
    assert len(told.given("chunks")) <= 3
    assert len(told.given("progress")) == 1  # the latest
    assert "".join(c.text for run in told.given("chunks") for c in run) == "word " * 200


def test_a_stopped_answer_keeps_what_was_said_and_says_so(start: Callable[..., Told]) -> None:
    told = start(FakeLLM(lambda _: "on and on " * 1000, tokens_per_s=500))
    job = told.engine.answer(replace(ASK, options={"max_tokens": 5000}), on_chunks=told("chunks"), **told.calls(*ENDS))
    told.until("chunks")
    job.cancel()
    (receipt,) = told.until("done")
    chunks = [chunk for run in told.given("chunks") for chunk in run]
    assert chunks[-1].finish_reason == receipt["finish"] == "cancelled"
    assert receipt["tokens"] == len(ids_of(chunks)) > 0


def test_an_answer_that_never_began_is_cancelled(start: Callable[..., Told]) -> None:
    told = start(FakeLLM(lambda _: "long " * 1000, tokens_per_s=200))
    first = told.engine.answer(ASK, on_chunks=told("first"))
    second = told.engine.answer(ASK, on_chunks=told("chunks"), **told.calls(*ENDS))
    second.cancel()
    first.cancel()
    assert told.until(*ENDS) == ()
    assert not told.given("chunks")


def test_lanes_that_are_stopped_all_say_so(start: Callable[..., Told]) -> None:
    told = start(FakeLLM(lambda _: "on and on " * 1000, tokens_per_s=300))
    job = told.engine.compare(replace(ASK, options={"max_tokens": 5000}), [{}, {}, {}], on_chunks=told("chunks"),
                              **told.calls(*ENDS))  # fmt: skip
    told.until("chunks")
    job.cancel()
    (receipts,) = told.until("done")
    assert [receipt["finish"] for receipt in receipts] == ["cancelled"] * 3
    last = {index: chunk for run in told.given("chunks") for index, chunk in run}
    assert [last[index].finish_reason for index in range(3)] == ["cancelled"] * 3
    assert len({receipt["sampling"]["seed"] for receipt in receipts}) == 3


@pytest.mark.parametrize("why", [RuntimeError("broke"), mm.OutOfMemoryError("full", "less"), SystemExit(3)], ids=repr)
def test_an_answer_that_breaks_off_is_told_and_the_next_comes(start: Callable[..., Told], why: Any) -> None:
    llm = FakeLLM(fail_after=3, failure=why)
    told = start(llm)
    told.engine.answer(ASK, on_chunks=told("chunks"), **told.calls(*ENDS))
    assert told.until("error") == (why,)
    assert len(ids_of([c for run in told.given("chunks") for c in run])) == 3
    llm.fail_after = None
    assert say(told)[1]["finish"] == "length"


def test_bad_options_and_long_prompts_are_told(start: Callable[..., Told]) -> None:
    told = start(FakeLLM(window=None, context_length=20))
    told.engine.forecast(replace(ASK, messages=[Message("user", "long " * 50)]), on_done=told("done"))
    (forecast,) = told.until("done")
    assert not forecast.fits
    assert "attends to at most 20" in forecast.problem
    for ask in (replace(ASK, messages=[Message("user", "long " * 50)]), replace(ASK, options={"heat": 1})):
        told.forget()
        told.engine.answer(ask, on_chunks=told("chunks"), **told.calls(*ENDS))
        assert isinstance(told.until("error")[0], mm.InputError)


def test_a_newer_forecast_takes_the_place_of_one_that_waits(start: Callable[..., Told]) -> None:
    told = start(FakeLLM(lambda _: "some words " * 20, tokens_per_s=300))
    told.engine.answer(ASK, on_chunks=told("chunks"))
    for text in ("a", "ab", "abc"):
        ask = replace(ASK, messages=[Message("user", text)])
        told.engine.forecast(ask, on_done=lambda found, text=text: told(text)(found))
    told.until("abc")
    assert {name for name, _ in told.events} == {"chunks", "abc"}


# ---- a thread that dies -----------------------------------------------------------------------------------------


def test_a_dead_thread_is_noticed_and_the_next_load_begins_a_new_one(start: Callable[..., Told]) -> None:
    told = start(FakeLLM())
    worker = told.engine._threads._workers["model"]
    worker._queue.put(None)  # its end, though nobody closed it
    worker._thread.join(10)
    told.engine.check()
    assert told.engine.model is None
    told.engine.load("fake", **told.calls(*ENDS))
    told.until("done")
    assert say(told)[1]["finish"] == "length"


def test_those_who_wait_for_a_dead_thread_are_told(start: Callable[..., Told]) -> None:
    told = start(FakeLLM(lambda _: "words " * 500, tokens_per_s=300))
    worker = told.engine._threads._workers["model"]
    first = told.engine.answer(replace(ASK, options={}), on_chunks=told("chunks"), **told.calls("done"))
    told.until("chunks")
    worker._queue.put(None)
    told.engine.answer(ASK, on_chunks=told("chunks"), **told.calls("error"))
    first.cancel()
    worker._thread.join(10)
    told.engine.check()
    assert [name for name, _ in told.events if name != "chunks"] == ["done", "error"]  # what it had said comes first
    assert "stopped" in told.given("error")[0].message
    assert not told.engine.busy
    told.forget()
    told.engine.answer(ASK, on_chunks=told("chunks"), **told.calls(*ENDS))
    assert "No model is loaded" in told.until("error")[0].message


def test_closing_ends_an_answer(start: Callable[..., Told]) -> None:
    told = start(FakeLLM(lambda _: "words " * 5000, tokens_per_s=100))
    told.engine.answer(replace(ASK, options={"max_tokens": 9999}), on_chunks=told("chunks"))
    told.until("chunks")
    thread: Thread = told.engine._threads._workers["model"]._thread
    told.engine.close()
    assert not thread.is_alive()


# ---- downloads and lists ----------------------------------------------------------------------------------------

REPO = "mistralai/Tiny-7B"
FILES = {f.name: f.read_bytes() for f in (GOLDEN / "window").iterdir() if f.name != "logits.safetensors"}


@pytest.fixture
def hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    from mistral_mlx import models

    server.repos = {REPO: {**FILES, "model.safetensors": FILES["model.safetensors"]}, "nobody/Large": FILES}
    point_to(server, tmp_path, monkeypatch)
    monkeypatch.setattr(models, "ALIASES", {"tiny": REPO, "other": "nobody/Large"})
    return server


def test_a_model_is_fetched_while_the_other_answers(hub: Hub, start: Callable[..., Told]) -> None:
    told = start(FakeLLM())
    told.engine.fetch("tiny", **told.calls("progress", *ENDS))
    assert not told.engine.busy
    chunks: SimpleQueue[Any] = SimpleQueue()
    told.engine.answer(ASK, on_chunks=chunks.put)
    (path,) = told.until("done", "error")
    assert (path / "model.safetensors").exists()
    total = sum(map(len, FILES.values()))
    assert told.given("progress")[-1] == (total, total)


def test_a_download_is_cancelled_and_goes_on_later(hub: Hub, start: Callable[..., Told]) -> None:
    hub.repos[REPO]["model.safetensors"] = bytes(12 << 20)
    hub.pause = 0.05
    told = start()
    job = told.engine.fetch("tiny", **told.calls("progress", *ENDS))
    told.until("progress")
    job.cancel()
    told.until("cancelled")
    hub.pause, hub.repos[REPO] = 0.0, FILES
    told.forget()
    told.engine.fetch("tiny", **told.calls(*ENDS))
    told.until("done")


def test_models_are_listed_with_what_can_be_said_of_them(hub: Hub, start: Callable[..., Told]) -> None:
    told = start()
    told.engine.fetch(REPO, **told.calls("done"))
    told.until("done")
    told.engine.models(on_models=told("models"), on_done=told("listed"))
    told.until("listed")
    entries = {entry.name: entry for entry in told.given("models")[-1]}
    here, absent = entries[REPO], entries["nobody/Large"]
    assert (here.alias, here.complete, here.fits, here.stored_as) == ("tiny", True, True, "BF16")
    assert here.nbytes >= sum(map(len, FILES.values()))
    assert (absent.alias, absent.complete, absent.nbytes) == ("other", False, 0)
    assert absent.download == sum(map(len, FILES.values()))
    hub.down = True
    told.forget()
    told.engine.models(on_models=told("models"), on_done=told("listed"))
    told.until("listed")
    assert {e.name: e.download for e in told.given("models")[-1]}["nobody/Large"] is None


# ---- the fake is like the real one ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["fake", "demo"])
def real(request: pytest.FixtureRequest) -> Iterator[Told]:
    """An engine on the fake, and on the demo."""
    woken = Event()
    fake = FakeLLM(lambda text: f"{text} The sea is wide, and deep, and blue.", varies=True)
    engine = Engine(woken.set, loader(fake) if request.param == "fake" else None)
    told = Told(engine, woken)
    engine.load(request.param, **told.calls(*ENDS))
    told.until(*ENDS)
    if errors := told.given("error"):
        engine.close()
        pytest.skip(errors[0].message)
    yield told
    engine.close()


def test_a_base_model_carries_the_text_on(start: Callable[..., Told]) -> None:
    """Answers stand right behind what they carry on; what is said next begins a line; ids stay as they were sampled."""
    heard: list[str] = []
    told = start(FakeLLM(lambda text: heard.append(text) or " wide.", instruct=False))
    assert "base model" in told.engine.model.notice  # type: ignore[union-attr]
    chunks, first = say(told, Ask("Of water.", [Message("user", "The sea is")], {}))
    said = Message("assistant", "".join(c.text for c in chunks), tuple(ids_of(chunks)[:-1]))
    ask = Ask("Of water.", [Message("user", "The sea is"), said, Message("user", "The sky is")], {})
    _, second = say(told, ask)
    assert heard == ["Of water.\nThe sea is", "Of water.\nThe sea is wide.\nThe sky is"]
    assert second["reused"] == first["prompt_tokens"] + first["tokens"] - 1
    told.forget()
    told.engine.forecast(ask, on_done=told("done"))
    assert told.until("done")[0].prompt_tokens == second["prompt_tokens"]
    told.forget()
    told.engine.compare(ask, [{}, {}], on_chunks=told("chunks"), **told.calls(*ENDS))
    assert len(told.until("done")[0]) == 2


def test_a_real_base_model_goes_on_from_any_token(real: Told) -> None:
    llm: Any = real.engine._host.llm
    if isinstance(llm, FakeLLM):
        pytest.skip("the fake tells a beginning from a prompt in chats only")
    llm.instruct = False
    try:
        whole = ids_of(say(real)[0])
        begun = Message("assistant", ids=tuple(whole[:3]), prefix=True)
        ask = replace(ASK, messages=[*ASK.messages, begun], options={**ASK.options, "max_tokens": 5})
        assert [*whole[:3], *ids_of(say(real, ask)[0])] == whole
    finally:
        llm.instruct = True


def test_a_conversation_goes_on_and_reads_only_what_is_new(real: Told) -> None:
    assert real.engine.model is not None
    chunks, first = say(real)
    said = tuple(ids_of(chunks))
    ask = replace(ASK, messages=[*ASK.messages, Message("assistant", "".join(c.text for c in chunks), said),
                                 Message("user", "And the sky?")])  # fmt: skip
    real.forget()
    real.engine.forecast(ask, on_done=real("done"))
    (forecast,) = real.until("done")
    assert forecast.fits
    _, second = say(real, ask)
    assert (second["prompt_tokens"], second["reused"]) == (forecast.prompt_tokens, forecast.reused_tokens)
    assert second["reused"] >= first["prompt_tokens"] + first["tokens"] - 1
    assert sum(second["reading"]) == second["prompt_tokens"] - second["reused"]


def test_an_answer_goes_on_from_any_token(real: Told) -> None:
    whole = ids_of(say(real)[0])
    for cut in (1, 7):
        begun = Message("assistant", ids=tuple(whole[:cut]), prefix=True)
        ask = replace(ASK, messages=[*ASK.messages, begun], options={**ASK.options, "max_tokens": 8 - cut})
        chunks, receipt = say(real, ask)
        assert [*whole[:cut], *ids_of(chunks)] == whole
        assert receipt["prompt_tokens"] > cut


def test_alternatives_are_likely_and_the_texts_of_tokens(real: Told) -> None:
    whole = ids_of(say(real)[0])
    for cut in (0, 4):
        begun = [Message("assistant", ids=tuple(whole[:cut]), prefix=True)] if cut else []
        real.forget()
        real.engine.alternatives(replace(ASK, messages=[*ASK.messages, *begun]), 5, **real.calls("done", "error"))
        (found,) = real.until("done", "error")
        assert len(found) == len({alternative.id for alternative in found}) == 5
        chances = [alternative.probability for alternative in found]
        assert chances == sorted(chances, reverse=True)
        assert 0 < sum(chances) <= 1.0 or real.engine.model.name == "fake"  # type: ignore[union-attr]
        assert all(isinstance(alternative.text, str) for alternative in found)


def test_lanes_say_what_each_says_alone_and_stop_together(real: Told) -> None:
    lanes = [{"seed": 3}, {"seed": 4}]
    alone = [ids_of(say(real, replace(ASK, options={**ASK.options, **lane}))[0]) for lane in lanes]
    real.forget()
    real.engine.compare(ASK, lanes, on_chunks=real("chunks"), **real.calls("progress", *ENDS))
    (receipts,) = real.until("done")
    said: list[list[int]] = [[], []]
    for index, chunk in (each for run in real.given("chunks") for each in run):
        said[index] += chunk.tokens
    assert said == alone
    assert [receipt["tokens"] for receipt in receipts] == [len(ids) for ids in said]
    assert receipts[0]["sampling"]["seed"] == 3
    real.forget()
    job = real.engine.compare(
        replace(ASK, options={"max_tokens": 2000}), [{}, {}], on_chunks=real("chunks"), **real.calls(*ENDS)
    )
    job.cancel()
    real.until("done", "cancelled")


def test_a_replay_says_identical_and_names_what_differs(real: Told) -> None:
    chunks, receipt = say(real)
    ids = ids_of(chunks)
    real.forget()
    real.engine.replay(ASK, receipt, ids, **real.calls("progress", *ENDS))
    (verdict,) = real.until(*ENDS)
    assert str(verdict) == f"identical: all {len(ids)} tokens"
    assert real.given("progress")[-1] == (len(ids), len(ids))
    from tui.receipt import hash_ids

    changed = [*ids[:4], ids[0], *ids[5:]]
    real.forget()
    real.engine.replay(ASK, {**receipt, "hash": hash_ids(changed)}, changed, **real.calls(*ENDS))
    assert real.until(*ENDS)[0].at == (4 if ids[4] != ids[0] else None)
    real.forget()
    real.engine.replay(replace(ASK, system="Be long."), receipt, ids, **real.calls(*ENDS))
    assert "the prompt is not the same" in str(real.until(*ENDS)[0])


def test_stop_strings_and_empty_conversations(real: Told) -> None:
    text = "".join(chunk.text for chunk in say(real)[0])
    stop = text[8:12]
    chunks, receipt = say(real, replace(ASK, options={**ASK.options, "stop": [stop]}))
    assert "".join(chunk.text for chunk in chunks) == text[: text.index(stop)]
    assert receipt["finish"] == "stop"
    real.forget()
    real.engine.answer(Ask("", []), on_chunks=real("chunks"), **real.calls(*ENDS))
    assert isinstance(real.until("error")[0], mm.InputError)
