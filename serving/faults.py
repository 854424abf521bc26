"""What every error looks like to a client: status, code, sentence, field. All but the expected ones look alike."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from retrieval.errors import UserError
from retrieval.images import ImageRejected
from serving.deployments.calls import Trouble, Unavailable
from serving.guards.middleware import request_id
from serving.protocol import Fault, FaultAnswer

RETRY_SECONDS = 1
_STATUS: Mapping[Trouble, int] = {"busy": 503, "down": 503, "starting": 503, "late": 504, "failed": 500}
_STATUS_CODES = {404: "not-found", 405: "method-not-allowed", 415: "not-a-picture", 500: "internal"}
EXPECTED = (HTTPException, RequestValidationError, Unavailable, UserError, ImageRejected)
"""What is answered in its own words; every other exception is logged, and answered with a neutral sentence."""


class BadRequest(UserError):
    """A request that asks for more than it may, in one field."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message, code="over-the-limit", field=field)


def answer_faults(api: FastAPI) -> None:
    """Every error is a FaultAnswer."""

    async def answer(request: Request, error: Exception) -> Response:
        status, body = fault_of(error)
        headers = dict(getattr(error, "headers", None) or {})
        if status == 503:
            headers["Retry-After"] = str(RETRY_SECONDS)
        return JSONResponse(body.model_dump(), status, headers)

    for kind in EXPECTED:
        api.add_exception_handler(kind, answer)


def fault_of(error: Exception) -> tuple[int, FaultAnswer]:
    """Status and body of the answer to a request that failed so."""
    status, code, message, field = 422, "invalid", str(error), None
    match error:
        case Unavailable():
            status, code = _STATUS[error.trouble], str(error.trouble)
        case HTTPException():
            status, code, message = error.status_code, _STATUS_CODES.get(error.status_code, "refused"), error.detail
        case RequestValidationError():
            first = error.errors()[0]
            where = [*map(str, first["loc"][1:])]  # after where it was: body, query or path
            mistake = first.get("ctx", {}).get("error")
            if isinstance(mistake, UserError):  # of a model of ours
                code, message = mistake.code, str(mistake)
                where += [mistake.field] if mistake.field else []
                field = ".".join(where) or None
            else:
                field = ".".join(where) or None
                message = f"{field or 'the request'}: {first['msg']}"
        case UserError():
            code, field = error.code, error.field or None
        case ImageRejected():
            code = error.reason
    return status, FaultAnswer(error=Fault(code=code, message=message, field=field), request_id=request_id.get())
