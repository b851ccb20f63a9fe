"""Concurrent work that has ended when the caller goes on, and the lock under which models are loaded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from usertwin.personas import UsertwinError

P = ParamSpec("P")
T = TypeVar("T")

#: Held while transformers loads weights. It changes state of the whole process meanwhile (torch's default data type, the
#: initialisers of layers), so a model that another thread loads at that time can get weights of a wrong type or none.
LOADING = threading.RLock()


async def gather(*coroutines: Coroutine[Any, Any, T]) -> list[T]:
    """Return the results of coroutines. The first exception is raised after the others were cancelled and have ended.

    `asyncio.gather` leaves them running: they would ask models on, and use what the caller closes.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        raise


async def to_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking function in a thread, as `asyncio.to_thread`; a cancellation is raised after the function has ended.

    A thread cannot be stopped, and it uses memories and models that the caller may close.
    """
    running = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.gather(running, return_exceptions=True)
        raise


async def run_concurrently(worker: Callable[[], Coroutine[object, object, None]], concurrency: int) -> None:
    """Run `concurrency` copies of `worker` (at least one) until all have finished.

    Raises:
        UsertwinError: the first one a worker raised, after the others were cancelled; later ones usually have the same cause.
        ExceptionGroup: any other exception, as `asyncio.TaskGroup` raises it.
    """
    # The error is raised after the `except*` block: inside it, Python before 3.11.4 wraps it in a group (CPython issue 103590).
    first: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(max(1, concurrency)):
                group.create_task(worker())
    except* UsertwinError as errors:
        first = errors.exceptions[0]
    if first is not None:
        raise first
