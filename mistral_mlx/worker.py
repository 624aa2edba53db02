"""One thread that runs what a front end hands it: jobs go in, messages come out, and the front end never waits.

MLX wants one thread: its streams and its random state belong to the thread that uses them, and an array that has not
been evaluated there cannot be used on another. So have one worker for all that touches MLX. It knows no model and no
front end: a job is a callable.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Lock, Thread, current_thread
from traceback import clear_frames
from types import TracebackType
from typing import Any

from mistral_mlx.backend import release_thread

# What an interpreter that exits gives a running job to notice that it is cancelled: more than a step takes.
EXIT_WAIT_S = 5.0


class Job:
    """A piece of work: what its callable is given, and what its owner cancels. It holds neither callable nor result.

    Attributes:
        cancelled: set once the job should end; `LLM.stream` takes it as `cancel`.
    """

    def __init__(self, messages: SimpleQueue[Message], wake: Callable[[], object] | None = None) -> None:
        self.cancelled = Event()
        self._messages = messages
        self._wake = wake
        self._lock = Lock()
        self._ended = False

    def cancel(self) -> None:
        """Ask the job to end, from any thread; one that has ended does not notice."""
        self.cancelled.set()

    def progress(self, done: int, total: int) -> None:
        """Send a Progress, from any thread; `LLM.stream` takes this as `progress`."""
        self._send(Progress(self, done, total))

    def _send(self, message: Message, *, last: bool = False) -> None:
        with self._lock:  # a thread that the callable left behind may still tell its progress
            if self._ended:
                return
            self._ended = last
            self._messages.put(message)
        if self._wake:
            with suppress(Exception):  # a front end that has gone cannot be woken, and ends no thread
                self._wake()


@dataclass(frozen=True)
class Started:
    """The job's callable is about to be called."""

    job: Job


@dataclass(frozen=True)
class Progress:
    """The job has done so many of so many."""

    job: Job
    done: int
    total: int


@dataclass(frozen=True)
class Item:
    """The next item of the iterator that the job's callable returned."""

    job: Job
    item: Any


@dataclass(frozen=True)
class Done:
    """The job has ended. `result` is what its callable returned; None if that was an iterator."""

    job: Job
    result: Any


@dataclass(frozen=True)
class Failed:
    """The job has ended with an error. Its traceback has every line, without the local variables; until the error is
    dropped it holds the functions it passed through, and what those are closed over.
    """

    job: Job
    error: BaseException


@dataclass(frozen=True)
class Cancelled:
    """The job has ended because it was cancelled: before it began, or with no result to hand over."""

    job: Job


Message = Started | Progress | Item | Done | Failed | Cancelled
Work = Callable[[Job], Any]


class Worker:
    """A thread that runs jobs one after another, in the order in which they were submitted.

    A job that begins sends Started, then Progress and Item as they come. Every job ends with exactly one of Done,
    Failed and Cancelled; nothing of it comes after that, or before the end of the job ahead of it. Once it has ended,
    nothing but its messages holds what it gave, or its callable.

    The thread lives until `close`. A worker that is still open when the interpreter exits is closed then, and its
    running job waited for, EXIT_WAIT_S at most.

    Attributes:
        messages: everything the jobs send, for one front end to drain.
    """

    def __init__(
        self, finish: Callable[[], object] | None = release_thread, *, wake: Callable[[], object] | None = None
    ) -> None:
        """Start the thread.

        Args:
            finish: called on it as the last thing; by default MLX lets go of the thread. None for a thread that touches
                no MLX: an interpreter that exits does not wait for it.
            wake: called after each message, on the thread that sent it, so that a front end need not ask again and
                again; it must be quick, and what it raises is dropped.
        """
        self.messages: SimpleQueue[Message] = SimpleQueue()
        self._queue: SimpleQueue[tuple[Job, Work] | None] = SimpleQueue()
        self._unended: set[Job] = set()
        self._finish = finish
        self._wake = wake
        self._lock = Lock()  # nothing is queued behind the None that ends the thread
        self._closed = False
        self._thread = Thread(target=self._run_jobs, name="mistral-mlx worker", daemon=True)
        self._thread.start()
        if finish:
            atexit.register(self._leave)

    @property
    def alive(self) -> bool:
        """Whether the thread lives: what is submitted will run. If it is not, and nobody closed it, it was killed."""
        return self._thread.is_alive()

    def submit(self, work: Work) -> Job:
        """Have `work` called with its job, on the worker's thread.

        If it returns an iterator, its items are sent one by one. Once the job is cancelled one more is asked for, so
        that an answer can say how it ended, and the iterator is closed; it is closed in any case.

        A job that is cancelled before it begins is never called. One that returns a result all the same ends with Done:
        a model that has been loaded is not lost.

        Raises:
            RuntimeError: the worker is closed.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("The worker is closed: it takes no more jobs.")
            job = Job(self.messages, self._wake)
            self._unended.add(job)
            self._queue.put((job, work))
        return job

    def close(self, wait: bool = True) -> None:
        """Cancel every job and end the thread; from any thread, as often as you like.

        Args:
            wait: until the thread has ended, and with it every job. A job that closes its own worker does not wait.
        """
        with self._lock:
            if not self._closed:
                self._closed = True
                for job in tuple(self._unended):
                    job.cancel()
                self._queue.put(None)
        if wait and current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _leave(self) -> None:
        # A thread that is still inside MLX when the interpreter goes can take the process down with it.
        self.close(wait=False)
        self._thread.join(EXIT_WAIT_S)

    def _run_jobs(self) -> None:
        for job, work in iter(self._queue.get, None):
            end = _run(job, work)
            if isinstance(end, Failed):
                _empty_frames(end.error)
            self._unended.discard(job)
            del work  # before the end is told: whoever reads it finds nothing held
            job._send(end, last=True)
            del job, end  # the wait for the next job may be long
        try:
            if self._finish:
                self._finish()
        finally:
            atexit.unregister(self._leave)


def _run(job: Job, work: Work) -> Done | Failed | Cancelled:
    """Call `work`, send what it gives, and return how the job ended."""
    if job.cancelled.is_set():
        return Cancelled(job)
    job._send(Started(job))
    try:
        result = work(job)
        if isinstance(result, Iterator):
            _send_items(job, result)
            result = None
    except BaseException as error:  # SystemExit too: a job ends itself, never the thread
        return Failed(job, error)
    return Cancelled(job) if result is None and job.cancelled.is_set() else Done(job, result)


def _send_items(job: Job, items: Iterator[Any]) -> None:
    try:
        last = job.cancelled.is_set()
        for item in items:
            job._send(Item(job, item))
            if last:
                break
            last = job.cancelled.is_set()
    finally:
        if close := getattr(items, "close", None):
            close()


def _empty_frames(error: BaseException | None) -> None:
    """Drop the local variables that an error and those behind it hold: half of a model that does not fit, say."""
    behind, seen = [error], set[int]()
    while behind:
        if (error := behind.pop()) is not None and id(error) not in seen:
            seen.add(id(error))
            clear_frames(error.__traceback__)
            behind += [error.__cause__, error.__context__]
