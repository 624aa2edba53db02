"""From starting Python to the first token of the demo model, in float32 from one folder, each in its own process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.paired import CannotMeasure, Result, Row, interleave
from benchmarks.sides import demo_folder

IDS = [1, 504, 3575, 282, 4649, 314]
# What Linux calls ru_maxrss a child takes over from its parent, so its own status is asked where there is one.
_SAY = """
import resource
from pathlib import Path
status = Path("/proc/self/status")
lines = status.read_text().splitlines() if status.exists() else []
peaks = [line.split()[1] for line in lines if line.startswith("VmHWM")]
print((peaks or [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])[0], flush=True)"""
# Both get the same BLAS, and neither PyTorch: where it is installed, mlx-lm's tokenizers spend seconds on importing it.
_BEGIN = "import sys\nsys.modules['torch'] = None\nfrom mistral_mlx.backend import preload_blas; preload_blas()\n"
COMMANDS = {
    "ours": _BEGIN + f"import mistral_mlx as mm\nnext(iter(mm.load(FOLDER).stream({IDS}, max_tokens=2)))" + _SAY,
    "theirs": _BEGIN + "from mlx_lm import load, stream_generate\n"
    f"model, tokenizer = load(FOLDER)\nnext(stream_generate(model, tokenizer, {IDS}, max_tokens=2))" + _SAY,
}


def measure(rounds: int) -> Result:
    """Seconds, and MiB resident at most."""
    with TemporaryDirectory() as name:
        folder = demo_folder(Path(name) / "demo")
        peaks: dict[str, list[float]] = {side: [] for side in COMMANDS}

        def once(side: str) -> float:
            seconds, peak = _first_token(COMMANDS[side], folder)
            peaks[side].append(peak)
            return seconds

        once("ours"), once("theirs")  # from here on the files are in memory, for both
        peaks = {side: [] for side in COMMANDS}
        seconds = interleave(rounds, lambda: once("ours"), lambda: once("theirs"))
    rows = [
        Row.of("demo, to the first token", "s", *seconds, target=1.0),
        Row.of("demo, most memory by then", "MiB", peaks["ours"], peaks["theirs"], 1.0),
    ]
    return Result("start", rows, details={"prompt_tokens": len(IDS), "weights": "float32 in one safetensors file"})


def _first_token(code: str, folder: Path) -> tuple[float, float]:
    """Seconds from starting the process until it has a token, and the MiB it had resident at most."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, "-c", f"FOLDER = {str(folder)!r}\n{code}"]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        said = child.stdout.readline()
        seconds = time.perf_counter() - start
        errors = child.stderr.read()
    if not said:
        raise CannotMeasure(
            f"A process ended before its first token: {(errors.strip().splitlines() or ['silently'])[-1]}"
        )
    return seconds, int(said) / (2**20 if sys.platform == "darwin" else 2**10)
