"""Liveness, readiness and metrics."""

import logging
import shutil
import tempfile
from collections.abc import Callable

from fastapi import APIRouter, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from service.auth.authorization import Needs
from service.deps import ProcessDep, ServicesDep
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
    """The process answers."""

    status: str = "ok"


class Readiness(Health):
    """The service is ready for requests."""

    backbones: list[str]
    """The backbones listed by the operator that this process has loaded."""


@router.get("/livez")
async def livez() -> Health:
    """Check that the process answers."""
    return Health()


@router.get("/readyz", responses=problems(503))
async def readyz(process: ProcessDep) -> Readiness:
    """Check everything that serving needs; 503 lists what is missing."""
    reasons = []
    for name, check in _CHECKS.items():
        reason = await run_in_threadpool(_reason, check, process)
        if reason:
            reasons.append(f"{name}: {reason}")
    if reasons:
        raise NotReady("; ".join(reasons))
    loaded = process.inference.loaded
    # Any other was loaded for some tenant's prompt; that must not leak.
    return Readiness(backbones=[n for n in loaded if n in process.settings.backbone_specs])


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
        return f"the data folder is not writable: {error.strerror}"
    return None if free >= wanted else f"{free} bytes are free, below the minimum of {wanted}"


def _check_broker(services: Services) -> str | None:
    return services.broker.problem()


def _check_inference(services: Services) -> str | None:
    return services.inference.problem


def _check_worker(services: Services) -> str | None:
    seconds = services.settings.lease_seconds
    return None if services.workers.active(seconds) else f"no heartbeat for {seconds:g} s"


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
def metrics(process: ProcessDep, services: ServicesDep) -> Response:
    """Get metrics in Prometheus's format; all tenants' only with a key of the default tenant."""
    caller = services.caller
    tenant = None if caller.is_operator else caller.tenant
    jobs, totals = process.jobs.for_all_tenants(), process.job_totals.for_all_tenants()
    if tenant is not None:
        jobs, totals = jobs.for_tenant(tenant), totals.for_tenant(tenant)
    try:
        fleet = Fleet(
            jobs=jobs.count_by_status(),
            workers=len(process.workers.active(process.settings.lease_seconds)),
            figures=totals.read(),
        )
    except CoreError:
        # This process's own counters matter most while the database is down.
        logger.warning("the database does not answer", extra={"action": "metrics_partial"})
        fleet = None
    return Response(process.metrics.render(fleet, tenant), media_type=CONTENT_TYPE_LATEST)
