"""What no implementation can go below here: the products with all weights, and attention over so many keys.

Measured with MLX's own operations on the same machine in the same run. The bound on how much faster a window of W can
make a step at n tokens is (w + a_n) / (w + a_W), with w one pass of all matrices and a_k attention over k keys.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import mlx.core as mx

from mistral_mlx.config import ModelConfig
from mistral_mlx.weights.names import expected_shapes


def seconds(compute: Callable[[], object], repeats: int = 5) -> float:
    """The median time to compute what is returned, after one that is not counted."""
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        mx.eval(compute())
        taken.append(time.perf_counter() - start)
    return median(taken[1:])


def weight_pass(config: ModelConfig, rows: int = 1, *, output: bool = True) -> float:
    """Seconds for the products of `rows` rows with every matrix of the model.

    Args:
        output: whether the output matrix is one of them; all but the last row of a prompt go without.
    """
    shapes = [s for name, s in expected_shapes(config).items() if len(s) == 2 and "embed" not in name]
    if config.tie_word_embeddings:
        shapes.append((config.vocab_size, config.hidden_size))
    matrices = [mx.full(s, 0.1) for s in (shapes if output else shapes[:-1])]
    inputs = {m.shape[1]: mx.random.normal((rows, m.shape[1])) for m in matrices}
    mx.eval(matrices, inputs)
    return seconds(lambda: [inputs[m.shape[1]] @ m.T for m in matrices], 5 if rows == 1 else 2)


def attention(config: ModelConfig, keys: int, queries: int = 1) -> float:
    """Seconds for attention of the last `queries` of `keys` positions in every layer."""
    layers, dim, kv = config.num_hidden_layers, config.head_dim, config.num_key_value_heads
    pairs = [(mx.full((1, kv, keys, dim), 0.1), mx.full((1, kv, keys, dim), 0.2)) for _ in range(layers)]
    query = mx.random.normal((1, config.num_attention_heads, queries, dim))
    mx.eval(pairs, query)
    mask = "causal" if queries > 1 else None
    attend = mx.fast.scaled_dot_product_attention
    return seconds(
        lambda: [attend(query, k, v, scale=dim**-0.5, mask=mask) for k, v in pairs], 5 if queries == 1 else 1
    )


def reading(config: ModelConfig, tokens: int, chunk: int) -> tuple[float, float]:
    """Seconds that a prompt takes at least, in chunks: with full attention, and with the window's.

    The last layer is left out: only its keys and values are needed of all tokens but the last, and MLX is lazy.
    Attention of a chunk grows linearly with its keys, so it is measured at both ends only.
    """
    chunk, config = min(chunk, tokens), replace(config, num_hidden_layers=config.num_hidden_layers - 1)
    linear = weight_pass(config, chunk, output=False) * tokens / chunk
    few, many = chunk, max(tokens, 2 * chunk)
    at_few, at_many = attention(config, few, chunk), attention(config, many, chunk)

    def cost(keys: int) -> float:
        return at_few + (at_many - at_few) * (keys - few) / (many - few)

    ends = range(chunk, tokens + 1, chunk)
    window = config.windows[0] or tokens
    return linear + sum(map(cost, ends)), linear + sum(cost(min(end, window - 1 + chunk)) for end in ends)
