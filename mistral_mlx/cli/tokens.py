"""mistral-mlx tokens: a prompt as the ids that a model reads."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from mistral_mlx.cli import prompt
from mistral_mlx.cli.arguments import add_model, fetching
from mistral_mlx.cli.terminal import VISIBLE
from mistral_mlx.errors import TokenizerError

if TYPE_CHECKING:
    from mistral_mlx.text.files import Text
    from mistral_mlx.text.tokenizer import Tokenizer


def add_to(commands: Any) -> None:
    """Add the command to a parser's commands."""
    parser = commands.add_parser(
        "tokens",
        help="show a prompt as a model reads it",
        description="Show the ids of a prompt and what each stands for, control tokens in colour. A folder with a "
        "tokenizer will do. What is in quotation marks is text, in JSON's spelling; \\xf0 is a byte of a character.",
    )
    add_model(parser)
    prompt.add_to(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON record instead of a table")
    parser.set_defaults(run=_tokens)


def _tokens(arguments: argparse.Namespace) -> int:
    asked = prompt.read(arguments)

    from mistral_mlx.models import text_of

    text = text_of(arguments.model, progress=fetching(arguments.model))
    if isinstance(text.tokenizer, TokenizerError):
        raise text.tokenizer
    mode = asked.mode or ("chat" if text.instruct else "raw")
    ids = _encode(text, asked, mode)
    names = {i: name for name, i in text.tokenizer.control.items()}
    rows = [(i, names.get(i) or _spelled(text.tokenizer, i), i in names) for i in ids]
    if arguments.json:
        said = text.tokenizer.token_bytes
        tokens = [
            {"id": i, "piece": piece if control else said(i).decode("utf-8", "backslashreplace"), "control": control}
            for i, piece, control in rows
        ]
        print(json.dumps({"model": arguments.model, "mode": mode, "tokens": tokens}, ensure_ascii=False))
        return 0
    from rich.console import Console
    from rich.text import Text as Line

    console = Console(soft_wrap=True, highlight=False)
    lines = []
    width, id_width = len(str(len(ids) - 1)), max(len(str(i)) for i in ids)
    for at, (i, piece, control) in enumerate(rows):
        line = Line(f"{at:>{width}}  ", "dim").append(f"{i:>{id_width}}  ", "default not dim")
        lines.append(line.append(piece.translate(VISIBLE), "bold magenta not dim" if control else "not dim"))
    with console.capture() as printed:
        console.print(*lines, sep="\n")
    sys.stdout.write(printed.get())
    print(f"[{mode}] {len(ids):,} tokens, {sum(control for *_, control in rows):,} of them control", file=sys.stderr)
    return 0


def _encode(text: Text, asked: prompt.Asked, mode: prompt.Mode) -> list[int]:
    from mistral_mlx.text.tools import read_tools

    assert not isinstance(text.tokenizer, TokenizerError)
    if mode == "raw":
        bos = text.tokenizer.bos_id
        return ([] if bos is None else [bos]) + text.tokenizer.encode(asked.prompt or "")
    if isinstance(text.chat_format, TokenizerError):
        raise text.chat_format
    if mode == "fill":
        return text.chat_format.fill(asked.prompt or "", asked.suffix or "")
    system = [] if asked.system is None else [{"role": "system", "content": asked.system}]
    last = [] if asked.prompt is None else [{"role": "user", "content": asked.prompt}]
    around = {**asked.around, "tools": read_tools(asked.around["tools"])}
    return text.chat_format.encode([*system, *asked.messages, *last], **around)


def _spelled(tokenizer: Tokenizer, token: int) -> str:
    """What a token says, in quotation marks; bytes by their numbers where they make no characters."""
    data = tokenizer.token_bytes(token)
    try:
        text = json.dumps(data.decode("utf-8"), ensure_ascii=False)
        return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
    except UnicodeDecodeError:
        return json.dumps(data.decode("utf-8", "backslashreplace"), ensure_ascii=False).replace("\\\\x", "\\x")
