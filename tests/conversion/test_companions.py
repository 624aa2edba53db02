"""What lies beside the weights: tokenizers that other programs read, configurations, licences."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest

import mistral_mlx as mm
from mistral_mlx import models
from mistral_mlx.conversion import convert
from mistral_mlx.text.files import find_tokenizer, gguf_tokenizer
from mistral_mlx.weights.formats.gguf import read_header
from tests.conftest import GOLDEN
from tests.text.test_kinds import SPM, gguf_keys
from tests.weights.conftest import Write, golden_weights
from tests.weights.pth_writer import pth_folder
from tests.weights.test_every_format import consolidated

# Names of special tokens aside, which transformers reads as tokens wherever they stand, and this project never does.
TEXTS = [
    "", "a", " ", "  two spaces", "Hello world", "x  y\n\n\tz = 1\n", "Der Bäcker — 😀 naïve", "don't 12345 日本語",
    "<0x41> ▁▁", "é́ \u200b \U0001f468\u200d\U0001f469",
]  # fmt: skip
MODELS = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "v7": "mistral_instruct_tokenizer_241114.model.v7",
}


def mistral_file(name: str) -> Path:
    import mistral_common

    return Path(mistral_common.__file__).parent / "data" / name


def random_texts(count: int) -> list[str]:
    random = Random(0)
    letters = "abcdefgh ijklm nopq rstuv wxyz  .,;:\n\t(){}[]<>0123456789éüß漢字😀"
    return ["".join(random.choices(letters, k=random.randrange(60))) for _ in range(count)]


@pytest.mark.parametrize("version", ["v3", *(pytest.param(v, marks=pytest.mark.slow) for v in ("v1", "v2", "v7"))])
def test_a_sentencepiece_model_gets_a_tokenizer_json_with_the_same_ids(version: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    source = consolidated("window", tmp_path / "source")
    shutil.copy(mistral_file(MODELS[version]), source)
    convert(source, tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = find_tokenizer(tmp_path / "out")
    assert theirs.bos_token_id == ours.bos_id == 1
    assert theirs.eos_token_id == 2
    for text in TEXTS + random_texts(2000):
        assert theirs.encode(text) == [1, *ours.encode(text)] or text == "", repr(text)
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text), repr(text)
    assert theirs.decode(ours.encode("Hello, wörld 😀")) == "Hello, wörld 😀"
    if version != "v1":
        assert theirs.encode("[INST]", add_special_tokens=False) == [3]


@pytest.mark.slow
def test_a_tekken_vocabulary_gets_a_tokenizer_json_with_the_same_ids(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    source = consolidated("window", tmp_path / "source")
    shutil.copy(mistral_file("tekken_240718.json"), source / "tekken.json")
    receipt = convert(source, tmp_path / "out")
    assert not receipt.notes
    ours = find_tokenizer(tmp_path / "out")
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "out/tokenizer.json"))
    for text in TEXTS + random_texts(2000):
        assert theirs.encode(text) == [1, *ours.encode(text)], repr(text)


def test_a_tokenizer_with_settings_of_its_own_travels_untouched(tmp_path: Path) -> None:
    """Fine-tunes add tokens, which a tokenizer.json made from the model alone would lack."""
    source = Path(shutil.copytree(GOLDEN / "window", tmp_path / "source"))
    shutil.copy(mistral_file(MODELS["v1"]), source / "tokenizer.model")
    settings = {"chat_template": "{{ messages }}", "added_tokens_decoder": {"32000": {"content": "<|im_start|>"}}}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    convert(source, tmp_path / "out")
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text()) == settings
    assert not (tmp_path / "out/tokenizer.json").exists()


def test_the_configuration_is_the_one_that_the_weights_were_read_by(tmp_path: Path) -> None:
    source = pth_folder("window", tmp_path / "source")
    (source / "config.json").write_text('{"torch_dtype": "float64", "bos_token_id": 77}')
    (source / "consolidated.00.pth").rename(source / "mine.pth")
    receipt = convert(source / "mine.pth", tmp_path / "out")
    assert {f.name for f in receipt.files} == {"mine.pth", "params.json"}
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert (written["bos_token_id"], written["torch_dtype"]) == (1, "bfloat16")


def test_the_tokenizer_that_is_there_travels_untouched(tmp_path: Path) -> None:
    source = Path(shutil.copytree(GOLDEN / "window", tmp_path / "source"))
    files = {
        "tokenizer.json": "{}", "tokenizer_config.json": "[]", "generation_config.json": '{"eos_token_id": [2, 9]}',
        "chat_template.jinja": "{{ x }}", "LICENSE": "free", "NOTICE.md": "so", "tekken.json": "{}",
        "special_tokens_map.json": "{}", "SYSTEM_PROMPT.txt": "Be.",
    }  # fmt: skip
    for name, text in files.items():
        (source / name).write_text(text)
    (source / "notes.txt").write_text("mine")
    (source / "model.py").write_text("raise SystemExit")
    convert(source, tmp_path / "out")
    for name, text in files.items():
        assert (tmp_path / "out" / name).read_text() == text, name
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {*files, "config.json", "model.safetensors", "conversion.json"}
    assert json.loads((tmp_path / "out/config.json").read_text())["eos_token_id"] == [2, 9]


def test_what_the_configuration_says_besides_stays(tmp_path: Path) -> None:
    source = Path(shutil.copytree(GOLDEN / "window", tmp_path / "source"))
    keys = json.loads((source / "config.json").read_text()) | {"pad_token_id": 7, "_name_or_path": "a/b"}
    keys["rope_parameters"] = {"rope_theta": keys.pop("rope_theta", 1e4), "rope_type": "default"}
    (source / "config.json").write_text(json.dumps(keys))
    convert(source, tmp_path / "out", 4, group_size=32)
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert (written["pad_token_id"], written["_name_or_path"]) == (7, "a/b")
    # mlx-lm misses a base that only rope_parameters state.
    assert written["rope_theta"] == 1e4
    assert written["quantization"] == written["quantization_config"] == {"group_size": 32, "bits": 4, "mode": "affine"}
    assert written["sliding_window"] == 8


def same_as_before(out: Path, metadata: Mapping[str, Any]) -> None:
    """The tokenizer in a folder gives the ids of the one in a GGUF file's metadata, here and in transformers."""
    from transformers import AutoTokenizer

    before, after, theirs = gguf_tokenizer(metadata), find_tokenizer(out), AutoTokenizer.from_pretrained(out)
    assert (after.control, after.bos_id, after.stop_ids) == (before.control, before.bos_id, before.stop_ids)
    bos = [] if before.bos_id is None else [before.bos_id]
    for text in TEXTS + random_texts(1000):
        assert after.encode(text) == before.encode(text), repr(text)
        if text and text not in before.control:
            assert theirs.encode(text) == bos + before.encode(text), repr(text)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v1", "v7"])
def test_a_gguf_files_sentencepiece_model_is_written_out(version: str, write: Write, tmp_path: Path) -> None:
    keys = gguf_keys(SPM[version])

    def more(writer: Any) -> None:
        for key, value in keys.items():
            add(writer, key, value)
        writer.add_chat_template("{{ messages[0]['content'] }}")

    source = write(mm.load(GOLDEN / "full").config, golden_weights("full"), more=more)
    convert(source, tmp_path / "out")
    same_as_before(tmp_path / "out", keys)
    assert (tmp_path / "out/chat_template.jinja").read_text() == "{{ messages[0]['content'] }}"


def test_every_stop_token_of_a_gguf_file_stays_one(write: Write, tmp_path: Path) -> None:
    keys = gguf_keys(SPM["v1"]) | {"tokenizer.ggml.eot_token_id": 95}

    def more(writer: Any) -> None:
        for key, value in keys.items():
            add(writer, key, value)

    convert(write(mm.load(GOLDEN / "full").config, golden_weights("full"), more=more), tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["eos_token_id"] == [2, 95]
    assert mm.load(tmp_path / "out").stop_ids == {2, 95}


def test_a_gguf_files_bpe_vocabulary_is_written_out(demo: mm.LLM, tmp_path: Path) -> None:
    source = models.find("demo")
    convert(source, tmp_path / "out")
    same_as_before(tmp_path / "out", read_header(source).metadata)


def add(writer: Any, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, list(value))


def test_a_model_without_a_tokenizer_says_so(write: Write, tmp_path: Path) -> None:
    receipt = convert(write(mm.load(GOLDEN / "full").config, golden_weights("full")), tmp_path / "a")
    assert any("No tokenizer was written" in note for note in receipt.notes)
    receipt = convert(GOLDEN / "window", tmp_path / "b")
    assert any("no tokenizer beside the weights" in note for note in receipt.notes)


@pytest.mark.slow
def test_the_demo_still_answers_at_four_bits(demo: mm.LLM, tmp_path: Path) -> None:
    receipt = convert("demo", tmp_path / "out", 4)
    assert receipt.bits_per_weight < 5.5
    llm = mm.load(tmp_path / "out")
    assert llm.chat().send("What is the capital of France?", max_tokens=20).text == "The capital of France is Paris."
    assert llm.stop_ids == demo.stop_ids
    assert llm.instruct
