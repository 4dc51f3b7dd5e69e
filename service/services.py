"""Everything a running application holds open."""

import logging
import socket
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cached_property

from service.auth.audit import AuditLog
from service.auth.key_cache import KeyCache
from service.auth.principal import Caller
from service.auth.rate_limits import RateLimits
from service.broker_probe import BrokerProbe
from service.idempotency import Idempotency
from service.inference.host import InferenceHost
from service.inference.prompt_lookup import Found, PromptLookup
from service.ingest.processor import Ingest
from service.ingest.uploads import Uploads
from service.metrics import Metrics
from sharpzo_core.broker.queue import JobQueue, make_celery
from sharpzo_core.database.changes import ChangeStamp
from sharpzo_core.database.engine import make_engine
from sharpzo_core.logging import job_context
from sharpzo_core.migrations import migrate
from sharpzo_core.records.jobs import Job, Origin
from sharpzo_core.records.prompts import PromptRecord
from sharpzo_core.settings import Settings
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

logger = logging.getLogger(__name__)

STRAY_LEASES = 3  # an upload that is untouched for so many lease durations is removed


class Services:
    """Everything that a running application holds open: stores, queue and threads.

    Its stores are the default tenant's. Routes get those of their caller from `TenantServices`.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        quotas = Quotas.from_settings(settings)
        owner = f"{uuid.uuid4().hex}@{socket.gethostname()}"
        stray_seconds = STRAY_LEASES * settings.lease_seconds
        self.settings = settings
        self.metrics = metrics
        self.database = make_engine(settings)
        self.jobs = JobStore(self.database, quotas=quotas)
        self.datasets = DatasetStore(self.database, quotas=quotas)
        self.dataset_leases = DatasetLeases(self.database, owner, settings.lease_seconds)
        self.prompts = PromptStore(self.database, quotas=quotas)
        self.changes = ChangeStamp(self.database)
        self.prompt_lookup = PromptLookup(self.changes)
        self.aliases = AliasStore(self.database)
        self.keys = KeyStore(self.database)
        self.usage = UsageStore(self.database)
        self.job_totals = FigureStore(self.database)
        self.audit_entries = AuditStore(self.database)
        self.workers = WorkerStore(self.database)
        self.artifacts = ArtifactStore.from_url(settings.artifacts)
        self.images = ImageStore(self.database, self.artifacts)
        self.queue = JobQueue(make_celery(settings))
        self.broker = BrokerProbe(settings, self.queue)
        #: Workers are notified by a thread of its own, so that a dead broker delays no request.
        self.notifier = ThreadPoolExecutor(1, thread_name_prefix="notify")
        self.audit_log = AuditLog(self.audit_entries, settings.audit_days)
        self.key_cache = KeyCache(self.keys)
        self.rate_limits = RateLimits(settings)
        self.uploads = Uploads(
            settings.data_dir / "uploads", settings.max_upload_bytes, stray_seconds
        )
        self.ingest = Ingest(
            datasets=self.datasets.for_all_tenants(),
            leases=self.dataset_leases,
            artifacts=self.artifacts,
            images=self.images,
            uploads=self.uploads,
            settings=settings,
        )
        self.inference = InferenceHost(settings, self.artifacts, metrics)
        self.idempotency = Idempotency(IdempotencyStore(self.database, settings.idempotency_hours))
        #: Set when the server begins to shut down; streams end then.
        self.stopping = threading.Event()

    def notify(self, job_id: str) -> None:
        """Wake a worker for a queued job, soon; workers also poll the database by themselves."""
        self.notifier.submit(copy_context().run, self.queue.notify, job_id)

    def close(self) -> None:
        self.stopping.set()
        self.notifier.shutdown(wait=True, cancel_futures=True)
        self.ingest.close()
        self.idempotency.close()
        self.key_cache.close()
        self.audit_log.close()
        self.inference.close()
        self.broker.close()
        self.queue.close()
        self.changes.close()
        self.database.dispose()


class TenantServices:
    """What one request may use: stores of its tenant's rows alone, and what has no tenant.

    Files have no tenant: their names are ids, and ids come from these stores.
    """

    def __init__(
        self,
        process: Services,
        caller: Caller,
        request_id: str,
        note_created: Callable[[str], None],
    ) -> None:
        self._process = process
        self._note_created = note_created
        self.caller = caller
        self.origin = Origin(caller.key_id, request_id)
        self.settings = process.settings
        self.dataset_leases = process.dataset_leases
        self.artifacts = process.artifacts
        self.uploads = process.uploads
        self.ingest = process.ingest
        self.inference = process.inference
        self.stopping = process.stopping
        self.notify = process.notify

    @cached_property
    def jobs(self) -> JobStore:
        return self._process.jobs.for_tenant(self.caller.tenant)

    @cached_property
    def datasets(self) -> DatasetStore:
        return self._process.datasets.for_tenant(self.caller.tenant)

    @cached_property
    def prompts(self) -> PromptStore:
        return self._process.prompts.for_tenant(self.caller.tenant)

    @cached_property
    def aliases(self) -> AliasStore:
        return self._process.aliases.for_tenant(self.caller.tenant)

    @cached_property
    def keys(self) -> KeyStore:
        return self._process.keys.for_tenant(self.caller.tenant)

    @cached_property
    def usage(self) -> UsageStore:
        return self._process.usage.for_tenant(self.caller.tenant)

    @cached_property
    def audit_entries(self) -> AuditStore:
        return self._process.audit_entries.for_tenant(self.caller.tenant)

    @cached_property
    def idempotency(self) -> Idempotency:
        return self._process.idempotency.for_tenant(self.caller.tenant, self._note_created)

    async def find_prompt(self, ref: str) -> PromptRecord:
        """As `prompts.get`, mostly without a query."""
        return await self._process.prompt_lookup.get(self.prompts, self.caller.tenant, ref)

    async def find_prompts(self, refs: Sequence[str]) -> list[Found]:
        """The prompts of several refs, or why they cannot be used."""
        return await self._process.prompt_lookup.get_each(self.prompts, self.caller.tenant, refs)

    async def is_still_admitted(self) -> bool:
        return await self._process.key_cache.still_admits(self.caller)

    def announce(self, job: Job) -> None:
        """Log that a new job was accepted, and notify a worker."""
        with job_context(job):
            logger.info("job %s is accepted", job.id, extra={"action": "job_accepted"})
            self.notify(job.id)


def open_services(settings: Settings, metrics: Metrics) -> Services:
    """Migrate the database, open the stores and start the background threads.

    Raises:
        CoreError: a store does not answer.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    migrate(settings)
    services = Services(settings, metrics)
    services.ingest.start()
    services.idempotency.start()
    services.key_cache.start()
    services.audit_log.start()
    return services
