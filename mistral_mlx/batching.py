"""Answers that are decoded together: which of them when, and what each brings."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mistral_mlx.answer import Answer, stats
from mistral_mlx.completion import Chunk
from mistral_mlx.engine.batch import Batch
from mistral_mlx.engine.choice import Row, Token
from mistral_mlx.engine.decode import prefill
from mistral_mlx.engine.prefix import Prefixes
from mistral_mlx.engine.sampling import SamplingParams
from mistral_mlx.model.transformer import Transformer
from mistral_mlx.text.grammar import FormMatcher

# More rows than that gain little on any machine, and each makes the others slower.
MOST_ROWS = 32


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
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[tuple[int, Chunk]]:
    """Chunks of all answers as they come, each with the index of its request.

    Args:
        rows: how many are decoded at a time; the next prompt is read where one has ended.
        cancelled: asked before each step; once it says yes, every answer ends as it stands.
    """
    batch = Batch(model, max(len(r.ids) + r.params.max_tokens for r in requests))
    waiting = deque(range(len(requests)))
    live: dict[Row, int] = {}

    def ended(index: int, cache_bytes: int = 0) -> tuple[int, Chunk]:
        r = requests[index]
        return index, r.answer.end(stats(len(r.ids), r.reused, r.answer.count, (r.start, r.first), cache_bytes))

    def begin(index: int) -> list[tuple[Row, Token]]:
        """Read a prompt; nothing comes of it if it was cancelled."""
        r = requests[index]
        r.start = r.first = time.perf_counter()
        cache, r.reused = prefixes.take(r.ids)
        logits = prefill(model, r.ids[r.reused :], cache, cancelled=cancelled)
        if logits is None:
            return []
        prefixes.put(r.ids, cache.copy())  # others may begin alike
        row = Row(r.params, r.ids, model.config.vocab_size, len(r.ids), r.constraint)
        token = batch.join(row, logits, cache)
        r.first = time.perf_counter()
        live[row] = index
        return [(row, token)]

    while waiting or live:
        if cancelled and cancelled():
            yield from map(ended, [*live.values(), *waiting])
            return
        if waiting and len(live) < rows:
            if came := begin(waiting[0]):
                waiting.popleft()
        else:
            came = list(zip(batch.rows, batch.step(), strict=True))
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
