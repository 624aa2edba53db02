"""The mistral-mlx command. Results go to stdout, everything else to stderr.

Exit codes: 0 done; 2 the user gave something that cannot be used, said in one or two lines; 130 stopped by Ctrl-C.
Knows no MLX: what is slow to import is imported by the command that needs it, so that --help is instant.
"""

from __future__ import annotations

import argparse
import os
import sys
from io import TextIOWrapper
from pathlib import Path

from mistral_mlx import __version__
from mistral_mlx.cli import bench, chat, convert, generate, models, serve, tokens
from mistral_mlx.cli.terminal import INTERRUPTED, clear_line
from mistral_mlx.errors import MistralError

_USAGE_ERROR = 2


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
        clear_line()
        print(f"mistral-mlx: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return _USAGE_ERROR
    except KeyboardInterrupt:
        clear_line()
        print("mistral-mlx: stopped.", file=sys.stderr)
        return INTERRUPTED
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
    chat.add_to(commands)
    generate.add_to(commands)
    serve.add_to(commands)
    tokens.add_to(commands)
    convert.add_to(commands)
    models.add_to(commands)
    bench.add_to(commands)
    return parser
