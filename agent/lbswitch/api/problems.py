"""Errors as RFC 9457 problem documents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from lbswitch.core.model import Operation, OperationState
from lbswitch.errors import BalancerError, InvalidRequest, LbswitchError, Refused, problem_document

MEDIA_TYPE = "application/problem+json"
_DONE = (OperationState.DONE, OperationState.ALREADY)


def problem(error: LbswitchError, **more: Any) -> dict[str, Any]:
    """The document of an error, with further members."""
    return {**problem_document(error), **more}


def respond(document: dict[str, Any]) -> Response:
    """A problem document as an answer."""
    return Response(json.dumps(document), document["status"], media_type=MEDIA_TYPE)


def outcome(operations: Sequence[Operation], *, many: bool) -> tuple[int, dict[str, Any]]:
    """Status and document for operations that are over: themselves, or a problem that holds them."""
    documents = [operation.to_json() for operation in operations]
    bad = next((operation for operation in operations if operation.state not in _DONE), None)
    if bad is None:
        return 200, {"operations": documents} if many else documents[0]
    shown: dict[str, Any] = {"operation": bad.to_json()}
    if many:
        shown["operations"] = documents
    if bad.gate is not None:
        error: LbswitchError = Refused(bad.gate.name, bad.gate.message)
    elif bad.state is OperationState.FAILED:
        error = LbswitchError(bad.error or "the switch failed, and so did putting it back")
    else:
        error = BalancerError(bad.error or "the switch failed")
    document = problem(error, **shown)
    return document["status"], document


def install(app: FastAPI) -> None:
    """Make every error of the app a problem document."""

    @app.exception_handler(LbswitchError)
    async def ours(_request: Request, error: LbswitchError) -> Response:
        return respond(problem(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        whole_body = [item for item in error.errors() if tuple(item["loc"]) == ("body",)]
        if whole_body and "json" not in request.headers.get("content-type", ""):
            return respond(problem(InvalidRequest("the body must be sent as Content-Type: application/json")))
        said = [
            f"{'.'.join(str(part) for part in item['loc'][1:]) or 'body'}: {item['msg']}" for item in error.errors()
        ]
        return respond(problem(InvalidRequest("; ".join(said))))

    @app.exception_handler(HTTPException)
    async def plain(_request: Request, error: HTTPException) -> Response:
        document = problem(InvalidRequest(str(error.detail)))
        return respond({**document, "status": error.status_code, "title": str(error.detail)})

    @app.exception_handler(Exception)
    async def unforeseen(_request: Request, error: Exception) -> Response:
        return respond(problem(LbswitchError(f"unexpected {type(error).__name__}; see the agent's log")))
