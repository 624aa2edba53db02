"""Tokenizers as the files that other programs read: tokenizer.json and tokenizer_config.json, as on Hugging Face."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

from mistral_mlx.text.bpe import TEKKEN_PATTERN, begin_with, to_letters
from mistral_mlx.text.bpe import from_gguf as bpe_from_gguf
from mistral_mlx.text.files import gguf_tokenizer
from mistral_mlx.text.sentencepiece import SentencePiece
from mistral_mlx.text.tekken import Tekken
from mistral_mlx.text.tokenizer import CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED

# What Mistral's own tokenizers call the tokens that the settings name.
MISTRAL_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_NAMED = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def write_gguf_text(metadata: Mapping[str, Any], folder: Path) -> None:
    """Write the tokenizer in a GGUF file's metadata, and its chat template if there is one.

    Raises:
        TokenizerError: the file has no tokenizer, or one that is not read here.
    """
    tokenizer = gguf_tokenizer(metadata)
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    names = {}
    for theirs, ours in _NAMED.items():
        token = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if isinstance(token, int) and 0 <= token < len(tokens):
            names[ours] = tokens[token]
    if isinstance(tokenizer, SentencePiece):
        (folder / "tokenizer.model").write_bytes(tokenizer.proto)
        write_sentencepiece(tokenizer, names, folder)
    else:
        (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
        _write_settings(names, folder, begins=tokenizer.bos_id is not None)
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def write_sentencepiece(tokenizer: SentencePiece, names: Mapping[str, str], folder: Path) -> None:
    """Write a tokenizer.json that gives the ids of a SentencePiece model: what programs without sentencepiece read.

    Args:
        names: of the tokens that the settings name, such as {"bos_token": "<s>"}.
    """
    pieces = tokenizer.pieces()
    vocabulary = {name: i for i, (name, _, _) in enumerate(pieces)}
    normal = {name: score for name, score, kind in pieces if kind == NORMAL}
    # SentencePiece joins the two neighbours that make the piece with the best score: each way to make one is a merge.
    merges = [
        (name[:cut], name[cut:])
        for name in sorted(normal, key=lambda name: -normal[name])
        for cut in range(1, len(name))
        if name[:cut] in normal and name[cut:] in normal
    ]
    unknown = next((name for name, _, kind in pieces if kind == UNKNOWN), None)
    bpe = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = [normalizers.Prepend(SPACE)] if tokenizer.begins_with_space else []
    bpe.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    bpe.decoder = decoders.Sequence([
        decoders.Replace(SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        *strip,
    ])  # fmt: skip
    special = [name for name, _, kind in pieces if kind in (CONTROL, UNKNOWN)]
    literal = [name for name, _, kind in pieces if kind == USER_DEFINED]
    bpe.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    bpe.add_tokens([AddedToken(name, normalized=False) for name in literal])
    if tokenizer.bos_id is not None:
        bpe.post_processor = begin_with(pieces[tokenizer.bos_id][0], tokenizer.bos_id)
    (folder / "tokenizer.json").write_text(bpe.to_str(), encoding="utf-8")
    _write_settings(names, folder, begins=tokenizer.bos_id is not None)


def write_tekken(tokenizer: Tekken, folder: Path) -> str:
    """Write a tokenizer.json that gives the ids of a tekken vocabulary: what programs without mistral-common read.

    Returns:
        Why it was not written; empty if it was.
    """
    if tokenizer.pattern != TEKKEN_PATTERN:
        return "Only programs with mistral-common can read this model's tokenizer, tekken.json: it cuts text anew."
    names = {i: name for name, i in tokenizer.control.items()}
    ordinary = {tokenizer.token_bytes(i): i for i in range(len(names), tokenizer.vocab_size)}
    spelled = {i: to_letters(piece) for piece, i in ordinary.items()}
    # Neighbours are joined that make the piece of the lowest rank: each way to make one is a merge.
    merges = [
        f"{to_letters(piece[:cut])} {to_letters(piece[cut:])}"
        for piece in ordinary
        for cut in range(1, len(piece))
        if piece[:cut] in ordinary and piece[cut:] in ordinary
    ]
    bpe = bpe_from_gguf({
        "pre": "tekken",
        "tokens": [names[i] if i in names else spelled[i] for i in range(tokenizer.vocab_size)],
        "token_type": [CONTROL if i in names else NORMAL for i in range(tokenizer.vocab_size)],
        "merges": merges,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": min(tokenizer.stop_ids),
    })  # fmt: skip
    (folder / "tokenizer.json").write_text(bpe.to_json(), encoding="utf-8")
    _write_settings(MISTRAL_NAMES, folder, begins=True)
    return ""


def _write_settings(names: Mapping[str, str], folder: Path, *, begins: bool) -> None:
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": begins,
        **names,
    }
    text = json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
