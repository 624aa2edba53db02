"""Functions become tools, and calls of them results; against what pydantic and mistral-common make of the same."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from datetime import date
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

import mistral_mlx as mm
from mistral_mlx import Tool, ToolCall
from mistral_mlx.text.tools import read_tools, run_call, runs_here


class Point(BaseModel):
    x: float
    y: float = 0


def plan(
    city: str,
    days: int = 3,
    *,
    unit: Literal["c", "f"] = "c",
    when: date | None = None,
    at: Annotated[Point | None, Field(description="where exactly")] = None,
) -> dict[str, Any]:
    """Plan a trip.

    With care.

    Args:
        city: where to,
            as a name
        days: how long
    """
    return {"city": city, "days": days, "unit": unit, "when": when, "at": at}


def test_a_function_is_described_by_its_hints_and_its_docstring() -> None:
    tool = Tool.of(plan)
    assert (tool.name, tool.description) == ("plan", "Plan a trip.\n\nWith care.")
    properties = tool.parameters["properties"]
    assert properties["city"] == {"type": "string", "description": "where to, as a name"}
    assert properties["days"] == {"type": "integer", "default": 3, "description": "how long"}
    assert properties["unit"]["enum"] == ["c", "f"]
    assert properties["at"]["description"] == "where exactly"
    assert tool.parameters["required"] == ["city"]
    assert tool.definition()["function"]["parameters"]["type"] == "object"


def test_arguments_become_what_the_hints_say_and_results_text() -> None:
    tool = Tool.of(plan)
    called = '{"city": "Rome", "when": "2026-01-02", "at": {"x": 1}}'
    assert json.loads(tool.run(called)) == {
        "city": "Rome", "days": 3, "unit": "c", "when": "2026-01-02", "at": {"x": 1.0, "y": 0.0},
    }  # fmt: skip
    assert Tool("f", function=lambda: "as it is ü").run("") == "as it is ü"
    assert Tool("f", function=lambda: None).run("{}") == "null"
    assert Tool("f", function=lambda: [1, "é"]).run("{}") == '[1,"é"]'
    assert "object" in Tool("f", function=object).run("{}")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ('{"city": ', "JSONDecodeError"),
        ("[1]", "must be a JSON object"),
        ("{}", "city: Missing"),
        ('{"city": "Rome", "days": "many"}', "days: Input should be a valid integer"),
        ('{"city": "Rome", "color": 1}', "color: Unexpected keyword"),
        ("[" * 100_000, "RecursionError|JSONDecodeError"),
    ],
)
def test_what_is_wrong_with_a_call_is_told_to_the_model(arguments: str, reason: str) -> None:
    import re

    assert re.search(reason, json.loads(Tool.of(plan).run(arguments))["error"])


def test_what_a_function_raises_is_told_to_the_model() -> None:
    def fail() -> str:
        raise OSError("disk on fire")

    assert json.loads(Tool.of(fail).run("{}")) == {"error": "OSError: disk on fire"}

    def stop() -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Tool.of(stop).run("{}")

    def inner() -> Point:
        return Point.model_validate({})

    assert "Point" in json.loads(Tool.of(inner).run("{}"))["error"]
    assert Tool("f", function=lambda: "a\ud800b").run("{}") == "a?b"
    assert Tool("f", function=lambda: [float("nan")]).run("{}") == "[null]"


def test_a_method_and_a_definition_are_tools_too() -> None:
    @dataclasses.dataclass
    class Shop:
        stock: int

        def count(self, of: str) -> int:
            """How many there are."""
            return self.stock

    tool = Tool.of(Shop(5).count)
    assert tool.run('{"of": "pears"}') == "5"
    assert list(tool.parameters["properties"]) == ["of"]
    definition = {"type": "function", "function": {"name": "ping", "description": None, "strict": False}}
    assert Tool.of(definition).definition()["function"] == {"name": "ping", "description": "", "parameters": {}}


def test_who_runs_a_call() -> None:
    tools = read_tools([plan, {"type": "function", "function": {"name": "theirs"}}])
    ours, theirs, unknown = (ToolCall("a" * 9, name, "{}") for name in ("plan", "theirs", "unknown"))
    assert runs_here(tools, [ours, unknown])
    assert not runs_here(tools, [ours, theirs])
    assert "no tool 'unknown'" in run_call(tools, unknown)


def no_hint(a) -> None: ...  # type: ignore[no-untyped-def]


def variadic(*a: int) -> None: ...


def odd_hint(a: Callable[[int], int]) -> None: ...


async def later() -> None: ...


@pytest.mark.parametrize(
    ("tool", "reason"),
    [
        (5, r"tools\[0\] is 5"),
        (Point, r"tools\[0\] is <class"),
        (no_hint, "does not say what a is"),
        (variadic, r"takes \*a, which"),
        (odd_hint, "hints of odd_hint cannot be described"),
        (later, "is asynchronous"),
        (lambda: None, "has the name '<lambda>'"),
        (functools.partial(later), r"tools\[0\] is functools.partial"),
        (Tool("f", function=later), "is asynchronous"),
        (Tool("f", function=5), "function is 5"),  # type: ignore[arg-type]
        ({"type": "retrieval"}, r"tools\[0\] has 'type', and no type function"),
        ({"name": "f", "parameters": {}}, r"tools\[0\] has 'name', 'parameters', and no type function"),
        ({"type": "function", "function": {"name": "a b"}}, "has the name 'a b'"),
        ({"type": "function", "function": {"name": ""}}, "has the name ''"),
        ({"type": "function", "function": {"name": "a", "color": 1}}, "has 'color'"),
        ({"type": "function", "function": {"name": "a", "strict": "yes"}}, "strict is 'yes'"),
        ({"type": "function", "function": {"name": "a", "parameters": {"type": 5}}}, "parameters is no JSON schema"),
        ({"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}, "no schema of an object"),
        ({"type": "function", "function": {"name": "a", "parameters": [1]}}, r"parameters is \[1\]"),
    ],
)
def test_what_cannot_be_a_tool_is_refused_by_its_index(tool: Any, reason: str) -> None:
    with pytest.raises(mm.RequestError, match=reason):
        read_tools([tool])


def test_tools_are_a_list_of_different_names() -> None:
    with pytest.raises(mm.RequestError, match=r"tools\[1\] is a second plan"):
        read_tools([plan, plan])
    with pytest.raises(mm.RequestError, match="Give a list"):
        read_tools({"type": "function"})  # type: ignore[arg-type]
