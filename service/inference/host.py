"""The inference host: images in, predictions out, the event loop never blocked.

Decoding runs in a small pool, every model on one thread. `classify` is a straight line of awaits;
batching across requests belongs between preparing images and encoding them.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, FiniteFloat, TypeAdapter
from pydantic import ValidationError as PydanticError
from starlette.concurrency import run_in_threadpool

from service.errors import BackboneConflict, Busy, Unavailable
from service.inference.backbones import Backbones
from service.inference.cache import PromptCache, PromptKey
from service.inference.threads import ModelThread
from sharpzo_core.errors import NotFound, ValidationFailed
from sharpzo_core.lineage import claimed_lineage
from sharpzo_core.prompts import prompt_key
from sharpzo_core.schemas import PromptBackbone, is_safe_text
from sharpzo_engine.errors import ArtifactError, BackboneError, BackboneMismatch, ImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from service.metrics import Metrics
    from sharpzo_core.artifact_store import ArtifactStore
    from sharpzo_core.backbones import BackboneSpec
    from sharpzo_core.prompts import PromptRecord
    from sharpzo_core.settings import Settings
    from sharpzo_engine import Backbone, Prediction, PromptClassifier

MAX_WAITING_IMAGES = 512  # admitted and not yet answered; beyond this requests are refused
CACHED_PROMPTS = 256
ENCODE_CHUNK = 32  # images in one pass through the encoder
_DECODERS = min(4, os.cpu_count() or 1)

_DESCRIBED = TypeAdapter(PromptBackbone)
_METRICS: TypeAdapter[dict[str, float | None]] = TypeAdapter(
    dict[Annotated[str, Field(max_length=100)], FiniteFloat | None]
)


#: Per image: its best classes, or why it could not be classified.
Outcome = list["Prediction"] | ImageError


@dataclass(frozen=True)
class ImportedPrompt:
    """What an artifact says about itself."""

    classes: tuple[str, ...]
    backbone: dict[str, str | None]
    metrics: dict[str, float | None]
    lineage: dict[str, Any]
    sha256: str


@dataclass(frozen=True)
class _Ready:
    """A prompt with the backbone it needs."""

    backbone: Backbone
    classifier: PromptClassifier


class InferenceHost:
    """Loads backbones and prompts when they are first asked for, and classifies with them."""

    def __init__(self, settings: Settings, artifacts: ArtifactStore, metrics: Metrics) -> None:
        self._max_pixels = settings.max_image_pixels
        self._default = settings.backbone(None)
        self._artifacts = artifacts
        self._metrics = metrics
        self._backbones = Backbones(settings)
        self._prompts: PromptCache[_Ready] = PromptCache(CACHED_PROMPTS)
        self._models = ModelThread()
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")
        self._waiting = 0  # images; touched on the event loop only
        self._warm_up: Future[Backbone] | None = None

    @property
    def alive(self) -> bool:
        """Whether the model thread answers calls."""
        return self._models.alive

    @property
    def loaded(self) -> list[str]:
        """Names of the backbones in memory."""
        return self._backbones.loaded

    @property
    def warming_up(self) -> bool:
        """Whether the libraries and the default backbone are still being loaded."""
        return self._warm_up is not None and not self._warm_up.done()

    def warm_up(self) -> None:
        """Load the default backbone before anybody waits for it.

        Importing torch stops every thread of the process now and then, for up to a second or two;
        so the service is not ready before that is done.
        """
        self._warm_up = self._models.submit(lambda: self._backbones.load(self._default))

    def close(self) -> None:
        """Stop both kinds of threads."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._models.close()

    def forget(self, prompt_id: str) -> None:
        """Drop a deleted prompt from the cache."""
        self._prompts.discard(prompt_id)

    async def classify(
        self, prompt: PromptRecord, images: Sequence[bytes], top_k: int
    ) -> list[Outcome]:
        """Classify images with one prompt; an image that cannot be decoded has its own error.

        Raises:
            Busy: too many images are waiting.
            BackboneConflict: the prompt's backbone is not served here.
            Unavailable: its file is damaged or missing, or its backbone cannot be loaded.
        """
        if self._waiting + len(images) > MAX_WAITING_IMAGES:
            raise Busy
        self._waiting += len(images)
        try:
            ready = await self._ready(prompt)
            prepared = await self._prepare_all(ready.backbone, images)
            return await self._models.run(partial(self._score, ready, prepared, top_k))
        finally:
            self._waiting -= len(images)

    async def inspect(self, data: bytes) -> ImportedPrompt:
        """Read an artifact that somebody brings.

        Raises:
            ArtifactError: it is damaged or no artifact.
        """
        return await self._models.run(partial(_inspect, data))

    async def check_offered(self, spec: BackboneSpec) -> None:
        """Check a backbone that a request names and the operator did not list by name.

        Raises:
            ValidationFailed: open_clip has no such weights.
        """
        await self._models.run(partial(_check_known, spec))

    async def _ready(self, prompt: PromptRecord) -> _Ready:
        key = PromptKey(prompt.id, prompt.sha256, prompt.backbone.get("fingerprint"))
        ready = self._prompts.get(key)
        if ready is None:
            data = await run_in_threadpool(self._fetch, prompt)
            ready = await self._models.run(partial(self._load, prompt, data))
            self._prompts.put(key, ready)
        return ready

    def _fetch(self, prompt: PromptRecord) -> bytes:
        """The prompt's file, checked against the hash it was published with."""
        try:
            data = self._artifacts.get_bytes(prompt_key(prompt.id))
        except NotFound:
            raise _corrupt(prompt, "is missing") from None
        if hashlib.sha256(data).hexdigest() != prompt.sha256:
            raise _corrupt(prompt, "is damaged")
        return data

    def _load(self, prompt: PromptRecord, data: bytes) -> _Ready:
        from sharpzo_engine import PromptClassifier, TunedPrompt

        backbone = self._backbones.for_prompt(prompt.backbone)
        try:
            tuned = TunedPrompt.load(data)
            if tuned.weights.shape[1] != backbone.embed_dim:
                raise _corrupt(prompt, "does not fit its backbone")
            return _Ready(backbone, PromptClassifier(tuned, backbone))
        except BackboneMismatch as error:
            raise BackboneConflict(str(error)) from error
        except ArtifactError as error:
            raise _corrupt(prompt, "is damaged") from error

    async def _prepare_all(
        self, backbone: Backbone, images: Sequence[bytes]
    ) -> list[Tensor | ImageError]:
        loop = asyncio.get_running_loop()
        prepare: Callable[[bytes], Tensor | ImageError] = partial(
            _prepare, backbone, self._max_pixels
        )
        return await asyncio.gather(
            *(loop.run_in_executor(self._decoders, prepare, image) for image in images)
        )

    def _score(
        self, ready: _Ready, prepared: Sequence[Tensor | ImageError], top_k: int
    ) -> list[Outcome]:
        """Encode what could be decoded, and put the errors back in their places."""
        tensors = [item for item in prepared if not isinstance(item, ImageError)]
        scored = iter(self._predict(ready, tensors, top_k))
        outcomes = [item if isinstance(item, ImageError) else next(scored) for item in prepared]
        self._metrics.count_images(len(tensors), len(prepared) - len(tensors))
        return outcomes

    def _predict(self, ready: _Ready, tensors: list[Tensor], top_k: int) -> list[list[Prediction]]:
        import torch

        from sharpzo_engine.classifier import top_predictions

        predictions: list[list[Prediction]] = []
        for start in range(0, len(tensors), ENCODE_CHUNK):
            batch = torch.stack(tensors[start : start + ENCODE_CHUNK])
            started = time.perf_counter()
            embeddings = ready.backbone.encode_images(batch).cpu().numpy()
            self._metrics.observe_encode(time.perf_counter() - started)
            rows = ready.classifier.probabilities(embeddings)
            names = ready.classifier.prompt.class_names
            predictions += [top_predictions(row, names, top_k) for row in rows]
        return predictions


def _prepare(backbone: Backbone, max_pixels: int, data: bytes) -> Tensor | ImageError:
    from sharpzo_engine.images import decode_image

    try:
        return backbone.preprocess(decode_image(data, max_pixels))
    except ImageError as error:
        return error


def _inspect(data: bytes) -> ImportedPrompt:
    from sharpzo_engine import TunedPrompt

    prompt = TunedPrompt.load(data)
    try:
        described = _DESCRIBED.validate_python(prompt.metadata["backbone"])
        metrics = _METRICS.validate_python(prompt.metadata.get("metrics", {}))
    except PydanticError:
        raise ArtifactError("not a usable prompt file: fields are of the wrong kind") from None
    if not all(is_safe_text(name) for name in prompt.class_names):
        raise ArtifactError("not a usable prompt file: a class name holds control characters")
    return ImportedPrompt(
        classes=prompt.class_names,
        backbone=described.model_dump(),
        metrics=metrics,
        lineage=claimed_lineage(prompt.metadata),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _check_known(spec: BackboneSpec) -> None:
    from sharpzo_engine.backbone import check_weights

    try:
        check_weights(spec.model.replace("/", "-"), spec.pretrained)
    except BackboneError as error:
        raise ValidationFailed([("/backbone", "open_clip has no such model and tag")]) from error


def _corrupt(prompt: PromptRecord, what: str) -> Unavailable:
    detail = f"the artifact of {prompt.name}:{prompt.version} ({prompt.id}) {what}"
    return Unavailable("artifact_corrupt", detail)
