"""Loads prompts into memory at first use, once for all concurrent requests."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool

from service.artifacts import corrupt, fetch_artifact
from service.inference.prompt_cache import PromptCache, PromptKey, ReadyPrompt
from sharpzo_core.errors import BackboneNotServed, CoreError
from sharpzo_engine.errors import ArtifactError, BackboneMismatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.inference.backbones import Backbones
    from service.inference.encoder import ImageEncoder
    from sharpzo_core.records.prompts import PromptRecord
    from sharpzo_core.storage.artifact_store import ArtifactStore
    from sharpzo_engine import Encoder

logger = logging.getLogger(__name__)


class PromptLoader:
    """Provides loaded prompts; used on the event loop."""

    def __init__(
        self,
        artifacts: ArtifactStore,
        backbones: Backbones,
        encoder: ImageEncoder,
        cache: PromptCache,
    ) -> None:
        self._artifacts = artifacts
        self._backbones = backbones
        self._encoder = encoder
        self._cache = cache
        self._loading: dict[PromptKey, asyncio.Task[ReadyPrompt]] = {}

    async def ready(self, prompt: PromptRecord) -> ReadyPrompt:
        """Get the prompt from memory or from its file.

        Raises:
            BackboneNotServed: its backbone is not served here.
            Unavailable: its file is damaged or missing, or its backbone cannot be loaded.
        """
        key = PromptKey.from_record(prompt)
        ready = self._cache.get(key)
        if ready is not None:
            return ready
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = asyncio.create_task(self._load(key, prompt))
            task.add_done_callback(partial(self._loaded, key))
        return await asyncio.shield(task)

    async def pin(self, prompts: Sequence[PromptRecord]) -> None:
        """Load these prompts and pin exactly them in memory; failures are logged."""
        self._cache.pin(frozenset(prompt.id for prompt in prompts))
        for prompt in prompts:
            if self._cache.used_at(PromptKey.from_record(prompt)) is not None:
                continue  # `ready` would count this as use
            try:
                await self.ready(prompt)
            except CoreError as error:
                logger.warning(
                    "a pinned prompt cannot be loaded: %s", error, extra={"action": "pin_failed"}
                )

    async def _load(self, key: PromptKey, prompt: PromptRecord) -> ReadyPrompt:
        data = await run_in_threadpool(fetch_artifact, self._artifacts, prompt)
        backbone = self._backbones.find(prompt.backbone)
        if backbone is None:
            find = partial(self._backbones.for_prompt, prompt.backbone)
            backbone = await self._encoder.run(find)
        ready = await run_in_threadpool(_make_ready, prompt, data, backbone)
        self._cache.put(key, ready)
        return ready

    def _loaded(self, key: PromptKey, task: asyncio.Task[ReadyPrompt]) -> None:
        del self._loading[key]
        if not task.cancelled():
            task.exception()  # marks it as seen: all who waited may have been cancelled


def _make_ready(prompt: PromptRecord, data: bytes, backbone: Encoder) -> ReadyPrompt:
    from sharpzo_engine import TunedPrompt
    from sharpzo_engine.prompts.classifier import check_backbone

    try:
        tuned = TunedPrompt.load(data)
        check_backbone(tuned, backbone)
    except BackboneMismatch as error:
        raise BackboneNotServed(str(error)) from error
    except ArtifactError as error:
        raise corrupt(prompt, "is damaged") from error
    return ReadyPrompt.build(prompt, tuned, backbone)
