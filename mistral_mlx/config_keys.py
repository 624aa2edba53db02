"""Which keys each spelling of a configuration may hold, and their values, each checked once.

Every key is read, known to be harmless, or refused by name: a key dropped in silence is how runtimes come to compute a
different model.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mistral_mlx.errors import ConfigError

CHECK_FILE = "The configuration file is damaged or was edited; fetch it again."


@dataclass(frozen=True)
class Keys:
    """What a spelling of the configuration may hold.

    `inert` are keys whose value can change results, with the values that do not; `harmless` never do.
    """

    where: str
    read: frozenset[str]
    inert: Mapping[str, tuple[Any, ...]]
    harmless: frozenset[str] = frozenset()

    def check(self, keys: Mapping[str, Any]) -> None:
        """Refuse, together and by name, every key that says something which nobody here computes."""
        said = {key for key, value in keys.items() if not _is_empty(value)}
        unknown = said - self.read - self.harmless - self.inert.keys()
        if unknown:
            raise ConfigError(
                f"{self.where} has keys that are not supported: {', '.join(sorted(unknown))}.",
                "They may change the model's results, so they are not ignored. "
                "If you know that they do not, remove them from the file.",
            )
        for key, allowed in self.inert.items():
            value = keys.get(key)
            if value is not None and value not in allowed:
                raise ConfigError(
                    f"{self.where} asks for {key} = {value!r}, which is not computed here.",
                    f"Supported: {' or '.join(repr(a) for a in allowed)}.",
                )


HF_KEYS = Keys(
    "config.json",
    read=frozenset({
        "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "vocab_size", "rms_norm_eps", "rope_theta", "rope_scaling",
        "rope_parameters", "sliding_window", "layer_types", "max_position_embeddings", "tie_word_embeddings",
        "eos_token_id",
    }),
    inert={
        "hidden_act": ("silu",), "is_causal": (True,),
        "attention_bias": (False,), "mlp_bias": (False,), "partial_rotary_factor": (1,),
    },
    harmless=frozenset({
        "architectures", "transformers_version", "torch_dtype", "dtype", "bos_token_id", "pad_token_id",
        "unk_token_id", "sep_token_id", "decoder_start_token_id", "initializer_range", "use_cache",
        "attention_dropout", "hidden_dropout", "pretraining_tp", "_name_or_path", "_attn_implementation_autoset",
        "attn_implementation", "is_llama_config", "return_dict", "output_attentions", "output_hidden_states",
        "torchscript", "use_bfloat16", "id2label", "label2id", "problem_type", "task_specific_params",
        "finetuning_task", "chunk_size_feed_forward", "is_encoder_decoder", "is_decoder", "transformers.js_config",
        "max_length", "unsloth_fixed", "unsloth_version", "name_or_path", "license",
        # of tokenizers, of training, and of how to sample, which is the caller's to say
        "tokenizer_class", "model_max_length", "max_sequence_length", "tokenizer_model_max_length",
        "tokenizer_padding_side", "neftune_noise_alpha", "chat_template", "do_sample", "temperature", "top_k", "top_p",
        "num_beams", "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "early_stopping", "min_length",
        "use_sliding_window",  # transformers' Mistral classes do not read it
    }),
)  # fmt: skip
ROPE_KEYS = Keys(
    "rope_parameters",
    read=frozenset({"rope_theta", "rope_type", "type"}),
    inert={"partial_rotary_factor": (1,)},
)
YARN_KEYS = replace(
    ROPE_KEYS,
    read=ROPE_KEYS.read | {
        "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "mscale",
        "mscale_all_dim", "truncate",
    },
)  # fmt: skip
PARAMS_KEYS = Keys(
    "params.json",
    read=frozenset({
        "dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "norm_eps", "vocab_size", "rope_theta",
        "sliding_window", "_sliding_window", "yarn", "llama_4_scaling", "tied_embeddings", "max_position_embeddings",
        "max_seq_len",
    }),
    inert={"model_type": ("transformer",), "use_biases": (False,), "causal": (True,)},
    harmless=frozenset({"max_batch_size", "multiple_of", "name", "dtype"}),
)  # fmt: skip
PARAMS_YARN_KEYS = Keys(
    "params.json, yarn,",
    read=frozenset({"factor", "original_max_position_embeddings", "beta", "alpha", "apply_scale"}),
    inert={},
)
GGUF_KEYS = Keys(
    "the GGUF metadata",
    read=frozenset({
        "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
        "attention.head_count_kv", "attention.key_length", "attention.value_length",
        "attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.dimension_count", "vocab_size",
        "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
        "rope.scaling.attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
        "attention.sliding_window",
    }),
    inert={"expert_count": (0,), "expert_used_count": (0,), "rope.scale_linear": (1,), "attention.causal": (True,)},
    harmless=frozenset({"rope.scaling.finetuned", "tensor_data_layout"}),
)  # fmt: skip


def _is_empty(value: Any) -> bool:
    return value is None or value is False or value == {} or value == []


# ---- values, each checked once ----------------------------------------------------------------------------------


def integer(keys: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = default if keys.get(key) is None else keys[key]
    if value is None:
        raise ConfigError(f"The configuration lacks {key}.", CHECK_FILE)
    if not _is_real(value) or value % 1:
        raise ConfigError(f"{key} must be a whole number, not {value!r}.", CHECK_FILE)
    return int(value)


def number(keys: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = default if keys.get(key) is None else keys[key]
    if value is None:
        raise ConfigError(f"The configuration lacks {key}.", CHECK_FILE)
    if not _is_real(value):
        raise ConfigError(f"{key} must be a number, not {value!r}.", CHECK_FILE)
    return float(value)


def boolean(keys: Mapping[str, Any], key: str) -> bool | None:
    value = keys.get(key)
    if value is not None and not isinstance(value, bool):
        raise ConfigError(f"{key} must be true or false, not {value!r}.", CHECK_FILE)
    return value


def _is_real(value: Any) -> bool:
    """A finite number that a float can hold; JSON's true is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise ConfigError(f"{name} must be a positive whole number below 2^31, not {value!r}.", CHECK_FILE)


def token_ids(value: Any, key: str) -> tuple[int, ...]:
    """One id or a list of ids, as a tuple."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if any(isinstance(v, bool) or not isinstance(v, int) or not 0 <= v < 2**31 for v in values):
        raise ConfigError(f"{key} must be a token id or a list of them, not {value!r}.", CHECK_FILE)
    return tuple(values)
