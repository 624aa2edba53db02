"""Whatever form a model comes in, what is made of it computes the same; here, in mlx-lm and in transformers."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

import mistral_mlx as mm
from mistral_mlx import cli
from mistral_mlx.conversion import Receipt, convert
from mistral_mlx.errors import InputError, MistralError, WeightsError
from mistral_mlx.weights import convert as weights
from mistral_mlx.weights.checkpoint import open_checkpoint
from mistral_mlx.weights.names import expected_shapes
from mistral_mlx.weights.tensor import Quantized
from tests.conftest import GOLDEN, TINY
from tests.weights.conftest import Write, golden_weights
from tests.weights.pth_writer import pth_folder
from tests.weights.test_every_format import CASES, IDS, consolidated, params, sharded
from tests.weights.test_fp8 import fp8_folder
from tests.weights.test_gguf import random_weights

WITHIN = list(range(3, 11))  # ids within the window of 8, which mlx-lm drops
RECIPES = ["2", "3", "4", "5", "6", "8", "mxfp4", "mxfp8", "nvfp4", "mixed_2_6", "mixed_3_6"]


WIDE = replace(TINY, hidden_size=64, intermediate_size=128, head_dim=16, sliding_window=None)


def groups(recipe: str) -> dict[str, Any]:
    """The golden models have 32 columns."""
    return {"group_size": 32} if recipe.isdecimal() or recipe.startswith("mixed") else {}


def stored(folder: Path) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found |= mx.load(str(file))  # type: ignore[arg-type]
    return found


@pytest.fixture
def forms(tmp_path: Path, write: Write) -> Callable[[str], Iterator[tuple[str, Path]]]:
    """A golden model in every lossless form."""

    def forms(name: str) -> Iterator[tuple[str, Path]]:
        yield "one file", GOLDEN / name
        yield "shards", sharded(name, tmp_path / "shards")
        yield "consolidated", consolidated(name, tmp_path / "consolidated")
        yield "consolidated shards", consolidated(name, tmp_path / "consolidated-shards", shards=3)
        yield "pth", pth_folder(name, tmp_path / "pth")
        yield "pth parts", pth_folder(name, tmp_path / "pth-parts", parts=3)
        config = mm.load(GOLDEN / name).config
        if config.sliding_window is None:  # GGUF's converters cannot say more
            for kind in ("F32", "F16", "BF16"):
                yield kind, write(config, golden_weights(name), kind)

    return forms


@pytest.mark.parametrize("name", CASES)
def test_every_form_of_a_model_converts_to_the_same_logits(
    name: str, forms: Callable[[str], Iterator[tuple[str, Path]]], tmp_path: Path
) -> None:
    golden = load_file(GOLDEN / name / "logits.safetensors")
    ids = golden["ids"].reshape(-1).tolist()
    for form, path in forms(name):
        out = tmp_path / f"out {form}"
        receipt = convert(path, out)
        source, llm = mm.load(path, dtype="float32"), mm.load(out, dtype="float32")
        assert mx.array_equal(llm.logits(IDS), source.logits(IDS)), form
        assert llm.config.windows == source.config.windows, form
        assert llm.config.rope_theta == source.config.rope_theta, form
        # Half precision lacks the smallest of the golden numbers.
        close = {"atol": 1e-3 if form == "F16" else 1e-4, "rtol": 0, "err_msg": form}
        np.testing.assert_allclose(np.array(llm.logits(ids)), golden["logits"].reshape(len(ids), -1), **close)
        assert {r.error for r in receipt.tensors} == {0.0}, form
        assert {r.cosine for r in receipt.tensors} == {1.0}, form


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_gguf_blocks_that_mlx_has_too_are_taken_over_bit_for_bit(kind: str, write: Write, tmp_path: Path) -> None:
    source = write(mm.load(GOLDEN / "full").config, golden_weights("full"), kind)
    receipt = convert(source, tmp_path / "out")
    assert {r.error for r in receipt.tensors} == {0.0}
    assert receipt.bits_per_weight < 10
    for dtype in ("float32", "keep"):
        here, there = (mm.load(path, dtype=dtype) for path in (source, tmp_path / "out"))
        np.testing.assert_allclose(np.array(here.logits(IDS)), np.array(there.logits(IDS)), atol=1e-5)
    assert mx.array_equal(
        mm.load(source, dtype="float32").logits(IDS), mm.load(tmp_path / "out", dtype="float32").logits(IDS)
    )


@pytest.mark.parametrize("style", ["hugging face", "mistral", "rows", "blocks"])
def test_fp8_converts_to_the_logits_of_its_values(style: str, tmp_path: Path) -> None:
    source, values = fp8_folder(style, tmp_path / "source")
    convert(source, tmp_path / "out", dtype="float32")
    found = stored(tmp_path / "out")
    assert found.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(np.array(found[name].astype(mx.float32)), value, err_msg=name)
    receipt = convert(source, tmp_path / "short")
    assert receipt.dtype == "bfloat16"
    assert 0 < max(r.error for r in receipt.tensors) < 2**-8
    assert mx.array_equal(
        mm.load(source, dtype="float32").logits(IDS), mm.load(tmp_path / "out", dtype="float32").logits(IDS)
    )


@pytest.mark.torch
@pytest.mark.parametrize("name", ["full", "window", "yarn", "head_dim"])
def test_transformers_opens_what_is_written(name: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    source = GOLDEN / name if name == "head_dim" else consolidated(name, tmp_path / "source")
    convert(source, tmp_path / "out")
    golden = load_file(GOLDEN / name / "logits.safetensors")
    ids = torch.tensor(golden["ids"].reshape(1, -1).astype(np.int64))
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        logits = model(ids).logits[0].numpy()
    np.testing.assert_allclose(logits, golden["logits"].reshape(logits.shape), atol=1e-5)


@pytest.mark.parametrize("recipe", [None, *RECIPES])
@pytest.mark.parametrize("name", ["window", "mix", "yarn"])
def test_mlx_lm_opens_what_is_written_and_computes_the_same(name: str, recipe: str | None, tmp_path: Path) -> None:
    from mlx_lm.utils import load_model

    out = tmp_path / "out"
    convert(GOLDEN / name, out, recipe, **groups(recipe or "mxfp4"))
    theirs, _ = load_model(out)
    theirs.set_dtype(mx.float32)
    ours = mm.load(out, dtype="float32")
    np.testing.assert_allclose(np.array(ours.logits(WITHIN)), np.array(theirs(mx.array([WITHIN]))[0]), atol=1e-4)
    assert ours.config.windows == mm.load(GOLDEN / name).config.windows


@pytest.mark.parametrize("recipe", RECIPES)
def test_mlx_lm_writes_the_same_bits(recipe: str, tmp_path: Path) -> None:
    from mlx_lm.convert import convert as their_convert

    source = Path(shutil.copytree(GOLDEN / "full", tmp_path / "source"))
    words = {"a": 0, "b": 1}
    tokenizer = {
        "version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None,
        "decoder": None, "truncation": None, "padding": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "a"},
    }  # fmt: skip
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    options: dict[str, Any] = {"q_group_size": 32}
    if recipe.isdecimal():
        options["q_bits"] = int(recipe)
    elif recipe.startswith("mixed"):
        options["quant_predicate"] = recipe
    else:
        options = {"q_mode": recipe}
    their_convert(str(source), str(tmp_path / "theirs"), quantize=True, **options)
    convert(source, tmp_path / "ours", recipe, **groups(recipe))
    ours, theirs = stored(tmp_path / "ours"), stored(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert mx.array_equal(ours[name], theirs[name]), name


def test_shards_are_filled_and_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(weights, "SHARD_BYTES", 40_000)
    convert(GOLDEN / "full", tmp_path / "out")
    files = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(files) > 3
    assert [f.name for f in files] == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    assert all(file.stat().st_size < 40_000 + 4096 for file in files)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {f.name for f in files}
    assert mx.array_equal(mm.load(tmp_path / "out").logits(IDS), mm.load(GOLDEN / "full").logits(IDS))


def test_the_plan_says_what_will_be_written() -> None:
    from mistral_mlx.weights.quantize import Recipe

    for recipe in (None, *(Recipe.parse(r, **groups(r)) for r in RECIPES)):
        plan = weights.plan_conversion(open_checkpoint(GOLDEN / "window"), recipe)
        assert plan.nbytes == sum(sum(v.nbytes for v in weights._convert(change)[0]) for change in plan.changes)


def test_memory_is_bounded_by_the_largest_tensor_and_a_shard(
    demo: mm.LLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(weights, "SHARD_BYTES", 2**23)
    largest = max(math.prod(shape) for shape in expected_shapes(demo.config).values()) * 4
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    tracemalloc.start()
    convert("demo", tmp_path / "out", 8, dtype="float32")
    taken = mx.get_peak_memory() - before + tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < largest + 2**23 + 2**26


def test_groups_that_are_asked_for_are_made_and_others_stay(write: Write, tmp_path: Path) -> None:
    source = write(WIDE, random_weights(WIDE), "Q4_0")
    kept = convert(source, tmp_path / "kept", 4)
    assert {r.written for r in kept.tensors if len(r.shape) == 2} == {"4 bits / 32"}
    assert any("stays as it was" in note for note in kept.notes)
    made = convert(source, tmp_path / "made", 4, group_size=64)
    assert {r.written for r in made.tensors if len(r.shape) == 2} == {"4 bits / 64"}


# ---- the receipt -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Receipt]:
    out = tmp_path_factory.mktemp("converted") / "out"
    return out, convert(GOLDEN / "window", out, 4, group_size=32)


def test_the_receipt_tells_the_loss_of_each_tensor(converted: tuple[Path, Receipt]) -> None:
    out, receipt = converted
    before = golden_weights("window")
    for record in receipt.tensors:
        read = open_checkpoint(out).tensors[record.name].read()
        after = np.array(read.expand() if isinstance(read, Quantized) else read.astype(mx.float32), np.float64)
        w = before[record.name].astype(np.float64)
        assert record.error == pytest.approx(np.linalg.norm(w - after) / np.linalg.norm(w), rel=1e-4, abs=1e-7)
        cosine = (w * after).sum() / np.linalg.norm(w) / np.linalg.norm(after)
        assert record.cosine == pytest.approx(cosine, abs=1e-6)
        assert (record.error > 0.01) == (record.written == "4 bits / 32")


def test_the_receipt_names_its_source(converted: tuple[Path, Receipt]) -> None:
    out, receipt = converted
    assert json.loads((out / "conversion.json").read_text()) == json.loads(json.dumps(receipt.to_json()))
    hashes = {f.name: f.sha256 for f in receipt.files}
    for name in ("model.safetensors", "config.json"):
        assert hashes[name] == hashlib.sha256((GOLDEN / "window" / name).read_bytes()).hexdigest()
    assert str(GOLDEN) not in (out / "conversion.json").read_text()
    assert receipt.bytes_after == sum(v.nbytes for v in stored(out).values())
    assert receipt.bits_per_weight == pytest.approx(8 * receipt.bytes_after / receipt.parameters)


def test_the_same_conversion_writes_the_same_bytes(converted: tuple[Path, Receipt], tmp_path: Path) -> None:
    convert(GOLDEN / "window", tmp_path / "again", 4, group_size=32)
    for file in converted[0].iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


# ---- options and bad input ---------------------------------------------------------------------------------------


def test_a_quantized_folder_is_not_quantized_again_unasked(converted: tuple[Path, Receipt], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"quantized already \(4 bits / 32\)") as caught:
        convert(converted[0], tmp_path / "out", 3, group_size=32)
    assert "--requantize" in caught.value.hint
    assert not any(tmp_path.iterdir())
    receipt = convert(converted[0], tmp_path / "out", 3, group_size=32, requantize=True)
    assert any("counted from it" in note for note in receipt.notes)


def test_without_a_recipe_packed_weights_stay_as_they_are(converted: tuple[Path, Receipt], tmp_path: Path) -> None:
    receipt = convert(converted[0], tmp_path / "out")
    assert {r.error for r in receipt.tensors} == {0.0}
    before, after = stored(converted[0]), stored(tmp_path / "out")
    assert all(mx.array_equal(before[name], after[name]) for name in before)
    convert(converted[0], tmp_path / "wide", dtype="float32")
    assert stored(tmp_path / "wide")["lm_head.scales"].dtype == mx.float32


@pytest.mark.parametrize(("dtype", "expected"), [("float32", mx.float32), ("float16", mx.float16)])
def test_a_dtype_is_honoured(dtype: str, expected: mx.Dtype, tmp_path: Path) -> None:
    convert(GOLDEN / "window", tmp_path / "out", 4, group_size=32, dtype=dtype)
    found = {value.dtype for name, value in stored(tmp_path / "out").items() if not name.endswith("weight")}
    assert found == {expected}
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == dtype


def test_another_window_is_written_down(tmp_path: Path) -> None:
    convert(GOLDEN / "full", tmp_path / "out", window=16)
    assert mm.load(tmp_path / "out").config.sliding_window == 16


def test_the_other_layout_in_a_folder_is_passed_over_and_named(tmp_path: Path) -> None:
    folder = consolidated("window", tmp_path / "source")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / "window" / name, folder)
    assert any("consolidated.safetensors" in note for note in convert(folder, tmp_path / "out").notes)
    pth = pth_folder("window", tmp_path / "pth")
    shutil.copy(folder / "consolidated.safetensors", pth)
    note, *_ = convert(pth, tmp_path / "out2").notes
    assert note == "Read from consolidated.safetensors; the folder also holds consolidated.00.pth."
    note, *_ = convert(pth / "consolidated.00.pth", tmp_path / "out3").notes
    assert note == "Read from consolidated.00.pth; the folder also holds consolidated.safetensors."


def test_numbers_out_of_float32s_squares_are_no_damage(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "window", tmp_path / "source"))
    tensors = stored(folder)
    tensors["model.norm.weight"][:] = 3e30
    tensors["lm_head.weight"][:] = 1e-30
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    records = {r.name: r for r in convert(folder, tmp_path / "out", 4, group_size=32).tensors}
    assert records["model.norm.weight"].error is None
    assert records["lm_head.weight"].error in (None, 0.0)
    assert json.loads((tmp_path / "out/conversion.json").read_text())["tensors"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_reported_by_tensor(value: float, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "window", tmp_path / "source"))
    tensors = stored(folder)
    names = ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"]
    for name in names:
        tensors[name][..., 3] = value
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    for recipe in (None, 4, "mxfp4"):
        with pytest.raises(WeightsError, match="2 tensors") as caught:
            convert(folder, tmp_path / "out", recipe, **({"group_size": 32} if recipe == 4 else {}))
        assert all(name in caught.value.message for name in names)
        assert not (tmp_path / "out").exists()


def test_what_overflows_in_float16_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "window", tmp_path / "source"))
    tensors = stored(folder)
    tensors["model.norm.weight"][0] = 1e5
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    with pytest.raises(WeightsError, match=r"model\.norm\.weight") as caught:
        convert(folder, tmp_path / "out", dtype="float16")
    assert "bfloat16" in caught.value.hint
    convert(folder, tmp_path / "out", dtype="bfloat16")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"quantize": 7}, "recipe '7'"),
        ({"quantize": "q4"}, "recipe 'q4'"),
        ({"quantize": 4, "group_size": 48}, "group size is 48"),
        ({"quantize": 4}, "32 columns, which groups of 64"),
        ({"quantize": "mxfp4", "group_size": 64}, "groups of 32, not 64"),
        ({"quantize": 4, "group_size": 32, "keep": ["nonsense=8"]}, "No module is called 'nonsense'"),
        ({"quantize": 4, "group_size": 32, "keep": ["output"]}, "'output' does not say"),
        ({"quantize": 4, "group_size": 32, "keep": ["output=9"]}, "cannot be kept as '9'"),
        ({"quantize": 4, "group_size": 32, "keep": ["output=mixed_3_6"]}, "cannot be kept as 'mixed_3_6'"),
        ({"quantize": 4, "group_size": 32, "keep": ["*=float"]}, "Nothing would be quantized"),
        ({"keep": ["output=8"]}, "mean nothing without quantizing"),
        ({"group_size": 32}, "mean nothing without quantizing"),
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"dtype": "keep"}, "dtype 'keep'"),
        ({"window": 0}, "window is 0"),
    ],
    ids=str,
)  # fmt: skip
def test_an_option_that_means_nothing_is_refused(options: dict[str, Any], word: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        convert(GOLDEN / "window", tmp_path / "out", **options)
    assert word in caught.value.message
    assert caught.value.hint
    assert not any(tmp_path.iterdir())


def test_a_source_that_is_not_there_leaves_nothing(tmp_path: Path) -> None:
    for source in (tmp_path / "nothing", tmp_path / "nothing.gguf", "no such thing", tmp_path / "nothing.tar"):
        with pytest.raises(MistralError):
            convert(source, tmp_path / "out")
        assert not any(tmp_path.iterdir())


def test_windows_that_no_config_can_state_are_refused(tmp_path: Path) -> None:
    folder = consolidated("window", tmp_path / "source")
    (folder / "params.json").write_text(json.dumps(params("window") | {"sliding_window": [4, 8]}))
    with pytest.raises(MistralError, match="windows of 4 and 8"):
        convert(folder, tmp_path / "out")


# ---- the command -------------------------------------------------------------------------------------------------


def test_the_command_prints_what_was_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert cli.main(["convert", str(GOLDEN / "window"), "-o", str(out), "-q", "4", "--group-size", "32"]) == 0
    printed = capsys.readouterr()
    assert "4 bits / 32" in printed.out
    assert "bits a weight" in printed.out
    assert str(out) in printed.out.replace("\n", "")
    assert max(map(len, printed.out.splitlines()[:12])) <= 80
    assert printed.err == ""
    assert cli.main(["convert", str(GOLDEN / "window"), "-o", str(out)]) == 2
    assert "--force" in capsys.readouterr().err
    assert cli.main(["convert", str(GOLDEN / "window"), "-o", str(out), "--force", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((out / "conversion.json").read_text())
    assert record["recipe"] is None
