"""Checks of the agent on a conversation: functions of the record, each with a result that never raises.

Design: a check tells about the agent only if it holds or fails. What else goes wrong (an exception, a value of another type) is
an error of the check, and its conversation counts neither for nor against the agent.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Awaitable, Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from usertwin.memory.concurrency import to_thread
from usertwin.personas import UsertwinError
from usertwin.simulator.records import CheckResult, Simulation

#: None and True: it holds. False and a sentence: it fails.
Outcome: TypeAlias = bool | str | CheckResult | None
#: A check; it may be async.
Function: TypeAlias = Callable[[Simulation], Outcome | Awaitable[Outcome]]

_RETURNS = "return None or True if it holds, False or a sentence if it fails, or a CheckResult"
#: Characters of an exception's text in a result.
_MAX_ERROR = 500


@dataclass(frozen=True)
class Check:
    """A check of the agent: its name in reports, and the function of a conversation."""

    name: str
    function: Function

    def __post_init__(self) -> None:
        # as a function has it: records of a run name functions by it, and two checks must not have the same name there
        object.__setattr__(self, "__qualname__", self.name)

    def __call__(self, simulation: Simulation) -> Outcome | Awaitable[Outcome]:
        """Return what the function says of a conversation."""
        return self.function(simulation)


async def arun_check(check: Check, simulation: Simulation) -> CheckResult:
    """Return the result of a check. The check gets its own copy of the messages and the final state.

    An `assert` that does not hold is a failed check; any other exception is an error of the check.
    """
    copy = replace(simulation, messages=deepcopy(simulation.messages), final_state=deepcopy(simulation.final_state))
    is_async = inspect.iscoroutinefunction(check.function)
    try:
        outcome: Any = check(copy) if is_async else await to_thread(partial(check, copy))
        if inspect.isawaitable(outcome):
            outcome = await outcome
    except AssertionError as error:
        return CheckResult(name=check.name, passed=False, reason=_first_line(error) or "an assertion does not hold")
    except (Exception, SystemExit) as error:
        return CheckResult(name=check.name, passed=None, error=_described(error))
    if isinstance(outcome, CheckResult):
        return replace(outcome, name=outcome.name or check.name)
    if outcome is None or isinstance(outcome, bool | str):
        passed = outcome is None or outcome is True
        reason = outcome if isinstance(outcome, str) else ""
        return CheckResult(name=check.name, passed=passed, reason=reason)
    return CheckResult(name=check.name, passed=None, error=f"the check returned a {type(outcome).__name__}; {_RETURNS}")


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:_MAX_ERROR]


def _described(error: BaseException) -> str:
    """Return an exception with the line of the check that raised it."""
    if isinstance(error, UsertwinError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {frames[-1].name}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {_first_line(error)}".rstrip(": ") + place
