"""Whether the agent passed a conversation, and why not; a conversation that the twin spoiled counts neither way.

A conversation is passed if no fault is the agent's, no check and no criterion fails, and the goal was reached, where its
scenario or a judge says when it is. It is set aside if the fault is the twin's, if our time limit cut it off, or if nothing
fails and a check has an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from usertwin.memory.text.transcript import single_line
from usertwin.simulator.records import Simulation

from .criteria import GOAL_BY_JUDGE

#: "twin_fault" and "no_verdict" are set aside: they count neither for nor against the agent.
OutcomeName = Literal["passed", "failed", "twin_fault", "no_verdict"]
#: What says whether a goal was reached.
GoalBy = Literal["rule", "judge"]
_GOAL_BY_RULE = "reaches_goal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of one conversation.

    Attributes:
        simulation: the conversation.
        name: the outcome.
        reasons: why it was not passed, the gravest first; empty if it was.
        kinds: the same reasons without what differs between conversations, to count them.
        goal: whether the goal was reached; None if nothing says so.
        goal_by: what says so.
    """

    simulation: Simulation
    name: OutcomeName
    reasons: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    goal: bool | None = None
    goal_by: GoalBy | None = None

    @property
    def is_usable(self) -> bool:
        """Whether it counts for or against the agent."""
        return self.name in {"passed", "failed"}

    @property
    def why(self) -> str:
        """The gravest reason; "" if it was passed."""
        return self.reasons[0] if self.reasons else ""


def outcome_of(simulation: Simulation, *, has_goal_rule: bool = False) -> Outcome:
    """Return the outcome of a conversation. `has_goal_rule`: whether its scenario says when the goal is reached."""
    goal, goal_by = _goal(simulation, has_goal_rule)
    if simulation.fault == "twin":
        faults = [(fault.kind, fault.text) for fault in simulation.twin_faults]
        return _outcome(simulation, "twin_fault", faults or [_ended(simulation)])
    if simulation.fault == "agent":
        return _outcome(simulation, "failed", [_ended(simulation)], goal, goal_by)
    if simulation.stop_reason == "time_limit":
        return _outcome(simulation, "no_verdict", [("time_limit", "the time limit of the conversation cut it off")])
    failed, errors = list[tuple[str, str]](), list[tuple[str, str]]()
    for check in simulation.checks:
        if check.passed is None:
            errors.append((f"error in {check.name}", f"error in {check.name}: {check.error}"))
        elif not check.passed and check.name not in {_GOAL_BY_RULE, GOAL_BY_JUDGE}:
            failed.append((check.name, f"{check.name}: {check.reason}" if check.reason else check.name))
    if goal is False:
        why = next((check.reason for check in simulation.checks if check.name == GOAL_BY_JUDGE and check.reason), "")
        ended = why if goal_by == "judge" and why else f"it ended with {simulation.stop_reason}"
        failed.insert(0, ("goal not reached", f"goal not reached: {ended}"))
    if failed:
        return _outcome(simulation, "failed", failed, goal, goal_by)
    return _outcome(simulation, "no_verdict" if errors else "passed", errors, goal, goal_by)


def _ended(simulation: Simulation) -> tuple[str, str]:
    return (
        simulation.stop_reason,
        f"{simulation.stop_reason}: {simulation.error}" if simulation.error else simulation.stop_reason,
    )


def _outcome(
    simulation: Simulation, name: OutcomeName, reasons: Sequence[tuple[str, str]], goal: bool | None = None,
    goal_by: GoalBy | None = None,
) -> Outcome:  # fmt: skip
    kinds, texts = tuple(kind for kind, _ in reasons), tuple(single_line(text) for _, text in reasons)
    return Outcome(simulation=simulation, name=name, reasons=texts, kinds=kinds, goal=goal, goal_by=goal_by)


def _goal(simulation: Simulation, has_rule: bool) -> tuple[bool | None, GoalBy | None]:
    """Return whether the goal was reached and what says so; a rule that found it takes precedence over a judge."""
    results = {check.name: check.passed for check in simulation.checks}
    if simulation.stop_reason == "goal_reached":
        return True, "rule"
    if results.get(GOAL_BY_JUDGE) is not None:
        return results[GOAL_BY_JUDGE], "judge"
    return (False, "rule") if has_rule or results.get(_GOAL_BY_RULE) is False else (None, None)


def has_goal_rule(scenario: Mapping[str, Any]) -> bool:
    """Return whether a scenario, as a JSON object, says when its goal is reached."""
    return bool(scenario.get("goal_reached") or scenario.get("until"))


def outcomes_of(simulations: Sequence[Simulation], scenarios: Mapping[str, Mapping[str, Any]]) -> list[Outcome]:
    """Return the outcome of each conversation; `scenarios` holds the JSON objects of the scenarios by name."""
    rules = {name for name, scenario in scenarios.items() if has_goal_rule(scenario)}
    rules |= {simulation.scenario for simulation in simulations if simulation.stop_reason == "goal_reached"}
    return [outcome_of(simulation, has_goal_rule=simulation.scenario in rules) for simulation in simulations]
