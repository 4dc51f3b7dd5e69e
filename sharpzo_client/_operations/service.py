"""Calls about the service itself."""

from __future__ import annotations

from sharpzo_client._operation import Operation, Retry
from sharpzo_client._operations import _build as api
from sharpzo_client._response import reads, reads_series
from sharpzo_client.models import Backbone, Health, Usage


def list_backbones() -> Operation[tuple[Backbone, ...]]:
    return Operation(method="GET", path="/v1/backbones", read=reads_series(Backbone))


def get_usage() -> Operation[Usage]:
    return api.get(Usage, "usage")


def health(path: str) -> Operation[Health]:
    """A health check; sent once, without retries."""
    return Operation(method="GET", path=path, retry=Retry.NEVER, read=reads(Health))
