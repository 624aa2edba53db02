"""Answers that are decoded together: which of them when, and what each brings."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mistral_mlx.answer import Answer, stats
from mistral_mlx.completion import Chunk
from mistral_mlx.engine.batch import Batch, read_together
from mistral_mlx.engine.choice import Row, Token
from mistral_mlx.engine.decode import ReadingPace, prefill
from mistral_mlx.engine.prefix import Prefixes
from mistral_mlx.engine.sampling import SamplingParams
from mistral_mlx.model.transformer import Transformer
from mistral_mlx.text.grammar import FormMatcher

# More rows than that gain little on any machine, and each makes the others slower.
MOST_ROWS = 32
# Tokens of prompts that are read together: longer ones keep the machine busy alone.
_SHORT = 128


@dataclass
class Request:
    """One of them: what is to be read, and what its answer becomes.

    Attributes:
        start, first: when its prompt was begun, and its first token there.
    """

    ids: list[int]
    params: SamplingParams
    answer: Answer
    constraint: FormMatcher | None
    start: float = 0.0
    first: float = 0.0
    reused: int = 0


def run_together(
    model: Transformer,
    prefixes: Prefixes,
    requests: Sequence[Request],
    rows: int,
    chunk: int,
    *,
    pace: ReadingPace | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[tuple[int, Chunk]]:
    """Chunks of all answers as they come, each with the index of its request.

    Args:
        rows: how many are decoded at a time; the next prompt is read where one has ended.
        chunk, pace: as for `prefill`.
        cancelled: asked before each step; once it says yes, every answer ends as it stands.
    """
    batch = Batch(model, max(len(r.ids) + r.params.max_tokens - 1 for r in requests))
    # Alike in length, so that prompts that are read together waste little.
    waiting = deque(sorted(range(len(requests)), key=lambda index: len(requests[index].ids)))
    live: dict[Row, int] = {}

    def ended(index: int, cache_bytes: int = 0) -> tuple[int, Chunk]:
        r = requests[index]
        return index, r.answer.end(stats(len(r.ids), r.reused, r.answer.count, (r.start, r.first), cache_bytes))

    def begin() -> list[tuple[Row, Token]]:
        """Read the next prompts, as many as there are rows free for; none if it was cancelled."""
        chosen = _next_prompts([requests[i].ids for i in waiting], prefixes, rows - len(live), chunk)
        group = [requests[waiting[i]] for i in range(chosen)]
        start = time.perf_counter()
        if chosen > 1:
            logits, cache = read_together(model, [r.ids for r in group])
        else:
            cache, group[0].reused = prefixes.take(group[0].ids)
            new_ids = group[0].ids[group[0].reused :]
            read = prefill(model, new_ids, cache, chunk=chunk, pace=pace, cancelled=cancelled)
            if read is None:
                prefixes.put(group[0].ids, cache)
                return []
            logits = read[None]
            prefixes.put(group[0].ids, cache.copy())  # others may begin alike
        new = [Row(r.params, r.ids, model.config.vocab_size, len(r.ids), r.constraint) for r in group]
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
            answer = requests[live[row]].answer
            yield live[row], answer.feed(token)
            if answer.finish:
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
