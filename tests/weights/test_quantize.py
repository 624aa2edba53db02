"""Which matrix gets which layout."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from mistral_mlx.errors import InputError
from mistral_mlx.weights.names import expected_shapes
from mistral_mlx.weights.quantize import MIXED, NAMES, Recipe, describe
from mistral_mlx.weights.quantized import Layouts
from mistral_mlx.weights.tensor import Layout
from tests.conftest import TINY

CONFIG = replace(TINY, hidden_size=128, intermediate_size=256, num_hidden_layers=16, head_dim=32, vocab_size=256)
TIED = replace(CONFIG, tie_word_embeddings=True)
LAYER = "model.layers.5"


def layouts(name: str, *keep: str, config: Any = CONFIG, group_size: int | None = None) -> dict[str, Layout | str]:
    return Recipe.parse(name, group_size, keep).layouts(config)


def modules(found: dict[str, Layout | str]) -> dict[str, Layout]:
    return {name.removesuffix(".weight"): layout for name, layout in found.items() if isinstance(layout, Layout)}


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_quantizes_every_matrix_and_no_vector(name: str) -> None:
    found = layouts(name)
    assert found.keys() == expected_shapes(CONFIG).keys()
    for parameter, shape in expected_shapes(CONFIG).items():
        assert isinstance(found[parameter], Layout) == (len(shape) == 2), parameter
        assert len(shape) == 2 or found[parameter] == "a vector"


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_the_group_size_is_heeded(group_size: int) -> None:
    assert set(modules(layouts("4", group_size=group_size)).values()) == {Layout(group_size, 4)}


@pytest.mark.parametrize("name", MIXED)
def test_mixed_recipes_give_more_bits_where_mlx_lm_does(name: str) -> None:
    import mlx.nn as nn
    from mlx_lm.convert import mixed_quant_predicate_builder

    class Model(nn.Module):
        """As much as their function asks for: names of modules, and layers."""

        layers = range(16)

        def named_modules(self) -> Any:
            return [(name.removesuffix(".weight"), None) for name in expected_shapes(CONFIG)]

    theirs = mixed_quant_predicate_builder(name, Model(), 64)
    for module, layout in modules(layouts(name)).items():
        said = theirs(module, nn.Module())
        assert isinstance(said, dict)
        assert layout == Layout(said["group_size"], said["bits"], said["mode"]), module


@pytest.mark.parametrize(("name", "bits"), [("2", 6), ("4", 6), ("6", 6), ("8", 8), ("mixed_3_4", 4), ("mixed_2_6", 6)])
def test_embeddings_that_are_the_output_too_get_more_bits(name: str, bits: int) -> None:
    assert modules(layouts(name, config=TIED))["model.embed_tokens"].bits == bits
    assert modules(layouts(name))["model.embed_tokens"].bits == modules(layouts(name))[f"{LAYER}.self_attn.q_proj"].bits


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "mxfp8"])
def test_the_same_of_float_formats(name: str) -> None:
    assert modules(layouts(name, config=TIED))["model.embed_tokens"] == Layout(32, 8, "mxfp8")


@pytest.mark.parametrize(
    ("keep", "changed"),
    [
        ("output=8", {"lm_head"}),
        ("embeddings=8", {"model.embed_tokens"}),
        ("v_proj=8", {f"model.layers.{i}.self_attn.v_proj" for i in range(16)}),
        ("layers.5.self_attn.*=8", {f"{LAYER}.self_attn.{p}_proj" for p in "qkvo"}),
        ("model.layers.5.mlp.up_proj=8", {f"{LAYER}.mlp.up_proj"}),
        ("*.1?.mlp.down_proj=8", {f"model.layers.{i}.mlp.down_proj" for i in range(10, 16)}),
    ],
)
def test_exceptions_fit_by_the_end_of_a_name(keep: str, changed: set[str]) -> None:
    found = modules(layouts("4", keep))
    assert {name for name, layout in found.items() if layout.bits == 8} == changed
    assert {layout.bits for layout in found.values()} == {4, 8}


def test_of_a_tied_model_the_output_is_its_embeddings() -> None:
    assert modules(layouts("4", "output=8", config=TIED))["model.embed_tokens"].bits == 8


def test_the_last_exception_that_fits_counts_and_float_is_one() -> None:
    found = layouts("mxfp4", "*_proj=8", "layers.0.*=float", "q_proj=mxfp8")
    assert found["model.layers.0.mlp.up_proj.weight"] == "kept"
    assert found["model.layers.0.self_attn.q_proj.weight"] == Layout(32, 8, "mxfp8")
    assert found["model.layers.1.mlp.up_proj.weight"] == Layout(64, 8)
    assert found["lm_head.weight"] == Layout(32, 4, "mxfp4")


def test_columns_that_no_group_divides_stay_float_and_say_why() -> None:
    odd = replace(CONFIG, intermediate_size=200)
    found = layouts("4", config=odd)
    assert found[f"{LAYER}.mlp.down_proj.weight"] == "200 columns are no multiple of 64"
    assert isinstance(found[f"{LAYER}.mlp.up_proj.weight"], Layout)


def test_columns_that_another_group_would_divide_are_an_error_that_names_it() -> None:
    odd = replace(CONFIG, intermediate_size=96 + 128)
    with pytest.raises(InputError, match="224 columns, which groups of 64") as caught:
        layouts("4", config=odd)
    assert "groups of 32" in caught.value.hint
    assert set(modules(layouts("4", config=odd, group_size=32)).values()) == {Layout(32, 4)}


def test_the_table_in_the_configuration_is_read_back_as_it_was() -> None:
    for name in NAMES:
        found = modules(layouts(name, "v_proj=8", "layers.0.mlp.*=float"))
        table = Layouts(describe(found))
        assert {module: table[module] for module in found} == found
        common = Counter(found.values()).most_common(1)[0][0]
        assert (table["anything"], describe(found)["bits"]) == (common, common.bits)
