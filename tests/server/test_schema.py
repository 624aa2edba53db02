"""The fields of requests, against those of OpenAI's own client: what a new version of it brings shows here."""

from __future__ import annotations

from typing import Any, get_type_hints

import pytest
from openai.types import CompletionUsage, Model, completion, completion_create_params
from openai.types.chat import chat_completion, chat_completion_chunk
from openai.types.chat import completion_create_params as chat_params
from pydantic import BaseModel, ValidationError

from mistral_mlx.server import schema

SHARED_EXTRAS = {"top_k", "min_p", "repetition_penalty", "regex"}


@pytest.mark.parametrize(
    ("ours", "theirs", "extras"),
    [
        (schema.ChatRequest, chat_params.CompletionCreateParamsStreaming, SHARED_EXTRAS),
        (schema.CompletionRequest, completion_create_params.CompletionCreateParamsStreaming, SHARED_EXTRAS),
    ],
)
def test_every_field_of_openai_is_known_here(ours: type[BaseModel], theirs: Any, extras: set[str]) -> None:
    assert ours.model_fields.keys() == get_type_hints(theirs).keys() | extras


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (schema.ChatCompletion, chat_completion.ChatCompletion),
        (schema.ChatChoice, chat_completion.Choice),
        (schema.ChatChunk, chat_completion_chunk.ChatCompletionChunk),
        (schema.ChatChunkChoice, chat_completion_chunk.Choice),
        (schema.ToolCallDelta, chat_completion_chunk.ChoiceDeltaToolCall),
        (schema.Completion, completion.Completion),
        (schema.Usage, CompletionUsage),
        (schema.ModelCard, Model),
    ],
)
def test_answers_have_what_openai_requires_and_nothing_unknown(ours: type[BaseModel], theirs: type[BaseModel]) -> None:
    required = {name for name, field in theirs.model_fields.items() if field.is_required()}
    assert required <= ours.model_fields.keys() <= theirs.model_fields.keys()


def test_every_field_says_what_it_does_or_speaks_for_itself() -> None:
    silent = {"response_format", "service_tier", "modalities"}
    for kind in (schema.ChatRequest, schema.CompletionRequest):
        for name, field in kind.model_fields.items():
            refused = field.annotation is type(None)
            assert field.description or refused or name in silent, name


MANY: dict[str, Any] = {f"x{i}": 0 for i in range(1000)}
NASTY: list[dict[str, Any]] = [
    MANY,
    {"messages": [{}] * 1000},
    {"messages": [{"role": "user", "content": [1] * 1000}]},
    {"tools": [{}] * 1000},
    {"tools": [{"type": "function", "function": MANY}]},
    {"tool_choice": MANY},
    {"response_format": {"type": "json_schema"} | MANY},
    {"stop": [1] * 1000},
    {"modalities": [1] * 1000},
    {"logit_bias": MANY},
    {"metadata": MANY},
    {"prompt": [{}] * 1000},
    {"prompt": [[{}] * 1000] * 2},
]


@pytest.mark.parametrize("fields", NASTY, ids=lambda fields: str(fields)[:40])
def test_of_many_faults_only_the_first_are_looked_for(fields: dict[str, Any]) -> None:
    kind = schema.CompletionRequest if "prompt" in fields else schema.ChatRequest
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]} | fields)
    assert caught.value.error_count() < 10
