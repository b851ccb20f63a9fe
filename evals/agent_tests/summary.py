"""The summary of a run of simulated conversations: what `summary.json` holds.

Design: a conversation that the twin spoiled is set aside, and its share is reported beside the agent's score. So a wandering
twin never makes an agent look bad, and a small number of usable conversations can be seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, median, quantiles
from typing import Any

from usertwin.memory.models.chat import Usage
from usertwin.personas.reading import as_type
from usertwin.simulator.records import Simulation

from .outcomes import GoalBy, Outcome, outcomes_of
from .rates import PassPower, Rate, pass_powers, rate
from .transcript import reply_seconds

#: The number of the worst conversations.
WORST = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The distribution of n numbers: mean, median, the value that 95% do not exceed, and the largest."""

    mean: float
    median: float
    p95: float
    most: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The conversations of one scenario or one twin; `pass_rate` is None if none is usable."""

    name: str
    conversations: int
    pass_rate: Rate | None
    twin_faults: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckTotal:
    """The results of one check over usable conversations; `rate` is None if it gave errors only. `errors` are not in it."""

    name: str
    rate: Rate | None
    errors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstConversation:
    """A conversation that the agent failed: its id, why, and how many others failed for the same reason."""

    id: str
    seed: int
    turns: int
    why: str
    others: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The results of a run.

    Attributes:
        name: the run.
        agent: the agent under test.
        finished: whether all conversations of the run are in it.
        conversations: the number of all conversations.
        usable: those that count for or against the agent.
        pass_rate: the share of usable conversations that the agent passed.
        pass_powers: pass^k for k from 2.
        passed_means: what a conversation had to fulfil to be passed.
        goal_rate: the share of usable conversations in which the goal was reached; None if nothing says so.
        goal_by: what says so.
        agent_faults: the share of conversations without a twin's fault in which the agent raised, said nothing or was late.
        twin_faults: the share of all conversations that are set aside for a fault of the twin.
        twin_fault_kinds: their number by kind; a conversation may have several.
        no_verdict: conversations set aside for other reasons, by reason.
        stop_reasons: all conversations by stop reason.
        checks: the results of each check.
        scenarios: results by scenario.
        twins: results by twin.
        turns: of the twin, in all conversations.
        reply_seconds: of the agent.
        seconds: of conversations.
        usage: tokens of the twin's model.
        discarded: turns that the twin's model had to write again.
        dollars: the cost, if it is known.
        retries: requests that were repeated, if they were counted.
        closeness: the measured closeness of each twin, as a sentence; None if it was not measured.
        worst: the worst conversations.
    """

    name: str
    agent: str
    finished: bool
    conversations: int
    usable: int
    pass_rate: Rate | None
    pass_powers: tuple[PassPower, ...] = ()
    passed_means: tuple[str, ...] = ()
    goal_rate: Rate | None = None
    goal_by: tuple[GoalBy, ...] = ()
    agent_faults: Rate | None = None
    twin_faults: Rate | None = None
    twin_fault_kinds: dict[str, int] = field(default_factory=dict[str, int])
    no_verdict: dict[str, int] = field(default_factory=dict[str, int])
    stop_reasons: dict[str, int] = field(default_factory=dict[str, int])
    checks: tuple[CheckTotal, ...] = ()
    scenarios: tuple[Group, ...] = ()
    twins: tuple[Group, ...] = ()
    turns: Spread | None = None
    reply_seconds: Spread | None = None
    seconds: Spread | None = None
    usage: Usage = field(default_factory=Usage)
    discarded: int = 0
    dollars: float | None = None
    retries: int | None = None
    closeness: dict[str, str | None] = field(default_factory=dict[str, str | None])
    worst: tuple[WorstConversation, ...] = ()

    @property
    def passed(self) -> int:
        """The number of passed conversations."""
        return self.pass_rate.count if self.pass_rate else 0

    def to_json(self) -> dict[str, Any]:
        """Return the content of `summary.json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Any) -> Summary:
        """Return the summary that `to_json` wrote. ValueError names the field that is wrong."""
        return as_type(cls, raw)


def summarize(
    simulations: Sequence[Simulation], *, name: str, agent: str, scenarios: Mapping[str, Mapping[str, Any]] | None = None,
    finished: bool = True, closeness: Mapping[str, str | None] | None = None, dollars: float | None = None,
    retries: int | None = None,
) -> Summary:  # fmt: skip
    """Return the summary of conversations.

    Args:
        simulations: the conversations.
        name: the run.
        agent: the agent under test.
        scenarios: the scenarios as JSON objects, by name; they say whether a goal has a rule.
        finished: whether these are all conversations of the run.
        closeness: a sentence on each twin's measured closeness (`closeness_line`).
        dollars: the cost of the run.
        retries: requests that were repeated.
    """
    outcomes = outcomes_of(simulations, scenarios or {})
    usable = [outcome for outcome in outcomes if outcome.is_usable]
    kept, passed = [outcome.simulation for outcome in usable], [outcome.name == "passed" for outcome in usable]
    with_goal = [outcome for outcome in usable if outcome.goal is not None]
    without_twin_fault = [outcome.simulation for outcome in outcomes if outcome.name != "twin_fault"]
    spoiled = [outcome.name == "twin_fault" for outcome in outcomes]
    twins = list(dict.fromkeys(simulation.twin for simulation in simulations))
    return Summary(
        name=name, agent=agent, finished=finished, conversations=len(outcomes), usable=len(usable),
        pass_rate=rate(kept, passed), pass_powers=pass_powers(kept, passed), passed_means=_passed_means(usable),
        goal_rate=rate([outcome.simulation for outcome in with_goal], [outcome.goal is True for outcome in with_goal]),
        goal_by=tuple(dict.fromkeys(outcome.goal_by for outcome in with_goal if outcome.goal_by)),
        agent_faults=rate(without_twin_fault, [simulation.fault == "agent" for simulation in without_twin_fault]),
        twin_faults=rate(simulations, spoiled),
        twin_fault_kinds=_counts(kind for o in outcomes if o.name == "twin_fault" for kind in dict.fromkeys(o.kinds)),
        no_verdict=_counts(outcome.kinds[0] for outcome in outcomes if outcome.name == "no_verdict"),
        stop_reasons=_counts(simulation.stop_reason for simulation in simulations),
        checks=_checks(kept, simulations),
        scenarios=_groups(outcomes, {s.id: s.scenario for s in simulations}),
        twins=_groups(outcomes, {s.id: s.twin for s in simulations}),
        turns=spread([len(simulation.exchanges) for simulation in simulations]),
        reply_seconds=spread([seconds for simulation in simulations for seconds in reply_seconds(simulation)]),
        seconds=spread([_seconds(simulation) for simulation in simulations]),
        usage=sum((simulation.usage for simulation in simulations), Usage()),
        discarded=sum(exchange.answer.discarded for simulation in simulations for exchange in simulation.exchanges),
        dollars=dollars, retries=retries, closeness={twin: (closeness or {}).get(twin) for twin in twins},
        worst=worst_conversations(usable),
    )  # fmt: skip


def spread(values: Sequence[float]) -> Spread | None:
    """Return the distribution of numbers; None without any."""
    if not values:
        return None
    p95 = quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]
    return Spread(mean=fmean(values), median=median(values), p95=float(p95), most=float(max(values)), n=len(values))


def gravest_first(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return outcomes with faults of the agent first, then by the number of reasons, then by length."""
    return sorted(outcomes, key=lambda o: (o.simulation.fault != "agent", -len(o.reasons), -len(o.simulation.exchanges)))


def worst_conversations(outcomes: Iterable[Outcome], most: int = WORST) -> tuple[WorstConversation, ...]:
    """Return failed conversations, the gravest first: faults of the agent, then by the number of reasons.

    Each has another first reason, as long as there are such; so one error that repeats does not hide the others.
    """
    failed = [outcome for outcome in gravest_first(outcomes) if outcome.name == "failed"]
    by_kind: dict[str, list[Outcome]] = {}
    for outcome in failed:
        by_kind.setdefault(outcome.kinds[0], []).append(outcome)
    rounds = max(map(len, by_kind.values()), default=0)
    chosen = [own[place] for place in range(rounds) for own in by_kind.values() if place < len(own)][:most]
    return tuple(
        WorstConversation(
            id=o.simulation.id, seed=o.simulation.seed, turns=len(o.simulation.exchanges), why="; ".join(o.reasons),
            others=len(by_kind[o.kinds[0]]) - 1,
        )
        for o in chosen
    )  # fmt: skip


def _passed_means(usable: Sequence[Outcome]) -> tuple[str, ...]:
    checks = {check.name for outcome in usable for check in outcome.simulation.checks}
    criteria = {name for name in checks if name.startswith("criterion: ")}
    has_goal = any(outcome.goal is not None for outcome in usable)
    return (
        "no fault of the agent",
        *(["every check holds"] if checks - criteria else []),
        *(["every criterion is met"] if criteria else []),
        *(["the goal is reached"] if has_goal else []),
    )


def _checks(kept: Sequence[Simulation], simulations: Sequence[Simulation]) -> tuple[CheckTotal, ...]:
    results: dict[str, list[tuple[Simulation, bool]]] = {}
    for simulation in kept:
        for check in simulation.checks:
            if check.passed is not None:
                results.setdefault(check.name, []).append((simulation, check.passed))
    names = dict.fromkeys(check.name for simulation in simulations for check in simulation.checks)
    errors = Counter(check.name for simulation in simulations for check in simulation.checks if check.passed is None)
    own = {name: results.get(name, []) for name in names}
    return tuple(
        CheckTotal(name=name, rate=rate([s for s, _ in rows], [passed for _, passed in rows]), errors=errors[name])
        for name, rows in own.items()
    )


def _groups(outcomes: Sequence[Outcome], names: Mapping[str, str]) -> tuple[Group, ...]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(names[outcome.simulation.id], []).append(outcome)
    return tuple(
        Group(
            name=name, conversations=len(own), twin_faults=sum(outcome.name == "twin_fault" for outcome in own),
            pass_rate=rate(
                [outcome.simulation for outcome in own if outcome.is_usable],
                [outcome.name == "passed" for outcome in own if outcome.is_usable],
            ),
        )
        for name, own in groups.items()
    )  # fmt: skip


def _seconds(simulation: Simulation) -> float:
    """Return how long a conversation took; runs of earlier versions hold the seconds of turns only."""
    return simulation.seconds or sum(exchange.twin_seconds + exchange.agent_seconds for exchange in simulation.exchanges)


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())
