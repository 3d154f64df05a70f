"""What is served, and how the server is."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from stepvar.serving.server.errors import RequestError
from stepvar.serving.server.service import Service, service_of

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The one model that is served."""
    return {"object": "list", "data": [_model(service_of(request))]}


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """The model of this name."""
    service = service_of(request)
    if name != service.name:
        raise RequestError(404, f"model={name!r}: is not served here", code="model_not_found", param="model")
    return _model(service)


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health() -> dict[str, str]:
    """Whether the server is there at all."""
    return {"status": "ok"}


@router.head("/ready", include_in_schema=False)
@router.get("/ready")
async def ready(request: Request) -> Response:
    """Whether it takes requests: the model is loaded and warm, and the server does not end."""
    service = service_of(request)
    return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(service_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _model(service: Service) -> dict[str, Any]:
    return {"id": service.name, "object": "model", "created": service.started, "owned_by": "stepvar"}
