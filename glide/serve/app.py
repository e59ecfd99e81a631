"""The routes of `glide serve`, and the check of each request's token."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from glide.errors import describe_bug
from glide.live.service import LiveService
from glide.serve.batch_api import BatchApi
from glide.serve.errors import ApiError, json_response
from glide.serve.live_api import LiveApi
from glide.serve.metrics import ServeMetrics
from glide.serve.users import TokenFile

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
Handler = Callable[[Request], Awaitable[Response]]
_log = logging.getLogger("glide")


def application(
    tokens: TokenFile, service: LiveService, live: LiveApi, batches: BatchApi, metrics: ServeMetrics, started: int
) -> Starlette:
    """Return the web application.

    Args:
        started: Unix time when the server started. The models have this time as their creation.
    """

    def authenticated(handler: Handler) -> Handler:
        """Return a handler that lets only requests with a known token pass."""

        async def checked(request: Request) -> Response:
            kind, _, token = request.headers.get("authorization", "").partition(" ")
            user = tokens.user_of(token.strip()) if kind.lower() == "bearer" else None
            if user is None:
                error = ApiError(401, "no valid token; send it as `Authorization: Bearer TOKEN`", "invalid_api_key")
                response = error.response()
                response.headers["WWW-Authenticate"] = "Bearer"
                return response
            request.state.user = user
            return await handler(request)

        return checked

    def model(name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": started, "owned_by": "glide"}

    async def list_models(request: Request) -> Response:
        return json_response({"object": "list", "data": [model(name) for name in live.catalogue.names]})

    async def show_model(request: Request) -> Response:
        name = request.path_params["name"]
        live.catalogue.find(name)
        return json_response(model(name))

    async def health(request: Request) -> Response:
        return json_response({"status": "ok"})

    async def status(request: Request) -> Response:
        return json_response({"models": {name: asdict(each.status) for name, each in service.models.items()}})

    async def show_metrics(request: Request) -> Response:
        return Response(metrics.exposition(), media_type=PROMETHEUS)

    def route(path: str, handler: Handler, method: str = "GET") -> Route:
        return Route(path, authenticated(handler), methods=[method])

    routes = [
        Route("/health", health),
        route("/metrics", show_metrics),
        route("/v1/glide/status", status),
        route("/v1/models", list_models),
        route("/v1/models/{name:path}", show_model),
        route("/v1/chat/completions", live.chat, "POST"),
        route("/v1/completions", live.completions, "POST"),
        route("/v1/embeddings", live.embeddings, "POST"),
        route("/v1/files", batches.upload, "POST"),
        route("/v1/files", batches.list_files),
        route("/v1/files/{id}", batches.show_file),
        route("/v1/files/{id}", batches.delete_file, "DELETE"),
        route("/v1/files/{id}/content", batches.file_content),
        route("/v1/batches", batches.create, "POST"),
        route("/v1/batches", batches.list_batches),
        route("/v1/batches/{id}", batches.show_batch),
        route("/v1/batches/{id}/cancel", batches.cancel, "POST"),
    ]
    handlers = {ApiError: _api_error, 404: _not_found, 405: _not_found, Exception: _bug}
    return Starlette(routes=routes, exception_handlers=handlers)  # type: ignore[arg-type]


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _not_found(request: Request, error: Exception) -> Response:
    what = f"{request.method} {request.url.path[:100]} does not exist"
    return ApiError(getattr(error, "status_code", 404), what, "not_found").response()


async def _bug(request: Request, error: Exception) -> Response:
    _log.error("%s %s: %s", request.method, request.url.path[:100], describe_bug(error))
    return ApiError(500, "an error in the server; its log has the details", "internal_error").response()
