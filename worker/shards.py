"""The images of one job, embedded part by part: any worker continues where another stopped."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

from sharpzo_core.errors import NotFound
from sharpzo_core.records.jobs import EventType
from sharpzo_core.records.results import PART_IMAGES, PARTS, part_key
from sharpzo_core.stores.job_rows import NewEvent
from sharpzo_core.submission.prompt_jobs import classes_of
from sharpzo_engine.checksummed import ChecksumError
from sharpzo_engine.prompts.embedding_shards import Part, embed_part
from sharpzo_engine.search.progress import Phase, Progress
from worker.checkpoints import record_checkpoint, record_event
from worker.retry import with_retries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sharpzo_core.records.datasets import DatasetRecord
    from sharpzo_core.records.jobs import Job, Lease
    from sharpzo_engine import Encoder
    from worker.dataset_files import ListedImage
    from worker.progress_writer import Reporter
    from worker.runner import RunnerDeps

T = TypeVar("T")


class JobParts:
    """The parts of a job: stored ones are read; missing or damaged ones are computed and stored.

    All methods raise what the job's `report` raises: `TuningInterrupted` when the job is to be
    released (stored parts stay), `LeaseLost` when another worker has it.
    """

    def __init__(
        self,
        job: Job,
        dataset: DatasetRecord,
        backbone: Encoder,
        *,
        lease: Lease,
        report: Reporter,
        deps: RunnerDeps,
    ) -> None:
        """Read the dataset's list of images.

        Raises:
            NotFound: it is gone.
        """
        self._job = job
        self._dataset = dataset
        self._backbone = backbone
        self._lease = lease
        self._report = report
        self._deps = deps
        self._pace = _Pace(deps.ticks)
        images = with_retries(
            lambda: deps.materials.images(dataset, job.config["split"]), deps.sleep
        )
        if part := job.config.get("classes"):
            wanted = frozenset(classes_of(dataset, part))
            images = [image for image in images if image.label in wanted]
        self.images: Sequence[ListedImage] = images
        self._phase: Phase = "preparing"
        self._done = 0

    def __len__(self) -> int:
        return math.ceil(len(self.images) / PART_IMAGES)

    def embed(self) -> None:
        """Make every part durable.

        Raises:
            NotFound: a file of the dataset is gone.
            StorageFull, StorageUnavailable: a part could not be stored.
        """
        if self._job.checkpoint is not None:
            step = self._job.checkpoint.step
            self._add_event(
                NewEvent(EventType.RESUMED, f"resumed after image {step}", data={"step": step})
            )
        for number in range(len(self)):
            self._reach(number * PART_IMAGES)
            self._get(number)
        self._phase = "evaluating"
        self._reach(len(self.images))

    def __iter__(self) -> Iterator[tuple[Sequence[ListedImage], Part]]:
        """The parts with their images, in order; raises as `embed`."""
        for number in range(len(self)):
            self._report_progress()
            yield self._listed(number), self._get(number)

    def _get(self, number: int) -> Part:
        key = part_key(self._job.id, number)
        try:
            data = self._with_retries(lambda: self._deps.artifacts.get_bytes(key))
            return Part.from_bytes(data, self._identity(number))
        except NotFound:
            pass
        except ChecksumError as error:
            message = f"part {number} is computed again: {error}"
            self._add_event(
                NewEvent(EventType.CHECKPOINT_CORRUPT, message, "warning", {"part": number})
            )
        return self._make(number)

    def _make(self, number: int) -> Part:
        deps, start, listed = self._deps, number * PART_IMAGES, self._listed(number)
        files = {row: image.path for row, image in enumerate(listed) if image.path is not None}

        def on_unit(done: int) -> None:
            self._pace.reached(done)
            self._reach(start + done)

        self._with_retries(lambda: deps.materials.fetch(self._dataset, files.values()))
        self._pace.begin()
        part = embed_part(
            files,
            self._backbone,
            cache_dir=deps.settings.cache_dir / "features",
            max_pixels=deps.settings.max_image_pixels,
            on_unit=on_unit,
        )
        data, key = part.to_bytes(self._identity(number)), part_key(self._job.id, number)
        self._with_retries(lambda: deps.artifacts.put_bytes(key, data))
        record_checkpoint(deps.leases, self._lease, PARTS, start + len(listed))
        return part

    def _listed(self, number: int) -> Sequence[ListedImage]:
        return self.images[number * PART_IMAGES : (number + 1) * PART_IMAGES]

    def _identity(self, number: int) -> dict[str, Any]:
        """What makes a part interchangeable with another."""
        identity = {
            "backbone": self._backbone.fingerprint,
            "dataset": self._dataset.sha256,
            "split": self._job.config["split"],
            "part_images": PART_IMAGES,
            "part": number,
        }
        classes = self._job.config.get("classes") or "all"
        return identity if classes == "all" else identity | {"classes": classes}

    def _reach(self, done: int) -> None:
        if self._phase == "preparing":
            self._done = done
        self._report_progress()

    def _report_progress(self) -> None:
        total = len(self.images)
        eta = self._pace.seconds_for(total - self._done)
        self._report(Progress(self._phase, self._done, total, 0, eta))

    def _with_retries(self, action: Callable[[], T]) -> T:
        return with_retries(action, self._deps.sleep, self._report_progress)

    def _add_event(self, event: NewEvent) -> None:
        record_event(self._deps.leases, self._lease, event)


class _Pace:
    """Seconds per image, over all parts that were computed here."""

    def __init__(self, ticks: Callable[[], float]) -> None:
        self._ticks = ticks
        self._seconds, self._images = 0.0, 0
        self._since, self._counted = 0.0, 0

    def begin(self) -> None:
        self._since, self._counted = self._ticks(), 0

    def reached(self, done: int) -> None:
        now = self._ticks()
        self._seconds += now - self._since
        self._images += done - self._counted
        self._since, self._counted = now, done

    def seconds_for(self, images: int) -> float | None:
        return images * self._seconds / self._images if self._images else None
