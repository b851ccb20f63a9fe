"""Checks of the agent on a conversation: functions of the record, loaded by name, each with a result that never raises.

Design: a check tells about the agent only if it holds or fails. What else goes wrong (an exception, a value of another type) is
an error of the check, and its conversation counts neither for nor against the agent.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Awaitable, Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias, cast

from usertwin.memory.concurrency import to_thread
from usertwin.memory.event_loop import run_sync
from usertwin.personas import UsageError, UsertwinError
from usertwin.simulator.agents import load_agent
from usertwin.simulator.records import CheckResult, Simulation

#: None and True: it holds. False and a sentence: it fails.
Outcome: TypeAlias = bool | str | CheckResult | None
#: A check; it may be async.
Function: TypeAlias = Callable[[Simulation], Outcome | Awaitable[Outcome]]

_RETURNS = "return None or True if it holds, False or a sentence if it fails, or a CheckResult"
#: Characters of an exception's text in a result.
_MAX_ERROR = 500


@dataclass(frozen=True, slots=True)
class Check:
    """A check of the agent: its name in reports, and the function of a conversation."""

    name: str
    function: Function

    def __call__(self, simulation: Simulation) -> Outcome | Awaitable[Outcome]:
        """Return what the function says of a conversation."""
        return self.function(simulation)


def as_check(check: Check | Function | str) -> Check:
    """Return a check that is given as a function, or by name.

    A name is "module:function", also of a file in the current folder, or that of a ready-made check with its argument, such as
    "never_says:password" (see `ready_made.py`).

    Raises:
        UsageError: there is no such check, or it cannot be called with a conversation.
    """
    from .ready_made import ready_made

    if isinstance(check, Check):
        return check
    if isinstance(check, str):
        known = ready_made(check)
        if known is not None:
            return known
        loaded = _load(check)
        return loaded if isinstance(loaded, Check) else Check(check, _callable(check, loaded))
    name = getattr(check, "__name__", None) or type(check).__name__
    return Check(name, _callable(name, check))


def _load(name: str) -> Any:
    if ":" not in name:
        raise UsageError(f'the check "{name}" has no module; write it as module:function, or name a ready-made check')
    try:
        return load_agent(name)
    except UsageError as error:
        raise UsageError(f"check {error}") from None


def _callable(name: str, check: Any) -> Function:
    if not callable(check):
        raise UsageError(f'the check "{name}" is a {type(check).__name__}; name a function of a conversation')
    try:
        inspect.signature(check).bind(None)
    except TypeError:
        raise UsageError(f'the check "{name}" must take one argument, the conversation') from None
    except ValueError:  # a builtin without a signature
        pass
    return cast("Function", check)


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


async def arun_checks(checks: Iterable[Check | Function | str], simulation: Simulation) -> list[CheckResult]:
    """Return the results of checks in order, also for a conversation that a fault ended.

    Raises:
        UsageError: a name is of no check.
    """
    return [await arun_check(check, simulation) for check in [as_check(check) for check in checks]]


def run_checks(checks: Iterable[Check | Function | str], simulation: Simulation) -> list[CheckResult]:
    """Return the results of checks; the synchronous form of `arun_checks`."""
    return run_sync(arun_checks(checks, simulation))


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:_MAX_ERROR]


def _described(error: BaseException) -> str:
    """Return an exception with the line of the check that raised it."""
    if isinstance(error, UsertwinError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {frames[-1].name}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {_first_line(error)}".rstrip(": ") + place
