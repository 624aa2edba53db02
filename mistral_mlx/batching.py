"""Answers that are decoded together: which of them when, and what each brings."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from mistral_mlx.answer import Answer, stats
from mistral_mlx.completion import Chunk
from mistral_mlx.engine.batch import Batch, read_together
from mistral_mlx.engine.choice import Row, Token
from mistral_mlx.engine.decode import Progress, Reading, ReadingPace, prefill
from mistral_mlx.engine.prefix import Prefixes
from mistral_mlx.engine.sampling import SamplingParams
from mistral_mlx.errors import InputError
from mistral_mlx.memory import Memory
from mistral_mlx.model.transformer import Transformer
from mistral_mlx.text.grammar import FormMatcher

# More rows than that gain little on any machine, and each makes the others slower.
_MOST_ROWS = 32
# Tokens of prompts that are read together: longer ones keep the machine busy alone.
_SHORT = 128


@dataclass
class Request:
    """One of them: what is to be read, and what its answer becomes.

    Attributes:
        begun: how many of the ids, the last, are the beginning of the answer.
        start, first: when its prompt was begun, and its first token there.
        reading: how its prompt was cut when it was read.
        batch: the most answers that were decoded together with it.
    """

    ids: list[int]
    params: SamplingParams
    answer: Answer
    constraint: FormMatcher | None
    begun: int = 0
    start: float = 0.0
    first: float = 0.0
    reused: int = 0
    reading: tuple[int, ...] = ()
    batch: int = 1


def rows_within(memory: Memory) -> int:
    """How many answers can be decoded at a time, where `memory` is what the longest takes alone."""
    # Two more: what is kept of the last prompt, and a layer of each row while one joins.
    return max(1, min((memory.limit - memory.weights - memory.prefill) // memory.cache - 2, _MOST_ROWS))


def check_lanes(lanes: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what is no list of options; what is in them is checked one by one."""
    if not isinstance(lanes, (list, tuple)) or not all(isinstance(lane, Mapping) for lane in lanes):
        raise InputError(f"lanes is {lanes!r}.", "Give a list with the options of each answer.")


def run_together(
    model: Transformer,
    prefixes: Prefixes,
    requests: Sequence[Request],
    rows: int,
    chunk: int,
    *,
    pace: ReadingPace | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Generator[tuple[int, Chunk]]:
    """Chunks of all answers as they come, each with the index of its request. Prompts that are the same are read once.

    Args:
        rows: how many are decoded at a time; the next prompt is read where one has ended.
        chunk, pace, progress: as for `prefill`, for each prompt that is read alone.
        cancelled: asked before each step; once it says yes, every answer ends as it stands.
    """
    batch = Batch(model, max(len(r.ids) + r.params.max_tokens - 1 for r in requests))
    # Alike in length, so that prompts that are read together waste little.
    waiting = deque(sorted(range(len(requests)), key=lambda index: len(requests[index].ids)))
    live: dict[Row, int] = {}

    def ended(index: int, cache_bytes: int = 0) -> tuple[int, Chunk]:
        r = requests[index]
        cost = stats(len(r.ids), r.reused, r.answer.count, (r.start, r.first), cache_bytes, r.reading)
        return index, r.answer.end(replace(cost, batch=r.batch))

    def begin() -> list[tuple[Row, Token]]:
        """Read the next prompts, as many as there are rows free for; none if it was cancelled."""
        prompts = [requests[i].ids for i in waiting]
        ids, free = prompts[0], rows - len(live)
        same = len(list(takewhile(ids.__eq__, prompts[:free])))
        chosen = same if same > 1 else _next_prompts(prompts, prefixes, free, chunk)
        group = [requests[waiting[i]] for i in range(chosen)]
        start = time.perf_counter()
        if chosen > same:
            logits, cache = read_together(model, prompts[:chosen])
            for r in group:
                r.reading = (len(r.ids),)
        else:
            cache, reused = prefixes.take(ids)
            reading = Reading(progress, reused)
            read = prefill(model, ids[reused:], cache, chunk=chunk, pace=pace, progress=reading, cancelled=cancelled)
            for r in group:
                r.reused, r.reading = reused, reading.pieces
            if read is None:
                prefixes.put(ids, cache)
                return []
            logits = read[None]
            prefixes.put(ids, cache.copy())  # others may begin alike
        size = model.config.vocab_size
        new = [Row(r.params, r.ids, size, len(r.ids), r.constraint, r.begun) for r in group]
        tokens = batch.join(new, logits, cache)
        for r, row in zip(group, new, strict=True):
            r.start, r.first = start, time.perf_counter()
            live[row] = waiting.popleft()
        return list(zip(new, tokens, strict=True))

    while waiting or live:
        if cancelled and cancelled():
            yield from map(ended, [*live.values(), *waiting])
            return
        reading = waiting and len(live) < rows
        came = begin() if reading else list(zip(batch.rows, batch.step(), strict=True))
        done = []
        for row, token in came:
            request = requests[live[row]]
            request.batch = max(request.batch, len(live))
            yield live[row], request.answer.feed(token)
            if request.answer.finish:
                done.append(row)
        if done:
            share = batch.nbytes // len(batch.rows)
            batch.leave(done)
            for row in done:
                yield ended(live.pop(row), share)


def _next_prompts(prompts: Sequence[Sequence[int]], prefixes: Prefixes, free: int, chunk: int) -> int:
    """How many of the prompts to read in one pass: short ones, of which little has been read before."""
    count = 0
    for prompt in prompts[:free]:
        if len(prompt) > _SHORT or prefixes.reach(prompt) > len(prompt) // 2 or len(prompt) * (count + 1) > chunk:
            break
        count += 1
    return max(1, count)
