"""Keeping pinned prompts in this process's memory, whichever process was told to pin them."""

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

LOOK_SECONDS = 10.0  # until a pin that another process was told is seen here

logger = logging.getLogger(__name__)


@asynccontextmanager
async def watching_pins(prompts: PromptStore, inference: InferenceHost) -> AsyncIterator[None]:
    """Load what is pinned, and go on looking, until the block ends."""
    task = asyncio.create_task(_watch(prompts, inference))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def load_pinned(prompts: PromptStore, inference: InferenceHost) -> None:
    """Look once, at what all tenants have pinned.

    Raises:
        StorageUnavailable: the database does not answer.
    """
    await inference.keep(await run_in_threadpool(prompts.for_all_tenants().pinned))


async def _watch(prompts: PromptStore, inference: InferenceHost) -> None:
    while True:
        try:
            await load_pinned(prompts, inference)
        except CoreError as error:
            logger.warning("pins are not known now: %s", error, extra={"action": "pins"})
        except Exception:  # a defect of one prompt must not end the looking
            logger.exception("pinned prompts cannot be loaded", extra={"action": "pins"})
        await asyncio.sleep(LOOK_SECONDS)
