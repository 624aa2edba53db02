"""mistral-mlx serve: answer requests over HTTP, by OpenAI's API."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

from mistral_mlx.cli.arguments import add_loading, add_model, loading
from mistral_mlx.errors import InputError

_Number = TypeVar("_Number", int, float)
_KEYS = "MISTRAL_MLX_API_KEYS"


def _number(kind: Callable[[str], _Number], least: float, most: float) -> Callable[[str], _Number]:
    """Reads numbers within a range."""

    def read(text: str) -> _Number:
        number = kind(text)
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text} is not from {least:g} to {most:g}")
        return number

    read.__name__ = "number"  # what argparse calls it
    return read


def _origin(text: str) -> str:
    """A website as browsers name it."""
    if text != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/?#@]+", text):
        raise argparse.ArgumentTypeError(f"{text} is no origin, as https://example.org or http://localhost:3000")
    return text


_count = _number(int, 1, 1_000_000)
_seconds = _number(float, 0.001, 1_000_000)


def add_to(commands: Any) -> None:
    """Add the command to a parser's commands."""
    parser = commands.add_parser(
        "serve",
        allow_abbrev=False,  # --api-key would be taken for a file of keys
        help="answer requests over HTTP, by OpenAI's API",
        description="Answer requests over HTTP, by OpenAI's API: chat completions, completions, and what goes with "
        "them. The address goes to stdout, one line of JSON for each request to stderr.",
        epilog="SIGTERM or Ctrl-C lets running answers finish; a second Ctrl-C does not.",
    )
    add_model(parser)
    add_loading(parser, draft=False)
    parser.add_argument("--name", help="what requests call the model (MODEL, of a path the last part)")
    where = parser.add_argument_group("who can reach it")
    where.add_argument("--host", default="127.0.0.1", help="the address to listen at (127.0.0.1: this machine only)")
    where.add_argument(
        "--port", type=_number(int, 0, 65_535), default=8080, metavar="N", help="0 for any that is free (8080)"
    )
    where.add_argument(
        "--api-keys",
        type=Path,
        metavar="FILE",
        help=f"keys, one a line, that requests must have one of; ${_KEYS}, with commas, adds to them",
    )
    where.add_argument(
        "--cors",
        action="append",
        type=_origin,
        default=[],
        dest="origins",
        metavar="ORIGIN",
        help="let pages of this website use the server, as https://example.org; may be repeated",
    )
    answers = parser.add_argument_group("answers that do not say otherwise")
    answers.add_argument("--temperature", type=_number(float, 0, 2), metavar="T", help="how much is left to chance (1)")
    answers.add_argument("--max-tokens", type=_count, metavar="N", help="the most tokens of a chat's answer (4096)")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-batch", type=_count, default=32, metavar="N", help="answers at a time (32)")
    limits.add_argument("--max-queue", type=_count, default=256, metavar="N", help="answers that may wait (256)")
    limits.add_argument(
        "--max-answer", type=_count, metavar="N", help="the most tokens that an answer may ask for (32768)"
    )
    limits.add_argument("--max-n", type=_count, metavar="N", help="answers to one prompt (16)")
    limits.add_argument(
        "--reuse",
        type=_number(float, 0, 1_000_000),
        metavar="GIB",
        help="memory to keep conversations in, so that they need not be read again (for as many as --max-batch, at "
        "most half of what is free)",
    )
    limits.add_argument("--max-body", type=_count, metavar="BYTES", help="the largest request (4194304)")
    limits.add_argument("--max-connections", type=_count, metavar="N", help="connections at a time (256)")
    limits.add_argument("--body-time", type=_seconds, dest="body_s", metavar="S", help="seconds for a body (30)")
    limits.add_argument("--header-time", type=_seconds, dest="header_s", metavar="S", help="seconds for a head (10)")
    limits.add_argument("--idle-time", type=_seconds, dest="idle_s", metavar="S", help="seconds between requests (30)")
    limits.add_argument(
        "--write-time", type=_seconds, dest="write_s", metavar="S", help="seconds for a client to read on (30)"
    )
    limits.add_argument(
        "--drain", type=_seconds, dest="drain_s", metavar="S", help="seconds that running answers get at the end (30)"
    )
    parser.add_argument("--log-prompts", action="store_true", help="say in the log what was asked")
    parser.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    # Everything that can be refused is refused before the model is loaded.
    try:
        from mistral_mlx.server.guard import is_loopback
        from mistral_mlx.server.run import bind, serve
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in ("fastapi", "uvicorn", "prometheus_client"):
            raise
        raise InputError(
            f"The server needs {name}, which is not installed.", 'Run: pip install "mistral-mlx[server]"'
        ) from error
    from mistral_mlx.llm import load
    from mistral_mlx.server.engine import Engine
    from mistral_mlx.server.settings import Settings

    given = vars(arguments)
    options = {f.name: given[f.name] for f in fields(Settings) if given.get(f.name) is not None}
    options["name"] = arguments.name or Path(arguments.model).name or arguments.model
    options["keys"] = _keys(arguments.api_keys)
    options["max_requests"] = arguments.max_batch + arguments.max_queue
    options["loopback"] = is_loopback(arguments.host)
    settings = Settings(**options | {"origins": tuple(arguments.origins)})
    if not settings.keys and not settings.loopback:
        raise InputError(
            f"At {arguments.host} anybody could use the model.",
            f"Give --api-keys FILE or set {_KEYS}, or listen at 127.0.0.1.",
        )
    if "*" in settings.origins and not settings.keys:
        raise InputError("Any website could use the model.", f"Give --api-keys FILE or set {_KEYS}, or name websites.")
    if "max_tokens" in options and settings.max_tokens > settings.max_answer:
        raise InputError(
            f"--max-tokens {settings.max_tokens} is more than an answer may have.",
            f"Give --max-answer {settings.max_tokens} too; it is {settings.max_answer}.",
        )
    how = loading(arguments)
    with bind(arguments.host, arguments.port) as bound:
        engine = Engine(
            lambda job: load(
                arguments.model,
                **how | {"progress": _ending(job.cancelled, how["progress"]), "loading": _ending(job.cancelled)},
            ),
            max_batch=arguments.max_batch,
            max_queue=arguments.max_queue,
            reuse_bytes=None if arguments.reuse is None else int(arguments.reuse * 2**30),
        )
        try:
            host, port = bound.getsockname()[:2]
            address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            said = f"listening on {address} as model {settings.name}; {address}/docs describes it"
            serve(engine, settings, bound, lambda: print(said, flush=True))
        finally:
            engine.close()
    return 0


def _ending(cancelled: Event, told: Callable[[int, int], object] | None = None) -> Callable[[int, int], None]:
    """What is told of the progress of loading, and ends it once it is cancelled."""

    def tell(done: int, total: int) -> None:
        if cancelled.is_set():
            raise KeyboardInterrupt
        if told:
            told(done, total)

    return tell


def _keys(file: Path | None) -> tuple[str, ...]:
    """The keys of a file and of the environment."""
    keys = {f"A key in ${_KEYS}": os.environ.get(_KEYS, "").split(",")}
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--api-keys {file} cannot be read: {error}.", "Give a text file.") from error
        found = {f"Line {n} of {file}": [line] for n, line in enumerate(lines, 1) if not line.strip().startswith("#")}
        if not any(line.strip() for (line,) in found.values()):
            raise InputError(f"--api-keys {file} has no key.", "Write one on each line.")
        keys |= found
    for place, written in keys.items():
        if not all(re.fullmatch("[!-~]*", key.strip()) for key in written):
            raise InputError(f"{place} is no plain word.", "Write keys in ASCII, without spaces.")
    return tuple(dict.fromkeys(key.strip() for written in keys.values() for key in written if key.strip()))
