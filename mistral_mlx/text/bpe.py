"""BPE vocabularies of `tokenizer.json` and GGUF, run by the tokenizers library.

Their pieces spell bytes in one of two ways: in GPT-2's alphabet, where every byte has a letter; or as SentencePiece
does, as text with a mark for the space, and bytes by their numbers where a character is not in the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from mistral_mlx.errors import TokenizerError
from mistral_mlx.text.tokenizer import CONTROL, GUARD, SPACE, USER_DEFINED, checked_text, gguf_stop_ids


class Bpe:
    """A BPE vocabulary."""

    def __init__(
        self,
        bpe: tokenizers.Tokenizer,
        spelled: Callable[[str], bytes],
        control: Mapping[str, int],
        literal: Mapping[str, int],
        bos_id: int | None,
        stop_ids: frozenset[int],
        *,
        space: str = "never",
    ) -> None:
        """Take a tokenizer over.

        Args:
            bpe: must know none of `control` as special tokens of text.
            spelled: the bytes that a piece spells.
            literal: names and ids of tokens that stand for their own text.
            space: where a space is written before text: "always" also after a control token; "first"; "never".
        """
        self._bpe = bpe
        self.control = control
        self.bos_id = bos_id
        self.stop_ids = stop_ids
        self._spelled = spelled
        self._space = space
        self._pieces = {i: piece for piece, i in bpe.get_vocab(with_added_tokens=True).items()}
        self._as_they_are = dict.fromkeys(control.values(), b"") | {i: name.encode() for name, i in literal.items()}
        self.vocab_size = max(self._pieces | self._as_they_are) + 1

    def encode(self, text: str, *, follows: bool = False, inside: bool = False) -> list[int]:
        checked_text(text)
        if (inside and self._space != "never") or (follows and self._space == "first"):
            return self._ids(GUARD + text)[len(self._ids(GUARD)) :]
        return self._ids(text)

    def to_json(self) -> str:
        """The text of a `tokenizer.json` for a vocabulary that spells bytes by letters.

        There control tokens are special ones, and BOS is written by a post-processor.
        """
        bpe = tokenizers.Tokenizer.from_str(self._bpe.to_str())
        control = sorted(self.control.items(), key=lambda item: item[1])
        bpe.add_special_tokens([AddedToken(name, normalized=False, special=True) for name, _ in control])
        bpe.decoder = decoders.ByteLevel()
        if self.bos_id is not None:
            bpe.post_processor = begin_with(self._pieces[self.bos_id], self.bos_id)
        return str(bpe.to_str())

    def _ids(self, text: str) -> list[int]:
        return list(self._bpe.encode(text, add_special_tokens=False).ids)

    def token_bytes(self, token: int) -> bytes:
        if token in self._as_they_are:
            return self._as_they_are[token]
        return self._spelled(self._pieces[token]) if token in self._pieces else b""

    def first_bytes(self, token: int) -> bytes:
        data = self.token_bytes(token)
        return data if self._space == "never" else data.removeprefix(b" ")


# Mistral's, config.pattern in tekken.json.
TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How text is cut before merging, by GGUF's name for it (llama.cpp, src/llama-vocab.cpp).
_CUTS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "tekken": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(TEKKEN_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}
_WHOLE_FIRST = {"tekken"}  # a piece of text that is in the vocabulary is taken whole, whatever its merges


def begin_with(bos: str, bos_id: int) -> processors.TemplateProcessing:
    """What writes BOS before a text."""
    return processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, bos_id)])


def from_gguf(keys: Mapping[str, Any]) -> Bpe:
    """From GGUF's keys after `tokenizer.ggml.`, model "gpt2"; raises Exception where they are damaged.

    Raises:
        TokenizerError: text is cut in a way that is not known here.
    """
    cut = keys.get("pre")
    if not isinstance(cut, str) or cut not in _CUTS:
        raise TokenizerError(
            f"This GGUF file's tokenizer cuts text by {cut!r}, which is not known here.",
            f"Known: {', '.join(map(repr, _CUTS))}. Token ids work with any file.",
        )
    tokens: list[str] = keys["tokens"]
    kinds = list(zip(tokens, range(len(tokens)), keys["token_type"], strict=True))
    control = {piece: i for piece, i, kind in kinds if kind == CONTROL}
    literal = {piece: i for piece, i, kind in kinds if kind == USER_DEFINED}
    merges = [tuple(merge.split(" ", 1)) for merge in keys["merges"]]
    model = models.BPE(dict(zip(tokens, range(len(tokens)), strict=True)), merges, ignore_merges=cut in _WHOLE_FIRST)
    bpe = tokenizers.Tokenizer(model)
    bpe.pre_tokenizer = _CUTS[cut]()
    bpe.add_tokens([AddedToken(piece, normalized=False) for piece in literal])
    # llama.cpp begins text with BOS where the file does not say for tekken, and not for the others.
    begins = keys.get("add_bos_token", cut == "tekken") and "bos_token_id" in keys
    bos = int(keys["bos_token_id"]) if begins else None
    return Bpe(bpe, _by_letters, control, literal, bos, gguf_stop_ids(keys))


def from_json(text: str, data: Mapping[str, Any], eos: str | None) -> Bpe:
    """From the text of `tokenizer.json`, and the same parsed; raises Exception where it is damaged.

    Args:
        eos: name of the token that ends a sequence.

    Raises:
        TokenizerError: it spells bytes in another way than the two that are known here.
    """
    kind, fallback = data["model"]["type"], data["model"].get("byte_fallback")
    by_letters = any(step["type"] == "ByteLevel" for step in _steps(data.get("decoder")))
    if kind != "BPE" or not (fallback or by_letters):
        raise TokenizerError(
            f"The vocabulary in tokenizer.json is of type {kind}, spelled in a way that is not known here.",
            "Known: BPE, by bytes or with byte fallback. Give token ids instead of text.",
        )
    bpe = tokenizers.Tokenizer.from_str(text)
    begins = bpe.encode("", add_special_tokens=True).ids  # what its post-processor writes around text
    bpe.encode_special_tokens = True  # names of special tokens in text are text
    bpe.no_truncation()
    bpe.no_padding()
    added = {token["content"]: token for token in data["added_tokens"]}
    control = {name: token["id"] for name, token in added.items() if token["special"]}
    literal = {name: token["id"] for name, token in added.items() if not token["special"]}
    stops = frozenset({control[eos]} if eos in control else ())
    bos = begins[0] if begins and begins[0] not in stops else None
    spelled = _by_letters if by_letters else _by_marks
    return Bpe(bpe, spelled, control, literal, bos, stops, space="never" if by_letters else _space(data))


def _space(data: Mapping[str, Any]) -> str:
    """Where a tokenizer.json writes a space before text."""
    steps = [*_steps(data.get("normalizer")), *_steps(data.get("pre_tokenizer"))]
    if any(step["type"] == "Prepend" for step in steps):
        return "always"  # a normalizer works on each stretch between control tokens
    return next((step.get("prepend_scheme", "always") for step in steps if step["type"] == "Metaspace"), "never")


def _steps(part: Mapping[str, Any] | None) -> Iterable[Mapping[str, Any]]:
    """The steps of a part of tokenizer.json, which is one step, a sequence of them, or nothing."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return next(part[name] for name in ("normalizers", "pretokenizers", "decoders") if name in part)


def _byte_alphabet() -> dict[str, bytes]:
    """GPT-2's spelling of bytes: printable Latin-1 stands for itself, the rest for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (b for b in range(256) if b not in printable)
    return {chr(b): bytes([b]) for b in printable} | {chr(0x100 + n): bytes([b]) for n, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _by_letters(piece: str) -> bytes:
    """Bytes spelled in GPT-2's alphabet; a character outside it stands for itself."""
    return b"".join(_BYTE_OF[c] if c in _BYTE_OF else c.encode() for c in piece)


_LETTERS = {byte[0]: letter for letter, byte in _BYTE_OF.items()}


def to_letters(data: bytes) -> str:
    """The inverse."""
    return "".join(_LETTERS[byte] for byte in data)


def _by_marks(piece: str) -> bytes:
    """Bytes spelled in SentencePiece's way."""
    if re.fullmatch("<0x[0-9A-F]{2}>", piece):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(SPACE, " ").encode()
