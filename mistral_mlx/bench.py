"""What a model does on this machine: reading, writing, waiting, and how near that is to what the memory allows."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median

from mistral_mlx.backend import active_memory, machine, peak_memory, reset_peak_memory
from mistral_mlx.engine.batch import Batch
from mistral_mlx.engine.choice import Row
from mistral_mlx.engine.decode import decode
from mistral_mlx.engine.reading import Progress, prefill, read_together
from mistral_mlx.engine.sampling import SamplingParams
from mistral_mlx.errors import InputError
from mistral_mlx.llm import LLM
from mistral_mlx.model.cache import Cache, bytes_per_slot

import mlx.core as mx  # isort: skip  after the engine, which has it find a fast BLAS

# Not counted: what is compiled or allocated first.
_WARM_UP = 3


@dataclass(frozen=True)
class Reading:
    """Of tokens start..end of a prompt."""

    start: int
    end: int
    tokens_per_second: float


@dataclass(frozen=True)
class Writing:
    """A token at a time after so many tokens.

    Attributes:
        bound: tokens per second if a step took no longer than reading the weights and the keys and values once.
        step_bytes: the most that a step takes beside weights and cache.
        ahead_tokens_per_second, ahead_step_bytes: the same if each step were begun before the one before it has ended,
            which makes MLX copy the cache where that is still held.
    """

    context: int
    tokens_per_second: float
    bound: float
    step_bytes: int
    ahead_tokens_per_second: float
    ahead_step_bytes: int
    cache_bytes: int


@dataclass(frozen=True)
class Together:
    """Answers decoded together; tokens per second of all."""

    rows: int
    tokens_per_second: float


@dataclass(frozen=True)
class Report:
    """All figures of one model.

    Attributes:
        bandwidth: bytes per second that one product of a vector with a large matrix reads.
        weights_read: bytes of weights that a step reads.
        first_token_s, again_s: until the first token after a prompt of `first_token_prompt` tokens, and after the same
            prompt once more, which is then not read again.
    """

    machine: str
    mlx: str
    dtype: str
    bandwidth: float
    weights_read: int
    reading: list[Reading]
    writing: list[Writing]
    together: list[Together]
    first_token_prompt: int
    first_token_s: float
    again_s: float
    peak_bytes: int


def bench(
    llm: LLM,
    contexts: Sequence[int] = (128, 1024, 4096),
    rows: Sequence[int] = (1, 4, 8),
    tokens: int = 32,
    progress: Progress | None = None,
) -> Report:
    """Measure a model with random ids; it takes as long as reading the longest context and some hundred tokens.

    Args:
        contexts: lengths after which a token is timed.
        rows: answers to decode together.
        tokens: to time at each; the median counts.
        progress: told (measurements made, all measurements).

    Raises:
        InputError: lengths or counts that are no whole numbers from 1.
        ContextError, OutOfMemoryError: a context that the model or the machine has no room for.
    """
    for name, values in (("contexts", contexts), ("rows", rows), ("tokens", [tokens])):
        if not values or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in values):
            raise InputError(f"{name} is {values!r}.", "Give whole numbers from 1.")
    contexts = sorted(set(contexts))
    spent = 2 * (tokens + _WARM_UP)
    llm.check_room(contexts[-1] + spent * len(contexts), spent)
    model = llm.model
    total, made = 2 * len(contexts) + len(rows) + 1, itertools.count()

    def tell() -> None:
        done = next(made)
        if progress:
            progress(done, total)

    tell()
    bandwidth, weights = _bandwidth(), _weights_read(llm)
    reset_peak_memory()
    reading, writing = [], []
    cache = model.make_cache()
    for context in contexts:
        start, began = cache.position, time.perf_counter()
        logits = prefill(model, _ids(llm, max(1, context - start), context), cache)
        assert logits is not None
        mx.eval(logits)
        reading.append(Reading(start, cache.position, (cache.position - start) / (time.perf_counter() - began)))
        tell()
        writing.append(_writing(llm, logits, cache, tokens, bandwidth, weights))
        tell()
    together = []
    for count in rows:
        together.append(Together(count, _together(llm, count, tokens)))
        tell()
    peak = peak_memory()
    llm.forget()
    prompt = _ids(llm, 512 if llm.config.context_length is None else min(512, llm.config.context_length // 2), 1)
    first, again = (llm.generate(prompt, max_tokens=1).stats.ttft_s for _ in range(2))
    llm.forget()
    tell()
    return Report(
        machine=machine(), mlx=version("mlx"), dtype=str(model.dtype).removeprefix("mlx.core."), bandwidth=bandwidth,
        weights_read=weights, reading=reading, writing=writing, together=together, first_token_prompt=len(prompt),
        first_token_s=first, again_s=again, peak_bytes=peak,
    )  # fmt: skip


def _writing(llm: LLM, logits: mx.array, cache: Cache, tokens: int, bandwidth: float, weights: int) -> Writing:
    context, model = cache.position, llm.model
    params = SamplingParams(max_tokens=tokens + _WARM_UP)
    settled, taken = 0, []
    began = time.perf_counter()
    for i, _ in enumerate(decode(model, logits, cache, params)):
        if i == _WARM_UP - 1:
            settled = _settle()
        taken.append(time.perf_counter() - began)
        began = time.perf_counter()
    step_bytes = peak_memory() - settled
    ahead, ahead_bytes = _ahead(llm, cache, tokens)
    slot = bytes_per_slot(llm.config, model.dtype.size, model.packing)
    read = weights + sum(slot * min(context, window or context) for window in llm.config.windows)
    return Writing(
        context, 1 / median(taken[_WARM_UP:]), bandwidth / read, step_bytes, ahead, ahead_bytes, cache.nbytes
    )


def _ahead(llm: LLM, cache: Cache, tokens: int) -> tuple[float, int]:
    """Tokens per second, and bytes a step, where each step begins before the token before it is known."""
    model, token, taken, settled = llm.model, mx.array([0]), [], 0
    waiting: mx.array | None = None
    began = time.perf_counter()
    for i in range(tokens + _WARM_UP):
        step = model.step(token[:, None], cache)
        cache.advance(step.rings, 1)
        token = mx.argmax(step.logits[:, -1], axis=-1)
        mx.async_eval(token, cache.arrays())
        del step
        if waiting is not None:
            waiting.item()
        waiting = token
        if i == _WARM_UP - 1:
            settled = _settle()
        taken.append(time.perf_counter() - began)
        began = time.perf_counter()
    mx.eval(token, cache.arrays())
    return 1 / median(taken[_WARM_UP:]), peak_memory() - settled


def _settle() -> int:
    """Bytes held now, from which the peak is counted on."""
    reset_peak_memory()
    return active_memory()


def _together(llm: LLM, count: int, tokens: int) -> float:
    prompts = [_ids(llm, 32, seed) for seed in range(count)]
    batch = Batch(llm.model)
    params = SamplingParams(max_tokens=tokens)
    logits, read = read_together(llm.model, prompts)
    batch.join([Row(params, ids, llm.config.vocab_size, len(ids)) for ids in prompts], logits, read)
    taken = []
    for _ in range(tokens):
        began = time.perf_counter()
        batch.step()
        taken.append(time.perf_counter() - began)
    return count / median(taken[_WARM_UP:] or taken)


def _bandwidth() -> float:
    """The best of several products with a matrix of 256 MiB."""
    size = 8192
    matrix, vector = mx.zeros((size, size), mx.float32), mx.zeros((1, size), mx.float32)
    mx.eval(matrix, vector)
    taken = []
    for _ in range(8):
        began = time.perf_counter()
        mx.eval(vector @ matrix.T)
        taken.append(time.perf_counter() - began)
    return matrix.nbytes / min(taken)


def _weights_read(llm: LLM) -> int:
    """All weights, but for the embedding where it is not the output too: of that a step reads a row."""
    embedding = sum(array.nbytes for array in llm.model.model.embed_tokens.parameters().values())
    return llm.model.nbytes - (0 if llm.config.tie_word_embeddings else embedding)


def _ids(llm: LLM, tokens: int, seed: int) -> list[int]:
    key = mx.random.key(seed)
    ids: list[int] = mx.random.randint(0, llm.config.vocab_size, (tokens,), key=key).tolist()  # type: ignore[assignment]
    return ids
