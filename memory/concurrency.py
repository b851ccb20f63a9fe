"""Concurrent workers whose first `UsertwinError` the caller sees, and the lock under which models are loaded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine

from usertwin.personas import UsertwinError

#: Held while transformers loads weights. It changes state of the whole process meanwhile (torch's default data type, the
#: initialisers of layers), so a model that another thread loads at that time can get weights of a wrong type or none.
LOADING = threading.RLock()


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
