"""Tenants: what is another's is answered as if it had never been."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.routing import iter_route_contexts

from service.auth.authorization import PUBLIC, declared
from service.deps import process
from service.inference.prompt_cache import PromptKey
from sharpzo_core.database.tables import metadata
from sharpzo_core.database.tenants import TenantStore
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.records.jobs import Job, JobProgress, JobStep, NewJob, Phase
from sharpzo_core.records.keys import NewKey
from sharpzo_core.records.prompts import report_key
from sharpzo_core.records.results import evaluation_key, results_key
from sharpzo_core.settings import Settings
from sharpzo_core.stores.job_leases import JobLeases, lease_of
from sharpzo_engine import Backbone
from tests.security.conftest import Door, OpenDoor, bearer, essence
from tests.service.conftest import dataset_members, png, settle, upload, zip_of
from tests.service.toys import COLORS, artifact_of, files, import_

pytestmark = pytest.mark.usefixtures("decode_in_process")

#: Tables whose rows have a tenant.
OWNED = [table.name for table in metadata.sorted_tables if "tenant" in table.columns]
NOBODYS = "nothing"


@dataclass
class World:
    """What tenant A has; B and C have keys and a dataset or prompt of their own."""

    door: Door
    a: NewKey
    b: NewKey
    c: NewKey
    dataset_id: str
    prompt_id: str
    jobs: dict[str, str]  # what they are -> id
    key_id: str
    own_dataset: str  # of B
    own_prompt: str

    def ask(self, method: str, path: str, key: NewKey | None = None, **options: Any) -> Any:
        return self.door.ask(method, path, key or self.b, **options)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone) -> Iterator[World]:
    from tests.security import conftest as kit

    folder = tmp_path_factory.mktemp("world") / "data"
    settings = kit.with_backbones(folder, backbone)
    opened = kit.open_door.__wrapped__()  # type: ignore[attr-defined]
    door = next(opened)(settings)
    yield build(door, backbone)
    opened.close()


def build(door: Door, backbone: Backbone) -> World:
    a, b, c = (door.key(name) for name in "abc")
    client = door.as_(a)
    classes = tuple(COLORS)
    archive = zip_of(dataset_members(classes=classes[:2]))
    dataset = settle(client, upload(client, archive).json()["id"])["id"]
    prompt = import_(client, artifact_of(backbone)).json()["id"]
    assert client.put("/v1/aliases/colors@live", json={"prompt_id": prompt}).status_code == 200
    own = door.as_(b)
    own_dataset = settle(own, upload(own, archive).json()["id"])["id"]
    own_prompt = import_(own, artifact_of(backbone), "theirs").json()["id"]
    body = {"dataset_id": dataset, "config": {"shots": 3}}
    jobs = {"queued": client.post("/v1/jobs", json=body).json()["id"]}
    for kind in ("evaluate", "batch"):
        batch = client.post(f"/v1/prompts/{prompt}/{kind}", json={"dataset_id": dataset})
        jobs[kind] = finish(door, batch.json()["id"], kind)
    tuned = client.post("/v1/jobs", json=body).json()["id"]
    jobs["tuned"] = tune(door, tuned)
    return World(
        door, a, b, c, dataset, prompt, jobs, door.key("a").record.id, own_dataset, own_prompt
    )


def leases_of(door: Door) -> JobLeases:
    return JobLeases.from_settings(door.services.database, door.services.settings)


def finish(door: Door, job_id: str, kind: str) -> str:
    """As a worker would."""
    leases = leases_of(door)
    job = leases.claim(job_id, "worker")
    assert job is not None
    folder = "f" * 32
    for form in ("jsonl", "csv"):
        door.services.artifacts.put_bytes(results_key(job_id, folder, form), b"{}\n")
    for page in ("html", "json"):
        door.services.artifacts.put_bytes(evaluation_key(job_id, folder, page), b"{}")
    leases.complete(lease_of(job), folder, {"accuracy": 1.0})
    return job_id


def tune(door: Door, job_id: str) -> str:
    leases = leases_of(door)
    job = leases.claim(job_id, "worker")
    assert job is not None
    step = JobStep(1, Phase.STAGE1, 1.0, None, 0.5, 0.4, 0.1, 10, 0.1)
    progress = JobProgress(Phase.STAGE1, 1, 10, 10)
    leases.save_progress(lease_of(job), progress, {"loss": 1.0}, [step])
    for form in ("html", "json"):
        door.services.artifacts.put_bytes(report_key(job_id, form), b"{}")
    leases.complete(lease_of(job), "f" * 32, {})
    return job_id


# The matrix: every route, with an id of A, asked by B

Case = tuple[str, str, dict[str, Any]]  # method, path, options of the request


def pairs(world: World, method: str, path: str) -> Iterator[tuple[Case, Case]]:
    """Requests that name what A has, each beside one that names what nobody has."""
    (name,) = re.findall(r"\{([^}]+)\}", path) or [None]
    for found, missing in named(world, name):
        for real, other in bodies(world, method, path):
            place = f"{{{name}}}"
            yield (
                (method, path.replace(place, found), real),
                (method, path.replace(place, missing), other),
            )


def named(world: World, name: str | None) -> list[tuple[str, str]]:
    """What can stand in a path -> what A has, and what nobody has.

    A route with a parameter that is not known here fails the test.
    """
    refs = (world.prompt_id, "colors", "colors:1", "colors@live")
    unknown = (new_id(Prefix.PROMPT), NOBODYS, f"{NOBODYS}:1", f"{NOBODYS}@live")
    return {
        None: [("", "")],
        "dataset_id": [(world.dataset_id, new_id(Prefix.DATASET))],
        "job_id": [(job_id, new_id(Prefix.JOB)) for job_id in world.jobs.values()],
        "ref": list(zip(refs, unknown, strict=True)),
        "alias": [("live", "dead"), ("colors@live", f"{NOBODYS}@live")],
        "key_id": [(world.key_id, new_id(Prefix.KEY))],
        "backbone": [("toy", "toy")],  # the operator's, for all tenants
    }[name]


def bodies(world: World, method: str, path: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Options of the request, twice: ids in bodies are A's, and nobody's."""
    ids = (world.dataset_id, new_id(Prefix.DATASET))
    prompts = (world.prompt_id, new_id(Prefix.PROMPT))
    job = world.jobs["queued"]
    image = files(png())
    known: dict[tuple[str, str], list[tuple[dict[str, Any], dict[str, Any]]]] = {
        ("POST", "/v1/datasets"): [({"json": {"name": "x", "uri": "/nowhere"}},) * 2],
        ("POST", "/v1/jobs"): [
            twice(lambda i: {"dataset_id": i, "config": {"shots": 3}}, *ids),
            twice(lambda i: {"dataset_id": i, "from_checkpoint": world.jobs["tuned"]}, *ids),
            twice(
                lambda i: {
                    "dataset_id": world.own_dataset,
                    "unlabelled_dataset_id": i,
                    "config": {"shots": 3},
                },
                *ids,
            ),
            twice(
                lambda i: {"dataset_id": world.own_dataset, "from_checkpoint": i},
                job,
                new_id(Prefix.JOB),
            ),
        ],
        ("POST", "/v1/prompts/{ref}/evaluate"): [
            twice(lambda i: {"dataset_id": i}, *ids),
            twice(lambda i: {"dataset_id": i}, world.own_dataset, world.own_dataset),
        ],
        ("PUT", "/v1/aliases/{alias}"): [twice(lambda i: {"prompt_id": i}, *prompts)],
        ("POST", "/v1/aliases/{alias}/rollback"): [({}, {})],
        ("POST", "/v1/prompts/{ref}/classify"): [({"files": image},) * 2],
        ("POST", "/v1/prompts"): [({"files": {"file": ("p", b"no artifact")}},) * 2],
        ("POST", "/v1/keys"): [({"json": {"name": "", "scopes": []}},) * 2],
        ("POST", "/v1/classify"): [
            twice(lambda i: {"prompts": [i], "images": ["aGk="]}, *prompts),
            twice(lambda i: {"prompts": [i], "images": ["aGk="]}, "colors@live", "colors@dead"),
        ],
    }
    known["POST", "/v1/encoders/{backbone}/images"] = [({"files": image},) * 2]
    known["POST", "/v1/encoders/{backbone}/texts"] = [({"json": {"texts": ["a"]}},) * 2]
    words = {"context": "a", "classes": ["b"]}
    known["POST", "/v1/encoders/{backbone}/contexts"] = [({"json": words},) * 2]
    known["POST", "/v1/embeddings"] = [({"json": {"input": "a", "model": "toy"}},) * 2]
    known["POST", "/v1/prompts/{ref}/batch"] = known["POST", "/v1/prompts/{ref}/evaluate"]
    for action in ("pause", "resume", "cancel", "finish"):
        known["POST", f"/v1/jobs/{{job_id}}/{action}"] = [({}, {})]
    known["POST", "/v1/keys/{key_id}/rotate"] = [({}, {})]
    known["PUT", "/v1/prompts/{ref}/pin"] = [({}, {})]
    if method in ("POST", "PUT"):
        return known[method, path]
    accepts = ("*/*", "text/csv", "application/json", "text/event-stream")
    return [({"headers": {"Accept": accept}},) * 2 for accept in accepts]


def twice(
    body: Callable[[str], dict[str, Any]], found: str, missing: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"json": body(found)}, {"json": body(missing)}


@pytest.mark.bad_input("D1")
def test_what_is_anothers_is_answered_as_what_never_was(
    world: World, record_property: Callable[[str, object], None]
) -> None:
    """The figure is 0: answers to B that tell an id of A from one that nobody has."""
    told, compared, routes = [], 0, 0
    for method, path, _ in declared(world.door.client.app):  # type: ignore[arg-type]
        if path in PUBLIC or path in ("/metrics", "/v1/audit", "/v1/usage"):
            continue  # figures and lists have tests of their own
        routes += 1
        for real, missing in pairs(world, method, path):
            answers = []
            for verb, place, options in (real, missing):
                status, body, headers = essence(world.ask(verb, place, **options))
                if isinstance(body, dict) and "answers" in body:  # repeats the request's own words
                    body = [{**answer, "ref": None} for answer in body["answers"]]
                answers.append((status, body, headers))
            compared += 1
            if answers[0] != answers[1]:
                told.append((real[:2], answers))
    record_property("asked", compared)
    record_property("wrong", len(told))
    assert routes >= 37
    assert compared > 100
    assert told == []


def test_nothing_of_a_was_changed_by_all_that(world: World) -> None:
    """Runs after the matrix, whose requests include every DELETE."""
    for path in (
        f"/v1/datasets/{world.dataset_id}",
        f"/v1/prompts/{world.prompt_id}",
        "/v1/prompts/colors@live",
        *(f"/v1/jobs/{job_id}" for job_id in world.jobs.values()),
    ):
        assert world.ask("GET", path, world.a).status_code == 200
    assert (
        world.ask("GET", f"/v1/jobs/{world.jobs['queued']}", world.a).json()["status"] == "queued"
    )
    keys = world.ask("GET", "/v1/keys", world.a).json()["data"]
    assert all(key["revoked_at"] is None for key in keys)
    assert world.ask("GET", "/v1/aliases/colors@live", world.a).json()["seq"] == 1


def test_the_owner_gets_something_at_each_of_these_ids(world: World) -> None:
    """Else the matrix would compare one 404 with another for no reason."""
    places = {
        "/v1/datasets/{}": [world.dataset_id],
        "/v1/jobs/{}": list(world.jobs.values()),
        "/v1/jobs/{}/events": list(world.jobs.values()),
        "/v1/jobs/{}/metrics": [world.jobs["tuned"]],
        "/v1/jobs/{}/report": [world.jobs["tuned"], world.jobs["evaluate"]],
        "/v1/jobs/{}/results": [world.jobs["batch"]],
        "/v1/prompts/{}": [world.prompt_id, "colors", "colors:1", "colors@live"],
        "/v1/prompts/{}/download": [world.prompt_id],
        "/v1/prompts/{}/export": [world.prompt_id],
        "/v1/aliases/{}": ["live", "colors@live"],
    }
    for path, ids in places.items():
        for one in ids:
            assert world.ask("GET", path.format(one), world.a).status_code == 200, (path, one)


@pytest.mark.bad_input("D2")
@pytest.mark.parametrize(
    "path",
    ["/v1/datasets", "/v1/jobs", "/v1/prompts", "/v1/aliases", "/v1/keys", "/v1/audit"],
)
def test_lists_hold_ones_own(world: World, path: str) -> None:
    mine = [world.a.record.id, world.dataset_id, world.prompt_id, *world.jobs.values(), '"colors"']
    listed = world.ask("GET", path, world.b, params={"limit": 100}).text
    assert [secret for secret in mine if secret in listed] == []
    assert world.ask("GET", path, world.c).json()["has_more"] is False


def test_filters_and_foreign_cursors_lead_nowhere(world: World) -> None:
    for query in (
        f"/v1/jobs?after={world.jobs['tuned']}",
        f"/v1/datasets?after={world.dataset_id}",
        f"/v1/prompts?after={world.prompt_id}",
        "/v1/prompts?name=colors",
        "/v1/aliases?name=colors",
        "/v1/aliases?after=colors@live",
        f"/v1/keys?after={world.a.record.id}",
        f"/v1/audit?key_id={world.a.record.id}",
    ):
        listed = world.ask("GET", query, world.c)
        assert listed.status_code == 200, listed.text
        rest = [item for item in listed.json()["data"] if item.get("tenant") != "c"]
        assert rest == [], query


@pytest.mark.parametrize(
    "cursor", ["' OR 1=1--", "%00", "%ff", "x" * 90, "job_' OR ''='", "..%2f..%2f"]
)
def test_forged_cursors_and_ids_are_no_way_in(world: World, cursor: str) -> None:
    assert world.ask("GET", f"/v1/jobs?after={cursor}").status_code == 422
    for kind in ("jobs", "datasets", "prompts"):
        assert world.ask("GET", f"/v1/{kind}/{cursor}").status_code == 404
    assert world.ask("GET", f"/v1/jobs/{'x' * 10_000}").status_code == 404


@pytest.mark.bad_input("D3")
@pytest.mark.parametrize("query", ["limit=-1", f"limit={10**30}", "limit=1&limit=2", "after=job_1"])
def test_pages_out_of_range_are_refused(world: World, query: str) -> None:
    for kind in ("jobs", "datasets", "prompts", "keys", "audit"):
        assert world.ask("GET", f"/v1/{kind}?{query}").status_code == 422


@pytest.mark.bad_input("D4")
def test_what_is_deleted_is_gone_and_what_ended_does_not_move(world: World) -> None:
    """Rows D4: a second DELETE, cancelling what is finished, resuming what runs."""
    client = world.door.as_(world.c)
    dataset = settle(client, upload(client, zip_of(dataset_members())).json()["id"])["id"]
    body = {"dataset_id": dataset, "config": {"shots": 3}}
    done = tune(world.door, client.post("/v1/jobs", json=body).json()["id"])
    assert client.post(f"/v1/jobs/{done}/cancel").status_code == 409
    running = client.post("/v1/jobs", json=body).json()["id"]
    assert leases_of(world.door).claim(running, "worker") is not None
    assert client.post(f"/v1/jobs/{running}/resume").status_code == 409
    assert client.delete(f"/v1/jobs/{done}").status_code == 204
    assert client.delete(f"/v1/jobs/{done}").status_code == 404
    assert client.post(f"/v1/jobs/{done}/resume").status_code == 404


def test_figures_tell_of_ones_own(world: World) -> None:
    text = world.ask("GET", "/metrics", world.b).text
    assert "colors" not in text
    assert "a/" not in text
    queued = re.search(r'sharpzo_jobs\{status="queued"\} (\S+)', text)
    assert queued is not None
    assert float(queued[1]) == 0
    classify = {"files": files(png())}
    assert world.ask("POST", "/v1/prompts/colors/classify", world.a, **classify).status_code == 200
    assert 'prompt="a/colors:1"' in world.ask("GET", "/metrics", world.a).text
    assert "colors" not in world.ask("GET", "/metrics", world.b).text
    everything = world.ask("GET", "/metrics", world.door.key("default")).text
    assert 'prompt="a/colors:1"' in everything
    assert 'sharpzo_jobs{status="queued"} 1.0' in everything


def test_usage_and_readiness_tell_of_ones_own(world: World) -> None:
    used = world.ask("GET", "/v1/usage", world.a).json()
    assert used["active_jobs"]["used"] >= 1
    assert used["storage_bytes"]["used"] > 0
    assert used["forward_passes"]["used"] == 10
    fresh = world.ask("GET", "/v1/usage", world.door.key("fresh")).json()
    for kind in ("active_jobs", "storage_bytes", "forward_passes"):
        assert fresh[kind] == {"used": 0, "limit": None}
    ready = world.door.ask("GET", "/readyz").text
    assert [i for i in (world.dataset_id, world.prompt_id, "colors") if i in ready] == []


# How it is made sure


def test_every_statement_of_a_request_asks_for_the_tenant(world: World) -> None:
    """Of the tables with tenants, rows are found by their tenant, whatever the route."""
    statements: list[str] = []

    def note(_c: Any, _u: Any, statement: str, *_: Any) -> None:
        statements.append(" ".join(statement.split()))

    engine = world.door.services.database
    with listening(engine, note):
        for method, path, _ in declared(world.door.client.app):  # type: ignore[arg-type]
            if path in PUBLIC or path == "/metrics":
                continue
            for real, _missing in pairs(world, method, path):
                world.ask(real[0], real[1], **real[2])
    loose = {text for text in statements if not asks_for_tenant(text)}
    assert len(statements) > 200
    assert loose == set()


#: Statements that look at the rows of all on purpose.
FOR_ALL = (
    r"SELECT api_keys\.id FROM api_keys LIMIT",  # was a key ever made?
    r"SELECT .* FROM api_keys WHERE api_keys\.prefix = \?",  # whose key is this?
    r"SELECT .* FROM prompts WHERE prompts\.pinned",  # what this process keeps in memory
    r"UPDATE api_keys SET last_used_at",
    r"(SELECT|INSERT|DELETE).* audit_log ",  # written in batches, by id
    r"DELETE FROM idempotency_keys WHERE idempotency_keys\.expires_at",
    r"UPDATE idempotency_keys SET expires_at=\? WHERE idempotency_keys\.token IN",
    r"(SELECT|UPDATE).* datasets .*lease_",  # who unpacks, below
    r"SELECT datasets\.id FROM datasets WHERE datasets\.status = \?",
    r"SELECT blobs\.tenant, blobs\.sha256 FROM blobs WHERE blobs\.released_at",  # swept later
    r"UPDATE datasets SET lease_owner=\?, lease_expires_at=\? WHERE datasets\.id = \?",
)


def asks_for_tenant(statement: str) -> bool:
    touched = [table for table in OWNED if re.search(rf"\b{table}\b", statement)]
    if not touched or any(re.match(pattern, statement) for pattern in FOR_ALL):
        return True
    if statement.startswith("INSERT"):
        return "tenant" in statement
    return all(f"{table}.tenant = " in statement for table in touched)


@contextmanager
def listening(engine: sa.Engine, note: Callable[..., None]) -> Iterator[None]:
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


def test_only_health_and_figures_see_the_whole_process(world: World) -> None:
    """Routes get stores of their caller's tenant; only these may go to the process itself."""
    direct = {
        context.path
        for context in iter_route_contexts(world.door.client.app.routes)  # type: ignore[attr-defined]
        for dependency in getattr(getattr(context, "dependant", None), "dependencies", [])
        if dependency.call is process
    }
    assert direct == {"/readyz", "/metrics"}


def test_a_store_of_all_tenants_makes_no_rows(door: Door) -> None:
    services = door.services
    everybody: list[Callable[[], Any]] = [
        lambda: services.datasets.for_all_tenants().create("x"),
        lambda: services.keys.for_all_tenants().create("x", []),
        lambda: services.usage.for_all_tenants().get(),
    ]
    for make in everybody:
        with pytest.raises(RuntimeError, match="all tenants"):
            make()
    assert isinstance(services.jobs, TenantStore)


def test_idempotency_keys_of_two_tenants_are_two(world: World) -> None:
    headers = {"Idempotency-Key": "the same"}
    ids = []
    for key, dataset in ((world.a, world.dataset_id), (world.b, world.own_dataset)):
        body = {"dataset_id": dataset, "config": {"shots": 3}}
        first = world.ask("POST", "/v1/jobs", key, json=body, headers=headers)
        again = world.ask("POST", "/v1/jobs", key, json=body, headers=headers)
        assert first.status_code == 201, first.text
        assert again.json() == first.json()
        ids.append(first.json()["id"])
        world.ask("POST", f"/v1/jobs/{ids[-1]}/cancel", key)
    assert ids[0] != ids[1]


def test_the_prompt_cache_tells_tenants_apart() -> None:
    key = PromptKey("a", "prm_1", "hash", "fingerprint")
    assert key != key._replace(tenant="b")


def test_one_prompt_pinned_by_each_of_two_tenants_stays(world: World) -> None:
    for key, prompt in ((world.a, world.prompt_id), (world.b, world.own_prompt)):
        assert world.ask("PUT", f"/v1/prompts/{prompt}/pin", key).status_code == 200
    assert world.door.services.inference._cache.residency().pinned == 2
    for key, prompt in ((world.a, world.prompt_id), (world.b, world.own_prompt)):
        world.ask("DELETE", f"/v1/prompts/{prompt}/pin", key)


def test_equal_names_of_two_tenants_never_mix(
    open_door: OpenDoor, settings: Settings, backbone: Backbone
) -> None:
    """The same name, alias and classes, in another order; asked at the same time by many."""
    door = open_door(settings)
    names = tuple(COLORS)
    kinds = {"a": names, "b": names[1:] + names[:1]}
    keys = {tenant: door.key(tenant) for tenant in kinds}
    ids = {}
    for tenant, classes in kinds.items():
        client = door.as_(keys[tenant])
        ids[tenant] = import_(client, artifact_of(backbone, classes)).json()["id"]
        alias = client.put("/v1/aliases/colors@live", json={"prompt_id": ids[tenant]})
        assert alias.status_code == 200
    shades = list(COLORS.values())
    mixed: list[Any] = []
    answered: Counter[str] = Counter()

    def ask(number: int) -> None:
        tenant, shade = "ab"[number % 2], number % 3
        ref = ("colors", "colors:1", "colors@live")[number % 3]
        response = door.client.post(
            f"/v1/prompts/{ref}/classify",
            files=files(png(shades[shade])),
            headers=bearer(keys[tenant]),
        )
        body = response.json()
        best = body["results"][0]["predictions"][0]["label"]
        answered[tenant] += 1
        if (body["prompt_id"], best) != (ids[tenant], kinds[tenant][shade]):
            mixed.append((tenant, body))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(240)))
    assert mixed == []
    assert answered == {"a": 120, "b": 120}


# Whose turn it is


def test_a_thousand_jobs_of_one_tenant_do_not_starve_anothers_first(
    open_door: OpenDoor, settings: Settings
) -> None:
    door = open_door(settings)
    services, leases = door.services, leases_of(door)
    jobs = {}
    for tenant, count in (("a", 1000), ("b", 1), ("c", 2)):
        dataset = services.datasets.for_tenant(tenant).create("d")
        services.datasets.for_all_tenants().mark_ready(
            dataset.id, classes=[], counts={}, sha256="0" * 64
        )
        store = services.jobs.for_tenant(tenant)
        new = partial(NewJob, dataset_id=dataset.id, backbone="toy", config={})
        jobs[tenant] = [store.create(new()).id for _ in range(count)]
    began = []

    def next_of(job_id: str) -> Job:
        chosen = leases.whose_turn(job_id)
        job = leases.claim(chosen, "worker")
        assert job is not None
        began.append(job.tenant)
        return job

    bell = iter(jobs["a"])
    one = next_of(next(bell))
    began_times = time.monotonic()
    for _ in range(4):  # one worker that ends each job before it takes the next
        leases.complete(lease_of(one), "f", {})
        one = next_of(next(bell))
    assert time.monotonic() - began_times < 5
    assert Counter(began) == {"a": 2, "b": 1, "c": 2} or Counter(began) == {"a": 3, "b": 1, "c": 1}
    assert "b" in began[:3]
    assert "c" in began[:3]


def test_within_a_tenant_the_job_that_is_rung_for_is_taken(door: Door) -> None:
    services, leases = door.services, leases_of(door)
    dataset = services.datasets.create("d")
    services.datasets.mark_ready(dataset.id, classes=[], counts={}, sha256="0" * 64)
    first, second = (
        services.jobs.create(NewJob(dataset_id=dataset.id, backbone="toy", config={})).id
        for _ in range(2)
    )
    assert leases.whose_turn(second) == second
    assert leases.whose_turn(first) == first
    assert leases.whose_turn("job_unknown") == "job_unknown"
