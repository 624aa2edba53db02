"""Grouped-query attention (arXiv 2305.13245) in a sliding window (Mistral 7B, arXiv 2310.06825, section 2)."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mistral_mlx.backend import on_gpu
from mistral_mlx.config import ModelConfig
from mistral_mlx.model.cache import LayerView, Parts
from mistral_mlx.model.masks import Mask
from mistral_mlx.model.packing import Packed
from mistral_mlx.model.rope import RotaryEmbedding


class Attention(nn.Module):
    """Several query heads share one key/value head; which keys a query sees is the mask's matter."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)

    def __call__(
        self, x: mx.array, rope: RotaryEmbedding, mask: Mask, cache: LayerView | None, *, last_only: bool = False
    ) -> mx.array:
        """Attend from x (B, T, hidden), or its last position only, which follows what the cache holds.

        Returns:
            (B, T, heads * head_dim) or (B, 1, heads * head_dim), for `o_proj`.
        """
        qk, v = self._project(x)
        qk = rope(qk, cache.position if cache else 0)  # queries and keys turn alike: one kernel
        q, k = qk[:, : self.heads], qk[:, self.heads :]
        if cache:
            k, v = cache.update(k, v)  # (B, KV, n, D), in a step perhaps packed
        if last_only:
            q, mask = q[:, :, -1:], mask[..., -1:, :] if isinstance(mask, mx.array) else None

        scale = self.head_dim**-0.5 * rope.magnitude**2
        out = attend(q, k, v, scale=scale, mask=mask)
        return out.transpose(0, 2, 1, 3).flatten(2)

    def _project(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """Queries and keys (B, H + KV, T, D), and values (B, KV, T, D), in as few products as `fuse` left."""
        if "qkv_proj" in self:
            qkv, turned = self._by_head(self.qkv_proj(x)), self.heads + self.kv_heads
            return qkv[:, :turned], qkv[:, turned:]
        qk = self.qk_proj(x) if "qk_proj" in self else mx.concatenate([self.q_proj(x), self.k_proj(x)], axis=-1)
        return self._by_head(qk), self._by_head(self.v_proj(x))

    def _by_head(self, x: mx.array) -> mx.array:
        return x.reshape(*x.shape[:2], -1, self.head_dim).transpose(0, 2, 1, 3)


def attend(q: mx.array, k: Any, v: Any, *, scale: float, mask: Any) -> mx.array:
    """mx.fast.scaled_dot_product_attention, also over keys and values that are packed, or lie in parts."""
    if isinstance(k, Parts):  # rows that lie in different rings, each with a mask of its own
        ends = list(accumulate(part.shape[0] for part in mask))
        rows = zip(mx.split(q, ends[:-1]), k.parts, v.parts, mask, strict=True)
        return mx.concatenate([attend(*each[:3], scale=scale, mask=each[3]) for each in rows])
    if isinstance(k, Packed):
        return packed_attention(q, k, v, scale=scale, mask=mask)
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)


def packed_attention(q: mx.array, k: Packed, v: Packed, *, scale: float, mask: mx.array) -> mx.array:
    """mx.fast.scaled_dot_product_attention over keys and values as they are packed, for few queries.

    Args:
        q: (B, H, T, D).
        k, v: (B, KV, n, D).
        mask: (B, 1, T, n), boolean.

    Returns:
        (B, H, T, D).
    """
    batch, heads, length, dim = q.shape
    kv_heads = k.words.shape[1]
    # MLX's CPU backend adds packed products up in their own type, and half precision would lose the answer.
    wide = q if on_gpu() else q.astype(mx.float32)
    rows = (wide * scale).reshape(batch, kv_heads, -1, dim)  # the queries that share a head: (B, KV, H/KV * T, D)
    scores = k.multiply(rows, transpose=True).reshape(batch, kv_heads, heads // kv_heads, length, -1)
    weights = mx.softmax(mx.where(mask[:, :, None], scores, -mx.inf), axis=-1, precise=True)
    out = v.multiply(weights.reshape(*rows.shape[:3], -1), transpose=False)
    return out.reshape(q.shape).astype(q.dtype)
