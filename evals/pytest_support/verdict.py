"""The verdict on a conversation in a test: a fault of the agent fails it, and one of the twin is an error."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from usertwin.simulator import Simulation

#: Conversations of a test that a failure shows, the latest ones.
_SHOWN = 3


class TwinFailed(Exception):
    """The twin or its settings failed, not the agent: the test errors."""


@dataclass(slots=True, kw_only=True)
class Talk:
    """A conversation of a test, as plain values that pytest-xdist can transfer.

    Attributes:
        twin: the twin's name.
        closeness: its measured closeness, as text.
        speaker: the person in the log whom it was learned from.
        note: what its model cannot do; "" for nothing known.
        spoiled: whether the twin failed, or did something that makes the conversation worthless.
        passed: whether the test, or its repetition, passed; None if it was skipped.
        model: the model that acted.
        tokens: input and output tokens of the twin's model calls.
        row: the whole conversation as a JSON object, with the test as its scenario, if a report is asked for.
    """

    twin: str
    closeness: str
    speaker: str
    note: str
    spoiled: bool = False
    passed: bool | None = False
    model: str = ""
    tokens: int = 0
    row: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the values as a JSON object."""
        return asdict(self)


@dataclass(slots=True, kw_only=True)
class TestTalks:
    """What the twins of one test did.

    Attributes:
        talks: its conversations.
        failures: the twins' failures, also those that the test caught.
        suspicions: sentences on what twins did wrong in conversations that went on.
        sections: a text on each conversation, for a failure.
        has_twin: whether the test has a twin in its own hands, so that an error of a twin or a model may reach it.
        offset: added to the seeds, in a repetition.
    """

    __test__ = False

    talks: list[Talk] = field(default_factory=list[Talk])
    failures: list[TwinFailed] = field(default_factory=list[TwinFailed])
    suspicions: list[str] = field(default_factory=list[str])
    sections: list[str] = field(default_factory=list[str])
    has_twin: bool = False
    offset: int = 0

    def noted(self, failure: TwinFailed) -> TwinFailed:
        """Keep a failure of the twin, even if the test catches it."""
        self.failures.append(failure)
        return failure

    def text(self) -> str:
        """Return the latest conversations for the report of a failure."""
        return "\n\n".join(self.sections[-_SHOWN:])


def judged(talks: TestTalks, simulation: Simulation, talk: Talk) -> Simulation:
    """Return a conversation, after noting it for the report. Raises the fault that ended it, if one did."""
    from usertwin.personas.printable import printable
    from usertwin.simulator.records import AGENT_FAULTS, SPOILING, TWIN_FAULTS

    talks.talks.append(talk)
    talks.sections.append(printable(transcript(simulation)))
    talk.tokens = simulation.usage.input_tokens + simulation.usage.output_tokens
    if talk.row is not None:
        talk.row |= simulation.to_json() | {"scenario": talk.row["scenario"]}
    if simulation.stop_reason in AGENT_FAULTS:
        context = f"after {len(simulation.exchanges)} turns, with seed {simulation.seed}"
        where = f"\n\nin the agent:\n{simulation.agent_traceback}" if simulation.agent_traceback else ""
        pytest.fail(printable(f"{simulation.error} ({context}){where}"), pytrace=False)
    faults = [fault.text for fault in simulation.twin_faults if fault.kind in SPOILING]
    talk.spoiled = simulation.stop_reason in TWIN_FAULTS or bool(faults)
    if simulation.stop_reason in TWIN_FAULTS:
        raise talks.noted(TwinFailed(printable(simulation.error or "")))
    if any(fault.kind == "goal_not_pursued" for fault in simulation.twin_faults):
        raise talks.noted(TwinFailed(printable("; ".join(faults))))
    talks.suspicions += [printable(fault) for fault in faults]
    if any(result.passed is not True for result in simulation.checks):
        from usertwin.evals.agent_tests.assertions import require

        require(simulation.checks)
    return simulation


def transcript(simulation: Simulation) -> str:
    """Return a conversation as lines: who talked, with what goal and seed, what was said, and how it ended."""
    goal = f', goal "{simulation.goal}"' if simulation.goal else ""
    lines = [f"twin {simulation.twin}, seed {simulation.seed}{goal}"]
    for message in simulation.messages:
        said = " ".join(str(message.get("content") or "").split("\n"))
        calls = [str(call.get("function", call).get("name", "a tool")) for call in message.get("tool_calls") or ()]
        called = f" [calls {', '.join(calls)}]" if calls else ""
        who = {"user": simulation.twin, "assistant": "agent"}.get(message["role"], message["role"])
        lines.append(f"{who}: {said}{called}")
    error = f": {simulation.error}" if simulation.error else ""
    lines.append(f"ended with {simulation.stop_reason}{error}")
    return "\n".join([*lines, *(f"the twin's fault: {fault.text}" for fault in simulation.twin_faults)])
