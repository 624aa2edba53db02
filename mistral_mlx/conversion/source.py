"""What is converted: any model that can be loaded, and the archives in which Mistral first published theirs."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from mistral_mlx import hub, models
from mistral_mlx.conversion.target import check_space
from mistral_mlx.errors import WeightsError

Progress = Callable[[int, int], None]

# What Mistral's archives hash to, from the README of mistral-inference, for those whose models can be run here.
MD5 = {
    "mistral-7B-v0.1.tar": "37dab53973db2d56b2da0a033a15307f",
    "Mistral-7B-v0.2-Instruct.tar": "fbae55bc038f12f010b4251326e73d39",
    "mistral-7B-v0.3.tar": "0663b293810d7571dad25dae2f2a5806",
    "mistral-7B-Instruct-v0.3.tar": "80b71fcb6416085bcb4efad86dfb4d52",
    "codestral-22B-v0.1.tar": "1ea95d474a1d374b1d1b20a8e0159de3",
    "mathstral-7B-v0.1.tar": "5f05443e94489c261462794b1016f10b",
    "mistral-nemo-base-2407.tar": "c5d079ac4b55fc1ae35f51f0a3c0eb83",
    "mistral-nemo-instruct-2407.tar": "296fbdf911cb88e6f0be74cd04827fe7",
    "mistral-large-instruct-2407.tar": "fc602155f9e39151fba81fcaab2fa7c4",
}
_WEIGHTS = ("consolidated*", "model*.safetensors*", "pytorch_model*", "*.pth", "*.pt")
_BLOCK = 2**20


def open_source(
    model: str | Path, work: Path, fetching: Progress | None, unpacking: Progress
) -> tuple[Path, list[str]]:
    """The folder or file to convert, and what its user should know of it.

    Args:
        model: as for `models.resolve`, or a .tar.
        work: where an archive is unpacked.
        fetching, unpacking: told (bytes done, all bytes).

    Raises:
        MistralError: it is not there, cannot be fetched, or is no archive as it was published.
    """
    path = models.resolve(model, progress=fetching)
    if path.suffix != ".tar" or not path.is_file():
        return path, []
    check_space(work, path.stat().st_size, f"Unpacking {path.name}")
    folder = work / "source"
    folder.mkdir()
    md5 = unpack(path, folder, unpacking)
    return folder, [f"{path.name} has the MD5 {md5}{', as Mistral published it' if md5 in MD5.values() else ''}."]


def unpack(archive: Path, folder: Path, progress: Progress = lambda done, total: None) -> str:
    """Take the files of a model out of a .tar into one flat folder.

    Only regular files of known names are taken, by their last name: nothing can land elsewhere.

    Returns:
        The archive's MD5.

    Raises:
        WeightsError: no .tar, damaged, without weights, or not what Mistral published under its name.
    """
    taken: list[str] = []
    with archive.open("rb") as raw:
        reader = _Reader(raw, archive.stat().st_size, progress)
        try:
            with tarfile.open(fileobj=reader, mode="r|", bufsize=_BLOCK) as tar:
                for member in tar:
                    name = PurePosixPath(member.name).name
                    if not member.isfile() or not _wanted(name):
                        continue
                    if (folder / name).exists():
                        raise WeightsError(f"{archive} holds two files {name}.", "Unpack it, and give one folder.")
                    if member.issparse():  # larger than the archive, by any factor
                        raise tarfile.ReadError(f"{name} is sparse")
                    taken.append(name)
                    source = tar.extractfile(member)
                    assert source is not None  # of a regular file there is always one
                    with (folder / name).open("xb") as out:
                        while block := source.read(_BLOCK):
                            out.write(block)
                while reader.read(_BLOCK):  # what follows the last file counts as well
                    pass
                # tarfile takes a header that is damaged or missing for the end, which is a block of zeros or more.
                if reader.content > tar.offset or reader.done < tar.offset + tarfile.BLOCKSIZE:
                    raise tarfile.ReadError(f"it ends or is damaged after {tar.offset:,} bytes")
        except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
            raise WeightsError(
                f"{archive} cannot be unpacked: {error}.", "It is no plain .tar, or its download did not finish."
            ) from error
    expected = MD5.get(archive.name)
    if expected and reader.md5.hexdigest() != expected:
        raise WeightsError(
            f"{archive} is not what Mistral published: its MD5 is {reader.md5.hexdigest()}, not {expected}.",
            "Its download did not finish, or it was changed; fetch it again.",
        )
    if not any(fnmatchcase(name, pattern) for name in taken for pattern in _WEIGHTS):
        raise WeightsError(f"{archive} holds no weights.", "Give an archive that Mistral published, or a folder.")
    return reader.md5.hexdigest()


def _wanted(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in (*_WEIGHTS, *hub.SIDE_FILES))


class _Reader(io.RawIOBase):
    """A file that is read once from end to end, and hashed on the way.

    Attributes:
        done: bytes read.
        content: the bytes up to the last one that is not zero.
    """

    def __init__(self, raw: BinaryIO, size: int, progress: Progress) -> None:
        self.md5 = hashlib.md5(usedforsecurity=False)
        self.done = self.content = 0
        self._raw, self._size, self._progress = raw, size, progress

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        block = self._raw.read(size)
        self.md5.update(block)
        if some := len(block.rstrip(b"\0")):
            self.content = self.done + some
        self.done += len(block)
        self._progress(self.done, self._size)
        return block
