"""The model's architecture as one frozen record, read from any of the three ways checkpoints state it.

Owns: which keys of `config.json`, `params.json` and GGUF metadata are understood, and what each means.
Every key is honoured, known to be harmless, or refused by name: a key dropped in silence is how runtimes come to
compute a different model. Knows no file: it takes plain mappings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mistral_mlx.errors import ConfigError

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
            _positive(name, getattr(self, name))
        if self.num_hidden_layers > _MOST_LAYERS:
            raise ConfigError(f"num_hidden_layers is {self.num_hidden_layers}.", _CHECK_FILE)
        for name in ("rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must be a positive number, not {value!r}.", _CHECK_FILE)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"{self.num_attention_heads} query heads cannot be shared out over {self.num_key_value_heads} "
                "key/value heads.",
                "num_attention_heads must be a multiple of num_key_value_heads.",
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}, but rotary positions turn pairs.", "Make it even.")
        if isinstance(self.sliding_window, tuple) and len(self.sliding_window) != self.num_hidden_layers:
            raise ConfigError(
                f"sliding_window has {len(self.sliding_window)} entries for {self.num_hidden_layers} layers.",
                "Give one window per layer.",
            )
        for window in self.windows:
            if window is not None:
                _positive("sliding_window", window)

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

    # ---- the three spellings ------------------------------------------------------------------------------------

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Read Hugging Face's `config.json`, as written before and after transformers 5.

        Absent keys take the default of the transformers class that `model_type` names.

        Raises:
            ConfigError: a key is missing, malformed, or asks for what is not computed here.
        """
        kind = config.get("model_type")
        if kind not in _HF_DEFAULTS:
            raise ConfigError(
                f"model_type {kind!r} is not run here.",
                f"Supported in config.json: {', '.join(sorted(_HF_DEFAULTS))}.",
            )
        _HF_KEYS.check(config)
        keys = _HF_DEFAULTS[kind] | {k: v for k, v in config.items() if v is not None or k == "sliding_window"}
        hidden, heads = _integer(keys, "hidden_size"), _integer(keys, "num_attention_heads")
        layers = _integer(keys, "num_hidden_layers")
        max_positions = _integer(keys, "max_position_embeddings")
        theta, yarn = _hf_rope(keys, max_positions)
        eos = keys.get("eos_token_id", ())
        return cls(
            hidden_size=hidden,
            intermediate_size=_integer(keys, "intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=_integer(keys, "num_key_value_heads", heads),
            head_dim=_integer(keys, "head_dim", _split_heads(hidden, heads)),
            vocab_size=_integer(keys, "vocab_size"),
            rms_norm_eps=_number(keys, "rms_norm_eps"),
            rope_theta=theta,
            yarn=yarn,
            sliding_window=_hf_windows(keys, layers),
            max_position_embeddings=max_positions,
            tie_word_embeddings=_boolean(keys, "tie_word_embeddings"),
            eos_token_ids=token_ids(eos, "eos_token_id"),
        )

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> ModelConfig:
        """Read Mistral's own `params.json` (mistral-inference, `args.py`).

        Raises:
            ConfigError: a key is missing, malformed, or asks for what is not computed here.
        """
        _PARAMS_KEYS.check(params)
        _refuse_query_scaling(params.get("llama_4_scaling"))
        keys = {k: v for k, v in params.items() if v is not None}
        if "sliding_window" in keys and "_sliding_window" in keys:
            raise ConfigError("params.json sets both sliding_window and _sliding_window.", "Keep one of them.")
        dim, heads, layers = _integer(keys, "dim"), _integer(keys, "n_heads"), _integer(keys, "n_layers")
        window = _params_windows(keys.get("sliding_window", keys.get("_sliding_window")), layers)
        # Releases older than the key: 1e4 for the windowed v0.1, 1e6 after (mistral-src b818190, model.py).
        theta = _number(keys, "rope_theta", 1e6 if window is None else 1e4)
        return cls(
            hidden_size=dim,
            intermediate_size=_integer(keys, "hidden_dim"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=_integer(keys, "n_kv_heads", heads),
            head_dim=_integer(keys, "head_dim", _split_heads(dim, heads)),
            vocab_size=_integer(keys, "vocab_size"),
            rms_norm_eps=_number(keys, "norm_eps"),
            rope_theta=theta,
            yarn=_params_yarn(keys.get("yarn")),
            sliding_window=window,
            max_position_embeddings=_integer(
                keys, "max_position_embeddings", _integer(keys, "max_seq_len", REFERENCE_CONTEXT)
            ),
            tie_word_embeddings=_boolean(keys, "tied_embeddings"),
            eos_token_ids=(2,),  # in every Mistral tokenizer
        )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> ModelConfig:
        """Read GGUF metadata of architecture `llama`, which is what converters write for every dense Mistral.

        Defaults are llama.cpp's. GGUF has no key for Mistral's window: such files are full attention.

        Raises:
            ConfigError: a key is missing, malformed, or asks for what is not computed here.
        """
        arch = metadata.get("general.architecture")
        if arch != "llama":
            raise ConfigError(f"GGUF architecture {arch!r} is not run here.", "Supported in GGUF: llama.")
        keys = {k.removeprefix("llama."): v for k, v in metadata.items() if k.startswith("llama.")}
        _GGUF_KEYS.check(keys)
        hidden, heads = _integer(keys, "embedding_length"), _integer(keys, "attention.head_count")
        head_dim = _integer(keys, "attention.key_length", _split_heads(hidden, heads))
        for same in ("attention.value_length", "rope.dimension_count"):
            if _integer(keys, same, head_dim) != head_dim:
                raise ConfigError(f"llama.{same} is {keys[same]}, head_dim is {head_dim}.", "They must be equal.")
        eos = metadata.get("tokenizer.ggml.eos_token_id", ())
        vocab = len(metadata.get("tokenizer.ggml.tokens", ())) or None
        return cls(
            hidden_size=hidden,
            intermediate_size=_integer(keys, "feed_forward_length"),
            num_hidden_layers=_integer(keys, "block_count"),
            num_attention_heads=heads,
            num_key_value_heads=_integer(keys, "attention.head_count_kv", heads),
            head_dim=head_dim,
            vocab_size=_integer(keys, "vocab_size", vocab),
            rms_norm_eps=_number(keys, "attention.layer_norm_rms_epsilon"),
            rope_theta=_number(keys, "rope.freq_base", 1e4),
            yarn=_gguf_yarn(keys),
            max_position_embeddings=_integer(keys, "context_length"),
            eos_token_ids=token_ids(eos, "tokenizer.ggml.eos_token_id"),
        )


# ---- which keys are what ----------------------------------------------------------------------------------------

_CHECK_FILE = "The configuration file is damaged or was edited; fetch it again."
_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "max_position_embeddings",
)  # fmt: skip
_MOST_LAYERS = 10_000  # a damaged count must not become a list of that length

_HF_LLAMA: dict[str, Any] = {
    "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "sliding_window": None, "max_position_embeddings": 2048,
}  # fmt: skip
_HF_MISTRAL = _HF_LLAMA | {"sliding_window": 4096, "max_position_embeddings": 131_072, "num_key_value_heads": 8}
_HF_DEFAULTS = {"llama": _HF_LLAMA, "mistral": _HF_MISTRAL, "ministral": _HF_MISTRAL}


@dataclass(frozen=True)
class _Keys:
    """What a spelling of the configuration may hold.

    `inert` are keys whose value can change results, with the values that do not; `harmless` never do.
    """

    where: str
    read: frozenset[str]
    inert: Mapping[str, tuple[Any, ...]]
    harmless: frozenset[str] = frozenset()

    def check(self, keys: Mapping[str, Any]) -> None:
        """Refuse, together and by name, every key that says something which nobody here computes."""
        said = {key: value for key, value in keys.items() if not _is_empty(value)}
        unknown = said.keys() - self.read - self.harmless - self.inert.keys()
        if unknown:
            raise ConfigError(
                f"{self.where} has keys that are not supported: {', '.join(sorted(unknown))}.",
                "They may change the model's results, so they are not ignored. "
                "If you know that they do not, remove them from the file.",
            )
        for key, allowed in self.inert.items():
            if key in said and said[key] not in allowed:
                raise ConfigError(
                    f"{self.where} asks for {key} = {said[key]!r}, which is not computed here.",
                    f"Supported: {' or '.join(repr(a) for a in allowed)}.",
                )


_HF_KEYS = _Keys(
    "config.json",
    read=frozenset({
        "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "vocab_size", "rms_norm_eps", "rope_theta", "rope_scaling",
        "rope_parameters", "sliding_window", "layer_types", "max_position_embeddings", "tie_word_embeddings",
        "eos_token_id",
    }),
    inert={
        "hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,), "partial_rotary_factor": (1,),
    },
    harmless=frozenset({
        "architectures", "transformers_version", "torch_dtype", "dtype", "bos_token_id", "pad_token_id",
        "unk_token_id", "sep_token_id", "decoder_start_token_id", "initializer_range", "use_cache",
        "attention_dropout", "hidden_dropout", "pretraining_tp", "_name_or_path", "_attn_implementation_autoset",
        "attn_implementation", "is_llama_config", "return_dict", "output_attentions", "output_hidden_states",
        "torchscript", "use_bfloat16", "id2label", "label2id", "problem_type", "task_specific_params",
        "finetuning_task", "chunk_size_feed_forward", "is_encoder_decoder", "is_decoder", "transformers.js_config",
        "max_length", "unsloth_fixed", "unsloth_version", "name_or_path", "license",
        "use_sliding_window",  # transformers' Mistral classes do not read it
    }),
)  # fmt: skip
_ROPE_KEYS = _Keys(
    "rope_parameters",
    read=frozenset({"rope_theta", "rope_type", "type"}),
    inert={"partial_rotary_factor": (1,)},
)
_YARN_KEYS = replace(
    _ROPE_KEYS,
    read=_ROPE_KEYS.read | {
        "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "mscale",
        "mscale_all_dim", "truncate",
    },
)  # fmt: skip
_PARAMS_KEYS = _Keys(
    "params.json",
    read=frozenset({
        "dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "norm_eps", "vocab_size", "rope_theta",
        "sliding_window", "_sliding_window", "yarn", "llama_4_scaling", "tied_embeddings", "max_position_embeddings",
        "max_seq_len",
    }),
    inert={"model_type": ("transformer",), "use_biases": (False,), "causal": (True,)},
    harmless=frozenset({"max_batch_size", "multiple_of", "name", "dtype"}),
)  # fmt: skip
_PARAMS_YARN_KEYS = _Keys(
    "params.json, yarn,",
    read=frozenset({"factor", "original_max_position_embeddings", "beta", "alpha", "apply_scale"}),
    inert={},
)
_GGUF_KEYS = _Keys(
    "the GGUF metadata",
    read=frozenset({
        "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
        "attention.head_count_kv", "attention.key_length", "attention.value_length",
        "attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.dimension_count", "vocab_size",
        "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
        "rope.scaling.attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
    }),
    inert={"expert_count": (0,), "expert_used_count": (0,), "rope.scale_linear": (1,)},
    harmless=frozenset({"rope.scaling.finetuned", "tensor_data_layout"}),
)  # fmt: skip


def _is_empty(value: Any) -> bool:
    return value is None or value is False or value == {} or value == []


def _refuse_query_scaling(value: Any) -> None:
    """Llama-4 query scaling: with beta 0 it multiplies queries by one, as Devstral 2 states it."""
    if value and not (isinstance(value, Mapping) and value.get("beta") == 0):
        raise ConfigError(f"params.json asks for llama_4_scaling = {value!r}, which is not computed here.")


# ---- values, each checked once ----------------------------------------------------------------------------------


def _integer(keys: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = keys.get(key, default)
    if value is None:
        raise ConfigError(f"The configuration lacks {key}.", _CHECK_FILE)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value % 1:
        raise ConfigError(f"{key} must be a whole number, not {value!r}.", _CHECK_FILE)
    return int(value)


def _number(keys: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = keys.get(key, default)
    if value is None:
        raise ConfigError(f"The configuration lacks {key}.", _CHECK_FILE)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{key} must be a number, not {value!r}.", _CHECK_FILE)
    return float(value)


def _boolean(keys: Mapping[str, Any], key: str) -> bool | None:
    value = keys.get(key)
    if value is not None and not isinstance(value, bool):
        raise ConfigError(f"{key} must be true or false, not {value!r}.", _CHECK_FILE)
    return value


def _positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise ConfigError(f"{name} must be a positive whole number below 2^31, not {value!r}.", _CHECK_FILE)


def _split_heads(hidden: int, heads: int) -> int | None:
    """The head dimension where none is stated, None where the division leaves a rest."""
    return hidden // heads if heads > 0 and hidden % heads == 0 else None


def token_ids(value: Any, key: str) -> tuple[int, ...]:
    """One id or a list of ids, as a tuple."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in values):
        raise ConfigError(f"{key} must be a token id or a list of them, not {value!r}.", _CHECK_FILE)
    return tuple(values)


def _window(value: Any) -> int | None:
    """A window as files state it: null, a number, or a number in a string."""
    if isinstance(value, str) and value.isdigit():
        value = int(value)
    if value is None:
        return None
    _positive("sliding_window", value)
    return int(value)


def _hf_windows(keys: Mapping[str, Any], layers: int) -> int | tuple[int | None, ...] | None:
    window = _window(keys["sliding_window"])
    kinds = keys.get("layer_types")
    if kinds is None:
        return window
    known = {"full_attention": None, "sliding_attention": window}
    if not isinstance(kinds, list) or len(kinds) != layers or any(k not in known for k in kinds):
        raise ConfigError(
            f"layer_types must name full_attention or sliding_attention for each of the {layers} layers.", _CHECK_FILE
        )
    if window is None and "sliding_attention" in kinds:
        raise ConfigError("layer_types has sliding layers, but sliding_window is null.", _CHECK_FILE)
    return _uniform([known[k] for k in kinds])


def _params_windows(value: Any, layers: int) -> int | tuple[int | None, ...] | None:
    """A list is a pattern that repeats over the layers (mistral-inference, cache.py)."""
    if not isinstance(value, list):
        return _window(value)
    if not value or layers % len(value):
        raise ConfigError(f"A window pattern of {len(value)} does not repeat over {layers} layers.", _CHECK_FILE)
    return _uniform([_window(v) for v in value] * (layers // len(value)))


def _uniform(windows: list[int | None]) -> int | tuple[int | None, ...] | None:
    return windows[0] if len(set(windows)) == 1 else tuple(windows)


# ---- rotary positions -------------------------------------------------------------------------------------------


def _hf_rope(keys: Mapping[str, Any], max_positions: int) -> tuple[float, Yarn | None]:
    """Base and stretching: `rope_theta` and `rope_scaling`, or both in `rope_parameters` since transformers 5."""
    rope = keys.get("rope_parameters") or keys.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ConfigError(f"rope_parameters must be a table, not {rope!r}.", _CHECK_FILE)
    theta = _number(rope, "rope_theta", _number(keys, "rope_theta"))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "yarn"):
        raise ConfigError(f"rope_type {kind!r} is not computed here.", "Supported: default, yarn.")
    (_YARN_KEYS if kind == "yarn" else _ROPE_KEYS).check(rope)
    return theta, _hf_yarn(rope, max_positions) if kind == "yarn" else None


def _hf_yarn(rope: Mapping[str, Any], max_positions: int) -> Yarn:
    """transformers, modeling_rope_utils.py, `_compute_yarn_parameters`."""
    rope = {k: v for k, v in rope.items() if v is not None}
    original = _integer(rope, "original_max_position_embeddings", max_positions)
    factor = _number(rope, "factor", max_positions / original)
    mscale, all_dim = _number(rope, "mscale", 0), _number(rope, "mscale_all_dim", 0)
    magnitude = _magnitude(factor, mscale) / _magnitude(factor, all_dim) if mscale and all_dim else _magnitude(factor)
    return Yarn(
        factor=factor,
        original_context=original,
        beta_fast=_number(rope, "beta_fast", 32.0) or 32.0,
        beta_slow=_number(rope, "beta_slow", 1.0) or 1.0,
        attention_factor=_number(rope, "attention_factor", magnitude),
        truncate=_boolean(rope, "truncate") is not False,
    )


def _params_yarn(yarn: Any) -> Yarn | None:
    """Mistral's words for the same: beta is the fast boundary, alpha the slow one."""
    if not yarn:
        return None
    if not isinstance(yarn, Mapping):
        raise ConfigError(f"yarn must be a table, not {yarn!r}.", _CHECK_FILE)
    _PARAMS_YARN_KEYS.check(yarn)
    factor = _number(yarn, "factor")
    return Yarn(
        factor=factor,
        original_context=_integer(yarn, "original_max_position_embeddings"),
        beta_fast=_number(yarn, "beta", 32.0),
        beta_slow=_number(yarn, "alpha", 1.0),
        attention_factor=1.0 if _boolean(yarn, "apply_scale") is False else _magnitude(factor),
    )


def _gguf_yarn(keys: Mapping[str, Any]) -> Yarn | None:
    """llama.cpp's keys (ggml, `rope_yarn`): the magnitude is the attention factor times YaRN's own."""
    kind = keys.get("rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind != "yarn":
        raise ConfigError(f"rope.scaling.type {kind!r} is not computed here.", "Supported: none, yarn.")
    factor = _number(keys, "rope.scaling.factor")
    return Yarn(
        factor=factor,
        original_context=_integer(keys, "rope.scaling.original_context_length"),
        beta_fast=_number(keys, "rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=_number(keys, "rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=_number(keys, "rope.scaling.attn_factor", 1.0) * _magnitude(factor),
    )


def _magnitude(factor: float, mscale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
