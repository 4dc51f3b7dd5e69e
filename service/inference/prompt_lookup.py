"""From a reference to a prompt's record, without a query as long as the database is unchanged."""

from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool

from sharpzo_core.database.changes import ChangeStamp, Stamp
from sharpzo_core.errors import CoreError
from sharpzo_core.records.prompts import PromptRecord
from sharpzo_core.stores.prompt_store import PromptStore

MAX_KNOWN = 10_000  # records

Found = PromptRecord | CoreError  #: the error of a reference that cannot be used


class PromptLookup:
    """Keeps records until the next commit of any process; used on the event loop only.

    The stamp is read before the query. So a record is at least as new as its stamp, and it is
    current as long as the stamp is.
    """

    def __init__(self, stamp: ChangeStamp) -> None:
        self._stamp = stamp
        self._at: Stamp | None = None
        self._known: dict[tuple[str, str], PromptRecord] = {}

    async def get(self, store: PromptStore, tenant: str, ref: str) -> PromptRecord:
        """The record of a reference; `store` is the tenant's.

        Raises:
            NotFound: there is none.
            StorageUnavailable: the database does not answer.
        """
        (found,) = await self.get_each(store, tenant, [ref])
        if isinstance(found, CoreError):
            raise found
        return found

    async def get_each(self, store: PromptStore, tenant: str, refs: Sequence[str]) -> list[Found]:
        """The records of references, or why they cannot be used, in order."""
        stamp = self._refresh()
        missing = [ref for ref in refs if (tenant, ref) not in self._known]
        known: dict[str, Found] = {
            ref: self._known[tenant, ref] for ref in refs if (tenant, ref) in self._known
        }
        if missing:
            queried = await run_in_threadpool(_query, store, missing)
            self._keep(stamp, tenant, queried)
            known |= queried
        return [known[ref] for ref in refs]

    def _refresh(self) -> Stamp | None:
        """Forget everything if the database has changed."""
        stamp = self._stamp.read()
        if stamp is None or stamp != self._at or len(self._known) >= MAX_KNOWN:
            self._known.clear()
            self._at = stamp
        return stamp

    def _keep(self, stamp: Stamp | None, tenant: str, found: dict[str, Found]) -> None:
        if stamp is None or stamp != self._at:  # another request has seen a change meanwhile
            return
        for ref, record in found.items():
            if isinstance(record, PromptRecord):
                self._known[tenant, ref] = record


def _query(store: PromptStore, refs: Sequence[str]) -> dict[str, Found]:
    found: dict[str, Found] = {}
    for ref in refs:
        try:
            found[ref] = store.get(ref)
        except CoreError as error:
            found[ref] = error
    return found
