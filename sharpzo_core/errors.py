"""Every error that the shared core raises on purpose.

Our exception hierarchy:

CoreError
 ├── SettingsError          a SHARPZO_ variable is wrong; the process must not start
 ├── SchemaTooNew           the database belongs to a newer version; the process must not start
 ├── ValidationFailed       422  one or more fields of a request are wrong
 ├── NotFound               404  there is no such object
 ├── StateConflict          409  the object's state does not allow this
 │    ├── BackboneNotServed      a prompt needs a backbone that is not offered here
 │    ├── LevelMissing           the backbone does not give what the method needs
 │    ├── LeaseLost              another worker owns the job now
 │    ├── ConfigMismatch         a checkpoint belongs to a run with another configuration
 │    ├── AliasMoved             an alias does not point where the request expects
 │    ├── AliasAmbiguous         several names have this alias
 │    ├── GateFailed             a prompt does not reach the score that its gate requires
 │    ├── NothingToRollBack      an alias pointed to no other prompt before
 │    └── PromptInUse            an alias, or a job that has not ended, needs the prompt
 ├── IdempotencyInProgress  409  an earlier request with this key is in progress
 ├── IdempotencyMismatch    422  the key was used for another request
 ├── PayloadTooLarge        413  more bytes than allowed
 ├── ArchiveError      413, 422  an archive that is damaged, unsafe or too large
 ├── UnsupportedMedia       415  a kind of content that is not accepted
 ├── AuthRequired           401  no API key was sent
 ├── AuthInvalid            401  the API key is not valid
 ├── ScopeForbidden         403  the API key may not do this
 ├── TooManyJobs            429  the queue is full
 ├── QuotaExceeded          429  the tenant may not use more
 ├── StorageFull            507  no space is left
 └── StorageUnavailable     503  the database or the artifact store does not answer
      └── StorageBusy            other processes wrote for too long

The REST API answers with `status`, `code` and `title`; `detail` is the message.
"""

# ruff: noqa: N818 - errors are named for the fact

from collections.abc import Sequence


class CoreError(Exception):
    """The request could not be served."""

    status = 500
    code = "internal_error"
    title = "Internal error"

    def __init_subclass__(
        cls, *, status: int | None = None, code: str | None = None, title: str | None = None
    ) -> None:
        """Inherit what is not given from the base class."""
        cls.status = cls.status if status is None else status
        cls.code = code or cls.code
        cls.title = title or cls.title

    def __init__(self, detail: str | None = None) -> None:
        self.detail = detail or (self.__doc__ or "").strip()
        super().__init__(self.detail)


class SettingsError(CoreError, code="settings_invalid", title="Wrong setting"):
    """A setting is wrong."""


class SchemaTooNew(CoreError, code="schema_too_new", title="Database too new"):
    """The database was changed by a newer version of this program."""

    def __init__(self, found: str, newest: str) -> None:
        super().__init__(
            f"the database has schema {found}, which a newer version of SharpZO created; this "
            f"version knows schemas up to {newest} (update SharpZO, or restore a backup)"
        )


class ValidationFailed(
    CoreError, status=422, code="validation_error", title="The request is not valid"
):
    """The request is not valid.

    `errors` lists each fault as `(JSON pointer, message)`.
    """

    def __init__(self, errors: Sequence[tuple[str, str]]) -> None:
        self.errors = list(errors)
        super().__init__("; ".join(f"{pointer}: {message}" for pointer, message in self.errors))


class NotFound(CoreError, status=404, code="not_found", title="Not found"):
    """There is no such object."""

    def __init__(self, kind: str, ref: str) -> None:
        self.kind = kind
        self.ref = ref
        super().__init__(f"there is no such {kind}")


class StateConflict(
    CoreError, status=409, code="state_conflict", title="Not possible in this state"
):
    """The object's state does not allow this."""


class LevelMissing(StateConflict, code="level_missing", title="Level missing"):
    """The backbone does not give what this needs."""


class BackboneNotServed(StateConflict, code="backbone_mismatch", title="Backbone mismatch"):
    """The prompt was tuned on a backbone that is not offered here."""


class LeaseLost(StateConflict, code="lease_lost"):
    """Another process owns the work now."""


class ConfigMismatch(
    StateConflict, code="config_mismatch", title="Not the checkpoint's configuration"
):
    """The checkpoint belongs to a run with another configuration."""


class AliasMoved(StateConflict, code="alias_moved", title="Alias moved"):
    """The alias does not point where the request expects."""


class AliasAmbiguous(StateConflict, code="alias_ambiguous", title="Alias ambiguous"):
    """Several names have this alias."""


class GateFailed(StateConflict, code="gate_failed", title="Gate failed"):
    """The prompt does not reach the score that its gate requires."""


class NothingToRollBack(
    StateConflict, code="nothing_to_roll_back", title="Nothing to roll back to"
):
    """The alias pointed to no other prompt before that is still there."""


class PromptInUse(StateConflict, code="prompt_in_use", title="Prompt in use"):
    """Something that has not ended needs the prompt."""


class IdempotencyInProgress(
    CoreError, status=409, code="idempotency_in_progress", title="In progress"
):
    """An earlier request with this Idempotency-Key is still in progress (try again)."""

    retry_after = 1  # seconds


class IdempotencyMismatch(
    CoreError, status=422, code="idempotency_mismatch", title="Idempotency key reused"
):
    """This Idempotency-Key was used for another request (use a new key for a new request)."""


class PayloadTooLarge(CoreError, status=413, code="payload_too_large", title="Too large"):
    """The request carries more bytes than allowed."""


class ArchiveError(CoreError, status=422, code="archive_corrupt", title="Archive not accepted"):
    """The archive is damaged, unsafe or too large.

    `code` is one of `archive_corrupt`, `archive_encrypted`, `archive_unsupported`,
    `archive_unsafe_path`, `archive_unsafe_entry`, `archive_bomb` and `too_many_files`.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        if code == "archive_bomb":
            self.status = PayloadTooLarge.status


class UnsupportedMedia(
    CoreError, status=415, code="unsupported_media_type", title="Unsupported media type"
):
    """This kind of content is not accepted."""


class TooManyJobs(CoreError, status=429, code="too_many_jobs", title="Too many queued jobs"):
    """The queue is full."""

    def __init__(self, detail: str | None = None, retry_after: int = 60) -> None:
        self.retry_after = retry_after  # seconds
        super().__init__(detail)


class AuthRequired(CoreError, status=401, code="auth_required", title="API key required"):
    """An API key is required (send it as `Authorization: Bearer KEY`)."""


class AuthInvalid(CoreError, status=401, code="auth_invalid", title="API key not valid"):
    """The API key is not valid (ask the operator for a new one)."""


class ScopeForbidden(
    CoreError, status=403, code="scope_forbidden", title="Not allowed with this API key"
):
    """The API key may not do this."""


class QuotaExceeded(CoreError, status=429, code="quota_exceeded", title="Quota exceeded"):
    """The tenant may not use more."""

    def __init__(self, detail: str, retry_after: int | None = None) -> None:
        self.retry_after = retry_after  # seconds; None where waiting does not help
        super().__init__(detail)


class StorageFull(CoreError, status=507, code="storage_full", title="Storage full"):
    """No space is left on the storage."""


class StorageUnavailable(
    CoreError, status=503, code="storage_unavailable", title="Storage unavailable"
):
    """The storage does not answer."""

    def __init__(self, detail: str | None = None, retry_after: int = 5) -> None:
        self.retry_after = retry_after  # seconds
        super().__init__(detail)


class StorageBusy(StorageUnavailable, code="busy", title="Storage busy"):
    """Other processes are writing to the database (try again soon)."""

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail, retry_after=1)
