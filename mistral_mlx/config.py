"""The model's architecture as one frozen record, read from any of the three ways checkpoints state it.

Owns: what `config.json`, `params.json` and GGUF metadata mean. Knows no file: it takes plain mappings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mistral_mlx.config_keys import (
    CHECK_FILE,
    GGUF_KEYS,
    HF_KEYS,
    PARAMS_KEYS,
    PARAMS_YARN_KEYS,
    ROPE_KEYS,
    YARN_KEYS,
    boolean,
    integer,
    number,
    positive,
    token_ids,
)
from mistral_mlx.errors import ConfigError, InputError

# What the reference allows where a checkpoint names no limit: mistral-inference tabulates RoPE to this position.
REFERENCE_CONTEXT = 128_000


@dataclass(frozen=True, kw_only=True)
class Yarn:
    """YaRN's stretching of RoPE past the trained length (arXiv 2309.00071, section 3).

    Attributes:
        factor: how many times longer the context becomes.
        original_context: positions the model was trained on before stretching.
        beta_fast, beta_slow: rotations over `original_context` above which a dimension is left alone, and below
            which it is fully interpolated.
        attention_factor: multiplies the cosines and sines of both queries and keys.
        truncate: round the two boundaries between dimensions outwards to whole dimensions.
    """

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        positive("original_max_position_embeddings", self.original_context)
        # Far wider than any model's, and narrow enough that the arithmetic stays finite.
        bounds = {
            "factor": (1, 1e6),
            "beta_fast": (1e-3, 1e4),
            "beta_slow": (1e-3, 1e4),
            "attention_factor": (1e-3, 1e3),
        }
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"YaRN's {name} is {getattr(self, name)!r}.", f"It must be from {low} to {high:g}.")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A dense Mistral decoder: pre-norm, grouped-query attention in a window, SwiGLU, RoPE, no biases.

    Field names are those of `config.json`. `sliding_window` is None (full attention), one window for all layers, or a
    tuple with an entry per layer. `tie_word_embeddings` None means "as the weights show": tied when no output matrix
    is stored.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    yarn: Yarn | None = None
    sliding_window: int | tuple[int | None, ...] | None = None
    max_position_embeddings: int = REFERENCE_CONTEXT
    tie_word_embeddings: bool | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in _SIZES:
            positive(name, getattr(self, name))
        for name in ("rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must be a positive number, not {value!r}.", CHECK_FILE)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"{self.num_attention_heads} query heads cannot be shared out over {self.num_key_value_heads} "
                "key/value heads.",
                "num_attention_heads must be a multiple of num_key_value_heads.",
            )
        if self.yarn and self.rope_theta <= 1:
            raise ConfigError(f"YaRN needs a rope_theta above 1, not {self.rope_theta!r}.", CHECK_FILE)
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}, but rotary positions turn pairs.", "Make it even.")
        if isinstance(self.sliding_window, tuple) and len(self.sliding_window) != self.num_hidden_layers:
            raise ConfigError(
                f"sliding_window has {len(self.sliding_window)} entries for {self.num_hidden_layers} layers.",
                "Give one window per layer.",
            )
        for window in self.windows:
            if window is not None:
                positive("sliding_window", window)

    @cached_property
    def windows(self) -> tuple[int | None, ...]:
        """The window of each layer, None where the layer attends to everything."""
        if isinstance(self.sliding_window, tuple):
            return self.sliding_window
        return (self.sliding_window,) * self.num_hidden_layers

    @property
    def context_length(self) -> int | None:
        """Tokens a sequence may have; None when every layer is windowed, for then nothing grows with length."""
        return self.max_position_embeddings if None in self.windows else None

    def with_window(self, window: int | Sequence[int | None] | None) -> ModelConfig:
        """The same model with other windows: one for all layers, None for full attention, or a pattern that repeats.

        Raises:
            InputError: no window, or a pattern that does not repeat over the layers.
        """
        pattern = (window,) if window is None or isinstance(window, int) else window
        sizes = isinstance(pattern, Sequence) and all(
            w is None or (isinstance(w, int) and not isinstance(w, bool) and 1 <= w < 2**31) for w in pattern
        )
        if not sizes or not pattern or self.num_hidden_layers % len(pattern):
            raise InputError(
                f"window is {window!r}.",
                f"Give a number from 1 to 2^31 - 1, None, or a list that repeats over {self.num_hidden_layers} layers.",
            )
        return replace(self, sliding_window=_uniform([*pattern] * (self.num_hidden_layers // len(pattern))))

    # ---- the three spellings ------------------------------------------------------------------------------------

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Read Hugging Face's `config.json`, as written before and after transformers 5.

        Absent keys take the default of the transformers class that `model_type` names.

        Raises:
            ConfigError: a key is missing, malformed, or asks for what is not computed here.
        """
        kind = config.get("model_type")
        if not isinstance(kind, str) or kind not in _HF_DEFAULTS:
            raise ConfigError(
                f"model_type {kind!r} is not run here.",
                f"Supported in config.json: {', '.join(sorted(_HF_DEFAULTS))}.",
            )
        HF_KEYS.check(config)
        keys = _HF_DEFAULTS[kind] | {k: v for k, v in config.items() if v is not None or k in _NULL_SPEAKS}
        hidden, heads = integer(keys, "hidden_size"), integer(keys, "num_attention_heads")
        layers = _layer_count(keys, "num_hidden_layers")
        max_positions = integer(keys, "max_position_embeddings")
        theta, yarn = _hf_rope(keys, max_positions)
        eos = keys["eos_token_id"]
        return cls(
            hidden_size=hidden,
            intermediate_size=integer(keys, "intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=integer(keys, "num_key_value_heads", heads),
            head_dim=integer(keys, "head_dim", _split_heads(hidden, heads)),
            vocab_size=integer(keys, "vocab_size"),
            rms_norm_eps=number(keys, "rms_norm_eps"),
            rope_theta=theta,
            yarn=yarn,
            sliding_window=_hf_windows(keys, layers),
            max_position_embeddings=max_positions,
            tie_word_embeddings=boolean(keys, "tie_word_embeddings"),
            eos_token_ids=() if eos is None else token_ids(eos, "eos_token_id"),
        )

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> ModelConfig:
        """Read Mistral's own `params.json` (mistral-inference, `args.py`).

        Raises:
            ConfigError: a key is missing, malformed, or asks for what is not computed here.
        """
        PARAMS_KEYS.check(params)
        _refuse_query_scaling(params.get("llama_4_scaling"))
        keys = {k: v for k, v in params.items() if v is not None}
        if "sliding_window" in keys and "_sliding_window" in keys:
            raise ConfigError("params.json sets both sliding_window and _sliding_window.", "Keep one of them.")
        dim, heads, layers = integer(keys, "dim"), integer(keys, "n_heads"), _layer_count(keys, "n_layers")
        window = _params_windows(keys.get("sliding_window", keys.get("_sliding_window")), layers)
        # Releases older than the key: 1e4 for the windowed v0.1, 1e6 after (mistral-src b818190, model.py).
        theta = number(keys, "rope_theta", 1e6 if window is None else 1e4)
        return cls(
            hidden_size=dim,
            intermediate_size=integer(keys, "hidden_dim"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=integer(keys, "n_kv_heads", heads),
            head_dim=integer(keys, "head_dim", _split_heads(dim, heads)),
            vocab_size=integer(keys, "vocab_size"),
            rms_norm_eps=number(keys, "norm_eps"),
            rope_theta=theta,
            yarn=_params_yarn(keys.get("yarn")),
            sliding_window=window,
            max_position_embeddings=integer(
                keys, "max_position_embeddings", integer(keys, "max_seq_len", REFERENCE_CONTEXT)
            ),
            tie_word_embeddings=boolean(keys, "tied_embeddings"),
            eos_token_ids=(2,),  # in every Mistral tokenizer
        )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> ModelConfig:
        """Read GGUF metadata of architecture `llama`, which is what converters write for every dense Mistral.

        Defaults are llama.cpp's. Its converter does not write Mistral's window: such files are full attention.

        Raises:
            ConfigError: a key is missing, malformed, or asks for what is not computed here.
        """
        arch = metadata.get("general.architecture")
        if arch != "llama":
            raise ConfigError(f"GGUF architecture {arch!r} is not run here.", "Supported in GGUF: llama.")
        keys = {k.removeprefix("llama."): v for k, v in metadata.items() if k.startswith("llama.")}
        GGUF_KEYS.check(keys)
        hidden, heads = integer(keys, "embedding_length"), integer(keys, "attention.head_count")
        head_dim = integer(keys, "attention.key_length", _split_heads(hidden, heads))
        for same in ("attention.value_length", "rope.dimension_count"):
            if integer(keys, same, head_dim) != head_dim:
                raise ConfigError(f"llama.{same} is {keys[same]}, head_dim is {head_dim}.", "They must be equal.")
        eos = metadata.get("tokenizer.ggml.eos_token_id", ())
        tokens = metadata.get("tokenizer.ggml.tokens", [])
        if not isinstance(tokens, list):
            raise ConfigError(f"tokenizer.ggml.tokens must be a list, not {tokens!r}.", CHECK_FILE)
        return cls(
            hidden_size=hidden,
            intermediate_size=integer(keys, "feed_forward_length"),
            num_hidden_layers=_layer_count(keys, "block_count"),
            num_attention_heads=heads,
            num_key_value_heads=integer(keys, "attention.head_count_kv", heads),
            head_dim=head_dim,
            vocab_size=integer(keys, "vocab_size", len(tokens) or None),
            rms_norm_eps=number(keys, "attention.layer_norm_rms_epsilon"),
            rope_theta=number(keys, "rope.freq_base", 1e4),
            yarn=_gguf_yarn(keys),
            sliding_window=_window(keys.get("attention.sliding_window") or None),
            max_position_embeddings=integer(keys, "context_length"),
            eos_token_ids=token_ids(eos, "tokenizer.ggml.eos_token_id"),
        )

    def to_hf(self, model_type: str) -> dict[str, Any]:
        """The same as keys of `config.json`, spelled so that transformers, mlx-lm and `from_hf` all understand them.

        Layers with different windows are understood by mlx-lm under "mistral" only, by transformers under "ministral".

        Args:
            model_type: "mistral" or "llama".

        Raises:
            ConfigError: windows that config.json has no words for.
        """
        sizes = {window for window in self.windows if window is not None}
        if len(sizes) > 1 or (sizes and model_type == "llama"):
            raise ConfigError(
                f"config.json cannot say that layers have windows of {' and '.join(map(str, sorted(sizes)))}.",
                "Give another window.",
            )
        keys: dict[str, Any] = {
            "model_type": model_type,
            **{name: getattr(self, name) for name in _SIZES},
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "sliding_window": next(iter(sizes), None),
            "tie_word_embeddings": bool(self.tie_word_embeddings),
            "hidden_act": "silu",
            "eos_token_id": self.eos_token_ids[0] if len(self.eos_token_ids) == 1 else list(self.eos_token_ids) or None,
        }
        if sizes and None in self.windows:
            keys["layer_types"] = ["full_attention" if w is None else "sliding_attention" for w in self.windows]
        if self.yarn:
            keys["rope_scaling"] = _hf_yarn_keys(self.yarn)
        return keys


# ---- what the three spellings have in common, and what not ---------------------------------------------------------

_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "max_position_embeddings",
)  # fmt: skip
_MOST_LAYERS = 10_000

_HF_LLAMA: dict[str, Any] = {
    "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "sliding_window": None, "max_position_embeddings": 2048,
    "eos_token_id": 2,
}  # fmt: skip
# Null in these is not the same as leaving them out: no window, as many key/value heads as query heads, no stop token.
_NULL_SPEAKS = ("sliding_window", "num_key_value_heads", "eos_token_id")
_HF_MISTRAL = _HF_LLAMA | {"sliding_window": 4096, "max_position_embeddings": 131_072, "num_key_value_heads": 8}
_HF_DEFAULTS = {"llama": _HF_LLAMA, "mistral": _HF_MISTRAL, "ministral": _HF_MISTRAL}


def _refuse_query_scaling(value: Any) -> None:
    """Llama-4 query scaling: with beta 0 it multiplies queries by one, as Devstral 2 states it."""
    if value and not (isinstance(value, Mapping) and value.get("beta") == 0):
        raise ConfigError(f"params.json asks for llama_4_scaling = {value!r}, which is not computed here.")


def _layer_count(keys: Mapping[str, Any], key: str) -> int:
    """Checked before anything is made of that length."""
    count = integer(keys, key)
    if not 1 <= count <= _MOST_LAYERS:
        raise ConfigError(f"{key} must be from 1 to {_MOST_LAYERS}, not {count}.", CHECK_FILE)
    return count


def _split_heads(hidden: int, heads: int) -> int | None:
    """The head dimension where none is stated, None where the division leaves a rest."""
    positive("num_attention_heads", heads)
    return None if hidden % heads else hidden // heads


def _window(value: Any) -> int | None:
    """A window as files state it: null, a number, or a number in a string."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        value = int(value)
    if value is None:
        return None
    positive("sliding_window", value)
    return int(value)


def _hf_windows(keys: Mapping[str, Any], layers: int) -> int | tuple[int | None, ...] | None:
    window = _window(keys["sliding_window"])
    if window is not None and keys["model_type"] == "llama":
        raise ConfigError(
            f"config.json sets sliding_window = {window} for model_type llama, which has none in transformers.",
            'Make it null for full attention, or set model_type to "mistral" if the model was trained with the window.',
        )
    kinds = keys.get("layer_types")
    if kinds is None:
        return window
    known = {"full_attention": None, "sliding_attention": window}
    if not isinstance(kinds, list) or len(kinds) != layers or any(str(k) not in known for k in kinds):
        raise ConfigError(
            f"layer_types must name full_attention or sliding_attention for each of the {layers} layers.", CHECK_FILE
        )
    if window is None and "sliding_attention" in kinds:
        raise ConfigError("layer_types has sliding layers, but sliding_window is null.", CHECK_FILE)
    return _uniform([known[k] for k in kinds])


def _params_windows(value: Any, layers: int) -> int | tuple[int | None, ...] | None:
    """A list is a pattern that repeats over the layers (mistral-inference, cache.py)."""
    if not isinstance(value, list):
        return _window(value)
    if not value or layers % len(value):
        raise ConfigError(f"A window pattern of {len(value)} does not repeat over {layers} layers.", CHECK_FILE)
    return _uniform([_window(v) for v in value] * (layers // len(value)))


def _uniform(windows: list[int | None]) -> int | tuple[int | None, ...] | None:
    return windows[0] if len(set(windows)) == 1 else tuple(windows)


# ---- rotary positions -------------------------------------------------------------------------------------------


def _hf_rope(keys: Mapping[str, Any], max_positions: int) -> tuple[float, Yarn | None]:
    """Base and stretching: `rope_theta` and `rope_scaling`, or both in `rope_parameters` since transformers 5."""
    tables = [keys[name] for name in ("rope_parameters", "rope_scaling") if keys.get(name) not in (None, {})]
    if len(tables) == 2 and tables[0] != tables[1]:
        raise ConfigError("config.json has rope_parameters and another rope_scaling.", "Remove the one that is wrong.")
    rope = tables[0] if tables else {}
    if not isinstance(rope, Mapping):
        raise ConfigError(f"rope_parameters must be a table, not {rope!r}.", CHECK_FILE)
    theta = number(rope, "rope_theta", number(keys, "rope_theta"))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "linear" and rope.get("factor") == 1:
        return theta, None  # positions divided by one
    if kind not in ("default", "yarn"):
        raise ConfigError(f"rope_type {kind!r} is not computed here.", "Supported: default, yarn.")
    (YARN_KEYS if kind == "yarn" else ROPE_KEYS).check(rope)
    return theta, _hf_yarn(rope, max_positions) if kind == "yarn" else None


def _hf_yarn(rope: Mapping[str, Any], max_positions: int) -> Yarn:
    """transformers, modeling_rope_utils.py, `_compute_yarn_parameters`."""
    rope = {k: v for k, v in rope.items() if v is not None}
    original = integer(rope, "original_max_position_embeddings", max_positions)
    positive("original_max_position_embeddings", original)
    factor = number(rope, "factor", max_positions / original)
    mscale, all_dim = number(rope, "mscale", 0), number(rope, "mscale_all_dim", 0)
    if mscale < 0 or all_dim < 0:
        raise ConfigError("YaRN's mscale and mscale_all_dim must not be negative.", CHECK_FILE)
    magnitude = _magnitude(factor, mscale) / _magnitude(factor, all_dim) if mscale and all_dim else _magnitude(factor)
    return Yarn(
        factor=factor,
        original_context=original,
        beta_fast=number(rope, "beta_fast", 32.0) or 32.0,
        beta_slow=number(rope, "beta_slow", 1.0) or 1.0,
        attention_factor=number(rope, "attention_factor", magnitude),
        truncate=boolean(rope, "truncate") is not False,
    )


def _hf_yarn_keys(yarn: Yarn) -> dict[str, Any]:
    """mlx-lm reads no attention_factor, but the two mscale from which transformers would compute it."""
    keys: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": yarn.factor,
        "original_max_position_embeddings": yarn.original_context,
        "beta_fast": yarn.beta_fast,
        "beta_slow": yarn.beta_slow,
        "attention_factor": yarn.attention_factor,
    }
    if yarn.attention_factor == 1:
        keys |= {"mscale": 1.0, "mscale_all_dim": 1.0}
    if not yarn.truncate:
        keys["truncate"] = False
    return keys


def _params_yarn(yarn: Any) -> Yarn | None:
    """Mistral's words for the same: beta is the fast boundary, alpha the slow one."""
    if yarn is None or yarn == {}:
        return None
    if not isinstance(yarn, Mapping):
        raise ConfigError(f"yarn must be a table, not {yarn!r}.", CHECK_FILE)
    PARAMS_YARN_KEYS.check(yarn)
    factor = number(yarn, "factor")
    return Yarn(
        factor=factor,
        original_context=integer(yarn, "original_max_position_embeddings"),
        beta_fast=number(yarn, "beta", 32.0),
        beta_slow=number(yarn, "alpha", 1.0),
        attention_factor=1.0 if boolean(yarn, "apply_scale") is False else _magnitude(factor),
    )


def _gguf_yarn(keys: Mapping[str, Any]) -> Yarn | None:
    """llama.cpp's keys (ggml, `rope_yarn`): the magnitude is the attention factor times YaRN's own."""
    # A factor without a type means linear there.
    unstretched = number(keys, "rope.scaling.factor", 1.0) in (0.0, 1.0)
    kind = keys.get("rope.scaling.type", "none" if unstretched else "linear")
    if kind == "none":
        return None
    if kind != "yarn":
        raise ConfigError(f"rope.scaling.type {kind!r} is not computed here.", "Supported: none, yarn.")
    factor = number(keys, "rope.scaling.factor")
    return Yarn(
        factor=factor,
        original_context=integer(keys, "rope.scaling.original_context_length"),
        beta_fast=number(keys, "rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=number(keys, "rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=number(keys, "rope.scaling.attn_factor", 1.0) * _magnitude(factor),
    )


def _magnitude(factor: float, mscale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
