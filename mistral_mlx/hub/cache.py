"""Models that were fetched: where they lie, what is whole, and taking one away. Asks no network."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from mistral_mlx.errors import HubError
from mistral_mlx.hub.faults import faults
from mistral_mlx.hub.names import SHARD, cache_folder, choose_files, is_hub_name, repo_folder, split_name


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


def find(name: str) -> Path | None:
    """The model in the cache, or None where it is not there whole; asks no network.

    It is what `pull` returned, but that the only .gguf file that is there needs no WHICH.
    """
    if not is_hub_name(name):
        return None
    repo, which = split_name(name)
    return next((path for s in _snapshots(repo_folder(repo)) if (path := find_in(s, which))), None)


def stored() -> list[Stored]:
    """What in the cache looks like a text model, whole or not, by name; damaged entries are left out."""
    try:
        folders = sorted(cache_folder().glob("models--*--*"))
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

    repo, which = split_name(name)
    if which is not None:
        raise HubError("One file of a repository cannot be removed by itself.", f"To remove them all, give {repo}.")
    folder, cache = repo_folder(repo), cache_folder()
    with faults(repo):
        if not folder.is_dir():
            raise HubError(f"{repo} is not in the cache, {cache}.", "Check the spelling.")
        freed = sum(file_size(path) for path in folder.glob("blobs/*.incomplete"))
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


def find_in(snapshot: Path, which: str | None) -> Path | None:
    _, weights = choose_files(_files_in(snapshot), which)
    if not weights:
        return None
    if weights[0].endswith(".gguf"):
        return snapshot / weights[0] if len(weights) == 1 and not SHARD.fullmatch(weights[0]) else None
    wanted = {
        f"{shard['stem']}-{i:05}-of-{shard['count']}.safetensors"
        for shard in map(SHARD.fullmatch, weights)
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
    ours = [(s, weights) for s in snapshots if (weights := choose_files(_files_in(s), None)[1])]
    try:
        nbytes, unfinished = _disk_bytes(folder), any((folder / "blobs").glob("*.incomplete"))
    except OSError:
        return None
    if not is_hub_name(name) or not (ours or unfinished):
        return None
    whole = [s for s, weights in ours if weights[0].endswith(".gguf") or find_in(s, None)]
    path = next(iter([*whole, *(s for s, _ in ours), *snapshots, folder]))
    return Stored(name, path, nbytes, bool(whole))


def _disk_bytes(folder: Path) -> int:
    """Bytes of every file below; a link is counted where it points to, once."""
    return sum({path.resolve(): file_size(path) for path in folder.rglob("*") if path.is_file()}.values())


def file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
