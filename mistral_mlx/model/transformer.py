"""The dense Mistral decoder, top to bottom. Modules are named as in Hugging Face's checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_reduce

from mistral_mlx.config import ModelConfig
from mistral_mlx.model.attention import Attention
from mistral_mlx.model.cache import Cache, LayerView, View
from mistral_mlx.model.masks import Mask, window_mask
from mistral_mlx.model.packing import Packing
from mistral_mlx.model.rope import RotaryEmbedding
from mistral_mlx.model.step import Step


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """What goes into `down_proj`."""
        if "gate_up_proj" in self:
            gate, up = mx.split(self.gate_up_proj(x), 2, axis=-1)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        return _swiglu(gate, up)


class Block(nn.Module):
    """One layer: attention, then the feed-forward network, each on a normalised input and added to the stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(
        self, x: mx.array, rope: RotaryEmbedding, mask: Mask, cache: LayerView | None, *, last_only: bool = False
    ) -> mx.array:
        attended = self.self_attn(self.input_layernorm(x), rope, mask, cache, last_only=last_only)
        h = _add(x[:, -1:] if last_only else x, self.self_attn.o_proj, attended)
        return _add(h, self.mlp.down_proj, self.mlp(self.post_attention_layernorm(h)))


@partial(mx.compile, shapeless=True)
def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    return nn.silu(gate) * up


def _add(stream: mx.array, proj: nn.Module, x: mx.array) -> mx.array:
    """stream + proj(x), in one kernel where the weights are floats."""
    if type(proj) is nn.Linear:
        # As matrices: MLX takes leading axes apart, one product each.
        return mx.addmm(stream.flatten(0, 1), x.flatten(0, 1), proj.weight.T).reshape(stream.shape)
    return stream + proj(x)


class Decoder(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.rope = RotaryEmbedding(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [Block(config) for _ in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(self, ids: mx.array, cache: View | None = None, *, last_only: bool = False) -> mx.array:
        """The normed stream (B, T, hidden), or of the last position (B, 1, hidden), which takes less work."""
        length = ids.shape[1]
        masks = cache.masks(length) if cache else [window_mask(length, length, w) for w in self.config.windows]
        caches: Sequence[LayerView | None] = cache.layers if cache else [None] * len(self.layers)

        h = self.embed_tokens(ids).astype(self.norm.weight.dtype)  # packed floats come out as bfloat16
        for i, (layer, mask, layer_cache) in enumerate(zip(self.layers, masks, caches, strict=True), 1):
            last = last_only and length > 1 and i == len(self.layers)
            h = layer(h, self.rope, mask, layer_cache, last_only=last)
        return self.norm(h)


class Transformer(nn.Module):
    """The decoder and its output matrix, which is the embedding itself where the two are tied.

    Attributes:
        step: a pass of a few tokens, for decoding; it takes the weights as they are when it is first used.
        packing: how its caches store keys and values; None as they are.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.step = Step(self)
        self.packing: Packing | None = None

    def __call__(self, ids: mx.array, cache: View | None = None, *, last_only: bool = False) -> mx.array:
        """Logits of the token after each of ids.

        Args:
            ids: (B, T) token ids, which follow what the cache holds and are added to it.
            cache: what came before; without one, ids are the whole sequence.
            last_only: compute the logits of the last position only.

        Returns:
            (B, T, vocab), or (B, 1, vocab).
        """
        h = self.model(ids, cache, last_only=last_only)
        return self.model.embed_tokens.as_linear(h) if self.config.tie_word_embeddings else self.lm_head(h)

    @property
    def dtype(self) -> mx.Dtype:
        """The type that activations, keys and values have."""
        return self.model.norm.weight.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return tree_reduce(lambda count, array: count + array.nbytes, self.parameters(), 0)

    def make_cache(self, max_tokens: int | None = None, *, log: int = 0) -> Cache:
        """An empty cache for one sequence.

        Args:
            max_tokens: the longest that it becomes, by default as long as the model allows.
            log: tokens that are kept once they have left the windows, so that they can be taken back to.
        """
        return Cache(self.config, self.dtype, max_tokens=max_tokens, packing=self.packing, log=log)
