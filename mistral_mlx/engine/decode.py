"""Read a prompt, then generate one id after another."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import mlx.core as mx

from mistral_mlx.backend import on_gpu
from mistral_mlx.config import ModelConfig
from mistral_mlx.engine.choice import Constraint, Row, Token, choose, read
from mistral_mlx.engine.sampling import SamplingParams
from mistral_mlx.model.cache import Cache
from mistral_mlx.model.step import Stepped
from mistral_mlx.model.transformer import Transformer

# Large enough to keep a GPU busy, small enough that a mask and its scores stay in the tens of megabytes and that
# a cancelled prompt stops soon.
PREFILL_CHUNK = 512

# Where MLX's GPU attention keeps no scores (mlx, scaled_dot_product_attention.cpp).
_FUSED_HEAD_DIMS = (64, 80, 128)

Progress = Callable[[int, int], None]
Cancelled = Callable[[], bool]


def prefill(
    model: Transformer,
    ids: Sequence[int],
    cache: Cache,
    *,
    chunk: int = PREFILL_CHUNK,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> mx.array | None:
    """Read `ids`, at least one, into the cache.

    Args:
        chunk: tokens read at a time; the result does not depend on it.
        progress: told (tokens read, all tokens) before the first chunk and after each.
        cancelled: asked before each chunk; once it says yes, nothing more is read.

    Returns:
        The logits (vocab,) after the last id; None if cancelled.
    """
    if progress:
        progress(0, len(ids))
    logits = None
    for start in range(0, len(ids), chunk):
        if cancelled and cancelled():
            return None
        piece = mx.array([ids[start : start + chunk]])
        logits = model(piece, cache, last_only=True)
        done = min(start + chunk, len(ids))
        # Nothing asks for the logits of the chunks before the last, so the output matrix is not touched for them.
        mx.eval(cache.arrays(), *([logits] if done == len(ids) else []))
        if progress:
            progress(done, len(ids))
    return None if logits is None else logits[0, -1]


def prefill_bytes(config: ModelConfig, tokens: int, itemsize: int, chunk: int = PREFILL_CHUNK) -> int:
    """A bound on what `prefill` takes at once beside weights and cache, measured to hold within a factor of three.

    Args:
        tokens: the length of the prompt.
        itemsize: bytes of a number in activations.
    """
    queries = min(tokens, chunk)
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    windows = set(config.windows)
    keys = max(tokens if window is None else min(tokens, window - 1 + queries) for window in windows)
    # Each several times, for MLX computes ahead of what it has freed.
    stream = 12 * queries * config.hidden_size + 4 * queries * config.intermediate_size
    attention = 5 * queries * (heads + 2 * kv_heads) * dim + 8 * kv_heads * dim * keys
    masks = 8 * queries * keys * len(windows)
    scores = 0 if on_gpu() and dim in _FUSED_HEAD_DIMS else 8 * heads * queries * keys
    return (stream + attention) * itemsize + masks + scores + 64 * config.vocab_size


def decode(
    model: Transformer,
    logits: mx.array,
    cache: Cache,
    params: SamplingParams,
    prompt: Sequence[int] = (),
    *,
    constraint: Constraint | None = None,
    cancelled: Cancelled | None = None,
) -> Generator[Token]:
    """Generate from where the cache stands, up to `max_tokens` tokens.

    Args:
        logits: (vocab,), of the first token to generate.
        prompt: the ids that came before, for the repetition penalty.
        constraint: what the tokens must make up; once it is over, no more come.
        cancelled: asked before each token; once it says yes, no more come.

    Raises:
        WeightsError: the logits are not numbers.
    """
    row = Row(params, prompt, logits.shape[-1], cache.position, constraint)
    return steps(model, logits[None], cache, row, params.max_tokens, cancelled=cancelled)


def steps(
    model: Transformer,
    start: mx.array | Stepped,
    cache: Cache,
    row: Row,
    count: int,
    *,
    cancelled: Cancelled | None = None,
) -> Generator[Token]:
    """Generate up to `count` tokens, one a step; arguments and errors as for `decode`.

    While a token is computed, Python already builds the step that feeds it to the model; but that step starts only when
    the next token is asked for. So whoever stops after a stop token has not paid for a step past it, and finds the
    cache standing before that token; and no two steps hold the cache at once, for then MLX would copy it.

    Args:
        start: the logits (1, vocab) of the first token, or the step that will compute them.
        row: how they are chosen; it follows them.
    """
    logits, step = (start.logits[:, -1], start) if isinstance(start, Stepped) else (start, None)
    del start  # whoever holds a step holds the cache that it made
    for left in range(count, 0, -1):
        if cancelled and cancelled():
            return
        if step is not None:
            cache.advance(step.rings, 1)
            logits, step = step.logits[:, -1], None
        chosen = choose(logits, [row])
        mx.async_eval(chosen, cache.arrays())
        if left > 1:
            step = model.step(chosen.tokens[:, None], cache)
        yield read(chosen, [row])[0]
        if row.over:
            return
