"""Tuned prompts as files for other programs."""

import hashlib
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from service.artifacts import corrupt, fetch_artifact
from service.auth.authorization import Needs
from service.deps import ServicesDep
from service.deps import reject_repeated_parameters as no_repeats
from service.errors import NotCalibrated, Unavailable
from service.http.file_responses import RESPONSES, IfNoneMatch, attachment, not_modified
from service.route_docs import problems
from service.routing import StrictRoute
from sharpzo_core.records.keys import Scope
from sharpzo_core.records.prompts import PromptRecord
from sharpzo_engine.errors import ArtifactError, MissingPackage
from sharpzo_engine.errors import NotCalibrated as NoTemperature
from sharpzo_engine.prompts.artifact import TunedPrompt
from sharpzo_engine.prompts.export import ExportFormat, Origin, export

router = APIRouter(
    prefix="/v1/prompts",
    tags=["prompts"],
    route_class=StrictRoute,
    dependencies=[Needs(Scope.PROMPTS), Depends(no_repeats)],
    responses=problems(422, 500, 503),
)

Format = Annotated[
    ExportFormat,
    Query(
        alias="format",
        description="`npy`: float32 [C, E+1], logits = [image, 1] @ matrix.T; "
        "`onnx`: image_embedding [N, E] -> probabilities [N, C].",
    ),
]
Calibrated = Annotated[bool, Query(description="Divide the logits by the prompt's temperature.")]


@router.get("/{ref}/export", response_class=Response, responses={**RESPONSES, **problems(404, 409)})
def export_prompt(
    ref: str,
    services: ServicesDep,
    form: Format = ExportFormat.NPY,
    calibrated: Calibrated = False,
    if_none_match: IfNoneMatch = "",
) -> Response:
    """Export the classifier as one file that takes image embeddings of the prompt's backbone.

    Rows are in the order of the prompt's `classes`; `Link: ...; rel="describedby"` points to the
    prompt. An ONNX model also has them in its metadata, as JSON in `class_names`.
    """
    prompt = services.prompts.get(ref)
    data = _exported(prompt, fetch_artifact(services.artifacts, prompt), form, calibrated)
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 in if_none_match:
        return not_modified(sha256)
    calibration = "-calibrated" if calibrated else ""
    filename = f"{prompt.name}-v{prompt.version}{calibration}.{form}"
    response = attachment(data, filename, sha256)
    response.headers["Link"] = f'</v1/prompts/{prompt.id}>; rel="describedby"'
    return response


def _exported(record: PromptRecord, data: bytes, form: ExportFormat, calibrated: bool) -> bytes:
    origin = Origin(record.name, record.version, record.sha256)
    try:
        return export(TunedPrompt.load(data), form, origin, calibrated=calibrated)
    except ArtifactError as error:
        raise corrupt(record, "is damaged") from error
    except NoTemperature as error:
        raise NotCalibrated from error
    except MissingPackage as error:
        raise Unavailable(error.code, str(error)) from error
