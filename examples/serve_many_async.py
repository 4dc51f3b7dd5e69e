"""Label many images at once, with a limit on requests in flight.

Start the service with `sharpzo serve`, then: python serve_many_async.py PROMPT IMAGE...
PROMPT is a name, `name:version`, `name@alias` or an id.
"""

import asyncio
import os
import sys

from sharpzo_client import AsyncClient, DeadlineExceededError

CONCURRENT_REQUESTS = 16


async def label(client: AsyncClient, limit: asyncio.Semaphore, prompt: str, image: str) -> str:
    """Return the best label; the service batches concurrent requests."""
    async with limit:
        try:
            answer = await client.prompts.classify(prompt, [image], top_k=1, deadline=5.0)
        except DeadlineExceededError:
            return f"{image} no answer within 5 s"
    (result,) = answer.results
    return f"{image} {result.best or result.error}"


async def main(prompt: str, images: list[str]) -> None:
    """Print one line per image, in order."""
    limit = asyncio.Semaphore(CONCURRENT_REQUESTS)
    async with AsyncClient(os.environ.get("SHARPZO_URL", "http://localhost:8000")) as client:
        for line in await asyncio.gather(*(label(client, limit, prompt, path) for path in images)):
            print(line)


asyncio.run(main(sys.argv[1], sys.argv[2:]))
