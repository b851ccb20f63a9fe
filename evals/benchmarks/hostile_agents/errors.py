"""Agents that raise: every exception that could end a run, and exceptions whose text is code."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

from .hostile import BLOCKED, SHORT, Hostile, OwnError


class _Unprintable(Exception):
    def __str__(self) -> str:
        raise SystemExit("no text")

    __repr__ = __str__


class _NoText(Exception):
    def __str__(self) -> Any:
        return 7


class _Slow(Exception):
    def __str__(self) -> str:
        time.sleep(BLOCKED)
        return "late"


class _LiarName(type):
    @property
    def __name__(cls) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        raise ValueError("no name")


class _NoName(Exception, metaclass=_LiarName):
    pass


class _Group(ExceptionGroup[Exception]):
    @property
    def exceptions(self) -> Any:
        raise ValueError("no parts")


class LiarText(str):
    """A string whose methods lie or raise."""

    def _fail(self, *_: Any, **__: Any) -> NoReturn:
        raise OwnError("no method")

    strip = split = encode = casefold = isascii = lower = isprintable = __eq__ = __len__ = __iter__ = _fail  # pyright: ignore
    __hash__ = str.__hash__


class _LiarError(Exception):
    def __str__(self) -> str:
        return LiarText("a text with methods")


_ERRORS: dict[str, Callable[[], BaseException]] = {
    "ValueError": lambda: ValueError("no such order"),
    "TimeoutError": lambda: TimeoutError("the database"),
    "StopIteration": lambda: StopIteration("over"),
    "StopAsyncIteration": lambda: StopAsyncIteration("over"),
    "MemoryError": MemoryError,
    "asyncio.CancelledError": asyncio.CancelledError,
    "concurrent CancelledError": concurrent.futures.CancelledError,
    "GeneratorExit": GeneratorExit,
    "SystemExit": lambda: SystemExit(0),
    "KeyboardInterrupt": KeyboardInterrupt,
    "an own BaseException": lambda: OwnError("mine"),
    "ExceptionGroup": lambda: ExceptionGroup("two", [ValueError("a"), KeyError("b")]),
    "BaseExceptionGroup": lambda: BaseExceptionGroup("two", [KeyboardInterrupt(), SystemExit(1)]),
    "a group without parts": lambda: _Group("none", [ValueError("a")]),
    "a str that raises": _Unprintable,
    "a str that is no text": _NoText,
    "a str with methods that raise": _LiarError,
    "a class without a name": _NoName,
    "megabytes of text": lambda: ValueError("x" * 5_000_000),
    "lone surrogates": lambda: ValueError("half \ud83d of it"),
    "control characters": lambda: ValueError("\x1b[2J\x1b]0;title\x07 \u202e"),
}


def _raise(error: Callable[[], BaseException], messages: Any) -> NoReturn:
    raise error()


async def _raise_later(error: Callable[[], BaseException], messages: Any) -> NoReturn:
    await asyncio.sleep(0)
    raise error()


def raising() -> Iterator[Hostile]:
    """Yield agents that raise, in a thread, in a loop of their own and in the caller's."""
    for name, error in _ERRORS.items():
        yield Hostile(f"raises {name}", partial(_raise, error))
        yield Hostile(f"async: raises {name}", partial(_raise_later, error))
        yield Hostile(f"in the caller's loop: raises {name}", partial(_raise_later, error), in_caller=True)
    yield Hostile("an exception's text hangs", partial(_raise, _Slow), "agent_timeout", timeout=SHORT)
    yield Hostile("async: an exception's text hangs", partial(_raise_later, _Slow), "agent_timeout", timeout=SHORT)
