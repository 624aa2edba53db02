"""From a path to a checkpoint: find the files and hold every tensor against the configuration."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from mistral_mlx.config import ModelConfig
from mistral_mlx.config_keys import token_ids
from mistral_mlx.errors import ConfigError, WeightsError
from mistral_mlx.weights import fp8
from mistral_mlx.weights.formats import gguf, safetensors, torch_pth
from mistral_mlx.weights.names import expected_shapes, half_split, rotated_heads, to_consolidated, to_gguf
from mistral_mlx.weights.quantized import Layouts, join_parts, refuse_other_schemes
from mistral_mlx.weights.tensor import Tensor

log = logging.getLogger("mistral_mlx")

_Read = Callable[[], dict[str, Tensor]]
IN_FOLDERS = (".safetensors", ".pth", ".pt", ".bin")  # files that are read with what lies beside them
# Tables that some exporters store beside the weights and that follow from the configuration.
_DERIVED = re.compile(r"(^|\.)rotary_emb\.inv_freq$|^rope\.freqs$")

# Types that files may hold and no model's parameters are, unless as parts of a quantized matrix.
_NO_WEIGHTS = ("U8", "U32", "F8_E4M3", "BOOL", "I8", "I16", "I32", "I64", "F64", "C64")


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk whose tensors are known to fit its configuration; none of their data has been read.

    Attributes:
        path: the folder or file.
        metadata: what a GGUF file says besides, such as its tokenizer; empty for a folder.
        files: those that hold the tensors.
        described_by: the configuration file; None where the weights' file says all itself.
        passed_over: files that hold the same model in another layout, and are not read.
    """

    path: Path
    config: ModelConfig
    tensors: dict[str, Tensor]
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    files: tuple[Path, ...] = ()
    described_by: Path | None = None
    passed_over: tuple[Path, ...] = ()

    @property
    def stored_bytes(self) -> int:
        """Bytes that the tensors take on disk."""
        return sum(t.nbytes for t in self.tensors.values())

    @property
    def stored_as(self) -> str:
        """The type that most of the bytes are of, such as BF16, Q4_0 or "4 bits / 64"; empty where there are none."""
        nbytes: Counter[str] = Counter()
        for t in self.tensors.values():
            packed = t.layout and t.stored == t.layout.mode  # by MLX; other files have a word for it
            nbytes[str(t.layout) if packed else t.stored] += t.nbytes
        return next((name for name, _ in nbytes.most_common(1)), "")


def is_gguf(path: Path) -> bool:
    """Whether a path is taken for a GGUF file: any file that is not read with what lies beside it."""
    return path.is_file() and path.suffix not in IN_FOLDERS


def open_checkpoint(path: Path) -> Checkpoint:
    """Describe and check the model at `path`.

    A folder holds config.json and model*.safetensors, float, FP8, or quantized by MLX; params.json and, as Mistral
    publishes them, consolidated*.safetensors or consolidated.NN.pth; or config.json and pytorch_model*.bin. Where it
    holds several, the first of these is taken, or the one that a file is given of. Any other file is GGUF.

    Raises:
        WeightsError: nothing to load, a damaged file, or tensors that do not fit; all mismatches in one error.
        ConfigError: a configuration that is broken or not supported.
    """
    if is_gguf(path):
        return _open_gguf(path)
    if not path.exists():
        raise WeightsError(f"There is no file or folder {path}.", "Check the path.")
    file, path = (path, path.parent) if path.is_file() else (None, path)
    layouts: list[tuple[str, list[Path], Callable[[Path, _Read], Checkpoint], Callable[..., dict[str, Tensor]]]] = [
        ("config.json", safetensors.find_files(path), _open_folder, safetensors.read_tensors),
        ("params.json", safetensors.find_files(path, "consolidated"), _open_consolidated, safetensors.read_tensors),
        ("params.json", torch_pth.find_parts(path), _open_consolidated, torch_pth.read_tensors),
        ("config.json", safetensors.find_files(path, "pytorch_model", "bin"), _open_folder, torch_pth.read_tensors),
    ]
    there = [layout for layout in layouts if layout[1] and file in (None, *layout[1])]
    if file and not there:  # by a name of its own
        known = ("params.json", [file], _open_consolidated, torch_pth.read_tensors)
        there = [known] if file.suffix in (".pth", ".pt") else []
    if there:
        # One without its configuration is taken only where there is no other, to say what is missing.
        name, files, opened, read = next((it for it in there if (path / it[0]).exists()), there[0])
        others = sorted(path for _, other, *_ in layouts for path in other if path not in files)
        checkpoint = opened(path, partial(read, files))
        return replace(checkpoint, files=tuple(files), described_by=path / name, passed_over=tuple(others))
    if (path / "config.json").exists():
        read_config(path)  # a model that could not be run anyway says so first
    ggufs = sorted(path.glob("*.gguf"))
    hint = (
        "A model folder holds config.json and model*.safetensors, or params.json and consolidated*.safetensors or "
        "consolidated.00.pth."
    )
    raise WeightsError(f"{path} holds no model.safetensors.", f"Give the file itself: {ggufs[0]}." if ggufs else hint)


def _open_folder(folder: Path, read: _Read) -> Checkpoint:
    keys = read_json(folder / "config.json")
    config = _config_of(keys, folder)
    tensors = read()
    if fp8_block := fp8.block_size(keys.get("quantization_config") or {}):
        tensors = fp8.join_scales(tensors, fp8_block)
    layouts = keys.get("quantization")
    if layouts:
        tensors = join_parts(tensors, Layouts(layouts))
    return Checkpoint(folder, *_fit(config, tensors, folder))


def _open_consolidated(folder: Path, read: _Read) -> Checkpoint:
    config, fp8_block = _read_params(folder)
    ours = {to_consolidated(name): name for name in _every_name(config)}
    stored = read()
    if fp8_block:
        stored = fp8.join_scales(stored, fp8_block)
    tensors: dict[str, Tensor] = {}
    for entry, tensor in stored.items():
        name = ours.get(entry, entry)
        heads = rotated_heads(name, config)
        in_order = partial(_read_half_split, tensor, heads) if heads else tensor.read
        tensors[name] = replace(tensor, name=name, read=in_order)
    return Checkpoint(folder, *_fit(config, tensors, folder))


def _read_half_split(tensor: Tensor, heads: int) -> mx.array:
    return half_split(tensor.array(), heads)


def _open_gguf(path: Path) -> Checkpoint:
    header = gguf.read_header(path)
    config = ModelConfig.from_gguf(header.metadata)
    _tell_of_lost_window(config)
    ours = {to_gguf(name): name for name in _every_name(config)}
    tensors: dict[str, Tensor] = {}
    for entry in header.entries:
        name = ours.get(entry, f"GGUF's {entry}")  # what we do not know is reported under its own name
        tensors[name] = header.tensor(entry, name, rotated_heads(name, config))
    return Checkpoint(path, *_fit(config, tensors, path), header.metadata, (path,))


def _tell_of_lost_window(config: ModelConfig) -> None:
    """Converters leave out the window of Mistral 7B v0.1; later versions of that shape have a RoPE base of 1e6."""
    shape = (config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_key_value_heads)
    if shape == (4096, 14336, 32, 8) and config.rope_theta == 1e4 and config.sliding_window is None:
        log.warning(
            "This looks like Mistral 7B v0.1, but the file does not state its window of 4096: load it with window=4096 "
            "(--window 4096), or it runs with full attention."
        )


def _every_name(config: ModelConfig) -> Iterable[str]:
    """The names of all parameters, the output matrix among them whether or not the embeddings are tied."""
    return expected_shapes(replace(config, tie_word_embeddings=False))


def read_config(folder: Path) -> ModelConfig:
    """The configuration in a folder: config.json, with the stop ids that generation_config.json adds; or params.json.

    Raises:
        ConfigError: it is missing, is not JSON, or is not supported.
    """
    if not (folder / "config.json").exists() and (folder / "params.json").exists():
        return _read_params(folder)[0]
    return _config_of(read_json(folder / "config.json"), folder)


def _config_of(keys: dict[str, Any], folder: Path) -> ModelConfig:
    refuse_other_schemes(keys)
    config = ModelConfig.from_hf({k: v for k, v in keys.items() if k not in ("quantization", "quantization_config")})
    if (folder / "generation_config.json").exists():
        stops = read_json(folder / "generation_config.json").get("eos_token_id")
        if stops is not None:
            more = token_ids(stops, "eos_token_id in generation_config.json")
            config = replace(config, eos_token_ids=tuple(dict.fromkeys(config.eos_token_ids + more)))
    return config


def _read_params(folder: Path) -> tuple[ModelConfig, int | None]:
    """The configuration, and the side of the blocks that FP8 weights have scales for; None where they are not FP8."""
    keys = read_json(folder / "params.json")
    quantization = keys.pop("quantization", None)
    block = fp8.block_size(quantization) if isinstance(quantization, Mapping) else None
    if quantization and not block:
        raise ConfigError(
            f"The weights are quantized as {quantization!r}, which is not read here.",
            "Use the model's float or FP8 weights, an MLX folder of it, or a GGUF file.",
        )
    return ModelConfig.from_params(keys), block


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; raises ConfigError if there is none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file} is missing.", "A model folder holds it beside its weights.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not valid JSON: {error}.", "Fetch it again.") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{file} must hold a JSON object.", "Fetch it again.")
    return value


def _fit(config: ModelConfig, tensors: dict[str, Tensor], where: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Settle whether embeddings are tied, and report every tensor that is missing, unknown or misshapen at once."""
    if config.tie_word_embeddings is None:
        config = replace(config, tie_word_embeddings="lm_head.weight" not in tensors)
    elif config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)  # a copy of the embedding, which some exporters store all the same
    tensors = {name: tensor for name, tensor in tensors.items() if not _DERIVED.search(name)}
    expected = expected_shapes(config)
    faults = [f"{name} is missing" for name in expected if name not in tensors]
    faults += [f"{name} is unknown" for name in tensors if name not in expected]
    faults += [
        f"{name} is {_by(tensors[name].shape)}, not {_by(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    faults += [
        f"{name} is of type {t.stored}" for name, t in tensors.items() if not t.layout and t.stored in _NO_WEIGHTS
    ]
    if faults:
        more = f"; and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise WeightsError(
            f"The tensors in {where} do not fit its configuration: {'; '.join(faults[:4])}{more}.",
            "Files of two models may be mixed up, or the configuration is another model's.",
        )
    return config, tensors


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
