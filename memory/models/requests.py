"""How requests reach a model: at most so many at a time, and again after a while if the endpoint is busy or out of reach."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import TYPE_CHECKING, Any, TypeVar

from usertwin.personas import UsageError

if TYPE_CHECKING:
    from tenacity import RetryCallState

T = TypeVar("T")

#: Statuses with which an endpoint says that it has too many requests now, and others after which a request may succeed.
_BUSY, _PASSING = frozenset({429, 503, 529}), frozenset({408, 409, 425})
#: What a 429 says if waiting does not help.
_NO_MONEY = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
#: Classes of broken connections: of the clients of OpenAI and others, of httpx, and of aiohttp.
_CONNECTION_ERRORS = frozenset({"APIConnectionError", "TransportError", "ClientConnectionError"})
#: Seconds of the first wait and of the longest one, without a Retry-After; the wait is random below that, and doubles.
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
#: A Retry-After is stretched by a random share of at most this, so that waiting requests do not all return at once.
_SPREAD = 0.1


class ConcurrencyLimit:
    """At most `limit` requests at a time, in the order in which they came: `async with limit: ...`.

    Design: asyncio's semaphores and anyio's limiters belong to one event loop, and a model may be used from several, on several
    threads.

    Raises:
        UsageError: the limit is below 1.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise UsageError(f"the limit of concurrent requests is {limit}; it must be at least 1")
        self.limit, self._free = limit, limit
        self._lock, self._waiting = threading.Lock(), deque[Future[None]]()

    async def __aenter__(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            turn = Future[None]()
            self._waiting.append(turn)
        try:
            await asyncio.wrap_future(turn)
        except BaseException:
            if not turn.cancel():  # the turn has come meanwhile: pass it on
                self._release()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        while True:
            with self._lock:
                turn = self._waiting.popleft() if self._waiting else None
                self._free += turn is None
            if turn is None:
                return
            if turn.set_running_or_notify_cancel():
                turn.set_result(None)
                return


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How a request is repeated that meets a rate limit, an error of the server or a broken connection.

    The waits grow exponentially with jitter; a Retry-After of the endpoint is respected.

    Attributes:
        seconds: the most seconds from the first request to the last.
        attempts: the most requests, unless the endpoint says that it is busy: then only the seconds count.
        sleep: waits for some seconds.
    """

    seconds: float = 120.0
    attempts: int = 5
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def run(self, request: Callable[[], Awaitable[T]], on_retry: Callable[[], None]) -> T:
        """Return the result of a request; `on_retry` is called before each repetition. The last exception is raised."""
        from tenacity import AsyncRetrying, retry_if_exception

        retrying = AsyncRetrying(
            retry=retry_if_exception(is_transient), wait=_wait, stop=self._is_over, reraise=True, sleep=self.sleep,
            before_sleep=lambda state: on_retry(),
        )  # fmt: skip
        return await retrying(request)

    def _is_over(self, state: RetryCallState) -> bool:
        error = _error(state)
        is_busy = status_of(error) in _BUSY or retry_after(error) is not None
        passed = max(state.seconds_since_start or 0.0, state.idle_for)
        return (not is_busy and state.attempt_number >= self.attempts) or passed + state.upcoming_sleep > self.seconds


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed later: a rate limit, an error of the server, or a broken connection."""
    if (status := status_of(error)) is not None:
        is_server = status >= 500 and status != 501
        return is_server or status in _PASSING or (status in _BUSY and getattr(error, "code", None) not in _NO_MONEY)
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, ConnectionError) or bool(names & _CONNECTION_ERRORS)


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status in an exception of any client; None if it has none."""
    response: Any = getattr(error, "response", None)
    places = (getattr(error, "status_code", None), getattr(response, "status_code", None), getattr(error, "code", None))
    return next((value for value in places if type(value) is int and 100 <= value < 600), None)


def retry_after(error: BaseException) -> float | None:
    """Return the seconds after which the endpoint wants the request again; None if it does not say so."""
    response: Any = getattr(error, "response", None)
    headers: Any = getattr(response, "headers", None)
    if headers is None:
        return None
    return next((seconds for seconds in _waits(headers) if isfinite(seconds) and seconds >= 0), None)


def _waits(headers: Mapping[str, str]) -> Iterator[float]:
    milliseconds, wait = (str(headers.get(name) or "") for name in ("retry-after-ms", "retry-after"))
    with suppress(ValueError):
        yield float(milliseconds) / 1000
    with suppress(ValueError):
        yield float(wait)
    with suppress(ValueError):  # a date
        yield max(0.0, parsedate_to_datetime(wait).timestamp() - time.time())


def _wait(state: RetryCallState) -> float:
    from tenacity import wait_random_exponential

    asked = retry_after(_error(state))
    if asked is None:
        return wait_random_exponential(multiplier=_FIRST_WAIT, max=_LONGEST_WAIT)(state)
    return asked * (1 + random.uniform(0, _SPREAD))


def _error(state: RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome is not None else None
    assert error is not None  # a policy looks at failed attempts only
    return error
