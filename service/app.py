"""Builds the application; nothing is opened before it starts."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from starlette.concurrency import run_in_threadpool

from service import error_handlers, openapi
from service.auth.audit import Auditor
from service.auth.authentication import Authentication
from service.auth.authorization import authorize
from service.inference.pins import watching_pins
from service.metrics import Metrics
from service.middleware import RequestLayer
from service.routes import (
    aliases,
    backbones,
    classify,
    datasets,
    embeddings,
    encoders,
    exports,
    health,
    jobs,
    keys,
    pages,
    prompt_jobs,
    prompts,
)
from service.services import open_services
from sharpzo_core.settings import Settings
from sharpzo_engine import __version__


def create_app(settings: Settings, *, warm_up: bool = False) -> FastAPI:
    """Build the API; `warm_up` loads the default backbone at startup instead of at first use."""
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services = await run_in_threadpool(open_services, settings, metrics)
        app.state.services = services
        if warm_up:
            services.inference.warm_up()
        try:
            async with watching_pins(services.prompts, services.inference):
                yield
        finally:
            await run_in_threadpool(services.close)

    app = FastAPI(
        title="SharpZO",
        summary="Adapt CLIP to your own classes without backpropagation.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # our own page loads nothing from other hosts
        redoc_url=None,
        dependencies=[Depends(authorize)],
    )
    for module in (
        classify,  # first, because routes are tried in order and this one is asked most
        datasets,
        jobs,
        prompts,
        aliases,
        exports,
        encoders,
        embeddings,
        prompt_jobs,
        backbones,
        keys,
        health,
        pages,
    ):
        app.include_router(module.router)
    app.state.auditor = Auditor(app)
    app.add_middleware(Authentication, settings=settings)
    app.add_middleware(RequestLayer, metrics=metrics, settings=settings)
    error_handlers.install(app)
    openapi.install(app)
    return app
