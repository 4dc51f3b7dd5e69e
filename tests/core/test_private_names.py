"""What is overridden or used of celery, kombu, uvicorn and starlette beside their public API.

Nothing fails by itself where one of these is renamed: an override is simply never called again.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
import starlette._utils
import uvicorn
from celery.app.amqp import AMQP
from kombu import connection
from kombu.transport import filesystem, redis
from kombu.transport.virtual import base
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from service.http.connection import BoundedProtocol
from service.server import _Server
from sharpzo_core.broker import transports

#: Ours, theirs, and the parameters of theirs.
METHODS = [
    (transports._FileChannel._put, filesystem.Channel._put, "self queue payload kwargs"),
    (
        transports.FileTransport.drain_events,
        filesystem.Transport.drain_events,
        "self connection timeout",
    ),
    (transports._RedisQoS.ack, redis.QoS.ack, "self delivery_tag"),
    (transports._RedisQoS.reject, redis.QoS.reject, "self delivery_tag requeue"),
    (
        transports.CarefulAMQP.Connection.get_transport_cls,
        connection.Connection.get_transport_cls,
        "self",
    ),
    (BoundedProtocol.connection_made, H11Protocol.connection_made, "self transport"),
    (BoundedProtocol.connection_lost, H11Protocol.connection_lost, "self exc"),
    (BoundedProtocol.data_received, H11Protocol.data_received, "self data"),
    (BoundedProtocol.on_response_complete, H11Protocol.on_response_complete, "self"),
    (BoundedProtocol.resume_writing, H11Protocol.resume_writing, "self"),
    (BoundedProtocol.send_400_response, H11Protocol.send_400_response, "self msg"),
    (_Server.handle_exit, uvicorn.Server.handle_exit, "self sig frame"),
    (None, starlette._utils.get_route_path, "scope"),
]


@pytest.mark.parametrize(
    ("ours", "theirs", "parameters"), METHODS, ids=lambda value: getattr(value, "__qualname__", "")
)
def test_an_overridden_method_has_its_known_signature(
    ours: object, theirs: object, parameters: str
) -> None:
    assert callable(theirs)
    assert list(inspect.signature(theirs).parameters) == parameters.split()
    if ours is not None:
        assert callable(ours)
        assert ours.__name__ == theirs.__name__


def test_the_classes_that_are_replaced_are_looked_up_by_these_names() -> None:
    assert AMQP.Connection is connection.Connection
    assert filesystem.Transport.Channel is filesystem.Channel
    assert redis.Transport.Channel is redis.Channel
    assert redis.Channel.QoS is redis.QoS
    assert issubclass(filesystem.Transport, base.Transport)


def test_attributes_that_are_read_are_set() -> None:
    assert isinstance(inspect.getattr_static(filesystem.Channel, "data_folder_out"), object)
    assert "self._quick_ack" in inspect.getsource(base.QoS.__init__)
    made = inspect.getsource(H11Protocol.__init__)
    for name in ("conn", "connections", "cycle", "loop", "transport"):
        assert f"self.{name}" in made
    assert "self.response_complete" in inspect.getsource(RequestResponseCycle.__init__)


def test_no_other_method_is_overridden_in_silence() -> None:
    """Every method of these classes is new, or stands in the table above."""
    known = {ours.__qualname__ for ours, _, _ in METHODS if ours is not None}
    pairs = [
        (transports._FileChannel, filesystem.Channel),
        (transports.FileTransport, filesystem.Transport),
        (transports._RedisQoS, redis.QoS),
        (transports._RedisChannel, redis.Channel),
        (transports.RedisTransport, redis.Transport),
        (transports.CarefulAMQP.Connection, connection.Connection),
        (BoundedProtocol, H11Protocol),
    ]
    overridden = {
        vars(ours)[name].__qualname__
        for ours, theirs in pairs
        for name in vars(ours)
        if inspect.isfunction(vars(ours)[name]) and hasattr(theirs, name)
    }
    assert overridden <= known


@pytest.mark.parametrize("package", ["service", "sharpzo_core", "worker"])
def test_private_modules_are_imported_only_if_they_are_tested_here(package: str) -> None:
    imported = {
        node.module
        for path in Path(package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and "._" in node.module
    }
    assert {name for name in imported if not name.startswith("sharpzo")} <= {"starlette._utils"}
