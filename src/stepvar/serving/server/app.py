"""The application: routes, errors, and the pipeline behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from stepvar.errors import StepvarError
from stepvar.methods import make_method
from stepvar.pipeline import Pipeline
from stepvar.serving.server import images, status, videos
from stepvar.serving.server.access import Access, answer
from stepvar.serving.server.errors import RequestError, as_request_error, invalid_fields
from stepvar.serving.server.requests import check_method_name
from stepvar.serving.server.schema import FIELDS
from stepvar.serving.server.service import Service
from stepvar.serving.server.settings import ServerSettings
from stepvar.utils.version import __version__


def create_app(
    factory: Callable[[], Pipeline],
    settings: ServerSettings | None = None,
    keys: Sequence[str] = (),
    *,
    wait: bool = False,
) -> FastAPI:
    """An application that serves one pipeline; ``app.state.service`` is what its routes share.

    Args:
        factory: loads the pipeline. It is called in the thread that generates, when the application starts.
        settings: None: the usual ones.
        keys: one of which every request must bring; none: everybody may use the server.
        wait: whether it takes requests only when it is ready, rather than answer the first ones with 503.

    Raises:
        UsageError: for settings that cannot be used.
    """
    settings = settings or ServerSettings()
    make_method(check_method_name(settings.method))
    service = Service(factory, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        try:
            if wait:
                await asyncio.to_thread(service.worker.wait)
            yield
        finally:
            await asyncio.to_thread(service.worker.stop)
            service.videos.close()

    app = FastAPI(
        title="stepvar", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.state.service = service
    for module in (images, videos, status):
        app.include_router(module.router)
    app.add_middleware(Access, settings=settings, metrics=service.metrics, keys=keys)
    app.add_exception_handler(RequestError, _refuse)
    app.add_exception_handler(StepvarError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_fields)
    app.add_exception_handler(HTTPException, _refuse_other)
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    return answer(as_request_error(error, FIELDS))


async def _refuse_fields(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return answer(invalid_fields(error.errors()))


async def _refuse_other(request: Request, error: Exception) -> Response:
    """What FastAPI refuses by itself: unknown paths and methods, bodies that it cannot read."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    said = {
        400: f"body: cannot be read ({str(error.detail).rstrip('.')}); see /openapi.json",
        404: f"{where}: there is no such path; see /openapi.json",
        405: f"{where}: not with this method",
    }
    return answer(
        RequestError(error.status_code, said.get(error.status_code, str(error.detail)), headers=error.headers)
    )
