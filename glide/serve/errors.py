"""The errors of the API. Each becomes an answer in the form of OpenAI's API."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response


def to_json(content: Any) -> str:
    """Return a value as JSON in ASCII. Numbers that JSON does not have become null."""
    try:
        return json.dumps(content, allow_nan=False)
    except ValueError:
        return json.dumps(_without_nan(content))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer with JSON. Starlette's JSONResponse fails for texts with half a character."""
    return Response(to_json(content), status, headers, "application/json")


class ApiError(Exception):
    """A request that cannot be served.

    Args:
        status: the HTTP status.
        message: what is wrong, and what the client can do.
        code: OpenAI's short name of the problem.
        param: the field of the request that is wrong; None if it is no single field.
        retry_after: seconds after which the client may try again; None if the server does not know.
        is_final: whether another try would give the same error. OpenAI's client tries again after other errors of the
            server.
    """

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, retry_after: int | None = None,
        is_final: bool = False,
    ):  # fmt: skip
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.is_final = is_final

    @property
    def headers(self) -> Mapping[str, str]:
        found = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return found | ({"x-should-retry": "false"} if self.is_final else {})

    @property
    def body(self) -> dict[str, object]:
        """The content of the answer."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return json_response(self.body, self.status, self.headers)


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """Return the error of a request that has a wrong content."""
    return ApiError(400, message, code, param)


def not_found(what: str, code: str = "not_found") -> ApiError:
    """Return the error of a request for an object that does not exist, or belongs to another user."""
    return ApiError(404, what, code)
