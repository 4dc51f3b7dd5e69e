"""`client.backbones` and `client.health`."""

from __future__ import annotations

from collections.abc import Sequence

from sharpzo_client._operations import service as ops
from sharpzo_client.models import Backbone, Health
from sharpzo_client.resources._base import AsyncResource, Resource


class Backbones(Resource):
    """The backbones that the service offers."""

    def list(self) -> Sequence[Backbone]:
        """Return the backbones that a job may name, and whether each is loaded."""
        return self._transport.send(ops.list_backbones())


class AsyncBackbones(AsyncResource):
    """The backbones that the service offers."""

    async def list(self) -> Sequence[Backbone]:
        """Return the backbones that a job may name, and whether each is loaded."""
        return await self._transport.send(ops.list_backbones())


class HealthChecks(Resource):
    """Health checks; each is one request without retries."""

    def livez(self) -> Health:
        """Check that the process answers."""
        return self._transport.send(ops.health("/livez"))

    def readyz(self) -> Health:
        """Check that the service is ready to work.

        Raises:
            ServiceUnavailableError: It is not.
        """
        return self._transport.send(ops.health("/readyz"))


class AsyncHealthChecks(AsyncResource):
    """Health checks; each is one request without retries."""

    async def livez(self) -> Health:
        """Check that the process answers."""
        return await self._transport.send(ops.health("/livez"))

    async def readyz(self) -> Health:
        """Check that the service is ready to work."""
        return await self._transport.send(ops.health("/readyz"))
