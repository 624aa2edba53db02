"""The thread that owns the model, and the requests that are answered on it together. Knows no HTTP."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock

import mlx.core as mx

from mistral_mlx.backend import active_memory
from mistral_mlx.completion import Chunk
from mistral_mlx.errors import BusyError
from mistral_mlx.llm import LLM
from mistral_mlx.request import Event, Request
from mistral_mlx.scheduling import MOST_ROWS, Scheduler
from mistral_mlx.worker import Done, Failed, Job, Worker

log = logging.getLogger("mistral_mlx")

# Of so many answers, when they ended tells how soon the next one will.
_REMEMBERED = 16
_LONGEST_S = 60.0
# What a pass over prompts may take at least, while which nobody gets a token; shorter ones cost more a token.
_PIECE_S = 0.3

Deliver = Callable[[Chunk | Exception], object]


@dataclass(frozen=True)
class State:
    """How much there is to do.

    Attributes:
        alive: whether anything will be answered.
        waiting, reading, decoding: requests that have not begun, whose prompt is being read, that are being answered.
        cache_bytes: keys and values of those.
        reuse_bytes: what is kept of earlier ones.
        memory_bytes: what MLX holds now: the weights, those, and what is being computed.
    """

    alive: bool
    waiting: int
    reading: int
    decoding: int
    cache_bytes: int
    reuse_bytes: int
    memory_bytes: int


class Engine:
    """A loaded model that answers whatever is submitted.

    Attributes:
        llm: the model. Its text may be used on any thread, its arrays on the engine's only.
        draining: it takes no more requests.
    """

    draining = False

    def __init__(
        self,
        load: Callable[[Job], LLM],
        *,
        max_batch: int = MOST_ROWS,
        max_queue: int = 256,
        reuse_bytes: int | None = None,
    ) -> None:
        """Load a model and begin.

        Args:
            load: called on the engine's thread with its job, which is cancelled by Ctrl-C.
            max_batch: how many requests are answered at a time, at most.
            max_queue: how many more may wait.
            reuse_bytes: what is kept at most of earlier conversations; by default what the model's own default is, for
                each of `max_batch`, in half of the memory that is left.

        Raises:
            MistralError: what `load` raises.
        """
        self._max_batch = max_batch
        self._most = max_batch + max_queue
        self._inbox: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._waiting: dict[Request, Deliver] = {}  # all that have not ended
        self._lock = Lock()
        self._worker = Worker()
        self._worker.submit(load)
        try:
            self.llm = self._loaded()
        except BaseException:
            self._worker.close()
            raise
        prefixes = self.llm.prefixes
        if reuse_bytes is None:
            memory = self.llm.memory(1)
            reuse_bytes = min(max_batch * prefixes.max_reuse_bytes, max(0, memory.limit - memory.total) // 2)
        prefixes.max_reuse_bytes = reuse_bytes
        self._counts = (0, 0, 0, 0, active_memory())
        self._ends: deque[float] = deque(maxlen=_REMEMBERED)  # when the last answers ended
        self._answering = True
        self._worker.submit(self._answer)
        self._worker.messages.get()  # it has begun: from now on it ends what is asked, whatever comes

    @property
    def state(self) -> State:
        """As of the last step."""
        reading, decoding, *held = self._counts
        waiting = max(0, len(self._waiting) - reading - decoding)
        return State(self._answering, waiting, reading, decoding, *held)

    def submit(self, request: Request, deliver: Deliver) -> None:
        """Have a request answered.

        Args:
            deliver: called on the engine's thread with each chunk, the last of which has stats, or with the error that
                ends the answer. It must be quick; if it raises, the request is cancelled.

        Raises:
            BusyError: as many wait as may, or the engine is draining or has ended.
        """
        with self._lock:
            if self.draining or not self._answering:
                raise _stopping()
            if len(self._waiting) >= self._most:
                raise BusyError(
                    f"{len(self._waiting)} requests are being answered or wait.", "Ask again later.", self._until_next
                )
            self._waiting[request] = deliver
        self._inbox.put(lambda: self._scheduler.add(request))

    def cancel(self, request: Request) -> None:
        """End a request before its next step, from any thread; one that has ended is left alone."""
        self._inbox.put(lambda: self._scheduler.cancel(request))

    def drain(self) -> None:
        """Take no more requests; those that were taken go on."""
        with self._lock:
            self.draining = True

    def close(self) -> None:
        """End what is being answered, and the thread."""
        self.drain()
        self._worker.close(wait=False)
        self._inbox.put(None)
        self._worker.close()

    @property
    def _until_next(self) -> float:
        """Seconds until another answer ends, by when the last ones did."""
        ends = self._ends
        return min(_LONGEST_S, (ends[-1] - ends[0]) / (len(ends) - 1)) if len(ends) > 1 else 1.0

    def _loaded(self) -> LLM:
        while True:
            message = self._worker.messages.get()
            if isinstance(message, Done):
                llm: LLM = message.result
                return llm
            if isinstance(message, Failed):
                raise message.error

    # ---- on the engine's thread -------------------------------------------------------------------------------------

    def _answer(self, job: Job) -> None:
        """Answer until the job is cancelled; what has not ended by then ends as it stands."""
        self._scheduler = self._new_scheduler()
        try:
            while not job.cancelled.is_set():
                if self._scheduler.idle:
                    self._rest()
                self._read_inbox()
                self._step()
            self._read_inbox()
            self._scheduler.cancel()
            self._step()
        finally:
            with self._lock:
                self._answering = False
            for request in list(self._waiting):  # nobody waits for ever
                self._tell((request, _stopping()))

    def _rest(self) -> None:
        """Wait until something is asked for."""
        mx.clear_cache()
        self._count()
        if what := self._inbox.get():
            what()

    def _read_inbox(self) -> None:
        """Do all that was asked for."""
        while not self._inbox.empty():
            if what := self._inbox.get():
                what()

    def _step(self) -> None:
        try:
            for event in self._scheduler.step():
                self._tell(event)
        except Exception as error:
            # Not a request's fault but ours: end all that was begun, and be there for the next.
            log.exception("the scheduler failed")
            self._scheduler = self._new_scheduler()
            for request in list(self._waiting):
                self._tell((request, error))
        self._count()

    def _new_scheduler(self) -> Scheduler:
        llm = self.llm
        return Scheduler(llm.model, llm.prefixes, llm.pace, rows=self._max_batch, seconds=_PIECE_S, keep=True)

    def _tell(self, event: Event) -> None:
        request, chunk = event
        deliver = self._waiting.get(request)
        if deliver is None:  # it was told of an error, and began after it
            self._scheduler.cancel(request)
            return
        if isinstance(chunk, Exception) or chunk.stats:
            del self._waiting[request]
            self._ends.append(time.monotonic())
        try:
            deliver(chunk)
        except Exception:
            log.exception("an answer could not be delivered")
            self._scheduler.cancel(request)

    def _count(self) -> None:
        s, prefixes = self._scheduler, self.llm.prefixes
        reuse_bytes = prefixes.cache_bytes + prefixes.reuse_bytes
        self._counts = (s.reading, s.decoding, s.cache_bytes, reuse_bytes, active_memory())


def _stopping() -> BusyError:
    return BusyError("The server is stopping.", "Ask again once it has been started anew.", 5.0)
