"""Embeddings in OpenAI's form, for programs that know only that."""

import base64
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from fastapi import APIRouter, Depends, Request
from numpy.typing import NDArray
from pydantic import Field

from service.auth.authorization import Needs
from service.deps import ServicesDep
from service.deps import reject_repeated_parameters as no_repeats
from service.inference.encoder_host import LIMITS, EncoderHost
from service.route_docs import body, problems
from service.routes.classify import MAX_CLASSIFY_BYTES, decode_base64
from service.routing import StrictRoute, parse, read_json
from sharpzo_core.errors import ValidationFailed
from sharpzo_core.records.keys import Scope
from sharpzo_core.schemas.base import PublicModel, RequestModel
from sharpzo_engine.clip.level import Level
from sharpzo_engine.errors import TextError

if TYPE_CHECKING:
    from sharpzo_engine import Encoder  # brings torch

router = APIRouter(
    prefix="/v1",
    tags=["encoders"],
    route_class=StrictRoute,
    dependencies=[Needs(Scope.ENCODE), Depends(no_repeats)],
    responses=problems(400, 404, 408, 409, 413, 415, 422, 429, 500, 503),
)

_DATA = "data:image/"
_BASE64 = ";base64,"

Input = Annotated[str, Field(min_length=1)]
Inputs = Annotated[list[Input], Field(min_length=1, max_length=LIMITS.images)]


class EmbeddingsAsked(RequestModel):
    """Texts, and images as data URIs such as `data:image/png;base64,...`."""

    input: Input | Inputs
    model: Annotated[str, Field(min_length=1, max_length=200)]
    """one of `GET /v1/backbones`"""
    encoding_format: Literal["float", "base64"] = "float"
    """`base64`: float32, little-endian"""
    user: Annotated[str, Field(max_length=512)] | None = None
    """ignored"""

    @property
    def inputs(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class Embedding(PublicModel):
    """One embedding, of length 1."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Tokens(PublicModel):
    """Tokens of all texts; 0 where the model's own server counts them."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(PublicModel):
    """Embeddings in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Tokens


@router.post(
    "/embeddings",
    response_model=Embeddings,
    max_body_size=MAX_CLASSIFY_BYTES,
    openapi_extra=body(json=EmbeddingsAsked.model_json_schema()),
)
async def embed(request: Request, services: ServicesDep) -> Embeddings:
    """Embed texts and images with a backbone: OpenAI's `POST /v1/embeddings`."""
    asked = parse(EmbeddingsAsked, await read_json(request, MAX_CLASSIFY_BYTES))
    inputs, host = asked.inputs, services.inference.encoders
    images = [index for index, text in enumerate(inputs) if text.startswith(_DATA)]
    texts = [index for index, text in enumerate(inputs) if not text.startswith(_DATA)]
    encoder = await host.get(asked.model, Level.TEXTS if texts else Level.IMAGES)
    found = np.empty((len(inputs), encoder.embed_dim), np.float32)
    tokens = 0
    if images:
        files = await _decode([inputs[index] for index in images], images)
        pointers = [f"/input/{index}" for index in images]
        found[images] = await host.embed(encoder, files, pointers)
    if texts:
        found[texts], tokens = await _embed_texts(host, encoder, [inputs[i] for i in texts], texts)
    return Embeddings(
        data=[
            Embedding(index=index, embedding=_public(row, asked.encoding_format))
            for index, row in enumerate(found)
        ],
        model=asked.model,
        usage=Tokens(prompt_tokens=tokens, total_tokens=tokens),
    )


async def _embed_texts(
    host: EncoderHost, encoder: "Encoder", texts: list[str], places: list[int]
) -> tuple[NDArray[np.float32], int]:
    try:
        return await host.embed_texts(encoder, texts)
    except TextError as error:
        raise ValidationFailed([(f"/input/{places[error.index]}", str(error))]) from error


async def _decode(uris: list[str], places: list[int]) -> list[bytes]:
    """The image files in data URIs.

    Raises:
        ValidationFailed: one is not in base64; names it by its place in the input.
    """
    files = await decode_base64([uri.partition(_BASE64)[2] for uri in uris])
    faults = [
        (f"/input/{place}", "is not data:image/...;base64,...")
        for place, file in zip(places, files, strict=True)
        if not file
    ]
    if faults:
        raise ValidationFailed(faults)
    return files


def _public(row: NDArray[np.float32], form: str) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(row.astype("<f4").tobytes()).decode()
    return [float(number) for number in row]
