"""mistral-mlx generate: answer a prompt, or carry on a text."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mistral_mlx.cli import prompt
from mistral_mlx.cli.arguments import add_loading, add_model, loading
from mistral_mlx.cli.terminal import INTERRUPTED, VISIBLE, size, status_line, stop_on_interrupt
from mistral_mlx.completion import join_calls
from mistral_mlx.errors import InputError

if TYPE_CHECKING:
    from mistral_mlx.completion import Chunk, Stats
    from mistral_mlx.llm import LLM


_INCOMPLETE = 1


def add_to(commands: Any) -> None:
    """Add the command to a parser's commands."""
    parser = commands.add_parser(
        "generate",
        help="answer a prompt",
        description="Answer a prompt, or carry on a text. The answer goes to stdout as it comes, thoughts and figures "
        "to stderr.",
        epilog="Ctrl-C stops the answer and keeps what was written. The exit code is 1 where a form was asked for and "
        "the answer ended before it was complete.",
    )
    add_model(parser)
    prompt.add_to(parser)
    add_loading(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON record instead of text")
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="FILE",
        help="keep in FILE what was read and said: what a later prompt begins with alike is not read again",
    )
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
    form = parser.add_argument_group("form of the answer")
    held = form.add_mutually_exclusive_group()
    held.add_argument("--json-mode", action="store_true", default=None, help="a JSON object")
    held.add_argument("--json-schema", type=Path, metavar="FILE", help="JSON that the schema in FILE allows")
    held.add_argument("--regex", metavar="R", help="text that matches R as a whole")
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
        sampling["stop"] = [prompt.typed(text) for text in arguments.stop]
    if arguments.json_schema is not None:
        sampling["json_schema"] = prompt.read_json(arguments.json_schema, "--json-schema")
        if not isinstance(sampling["json_schema"], dict):
            raise InputError(f"--json-schema: {arguments.json_schema} holds no object.", "Write a JSON schema.")
    params = SamplingParams(**sampling)
    sampling["seed"] = params.seed  # drawn here if none was given, so that --json can tell it
    if arguments.logprobs and not arguments.json:
        raise InputError("--logprobs shows nothing without --json.", "Add --json.")
    asked = prompt.read(arguments)
    kept: Path | None = arguments.cache
    if kept is not None and (kept.is_dir() or not kept.parent.is_dir()):
        raise InputError(f"--cache {kept} is no file that can be written.", "Give a file in a folder that exists.")

    from mistral_mlx.completion import Completion
    from mistral_mlx.engine.prefix import is_cache
    from mistral_mlx.llm import load

    if kept is not None and kept.exists() and not is_cache(kept):
        raise InputError(f"--cache {kept} is another file, which stays as it is.", "Give the name of a new one.")
    llm = load(arguments.model, **loading(arguments))
    if kept is not None and kept.exists():
        llm.load_cache(kept)
    mode = asked.mode or ("chat" if llm.instruct else "raw")
    with stop_on_interrupt() as cancel:
        chunks = _answer(llm, asked, mode, {"cancel": cancel, "progress": status_line(_reading), **sampling})
        completion = Completion.join(chunks if arguments.json else _echo(chunks))
    if arguments.json:
        record = {"model": arguments.model, "mode": mode, "sampling": asdict(params), **asdict(completion)}
        print(json.dumps(record, ensure_ascii=False))
    else:
        print(f"[{mode}] {_figures(completion.stats, completion.finish_reason)}", file=sys.stderr)
    if kept is not None and completion.tokens:
        llm.save_cache(kept)
    if completion.finish_reason == "cancelled":
        return INTERRUPTED
    if params.forms and completion.finish_reason in ("length", "cut"):
        why = "--max-tokens" if completion.finish_reason == "length" else "--stop"
        print(f"mistral-mlx: {why} ended the answer before its form was complete.", file=sys.stderr)
        return _INCOMPLETE
    return 0


def _answer(llm: LLM, asked: prompt.Asked, mode: prompt.Mode, options: dict[str, Any]) -> Iterator[Chunk]:
    if mode == "chat":
        chat = llm.chat(asked.system, asked.messages, **asked.around)
        return chat.stream_reply(**options) if asked.prompt is None else chat.stream(asked.prompt, **options)
    assert asked.prompt is not None
    if asked.suffix is None:
        return llm.stream(asked.prompt, **options)
    return llm.stream_fill(asked.prompt, asked.suffix, **options)


def _echo(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Print the text while it passes, thoughts on stderr, and calls of tools as a line of JSON each."""
    terminal, last = sys.stdout.isatty(), ""
    dim, normal = ("\x1b[2m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
    thinking, deltas = False, []
    for chunk in chunks:
        deltas += chunk.tool_calls
        if chunk.thinking:
            begin = "" if thinking else "[thinking] "
            print(f"{dim}{begin}{chunk.thinking.translate(VISIBLE)}{normal}", end="", file=sys.stderr, flush=True)
            thinking = True
        if thinking and (chunk.text or chunk.tool_calls or chunk.finish_reason):
            print(file=sys.stderr, flush=True)
            thinking = False
        text = chunk.text.translate(VISIBLE) if terminal else chunk.text
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            last = text
        yield chunk
    if not last.endswith("\n") and (last or not deltas):
        print(flush=True)
    for call in join_calls(deltas):
        print(json.dumps(asdict(call), ensure_ascii=False), flush=True)


def _figures(stats: Stats, finish_reason: str) -> str:
    drafts = f"{stats.accepted_tokens:,} of {stats.drafted_tokens:,} drafted right, " if stats.drafted_tokens else ""
    known = f" ({stats.reused_tokens:,} known before)" if stats.reused_tokens else ""
    return (
        f"{stats.prompt_tokens:,} tokens{known} read at {stats.prompt_tps:.1f}/s, "
        f"{stats.completion_tokens:,} written at {stats.decode_tps:.1f}/s ({finish_reason}), "
        f"first after {stats.ttft_s:.2f} s, {drafts}cache {size(stats.cache_bytes)}"
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
