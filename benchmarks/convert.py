"""Convert a model with the shape of Mistral 7B to 4 bits, beside mlx_lm.convert: seconds, and the most memory taken.

    uv run python benchmarks/convert.py [--layers 32] [--rounds 3] [--folder DIR]

Writes a bfloat16 checkpoint of 14.5 GB (random numbers; every layer has the same), converts it by both in turn, each
time in a process of its own, and deletes everything. Needs 24 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mistral_mlx.backend import preload_blas

preload_blas()

import mlx.core as mx  # noqa: E402

from mistral_mlx.config import ModelConfig  # noqa: E402
from mistral_mlx.weights.names import expected_shapes  # noqa: E402

# Both get the same BLAS; neither loads anything of the other's.
BLAS = "from mistral_mlx.backend import preload_blas; preload_blas(); import sys; "
COMMANDS = {
    "mistral-mlx": BLAS + "from mistral_mlx.cli import main; sys.exit(main(['convert', IN, '-o', OUT, '-q', '4']))",
    "mlx-lm": BLAS + "from mlx_lm.convert import convert; convert(IN, OUT, quantize=True)",
}


def write_source(folder: Path, layers: int) -> int:
    """A checkpoint in Hugging Face's layout, a shard for each layer; returns its bytes."""
    config = ModelConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, vocab_size=32000, rms_norm_eps=1e-5, rope_theta=1e4, sliding_window=4096,
        max_position_embeddings=32768, tie_word_embeddings=False, eos_token_ids=(2,),
    )  # fmt: skip
    keys = config.to_hf("mistral") | {"torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(keys))
    words = {f"w{i}": i for i in range(config.vocab_size)}
    tokenizer = {
        "version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None, "decoder": None, "truncation": None, "padding": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    shapes = expected_shapes(config)
    of_layer = {n.split(".", 3)[3]: mx.random.normal(s, mx.bfloat16, scale=0.02)
                for n, s in shapes.items() if ".layers.0." in n}  # fmt: skip
    rest = {n: mx.random.normal(s, mx.bfloat16, scale=0.02) for n, s in shapes.items() if ".layers." not in n}
    shards = [{f"model.layers.{i}.{n}": v for n, v in of_layer.items()} for i in range(layers)] + [rest]
    for number, shard in enumerate(shards, 1):
        mx.save_safetensors(str(folder / f"model-{number:05}-of-{len(shards):05}.safetensors"), shard)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def measure(command: str, source: Path, out: Path) -> tuple[float, float, float]:
    """Seconds, the most GiB resident, and the most of them that are the process's own and not a file's."""
    code = f"IN, OUT = {str(source)!r}, {str(out)!r}; {command}"
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    resident = own = 0.0
    while child.poll() is None:
        status = memory(child.pid)
        resident, own = max(resident, status.get("VmHWM", 0)), max(own, status.get("RssAnon", 0))
        time.sleep(0.02)
    if child.returncode:
        sys.exit(f"failed: {command}")
    return time.perf_counter() - start, resident, own


def memory(pid: int) -> dict[str, float]:
    """What Linux tells of a process's memory, in GiB; nothing elsewhere."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(value.split()[0]) / 2**20 for name, value in fields.items() if value.endswith(" kB")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32, help="fewer make a smaller model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; the system's folder for temporary files if unsaid")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        source, out = Path(name) / "source", Path(name) / "out"
        source.mkdir()
        nbytes = write_source(source, arguments.layers)
        print(f"{arguments.layers} layers, {nbytes / 1e9:.2f} GB, {os.cpu_count()} cores, {mx.default_device()}")
        seconds: dict[str, list[float]] = {tool: [] for tool in COMMANDS}
        for number in range(arguments.rounds):
            for tool, command in COMMANDS.items():
                took, resident, anonymous = measure(command, source, out)
                seconds[tool].append(took)
                print(
                    f"round {number + 1}  {tool:<12}{took:7.1f} s {nbytes / took / 1e6:7.0f} MB/s   "
                    f"peak RSS {resident:5.2f} GiB, its own {anonymous:5.2f} GiB",
                    flush=True,
                )
                shutil.rmtree(out)
        ratios = [ours / theirs for ours, theirs in zip(*seconds.values(), strict=True)]
        print(
            f"time, ours / theirs: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}"
        )


if __name__ == "__main__":
    main()
