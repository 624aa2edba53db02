"""The mistral-mlx command. Results go to stdout, everything else to stderr.

Exit codes: 0 done; 2 the user gave something that cannot be used, said in one or two lines; 130 stopped by Ctrl-C.
Knows no MLX: what is slow to import is imported by the command that needs it, so that --help is instant.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from mistral_mlx import __version__
from mistral_mlx.errors import InputError, MistralError

if TYPE_CHECKING:
    from mistral_mlx.completion import Chunk, Stats
    from mistral_mlx.models import ModelInfo

_USAGE_ERROR = 2
_INTERRUPTED = 130

# What a terminal would take as a command is shown instead of sent: C0 but newline and tab, DEL, and C1.
_VISIBLE = (
    {c: 0x2400 + c for c in range(0x20) if chr(c) not in "\n\t"}
    | {0x7F: 0x2421}
    | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before we started
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  as long as the process
    arguments = _parser().parse_args(argv)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows what it can
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except MistralError as error:
        print(f"mistral-mlx: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return _USAGE_ERROR
    except KeyboardInterrupt:
        print("\nmistral-mlx: stopped.", file=sys.stderr)
        return _INTERRUPTED
    except OSError as error:
        # Python flushes stdout once more at exit: into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 0  # the reader went away, as `| head` does
        print(f"mistral-mlx: {error}", file=sys.stderr)
        return _USAGE_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mistral-mlx", description="Run Mistral models exactly, on Apple's MLX.")
    parser.add_argument("--version", action="version", version=f"mistral-mlx {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_models(commands)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m", "--model", required=True, metavar="MODEL", help='a model folder, a .gguf file, or "demo" (135M, built in)'
    )


# ---- generate ---------------------------------------------------------------------------------------------------


def _add_generate(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        help="answer a prompt",
        description="Answer a prompt, or carry on a text. The answer goes to stdout as it comes, figures to stderr.",
        epilog="Ctrl-C stops the answer and keeps what was written.",
    )
    _add_model(parser)
    parser.add_argument("prompt", nargs="?", help="the prompt; - or nothing reads it from stdin")
    parser.add_argument("-f", "--file", type=Path, metavar="PATH", help="read the prompt from a file")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--chat", action="store_true", help="ask it as a question (default for instruct models)")
    form.add_argument("--raw", action="store_true", help="carry it on as plain text (default for base models)")
    parser.add_argument("--system", metavar="TEXT", help="a system prompt, for chat")
    parser.add_argument("--dtype", metavar="TYPE", help="float32, float16 or bfloat16; keep: leave weights packed")
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
    sampling.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    parser.set_defaults(run=_generate)


def _generate(arguments: argparse.Namespace) -> int:
    # Everything that can be refused is refused before the model is loaded.
    from mistral_mlx.engine.sampling import SamplingParams

    names = SamplingParams.names()
    sampling = {name: value for name, value in vars(arguments).items() if name in names and value is not None}
    params = SamplingParams(**sampling)
    sampling["seed"] = params.seed  # drawn here if none was given, so that --json can tell it
    if arguments.raw and arguments.system is not None:
        raise InputError("--system has no place in plain text.", "Leave out --raw, or write it into the prompt.")
    prompt = _read_prompt(arguments)
    system = None if arguments.system is None else _argument(arguments.system)

    from mistral_mlx.completion import Completion
    from mistral_mlx.llm import load

    llm = load(arguments.model, dtype=arguments.dtype)
    chat = arguments.chat or system is not None or (llm.instruct and not arguments.raw)
    mode = "chat" if chat else "raw"
    with _stop_on_interrupt() as cancel:
        options: dict[str, Any] = {"cancel": cancel, "progress": _progress_line(), **sampling}
        chunks = llm.chat(system).stream(prompt, **options) if chat else llm.stream(prompt, **options)
        completion = Completion.join(chunks if arguments.json else _echo(chunks))
    if arguments.json:
        record = {"model": arguments.model, "mode": mode, "sampling": asdict(params), **asdict(completion)}
        print(json.dumps(record, ensure_ascii=False))
    else:
        print(f"[{mode}] {_figures(completion.stats, completion.finish_reason)}", file=sys.stderr)
    return _INTERRUPTED if completion.finish_reason == "cancelled" else 0


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
        raise InputError(f"The prompt is not text in UTF-8: {error}.", "Type it in UTF-8, or use --file.") from error


def _echo(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Print the text while it passes."""
    terminal, last = sys.stdout.isatty(), ""
    for chunk in chunks:
        text = chunk.text.translate(_VISIBLE) if terminal else chunk.text
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            last = text
        yield chunk
    if not last.endswith("\n"):
        print(flush=True)


def _progress_line() -> Callable[[int, int], None] | None:
    """Shows on a terminal how much of a long prompt has been read, and clears the line once it has."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        line = f"reading the prompt: {done:,} of {total:,} tokens" if done < total else ""
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    return show


@contextmanager
def _stop_on_interrupt() -> Iterator[Event]:
    """The first Ctrl-C sets the event, so that what was written stays; a second one ends the program."""
    stop = Event()

    def interrupt(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _figures(stats: Stats, finish_reason: str) -> str:
    return (
        f"{stats.prompt_tokens:,} tokens read at {stats.prompt_tps:.1f}/s, {stats.completion_tokens:,} written at "
        f"{stats.decode_tps:.1f}/s ({finish_reason}), first after {stats.ttft_s:.2f} s, "
        f"cache {_size(stats.cache_bytes)}"
    )


# ---- models -----------------------------------------------------------------------------------------------------


def _add_models(commands: Any) -> None:
    parser = commands.add_parser("models", help="what a model is made of")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    info = actions.add_parser(
        "info",
        help="shapes, parameters, bytes, and cache bytes by context length",
        description="Describe a model without loading it. A folder that holds only a config.json will do.",
    )
    _add_model(info)
    info.add_argument("--dtype", metavar="TYPE", help="count for float32, float16, bfloat16 or keep")
    info.add_argument("--json", action="store_true", help="print one JSON record instead of a table")
    info.set_defaults(run=_models_info)


def _models_info(arguments: argparse.Namespace) -> int:
    from mistral_mlx.models import info

    found = info(arguments.model, arguments.dtype)
    if arguments.json:
        record = asdict(found) | {"path": str(found.path), "fits": found.fits}
        print(json.dumps(record, ensure_ascii=False))
    else:
        print(_describe(found))
    return 0


def _describe(found: ModelInfo) -> str:
    config = found.config
    windows = sorted({w for w in config.windows if w is not None})
    full = config.windows.count(None)
    attention = ", ".join(
        ([f"window {' or '.join(f'{w:,}' for w in windows)}"] if windows else [])
        + ([f"full in {full} of {config.num_hidden_layers} layers" if windows else "full"] if full else [])
    )
    stored = "" if found.stored_bytes is None else f"{_size(found.stored_bytes)} on disk, "
    verdict = "fits" if found.fits else "does not fit"
    rows = [
        ("model", str(found.path)),
        (
            "layers",
            f"{config.num_hidden_layers} of hidden size {config.hidden_size:,}, ffn {config.intermediate_size:,}",
        ),
        ("heads", f"{config.num_attention_heads} sharing {config.num_key_value_heads}, of dimension {config.head_dim}"),
        ("attention", attention),
        ("positions", f"{config.max_position_embeddings:,}, RoPE base {config.rope_theta:,.0f}{_yarn(found)}"),
        ("vocabulary", f"{config.vocab_size:,}{', tied to the output' if config.tie_word_embeddings else ''}"),
        ("parameters", f"{found.parameters:,}"),
        ("weights", f"{stored}{_size(found.loaded_bytes)} as {found.dtype}"),
        ("this machine", f"{_size(found.memory_bytes)} of memory: {verdict}"),
    ]
    lines = [f"{name:<13}{value}" for name, value in rows]
    lines += ["", f"cache, {found.dtype:<9}{'tokens':>10}{'ours':>14}{'full attention':>18}"]
    lines += [f"{'':<16}{r.tokens:>10,}{_size(r.windowed):>14}{_size(r.full):>18}" for r in found.cache]
    return "\n".join(lines)


def _yarn(found: ModelInfo) -> str:
    yarn = found.config.yarn
    return f", YaRN x{yarn.factor:g} from {yarn.original_context:,}" if yarn else ""


def _size(count: int) -> str:
    """Bytes in binary units, as memory is counted."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
