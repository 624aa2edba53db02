"""Projections of one input as one product: fewer kernels, and the input is read once."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from mistral_mlx.model.transformer import Transformer


def fuse(model: Transformer) -> None:
    """Join q, k, v and gate, up in every layer, where their weights have the same form; results stay the same.

    One layer at a time, and what was joined is let go, so that the weights never stand in memory twice. The rows of a
    fused matrix are those of its parts in turn, which is where an adapter of one part belongs.
    """
    for block in model.model.layers:
        attention = block.self_attn
        if not _join(attention, ("q_proj", "k_proj", "v_proj"), "qkv_proj"):
            _join(attention, ("q_proj", "k_proj"), "qk_proj")
        _join(block.mlp, ("gate_proj", "up_proj"), "gate_up_proj")


def _join(owner: nn.Module, parts: Sequence[str], name: str) -> bool:
    """Put one projection in the place of several, if their rows can stand in one matrix."""
    if not all(part in owner for part in parts):
        return False
    modules = [owner[part] for part in parts]
    first = modules[0]
    if len({_form(module) for module in modules}) > 1:
        return False
    arrays = {key: mx.concatenate([module[key] for module in modules]) for key in first.parameters()}
    mx.eval(arrays)
    first.update(arrays)
    owner[name] = first
    for part in parts:
        del owner[part]
    return True


def _form(module: nn.Module) -> tuple[object, ...]:
    """What must be alike: the class, how it is packed, and the types of its arrays."""
    packing = (getattr(module, key, None) for key in ("bits", "group_size", "mode"))
    return type(module), *packing, *((key, array.dtype) for key, array in module.parameters().items())
