"""`client.jobs`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharpzo_client import _operations as ops
from sharpzo_client._constants import DEFAULT_POLL, PAGE_SIZE
from sharpzo_client._files import replacing
from sharpzo_client._lines import Lines
from sharpzo_client._sse import EventLog
from sharpzo_client.errors import SharpzoError
from sharpzo_client.progress import ProgressView, live_progress
from sharpzo_client.resources._base import AsyncResource, Resource

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from sharpzo_client._operations import OnEvent, ResultForm
    from sharpzo_client.models import ImageRecord, Job, JobEvent, StepRecord


class Jobs(Resource):
    """Jobs: they tune prompts, measure them, or label images with them."""

    def create(
        self,
        dataset_id: str,
        *,
        backbone: str | None = None,
        preset: str | None = None,
        config: Mapping[str, Any] | None = None,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        from_checkpoint: str | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Submit a tuning job; `config` is laid over `preset`.

        With `from_checkpoint`, the id of another job, it goes on from that job's last checkpoint,
        and `config` is laid over that job's configuration: `{"total_steps": 4000}` for more steps.

        A key of your own makes the call repeatable across processes: the same key with the same
        values gives the same job.

        Raises:
            UnprocessableEntityError: a value is wrong; `errors` points at it.
        """
        operation = ops.create_job(
            dataset_id,
            backbone=backbone,
            preset=preset,
            config=config,
            name=name,
            metadata=metadata,
            from_checkpoint=from_checkpoint,
            idempotency_key=idempotency_key,
        )
        return self._transport.send(operation)

    def wait(
        self,
        job_id: str,
        *,
        timeout: float | None = None,
        poll: float = DEFAULT_POLL,
        on_event: OnEvent | None = None,
        progress: bool = False,
    ) -> Job:
        """Wait until a job has succeeded.

        `on_event` is called once with each event, in order; `progress` shows a live bar on standard
        error. The job goes on when the wait is given up.

        Raises:
            JobFailed: it failed.
            JobCancelled: it was cancelled.
            WaitTimeoutError: it has not ended within `timeout` seconds.
        """
        flow = ops.wait_for_job(
            job_id, timeout=timeout, poll=poll, on_event=on_event, view=_view(progress)
        )
        return self._transport.run(flow)

    def stream_events(self, job_id: str, after: int = 0) -> Iterator[JobEvent]:
        """Events after a `seq` as they happen, until the job ends.

        A lost connection is made again where it broke off, without gap or repeat.

        Raises:
            APIConnectionError: the service stays away.
        """
        log = EventLog(after)
        while not log.ended:
            try:
                with self._transport.stream(ops.stream_events(job_id, log.last)) as chunks:
                    log.opened()
                    for chunk in chunks:
                        yield from log.feed(chunk)
                log.closed()
                if not log.ended:
                    log.looked(self.get(job_id))
            except SharpzoError as error:
                log.broke(error)
            if not log.ended:
                self._transport.sleep(log.pause)

    def events(
        self, job_id: str, after: int = 0, *, page_size: int = PAGE_SIZE
    ) -> Iterator[JobEvent]:
        """Events so far, after a `seq`, fetched page by page."""
        return self._items(ops.list_events(job_id, after, page_size))

    def metrics(
        self,
        job_id: str,
        *,
        from_step: int | None = None,
        to_step: int | None = None,
        resolution: int | None = None,
    ) -> Sequence[StepRecord]:
        """Step records, at most `resolution` of them, evenly chosen."""
        return self._transport.send(ops.job_metrics(job_id, from_step, to_step, resolution))

    def report(self, job_id: str) -> dict[str, Any]:
        """The numbers of the report of a run or an evaluation.

        A run's has the result, curves, classes, landscape and configuration; an evaluation's has
        accuracies, classes, confusion and calibration.

        Raises:
            NotFoundError: the job has not succeeded, or it is a classification.
        """
        return self._transport.send(ops.job_report(job_id))

    def download_report(self, job_id: str, path: str | os.PathLike[str]) -> Path:
        """Fetch the report to `path`, as one HTML page that needs nothing else.

        Raises:
            NotFoundError: the job has not succeeded.
            InputError: the place cannot be written to.
        """
        return self._transport.run(ops.download_report(job_id, path))

    def results(self, job_id: str) -> Iterator[ImageRecord]:
        """What a classification of a dataset found, image by image, as it comes.

        Raises:
            ConflictError: the job has not succeeded.
            NotFoundError: it classifies nothing.
        """
        lines = Lines()
        with self._transport.stream(ops.stream_results(job_id, "jsonl")) as chunks:
            for chunk in chunks:
                yield from lines.feed(chunk)
        lines.end()

    def download_results(
        self,
        job_id: str,
        path: str | os.PathLike[str],
        format: ResultForm = "jsonl",  # noqa: A002 - the API's word
    ) -> Path:
        """Fetch the same to `path`, whole or not at all; raises as `results`.

        Raises:
            InputError: the place cannot be written to.
        """
        target = Path(path)
        with (
            self._transport.stream(ops.stream_results(job_id, format)) as chunks,
            replacing(target) as file,
        ):
            for chunk in chunks:
                file.write(chunk)
        return target

    def get(self, job_id: str) -> Job:
        """Look at a job."""
        return self._transport.send(ops.get_job(job_id))

    def pause(self, job_id: str) -> Job:
        """Put a job by; a running one saves a checkpoint after its present step."""
        return self._transport.send(ops.steer_job(job_id, "pause"))

    def resume(self, job_id: str) -> Job:
        """Let a paused, failed or cancelled job go on from its last checkpoint.

        Raises:
            ConflictError: it is running, or has succeeded.
        """
        return self._transport.send(ops.steer_job(job_id, "resume"))

    def cancel(self, job_id: str) -> Job:
        """Ask a job to stop; a running one stops after its present step."""
        return self._transport.send(ops.steer_job(job_id, "cancel"))

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended; another raises ConflictError."""
        self._transport.send(ops.delete_job(job_id))

    def list(self, *, kind: str | None = None, page_size: int = PAGE_SIZE) -> Iterator[Job]:
        """All jobs, or those of one kind, newest first, fetched page by page."""
        return self._items(ops.list_jobs(page_size, kind))


class AsyncJobs(AsyncResource):
    """Jobs. See `Jobs`."""

    async def create(
        self,
        dataset_id: str,
        *,
        backbone: str | None = None,
        preset: str | None = None,
        config: Mapping[str, Any] | None = None,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        from_checkpoint: str | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Submit a tuning job; `config` is laid over `preset`."""
        operation = ops.create_job(
            dataset_id,
            backbone=backbone,
            preset=preset,
            config=config,
            name=name,
            metadata=metadata,
            from_checkpoint=from_checkpoint,
            idempotency_key=idempotency_key,
        )
        return await self._transport.send(operation)

    async def wait(
        self,
        job_id: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - as in the sync client
        poll: float = DEFAULT_POLL,
        on_event: OnEvent | None = None,
        progress: bool = False,
    ) -> Job:
        """Wait until a job has succeeded; `on_event` is a plain function here too."""
        flow = ops.wait_for_job(
            job_id, timeout=timeout, poll=poll, on_event=on_event, view=_view(progress)
        )
        return await self._transport.run(flow)

    async def stream_events(self, job_id: str, after: int = 0) -> AsyncIterator[JobEvent]:
        """Events after a `seq` as they happen, until the job ends."""
        log = EventLog(after)
        while not log.ended:
            try:
                async with self._transport.stream(ops.stream_events(job_id, log.last)) as chunks:
                    log.opened()
                    async for chunk in chunks:
                        for event in log.feed(chunk):
                            yield event
                log.closed()
                if not log.ended:
                    log.looked(await self.get(job_id))
            except SharpzoError as error:
                log.broke(error)
            if not log.ended:
                await self._transport.sleep(log.pause)

    def events(
        self, job_id: str, after: int = 0, *, page_size: int = PAGE_SIZE
    ) -> AsyncIterator[JobEvent]:
        """Events so far, after a `seq`, fetched page by page."""
        return self._items(ops.list_events(job_id, after, page_size))

    async def metrics(
        self,
        job_id: str,
        *,
        from_step: int | None = None,
        to_step: int | None = None,
        resolution: int | None = None,
    ) -> Sequence[StepRecord]:
        """Step records, at most `resolution` of them, evenly chosen."""
        return await self._transport.send(ops.job_metrics(job_id, from_step, to_step, resolution))

    async def report(self, job_id: str) -> dict[str, Any]:
        """The numbers of the run's report."""
        return await self._transport.send(ops.job_report(job_id))

    async def download_report(self, job_id: str, path: str | os.PathLike[str]) -> Path:
        """Fetch the run's report to `path`, as one HTML page that needs nothing else."""
        return await self._transport.run(ops.download_report(job_id, path))

    async def results(self, job_id: str) -> AsyncIterator[ImageRecord]:
        """What a classification of a dataset found, image by image, as it comes."""
        lines = Lines()
        async with self._transport.stream(ops.stream_results(job_id, "jsonl")) as chunks:
            async for chunk in chunks:
                for record in lines.feed(chunk):
                    yield record
        lines.end()

    async def download_results(
        self,
        job_id: str,
        path: str | os.PathLike[str],
        format: ResultForm = "jsonl",  # noqa: A002 - the API's word
    ) -> Path:
        """Fetch the same to `path`, whole or not at all."""
        target = Path(path)
        async with self._transport.stream(ops.stream_results(job_id, format)) as chunks:
            with replacing(target) as file:
                async for chunk in chunks:
                    await asyncio.to_thread(file.write, chunk)
        return target

    async def get(self, job_id: str) -> Job:
        """Look at a job."""
        return await self._transport.send(ops.get_job(job_id))

    async def pause(self, job_id: str) -> Job:
        """Put a job by; a running one saves a checkpoint after its present step."""
        return await self._transport.send(ops.steer_job(job_id, "pause"))

    async def resume(self, job_id: str) -> Job:
        """Let a paused, failed or cancelled job go on from its last checkpoint.

        Raises:
            ConflictError: it is running, or has succeeded.
        """
        return await self._transport.send(ops.steer_job(job_id, "resume"))

    async def cancel(self, job_id: str) -> Job:
        """Ask a job to stop."""
        return await self._transport.send(ops.steer_job(job_id, "cancel"))

    async def delete(self, job_id: str) -> None:
        """Delete a job that has ended."""
        await self._transport.send(ops.delete_job(job_id))

    def list(self, *, kind: str | None = None, page_size: int = PAGE_SIZE) -> AsyncIterator[Job]:
        """All jobs, or those of one kind, newest first, fetched page by page."""
        return self._items(ops.list_jobs(page_size, kind))


def _view(progress: bool) -> AbstractContextManager[ProgressView] | None:
    return live_progress() if progress else None
