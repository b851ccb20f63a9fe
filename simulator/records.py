"""The record of one conversation: its turns, why it ended, whose fault that was, and what was checked afterwards."""

from __future__ import annotations

from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from typing import Any, Literal

from usertwin.memory.models.chat import Usage
from usertwin.personas import Conversation, Turn
from usertwin.personas.reading import as_type

from .agents import Message
from .state import Answer

StopReason = Literal[
    "user_stop", "goal_reached", "max_turns", "time_limit", "agent_error", "agent_timeout", "twin_error", "model_unavailable"
]  # fmt: skip
#: The side that a fault is of.
Side = Literal["agent", "twin"]
#: Stop reasons that are a fault of the agent, and of the twin.
AGENT_FAULTS: frozenset[StopReason] = frozenset({"agent_error", "agent_timeout"})
TWIN_FAULTS: frozenset[StopReason] = frozenset({"twin_error", "model_unavailable"})


@dataclass(frozen=True, slots=True)
class Exchange:
    """One turn of the twin, the agent's replies (none if the twin left or the agent failed), and the seconds each took.

    `authored` tells that the scenario wrote the twin's turn.
    """

    answer: Answer
    replies: tuple[Message, ...]
    twin_seconds: float
    agent_seconds: float
    _: KW_ONLY
    authored: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the exchange as a JSON object."""
        return asdict(self) | {"answer": self.answer.to_json(), "replies": [dict(message) for message in self.replies]}

    @classmethod
    def from_json(cls, raw: dict[str, Any], speaker: str) -> Exchange:
        """Return the exchange that `to_json` wrote. ValueError if it is none."""
        answer = Answer.from_json(as_type(dict[str, Any], raw.get("answer")), speaker)
        replies = as_type(tuple[Message, ...], raw.get("replies"))
        twin_seconds, agent_seconds = (as_type(float, raw.get(name)) for name in ("twin_seconds", "agent_seconds"))
        return cls(answer, replies, twin_seconds, agent_seconds, authored=as_type(bool, raw.get("authored", False)))


@dataclass(frozen=True, slots=True)
class TwinFault:
    """A fault of the twin that the check of a finished conversation found.

    `turn` is the number of the twin's turn, from 0; None for the whole conversation. `text` is one sentence.
    """

    kind: str
    turn: int | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """The result of one check of the agent on one conversation.

    Attributes:
        name: the check.
        passed: None if the check itself failed, which is no fault of the agent.
        reason: one sentence.
        error: what failed in the check, or None.
    """

    name: str
    passed: bool | None
    reason: str = ""
    error: str | None = None


@dataclass(slots=True, kw_only=True)
class Simulation:
    """The record of one conversation.

    Attributes:
        twin: the twin's name.
        goal: what the twin wanted, with the instructions in `start`.
        seed: the conversation's seed.
        thread_id: the id that the agent got for this conversation.
        messages: all messages, as the agent saw them.
        exchanges: the twin's turns and the agent's replies.
        stop_reason: why the conversation ended.
        error: one sentence about the failure, or None.
        scenario: the scenario's name.
        repeat: the number of the repetition with this twin and scenario, from 0.
        twin_faults: faults of the twin that were found afterwards.
        checks: results of the checks of the agent.
        final_state: the agent's last state as JSON values, if it has one.
        seconds: how long the conversation took.
    """

    twin: str
    goal: str
    seed: int
    thread_id: str
    messages: list[Message] = field(default_factory=list[Message], repr=False)
    exchanges: list[Exchange] = field(default_factory=list[Exchange], repr=False)
    stop_reason: StopReason = "max_turns"
    error: str | None = None
    scenario: str = ""
    repeat: int = 0
    twin_faults: list[TwinFault] = field(default_factory=list[TwinFault])
    checks: list[CheckResult] = field(default_factory=list[CheckResult])
    final_state: Any = None
    seconds: float = 0.0

    @property
    def usage(self) -> Usage:
        """Tokens of all the twin's model calls."""
        return sum((exchange.answer.usage for exchange in self.exchanges), Usage())

    @property
    def fault(self) -> Side | None:
        """The side at fault, or None."""
        if self.stop_reason in AGENT_FAULTS:
            return "agent"
        return "twin" if self.stop_reason in TWIN_FAULTS or self.twin_faults else None

    @property
    def id(self) -> str:
        """The conversation's name in its run."""
        return f"{self.scenario}/{self.twin}/{self.repeat}"

    def to_json(self) -> dict[str, Any]:
        """Return the simulation as a JSON object, a line of a run's `conversations.jsonl`."""
        return asdict(self) | {"exchanges": [exchange.to_json() for exchange in self.exchanges]}

    @classmethod
    def from_json(cls, raw: Any, speaker: str) -> Simulation:
        """Return the simulation that `to_json` wrote, of a twin of this speaker. ValueError if it is none."""
        fields = as_type(dict[str, Any], raw)
        rows = as_type(list[dict[str, Any]], fields.get("exchanges"))
        exchanges = [Exchange.from_json(row, speaker) for row in rows]
        return replace(as_type(cls, fields | {"exchanges": []}), exchanges=exchanges)

    def conversation(self) -> Conversation:
        """Return the simulation in the interchange format."""
        turns = [Turn(self.twin if m["role"] == "user" else "agent", str(m["role"]), str(m["content"])) for m in self.messages]
        return Conversation(self.thread_id, tuple(turns), None, {"stop_reason": self.stop_reason})
