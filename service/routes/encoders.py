"""The encoders themselves, for programs that tune or classify elsewhere: `sharpzo-encoder/1`."""

from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response
from numpy.typing import NDArray
from pydantic import Field

from service.auth.authorization import Needs
from service.deps import ServicesDep
from service.deps import reject_repeated_parameters as no_repeats
from service.http.tensors import read_tensors, tensors
from service.inference.encoder_host import LIMITS, check_contexts, identity
from service.route_docs import body, form, problems
from service.routes.classify import (
    MAX_CLASSIFY_BYTES,
    ClassifyImages,
    read_images,
    while_connected,
)
from service.routing import MAX_JSON_BYTES, StrictRoute, media_type, parse, read_json
from sharpzo_core.errors import UnsupportedMedia, ValidationFailed
from sharpzo_core.records.keys import Scope
from sharpzo_core.schemas.base import Label, RequestModel, SafeText
from sharpzo_engine.clip.level import Level
from sharpzo_engine.clip.remote.wire import IDENTITY_HEADER, MEDIA_TYPE, Description, pad
from sharpzo_engine.errors import TextError

MAX_TENSOR_BYTES = 64 << 20
MAX_TEXT = 4000  # characters; a tokenizer takes time for each

_BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
_TENSORS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "`embeddings` as safetensors",
        "content": {MEDIA_TYPE: {"schema": _BINARY}},
        "headers": {IDENTITY_HEADER: {"schema": {"type": "string"}}},
    }
}

router = APIRouter(
    prefix="/v1/encoders/{backbone}",
    tags=["encoders"],
    route_class=StrictRoute,
    max_body_size=MAX_JSON_BYTES,
    dependencies=[Needs(Scope.ENCODE), Depends(no_repeats)],
    responses=problems(404, 409, 422, 429, 500, 503),
)

Texts = Annotated[
    list[Annotated[SafeText, Field(min_length=1, max_length=MAX_TEXT)]],
    Field(min_length=1, max_length=LIMITS.texts),
]
Dtype = Annotated[Literal["float32", "float16"], Query(description="Type of the answer's numbers.")]


class TextsAsked(RequestModel):
    """Whole texts to embed."""

    texts: Texts


class WordsAsked(RequestModel):
    """The words of a prompt: "{context} {class}."."""

    context: Annotated[SafeText, Field(min_length=1, max_length=MAX_TEXT)]
    classes: Annotated[list[Label], Field(min_length=1, max_length=LIMITS.texts)]


@router.get("")
async def describe(backbone: str, services: ServicesDep) -> Description:
    """Describe an encoder: all that a client needs to prepare its inputs and check its answers."""
    return await services.inference.encoders.describe(backbone)


@router.post(
    "/images",
    response_class=Response,
    max_body_size=MAX_CLASSIFY_BYTES,
    responses=problems(400, 408, 413, 415) | _TENSORS,
    openapi_extra=body(
        multipart=form("images", many=True), json=ClassifyImages.model_json_schema()
    ),
)
async def embed_images(
    backbone: str, request: Request, services: ServicesDep, dtype: Dtype = "float32"
) -> Response:
    """Embed image files: [images, E]. They share the batches of classification."""
    host = services.inference.encoders
    encoder = await host.get(backbone)
    images = await read_images(request)
    pointers = [f"/images/{index}" for index in range(len(images))]
    found = await while_connected(request, host.embed(encoder, images, pointers))
    return _answer(found, dtype, identity(encoder))


@router.post("/texts", response_class=Response, responses=problems(400, 408, 413, 415) | _TENSORS)
async def embed_texts(
    backbone: str, asked: TextsAsked, services: ServicesDep, dtype: Dtype = "float32"
) -> Response:
    """Embed whole texts: [texts, E]."""
    host = services.inference.encoders
    encoder = await host.get(backbone, Level.TEXTS)
    try:
        found, _ = await host.embed_texts(encoder, asked.texts)
    except TextError as error:
        raise ValidationFailed([(f"/texts/{error.index}", str(error))]) from error
    return _answer(found, dtype, identity(encoder))


@router.post(
    "/contexts",
    response_class=Response,
    max_body_size=MAX_TENSOR_BYTES,
    responses=problems(400, 408, 413, 415) | _TENSORS,
    openapi_extra=body(json=WordsAsked.model_json_schema(), tensors=_BINARY),
)
async def encode_contexts(
    backbone: str, request: Request, services: ServicesDep, dtype: Dtype = "float32"
) -> Response:
    """Encode context vectors into class embeddings: [points, classes, E].

    A safetensors body has `contexts` [points, tokens, W] in float32 or float16, and `classes`
    [classes, ids] in int32: the tokens of each class name, the full stop and the end of the text,
    padded with -1. A JSON body with the words of a prompt is answered with these: `context`
    [tokens, W] of the words, `classes`, and `context_ids` and `start`, the ids of the first tokens.
    """
    host = services.inference.encoders
    encoder = await host.get_with_tokens(backbone)
    kind = media_type(request)
    if kind == "application/json":
        asked = parse(WordsAsked, await read_json(request, MAX_JSON_BYTES))
        tokens, vectors = await host.tokenize(encoder, asked.context, asked.classes)
        words = {
            "start": np.array([tokens.sos], np.int32),
            "context_ids": np.array(tokens.context, np.int32),
            "context": vectors,
            "classes": pad(tokens.suffixes),
        }
        return tensors(words, {IDENTITY_HEADER: identity(encoder)})
    if kind != MEDIA_TYPE:
        raise UnsupportedMedia(f"send {MEDIA_TYPE}, or JSON with the words of a prompt")
    received = await read_tensors(request, partial(check_contexts, encoder))
    contexts = received["contexts"].astype(np.float32, copy=False)
    work = host.encode_contexts(encoder, contexts, received["classes"])
    return _answer(await while_connected(request, work), dtype, identity(encoder))


def _answer(embeddings: NDArray[np.float32], dtype: str, whose: str) -> Response:
    return tensors({"embeddings": embeddings.astype(dtype, copy=False)}, {IDENTITY_HEADER: whose})
