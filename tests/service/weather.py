"""An application before another one that has bad days: 429, 503, cut connections, slow answers."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]


class BadWeather:
    """Lets a share of requests go wrong, and counts what became of all."""

    def __init__(self, app: Any, share: float = 0.05, seed: int = 0) -> None:
        self.share = share
        self.seen: Counter[str] = Counter()
        self.paths: Counter[str] = Counter()
        self._app = app
        self._random = random.Random(seed)

    async def __call__(self, scope: Message, receive: Any, send: Send) -> None:
        if scope["type"] != "http" or not self._random.random() < self.share:
            if scope["type"] == "http":
                self.seen["calm"] += 1
                self.paths[scope["path"]] += 1
            await self._app(scope, receive, send)
            return
        kind = self._random.choice(["429", "503", "cut early", "cut late", "slow"])
        self.seen[kind] += 1
        if kind.isdecimal():
            await _refuse(int(kind), send)
        elif kind == "cut early":
            raise ConnectionResetError
        elif kind == "cut late":
            await self._app(scope, receive, _cutting(send))
        else:
            await asyncio.sleep(0.5)
            await self._app(scope, receive, send)


async def _refuse(status: int, send: Send) -> None:
    headers = [(b"retry-after", b"1")] if status == 429 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"not now"})


def _cutting(send: Send) -> Send:
    """Sends half of a body, and closes the connection."""

    async def cut(message: Message) -> None:
        if message["type"] == "http.response.body" and message.get("body"):
            half = message["body"][: len(message["body"]) // 2]
            await send({"type": "http.response.body", "body": half, "more_body": True})
            raise ConnectionResetError
        await send(message)

    return cut
