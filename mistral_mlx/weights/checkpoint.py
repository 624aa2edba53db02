"""From a path to a model: find the files, hold every tensor against the configuration, then read them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mistral_mlx.backend import compute_dtype, memory_limit, on_gpu
from mistral_mlx.config import ModelConfig
from mistral_mlx.config_keys import token_ids
from mistral_mlx.errors import ConfigError, InputError, OutOfMemoryError, WeightsError
from mistral_mlx.model.transformer import Transformer
from mistral_mlx.weights.formats import gguf, safetensors
from mistral_mlx.weights.names import expected_shapes, rotated_heads, to_gguf
from mistral_mlx.weights.tensor import Quantized, Tensor

log = logging.getLogger("mistral_mlx")

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}

# Tables that some exporters store beside the weights and that follow from the configuration.
_DERIVED = re.compile(r"(^|\.)rotary_emb\.inv_freq$")


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk whose tensors are known to fit its configuration; none of their data has been read.

    Attributes:
        path: the folder or file.
        metadata: what a GGUF file says besides, such as its tokenizer; empty for a folder.
    """

    path: Path
    config: ModelConfig
    tensors: dict[str, Tensor]
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def stored_bytes(self) -> int:
        """Bytes that the tensors take on disk."""
        return sum(t.nbytes for t in self.tensors.values())

    @property
    def states_chat_template(self) -> bool:
        """Whether a folder brings a chat template, which base models do not."""
        if (self.path / "chat_template.jinja").exists():
            return True
        settings = self.path / "tokenizer_config.json"
        return settings.exists() and bool(_read_json(settings).get("chat_template"))


def open_checkpoint(path: Path) -> Checkpoint:
    """Describe and check the model at `path`: a folder with config.json and safetensors, or a `.gguf` file.

    Raises:
        WeightsError: nothing to load, a damaged file, or tensors that do not fit; all mismatches in one error.
        ConfigError: a configuration that is broken or not supported.
    """
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return _open_gguf(path)
    raise WeightsError(f"There is no file or folder {path}.", "Check the path.")


def _open_folder(folder: Path) -> Checkpoint:
    files = safetensors.find_files(folder)
    if not files:
        ggufs = sorted(folder.glob("*.gguf"))
        hint = f"Give the file itself: {ggufs[0]}." if ggufs else "A model folder holds config.json and *.safetensors."
        raise WeightsError(f"{folder} holds no model.safetensors.", hint)
    config = read_config(folder)
    tensors = safetensors.read_tensors(files)
    return Checkpoint(folder, *_fit(config, tensors, folder))


def _open_gguf(path: Path) -> Checkpoint:
    header = gguf.read_header(path)
    config = ModelConfig.from_gguf(header.metadata)
    _tell_of_lost_window(config)
    ours = {to_gguf(name): name for name in expected_shapes(replace(config, tie_word_embeddings=False))}
    tensors: dict[str, Tensor] = {}
    for entry in header.entries:
        name = ours.get(entry, f"GGUF's {entry}")  # what we do not know is reported under its own name
        tensors[name] = header.tensor(entry, name, rotated_heads(name, config))
    return Checkpoint(path, *_fit(config, tensors, path), header.metadata)


def _tell_of_lost_window(config: ModelConfig) -> None:
    """GGUF has no key for the window of Mistral 7B v0.1; later versions of that shape have a RoPE base of 1e6."""
    shape = (config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_key_value_heads)
    if shape == (4096, 14336, 32, 8) and config.rope_theta == 1e4:
        log.warning(
            "This looks like Mistral 7B v0.1. GGUF cannot state its window of 4096, so it runs with full attention; "
            "the model's safetensors folder keeps the window."
        )


def read_config(folder: Path) -> ModelConfig:
    """The configuration in a folder: config.json, with the stop ids that generation_config.json adds.

    Raises:
        ConfigError: it is missing, is not JSON, or is not supported.
    """
    keys = _read_json(folder / "config.json")
    if keys.get("quantization") or keys.get("quantization_config"):
        raise ConfigError(
            f"{folder} holds quantized safetensors, which are not read here.",
            "Use the model's float weights, or a GGUF file of it in Q8_0 or Q4_0.",
        )
    config = ModelConfig.from_hf(keys)
    if (folder / "generation_config.json").exists():
        stops = _read_json(folder / "generation_config.json").get("eos_token_id")
        if stops is not None:
            more = token_ids(stops, "eos_token_id in generation_config.json")
            config = replace(config, eos_token_ids=tuple(dict.fromkeys(config.eos_token_ids + more)))
    return config


def _read_json(file: Path) -> dict[str, Any]:
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
    if faults:
        more = f"; and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise WeightsError(
            f"The tensors in {where} do not fit its configuration: {'; '.join(faults[:4])}{more}.",
            "Files of two models may be mixed up, or the configuration is another model's.",
        )
    return config, tensors


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


# ---- reading ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadingPlan:
    """In which form the weights will stand in memory.

    Attributes:
        dtype: the type of activations and of all that is not packed.
        expand: whether quantized weights are turned into `dtype`.
        nbytes: bytes of all weights in that form.
        packed_nbytes, full_nbytes: the same with quantized weights as they are, and expanded.
    """

    dtype: mx.Dtype
    expand: bool
    packed_nbytes: int
    full_nbytes: int

    @property
    def nbytes(self) -> int:
        return self.full_nbytes if self.expand else self.packed_nbytes


def plan_loading(checkpoint: Checkpoint, dtype: str | None = None) -> LoadingPlan:
    """What `load_model` will do with the same arguments; reads no weights.

    Raises:
        InputError: an unknown dtype.
    """
    if dtype is not None and dtype != "keep" and dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown.", f"Choose {', '.join(DTYPES)} or keep.")
    tensors = checkpoint.tensors.values()
    quantized = any(t.quantized for t in tensors)
    if dtype in DTYPES:
        compute = DTYPES[dtype]
    else:
        compute = _stored_dtype(checkpoint) if dtype == "keep" and not quantized else compute_dtype()
    full = sum(t.elements for t in tensors) * compute.size
    packed = sum(t.nbytes if t.quantized else t.elements * compute.size for t in tensors)
    expand = quantized and dtype != "keep" and not on_gpu() and full <= memory_limit() / 2
    return LoadingPlan(compute, expand, packed, full)


def load_model(checkpoint: Checkpoint, dtype: str | None = None) -> Transformer:
    """Read the weights.

    Args:
        dtype: float32, float16 or bfloat16 to compute in that precision; by default float32 on the CPU backend and
            the stored 16-bit type on a GPU. Quantized weights stay so on a GPU; on the CPU backend, whose quantized
            product costs time linear in the rows, they are expanded where that takes at most half of the memory.
            "keep" leaves weights as they are stored in any case.

    Raises:
        InputError: an unknown dtype.
        OutOfMemoryError: more bytes than the machine has; raised before anything is read.
        WeightsError: a file that became unreadable.
    """
    plan = plan_loading(checkpoint, dtype)
    if plan.nbytes > memory_limit():
        raise OutOfMemoryError(
            f"{checkpoint.path} needs {plan.nbytes / 2**30:.1f} GiB of weights in memory; this machine has "
            f"{memory_limit() / 2**30:.1f} GiB for it.",
            "Use a smaller or a quantized model.",
        )
    if any(t.quantized for t in checkpoint.tensors.values()) and not on_gpu() and dtype != "keep":
        _say(plan)
    model = Transformer(checkpoint.config)
    weights: dict[str, mx.array] = {}
    layouts: dict[str, dict[str, int]] = {}
    for name, tensor in checkpoint.tensors.items():
        try:
            value = tensor.read()
            if isinstance(value, Quantized) and plan.expand:
                value = value.expand()
            mx.eval(value)  # one by one, so that only one stored form lies beside the model
        except (RuntimeError, ValueError, OSError) as error:
            raise WeightsError(f"{name} in {checkpoint.path} cannot be read: {error}.", "Fetch it again.") from error
        if isinstance(value, Quantized):
            module = name.removesuffix(".weight")
            weights[name] = value.weight
            weights[f"{module}.scales"] = value.scales.astype(plan.dtype)
            weights[f"{module}.biases"] = value.biases.astype(plan.dtype)
            layouts[module] = {"group_size": value.group_size, "bits": value.bits}
        else:
            weights[name] = value.astype(plan.dtype)
            mx.eval(weights[name])
        del value
    if layouts:
        nn.quantize(model, class_predicate=lambda path, _: layouts.get(path, False))
    model.load_weights(list(weights.items()))
    model.freeze()
    mx.eval(model.parameters())
    return model


def _say(plan: LoadingPlan) -> None:
    """Tell what is done with quantized weights on the CPU backend: it changes the memory that they take."""
    sizes = f"{plan.full_nbytes / 1e6:,.0f} MB instead of {plan.packed_nbytes / 1e6:,.0f} MB"
    if plan.expand:
        name = str(plan.dtype).removeprefix("mlx.core.")
        log.warning(f'Quantized weights are expanded to {name} ({sizes}), faster on a CPU; dtype="keep" packs them.')
    else:
        log.warning(f"Quantized weights stay packed, which is slow on a CPU: expanded they would take {sizes}.")


def _stored_dtype(checkpoint: Checkpoint) -> mx.Dtype:
    """The type that float matrices are stored in, the widest if there are several."""
    kinds = {t.stored for t in checkpoint.tensors.values() if len(t.shape) > 1}
    return {"BF16": mx.bfloat16, "F16": mx.float16}.get(kinds.pop(), mx.float32) if len(kinds) == 1 else mx.float32
