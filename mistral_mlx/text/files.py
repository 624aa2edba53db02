"""What of text a model brings along: its tokenizer, and the way in which it writes conversations."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mistral_mlx.errors import TokenizerError
from mistral_mlx.text import bpe, sentencepiece
from mistral_mlx.text.bpe import Bpe
from mistral_mlx.text.chat import ChatFormat, MistralChat
from mistral_mlx.text.sentencepiece import SentencePiece
from mistral_mlx.text.tekken import Tekken
from mistral_mlx.text.template import TemplateChat
from mistral_mlx.text.tokenizer import CONTROL, USER_DEFINED, Tokenizer, gguf_stop_ids

_NO_TEXT = "Give token ids instead of text."
_RAW = "Generate from plain text: LLM.generate, or --raw."


@dataclass(frozen=True)
class Text:
    """What was found; an error in place of something says why it is not there.

    Attributes:
        instruct: whether the model says that it was trained to chat: it brings a chat template.
    """

    tokenizer: Tokenizer | TokenizerError
    chat_format: ChatFormat | TokenizerError
    instruct: bool


def open_text(path: Path, metadata: Mapping[str, Any], vocab_size: int | None = None) -> Text:
    """Look at a model's folder, or at the metadata of its GGUF file.

    Args:
        vocab_size: the model's, if it is known, to see that the tokenizer is the model's own.
    """
    settings: Mapping[str, Any] = {}
    try:
        if metadata:
            tokenizer: Tokenizer = gguf_tokenizer(metadata)
        else:
            settings = _settings(path)
            tokenizer = find_tokenizer(path)
        # Names beyond the model's rows, such as a padding token, do no harm as long as no text becomes them.
        size = tokenizer.vocab_size if vocab_size is None else vocab_size
        if not set(range(size, tokenizer.vocab_size)) <= set(tokenizer.control.values()):
            raise TokenizerError(
                f"The tokenizer has {tokenizer.vocab_size} ids, the model {vocab_size}.",
                "The tokenizer is another model's.",
            )
    except TokenizerError as error:
        return Text(error, error, False)
    try:
        template = metadata.get("tokenizer.chat_template") if metadata else _folder_template(path, settings)
        names = _gguf_names(metadata) if metadata else (_named(settings, "bos_token"), _named(settings, "eos_token"))
        chat_format = _chat_format(tokenizer, template, *names)
        lost = [name for name in _added(settings) - tokenizer.control.keys() if name in str(template)]
        if lost and isinstance(chat_format, TemplateChat):
            raise TokenizerError(
                f"The model's chat template writes tokens that its tokenizer lacks: {', '.join(sorted(lost))}.",
                f"Add the model's tokenizer.json to its folder. {_RAW}",
            )
        return Text(tokenizer, chat_format, isinstance(template, str))
    except TokenizerError as error:
        return Text(tokenizer, error, False)


def _chat_format(tokenizer: Tokenizer, template: object, bos: str | None, eos: str | None) -> ChatFormat:
    """Mistral's own format where the template is Mistral's or there is none, else the template."""
    mistrals = not isinstance(template, str) or ("[INST]" in template and "<<SYS>>" not in template)
    if isinstance(tokenizer, (SentencePiece, Tekken)) and mistrals:
        return MistralChat(tokenizer)
    if not isinstance(template, str):
        raise TokenizerError("This model brings no chat template.", _RAW)
    return TemplateChat(template, tokenizer, bos or "", eos or "")


# ---- GGUF -------------------------------------------------------------------------------------------------------


def gguf_tokenizer(metadata: Mapping[str, Any]) -> SentencePiece | Bpe:
    """The tokenizer in a GGUF file's metadata.

    Raises:
        TokenizerError: no tokenizer, a kind that is not read here, or a damaged one.
    """
    keys = {k.removeprefix("tokenizer.ggml."): v for k, v in metadata.items() if k.startswith("tokenizer.ggml.")}
    kind = keys.get("model")
    if kind is None:
        raise TokenizerError("This GGUF file holds no tokenizer.", _NO_TEXT)
    readers: dict[str, Callable[[Mapping[str, Any]], SentencePiece | Bpe]] = {
        "llama": sentencepiece.from_gguf,
        "gpt2": bpe.from_gguf,
    }
    if not isinstance(kind, str) or kind not in readers:
        raise TokenizerError(
            f"This GGUF file's tokenizer is of kind {kind!r}, which is not read here.",
            f"Read: {', '.join(readers)}. Token ids work with any file.",
        )
    try:
        return readers[kind](_with_control(keys, metadata.get("tokenizer.chat_template")))
    except TokenizerError:
        raise
    except Exception as error:  # the libraries raise whatever they like
        raise TokenizerError(f"This GGUF file's tokenizer is damaged: {error!r}.", "Fetch the file again.") from error


def _with_control(keys: Mapping[str, Any], template: object) -> Mapping[str, Any]:
    """The same keys, with what ends a text and what the chat template writes marked as control tokens.

    Older converters mark tokens that a fine-tune added as text, which anybody could then write.
    """
    if USER_DEFINED not in keys.get("token_type", ()):
        return keys
    stops = gguf_stop_ids(keys)
    kinds = [
        CONTROL if kind == USER_DEFINED and (i in stops or (len(name) > 2 and name in str(template))) else kind
        for i, (name, kind) in enumerate(zip(keys["tokens"], keys["token_type"], strict=True))
    ]
    return {**keys, "token_type": kinds}


def _gguf_names(metadata: Mapping[str, Any]) -> tuple[str | None, str | None]:
    tokens = metadata["tokenizer.ggml.tokens"]
    ids = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    bos, eos = (tokens[i] if isinstance(i, int) and 0 <= i < len(tokens) else None for i in ids)
    return bos, eos


# ---- folders ----------------------------------------------------------------------------------------------------


def find_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder.

    Mistral's own files go before `tokenizer.json`, unless that has tokens which they lack: fine-tunes add some.

    Raises:
        TokenizerError: there is none, or it is damaged.
    """
    if (folder / "tekken.json").exists():
        return Tekken(folder / "tekken.json")
    # `tokenizer.model.v3` beside `tokenizer.model`: the one that names its version is the newer.
    patterns = ("tokenizer.model.v*", "tokenizer.model", "*.model.v[0-9]*")
    models = [path for pattern in patterns for path in sorted(folder.glob(pattern), reverse=True)]
    begins = _settings(folder).get("add_bos_token") is not False
    model = sentencepiece.from_file(models[0], add_bos=begins) if models else None
    if (folder / "tokenizer.json").exists():
        other = _read_json_tokenizer(folder)
        if model is None or other.vocab_size > model.vocab_size:
            return other
    if model is None:
        raise TokenizerError(
            f"{folder} holds no tokenizer (tekken.json, tokenizer.model or tokenizer.json).",
            f"Copy the model's into it. {_NO_TEXT}",
        )
    return model


def _read_json_tokenizer(folder: Path) -> Tokenizer:
    file = folder / "tokenizer.json"
    try:
        text = file.read_text(encoding="utf-8")
        return bpe.from_json(text, json.loads(text), _named(_settings(folder), "eos_token"))
    except TokenizerError:
        raise
    except Exception as error:  # the library raises whatever it likes
        raise TokenizerError(f"{file} is damaged: {error!r}.", "Fetch it again.") from error


def _settings(folder: Path) -> Mapping[str, Any]:
    """tokenizer_config.json, as far as there is one."""
    file = folder / "tokenizer_config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{file} is not valid JSON: {error}.", "Fetch it again.") from error
    if not isinstance(settings, dict):
        raise TokenizerError(f"{file} must hold a JSON object.", "Fetch it again.")
    return settings


def _named(settings: Mapping[str, Any], key: str) -> str | None:
    """A token's name, which is stated plainly or in a table."""
    value = settings.get(key)
    name = value.get("content") if isinstance(value, Mapping) else value
    return name if isinstance(name, str) else None


def _added(settings: Mapping[str, Any]) -> set[str]:
    """Names of the tokens that were added to a vocabulary, which `tokenizer.model` alone does not have."""
    table = settings.get("added_tokens_decoder")
    entries = table.values() if isinstance(table, Mapping) else ()
    return {str(e["content"]) for e in entries if isinstance(e, Mapping) and e.get("special") and e.get("content")}


def _folder_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """A file of its own, or an entry of tokenizer_config.json: a template, or a list of them by name."""
    file = folder / "chat_template.jinja"
    try:
        if file.exists():
            return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{file} cannot be read: {error}.", "Fetch it again.") from error
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, Mapping)}
        if "default" not in named:
            raise TokenizerError(
                f"None of the model's chat templates is the default: {', '.join(map(str, named))}.", _RAW
            )
        template = named["default"]
    if template is not None and not isinstance(template, str):
        raise TokenizerError(f"The model's chat template is no text but {template!r}.", _RAW)
    return template
