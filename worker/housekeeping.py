"""Removing unreferenced files: those that killed writers and deletions left."""

import logging
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from sharpzo_core.errors import NotFound
from sharpzo_core.records.checkpoints import checkpoint_prefix
from sharpzo_core.records.datasets import TENANTS, images_prefix
from sharpzo_core.records.jobs import JobStatus
from sharpzo_core.records.results import parts_prefix, results_prefix
from sharpzo_core.storage.artifact_store import ArtifactStore
from sharpzo_core.stores.dataset_store import DatasetStore
from sharpzo_core.stores.image_store import ImageStore
from sharpzo_core.stores.job_store import JobStore
from sharpzo_core.stores.prompt_store import PromptStore
from sharpzo_core.stores.quotas import MeteredStore
from sharpzo_engine.files import remove_leftovers

#: Files are older than the row that names them, and are deleted after it; never by so much.
STRAY_SECONDS = 24 * 3600.0

logger = logging.getLogger(__name__)


class Housekeeper:
    """Cleans up the artifact store and the cache; several may do so at once."""

    def __init__(
        self,
        database: sa.Engine,
        artifacts: ArtifactStore,
        cache_dir: Path,
        stray_seconds: float = STRAY_SECONDS,
    ) -> None:
        self._jobs = JobStore(database).for_all_tenants()
        #: Folder of the artifact store -> store of the rows that its entries are named after.
        self._homes: dict[str, MeteredStore] = {
            "datasets": DatasetStore(database).for_all_tenants(),
            "jobs": self._jobs,
            "prompts": PromptStore(database).for_all_tenants(),
        }
        self._artifacts = artifacts
        self._images = ImageStore(database, artifacts)
        self._cache_dir = cache_dir
        self._stray_seconds = stray_seconds

    def tidy(self) -> int:
        """Remove what was left behind long enough ago; returns the number of things removed.

        Raises:
            StorageUnavailable: the database or the store does not answer.
        """
        removed = remove_leftovers(self._cache_dir)
        for home, store in self._homes.items():
            removed += self._artifacts.remove_leftovers(home)
            removed += sum(map(self._remove_stray, self._strays(home, store)))
        removed += sum(map(self._remove_stray, self._claims()))
        return removed + self._tidy_images()

    def _tidy_images(self) -> int:
        """Remove shared images that no dataset holds; returns their number.

        Files without a row remain when a database is restored to an earlier state.
        """
        removed = self._artifacts.remove_leftovers(TENANTS)
        self._images.release_orphans()
        for tenant in self._images.tenants():
            for folder in self._artifacts.names(images_prefix(tenant)):
                self._suspect_strays(tenant, f"{images_prefix(tenant)}/{folder}")
        while some := self._images.sweep():
            removed += some
        return removed

    def _suspect_strays(self, tenant: str, prefix: str) -> None:
        unknown = self._images.unknown(tenant, self._artifacts.names(prefix))
        strays = [sha256 for sha256 in unknown if self._is_old(f"{prefix}/{sha256}")]
        for sha256 in strays:
            logger.warning(
                "removing unreferenced image %s", sha256, extra={"action": "stray_removed"}
            )
        self._images.suspect(tenant, strays)

    def _strays(self, home: str, store: MeteredStore) -> list[str]:
        ids = {name: name.partition(".")[0] for name in self._artifacts.names(home)}
        known = store.known(set(ids.values()))
        return [f"{home}/{name}" for name, row_id in ids.items() if row_id not in known]

    def _claims(self) -> Iterator[str]:
        """Keys of files of ended jobs that their rows do not name: those of killed claims.

        Parts are needed until a job has succeeded: one that failed or was cancelled may be resumed.
        """
        for job_id, status, result, checkpoint in self._jobs.ended():
            for prefix, named in (
                (results_prefix(job_id), result),
                (checkpoint_prefix(job_id), checkpoint),
            ):
                names = self._artifacts.names(prefix)
                yield from (f"{prefix}/{name}" for name in names if name != named)
            if status is JobStatus.SUCCEEDED:
                yield parts_prefix(job_id)

    def _is_old(self, key: str) -> bool:
        try:
            return self._artifacts.idle_seconds(key) >= self._stray_seconds
        except NotFound:
            return False

    def _remove_stray(self, key: str) -> bool:
        if not self._is_old(key):
            return False
        logger.warning(
            "removing unreferenced %s", key, extra={"action": "stray_removed", "key": key}
        )
        self._artifacts.delete_prefix(key)
        return True
