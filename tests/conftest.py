"""What all tests share: two tiers, no network but loopback, and the servers that they need.

`make test` runs the fast tier, which is every test without the marker `slow`; `make test-all` runs
all. Both run in two processes. A test file stays in one process, so that its fixtures are set up
once; folders whose files share a running service stay together as well.

SHARPZO_TEST_REQUIRE=redis,postgres turns the skip of a test whose server is missing into a failure;
commands that tests need (chromium, docker-compose, prometheus, sqlite3) are named there as well.
"""

import ipaddress
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
# Threads only get into each other's way on models as small as those of the tests.
os.environ["OMP_NUM_THREADS"] = "1"
pytest_plugins = ("tests.helpers",)
# How long an example takes says something of the machine, not of the code.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")

TESTS = Path(__file__).parent
#: Folders and files of services, browsers and kills, the longest first: slow but for their tests
#: that are marked `fast`.
SLOW = (
    "faults/",
    "docs/",
    "dashboard/",
    "benchmarks/",
    "deploy/",
    "examples/",
    "fuzz/",
    "e2e/",
    "worker/test_shutdown.py",
    "service/test_replicas.py",
)
SLOW_SECONDS = 600  # until a slow test is ended; it starts several processes that load torch
#: Folders whose files share a service for the whole session.
ONE_SERVICE = ("faults", "dashboard", "cli")

REDIS_URL = os.environ.get("SHARPZO_TEST_REDIS_URL", "redis://127.0.0.1:6379/15")
POSTGRES_URL = os.environ.get(
    "SHARPZO_TEST_POSTGRES_URL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
)
CHROMIUM = os.environ.get("SHARPZO_CHROMIUM") or shutil.which("chromium")
REQUIRED = os.environ.get("SHARPZO_TEST_REQUIRE", "").split(",")


@pytest.hookimpl(tryfirst=True)  # before `-m` selects by the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        path = path_of(item)
        if path.startswith(SLOW) and not item.get_closest_marker("fast"):
            item.add_marker("slow")
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))
    # Long ones first, so that both processes end at about the same time.
    items.sort(key=lambda item: order(path_of(item)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Schedule by file, or by folder where files share a service.

    Groups by marker (`--dist loadgroup`) have no effect in xdist 3.8 with pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByService(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return next((f for f in ONE_SERVICE if file.startswith(f"tests/{f}/")), file)

    return ByService(config, log)


def path_of(item: pytest.Item) -> str:
    return item.path.relative_to(TESTS).as_posix()


def order(path: str) -> int:
    """Its place among the slow ones, or after them."""
    return next((i for i, name in enumerate(SLOW) if path.startswith(name)), len(SLOW))


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for server in marker.args:
            reason = MISSING.get(server, partial(missing_command, server))()
            if reason and server in REQUIRED:
                pytest.fail(f"{server} is required: {reason}", pytrace=False)
            if reason:
                pytest.skip(reason)


@pytest.fixture(autouse=True)
def _only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not is_loopback(address[0]):
            raise RuntimeError(f"a test tried to reach {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def missing_command(name: str) -> str | None:
    """Why the command cannot be run; None if it can."""
    return None if shutil.which(name) else f"there is no command {name}"


@cache
def missing_redis() -> str | None:
    """Why there is no Redis; None if one answers or can be started."""
    import redis

    if shutil.which("redis-server"):
        return None
    try:
        with redis.Redis.from_url(REDIS_URL, socket_connect_timeout=2) as client:
            client.ping()
    except redis.RedisError as error:
        return f"no redis-server to start, and none at {REDIS_URL}: {type(error).__name__}"
    return None


@cache
def missing_postgres() -> str | None:
    """Why there is no PostgreSQL; None if one answers."""
    import sqlalchemy as sa

    engine = sa.create_engine(POSTGRES_URL, connect_args={"connect_timeout": 2})
    try:
        engine.connect().close()
    except sa.exc.OperationalError:
        return f"no PostgreSQL at {POSTGRES_URL}"
    finally:
        engine.dispose()
    return None


def missing_chromium() -> str | None:
    """Why there is no browser; None if there is one."""
    return None if CHROMIUM else "no chromium: install it, or name it in SHARPZO_CHROMIUM"


@cache
def missing_package_index() -> str | None:
    """An index of Python packages, as pip is configured to use."""
    asked = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    with tempfile.TemporaryDirectory() as folder:
        command = [*asked, folder, "threadpoolctl"]
        found = subprocess.run(command, capture_output=True, check=False, timeout=60)
    return None if found.returncode == 0 else "pip reaches no package index"


MISSING = {
    "redis": missing_redis,
    "postgres": missing_postgres,
    "chromium": missing_chromium,
    "package-index": missing_package_index,
}


def own_number(url: str) -> str:
    """The configured Redis, with another database for each process that runs tests."""
    server, _, number = url.rpartition("/")
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return f"{server}/{int(number) - process}" if number.isdecimal() else url


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A Redis without keys: one of our own if possible, else the configured one."""
    if "SHARPZO_TEST_REDIS_URL" in os.environ or not shutil.which("redis-server"):
        yield own_number(REDIS_URL)
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as server:
        try:
            wait_for_port(port)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated file to copy, which is quicker than to migrate."""
    from sharpzo_core.migrations import migrate
    from sharpzo_core.settings import Settings

    folder = tmp_path_factory.mktemp("migrated")
    migrate(Settings.load(data_dir=folder))
    return folder / "sharpzo.db"


@pytest.fixture
def data_dir(tmp_path: Path, migrated_sqlite: Path) -> Path:
    """A data folder with a migrated database and nothing else."""
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(migrated_sqlite, folder)
    return folder


@pytest.fixture
def decode_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads start no processes: for tests in which decoding is not the subject."""
    from service.ingest import processor
    from tests.service.decoders import InProcess

    monkeypatch.setattr(processor, "Decoders", InProcess)


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """An empty PostgreSQL database, dropped afterwards."""
    with own_database() as url:
        yield url


@pytest.fixture(scope="session")
def shared_postgres_url() -> Iterator[str]:
    """A PostgreSQL database for the whole session."""
    with own_database() as url:
        yield url


@contextmanager
def own_database() -> Iterator[str]:
    import sqlalchemy as sa

    name = f"sharpzo_test_{uuid.uuid4().hex}"
    engine = sa.create_engine(POSTGRES_URL, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        yield engine.url.set(database=name).render_as_string(hide_password=False)
        with engine.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    finally:
        engine.dispose()


def wait_for_port(port: int, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")
