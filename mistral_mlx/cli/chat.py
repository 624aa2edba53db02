"""mistral-mlx chat: talk with a model in the terminal."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from mistral_mlx.cli import prompt
from mistral_mlx.cli.arguments import add_loading, loading
from mistral_mlx.cli.terminal import stop_on_interrupt
from mistral_mlx.errors import InputError


def add_to(commands: Any) -> None:
    """Add the command to a parser's commands."""
    parser = commands.add_parser(
        "chat",
        help="talk with a model in the terminal",
        description="Talk with a model in the terminal. Every conversation is kept, and can be taken up again.",
        epilog="Text that is piped in becomes the first message, to be sent when you like.",
    )
    add_arguments(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments, and what it runs."""
    parser.add_argument(
        "-m",
        "--model",
        metavar="MODEL",
        help='an alias ("demo", "7b"; see `models list`), a folder, a .gguf file, or owner/name on the hub '
        "(that of the settings, or of the last conversation)",
    )
    parser.add_argument("--system", metavar="TEXT", help="a system prompt")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--continue", dest="continue_newest", action="store_true", help="go on with the last one")
    again.add_argument("--resume", metavar="ID", help="go on with the conversation whose id begins so")
    parser.add_argument(
        "--plain", action="store_true", help="lines and whole sentences only, for screen readers and simple terminals"
    )
    parser.add_argument("--theme", metavar="NAME", help="mistral-dark, mistral-light, high-contrast or another")
    parser.add_argument(
        "--tools", type=Path, metavar="FILE", help="a Python file: the model may call the public functions in it"
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("-t", "--temperature", type=float, metavar="T", help="0 takes the likeliest token each time")
    sampling.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text (drawn anew)")
    sampling.add_argument("--max-tokens", type=int, metavar="N", help="the most tokens of an answer")
    add_loading(parser)
    parser.set_defaults(run=_chat)


def _chat(arguments: argparse.Namespace) -> int:
    plain: bool = arguments.plain
    if plain and arguments.theme:
        raise InputError("--theme has no place in the plain chat.", "Leave it out.")
    if not plain and not _has_screen():
        raise InputError(
            "The chat needs a terminal, and its output goes elsewhere.",
            "For one answer use `mistral-mlx generate`; `mistral-mlx chat --plain` writes lines to anywhere.",
        )
    if not plain and os.environ.get("TERM", "") in ("", "dumb", "unknown"):
        print("mistral-mlx: this terminal cannot draw a screen (see TERM), so this is --plain.", file=sys.stderr)
        plain = True

    options, tools = _sampling(arguments), _functions(arguments.tools) if arguments.tools else ()
    draft = ""
    if not plain:
        from tui.terminal import keyboard_from_tty
        from tui.themes import choose

        choose(arguments.theme or "", False, os.environ)
        draft = keyboard_from_tty()

    from tui.start import Start

    start = Start(
        model=arguments.model,
        system=None if arguments.system is None else prompt.typed(arguments.system),
        options=options,
        loading={name: value for name, value in loading(arguments).items() if name != "progress"},
        continue_newest=arguments.continue_newest,
        resume=arguments.resume,
        draft=draft,
        theme=arguments.theme,
        tools=tools,
    )
    if plain:
        from tui.plain import run as run_plain

        return run_plain(start, stop_on_interrupt)

    from tui.app import run

    return run(start)


def _has_screen() -> bool:
    return sys.stdout.isatty()


def _sampling(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, checked; that takes the engine's word only where there are any."""
    given = {
        name: value for name in ("temperature", "seed", "max_tokens") if (value := getattr(arguments, name)) is not None
    }
    if given:
        from mistral_mlx import SamplingParams

        SamplingParams(**given)
    return given


def _functions(path: Path) -> tuple[Callable[..., Any], ...]:
    """The public functions that a Python file defines.

    Raises:
        InputError: it cannot be read or run, or a model could not call what is in it.
    """
    from mistral_mlx import Tool

    module = ModuleType("chat_tools")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where Python looks up what the hints of its functions mean
    try:
        exec(compile(path.read_bytes(), path, "exec"), module.__dict__)
    except OSError as error:
        raise InputError(f"--tools: {path} cannot be read: {error.strerror}.", "Check the path.") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"--tools: {path} cannot be run: {type(error).__name__}: {error}.", "Mend it.") from error
    functions = tuple(
        value
        for name, value in vars(module).items()
        if isinstance(value, FunctionType) and value.__module__ == module.__name__ and not name.startswith("_")
    )
    if not functions:
        raise InputError(f"--tools: {path} defines no function.", "Write one with type hints and a docstring.")
    for function in functions:
        Tool.of(function, f"--tools: {path}")
    return functions
