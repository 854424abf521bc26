"""The HTTP API, version 1: what is asked and answered at which path."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from cluster.profile import Limits, ServeSettings
from retrieval.errors import UserError
from retrieval.folder import Folder
from serving.deployments.calls import Unavailable
from serving.deployments.messages import Served
from serving.events import EventStream
from serving.faults import BadRequest, answer_faults
from serving.guards.keys import Key, Keys, LoopbackNames
from serving.guards.limits import BodyLimit, RateLimit
from serving.guards.middleware import FetchWhenAsked, LastResort, RequestId, SecurityHeaders, request_id
from serving.guards.places import Places, party
from serving.protocol import (
    FaultAnswer,
    IndexSwitch,
    Info,
    Mode,
    QuestionAnswer,
    SearchAnswer,
    SearchRequest,
    UploadedPicture,
)
from serving.search import Search

PAGE = Path(__file__).parent / "page"
OPEN_PATHS = ("/", "/page/*", "/healthz", "/readyz", "/openapi.json")
"""What needs no API key."""
ADMIN_PATHS = ("/v1/index",)
"""What needs an admin key, where there are keys: with an old version, rows come back that were removed since."""
SEARCH_PATHS = ("/v1/search", "/v1/search/*", "/v1/question", "/v1/pictures")
"""What needs a place."""
PICTURE_PATHS = ("/v1/images/*", "/v1/imagined/*", "/v1/pictures/*")
"""What counts as a picture and not as a request: a page shows dozens of them for each search."""
FREE_PATHS = (*OPEN_PATHS, *PICTURE_PATHS)
"""What does not count as a request."""
# Parameters of a GET that are text; all others are written as in JSON.
_TEXTS = {"query", "kind", "mode", "fuse", "rerank", "focus", "ignore", "bridge"}
# Parameters that may be given several times.
_LISTS = {"drop", "ignore"}
KEY = re.compile("[0-9a-f]{64}")
"""Of what is remembered."""
PICTURE_BODY = {"requestBody": {"required": True, "content": {"image/*": {"schema": {"format": "binary"}}}}}
_STILL = {"Cache-Control": "private, max-age=3600"}


def make_api(
    search: Search,
    settings: ServeSettings,
    keys: Sequence[Key],
    *,
    store: str,
    aggregator: str | None,
    index: str,
    behind_serve: bool,
) -> FastAPI:
    """Make the ASGI application of a service.

    Args:
        keys: the API keys that are accepted; without any, requests need none.
        store: its URI, where requests are counted if it is a Redis.
        aggregator: the name to show.
        index: URI of what the service was started with. Only that, what the settings allow, and what lies in them can
            be switched to: an index names the folders whose pictures are served, so it is for the operator to choose.
        behind_serve: Serve's proxy writes the request id into answers itself.
    """
    limits = settings.limits
    guards = [
        *([Middleware(FetchWhenAsked)] if behind_serve else []),
        Middleware(RequestId, echo=not behind_serve),
        Middleware(SecurityHeaders),
        Middleware(LastResort),
        Middleware(Keys, keys, open_paths=OPEN_PATHS, admin_paths=ADMIN_PATHS) if keys else Middleware(LoopbackNames),
        Middleware(Places, coming=search.admission.coming, paths=SEARCH_PATHS),
        Middleware(RateLimit, per_minute=limits.requests_per_minute, store=store, free_paths=FREE_PATHS),
        Middleware(
            RateLimit, per_minute=limits.pictures_per_minute, store=store, counted="pictures", paths=PICTURE_PATHS
        ),
        Middleware(BodyLimit, max_bytes=limits.body_bytes, seconds=limits.body_seconds),
    ]
    # Its pages of documentation load scripts from elsewhere.
    api = FastAPI(
        title="mindseye",
        summary="Finds every image of a category from words or from a picture.",
        version=version("mindseye"),
        docs_url=None,
        redoc_url=None,
        middleware=guards,
        responses={code: {"model": FaultAnswer} for code in (422, 429, 503, 504)},
    )
    answer_faults(api)
    own = [index, *(Folder(allowed).uri for allowed in settings.indexes)]

    @api.post("/v1/search", tags=["search"])
    async def search_by_text(body: SearchRequest, request: Request) -> SearchAnswer:
        """Answer once: with the fused ranking, or with the best that there is by the deadline."""
        return await search.answer(within(body, limits), request_id.get(), caller=party(request.scope))

    @api.post("/v1/search/stream", tags=["search"], response_class=EventStream, responses=EventStream.DOCUMENTED)
    async def stream_by_text(body: SearchRequest, request: Request) -> Response:
        """Answer in stages, as server-sent events."""
        stages = search.stages(within(body, limits), request_id.get(), caller=party(request.scope))
        return await EventStream.of(stages, seconds=search.seconds)

    @api.get(
        "/v1/search/stream",
        tags=["search"],
        response_class=EventStream,
        responses=EventStream.DOCUMENTED,
        openapi_extra={"parameters": _parameters(SearchRequest)},
    )
    async def stream_by_parameters(
        body: Annotated[SearchRequest, Depends(from_parameters)], request: Request
    ) -> Response:
        """The same for `EventSource`, which can only GET. `drop` and `ignore` may be given several times; `evidence` is
        JSON.
        """
        return await stream_by_text(body, request)

    @api.post(
        "/v1/search/image",
        tags=["search"],
        openapi_extra=PICTURE_BODY,
    )
    async def search_by_picture(
        request: Request,
        k: Annotated[int, Query(ge=1)] = 10,
        mode: Mode = "fused",
        weight: Annotated[float | None, Query(ge=0, le=1, allow_inf_nan=False)] = None,
    ) -> SearchAnswer:
        """Rank by a picture: the request's body is its file, of a content type `image/…`."""
        _check_is_picture(request)
        _check("k", k, limits.k)
        return await search.by_picture(
            await request.body(), request_id.get(), k=k, mode=mode, weight=weight, caller=party(request.scope)
        )

    @api.post("/v1/question", tags=["search"])
    async def ask_back(body: SearchRequest, request: Request) -> QuestionAnswer:
        """Have the assistant ask what would narrow a search most. The body is that of the search, which is done again:
        from its memory, if it was done before.
        """
        return await search.question(within(body, limits), request_id.get(), caller=party(request.scope))

    @api.post("/v1/pictures", tags=["search"], openapi_extra=PICTURE_BODY)
    async def upload_picture(request: Request) -> UploadedPicture:
        """Encode a picture once, as evidence for any number of searches: the request's body is its file, of a content
        type `image/…`. Its key is its content's: the same picture has the same key.
        """
        _check_is_picture(request)
        return await search.upload(await request.body(), caller=party(request.scope))

    @api.get("/v1/pictures/{upload}", tags=["pictures"], response_class=Response)
    async def uploaded_picture(upload: str) -> Response:
        """A picture that was uploaded, of up to 768 pixels a side."""
        data = await search.pictures.jpeg(upload) if KEY.fullmatch(upload) else None
        if data is None:
            raise HTTPException(404, "no such picture is remembered")
        return Response(data, media_type="image/jpeg", headers=_STILL)

    @api.get("/v1/images/{id:path}", tags=["pictures"], response_class=Response)
    async def gallery_picture(
        id: str, size: Literal["full", "thumbnail"] = "full", shard: Annotated[int | None, Query(ge=0)] = None
    ) -> Response:
        """A picture of the gallery, by the id of a result. Where shards are deployments, the one that the
        result's address names is asked alone.
        """
        picture = await search.gallery.picture(id, shard=shard, small=size == "thumbnail")
        if picture is None:
            raise HTTPException(404, "the gallery has no picture of this id")
        return Response(picture.data, media_type=picture.media_type, headers=_STILL)

    @api.get("/v1/imagined/{key}/{index}", tags=["pictures"], response_class=Response)
    async def imagined_picture(key: str, index: int) -> Response:
        """An imagined picture, small."""
        data = await search.memory.remembered_image(key, index) if KEY.fullmatch(key) else None
        if data is None:
            raise HTTPException(404, "no such picture is remembered")
        return Response(data, media_type="image/jpeg", headers=_STILL)

    @api.get("/v1/info", tags=["service"])
    async def info() -> Info:
        """What is served, and the limits of a request."""
        return _info(await search.served())

    @api.put("/v1/index", tags=["service"])
    async def switch_index(body: IndexSwitch) -> Info:
        """Serve another index, or another version of it, from now on. Answers when that is so."""
        try:
            allowed = any(_lies_in(one, body.index) for one in own)
            served = await search.switch(body.index) if allowed else None
        except UserError as error:  # of its URI, or of a file that was read
            raise UserError(str(error), code=error.code, field="index") from error
        if served is None:
            raise UserError(
                "index names none of this service's own: others are served if serve.indexes in its profile names them",
                code="not-allowed",
                field="index",
            )
        return _info(served)

    @api.get("/healthz", tags=["service"])
    async def health() -> dict[str, str]:
        """This replica of the API is alive."""
        return {"status": "alive"}

    @api.get("/readyz", tags=["service"])
    async def readiness() -> dict[str, str]:
        """Every part of the service has answered once."""
        if not search.ready:
            raise Unavailable("the service", "starting")
        return {"status": "ready"}

    @api.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html")

    def _info(served: Served) -> Info:
        return Info(
            version=api.version,
            index=_last_part(served.version.removesuffix(f"/{served.name}")),
            index_version=served.name,
            rows=served.rows,
            shards=served.shards,
            models={role: _last_part(uri) for role, uri in served.models.items()},
            aggregator=aggregator and _last_part(aggregator),
            composer=served.composer and _last_part(served.composer),
            weight=served.weight,
            images=search.defaults.images,
            assistant=search.assistant.depth if search.assistant else 0,
            limits=limits.model_dump(),
            examples=search.examples,
            aspects=served.aspects or [],
        )

    api.mount("/page", StaticFiles(directory=PAGE))
    return api


def within(request: SearchRequest, limits: Limits) -> SearchRequest:
    """The request, if it asks for no more than it may.

    Raises:
        BadRequest: it does.
    """
    texts = {"query": request.query} | {f"evidence.{n}.text": piece.text for n, piece in enumerate(request.evidence)}
    for field, text in texts.items():
        if text is not None and len(text) > limits.query_characters:
            most, given = limits.query_characters, len(text)
            raise BadRequest(field, f"{field} may have at most {most:,} characters, and has {given:,}")
    _check("k", request.k, limits.k)
    _check("images", request.images or 1, limits.images)
    _check("drop", len(request.drop), limits.images)
    return request


def _check_is_picture(request: Request) -> None:
    if not request.headers.get("content-type", "").startswith("image/"):
        raise HTTPException(415, "the body must be a picture, with its content type, such as image/jpeg")


def _check(field: str, given: int, most: int) -> None:
    if given > most:
        raise BadRequest(field, f"{field} may be at most {most:,}, and is {given:,}")


def from_parameters(request: Request) -> SearchRequest:
    """A search from the parameters of its address."""
    given: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        parsed = value if name in _TEXTS else _as_json(value)
        if name in _LISTS:
            given.setdefault(name, []).append(parsed)
        else:
            given[name] = parsed
    try:
        return SearchRequest.model_validate(given)
    except ValidationError as error:
        raise RequestValidationError([{**one, "loc": ("query", *one["loc"])} for one in error.errors()]) from error


def _as_json(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value  # the model says what is wrong with this field


def _parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return [
        {"name": name, "in": "query", "required": False}
        | ({"content": {"application/json": {"schema": field}}} if name == "evidence" else {"schema": field})
        for name, field in schema["properties"].items()
    ]


def _lies_in(index: str, wanted: str) -> bool:
    path, _, options = Folder(wanted).uri.partition("?")
    own_path, _, own_options = index.partition("?")
    inside = path == own_path or path.startswith(f"{own_path}/")
    return inside and options == own_options and ".." not in path.split("/")


def _last_part(uri: str) -> str:
    """What may be shown of a URI: nothing of this machine's folders."""
    return uri.rstrip("/").rsplit("/", 1)[-1]
