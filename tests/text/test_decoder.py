"""Streaming text: the pieces are the whole, characters come whole, spaces stay."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_mlx.text.decoder import StreamDecoder
from mistral_mlx.text.tokenizer import GgufBpe, SentencePiece, Tokenizer, decode_whole
from tests.text.test_tokenizer import SPM, bpe  # noqa: F401


def stream(tokenizer: Tokenizer, ids: list[int], *, continues: bool = False) -> list[str]:
    decoder = StreamDecoder(tokenizer, continues=continues)
    return [*(decoder.feed(i) for i in ids), decoder.flush()]


@settings(max_examples=400)
@given(st.sampled_from(list(SPM)), st.data())
def test_streaming_any_ids_equals_decoding_them_whole(version: str, data: st.DataObject) -> None:
    tokenizer = SPM[version]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    assert "".join(stream(tokenizer, ids)) == decode_whole(tokenizer, ids)


@settings(max_examples=200)
@given(st.data())
def test_the_same_for_the_demo(bpe: GgufBpe, data: st.DataObject) -> None:  # noqa: F811
    ids = data.draw(st.lists(st.integers(0, bpe.vocab_size - 1), max_size=30))
    assert "".join(stream(bpe, ids)) == decode_whole(bpe, ids)


@settings(max_examples=200)
@given(st.sampled_from(["v1", "v3"]), st.text(max_size=30))
def test_text_never_shows_half_a_character(version: str, text: str) -> None:
    tokenizer = SPM[version]
    pieces = stream(tokenizer, tokenizer.encode(text))
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces).replace(text, "")
    assert pieces[-1] == ""


def test_a_llama_comes_at_once_when_its_last_byte_does() -> None:
    tokenizer: SentencePiece = SPM["v1"]
    ids = tokenizer.encode("a 🦙!")
    pieces = stream(tokenizer, ids)
    assert len(ids) > 5  # the emoji is several byte tokens
    assert "🦙" in pieces
    assert all(p in ("", "🦙", "a", " ", "!") for p in pieces)


def test_an_answer_drops_its_first_space_and_a_continuation_keeps_it() -> None:
    tokenizer = SPM["v1"]
    ids = tokenizer.encode("Paris")
    assert "".join(stream(tokenizer, ids)) == "Paris"
    assert "".join(stream(tokenizer, ids, continues=True)) == " Paris"
    assert "".join(stream(tokenizer, tokenizer.encode("  two"))) == "  two"


def test_an_unfinished_character_is_shown_at_the_end_only() -> None:
    tokenizer = SPM["v1"]
    first_bytes = tokenizer.encode("🦙")[:-1]
    pieces = stream(tokenizer, first_bytes)
    assert set(pieces[:-1]) <= {"", " "}
    assert pieces[-1] == "\N{REPLACEMENT CHARACTER}"
