"""Run two tuning jobs concurrently and follow their events: `python async_client.py PHOTOS`."""

import asyncio
import os
import sys

from sharpzo_client import AsyncClient


async def tune(client: AsyncClient, dataset_id: str, seed: int) -> float | None:
    """Submit a job, print its events, and return its accuracy."""
    job = await client.jobs.create(
        dataset_id, preset="fast", config={"shots": 4, "seed": seed}, metadata={"seed": str(seed)}
    )
    async for event in client.jobs.stream_events(job.id):
        print(f"seed {seed}: {event.type} {event.message}")
    return (await client.jobs.wait(job.id)).metrics.test_accuracy


async def main(folder: str) -> None:
    """Tune with two seeds and compare."""
    async with AsyncClient(os.environ.get("SHARPZO_URL", "http://localhost:8000")) as client:
        dataset = await client.datasets.upload(folder)
        print(await asyncio.gather(*(tune(client, dataset.id, seed) for seed in (1, 2))))


asyncio.run(main(sys.argv[1]))
