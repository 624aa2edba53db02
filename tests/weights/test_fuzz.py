"""2,500 damaged headers: each is refused in words that help, or loads and runs. None costs more than its file."""

from __future__ import annotations

import json
import math
import shutil
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mistral_mlx as mm
from mistral_mlx.errors import MistralError
from tests.conftest import GOLDEN
from tests.weights.conftest import Write, golden_weights
from tests.weights.test_every_format import consolidated
from tests.weights.test_torch_pth import as_pth, pack

CASES = 500
DEEP: list[Any] = []
for _ in range(400):
    DEEP = [DEEP]
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 7, 2**16, 2**31, 2**63, 2**64, -(2**63), 10**80, 0.5, 1e-300, 1e308, math.nan,
    math.inf, "", "x", "8", "F32", "BF16", "I64", "llama", "mistral", "silu", "\0", "\N{LLAMA}" * 50, [], {}, [0, 0],
    [0, 2**62], [2**62, 0], [2**31, 2**31], [-1, 4], ["x"], [[]], {"x": 1}, DEEP,
]  # fmt: skip
NUMBERS = [0, 1, 3, 31, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1]
fuzz = settings(
    max_examples=CASES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key in a JSON value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def mutate_json(text: bytes, random: Random) -> bytes:
    """Another value somewhere, two of them exchanged, a key gone or doubled; or the text itself damaged."""
    if random.random() < 0.2:
        return mutate_bytes(text, random)
    value = json.loads(text)
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        spots = list(places(value))
        if not spots:
            break
        holder, key = random.choice(spots)
        other, twin = random.choice(spots)
        if random.random() < 0.2 and type(holder[key]) is type(other[twin]) and not isinstance(holder[key], dict):
            holder[key], other[twin] = other[twin], holder[key]
        elif random.random() < 0.15:
            del holder[key]
        elif random.random() < 0.1 and isinstance(holder, dict):
            holder[f"{key}x"] = holder[key]
        else:
            holder[key] = deepcopy(random.choice(VALUES))  # a later change may go into it
    return json.dumps(value).encode()


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """Cut, flipped, overwritten with a number of four or eight bytes, doubled, or with bytes left out."""
    changed = bytearray(data)
    for _ in range(random.choice([1, 1, 2, 5])):
        at = random.randrange(len(changed) or 1)
        match random.randrange(6):
            case 0:
                del changed[at:]
            case 1 if changed:
                changed[min(at, len(changed) - 1)] = random.randrange(256)
            case 2:
                changed[at : at + 8] = struct.pack("<Q", random.choice(NUMBERS))
            case 3:
                changed[at : at + 4] = struct.pack("<I", random.choice(NUMBERS) % 2**32)
            case 4:
                changed[at:at] = changed[at : at + random.randrange(1, 64)]
            case 5:
                del changed[at : at + random.randrange(1, 16)]
    return bytes(changed)


def check(path: Path, size: int) -> None:
    """Load what may be damaged."""
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    tracemalloc.start()
    start, refusal = time.perf_counter(), None
    try:
        llm = mm.load(path, dtype="float32")
        logits = llm.logits([1, 2, 3])
        assert logits.shape == (3, llm.config.vocab_size)
    except MistralError as error:
        refusal = error
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    if refusal:
        assert refusal.message
        assert refusal.hint, refusal.message
        assert len(refusal.message) < 5000
        assert mx.get_peak_memory() - before <= 4 * size + 2**20
    assert time.perf_counter() - start < 20
    # A few times the file, for Python's own copies of names; numbers that a header merely claims cost nothing.
    assert peak <= 10 * size + 4 * 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(GOLDEN / "window", tmp_path_factory.mktemp("fuzz") / "model"))


@pytest.fixture(scope="module")
def mistral_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return consolidated("window", tmp_path_factory.mktemp("fuzz") / "model")


@pytest.fixture(scope="module")
def pth_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_pth(consolidated("window", tmp_path_factory.mktemp("fuzz") / "model"), "consolidated.00.pth")


@pytest.fixture(scope="module")
def gguf_file(write: Write) -> Path:
    def more(writer: Any) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list([chr(0x61 + i % 26) * (1 + i // 26) for i in range(96)])
        writer.add_token_types([1] * 96)
        writer.add_token_merges(["a a"])
        writer.add_eos_token_id(2)

    weights = golden_weights("full")
    return write(mm.load(GOLDEN / "full").config, weights, "Q8_0", more=more)


def damage(file: Path, sound: bytes, how: Callable[[bytes], bytes], then: Callable[[int], None]) -> None:
    """Check with a file damaged, and put it back."""
    try:
        file.write_bytes(how(sound))
        then(len(sound))
    finally:
        file.write_bytes(sound)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "params.json"])
@fuzz
@given(random=st.randoms(use_true_random=False))
def test_configurations(name: str, folder: Path, mistral_folder: Path, random: Random) -> None:
    where = folder if name == "config.json" else mistral_folder
    file = where / name
    damage(file, file.read_bytes(), lambda sound: mutate_json(sound, random), lambda size: check(where, size + 300_000))


@fuzz
@given(random=st.randoms(use_true_random=False))
def test_safetensors(folder: Path, random: Random) -> None:
    file = folder / "model.safetensors"

    def how(sound: bytes) -> bytes:
        (length,) = struct.unpack("<Q", sound[:8])
        header, data = sound[8 : 8 + length], sound[8 + length :]
        if random.random() < 0.3:
            return mutate_bytes(sound[: 8 + length], random) + data
        header = mutate_json(header, random)
        length = random.choice(NUMBERS) if random.random() < 0.1 else len(header)
        return struct.pack("<Q", length) + header + (data if random.random() < 0.9 else data[:-1])

    damage(file, file.read_bytes(), how, lambda size: check(folder, size))


@pytest.mark.slow
@fuzz
@given(random=st.randoms(use_true_random=False))
def test_gguf(gguf_file: Path, random: Random) -> None:
    sound = gguf_file.read_bytes()
    end = sound.index(b"output_norm.weight") + 200  # the directory's end, or near it

    def how(sound: bytes) -> bytes:
        return mutate_bytes(sound[:end], random) + sound[end:]

    damage(gguf_file, sound, how, lambda size: check(gguf_file, size))


@pytest.mark.slow
@fuzz
@given(random=st.randoms(use_true_random=False))
def test_pth(pth_folder: Path, random: Random) -> None:
    file = pth_folder / "consolidated.00.pth"
    with zipfile.ZipFile(file) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
        local, directory = random.choice(archive.infolist()).header_offset, archive.start_dir

    def how(sound: bytes) -> bytes:
        if random.random() < 0.5:  # the pickle
            return pack(held | {"archive/data.pkl": mutate_bytes(held["archive/data.pkl"], random)})
        if random.random() < 0.5:
            return sound[:directory] + mutate_bytes(sound[directory:], random)
        return sound[:local] + mutate_bytes(sound[local : local + 60], random) + sound[local + 60 :]

    damage(file, file.read_bytes(), how, lambda size: check(pth_folder, size))
