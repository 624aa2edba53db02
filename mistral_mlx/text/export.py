"""A GGUF file's tokenizer and chat template as the files of a model folder, in the words of Hugging Face."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mistral_mlx.text.files import gguf_tokenizer
from mistral_mlx.text.sentencepiece import SentencePiece

_NAMED = ("bos", "eos", "unknown", "padding")
_THEIR_NAMES = {"unknown": "unk", "padding": "pad"}


def write_gguf_text(metadata: Mapping[str, Any], folder: Path) -> None:
    """Write tokenizer.model or tokenizer.json, tokenizer_config.json, and the chat template if there is one.

    Raises:
        TokenizerError: the file has no tokenizer, or one that is not read here.
    """
    tokenizer = gguf_tokenizer(metadata)
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    settings: dict[str, Any] = {"clean_up_tokenization_spaces": False, "add_bos_token": tokenizer.bos_id is not None}
    for name in _NAMED:
        token = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(token, int) and 0 <= token < len(tokens):
            settings[f"{_THEIR_NAMES.get(name, name)}_token"] = tokens[token]
    if isinstance(tokenizer, SentencePiece):
        (folder / "tokenizer.model").write_bytes(tokenizer.proto)
        settings |= {"tokenizer_class": "LlamaTokenizer", "legacy": False}
    else:
        (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    text = json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
