"""What a command is asked: a plain text, a conversation with tools, or a gap to fill; where it comes from."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mistral_mlx.errors import InputError

Mode = Literal["chat", "raw", "fill"]


@dataclass(frozen=True)
class Asked:
    """What is asked.

    Attributes:
        prompt: None for a conversation that says all there is.
        suffix: what follows the gap.
        system, messages: what comes before the prompt.
        around: options of `LLM.chat` and `ChatFormat.encode`: tools, stable, reasoning_effort.
        mode: None for what the model was trained to do.
    """

    prompt: str | None
    suffix: str | None = None
    system: str | None = None
    messages: list[Any] = field(default_factory=list)
    around: dict[str, Any] = field(default_factory=dict)
    mode: Mode | None = None


def add_to(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    parser.add_argument("prompt", nargs="?", help="the prompt; - or nothing reads it from stdin")
    parser.add_argument("-f", "--file", type=Path, metavar="PATH", help="read the prompt from a file")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--chat", action="store_true", help="ask it as a question (default for instruct models)")
    form.add_argument("--raw", action="store_true", help="carry it on as plain text (default for base models)")
    form.add_argument("--suffix", metavar="TEXT", help="write what belongs between the prompt and TEXT (Codestral)")
    chat = parser.add_argument_group("chat")
    chat.add_argument("--system", metavar="TEXT", help="a system prompt")
    chat.add_argument(
        "--messages", type=Path, metavar="FILE", help="a conversation before the prompt, or instead: JSON as OpenAI's"
    )
    chat.add_argument("--tools", type=Path, metavar="FILE", help="tools that the model may call: JSON as OpenAI's")
    chat.add_argument(
        "--stable",
        action="store_true",
        help="put system prompt and tools where they stay as a chat grows (v2 to v11 put them last)",
    )
    chat.add_argument("--reasoning-effort", metavar="E", help="how much to think, for models that can be told (v15)")


def read(arguments: argparse.Namespace) -> Asked:
    """The arguments of `add_to`, and what is in the files that they name.

    Raises:
        InputError: nothing is asked, two things are, or a file cannot be read.
    """
    around = {
        "tools": _json_list(arguments.tools, "--tools") if arguments.tools else [],
        "stable": arguments.stable,
        "reasoning_effort": arguments.reasoning_effort,
    }
    messages = _json_list(arguments.messages, "--messages") if arguments.messages else []
    chatty = [
        name for name in ("system", "messages", "tools", "stable", "reasoning_effort") if getattr(arguments, name)
    ]
    mode: Mode | None = "raw" if arguments.raw else "fill" if arguments.suffix is not None else None
    if chatty and mode:
        raise InputError(
            f"--{chatty[0].replace('_', '-')} has no place in plain text.",
            "Leave out --raw or --suffix, or write it into the prompt.",
        )
    silent = arguments.prompt is None and arguments.file is None
    prompt = None if messages and silent else read_prompt(arguments)
    if prompt == "" and mode != "fill":
        raise InputError("The prompt is empty.", "Say something.")
    return Asked(
        prompt,
        None if arguments.suffix is None else typed(arguments.suffix),
        None if arguments.system is None else typed(arguments.system),
        messages,
        around,
        "chat" if arguments.chat or chatty else mode,
    )


def read_prompt(arguments: argparse.Namespace) -> str:
    """The prompt from where it was said to be; a file or stdin loses its byte order mark and last line break."""
    if arguments.file is not None and arguments.prompt is not None:
        raise InputError("There is a prompt and a --file.", "Give one of the two.")
    try:
        if arguments.file is not None and str(arguments.file) != "-":
            return str(arguments.file.read_text(encoding="utf-8-sig")).removesuffix("\n")
        if arguments.prompt not in (None, "-"):
            return typed(arguments.prompt)
        if sys.stdin is None or (sys.stdin.isatty() and arguments.prompt is None):
            raise InputError("There is no prompt.", "Give it as an argument, with --file, or on stdin.")
        return sys.stdin.buffer.read().decode("utf-8-sig").removesuffix("\n")
    except OSError as error:
        raise InputError(f"{arguments.file} cannot be read: {error.strerror}.", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"The prompt is not text in UTF-8: {error}.", "Save it as UTF-8.") from error


def typed(text: str) -> str:
    """An argument as the bytes that were typed, read as UTF-8 whatever the locale says."""
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError as error:
        raise InputError(f"{text!r} is not text in UTF-8: {error}.", "Type it in UTF-8, or use --file.") from error


def read_json(path: Path, option: str) -> Any:
    """A file of JSON that an option names; raises InputError if it is none."""
    try:
        text = path.read_text(encoding="utf-8-sig") if str(path) != "-" else sys.stdin.read()
        return json.loads(text)
    except OSError as error:
        raise InputError(f"{option}: {path} cannot be read: {error.strerror}.", "Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{option}: {path} is not valid JSON: {error}.", "Mend it.") from error


def _json_list(path: Path, option: str) -> list[Any]:
    value = read_json(path, option)
    if not isinstance(value, list) or not value:
        raise InputError(f"{option}: {path} holds no list.", "Write a JSON list itself, with at least one entry.")
    return value
