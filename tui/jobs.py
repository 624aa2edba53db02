"""Threads that work for the screen, and who is told what of their jobs: all of it when the screen drains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty
from typing import Any

from mistral_mlx.errors import MistralError
from mistral_mlx.worker import Cancelled, Done, Failed, Item, Job, Progress, Worker


def nothing(*_: object) -> None:
    """For those who need not be told."""


@dataclass
class Listener:
    """Who is told of a job, on the thread that drains.

    Attributes:
        thread: the name of the thread that it runs on.
        counts: whether a job makes its threads busy.
        on_items: given the items that came together.
        progress: what on_progress is given in place of a Progress, which has no room for more than two numbers.
    """

    thread: str
    on_items: Callable[[list[Any]], object] = nothing
    on_progress: Callable[..., object] = nothing
    on_done: Callable[[Any], object] = nothing
    on_error: Callable[[BaseException], object] = nothing
    on_cancelled: Callable[[], object] = nothing
    counts: bool = True
    progress: tuple[Any, ...] | None = None


class Threads:
    """Workers by name, each begun with its first job."""

    def __init__(self, wake: Callable[[], object], died: Callable[[str], MistralError], waits_for: str) -> None:
        """No thread yet.

        Args:
            wake: called from any thread when there is something to drain, once until `drain` runs.
            died: told the name of a thread that has died; gives the error for those who wait for it.
            waits_for: the name of the thread that touches MLX, and so has to end before the program does.
        """
        self._wake = wake
        self._woken = False
        self._died = died
        self._waits_for = waits_for
        self._workers: dict[str, Worker] = {}
        self._listeners: dict[Job, Listener] = {}
        self._newest: dict[str, Job] = {}

    @property
    def busy(self) -> bool:
        """Whether any job that counts has not ended."""
        return any(listener.counts for listener in self._listeners.values())

    def submit(self, work: Callable[[Job], Any], listener: Listener) -> Job:
        """Have work done after what the listener's thread has to do."""
        self.check()
        if listener.thread not in self._workers:
            finish = {} if listener.thread == self._waits_for else {"finish": None}
            self._workers[listener.thread] = Worker(**finish, wake=self._wake_once)
        job = self._workers[listener.thread].submit(work)
        self._listeners[job] = listener
        return job

    def submit_newest(self, work: Callable[[Job], Any], listener: Listener) -> Job:
        """The same, in place of what was asked of the thread in this way before."""
        if former := self._newest.get(listener.thread):
            former.cancel()
        self._newest[listener.thread] = self.submit(work, listener)
        return self._newest[listener.thread]

    def drain(self) -> None:
        """Hand out all that has come. Items of one job that came together are handed out together, and of its progress
        the last.
        """
        self._woken = False  # first, so that what comes meanwhile wakes anew
        for worker in tuple(self._workers.values()):
            self._drain(worker)

    def check(self) -> None:
        """Notice threads that have died, and tell all whose jobs they had; the next job begins a new one."""
        for name, worker in tuple(self._workers.items()):
            if worker.alive:
                continue
            self._drain(worker)  # what it said before
            del self._workers[name]
            error = self._died(name)
            for job in [job for job, listener in self._listeners.items() if listener.thread == name]:
                self._listeners.pop(job).on_error(error)

    def close(self, wait: bool) -> None:
        """Cancel everything and end the threads; of their jobs nothing more is told.

        Args:
            wait: for the one thread that is waited for: the others may be deep in a network.
        """
        for worker in self._workers.values():
            worker.close(wait=False)
        if wait and self._waits_for in self._workers:
            self._workers[self._waits_for].close()
        self._workers.clear()
        self._listeners.clear()

    def _wake_once(self) -> None:
        if not self._woken:
            self._woken = True
            self._wake()

    def _drain(self, worker: Worker) -> None:
        job: Job | None = None
        items: list[Any] = []
        progress: Progress | None = None

        def hand_out() -> None:
            nonlocal items, progress
            listener = self._listeners.get(job) if job else None
            told, came, items, progress = progress, items, [], None
            if listener and told:
                listener.on_progress(*(listener.progress or (told.done, told.total)))
            if listener and came:
                listener.on_items(came)

        while True:
            try:
                message = worker.messages.get_nowait()
            except Empty:
                break
            if message.job is not job:
                hand_out()
                job = message.job
            match message:
                case Item():
                    items.append(message.item)
                case Progress():
                    progress = message
                case Done() | Failed() | Cancelled():
                    hand_out()
                    self._end(message)
        hand_out()

    def _end(self, message: Done | Failed | Cancelled) -> None:
        if (listener := self._listeners.pop(message.job, None)) is None:
            return
        match message:
            case Done():
                listener.on_done(message.result)
            case Failed():
                listener.on_error(message.error)
            case Cancelled():
                listener.on_cancelled()
