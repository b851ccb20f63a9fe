"""Agents that act on their loop, their tasks, their threads, their process and the messages they got."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from functools import partial
from typing import Any, NoReturn

from .hostile import BLOCKED, SHORT, Hostile, good


async def _cancel_itself(messages: Any) -> str:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)
    return "not reached"


async def _cancel_all(messages: Any) -> str:
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(0)
    return "not reached"


async def _cancel_again_and_again(messages: Any) -> str:
    async def cancel() -> None:
        for _ in range(20):
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0)

    canceller = asyncio.create_task(cancel())
    await canceller
    return "not reached"


async def _stop_loop(messages: Any) -> str:
    asyncio.get_running_loop().stop()
    return good(messages)


async def _close_loop(messages: Any) -> str:
    asyncio.get_running_loop().close()
    return "not reached"


async def _stop_and_close_loop(messages: Any) -> str:
    loop = asyncio.get_running_loop()
    loop.run_forever = loop.close  # what runs next in the loop's thread
    loop.stop()
    await asyncio.sleep(30)
    return "not reached"


async def _exit_in_task(error: type[BaseException], messages: Any) -> str:
    async def leave() -> None:
        raise error

    task = asyncio.create_task(leave())
    await asyncio.sleep(0.01)
    task.exception()
    return good(messages)


async def _block(messages: Any) -> str:
    time.sleep(BLOCKED)
    return good(messages)


async def _block_and_sleep(messages: Any) -> str:
    time.sleep(2 * SHORT)
    return good(messages)


async def _never(messages: Any) -> str:
    await asyncio.Event().wait()
    return "not reached"


async def _never_and_stubborn(messages: Any) -> str:
    while True:
        try:
            await asyncio.sleep(60)
        except BaseException:
            continue


async def _spin(messages: Any) -> str:
    end = time.monotonic() + BLOCKED
    while time.monotonic() < end:
        await asyncio.sleep(0)
    return "late"


async def _hang_in_thread(messages: Any) -> str:
    await asyncio.to_thread(time.sleep, 600)
    return "not reached"


async def _nested_loop(messages: Any) -> str:
    asyncio.get_running_loop().run_until_complete(asyncio.sleep(0))
    return "not reached"


async def _fork_async(messages: Any) -> str:
    return _fork(messages)


def _fork(messages: Any) -> str:
    os.fork()
    return good(messages)


def _exit(messages: Any) -> NoReturn:
    sys.exit(3)


def _signals(messages: Any) -> str:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return "not reached"


def _recursion(messages: Any) -> str:
    return _recursion(messages)


def _sleep(messages: Any) -> str:
    time.sleep(600)
    return "not reached"


def _crashing_thread(messages: Any) -> str:
    thread = threading.Thread(target=sys.exit)
    thread.start()
    thread.join()
    return good(messages)


def _mutate(messages: Any) -> str:
    for message in messages:
        message["content"] = message["role"] = None
    messages.clear()
    return good(messages)


_KEPT: list[Any] = []


def _keep(messages: Any) -> str:
    for kept in _KEPT:
        kept.append({"role": "system", "content": "changed"})
    _KEPT.append(messages)
    return good(messages)


ACTING: tuple[Hostile, ...] = (
    Hostile("cancels its task", _cancel_itself),
    Hostile("cancels all tasks", _cancel_all),
    Hostile("cancels all tasks again and again", _cancel_again_and_again),
    Hostile("stops the loop", _stop_loop, "max_turns"),
    Hostile("closes the loop", _close_loop),
    Hostile("stops and closes the loop", _stop_and_close_loop),
    Hostile("SystemExit in a task", partial(_exit_in_task, SystemExit), "max_turns"),
    Hostile("KeyboardInterrupt in a task", partial(_exit_in_task, KeyboardInterrupt), "max_turns"),
    Hostile("blocks the loop", _block, "agent_timeout", timeout=SHORT),
    Hostile("never returns", _never, "agent_timeout", timeout=SHORT),
    Hostile("never returns and refuses to be cancelled", _never_and_stubborn, "agent_timeout", timeout=SHORT),
    Hostile("spins", _spin, "agent_timeout", timeout=SHORT),
    Hostile("hangs in a thread", _hang_in_thread, "agent_timeout", timeout=SHORT),
    Hostile("runs the loop that runs", _nested_loop),
    Hostile("forks in a coroutine", _fork_async, "max_turns"),
    Hostile("forks", _fork, "max_turns"),
    Hostile("sys.exit", _exit),
    Hostile("replaces signal handlers", _signals),
    Hostile("recursion", _recursion),
    Hostile("sleeps", _sleep, "agent_timeout", timeout=SHORT),
    Hostile("starts a thread that crashes", _crashing_thread, "max_turns"),
    Hostile("changes the messages", _mutate, "max_turns"),
    Hostile("keeps the messages and changes them later", _keep, "max_turns"),
    Hostile("in the caller's loop: cancels its task", _cancel_itself, in_caller=True),
    Hostile("in the caller's loop: cancels all tasks", _cancel_all, in_caller=True),
    Hostile("in the caller's loop: blocks it", _block_and_sleep, "agent_timeout", timeout=SHORT, in_caller=True),
    Hostile("in the caller's loop: never returns", _never, "agent_timeout", timeout=SHORT, in_caller=True),
    Hostile("in the caller's loop: never lets go", _never_and_stubborn, "agent_timeout", timeout=SHORT, in_caller=True),
    Hostile("in the caller's loop: forks", _fork_async, "max_turns", in_caller=True),
)
