"""mistral-mlx models: what is on this machine, what it is made of, fetching and removing."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mistral_mlx.cli.arguments import add_model, fetching, window
from mistral_mlx.cli.terminal import INTERRUPTED, clear_line, size
from mistral_mlx.errors import InputError

if TYPE_CHECKING:
    from mistral_mlx.models import ModelInfo


def add_to(commands: Any) -> None:
    """Add the command to a parser's commands."""
    parser = commands.add_parser("models", help="list, describe, fetch and remove models")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser(
        "list", help="what is on this machine", description="List the models on this machine, and short names to pull."
    )
    listing.add_argument("--json", action="store_true", help="print one JSON record instead of a table")
    listing.set_defaults(run=_list)
    info = actions.add_parser(
        "info",
        help="shapes, parameters, bytes, cache bytes by context length, and whether it fits",
        description="Describe a model without loading it. A folder that holds only a configuration will do.",
    )
    add_model(info)
    info.add_argument("--dtype", metavar="TYPE", help="count for float32, float16, bfloat16 or keep")
    info.add_argument("--window", metavar="N", help="count for another window: a number, or none")
    info.add_argument("--kv-bits", type=int, metavar="N", help="count keys and values in 8 or 4 bits")
    info.add_argument("--json", action="store_true", help="print one JSON record instead of a table")
    info.set_defaults(run=_info)
    pull = actions.add_parser(
        "pull",
        help="fetch a model from the hub",
        description="Fetch a model, or bring it up to date. What an interrupted pull fetched is not fetched again.",
    )
    pull.add_argument("model", metavar="MODEL", help="an alias, owner/name, or owner/name:Q4_K_M for one GGUF file")
    pull.set_defaults(run=_pull)
    remove = actions.add_parser("rm", help="remove a model that was pulled", description="Remove a pulled model.")
    remove.add_argument("model", metavar="MODEL", help="an alias, or owner/name")
    remove.add_argument("-y", "--yes", action="store_true", help="do not ask; needed where there is no terminal")
    remove.set_defaults(run=_remove)


def _list(arguments: argparse.Namespace) -> int:
    from mistral_mlx.models import ALIASES, on_disk

    entries = on_disk()
    if arguments.json:
        records = [asdict(entry) | {"path": str(entry.path)} for entry in entries]
        print(json.dumps({"models": records, "aliases": ALIASES}, ensure_ascii=False))
        return 0
    width = max([len(entry.name) for entry in entries] + [len("model")])
    print(f"{'model':<{width}}  {'alias':<17}{'on disk':>11}")
    for entry in entries:
        unfinished = "" if entry.complete else "  unfinished: pull it again"
        print(f"{entry.name:<{width}}  {entry.alias or '':<17}{size(entry.nbytes):>11}{unfinished}")
    there = {entry.name for entry in entries}
    absent = [(alias, name) for alias, name in ALIASES.items() if name not in there]
    if absent:
        print("\nto pull")
        print("\n".join(f"{alias:<18}{name}" for alias, name in absent))
    return 0


def _pull(arguments: argparse.Namespace) -> int:
    from mistral_mlx.models import pull

    try:
        print(pull(arguments.model, progress=fetching(arguments.model)))
    except KeyboardInterrupt:
        clear_line()
        print("mistral-mlx: stopped. The next pull goes on there.", file=sys.stderr)
        return INTERRUPTED
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    from mistral_mlx.models import remove, stored

    entry = stored(arguments.model)
    if not arguments.yes:
        if not (sys.stdin and sys.stdin.isatty()):
            raise InputError("There is nobody to ask whether to remove it.", "Add --yes.")
        print(f"Remove {entry.name}, {size(entry.nbytes)}? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("mistral-mlx: nothing was removed.", file=sys.stderr)
            return 1
    print(f"{size(remove(arguments.model))} freed")
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from mistral_mlx.models import info

    options = {} if arguments.window is None else {"window": window(arguments.window)}
    found = info(arguments.model, arguments.dtype, kv_bits=arguments.kv_bits, **options)
    if arguments.json:
        memory = asdict(found.memory) | {"total": found.memory.total, "fits": found.memory.fits}
        print(json.dumps(asdict(found) | {"path": str(found.path), "memory": memory}, ensure_ascii=False))
    else:
        print(_describe(found))
    return 0


def _describe(found: ModelInfo) -> str:
    from mistral_mlx.models import describe_windows

    config, memory = found.config, found.memory
    stored = "" if found.stored_bytes is None else f"{size(found.stored_bytes)} on disk, "
    verdict = "fits" if memory.fits else "does not fit"
    rows = [
        ("model", str(found.path)),
        (
            "layers",
            f"{config.num_hidden_layers} of hidden size {config.hidden_size:,}, ffn {config.intermediate_size:,}",
        ),
        ("heads", f"{config.num_attention_heads} sharing {config.num_key_value_heads}, of dimension {config.head_dim}"),
        ("attention", describe_windows(config)),
        ("positions", f"{config.max_position_embeddings:,}, RoPE base {config.rope_theta:,.0f}{_yarn(found)}"),
        ("vocabulary", f"{config.vocab_size:,}{', tied to the output' if config.tie_word_embeddings else ''}"),
        ("parameters", f"{found.parameters:,}"),
        ("weights", f"{stored}{size(found.loaded_bytes)} as {found.dtype}"),
        ("in use", f"{size(memory.total)} with {memory.tokens:,} tokens, {size(memory.prefill)} of it to read them"),
        ("this machine", f"{size(memory.limit)} of memory: {verdict}"),
    ]
    lines = [f"{name:<13}{value}" for name, value in rows]
    stored_as = f"{found.kv_bits} bits" if found.kv_bits else found.dtype
    lines += ["", f"cache, {stored_as:<9}{'tokens':>10}{'ours':>14}{'full attention':>18}"]
    lines += [f"{'':<16}{r.tokens:>10,}{size(r.windowed):>14}{size(r.full):>18}" for r in found.cache]
    return "\n".join(lines)


def _yarn(found: ModelInfo) -> str:
    yarn = found.config.yarn
    return f", YaRN x{yarn.factor:g} from {yarn.original_context:,}" if yarn else ""
