"""`client.jobs`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sharpzo_client._constants import DEFAULT_POLL, PAGE_SIZE
from sharpzo_client._files import replacing
from sharpzo_client._lines import Lines
from sharpzo_client._operations import jobs as ops
from sharpzo_client._operations.jobs import OnEvent, ResultForm
from sharpzo_client._sse import EventLog
from sharpzo_client.errors import SharpzoError
from sharpzo_client.models import ImageRecord, Job, JobEvent, StepRecord
from sharpzo_client.progress import ProgressView, live_progress
from sharpzo_client.resources._base import AsyncResource, Resource


class Jobs(Resource):
    """Jobs tune prompts, evaluate them, or label datasets with them."""

    def create(
        self,
        dataset_id: str,
        *,
        unlabelled_dataset_id: str | None = None,
        backbone: str | None = None,
        preset: str | None = None,
        config: Mapping[str, Any] | None = None,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        from_checkpoint: str | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Submit a tuning job.

        Args:
            dataset_id: The dataset to tune on.
            unlabelled_dataset_id: A dataset with more images of the same classes, five per class or
                more, which refine the GDA head; its labels are not read.
            backbone: One of `client.backbones.list()`; default: the service's own default.
            preset: Name of a set of hyperparameters.
            config: Hyperparameters that override the preset.
            name: Name of the prompt that the job publishes.
            metadata: Your own labels, text to text.
            from_checkpoint: Id of another job: start from its last checkpoint, with `config`
                overriding its configuration (`{"total_steps": 4000}` for more steps).
            idempotency_key: Your own key makes the call repeatable across processes: the same key
                with the same values returns the same job.

        Raises:
            UnprocessableEntityError: A value is wrong; `errors` points to it.
        """
        operation = ops.create_job(
            dataset_id,
            unlabelled_dataset_id=unlabelled_dataset_id,
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

        Args:
            job_id: The job.
            timeout: Seconds to wait; default: as long as it takes.
            poll: Seconds between two requests.
            on_event: Called once with each event, in order.
            progress: Show a progress bar on standard error.

        Raises:
            JobFailed: The job failed.
            JobCancelled: The job was cancelled.
            WaitTimeoutError: It has not ended within `timeout` seconds; it keeps running.
        """
        flow = ops.wait_for_job(
            job_id, timeout=timeout, poll=poll, on_event=on_event, view=_view(progress)
        )
        return self._transport.run(flow)

    def stream_events(self, job_id: str, after: int = 0) -> Iterator[JobEvent]:
        """Iterate over the events after `after` (a `seq`) as they happen, until the job ends.

        A lost connection is resumed where it broke, without gaps or repeats.

        Raises:
            APIConnectionError: The service stays unreachable (about 40 seconds).
        """
        log = EventLog(after)
        while not log.ended:
            try:
                with self._transport.stream(ops.stream_events(job_id, log.last)) as chunks:
                    log.connected()
                    for chunk in chunks:
                        yield from log.feed(chunk)
                log.stream_ended()
                if not log.ended:
                    log.job_seen(self.get(job_id))
            except SharpzoError as error:
                log.connection_failed(error)
            if not log.ended:
                self._transport.sleep(log.pause)

    def events(
        self, job_id: str, after: int = 0, *, page_size: int = PAGE_SIZE
    ) -> Iterator[JobEvent]:
        """Iterate over the events so far that come after `after` (a `seq`)."""
        return self._items(ops.list_events(job_id, after, page_size))

    def metrics(
        self,
        job_id: str,
        *,
        from_step: int | None = None,
        to_step: int | None = None,
        resolution: int | None = None,
    ) -> Sequence[StepRecord]:
        """Return the step records, at most `resolution` of them, evenly spaced."""
        return self._transport.send(ops.job_metrics(job_id, from_step, to_step, resolution))

    def report(self, job_id: str) -> dict[str, Any]:
        """Return the numbers of the report of a tuning or evaluation job.

        The report of a tuning job has the result, curves, classes, landscape and configuration;
        that of an evaluation has accuracies, classes, confusion matrix and calibration.

        Raises:
            NotFoundError: The job has not succeeded, or it is a classification.
        """
        return self._transport.send(ops.job_report(job_id))

    def download_report(self, job_id: str, path: str | os.PathLike[str]) -> Path:
        """Save the report to `path` as a self-contained HTML page, and return the path.

        Raises:
            NotFoundError: The job has not succeeded.
            InputError: `path` cannot be written.
        """
        return self._transport.run(ops.download_report(job_id, path))

    def results(self, job_id: str) -> Iterator[ImageRecord]:
        """Iterate over the results of a classification job, image by image, while they arrive.

        Raises:
            ConflictError: The job has not succeeded.
            NotFoundError: It is not a classification job.
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
        format: ResultForm = "jsonl",  # noqa: A002 - the API's own name
    ) -> Path:
        """Save the same results to `path` completely or not at all, and return the path.

        Raises:
            ConflictError: The job has not succeeded.
            NotFoundError: It is not a classification job.
            InputError: `path` cannot be written.
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
        """Return a job."""
        return self._transport.send(ops.get_job(job_id))

    def pause(self, job_id: str) -> Job:
        """Pause a job; a running job saves a checkpoint after the current step."""
        return self._transport.send(ops.change_state(job_id, "pause"))

    def resume(self, job_id: str) -> Job:
        """Resume a paused, failed or cancelled job from its last checkpoint.

        Raises:
            ConflictError: It is running, or has succeeded.
        """
        return self._transport.send(ops.change_state(job_id, "resume"))

    def cancel(self, job_id: str) -> Job:
        """Cancel a job; a running job stops after the current step."""
        return self._transport.send(ops.change_state(job_id, "cancel"))

    def finish(self, job_id: str) -> Job:
        """End a tuning job's search after the current step, and keep its best prompt so far.

        The job then fits its head, measures the result and succeeds; `wait` for it. A
        paused job is queued to finish. Of requests to pause and to finish, the later one counts.

        Raises:
            ConflictError: It does not search: it waits, has ended, is being cancelled, or is not a
                tuning job.
        """
        return self._transport.send(ops.change_state(job_id, "finish"))

    def delete(self, job_id: str) -> None:
        """Delete a job.

        Raises:
            ConflictError: It has not ended.
        """
        self._transport.send(ops.delete_job(job_id))

    def list(self, *, kind: str | None = None, page_size: int = PAGE_SIZE) -> Iterator[Job]:
        """Iterate over all jobs, or those of one kind, newest first."""
        return self._items(ops.list_jobs(page_size, kind))


class AsyncJobs(AsyncResource):
    """Jobs tune prompts, evaluate them, or label datasets with them. See `Jobs`."""

    async def create(
        self,
        dataset_id: str,
        *,
        unlabelled_dataset_id: str | None = None,
        backbone: str | None = None,
        preset: str | None = None,
        config: Mapping[str, Any] | None = None,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        from_checkpoint: str | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Submit a tuning job."""
        operation = ops.create_job(
            dataset_id,
            unlabelled_dataset_id=unlabelled_dataset_id,
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
        timeout: float | None = None,  # noqa: ASYNC109 - same as the sync client
        poll: float = DEFAULT_POLL,
        on_event: OnEvent | None = None,
        progress: bool = False,
    ) -> Job:
        """Wait until a job has succeeded; `on_event` is not a coroutine function here either."""
        flow = ops.wait_for_job(
            job_id, timeout=timeout, poll=poll, on_event=on_event, view=_view(progress)
        )
        return await self._transport.run(flow)

    async def stream_events(self, job_id: str, after: int = 0) -> AsyncIterator[JobEvent]:
        """Iterate over the events as they happen, until the job ends."""
        log = EventLog(after)
        while not log.ended:
            try:
                async with self._transport.stream(ops.stream_events(job_id, log.last)) as chunks:
                    log.connected()
                    async for chunk in chunks:
                        for event in log.feed(chunk):
                            yield event
                log.stream_ended()
                if not log.ended:
                    log.job_seen(await self.get(job_id))
            except SharpzoError as error:
                log.connection_failed(error)
            if not log.ended:
                await self._transport.sleep(log.pause)

    def events(
        self, job_id: str, after: int = 0, *, page_size: int = PAGE_SIZE
    ) -> AsyncIterator[JobEvent]:
        """Iterate over the events so far that come after `after` (a `seq`)."""
        return self._items(ops.list_events(job_id, after, page_size))

    async def metrics(
        self,
        job_id: str,
        *,
        from_step: int | None = None,
        to_step: int | None = None,
        resolution: int | None = None,
    ) -> Sequence[StepRecord]:
        """Return the step records, at most `resolution` of them, evenly spaced."""
        return await self._transport.send(ops.job_metrics(job_id, from_step, to_step, resolution))

    async def report(self, job_id: str) -> dict[str, Any]:
        """Return the numbers of the report of a tuning or evaluation job."""
        return await self._transport.send(ops.job_report(job_id))

    async def download_report(self, job_id: str, path: str | os.PathLike[str]) -> Path:
        """Save the report to `path` as a self-contained HTML page, and return the path."""
        return await self._transport.run(ops.download_report(job_id, path))

    async def results(self, job_id: str) -> AsyncIterator[ImageRecord]:
        """Iterate over the results of a classification job, image by image."""
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
        format: ResultForm = "jsonl",  # noqa: A002 - the API's own name
    ) -> Path:
        """Save the same results to `path` completely or not at all, and return the path."""
        target = Path(path)
        async with self._transport.stream(ops.stream_results(job_id, format)) as chunks:
            with replacing(target) as file:
                async for chunk in chunks:
                    await asyncio.to_thread(file.write, chunk)
        return target

    async def get(self, job_id: str) -> Job:
        """Return a job."""
        return await self._transport.send(ops.get_job(job_id))

    async def pause(self, job_id: str) -> Job:
        """Pause a job; a running job saves a checkpoint after the current step."""
        return await self._transport.send(ops.change_state(job_id, "pause"))

    async def resume(self, job_id: str) -> Job:
        """Resume a paused, failed or cancelled job from its last checkpoint."""
        return await self._transport.send(ops.change_state(job_id, "resume"))

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job."""
        return await self._transport.send(ops.change_state(job_id, "cancel"))

    async def finish(self, job_id: str) -> Job:
        """End a tuning job's search after the current step, and keep its best prompt so far."""
        return await self._transport.send(ops.change_state(job_id, "finish"))

    async def delete(self, job_id: str) -> None:
        """Delete a job."""
        await self._transport.send(ops.delete_job(job_id))

    def list(self, *, kind: str | None = None, page_size: int = PAGE_SIZE) -> AsyncIterator[Job]:
        """Iterate over all jobs, or those of one kind, newest first."""
        return self._items(ops.list_jobs(page_size, kind))


def _view(progress: bool) -> AbstractContextManager[ProgressView] | None:
    return live_progress() if progress else None
