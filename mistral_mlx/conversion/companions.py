"""What lies beside the weights in a model folder: its configuration, its tokenizer, its licence."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mistral_mlx import hub
from mistral_mlx.config_keys import HF_KEYS, token_ids
from mistral_mlx.errors import TokenizerError
from mistral_mlx.text import sentencepiece
from mistral_mlx.text.export import MISTRAL_NAMES, write_gguf_text, write_sentencepiece, write_tekken
from mistral_mlx.text.tekken import Tekken
from mistral_mlx.weights.checkpoint import Checkpoint, read_json
from mistral_mlx.weights.convert import Plan
from mistral_mlx.weights.quantize import describe

_OURS = ("config.json", "params.json")
_ARCHITECTURES = {"mistral": "MistralForCausalLM", "llama": "LlamaForCausalLM"}


def write_config(checkpoint: Checkpoint, plan: Plan, folder: Path) -> None:
    """Write config.json as transformers, mlx-lm and this project read it.

    Of a config.json that was there, all keys stay that do not describe the architecture.
    """
    config, source = checkpoint.config, checkpoint.described_by
    if source is None:
        bos, eot = (
            token_ids(checkpoint.metadata.get(f"tokenizer.ggml.{name}_token_id", ()), f"{name}_token_id")
            for name in ("bos", "eot")
        )
        own: dict[str, Any] = {"bos_token_id": bos[0]} if bos else {}
        config, kind = replace(config, eos_token_ids=tuple(dict.fromkeys(config.eos_token_ids + eot))), "llama"
    elif source.name == "params.json":
        own, kind = {"bos_token_id": 1}, "mistral"
    else:
        keys = read_json(source)
        own, kind = {k: v for k, v in keys.items() if k in HF_KEYS.harmless}, keys["model_type"]
    if kind != "llama" or any(config.windows):
        kind = "mistral"
    keys = own | config.to_hf(kind)
    keys["architectures"] = [_ARCHITECTURES[kind]]
    keys["torch_dtype"] = plan.dtype
    keys.pop("dtype", None)  # transformers' newer word for the same
    if plan.layouts:
        keys["quantization"] = keys["quantization_config"] = describe(plan.layouts)
    _write_json(folder / "config.json", dict(sorted(keys.items())))


def write_text(checkpoint: Checkpoint, folder: Path) -> str:
    """Write or copy the tokenizer, the chat template, generation settings and licences.

    Returns:
        What could not be, in words; empty if nothing.
    """
    if checkpoint.metadata:
        try:
            write_gguf_text(checkpoint.metadata, folder)
        except TokenizerError as error:
            return f"No tokenizer was written. {error.message}"
        return ""
    for path in checkpoint.path.iterdir():
        if path.name not in _OURS and path.is_file() and any(fnmatchcase(path.name, p) for p in hub.SIDE_FILES):
            shutil.copyfile(path, folder / path.name)
    # Mistral's own releases bring nothing that programs without their library, or without sentencepiece, could read.
    if not (folder / "tokenizer.json").exists() and not (folder / "tokenizer_config.json").exists():
        models = [*sorted(folder.glob("tokenizer.model*")), *sorted(folder.glob("*.model.v[0-9]*"))]
        if (folder / "tekken.json").exists():
            return write_tekken(Tekken(folder / "tekken.json"), folder)
        if models:
            if not (folder / "tokenizer.model").exists():
                shutil.copyfile(models[-1], folder / "tokenizer.model")
            write_sentencepiece(sentencepiece.from_file(models[-1]), MISTRAL_NAMES, folder)
    if not any(folder.glob("tok*")):
        return "There is no tokenizer beside the weights: copy the model's into the new folder."
    return ""


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
