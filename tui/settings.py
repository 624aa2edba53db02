"""What the reader of a chat has settled once: a file of TOML in the platform's folder for configuration.

The chat starts whatever the file holds: each line that cannot be used is told in a sentence, and the rest counts.
Imports nothing slow, so that the first frame does not wait for it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mistral_mlx.errors import InputError, MistralError

_NAME = "mistral-mlx"
_KINDS = {str: "text in quotes", bool: "true or false", int: "a whole number", float: "a number", dict: "a table"}

# Options of an answer that have a default here, and what each holds; `check_sampling` knows their ranges.
SAMPLING: dict[str, type] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "max_tokens": int,
    "seed": int,
}

# How a chat is answered where nobody says otherwise: with some variety, and at more length than a script's answers.
USUAL_SAMPLING: dict[str, Any] = {"temperature": 0.7, "max_tokens": 4096}


class SettingsError(MistralError):
    """The file of settings cannot be read or written."""


@dataclass(frozen=True)
class Settings:
    """What a chat begins with.

    Attributes:
        model: what is loaded when no other is named; empty for that of the newest conversation.
        system: the system prompt of new conversations.
        theme: the name of a theme; empty for one that suits the terminal.
        sidebar: whether the list of conversations is shown where there is room.
        mouse: whether the chat takes the mouse; without it the terminal selects text by itself.
        bell: an answer that took more seconds than this rings when it ends; 0 for silence.
        context: the most tokens that a conversation and its answer may have, for which its oldest turns are left out; 0
            for what the model can attend to.
        sampling: how answers are sampled, by the names in SAMPLING.
        keys: keys of actions, by the action's id: "ctrl+n", or several with commas.
    """

    model: str = ""
    system: str = ""
    theme: str = ""
    sidebar: bool = True
    mouse: bool = True
    bell: float = 10.0
    context: int = 0
    sampling: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Paths:
    """Where the chat keeps its files."""

    settings: Path
    database: Path
    log: Path


def paths() -> Paths:
    """Where they are on this platform; XDG's variables move them on Linux. Nothing is created."""
    from platformdirs import PlatformDirs

    folders = PlatformDirs(_NAME, appauthor=False)
    return Paths(
        settings=folders.user_config_path / "settings.toml",
        database=folders.user_data_path / "conversations.db",
        log=folders.user_log_path / "chat.log",
    )


def read(path: Path) -> tuple[Settings, list[str]]:
    """The settings in a file, and a sentence for each thing in it that cannot be used; none if there is no file.

    Ranges are left to `check_sampling`, which takes longer.
    """
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        return Settings(), []
    except OSError as error:
        return Settings(), [f"{path} cannot be read ({error.strerror}), so the usual settings count."]
    except ValueError as error:  # no UTF-8, or no TOML
        return Settings(), [f"{path} is not valid TOML, so the usual settings count: {error}."]
    values, problems = _taken(table, _kinds_of_settings(), "", path.name)
    for name, kinds in (("sampling", SAMPLING), ("keys", dict.fromkeys(values.get("keys", ()), str))):
        values[name], more = _taken(values.get(name, {}), kinds, f"{name}.", path.name)
        problems += more
    return Settings(**values), problems


def check_sampling(sampling: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The options that an answer can be sampled with, and a sentence for each that is out of range.

    Imports the engine's options: call it where nobody waits for a frame.
    """
    import mistral_mlx as mm

    usable, problems = {}, []
    for name, value in sampling.items():
        try:
            mm.SamplingParams(**{name: value})
            usable[name] = value
        except InputError as error:
            problems.append(f"{error.message} {error.hint}".strip())
    return usable, problems


def parse_option(name: str, text: str) -> Any:
    """The value of an option of SAMPLING as it is typed.

    Raises:
        InputError: there is no such option, or it cannot have that value.
    """
    if name not in SAMPLING:
        raise InputError(f"There is no option {name!r}.", f"Options: {', '.join(SAMPLING)}.")
    try:
        value = SAMPLING[name](text)
    except ValueError:
        raise InputError(f"{name} is {text!r}.", f"It must be {_KINDS[SAMPLING[name]]}.") from None
    if problems := check_sampling({name: value})[1]:
        raise InputError(problems[0])
    return value


def save(settings: Settings, before: Settings, path: Path) -> None:
    """Write what differs from `before`; every other line of the file, comments among them, stays as it is.

    Raises:
        SettingsError: it cannot be written, or what is there is no TOML; then nothing is changed.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        path = path.resolve()  # a link stays one: many keep such files elsewhere
        old = path.read_bytes().decode("utf-8-sig") if path.exists() else ""
        document = tomlkit.parse(old)
        _change(document, _as_table(settings), _as_table(before))
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, tomlkit.dumps(document))
    except OSError as error:
        raise SettingsError(
            f"The settings cannot be written to {path}: {error.strerror}.", "They count until the chat ends."
        ) from error
    except (TOMLKitError, ValueError) as error:
        raise SettingsError(
            f"{path} is not valid TOML, so the settings were not written: {error}.", "Mend it, or move it away."
        ) from error


def _kinds_of_settings() -> dict[str, type]:
    defaults = Settings()
    return {f.name: type(getattr(defaults, f.name)) for f in fields(Settings)}


def _taken(
    table: Mapping[str, Any], kinds: Mapping[str, type], prefix: str, file: str
) -> tuple[dict[str, Any], list[str]]:
    """The values of a table that are of their kind, and what is wrong with the others."""
    taken, problems = {}, []
    for name, value in table.items():
        kind = kinds.get(name)
        if kind is None:
            known = ", ".join(kinds)
            problems.append(f"{file}: there is no setting {prefix}{name} (it is {value!r}); known here: {known}.")
        elif not _is_a(kind, value):
            problems.append(f"{file}: {prefix}{name} is {value!r}; it must be {_KINDS[kind]}.")
        else:
            taken[name] = value
    return taken, problems


def _is_a(kind: type, value: object) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _as_table(settings: Settings) -> dict[str, Any]:
    return {f.name: getattr(settings, f.name) for f in fields(Settings)}


def _change(table: Any, new: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    """Bring into a table of tomlkit's what differs between two tables."""
    for name in [*old, *(name for name in new if name not in old)]:
        if name not in new:
            table.pop(name, None)
        elif isinstance(new[name], Mapping):
            if new[name] != old.get(name):
                if not isinstance(table.get(name), Mapping):
                    table[name] = {}
                _change(table[name], new[name], old.get(name, {}))
        elif name not in old or new[name] != old[name]:
            table[name] = new[name]


def _replace(path: Path, text: str) -> None:
    """Write a file at once or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, name)
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise
