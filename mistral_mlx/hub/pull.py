"""Fetching a model into the cache, going on where an earlier attempt stopped."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from mistral_mlx.errors import HubError
from mistral_mlx.hub.cache import file_size, find_in
from mistral_mlx.hub.faults import faults, not_a_hub
from mistral_mlx.hub.names import check_choice, choose_files, repo_folder, split_name

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class File:
    """A file of a repository; `sha256` is None for a small one that the hub keeps in git itself."""

    name: str
    size: int
    sha256: str | None


def pull(name: str, *, progress: Progress | None = None) -> Path:
    """Bring a model into the cache, going on where an earlier attempt stopped.

    Args:
        name: `owner/name`, or `owner/name:WHICH` with a part of the name of one .gguf file, such as Q4_K_M.
        progress: told the bytes there and the bytes in total; never falling, and (total, total) at the end. Without
            it huggingface_hub shows its own bars on stderr.

    Returns:
        The model's folder, or its .gguf file.

    Raises:
        HubError: it cannot be fetched, or the repository holds no model. What was fetched stays for the next attempt,
            as it does when `progress` ends the pull by an exception of your own.
    """
    repo, which = split_name(name)
    with faults(repo):
        commit, files = _wanted(repo, which)
        _fetch(repo, commit, files, progress)
        folder = repo_folder(repo)
        if (found := find_in(folder / "snapshots" / commit, which)) is None:
            raise HubError(
                f"{repo} is broken on the hub: its index names files that it does not have.",
                "Tell its owner, or take another copy of the model.",
            )
        ref = folder / "refs" / "main"
        if not ref.exists() or ref.read_text() != commit:
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit)
    return found


def download_size(name: str) -> int:
    """The bytes that `pull` would fetch now: all of the model, but for what is there already.

    Raises:
        HubError: the hub cannot be asked, or the repository holds no model.
    """
    repo, which = split_name(name)
    with faults(repo):
        commit, files = _wanted(repo, which)
        return sum(file.size - _bytes_there(repo_folder(repo), commit, file) for file in files)


def _wanted(repo: str, which: str | None) -> tuple[str, list[File]]:
    """The commit that the branch main stands at, and the files of the model that is to be fetched.

    The weights come last: once they are there, so is all the rest.
    """
    commit, listing = _ask(repo)
    side, weights = choose_files(listing, which)
    check_choice(repo, listing, weights, which)
    return commit, [listing[name] for name in side + weights]


def _ask(repo: str) -> tuple[str, dict[str, File]]:
    """The commit that the branch main stands at, and its files by name."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HTTPError  # httpx's, or httpx2's in later versions

    try:
        info = HfApi().model_info(repo, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        files = [
            File(s.rfilename, s.lfs.size, s.lfs.sha256) if s.lfs else File(s.rfilename, s.size or 0, None)
            for s in info.siblings or []
        ]
        # They become names of files in the cache.
        if not all(
            re.fullmatch("[0-9a-f]{40,64}", d) for d in [info.sha or "", *(f.sha256 for f in files if f.sha256)]
        ):
            raise ValueError("a digest that is none")
        return str(info.sha), {file.name: file for file in files}
    except (HTTPError, OSError):
        raise
    except Exception as error:  # whatever reading an answer that is none may raise
        raise not_a_hub(repo) from error


def _fetch(repo: str, commit: str, files: list[File], progress: Progress | None) -> None:
    """Fetch what is missing of these files, once the disk is known to have room for it."""
    from huggingface_hub import constants, hf_hub_download

    folder = repo_folder(repo)
    there = {file.name: _bytes_there(folder, commit, file) for file in files}
    total, shown = sum(file.size for file in files), 0
    missing = total - sum(there.values())
    disk = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(disk).free
    if missing > free:
        raise HubError(
            f"{repo} still needs {_gb(missing)} of disk, and {disk} has {_gb(free)} free.",
            "Make room, or set HF_HOME to a folder on a larger disk.",
        )

    def tell(name: str, nbytes: int) -> None:
        nonlocal shown
        there[name] = nbytes
        shown = min(total, max(shown, sum(there.values())))  # a file that has to begin again takes nothing back
        if progress is not None:
            progress(shown, total)

    with _bars(shown=progress is None):
        for file in files:
            tell(file.name, there[file.name])
            if not (folder / "snapshots" / commit / file.name).exists():
                # The hub gives still larger files by another protocol only, which cannot go on where it stopped.
                if file.sha256 and file.size <= constants.MAX_HTTP_DOWNLOAD_SIZE:
                    _fetch_large(repo, commit, file, partial(tell, file.name))
                # Fetches a small file; for a large one it links the snapshot to what is now there.
                hf_hub_download(repo, file.name, revision=commit)
            tell(file.name, file.size)


def _bytes_there(folder: Path, commit: str, file: File) -> int:
    if (folder / "snapshots" / commit / file.name).exists():
        return file.size
    blob = folder / "blobs" / (file.sha256 or "-")
    return file.size if blob.exists() else min(file.size, file_size(blob.with_suffix(".incomplete")))


def _fetch_large(repo: str, commit: str, file: File, tell: Callable[[int], None]) -> None:
    """Fetch a file into the cache's blobs, going on where an earlier attempt stopped.

    huggingface_hub's own download throws away what an interrupted attempt fetched. The names and the lock are its own,
    so that both keep out of each other's way.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    folder = repo_folder(repo)
    blob = folder / "blobs" / str(file.sha256)
    unfinished, lock = blob.with_suffix(".incomplete"), folder.parent / ".locks" / folder.name / f"{blob.name}.lock"
    for path in (blob, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        if file_size(unfinished) > file.size:
            unfinished.unlink()
        with _Telling(unfinished, tell) as out:
            http_get(
                hf_hub_url(repo, file.name, revision=commit),
                out,
                resume_size=out.tell(),
                headers=build_hf_headers() | {"Accept-Encoding": "identity"},
                expected_size=file.size,
                displayed_filename=file.name,
            )
        with unfinished.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        if digest != file.sha256:
            unfinished.unlink()
            raise HubError(f"{file.name} of {repo} was damaged on its way.", "It was thrown away; pull again.")
        unfinished.replace(blob)


class _Telling(BufferedWriter):
    """A file that is appended to, and tells how long it has become."""

    def __init__(self, path: Path, tell: Callable[[int], None]) -> None:
        super().__init__(FileIO(path, "a"))
        self._tell = tell

    def write(self, data: ReadableBuffer, /) -> int:
        count = super().write(data)
        self._tell(self.tell())
        return count


@contextmanager
def _bars(*, shown: bool) -> Iterator[None]:
    """Keeps huggingface_hub's progress bars off the screen unless they are to be shown."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:,.3g} GB" if nbytes < 1e12 else f"{nbytes / 1e9:,.0f} GB"
