"""Run Mistral models exactly, in constant memory, on Apple's MLX.

    import mistral_mlx as mm

    llm = mm.load("demo")
    print(llm.chat().send("What is the capital of France?").text)

Names are imported on first use, so that importing the package itself costs nothing and changes nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mistral_mlx.chat import Chat
    from mistral_mlx.completion import Chunk, Completion, Forecast, Stats, ToolCall, ToolCallDelta
    from mistral_mlx.config import ModelConfig
    from mistral_mlx.engine.sampling import SamplingParams
    from mistral_mlx.errors import (
        BusyError,
        ConfigError,
        ContextError,
        HubError,
        InputError,
        MistralError,
        OutOfMemoryError,
        RequestError,
        TokenizerError,
        WeightsError,
    )
    from mistral_mlx.llm import LLM, load
    from mistral_mlx.text.messages import Message
    from mistral_mlx.text.tools import Tool

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "BusyError",
    "Chat",
    "Chunk",
    "Completion",
    "ConfigError",
    "ContextError",
    "Forecast",
    "HubError",
    "InputError",
    "Message",
    "MistralError",
    "ModelConfig",
    "OutOfMemoryError",
    "RequestError",
    "SamplingParams",
    "Stats",
    "TokenizerError",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "WeightsError",
    "load",
]

_HOMES = {
    "mistral_mlx.chat": ("Chat",),
    "mistral_mlx.completion": ("Chunk", "Completion", "Forecast", "Stats", "ToolCall", "ToolCallDelta"),
    "mistral_mlx.config": ("ModelConfig",),
    "mistral_mlx.engine.sampling": ("SamplingParams",),
    "mistral_mlx.errors": (
        "BusyError",
        "ConfigError",
        "ContextError",
        "HubError",
        "InputError",
        "MistralError",
        "OutOfMemoryError",
        "RequestError",
        "TokenizerError",
        "WeightsError",
    ),
    "mistral_mlx.llm": ("LLM", "load"),
    "mistral_mlx.text.messages": ("Message",),
    "mistral_mlx.text.tools": ("Tool",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(module), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
