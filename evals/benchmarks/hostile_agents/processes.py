"""Agents that end or block their process, each tried in a process of its own."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from usertwin.simulator import StopReason

from .hostile import LONG, Hostile, OwnError


def end(messages: Any) -> NoReturn:
    """End the process with exit code 0."""
    os._exit(0)


async def end_async(messages: Any) -> NoReturn:
    """End the process from a coroutine, with exit code 3."""
    os._exit(3)


def segfault(messages: Any) -> str:
    """Read from address 0."""
    return str(ctypes.string_at(0))


def kill(messages: Any) -> str:
    """Kill the process."""
    os.kill(os.getpid(), signal.SIGKILL)
    return "not reached"


def interrupt(messages: Any) -> str:
    """Interrupt the process, as Ctrl-C does."""
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(30)
    return "not reached"


def close_everything(messages: Any) -> str:
    """Close all files of the process."""
    os.closerange(0, 256)
    return "not heard"


def hold_the_interpreter(messages: Any) -> str:
    """Run for hours in C code that other threads wait for."""
    return str(re.match(r"(a+)+$", "a" * 40 + "b"))


def forge(messages: Any) -> str:
    """Print a reply to standard output, close it, and read standard input."""
    os.write(1, b'{"replies": "forged"}\n')
    sys.stdout.close()
    sys.stdin.read()
    return "Which one do you mean?"


def fork_and_end(messages: Any) -> str:
    """Fork, and end the process that was asked."""
    if os.fork():
        os._exit(0)
    return "not heard"


def raise_here(messages: Any) -> NoReturn:
    """Raise an exception of its own."""
    raise OwnError("in its process")


def _process(agent: Callable[..., Any], reason: StopReason = "agent_error", says: str = "", timeout: float = LONG) -> Hostile:
    name = f"own process: {agent.__name__}"
    return Hostile(name, agent, reason, own_process=True, says=says, timeout=timeout)


_CALLS: list[int] = []


def remember(messages: list[dict[str, Any]]) -> str:
    """Return how often this process was asked; not hostile, for tests."""
    _CALLS.append(len(messages))
    return f"call {len(_CALLS)}, {len(messages)} messages"


ENDING: tuple[Hostile, ...] = (
    _process(end, says="ended with exit code 0"),
    _process(end_async, says="ended with exit code 3"),
    _process(segfault, says="was killed by SIGSEGV"),
    _process(kill, says="was killed by SIGKILL"),
    _process(interrupt),
    _process(close_everything),
    _process(hold_the_interpreter, "agent_timeout", timeout=1.0),
    _process(forge, "max_turns"),
    _process(fork_and_end),
    _process(raise_here, says="OwnError: in its process"),
)
