"""Tools that a model may call: definitions in OpenAI's form, and Python functions that become them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict, cast

from mistral_mlx.completion import ToolCall
from mistral_mlx.errors import RequestError
from mistral_mlx.text.messages import TOOL_NAME, text_at
from mistral_mlx.text.tokenizer import checked_text


@dataclass(frozen=True)
class Tool:
    """What a model is told of a tool.

    Attributes:
        parameters: a JSON schema of the arguments, an object; empty for none.
        function: what is run when the model calls it; None leaves that to the caller.
        strict: calls of it are held to that schema while they are written.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    function: Callable[..., Any] | None = None
    strict: bool = False

    @classmethod
    def of(cls, given: Tool | Mapping[str, Any] | Callable[..., Any], where: str = "tool") -> Tool:
        """From a definition in OpenAI's form, or from a function with type hints.

        A function's docstring describes it and its arguments, in Google's, NumPy's or Sphinx's style.

        Args:
            where: what an error calls it.

        Raises:
            RequestError: it is neither, or its name, hints or schema cannot be used.
        """
        if isinstance(given, Mapping):
            tool = _of_definition(given, where)
        else:
            tool = given if isinstance(given, Tool) else _of_function(given, where)
        if tool.function is not None:
            _check_function(tool.function, where)
        if not isinstance(tool.name, str) or not TOOL_NAME.fullmatch(tool.name):
            raise RequestError(
                f"{where} has the name {tool.name!r}.", "Names are letters, digits, _ and -, from 1 to 64 of them."
            )
        text_at(tool.description, f"{where}.description")
        check_schema(tool.parameters, f"{where}.parameters")
        if tool.parameters and tool.parameters.get("type") != "object":
            raise RequestError(f"{where}.parameters is no schema of an object.", 'Give it "type": "object".')
        return tool

    def definition(self) -> dict[str, Any]:
        """In OpenAI's form."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    def run(self, arguments: str) -> str:
        """Call the function with a JSON object of arguments, checked against its hints.

        Returns:
            Its result as text: a string as it is, anything else as JSON. What goes wrong is told to the model in the
            same way, so that it can mend its call.
        """
        assert self.function is not None
        from pydantic import ValidationError, validate_call

        try:
            values = json.loads(arguments or "{}")
            if not isinstance(values, dict):
                return _fault("The arguments must be a JSON object.")
            return as_text(validate_call(self.function)(**values))
        except ValidationError as error:
            if error.title != getattr(self.function, "__name__", None):  # raised within the function
                return _fault(f"ValidationError: {error}")
            faults = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
            return _fault("; ".join(faults))
        except Exception as error:
            return _fault(f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class ToolChoice:
    """Which tools an answer may or must call.

    Attributes:
        never: it calls none.
        must: it calls one at least.
        only: the one that it calls.
        several: it may call more than one.
    """

    never: bool = False
    must: bool = False
    only: str | None = None
    several: bool = True

    @classmethod
    def of(cls, choice: object, several: object, tools: Sequence[Tool]) -> ToolChoice:
        """From OpenAI's tool_choice, where a name stands for that tool, and parallel_tool_calls.

        Raises:
            RequestError: it is none, or there is no such tool.
        """
        if not isinstance(several, bool):
            raise RequestError(f"parallel_tool_calls is {several!r}.", "It must be true or false.")
        if choice in ("auto", "none"):
            return cls(never=choice == "none", several=several)
        names = [tool.name for tool in tools]
        if not names or not isinstance(choice, str) or choice not in ("required", *names):
            what = "there are no tools" if not names else f"the tools are: {', '.join(names)}"
            raise RequestError(
                f"tool_choice is {choice!r}, and {what}.", "Give auto, none, required, or the name of a tool."
            )
        return cls(must=True, only=None if choice == "required" else choice, several=several)


AUTO = ToolChoice()


class Around(TypedDict, total=False):
    """What stands around a conversation in a prompt.

    Keys:
        tools: what the model may call.
        stable: put the system prompt and the tools where they stay as the conversation grows.
        reasoning_effort: how much a model is to think that can be told so (v15).
        json_schema: what the answer will be held to, for formats that tell the model (v15).
    """

    tools: Sequence[Tool]
    stable: bool
    reasoning_effort: str | None
    json_schema: Mapping[str, Any] | None


def read_tools(tools: Iterable[Tool | Mapping[str, Any] | Callable[..., Any]]) -> tuple[Tool, ...]:
    """Each as by `Tool.of`; raises RequestError naming one by its index, also for a name that is given twice."""
    if isinstance(tools, (str, Mapping)) or not isinstance(tools, Iterable):
        raise RequestError(f"tools is {tools!r}.", "Give a list of functions or definitions.")
    read = tuple(Tool.of(tool, f"tools[{i}]") for i, tool in enumerate(tools))
    names = [tool.name for tool in read]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise RequestError(f"tools[{i}] is a second {name}.", "Give each tool a name of its own.")
    return read


def runs_here(tools: Sequence[Tool], calls: Iterable[ToolCall]) -> bool:
    """Whether the calls are answered here: tools were offered, and none of them is the caller's to run."""
    theirs = {tool.name for tool in tools if tool.function is None}
    return bool(tools) and not any(call.name in theirs for call in calls)


def run_call(tools: Iterable[Tool], call: ToolCall) -> str:
    """The result of a call that runs here, as text."""
    tool = next((tool for tool in tools if tool.name == call.name), None)
    return _fault(f"There is no tool {call.name!r}.") if tool is None else tool.run(call.arguments)


def as_text(result: Any) -> str:
    """A tool's result: a string as it is, anything else as JSON."""
    from pydantic_core import to_json

    text = result if isinstance(result, str) else to_json(result, serialize_unknown=True, inf_nan_mode="null").decode()
    return text.encode("utf-8", "replace").decode()  # halves of surrogate pairs are no text


def check_schema(schema: object, where: str) -> None:
    """Raises RequestError if it is no JSON schema."""
    from jsonschema import Draft202012Validator, SchemaError

    try:
        if not isinstance(schema, Mapping):
            raise RequestError(f"{where} is {schema!r}.", "Give a JSON schema, as a mapping.")
        Draft202012Validator.check_schema(dict(schema))
        checked_text(json.dumps(schema, ensure_ascii=False))
    except (SchemaError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, RequestError):
            raise
        reason = f"at {error.json_path}, {error.message}" if isinstance(error, SchemaError) else str(error)
        raise RequestError(
            f"{where} is no JSON schema: {reason}.", "Mend it; json-schema.org describes them."
        ) from error


def _fault(reason: str) -> str:
    return as_text(json.dumps({"error": reason}, ensure_ascii=False))


NOT_RUN = _fault("This tool was not run.")
TOO_LONG = _fault("The result is too long to be read.")


def _of_definition(given: Mapping[str, Any], where: str) -> Tool:
    function = given.get("function")
    if given.get("type", "function") != "function" or not isinstance(function, Mapping) or len(given) > 2:
        raise RequestError(
            f"{where} has {', '.join(map(repr, given)) or 'nothing'}, and no type function with a function.",
            'Give {"type": "function", "function": {"name": …, …}}.',
        )
    if unknown := function.keys() - {"name", "description", "parameters", "strict"}:
        raise RequestError(
            f"{where} has {', '.join(sorted(map(repr, unknown)))}, which no format carries.", "Leave it out."
        )
    parameters, strict = function.get("parameters"), function.get("strict") or False
    if not isinstance(strict, bool):
        raise RequestError(f"{where}.function.strict is {strict!r}.", "It must be true or false.")
    return Tool(
        function.get("name", ""),
        function.get("description") or "",
        {} if parameters is None else parameters,
        strict=strict,
    )


def _of_function(given: object, where: str) -> Tool:
    name = getattr(given, "__name__", None)
    if not callable(given) or inspect.isclass(given) or not isinstance(name, str):
        raise RequestError(f"{where} is {given!r}.", "Give a function, or a definition in OpenAI's form.")
    from docstring_parser import parse
    from pydantic import TypeAdapter

    bare = [p for p in _parameters(given, where) if p.annotation is inspect.Parameter.empty]
    if bare:
        raise RequestError(f"{where}: {name} does not say what {bare[0].name} is.", "Give every argument a type hint.")
    try:
        schema = TypeAdapter(cast(Any, given)).json_schema()
    except Exception as error:  # pydantic raises many kinds for hints that it cannot describe
        raise RequestError(
            f"{where}: the hints of {name} cannot be described in a JSON schema: {str(error).splitlines()[0]}",
            "Use plain types, or pydantic's.",
        ) from error
    doc = parse(inspect.getdoc(given) or "")
    told = {p.arg_name: p.description for p in doc.params if p.description}
    for argument, described in schema.get("properties", {}).items():
        described.pop("title", None)
        if argument in told:
            described.setdefault("description", " ".join(told[argument].split()))
    description = "\n\n".join(filter(None, (doc.short_description, doc.long_description)))
    return Tool(name, description, schema, given)


def _check_function(function: object, where: str) -> None:
    if not callable(function):
        raise RequestError(f"{where}.function is {function!r}.", "Give a function.")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise RequestError(f"{where} is asynchronous.", "Give a function that returns its result.")


def _parameters(function: Callable[..., Any], where: str) -> list[inspect.Parameter]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise RequestError(f"{where}: {error}.", "Give a Python function.") from error
    for p in parameters:
        if p.kind not in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
            raise RequestError(
                f"{where} takes {str(p).split(':')[0]}, which a call by names cannot give.", "Name every argument."
            )
    return parameters
