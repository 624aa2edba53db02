"""SentencePiece models: BPE with byte fallback and a space for every word. Mistral's v1, v2, v3 and v7, and Llama's.

Read from `tokenizer.model`, or from the vocabulary of a GGUF file, which holds the same scores.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from mistral_mlx.errors import TokenizerError
from mistral_mlx.text.tokenizer import (
    CONTROL,
    GUARD,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNKNOWN_TEXT,
    USER_DEFINED,
    checked_text,
    gguf_stop_ids,
)

Piece = tuple[str, float, int]  # its text, its score, its kind


class SentencePiece:
    """A SentencePiece model."""

    def __init__(self, proto: bytes, *, add_bos: bool = True) -> None:
        """Load a serialized model; raises RuntimeError if it is none.

        Args:
            add_bos: whether plain text begins with BOS.
        """
        self.proto = proto
        self._model = _processor(proto)
        # What writes text; references that a program inserts are no more in reach of it than control tokens.
        self._writer = _processor(_guarded(proto)) if b"[REF" in proto else self._model
        self.vocab_size: int = self._model.vocab_size()
        self.bos_id: int | None = self._model.bos_id() if add_bos and self._model.bos_id() >= 0 else None
        self.stop_ids = frozenset({self._model.eos_id()} - {-1})
        # Whether text gets a space before it.
        self.begins_with_space: bool = self._model.encode_as_pieces("a")[0].startswith(SPACE)

    @cached_property
    def control(self) -> Mapping[str, int]:
        return {self._model.id_to_piece(i): i for i in range(self.vocab_size) if self._model.is_control(i)}

    @cached_property
    def version(self) -> str:
        """v1, v2, v3 or v7, told by the control tokens that it holds: file names are unreliable."""
        for version, piece in (("v7", "[SYSTEM_PROMPT]"), ("v3", "[PREFIX]"), ("v2", "[INST]")):
            if piece in self.control:
                return version
        return "v1"

    def pieces(self) -> list[Piece]:
        """Every entry of the vocabulary."""
        found = []
        for number, entry in _fields(self.proto):
            if number == 1:
                fields = dict(_fields(entry))
                found.append((fields[1].decode(), struct.unpack("<f", fields[2])[0], fields.get(3, NORMAL)))
        return found

    def encode(self, text: str, *, follows: bool = False, inside: bool = False) -> list[int]:
        checked_text(text)
        if inside and self.begins_with_space:
            return list(self._writer.encode(GUARD + text)[len(self._writer.encode(GUARD)) :])
        return list(self._writer.encode(text))

    def token_bytes(self, token: int) -> bytes:
        if token >= self.vocab_size or self._model.is_control(token):
            return b""
        if self._model.is_unknown(token):
            return UNKNOWN_TEXT
        piece: str = self._model.id_to_piece(token)
        if self._model.is_byte(token):
            return bytes([int(piece[3:5], 16)])  # <0xNN>
        return piece.replace(SPACE, " ").encode()

    def first_bytes(self, token: int) -> bytes:
        data = self.token_bytes(token)
        if self.begins_with_space and data and self._model.id_to_piece(token).startswith(SPACE):
            data = data.removeprefix(b" ")
        return data


_REFERENCE = re.compile(r"\[/?REF(ERENCE_DOC_[0-9]+)?\]")  # Mistral's in v3 and v7


def _guarded(proto: bytes) -> bytes:
    """The same model, in which text cannot become Mistral's marks for references."""

    def guarded(entry: bytes) -> bytes:
        fields = dict(_fields(entry))
        if fields.get(3) != USER_DEFINED or not _REFERENCE.fullmatch(fields[1].decode()):
            return entry
        return _message((1, fields[1]), (2, struct.unpack("<f", fields[2])[0]), (3, CONTROL))

    return _message(*((number, guarded(data) if number == 1 else data) for number, data in _fields(proto)))


def _processor(proto: bytes) -> SentencePieceProcessor:
    model = SentencePieceProcessor()
    model.LoadFromSerializedProto(proto)
    return model


def from_file(path: Path, *, add_bos: bool = True) -> SentencePiece:
    """Open a `tokenizer.model`; raises TokenizerError if it is none."""
    try:
        return SentencePiece(path.read_bytes(), add_bos=add_bos)
    except (RuntimeError, OSError) as error:
        raise TokenizerError(f"{path} is not a SentencePiece model: {error}.", "Fetch it again.") from error


def from_gguf(keys: Mapping[str, Any]) -> SentencePiece:
    """From GGUF's keys after `tokenizer.ggml.`, model "llama"; raises Exception where they are damaged."""
    pieces = list(zip(keys["tokens"], keys["scores"], keys["token_type"], strict=True))
    bos, eos = keys.get("bos_token_id", -1), keys.get("eos_token_id", -1)
    proto = _proto(pieces, bos, eos, bool(keys.get("add_space_prefix", True)))
    model = SentencePiece(proto, add_bos=bool(keys.get("add_bos_token", True)))
    model.stop_ids |= gguf_stop_ids(keys)
    return model


def _proto(pieces: Iterable[Piece], bos: int, eos: int, add_dummy_prefix: bool) -> bytes:
    """A serialized model with these pieces, settings otherwise as in Mistral's and Llama's.

    Written here, field by field (sentencepiece_model.proto), because the module that the library generates for it runs
    with few versions of protobuf only.
    """
    pieces = list(pieces)
    unknown = next((i for i, (_, _, kind) in enumerate(pieces) if kind == UNKNOWN), -1)
    named = ((45, unknown), (46, bos), (47, eos))
    trainer = _message(
        (3, 2),  # model_type: BPE
        (35, True),  # byte_fallback
        *zip((40, 41, 42, 43), (unknown, bos, eos, -1), strict=True),
        *((field, pieces[i][0]) for field, i in named if i >= 0),
    )
    normalizer = _message((1, "identity"), (3, add_dummy_prefix), (4, False))  # the last: remove_extra_whitespaces
    entries = [(1, _message((1, name), (2, float(score)), (3, kind))) for name, score, kind in pieces]
    return _message(*entries, (2, trainer), (3, normalizer))


def _message(*fields: tuple[int, bytes | str | int | float]) -> bytes:
    """A protobuf message: strings and bytes by their length, floats in four bytes, whole numbers by sevens of bits."""
    out = bytearray()
    for number, value in fields:
        if isinstance(value, float):
            out += _varint(number << 3 | 5) + struct.pack("<f", value)
        elif isinstance(value, int):
            out += _varint(number << 3) + _varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += _varint(number << 3 | 2) + _varint(len(data)) + data
    return bytes(out)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message: whole numbers as such, everything else as bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            value |= (message[at] & 0x7F) << shift
            at, shift, more = at + 1, shift + 7, message[at] > 0x7F
            if not more:
                return value

    while at < len(message):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
            continue
        size = varint() if wire == 2 else {1: 8, 5: 4}[wire]
        yield number, message[at : at + size]
        at += size


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
