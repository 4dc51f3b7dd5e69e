"""What routes may ask for, by name.

All of them are coroutines: the framework would call a plain function in another thread.
"""

from functools import partial
from typing import Annotated

from fastapi import Depends, Header, Query, Request

from service.auth.audit import note_object
from service.auth.principal import Caller, caller_of
from service.http.problems import REQUEST_ID_KEY
from service.inference.host import InferenceHost
from service.services import Services, TenantServices
from sharpzo_core.errors import ValidationFailed
from sharpzo_core.records.prompts import NAME_PATTERN
from sharpzo_core.settings import Settings
from sharpzo_core.stores.alias_store import AliasStore
from sharpzo_core.stores.dataset_store import DatasetStore
from sharpzo_core.stores.job_store import JobStore
from sharpzo_core.stores.prompt_store import PromptStore

_TENANTS = "sharpzo.services"  # in the ASGI scope
MAX_CURSOR = 100  # characters
MAX_SEQ = 2**62


async def process(request: Request) -> Services:
    """Everything that the process holds, of all tenants; for its own health and figures alone."""
    services: Services = request.app.state.services
    return services


async def _caller(request: Request) -> Caller:
    return caller_of(request.scope)


async def _services(request: Request) -> TenantServices:
    return _tenants(request)


async def _settings(request: Request) -> Settings:
    return _tenants(request).settings


async def _jobs(request: Request) -> JobStore:
    return _tenants(request).jobs


async def _datasets(request: Request) -> DatasetStore:
    return _tenants(request).datasets


async def _prompts(request: Request) -> PromptStore:
    return _tenants(request).prompts


async def _aliases(request: Request) -> AliasStore:
    return _tenants(request).aliases


async def _inference(request: Request) -> InferenceHost:
    return _tenants(request).inference


def _tenants(request: Request) -> TenantServices:
    """What the caller may use, made once for a request.

    Nested dependencies would say the same, but the framework takes its time over each of them.
    """
    found: TenantServices | None = request.scope.get(_TENANTS)
    if found is None:
        services: Services = request.app.state.services
        made = partial(note_object, request.scope)
        caller, request_id = caller_of(request.scope), request.scope[REQUEST_ID_KEY]
        found = request.scope[_TENANTS] = services.for_caller(caller, made, request_id)
    return found


ProcessDep = Annotated[Services, Depends(process)]
CallerDep = Annotated[Caller, Depends(_caller)]
ServicesDep = Annotated[TenantServices, Depends(_services)]
SettingsDep = Annotated[Settings, Depends(_settings)]
JobsDep = Annotated[JobStore, Depends(_jobs)]
DatasetsDep = Annotated[DatasetStore, Depends(_datasets)]
PromptsDep = Annotated[PromptStore, Depends(_prompts)]
AliasesDep = Annotated[AliasStore, Depends(_aliases)]
InferenceDep = Annotated[InferenceHost, Depends(_inference)]

Limit = Annotated[int, Query(ge=1, le=100, description="Objects on one page.")]
After = Annotated[
    str | None, Query(max_length=MAX_CURSOR, description="`next` of the page before.")
]
PromptNameFilter = Annotated[
    str | None, Query(pattern=NAME_PATTERN, description="Only those of this name.")
]
AcceptHeader = Annotated[str, Header(alias="accept", include_in_schema=False)]


async def reject_repeated_parameters(request: Request) -> None:
    """Refuse a query that gives a parameter twice; which one should count?

    Raises:
        ValidationFailed: naming the parameters.
    """
    names = [name for name, _ in request.query_params.multi_items()]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValidationFailed([("", "a query parameter is given more than once")])
