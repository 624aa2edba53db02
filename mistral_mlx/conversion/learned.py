"""Quantization that is fitted to a text: mlx-lm's own AWQ, DWQ and GPTQ, on a whole model in memory."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mistral_mlx.conversion.companions import write_config
from mistral_mlx.conversion.evaluation import text_ids
from mistral_mlx.conversion.target import check_space
from mistral_mlx.errors import InputError, MistralError
from mistral_mlx.weights.checkpoint import Checkpoint, open_checkpoint
from mistral_mlx.weights.convert import Plan, Progress, Record, plan_conversion, write_weights
from mistral_mlx.weights.quantize import Recipe, at_both_ends
from mistral_mlx.weights.tensor import Layout

METHODS = ("awq", "dwq", "gptq")
_LENGTH = 512  # tokens of a sample; mlx-lm drops windows, so never more than one
_BATCH = 4
_LEARNING_RATE = 1e-6  # of DWQ; mlx-lm's own


def check_learning(method: str | None, text: str | None, recipe: Recipe | None) -> None:
    """Raise InputError if these do not go together."""
    if method is None:
        if text is not None:
            raise InputError("There is a text to learn from, and nothing to learn.", "Add --learn gptq, awq or dwq.")
        return
    if method not in METHODS:
        raise InputError(f"{method!r} cannot be learned.", f"Choose {', '.join(METHODS)}.")
    if text is None:
        raise InputError(f"{method} learns from a text.", "Name one: --calibrate TEXT, or --calibrate sample.")
    if recipe is None:
        raise InputError(f"{method} needs to know how many bits.", "Add -q 4.")
    if recipe.sensitive or recipe.keep or recipe.layout.mode != "affine":
        raise InputError(f"{method} decides itself which matrix gets what.", "Give it bits alone, as in -q 4.")


def write_learned(
    checkpoint: Checkpoint,
    recipe: Recipe,
    method: str,
    text: str,
    dtype: str | None,
    work: Path,
    progress: Progress,
) -> tuple[Plan, list[Record]]:
    """Quantize by a method that `check_learning` let pass, and write the weights into `work / "new"`.

    Args:
        recipe: plain bits.
        method: awq, dwq or gptq.
        text: what it is fitted to.
        progress: told of the float copy that is written first, which mlx-lm reads; then it shows its own bars.

    Returns:
        The plan of what was written, and records whose errors are None: what is kept is what comes out of layers, not
        the numbers in them.

    Raises:
        InputError: the source does not suit it, or mlx-lm cannot do it.
        TokenizerError: the model came without a tokenizer.
    """
    recipe.layouts(checkpoint.config)  # raises if groups do not fit
    if any(t.layout for t in checkpoint.tensors.values()):
        raise InputError(f"{method} learns from float weights, and the source is quantized.", "Give the original.")
    samples = _samples(text, checkpoint)
    floats, learned = work / "floats", work / "learned"
    floats.mkdir()
    plan = plan_conversion(checkpoint, None, dtype)
    check_space(work, 2 * plan.nbytes, "A float copy, and what is made of it,")
    write_config(checkpoint, plan, floats)
    write_weights(plan, floats, progress)
    try:
        _learn(floats, learned, method, recipe.layout, samples)
    except (MistralError, KeyboardInterrupt):
        raise
    except Exception as error:  # what mlx-lm makes of a model that it was not written for
        raise InputError(f"mlx-lm's {method} failed: {error}.", "Quantize without --learn.") from error
    made = open_checkpoint(learned)
    plan = plan_conversion(made, None)
    write_config(checkpoint, plan, work / "new")
    records = write_weights(plan, work / "new")
    before = checkpoint.tensors
    return plan, [
        replace(r, stored=before[r.name].stored, bytes_before=before[r.name].nbytes, error=None, cosine=None)
        for r in records
    ]


def _samples(text: str, checkpoint: Checkpoint) -> mx.array:
    """(samples, tokens): as many as the text gives."""
    config = checkpoint.config
    ids = text_ids(checkpoint, text)
    windows = [window for window in config.windows if window is not None]
    length = min(_LENGTH, len(ids), config.max_position_embeddings, *windows)
    count = len(ids) // length
    return mx.array(ids[: count * length]).reshape(count, length)


def _learn(floats: Path, learned: Path, method: str, layout: Layout, samples: mx.array) -> None:
    """Call mlx-lm, and write its model as one folder."""
    from mlx_lm.utils import load_model, save_config, save_model

    mx.random.seed(0)
    model, config = load_model(floats)
    ends = at_both_ends(layout) if config["tie_word_embeddings"] else layout
    if method == "gptq":
        from mlx_lm.quant.gptq import gptq_quantize

        model, config["quantization"] = gptq_quantize(
            model, samples, layout.bits, layout.group_size, ends.bits, ends.group_size
        )
    elif method == "awq":
        from mlx_lm.quant.awq import AWQ_MODEL_CONFIGS, awq_quantize, update_config

        awq_quantize(
            model,
            samples,
            AWQ_MODEL_CONFIGS[config["model_type"]],
            group_size=layout.group_size,
            bits=layout.bits,
            embed_group_size=ends.group_size,
            embed_bits=ends.bits,
        )
        config = update_config(model, config)
    else:
        model, config = _distil(model, config, layout, ends, samples)
    save_model(learned, model, donate_model=True)
    save_config(config, learned / "config.json")


def _distil(
    teacher: Any, config: dict[str, Any], layout: Layout, ends: Layout, samples: mx.array
) -> tuple[Any, dict[str, Any]]:
    """DWQ: scales and biases of a quantized copy are trained to give the original's predictions."""
    import numpy as np
    from mlx.optimizers import Adam
    from mlx_lm.quant.dwq import dwq_quantize
    from mlx_lm.utils import quantize_model

    np.random.seed(0)
    student, config = quantize_model(
        copy.deepcopy(teacher),
        config,
        layout.group_size,
        layout.bits,
        quant_predicate=lambda path, _: asdict(ends if path == "model.embed_tokens" else layout),
    )
    rows: Any = samples.tolist()
    data = [(row, 0) for row in rows]
    dwq_quantize(
        student,
        lambda batch, index, split: teacher(batch),
        Adam(learning_rate=_LEARNING_RATE, bias_correction=True),
        data,
        data[:_BATCH],
        batch_size=min(_BATCH, len(data)),
        max_seq_length=samples.shape[1] + 1,
        seed=0,
        dtype=next(v.dtype for v in teacher.model.norm.parameters().values()),
    )
    return student, config
