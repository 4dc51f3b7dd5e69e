"""`sharpzo keys`: API keys in the service's database; the service need not be running."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from sharpzo_cli.errors import UsageProblem
from sharpzo_cli.options import DataDir, Json
from sharpzo_cli.output import print_json, print_list, say

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

    from sharpzo_core.records.keys import ApiKey, NewKey, Scope
    from sharpzo_core.stores.audit import AuditStore
    from sharpzo_core.stores.key_store import KeyStore

app = typer.Typer(
    name="keys",
    help="Create, list, rotate and revoke API keys.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

PAGE = 1000
MAX_DAYS = 3660
_DONE = 200  # status in the audit log, whose other entries are HTTP requests
_DURATION = re.compile(r"([1-9][0-9]{0,8})([smhd])")
_HEADER = ("PREFIX", "TENANT", "SCOPES", "STATE", "LAST USED", "NAME")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

Ref = Annotated[str, typer.Argument(metavar="KEY", help="Id or prefix of the key.")]


@app.command()
def create(
    name: Annotated[str, typer.Option("--name", help="What the key is for.")],
    tenant: Annotated[
        str, typer.Option("--tenant", help="Tenant whose objects it can access.")
    ] = "default",
    scopes: Annotated[
        str,
        typer.Option(
            "--scopes", help="Comma-separated: jobs, prompts, infer, encode, metrics, admin."
        ),
    ] = "jobs,prompts,infer",
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="90d", help="Lifetime; default: unlimited.")
    ] = None,
    rate_limit: Annotated[
        str | None,
        typer.Option(
            "--rate-limit", metavar="600/minute", help="Requests allowed; N means N per minute."
        ),
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Create a key and print it, only this once.

    As soon as a key exists, the service requires one for every request.
    """
    _check_names(name, tenant)
    granted, lifetime, rate = _scopes(scopes), _duration(expires), _rate(rate_limit)
    with _store(data_dir) as store:
        until = None if lifetime is None else _now() + lifetime
        made = store.keys.for_tenant(tenant).create(
            name, granted, expires_at=until, rate_limit=rate
        )
        store.note("create", made.record)
    _print_key(made, as_json=as_json)


@app.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option("--tenant", help="Only this tenant's.")] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """List keys, newest first, including expired and revoked ones."""
    with _store(data_dir) as store:
        keys = store.keys.for_tenant(tenant) if tenant else store.keys.for_all_tenants()
        found = list(_all(keys))
    if as_json:
        print_json({"keys": [_public(key) for key in found]})
    else:
        print_list(_HEADER, [_row(key) for key in found])


@app.command()
def revoke(key: Ref, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Revoke a key immediately, and cancel the jobs it started."""
    with _store(data_dir) as store:
        revoked = store.keys.revoke(key)
        store.note("revoke", revoked)
    if as_json:
        print_json(_public(revoked))
    else:
        say(f"{revoked.prefix} ({revoked.name}) is revoked")


@app.command()
def rotate(
    key: Ref,
    grace: Annotated[
        str | None,
        typer.Option("--grace", metavar="1h", help="How long the old key stays valid."),
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Replace a key by a new one with the same rights, and print it."""
    wait = _duration(grace) or timedelta(0)
    with _store(data_dir) as store:
        made = store.keys.rotate(key, wait)
        store.note("rotate", made.record)
    _print_key(made, as_json=as_json)


@dataclass(frozen=True)
class _Stores:
    keys: KeyStore
    audit: AuditStore

    def note(self, action: str, key: ApiKey) -> None:
        from sharpzo_core.ids import Prefix, new_id
        from sharpzo_core.stores.audit import AuditEntry

        entry = AuditEntry(
            id=new_id(Prefix.AUDIT),
            tenant=key.tenant,
            at=_now(),
            key_id=None,
            method="CLI",
            route=f"sharpzo keys {action}",
            object_id=key.id,
            status=_DONE,
            code=None,
            request_id=new_id(Prefix.AUDIT),
            address=None,
        )
        self.audit.append([entry])


@contextmanager
def _store(data_dir: Path | None) -> Iterator[_Stores]:
    from sharpzo_cli.processes import load_settings, run_migrations
    from sharpzo_core.database.engine import make_engine
    from sharpzo_core.errors import NotFound
    from sharpzo_core.stores.audit import AuditStore
    from sharpzo_core.stores.key_store import KeyStore

    run_migrations(data_dir)
    engine = make_engine(load_settings(data_dir=data_dir))
    try:
        yield _Stores(KeyStore(engine).for_all_tenants(), AuditStore(engine))
    except NotFound as error:
        raise UsageProblem(str(error), "see `sharpzo keys list`") from error
    finally:
        engine.dispose()


def _all(store: KeyStore) -> Iterator[ApiKey]:
    after = None
    while True:
        page = store.list(PAGE, after)
        yield from page.items
        if page.next is None:
            return
        after = page.next


def _check_names(name: str, tenant: str) -> None:
    from sharpzo_core.database.tenants import is_tenant
    from sharpzo_core.json_safety import MAX_LABEL, is_safe_text

    if not 1 <= len(name) <= MAX_LABEL or not is_safe_text(name):
        fix = f"give --name 1 to {MAX_LABEL} characters without control characters"
        raise UsageProblem("the name of the key is not valid", fix)
    if not is_tenant(tenant):
        fix = "use letters, digits, dots, dashes and underscores, at most 64"
        raise UsageProblem(f"{tenant!r} is not a valid name of a tenant", fix)


def _scopes(text: str) -> list[Scope]:
    from sharpzo_core.records.keys import Scope

    names = [part.strip() for part in text.split(",") if part.strip()]
    known = ", ".join(Scope)
    unknown = [name for name in names if name not in set(Scope)]
    if unknown or not names:
        what = f"{unknown[0]!r} is not a scope" if unknown else "a key needs a scope"
        raise UsageProblem(what, f"choose from: {known}")
    return [Scope(name) for name in names]


def _duration(text: str | None) -> timedelta | None:
    if text is None:
        return None
    match = _DURATION.fullmatch(text)
    found = None if match is None else timedelta(**{_UNITS[match[2]]: int(match[1])})
    if found is None or found > timedelta(days=MAX_DAYS):
        fix = f"write 45s, 30m, 12h or 90d, at most {MAX_DAYS}d"
        raise UsageProblem(f"{text!r} is not a duration", fix)
    return found


def _rate(text: str | None) -> str | None:
    from sharpzo_core.rates import write_rate

    try:
        return None if text is None else write_rate(text)
    except ValueError as error:
        raise UsageProblem(f"{text!r} is not a rate", str(error)) from error


def _now() -> datetime:
    from sharpzo_core.clock import utc_now

    return utc_now()


def _print_key(made: NewKey, *, as_json: bool) -> None:
    """Print the key alone on standard output, so that a script can use it."""
    key = made.record
    if as_json:
        print_json({**_public(key), "key": made.text})
        return
    until = "until it is revoked" if key.expires_at is None else f"until {key.expires_at:%F %T} UTC"
    typer.echo(
        f"{key.id} of tenant {key.tenant}, for {', '.join(sorted(key.scopes))}, {until}; "
        "store it now, it is not shown again:",
        err=True,
    )
    typer.echo(made.text)


def _public(key: ApiKey) -> dict[str, object]:
    from sharpzo_core.schemas.keys import KeyPublic

    return KeyPublic.from_record(key).model_dump(mode="json")


def _row(key: ApiKey) -> tuple[str, ...]:
    used = "never" if key.last_used_at is None else f"{key.last_used_at:%F %R}"
    scopes = ",".join(sorted(key.scopes))
    return (key.prefix, key.tenant, scopes, _state(key), used, key.name)


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at:%F %R}"
    if key.expires_at is None:
        return "valid"
    return f"{'expires' if key.is_valid(_now()) else 'expired'} {key.expires_at:%F %R}"
