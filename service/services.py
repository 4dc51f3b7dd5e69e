"""Everything a running application holds open."""

from __future__ import annotations

import logging
import socket
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from service.auth.audit import AuditLog
from service.auth.key_cache import Keyring
from service.auth.rate_limits import RateLimits
from service.broker_probe import BrokerProbe
from service.idempotency import Idempotency
from service.inference.host import InferenceHost
from service.ingest.processor import Ingest
from service.ingest.uploads import Uploads
from sharpzo_core.broker.queue import JobQueue, make_celery
from sharpzo_core.database.engine import make_engine
from sharpzo_core.logging import job_context
from sharpzo_core.migrations import migrate
from sharpzo_core.storage.artifact_store import ArtifactStore
from sharpzo_core.stores.alias_store import AliasStore
from sharpzo_core.stores.audit import AuditStore
from sharpzo_core.stores.dataset_leases import DatasetLeases
from sharpzo_core.stores.dataset_store import DatasetStore
from sharpzo_core.stores.idempotency import IdempotencyStore
from sharpzo_core.stores.image_store import ImageStore
from sharpzo_core.stores.job_store import JobStore
from sharpzo_core.stores.job_totals import FigureStore
from sharpzo_core.stores.key_store import KeyStore
from sharpzo_core.stores.prompt_store import PromptStore
from sharpzo_core.stores.quotas import Quotas, UsageStore
from sharpzo_core.stores.worker_store import WorkerStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import sqlalchemy as sa

    from service.auth.principal import Caller
    from service.metrics import Metrics
    from sharpzo_core.records.jobs import Job
    from sharpzo_core.settings import Settings

logger = logging.getLogger(__name__)

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
    keys: KeyStore
    usage: UsageStore
    figures: FigureStore
    audited: AuditStore
    audit: AuditLog
    keyring: Keyring
    rates: RateLimits
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

    def notify(self, job_id: str) -> None:
        """Tell a worker that a job waits, some time soon; workers look by themselves as well."""
        self.ringer.submit(copy_context().run, self.queue.notify, job_id)

    def for_caller(
        self, caller: Caller, made: Callable[[str], None], request_id: str
    ) -> TenantServices:
        """What a request of this caller may use; `made` is told the id of what it creates."""
        return TenantServices(
            caller=caller,
            settings=self.settings,
            jobs=self.jobs.for_tenant(caller.tenant),
            datasets=self.datasets.for_tenant(caller.tenant),
            prompts=self.prompts.for_tenant(caller.tenant),
            aliases=self.aliases.for_tenant(caller.tenant),
            idempotency=self.idempotency.for_tenant(caller.tenant, made),
            keys=self.keys.for_tenant(caller.tenant),
            usage=self.usage.for_tenant(caller.tenant),
            audit=self.audited.for_tenant(caller.tenant),
            dataset_leases=self.dataset_leases,
            artifacts=self.artifacts,
            uploads=self.uploads,
            ingest=self.ingest,
            inference=self.inference,
            stopping=self.stopping,
            notify=self.notify,
            still_admitted=partial(self.keyring.still_admits, caller),
            request_id=request_id,
        )

    def close(self) -> None:
        """Stop every thread and close every connection."""
        self.stopping.set()
        self.ringer.shutdown(wait=True, cancel_futures=True)
        self.ingest.close()
        self.idempotency.close()
        self.keyring.close()
        self.audit.close()
        self.inference.close()
        self.broker.close()
        self.queue.close()
        self.database.dispose()


@dataclass(frozen=True)
class TenantServices:
    """What a request may use: stores that see its tenant alone, and what is nobody's.

    Files have no tenant: their names are ids, and ids come from these stores.
    """

    caller: Caller
    settings: Settings
    jobs: JobStore
    datasets: DatasetStore
    prompts: PromptStore
    aliases: AliasStore
    idempotency: Idempotency
    keys: KeyStore
    usage: UsageStore
    audit: AuditStore
    dataset_leases: DatasetLeases
    artifacts: ArtifactStore
    uploads: Uploads
    ingest: Ingest
    inference: InferenceHost
    stopping: threading.Event
    notify: Callable[[str], None]
    still_admitted: Callable[[], Awaitable[bool]]  #: Whether the caller would be let in now
    request_id: str

    def accept(self, job: Job) -> None:
        """Make a job that is stored known: to the log, and to a worker."""
        with job_context(job):
            logger.info("job %s is accepted", job.id, extra={"action": "job_accepted"})
            self.notify(job.id)


def open_services(settings: Settings, metrics: Metrics) -> Services:
    """Bring the database up to date, open the stores and start the background threads.

    Raises:
        CoreError: a store does not answer.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    migrate(settings)
    database = make_engine(settings)
    quotas = Quotas.from_settings(settings)
    datasets = DatasetStore(database, quotas=quotas)
    artifacts = ArtifactStore.from_url(settings.artifacts)
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
        jobs=JobStore(database, quotas=quotas),
        datasets=datasets,
        dataset_leases=leases,
        prompts=PromptStore(database, quotas=quotas),
        aliases=AliasStore(database),
        keys=KeyStore(database),
        usage=UsageStore(database),
        figures=FigureStore(database),
        audited=AuditStore(database),
        audit=AuditLog(AuditStore(database), settings.audit_days),
        keyring=Keyring(KeyStore(database)),
        rates=RateLimits(settings),
        workers=WorkerStore(database),
        artifacts=artifacts,
        images=images,
        queue=job_queue,
        broker=BrokerProbe(settings, job_queue),
        ringer=ThreadPoolExecutor(1, thread_name_prefix="ring"),
        uploads=uploads,
        ingest=Ingest(
            datasets=datasets.for_all_tenants(),
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
    services.keyring.start()
    services.audit.start()
    return services
