"""ModelConfig from its three spellings: every key is honoured, harmless, or refused by name."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_mlx.config import REFERENCE_CONTEXT, ModelConfig, Yarn
from mistral_mlx.errors import ConfigError
from mistral_mlx.model.rope import yarn_periods
from tests.conftest import GOLDEN, TINY

Read = Callable[[Mapping[str, Any]], ModelConfig]

HF: dict[str, Any] = {
    "model_type": "mistral", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96, "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0, "sliding_window": None, "max_position_embeddings": 256,
}  # fmt: skip
PARAMS: dict[str, Any] = {
    "dim": 64, "n_layers": 4, "head_dim": 16, "hidden_dim": 96, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5,
    "vocab_size": 96,
}  # fmt: skip
GGUF: dict[str, Any] = {
    "general.architecture": "llama", "llama.block_count": 4, "llama.context_length": 256,
    "llama.embedding_length": 64, "llama.feed_forward_length": 96, "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2, "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.vocab_size": 96,
}  # fmt: skip
SPELLINGS: dict[str, tuple[Read, dict[str, Any]]] = {
    "config.json": (ModelConfig.from_hf, HF),
    "params.json": (ModelConfig.from_params, PARAMS),
    "GGUF": (ModelConfig.from_gguf, GGUF),
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 64}


def hf(**changes: Any) -> ModelConfig:
    return ModelConfig.from_hf(HF | changes)


def params(**changes: Any) -> ModelConfig:
    return ModelConfig.from_params(PARAMS | changes)


def gguf(changes: Mapping[str, Any]) -> ModelConfig:
    return ModelConfig.from_gguf(GGUF | {f"llama.{key}": value for key, value in changes.items()})


def without(keys: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if key not in names}


def assert_refused(read: Read, keys: Mapping[str, Any], word: str) -> None:
    """A ConfigError that says something and names the key."""
    with pytest.raises(ConfigError) as caught:
        read(keys)
    assert caught.value.message
    assert word in str(caught.value)


# ---- models as they were published -------------------------------------------------------------------------------


def test_mistral_7b_v01_in_both_spellings() -> None:
    theirs = ModelConfig.from_hf({
        "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": True, "vocab_size": 32000,
    })  # fmt: skip
    own = ModelConfig.from_params({
        "dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8,
        "norm_eps": 1e-05, "sliding_window": 4096, "vocab_size": 32000,
    })  # fmt: skip
    assert theirs.head_dim == own.head_dim == 128
    assert theirs.rope_theta == own.rope_theta == 1e4
    assert theirs.windows == own.windows == (4096,) * 32
    assert theirs.context_length is own.context_length is None
    assert theirs.eos_token_ids == own.eos_token_ids == (2,)
    assert (theirs.tie_word_embeddings, own.tie_word_embeddings) == (False, None)


def test_nemo_whose_heads_are_narrower_than_its_stream() -> None:
    config = ModelConfig.from_params({
        "dim": 5120, "n_layers": 40, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8,
        "norm_eps": 1e-05, "vocab_size": 131072, "rope_theta": 1000000.0,
    })  # fmt: skip
    assert config.num_attention_heads * config.head_dim == 4096 != config.hidden_size
    assert config.windows == (None,) * 40
    assert config.context_length == REFERENCE_CONTEXT == 128_000


def test_ministral_8b_repeats_one_full_layer_and_three_sliding() -> None:
    own = ModelConfig.from_params({
        "dim": 4096, "n_layers": 36, "head_dim": 128, "hidden_dim": 12288, "n_heads": 32, "n_kv_heads": 8,
        "norm_eps": 1e-05, "vocab_size": 131072, "rope_theta": 100000000.0, "max_seq_len": 131072,
        "_sliding_window": [None, 32768, 32768, 32768],
    })  # fmt: skip
    theirs = ModelConfig.from_hf({
        "model_type": "ministral", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072,
        "rms_norm_eps": 1e-05, "rope_theta": 100000000.0, "sliding_window": 32768, "max_position_embeddings": 131072,
        "layer_types": ["full_attention", *["sliding_attention"] * 3] * 9, "tie_word_embeddings": False,
    })  # fmt: skip
    assert own.windows == theirs.windows == (None, 32768, 32768, 32768) * 9
    assert own.context_length == theirs.context_length == 131_072
    assert own.rope_theta == theirs.rope_theta == 1e8


def test_large_3s_yarn_has_no_magnitude() -> None:
    yarn = {"original_max_position_embeddings": 8192, "factor": 36, "apply_scale": False, "beta": 32, "alpha": 1}
    assert params(yarn=yarn).yarn == Yarn(factor=36.0, original_context=8192, beta_fast=32.0, beta_slow=1.0)


def test_ministral_3s_equal_mscales_cancel() -> None:
    rope = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 16384, "mscale": 1.0,
            "mscale_all_dim": 1.0, "beta_fast": 32.0, "beta_slow": 1.0, "rope_theta": 1e6}  # fmt: skip
    assert hf(rope_parameters=rope).yarn == Yarn(factor=16.0, original_context=16384)


def test_devstral_2s_mscale_without_all_dim_counts_for_nothing() -> None:
    rope = {"rope_type": "yarn", "factor": 64.0, "original_max_position_embeddings": 4096, "mscale": 1.0,
            "mscale_all_dim": 0.0, "beta_fast": 4.0, "beta_slow": 1.0, "rope_theta": 1e6}  # fmt: skip
    yarn = hf(rope_parameters=rope).yarn
    assert yarn is not None
    assert yarn.attention_factor == 0.1 * math.log(64) + 1


@pytest.mark.parametrize("kind", ["mixtral", "mistral3", "ministral3", "mistral4", "qwen2", None, 5, [], {}])
def test_other_architectures_are_refused(kind: Any) -> None:
    assert_refused(ModelConfig.from_hf, HF | {"model_type": kind}, "model_type")


@pytest.mark.parametrize("arch", ["mistral3", "qwen2", None, 5, ["llama"]])
def test_other_gguf_architectures_are_refused(arch: Any) -> None:
    assert_refused(ModelConfig.from_gguf, GGUF | {"general.architecture": arch}, "architecture")


# ---- windows -----------------------------------------------------------------------------------------------------

WINDOWS: list[tuple[Any, int | tuple[int | None, ...] | None]] = [
    (None, None), (8, 8), ("8", 8), ([8], 8), ([None], None), ([None, 8], (None, 8, None, 8)),
    ([8, "5", None, 8], (8, 5, None, 8)), ([8, 8], 8),
]  # fmt: skip


@pytest.mark.parametrize("key", ["sliding_window", "_sliding_window"])
@pytest.mark.parametrize(("value", "window"), WINDOWS, ids=repr)
def test_a_window_in_params(key: str, value: Any, window: Any) -> None:
    assert params(**{key: value}).sliding_window == window


def test_a_window_may_not_be_set_under_both_names() -> None:
    assert_refused(ModelConfig.from_params, PARAMS | {"sliding_window": 8, "_sliding_window": 8}, "_sliding_window")
    assert params(sliding_window=None, _sliding_window=8).sliding_window == 8


@pytest.mark.parametrize(("value", "window"), [(None, None), (8, 8), ("8", 8)])
def test_a_window_in_config_json(value: Any, window: int | None) -> None:
    assert hf(sliding_window=value).windows == (window,) * 4


def test_an_absent_window_is_what_the_transformers_class_says() -> None:
    keys = without(HF, "sliding_window")
    assert ModelConfig.from_hf(keys).sliding_window == 4096
    assert ModelConfig.from_hf(keys | {"model_type": "ministral"}).sliding_window == 4096
    assert ModelConfig.from_hf(keys | {"model_type": "llama"}).sliding_window is None


def test_layer_types_place_the_window() -> None:
    kinds = ["full_attention", "sliding_attention"] * 2
    assert hf(model_type="ministral", sliding_window=8, layer_types=kinds).windows == (None, 8, None, 8)
    assert hf(sliding_window=8, layer_types=["full_attention"] * 4).sliding_window is None
    assert hf(sliding_window=8, layer_types=["sliding_attention"] * 4).sliding_window == 8


@pytest.mark.parametrize(
    "kinds", ["full_attention", ["full_attention"], ["chunked_attention"] * 4, [None] * 4, [[]] * 4, [{}] * 4, 4]
)
def test_layer_types_that_do_not_name_each_layer_are_refused(kinds: Any) -> None:
    assert_refused(ModelConfig.from_hf, HF | {"layer_types": kinds, "sliding_window": 8}, "layer_types")


def test_sliding_layers_without_a_window_are_refused() -> None:
    assert_refused(ModelConfig.from_hf, HF | {"layer_types": ["sliding_attention"] * 4}, "sliding_window")


@pytest.mark.parametrize("value", [0, -8, 2**31, True, 8.5, "", "x", "-8", "8.0", "\u00b2", "9" * 5000, {"a": 1}])
def test_nonsense_windows_are_refused(value: Any) -> None:
    assert_refused(ModelConfig.from_hf, HF | {"sliding_window": value}, "sliding_window")
    assert_refused(ModelConfig.from_params, PARAMS | {"sliding_window": value}, "sliding_window")


@pytest.mark.parametrize("pattern", [[], [8, 8, None], [8] * 5, [[8], [8]], [0, None], [8, "x"]])
def test_patterns_that_do_not_repeat_over_the_layers_are_refused(pattern: list[Any]) -> None:
    assert_refused(ModelConfig.from_params, PARAMS | {"sliding_window": pattern}, "window")


def test_context_is_bounded_only_where_a_layer_attends_to_everything() -> None:
    assert params(sliding_window=8).context_length is None
    assert params(sliding_window=[8, None]).context_length == REFERENCE_CONTEXT
    assert hf().context_length == 256
    assert gguf({}).context_length == 256


# ---- rotary positions --------------------------------------------------------------------------------------------


def test_a_missing_base_in_params_depends_on_the_window() -> None:
    assert params().rope_theta == 1e6
    assert params(sliding_window=8).rope_theta == params(_sliding_window=[None, 8]).rope_theta == 1e4
    assert params(sliding_window=8, rope_theta=1e8).rope_theta == 1e8


def test_a_missing_base_elsewhere_is_ten_thousand() -> None:
    assert ModelConfig.from_hf(without(HF, "rope_theta")).rope_theta == 1e4
    assert ModelConfig.from_gguf(GGUF).rope_theta == 1e4


def test_the_base_in_all_places() -> None:
    keys = without(HF, "rope_theta")
    assert hf(rope_theta=5e5).rope_theta == 5e5
    assert ModelConfig.from_hf(keys | {"rope_parameters": {"rope_theta": 5e5}}).rope_theta == 5e5
    assert ModelConfig.from_hf(keys | {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}) == hf(
        rope_theta=5e5
    )
    assert gguf({"rope.freq_base": 5e5}).rope_theta == 5e5


@pytest.mark.parametrize("kind", ["rope_type", "type"])
def test_yarn_is_the_same_before_and_after_transformers_5(kind: str) -> None:
    scaling = {kind: "yarn", "beta_fast": 4.0} | YARN
    before = hf(rope_theta=1e6, rope_scaling=scaling)
    after = ModelConfig.from_hf(without(HF, "rope_theta") | {"rope_parameters": scaling | {"rope_theta": 1e6}})
    assert before == after
    assert before.yarn == Yarn(
        factor=4.0, original_context=64, beta_fast=4.0, beta_slow=1.0, attention_factor=0.1 * math.log(4) + 1
    )


def test_yarn_is_the_same_in_all_three_spellings() -> None:
    theirs = hf(rope_parameters={"rope_type": "yarn", "beta_fast": 8.0, "beta_slow": 2.0} | YARN).yarn
    own = params(yarn=YARN | {"beta": 8, "alpha": 2, "apply_scale": True}).yarn
    ggml = gguf({
        "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64,
        "rope.scaling.yarn_beta_fast": 8.0, "rope.scaling.yarn_beta_slow": 2.0,
    }).yarn  # fmt: skip
    assert theirs == own == ggml
    assert theirs is not None


def test_yarns_boundaries_have_the_same_defaults_everywhere() -> None:
    plain = Yarn(factor=4.0, original_context=64, attention_factor=0.1 * math.log(4) + 1)
    assert hf(rope_scaling={"type": "yarn"} | YARN).yarn == plain
    assert params(yarn=YARN).yarn == plain
    scaling = {"type": "yarn", "factor": 4.0, "original_context_length": 64}
    assert gguf({f"rope.scaling.{key}": value for key, value in scaling.items()}).yarn == plain


def test_params_apply_scale_false_takes_the_magnitude_away() -> None:
    yarn = params(yarn=YARN | {"apply_scale": False}).yarn
    assert yarn is not None
    assert yarn.attention_factor == 1.0


def test_gguf_attention_factor_multiplies_yarns_own() -> None:
    yarn = gguf({
        "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64,
        "rope.scaling.attn_factor": 0.5,
    }).yarn  # fmt: skip
    assert yarn is not None
    assert yarn.attention_factor == pytest.approx(0.5 * (0.1 * math.log(4) + 1))


ROPES: dict[str, dict[str, Any]] = {
    "plain": YARN,
    "mscale alone": YARN | {"mscale": 0.7},
    "both mscales": YARN | {"mscale": 0.7, "mscale_all_dim": 1.3},
    "equal mscales": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
    "no all_dim": YARN | {"mscale": 1.0, "mscale_all_dim": 0.0},
    "attention_factor": YARN | {"attention_factor": 1.7, "mscale": 0.7, "mscale_all_dim": 1.3},
    "betas": YARN | {"beta_fast": 4.0, "beta_slow": 2.0},
    "zero betas": YARN | {"beta_fast": 0, "beta_slow": 0},
    "not truncated": YARN | {"truncate": False},
    "null factor": YARN | {"factor": None},
    "no stretching": YARN | {"factor": 1.0},
    "no original": {"factor": 4.0},
}


@pytest.mark.torch
@pytest.mark.parametrize("theta", [1e4, 1e6])
@pytest.mark.parametrize("name", ROPES)
def test_yarn_is_transformers_own(name: str, theta: float) -> None:
    from transformers import MistralConfig
    from transformers.modeling_rope_utils import _compute_yarn_parameters

    rope = {"rope_type": "yarn", "rope_theta": theta} | ROPES[name]
    keys = without(HF, "rope_theta") | {"head_dim": 64, "rope_parameters": rope}
    config = ModelConfig.from_hf(keys)
    frequencies, magnitude = _compute_yarn_parameters(MistralConfig(**json.loads(json.dumps(keys))))
    assert config.yarn is not None
    periods = yarn_periods(config.yarn, config.rope_theta, config.head_dim)
    np.testing.assert_allclose(1 / periods, frequencies.numpy(), rtol=1e-6)
    assert config.yarn.attention_factor == pytest.approx(magnitude, rel=1e-12)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "llama3", "longrope", "su", "mrope", 5, ["yarn"], None])
def test_other_stretchings_are_refused(kind: Any) -> None:
    assert_refused(ModelConfig.from_hf, HF | {"rope_parameters": {"rope_type": kind, "factor": 4.0}}, "rope_type")
    assert_refused(ModelConfig.from_hf, HF | {"rope_scaling": {"type": kind, "factor": 4.0}}, "rope_type")
    assert_refused(ModelConfig.from_gguf, GGUF | {"llama.rope.scaling.type": kind}, "rope.scaling.type")


def test_two_tables_of_rope_are_not_taken_for_one() -> None:
    """transformers prefers rope_scaling; whatever is done here, the stretching is not lost in silence."""
    keys = HF | {"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": {"type": "yarn"} | YARN}
    try:
        assert ModelConfig.from_hf(keys).yarn is not None
    except ConfigError as error:
        assert "rope_scaling" in error.message  # noqa: PT017


def test_a_gguf_factor_without_a_type_means_linear_in_llama_cpp_and_is_refused() -> None:
    assert_refused(ModelConfig.from_gguf, GGUF | {"llama.rope.scaling.factor": 4.0}, "rope.scaling")


STRANGE_ROPES: list[tuple[str, dict[str, Any]]] = [
    ("factor", {"rope_type": "default", "factor": 4.0}),
    ("short_factor", {"rope_type": "yarn", "short_factor": [1.0]} | YARN),
    ("partial_rotary_factor", {"rope_theta": 1e4, "partial_rotary_factor": 0.5}),
    ("full_attention", {"full_attention": {"rope_theta": 1e4}}),
]


@pytest.mark.parametrize(("key", "rope"), STRANGE_ROPES)
def test_keys_of_rope_that_are_not_understood_are_refused_by_name(key: str, rope: dict[str, Any]) -> None:
    assert_refused(ModelConfig.from_hf, HF | {"rope_parameters": rope}, key)


@pytest.mark.parametrize("value", ["yarn", 5, [1], True, "", 0])
def test_a_stretching_that_is_not_a_table_is_refused(value: Any) -> None:
    assert_refused(ModelConfig.from_hf, HF | {"rope_parameters": value}, "rope_parameters")
    assert_refused(ModelConfig.from_params, PARAMS | {"yarn": value}, "yarn")


NONSENSE_YARN: list[dict[str, Any]] = [
    {"factor": 0}, {"factor": -4.0}, {"factor": "4"}, {"factor": math.nan}, {"factor": math.inf}, {"factor": True},
    {"original_max_position_embeddings": 0}, {"original_max_position_embeddings": -64},
    {"original_max_position_embeddings": 6.5}, {"beta_fast": -1.0}, {"beta_slow": -1.0}, {"beta_fast": "x"},
    {"attention_factor": 0}, {"attention_factor": -1.0}, {"mscale": "x"}, {"truncate": "no"}, {"factor": 10**400},
    {"factor": math.e, "mscale": 1.0, "mscale_all_dim": -10.0},
]  # fmt: skip


@pytest.mark.parametrize("change", NONSENSE_YARN, ids=lambda c: repr(c)[:60])
def test_nonsense_in_yarn_is_refused(change: dict[str, Any]) -> None:
    rope = {"rope_type": "yarn"} | YARN | change
    assert_refused(ModelConfig.from_hf, HF | {"rope_parameters": rope}, "")
    own = {"beta_fast": "beta", "beta_slow": "alpha"}
    same = {own.get(key, key): value for key, value in change.items()}
    if same.keys() <= {"factor", "original_max_position_embeddings", "beta", "alpha"}:
        assert_refused(ModelConfig.from_params, PARAMS | {"yarn": YARN | same}, "")


@pytest.mark.parametrize("change", [{"beta": 0}, {"alpha": 0}, {"apply_scale": 1}, {"mscale": 1}])
def test_nonsense_in_params_yarn_is_refused(change: dict[str, Any]) -> None:
    assert_refused(ModelConfig.from_params, PARAMS | {"yarn": YARN | change}, "")


@pytest.mark.parametrize(
    "change",
    [{"factor": 0.0}, {"original_context_length": 0}, {"yarn_beta_fast": 0.0}, {"attn_factor": 0.0}, {"factor": None}],
    ids=repr,
)
def test_nonsense_in_gguf_yarn_is_refused(change: dict[str, Any]) -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_context_length": 64} | change
    assert_refused(ModelConfig.from_gguf, GGUF | {f"llama.rope.scaling.{k}": v for k, v in scaling.items()}, "")


@pytest.mark.parametrize("change", [{"beta_fast": 1e308}, {"beta_slow": 1e-320}, {"factor": 1e-320}], ids=repr)
def test_extremes_in_yarn_give_periods_or_are_refused(change: dict[str, Any]) -> None:
    try:
        config = hf(rope_parameters={"rope_type": "yarn"} | YARN | change)
    except ConfigError as error:
        assert error.message  # noqa: PT017
    else:
        assert config.yarn is not None
        assert (yarn_periods(config.yarn, config.rope_theta, config.head_dim) > 0).all()


def test_yarn_over_a_base_of_one_is_refused() -> None:
    """Every pair would turn alike, and the boundaries between them divide by log(1)."""
    assert_refused(ModelConfig.from_hf, HF | {"rope_theta": 1.0, "rope_scaling": {"type": "yarn"} | YARN}, "rope_theta")


# ---- the rest of the architecture --------------------------------------------------------------------------------


def test_an_absent_head_dim_is_the_stream_shared_out() -> None:
    assert hf().head_dim == hf(head_dim=None).head_dim == 16
    assert ModelConfig.from_params(without(PARAMS, "head_dim")).head_dim == 16
    assert gguf({}).head_dim == 16


def test_a_stated_head_dim_counts() -> None:
    assert hf(head_dim=20).head_dim == params(head_dim=20).head_dim == gguf({"attention.key_length": 20}).head_dim == 20


def test_linear_stretching_by_one_is_none() -> None:
    assert hf(rope_scaling={"type": "linear", "factor": 1.0}).yarn is None
    with pytest.raises(ConfigError, match="linear"):
        hf(rope_scaling={"type": "linear", "factor": 2.0})


@pytest.mark.parametrize(("stated", "window"), [(4096, 4096), (0, None), (None, None)])
def test_a_window_that_a_gguf_states_is_heeded(stated: int | None, window: int | None) -> None:
    assert gguf({"attention.sliding_window": stated}).sliding_window == window


def test_gguf_head_dimensions_must_agree() -> None:
    same = {"attention.key_length": 20, "attention.value_length": 20, "rope.dimension_count": 20}
    assert gguf(same).head_dim == 20
    for key in ("attention.value_length", "rope.dimension_count"):
        assert_refused(ModelConfig.from_gguf, GGUF | {f"llama.{key}": 10}, key)


def test_absent_key_value_heads() -> None:
    """As many as query heads; but transformers' Mistral says 8 where the key is absent, and not where it is null."""
    keys = without(HF, "num_key_value_heads") | {"num_attention_heads": 16, "head_dim": 16}
    assert ModelConfig.from_hf(keys | {"model_type": "llama"}).num_key_value_heads == 16
    assert ModelConfig.from_hf(keys).num_key_value_heads == 8
    assert ModelConfig.from_hf(keys | {"num_key_value_heads": None}).num_key_value_heads == 16
    assert ModelConfig.from_params(without(PARAMS, "n_kv_heads")).num_key_value_heads == 4
    assert ModelConfig.from_gguf(without(GGUF, "llama.attention.head_count_kv")).num_key_value_heads == 4


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_as_stated(tied: bool) -> None:
    assert hf(tie_word_embeddings=tied).tie_word_embeddings is tied
    assert params(tied_embeddings=tied).tie_word_embeddings is tied


def test_tied_embeddings_unstated_are_left_to_the_weights() -> None:
    assert {hf().tie_word_embeddings, params().tie_word_embeddings, gguf({}).tie_word_embeddings} == {None}


@pytest.mark.parametrize(("value", "ids"), [(2, (2,)), ([2], (2,)), ([2, 5], (2, 5)), ([], ()), (None, ()), (0, (0,))])
def test_stop_ids(value: Any, ids: tuple[int, ...]) -> None:
    assert hf(eos_token_id=value).eos_token_ids == ids


@pytest.mark.parametrize("value", ["2", -1, [2, "5"], [True], 2.0, {"a": 1}, [[2]], "", [None]])
def test_nonsense_stop_ids_are_refused(value: Any) -> None:
    assert_refused(ModelConfig.from_hf, HF | {"eos_token_id": value}, "eos_token_id")
    assert_refused(ModelConfig.from_gguf, GGUF | {"tokenizer.ggml.eos_token_id": value}, "eos_token_id")


def test_the_vocabulary_of_a_gguf_may_be_counted() -> None:
    keys = without(GGUF, "llama.vocab_size")
    assert ModelConfig.from_gguf(keys | {"tokenizer.ggml.tokens": ["a", "b", "c"]}).vocab_size == 3
    assert_refused(ModelConfig.from_gguf, keys, "vocab_size")


@pytest.mark.parametrize("tokens", [5, True, 1.5])
def test_a_gguf_vocabulary_that_is_not_a_list_is_refused(tokens: Any) -> None:
    keys = without(GGUF, "llama.vocab_size") | {"tokenizer.ggml.tokens": tokens}
    assert_refused(ModelConfig.from_gguf, keys, "tokens")


@pytest.mark.parametrize("name", ["window", "full", "mix", "head_dim", "yarn"])
def test_what_transformers_writes_is_read(name: str) -> None:
    keys = json.loads((GOLDEN / name / "config.json").read_text())
    config = ModelConfig.from_hf(keys)
    assert (config.hidden_size, config.head_dim) == (keys["hidden_size"], keys["head_dim"])
    assert config.rope_theta == keys["rope_parameters"]["rope_theta"]


# ---- what is refused by name, and what is let through ------------------------------------------------------------

REFUSED: list[tuple[str, str, Any]] = [
    ("params.json", "llama_4_scaling", {"beta": 0.1, "original_max_position_embeddings": 8192}),
    ("params.json", "llama_4_scaling", {"original_max_position_embeddings": 8192}),
    ("params.json", "llama_4_scaling", 0.1),
    ("params.json", "moe", {"num_experts": 8, "num_experts_per_tok": 2}),
    ("params.json", "q_lora_rank", 1536),
    ("params.json", "vision_encoder", {"hidden_size": 1024}),
    ("params.json", "quantization", {"qformat_weight": "fp8_e4m3"}),
    ("params.json", "use_biases", True),
    ("params.json", "causal", False),
    ("params.json", "model_type", "mamba"),
    ("params.json", "lora", {"rank": 8}),
    ("params.json", "something_new", 1),
    ("config.json", "attention_bias", True),
    ("config.json", "mlp_bias", True),
    ("config.json", "is_causal", False),
    ("config.json", "hidden_act", "gelu"),
    ("config.json", "partial_rotary_factor", 0.5),
    ("config.json", "num_local_experts", 8),
    ("config.json", "attn_logit_softcapping", 30.0),
    ("config.json", "logit_scale", 0.5),
    ("config.json", "something_new", "x"),
    ("config.json", "something_new", 0),
    ("GGUF", "llama.expert_count", 8),
    ("GGUF", "llama.attention.causal", False),
    ("GGUF", "llama.attention.temperature_scale", 0.1),
    ("GGUF", "llama.rope.scale_linear", 4.0),
    ("GGUF", "llama.something_new", 1),
]


@pytest.mark.parametrize(("spelling", "key", "value"), REFUSED)
def test_keys_that_change_results_are_refused_by_name(spelling: str, key: str, value: Any) -> None:
    read, keys = SPELLINGS[spelling]
    assert_refused(read, keys | {key: value}, key.removeprefix("llama."))


def test_all_unknown_keys_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"moe, q_lora_rank, vision_encoder") as caught:
        params(vision_encoder={"a": 1}, q_lora_rank=5, moe={"num_experts": 8})
    assert caught.value.hint


ALLOWED: list[tuple[str, str, Any]] = [
    ("params.json", "llama_4_scaling", {"beta": 0.0, "original_max_position_embeddings": 4096}),
    ("params.json", "llama_4_scaling", None),
    ("params.json", "moe", None),
    ("params.json", "vision_encoder", None),
    ("params.json", "quantization", {}),
    ("params.json", "yarn", None),
    ("params.json", "use_biases", False),
    ("params.json", "causal", True),
    ("params.json", "model_type", "transformer"),
    ("params.json", "max_batch_size", 1),
    ("config.json", "architectures", ["MistralForCausalLM"]),
    ("config.json", "attention_bias", False),
    ("config.json", "attention_dropout", 0.1),
    ("config.json", "hidden_act", "silu"),
    ("config.json", "initializer_range", 0.02),
    ("config.json", "pad_token_id", 0),
    ("config.json", "rope_scaling", None),
    ("config.json", "torch_dtype", "bfloat16"),
    ("config.json", "transformers_version", "4.40.0"),
    ("config.json", "use_cache", True),
    ("config.json", "_name_or_path", "somewhere"),
    ("GGUF", "llama.expert_count", 0),
    ("GGUF", "llama.rope.scale_linear", 1.0),
    ("GGUF", "llama.rope.scaling.type", "none"),
    ("GGUF", "llama.rope.scaling.finetuned", True),
    ("GGUF", "general.name", "a model"),
    ("GGUF", "tokenizer.ggml.model", "gpt2"),
]


@pytest.mark.parametrize(("spelling", "key", "value"), ALLOWED)
def test_keys_that_change_nothing_are_let_through(spelling: str, key: str, value: Any) -> None:
    read, keys = SPELLINGS[spelling]
    assert read(keys | {key: value}) == read(keys)


# ---- damaged values ----------------------------------------------------------------------------------------------

SIZES = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "head_dim", "vocab_size", "max_position_embeddings"]  # fmt: skip
NUMBERS = ["rms_norm_eps", "rope_theta"]
NONSENSE = ["64", math.nan, math.inf, -math.inf, -4, True, [64], {"a": 64}, 10**400]


@pytest.mark.parametrize("value", [*NONSENSE, 6.5, 2**31, 10**30], ids=lambda v: repr(v)[:12])
@pytest.mark.parametrize("key", SIZES)
def test_nonsense_sizes_are_refused(key: str, value: Any) -> None:
    assert_refused(ModelConfig.from_hf, HF | {key: value}, key)


@pytest.mark.parametrize("key", SIZES)
def test_a_size_of_zero_is_refused_by_name(key: str) -> None:
    assert_refused(ModelConfig.from_hf, HF | {key: 0}, key)


@pytest.mark.parametrize("value", [*NONSENSE, 0], ids=lambda v: repr(v)[:12])
@pytest.mark.parametrize("key", NUMBERS)
def test_nonsense_numbers_are_refused(key: str, value: Any) -> None:
    assert_refused(ModelConfig.from_hf, HF | {key: value}, key)


@pytest.mark.parametrize("value", ["true", 1, 0, [True]])
def test_a_boolean_is_true_or_false(value: Any) -> None:
    assert_refused(ModelConfig.from_hf, HF | {"tie_word_embeddings": value}, "tie_word_embeddings")
    assert_refused(ModelConfig.from_params, PARAMS | {"tied_embeddings": value}, "tied_embeddings")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_each_key_that_is_needed_is_named_where_it_is_missing(spelling: str) -> None:
    read, keys = SPELLINGS[spelling]
    optional = {"model_type", "num_key_value_heads", "rms_norm_eps", "rope_theta", "sliding_window", "head_dim",
                "max_position_embeddings", "n_kv_heads", "llama.attention.head_count_kv"}  # fmt: skip
    for key in keys.keys() - optional:
        assert_refused(read, without(keys, key), key.removeprefix("llama.").removeprefix("general."))


@pytest.mark.parametrize("layers", [10_001, 10**9, 10**18])
def test_a_damaged_layer_count_fails_fast(layers: int) -> None:
    start = time.perf_counter()
    assert_refused(ModelConfig.from_hf, HF | {"num_hidden_layers": layers}, "num_hidden_layers")
    assert_refused(ModelConfig.from_params, PARAMS | {"n_layers": layers}, "layers")
    assert_refused(ModelConfig.from_gguf, GGUF | {"llama.block_count": layers}, "")
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize("layers", [10_002, 10**18])
def test_a_damaged_layer_count_makes_no_list_of_windows(layers: int) -> None:
    assert_refused(ModelConfig.from_params, PARAMS | {"n_layers": layers, "sliding_window": [None, 8]}, "layers")


def test_heads_that_do_not_divide_are_refused() -> None:
    assert_refused(ModelConfig.from_hf, HF | {"num_key_value_heads": 3}, "num_key_value_heads")
    assert_refused(ModelConfig.from_params, PARAMS | {"n_kv_heads": 8}, "num_key_value_heads")
    assert_refused(ModelConfig.from_hf, HF | {"hidden_size": 66}, "head_dim")
    assert_refused(ModelConfig.from_gguf, GGUF | {"llama.attention.head_count_kv": [2, 2, 2, 2]}, "head_count_kv")


def test_an_odd_head_dim_is_refused() -> None:
    assert_refused(ModelConfig.from_hf, HF | {"head_dim": 15}, "head_dim")


def test_a_config_made_by_hand_is_checked_too() -> None:
    for change in ({"hidden_size": 0}, {"sliding_window": (8,)}, {"sliding_window": (8, 0)}, {"rope_theta": math.nan}):
        with pytest.raises(ConfigError):
            replace(TINY, **change)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_empty_configuration_is_refused(spelling: str) -> None:
    assert_refused(SPELLINGS[spelling][0], {}, "")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(10**300, 10**320) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=300)
@given(st.sampled_from(list(SPELLINGS)), st.data())
def test_any_value_of_any_key_is_read_or_refused_with_a_reason(spelling: str, data: st.DataObject) -> None:
    read, keys = SPELLINGS[spelling]
    more = {"config.json": ["layer_types", "rope_scaling", "eos_token_id"], "params.json": ["yarn", "sliding_window"],
            "GGUF": ["tokenizer.ggml.tokens", "llama.rope.scaling.type"]}[spelling]  # fmt: skip
    key = data.draw(st.sampled_from([*keys, *more]))
    try:
        read(keys | {key: data.draw(json_values)})
    except ConfigError as error:
        assert error.message  # noqa: PT017


rope_keys = st.sampled_from([*YARN, "rope_type", "type", "rope_theta", "beta_fast", "attention_factor", "mscale"])


@settings(max_examples=200)
@given(st.dictionaries(rope_keys, json_values, max_size=2))
def test_any_table_of_rope_is_read_or_refused(rope: dict[str, Any]) -> None:
    try:
        hf(rope_parameters={"rope_type": "yarn", "mscale_all_dim": 1.0} | YARN | rope)
    except ConfigError as error:
        assert error.message  # noqa: PT017
