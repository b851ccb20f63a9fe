"""Limits of the endpoint: how many turns are written at a time, and how many requests a client may send."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import ceil, inf

from .errors import RequestError

#: Clients whose rate is remembered; the one that was seen longest ago is forgotten first.
_MAX_CLIENTS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds the requests.

    Attributes:
        concurrency: turns that are written at a time.
        waiting: requests that wait for their turn; more are refused.
        per_minute: requests of one client in a minute; inf for no limit.
        body_bytes: the size of a request's body.
        body_seconds: how long a client may take to send it.
        turn_seconds: how long a turn may take, from when its request is next; inf for no limit.
    """

    concurrency: int = 1
    waiting: int = 100
    per_minute: float = 600.0
    body_bytes: int = 2**20
    body_seconds: float = 30.0
    turn_seconds: float = 300.0


class Gate:
    """Lets some requests write turns at a time; some more wait, and all others are refused."""

    def __init__(self, limits: Limits) -> None:
        self._slots, self._waiting, self._limit = asyncio.Semaphore(limits.concurrency), 0, limits.waiting

    @asynccontextmanager
    async def enter(self) -> AsyncGenerator[None]:
        """Wait for a slot. RequestError if too many requests wait already."""
        if self._slots.locked() and self._waiting >= self._limit:
            text = f"{self._limit} requests wait for a turn already; try again later, or raise --turns-at-once"
            raise RequestError(503, text, code="server_busy", headers={"Retry-After": "1"})
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._slots.release()


class RateLimit:
    """A token bucket for each client: a minute's requests at once, refilled evenly."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> None:
        """Count a request of a client. RequestError if it is one too many."""
        if self._per_minute == inf:
            return
        now, size = self._clock(), max(1.0, self._per_minute)
        left, then = self._buckets.pop(client, (size, now))
        left = min(size, left + (now - then) * self._per_minute / 60)
        self._buckets[client] = (left - 1 if left >= 1 else left, now)
        if len(self._buckets) > _MAX_CLIENTS:
            self._buckets.popitem(last=False)
        if left < 1:
            seconds = ceil((1 - left) * 60 / self._per_minute)
            text = f"more than {self._per_minute:g} requests in a minute; wait {seconds} s, or raise --rate"
            raise RequestError(429, text, code="rate_limit_exceeded", headers={"Retry-After": str(seconds)})
