"""What the tensors of a dense model are called, and the shapes that its configuration gives them.

Inside, names and the rotary order are Hugging Face's: a pair of rotated dimensions is (i, i + head_dim/2). GGUF and
Mistral's own files keep pairs side by side, so the rows of their query and key matrices are put in order when read.
"""

from __future__ import annotations

from typing import TypeVar

import mlx.core as mx
import numpy as np

from mistral_mlx.config import ModelConfig

Rows = TypeVar("Rows", mx.array, np.ndarray)

_GGUF_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_CONSOLIDATED_LAYER = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}
_CONSOLIDATED_TOP = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
}
_GGUF_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, matrices as (out, in); `lm_head` unless the embeddings are tied."""
    hidden, ffn, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for i in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def to_gguf(name: str) -> str:
    """GGUF's word for a parameter."""
    return _translate(name, _GGUF_TOP, "blk", _GGUF_LAYER)


def to_consolidated(name: str) -> str:
    """The word for a parameter in Mistral's own files, `consolidated.safetensors` and `consolidated.00.pth`."""
    return _translate(name, _CONSOLIDATED_TOP, "layers", _CONSOLIDATED_LAYER)


def _translate(name: str, top: dict[str, str], layers: str, in_layer: dict[str, str]) -> str:
    if name in top:
        return top[name]
    _, _, layer, rest = name.split(".", 3)
    return f"{layers}.{layer}.{in_layer[rest.removesuffix('.weight')]}.weight"


def rotated_heads(name: str, config: ModelConfig) -> int | None:
    """How many heads the rows of a parameter are cut into and rotated by; None for all but queries and keys."""
    if name.endswith("q_proj.weight"):
        return config.num_attention_heads
    if name.endswith("k_proj.weight"):
        return config.num_key_value_heads
    return None


def half_split(rows: Rows, heads: int) -> Rows:
    """Rows (heads * head_dim, n) whose rotated pairs lie side by side, the first of every pair before the second."""
    count, columns = rows.shape
    return rows.reshape(heads, count // heads // 2, 2, columns).swapaxes(1, 2).reshape(count, columns)
