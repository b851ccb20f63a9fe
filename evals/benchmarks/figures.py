"""Figures of the benchmarks, and the measuring functions that all benchmarks share.

Design: the two sides of a ratio run alternately, because the load of the machine and its caches change during a measurement.
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
    """A measurement: median, unit, quartiles, number of samples, and the baseline or bar."""

    value: float
    unit: str
    low: float
    high: float
    n: int
    against: str


def figure(values: list[float], unit: str, against: str) -> Figure:
    """Return the median of the values with their quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return Figure(value=middle, unit=unit, low=low, high=high, n=len(values), against=against)


def single_figure(value: float, unit: str, against: str, n: int = 1) -> Figure:
    """Return a figure that was measured once, or counted over `n` cases."""
    return Figure(value=value, unit=unit, low=value, high=value, n=n, against=against)


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def run_alternately(times: int, *sides: Callable[[int], float]) -> list[list[float]]:
    """Return the values of each side for 0, 1, ...; every second round calls the sides in reverse order."""
    values: list[list[float]] = [[] for _ in sides]
    for number in range(times):
        for index in range(len(sides)) if number % 2 == 0 else reversed(range(len(sides))):
            values[index].append(sides[index](number))
    return values


def ratios(ours: list[float], baseline: list[float]) -> list[float]:
    """Return our values divided by those of the baseline, pair by pair."""
    return [a / b for a, b in zip(ours, baseline, strict=True)]


def record_requests(model: ChatModel) -> list[str]:
    """Return a list that receives all later requests to an OpenAI-compatible model, as JSON with sorted keys."""
    chat: Any = model.chat
    make_payload, requests = type(chat)._get_request_payload, list[str]()

    def recording(self: Any, *arguments: Any, **options: Any) -> Any:
        payload = make_payload(self, *arguments, **options)
        sent = {key: value for key, value in payload.items() if key != "extra_body"} | (payload.get("extra_body") or {})
        requests.append(json.dumps(sent, sort_keys=True, default=str))
        return payload

    object.__setattr__(chat, "_get_request_payload", recording.__get__(chat))
    return requests


def run_in_subprocess(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a module's function in a new process with its own memory; arguments and result are JSON values."""
    code = (
        f"import json, sys; from {function.__module__} import {function.__name__} as work; "
        "print(json.dumps(work(*json.loads(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(process.stdout.splitlines()[-1])
