"""What every benchmark is made of: a figure, and ways to measure two sides alike.

The one design choice: a figure is a median with its quartiles and says what it was measured against; whatever two sides share
(the machine, what is cached) changes while they are measured, so they are measured in turn.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from usertwin.memory import ChatModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A measured figure: its median, its quartiles, and how many measurements it rests on."""

    value: float
    unit: str
    low: float
    high: float
    n: int
    against: str


def figure(values: list[float], unit: str, against: str) -> Figure:
    """The median of some measurements, with their quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return Figure(value=middle, unit=unit, low=low, high=high, n=len(values), against=against)


def one_figure(value: float, unit: str, against: str, n: int = 1) -> Figure:
    """A figure that was measured once, or counted over `n` cases."""
    return Figure(value=value, unit=unit, low=value, high=value, n=n, against=against)


def timed(work: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_turn(times: int, *sides: Callable[[int], float]) -> list[list[float]]:
    """What each side says, called in turn with 0, 1, ...; every other time in the opposite order."""
    found: list[list[float]] = [[] for _ in sides]
    for number in range(times):
        for place in range(len(sides)) if number % 2 == 0 else reversed(range(len(sides))):
            found[place].append(sides[place](number))
    return found


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """How many times theirs ours are, pair by pair."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def noted_questions(model: ChatModel) -> list[str]:
    """A list to which everything that an OpenAI-compatible model is asked from now on is added, as JSON with sorted keys."""
    chat: Any = model.chat
    make, asked = type(chat)._get_request_payload, list[str]()

    def noting(self: Any, *arguments: Any, **options: Any) -> Any:
        payload = make(self, *arguments, **options)
        asked.append(json.dumps(payload, sort_keys=True, default=str))
        return payload

    object.__setattr__(chat, "_get_request_payload", noting.__get__(chat))
    return asked


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a module's function gives for JSON values, in a fresh process: its memory and its threads are its own."""
    code = (
        f"import json, sys; from {function.__module__} import {function.__name__} as work; "
        "print(json.dumps(work(*json.loads(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])
