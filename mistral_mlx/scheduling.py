"""Requests that come and go while others are answered: who is read when, and how one that fails fails alone."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf

import mlx.core as mx
import numpy as np

from mistral_mlx.answer import stats
from mistral_mlx.engine.batch import Batch, Outcome
from mistral_mlx.engine.choice import Row
from mistral_mlx.engine.prefix import Prefixes, shared
from mistral_mlx.engine.reading import Progress, Reading, ReadingPace, prefill_bytes, read_chunk, read_together
from mistral_mlx.engine.score import score_bytes, score_chunk, scored_chunk
from mistral_mlx.model.cache import Cache
from mistral_mlx.model.slots import Sequences
from mistral_mlx.model.transformer import Transformer
from mistral_mlx.request import Event, Request

log = logging.getLogger("mistral_mlx")

# More rows than that gain little on any machine, and each makes the others slower.
MOST_ROWS = 32
# Tokens of prompts that are read together: longer ones keep the machine busy alone, and are kept for others that begin
# alike, or wait for them.
_SHORT = 128
# As much longer as a step of the answers prompts are read before the next: an answer that has not begun is not decoded
# along, and a step takes little longer for one row more.
_READING = 4
# What a pass over prompts costs beside its tokens, for it reads all weights: as much as so many tokens. Measured on a
# CPU; the figures of Apple's chips say the same.
_PASS = 16
# Bytes for each logit of a row, which stands in memory several times while a token is drawn.
_ROW = 16
# How often an answer is taken up again after a step that failed with others in it.
_RETRIES = 2


@dataclass(eq=False)
class _Task:
    """A request on its way.

    Attributes:
        said: the tokens of its answer so far.
        start, first: when it was begun, and its first token came.
        reused, pieces: how its prompt was read.
        batch: the most answers that were decoded together with it.
        retries: how often it was taken up again after a step that failed.
        error: what ended it.
    """

    request: Request
    said: list[int] = field(default_factory=list)
    start: float = 0.0
    first: float = 0.0
    reused: int = 0
    pieces: tuple[int, ...] = ()
    batch: int = 1
    retries: int = 0
    cancelled: bool = False
    error: Exception | None = None

    @property
    def ids(self) -> list[int]:
        """All that it has read and said."""
        return [*self.request.ids, *self.said]

    def row(self, vocab_size: int) -> Row:
        """How its next token is chosen."""
        r, ids = self.request, self.ids
        return Row(r.params, ids, vocab_size, len(ids), r.constraint, r.begun + len(self.said))


@dataclass(eq=False)
class _Prompt:
    """What is being read, for all who ask it.

    Attributes:
        known: how many of the ids need not be read, as far as was known when it came.
        after: what begins alike, and is read before it.
        apart: it is read alone, and in pieces.
        cache: what stands after as much as has been read; None before it is begun.
        told: how it is read.
        done: how many of the ids the cache stands after.
    """

    tasks: list[_Task]
    ids: list[int]
    known: int = 0
    after: _Prompt | None = None
    apart: bool = False
    cache: Cache | None = None
    told: Reading = field(default_factory=Reading)
    done: int = 0

    @cached_property
    def array(self) -> np.ndarray:
        """The ids, to compare many."""
        return np.array(self.ids, np.int64)

    @property
    def left(self) -> int:
        """How many ids are still to be read."""
        return len(self.ids) - (self.done if self.cache else self.known)

    @property
    def scored(self) -> int | None:
        """With how many of the likeliest its own ids are scored; None if they are not."""
        task = self.tasks[0]
        return None if task.said else task.request.score_prompt

    @property
    def chunk(self) -> int:
        """The most tokens to read at a time."""
        return min(task.request.memory.chunk for task in self.tasks)


class Scheduler:
    """Answers requests. Each step reads some of the prompts, and gives each answer that has begun its next token.

    As many are answered at a time as there is memory for; the others wait in the order in which they came. Whatever
    goes wrong with one ends that one. After a step that failed with several in it each of them is read again and makes
    a step alone: so the one at fault is found, and the others go on as if nothing had been.
    """

    def __init__(
        self,
        model: Transformer,
        prefixes: Prefixes,
        pace: ReadingPace,
        *,
        rows: int = MOST_ROWS,
        seconds: float = inf,
        progress: Progress | None = None,
        keep: bool = False,
    ) -> None:
        """Nothing to do yet.

        Args:
            prefixes: where what was read before is found and kept.
            pace: knows how many tokens are read how fast, and learns from these.
            rows: how many are answered at a time, at most.
            seconds: what a pass over prompts may take at least, while which nobody is answered.
            progress: told of each prompt that is read alone, as for `prefill`.
            keep: answers too are kept in `prefixes`, for whoever goes on from them.
        """
        self._model = model
        self._prefixes = prefixes
        self._rows = rows
        self._pace = pace
        self._seconds = seconds
        self._progress = progress
        self._keep = keep
        self._waiting: deque[_Task] = deque()
        self._prompts: list[_Prompt] = []
        self._batch = Batch(model)
        self._live: dict[Row, _Task] = {}
        self._turn = 0
        self._steps: deque[float] = deque(maxlen=4)  # what the last steps of the answers took
        self._broken: Exception | None = None  # what left the batch in pieces, told at its next step

    @property
    def reading(self) -> int:
        """Requests whose prompt is being read."""
        return sum(len(prompt.tasks) for prompt in self._prompts)

    @property
    def decoding(self) -> int:
        """Requests that are being answered."""
        return len(self._live)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._waiting or self._prompts or self._live)

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values of what is being read and answered."""
        caches = [prompt.cache for prompt in self._prompts if prompt.cache]
        return self._batch.nbytes + sum(cache.nbytes + cache.log_bytes for cache in caches)

    def add(self, request: Request) -> None:
        """Have a request answered."""
        self._waiting.append(_Task(request))

    def cancel(self, request: Request | None = None) -> None:
        """End a request, or all, at the next step; one that has ended is left alone."""
        for task in [*self._begun, *self._waiting]:
            task.cancelled = task.cancelled or request in (None, task.request)

    def step(self) -> Iterator[Event]:
        """What the next step brings; to be read to its end."""
        yield from self._drop_cancelled()
        yield from self._admit()
        patience = left = self._patience
        end = time.perf_counter() + patience
        while self._prompts:
            yield from self._read(max(self._seconds, left))
            left = end - time.perf_counter()
            if not self._live or left <= patience / 2:
                break
        if self._live:
            yield from self._decode()
        else:
            self._steps.clear()

    @property
    def _patience(self) -> float:
        """Seconds that prompts are read for before the answers' next step. One step that took long, as the first of a
        shape does, does not count.
        """
        return _READING * min(self._steps) if len(self._steps) > 1 else 0.0

    # ---- who is admitted --------------------------------------------------------------------------------------------

    @property
    def _begun(self) -> list[_Task]:
        return [*self._live.values(), *(task for prompt in self._prompts for task in prompt.tasks)]

    def _drop_cancelled(self) -> Iterator[Event]:
        if not any(task.cancelled for task in [*self._begun, *self._waiting]):
            return
        yield from self._leave(self._batch, [row for row, task in self._live.items() if task.cancelled])
        gone = [task for task in [*self._begun, *self._waiting] if task.cancelled]
        self._waiting = deque(task for task in self._waiting if not task.cancelled)
        for prompt in self._prompts:
            left = [task for task in prompt.tasks if not task.cancelled]
            if prompt.cache and not left:
                self._keep_prompt(prompt.ids, prompt.cache)
            prompt.tasks = left
        self._prompts = [prompt for prompt in self._prompts if prompt.tasks]
        yield from map(self._end, gone)

    def _admit(self) -> Iterator[Event]:
        """Begin with those that wait, as far as there are rows, and memory for all that they may become."""
        while self._waiting and len(begun := self._begun) < self._rows:
            task = self._waiting[0]
            try:
                if begun and self._free([*begun, task]) < 0:
                    return
                self._await_turn(task)
            except Exception as error:
                yield task.request, error
            self._waiting.popleft()
            self._make_room()

    def _await_turn(self, task: _Task) -> None:
        """Put a request among the prompts that are to be read."""
        request = task.request
        task.start = task.first = time.perf_counter()
        for prompt in self._prompts:
            if prompt.ids == request.ids and prompt.scored == request.score_prompt and not prompt.apart:
                request.prompt_scores += prompt.tasks[0].request.prompt_scores
                prompt.tasks.append(task)
                return
        new = _Prompt([task], request.ids)
        new.known = self._prefixes.reach(new.array)
        alike = max(self._prompts, key=lambda prompt: shared(prompt.array, new.array), default=None)
        # It waits for what saves it more than it waits for.
        if alike and shared(alike.array, new.array) > max(_SHORT, new.known, len(alike.ids) // 2):
            new.after = alike
        self._prompts.append(new)

    def _free(self, tasks: Sequence[_Task]) -> int:
        """Bytes that are left beside all that some requests may become; less than 0 if they cannot go together."""
        if not tasks:
            return 2**63
        each = [task.request.memory for task in tasks]
        caches = [memory.cache for memory in each]
        reading = max(memory.prefill for memory in each)
        if len(tasks) > 1:  # of which several may be read in one pass
            config, chunk = self._model.config, min(memory.chunk for memory in each)
            together = prefill_bytes(config, chunk, self._model.dtype.size, chunk)
            reading = max(reading, together + len(tasks) * _ROW * config.vocab_size)
        if any(task.request.score_prompt is not None for task in tasks):
            reading += score_bytes(self._model.config.vocab_size)
        logs = sum(prompt.cache.log_bytes for prompt in self._prompts if prompt.cache)
        # What is kept of a prompt just read, and a layer of each row while one joins.
        spare = 2 * max(caches) if len(tasks) > 1 else 0
        return each[0].limit - each[0].weights - reading - sum(caches) - logs - spare

    def _make_room(self) -> int:
        """Let go of what is kept as far as must be for all that has begun; returns the bytes that are left for it."""
        free = self._free(self._begun)
        if free < self._batch.free_bytes:
            try:
                self._batch.give_up_slots()
            except Exception as error:  # not the fault of whoever wants the room
                self._broken = error
        free = max(0, free - self._batch.free_bytes)
        self._prefixes.make_room(free)
        return free

    def _keep_prompt(self, ids: list[int], cache: Cache) -> None:
        """Keep what was read, if there is room for it and for the copy of it that the answer goes on with."""
        if self._make_room() >= cache.nbytes + cache.log_bytes:
            self._put(ids, cache)

    def _put(self, ids: list[int], cache: Cache) -> None:
        self._prefixes.put(ids, cache)
        self._make_room()

    # ---- prompts ----------------------------------------------------------------------------------------------------

    def _read(self, seconds: float) -> Iterator[Event]:
        """Make a pass of about so long: over a piece of a prompt, or over several that are short and of like length.

        It is the oldest's turn, or that of the one that is done soonest.
        """
        for prompt in self._prompts:
            prompt.after = prompt.after if prompt.after in self._prompts else None
        ready = [prompt for prompt in self._prompts if not prompt.after]
        self._turn += 1
        prompt = ready[0] if self._turn % 2 else min(ready, key=lambda each: each.left)
        room = self._pace.within(seconds)
        together = self._together(prompt, ready, room)
        if len(together) > 1:
            yield from self._read_together(together)
            return
        try:
            logits = self._read_piece(prompt, room)
        except Exception as error:
            self._prompts.remove(prompt)
            yield from ((task.request, error) for task in prompt.tasks)
            return
        if logits is not None and prompt.cache:
            read = Sequences.of(prompt.cache)
            self._keep_prompt(prompt.ids, prompt.cache)
            prompt.cache = None  # if it was not kept, its layers are let go of one by one
            self._prompts.remove(prompt)
            mx.clear_cache()  # what decoding has no use for
            yield from self._answer([prompt], logits[None], read)

    def _together(self, first: _Prompt, ready: Sequence[_Prompt], room: int) -> list[_Prompt]:
        """Those to read in the same pass as one, which saves passes and costs what fills the shorter up."""
        new = [prompt for prompt in ready if self._is_new(prompt)]
        if first not in new:
            return [first]
        chosen = [first]
        for prompt in sorted(new, key=lambda each: abs(len(each.ids) - len(first.ids))):
            if prompt is first:
                continue
            lengths = [len(each.ids) for each in [*chosen, prompt]]
            size = len(lengths) * max(lengths)
            fits = size <= min(room, *(each.chunk for each in [*chosen, prompt]))
            if fits and size - sum(lengths) <= _PASS * len(chosen):
                chosen.append(prompt)
        return chosen

    def _is_new(self, prompt: _Prompt) -> bool:
        """Whether it is short and can be read from its beginning, and little of it was read before."""
        begun = prompt.cache or prompt.apart or prompt.scored is not None
        return not begun and len(prompt.ids) <= _SHORT and prompt.known <= len(prompt.ids) // 2

    def _read_together(self, prompts: list[_Prompt]) -> Iterator[Event]:
        began = time.perf_counter()
        try:
            logits, read = read_together(self._model, [prompt.ids for prompt in prompts])
        except Exception as error:  # one of them is at fault: each is read alone
            log.warning("%d prompts could not be read together: %s", len(prompts), error)
            for prompt in prompts:
                prompt.apart = True
            return
        self._pace.took(len(prompts) * max(len(prompt.ids) for prompt in prompts), time.perf_counter() - began)
        for prompt in prompts:
            self._prompts.remove(prompt)
            prompt.told(len(prompt.ids), len(prompt.ids))
        yield from self._answer(prompts, logits, read)

    def _read_piece(self, prompt: _Prompt, room: int) -> mx.array | None:
        """Read the next piece of a prompt, of at most so many tokens; the logits (vocab,) after the last."""
        began = time.perf_counter()
        if prompt.cache is None:
            # Nothing is kept of how likely a prompt was.
            prompt.cache, prompt.done = self._prefixes.take(prompt.ids if prompt.scored is None else prompt.ids[:1])
            prompt.told = Reading(self._progress, prompt.done)
            prompt.told(0, prompt.left)
        start, known = prompt.done, prompt.told.known
        chunk = min(prompt.chunk, room)
        if prompt.scored is not None:
            chunk = min(chunk, scored_chunk(self._model.config.vocab_size))
        piece = prompt.ids[start : start + chunk]
        last = len(piece) == prompt.left
        if prompt.scored is None:
            logits = read_chunk(self._model, piece, prompt.cache, last=last)
            self._pace.took(len(piece), time.perf_counter() - began)
        else:
            following = prompt.ids[start + 1 : start + 1 + len(piece)]
            scores, logits = score_chunk(self._model, piece, following, prompt.cache, prompt.scored)
            for task in prompt.tasks:
                task.request.prompt_scores += scores
        prompt.done += len(piece)
        prompt.told(prompt.done - known, len(prompt.ids) - known)
        return logits if last else None

    # ---- answers ----------------------------------------------------------------------------------------------------

    def _answer(self, prompts: list[_Prompt], logits: mx.array, read: Sequences) -> Iterator[Event]:
        """Begin the answers to what has been read, a row of `logits` and `read` for each prompt."""
        tasks: list[_Task] = []
        places: list[int] = []
        for place, prompt in enumerate(prompts):
            for task in prompt.tasks:
                if not task.said:
                    task.reused, task.pieces = prompt.told.known, prompt.told.pieces
                if task.request.only_read:
                    task.request.answer.finish = "length"
                    yield self._end(task)
                else:
                    tasks.append(task)
                    places.append(place)
        if not tasks:
            return
        logits, read = logits[mx.array(places)], read.only(places)
        if tasks[0].retries:
            yield from self._try_alone(tasks[0], logits, read)
        else:
            yield from self._first_tokens(self._batch, tasks, logits, read)

    def _first_tokens(self, batch: Batch, tasks: list[_Task], logits: mx.array, read: Sequences) -> Iterator[Event]:
        rows: list[Row] = []
        try:
            rows += [task.row(self._model.config.vocab_size) for task in tasks]
            drawn = batch.join(rows, logits, read)
        except Exception as error:
            yield from [(tasks[0].request, error)] if len(tasks) == 1 else self._doubt(tasks, error)
            yield from self._let_go(batch, rows)
            return
        for row, task in zip(rows, tasks, strict=True):
            task.first = task.first if task.said else time.perf_counter()
            self._live[row] = task
        yield from self._take(batch, list(zip(rows, drawn, strict=True)))

    def _decode(self) -> Iterator[Event]:
        """The next token of every answer."""
        began = time.perf_counter()
        try:
            if self._broken:
                raise self._broken
            drawn = self._batch.step()
        except Exception as error:
            yield from self._doubt_all(error)
            return
        self._steps.append(time.perf_counter() - began)
        if len(self._live) > 1:  # alone, a step says nothing of those that failed together
            for task in self._live.values():
                task.retries = 0
        yield from self._take(self._batch, drawn)

    def _doubt_all(self, error: Exception) -> Iterator[Event]:
        """What the batch holds can be trusted no more."""
        doubted = list(self._live.values())
        self._batch, self._live, self._broken = Batch(self._model), {}, None
        yield from self._doubt(doubted, error)

    def _doubt(self, tasks: Sequence[_Task], error: Exception) -> Iterator[Event]:
        """Who is at fault is not known: try each alone."""
        for task in tasks:
            task.retries += 1
            if task.retries > _RETRIES:
                yield task.request, error
            else:
                self._prompts.append(_Prompt([task], task.ids, apart=True))

    def _try_alone(self, task: _Task, logits: mx.array, read: Sequences) -> Iterator[Event]:
        """Let an answer join the others once it has made a step alone."""
        alone = Batch(self._model)
        yield from self._first_tokens(alone, [task], logits, read)
        if alone.rows:
            try:
                drawn = alone.step()
            except Exception as error:
                del self._live[alone.rows[0]]
                yield task.request, error
                return
            yield from self._take(alone, drawn)
        try:
            self._batch.absorb(alone)
        except Exception as error:
            yield from self._doubt_all(error)

    def _take(self, batch: Batch, drawn: Sequence[tuple[Row, Outcome]]) -> Iterator[Event]:
        """What the tokens bring to their answers."""
        over = []
        for row, token in drawn:
            task = self._live[row]
            task.batch = max(task.batch, len(drawn))
            try:
                if isinstance(token, Exception):
                    raise token
                task.said.append(token.id)
                chunk = task.request.answer.feed(token)
            except Exception as error:
                task.error = error
                over.append(row)
                continue
            yield task.request, chunk
            if task.request.answer.finish:
                over.append(row)
        yield from self._leave(batch, over)

    def _leave(self, batch: Batch, rows: list[Row]) -> Iterator[Event]:
        """End the answers of rows of a batch."""
        if not rows:
            return
        events = [self._end(self._live[row], batch, row) for row in rows]
        for row in rows:
            del self._live[row]
        yield from events
        yield from self._let_go(batch, rows)

    def _let_go(self, batch: Batch, rows: list[Row]) -> Iterator[Event]:
        try:
            batch.leave(rows)
        except Exception as error:
            yield from self._doubt_all(error)

    def _end(self, task: _Task, batch: Batch | None = None, row: Row | None = None) -> Event:
        """The last of an answer, whose row is still in the batch if it has one."""
        request, nbytes = task.request, 0
        if task.error:
            return request, task.error
        try:
            if batch and row:
                nbytes = batch.nbytes_of(row)
                if self._keep and self._make_room() >= nbytes:
                    self._put(task.ids, batch.cache_of(row, log=self._prefixes.log))
            times = (task.start, task.first)
            cost = stats(len(request.ids), task.reused, request.answer.count, times, nbytes, task.pieces)
            return request, request.answer.end(replace(cost, batch=task.batch))
        except Exception as error:
            return request, error
