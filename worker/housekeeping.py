"""Removing files that nobody will ever ask for: those of writers and deletions that were killed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sharpzo_core.db import reading
from sharpzo_core.errors import NotFound
from sharpzo_core.listing import known_ids
from sharpzo_core.tables import datasets, jobs, prompts
from sharpzo_engine.files import remove_leftovers

if TYPE_CHECKING:
    from pathlib import Path

    import sqlalchemy as sa

    from sharpzo_core.artifact_store import ArtifactStore

#: Files come before the row that names them, and go after it. Nothing takes so long in between.
STRAY_SECONDS = 24 * 3600.0

#: Where each table keeps files: one entry per row, named by its id.
_HOMES: dict[str, sa.Table] = {"datasets": datasets, "jobs": jobs, "prompts": prompts}

logger = logging.getLogger(__name__)


class Housekeeper:
    """Looks through the artifact store and the cache; several may do so at once."""

    def __init__(
        self,
        database: sa.Engine,
        artifacts: ArtifactStore,
        cache_dir: Path,
        stray_seconds: float = STRAY_SECONDS,
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._cache_dir = cache_dir
        self._stray_seconds = stray_seconds

    def tidy(self) -> int:
        """Remove what was left behind long enough ago; returns how many things.

        Raises:
            StorageUnavailable: the database or the store is away.
        """
        removed = remove_leftovers(self._cache_dir)
        for home, table in _HOMES.items():
            removed += self._artifacts.remove_leftovers(home)
            removed += sum(
                self._remove_stray(f"{home}/{name}") for name in self._strays(home, table)
            )
        return removed

    def _strays(self, home: str, table: sa.Table) -> list[str]:
        """Names of entries without a row."""
        ids = {name: name.partition(".")[0] for name in self._artifacts.names(home)}
        with reading(self._database) as connection:
            known = known_ids(connection, table, set(ids.values()))
        return [name for name, row_id in ids.items() if row_id not in known]

    def _remove_stray(self, key: str) -> bool:
        try:
            if self._artifacts.idle_seconds(key) < self._stray_seconds:
                return False
        except NotFound:
            return False
        logger.warning("nobody needs %s", key, extra={"action": "stray_removed", "key": key})
        self._artifacts.delete_prefix(key)
        return True
