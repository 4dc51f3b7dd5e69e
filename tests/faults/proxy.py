"""A TCP proxy that can be told to misbehave; in the way of Toxiproxy, without its server."""

from __future__ import annotations

import asyncio
import math
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass

_CHUNK = 1 << 16
_LINGER = struct.pack("ii", 1, 0)  # closing sends a reset


@dataclass(frozen=True)
class Weather:
    """How the network is."""

    refuse: bool = False  #: New connections are refused, old ones closed
    reset: bool = False  #: Every connection is reset as soon as it is made
    silent: bool = False  #: Connections are taken, and nothing ever comes back
    delay: float = 0.0  #: Seconds that every answer is late
    rate: float = math.inf  #: Bytes per second, each way


FAIR = Weather()


class Proxy:
    """Stands in front of a port of this machine, in a thread of its own."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._weather = FAIR
        self._open: set[asyncio.StreamWriter] = set()
        self._listener: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self.port = 0
        self._run(self._listen())

    def set(self, weather: Weather) -> None:
        """Change the weather, for the connections there are as well."""
        self._run(self._change(weather))

    def close(self) -> None:
        """Let nothing through any more."""
        self._run(self._change(Weather(refuse=True)))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _change(self, weather: Weather) -> None:
        self._weather = weather
        if weather.refuse or weather.reset:
            for writer in tuple(self._open):
                _reset(writer)
        if weather.refuse and self._listener is not None:
            self._listener.close()
            self._listener = None
        elif not weather.refuse and self._listener is None:
            await self._listen()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            if self._weather.reset:
                return _reset(writer)
            upstream = await asyncio.open_connection("127.0.0.1", self._target)
            self._open.add(upstream[1])
            await asyncio.gather(
                self._pump(reader, upstream[1], late=False),
                self._pump(upstream[0], writer, late=True),
            )
        except OSError:
            _reset(writer)  # the server is away, or one side has gone
        finally:
            self._open.discard(writer)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, late: bool
    ) -> None:
        try:
            while data := await reader.read(int(min(_CHUNK, self._weather.rate))):
                await asyncio.sleep(len(data) / self._weather.rate)
                if late:
                    await asyncio.sleep(self._weather.delay)
                if not self._weather.silent:
                    writer.write(data)
                    await writer.drain()
        finally:
            self._open.discard(writer)
            writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
    writer.transport.abort()
