"""Running one worker several times at once, where the caller sees the first of our own errors and not a group of them.

The one design choice: the error is kept in the `except*` block and raised after it, since before Python 3.11.4 whatever is
raised inside such a block comes out wrapped in a group again (CPython issue 103590).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from usertwin.personas import UsertwinError


async def run_concurrently(worker: Callable[[], Coroutine[object, object, None]], concurrency: int) -> None:
    """Run `worker` `concurrency` times at once (once at the least), until each has come to its end.

    Raises the first `UsertwinError` of a worker, after the others were cancelled: it is the cause, and the rest mostly lost the
    same model. Any other exception comes as `asyncio.TaskGroup` raises it.
    """
    first: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(max(1, concurrency)):
                group.create_task(worker())
    except* UsertwinError as failed:
        first = failed.exceptions[0]
    if first is not None:
        raise first
