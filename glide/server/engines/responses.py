"""Read the responses of a service: its error messages, its models, and how long to wait before the next try."""

from __future__ import annotations

from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any

from glide.server.engines.http_client import Response

FIRST_PAUSE = 0.5  # seconds between the first and the second try; the pause doubles before each further try
LONGEST_PAUSE = 60.0  # maximum result of `backoff` in seconds, even if the service asks for a longer pause


def summary(response: Response) -> str:
    """Return a response's status and error message in one line."""
    message: Any = response.text
    with suppress(ValueError, LookupError, TypeError, AttributeError):
        error = response.json()
        error = error.get("error", error)
        message = error if isinstance(error, str) else error["message"]
    return f"{response.status} {' '.join(str(message).split())[:500]}".rstrip()


def lists_model(response: Response, model: str) -> str:
    """Return what is wrong with an answer to GET /models. If the answer lists the model, return an empty text."""
    if not response.is_success:
        return summary(response)
    try:
        names = [str(each["id"]) for each in response.json()["data"]]
    except (ValueError, KeyError, TypeError):
        return f"{response.status} without a list of models"
    return "" if model in names else f"no model {model}; it has {', '.join(names[:20]) or 'none'}"


def backoff(attempt: int, requested: float = 0.0) -> float:
    """Return the seconds to wait after a failed try, at most LONGEST_PAUSE.

    Args:
        attempt: number of the failed try, counted from 0.
        requested: seconds for which the service has asked the engine to wait.
    """
    return min(max(FIRST_PAUSE * 2 ** min(attempt, 16), requested), LONGEST_PAUSE)


def retry_after(value: str, now: float) -> float:
    """Return how many seconds the header Retry-After asks a client to wait.

    The header's value is a number of seconds or a date (RFC 9110, 10.2.3). If the value is a date, return the seconds
    from the Unix time `now` to this date. If the value is neither a number nor a date, return 0.
    """
    with suppress(ValueError):
        return float(value)
    with suppress(ValueError, OverflowError):
        return parsedate_to_datetime(value).timestamp() - now
    return 0.0
