"""mistral-mlx bench: how fast a model reads and writes on this machine, and how near that is to what memory allows."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mistral_mlx.cli.arguments import add_loading, add_model, loading
from mistral_mlx.cli.terminal import size, status_line

if TYPE_CHECKING:
    from mistral_mlx.bench import Report


def add_to(commands: Any) -> None:
    """Add the command to a parser's commands."""
    parser = commands.add_parser(
        "bench",
        help="measure a model on this machine",
        description="Measure how fast a model reads and writes on this machine, with random tokens.",
    )
    add_model(parser)
    parser.add_argument(
        "--contexts", type=int, nargs="+", default=[128, 1024, 4096], metavar="N", help="tokens before those timed"
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8], metavar="N", help="answers at once")
    parser.add_argument("--tokens", type=int, default=32, metavar="N", help="tokens to time at each (32)")
    parser.add_argument("--json", action="store_true", help="print one JSON record instead of tables")
    add_loading(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from mistral_mlx.bench import bench
    from mistral_mlx.llm import load

    llm = load(arguments.model, **loading(arguments))
    progress = status_line(lambda done, total: f"measuring, {done} of {total} done")
    report = bench(llm, arguments.contexts, arguments.rows, arguments.tokens, progress)
    print(json.dumps(asdict(report)) if arguments.json else _describe(report))
    return 0


def _describe(report: Report) -> str:
    lines = [
        f"{report.machine}, mlx {report.mlx}, {report.dtype}",
        f"a step reads {size(report.weights_read)} of weights; memory gives {report.bandwidth / 1e9:.1f} GB/s",
        "",
        f"{'read, tokens':<19}{'tokens/s':>10}",
    ]
    lines += [f"{f'{r.start:,} to {r.end:,}':<19}{r.tokens_per_second:>10,.1f}" for r in report.reading]
    lines += ["", f"{'written, after':<19}{'tokens/s':>10}{'at most':>10}{'cache':>12}{'a step takes':>14}"
                  f"{'one ahead':>12}{'taking':>12}"]  # fmt: skip
    lines += [
        f"{f'{w.context:,} tokens':<19}{w.tokens_per_second:>10,.1f}{w.bound:>10,.1f}{size(w.cache_bytes):>12}"
        f"{size(w.step_bytes):>14}{w.ahead_tokens_per_second:>12,.1f}{size(w.ahead_step_bytes):>12}"
        for w in report.writing
    ]
    lines += ["", f"{'answers at once':<19}{'tokens/s':>10}"]
    lines += [f"{t.rows:<19}{t.tokens_per_second:>10,.1f}" for t in report.together]
    lines += [
        "",
        f"first token after {report.first_token_prompt} tokens: {report.first_token_s:.2f} s, "
        f"once they were read {report.again_s:.2f} s",
        f"peak memory {size(report.peak_bytes)}",
        "At most: if a step took no longer than reading weights, keys and values once.",
        "One ahead: each step begun before the token before it is known, which this engine does not do.",
    ]
    return "\n".join(lines)
