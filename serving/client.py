"""Asking a service from Python.

from serving.client import search, upload

for result in search("http://127.0.0.1:8000", "yellow dotted fish", k=5).results:
    print(result.score, result.path)

photo = upload("http://127.0.0.1:8000", Path("photo.jpg").read_bytes()).upload
search("http://127.0.0.1:8000", "fish", evidence=[{"upload": photo}, {"text": "red", "weight": -0.4}])
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from http.client import HTTPResponse
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from pydantic import ValidationError

from retrieval.errors import UserError
from serving.protocol import (
    Fault,
    FaultAnswer,
    ImaginedEvent,
    Info,
    QuestionAnswer,
    SearchAnswer,
    SearchRequest,
    UploadedPicture,
)

TIMEOUT_SECONDS = 150
KEY_VARIABLE = "MINDSEYE_API_KEY"


class ServiceFault(Exception):
    """The service rejected a request, or could not answer it; ``status`` is HTTP's, 200 inside a stream."""

    def __init__(self, status: int, fault: Fault) -> None:
        super().__init__(fault.message)
        self.status = status
        self.fault = fault


def search(url: str, query: str | None = None, *, key: str | None = None, **options: Any) -> SearchAnswer:
    """Search by a text, by evidence, or by both.

    Args:
        url: of the service, such as http://127.0.0.1:8000.
        query: None to search by ``evidence`` alone.
        key: API key; by default that of the environment variable MINDSEYE_API_KEY.
        options: the other fields of ``protocol.SearchRequest``.

    Raises:
        ServiceFault: the service's own words.
        OSError: there is no service at ``url``.
    """
    request = SearchRequest(query=query, **options)
    with _open(url, "POST", "/v1/search", request.model_dump(), key) as response:
        return SearchAnswer.model_validate_json(response.read())


def stream(
    url: str, query: str | None = None, *, key: str | None = None, **options: Any
) -> Iterator[SearchAnswer | ImaginedEvent]:
    """Search and yield the stages as they come: a ranking by text, what was imagined, the fused ranking.

    Args and errors are those of ``search``.
    """
    request = SearchRequest(query=query, **options)
    with _open(url, "POST", "/v1/search/stream", request.model_dump(), key) as response:
        for name, data in _events(response):
            if name == "done":
                return
            if name == "error":
                raise ServiceFault(200, FaultAnswer.model_validate_json(data).error)
            yield (ImaginedEvent if name == "imagined" else SearchAnswer).model_validate_json(data)
    raise ConnectionError("the answer broke off before it was complete")


def question(url: str, query: str | None = None, *, key: str | None = None, **options: Any) -> QuestionAnswer:
    """Have the service's assistant ask what would narrow a search most; its ``choices`` are texts to add to it.

    Args and errors are those of ``search``; a service without an assistant answers with a ServiceFault.
    """
    request = SearchRequest(query=query, **options)
    with _open(url, "POST", "/v1/question", request.model_dump(), key) as response:
        return QuestionAnswer.model_validate_json(response.read())


def upload(url: str, picture: bytes, *, key: str | None = None) -> UploadedPicture:
    """Send the file of a picture, as evidence for any number of searches: ``{"upload": KEY}``.

    Errors are those of ``search``; a file that is no picture the service can read is a ServiceFault.
    """
    with _open(url, "POST", "/v1/pictures", picture, key) as response:
        return UploadedPicture.model_validate_json(response.read())


def info(url: str, *, key: str | None = None) -> Info:
    """Return what the service serves; errors are those of ``search``."""
    with _open(url, "GET", "/v1/info", None, key) as response:
        return Info.model_validate_json(response.read())


def switch_index(url: str, index: str, *, key: str | None = None) -> Info:
    """Have the service serve another index, and return once it does; errors are those of ``search``."""
    with _open(url, "PUT", "/v1/index", {"index": index}, key) as response:
        return Info.model_validate_json(response.read())


def _open(url: str, method: str, path: str, body: Any, key: str | None) -> HTTPResponse:
    if not url.startswith(("http://", "https://")):
        raise UserError(
            f"a service has a URL that begins with http:// or https://, and not {url!r}", code="bad-url", field="url"
        )
    headers = {"Content-Type": "image/*" if isinstance(body, bytes) else "application/json"}
    if key := key or os.environ.get(KEY_VARIABLE):
        headers["Authorization"] = f"Bearer {key}"
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    try:
        return urlopen(Request(url.rstrip("/") + path, data, headers, method=method), timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        with error:
            raise ServiceFault(error.code, _fault(error)) from None


def _fault(error: HTTPError) -> Fault:
    try:
        return FaultAnswer.model_validate_json(error.read()).error
    except ValidationError:  # of something in front of the service
        return Fault(code="http", message=f"HTTP {error.code} {error.reason}")


def _events(response: HTTPResponse) -> Iterator[tuple[str, str]]:
    name, data = "message", []
    for line in response:
        field, _, value = line.decode().rstrip("\r\n").partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
        elif not field and data:
            yield name, "\n".join(data)
            name, data = "message", []
