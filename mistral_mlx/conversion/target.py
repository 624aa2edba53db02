"""The folder that a conversion makes: it appears whole or not at all, and what it replaces is never lost.

Everything is written in a workspace beside the target, on the same disk, and moved into place by one rename. A process
that is killed leaves the workspace, which the next conversion to the same target clears; killed between the two renames
of a replacement it leaves the old folder under another name, which the next conversion puts back.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from mistral_mlx import hub
from mistral_mlx.errors import InputError, WeightsError

_WRITTEN = (
    "*.safetensors", "*.safetensors.index.json", "conversion.json", "README.md", "vocab.json", "merges.txt",
    ".gitattributes", ".DS_Store",
)  # fmt: skip


@contextmanager
def workspace(out: Path, *, force: bool = False) -> Iterator[Path]:
    """A folder to work in; its subfolder `new` becomes `out` once the block ends without an error.

    Args:
        out: a folder that does not exist, or, with `force`, a model's.

    Raises:
        InputError: `out` is there already, can be no folder, or another process is making it.
        WeightsError: the disk is full, or the place cannot be written to.
    """
    out, work, old = places(out)
    try:
        made = [folder for folder in out.parents if not folder.exists()]
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with _locked(work):
                _restore(out, old)
                _check(out, force=force)
                _empty(work)
                (work / "new").mkdir()
                yield work
                _sync(work / "new")
                _replace(work / "new", out, old)
        finally:
            for folder in made:
                with suppress(OSError):  # in use by now
                    folder.rmdir()
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise WeightsError(
            f"{out} cannot be written: {error.strerror or error}{where}.",
            "Nothing was changed. Make room, or choose a disk.",
        ) from error


def places(out: Path) -> tuple[Path, Path, Path]:
    """Where `out` lies, its workspace, and what it replaces while that is done: all that is written or cleared.

    Raises:
        InputError: there can be no such folder.
    """
    if out == Path():
        raise InputError("OUT is the current folder itself.", "Name a folder to make.")
    try:
        out = out.expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{out} can be no folder: {str(error).rstrip('.')}.", "Choose another one.") from error
    return out, _beside(out, "partial"), _beside(out, "replaced")


def check_space(folder: Path, nbytes: int, what: str) -> None:
    """Raise WeightsError if the disk under `folder` has not so many bytes free."""
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise WeightsError(
            f"{what} takes {nbytes / 1e9:,.2f} GB, and the disk has {free / 1e9:,.2f} GB free.",
            "Make room, or choose a folder on a larger disk.",
        )


def _beside(out: Path, word: str) -> Path:
    return out.parent / f".{out.name}.{word}"


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    """The workspace, which belongs to this process alone, and is gone in the end unless it was killed."""
    while True:
        work.mkdir(exist_ok=True)
        try:
            lock = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)  # a link's folder is not ours to empty
        except FileNotFoundError:  # another process has just taken it away
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise InputError(f"Another process is writing {work}.", "Wait for it, or choose another folder.") from None
        with suppress(FileNotFoundError):
            if work.stat().st_ino == os.fstat(lock).st_ino:  # and not gone since
                break
        os.close(lock)
    try:
        yield
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


def _restore(out: Path, old: Path) -> None:
    """Finish, one way or the other, a replacement that was killed."""
    if old.exists():
        if out.exists():
            shutil.rmtree(old)
        else:
            old.rename(out)


def _check(out: Path, *, force: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out} is a file.", "Give a folder that does not exist yet.")
    if not force:
        raise InputError(f"{out} is there already.", "Choose another folder, or replace it with --force.")
    foreign = [path.name for path in sorted(out.iterdir()) if path.is_dir() or not _is_a_models(path.name)]
    if foreign:
        raise InputError(
            f"{out} holds {foreign[0]}{f' and {len(foreign) - 1} more' if foreign[1:] else ''}, which belongs to no "
            "model, and is not replaced.",
            "Choose another folder, or move them away.",
        )


def _is_a_models(name: str) -> bool:
    """Whether a file of this name is what a conversion, here or by mlx-lm, would write."""
    return any(fnmatchcase(name, pattern) for pattern in (*hub.SIDE_FILES, *_WRITTEN))


def _empty(work: Path) -> None:
    for path in work.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _replace(new: Path, out: Path, old: Path) -> None:
    try:
        if out.exists():
            out.rename(old)
        new.rename(out)
        parent = os.open(out.parent, os.O_RDONLY)
        os.fsync(parent)
        os.close(parent)
    finally:
        with suppress(OSError):  # the next conversion tries again, before anything else
            _restore(out, old)
