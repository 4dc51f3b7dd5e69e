"""`client.backbones` and `client.health`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sharpzo_client import _operations as ops
from sharpzo_client.resources._base import AsyncResource, Resource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sharpzo_client.models import Backbone, Health


class Backbones(Resource):
    """Backbones that the service offers."""

    def list(self) -> Sequence[Backbone]:
        """What a job may name, and what is loaded."""
        return self._transport.send(ops.list_backbones())


class AsyncBackbones(AsyncResource):
    """Backbones that the service offers."""

    async def list(self) -> Sequence[Backbone]:
        """What a job may name, and what is loaded."""
        return await self._transport.send(ops.list_backbones())


class HealthChecks(Resource):
    """State of the service; asked once, without retries."""

    def livez(self) -> Health:
        """Whether the process answers."""
        return self._transport.send(ops.health("/livez"))

    def readyz(self) -> Health:
        """Whether the service can work; raises ServiceUnavailableError if not."""
        return self._transport.send(ops.health("/readyz"))


class AsyncHealthChecks(AsyncResource):
    """State of the service; asked once, without retries."""

    async def livez(self) -> Health:
        """Whether the process answers."""
        return await self._transport.send(ops.health("/livez"))

    async def readyz(self) -> Health:
        """Whether the service can work; raises ServiceUnavailableError if not."""
        return await self._transport.send(ops.health("/readyz"))
