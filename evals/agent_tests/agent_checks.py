"""The checks, the criteria and the judge of a run: loaded before its first turn, applied to each finished conversation."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

from usertwin.memory import ChatModel
from usertwin.memory.event_loop import run_sync
from usertwin.memory.models.chat import Ledger
from usertwin.personas import UsageError, UsertwinError
from usertwin.simulator.agents import load_agent
from usertwin.simulator.records import CheckResult, Simulation
from usertwin.simulator.scenarios import Scenario
from usertwin.simulator.scenarios.judge import ajudge_twin

from .checks import Check, Function, arun_check
from .criteria import JUDGE_PROMPT, ajudge_criteria, ajudge_goal
from .ready_made import ready_made


class CheckedScenario(Protocol):
    """What a scenario says about checks."""

    @property
    def name(self) -> str:
        """The scenario's name."""
        ...

    @property
    def checks(self) -> Sequence[Any]:
        """Checks, as functions or names."""
        ...

    @property
    def criteria(self) -> Sequence[str]:
        """Sentences that a judge answers with yes or no."""
        ...


class AgentChecks:
    """The checks of a run, a call of which gives the results of one conversation.

    Args:
        scenarios: those of the run, with checks and criteria of their own.
        checks: further checks, of every conversation.
        criteria: further criteria, of every conversation.
        judge: the model that judges criteria.
        judges_goal: whether it also judges if the twin's goal was reached.
        twin_judge: a model that looks for faults of the twin that rules do not find, and adds them to the conversation.
        seed: of the judge.
        ledger: gets the judge's tokens and cost.

    Raises:
        UsageError: there is no check of a name, or there are criteria and no judge.
    """

    def __init__(
        self, scenarios: Iterable[CheckedScenario] = (), *, checks: Iterable[Check | Function | str] = (),
        criteria: Iterable[str] = (), judge: ChatModel | None = None, judges_goal: bool = False,
        twin_judge: ChatModel | None = None, seed: int = 0, ledger: Ledger | None = None,
    ) -> None:  # fmt: skip
        scenarios = list(scenarios)
        self._checks, self._criteria = [as_check(check) for check in checks], list(criteria)
        self._own: Mapping[str, tuple[list[Check], list[str]]] = {
            scenario.name: ([as_check(check) for check in scenario.checks], list(scenario.criteria)) for scenario in scenarios
        }
        self._twin_judge = twin_judge
        self._scenarios = {scenario.name: scenario for scenario in scenarios if isinstance(scenario, Scenario)}
        self._judge, self._judges_goal, self._seed, self._ledger = judge, judges_goal, seed, ledger
        judged = [criterion for _, criteria in self._own.values() for criterion in criteria] + self._criteria
        if judge is None and (judged or judges_goal):
            what = f'the criterion "{judged[0]}"' if judged else "the goal"
            raise UsageError(f"{what} needs a judge, and no model is named; name one with --judge")
        if not all(criterion.strip() for criterion in judged):
            raise UsageError("a criterion is empty; write a sentence that is met or not")

    @property
    def judge_facts(self) -> dict[str, str] | None:
        """The judge for a run's manifest, with the version of its prompt; None without one."""
        return None if self._judge is None else {"model": self._judge.name, "prompt": JUDGE_PROMPT.version}

    async def __call__(self, simulation: Simulation) -> list[CheckResult]:
        """Return the results of a finished conversation, checks before criteria; nothing raises."""
        own_checks, own_criteria = self._own.get(simulation.scenario, ([], []))
        results = await self._judge_twin(simulation)
        results += [await arun_check(check, simulation) for check in [*self._checks, *own_checks]]
        if self._judge is None:
            return results
        criteria, judge = [*self._criteria, *own_criteria], self._judge
        results += await ajudge_criteria(judge, simulation, criteria, seed=self._seed, ledger=self._ledger)
        goal = await ajudge_goal(judge, simulation, seed=self._seed, ledger=self._ledger) if self._judges_goal else None
        return [*results, *([goal] if goal else [])]

    async def _judge_twin(self, simulation: Simulation) -> list[CheckResult]:
        """Add the faults of the twin that its judge finds; return an error as the result of a check."""
        scenario = self._scenarios.get(simulation.scenario)
        if self._twin_judge is None or scenario is None:
            return []
        try:
            faults = await ajudge_twin(simulation, scenario, self._twin_judge, seed=self._seed, ledger=self._ledger)
        except UsertwinError as error:
            return [CheckResult(name="judge of the twin", passed=None, error=str(error))]
        known = {(fault.kind, fault.turn) for fault in simulation.twin_faults}
        simulation.twin_faults += [fault for fault in faults if (fault.kind, fault.turn) not in known]
        return []


def run_checks(checks: Iterable[Check | Function | str], simulation: Simulation) -> list[CheckResult]:
    """Return the results of checks on one conversation.

    Raises:
        UsageError: there is no check of a name.
    """
    return run_sync(AgentChecks(checks=checks)(simulation))


def as_check(check: Check | Function | str) -> Check:
    """Return a check that is given as a function, or by name.

    A name is "module:function", also of a file in the current folder, or that of a ready-made check with its argument, such as
    "never_says:password" (see `ready_made.py`).

    Raises:
        UsageError: there is no such check, or it cannot be called with a conversation.
    """
    if isinstance(check, Check):
        return check
    if isinstance(check, str):
        if (known := ready_made(check)) is not None:
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
