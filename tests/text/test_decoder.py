"""Streaming text: the pieces are the whole, characters come whole, spaces stay."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from mistral_mlx.text.bpe import Bpe
from mistral_mlx.text.decoder import StopStrings, StreamDecoder
from mistral_mlx.text.sentencepiece import SentencePiece
from mistral_mlx.text.tekken import Tekken
from mistral_mlx.text.tokenizer import Tokenizer, decode_whole
from tests.text.test_tokenizer import DATA, SPM, bpe  # noqa: F401


def stream(tokenizer: Tokenizer, ids: list[int], *, continues: bool = False) -> list[str]:
    decoder = StreamDecoder(tokenizer, continues=continues)
    return [*(decoder.feed(i) for i in ids), decoder.flush()]


def peers() -> dict[str, tuple[Tokenizer, Callable[[list[int]], str]]]:
    """Each tokenizer, and how a library that is not ours decodes a whole."""
    found: dict[str, tuple[Tokenizer, Callable[[list[int]], str]]] = {
        version: (model, model._model.decode) for version, model in SPM.items()
    }
    tekken = Tekken(DATA / "tekken_240718.json")
    return found | {"tekken": (tekken, tekken.common.decode)}


def one_for_many(text: str) -> str:
    """Libraries differ in how many U+FFFD they write for a run of bytes that are no character."""
    return re.sub("\ufffd+", "\ufffd", text)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SPM, "tekken", "demo"])
def test_streaming_random_ids_equals_decoding_them_whole(name: str, bpe: Bpe) -> None:  # noqa: F811
    """10,000 sequences, half of them rich in single bytes."""
    bpe._bpe.decoder = decoders.ByteLevel()
    tokenizer, whole = {**peers(), "demo": (bpe, bpe._bpe.decode)}[name]
    rng = np.random.default_rng(0)
    spoken = np.array(sorted(set(range(tokenizer.vocab_size)) - set(tokenizer.control.values())))
    single = np.array([i for i in spoken.tolist() if len(tokenizer.token_bytes(i)) == 1])
    for _ in range(10_000):
        ids = rng.choice(spoken, rng.integers(0, 16))
        if rng.random() < 0.5:
            ids = np.where(rng.random(ids.size) < 0.7, rng.choice(single, ids.size), ids)
        text = "".join(stream(tokenizer, ids.tolist()))
        assert text == decode_whole(tokenizer, ids.tolist())
        assert one_for_many(text) == one_for_many(whole(ids.tolist()))


@pytest.mark.parametrize("name", [*SPM, "tekken", "demo"])
def test_text_cut_anywhere_shows_no_broken_character_before_the_end(name: str, bpe: Bpe) -> None:  # noqa: F811
    tokenizer = {**peers(), "demo": (bpe, None)}[name][0]
    rng = np.random.default_rng(1)
    for _ in range(500):
        text = "".join(chr(c) for c in rng.integers(0x80, 0xD7FF, 8)) + "🦙" * int(rng.integers(0, 3))
        ids = tokenizer.encode(text)
        pieces = stream(tokenizer, ids[: int(rng.integers(0, len(ids) + 1))])
        shown = "".join(pieces[:-1])
        assert "\ufffd" not in shown
        assert text.startswith(shown)


@pytest.mark.parametrize("version", ["v3", "tekken"])
def test_control_tokens_anywhere_change_no_text(version: str) -> None:
    tokenizer = peers()[version][0]
    ids = tokenizer.encode("a 🦙 naïve")
    for at in range(len(ids) + 1):
        assert "".join(stream(tokenizer, [*ids[:at], 3, *ids[at:]])) == "a 🦙 naïve"


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


# ---- stop strings -----------------------------------------------------------------------------------------------


@settings(max_examples=1000)
@given(st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=3), st.lists(st.text("ab\n", max_size=5)))
def test_text_ends_before_the_first_stop_string_however_it_comes(strings: list[str], pieces: list[str]) -> None:
    whole = "".join(pieces)
    places = [(whole.find(s) + len(s), whole.find(s)) for s in strings if s in whole]
    stops, shown = StopStrings(strings), ""
    for piece in pieces:
        shown += stops.feed(piece)
        assert whole.startswith(shown)
        assert not any(s in shown for s in strings)
    assert stops.found == bool(places)
    assert shown + stops.flush() == (whole[: min(places)[1]] if places else whole)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    stops = StopStrings(["STOP"])
    assert [stops.feed(piece) for piece in ["a S", "T", "x ", "ST", "OP b"]] == ["a ", "", "STx ", "", ""]
    assert stops.found
    assert stops.flush() == ""


def test_without_stop_strings_nothing_is_held_back() -> None:
    stops = StopStrings([])
    assert [stops.feed(piece) for piece in "abc"] == ["a", "b", "c"]
    assert not stops.found
