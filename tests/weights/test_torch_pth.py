"""PyTorch's files, read without PyTorch: what torch.save wrote comes back bit for bit; what is hostile does nothing."""

from __future__ import annotations

import pickle
import shutil
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mistral_mlx as mm
from mistral_mlx.errors import WeightsError
from mistral_mlx.weights.checkpoint import open_checkpoint
from mistral_mlx.weights.formats.torch_pth import read_tensors
from tests.conftest import GOLDEN
from tests.weights.pth_writer import (
    REBUILD,
    SIX,
    Call,
    Infos,
    Name,
    Storage,
    as_pth,
    entries,
    of_arrays,
    pack,
    program,
    tensor,
)
from tests.weights.test_every_format import CASES, IDS, consolidated


def bits(value: mx.array) -> np.ndarray:
    return np.array(value.view({4: mx.uint32, 2: mx.uint16}[value.dtype.size]))


def refused(path: Path, *words: str) -> WeightsError:
    """Of a file that is read: an error that names all of `words` and says what to do."""
    with pytest.raises(WeightsError) as caught:
        read_tensors([path])
    for word in words:
        assert word in caught.value.message
    assert caught.value.hint
    assert len(caught.value.message) < 1000
    return caught.value


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "consolidated.00.pth"


# ---- held against PyTorch --------------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("under", [(), ("model",), ("state_dict",), ("model", "state_dict")])
def test_what_torch_saves_comes_back_bit_for_bit(protocol: int, under: tuple[str, ...], file: Path) -> None:
    import torch

    torch.manual_seed(0)
    numbers = torch.randint(-(2**31), 2**31, (6, 8), dtype=torch.int64).to(torch.int32)  # of all kinds, NaN among them
    f32 = numbers.view(torch.float32)
    bf16, f16 = (numbers.to(torch.int16).view(kind) for kind in (torch.bfloat16, torch.float16))
    saved: Any = {
        "f32": f32, "f16": f16, "bf16": bf16, "parameter": torch.nn.Parameter(f16.clone()), "transposed": bf16.T,
        "turned": f32.reshape(2, 3, 8).permute(2, 0, 1), "rows": f32[2:4], "columns": bf16[:, 3:5], "odd": f16[1:, 1],
        "vector": f32[5], "number": f32[1, 1], "steps": bf16[::2, ::3], "empty": f32[6:], "none": torch.zeros(0, 3),
        "bare": torch.zeros(3).expand(1, 3),
    }  # fmt: skip
    expected = {}
    for name, value in saved.items():
        kind = torch.int32 if value.dtype == torch.float32 else torch.int16
        expected[name] = value.detach().contiguous().view(kind).numpy().view(f"u{value.element_size()}")
    held = saved
    for key in reversed(under):
        held = {key: held, "epoch": 3, "rates": [0.5, None], "on": True, "groups": {0: (1, 2), 2**40: {}}}
    torch.save(held, file, pickle_protocol=protocol)
    read = read_tensors([file])
    assert list(read) == list(saved)
    for name, described in read.items():
        value = described.array()
        assert described.shape == value.shape == tuple(saved[name].shape), name
        assert (
            described.stored == {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[saved[name].dtype]
        )
        assert described.nbytes == expected[name].nbytes, name
        np.testing.assert_array_equal(bits(value), expected[name], name)


@pytest.mark.torch
def test_a_modules_state_is_read_as_torch_loads_it(file: Path) -> None:
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.LayerNorm(5)).to(torch.bfloat16)
    model.register_buffer("twin", model[0].weight.detach()[1:])  # in the same storage
    state = model.state_dict()
    assert state._metadata
    torch.save(state, file)
    theirs = torch.load(file, weights_only=True)
    ours = read_tensors([file])
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        np.testing.assert_array_equal(bits(ours[name].array()), value.view(torch.uint16).numpy(), name)


@pytest.mark.torch
def test_what_these_tests_write_is_what_torch_reads(file: Path) -> None:
    import torch

    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(4, dtype=np.float16),
        "c": np.arange(16000, 16012, dtype=np.uint16).reshape(2, 3, 2),
    }  # fmt: skip
    file.write_bytes(pack(of_arrays(arrays)))
    theirs = torch.load(file, weights_only=True)
    assert [t.dtype for t in theirs.values()] == [torch.float32, torch.float16, torch.bfloat16]
    for name, value in arrays.items():
        read = theirs[name].view(torch.uint16).numpy() if name == "c" else theirs[name].numpy()
        np.testing.assert_array_equal(read, value)
        ours = read_tensors([file])[name].array()
        np.testing.assert_array_equal(bits(ours) if name == "c" else np.array(ours), value)


@pytest.mark.torch
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_file_of_an_old_pytorch_is_told_from_a_damaged_one(protocol: int, file: Path) -> None:
    import torch

    torch.save({"w": torch.ones(2)}, file, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    assert "torch.save(" in refused(file, "before 1.6").hint


@pytest.mark.torch
def test_a_whole_module_and_an_object_of_torchs_are_refused(file: Path) -> None:
    import torch

    torch.save(torch.nn.Linear(2, 3), file)
    assert "do not trust" in refused(file, "torch.nn.modules.linear.Linear", "nothing was run").hint
    torch.save({"w": torch.ones(2).to(torch.float8_e4m3fn)}, file)
    assert "Save it anew" in refused(file, "torch._utils._rebuild_tensor_v3").hint


# ---- a model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_model_in_pth_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    expected = mm.load(GOLDEN / name, dtype="float32")
    hugging_face = shutil.copytree(GOLDEN / name, tmp_path / "bin")
    for folder, files in [
        (consolidated(name, tmp_path / "one"), ["consolidated.00.pth"]),
        (consolidated(name, tmp_path / "two"), ["consolidated.00.pth", "consolidated.01.pth"]),
        (consolidated(name, tmp_path / "three"), [f"consolidated.{i:02}.pt" for i in range(3)]),
        (consolidated(name, tmp_path / "named"), ["weights.pth"]),
        (hugging_face, ["pytorch_model.bin"]),
    ]:
        as_pth(folder, *files)
        for path in [folder / files[0]] if files == ["weights.pth"] else [folder, *(folder / f for f in files)]:
            llm = mm.load(path, dtype="float32")
            assert mx.array_equal(llm.logits(IDS), expected.logits(IDS)), path
            assert llm.config.windows == expected.config.windows, path


def test_the_shards_that_an_index_names_are_read_and_no_others(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "window", tmp_path / "model")
    as_pth(folder, "pytorch_model-1.bin", "pytorch_model-2.bin")
    (folder / "pytorch_model-3.bin").write_bytes(b"left over")
    (folder / "pytorch_model.bin.index.json").write_text(
        '{"weight_map": {"a": "pytorch_model-2.bin", "b": "pytorch_model-1.bin"}}'
    )
    assert [f.name for f in open_checkpoint(folder).files] == ["pytorch_model-1.bin", "pytorch_model-2.bin"]


@pytest.mark.parametrize(
    ("there", "word"),
    [
        (["consolidated.00.pth", "consolidated.02.pth"], "consolidated.01"),
        (["consolidated.01.pth"], "consolidated.00"),
        (["consolidated.00.pth", "consolidated.00.pt"], "consolidated.00"),
    ],
)
def test_parts_that_are_missing_or_there_twice_are_named(there: list[str], word: str, tmp_path: Path) -> None:
    folder = as_pth(consolidated("full", tmp_path / "model"), *there)
    with pytest.raises(WeightsError, match=word) as caught:
        mm.load(folder)
    assert caught.value.hint


def test_a_tensor_in_two_parts_is_refused(file: Path) -> None:
    file.write_bytes(pack(entries({"w": tensor()})))
    other = file.with_name("consolidated.01.pth")
    other.write_bytes(file.read_bytes())
    with pytest.raises(WeightsError, match=r"w is in consolidated\.01\.pth and in another part") as caught:
        read_tensors([file, other])
    assert caught.value.hint


# ---- hostile programs ------------------------------------------------------------------------------------------------


def stacked(module: str, name: str, argument: str) -> bytes:
    """A call of what STACK_GLOBAL finds."""
    return program(module) + program(name) + b"\x93" + program((argument,)) + b"R"


@pytest.mark.parametrize(
    ("attack", "word"),
    [
        (lambda shell, _: program(Call("os system", (shell,))), "os.system"),
        (lambda shell, _: program(Call("posix system", (shell,))), "posix.system"),
        (lambda _, code: program(Call("builtins eval", (code,))), "builtins.eval"),
        (lambda shell, _: stacked("os", "system", shell), "os.system"),
        (lambda shell, _: stacked("posix", "system", shell), "posix.system"),
        (lambda _, code: stacked("builtins", "eval", code), "builtins.eval"),
        (lambda shell, _: b"(" + program(shell) + b"ios\nsystem\n", "INST"),
        (lambda _, code: b"(" + program(Name("builtins eval")) + program(code) + b"o", "builtins.eval"),
        (lambda shell, _: program({"x": Call("os system", (shell,))}) + b"0N", "os.system"),
    ],
)
def test_what_a_pickle_would_run_is_not_run(attack: Callable[[str, str], bytes], word: str, file: Path) -> None:
    ran = file.with_name("ran")
    held = entries({"v": tensor(), "w": attack(f"touch '{ran}'", f"open({str(ran)!r}, 'w').close()")})
    file.write_bytes(pack(held))
    refused(file, word)
    assert not ran.exists()
    # By Python's own reader it does run, from the same bytes but for the tensor before it.
    pickle.loads(b"\x80\x02" + attack(f"touch '{ran}'", f"open({str(ran)!r}, 'w').close()") + b".")
    assert ran.exists()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (Call("torch.nn.modules.linear Linear", ()), ["torch.nn.modules.linear.Linear"]),
        ({"w": Call("torch._utils _rebuild_tensor_v3", ())}, ["torch._utils._rebuild_tensor_v3"]),
        ({"w": Call("torch load", ("x",))}, ["torch.load"]),
        ({"w": Call("os FloatStorage", ())}, ["os.FloatStorage"]),
        (Name("collections OrderedDict.update"), ["OrderedDict.update"]),
        ({"w": program((1,)) + b"P0\n"}, ["PERSID"]),
        ({"w": b"\x82\x01"}, ["EXT1"]),
        ({"w": program(Name("collections OrderedDict")) + b")\x81"}, ["NEWOBJ"]),
        (Name("os " + "x" * 10**5), ["os.xxx"]),
    ],
)
def test_what_weights_do_not_need_is_named(state: Any, words: list[str], file: Path) -> None:
    file.write_bytes(pack(entries(state)))
    known = "torch._utils" in words[0]
    assert ("Save it anew" if known else "do not trust") in refused(file, *words).hint


THOUSANDS = b"]q\1" + b"(" + b"".join(program((f"{i:05}", 0)) for i in range(4000)) + b"e"
DOUBLED = b")q\1" + 200 * b"h\1h\1\x86q\1"  # a tuple of itself twice, 200 times: 2 ** 200 places


@pytest.mark.parametrize(
    "state",
    [
        # Deep, or small and endless when it is written out: as a key, as a shape, as a name, as a storage.
        {"w": tensor(shape=b")" + 10**4 * b"\x85")},
        {"w": tensor(shape=DOUBLED, strides=DOUBLED)},
        {"w": tensor(Storage(elements=DOUBLED))},
        {"w": tensor(shape=(DOUBLED, 1))},
        {"w": tensor(DOUBLED)},
        {"w": DOUBLED},
        {"w": Storage(elements=DOUBLED)},
        b"}" + DOUBLED + b"Ns",
        program("torch") + DOUBLED + b"\x93",
        DOUBLED + program("x") + b"\x93",
        program("os") + b")" + 10**4 * b"\x85" + b"\x93",
        b"(" + DOUBLED + 6 * b"N" + b"tQ",
        DOUBLED + b")R",
        {"w": tensor(shape=(2**2000,) * 8, strides=(2**2000,) * 8)},
        # One list, made a dictionary again and again.
        b"]" + THOUSANDS + b"0" + 2000 * (program(Name("collections OrderedDict")) + b"h\1\x85Ra"),
        # Numbers that all have one hash.
        {i * (2**61 - 1): None for i in range(20000)},
        b"N" + b"r" + struct.pack("<I", 2**32 - 1),
        b"j" + struct.pack("<I", 2**32 - 1),
        b"((((((((",
        b"uuu",
        b"\x85\x86\x87",
        b"}NNs",
        b"]Nh\7e",
        b"X" + struct.pack("<I", 2**32 - 1) + b"w",
        b"N.",
        b"",
        {"w" * 10**5: None},
        {"w" * 10**5: tensor(Storage("x" * 10**5))},
        {"w": tensor(Storage(key="x" * 10**5))},
        {"w" * 10**5: tensor(offset=-1)},
    ],
)
def test_what_is_deep_endless_or_cut_off_costs_little(state: Any, file: Path) -> None:
    held = entries(state)
    file.write_bytes(pack(held))
    tracemalloc.start()
    try:
        refused(file)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 80 * len(held["archive/data.pkl"]) + 2**20


@pytest.mark.slow
@pytest.mark.parametrize("as_key", [True, False])
def test_a_tuple_a_million_deep_is_no_crash(as_key: bool, file: Path) -> None:
    deep = b")" + 10**6 * b"\x85"
    file.write_bytes(pack(entries(b"}" + deep + b"Ns" if as_key else {"w": deep})))
    refused(file, "neither text nor a number" if as_key else "no tensor")


# ---- sizes that are not so -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (tensor(offset=1), "past the end"),
        (tensor(offset=-1), "sizes"),
        (tensor(offset=True), "sizes"),
        (tensor(offset=0.0), "sizes"),
        (tensor(offset=None), "sizes"),
        (tensor(offset="0"), "sizes"),
        (tensor(offset=2**40), "past the end"),
        (tensor(offset=2**62), "sizes"),
        (tensor(offset=2**64), "sizes"),
        (tensor(shape=(3, 3)), "past the end"),
        (tensor(shape=(2, 4)), "past the end"),
        (tensor(shape=(2, 2**40)), "past the end"),
        (tensor(shape=(2**40, 2**40), strides=(0, 0)), "past the end"),
        (tensor(shape=(2, 2**62)), "sizes"),
        (tensor(shape=(2**64, 1)), "sizes"),
        (tensor(shape=(-2, 3)), "sizes"),
        (tensor(shape=(-2, -3)), "sizes"),
        (tensor(shape=(True, 3)), "sizes"),
        (tensor(shape=(2.0, 3)), "sizes"),
        (tensor(shape=(2, "3")), "sizes"),
        (tensor(shape=(2, (3,))), "sizes"),
        (tensor(shape=[2, 3]), "no shape"),
        (tensor(shape=6), "no shape"),
        (tensor(shape=(6,)), "no shape"),
        (tensor(shape=(1,) * 9, strides=(1,) * 9), "no shape"),
        (tensor(shape=(1,) * 10000, strides=(1,) * 10000), "no shape"),
        (tensor(strides=(4, 1)), "past the end"),
        (tensor(strides=(3, 2)), "past the end"),
        (tensor(strides=(-3, 1)), "sizes"),
        (tensor(strides=(3, False)), "sizes"),
        (tensor(strides=(2**62, 1)), "sizes"),
        (tensor(shape=(1, 3), strides=(2**62, 1)), "sizes"),
        (tensor(shape=(0, 3), strides=(2**62, 1)), "sizes"),
        (tensor(strides=None), "no shape"),
        (tensor(shape=(7,), strides=(0,)), "past the end"),  # expanded: less is stored than it stands for
        (tensor(Storage(elements=5)), "24 bytes for 5 numbers"),
        (tensor(Storage(elements=7)), "24 bytes for 7 numbers"),
        (tensor(Storage(elements=True)), "sizes"),
        (tensor(Storage(elements=-6)), "sizes"),
        (tensor(Storage(elements=2**62)), "sizes"),
        (tensor(Storage(elements="6")), "sizes"),
        (tensor(Storage("Half")), "24 bytes for 6 numbers"),
        (tensor(Storage(key="1")), "archive/data/1, which is not there"),
        (tensor(Storage(key="../data.pkl")), "not there"),
        (tensor(Storage(key=0)), "cannot be followed"),
        (tensor(None), "type"),
        (tensor(tensor()), "type"),
        (tensor(Storage("Long", elements=3)), "type Long"),
        (tensor(Storage("Int")), "type Int"),
        (tensor(Storage("Byte", elements=24)), "type Byte"),
        (tensor(Storage("Bool", elements=24)), "type Bool"),
        (tensor(Storage("ComplexFloat", elements=3)), "type ComplexFloat"),
        (tensor(Storage("QInt8", elements=24)), "type QInt8"),
        (tensor(Storage("", elements=24)), "type "),
        (Call(REBUILD, ()), "cannot be followed"),
        (Call(REBUILD, (1, 2)), "cannot be followed"),
        (Call("torch._utils _rebuild_parameter", ()), "cannot be followed"),
        (Call("torch FloatStorage", ()), "cannot be followed"),
        (Storage(), "no tensor"),
        (Name("collections OrderedDict"), "no tensor"),
        ("text", "no tensor"),
        (3, "no tensor"),
        ({"v": tensor()}, "no tensor"),
    ],
)  # fmt: skip
def test_a_tensor_that_cannot_be_is_refused(state: Any, word: str, file: Path) -> None:
    file.write_bytes(pack(entries({"w": state})))
    refused(file, word, file.name)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (tensor(), [[0, 1, 2], [3, 4, 5]]),
        (tensor(shape=(3, 2), strides=(1, 3)), [[0, 3], [1, 4], [2, 5]]),
        (tensor(offset=4, shape=(2,), strides=(1,)), [4, 5]),
        (tensor(offset=5, shape=(), strides=()), 5),
        (tensor(shape=(2, 2), strides=(0, 1)), [[0, 1], [0, 1]]),
        (tensor(shape=(2, 2), strides=(2, 2)), [[0, 2], [2, 4]]),
        (tensor(offset=6, shape=(0, 3)), np.zeros((0, 3))),
        (Call("torch._utils _rebuild_parameter", (tensor(), True, ())), [[0, 1, 2], [3, 4, 5]]),
    ],
)
def test_a_window_that_fits_its_storage_is_read(state: Any, expected: Any, file: Path) -> None:
    file.write_bytes(pack(entries({"w": state}, {"0": np.arange(6, dtype="<f4").tobytes()})))
    read = read_tensors([file])["w"]
    np.testing.assert_array_equal(np.array(read.array()), np.array(expected, np.float32))
    assert read.shape == np.shape(expected)
    assert read.stored == "F32"


@pytest.mark.parametrize("state", [(), None, 3, "text", tensor(), [], (tensor(),)])
def test_what_is_no_dictionary_is_refused(state: Any, file: Path) -> None:
    file.write_bytes(pack(entries(state)))
    refused(file, "no dictionary")


# ---- damaged zips ----------------------------------------------------------------------------------------------------


HELD = entries({"w": tensor()})


def longer(by: int, which: int) -> Callable[[Infos], None]:
    """One entry made longer, by the directory."""

    def change(infos: Infos) -> None:
        infos[which].file_size += by
        infos[which].compress_size += by

    return change


def moved(to: int) -> Callable[[Infos], None]:
    """The last entry somewhere else, by the directory."""
    return lambda infos: setattr(infos[-1], "header_offset", to)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (pack(HELD, how=zipfile.ZIP_DEFLATED), "compressed"),
        (pack(HELD, how=zipfile.ZIP_LZMA), "compressed"),
        (pack(HELD, lambda infos: setattr(infos[0], "file_size", 10**9)), "compressed"),
        (pack(HELD, longer(1, 0)), "overlaps"),
        (pack(HELD, longer(10**6, 1)), "past the end"),
        (pack(HELD, longer(10**6, 2)), "past the end"),
        (pack(HELD, longer(2**62, 2)), "past the end"),
        (pack(HELD, moved(0)), "overlaps"),
        (pack(HELD, moved(20)), "overlaps"),
        (pack(HELD, moved(10**6)), "no PyTorch archive"),
        (pack(HELD, moved(2**62)), "no PyTorch archive"),
        (pack(HELD, moved(2**63 - 1)), "no PyTorch archive"),
        (pack(HELD, moved(2**64 - 1)), "no PyTorch archive"),
        (pack(HELD, lambda infos: setattr(infos[-1], "filename", "archive/byteorder")), "twice"),
        (pack(HELD, lambda infos: infos.append(infos[0])), "twice"),
        (pack(HELD, lambda infos: infos.pop()), "not there"),
        (pack(HELD, lambda infos: infos.pop(0)), "0 entries data.pkl"),
        (pack(HELD | {"data.pkl": b"N."}), "2 entries data.pkl"),
        (pack(HELD | {"b/data.pkl": b"N."}), "2 entries data.pkl"),
        (pack(HELD | {"archive/byteorder": b"big"}), "big-endian"),
        (pack(HELD | {"archive/byteorder": b""}), "big-endian"),
        (pack(HELD | {"x" * 60000: b""}, lambda infos: infos.append(infos[-1])), "entry xxx"),
        (pack({}), "0 entries data.pkl"),
        (pack(HELD).replace(b"PK\3\4", b"PK\3\5", 1), "no header"),
        (b"\x80\x02" + b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "before 1.6"),
        (b"cos\nsystem\n", "before 1.6"),
        (b"(lp0\n.", "before 1.6"),
        (b"", "no PyTorch archive"),
        (b"PK", "no PyTorch archive"),
        (b"PK\5\6" + bytes(18), "0 entries data.pkl"),
        (b"version https://git-lfs.github.com/spec/v1\n", "no PyTorch archive"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_torch_would_not_write_is_refused(data: bytes, word: str, file: Path) -> None:
    file.write_bytes(data)
    refused(file, word, str(file))


def test_a_file_with_no_byte_order_or_folder_and_with_odd_headers_is_read(file: Path) -> None:
    """As older torch.save and others' writers made them: local headers are longer than the directory says."""
    data = pack({name.removeprefix("archive/"): raw for name, raw in HELD.items() if "byteorder" not in name})
    file.write_bytes(b"#!/bin/sh\n" + data)  # what precedes a zip shifts it
    np.testing.assert_array_equal(np.array(read_tensors([file])["w"].array()).tobytes(), SIX)


@pytest.mark.parametrize("shards", [1, 3])
def test_wherever_a_file_is_cut_off_it_is_refused(shards: int, file: Path) -> None:
    whole = pack(entries({f"w{i}": tensor(Storage(key=str(i))) for i in range(shards)}, dict.fromkeys("012", SIX)))
    file.write_bytes(whole)
    assert len(read_tensors([file])) == shards
    for end in {*range(0, len(whole), len(whole) // 60), len(whole) - 1}:
        file.write_bytes(whole[:end])
        refused(file)
