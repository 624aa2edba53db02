"""Names on the hub, where the cache keeps what they name, and which files of a repository make a model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from mistral_mlx.errors import HubError

_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w(?:[\w.-]*\w)?)(?::(?P<which>[^:/\\\s\x00-\x1f]+))?", re.ASCII)
SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.(?:safetensors|gguf)")
_LAYOUTS = (("config.json", "model*.safetensors"), ("params.json", "consolidated*.safetensors"))
SIDE_FILES = (
    "config.json", "params.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "tokenizer.model*", "*.model.v*",
    "tekken.json", "SYSTEM_PROMPT.txt", "LICENSE*", "NOTICE*",
)  # fmt: skip
_SHOWN_NAMES = 12


def is_hub_name(name: str) -> bool:
    """Whether this is spelled `owner/name` or `owner/name:WHICH`; it may still be a relative path of that spelling."""
    match = _NAME.fullmatch(name)
    # The hub's own rules, which keep `..` and the cache's separator out of folder names.
    return match is not None and not re.search(r"--|\.\.|\.git$|^.{97}", match["repo"])


def split_name(name: str) -> tuple[str, str | None]:
    match = _NAME.fullmatch(name) if is_hub_name(name) else None
    if match is None:
        raise HubError(f"{name!r} is not the name of a model on the hub.", "Write owner/name, as on the model's page.")
    return match["repo"], match["which"]


def cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def repo_folder(repo: str) -> Path:
    return cache_folder() / f"models--{repo.replace('/', '--')}"


def choose_files(names: Iterable[str], which: str | None) -> tuple[list[str], list[str]]:
    """The side files and weights of one layout; several .gguf files mean that the choice is still open."""
    names = sorted(names)
    top = [name for name in names if "/" not in name]
    if which is None:
        for config, pattern in _LAYOUTS:
            weights = [name for name in top if fnmatchcase(name, pattern)]
            if config in top and weights:
                side = (*SIDE_FILES, pattern + ".index.json")
                return [name for name in top if any(fnmatchcase(name, p) for p in side)], weights
    ggufs = [name for name in names if name.endswith(".gguf")]
    if which is not None:
        exact = [name for name in ggufs if name.split("/")[-1] == which]
        ggufs = exact or [name for name in ggufs if which.lower() in name.split("/")[-1].lower()]
    return [], ggufs


def check_choice(repo: str, names: Iterable[str], weights: list[str], which: str | None) -> None:
    """Refuse a repository without weights that can be run, and a .gguf that was not picked or is split."""
    ggufs = [name for name in names if name.endswith(".gguf")]
    if not weights and which is not None and ggufs:
        raise HubError(f"{repo} has no .gguf file with {which!r} in its name: {_some(ggufs)}.", f"Write {repo}:WHICH.")
    if not weights:
        raise HubError(
            f"{repo} has no weights that can be run here: {_some(names) or 'it is empty'}.",
            "A model is config.json with model*.safetensors, params.json with consolidated*.safetensors, or a .gguf.",
        )
    if not weights[0].endswith(".gguf"):
        return
    if all(SHARD.fullmatch(name) for name in weights):
        raise HubError(
            f"{weights[0]} in {repo} is one part of a split GGUF, which is not supported.",
            "Take a smaller quantization, in one file, or the model's safetensors.",
        )
    if len(weights) > 1:
        raise HubError(
            f"{repo} has several .gguf files{f' for {which!r}' if which else ''}: {_some(weights)}.",
            f"Pick one: {repo}:WHICH, with a part of its name, such as Q4_K_M, or the whole of it.",
        )


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(names[:_SHOWN_NAMES]) + more
