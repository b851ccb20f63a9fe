"""Checks as an assertion in a test: what does not hold, and why, in the message."""

from __future__ import annotations

from collections.abc import Iterable

from usertwin.memory.event_loop import run_sync
from usertwin.personas import UsertwinError
from usertwin.personas.printable import printable
from usertwin.simulator.records import CheckResult, Simulation

from .agent_checks import AgentChecks
from .checks import Check, Function


class CheckFailed(UsertwinError):
    """A check itself failed, so that it says nothing about the agent."""


def assert_checks(simulation: Simulation, *checks: Check | Function | str) -> None:
    """Assert that checks hold for a conversation: `assert_checks(talk, says("refund"), "never_says:password", my_check)`.

    Raises:
        AssertionError: some do not hold; the message has a line for each.
        CheckFailed: a check raised, or returned a value of another type.
        UsageError: there is no check of a name.
    """
    require(run_sync(AgentChecks(checks=checks)(simulation)))


async def aassert_checks(simulation: Simulation, *checks: Check | Function | str) -> None:
    """Assert that checks hold, as `assert_checks`, in async code."""
    require(await AgentChecks(checks=checks)(simulation))


def require(results: Iterable[CheckResult]) -> None:
    """Raise AssertionError with a line for each check that does not hold, or CheckFailed for those that failed themselves."""
    __tracebackhide__ = True
    results = list(results)
    if failed := [result for result in results if result.passed is False]:
        raise AssertionError(f"{len(failed)} of {len(results)} checks do not hold\n{_lines(failed)}")
    if broken := [result for result in results if result.passed is None]:
        raise CheckFailed(f"{len(broken)} of {len(results)} checks failed themselves; mend them\n{_lines(broken)}")


def _lines(results: Iterable[CheckResult]) -> str:
    return "\n".join(printable(f"  {result.name}: {result.error or result.reason or 'it does not hold'}") for result in results)
