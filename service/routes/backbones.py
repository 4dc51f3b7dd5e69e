"""The backbones that jobs may name."""

from fastapi import APIRouter, Depends
from fastapi.concurrency import run_in_threadpool

from service.auth.authorization import ANY_SCOPE, Needs
from service.deps import ServicesDep, reject_repeated_parameters
from service.route_docs import problems
from service.routing import StrictRoute
from service.services import TenantServices
from sharpzo_core.backbones import ANY_PRETRAINED, BackboneSpec
from sharpzo_core.schemas.base import Page
from sharpzo_core.schemas.prompts import BackbonePublic
from sharpzo_engine.clip.onnx.manifest import Manifest
from sharpzo_engine.errors import BackboneError

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
    specs = [settings.backbone_specs.get(name, BackboneSpec(name, name)) for name in names]
    data = await run_in_threadpool(lambda: [_describe(spec, services) for spec in specs])
    return Page(data=data, has_more=False, next=None)


def _describe(spec: BackboneSpec, services: TenantServices) -> BackbonePublic:
    settings, encoder = services.settings, services.inference.encoders.loaded(spec.name)
    precision: str | None = settings.inference_precision
    agreement = services.inference.agreement(spec.name)
    if spec.runtime == "remote":
        precision = None if encoder is None else encoder.precision
    if spec.folder is not None:
        try:
            manifest = Manifest.read(spec.folder)
            precision, agreement = manifest.precision, manifest.agreement.get("top1")
        except BackboneError:
            precision = None
    return BackbonePublic(
        name=spec.name,
        default=spec.name == settings.default_backbone,
        loaded=spec.name in services.inference.loaded,
        level=spec.level if encoder is None else encoder.level,
        runtime=spec.runtime,
        precision=precision,
        agreement=agreement,
    )
