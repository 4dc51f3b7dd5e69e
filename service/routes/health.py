"""Liveness, readiness and metrics."""

import logging
import shutil
import tempfile
from collections.abc import Callable

from fastapi import APIRouter, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from service.auth.authorization import Needs
from service.deps import CallerDep, ProcessDep
from service.errors import NotReady
from service.metrics import CONTENT_TYPE_LATEST, Fleet
from service.route_docs import problems
from service.routing import StrictRoute
from service.services import Services
from sharpzo_core.database.engine import ping
from sharpzo_core.errors import CoreError
from sharpzo_core.records.keys import Scope

logger = logging.getLogger(__name__)

router = APIRouter(tags=["health"], route_class=StrictRoute, responses=problems(500))


class Health(BaseModel):
    """All is well."""

    status: str = "ok"


class Readiness(Health):
    """Everything that serving needs is there."""

    backbones: list[str]
    """What is loaded in this process, of those that the operator lists by name."""


@router.get("/livez")
async def livez() -> Health:
    """Whether the process answers."""
    return Health()


@router.get("/readyz", responses=problems(503))
async def readyz(services: ProcessDep) -> Readiness:
    """Whether everything that serving needs is there; 503 says what is not."""
    reasons = []
    for name, check in _CHECKS.items():
        reason = await run_in_threadpool(_reason, check, services)
        if reason:
            reasons.append(f"{name}: {reason}")
    if reasons:
        raise NotReady("; ".join(reasons))
    loaded = services.inference.loaded
    # Others were loaded for some tenant's prompt, which is nobody else's business.
    return Readiness(backbones=[n for n in loaded if n in services.settings.backbone_specs])


def _reason(check: Callable[[Services], str | None], services: Services) -> str | None:
    try:
        return check(services)
    except CoreError as error:
        return error.detail


def _check_database(services: Services) -> None:
    ping(services.database)


def _check_storage(services: Services) -> str | None:
    folder, wanted = services.settings.data_dir, services.settings.min_free_bytes
    try:
        free = shutil.disk_usage(folder).free
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        return f"the data folder cannot be written: {error.strerror}"
    return None if free >= wanted else f"{free} bytes are free, fewer than {wanted}"


def _check_broker(services: Services) -> str | None:
    return services.broker.problem()


def _check_inference(services: Services) -> str | None:
    return services.inference.problem


def _check_worker(services: Services) -> str | None:
    seconds = services.settings.lease_seconds
    return None if services.workers.active(seconds) else f"none was heard of for {seconds:g} s"


_CHECKS: dict[str, Callable[[Services], str | None]] = {
    "database": _check_database,
    "storage": _check_storage,
    "broker": _check_broker,
    "inference": _check_inference,
    "worker": _check_worker,
}


@router.get(
    "/metrics",
    dependencies=[Needs(Scope.METRICS)],
    response_class=Response,
    include_in_schema=False,
)
def metrics(services: ProcessDep, caller: CallerDep) -> Response:
    """Prometheus's exposition format; of all tenants only for keys of the default one."""
    tenant = None if caller.is_operator else caller.tenant
    jobs, figures = services.jobs.for_all_tenants(), services.figures.for_all_tenants()
    if tenant is not None:
        jobs, figures = jobs.for_tenant(tenant), figures.for_tenant(tenant)
    try:
        fleet = Fleet(
            jobs=jobs.count_by_status(),
            workers=len(services.workers.active(services.settings.lease_seconds)),
            figures=figures.read(),
        )
    except CoreError:
        # What this process counts by itself is worth most while the database is away.
        logger.warning("the database does not answer", extra={"action": "metrics_partial"})
        fleet = None
    return Response(services.metrics.render(fleet, tenant), media_type=CONTENT_TYPE_LATEST)
