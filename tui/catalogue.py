"""The models that there are to choose from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mistral_mlx.errors import HubError, MistralError

if TYPE_CHECKING:
    from mistral_mlx.worker import Job


@dataclass(frozen=True)
class ModelEntry:
    """A model on this machine or to be had.

    Attributes:
        nbytes: bytes on disk.
        complete: whether all of it is there.
        fits: whether this machine has the memory for it; None while that cannot be told.
        stored_as: how most of its weights are stored; empty if unknown.
        download: bytes to fetch; None while that is not known.
        problem: why it cannot be used, though it is there.
    """

    name: str
    alias: str | None
    nbytes: int = 0
    complete: bool = False
    fits: bool | None = None
    stored_as: str = ""
    download: int | None = None
    problem: str = ""


def catalogue(job: Job) -> Iterator[list[ModelEntry]]:
    """The models of this machine and the aliases that are not here; then again with what these would fetch."""
    from mistral_mlx import models

    entries: list[ModelEntry] = []
    for found in models.on_disk():
        entry = ModelEntry(found.name, found.alias, found.nbytes, found.complete)
        if found.complete:
            try:
                info = models.info(found.name)
                entry = replace(entry, fits=info.memory.fits, stored_as=info.stored_as)
            except MistralError as error:
                entry = replace(entry, problem=error.message)
        entries.append(entry)
    here = {entry.name for entry in entries}
    entries += [ModelEntry(name, alias) for alias, name in models.ALIASES.items() if name not in here]
    yield list(entries)
    for index, entry in enumerate(entries):
        if entry.complete or job.cancelled.is_set():
            continue
        try:
            entries[index] = replace(entry, download=models.download_size(entry.name))
        except HubError:  # offline, or a licence to accept: pulling it says which
            continue
        yield list(entries)
