"""The description of the API that the server gives of itself, and whether it does what it says there."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.server.conftest import Running


@pytest.fixture
def described(running: Running) -> Any:
    return schemathesis.openapi.from_url(f"http://127.0.0.1:{running.port}/openapi.json")


api = schemathesis.pytest.from_fixture("described")
DESCRIBED = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.mark.slow
@api.parametrize()
@settings(max_examples=50, suppress_health_check=list(HealthCheck), database=None)
def test_whatever_is_asked_the_answer_is_one_that_is_described(case: Any) -> None:
    """Requests that a machine thinks up from the description."""
    if isinstance(case.body, dict):
        case.body |= {"model": "tiny", "max_tokens": 2}
    case.call_and_validate(checks=DESCRIBED)


def test_fields_and_their_ranges_are_described(running: Running) -> None:
    page = running.ask("GET", "/openapi.json").json
    assert {"/health", "/metrics", "/v1/chat/completions", "/v1/completions", "/v1/models"} <= page["paths"].keys()
    chat = page["components"]["schemas"]["ChatRequest"]["properties"]
    assert chat["temperature"]["anyOf"][0] == {"type": "number", "maximum": 2.0, "minimum": 0.0}
    assert chat["audio"]["type"] == "null"
    assert running.ask("GET", "/docs").status == 200
