"""The two sides: one set of float32 weights as our Transformer and as mlx-lm's model, and caches filled to a length.

mlx-lm runs Mistral as its Llama, with full attention. So past the window the two compute different models, and only up
to there are their logits the same, which is checked before anything is timed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.generate import DEFAULT_PREFILL_STEP_SIZE, generate_step
from mlx_lm.models import llama
from mlx_lm.models.cache import KVCache, make_prompt_cache

import mistral_mlx as mm
from benchmarks.paired import CannotMeasure
from mistral_mlx.config import ModelConfig
from mistral_mlx.conversion import convert
from mistral_mlx.engine.decode import Token, decode
from mistral_mlx.engine.reading import PREFILL_CHUNK
from mistral_mlx.engine.sampling import SamplingParams
from mistral_mlx.errors import MistralError, TokenizerError
from mistral_mlx.llm import LLM
from mistral_mlx.model.cache import Cache
from mistral_mlx.model.fusion import fuse
from mistral_mlx.model.ring import LayerState, capacity_for
from mistral_mlx.model.transformer import Transformer
from mistral_mlx.models import resolve
from mistral_mlx.text.files import Text
from mistral_mlx.weights.checkpoint import open_checkpoint
from mistral_mlx.weights.names import expected_shapes
from mistral_mlx.weights.tensor import Quantized

CHUNKS = {"ours": PREFILL_CHUNK, "theirs": DEFAULT_PREFILL_STEP_SIZE}


def _shape(layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, head_dim: int, window: int) -> ModelConfig:
    return ModelConfig(
        num_hidden_layers=layers, hidden_size=hidden, intermediate_size=ffn, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head_dim, sliding_window=window, vocab_size=1000, rms_norm_eps=1e-5,
        rope_theta=1e4, tie_word_embeddings=False,
    )  # fmt: skip


SHAPES = {
    # A quarter of Mistral 7B's width: as there, keys and values of 32k tokens have about the bytes of the weights.
    "7b": _shape(4, 1024, 3584, 8, 2, 128, 4096),
    # Little but attention.
    "attention": _shape(4, 256, 512, 8, 4, 64, 4096),
    # Little but the cost of a primitive.
    "tiny32": _shape(32, 64, 128, 4, 2, 16, 4096),
    # For prompts of 32k tokens with full attention in half a minute: a softmax on the CPU costs 25 ns a number.
    "reading-7b": _shape(3, 1024, 3584, 1, 1, 128, 4096),
    "reading-attention": _shape(3, 256, 512, 1, 1, 64, 4096),
    "chat": _shape(4, 512, 1792, 4, 1, 128, 1024),
}


@dataclass(frozen=True)
class Sides:
    """One model twice."""

    config: ModelConfig
    ours: Transformer
    theirs: nn.Module

    @cached_property
    def llm(self) -> LLM:
        """Ours as a script holds it, for ids only."""
        none = TokenizerError("Random weights have no tokenizer.", "Give ids.")
        return LLM(self.ours, Text(none, none, False))


def synthetic(name: str, seed: int = 0) -> Sides:
    """Random weights that keep the size of what passes through them: each matrix has the scale (columns)^-1/2."""
    config = SHAPES[name]
    mx.random.seed(seed)
    weights = {
        key: mx.ones(shape) if len(shape) == 1 else mx.random.normal(shape) * shape[1] ** -0.5
        for key, shape in expected_shapes(config).items()
    }
    ours = Transformer(config)
    ours.load_weights(list(weights.items()))
    mx.eval(ours.parameters())
    fuse(ours)
    return _checked(Sides(config, ours, _peer(config, weights, "mistral")))


def demo() -> tuple[Sides, LLM]:
    """The real model, which has no window, and ours with its tokenizer."""
    try:
        checkpoint, llm = open_checkpoint(resolve("demo")), mm.load("demo", dtype="float32")
    except MistralError as error:
        raise CannotMeasure(str(error)) from error
    # Read once more: what `load` made of them may be laid out otherwise.
    weights: dict[str, mx.array] = {}
    for name, tensor in checkpoint.tensors.items():
        value: Any = tensor.read()
        if isinstance(value, Quantized) or not isinstance(value, mx.array):
            value = value.expand()
        weights[name] = value.astype(mx.float32)
    return _checked(Sides(llm.config, llm.model, _peer(llm.config, weights, "llama"))), llm


def demo_folder(folder: Path) -> Path:
    """The real model as float32 files: both sides would compute with packed weights otherwise, or unpack them apart."""
    convert("demo", folder)
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        path.unlink()
    weights = dict(tree_flatten(demo()[0].theirs.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    config = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in config.items() if not key.startswith("quantization")}
    (folder / "config.json").write_text(json.dumps(kept | {"torch_dtype": "float32"}))
    return folder


def _peer(config: ModelConfig, weights: dict[str, mx.array], model_type: str) -> nn.Module:
    tied = config.tie_word_embeddings or "lm_head.weight" not in weights
    keys = config.to_hf(model_type) | {"tie_word_embeddings": tied}
    model = llama.Model(llama.ModelArgs.from_dict(keys))
    model.load_weights(list(weights.items()))
    mx.eval(model.parameters())
    return model


def _checked(sides: Sides) -> Sides:
    ids = mx.array([prompt(32, sides.config)])
    apart = mx.abs(sides.ours(ids) - sides.theirs(ids)).max().item()
    if not apart <= 1e-3:  # nor is NaN
        raise CannotMeasure(f"The two sides' logits of a short prompt are {apart:.2g} apart: not the same weights.")
    return sides


def prompt(tokens: int, config: ModelConfig, seed: int = 0) -> list[int]:
    """Random ids, the same for the same seed; low ones, which may be control tokens, are left out."""
    key = mx.random.key(seed)
    ids: list[int] = mx.random.randint(16, config.vocab_size, (tokens,), key=key).tolist()  # type: ignore[assignment]
    return ids


# ---- caches that stand after many tokens without having read them --------------------------------------------------


def filled(model: Transformer, tokens: int) -> Cache:
    """Our cache as after `tokens` tokens, whose keys and values are random."""
    cache = model.make_cache(tokens + 512)
    heads, dim = model.config.num_key_value_heads, model.config.head_dim
    states = []
    for layer in cache.layers:
        shape = (1, heads, capacity_for(tokens, layer.limit), dim)
        states.append(LayerState([_keys(shape), _keys(shape)], tokens, tokens))
    cache.state = states
    return cache


def filled_peer(config: ModelConfig, tokens: int) -> list[KVCache]:
    """mlx-lm's cache as after `tokens` tokens, in its steps of 256."""
    shape = (1, config.num_key_value_heads, -(-tokens // KVCache.step) * KVCache.step, config.head_dim)
    caches = []
    for _ in range(config.num_hidden_layers):
        cache = KVCache()
        cache.state = _keys(shape), _keys(shape), tokens
        mx.eval(cache.keys, cache.values)
        caches.append(cache)
    return caches


def _keys(shape: tuple[int, ...]) -> mx.array:
    """Random numbers, the same for every 256 positions: MLX draws them slowly, and their values cost no time."""
    return mx.tile(mx.random.normal((*shape[:2], 256, shape[3])), (1, 1, -(-shape[2] // 256), 1))[:, :, : shape[2]] + 0


def check_filled(sides: Sides, tokens: int) -> None:
    """Refuse if a filled cache is not what a step leaves: it must go on by one, in slots of the same number."""
    read, ours, theirs = sides.ours.make_cache(8), filled(sides.ours, tokens), filled_peer(sides.config, tokens)
    token = mx.array([[1]])
    mx.eval(sides.ours(token, read), sides.ours(token, ours), sides.theirs(token, cache=theirs))
    alike = all(
        a.shape[:2] == b.shape[:2] and a.dtype == b.dtype for a, b in zip(ours.arrays(), read.arrays(), strict=True)
    )
    if not (alike and ours.position == theirs[0].offset == tokens + 1 and theirs[0].keys.shape[2] > tokens):
        raise CannotMeasure("A cache filled with random keys does not go on as one that has read a prompt.")


# ---- steps ---------------------------------------------------------------------------------------------------------


def our_steps(model: Transformer, cache: Cache, tokens: int) -> Iterator[Token]:
    """Greedy tokens from where the cache stands, beginning with token 0."""
    logits = mx.where(mx.arange(model.config.vocab_size) == 0, 1.0, 0.0)
    return decode(model, logits, cache, SamplingParams(max_tokens=tokens, temperature=0.0))


def their_steps(model: nn.Module, cache: list[Any], tokens: int) -> Iterator[Any]:
    """mlx-lm's greedy tokens after token 0."""
    steps: Iterator[Any] = generate_step(mx.array([0]), model, max_tokens=tokens, prompt_cache=cache)
    return steps


def empty_peer(model: nn.Module) -> list[Any]:
    """mlx-lm's cache before the first token."""
    caches: list[Any] = make_prompt_cache(model)
    return caches
