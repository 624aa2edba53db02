"""What a request asks the model: its body becomes requests to the engine, one for each answer.

Everything here takes milliseconds to a second (text becomes ids, forms are compiled), so it runs on a pool of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mistral_mlx.completion import Chunk
from mistral_mlx.llm import LLM
from mistral_mlx.request import Request
from mistral_mlx.server.faults import Refusal, blaming, no_model
from mistral_mlx.server.recall import Recall, key
from mistral_mlx.server.schema import (
    ChatRequest,
    CompletionRequest,
    JsonFormat,
    JsonSchemaFormat,
    NamedTool,
    Sampling,
)
from mistral_mlx.server.settings import Settings

_SEEDS = 2**64
_COMPLETION_TOKENS = 16


@dataclass(frozen=True)
class Asked:
    """What one call asks for.

    Attributes:
        requests: the answers to make: `tries` to each prompt, one prompt after another.
        given: how many of the tries are given: the likeliest.
        echoes: the text of each prompt, where it is to come before its answers.
        logprobs: whether log-probabilities are told.
        keep: called with the index of a request and its answer, once that is whole.
    """

    requests: list[Request]
    tries: int
    given: int
    echoes: Sequence[str] = ()
    logprobs: bool = False
    keep: Callable[[int, Sequence[Chunk]], None] = lambda index, chunks: None

    def prompt_of(self, index: int) -> int:
        """Which prompt the request at `index` is an answer to."""
        return index // self.tries


def read_chat(body: ChatRequest, llm: LLM, settings: Settings, recall: Recall) -> Asked:
    """What a chat request asks; raises Refusal or MistralError."""
    n, sampling = _sampling(body, llm, settings)
    sampling |= _form(body)
    sampling["max_tokens"] = _max_tokens(body, settings)
    if body.top_logprobs is not None and not body.logprobs:
        raise Refusal(400, "top_logprobs needs logprobs to be true.", param="top_logprobs")
    sampling["logprobs"] = body.top_logprobs or 0
    choice = body.tool_choice.function.name if isinstance(body.tool_choice, NamedTool) else body.tool_choice
    if not body.tools and choice not in (None, "none", "auto"):
        raise Refusal(400, "tool_choice names a tool, and there are none: send tools.", param="tool_choice")
    with blaming("messages"):
        chat = llm.chat(
            messages=[{**m, "role": "system"} if m["role"] == "developer" else m for m in body.messages],
            tools=[tool.model_dump(exclude_none=True) for tool in body.tools or ()],
            reasoning_effort=body.reasoning_effort,
        )
        chat.messages = recall.restore(chat.messages)
        asked = chat.ask(
            tool_choice=choice or "auto", parallel_tool_calls=body.parallel_tool_calls is not False, **sampling
        )

    conversation = key(asked.messages)

    def keep(index: int, chunks: Sequence[Chunk]) -> None:
        recall.keep(conversation, asked.turn(chunks))

    return Asked(_tries(asked.request, n), tries=n, given=n, logprobs=bool(body.logprobs), keep=keep)


def read_completion(body: CompletionRequest, llm: LLM, settings: Settings) -> Asked:
    """What a completion request asks; raises Refusal or MistralError."""
    n, sampling = _sampling(body, llm, settings)
    tries = body.best_of or n
    if tries < n:
        raise Refusal(400, f"best_of is {tries}, less than n, which is {n}.", param="best_of")
    if tries > settings.max_n:
        raise Refusal(400, f"best_of is {tries}; this server allows {settings.max_n}.", param="best_of")
    if tries > n and body.stream:
        raise Refusal(400, "The best of several answers is known at the end: leave out stream.", param="best_of")
    given = _allowed("max_tokens", body.max_tokens, settings)
    max_tokens = _COMPLETION_TOKENS if given is None else given
    sampling |= {"max_tokens": max(1, max_tokens), "logprobs": body.logprobs or 0}
    prompts = _prompts(body)
    if len(prompts) * tries > settings.max_requests:
        raise Refusal(
            400, f"{len(prompts)} prompts with {tries} answers each are too many: send fewer at a time.", param="prompt"
        )
    requests = []
    with blaming("prompt"):
        for prompt in prompts:
            requests += _tries(_request(body, llm, prompt, sampling), tries)
        echoes = [p if isinstance(p, str) else llm.decode(p) for p in prompts] if body.echo else []
    for request in requests:
        request.only_read = max_tokens == 0
        if body.echo and body.logprobs is not None:
            request.score_prompt = body.logprobs
    return Asked(requests, tries, n, echoes, logprobs=body.logprobs is not None)


def _prompts(body: CompletionRequest) -> list[str | list[int]]:
    given: Any = body.prompt
    several = isinstance(given, list) and not isinstance(given[0], int)
    return list(given) if several else [given]


def _request(body: CompletionRequest, llm: LLM, prompt: str | list[int], sampling: dict[str, Any]) -> Request:
    if not body.suffix:
        return llm.ask(prompt, **sampling)
    if body.echo or not isinstance(prompt, str):
        raise Refusal(400, "suffix goes with prompts of text, and without echo.", param="suffix")
    with blaming("suffix"):
        return llm.ask_fill(prompt, body.suffix, **sampling)


def _sampling(body: Sampling, llm: LLM, settings: Settings) -> tuple[int, dict[str, Any]]:
    """How many answers, and the options of the engine that both kinds of request share."""
    if body.model != settings.name:
        raise no_model(body.model, settings.name)
    n = body.n or 1
    if n > settings.max_n:
        raise Refusal(400, f"n is {n}; this server allows {settings.max_n}.", param="n")
    if body.stream_options and not body.stream:
        raise Refusal(400, "stream_options needs stream to be true.", param="stream_options")
    names = ("top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "stop", "regex")
    sampling = {name: value for name in names if (value := getattr(body, name)) is not None}
    sampling["temperature"] = settings.temperature if body.temperature is None else body.temperature
    if body.top_p == 0:
        sampling["temperature"] = 0
    elif body.top_p is not None:
        sampling["top_p"] = body.top_p
    if body.seed is not None:
        sampling["seed"] = body.seed % _SEEDS
    if body.logit_bias:
        sampling["logit_bias"] = {int(i): bias for i, bias in body.logit_bias.items()}
        with blaming("logit_bias"):
            llm.checked(sampling["logit_bias"])
    return n, sampling


def _tries(request: Request, count: int) -> list[Request]:
    """So many answers to the same; with one seed for all they would be the same."""
    seed = request.params.seed or 0
    return [request, *(request.again((seed + i) % _SEEDS) for i in range(1, count))]


def _max_tokens(body: ChatRequest, settings: Settings) -> int:
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        raise Refusal(400, "max_tokens and max_completion_tokens are the same: send one.", param="max_tokens")
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    return _allowed(name, getattr(body, name), settings) or min(settings.max_tokens, settings.max_answer)


def _allowed(name: str, tokens: int | None, settings: Settings) -> int | None:
    if tokens is not None and tokens > settings.max_answer:
        raise Refusal(400, f"{name} is {tokens}; this server allows {settings.max_answer}.", param=name)
    return tokens


def _form(body: ChatRequest) -> dict[str, Any]:
    form = body.response_format
    if not isinstance(form, (JsonFormat, JsonSchemaFormat)):
        return {}
    if body.regex is not None:
        raise Refusal(400, "An answer has one form: send regex or response_format.", param="regex")
    if isinstance(form, JsonFormat):
        return {"json_mode": True}
    schema = {"type": "object"} if form.json_schema.schema_ is None else form.json_schema.schema_
    described = {"description": form.json_schema.description} if form.json_schema.description else {}
    return {"json_schema": described | schema}
