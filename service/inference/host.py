"""The inference host: classifies images without blocking the event loop.

`classify` is the main line: admit, load the prompts, embed each image once per backbone, multiply
with each prompt's matrix.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from PIL import Image
from pydantic import Field, FiniteFloat, TypeAdapter
from pydantic import ValidationError as PydanticError
from starlette.concurrency import run_in_threadpool

from service.errors import Busy, DeadlineExceeded
from service.inference.backbones import Backbones
from service.inference.encoder import ImageEncoder
from service.inference.encoder_host import EncoderHost
from service.inference.prompt_cache import PromptCache, PromptCacheMetrics, PromptKey, ReadyPrompt
from service.inference.prompt_loader import PromptLoader
from service.metrics import prompt_series
from sharpzo_core.errors import CoreError, ValidationFailed
from sharpzo_core.json_safety import unsafe_paths
from sharpzo_core.lineage import claimed_lineage
from sharpzo_core.schemas.prompts import PromptBackbone
from sharpzo_engine.errors import ArtifactError, BackboneError, ImageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from service.inference.encoder import Embedded, Embedding
    from service.metrics import Metrics
    from sharpzo_core.backbones import BackboneSpec
    from sharpzo_core.records.prompts import PromptRecord
    from sharpzo_core.settings import Settings
    from sharpzo_core.storage.artifact_store import ArtifactStore
    from sharpzo_engine import Prediction

INLINE_PRODUCTS = 2_000_000  # multiplications done on the event loop: about a millisecond
CLASSES_AT_ONCE = 128  # class names encoded before image batches get their turn

_DESCRIBED = TypeAdapter(PromptBackbone)
_METRICS: TypeAdapter[dict[str, float | None]] = TypeAdapter(
    dict[Annotated[str, Field(max_length=100)], FiniteFloat | None]
)


@dataclass(frozen=True)
class Question:
    """The options of a classification request."""

    top_k: int = 5
    calibrated: bool = False
    zero_shot: bool = False
    deadline: float | None = None  #: by `time.monotonic`

    @property
    def seconds_left(self) -> float | None:
        return None if self.deadline is None else self.deadline - time.monotonic()


@dataclass(frozen=True)
class Scores:
    """Predictions of one image, best class first; zero-shot ones if requested."""

    tuned: list[Prediction]
    zero_shot: list[Prediction] | None


#: Per image: its scores, or why it could not be decoded.
Outcome = Scores | ImageError


@dataclass(frozen=True)
class ImportedPrompt:
    classes: tuple[str, ...]
    backbone: dict[str, str | None]
    metrics: dict[str, float | None]
    lineage: dict[str, Any]
    sha256: str


class InferenceHost:
    """Loads backbones and prompts at first use, and classifies with them."""

    def __init__(self, settings: Settings, artifacts: ArtifactStore, metrics: Metrics) -> None:
        self._default = settings.backbone(None)
        self._capacity = settings.inference_queue
        self._metrics = metrics
        self._backbones = Backbones(settings)
        self._encoder = ImageEncoder(settings, metrics)
        self.encoders = EncoderHost(settings, self._backbones, self._encoder)
        self._cache = PromptCache(settings.prompt_cache_mb << 20)
        self._prompts = PromptLoader(artifacts, self._backbones, self._encoder, self._cache)
        self._waiting = 0  # images; only changed on the event loop
        self._warm_up: Future[None] | None = None
        metrics.registry.register(PromptCacheMetrics(self._cache, lambda: self._waiting))

    @property
    def loaded(self) -> list[str]:
        return self._backbones.loaded

    def agreement(self, backbone: str) -> float | None:
        """How often its precision gives the label of float32; None if unmeasured."""
        return self._backbones.agreement(backbone)

    @property
    def problem(self) -> str | None:
        """Why nothing can be classified now, or None."""
        if not self._encoder.alive:
            return "its thread has ended"
        if self._warm_up is None:
            return None
        if not self._warm_up.done():
            return "the default backbone is loading"
        fault = self._warm_up.exception()
        if fault is None:
            return None
        return (
            fault.detail if isinstance(fault, CoreError) else "the default backbone does not work"
        )

    def warm_up(self) -> None:
        """Load the default backbone and encode one image with it.

        Importing torch stops every thread of the process for up to two seconds at times, so the
        service is not ready before that is done.
        """
        self._warm_up = self._encoder.submit(self._load_default)

    def close(self) -> None:
        self._encoder.close()

    def forget(self, prompt_id: str) -> None:
        self._cache.discard(prompt_id)

    def used_at(self, prompt: PromptRecord) -> float | None:
        """When the prompt was last used, in seconds since the epoch; None if it is not loaded."""
        return self._cache.used_at(PromptKey.from_record(prompt))

    async def pin(self, prompts: Sequence[PromptRecord]) -> None:
        """Load these prompts and pin exactly them in memory; failures are logged."""
        await self._prompts.pin(prompts)

    async def classify(
        self, prompts: Sequence[PromptRecord], images: Sequence[bytes], question: Question
    ) -> list[list[Outcome] | CoreError]:
        """Classify every image with every prompt; each image is encoded once per backbone.

        Results are in the order of `prompts`. A prompt that cannot be used has its error there
        (BackboneNotServed, NotCalibrated, NoZeroShot, Unavailable), and so has an image that
        cannot be decoded.

        Raises:
            Busy: too many images are waiting.
            DeadlineExceeded: `question.deadline` has passed.
        """
        if self._waiting + len(images) > self._capacity:
            self._metrics.count_refused(len(images))
            raise Busy(self._encoder.seconds_for(self._waiting))
        self._waiting += len(images)
        started = time.perf_counter()
        try:
            async with asyncio.timeout(question.seconds_left) as limit:
                return await self._classify(prompts, images, question)
        except TimeoutError:
            if limit.expired():
                raise DeadlineExceeded from None
            raise
        finally:
            self._waiting -= len(images)
            self._metrics.observe_inference(time.perf_counter() - started)

    async def inspect(self, data: bytes) -> ImportedPrompt:
        """Read an untrusted artifact.

        Raises:
            ArtifactError: it is damaged or not an artifact.
        """
        return await run_in_threadpool(_inspect, data)

    async def check_offered(self, spec: BackboneSpec) -> None:
        """Check a requested backbone that the operator did not list by name.

        Raises:
            ValidationFailed: open_clip has no such weights.
        """
        await self._encoder.run(partial(_check_known, spec))

    def _load_default(self) -> None:
        backbone = self._backbones.load(self._default)
        image = Image.new("RGB", (backbone.image_size, backbone.image_size))
        backbone.encode_images(backbone.preprocess(image)[None])

    async def _classify(
        self, prompts: Sequence[PromptRecord], images: Sequence[bytes], question: Question
    ) -> list[list[Outcome] | CoreError]:
        usable = [await self._usable(prompt, question) for prompt in prompts]
        backbones = dict.fromkeys(p.backbone for p in usable if isinstance(p, ReadyPrompt))
        embedded = {
            backbone: await self._encoder.embed(backbone, images, question.deadline)
            for backbone in backbones
        }
        return [
            await self._score(prompt, embedded[prompt.backbone], question)
            if isinstance(prompt, ReadyPrompt)
            else prompt
            for prompt in usable
        ]

    async def _usable(self, prompt: PromptRecord, question: Question) -> ReadyPrompt | CoreError:
        """The loaded prompt, or why it cannot be used."""
        try:
            ready = await self._prompts.ready(prompt)
            ready.temperature(question.calibrated)
            if question.zero_shot and not ready.has_zero_shot:
                await self._add_zero_shot(ready)
        except CoreError as error:
            return error
        return ready

    async def _add_zero_shot(self, ready: ReadyPrompt) -> None:
        """Encode the zero-shot prompt, a few classes at a time so that other work gets its turn.

        Raises:
            NoZeroShot: it cannot be encoded.
        """
        parts = []
        for start in range(0, len(ready.class_names), CLASSES_AT_ONCE):
            encode = partial(ready.encode_zero_shot, start, start + CLASSES_AT_ONCE)
            parts.append(await self._encoder.run(encode))
            if ready.has_zero_shot:  # another request was faster
                return
        ready.set_zero_shot(np.concatenate(parts))

    async def _score(
        self, ready: ReadyPrompt, embedded: Sequence[Embedded], question: Question
    ) -> list[Outcome]:
        """Score the decoded images, with errors of the others in their places."""
        good = [item for item in embedded if not isinstance(item, ImageError)]
        series = prompt_series(ready.tenant, ready.label)
        self._metrics.count_images(series, len(good), len(embedded) - len(good))
        work = partial(_scores, ready, good, question)
        small = len(good) * ready.tuned.weights.size <= INLINE_PRODUCTS
        scored = iter(work() if small else await run_in_threadpool(work))
        return [item if isinstance(item, ImageError) else next(scored) for item in embedded]


def _scores(
    ready: ReadyPrompt, embeddings: Sequence[Embedding], question: Question
) -> list[Scores]:
    """Score embeddings [E] with the prompt and, if requested, with the zero-shot prompt."""
    from sharpzo_engine.prompts.classifier import top_predictions

    if not embeddings:
        return []
    rows = np.stack(embeddings)
    tuned = ready.tuned.probabilities(rows, ready.temperature(question.calibrated))
    best = partial(top_predictions, class_names=ready.class_names, top_k=question.top_k)
    if not question.zero_shot:
        return [Scores(best(row), None) for row in tuned]
    plain = ready.zero_shot.probabilities(rows)
    return [Scores(best(row), best(other)) for row, other in zip(tuned, plain, strict=True)]


def _inspect(data: bytes) -> ImportedPrompt:
    from sharpzo_engine import TunedPrompt

    prompt = TunedPrompt.load(data)
    try:
        described = _DESCRIBED.validate_python(prompt.metadata["backbone"])
        metrics = _METRICS.validate_python(prompt.metadata.get("metrics", {}))
    except PydanticError:
        raise ArtifactError("not a usable prompt file: fields have the wrong type") from None
    shown = [list(prompt.class_names), described.model_dump(), metrics]
    if unsafe_paths(shown):
        raise ArtifactError("not a usable prompt file: a name contains control characters")
    return ImportedPrompt(
        classes=prompt.class_names,
        backbone=described.model_dump(),
        metrics=metrics,
        lineage=claimed_lineage(prompt.metadata),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _check_known(spec: BackboneSpec) -> None:
    from sharpzo_engine.clip.torch.backbone import check_weights

    try:
        check_weights(spec.model.replace("/", "-"), spec.pretrained)
    except BackboneError as error:
        raise ValidationFailed([("/backbone", "open_clip has no such model and tag")]) from error
