"""The routes: POST /v1/chat/completions and /v1/completions, GET /v1/models, /health and /metrics, and /docs."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import APIRouter, FastAPI, Security
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mistral_mlx import __version__
from mistral_mlx.server import schema
from mistral_mlx.server.calls import Calls
from mistral_mlx.server.engine import Engine
from mistral_mlx.server.faults import Refusal, no_model
from mistral_mlx.server.guard import Guard
from mistral_mlx.server.journal import Journal
from mistral_mlx.server.metrics import Metrics
from mistral_mlx.server.settings import Settings

_FAULTS: dict[int | str, dict[str, Any]] = {kind: {"model": schema.FaultBody} for kind in ("4XX", "5XX")}


def create_app(engine: Engine, settings: Settings) -> FastAPI:
    """The server as an ASGI application."""
    metrics = Metrics(engine)
    calls = Calls(engine, settings, metrics)
    app = FastAPI(
        title="mistral-mlx",
        version=__version__,
        summary=f"{settings.name}, by OpenAI's API.",
        redoc_url=None,
        redirect_slashes=False,
        responses=_FAULTS,
        exception_handlers={HTTPException: _refuse, RequestValidationError: _refuse},
    )
    app.include_router(_open(engine))
    app.include_router(_api(calls, metrics), dependencies=[Security(HTTPBearer(auto_error=False))])
    app.add_middleware(Guard, settings=settings)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_middleware(Journal, metrics=metrics, settings=settings)
    return app


def _open(engine: Engine) -> APIRouter:
    """What needs no key."""
    router = APIRouter()

    @router.head("/health", include_in_schema=False, response_model=None)
    @router.get(
        "/health",
        summary="Whether it can answer",
        response_model=schema.Health,
        responses={503: {"model": schema.Health}},
    )
    async def health() -> schema.Health | JSONResponse:
        if engine.state.alive and not engine.draining:
            return schema.Health(status="ok")
        wrong = schema.Health(status="stopping" if engine.state.alive else "failed")
        return JSONResponse(dict(wrong), 503)

    return router


def _api(calls: Calls, metrics: Metrics) -> APIRouter:
    """What needs a key, where there are keys."""
    router = APIRouter(route_class=_JsonRoute)
    served = calls.served
    card = schema.ModelCard(id=served.name, created=served.created)
    events: dict[str, Any] = {"text/event-stream": {}}

    @router.post(
        "/v1/chat/completions",
        summary="Answer a conversation",
        response_model=schema.ChatCompletion,
        responses={200: {"content": events}},
    )
    async def chat_completions(body: schema.ChatRequest, http: Request) -> Response:
        return await calls.chat(body, http)

    @router.post(
        "/v1/completions",
        summary="Carry on a text",
        response_model=schema.Completion,
        responses={200: {"content": events}},
    )
    async def completions(body: schema.CompletionRequest, http: Request) -> Response:
        return await calls.completion(body, http)

    @router.get("/v1/models", summary="The model that is served")
    async def models() -> schema.ModelList:
        return schema.ModelList(data=[card])

    @router.get("/v1/models/{name:path}", summary="The same by its name")
    async def model(name: str) -> schema.ModelCard:
        if name != card.id:
            raise no_model(name, card.id)
        return card

    @router.get("/metrics", summary="Figures for Prometheus", response_class=Response)
    async def figures() -> Response:
        return Response(metrics.page(), media_type=CONTENT_TYPE_LATEST)

    return router


class _JsonRequest(Request):
    async def json(self) -> Any:
        """The body; JSON as its standard has it, without NaN, halves of surrogate pairs or bottomless depths."""
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise json.JSONDecodeError(str(error), "", 0) from error


class _JsonRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(http: Request) -> Response:
            if http.method == "POST" and not _is_json(http.headers.get("content-type", "")):
                raise Refusal(415, "The body is not marked as JSON: send Content-Type: application/json.")
            return await handle(_JsonRequest(http.scope, http.receive))

        return handle_json


def _is_json(kind: str) -> bool:
    """Whether a body is marked as JSON: no page of another site can send that unless the browser asks first."""
    return kind.partition(";")[0].strip().lower() == "application/json"


async def _refuse(http: Request, error: Exception) -> NoReturn:
    """What FastAPI would answer to goes the way of all errors."""
    if not isinstance(error, HTTPException):
        raise error
    path, status = http.url.path, error.status_code
    message = f"{error.detail}."
    if status == 404:
        message = f"There is no {path}: /docs shows what there is."
    if status == 405:
        message = f"{path} does not take {http.method}, but {(error.headers or {}).get('Allow', 'another method')}."
    raise Refusal(status, message, headers=error.headers) from error
