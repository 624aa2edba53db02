"""Errors as OpenAI's API tells them: a status, and an object that says what is wrong and which field is at fault."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.responses import Response

from mistral_mlx.errors import BusyError, ContextError, InputError, MistralError, OutOfMemoryError, TokenizerError
from mistral_mlx.server.schema import ChatRequest, CompletionRequest, Fault, FaultBody

log = logging.getLogger("mistral_mlx")

# The library's names of what the API calls otherwise.
_OTHER_NAMES = {"json_mode": "response_format", "json_schema": "response_format"}
_FIELDS = ChatRequest.model_fields.keys() | CompletionRequest.model_fields.keys() | _OTHER_NAMES.keys()
# Errors of the library that are the request's fault, or the hour's.
_FORESEEN = (BusyError, InputError, OutOfMemoryError, TokenizerError)
_PARTS = re.compile(r"[.\[]")
_PLACE = re.compile(r"(?:The )?(?P<place>(?P<field>[a-z_]+)(?:\[\d+\]|\.[a-z_]+)*)")


class Refusal(Exception):
    """A request that is not served.

    Attributes:
        kind, code: as OpenAI names them.
        param: the field at fault.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(_shortened(message, 2000))
        self.status = status
        self.kind = kind
        self.param = None if param is None else _shortened(param, 200)
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> bytes:
        """The error object as JSON."""
        fault = Fault(message=str(self), type=self.kind, param=self.param, code=self.code)
        return FaultBody(error=fault).model_dump_json().encode()

    def response(self) -> Response:
        """The answer that says so."""
        return Response(self.body, self.status, self.headers, "application/json")


def no_model(asked: str, served: str) -> Refusal:
    """What to answer to whoever names a model that is not served."""
    message = f"There is no model {asked!r} here, only {served!r}."
    return Refusal(404, message, param="model", code="model_not_found")


def stopping(message: str) -> Refusal:
    """What to answer while the server stops."""
    return Refusal(503, message, kind="server_error", code="stopping", headers={"retry-after": "10"})


@contextmanager
def blaming(param: str) -> Iterator[None]:
    """What goes wrong inside is this field's fault, unless the error names another."""
    try:
        yield
    except _FORESEEN as error:
        raise _of_library(error, param) from error


def refusal(error: Exception, request_id: str) -> Refusal:
    """What to answer to an error; the log says more of one that nobody foresaw."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, RequestValidationError):
        return _of_body(error)
    if isinstance(error, _FORESEEN):
        return _of_library(error, None)
    log.error("Request %s failed.", request_id, exc_info=error)
    message = f"The server failed at request {request_id}; its log says why."
    return Refusal(500, message, kind="server_error", code="internal_error")


def _of_library(error: MistralError, param: str | None) -> Refusal:
    message = f"{error.message} {error.hint}".strip()
    if isinstance(error, BusyError):
        headers = {"retry-after": str(max(1, math.ceil(error.retry_after)))}
        return Refusal(503, message, kind="server_error", code="overloaded", headers=headers)
    if isinstance(error, OutOfMemoryError):
        return Refusal(413, message, param=param, code="out_of_memory")
    if isinstance(error, ContextError):
        return Refusal(400, message, param=param, code="context_length_exceeded")
    named = _PLACE.match(error.message)
    if named and named["field"] in _FIELDS:
        param = _OTHER_NAMES.get(named["field"]) or named["place"]
    return Refusal(400, message, param=param)


def _of_body(error: RequestValidationError) -> Refusal:
    """The first field of a body that is wrong; where it can be read in several ways, what is wrong with the nearest."""
    found = [(*_place(fault, error.body), fault) for fault in error.errors()]
    first = found[0][2]
    if first["type"] == "json_invalid":
        return Refusal(400, f"The body is no JSON: {first['ctx']['error']}.", code="invalid_json")
    if not found[0][0]:
        return Refusal(400, "There is no JSON object in the body.")
    same = [each for each in found if each[2]["loc"][:2] == first["loc"][:2]]
    place, value, nearest = max(same, key=lambda each: len(_PARTS.findall(each[0])))
    if nearest["type"] == "missing":
        return Refusal(400, f"{place} is missing.", param=place, code="missing_required_parameter")
    if nearest["type"] == "extra_forbidden":
        return Refusal(400, f"There is no field {place}.", param=place, code="unknown_parameter")
    if nearest["type"] == "none_required":
        return Refusal(400, f"{place} is not supported: leave it out.", param=place, code="unsupported_parameter")
    ways = dict.fromkeys(fault["msg"] for where, _, fault in same if where == place)
    return Refusal(
        400, f"{place} is {_shortened(repr(value), 100)}: {'; '.join(ways)}.", param=place, code="invalid_value"
    )


def _place(fault: Mapping[str, Any], body: Any) -> tuple[str, Any]:
    """Where something is wrong, as `messages[0].role`, and what stands there."""
    path: Sequence[Any] = fault["loc"][1:]
    place, value = "", body
    for part in path:
        if isinstance(value, list) and isinstance(part, int):
            place, value = f"{place}[{part}]", value[part]
        elif isinstance(value, dict) and isinstance(part, str) and part in value:
            place, value = f"{place}.{part}", value[part]
    if fault["type"] == "missing" and isinstance(value, dict):
        place, value = f"{place}.{path[-1]}", None
    return _shortened(place.removeprefix("."), 200), value


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"
