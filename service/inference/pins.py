"""Keeps pinned prompts in memory; the request to pin may have reached another process."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool

from sharpzo_core.errors import CoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from service.inference.host import InferenceHost
    from sharpzo_core.stores.prompt_store import PromptStore

POLL_SECONDS = 10.0  # until this process sees a pin that another one received

logger = logging.getLogger(__name__)


@asynccontextmanager
async def watching_pins(prompts: PromptStore, inference: InferenceHost) -> AsyncIterator[None]:
    """Load pinned prompts, and poll for further ones until the block ends."""
    task = asyncio.create_task(_watch(prompts, inference))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def load_pinned(prompts: PromptStore, inference: InferenceHost) -> None:
    """Load the pinned prompts of all tenants.

    Raises:
        StorageUnavailable: the database does not answer.
    """
    await inference.pin(await run_in_threadpool(prompts.for_all_tenants().pinned))


async def _watch(prompts: PromptStore, inference: InferenceHost) -> None:
    while True:
        try:
            await load_pinned(prompts, inference)
        except CoreError as error:
            logger.warning("pinned prompts cannot be read: %s", error, extra={"action": "pins"})
        except Exception:  # one bad prompt must not end the polling
            logger.exception("pinned prompts cannot be loaded", extra={"action": "pins"})
        await asyncio.sleep(POLL_SECONDS)
