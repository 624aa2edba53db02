"""From a checkpoint to a model: in which form the weights will stand in memory, and reading them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mistral_mlx.backend import compute_dtype, memory_limit, on_gpu
from mistral_mlx.errors import InputError, OutOfMemoryError, WeightsError
from mistral_mlx.model.transformer import Transformer
from mistral_mlx.weights import fp8
from mistral_mlx.weights.checkpoint import Checkpoint
from mistral_mlx.weights.tensor import DTYPES, Quantized

log = logging.getLogger("mistral_mlx")

COMPUTE_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


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
    if dtype is not None and dtype != "keep" and dtype not in COMPUTE_DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown.", f"Choose {', '.join(COMPUTE_DTYPES)} or keep.")
    tensors = checkpoint.tensors.values()
    quantized = any(t.layout for t in tensors)
    if dtype in COMPUTE_DTYPES:
        compute = COMPUTE_DTYPES[dtype]
    else:
        compute = _stored_dtype(checkpoint) if dtype == "keep" and not quantized else compute_dtype()
    size = compute.size
    full = sum(t.elements for t in tensors) * size
    packed = sum(t.layout.nbytes(t.elements, size) if t.layout else t.elements * size for t in tensors)
    expand = quantized and dtype != "keep" and not on_gpu() and full <= memory_limit() / 2
    return LoadingPlan(compute, expand, packed, full)


def load_model(
    checkpoint: Checkpoint, dtype: str | None = None, progress: Callable[[int, int], None] | None = None
) -> Transformer:
    """Read the weights.

    Args:
        dtype: float32, float16 or bfloat16 to compute in that precision; by default float32 on the CPU backend and
            the stored 16-bit type on a GPU. Quantized weights stay so on a GPU; on the CPU backend, whose quantized
            product costs time linear in the rows, they are expanded where that takes at most half of the memory.
            "keep" leaves weights as they are stored in any case.
        progress: told (bytes read, all bytes) of the files' tensors, before the first and after each.

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
    if any(t.layout for t in checkpoint.tensors.values()) and not on_gpu() and dtype != "keep":
        _say(plan)
    model = Transformer(checkpoint.config)
    weights: dict[str, mx.array] = {}
    layouts: dict[str, dict[str, Any]] = {}
    done = 0
    if progress:
        progress(0, checkpoint.stored_bytes)
    for name, tensor in checkpoint.tensors.items():
        try:
            value = tensor.read()
            if not isinstance(value, mx.array) and (plan.expand or not isinstance(value, Quantized)):
                value = value.expand()
            mx.eval(value)  # one by one, so that only one stored form lies beside the model
        except (RuntimeError, ValueError, OSError) as error:
            raise WeightsError(f"{name} in {checkpoint.path} cannot be read: {error}.", "Fetch it again.") from error
        if isinstance(value, Quantized):
            module = name.removesuffix(".weight")
            value = value.cast(plan.dtype)
            weights[name], weights[f"{module}.scales"] = value.weight, value.scales
            if value.biases is not None:
                weights[f"{module}.biases"] = value.biases
            layouts[module] = asdict(value.layout)
        else:
            weights[name] = value.astype(plan.dtype)
            mx.eval(weights[name])
        del value
        done += tensor.nbytes
        if progress:
            progress(done, checkpoint.stored_bytes)
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
    if kinds == {fp8.STORED}:
        return mx.bfloat16
    return DTYPES.get(kinds.pop(), mx.float32) if len(kinds) == 1 else mx.float32
