"""Models on the Hugging Face hub: fetch one into the cache, find it there again, list them, remove one.

The cache is huggingface_hub's own, where its settings put it, so that other programs share what was fetched. That
package is slow to import, so each function imports it when it is called.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from mistral_mlx.errors import HubError, MistralError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

Progress = Callable[[int, int], None]

_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w(?:[\w.-]*\w)?)(?::(?P<which>[^:/\\\s\x00-\x1f]+))?", re.ASCII)
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.(?:safetensors|gguf)")
_LAYOUTS = (("config.json", "model*.safetensors"), ("params.json", "consolidated*.safetensors"))
_SIDE_FILES = (
    "config.json", "params.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "tokenizer.model*", "*.model.v*",
    "tekken.json", "LICENSE*",
)  # fmt: skip
_SHOWN_NAMES = 12
_KEPT = "What was fetched is kept, and the next pull goes on there."


@dataclass(frozen=True)
class Stored:
    """A model in the cache.

    Attributes:
        name: `owner/name`.
        path: its snapshot folder; the repository's folder in the cache while nothing of it is whole.
        nbytes: bytes on disk, with those of other revisions and of unfinished files.
        complete: whether there is a model that `find` would find, or any whole .gguf file.
    """

    name: str
    path: Path
    nbytes: int
    complete: bool


@dataclass(frozen=True)
class _File:
    """A file of a repository; `sha256` is None for a small one that the hub keeps in git itself."""

    name: str
    size: int
    sha256: str | None


def is_hub_name(name: str) -> bool:
    """Whether this is spelled `owner/name` or `owner/name:WHICH`; it may still be a relative path of that spelling."""
    match = _NAME.fullmatch(name)
    # The hub's own rules, which keep `..` and the cache's separator out of folder names.
    return match is not None and not re.search(r"--|\.\.|\.git$|^.{97}", match["repo"])


def pull(name: str, *, progress: Progress | None = None) -> Path:
    """Bring a model into the cache, going on where an earlier attempt stopped.

    Args:
        name: `owner/name`, or `owner/name:WHICH` with a part of the name of one .gguf file, such as Q4_K_M.
        progress: told the bytes there and the bytes in total; never falling, and (total, total) at the end. Without
            it huggingface_hub shows its own bars on stderr.

    Returns:
        The model's folder, or its .gguf file.

    Raises:
        HubError: it cannot be fetched, or the repository holds no model. What was fetched stays for the next attempt.
    """
    repo, which = _split(name)
    with _faults(repo):
        commit, listing = _ask(repo)
        side, weights = _choose(listing, which)
        _check_choice(repo, listing, weights, which)
        # The weights last: once they are there, so is all the rest.
        _fetch(repo, commit, [listing[n] for n in side + weights], progress)
        folder = _repo_folder(repo)
        if (found := _find_in(folder / "snapshots" / commit, which)) is None:
            raise HubError(
                f"{repo} is broken on the hub: its index names files that it does not have.",
                "Tell its owner, or take another copy of the model.",
            )
        ref = folder / "refs" / "main"
        if not ref.exists() or ref.read_text() != commit:
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit)
    return found


def find(name: str) -> Path | None:
    """The model in the cache, or None where it is not there whole; asks no network.

    It is what `pull` returned, but that the only .gguf file that is there needs no WHICH.
    """
    if not is_hub_name(name):
        return None
    repo, which = _split(name)
    return next((path for s in _snapshots(_repo_folder(repo)) if (path := _find_in(s, which))), None)


def stored() -> list[Stored]:
    """What in the cache looks like a text model, whole or not, by name; damaged entries are left out."""
    try:
        folders = sorted(_cache().glob("models--*--*"))
    except OSError:
        return []
    return sorted((model for folder in folders if (model := _describe(folder))), key=lambda model: model.name)


def remove(name: str) -> int:
    """Delete a model's repository from the cache, with all its revisions and unfinished files.

    Returns:
        The bytes freed.

    Raises:
        HubError: it is not there, or cannot be deleted.
    """
    from huggingface_hub import CacheNotFound, scan_cache_dir

    repo, which = _split(name)
    if which is not None:
        raise HubError("One file of a repository cannot be removed by itself.", f"To remove them all, give {repo}.")
    folder, cache = _repo_folder(repo), _cache()
    with _faults(repo):
        if not folder.is_dir():
            raise HubError(f"{repo} is not in the cache, {cache}.", "Check the spelling.")
        freed = sum(_size(path) for path in folder.glob("blobs/*.incomplete"))
        try:
            scan = scan_cache_dir(cache)
        except CacheNotFound:  # another process was faster
            return 0
        # One commit can be cached under two names, and delete_revisions would take the first it meets.
        for entry in (r for r in scan.repos if r.repo_path == folder.resolve() and r.revisions):
            only = replace(scan, repos=frozenset({entry})).delete_revisions(*(r.commit_hash for r in entry.revisions))
            freed += only.expected_freed_size
            only.execute()
        if folder.exists():  # one that the scan cannot read, such as a first attempt that fetched no file whole
            freed = _disk_bytes(folder)
            shutil.rmtree(folder)
    return freed


# ---- which files ------------------------------------------------------------------------------------------------


def _split(name: str) -> tuple[str, str | None]:
    match = _NAME.fullmatch(name) if is_hub_name(name) else None
    if match is None:
        raise HubError(f"{name!r} is not the name of a model on the hub.", "Write owner/name, as on the model's page.")
    return match["repo"], match["which"]


def _choose(names: Iterable[str], which: str | None) -> tuple[list[str], list[str]]:
    """The side files and weights of one layout; several .gguf files mean that the choice is still open."""
    names = sorted(names)
    top = [name for name in names if "/" not in name]
    if which is None:
        for config, pattern in _LAYOUTS:
            weights = [name for name in top if fnmatchcase(name, pattern)]
            if config in top and weights:
                side = (*_SIDE_FILES, pattern + ".index.json")
                return [name for name in top if any(fnmatchcase(name, p) for p in side)], weights
    ggufs = [name for name in names if name.endswith(".gguf")]
    if which is not None:
        exact = [name for name in ggufs if name.split("/")[-1] == which]
        ggufs = exact or [name for name in ggufs if which.lower() in name.split("/")[-1].lower()]
    return [], ggufs


def _check_choice(repo: str, names: Iterable[str], weights: list[str], which: str | None) -> None:
    """Refuse a repository without weights that can be run, and a .gguf that was not picked or is split."""
    ggufs = [name for name in names if name.endswith(".gguf")]
    if not weights and which is not None and ggufs:
        raise HubError(f"{repo} has no .gguf file with {which!r} in its name: {_some(ggufs)}.", f"Write {repo}:WHICH.")
    if not weights:
        raise HubError(
            f"{repo} has no weights that can be run here: {_some(names) or 'it is empty'}.",
            "A model is config.json with model*.safetensors, params.json with consolidated*.safetensors, or a .gguf.",
        )
    if not weights[0].endswith(".gguf"):
        return
    if all(_SHARD.fullmatch(name) for name in weights):
        raise HubError(
            f"{weights[0]} in {repo} is one part of a split GGUF, which is not supported.",
            "Take a smaller quantization, in one file, or the model's safetensors.",
        )
    if len(weights) > 1:
        raise HubError(
            f"{repo} has several .gguf files{f' for {which!r}' if which else ''}: {_some(weights)}.",
            f"Pick one: {repo}:WHICH, with a part of its name, such as Q4_K_M, or the whole of it.",
        )


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(names[:_SHOWN_NAMES]) + more


# ---- the cache --------------------------------------------------------------------------------------------------


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def _repo_folder(repo: str) -> Path:
    return _cache() / f"models--{repo.replace('/', '--')}"


def _snapshots(folder: Path) -> list[Path]:
    """Every revision's folder: that of the branch main first, then the newest."""
    try:
        ref = folder / "refs" / "main"
        main = ref.read_text(errors="replace") if ref.is_file() else ""
        found = [path for path in (folder / "snapshots").glob("*") if path.is_dir()]
        return sorted(found, key=lambda path: (path.name == main, path.stat().st_mtime), reverse=True)
    except OSError:
        return []


def _files_in(snapshot: Path) -> list[str]:
    try:
        return [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
    except OSError:
        return []


def _find_in(snapshot: Path, which: str | None) -> Path | None:
    _, weights = _choose(_files_in(snapshot), which)
    if not weights:
        return None
    if weights[0].endswith(".gguf"):
        return snapshot / weights[0] if len(weights) == 1 and not _SHARD.fullmatch(weights[0]) else None
    wanted = {
        f"{shard['stem']}-{i:05}-of-{shard['count']}.safetensors"
        for shard in map(_SHARD.fullmatch, weights)
        if shard
        for i in range(1, int(shard["count"]) + 1)
    }
    index = snapshot / f"{re.split('[.-]', weights[0])[0]}.safetensors.index.json"
    try:
        if index.is_file():
            wanted.update(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return snapshot if wanted <= set(weights) else None


def _describe(folder: Path) -> Stored | None:
    name = folder.name.removeprefix("models--").replace("--", "/")
    snapshots = _snapshots(folder)
    ours = [(s, weights) for s in snapshots if (weights := _choose(_files_in(s), None)[1])]
    try:
        nbytes, unfinished = _disk_bytes(folder), any((folder / "blobs").glob("*.incomplete"))
    except OSError:
        return None
    if not is_hub_name(name) or not (ours or unfinished):
        return None
    whole = [s for s, weights in ours if weights[0].endswith(".gguf") or _find_in(s, None)]
    path = next(iter([*whole, *(s for s, _ in ours), *snapshots, folder]))
    return Stored(name, path, nbytes, bool(whole))


def _disk_bytes(folder: Path) -> int:
    """Bytes of every file below; a link is counted where it points to, once."""
    return sum({path.resolve(): _size(path) for path in folder.rglob("*") if path.is_file()}.values())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


# ---- the network ------------------------------------------------------------------------------------------------


def _ask(repo: str) -> tuple[str, dict[str, _File]]:
    """The commit that the branch main stands at, and its files by name."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HTTPError  # httpx's, or httpx2's in later versions

    try:
        info = HfApi().model_info(repo, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        files = [
            _File(s.rfilename, s.lfs.size, s.lfs.sha256) if s.lfs else _File(s.rfilename, s.size or 0, None)
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
        raise _not_a_hub(repo) from error


def _fetch(repo: str, commit: str, files: list[_File], progress: Progress | None) -> None:
    """Fetch what is missing of these files, once the disk is known to have room for it."""
    from huggingface_hub import constants, hf_hub_download

    folder = _repo_folder(repo)
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


def _bytes_there(folder: Path, commit: str, file: _File) -> int:
    if (folder / "snapshots" / commit / file.name).exists():
        return file.size
    blob = folder / "blobs" / (file.sha256 or "-")
    return file.size if blob.exists() else min(file.size, _size(blob.with_suffix(".incomplete")))


def _fetch_large(repo: str, commit: str, file: _File, tell: Callable[[int], None]) -> None:
    """Fetch a file into the cache's blobs, going on where an earlier attempt stopped.

    huggingface_hub's own download throws away what an interrupted attempt fetched. The names and the lock are its own,
    so that both keep out of each other's way.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    folder = _repo_folder(repo)
    blob = folder / "blobs" / str(file.sha256)
    unfinished, lock = blob.with_suffix(".incomplete"), folder.parent / ".locks" / folder.name / f"{blob.name}.lock"
    for path in (blob, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        if _size(unfinished) > file.size:
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


# ---- what goes wrong --------------------------------------------------------------------------------------------


@contextmanager
def _faults(repo: str) -> Iterator[None]:
    """Say what network, hub and disk do to us as a HubError."""
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except MistralError:
        raise
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise _fault(repo, error) from error


def _fault(repo: str, error: BaseException) -> HubError:
    # An HTTP error's own words are never shown: they can quote a header with the token in it.
    from huggingface_hub.errors import (
        FileMetadataError,
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OfflineModeIsEnabled):
        return HubError(
            f"{repo} cannot be fetched: HF_HUB_OFFLINE is set, so the network is not to be used.",
            f"Unset it, or choose a model that is on this machine. {_KEPT}",
        )
    if isinstance(error, HfHubHTTPError):
        return _refusal(repo, error.response.status_code, gated=isinstance(error, GatedRepoError))
    if isinstance(error, FileMetadataError):
        return _not_a_hub(repo)
    if isinstance(error, (HTTPError, ConnectionError, TimeoutError, LocalEntryNotFoundError)):
        return HubError(
            f"{repo} cannot be fetched: the network is not reachable, or the connection was cut.",
            f"Check the connection. {_KEPT}",
        )
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return HubError(
            f"The disk is full, or holds no file of that size, so {repo} was not fetched to its end.",
            f"Make room for {_cache()}. {_KEPT}",
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return HubError(
            f"The cache, {_cache()}, may not be written to.", "Change its owner, or set HF_HOME to a folder of yours."
        )
    return HubError(f"{repo} cannot be fetched: {error}.", _KEPT)


def _refusal(repo: str, status: int, *, gated: bool) -> HubError:
    """What the hub says by its status code."""
    from huggingface_hub import constants

    page = f"{constants.ENDPOINT}/{repo}"
    said = {
        401: (
            f"The hub does not show {repo} without a valid token: it is private, or there is no such model.",
            "Check the spelling; if it is right, run `hf auth login`, or set HF_TOKEN to a valid token.",
        ),
        403: (f"The hub refuses access to {repo}.", f"Your token may lack the right to read it; look at {page}."),
        404: (f"There is no model {repo} on the hub.", f"Check the spelling: {page} should open."),
        429: (
            f"The hub has had too many requests from here, so it does not give {repo} now.",
            "Wait some minutes; with `hf auth login` the limit is higher. What was fetched is kept.",
        ),
    }
    if gated:
        return HubError(
            f"{repo} is given only to those who have accepted its licence.",
            f"Accept it on {page}, then run `hf auth login` or set HF_TOKEN to a token of that account.",
        )
    return HubError(
        *said.get(status, (f"The hub answered with error {status}, not with {repo}.", f"Try later. {_KEPT}"))
    )


def _not_a_hub(repo: str) -> HubError:
    return HubError(
        f"What answered for {repo} is not a Hugging Face hub.",
        "A proxy or a login page may stand in between, or HF_ENDPOINT may be wrong.",
    )


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:,.3g} GB" if nbytes < 1e12 else f"{nbytes / 1e9:,.0f} GB"
