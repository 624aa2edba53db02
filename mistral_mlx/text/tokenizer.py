"""What a tokenizer is here: text to ids that are never control tokens, and each id to the bytes it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from mistral_mlx.errors import InputError

# Kinds of a vocabulary's entries; SentencePiece and GGUF number them alike (sentencepiece_model.proto, Piece.Type).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


class Tokenizer(Protocol):
    """What the rest of the library needs of any tokenizer.

    Attributes:
        vocab_size: ids run from 0 to this, exclusive.
        bos_id: what a sequence of plain text begins with; None for nothing.
        stop_ids: ids that end an answer.
        control: names and ids of tokens that text can never become.
    """

    vocab_size: int
    bos_id: int | None
    stop_ids: frozenset[int]

    @property
    def control(self) -> Mapping[str, int]: ...

    def encode(self, text: str, *, follows: bool = False, inside: bool = False) -> list[int]:
        """The ids of ordinary text. Names of control tokens in it are ordinary text too.

        Args:
            follows: the text comes after a control token; some tokenizers write a space before it only at the start.
            inside: it stands in the middle of a text, and no space is written before it.

        Raises:
            InputError: text with halves of surrogate pairs, which stand for bytes that were never text.
        """
        ...

    def token_bytes(self, token: int) -> bytes:
        """What an id stands for, in UTF-8, possibly a part of a character.

        Nothing for a control token, nor for an id past the vocabulary: models pad theirs to round sizes.
        """
        ...

    def first_bytes(self, token: int) -> bytes:
        """The same for an id that begins a text: without the space that some tokenizers write before every text."""
        ...


GUARD = "\x01"  # a character that merges with nothing, put before text that stands inside another
UNKNOWN_TEXT = " \N{DOUBLE QUESTION MARK} ".encode()  # what SentencePiece writes for an id that stands for no text
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's mark for a space


def checked_text(text: str) -> str:
    """The same text; raises InputError if it is none, or UTF-8 cannot carry it."""
    if not isinstance(text, str):
        raise InputError(f"{text!r} is no text.", "Give a string.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"The text is not valid Unicode: {error}.", "Pass it as UTF-8.") from error
    return text


def gguf_stop_ids(keys: Mapping[str, Any]) -> frozenset[int]:
    """The ids that end an answer, by GGUF's keys after `tokenizer.ggml.`."""
    return frozenset(int(keys[name]) for name in ("eos_token_id", "eot_token_id") if name in keys)


def decode_whole(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of a whole sequence."""
    spoken = [i for i in ids if tokenizer.token_bytes(i)]
    pieces = [*map(tokenizer.first_bytes, spoken[:1]), *map(tokenizer.token_bytes, spoken[1:])]
    return b"".join(pieces).decode("utf-8", errors="replace")
