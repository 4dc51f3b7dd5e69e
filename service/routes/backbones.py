"""The backbones that jobs may name."""

from fastapi import APIRouter, Depends

from service.auth.authorization import ANY_SCOPE, Needs
from service.deps import ServicesDep, reject_repeated_parameters
from service.route_docs import problems
from service.routing import StrictRoute
from sharpzo_core.backbones import ANY_PRETRAINED
from sharpzo_core.schemas.base import Page
from sharpzo_core.schemas.prompts import BackbonePublic

router = APIRouter(
    prefix="/v1/backbones",
    tags=["backbones"],
    route_class=StrictRoute,
    dependencies=[Needs(*ANY_SCOPE), Depends(reject_repeated_parameters)],
    responses=problems(422, 500),
)


@router.get("")
async def list_backbones(services: ServicesDep) -> Page[BackbonePublic]:
    """List backbones by name; `MODEL:TAG` stands for every pretrained model of open_clip."""
    settings = services.settings
    loaded = set(services.inference.loaded)
    configured = [name for name in settings.backbone_specs if name != ANY_PRETRAINED]
    # Any other loaded backbone reveals what some tenant's prompts use.
    others = loaded - set(configured) if services.caller.is_operator else set()
    names = configured + sorted(others)
    if ANY_PRETRAINED in settings.backbone_specs:
        names.append("MODEL:TAG")
    data = [
        BackbonePublic(name=name, default=name == settings.default_backbone, loaded=name in loaded)
        for name in names
    ]
    return Page(data=data, has_more=False, next=None)
