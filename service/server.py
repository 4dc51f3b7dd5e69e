"""Runs the service: the API, and in embedded mode a worker beside it."""

import atexit
import contextlib
import gc
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.http.connection import bounded_protocol
from service.inference.model_thread import MODELS
from sharpzo_core.database.sqlite import report_version
from sharpzo_core.errors import SettingsError
from sharpzo_core.logging import configure_logging
from sharpzo_core.migrations import migrate
from sharpzo_core.settings import Settings
from sharpzo_core.stores.key_store import keys_exist
from sharpzo_core.supervisor import Supervisor
from sharpzo_engine import __version__

logger = logging.getLogger(__name__)

WORKER_SECONDS = 15.0  # for the worker to save its checkpoints and end
GRACEFUL_SECONDS = 10  # for requests in progress at shutdown
_BACKLOG = 2048
_OTHER_DESCRIPTORS = 256  # files, database, broker, child processes


def main(
    settings: Settings,
    host: str | None = None,
    port: int | None = None,
    with_worker: bool = True,
) -> None:
    """Serve until SIGINT or SIGTERM; then return, or exit with code 0, after the shutdown.

    Args:
        settings: The operator's settings.
        host: Address to listen on; default: the setting.
        port: Port to listen on, 0 for any free one; default: the setting.
        with_worker: Also run a worker if the broker is the embedded one.

    Raises:
        SettingsError: the address is not loopback and keys are not required, or it cannot be bound.
        SchemaTooNew, StorageUnavailable: the database cannot be used.
    """
    configure_logging(settings)
    host = settings.host if host is None else host
    settings = settings.model_copy(update={"host": host})
    check_exposure(settings, host, keyed=keys_exist(settings))
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    migrate(settings)  # database errors must surface before the port is open
    listener = listen(host, settings.port if port is None else port)
    _greet(settings, _url(listener))
    _allow_descriptors(settings.max_connections)
    report_version(settings.db_url)
    # At exit, the interpreter would spend seconds on collecting torch's objects.
    atexit.register(gc.freeze)
    app = create_app(settings, warm_up=True)
    config = uvicorn.Config(
        app,
        http=bounded_protocol(settings),
        ws="none",
        log_config=None,
        access_log=False,
        # Uvicorn's default trusts every process on this machine.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies or None,
        server_header=False,
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
    )
    with (
        _exit_despite_model_threads(),
        listener,
        _exit_on_sigterm(),
        _worker(settings, with_worker) as stop_worker,
    ):
        server = _Server(config, app, stop_worker)
        # From here on SIGTERM shuts down in order; an exception could hit the event loop's start.
        signal.signal(signal.SIGTERM, server.handle_exit)
        logger.info("listening on %s", _url(listener), extra={"action": "listening"})
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


def _greet(settings: Settings, url: str) -> None:
    """Print the addresses to click before the first log line; a JSON log has them by itself."""
    if settings.log_format == "json":
        return
    url = url.replace("//0.0.0.0:", "//localhost:").replace("//[::]:", "//localhost:")
    lines = (
        f"SharpZO {__version__}  {url}",
        f"Dashboard      {url}/",
        f"API docs       {url}/docs",
        f"Data folder    {settings.data_dir.resolve()}",
    )
    with contextlib.suppress(OSError):  # standard output is closed
        print(*lines, sep="\n", flush=True)  # noqa: T201 - for people, not for the log


def _allow_descriptors(connections: int) -> None:
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < wanted:
            logger.warning(
                "the limit of %d open files is too low for %d connections (raise it, or lower %s)",
                allowed,
                connections,
                "SHARPZO_MAX_CONNECTIONS",
                extra={"action": "descriptors"},
            )


def check_exposure(settings: Settings, host: str, *, keyed: bool = False) -> None:
    """Refuse to listen on other than loopback addresses without authentication.

    Raises:
        SettingsError: `host` is not a loopback address, no API key exists (`keyed`), and the
            settings do not allow that.
    """
    if keyed or settings.allow_unauthenticated or _is_loopback(host):
        return
    raise SettingsError(
        f"will not listen on {host} without authentication (create an API key first with "
        "`sharpzo keys create`, use 127.0.0.1, or set SHARPZO_ALLOW_UNAUTHENTICATED=true if "
        "something else restricts access)"
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """Open the server's socket; port 0 means any free one.

    Raises:
        SettingsError: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host} port {port}: {error.strerror} (choose another --port)"
        ) from error
    # Connections inherit it; asyncio only sets it on sockets that name their protocol. Without it a
    # response waits 40 ms for the client's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Also ends event streams and the worker as soon as the shutdown begins."""

    def __init__(
        self, config: uvicorn.Config, app: FastAPI, stop_worker: Callable[[], object]
    ) -> None:
        super().__init__(config)
        self._app = app
        self._stop_worker = stop_worker

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:  # uvicorn raises the signal again at the end
            logger.info("shutting down", extra={"action": "shutting_down"})
        services = getattr(self._app.state, "services", None)
        if services is not None:
            services.stopping.set()
        self._stop_worker()
        super().handle_exit(sig, frame)


@contextlib.contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exception until the server runs, so that the worker is stopped."""
    previous = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _exit_despite_model_threads() -> Iterator[None]:
    """Exit at once after a shutdown while a thread still loads or runs a model.

    Nothing waits for such a thread, and an orderly interpreter exit, which dismantles torch under
    it, may abort or hang. Everything else has been closed by then.
    """
    orderly = False
    try:
        yield
        orderly = True
    except SystemExit as ending:
        orderly = ending.code == 0
        raise
    finally:
        if orderly and MODELS in {thread.name for thread in threading.enumerate()}:
            logging.getLogger().handlers[0].flush()
            os._exit(0)


def _exit(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


@contextlib.contextmanager
def _worker(settings: Settings, with_worker: bool) -> Iterator[Callable[[], object]]:
    """Run a worker if wanted; yields a function that asks it to stop before the block ends."""
    if not (with_worker and settings.embedded_broker):
        yield lambda: None
        return
    supervisor = Supervisor(
        "the worker",
        [sys.executable, "-m", "worker", "--parent-pid", str(os.getpid())],
        settings.environment(),
        own_session=True,
        grace_seconds=WORKER_SECONDS,
    )
    supervisor.start()
    try:
        yield supervisor.ask_to_end
    finally:
        supervisor.stop()
