"""From image bytes to embeddings: a pool of threads decodes, the model thread encodes."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.inference.model_queue import Batch, BatchRules, Entry, ModelQueue
from service.inference.model_thread import MODELS, ModelThread
from sharpzo_core.logging import logged
from sharpzo_engine.errors import BackboneMismatch, EncoderAway, ImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from service.metrics import Metrics
    from sharpzo_core.settings import Settings
    from sharpzo_engine import Encoder

V = TypeVar("V")

Pixels = NDArray[np.float32]  #: [3, H, W]
Embedding = NDArray[np.float32]  #: [E], L2-normalised
Embedded = Embedding | ImageError  #: the error of an image that cannot be decoded

_CPU_BATCH = 16  # larger ones do not fit into its caches
_OTHER_BATCH = 64
_MAX_DECODERS = 8
_PACE_WEIGHT = 0.2  # of the newest batch in the moving average of seconds per image
_MAX_RETRY_SECONDS = 30
LARGE_SHARE = 4  # an image above 1/4 of the allowed pixels counts as large

logger = logging.getLogger(__name__)


class ImageEncoder:
    """Embeds images of all requests in shared batches; owns the decoding and model threads."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._max_pixels = settings.max_image_pixels
        self._large = threading.Lock()
        self._metrics = metrics
        rules = BatchRules(partial(_batch_size, settings), settings.inference_delay_ms / 1e3)
        self._queue: ModelQueue[Encoder, Pixels | None, Embedded] = ModelQueue(
            rules, metrics.count_dropped
        )
        self._models = ModelThread(self._queue, self._encode, MODELS)
        threads = settings.decode_threads or min(_MAX_DECODERS, os.cpu_count() or 1)
        self._decoders = ThreadPoolExecutor(threads, "decode", _compute_on_one_thread)
        self._pace = 0.0  # seconds of the model thread per image, averaged

    @property
    def alive(self) -> bool:
        return self._models.alive

    def submit(self, call: Callable[[], V]) -> Future[V]:
        return self._models.submit(call)

    async def run(self, call: Callable[[], V]) -> V:
        return await self._models.run(call)

    def close(self) -> None:
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._models.close()

    def seconds_for(self, images: int) -> int:
        return max(1, min(_MAX_RETRY_SECONDS, math.ceil(images * self._pace)))

    async def embed(
        self, backbone: Encoder, images: Sequence[bytes], deadline: float | None
    ) -> list[Embedded]:
        """Return each image's embedding, or the error of one that cannot be decoded.

        Images are skipped once `deadline` (by `time.monotonic`) has passed or the caller was
        cancelled.
        """
        loop, request_id = asyncio.get_running_loop(), logged("request_id")
        entries: list[_Entry] = [
            Entry(backbone, None, loop.create_future(), deadline, request_id=request_id)
            for _ in images
        ]
        self._queue.expect(backbone, len(images))
        for entry, image in zip(entries, images, strict=True):
            self._decoders.submit(self._decode, entry, image)
        try:
            return [await entry.future for entry in entries]
        finally:
            for entry in entries:  # some are unfinished if the request ends early
                if not entry.future.cancel() and not entry.future.cancelled():
                    entry.future.exception()  # marks it as seen; the first error was raised

    def _decode(self, entry: _Entry, image: bytes) -> None:
        """Decode one image and queue it; runs on a decoding thread."""
        if reason := entry.drop_reason(time.monotonic()):
            self._queue.cancel_expected(entry.lane)
            self._metrics.count_dropped(reason)
            return
        started = time.perf_counter()
        try:
            entry.item = self._prepare(entry.lane, image)
        except ImageError as error:
            self._queue.cancel_expected(entry.lane)
            _settle([entry], [error])
        except BaseException as error:  # passed on to the waiting request
            self._queue.cancel_expected(entry.lane)
            _settle_error([entry], error)
        else:
            self._metrics.observe_decode(time.perf_counter() - started)
            self._queue.put(entry)

    def _prepare(self, backbone: Encoder, image: bytes) -> Pixels:
        """Decode and preprocess; large images one at a time, to bound memory."""
        from sharpzo_engine.data.images import decode_image

        with ExitStack() as held:

            def admit(pixels: int) -> None:
                if pixels > self._max_pixels // LARGE_SHARE:
                    held.enter_context(self._large)

            return backbone.preprocess(decode_image(image, self._max_pixels, admit))

    def _encode(self, batch: _Batch) -> None:
        from sharpzo_engine.clip.features import encode_batch

        started = time.monotonic()
        pixels = [entry.item for entry in batch.entries if entry.item is not None]
        try:
            embeddings = encode_batch(pixels, batch.lane)
        except (EncoderAway, BackboneMismatch) as error:  # of all images alike
            _settle_error(batch.entries, error)
            return
        except Exception as error:
            asked = sorted({str(entry.request_id) for entry in batch.entries})
            logger.exception(
                "encoding a batch of %d images failed",
                len(pixels),
                extra={"action": "batch_failed", "request_ids": asked},
            )
            self._encode_halves(batch, error)
            return
        seconds = time.monotonic() - started
        self._metrics.observe_batch(seconds, [started - entry.queued_at for entry in batch.entries])
        self._pace += _PACE_WEIGHT * (seconds / len(pixels) - self._pace)
        _settle(batch.entries, list(embeddings))

    def _encode_halves(self, batch: _Batch, error: Exception) -> None:
        """Retry a failed batch in halves: they may fit into memory, and isolate a bad image."""
        middle = len(batch.entries) // 2
        if not middle:
            _settle_error(batch.entries, error)
            return
        for half in (batch.entries[:middle], batch.entries[middle:]):
            self._encode(Batch(batch.lane, half))


if TYPE_CHECKING:
    _Entry = Entry[Encoder, Pixels | None, Embedded]
    _Batch = Batch[Encoder, Pixels | None, Embedded]


def _batch_size(settings: Settings, backbone: Encoder) -> int:
    return settings.inference_batch or (_CPU_BATCH if backbone.on_cpu else _OTHER_BATCH)


def _compute_on_one_thread() -> None:
    """Stop torch from starting further threads for the little work on one image."""
    import torch

    torch.set_num_threads(1)


def _settle(entries: Sequence[_Entry], results: Sequence[Embedded]) -> None:
    """Pass results to the event loop in one wake-up; callable from any thread."""

    def settle() -> None:
        for entry, result in zip(entries, results, strict=True):
            if not entry.future.done():
                entry.future.set_result(result)

    _on_loop(entries, settle)


def _settle_error(entries: Sequence[_Entry], error: BaseException) -> None:
    def settle() -> None:
        for entry in entries:
            if not entry.future.done():
                entry.future.set_exception(error)

    _on_loop(entries, settle)


def _on_loop(entries: Sequence[_Entry], call: Callable[[], object]) -> None:
    with suppress(RuntimeError):  # the loop has ended, and every waiting request with it
        entries[0].future.get_loop().call_soon_threadsafe(call)
