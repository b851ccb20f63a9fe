"""`run_sync`: the one way from a synchronous function to an async one, over one event loop for the life of the process.

A client that keeps connections (httpx, ChatOpenAI, an MCP session) works only in the event loop that it was first used in. All
synchronous functions therefore share one loop, on a daemon thread of its own: such an agent works in every conversation, and
its background tasks go on between conversations. In async code the caller's own loop is used.

Design: anyio's blocking portal is less code, but a SystemExit in a task ends it, a forked child inherits it dead, and it hangs
when its own thread waits for it.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
_Job = Callable[[], None]

#: Threads of a loop's `asyncio.to_thread`. Each may wait in a `run_sync` of its own, so a small pool could deadlock.
_MAX_THREADS = 512
#: Seconds that interrupted work gets to end; work that blocks its loop never ends.
_END = 10.0
#: Seconds that background tasks get to end when the interpreter exits.
_GRACE = 1.0

#: The loops by depth, and the pool of each. Work of loop i that blocks its thread with a `run_sync` continues on loop i + 1.
_loops: list[asyncio.AbstractEventLoop] = []
_pools: dict[asyncio.AbstractEventLoop, ThreadPoolExecutor] = {}
_lock = threading.Lock()
_depth: ContextVar[int] = ContextVar("usertwin_loop_depth", default=0)
#: The queue through which the current work calls back into the thread that waits for it, and all queues that are served.
_callbacks: ContextVar[SimpleQueue[_Job | None] | None] = ContextVar("usertwin_callbacks", default=None)
_served: set[SimpleQueue[_Job | None]] = set()


def run_sync(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the process's event loop and return its result, in the caller's context.

    It works in every thread, also in one where an event loop is running (a notebook, or a callback of an agent). An interrupt
    cancels the work, waits for its end for some seconds, and is raised.
    """
    running = _running_loop()
    depth = _loops.index(running) + 1 if running in _loops else _depth.get()
    loop, callbacks, done = _loop(depth), SimpleQueue[_Job | None](), Future[T]()
    tasks: list[asyncio.Task[None]] = []

    async def run() -> None:
        _depth.set(depth)
        _callbacks.set(callbacks)
        try:
            done.set_result(await work)
        except BaseException as error:  # the caller gets it, SystemExit too
            done.set_exception(error)

    def start() -> None:
        tasks.append(loop.create_task(run()))
        tasks[0].add_done_callback(end)

    def end(_: object = None) -> None:
        work.close()
        _renew_pool(loop)
        if not done.done():  # cancelled before the first step
            done.set_exception(asyncio.CancelledError())
        if callbacks in _served:
            callbacks.put(None)

    _served.add(callbacks)
    try:
        loop.call_soon_threadsafe(start)
        _serve(callbacks)
    except BaseException:  # KeyboardInterrupt, or what another signal handler raised
        if not done.done():
            loop.call_soon_threadsafe(lambda: tasks[0].cancel() if tasks else end())
            with suppress(Empty):
                _serve(callbacks, timeout=_END)
        raise
    finally:
        _served.discard(callbacks)
    return done.result()


async def in_caller(function: Callable[..., T], *args: Any) -> T:
    """Call a user's callback in the thread that waits in `run_sync` for the current work; without one, here.

    Database connections and windows belong to a thread, and a callback may itself call a synchronous function of ours.
    """
    callbacks = _callbacks.get()
    if callbacks is None or callbacks not in _served:
        return function(*args)
    outcome = Future[Callable[[], T]]()

    def call() -> None:
        try:
            value = function(*args)
        except BaseException as error:  # raised in the work
            failure = error
            outcome.set_result(lambda: _raise(failure))
        else:
            outcome.set_result(lambda: value)

    callbacks.put(call)
    return (await asyncio.wrap_future(outcome))()


def _raise(error: BaseException) -> Any:
    raise error


def _serve(callbacks: SimpleQueue[_Job | None], timeout: float | None = None) -> None:
    """Run callbacks until the work has ended. Empty if nothing comes for `timeout` seconds."""
    while (job := callbacks.get(timeout=timeout)) is not None:
        job()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    with suppress(RuntimeError):
        return asyncio.get_running_loop()
    return None


def _loop(depth: int) -> asyncio.AbstractEventLoop:
    with _lock:
        while len(_loops) <= depth:
            loop = asyncio.new_event_loop()
            _renew_pool(loop)
            _loops.append(loop)
            threading.Thread(target=_run_loop, args=(loop,), daemon=True, name="usertwin-loop").start()
        return _loops[depth]


def _renew_pool(loop: asyncio.AbstractEventLoop) -> None:
    """Give a loop a new pool, and let the threads of the old one end when their work has.

    Design: a synchronous call leaves no idle threads behind. One in which torch has computed keeps OpenMP threads; with more of
    these than processors, GNU OpenMP puts waiting ones to sleep at once, and what computes next takes a third longer.
    """
    old, _pools[loop] = _pools.get(loop), ThreadPoolExecutor(_MAX_THREADS, "usertwin-worker")
    loop.set_default_executor(_pools[loop])
    if old is not None:
        old.shutdown(wait=False)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    while True:  # an agent may stop the loop
        with suppress(SystemExit, KeyboardInterrupt):  # raised in a task: whoever awaits it gets the exception, too
            loop.run_forever()


@atexit.register
def _end_background_tasks() -> None:
    """Cancel what agents left running, so that it can clean up. The loops are not closed: objects that die later need them."""
    _served.clear()  # threads that still wait are daemons; woken, they would print a traceback
    for loop in reversed(_loops):
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(cancel_tasks(), loop).result(2 * _GRACE)


async def cancel_tasks() -> None:
    """Cancel all other tasks of the running loop, and give them a second to end."""
    if tasks := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_GRACE)
    await asyncio.get_running_loop().shutdown_asyncgens()


def _forget_loops() -> None:
    """In a forked child, where the threads of the loops do not run."""
    global _lock
    _lock = threading.Lock()
    _loops.clear()
    _pools.clear()
    _served.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_loops)
