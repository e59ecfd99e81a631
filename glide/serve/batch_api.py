"""Files and batches in OpenAI's API."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from glide.serve.batch_store import BatchStore
from glide.serve.batches import BatchRunner
from glide.serve.bodies import json_body, parts
from glide.serve.errors import ApiError, invalid, json_response
from glide.serve.file_store import FileStore, StoredFile
from glide.sweep.batch_api import PROMPTS

MOST_LISTED = 100  # maximum number of objects in one page of a list
FORM_BYTES = 1_000_000  # what a form may have besides its file, in bytes


@dataclass(frozen=True)
class BatchApi:
    """The endpoints of files and batches.

    Attributes:
        uploading: users who are uploading a file. Its content is first written to a temporary file.
    """

    files: FileStore
    batches: BatchStore
    runner: BatchRunner
    uploading: set[str] = field(default_factory=set)

    async def upload(self, request: Request) -> Response:
        """POST /v1/files: store a file."""
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise invalid("send the file as multipart/form-data, with the fields `file` and `purpose`")
        user = request.state.user
        if user in self.uploading:
            raise ApiError(429, "another upload of yours is running", "rate_limit_exceeded", retry_after=1)
        self.uploading.add(user)
        try:
            left = await asyncio.to_thread(self.files.left, user)
            content = parts(request, max(0, left) + FORM_BYTES)
            form = await MultiPartParser(request.headers, content, max_files=1, max_fields=20).parse()
            try:
                stored = await self._store(user, form, left)
            finally:
                await form.close()
        except MultiPartException as error:
            raise invalid(f"the form cannot be read: {error.message}") from None
        finally:
            self.uploading.discard(user)
        return json_response(stored.document)

    async def _store(self, user: str, form: FormData, left: int) -> StoredFile:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise invalid("the field `file` is missing", "file")
        if form.get("purpose") != "batch":
            raise invalid("the only purpose of files is `batch`", "purpose")

        async def content() -> AsyncIterator[bytes]:
            while part := await file.read(1 << 20):
                yield part

        return await self.files.store(user, (file.filename or "input.jsonl")[:200], content(), left)

    async def list_files(self, request: Request) -> Response:
        """GET /v1/files."""
        purpose = request.query_params.get("purpose")
        found = await asyncio.to_thread(self.files.of_user, request.state.user)
        own = [file for file in found if purpose in (None, file.purpose)]
        return _page(request, own, lambda file: file.document)

    async def show_file(self, request: Request) -> Response:
        """GET /v1/files/ID."""
        return json_response(self.files.find(request.state.user, request.path_params["id"]).document)

    async def file_content(self, request: Request) -> Response:
        """GET /v1/files/ID/content."""
        file = self.files.find(request.state.user, request.path_params["id"])
        return FileResponse(self.files.content(file), media_type="application/octet-stream")

    async def delete_file(self, request: Request) -> Response:
        """DELETE /v1/files/ID."""
        file = self.files.find(request.state.user, request.path_params["id"])
        self.files.delete(file)
        return json_response({"id": file.id, "object": "file", "deleted": True})

    async def create(self, request: Request) -> Response:
        """POST /v1/batches: run the requests in a file."""
        body, _ = await json_body(request)
        endpoint, window, metadata = body.get("endpoint"), body.get("completion_window"), body.get("metadata")
        if not isinstance(endpoint, str) or endpoint not in PROMPTS:
            raise invalid(f"the endpoint must be one of {', '.join(PROMPTS)}", "endpoint")
        if not isinstance(window, str) or len(window) > 20:
            raise invalid("`completion_window` is missing; write 24h", "completion_window")
        if metadata is not None and not _is_metadata(metadata):
            raise invalid("metadata must be an object with at most 16 texts of at most 512 characters", "metadata")
        file = self.files.find(request.state.user, body.get("input_file_id"))
        batch = self.runner.create(request.state.user, endpoint, file.id, window, metadata)
        return json_response(batch.document)

    async def list_batches(self, request: Request) -> Response:
        """GET /v1/batches."""
        found = await asyncio.to_thread(self.batches.all)
        own = [batch for batch in found if batch.user == request.state.user]
        return _page(request, own, lambda batch: self.runner.refreshed(batch).document)

    async def show_batch(self, request: Request) -> Response:
        """GET /v1/batches/ID."""
        batch = self.batches.find(request.state.user, request.path_params["id"])
        return json_response(self.runner.refreshed(batch).document)

    async def cancel(self, request: Request) -> Response:
        """POST /v1/batches/ID/cancel."""
        batch = self.batches.find(request.state.user, request.path_params["id"])
        return json_response(self.runner.cancel(batch).document)


def _is_metadata(value: Any) -> bool:
    if not isinstance(value, dict) or len(value) > 16:
        return False
    return all(isinstance(each, str) and len(each) <= 512 for pair in value.items() for each in pair)


def _page(request: Request, objects: Sequence[Any], document: Callable[[Any], dict[str, Any]]) -> Response:
    """Return the page of a list that a request asks for with `limit` and `after`.

    Args:
        objects: all objects of the list.
        document: function that returns an object in the form of the API.
    """
    limit, after = request.query_params.get("limit", "20"), request.query_params.get("after")
    if not re.fullmatch("[0-9]{1,5}", limit) or not 1 <= int(limit) <= 10_000:
        raise invalid("`limit` must be a number from 1 to 10000", "limit")
    start = 0
    if after is not None:
        start = next((at for at, each in enumerate(objects, 1) if each.id == after), len(objects))
    shown = [document(each) for each in objects[start : start + min(int(limit), MOST_LISTED)]]
    return json_response(
        {
            "object": "list", "data": shown, "has_more": start + len(shown) < len(objects),
            "first_id": shown[0]["id"] if shown else None, "last_id": shown[-1]["id"] if shown else None,
        }
    )  # fmt: skip
