"""Make the golden checkpoints: tiny random models written by transformers, and the logits it computes for them.

    pip install torch transformers && python tests/golden/make.py

Weights are stored in bfloat16 and the logits computed from the stored values in float32 on the CPU with eager
attention, so whatever reads the folder can be held against `logits.safetensors` to the last digits of float32.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MinistralConfig, MistralConfig

HERE = Path(__file__).parent
LENGTH = 64

COMMON = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
    "initializer_range": 0.25,  # large enough that attention is far from uniform
    "tie_word_embeddings": False,
}
CASES = {
    # Mistral 7B v0.1 in small: a window on every layer, four query heads to a key/value head.
    "window": MistralConfig(**COMMON, sliding_window=8, rope_theta=10_000.0),
    "full": MistralConfig(**COMMON | {"head_dim": 128, "num_attention_heads": 4, "num_key_value_heads": 1},
                          sliding_window=None, rope_theta=1_000_000.0),
    "mix": MinistralConfig(**COMMON | {"num_hidden_layers": 4, "head_dim": 16}, sliding_window=8,
                           layer_types=["full_attention", *["sliding_attention"] * 3], rope_theta=100_000.0),
    "head_dim": LlamaConfig(**COMMON | {"hidden_size": 48, "num_attention_heads": 4, "head_dim": 20,
                                        "tie_word_embeddings": True}, rope_theta=10_000.0),
    "yarn": MistralConfig(**COMMON, sliding_window=None, rope_parameters={
        "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16,
        "beta_fast": 4.0, "beta_slow": 1.0}),
}  # fmt: skip


def main() -> None:
    for seed, (name, config) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        folder = HERE / name
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder, max_shard_size="100KB" if name == "full" else "5GB")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        ids = torch.randint(config.vocab_size, (LENGTH,))
        with torch.no_grad():
            logits = model(ids[None]).logits[0]
        save_file({"ids": ids.to(torch.int32), "logits": logits}, folder / "logits.safetensors")
        for extra in folder.glob("generation_config.json"):
            extra.unlink()
        print(f"{name}: largest logit {logits.abs().max():.2f}")


if __name__ == "__main__":
    main()
