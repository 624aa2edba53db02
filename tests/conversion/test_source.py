"""The archives in which Mistral first published its models: what is taken out of them, and what never is."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import shutil
import tarfile
from collections import namedtuple
from collections.abc import Callable, Iterable
from pathlib import Path

import mlx.core as mx
import pytest

import mistral_mlx as mm
from mistral_mlx.conversion import convert, source
from mistral_mlx.conversion.source import MD5, unpack
from mistral_mlx.errors import InputError, MistralError, WeightsError
from tests.conftest import GOLDEN
from tests.weights.test_every_format import IDS, consolidated

Member = tuple[tarfile.TarInfo, bytes]


def file(name: str, data: bytes = b"data", kind: bytes = tarfile.REGTYPE, link: str = "") -> Member:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(data), kind, link
    return member, data


def pack(path: Path, members: Iterable[Member]) -> Path:
    with tarfile.open(path, "w") as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    return path


def of_folder(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        tar.add(folder, arcname="mistral-7B-v9")
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A golden model in an archive as Mistral's were; its folder is gone."""
    folder = consolidated("window", tmp_path / "model")
    (folder / "README.md").write_text("Not wanted.")
    path = of_folder(folder, tmp_path / "model.tar")
    shutil.rmtree(folder)
    return path


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """Where archives are unpacked; around it lies nothing else."""
    folder = tmp_path / "deep" / "er" / "room"
    folder.mkdir(parents=True)
    return folder


def refused(call: Callable[[], object], *words: str, kind: type[MistralError] = WeightsError) -> None:
    with pytest.raises(kind) as caught:
        call()
    for word in words:
        assert word in caught.value.message
    assert caught.value.message.endswith(".")
    assert caught.value.hint.endswith(".")


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}


def test_an_archive_gives_the_same_logits(model: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    convert(model, tmp_path / "out", progress=lambda *figures: told.append(figures))
    expected = mm.load(GOLDEN / "window", dtype="float32")
    assert mx.array_equal(mm.load(tmp_path / "out", dtype="float32").logits(IDS), expected.logits(IDS))
    assert files(tmp_path / "out") == {"config.json", "model.safetensors", "conversion.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"model.tar", "out"}
    unpacking = [done for stage, done, total in told if stage == "unpacking" and total == model.stat().st_size]
    assert unpacking == sorted(unpacking)
    assert unpacking[-1] == model.stat().st_size


def test_known_files_are_taken_by_their_last_name_and_others_left(room: Path, tmp_path: Path) -> None:
    taken = ["consolidated.00.pth", "params.json", "tokenizer.model", "tokenizer.model.v3", "tekken.json", "LICENSE"]
    left = ["run.sh", "README.md", "evil.py", ".ssh/authorized_keys", "._config.json"]
    members = [file(f"a/b/{name}", name.encode()) for name in [*taken, *left]]
    unpack(pack(tmp_path / "x.tar", members), room)
    assert files(tmp_path / "deep") == {f"er/room/{name}" for name in taken}
    for name in taken:
        assert (room / name).read_bytes() == name.encode()


@pytest.mark.parametrize(
    "name", ["../params.json", "../../params.json", "/{root}/deep/params.json", "a/../../params.json"]
)
def test_nothing_lands_outside_the_folder(name: str, room: Path, tmp_path: Path) -> None:
    name = name.replace("{root}", str(tmp_path))
    unpack(pack(tmp_path / "x.tar", [file(name, b"{}"), file("consolidated.00.pth"), file("../evil")]), room)
    assert files(tmp_path) == {"x.tar", "deep/er/room/params.json", "deep/er/room/consolidated.00.pth"}


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE],
)
def test_links_devices_pipes_and_folders_are_left(kind: bytes, room: Path, tmp_path: Path) -> None:
    """One that is made before a file of its name could lead the file elsewhere."""
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")
    odd = file("params.json", b"", kind, str(mine))
    unpack(pack(tmp_path / "x.tar", [odd, file("consolidated.00.pth"), file("a/params.json", b"{}")]), room)
    assert mine.read_bytes() == b"mine"
    assert files(tmp_path / "deep") == {"er/room/params.json", "er/room/consolidated.00.pth"}
    assert (room / "params.json").is_file()
    assert not (room / "params.json").is_symlink()
    assert (room / "params.json").read_bytes() == b"{}"


def test_one_name_in_two_folders_is_refused(room: Path, tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", [file("a/consolidated.00.pth", b"1"), file("b/consolidated.00.pth", b"2")])
    refused(lambda: unpack(path, room), str(path), "two files consolidated.00.pth")


def test_an_archive_without_weights_is_refused_by_its_name(tmp_path: Path) -> None:
    for members in ([], [file("params.json", b"{}"), file("README.md")]):
        path = pack(tmp_path / "x.tar", members)
        refused(lambda path=path: convert(path, tmp_path / "out"), str(path), "no weights")
    assert files(tmp_path) == {"x.tar"}


def broken(whole: bytes, kind: str) -> bytes:
    """An archive that is none."""
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        members = tar.getmembers()
    end = members[-1].offset_data + -(-members[-1].size // 512) * 512  # where the zeros begin
    last = members[-1].offset
    return {
        "empty": b"",
        "junk": random.Random(0).randbytes(20_000),
        "short junk": b"junk",
        "text": b"<html>Not found</html>" * 1000,
        "compressed": gzip.compress(whole),
        "cut in a header": whole[: last + 100],
        "cut in a file": whole[: members[-1].offset_data + 1],
        "cut between files": whole[:last],
        "cut at its end": whole[:end],
        "header damaged": whole[: last + 10] + bytes([whole[last + 10] ^ 1]) + whole[last + 11 :],
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["empty", "junk", "short junk", "text", "compressed", "cut in a header", "cut in a file", "cut between files",
     "cut at its end", "header damaged"],
)  # fmt: skip
def test_what_is_no_whole_archive_is_refused_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    """A tokenizer or a licence that is missing at the end would not be noticed otherwise."""
    path = pack(tmp_path / "x.tar", [file("consolidated.00.pth"), file("params.json", b"{}"), file("tekken.json")])
    path.write_bytes(broken(path.read_bytes(), kind))
    refused(lambda: convert(path, tmp_path / "out"), str(path), "cannot be unpacked")
    assert files(tmp_path) == {"x.tar"}


def test_hostile_headers_are_refused(room: Path, tmp_path: Path) -> None:
    """A chain of long names as deep as the stack, a name with a zero byte, a sparse file larger than its archive."""
    link = tarfile.TarInfo("././@LongLink")
    link.type, link.size = tarfile.GNUTYPE_LONGNAME, 2
    block = link.tobuf(tarfile.GNU_FORMAT) + b"a\0".ljust(512, b"\0")
    deep = block * 3000 + bytes(1024)
    zero, sparse, sparser = (tarfile.TarInfo("consolidated.00.pth") for _ in range(3))
    zero.pax_headers = {"path": "consolidated\0.pth"}
    sparse.pax_headers = {"GNU.sparse.map": "x,y", "GNU.sparse.size": "4"}
    sparser.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(10**7), "GNU.sparse.major": "0"}
    hostile = [deep]
    for member in (zero, sparse, sparser):
        hostile.append(member.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    for number, data in enumerate(hostile):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(data)
        refused(lambda path=path: unpack(path, room), str(path), "cannot be unpacked")
    assert files(tmp_path / "deep") == set()


def test_damage_anywhere_is_refused_or_harmless(room: Path, tmp_path: Path) -> None:
    """Random bytes over the archive: it is unpacked or refused in words, and nothing lands elsewhere."""
    members = [file("a/consolidated.00.pth", bytes(700)), file("b" * 120 + "/params.json", b"{}"), file("tekken.json")]
    path = pack(tmp_path / "x.tar", members)
    whole, chance, outcomes = path.read_bytes()[:6000], random.Random(1), set()
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 3, 30])):
            data[chance.randrange(len(data))] = chance.choice([0, 0x20, 0x30, 0x78, 0xFF, chance.randrange(256)])
        path.write_bytes(data)
        try:
            unpack(path, room)
            outcomes.add("unpacked")
        except WeightsError:
            outcomes.add("refused")
        assert all(name.startswith(("deep/er/room/", "x.tar")) for name in files(tmp_path))
        shutil.rmtree(room)
        room.mkdir()
    assert outcomes == {"unpacked", "refused"}


def test_another_archive_under_a_published_name_is_refused_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    for name in MD5:
        path = model.rename(model.with_name(name))
        expected = hashlib.md5(path.read_bytes()).hexdigest()
        refused(lambda path=path: convert(path, tmp_path / "out"), "not what Mistral published", expected, MD5[name])
        assert files(tmp_path) == {name}
        model = path.rename(model)


def test_what_was_published_passes(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole file counts, with the zeros after the last member."""
    monkeypatch.setitem(MD5, "model.tar", hashlib.md5(model.read_bytes()).hexdigest())
    convert(model, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()
    with model.open("ab") as more:
        more.write(bytes(512))
    refused(lambda: convert(model, tmp_path / "again"), "not what Mistral published")
    assert not (tmp_path / "again").exists()


def test_too_little_room_to_unpack_is_foretold(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    size = model.stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(size, 0, size - 1))
    monkeypatch.setattr(source, "unpack", lambda *_: pytest.fail("It was unpacked."))
    refused(lambda: convert(model, tmp_path / "out"), "Unpacking model.tar takes")
    assert files(tmp_path) == {"model.tar"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_error_while_unpacking_leaves_nothing(error: type[BaseException], model: Path, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "unpacking" and done:
            assert any(tmp_path.glob("a/.out.partial/source"))
            raise error

    with pytest.raises(error):
        convert(model, tmp_path / "a" / "out", progress=stop)
    assert {path.name for path in tmp_path.iterdir()} == {"model.tar"}


def test_an_archive_that_cannot_be_read_is_named(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *more: object) -> None:
        raise PermissionError(13, "Permission denied", os.fspath(self))

    monkeypatch.setattr(Path, "open", refuse)
    refused(lambda: convert(model, tmp_path / "out"), "Permission denied", str(model))
    assert files(tmp_path) == {"model.tar"}


def test_what_is_there_by_no_name_is_refused_in_words(tmp_path: Path) -> None:
    for name in ("~nobody-of-that-name/x.tar", "x" * 5000, str(tmp_path / "missing.tar"), ""):
        refused(lambda name=name: convert(name, tmp_path / "out"), "There is no model", kind=InputError)
    assert files(tmp_path) == set()
