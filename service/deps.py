"""Dependencies and parameters that routes share.

All dependencies are coroutines: FastAPI calls a plain function in another thread.
"""

from functools import partial
from typing import Annotated

from fastapi import Depends, Header, Query, Request

from service.auth.audit import note_object
from service.auth.principal import caller_of
from service.http.problems import REQUEST_ID_KEY
from service.services import Services, TenantServices
from sharpzo_core.errors import ValidationFailed
from sharpzo_core.records.prompts import NAME_PATTERN

MAX_CURSOR = 100  # characters
MAX_SEQ = 2**62


async def process(request: Request) -> Services:
    """What the process holds for all tenants; only for health and metrics."""
    services: Services = request.app.state.services
    return services


async def tenant_services(request: Request) -> TenantServices:
    """What this request may use."""
    return TenantServices(
        request.app.state.services,
        caller_of(request.scope),
        request.scope[REQUEST_ID_KEY],
        partial(note_object, request.scope),
    )


ProcessDep = Annotated[Services, Depends(process)]
ServicesDep = Annotated[TenantServices, Depends(tenant_services)]

Limit = Annotated[int, Query(ge=1, le=100, description="Number of objects on the page.")]
After = Annotated[
    str | None, Query(max_length=MAX_CURSOR, description="`next` of the previous page.")
]
PromptNameFilter = Annotated[
    str | None, Query(pattern=NAME_PATTERN, description="Only objects with this name.")
]
AcceptHeader = Annotated[str, Header(alias="accept", include_in_schema=False)]


async def reject_repeated_parameters(request: Request) -> None:
    """Reject a query that gives a parameter twice: it would be unclear which one counts.

    Raises:
        ValidationFailed: naming the parameters.
    """
    names = [name for name, _ in request.query_params.multi_items()]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValidationFailed([("", "a query parameter is given more than once (give each once)")])
