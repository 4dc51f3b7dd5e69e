"""Classification with tuned prompts: one, or several on the same images."""

import asyncio
import base64
import binascii
import io
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from service.auth.authorization import Needs, authorize
from service.deps import ServicesDep, tenant_services
from service.deps import reject_repeated_parameters as no_repeats
from service.errors import TooManyFiles
from service.http.multipart import FormRules, read_form
from service.inference.host import Outcome, Question
from service.route_docs import body, form, problems
from service.routing import MAX_JSON_BYTES, StrictRoute, media_type, parse, read_json
from sharpzo_core.errors import CoreError, UnsupportedMedia, ValidationFailed
from sharpzo_core.records.keys import Scope
from sharpzo_core.records.prompts import PromptRecord
from sharpzo_core.schemas.base import ErrorPublic, SafeText
from sharpzo_core.schemas.classification import (
    MAX_TOP_K,
    ClassifyAnswer,
    ClassifyAnswers,
    ClassifyResult,
    PredictionPublic,
    PromptAnswer,
)
from sharpzo_engine.errors import ImageError

if TYPE_CHECKING:
    from sharpzo_engine import Prediction  # brings torch

TOP_K = 5  # classes per image, by default
MAX_IMAGES = 64  # in one request
MAX_CLASSIFY_BYTES = 64 << 20
MAX_PROMPTS = 32
MAX_REF = 200  # characters
MAX_TIMEOUT_MS = 600_000
MAX_PREDICTIONS = 200_000  # in one response
INLINE_PREDICTIONS = 1000  # written on the event loop: some milliseconds

T = TypeVar("T")

_ONE = "[A-Za-z0-9@:._-]+"
_PROMPT_LIST: dict[str, Any] = {
    "type": "string",
    "pattern": f"^{_ONE}(,{_ONE}){{0,{MAX_PROMPTS - 1}}}$",
    "required": True,
}
_BASE64 = {"contentEncoding": "base64", "pattern": "^[A-Za-z0-9+/]*={0,2}$"}


class _DirectRoute(StrictRoute):
    """Skips the framework's parsing where a request gives no options: it costs 0.4 ms."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        parse_and_call = super().get_route_handler()

        async def handle(request: Request) -> Response:
            if request.scope["query_string"] or "x-timeout-ms" in request.headers:
                return await parse_and_call(request)
            await authorize(request)
            services = await tenant_services(request)
            question = Question(top_k=TOP_K)
            answer: Response = await self.endpoint(
                **request.path_params, request=request, services=services, question=question
            )
            return answer

        return handle


router = APIRouter(
    prefix="/v1",
    tags=["classification"],
    route_class=_DirectRoute,
    max_body_size=MAX_JSON_BYTES,
    dependencies=[Needs(Scope.INFER), Depends(no_repeats)],
    responses=problems(422, 429, 500, 503, 504),
)


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


def _few(images: object) -> object:
    # Counted before each one is validated.
    if isinstance(images, list) and len(images) > MAX_IMAGES:
        raise TooManyFiles(f"at most {MAX_IMAGES} images are allowed (send several requests)")
    return images


Images = Annotated[
    list[Annotated[str, Field(json_schema_extra=_BASE64)]],
    Field(min_length=1, description="Images, base64-encoded."),
    BeforeValidator(_few),
]
Ref = Annotated[SafeText, Field(min_length=1, max_length=MAX_REF)]
Refs = Annotated[list[Ref], Field(min_length=1, max_length=MAX_PROMPTS)]


class ClassifyImages(_Strict):
    """Images to classify."""

    images: Images


class ClassifyWithPrompts(_Strict):
    """Images to classify, each with every one of the prompts."""

    prompts: Refs
    images: Images


class _PromptRefs(_Strict):
    prompts: Refs


async def _question(
    top_k: Annotated[
        int, Query(ge=1, le=MAX_TOP_K, description="Number of classes to return per image.")
    ] = TOP_K,
    calibrated: Annotated[
        bool, Query(description="Divide the logits by the temperature fitted on validation images.")
    ] = False,
    zero_shot: Annotated[bool, Query(description="Also return zero-shot predictions.")] = False,
    x_timeout_ms: Annotated[
        Annotated[float, Field(gt=0, le=MAX_TIMEOUT_MS)] | SkipJsonSchema[None],
        Header(description="Milliseconds after which the request fails with 504."),
    ] = None,
) -> Question:
    deadline = None if x_timeout_ms is None else time.monotonic() + x_timeout_ms / 1000
    return Question(top_k, calibrated, zero_shot, deadline)


QuestionDep = Annotated[Question, Depends(_question)]


@router.post(
    "/prompts/{ref}/classify",
    response_model=ClassifyAnswer,
    max_body_size=MAX_CLASSIFY_BYTES,
    responses=problems(400, 404, 408, 409, 413, 415),
    openapi_extra=body(
        multipart=form("images", many=True), json=ClassifyImages.model_json_schema()
    ),
)
async def classify(
    ref: str,
    request: Request,
    services: ServicesDep,
    question: QuestionDep,
) -> Response:
    """Classify images. An image that cannot be read gets an error in place of predictions."""
    # The version is resolved once: one published meanwhile does not mix in.
    prompt = await services.find_prompt(ref)
    images = await read_images(request)
    size = _count([prompt], images, question)
    classifying = services.inference.classify([prompt], images, question)
    (outcomes,) = await while_connected(request, classifying)
    if isinstance(outcomes, CoreError):
        raise outcomes

    def answer() -> ClassifyAnswer:
        return ClassifyAnswer(
            prompt_id=prompt.id,
            name=prompt.name,
            version=prompt.version,
            results=[_result(outcome) for outcome in outcomes],
        )

    return await _write(answer, size)


@router.post(
    "/classify",
    response_model=ClassifyAnswers,
    max_body_size=MAX_CLASSIFY_BYTES,
    responses=problems(400, 408, 413, 415),
    openapi_extra=body(
        multipart=form("images", many=True, prompts=_PROMPT_LIST),
        json=ClassifyWithPrompts.model_json_schema(),
    ),
)
async def classify_with_prompts(
    request: Request, services: ServicesDep, question: QuestionDep
) -> Response:
    """Classify images with several prompts; every image is encoded once.

    `prompts` is a list in JSON and comma-separated in a form. A prompt that cannot be used gets an
    error in place of results.
    """
    refs, images = await _read_prompts_and_images(request)
    found = await services.find_prompts(refs)
    size = _count((p for p in found if isinstance(p, PromptRecord)), images, question)
    usable = list({p.id: p for p in found if isinstance(p, PromptRecord)}.values())
    classifying = services.inference.classify(usable, images, question)
    classified = await while_connected(request, classifying)
    outcomes = {prompt.id: outcome for prompt, outcome in zip(usable, classified, strict=True)}

    def answers() -> ClassifyAnswers:
        return ClassifyAnswers(
            answers=[
                _answer(ref, prompt, outcomes[prompt.id])
                if isinstance(prompt, PromptRecord)
                else PromptAnswer(ref=ref, error=_error(prompt))
                for ref, prompt in zip(refs, found, strict=True)
            ]
        )

    return await _write(answers, size)


def _count(prompts: Iterable[PromptRecord], images: Sequence[bytes], question: Question) -> int:
    """How many predictions are requested.

    Raises:
        ValidationFailed: they are more than one response may hold.
    """
    classes = sum(min(question.top_k, len(prompt.classes)) for prompt in prompts)
    size = classes * len(images) * (2 if question.zero_shot else 1)
    if size > MAX_PREDICTIONS:
        fault = f"exceeds {MAX_PREDICTIONS} predictions in total (lower it or send fewer images)"
        raise ValidationFailed([("/top_k", fault)])
    return size


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, or cancel it when the client disconnects.

    Raises:
        ClientDisconnect: the client did.
    """
    working = asyncio.current_task()
    assert working is not None  # noqa: S101 - coroutines run in tasks
    gone = False

    async def watch() -> None:
        nonlocal gone
        await _disconnected(request)
        gone = working.cancel()

    watching = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if gone and not working.uncancel():  # nobody else has cancelled it
            raise ClientDisconnect from None
        raise
    finally:
        watching.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def read_images(request: Request) -> list[bytes]:
    if media_type(request) == "application/json":
        return await decode_base64(parse(ClassifyImages, await read_json(request)).images)
    _require_form(request)
    received = await read_form(request, FormRules("images", io.BytesIO, max_files=MAX_IMAGES))
    return [file.getvalue() for file in received.files]


async def _read_prompts_and_images(request: Request) -> tuple[list[str], list[bytes]]:
    if media_type(request) == "application/json":
        asked = parse(ClassifyWithPrompts, await read_json(request))
        return asked.prompts, await decode_base64(asked.images)
    _require_form(request)
    rules = FormRules(
        "images",
        io.BytesIO,
        max_files=MAX_IMAGES,
        text_fields={"prompts": MAX_PROMPTS * (MAX_REF + 1)},
    )
    received = await read_form(request, rules)
    texts = received.fields.get("prompts", "").split(",")
    refs = [text.strip() for text in texts if text.strip()]
    images = [file.getvalue() for file in received.files]
    return parse(_PromptRefs, {"prompts": refs}).prompts, images


def _require_form(request: Request) -> None:
    if media_type(request) != "multipart/form-data":
        raise UnsupportedMedia("send multipart/form-data with `images`, or JSON")


async def decode_base64(texts: list[str]) -> list[bytes]:
    """The images' bytes; text that is not base64 becomes empty bytes, which no decoder accepts."""
    return await run_in_threadpool(lambda: [_from_base64(text) for text in texts])


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _answer(ref: str, prompt: PromptRecord, outcomes: list[Outcome] | CoreError) -> PromptAnswer:
    answer = PromptAnswer(ref=ref, prompt_id=prompt.id, name=prompt.name, version=prompt.version)
    if isinstance(outcomes, CoreError):
        return answer.model_copy(update={"error": _error(outcomes)})
    return answer.model_copy(update={"results": [_result(outcome) for outcome in outcomes]})


def _result(outcome: Outcome) -> ClassifyResult:
    if isinstance(outcome, ImageError):
        return ClassifyResult(error=ErrorPublic(code=outcome.code, message=str(outcome)))
    return ClassifyResult(
        predictions=_public(outcome.tuned),
        zero_shot=None if outcome.zero_shot is None else _public(outcome.zero_shot),
    )


def _public(predictions: "Sequence[Prediction]") -> list[PredictionPublic]:
    return [PredictionPublic(**vars(prediction)) for prediction in predictions]


def _error(error: CoreError) -> ErrorPublic:
    return ErrorPublic(code=error.code, message=error.detail)


async def _write(answer: Callable[[], BaseModel], size: int) -> Response:
    """Serialise to JSON; a large answer in another thread, to keep the event loop free."""

    def write() -> Response:
        text = answer().model_dump_json(exclude_none=True)
        return Response(text, media_type="application/json")

    return write() if size <= INLINE_PREDICTIONS else await run_in_threadpool(write)
