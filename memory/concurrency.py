"""Concurrent work that has ended when the caller goes on, work in batches, and the lock under which models are loaded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from usertwin.personas import UsertwinError

P = ParamSpec("P")
A = TypeVar("A")
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


class Batches(Generic[A, T]):
    """A blocking function of several items, called in a thread for all items that concurrent tasks of an event loop wait for.

    While a call runs, later items wait for the next call; an item that is alone never waits. If a call fails, each of its items
    gets a call of its own, so that an item is the cause of its own error only.

    Args:
        function: returns a result for each item, in their order.
    """

    def __init__(self, function: Callable[[Sequence[A]], Sequence[T]]) -> None:
        self._function = function
        self._waiting = WeakKeyDictionary[asyncio.AbstractEventLoop, list[tuple[A, asyncio.Future[T]]]]()
        self._workers = WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[None]]()

    async def __call__(self, item: A) -> T:
        """Return the result for an item; a cancellation is raised after a call with the item has ended (see `to_thread`)."""
        loop = asyncio.get_running_loop()
        waiting, entry = self._waiting.setdefault(loop, []), (item, loop.create_future())
        waiting.append(entry)
        if (worker := self._workers.get(loop)) is None or worker.done():
            self._workers[loop] = loop.create_task(self._work(waiting))
        try:
            return await asyncio.shield(entry[1])
        except asyncio.CancelledError:
            if entry in waiting:
                waiting.remove(entry)
            else:
                await asyncio.gather(entry[1], return_exceptions=True)
            raise

    async def _work(self, waiting: list[tuple[A, asyncio.Future[T]]]) -> None:
        batch = list[tuple[A, asyncio.Future[T]]]()
        try:
            while waiting:
                batch = waiting.copy()
                waiting.clear()
                await self._call(batch)
        finally:  # the loop ends
            for _, result in batch + waiting:
                result.cancel()
            waiting.clear()

    async def _call(self, batch: Sequence[tuple[A, asyncio.Future[T]]]) -> None:
        try:
            values = await to_thread(self._function, [item for item, _ in batch])
        except Exception as error:
            if len(batch) > 1:
                for entry in batch:
                    await self._call([entry])
            else:
                batch[0][1].set_exception(error)
            return
        for (_, result), value in zip(batch, values, strict=True):
            result.set_result(value)


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
