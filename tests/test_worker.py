"""One thread for every job: what it promises on plain callables, then with a real model, under load, and at exit."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, groupby
from random import Random
from threading import Event, Thread, get_ident
from typing import Any
from weakref import ref

import pytest

import mistral_mlx as mm
from mistral_mlx.worker import Cancelled, Done, Failed, Item, Job, Message, Progress, Started, Worker
from tests.conftest import GOLDEN

pytestmark = pytest.mark.timeout(120)  # a hang fails

PROMPT = [1, 5, 9]
SAMPLED = {"temperature": 1.0, "seed": 4}


class Boom(Exception):
    """What a job of these tests fails with."""


@pytest.fixture
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


def until_end(worker: Worker, job: Job) -> list[Message]:
    """All messages up to the end of a job."""
    messages = [worker.messages.get(timeout=10)]
    while messages[-1].job is not job or not isinstance(messages[-1], Done | Failed | Cancelled):
        messages.append(worker.messages.get(timeout=10))
    return messages


def run(worker: Worker, work: Callable[[Job], Any]) -> list[Message]:
    """All messages of one job, and a proof that the next still runs."""
    job = worker.submit(work)
    messages = until_end(worker, job)
    after = worker.submit(lambda _: "alive")
    assert until_end(worker, after) == [Started(after), Done(after, "alive")]
    return messages


def rest(worker: Worker) -> list[Message]:
    """What a closed worker has left to say."""
    messages = []
    while not worker.messages.empty():
        messages.append(worker.messages.get(timeout=1))
    return messages


def hold(worker: Worker) -> tuple[Job, Event]:
    """Keep the worker busy until the event is set."""
    go, started = Event(), Event()

    def work(_: Job) -> None:
        started.set()
        assert go.wait(30)

    job = worker.submit(work)
    assert started.wait(30)
    return job, go


class Items:
    """An iterator with what a generator cannot do: fail to close."""

    def __init__(self, *items: Any, close_error: BaseException | None = None) -> None:
        self.items, self.close_error, self.closed = iter(items), close_error, 0

    def __iter__(self) -> Items:
        return self

    def __next__(self) -> Any:
        item = next(self.items)
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        self.closed += 1
        if self.close_error:
            raise self.close_error


# ---- how a job ends ---------------------------------------------------------------------------------------------


def test_jobs_run_one_after_another_on_one_other_thread(worker: Worker) -> None:
    _, go = hold(worker)
    jobs = [worker.submit(lambda job, i=i: (i, get_ident())) for i in range(20)]
    go.set()
    messages = until_end(worker, jobs[-1])[2:]
    assert [m.job for m in messages] == [job for job in jobs for _ in range(2)]
    ends = [m for m in messages if isinstance(m, Done)]
    assert [m.result[0] for m in ends] == list(range(20))
    assert {m.result[1] for m in ends} == {worker._thread.ident} != {get_ident()}


@pytest.mark.parametrize("result", [7, None, "text", [1, 2], range(3)])
def test_what_is_no_iterator_is_the_result(worker: Worker, result: Any) -> None:
    messages = run(worker, lambda _: result)
    job = messages[0].job
    assert messages == [Started(job), Done(job, result)]


@pytest.mark.parametrize("n", [0, 1, 5])
def test_an_iterator_is_sent_item_by_item(worker: Worker, n: int) -> None:
    items = Items(*range(n))
    messages = run(worker, lambda _: items)
    job = messages[0].job
    assert messages == [Started(job), *(Item(job, i) for i in range(n)), Done(job, None)]
    assert items.closed == 1


def test_items_come_while_the_job_runs(worker: Worker) -> None:
    gate = Event()

    def items() -> Iterator[int]:
        yield 1
        assert gate.wait(30)
        yield 2

    second = worker.submit(lambda _: items())
    assert [worker.messages.get(timeout=30) for _ in range(2)] == [Started(second), Item(second, 1)]
    gate.set()
    assert until_end(worker, second) == [Item(second, 2), Done(second, None)]


@pytest.mark.parametrize("error", [Boom("no"), SystemExit(3), KeyboardInterrupt(), StopIteration(1), GeneratorExit()])
def test_an_error_fails_its_own_job_alone(worker: Worker, error: BaseException) -> None:
    def breaks_here(_: Job) -> None:
        raise error

    started, failed = run(worker, breaks_here)
    assert failed == Failed(started.job, error)
    assert "breaks_here" in "".join(traceback.format_exception(failed.error))


@pytest.mark.parametrize("close_error", [None, Boom("close")])
def test_an_iterator_that_fails_is_closed_after_what_it_gave(worker: Worker, close_error: Boom | None) -> None:
    error = Boom("no")
    items = Items(1, 2, error, 3, close_error=close_error)
    messages = run(worker, lambda _: items)
    job = messages[0].job
    assert messages == [Started(job), Item(job, 1), Item(job, 2), Failed(job, close_error or error)]
    assert close_error is None or close_error.__context__ is error
    assert items.closed == 1


@pytest.mark.parametrize("error", [Boom("close"), SystemExit(3)])
def test_an_iterator_that_does_not_close_fails(worker: Worker, error: BaseException) -> None:
    messages = run(worker, lambda _: Items(1, close_error=error))
    job = messages[0].job
    assert messages == [Started(job), Item(job, 1), Failed(job, error)]


def test_progress_is_sent_in_its_place_and_never_after_the_end(worker: Worker) -> None:
    ended = Event()
    late = []

    def work(job: Job) -> Iterator[str]:
        job.progress(1, 2)
        yield "a"
        helper = Thread(target=job.progress, args=(2, 2))
        helper.start()
        helper.join()
        late.append(Thread(target=lambda: ended.wait(30) and job.progress(3, 2)))
        late[0].start()
        yield "b"

    messages = run(worker, work)
    job = messages[0].job
    expected = [Started(job), Progress(job, 1, 2), Item(job, "a"), Progress(job, 2, 2), Item(job, "b"), Done(job, None)]
    assert messages == expected
    ended.set()
    late[0].join(30)
    assert worker.messages.empty()


# ---- cancel -----------------------------------------------------------------------------------------------------


def test_a_queued_job_that_is_cancelled_never_starts(worker: Worker) -> None:
    _, go = hold(worker)
    called: list[Job] = []
    job = worker.submit(called.append)
    job.cancel()
    job.cancel()
    go.set()
    assert until_end(worker, job)[2:] == [Cancelled(job)]
    assert not called


@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_cancelled_iterator_is_asked_once_more_and_closed(worker: Worker, at: int) -> None:
    closed = []

    def work(job: Job) -> Iterator[int]:
        try:
            for i in range(1000):
                yield i
                if i == at:
                    job.cancel()  # the item that is being made when the cancel comes is not the one asked for after it
        finally:
            closed.append(True)

    messages = run(worker, work)
    job = messages[0].job
    assert messages == [Started(job), *(Item(job, i) for i in range(at + 3)), Cancelled(job)]
    assert closed == [True]


def test_cancelled_before_its_first_item_an_iterator_still_says_how_it_ended(worker: Worker) -> None:
    items = Items("end", "never")
    messages = run(worker, lambda job: job.cancel() or items)
    job = messages[0].job
    assert messages == [Started(job), Item(job, "end"), Cancelled(job)]
    assert items.closed == 1


def test_a_cancelled_iterator_may_have_no_more(worker: Worker) -> None:
    messages = run(worker, lambda job: job.cancel() or iter(()))
    assert messages[1:] == [Cancelled(messages[0].job)]


@pytest.mark.parametrize(("result", "end"), [("model", Done), (0, Done), (None, Cancelled)])
def test_a_cancelled_callable_that_returns_loses_nothing(worker: Worker, result: Any, end: Any) -> None:
    job = worker.submit(lambda job: result if job.cancelled.wait(30) else "not cancelled")
    assert worker.messages.get(timeout=30) == Started(job)
    job.cancel()
    assert until_end(worker, job) == [Done(job, result) if end is Done else Cancelled(job)]


def test_a_cancelled_job_that_fails_says_so(worker: Worker) -> None:
    error = Boom()
    messages = run(worker, lambda job: job.cancel() or Items(error))
    assert messages[1:] == [Failed(messages[0].job, error)]


def test_a_job_that_has_ended_does_not_notice_a_cancel(worker: Worker) -> None:
    ended = run(worker, lambda _: 1)[0].job
    ended.cancel()
    ended.cancel()
    assert [type(m) for m in run(worker, lambda _: 2)] == [Started, Done]
    assert worker.messages.empty()


# ---- close ------------------------------------------------------------------------------------------------------


def test_close_cancels_what_runs_and_what_waits() -> None:
    worker = Worker()
    running = worker.submit(lambda job: count())
    called: list[Job] = []
    waiting = [worker.submit(called.append) for _ in range(3)]
    while worker.messages.get(timeout=30) != Item(running, 10):
        pass
    worker.close()
    worker.close()
    assert not worker._thread.is_alive()
    *items, end = (m for m in rest(worker) if m.job is running or called.append(m))
    assert [m.item for m in items] == list(range(11, 11 + len(items)))
    assert end == Cancelled(running)
    assert called == [Cancelled(job) for job in waiting]


def test_a_closed_worker_takes_no_job() -> None:
    with Worker() as worker:
        job = worker.submit(lambda _: 1)
        until_end(worker, job)
    with pytest.raises(RuntimeError, match="The worker is closed"):
        worker.submit(lambda _: 2)
    assert worker.messages.empty()


def test_close_need_not_wait() -> None:
    worker = Worker()
    job, go = hold(worker)
    worker.close(wait=False)
    assert worker._thread.is_alive()
    assert job.cancelled.is_set()
    go.set()
    worker.close()
    assert rest(worker) == [Started(job), Cancelled(job)]


def test_a_job_may_close_its_worker() -> None:
    worker = Worker()
    _, go = hold(worker)
    closer, after = worker.submit(lambda _: worker.close() or "closed"), worker.submit(lambda _: 1)
    go.set()
    worker._thread.join(30)
    assert not worker._thread.is_alive()
    assert rest(worker)[2:] == [Started(closer), Done(closer, "closed"), Cancelled(after)]


def test_many_threads_may_close_at_once() -> None:
    worker = Worker()
    running = worker.submit(lambda job: job.cancelled.wait(30) and None)
    threads = [Thread(target=worker.close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(t.is_alive() for t in [*threads, worker._thread])
    assert rest(worker)[-1] == Cancelled(running)


@pytest.mark.parametrize("wait", [True, False])
def test_the_thread_finishes_after_its_last_job(wait: bool) -> None:
    said: list[Any] = []
    worker = Worker(finish=lambda: said.append(get_ident()))
    worker.submit(lambda job: said.append("job"))
    until_end(worker, worker.submit(lambda _: 1))
    worker.close(wait)
    worker._thread.join(30)
    assert said == ["job", worker._thread.ident]


# ---- memory -----------------------------------------------------------------------------------------------------


class Model:
    """Something large, to be freed."""


def gone(*watched: ref[Any]) -> bool:
    """Whether reference counts alone free them: the thread lets go a moment after it has sent the end."""
    limit = time.monotonic() + 10
    while any(w() is not None for w in watched) and time.monotonic() < limit:
        time.sleep(0.001)
    return all(w() is None for w in watched)


def break_here(model: Model, watched: list[ref[Any]]) -> None:
    half = Model()
    watched.extend([ref(model), ref(half)])
    raise Boom("inner")


def break_outside(model: Model, watched: list[ref[Any]]) -> None:
    try:
        break_here(model, watched)
    except Boom as error:
        raise Boom("outer") from error


def break_between(model: Model, watched: list[ref[Any]]) -> Iterator[int]:
    yield 1
    break_here(model, watched)


@pytest.mark.parametrize("work", [break_here, break_outside, break_between])
def test_an_error_keeps_no_local_variable_alive(worker: Worker, work: Callable[..., Any]) -> None:
    watched: list[ref[Any]] = []
    gc.disable()
    try:
        failed = until_end(worker, worker.submit(lambda _: work(Model(), watched)))[-1]
        assert isinstance(failed, Failed)
        assert len(watched) == 2
        assert gone(*watched)
        assert "break_here" in "".join(traceback.format_exception(failed.error))
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", ["result", "items", "cancelled", "queued", "failed", "failed items"])
def test_a_job_that_has_ended_keeps_nothing_alive(worker: Worker, kind: str) -> None:
    watched: list[ref[Any]] = []

    def submit() -> Job:
        model = Model()

        def items(job: Job) -> Iterator[Any]:
            yield model
            if kind == "cancelled":
                job.cancel()
            if kind == "failed items":
                raise Boom
            yield Model()

        def work(job: Job) -> Any:
            if kind == "failed":
                raise Boom
            if kind == "result":
                return model
            generator = items(job)
            watched.append(ref(generator))
            return generator

        watched.extend([ref(model), ref(work)])
        return worker.submit(work)

    gc.disable()  # counting references must be enough
    try:
        if kind == "queued":
            _, go = hold(worker)
            job = submit()
            job.cancel()
            go.set()
        else:
            job = submit()
        end = {"result": Done, "items": Done, "cancelled": Cancelled, "queued": Cancelled}.get(kind, Failed)
        assert isinstance(until_end(worker, job)[-1], end)
        assert gone(*watched), [w() for w in watched]  # while the job is still held
    finally:
        gc.enable()


def test_a_closed_worker_is_freed() -> None:
    worker = Worker()
    watched = ref(worker)
    worker.close()
    del worker
    assert gone(watched)


# ---- with a model -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host() -> Iterator[tuple[Worker, mm.LLM]]:
    """A worker and the model that it loaded, which never says that it is done."""
    with Worker() as worker:
        done = until_end(worker, worker.submit(lambda _: mm.load(GOLDEN / "window")))[-1]
        assert isinstance(done, Done), done
        done.result.config = replace(done.result.config, eos_token_ids=())
        yield worker, done.result


def test_a_model_gives_on_the_worker_what_it_gives_here(host: tuple[Worker, mm.LLM]) -> None:
    worker, llm = host
    here = mm.load(GOLDEN / "window")
    here.config = llm.config
    for prompt in (PROMPT, [3, 4] * 400):
        job = worker.submit(
            lambda job, ids=prompt: llm.stream(
                ids, max_tokens=40, cancel=job.cancelled, progress=job.progress, **SAMPLED
            )
        )
        messages = until_end(worker, job)
        read: list[tuple[int, int]] = []
        chunks = list(
            here.stream(prompt, max_tokens=40, progress=lambda *done, read=read: read.append(done), **SAMPLED)
        )
        assert messages[0] == Started(job)
        assert messages[-1] == Done(job, None)
        items = [m.item for m in messages if isinstance(m, Item)]
        assert [(c.text, c.tokens, c.finish_reason) for c in items] == [
            (c.text, c.tokens, c.finish_reason) for c in chunks
        ]
        # A prompt that may be cancelled is read in other pieces.
        logprobs = [[p for c in some for p in c.logprobs] for some in (items, chunks)]
        assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-5)
        assert len(items) > 5
        told = [(m.done, m.total) for m in messages if isinstance(m, Progress)]
        assert (told[0], told[-1]) == (read[0], read[-1])


def test_a_cancel_takes_effect_at_the_next_step(host: tuple[Worker, mm.LLM]) -> None:
    worker, llm = host
    random = Random(0)
    for _ in range(20):
        asked_late = []  # tokens whose step began after the cancel: the step under way may end, no other may begin

        def watched(job: Job, asked_late: list[int] = asked_late) -> Iterator[mm.Chunk]:
            llm_stream = llm.stream(PROMPT, max_tokens=100_000, cancel=job.cancelled, temperature=1.0, seed=1)
            late = job.cancelled.is_set()
            while (chunk := next(llm_stream, None)) is not None:
                asked_late += chunk.tokens if late else []
                yield chunk
                late = job.cancelled.is_set()

        job = worker.submit(watched)
        for _ in range(random.randrange(1, 12)):
            worker.messages.get(timeout=30)
        job.cancel()
        messages = until_end(worker, job)
        assert messages[-1] == Cancelled(job)
        assert not asked_late
        last = messages[-2].item
        assert (last.tokens, last.finish_reason) == ([], "cancelled")


def test_a_cancelled_prompt_is_not_read_to_its_end(host: tuple[Worker, mm.LLM]) -> None:
    worker, llm = host

    def progress(job: Job, done: int, total: int) -> None:
        job.progress(done, total)
        if done >= 1024:
            job.cancel()

    messages = run(
        worker,
        lambda job: llm.stream([3] * 5000, cancel=job.cancelled, progress=lambda *done: progress(job, *done)),
    )
    told = [m.done for m in messages if isinstance(m, Progress)]
    assert all(0 < after - before <= 512 for before, after in itertools.pairwise(told))
    assert told[0] == 0
    assert 1024 <= told[-1] < 1024 + 512
    last, end = messages[-2:]
    assert (last.item.finish_reason, last.item.stats.completion_tokens) == ("cancelled", 0)
    assert end == Cancelled(last.job)


# ---- under load -------------------------------------------------------------------------------------------------

ENDS = {
    "value": Done,
    "items": Done,
    "model": Done,
    "fails": Failed,
    "items fail": Failed,
    "does not close": Failed,
    "heeds": Done,
}


def make_work(kind: str, n: int, called: list[Job], llm: mm.LLM) -> Callable[[Job], Any]:
    """A job of a kind; its items are 0, 1, ... up to n."""

    def work(job: Job) -> Any:
        called.append(job)
        job.progress(0, n)
        match kind:
            case "value":
                return n
            case "items":
                return Items(*range(n))
            case "model":
                return (i for i, _ in enumerate(llm.stream(PROMPT, max_tokens=max(n, 1), cancel=job.cancelled)))
            case "items fail":
                return Items(*range(n), Boom())
            case "does not close":
                return Items(*range(n), close_error=Boom())
            case "heeds":
                return job.cancelled.wait(n / 10_000) or None
        raise Boom

    return work


def check(messages: list[Message], submitted: dict[Job, tuple[str, int]], called: list[Job]) -> None:
    """Nothing is lost, nothing is said twice, nothing is out of place."""
    groups = [(job, list(of_job)) for job, of_job in groupby(messages, key=lambda m: m.job)]
    assert len(groups) == len(submitted)  # one group each: no job speaks before another's end
    assert {job for job, _ in groups} == set(submitted)
    assert [job for job, of_job in groups if len(of_job) > 1] == called
    for job, of_job in groups:
        kind, n = submitted[job]
        *before, end = of_job
        if not before:
            assert end == Cancelled(job)
            assert job.cancelled.is_set()
            continue
        assert before[:2] == [Started(job), Progress(job, 0, n)]
        assert [type(m) for m in before[2:]] == [Item] * (len(before) - 2)
        assert [m.item for m in before[2:]] == list(range(len(before) - 2))
        if isinstance(end, Cancelled):
            assert job.cancelled.is_set()
        else:
            assert isinstance(end, Done if kind == "heeds" else ENDS[kind]), end
        match end:
            case Failed(_, error):
                assert isinstance(error, Boom), error
                assert kind != "items fail" or len(before) - 2 == n
            case Done(_, result):
                assert result == {"value": n}.get(kind) or (kind, result) == ("heeds", True)
                assert kind != "items" or len(before) - 2 == n


def play(worker: Worker, random: Random, llm: mm.LLM, kinds: list[str], closes: bool) -> None:
    """Submit and cancel from several threads at once, perhaps while one closes; then hold the messages to account."""
    submitted: dict[Job, tuple[str, int]] = {}
    called: list[Job] = []
    errors: list[BaseException] = []

    def front_end(seed: int, closer: bool) -> None:
        random = Random(seed)
        mine: list[Job] = []
        try:
            for step in range(random.randrange(1, 7)):
                if mine and random.random() < 0.35:
                    random.choice([*mine, *submitted]).cancel()
                elif closer and step > 2:
                    worker.close(wait=random.random() < 0.5)
                    return
                else:
                    kind, n = random.choice(kinds), random.randrange(4)
                    try:
                        mine.append(worker.submit(make_work(kind, n, called, llm)))
                    except RuntimeError:
                        assert worker._closed
                    else:
                        submitted[mine[-1]] = kind, n
        except BaseException as error:
            errors.append(error)

    threads = [
        Thread(target=front_end, args=(random.random(), closes and i == 0)) for i in range(random.randrange(2, 5))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not errors, errors
    if closes:
        worker.close()
        messages = rest(worker)
    else:
        last = worker.submit(lambda _: None)
        messages = until_end(worker, last)[:-2]
    check(messages, submitted, called)


@pytest.fixture
def switchy() -> Iterator[None]:
    """Threads that take turns a hundred times as often."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(interval / 100)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("switchy")
def test_a_thousand_random_sequences_with_their_own_workers(host: tuple[Worker, mm.LLM]) -> None:
    plain = [kind for kind in ENDS if kind != "model"]
    for seed in range(1000):
        kinds = list(ENDS) if seed % 5 == 0 else plain
        play(Worker(), Random(seed), host[1], kinds, closes=True)


@pytest.mark.slow
@pytest.mark.usefixtures("switchy")
def test_a_thousand_random_sequences_on_one_worker(host: tuple[Worker, mm.LLM]) -> None:
    for seed in range(1000):
        play(host[0], Random(seed), host[1], list(ENDS), closes=False)


# ---- waking the front end ---------------------------------------------------------------------------------------


def test_each_message_wakes_the_front_end_on_the_thread_that_sends_it() -> None:
    woken: list[tuple[int, int]] = []
    worker = Worker(wake=lambda: woken.append((get_ident(), worker.messages.qsize())))
    job = worker.submit(lambda job: job.progress(1, 2) or iter("ab"))
    worker.submit(lambda _: worker.close(wait=False))
    while worker.alive:
        time.sleep(0.001)
    assert [type(m) for m in rest(worker) if m.job is job] == [Started, Progress, Item, Item, Done]
    woken = woken[:5]
    assert [size for _, size in woken] == [1, 2, 3, 4, 5]  # what it is woken for is there
    assert len({thread for thread, _ in woken}) == 1
    assert get_ident() not in {thread for thread, _ in woken}


def test_a_front_end_that_cannot_be_woken_ends_no_thread() -> None:
    with Worker(wake=lambda: 1 / 0) as worker:
        run(worker, lambda _: "done")
        assert worker.alive
    assert not worker.alive


# ---- the end of the process -------------------------------------------------------------------------------------

PRELUDE = f"""
import sys, time
import mistral_mlx as mm
from mistral_mlx import worker as module
from mistral_mlx.worker import *
from pathlib import Path
GOLDEN = Path({str(GOLDEN)!r})
from mistral_mlx.backend import preload_blas
preload_blas()
import mlx.core as mx
worker = module.Worker()
def until(kind):
    while not isinstance(m := worker.messages.get(timeout=30), kind): assert not isinstance(m, module.Failed), m
    return m
"""
GENERATE = """
worker.submit(lambda job: mm.load(GOLDEN / "window"))
llm = until(module.Done).result
worker.submit(lambda job: llm.stream([1, 5, 9], max_tokens=10**6, cancel=job.cancelled))
until(module.Item)
"""
DEAF = """
module.EXIT_WAIT_S = 0.3
worker.submit(lambda job: time.sleep(60))
until(module.Started)
"""
MISUSED = "worker.submit(lambda job: 1); until(module.Done); worker.close(wait=False); worker.close(wait=False)"


@pytest.mark.parametrize("doing", ["", GENERATE, DEAF, MISUSED], ids=["nothing", "generating", "deaf", "closed"])
@pytest.mark.parametrize("leave", ["", "sys.exit(3)", "raise ValueError('mine')"])
def test_an_open_worker_does_not_hold_up_the_end_of_the_process(doing: str, leave: str) -> None:
    code = f"{PRELUDE}{doing}\nprint(time.time())\n{leave}\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    took = time.time() - float(done.stdout)
    assert took < 3
    assert done.returncode == {"": 0, "sys.exit(3)": 3}.get(leave, 1)
    assert "Fatal" not in done.stderr
    assert done.stderr == "" or (leave.startswith("raise") and done.stderr.endswith("ValueError: mine\n"))


def test_the_module_needs_only_the_standard_library() -> None:
    code = "import sys, mistral_mlx.worker; print({m.split('.')[0] for m in sys.modules} - sys.stdlib_module_names)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    extra = {name for name in eval(done.stdout) if not name.startswith("_")}  # site's own hooks for editable installs
    assert "mlx" not in extra
    assert "numpy" not in extra
