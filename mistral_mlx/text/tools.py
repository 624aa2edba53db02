"""Tools that a model may call: definitions in OpenAI's form, and Python functions that become them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from mistral_mlx.completion import ToolCall
from mistral_mlx.errors import RequestError
from mistral_mlx.text.messages import TOOL_NAME
from mistral_mlx.text.tokenizer import checked_text


@dataclass(frozen=True)
class Tool:
    """What a model is told of a tool.

    Attributes:
        parameters: a JSON schema of the arguments, an object; empty for none.
        function: what is run when the model calls it; None leaves that to the caller.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    function: Callable[..., Any] | None = None

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
        if not isinstance(tool.name, str) or not TOOL_NAME.fullmatch(tool.name):
            raise RequestError(
                f"{where} has the name {tool.name!r}.", "Names are letters, digits, _ and -, from 1 to 64 of them."
            )
        checked_text(tool.description)
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
        from pydantic_core import to_json

        try:
            values = json.loads(arguments or "{}")
            if not isinstance(values, dict):
                return _fault("The arguments must be a JSON object.")
            result = validate_call(self.function)(**values)
            return result if isinstance(result, str) else to_json(result, serialize_unknown=True).decode()
        except ValidationError as error:
            faults = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
            return _fault("; ".join(faults))
        except Exception as error:
            return _fault(f"{type(error).__name__}: {error}")


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


def check_schema(schema: object, where: str) -> None:
    """Raises RequestError if it is no JSON schema."""
    from jsonschema import Draft202012Validator, SchemaError

    try:
        if not isinstance(schema, Mapping):
            raise RequestError(f"{where} is {schema!r}.", "Give a JSON schema, as a mapping.")
        Draft202012Validator.check_schema(dict(schema))
        json.dumps(schema)
    except (SchemaError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, RequestError):
            raise
        reason = error.message if isinstance(error, SchemaError) else str(error)
        raise RequestError(
            f"{where} is no JSON schema: {reason}.", "Mend it; json-schema.org describes them."
        ) from error


def _fault(reason: str) -> str:
    return json.dumps({"error": reason}, ensure_ascii=False)


NOT_RUN = _fault("This tool was not run.")


def _of_definition(given: Mapping[str, Any], where: str) -> Tool:
    function = given.get("function")
    if given.get("type", "function") != "function" or not isinstance(function, Mapping):
        raise RequestError(f"{where} is {dict(given)!r}.", 'Give {"type": "function", "function": {"name": …, …}}.')
    if unknown := function.keys() - {"name", "description", "parameters", "strict"}:
        raise RequestError(f"{where} has {', '.join(map(repr, sorted(unknown)))}, which no format carries.")
    if function.get("strict"):
        raise RequestError(
            f"{where} is strict, and arguments are not held to their schema here.", "Leave out strict, and check them."
        )
    return Tool(function.get("name", ""), function.get("description") or "", function.get("parameters") or {})


def _of_function(given: object, where: str) -> Tool:
    if not callable(given) or inspect.isclass(given):
        raise RequestError(f"{where} is {given!r}.", "Give a function, or a definition in OpenAI's form.")
    if inspect.iscoroutinefunction(given):
        raise RequestError(f"{where} is asynchronous.", "Give a function that returns its result.")
    from docstring_parser import parse
    from pydantic import TypeAdapter

    name = getattr(given, "__name__", "")
    bare = [p for p in _parameters(given, where) if p.annotation is inspect.Parameter.empty]
    if bare:
        raise RequestError(f"{where}: {name} does not say what {bare[0].name} is.", "Give every argument a type hint.")
    try:
        schema = TypeAdapter(cast(Any, given)).json_schema()
    except Exception as error:  # pydantic raises many kinds for hints that it cannot describe
        raise RequestError(
            f"{where}: the hints of {name} cannot be described in a JSON schema: {error}.", "Use plain types."
        ) from error
    doc = parse(inspect.getdoc(given) or "")
    told = {p.arg_name: p.description for p in doc.params if p.description}
    for argument, described in schema.get("properties", {}).items():
        described.pop("title", None)
        if argument in told:
            described.setdefault("description", " ".join(told[argument].split()))
    description = "\n\n".join(filter(None, (doc.short_description, doc.long_description)))
    return Tool(name, description, schema, given)


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
