"""The same vocabulary in every file that carries it, held against the library that each file was made for."""

from __future__ import annotations

import json
from array import array
from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mistral_mlx as mm
from mistral_mlx.text.bpe import Bpe
from mistral_mlx.text.chat import MistralChat
from mistral_mlx.text.files import find_tokenizer, gguf_tokenizer, open_text
from mistral_mlx.text.messages import Message
from mistral_mlx.text.sentencepiece import SentencePiece
from mistral_mlx.text.tekken import Tekken
from mistral_mlx.text.template import TemplateChat
from mistral_mlx.text.tokenizer import Tokenizer, decode_whole
from tests.chat_formats import DATA, SPM_FILES
from tests.text.test_decoder import stream
from tests.text.test_tokenizer import SPM, TEXTS

TEKKEN = DATA / "tekken_240718.json"
TALK = [Message("user", "Hello"), Message("assistant", "Hi there!"), Message("user", "How are you?")]
BRIEF = [Message("system", "Be brief."), *TALK]
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.text(
    st.sampled_from("ab 1\n\t'é🦙日.,!_▁"), max_size=60
)


@pytest.fixture(scope="module")
def tekken() -> Tekken:
    return Tekken(TEKKEN)


# ---- tekken -----------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(texts)
def test_tekken_ids_equal_mistral_common(tekken: Tekken, text: str) -> None:
    assert tekken.encode(text) == tekken.common.encode(text, bos=False, eos=False)
    assert b"".join(map(tekken.token_bytes, tekken.encode(text))).decode() == text


def test_tekken_says_what_it_is(tekken: Tekken, tmp_path: Path) -> None:
    assert (tekken.version, tekken.vocab_size, tekken.bos_id, tekken.stop_ids) == ("v3", 131072, 1, {2})
    assert {tekken.control[name] for name in ("[INST]", "[/INST]")} == {3, 4}
    assert tekken.encode("[INST]</s>") == tekken.common.encode("[INST]</s>", False, False)
    assert not {2, 3} & set(tekken.encode("[INST]</s>"))
    (tmp_path / "tekken.json").symlink_to(TEKKEN)
    (tmp_path / "tokenizer.json").write_text("never looked at")
    assert isinstance(find_tokenizer(tmp_path), Tekken)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"config": {"version": "v99"}}', b"\xff"])
def test_a_damaged_tekken_file_says_so(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_bytes(content)
    with pytest.raises(mm.TokenizerError, match=r"is not a tekken vocabulary|Unknown version: v99") as caught:
        find_tokenizer(tmp_path)
    assert caught.value.hint


# ---- SentencePiece in GGUF --------------------------------------------------------------------------------------


def gguf_keys(model: SentencePiece) -> dict[str, Any]:
    """The metadata that a converter writes for a SentencePiece model."""
    m = model._model
    ids = range(m.vocab_size())

    def kind(i: int) -> int:
        if m.is_unknown(i):
            return 2
        if m.is_control(i):
            return 3
        return 6 if m.is_byte(i) else 5 if m.is_unused(i) else 4 if m.id_to_piece(i).startswith("[REF") else 1

    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [m.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": array("f", [m.get_score(i) for i in ids]),
        "tokenizer.ggml.token_type": array("i", [kind(i) for i in ids]),
        "tokenizer.ggml.bos_token_id": m.bos_id(),
        "tokenizer.ggml.eos_token_id": m.eos_id(),
    }


@pytest.fixture(scope="module")
def from_gguf() -> dict[str, Tokenizer]:
    return {version: gguf_tokenizer(gguf_keys(model)) for version, model in SPM.items()}


@settings(max_examples=300)
@given(st.sampled_from(list(SPM_FILES)), texts)
def test_a_gguf_vocabulary_encodes_as_the_model_it_was_made_from(
    from_gguf: dict[str, Tokenizer], version: str, text: str
) -> None:
    assert from_gguf[version].encode(text) == list(SPM[version]._model.encode(text))


@pytest.mark.parametrize("version", SPM_FILES)
def test_a_gguf_vocabulary_is_the_model_it_was_made_from(version: str, from_gguf: dict[str, Tokenizer]) -> None:
    made, model = from_gguf[version], SPM[version]
    assert isinstance(made, SentencePiece)
    assert (made.version, made.bos_id, made.stop_ids) == (version, model.bos_id, model.stop_ids)
    assert made.control == model.control
    assert all(made.token_bytes(i) == model.token_bytes(i) for i in range(model.vocab_size))
    for text in TEXTS:
        assert made.encode(text) == list(model._model.encode(text))
    assert MistralChat(made).encode(BRIEF) == MistralChat(model).encode(BRIEF)


def test_a_gguf_of_mistrals_chats_as_mistral_does() -> None:
    keys = gguf_keys(SPM["v3"])
    own = open_text(Path("a.gguf"), keys | {"tokenizer.chat_template": "{{ '[INST]' }}"}, 32768)
    assert isinstance(own.chat_format, MistralChat)
    assert own.instruct
    base = open_text(Path("a.gguf"), keys, 32768)
    assert isinstance(base.chat_format, MistralChat)
    assert not base.instruct
    other = open_text(Path("a.gguf"), keys | {"tokenizer.chat_template": "<|im_start|>{{ messages }}"}, 32768)
    assert isinstance(other.chat_format, TemplateChat)
    llama = open_text(Path("a.gguf"), keys | {"tokenizer.chat_template": "[INST] <<SYS>> {{ messages }}"}, 32768)
    assert isinstance(llama.chat_format, TemplateChat)


def test_a_vocabulary_larger_than_the_model_is_another_models() -> None:
    found = open_text(Path("a.gguf"), gguf_keys(SPM["v1"]), 31999)
    assert isinstance(found.tokenizer, mm.TokenizerError)
    assert "32000" in found.tokenizer.message


def test_what_a_gguf_says_of_bos_and_stops_is_heeded() -> None:
    keys = gguf_keys(SPM["v1"])
    assert gguf_tokenizer(keys | {"tokenizer.ggml.add_bos_token": False}).bos_id is None
    assert gguf_tokenizer(keys | {"tokenizer.ggml.eot_token_id": 31999}).stop_ids == {2, 31999}
    del keys["tokenizer.ggml.bos_token_id"], keys["tokenizer.ggml.eos_token_id"]
    bare = gguf_tokenizer(keys)
    assert (bare.bos_id, bare.stop_ids) == (1, {2})  # by their names, which are llama.cpp's defaults too


def test_tokens_that_an_old_converter_marked_as_text_are_control_tokens() -> None:
    keys = gguf_keys(SPM["v1"])
    keys["tokenizer.ggml.tokens"] += ["<|im_end|>", "<|im_start|>", "<plain>"]
    keys["tokenizer.ggml.scores"].extend([-1e9] * 3)
    keys["tokenizer.ggml.token_type"].extend([4] * 3)
    keys["tokenizer.ggml.eos_token_id"] = 32000
    keys["tokenizer.chat_template"] = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    found = open_text(Path("a.gguf"), keys, 32003)
    assert not isinstance(found.tokenizer, mm.TokenizerError)
    assert found.tokenizer.stop_ids == {32000}
    assert not {32000, 32001} & set(found.tokenizer.encode("a<|im_end|>b<|im_start|>"))
    assert 32002 in found.tokenizer.encode("a <plain> b")
    assert isinstance(found.chat_format, TemplateChat)
    ids = found.chat_format.encode(TALK[:1])
    assert (ids[0], ids[-1]) == (32001, 32000)


# ---- tokenizer.json ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spm_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """v1 as transformers converts it."""
    import shutil

    from transformers import AutoTokenizer

    source, folder = tmp_path_factory.mktemp("spm"), tmp_path_factory.mktemp("json")
    shutil.copy(DATA / SPM_FILES["v1"], source / "tokenizer.model")
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def test_sentencepiece_in_json_encodes_as_the_tokenizers_library(spm_json: Path) -> None:
    """Which differs from the model where spaces meet: transformers 5 merges them first."""
    import tokenizers

    theirs = tokenizers.Tokenizer.from_file(str(spm_json / "tokenizer.json"))
    theirs.encode_special_tokens = True
    ours = find_tokenizer(spm_json)
    assert isinstance(ours, Bpe)
    assert ours.stop_ids == {2}

    @settings(max_examples=300)
    @given(texts)
    def check(text: str) -> None:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        assert decode_whole(ours, ids) == theirs.decode(ids)

    check()
    assert ours.encode("The sky is blue.") == SPM["v1"].encode("The sky is blue.")
    assert all(ours.token_bytes(i) == SPM["v1"].token_bytes(i) for i in range(1, 32000))


def test_streaming_random_ids_of_json_equals_decoding_them_whole(spm_json: Path) -> None:
    import tokenizers

    theirs = tokenizers.Tokenizer.from_file(str(spm_json / "tokenizer.json"))
    ours, rng = find_tokenizer(spm_json), np.random.default_rng(0)
    for _ in range(10_000):
        ids = rng.integers(3, 32000, rng.integers(0, 16))
        ids = np.where(rng.random(ids.size) < 0.3, rng.integers(3, 259, ids.size), ids).tolist()
        text = "".join(stream(ours, ids))
        assert text == decode_whole(ours, ids)
        if "\ufffd" not in text:  # of a run with one bad byte that library gives up the good ones too
            assert text == theirs.decode(ids)


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_a_space_is_written_where_the_file_says(scheme: str, spm_json: Path, tmp_path: Path) -> None:
    import tokenizers

    data = json.loads((spm_json / "tokenizer.json").read_text())
    data["normalizer"] = None
    data["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": {"content": "</s>"}}')
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ours = find_tokenizer(tmp_path)
    assert ours.encode("Hello") == theirs.encode("Hello", add_special_tokens=False).ids
    assert [1, *ours.encode("Hello", follows=True)] == theirs.encode("<s>Hello", add_special_tokens=False).ids


@pytest.mark.torch  # transformers reads no GGUF without
def test_byte_level_json_encodes_as_the_tokenizers_library(demo_json: Path) -> None:
    import tokenizers

    theirs = tokenizers.Tokenizer.from_file(str(demo_json / "tokenizer.json"))
    ours = find_tokenizer(demo_json)
    assert isinstance(ours, Bpe)
    assert ours.stop_ids == {2}

    @settings(max_examples=200)
    @given(texts)
    def check(text: str) -> None:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids

    check()
    spelled = ours.encode("<|im_start|>x<|im_end|>")
    assert not {1, 2} & set(spelled)
    assert b"".join(map(ours.token_bytes, [1, *spelled, 2])) == b"<|im_start|>x<|im_end|>"


@pytest.fixture(scope="module")
def demo_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's vocabulary as a folder of transformers', with the template that its GGUF file brings."""
    from transformers import AutoTokenizer

    from mistral_mlx.models import resolve

    try:
        path = resolve("demo")
    except mm.InputError as error:
        pytest.skip(error.message)
    folder = tmp_path_factory.mktemp("demo")
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
    return folder


@pytest.mark.torch
def test_a_folders_template_gives_the_demos_ids(demo_json: Path, demo: mm.LLM) -> None:
    found = open_text(demo_json, {}, 49152)
    assert found.instruct
    assert isinstance(found.chat_format, TemplateChat)
    assert found.chat_format.encode(BRIEF) == demo.chat_format.encode(BRIEF)


def test_tokens_that_a_fine_tune_added_are_found(spm_json: Path, tmp_path: Path) -> None:
    """`tokenizer.model` stays as it was; what was added stands in `tokenizer.json` alone."""
    data = json.loads((spm_json / "tokenizer.json").read_text())
    for i, name in enumerate(["<|im_end|>", "<|im_start|>"]):
        data["added_tokens"].append(data["added_tokens"][1] | {"id": 32000 + i, "content": name})
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    (tmp_path / "tokenizer.model").write_bytes((DATA / SPM_FILES["v1"]).read_bytes())
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    settings = {
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "chat_template": [{"name": "default", "template": template}],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    found = open_text(tmp_path, {}, 32002)
    assert isinstance(found.chat_format, TemplateChat)
    assert not isinstance(found.tokenizer, mm.TokenizerError)
    assert found.tokenizer.stop_ids == {32000}
    import tokenizers

    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    rendered = "<|im_start|>user\nHello<|im_end|>\n"
    assert found.chat_format.encode(TALK[:1]) == theirs.encode(rendered, add_special_tokens=False).ids


def test_tokens_that_a_template_needs_and_no_file_has_are_named(tmp_path: Path) -> None:
    """Fine-tunes without tokenizer.json: their control tokens would be written as text."""
    (tmp_path / "tokenizer.model").write_bytes((DATA / SPM_FILES["v1"]).read_bytes())
    keys = {
        "added_tokens_decoder": {
            "2": {"content": "</s>", "special": True},
            "32000": {"content": "<|x|>", "special": True},
        },
        "chat_template": "<|x|>{{ messages[0].content }}</s>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(keys))
    found = open_text(tmp_path, {}, 32001)
    assert isinstance(found.tokenizer, SentencePiece)
    assert isinstance(found.chat_format, mm.TokenizerError)
    assert "<|x|>." in found.chat_format.message
    assert "tokenizer.json" in found.chat_format.hint


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "damaged"),
        ("[]", "damaged"),
        ('{"model": {"type": "Unigram"}, "added_tokens": []}', "Unigram"),
        ('{"model": {"type": "BPE"}, "decoder": {"type": "ByteLevel"}, "added_tokens": []}', "damaged"),
        ('{"model": {"type": "BPE"}, "decoder": null, "added_tokens": []}', "not known here"),
    ],
)
def test_a_tokenizer_json_that_cannot_be_used_says_why(content: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(mm.TokenizerError, match=word) as caught:
        find_tokenizer(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("template", "word"),
    [([{"name": "tool_use", "template": "x"}], "tool_use"), ({"default": "x"}, "no text"), (3, "3")],
)
def test_templates_that_cannot_be_used_leave_plain_text(template: Any, word: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((DATA / SPM_FILES["v1"]).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "add_bos_token": False}))
    found = open_text(tmp_path, {}, 32000)
    assert isinstance(found.tokenizer, SentencePiece)
    assert found.tokenizer.bos_id is None
    assert isinstance(found.chat_format, mm.TokenizerError)
    assert word in found.chat_format.message


def test_names_beyond_the_models_rows_do_no_harm(spm_json: Path, tmp_path: Path) -> None:
    data = json.loads((spm_json / "tokenizer.json").read_text())
    data["added_tokens"].append(data["added_tokens"][1] | {"id": 32000, "content": "<pad>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    assert not isinstance(open_text(tmp_path, {}, 32000).tokenizer, mm.TokenizerError)
    assert isinstance(open_text(tmp_path, {}, 31999).tokenizer, mm.TokenizerError)


@pytest.mark.parametrize("content", ["", "[]", "\udc00".encode("utf-8", "surrogatepass")])
def test_damaged_settings_say_so(content: str | bytes, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer_config.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = open_text(tmp_path, {}, 32000)
    assert isinstance(found.tokenizer, mm.TokenizerError)
    assert "tokenizer_config.json" in found.tokenizer.message


# ---- tekken in GGUF ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tekken_in_gguf_encodes_as_mistral_common(tekken: Tekken, tmp_path: Path) -> None:
    """Merges as transformers derives them from the ranks."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    names = [name for name, _ in sorted(tekken.control.items(), key=lambda item: item[1])]
    ranks = (b64encode(tekken.token_bytes(i)) + b" %d\n" % (i - 1000) for i in range(1000, tekken.vocab_size))
    (tmp_path / "ranks").write_bytes(b"".join(ranks))
    vocabulary, merges = TikTokenConverter().extract_vocab_merges_from_model(str(tmp_path / "ranks"))
    pieces = [name for name, _ in sorted(vocabulary.items(), key=lambda item: item[1])]
    made = gguf_tokenizer({
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "tekken", "tokenizer.ggml.tokens": names + pieces,
        "tokenizer.ggml.token_type": [3] * 1000 + [1] * len(pieces),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.add_bos_token": True,
    })  # fmt: skip
    assert made.bos_id == 1

    @settings(max_examples=1000)
    @given(texts)
    def check(text: str) -> None:
        assert made.encode(text) == tekken.encode(text)

    check()
    for text in TEXTS:
        assert made.encode(text) == tekken.encode(text)
