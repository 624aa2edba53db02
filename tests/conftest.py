"""What the tests share: an optimised BLAS before MLX is imported, tiny models, the golden folders, the demo."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from mistral_mlx.backend import preload_blas

if "PYTEST_XDIST_WORKER" in os.environ:  # the processes share the cores
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
preload_blas()

import mlx.core as mx  # noqa: E402
from mlx.utils import tree_map  # noqa: E402

import mistral_mlx as mm  # noqa: E402
from mistral_mlx.config import ModelConfig  # noqa: E402
from mistral_mlx.model.transformer import Transformer  # noqa: E402
from tests.chat_formats import formats, peers, tekkens, tokenizers  # noqa: E402, F401  fixtures for all

if TYPE_CHECKING:
    from tests.hub_server import Hub

settings.register_profile("default", deadline=None, derandomize=True)
settings.load_profile("default")

GOLDEN = Path(__file__).parent / "golden"
TINY = ModelConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=64,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    sliding_window=8,
    tie_word_embeddings=False,
    eos_token_ids=(2,),
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("metal") and sys.platform != "darwin":
            item.add_marker(pytest.mark.skip(reason="only a Mac with Metal can show it"))
        if item.get_closest_marker("torch") and not find_spec("torch"):
            item.add_marker(pytest.mark.skip(reason="PyTorch is not installed"))
        if item.get_closest_marker("slow") and "slow" not in config.option.markexpr:
            item.add_marker(pytest.mark.skip(reason="slow: run it with -m slow"))


def make_model(seed: int = 0, **changes: Any) -> Transformer:
    """A random model whose attention is far from uniform, TINY but for `changes`."""
    mx.random.seed(seed)
    model = Transformer(replace(TINY, **changes))
    model.update(tree_map(lambda p: mx.random.normal(p.shape) * 0.25 if p.ndim > 1 else p, model.parameters()))
    mx.eval(model.parameters())
    return model


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Transformer]:
    return make_model


@pytest.fixture(scope="session")
def demo() -> mm.LLM:
    try:
        return mm.load("demo")
    except mm.InputError as error:
        pytest.skip(error.message)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in for the hub, over HTTP; whoever it cuts off tries again at once."""
    from huggingface_hub import file_download  # slow to import, for those who need none

    from tests.hub_server import serve

    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda seconds: None))
    with serve() as it:
        yield it
