"""Everything a running application holds open."""

from __future__ import annotations

import socket
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.broker_probe import BrokerProbe
from service.idempotency import Idempotency
from service.inference.host import InferenceHost
from service.ingest import Ingest
from service.uploads import Uploads
from sharpzo_core.alias_store import AliasStore
from sharpzo_core.artifact_store import ArtifactStore
from sharpzo_core.dataset_leases import DatasetLeases
from sharpzo_core.dataset_store import DatasetStore
from sharpzo_core.db import make_engine
from sharpzo_core.idempotency import IdempotencyStore
from sharpzo_core.image_store import ImageStore
from sharpzo_core.job_store import JobStore
from sharpzo_core.migrations import migrate
from sharpzo_core.prompt_store import PromptStore
from sharpzo_core.queue import JobQueue, make_celery
from sharpzo_core.worker_store import WorkerStore

if TYPE_CHECKING:
    import sqlalchemy as sa

    from service.metrics import Metrics
    from sharpzo_core.settings import Settings

STRAY_LEASES = 3  # durations of a lease after which an upload that nobody touches is removed


@dataclass(frozen=True)
class Services:
    """Stores, queue and threads; made by `open_services` when the application starts."""

    settings: Settings
    metrics: Metrics
    database: sa.Engine
    jobs: JobStore
    datasets: DatasetStore
    dataset_leases: DatasetLeases
    prompts: PromptStore
    aliases: AliasStore
    workers: WorkerStore
    artifacts: ArtifactStore
    images: ImageStore
    queue: JobQueue
    broker: BrokerProbe
    ringer: ThreadPoolExecutor  #: Rings off the request, so that a dead broker delays nobody
    uploads: Uploads
    ingest: Ingest
    inference: InferenceHost
    idempotency: Idempotency
    stopping: threading.Event  #: Set when the server is told to end; long answers end then

    def ring(self, job_id: str) -> None:
        """Tell a worker that a job waits, some time soon; workers look by themselves as well."""
        self.ringer.submit(self.queue.ring, job_id)

    def close(self) -> None:
        """Stop every thread and close every connection."""
        self.stopping.set()
        self.ringer.shutdown(wait=True, cancel_futures=True)
        self.ingest.close()
        self.idempotency.close()
        self.inference.close()
        self.broker.close()
        self.queue.close()
        self.database.dispose()


def open_services(settings: Settings, metrics: Metrics) -> Services:
    """Bring the database up to date, open the stores and start the background threads.

    Raises:
        CoreError: a store does not answer.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    migrate(settings)
    database = make_engine(settings)
    datasets, artifacts = DatasetStore(database), ArtifactStore(settings.artifacts)
    images = ImageStore(database, artifacts)
    patience = STRAY_LEASES * settings.lease_seconds
    uploads = Uploads(settings.data_dir / "uploads", settings.max_upload_bytes, patience)
    owner = f"{uuid.uuid4().hex}@{socket.gethostname()}"
    leases = DatasetLeases(database, owner, settings.lease_seconds)
    job_queue = JobQueue(make_celery(settings))
    services = Services(
        settings=settings,
        metrics=metrics,
        database=database,
        jobs=JobStore(database),
        datasets=datasets,
        dataset_leases=leases,
        prompts=PromptStore(database),
        aliases=AliasStore(database),
        workers=WorkerStore(database),
        artifacts=artifacts,
        images=images,
        queue=job_queue,
        broker=BrokerProbe(settings, job_queue),
        ringer=ThreadPoolExecutor(1, thread_name_prefix="ring"),
        uploads=uploads,
        ingest=Ingest(
            datasets=datasets,
            leases=leases,
            artifacts=artifacts,
            images=images,
            uploads=uploads,
            settings=settings,
        ),
        inference=InferenceHost(settings, artifacts, metrics),
        idempotency=Idempotency(IdempotencyStore(database, settings.idempotency_hours)),
        stopping=threading.Event(),
    )
    services.ingest.start()
    services.idempotency.start()
    return services
