"""A test that is run several times, of which a share must pass: what a conversation with a sampling model can be held to."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytest

from .verdict import TestTalks, TwinFailed

#: What ends a test and all its runs, as a skip does; pytest derives both from what a failed run raises.
_ENDS_TEST = (pytest.xfail.Exception, pytest.exit.Exception)


def repeated(function: Callable[..., Any], talks: TestTalks, count: int, pass_rate: float) -> Callable[..., Any]:
    """Return a test function that runs another one `count` times and fails if fewer than `pass_rate` of the runs pass.

    A run that the twin spoils does not count; if it spoils all, the test errors. Runs share the test's fixtures.
    """
    outcomes = _Outcomes(talks, pass_rate)
    if inspect.iscoroutinefunction(function):

        @wraps(function)
        async def run_async(*args: Any, **kwargs: Any) -> None:
            for number in range(count):
                with outcomes.noted(number):
                    await function(*args, **kwargs)
            outcomes.conclude()

        return run_async

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        for number in range(count):
            with outcomes.noted(number):
                function(*args, **kwargs)
        outcomes.conclude()

    return run


class _Outcomes:
    """How the runs of one test ended."""

    def __init__(self, talks: TestTalks, pass_rate: float) -> None:
        self._talks, self._pass_rate = talks, pass_rate
        self._passed, self._failures, self._spoiled, self._first = 0, list[str](), list[str](), 0

    @contextmanager
    def noted(self, number: int) -> Generator[None]:
        """Note how the run in the block ends; only what ends the whole test is raised."""
        self._talks.offset, self._first = number, len(self._talks.talks)
        try:
            yield
        except _ENDS_TEST:
            raise
        except (Exception, pytest.fail.Exception) as error:
            self._end(error)
        else:
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        talks = self._talks
        mine = talks.talks[self._first :]
        spoiled = [*map(str, talks.failures), *(talks.suspicions if error is not None else ())]
        talks.failures.clear()
        talks.suspicions.clear()
        if isinstance(error, TwinFailed) or spoiled:
            self._spoiled += spoiled or [str(error)]
        elif error is None:
            self._passed += 1
        else:
            seeds = f"run {talks.offset + 1}: "
            self._failures.append(seeds + (str(error) or type(error).__name__).split("\n")[0])
        for talk in mine:
            talk.spoiled, talk.passed = bool(spoiled), error is None and not spoiled

    def conclude(self) -> None:
        """Raise the verdict on all runs, unless enough have passed."""
        from usertwin.personas.printable import printable

        usable = self._passed + len(self._failures)
        if not usable:
            raise self._talks.noted(TwinFailed(f"the twin spoiled every run: {self._spoiled[0]}"))
        if self._passed / usable >= self._pass_rate:
            return
        aside = f"; {len(self._spoiled)} spoiled by the twin" if self._spoiled else ""
        lines = "\n".join(f"  {printable(line)}" for line in self._failures)
        required = f"{self._passed} of {usable} runs passed, and {self._pass_rate:.0%} must{aside}"
        pytest.fail(f"{required}\n{lines}", pytrace=False)
