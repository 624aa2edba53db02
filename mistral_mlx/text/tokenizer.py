"""Tokenizers: text to ids that are never control tokens, and each id to the bytes it stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import tokenizers
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, models, pre_tokenizers

from mistral_mlx.errors import InputError, TokenizerError


class Tokenizer(Protocol):
    """What the rest of the library needs of any tokenizer.

    Attributes:
        vocab_size: ids run from 0 to this, exclusive.
        bos_id: what a sequence of plain text begins with; None for nothing.
        stop_ids: ids that end an answer.
        drops_first_space: text that begins a sequence is encoded with a space before it, which decoding takes back.
    """

    vocab_size: int
    bos_id: int | None
    stop_ids: frozenset[int]
    drops_first_space: bool

    def encode(self, text: str) -> list[int]:
        """The ids of ordinary text. Names of control tokens in it are ordinary text too.

        Raises:
            InputError: text with halves of surrogate pairs, which stand for bytes that were never text.
        """
        ...

    def token_bytes(self, token: int) -> bytes:
        """What an id stands for, in UTF-8, possibly a part of a character.

        Nothing for a control token, nor for an id past the vocabulary: models pad theirs to round sizes.
        """
        ...


def checked_text(text: str) -> str:
    """The same text; raises InputError if UTF-8 cannot carry it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"The text is not valid Unicode: {error}.", "Pass it as UTF-8.") from error
    return text


class SentencePiece:
    """Mistral's SentencePiece models v1, v2, v3 and v7: BPE with byte fallback."""

    drops_first_space = True

    def __init__(self, path: Path) -> None:
        """Raises TokenizerError if the file is not a SentencePiece model."""
        self.path = path
        self._model = SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(path.read_bytes())
        except (RuntimeError, OSError) as error:
            raise TokenizerError(f"{path} is not a SentencePiece model: {error}.", "Fetch it again.") from error
        self.vocab_size: int = self._model.vocab_size()
        self.bos_id: int | None = self._model.bos_id()
        self.stop_ids = frozenset({self._model.eos_id()})

    @cached_property
    def version(self) -> str:
        """v1, v2, v3 or v7, told by the control tokens that the file holds: file names are unreliable."""
        for version, piece in (("v7", "[SYSTEM_PROMPT]"), ("v3", "[PREFIX]"), ("v2", "[INST]")):
            if self._model.is_control(self._model.piece_to_id(piece)):
                return version
        return "v1"

    def encode(self, text: str) -> list[int]:
        return list(self._model.encode(checked_text(text)))

    def token_bytes(self, token: int) -> bytes:
        if token >= self.vocab_size or self._model.is_control(token):
            return b""
        if self._model.is_unknown(token):
            return " \N{DOUBLE QUESTION MARK} ".encode()
        piece: str = self._model.id_to_piece(token)
        if self._model.is_byte(token):
            return bytes([int(piece[3:5], 16)])  # <0xNN>
        return piece.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()


# How text is cut before merging, by GGUF's name for it (llama.cpp, src/llama-vocab.cpp).
_PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}
_CONTROL, _USER_DEFINED = 3, 4


class GgufBpe:
    """The byte-level BPE vocabulary inside a GGUF file."""

    drops_first_space = False

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        """Build it from the `tokenizer.ggml.*` keys.

        Raises:
            TokenizerError: no tokenizer, a kind that is not read here, or a damaged one.
        """
        keys = {k.removeprefix("tokenizer.ggml."): v for k, v in metadata.items() if k.startswith("tokenizer.ggml.")}
        kind, cut = keys.get("model"), keys.get("pre")
        if kind is None:
            raise TokenizerError("This GGUF file holds no tokenizer.", "Give token ids instead of text.")
        if kind != "gpt2" or not isinstance(cut, str) or cut not in _PRE_TOKENIZERS:
            raise TokenizerError(
                f"This GGUF file's tokenizer ({kind!r}, cut by {cut!r}) is not read here.",
                f"Read: 'gpt2', cut by {', '.join(map(repr, _PRE_TOKENIZERS))}. Token ids work with any file.",
            )
        try:
            self._tokens: list[str] = keys["tokens"]
            kinds: list[int] = keys["token_type"]
            merges = [_pair(merge) for merge in keys["merges"]]
            vocabulary = {token: i for i, token in enumerate(self._tokens)}
            self._bpe = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
            self.control = {t: i for i, (t, k) in enumerate(zip(self._tokens, kinds, strict=True)) if k == _CONTROL}
            user_defined = [t for t, k in zip(self._tokens, kinds, strict=True) if k == _USER_DEFINED]
            self.stop_ids = frozenset({int(keys["eos_token_id"])})
            self.bos_id = int(keys["bos_token_id"]) if keys.get("add_bos_token") else None
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(
                f"This GGUF file's tokenizer is damaged: {error!r}.", "Fetch the file again."
            ) from error
        self._bpe.pre_tokenizer = _PRE_TOKENIZERS[cut]()
        self._bpe.add_tokens([AddedToken(t, normalized=False) for t in user_defined])
        self._literal = frozenset(user_defined)
        self.vocab_size = len(self._tokens)

    def encode(self, text: str) -> list[int]:
        return list(self._bpe.encode(checked_text(text), add_special_tokens=False).ids)

    def token_bytes(self, token: int) -> bytes:
        piece = self._tokens[token] if token < self.vocab_size else ""
        if piece in self.control:
            return b""
        if piece in self._literal:
            return piece.encode()
        return b"".join(_BYTE_OF[c] if c in _BYTE_OF else c.encode() for c in piece)

    def piece(self, token: int) -> str:
        """How the vocabulary spells an id."""
        return self._tokens[token]


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _byte_alphabet() -> dict[str, bytes]:
    """GPT-2's spelling of bytes: printable Latin-1 stands for itself, the rest for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (b for b in range(256) if b not in printable)
    return {chr(b): bytes([b]) for b in printable} | {chr(0x100 + n): bytes([b]) for n, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def find_tokenizer(folder: Path) -> SentencePiece:
    """The tokenizer of a model folder.

    Raises:
        TokenizerError: there is none that is read here.
    """
    # `tokenizer.model.v3` beside `tokenizer.model`: the one that names its version is the newer.
    for pattern in ("tokenizer.model.v*", "tokenizer.model", "*.model.v[0-9]*"):
        for path in sorted(folder.glob(pattern), reverse=True):
            return SentencePiece(path)
    raise TokenizerError(
        f"{folder} holds no tokenizer that is read here (tokenizer.model).",
        "Copy the model's tokenizer.model into it, or give token ids instead of text.",
    )


def decode_whole(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of a whole sequence."""
    data = b"".join(map(tokenizer.token_bytes, ids))
    if tokenizer.drops_first_space:
        data = data.removeprefix(b" ")
    return data.decode("utf-8", errors="replace")
