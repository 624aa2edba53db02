"""The bodies of requests and answers, field by field, as OpenAI's API documents them.

A field that this server does not know is refused, and so is one that it knows and cannot honour, unless it is null.
Ranges that depend on the model, and the insides of messages and tools, are checked where they are used. Of the faults
of a list, an object or a mapping only the first is looked for: a large body could have more than there is memory for.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Required, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
    with_config,
)
from typing_extensions import TypedDict

T = TypeVar("T")

# Each is checked by itself, while others wait.
_MOST_BIASES = 10_000


def _one_by_one(given: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Check a mapping up to its first fault."""
    if not isinstance(given, dict):
        return check(given)
    if len(given) > _MOST_BIASES:
        raise ValueError(f"it has {len(given)} tokens, more than {_MOST_BIASES}")
    return {name: value for item in given.items() for name, value in check(dict([item])).items()}


_List = Annotated[list[T], Field(fail_fast=True)]
_OneByOne = WrapValidator(_one_by_one)
_Refused = Annotated[None, Field(description="Not supported: leave it out, or send null.")]
_Penalty = Annotated[float, Field(ge=-2, le=2)]
_Bias = Annotated[float, Field(ge=-100, le=100)]
_TokenId = Annotated[str, Field(pattern="^[0-9]{1,9}$")]
_Stop = Annotated[str, Field(min_length=1)]
_Name = Annotated[str, Field(max_length=512)]


class Body(BaseModel):
    """What a client may send."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _one_unknown(cls, given: Any) -> Any:
        """Leave out all unknown fields but the first."""
        if not isinstance(given, dict):
            return given
        known = {field.alias or name for name, field in cls.model_fields.items()}
        rest = set([name for name in given if name not in known][1:])
        return {name: value for name, value in given.items() if name not in rest}


class StreamOptions(Body):
    """How a streamed answer comes."""

    include_usage: bool | None = Field(None, description="One more event at the end says what the answer cost.")
    include_obfuscation: Literal[False] | None = Field(None, description="Events are never padded.")


class Sampling(Body):
    """What both kinds of request share."""

    model: _Name = Field(description="The name of the model that is served.")
    n: int | None = Field(None, ge=1, description="How many answers to each prompt (1).")
    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the likeliest token each time (1).")
    top_p: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Choose among the likeliest tokens that together reach it; 0: the likeliest (1).",
    )
    top_k: int | None = Field(None, ge=1, description="Choose among so many of the likeliest tokens.")
    min_p: float | None = Field(None, ge=0, le=1, description="Drop tokens less than this times as likely as the best.")
    presence_penalty: _Penalty | None = Field(None, description="Taken from the logits of tokens in the answer.")
    frequency_penalty: _Penalty | None = Field(None, description="Taken from them for each time they came.")
    repetition_penalty: float | None = Field(
        None, ge=1e-6, le=1e6, description="Divides the logits of tokens in the prompt or the answer; 1 for none."
    )
    logit_bias: Annotated[dict[_TokenId, _Bias], _OneByOne] | None = Field(
        None, description="Token ids, and what is added to their logits."
    )
    seed: int | None = Field(None, ge=-(2**63), lt=2**64, description="The same seed gives the same answer.")
    stop: _Stop | Annotated[_List[_Stop], Field(max_length=16)] | None = Field(
        None, description="The answer ends before the first of these."
    )
    regex: str | None = Field(None, description="The whole answer matches this, in the syntax of Rust's regex crate.")
    stream: bool | None = Field(None, description="Send the answer as server-sent events while it comes.")
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    user: _Name | None = Field(None, description="Goes to the server's log.")


@with_config(ConfigDict(extra="allow"))
class ChatMessage(TypedDict, total=False):
    """A turn of the conversation. What else it may hold depends on its role, and on the model's chat format."""

    role: Required[Literal["system", "developer", "user", "assistant", "tool"]]
    content: str | _List[dict[str, Any]] | None
    reasoning_content: str | None
    tool_calls: _List[dict[str, Any]] | None
    tool_call_id: str | None
    prefix: bool | None


class Function(Body):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema of its arguments.")
    strict: bool | None = Field(None, description="Hold the arguments to the schema while they are written.")


class FunctionTool(Body):
    """A tool that the model may call: the answer has the call, and its result is the next message."""

    type: Literal["function"]
    function: Function


class FunctionName(Body):
    """A function by its name."""

    name: str


class NamedTool(Body):
    """The one tool that is to be called."""

    type: Literal["function"]
    function: FunctionName


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]


class JsonFormat(Body):
    """A JSON object."""

    type: Literal["json_object"]


class JsonSchema(Body):
    """A schema and what it is called."""

    model_config = ConfigDict(protected_namespaces=())

    name: str = Field(pattern="^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="Any object without it.")
    strict: bool | None = Field(None, description="The schema is always kept.")


class JsonSchemaFormat(Body):
    """JSON that a schema allows."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class ChatRequest(Sampling):
    """The body of POST /v1/chat/completions."""

    messages: _List[ChatMessage] = Field(min_length=1, description="The conversation so far.")
    max_completion_tokens: int | None = Field(None, ge=1, description="The most tokens of each answer.")
    max_tokens: int | None = Field(None, ge=1, description="The older name of max_completion_tokens.")
    logprobs: bool | None = Field(None, description="Tell the log-probability of each token of the answer.")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="With logprobs: the likeliest tokens at each step.")
    response_format: Annotated[TextFormat | JsonFormat | JsonSchemaFormat, Field(discriminator="type")] | None = None
    tools: _List[FunctionTool] | None = Field(None, description="What the model may call.")
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        None, description="Whether it may call, must call, or must call one of them (auto)."
    )
    parallel_tool_calls: bool | None = Field(None, description="Whether it may call several at once (true).")
    reasoning_effort: str | None = Field(None, description="For models that can be told how much to think.")
    safety_identifier: _Name | None = Field(None, description="Goes to the server's log.")
    prompt_cache_key: _Name | None = Field(
        None, description="Goes to the server's log: prompts that begin alike share."
    )
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = Field(None, description="Nothing is stored.")
    metadata: Annotated[dict[str, str], Field(max_length=0), _OneByOne] | None = Field(
        None, description="Nothing is stored."
    )
    modalities: Annotated[_List[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    audio: _Refused = None
    function_call: _Refused = None
    functions: _Refused = None
    moderation: _Refused = None
    prediction: _Refused = None
    prompt_cache_options: _Refused = None
    prompt_cache_retention: _Refused = None
    verbosity: _Refused = None
    web_search_options: _Refused = None


_Id = Annotated[int, Field(ge=0)]
_Ids = Annotated[_List[_Id], Field(min_length=1)]


class CompletionRequest(Sampling):
    """The body of POST /v1/completions."""

    prompt: str | Annotated[_List[str], Field(min_length=1)] | _Ids | Annotated[_List[_Ids], Field(min_length=1)] = (
        Field(description="A text or its token ids, or several.")
    )
    suffix: str | None = Field(None, description="What comes after the answer, for models that were trained to fill.")
    max_tokens: int | None = Field(None, ge=0, description="The most tokens of each answer (16); 0 only reads.")
    best_of: int | None = Field(None, ge=1, description="Make so many answers and give the n likeliest.")
    echo: bool | None = Field(None, description="Give the prompt before the answer, with logprobs also its scores.")
    logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="Tell the likeliest tokens at each step, the one that ends the answer among them.",
    )


# ---- answers ----------------------------------------------------------------------------------------------------


class CachedTokens(BaseModel):
    """Of the prompt's tokens, those that were not read again."""

    cached_tokens: int


class ReasoningTokens(BaseModel):
    """Of the answer's tokens, those of what the model thought."""

    reasoning_tokens: int


class Usage(BaseModel):
    """What an answer cost."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens


class TopLogprob(BaseModel):
    """A token that could have come."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token that came."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """The log-probabilities of an answer, token by token."""

    content: list[TokenLogprob]
    refusal: None


class CalledFunction(BaseModel):
    """What is to be called, and with what, as JSON text that the model wrote."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call that the model wants made."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = ""
    tool_calls: list[ToolCall] = []


class ChatChoice(BaseModel):
    """One of the answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class Head(BaseModel):
    """What every answer begins with."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatCompletion(Head):
    """The answer of POST /v1/chat/completions."""

    object: Literal["chat.completion"] = "chat.completion"
    service_tier: Literal["default"] = "default"
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(BaseModel):
    """More of a call."""

    name: str = ""
    arguments: str = ""


class ToolCallDelta(BaseModel):
    """More of a call; id, type and name come with its first piece."""

    index: int
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionDelta


class Delta(BaseModel):
    """More of the assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    reasoning_content: str = ""
    tool_calls: list[ToolCallDelta] = []


class ChatChunkChoice(BaseModel):
    """More of one of the answers."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatChunk(Head):
    """An event of a streamed chat completion."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class TextLogprobs(BaseModel):
    """The log-probabilities of a text, token by token; None for the first of a prompt."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(BaseModel):
    """One of the texts, or in an event more of it."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(Head):
    """The answer of POST /v1/completions, or an event of it."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]
    usage: Usage | None = None


class ModelCard(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["mistral-mlx"] = "mistral-mlx"


class ModelList(BaseModel):
    """The answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """The answer of GET /health."""

    status: Literal["ok", "stopping", "failed"]


class Fault(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class FaultBody(BaseModel):
    """The answer to a request that cannot be served."""

    error: Fault
