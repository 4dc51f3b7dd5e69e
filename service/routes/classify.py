"""Classification with tuned prompts."""

import base64
import binascii
import io
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from service.deps import InferenceDep, PromptsDep
from service.deps import reject_repeated_parameters as no_repeats
from service.errors import TooManyFiles
from service.inference.host import Outcome
from service.multipart import FormRules, read_form
from service.openapi import body, form, problems
from service.routing import MAX_JSON_BYTES, StrictRoute, media_type, parse, read_json
from sharpzo_core.errors import UnsupportedMedia
from sharpzo_core.schemas import (
    ClassifyAnswer,
    ClassifyResult,
    ErrorPublic,
    PredictionPublic,
)
from sharpzo_engine.errors import ImageError

MAX_IMAGES = 64  # in one request
MAX_CLASSIFY_BYTES = 64 << 20
MAX_TOP_K = 1000

router = APIRouter(
    prefix="/v1",
    tags=["classification"],
    route_class=StrictRoute,
    max_body_size=MAX_JSON_BYTES,
    dependencies=[Depends(no_repeats)],
    responses=problems(422, 500, 503),
)


class ClassifyImages(BaseModel):
    """Images as base64 text."""

    model_config = ConfigDict(strict=True, extra="forbid")

    images: Annotated[list[str], Field(min_length=1)]


@router.post(
    "/prompts/{ref}/classify",
    max_body_size=MAX_CLASSIFY_BYTES,
    response_model_exclude_none=True,
    responses=problems(400, 404, 408, 409, 413, 415),
    openapi_extra=body(
        multipart=form("images", many=True), json=ClassifyImages.model_json_schema()
    ),
)
async def classify(
    ref: str,
    request: Request,
    prompts: PromptsDep,
    inference: InferenceDep,
    top_k: Annotated[int, Query(ge=1, le=MAX_TOP_K)] = 5,
) -> ClassifyAnswer:
    """Classify images; one that cannot be read has its own error in its place."""
    # The version is fixed here: a newer one that appears meanwhile does not mix in.
    prompt = await run_in_threadpool(prompts.get, ref)
    images = await _read_images(request)
    outcomes = await inference.classify(prompt, images, top_k)
    results = [_result(outcome) for outcome in outcomes]
    return ClassifyAnswer(prompt_id=prompt.id, version=prompt.version, results=results)


async def _read_images(request: Request) -> list[bytes]:
    """The images' bytes; text that is no base64 becomes empty bytes, which no decoder takes."""
    if media_type(request) == "application/json":
        texts = parse(ClassifyImages, await read_json(request)).images
        if len(texts) > MAX_IMAGES:
            raise TooManyFiles(f"at most {MAX_IMAGES} images are allowed")
        return await run_in_threadpool(lambda: [_from_base64(text) for text in texts])
    if media_type(request) != "multipart/form-data":
        raise UnsupportedMedia("send multipart/form-data with `images`, or JSON")
    received = await read_form(request, FormRules("images", io.BytesIO, max_files=MAX_IMAGES))
    return [file.getvalue() for file in received.files]


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _result(outcome: Outcome) -> ClassifyResult:
    if isinstance(outcome, ImageError):
        return ClassifyResult(error=ErrorPublic(code=outcome.code, message=str(outcome)))
    predictions = [PredictionPublic(**vars(prediction)) for prediction in outcome]
    return ClassifyResult(predictions=predictions)
