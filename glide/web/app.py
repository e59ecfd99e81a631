"""The routes of glide web: the pages, the same data as JSON, and the metrics."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from glide.condor import home
from glide.web import pages
from glide.web.guard import Guard
from glide.web.history import HOURS, charts
from glide.web.metrics import exposition
from glide.web.snapshot_cache import PoolView, without_last_lines

STATIC = Path(__file__).parent / "static"
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def application(get_view: Callable[[], PoolView], names: Collection[str] = (), token: str = "") -> Guard:
    """Return the web application, wrapped in a guard that checks each request.

    Args:
        get_view: a function that returns the current view of the pool.
        names: host names that requests may use, besides localhost and IP addresses.
        token: the token that clients must send. If it is empty, clients need no token, and the output of glideins is
            not shown.
    """

    def shown() -> PoolView:
        return get_view() if token else without_last_lines(get_view())

    def overview(request: Request) -> Response:
        asked = request.query_params.get("hours", "")
        hours = next((each for each in HOURS if str(each) == asked), HOURS[0])
        return HTMLResponse(
            pages.overview(shown(), lambda site, entries: charts(home() / "factory" / site, entries, hours), hours)
        )

    def status_json(request: Request) -> Response:
        return JSONResponse({**(view := shown()).status, **pages.freshness(view)})

    def entry(request: Request) -> Response:
        name, view = request.path_params["name"], shown()
        if document := pages.entry_document(view, name):
            return HTMLResponse(pages.page("entry.html", view, page=document))
        return HTMLResponse(pages.page("missing.html", view, what=f"entry {name}"), 404)

    def entry_json(request: Request) -> Response:
        return _json(pages.entry_document(shown(), request.path_params["name"]))

    def run(request: Request) -> Response:
        name, view = request.query_params.get("name", ""), shown()
        if document := pages.run_document(view, name):
            return HTMLResponse(pages.page("run.html", view, page=document))
        return HTMLResponse(pages.page("missing.html", view, what=f"run {name} with unfinished jobs"), 404)

    def run_json(request: Request) -> Response:
        return _json(pages.run_document(shown(), request.query_params.get("name", "")))

    def metrics(request: Request) -> Response:
        return Response(exposition(get_view), media_type=PROMETHEUS)

    routes = [
        Route("/", overview),
        Route("/status.json", status_json),
        Route("/entry/{name}.json", entry_json),
        Route("/entry/{name}", entry),
        Route("/run", run),  # a run's name may contain any character, so it is a query parameter
        Route("/run.json", run_json),
        Route("/metrics", metrics),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    return Guard(Starlette(routes=routes), names, token)


def _json(document: object) -> Response:
    return JSONResponse(document, 404 if document is None else 200)
