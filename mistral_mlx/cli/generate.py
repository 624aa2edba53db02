"""mistral-mlx generate: answer a prompt, or carry on a text."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mistral_mlx.cli.arguments import add_loading, add_model, loading
from mistral_mlx.cli.terminal import INTERRUPTED, VISIBLE, size, status_line, stop_on_interrupt
from mistral_mlx.errors import InputError

if TYPE_CHECKING:
    from mistral_mlx.completion import Chunk, Stats


def add_to(commands: Any) -> None:
    """Add the command to a parser's commands."""
    parser = commands.add_parser(
        "generate",
        help="answer a prompt",
        description="Answer a prompt, or carry on a text. The answer goes to stdout as it comes, figures to stderr.",
        epilog="Ctrl-C stops the answer and keeps what was written.",
    )
    add_model(parser)
    parser.add_argument("prompt", nargs="?", help="the prompt; - or nothing reads it from stdin")
    parser.add_argument("-f", "--file", type=Path, metavar="PATH", help="read the prompt from a file")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--chat", action="store_true", help="ask it as a question (default for instruct models)")
    form.add_argument("--raw", action="store_true", help="carry it on as plain text (default for base models)")
    parser.add_argument("--system", metavar="TEXT", help="a system prompt, for chat")
    add_loading(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON record instead of text")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--max-tokens", type=int, metavar="N", help="the most tokens to generate (512)")
    sampling.add_argument(
        "-t", "--temperature", type=float, metavar="T", help="0 takes the likeliest token each time (0)"
    )
    sampling.add_argument("--top-k", type=int, metavar="K", help="choose among the K likeliest tokens")
    sampling.add_argument("--top-p", type=float, metavar="P", help="choose among the likeliest that together reach P")
    sampling.add_argument(
        "--min-p", type=float, metavar="P", help="drop tokens less than P times as likely as the best"
    )
    sampling.add_argument(
        "--repetition-penalty",
        type=float,
        metavar="R",
        help="divide the logits of tokens in the prompt or the answer; 1 for none",
    )
    sampling.add_argument(
        "--presence-penalty", type=float, metavar="P", help="take P from the logits of tokens in the answer"
    )
    sampling.add_argument(
        "--frequency-penalty", type=float, metavar="P", help="take P from them for each time they came"
    )
    sampling.add_argument(
        "--logit-bias", type=_bias, action="append", metavar="ID=B", help="add B to a token's logit; may be repeated"
    )
    sampling.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text (drawn anew)")
    sampling.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="end before this text, taken as it is ($'\\n' is a line break in bash and zsh); may be repeated",
    )
    sampling.add_argument("--logprobs", type=int, metavar="N", help="with --json: the N likeliest tokens at each step")
    parser.set_defaults(run=_generate)


def _generate(arguments: argparse.Namespace) -> int:
    # Everything that can be refused is refused before the model is loaded.
    from mistral_mlx.engine.sampling import SamplingParams

    names = SamplingParams.names()
    sampling = {name: value for name, value in vars(arguments).items() if name in names and value is not None}
    if arguments.logit_bias is not None:
        sampling["logit_bias"] = dict(arguments.logit_bias)
        if len(sampling["logit_bias"]) < len(arguments.logit_bias):
            raise InputError("--logit-bias names a token twice.", "Give each token once.")
    if arguments.stop is not None:
        sampling["stop"] = [_argument(text) for text in arguments.stop]
    params = SamplingParams(**sampling)
    sampling["seed"] = params.seed  # drawn here if none was given, so that --json can tell it
    if arguments.raw and arguments.system is not None:
        raise InputError("--system has no place in plain text.", "Leave out --raw, or write it into the prompt.")
    if arguments.logprobs and not arguments.json:
        raise InputError("--logprobs shows nothing without --json.", "Add --json.")
    prompt = _read_prompt(arguments)
    if not prompt:
        raise InputError("The prompt is empty.", "Say something.")
    system = None if arguments.system is None else _argument(arguments.system)

    from mistral_mlx.completion import Completion
    from mistral_mlx.llm import load

    llm = load(arguments.model, **loading(arguments))
    chat = arguments.chat or system is not None or (llm.instruct and not arguments.raw)
    mode = "chat" if chat else "raw"
    with stop_on_interrupt() as cancel:
        options: dict[str, Any] = {"cancel": cancel, "progress": status_line(_reading), **sampling}
        chunks = llm.chat(system).stream(prompt, **options) if chat else llm.stream(prompt, **options)
        completion = Completion.join(chunks if arguments.json else _echo(chunks))
    if arguments.json:
        record = {"model": arguments.model, "mode": mode, "sampling": asdict(params), **asdict(completion)}
        print(json.dumps(record, ensure_ascii=False))
    else:
        print(f"[{mode}] {_figures(completion.stats, completion.finish_reason)}", file=sys.stderr)
    return INTERRUPTED if completion.finish_reason == "cancelled" else 0


def _read_prompt(arguments: argparse.Namespace) -> str:
    """The prompt from where it was said to be; a file or stdin loses its byte order mark and last line break."""
    if arguments.file is not None and arguments.prompt is not None:
        raise InputError("There is a prompt and a --file.", "Give one of the two.")
    try:
        if arguments.file is not None:
            return str(arguments.file.read_text(encoding="utf-8-sig")).removesuffix("\n")
        if arguments.prompt not in (None, "-"):
            return _argument(arguments.prompt)
        if sys.stdin is None or (sys.stdin.isatty() and arguments.prompt is None):
            raise InputError("There is no prompt.", "Give it as an argument, with --file, or on stdin.")
        return sys.stdin.buffer.read().decode("utf-8-sig").removesuffix("\n")
    except OSError as error:
        raise InputError(f"{arguments.file} cannot be read: {error.strerror}.", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"The prompt is not text in UTF-8: {error}.", "Save it as UTF-8.") from error


def _argument(text: str) -> str:
    """An argument as the bytes that were typed, read as UTF-8 whatever the locale says."""
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError as error:
        raise InputError(f"{text!r} is not text in UTF-8: {error}.", "Type it in UTF-8, or use --file.") from error


def _echo(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Print the text while it passes."""
    terminal, last = sys.stdout.isatty(), ""
    for chunk in chunks:
        text = chunk.text.translate(VISIBLE) if terminal else chunk.text
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            last = text
        yield chunk
    if not last.endswith("\n"):
        print(flush=True)


def _figures(stats: Stats, finish_reason: str) -> str:
    return (
        f"{stats.prompt_tokens:,} tokens read at {stats.prompt_tps:.1f}/s, {stats.completion_tokens:,} written at "
        f"{stats.decode_tps:.1f}/s ({finish_reason}), first after {stats.ttft_s:.2f} s, "
        f"cache {size(stats.cache_bytes)}"
    )


def _reading(done: int, total: int) -> str:
    return f"reading the prompt: {done:,} of {total:,} tokens"


def _bias(text: str) -> tuple[int, float]:
    """An argument of --logit-bias."""
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no token id with a number, such as 42=-5") from None
