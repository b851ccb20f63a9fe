"""Agents that return hostile values: endless, in themselves, or with methods that raise, lie or hang."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

from usertwin.simulator import StopReason

from .errors import LiarText
from .hostile import BLOCKED, SHORT, Hostile, OwnError


class _Billion(Sequence[Any]):
    """A sequence that says it has a billion items."""

    def __init__(self, item: Any, seconds: float = 0.0) -> None:
        self.item, self.seconds = item, seconds

    def __len__(self) -> int:
        return 1_000_000_000

    def __getitem__(self, index: Any) -> Any:
        if self.seconds:
            time.sleep(self.seconds)
        return self.item


class _NegativeLength(list[str]):
    def __len__(self) -> int:
        return -1


class _Raising:
    """An object whose attributes raise."""

    def __getattribute__(self, name: str) -> Any:
        raise OwnError(name)


class _RaisingItems(Sequence[Any]):
    def __len__(self) -> int:
        raise OwnError("length")

    def __getitem__(self, index: Any) -> Any:
        raise OwnError("item")


class _Keys(Mapping[Any, Any]):
    """A mapping of endless keys."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        number = 0
        while True:
            yield f"key {(number := number + 1)}"

    def __getitem__(self, key: Any) -> Any:
        if key in {"messages", "turns"}:
            raise KeyError(key)
        return "value"


class _RaisingKeys(dict[Any, Any]):
    def get(self, *_: Any) -> Any:
        raise OwnError("get")

    keys = items = __contains__ = __iter__ = get  # pyright: ignore[reportAssignmentType]


class _Hanging:
    """A message whose text takes long."""

    type = "ai"

    @property
    def content(self) -> str:
        time.sleep(BLOCKED)
        return "late"


class _PartsWithoutEnd:
    type = "ai"
    content = _Billion({"type": "text", "text": "word"})


class _Liar:
    """An object that says it is a text."""

    @property
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return str


class _Matryoshka:
    """An awaitable that returns itself."""

    def __await__(self) -> Generator[Any, Any, Any]:
        yield from asyncio.sleep(0).__await__()
        return self


def _endless() -> Iterator[str]:
    while True:
        yield "word "


async def _nested(depth: int) -> Any:
    return "Which one do you mean?" if depth == 0 else _nested(depth - 1)


def _circle() -> list[Any]:
    circle: list[Any] = []
    circle += [circle, circle]
    return circle


def _circular_message() -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": []}
    message["content"] += [message, message]
    return message


def _deep() -> Any:
    value: Any = "text"
    for _ in range(100_000):
        value = [value]
    return {"role": "assistant", "content": value}


def _returning(make: Callable[[], Any]) -> Callable[[Any], Any]:
    return lambda messages: make()


def _returning_later(make: Callable[[], Any]) -> Callable[[Any], Awaitable[Any]]:
    async def agent(messages: Any) -> Any:
        return make()

    return agent


_VALUES: dict[str, tuple[Callable[[], Any], StopReason]] = {
    "None": (lambda: None, "agent_error"),
    "an empty text": (lambda: " \n", "agent_error"),
    "bytes": (lambda: b"hi", "agent_error"),
    "NaN": (lambda: float("nan"), "agent_error"),
    "a number of 5,000 digits": (lambda: 10**5000, "agent_error"),
    "a set": (lambda: {"hi"}, "agent_error"),
    "an endless generator": (_endless, "agent_error"),
    "a billion texts": (lambda: _Billion("hi"), "agent_error"),
    "a billion messages": (lambda: {"messages": _Billion({"role": "assistant", "content": "hi"})}, "agent_error"),
    "a billion parts": (lambda: {"role": "assistant", "content": _Billion("hi")}, "agent_error"),
    "a billion parts in an object": (_PartsWithoutEnd, "agent_error"),
    "a negative length": (lambda: _NegativeLength(["hi"]), "max_turns"),
    "attributes that raise": (_Raising, "agent_error"),
    "a list of attributes that raise": (lambda: [_Raising()], "agent_error"),
    "items that raise": (_RaisingItems, "agent_error"),
    "endless keys": (_Keys, "max_turns"),  # it holds a text under "content"
    "keys that raise": (lambda: _RaisingKeys(role="assistant", content="hi"), "agent_error"),
    "keys that are no text": (lambda: {1: 2, None: 3, "content": "hi"}, "max_turns"),
    "a text whose methods raise": (lambda: LiarText("hi"), "max_turns"),
    "a message whose methods raise": (lambda: {"role": "assistant", "content": LiarText("hi")}, "max_turns"),
    "an object that says it is a text": (_Liar, "agent_error"),
    "a list in itself": (_circle, "agent_error"),
    "a message in itself": (_circular_message, "agent_error"),
    "a hundred thousand levels": (_deep, "agent_error"),
    "five megabytes": (lambda: "word " * 1_000_000, "max_turns"),
    "fifty megabytes": (lambda: "word " * 10_000_000, "agent_error"),
    "lone surrogates and control characters": (lambda: "\ud83d \x1b[2J \x00 hi", "max_turns"),
    "awaitables in awaitables": (lambda: _nested(3), "max_turns"),
    "an awaitable that returns itself": (_Matryoshka, "agent_error"),
    "a class": (lambda: _Hanging, "agent_error"),
    "the user's turn": (lambda: {"role": "user", "content": "I am the user"}, "agent_error"),
}


def returning() -> Iterator[Hostile]:
    """Yield agents that return such values, in a thread and in the caller's loop."""
    for name, (make, reason) in _VALUES.items():
        yield Hostile(f"returns {name}", _returning(make), reason)
        yield Hostile(f"in the caller's loop: returns {name}", _returning_later(make), reason, in_caller=True)
    slow: dict[str, Callable[[], Any]] = {"a slow sequence": lambda: _Billion("hi", 0.01), "a slow attribute": _Hanging}
    for name, make in slow.items():
        yield Hostile(name, _returning(make), "agent_timeout", timeout=SHORT)
        caller = f"in the caller's loop: {name}"
        yield Hostile(caller, _returning_later(make), "agent_timeout", timeout=SHORT, in_caller=True)
