"""The model at arm's length: work goes to threads of its own, and what comes of it is handed out on the screen's.

Every method returns at once. What was asked for is told by the functions that were given with it, all of them called
from `drain`, so the screen decides when. A job ends with exactly one of on_done, on_error and on_cancelled.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from traceback import clear_frames
from typing import TYPE_CHECKING, Any

from mistral_mlx.errors import InputError, MistralError
from tui.catalogue import ModelEntry, catalogue
from tui.jobs import Listener, Threads, nothing
from tui.model import (
    Alternative,
    Ask,
    Forecast,
    Loaded,
    Said,
    alternatives,
    chat_of,
    describe,
    forecast,
    plain_ids,
    receipt_of,
    recorded,
    seeded,
    stream,
    within_context,
)
from tui.receipt import Receipt, Verdict, compare, options_of

if TYPE_CHECKING:
    from mistral_mlx import LLM, Chunk, Message
    from mistral_mlx.worker import Job

_MODEL, _FETCH, _LISTING = "model", "fetch", "listing"  # the threads; only the first touches MLX's arrays


class _Stopped(Exception):
    """What ends a load or a download that was cancelled; no kind of error that either takes for its own."""


@dataclass
class _Host:
    """What the model's thread holds; it alone changes it."""

    llm: LLM | None = None
    loaded: Loaded | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def ready(self) -> tuple[LLM, Loaded]:
        """The model; raises InputError if there is none."""
        if self.llm is None or self.loaded is None:
            raise InputError("No model is loaded.", "Choose one first.")
        return self.llm, self.loaded


class Engine:
    """Loads models, answers, compares and replays, fetches and lists, without ever making the screen wait.

    Attributes:
        model: what is loaded, as far as it has been told.
    """

    def __init__(self, wake: Callable[[], object], load: Callable[..., Any] | None = None) -> None:
        """Nothing is loaded and no thread begun.

        Args:
            wake: called from any thread when there is something to drain, once until `drain` runs.
            load: instead of `mistral_mlx.load`, with the same arguments.
        """
        self.model: Loaded | None = None
        self._load = load or _load
        self._host = _Host()
        self._threads = Threads(wake, self._died, _MODEL)

    @property
    def busy(self) -> bool:
        """Whether the model is loading or answering; forecasts do not count."""
        return self._threads.busy

    # ---- what can be asked for -------------------------------------------------------------------------------------

    def load(
        self,
        name: str,
        options: Mapping[str, Any] | None = None,
        *,
        on_progress: Callable[[str, int, int], object] = nothing,
        on_done: Callable[[Loaded], object] = nothing,
        on_error: Callable[[BaseException], object] = nothing,
        on_cancelled: Callable[[], object] = nothing,
    ) -> Job:
        """Load a model in place of the one there is, which goes just before the new one's weights are read.

        What fails or is cancelled before that leaves the old one as it is; after it, the old one is loaded again.

        Args:
            options: as for `mistral_mlx.load`: dtype, window, kv_bits, draft.
            on_progress: told "fetch" or "load", bytes done, all bytes.
        """
        wanted = dict(options or {})

        def work(job: Job) -> Loaded | None:
            host = self._host

            def tell(phase: str, done: int, total: int) -> None:
                if job.cancelled.is_set():
                    raise _Stopped
                if phase == "load" and host.llm is not None:
                    host.llm = None
                    gc.collect()  # two models seldom fit
                listener.progress = (phase, done, total)
                job.progress(done, total)

            former, llm = (host.loaded, host.options), None
            try:
                llm = self._load(
                    name,
                    progress=lambda *figures: tell("fetch", *figures),
                    loading=lambda *figures: tell("load", *figures),
                    **wanted,
                )
                loaded = describe(name, llm, wanted)
            except BaseException as error:
                if host.llm is None and former[0] is not None:
                    host.loaded = llm = None
                    clear_frames(error.__traceback__)  # they hold what was read of the new one
                    gc.collect()
                    with suppress(Exception):  # why the new one failed is what the user must know
                        host.llm = self._load(former[0].name, **former[1])
                        host.loaded = former[0]
                if isinstance(error, _Stopped):
                    return None
                raise
            host.llm, host.loaded, host.options = llm, loaded, wanted
            return loaded

        def told(then: Callable[..., object]) -> Callable[..., object]:
            def call(*given: Any) -> None:
                self.model = self._host.loaded
                then(*given)

            return call

        listener = Listener(
            _MODEL,
            on_progress=on_progress,
            on_done=told(on_done),
            on_error=told(on_error),
            on_cancelled=told(on_cancelled),
        )
        return self._threads.submit(work, listener)

    def answer(
        self,
        ask: Ask,
        *,
        on_chunks: Callable[[list[Chunk]], object],
        on_kept: Callable[[list[Message], Receipt], object] = nothing,
        on_progress: Callable[[int, int], object] = nothing,
        on_done: Callable[[Receipt], object] = nothing,
        on_error: Callable[[BaseException], object] = nothing,
        on_cancelled: Callable[[], object] = nothing,
    ) -> Job:
        """Answer; cancelling the job stops it at the next token or piece of the prompt.

        Args:
            on_kept: given what the history keeps of an answer once it has ended, with the results of the tools that it
                called, and its receipt; before the chunks of what follows.
            on_done: given the receipt; also of an answer that was stopped, whose last chunk says so.
            on_cancelled: it was stopped before it began.
        """
        ask = seeded(ask)
        done: list[Receipt] = []

        def work(job: Job) -> Iterator[Said]:
            return recorded(*self._host.ready(), ask, cancel=job.cancelled, progress=job.progress)

        def items(came: list[Said]) -> None:
            chunks: list[Chunk] = []
            for chunk, kept, made in came:
                chunks.append(chunk)
                if made:
                    done.append(made)
                    on_chunks(chunks)
                    on_kept(kept, made)
                    chunks = []
            if chunks:
                on_chunks(chunks)

        listener = Listener(
            _MODEL,
            on_items=items,
            on_progress=on_progress,
            on_done=lambda _: on_done(done[-1]),
            on_error=on_error,
            on_cancelled=lambda: on_done(done[-1]) if done else on_cancelled(),
        )
        return self._threads.submit(work, listener)

    def compare(
        self,
        ask: Ask,
        lanes: Sequence[Mapping[str, Any]],
        *,
        on_chunks: Callable[[list[tuple[int, Chunk]]], object],
        on_progress: Callable[[int, int], object] = nothing,
        on_done: Callable[[list[Receipt]], object] = nothing,
        on_error: Callable[[BaseException], object] = nothing,
        on_cancelled: Callable[[], object] = nothing,
    ) -> Job:
        """Answer in several ways at once.

        Args:
            lanes: what each has in place of some of the ask's options; each without a seed gets its own.
            on_chunks: given chunks with the index of their lane.
            on_done: given the receipt of each lane, also if they were stopped.
        """
        asks = [seeded(replace(ask, options={**ask.options, **lane})) for lane in lanes]
        receipts: dict[int, Receipt] = {}

        def work(job: Job) -> Iterator[list[tuple[int, Chunk, Receipt | None]]]:
            llm, loaded = self._host.ready()
            shared, left_out = within_context(llm, ask)
            said: list[list[int]] = [[] for _ in asks]

            def noted(index: int, chunk: Chunk) -> tuple[int, Chunk, Receipt | None]:
                said[index] += chunk.tokens
                lane = replace(shared, options=asks[index].options)
                made = receipt_of(llm, loaded, lane, said[index], chunk)
                return index, chunk, made and {**made, "left_out": left_out}

            given: dict[str, Any] = {"cancel": job.cancelled, "progress": job.progress}
            options = [each.options for each in asks]
            if llm.instruct:
                chunks = chat_of(llm, shared).stream_lanes(options, **given)
            else:
                chunks = llm.stream_lanes(plain_ids(llm, shared), options, **given)
            for index, chunk in chunks:
                if job.cancelled.is_set():  # a worker asks for one more item: the ends of all lanes are in it
                    yield [noted(index, chunk), *(noted(*rest) for rest in chunks)]
                    return
                yield [noted(index, chunk)]

        def items(came: list[list[tuple[int, Chunk, Receipt | None]]]) -> None:
            flat = [each for item in came for each in item]
            receipts.update({index: receipt for index, _, receipt in flat if receipt})
            on_chunks([(index, chunk) for index, chunk, _ in flat])

        def ended(_: object = None) -> None:
            on_done([receipts[index] for index in sorted(receipts)])

        listener = Listener(
            _MODEL,
            on_items=items,
            on_progress=on_progress,
            on_done=ended,
            on_error=on_error,
            on_cancelled=lambda: ended() if receipts else on_cancelled(),
        )
        return self._threads.submit(work, listener)

    def alternatives(
        self,
        ask: Ask,
        count: int,
        *,
        on_done: Callable[[list[Alternative]], object],
        on_error: Callable[[BaseException], object] = nothing,
        on_cancelled: Callable[[], object] = nothing,
    ) -> Job:
        """The likeliest next tokens, after an answer's beginning (its ids in a message with prefix=True) or at its
        start, with the probabilities that the model gives them, from the likeliest on.
        """
        ask = replace(ask, options={"max_tokens": 1, "temperature": 0.0, "logprobs": count})

        def work(job: Job) -> list[Alternative] | None:
            llm, _ = self._host.ready()
            return alternatives(llm, ask, cancel=job.cancelled, progress=job.progress)

        return self._threads.submit(
            work, Listener(_MODEL, on_done=on_done, on_error=on_error, on_cancelled=on_cancelled)
        )

    def forecast(
        self,
        ask: Ask,
        *,
        on_done: Callable[[Forecast], object],
        on_error: Callable[[BaseException], object] = nothing,
    ) -> Job:
        """What answering would read. A newer forecast takes the place of one that has not begun."""

        def work(_: Job) -> Forecast:
            return forecast(self._host.ready()[0], ask)

        return self._threads.submit_newest(work, Listener(_MODEL, on_done=on_done, on_error=on_error, counts=False))

    def replay(
        self,
        ask: Ask,
        receipt: Receipt,
        ids: Sequence[int],
        *,
        on_progress: Callable[[int, int], object] = nothing,
        on_done: Callable[[Verdict], object],
        on_error: Callable[[BaseException], object] = nothing,
        on_cancelled: Callable[[], object] = nothing,
    ) -> Job:
        """Ask again with the options of a receipt, and say whether the same answer came.

        Args:
            ids: the tokens of the answer that the receipt is of.
            on_progress: told (tokens that came, tokens of the answer).
        """
        kept = list(ids)
        ask = replace(ask, options=options_of(receipt))

        def work(job: Job) -> Verdict | None:
            llm, loaded = self._host.ready()
            tokens: list[int] = []
            for chunk in stream(llm, ask, cancel=job.cancelled):
                tokens += chunk.tokens
                job.progress(min(len(tokens), len(kept)), len(kept))
                new = receipt_of(llm, loaded, ask, tokens, chunk)
            return None if job.cancelled.is_set() or new is None else compare(receipt, new, kept, tokens, llm.decode)

        return self._threads.submit(
            work,
            Listener(_MODEL, on_progress=on_progress, on_done=on_done, on_error=on_error, on_cancelled=on_cancelled),
        )

    def fetch(
        self,
        name: str,
        *,
        on_progress: Callable[[int, int], object] = nothing,
        on_done: Callable[[Path], object] = nothing,
        on_error: Callable[[BaseException], object] = nothing,
        on_cancelled: Callable[[], object] = nothing,
    ) -> Job:
        """Bring a model to this machine, while answers go on; what a cancelled one has fetched stays for the next."""

        def work(job: Job) -> Path | None:
            from mistral_mlx import models

            def tell(done: int, total: int) -> None:
                if job.cancelled.is_set():
                    raise _Stopped
                job.progress(done, total)

            try:
                return models.pull(name, progress=tell)
            except _Stopped:
                return None

        return self._threads.submit(
            work,
            Listener(
                _FETCH,
                on_progress=on_progress,
                on_done=on_done,
                on_error=on_error,
                on_cancelled=on_cancelled,
                counts=False,
            ),
        )

    def models(
        self,
        *,
        on_models: Callable[[list[ModelEntry]], object],
        on_done: Callable[[None], object] = nothing,
        on_error: Callable[[BaseException], object] = nothing,
    ) -> Job:
        """What is on this machine and what can be had: told at once, and again as sizes of downloads become known. A
        newer listing takes the place of one that is not done.
        """
        listener = Listener(
            _LISTING, on_items=lambda lists: on_models(lists[-1]), on_done=on_done, on_error=on_error, counts=False
        )
        return self._threads.submit_newest(catalogue, listener)

    # ---- threads ---------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Hand out all that has come. Chunks of one job that came together are handed out together, and of its progress
        the last.
        """
        self._threads.drain()

    def check(self) -> None:
        """Notice a thread that has died, and tell all whose jobs it had; the next job of its kind begins a new one."""
        self._threads.check()

    def close(self, wait: bool = True) -> None:
        """Cancel everything and end the threads.

        Args:
            wait: until the running jobs have noticed: a step of the model, or a piece of a download.
        """
        self._threads.close(wait)

    def _died(self, thread: str) -> MistralError:
        if thread != _MODEL:
            return MistralError("A thread of this program stopped without a word.", "Try again.")
        self._host, self.model = _Host(), None
        return MistralError("The thread that runs the model stopped without a word.", "Load the model again.")


def _load(name: str, **options: Any) -> LLM:
    from mistral_mlx.llm import load

    return load(name, **options)
