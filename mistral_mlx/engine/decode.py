"""Generate one id after another."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import mlx.core as mx

from mistral_mlx.engine.choice import Constraint, Row, Token, choose, read
from mistral_mlx.engine.reading import Cancelled
from mistral_mlx.engine.sampling import SamplingParams
from mistral_mlx.model.cache import Cache
from mistral_mlx.model.step import Stepped
from mistral_mlx.model.transformer import Transformer


def decode(
    model: Transformer,
    logits: mx.array,
    cache: Cache,
    params: SamplingParams,
    prompt: Sequence[int] = (),
    *,
    begun: int = 0,
    constraint: Constraint | None = None,
    cancelled: Cancelled | None = None,
) -> Generator[Token]:
    """Generate from where the cache stands, up to `max_tokens` tokens.

    Args:
        logits: (vocab,), of the first token to generate.
        prompt: the ids that came before, for the penalties.
        begun: how many of these, the last, count as generated.
        constraint: what the tokens must make up; once it is over, no more come.
        cancelled: asked before each token; once it says yes, no more come.

    Raises:
        WeightsError: the logits are not numbers.
    """
    row = Row(params, prompt, logits.shape[-1], cache.position, constraint, begun)
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
