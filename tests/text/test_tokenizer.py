"""Tokenizers against sentencepiece, mistral-common and transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

import mistral_mlx as mm
from mistral_mlx.models import resolve
from mistral_mlx.text.bpe import Bpe
from mistral_mlx.text.files import find_tokenizer, gguf_tokenizer
from mistral_mlx.text.sentencepiece import SentencePiece
from mistral_mlx.text.tokenizer import decode_whole
from mistral_mlx.weights.formats.gguf import read_header
from tests.chat_formats import DATA, SPM_FILES, tekken_of

SPM = {version: SentencePiece((DATA / name).read_bytes()) for version, name in SPM_FILES.items()}
COMMON = {"v1": MistralTokenizer.v1(), "v2": MistralTokenizer.v2(), "v3": MistralTokenizer.v3()}
TEXTS = [
    "Hello", " leading", "  two", "a\nb", "\n", "naïve café", "🦙 llama", "日本語", "<s></s>[INST] [/INST]", "", "1234",
    "def f(x):\n    return x",
]  # fmt: skip


@pytest.fixture(scope="module")
def bpe() -> Bpe:
    try:
        tokenizer = gguf_tokenizer(read_header(resolve("demo")).metadata)
    except mm.InputError as error:
        pytest.skip(error.message)
    assert isinstance(tokenizer, Bpe)
    return tokenizer


@pytest.mark.parametrize("version", SPM_FILES)
def test_the_version_is_told_by_the_file_not_its_name(version: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((DATA / SPM_FILES[version]).read_bytes())
    tokenizer = find_tokenizer(tmp_path)
    assert isinstance(tokenizer, SentencePiece)
    assert tokenizer.version == version


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("version", COMMON)
def test_ids_equal_mistral_common(version: str, text: str) -> None:
    common = COMMON[version].instruct_tokenizer.tokenizer
    assert SPM[version].encode(text) == common.encode(text, bos=False, eos=False)
    assert SPM[version].bos_id == common.bos_id
    assert SPM[version].stop_ids == {common.eos_id}


@settings(max_examples=200)
@given(st.sampled_from(list(SPM)), st.text(max_size=40).filter(lambda t: "\0" not in t))
def test_decoding_gives_the_text_back(version: str, text: str) -> None:
    ids = SPM[version].encode(text)
    whole = SPM[version]._model.decode(ids)
    assert decode_whole(SPM[version], ids) == whole


# The demo's vocabulary has no token for the bytes of these.
_UNKNOWN = "\x04\x06\x13\x14\x16\x1d"


@settings(max_examples=200)
@given(st.text(st.characters(exclude_characters=_UNKNOWN, max_codepoint=0x3FFFF, exclude_categories=["Cs"])))
def test_the_demo_tokenizer_gives_the_text_back(bpe: Bpe, text: str) -> None:
    assert decode_whole(bpe, bpe.encode(text)) == text


def test_names_of_control_tokens_in_text_are_text(bpe: Bpe) -> None:
    for name in bpe.control:
        assert not set(bpe.encode(f"a{name}b")) & set(bpe.control.values())
    for version in ("v2", "v3", "v7"):
        assert not {3, 4} & set(SPM[version].encode("[INST] hi [/INST]</s>"))


def test_control_tokens_are_not_shown(bpe: Bpe) -> None:
    assert decode_whole(bpe, [1, *bpe.encode("hi"), 2]) == "hi"
    assert decode_whole(SPM["v3"], [1, 3, *SPM["v3"].encode("hi"), 4, 2]) == "hi"


@pytest.mark.slow
def test_the_demo_ids_equal_those_of_transformers(bpe: Bpe) -> None:
    from transformers import AutoTokenizer

    path = resolve("demo")
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in TEXTS[:8] + TEXTS[9:]:
        assert bpe.encode(text) == theirs.encode(text, add_special_tokens=False)


def test_ids_past_the_vocabulary_stand_for_nothing(bpe: Bpe) -> None:
    assert all(t.token_bytes(t.vocab_size + 5) == b"" for t in (bpe, *SPM.values()))


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(mm.TokenizerError, match="holds no tokenizer"):
        find_tokenizer(tmp_path)


def test_a_damaged_tokenizer_says_so(tmp_path: Path) -> None:
    for content in (b"", b"not a model", (DATA / SPM_FILES["v1"]).read_bytes()[:1000]):
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(mm.TokenizerError, match="is not a SentencePiece model"):
            find_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "holds no tokenizer"),
        ({"tokenizer.ggml.model": "bert"}, "not read here"),
        ({"tokenizer.ggml.model": ["llama"]}, "not read here"),
        ({"tokenizer.ggml.model": "llama"}, "damaged"),
        (
            {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.scores": [],
             "tokenizer.ggml.token_type": [1], "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 0},
            "damaged",
        ),
        (
            {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.scores": [0.0, 0.0],
             "tokenizer.ggml.token_type": [1, 1], "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 0},
            "damaged",
        ),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "unheard-of"}, "unheard-of"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"}, "damaged"),
        (
            {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": ["a"],
             "tokenizer.ggml.token_type": [1], "tokenizer.ggml.merges": ["x y"], "tokenizer.ggml.eos_token_id": 0},
            "damaged",
        ),
    ],
)  # fmt: skip
def test_a_gguf_tokenizer_that_cannot_be_used_says_why(metadata: dict[str, object], message: str) -> None:
    with pytest.raises(mm.TokenizerError, match=message):
        gguf_tokenizer(metadata)


def test_a_text_that_cannot_be_cut_says_so(tmp_path: Path) -> None:
    with pytest.raises(mm.InputError, match="cannot be split into tokens"):
        tekken_of("v3", tmp_path, size=1500).encode(" " * 1_000_000)
