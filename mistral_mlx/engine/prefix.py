"""What has been read before need not be read again: caches kept between requests, found by the ids they stand after.

A cache is exact for any prefix that it can be rewound to: every one before the window has turned, then those within its
slack and its log. The cache used last is as large as it is; what is kept besides, older caches and all logs, stays
within a number of bytes, and the least recently used goes first.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from safetensors import SafetensorError, safe_open

from mistral_mlx.backend import memory_limit
from mistral_mlx.errors import InputError
from mistral_mlx.model.cache import Cache, bytes_per_slot, cache_bytes
from mistral_mlx.model.ring import LayerState
from mistral_mlx.model.transformer import Transformer

_FORMAT = "mistral-mlx cache 1"


class _Entry:
    """A cache that stands after some ids; it does not change while it is kept, so what it has is counted once."""

    def __init__(self, ids: np.ndarray, cache: Cache) -> None:
        self.ids = ids
        self.cache = cache
        self.position, self.rewindable = cache.position, cache.rewindable
        self.cache_bytes = cache.nbytes
        self.nbytes = self.cache_bytes + cache.log_bytes

    def reach(self, ids: np.ndarray) -> int:
        """How many of `ids` the cache can stand after, from the first on."""
        common = shared(self.ids, ids)
        return common if self.position - common <= self.rewindable else 0


def shared(a: np.ndarray, b: np.ndarray) -> int:
    """How many ids both begin with."""
    length = min(len(a), len(b))
    same = a[:length] == b[:length]
    return length if same.all() else int(same.argmin())


class Prefixes:
    """The caches of one model that are not in use.

    Attributes:
        max_reuse_bytes: what is kept at most besides the cache used last.
        max_log_bytes: of this, what one cache may log.
    """

    def __init__(self, model: Transformer, max_bytes: int | None = None) -> None:
        """Nothing yet.

        Args:
            max_bytes: by default those of one cache whose windows are full, or of 4,096 tokens; but no more than half
                of what this machine has left beside weights and such a cache.
        """
        self._model = model
        config, size = model.config, model.dtype.size
        usual = max((window for window in config.windows if window), default=4096)
        if max_bytes is None:
            max_bytes = cache_bytes(config, usual, size, packing=model.packing)
            max_bytes = max(0, min(max_bytes, (memory_limit() - model.nbytes - max_bytes) // 2))
        self.max_reuse_bytes = self.max_log_bytes = max_bytes
        self._entries: list[_Entry] = []  # the least recently used first

    @property
    def log(self) -> int:
        """Tokens that a cache may log: all that is allowed."""
        config = self._model.config
        windowed = sum(window is not None for window in config.windows)
        slot = bytes_per_slot(config, self._model.dtype.size, self._model.packing)
        return min(self.max_log_bytes, self.max_reuse_bytes) // (windowed * slot) if windowed else 0

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache used last."""
        return self._entries[-1].cache_bytes if self._entries else 0

    @property
    def reuse_bytes(self) -> int:
        """Bytes of what is kept besides: older caches, and the logs of all."""
        return sum(entry.nbytes for entry in self._entries) - self.cache_bytes

    def reach(self, ids: Sequence[int] | np.ndarray) -> int:
        """How many of the ids need not be read: as many as `take` would find."""
        return self._furthest(ids)[0]

    def _furthest(self, ids: Sequence[int] | np.ndarray) -> tuple[int, _Entry | None]:
        """How many of the ids need not be read, and what stands after them; none if it would not pay."""
        wanted = np.asarray(ids[:-1], np.int64)  # one id at least must be read, for its logits
        reaches = ((entry.reach(wanted), entry) for entry in self._entries)
        # Of those that reach as far, the one with the least to take back.
        reach, entry = max(reaches, key=lambda found: (found[0], -found[1].position), default=(0, None))
        if entry is None or not reach:
            return 0, None
        back = entry.position - reach
        # Where there is no room for a copy, a cache that would lose more than it gives stays as it is, if it can.
        if not self._roomy and back > reach and entry.nbytes <= self.max_reuse_bytes:
            return 0, None
        return reach, entry

    @property
    def _roomy(self) -> bool:
        """Whether there is room for another copy of what is kept."""
        return self.cache_bytes + self.reuse_bytes <= self.max_reuse_bytes

    def take(self, ids: Sequence[int]) -> tuple[Cache, int]:
        """A cache that stands after a beginning of `ids`, the longest there is, and the length of that beginning.

        It is the caller's: to be given back by `put` once it stands after more, or let go of when a step failed.
        """
        reach, entry = self._furthest(ids)
        if entry is None:
            return self._model.make_cache(log=self.log), 0
        back = entry.position - reach
        if back and self._roomy:
            cache = entry.cache.copy()  # another answer, or another text that begins alike: the old one stays
        else:
            self._entries = [other for other in self._entries if other is not entry]
            cache = entry.cache
        cache.rewind(back)
        cache.trim()
        return cache, reach

    def put(self, ids: Sequence[int], cache: Cache) -> None:
        """Keep a cache that stands after `ids`, and let go of the oldest if that is too much."""
        if cache.position:
            self._entries.append(_Entry(np.asarray(ids[: cache.position], np.int64), cache))
            self._shrink()

    def _shrink(self) -> None:
        while self.reuse_bytes > self.max_reuse_bytes and len(self._entries) > 1:
            del self._entries[0]

    def make_room(self, free: int) -> None:
        """Let go of as much as must be for everything kept here to take no more than `free` bytes."""
        while self._entries and self.cache_bytes + self.reuse_bytes > free:
            del self._entries[0]

    def clear(self) -> None:
        """Let go of everything."""
        self._entries = []

    # ---- on disk ------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> int:
        """Write the cache used last to a file, whole or not at all; returns the tokens that it stands after.

        Raises:
            InputError: nothing has been read yet, the file cannot be written, or there is one that is no cache.
        """
        if not self._entries:
            raise InputError("There is nothing to save yet.", "Generate something first.")
        if path.exists() and not is_cache(path):
            raise InputError(f"{path} is another file, which stays as it is.", "Give the name of a new one.")
        entry = self._entries[-1]
        arrays: dict[str, mx.array] = {}
        places = []
        for i, state in enumerate(entry.cache.state):
            arrays |= {f"{i}.{j}": ring for j, ring in enumerate(state.rings)}
            places.append([state.position, state.written, state.oldest])
        about = json.dumps([entry.ids.tolist(), places])
        metadata = {"format": _FORMAT, "model": fingerprint(self._model), "about": about, "sum": _digest(arrays, about)}
        part = path.with_name(f".{path.name}.{os.getpid()}.safetensors")
        try:
            mx.save_safetensors(str(part), arrays, metadata)
            with part.open("rb") as written:
                os.fsync(written.fileno())
            part.replace(path)
        except (OSError, RuntimeError) as error:
            raise InputError(f"{path} cannot be written: {error}.", "Choose another place.") from error
        finally:
            with suppress(OSError):
                part.unlink()
        return len(entry.ids)

    def restore(self, path: Path) -> int:
        """Take up what `save` wrote; returns the tokens that need not be read again.

        Raises:
            InputError: the file is missing, damaged, or another model's; nothing is changed.
        """
        try:
            metadata = _metadata(path)
            if metadata.get("format") != _FORMAT:
                raise InputError(f"{path} holds no cache.", "Leave it out, or give one that was saved here.")
            if metadata["model"] != fingerprint(self._model):
                raise InputError(f"{path} was written with another model.", "Load that one, or save anew.")
            ids, places = json.loads(metadata["about"])
            arrays = dict(mx.load(str(path), format="safetensors"))  # type: ignore[arg-type]
            if metadata["sum"] != _digest(arrays, metadata["about"]):
                raise ValueError("it is damaged")
            cache = self._model.make_cache(log=self.log)
            each = len(arrays) // len(cache.layers)
            cache.state = [
                LayerState([arrays[f"{i}.{j}"] for j in range(each)], *map(int, place))
                for i, place in enumerate(places)
            ]
        except InputError:
            raise
        except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} cannot be used: {error}.", "The prompt is then read anew.") from error
        self.put(ids, cache)
        return len(ids)


def is_cache(path: Path) -> bool:
    """Whether a file was written by `save`, whatever the model."""
    try:
        return _metadata(path).get("format") == _FORMAT
    except (OSError, SafetensorError):
        return False


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:  # it checks every bound, which mx.load does not
        return file.metadata() or {}


def fingerprint(model: Transformer) -> str:
    """A hash of the configuration and of all weights, which it reads once."""
    return _digest(dict(tree_flatten(model.parameters())), repr((model.config, model.dtype, model.packing)))


def _digest(arrays: Mapping[str, mx.array], about: str) -> str:
    """A hash of arrays by the sums of their rows, which costs little more than reading them."""
    digest = hashlib.sha256(about.encode())
    for name, array in sorted(arrays.items()):
        words = array.view({1: mx.uint8, 2: mx.uint16, 4: mx.uint32}[array.itemsize]).astype(mx.uint32)
        digest.update(f"{name} {array.shape} {array.dtype} ".encode())
        digest.update(np.array(words.sum(axis=-1)).tobytes())
    return digest.hexdigest()
