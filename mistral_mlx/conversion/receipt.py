"""What a conversion did, for people and for programs: `conversion.json`."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mistral_mlx.conversion.evaluation import Evaluation
from mistral_mlx.weights.convert import Record

FILE = "conversion.json"
_BLOCK = 2**22


@dataclass(frozen=True)
class SourceFile:
    """A file that was read."""

    name: str
    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Receipt:
    """What was made of what, and what was lost.

    Attributes:
        versions: of mistral-mlx and of mlx.
        source: the name that was given.
        files: those that held the source's weights and configuration.
        recipe: how matrices were quantized; None if they were not.
        keep: what was kept otherwise, as it was asked for.
        dtype: the type of what is not packed.
        parameters: numbers in the model.
        bytes_before, bytes_after: of all tensors.
        bits_per_weight: bits written for a parameter, on average.
        tensors: each one's types, bytes and error.
        evaluation: how both models read a text; None if that was not asked for.
        notes: what its user should know.
    """

    versions: dict[str, str]
    source: str
    files: list[SourceFile]
    recipe: str | None
    keep: list[str]
    dtype: str
    parameters: int
    bytes_before: int
    bytes_after: int
    bits_per_weight: float
    tensors: list[Record]
    evaluation: Evaluation | None
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)

    def write(self, folder: Path) -> None:
        """Write `conversion.json` into the folder."""
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")


@contextmanager
def hashing(files: Iterable[Path]) -> Iterator[Future[list[SourceFile]]]:
    """Hash files on a thread of its own while the block runs; a block that fails ends that as well."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(lambda: [_hash(file, stop) for file in files])
        finally:
            stop.set()


def _hash(file: Path, stop: threading.Event) -> SourceFile:
    digest = hashlib.sha256()
    with file.open("rb") as data:
        while not stop.is_set() and (block := data.read(_BLOCK)):
            digest.update(block)
        return SourceFile(file.name, data.tell(), digest.hexdigest())
