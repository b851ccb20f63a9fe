"""The records of conversations: each exchange, why the conversation ended, and whose fault it was.

A failed conversation is a result, not an exception. A fault of the twin is never charged to the agent.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, asdict, dataclass, field, fields, replace
from typing import Any, Literal

from usertwin.memory.models.chat import Usage
from usertwin.personas import Conversation, Turn
from usertwin.personas.reading import as_type

from .agents import Message
from .state import Answer

StopReason = Literal[
    "user_stop", "goal_reached", "max_turns", "time_limit", "agent_error", "agent_timeout", "twin_error", "model_unavailable"
]
Side = Literal["agent", "twin"]
FaultKind = Literal[
    "contradicts_goal", "contradicts_fact", "reveals_early", "speaks_as_assistant", "repeats_itself", "ends_early",
    "never_ends", "goal_not_pursued",
]  # fmt: skip
#: Stop reasons that are a fault of the agent, and of the twin.
AGENT_FAULTS: frozenset[StopReason] = frozenset({"agent_error", "agent_timeout"})
TWIN_FAULTS: frozenset[StopReason] = frozenset({"twin_error", "model_unavailable"})
#: Faults of the twin after which a conversation says nothing about the agent. One who repeats a turn, or does not leave after
#: the goodbye, is tiresome as people are.
SPOILING: frozenset[FaultKind] = frozenset(
    {"contradicts_goal", "contradicts_fact", "reveals_early", "speaks_as_assistant", "ends_early", "goal_not_pursued"}
)


@dataclass(frozen=True, slots=True)
class TwinFault:
    """What the twin did wrong in a conversation that did not fail.

    Attributes:
        kind: what it is.
        turn: the number of the twin's turn, from 0; None for the whole conversation.
        text: one sentence.
    """

    kind: FaultKind
    turn: int | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """The result of one check of the agent on one conversation.

    Attributes:
        name: the check's name.
        passed: whether the agent passed; None if the check itself failed, which is nobody's fault.
        reason: why, in one sentence.
        error: how the check failed, or None.
    """

    name: str
    passed: bool | None
    reason: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """One turn of the twin and the agent's replies.

    Attributes:
        answer: the twin's turn as it wrote it, with the memories and the reasoning behind it.
        replies: the agent's replies; none if the twin left or the agent failed.
        twin_seconds: how long the twin took.
        agent_seconds: how long the agent took.
        authored: whether the scenario wrote the turn.
        sent: the messages that the agent got, if they are not the turn as it was written.
        notes: what modifiers did to the turn.
        state: the agent's state after its reply as JSON values, if it has one.
    """

    answer: Answer
    replies: tuple[Message, ...]
    twin_seconds: float
    agent_seconds: float
    _: KW_ONLY
    authored: bool = False
    sent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    state: Any = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the exchange as a JSON object."""
        return {
            "answer": self.answer.to_json(), "replies": [dict(message) for message in self.replies],
            "twin_seconds": self.twin_seconds, "agent_seconds": self.agent_seconds, "authored": self.authored,
            "sent": list(self.sent), "notes": list(self.notes), "state": self.state,
        }  # fmt: skip

    @classmethod
    def from_json(cls, raw: dict[str, Any], speaker: str) -> Exchange:
        """Return the exchange that `to_json` wrote. ValueError if it is none."""
        answer = Answer.from_json(as_type(dict[str, Any], raw.get("answer")), speaker)
        replies = as_type(tuple[Message, ...], raw.get("replies"))
        plain = as_type(_ExchangeFields, {name: value for name, value in raw.items() if name not in {"answer", "replies"}})
        return cls(
            answer,
            replies,
            plain.twin_seconds,
            plain.agent_seconds,
            authored=plain.authored,
            sent=plain.sent,
            notes=plain.notes,
            state=plain.state,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _ExchangeFields:
    """What an exchange holds beside the answer and the replies."""

    twin_seconds: float
    agent_seconds: float
    authored: bool = False
    sent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    state: Any = None


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
        scenario: the name of the scenario; "" without one.
        repeat: the number of the conversation among those of this twin and scenario, from 0.
        twin_faults: what the twin did wrong although the conversation did not fail.
        checks: the results of the checks of the agent.
        final_state: the agent's last state as JSON values, if it has one.
        seconds: how long the conversation took.
        agent_traceback: where the agent's own code raised the exception that ended it, as lines; it is not written to files.
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
    final_state: Any = field(default=None, repr=False)
    seconds: float = 0.0
    agent_traceback: str = field(default="", repr=False, compare=False)

    @property
    def id(self) -> str:
        """The conversation's name in its run."""
        return conversation_id(self.scenario, self.twin, self.repeat)

    @property
    def fault(self) -> Side | None:
        """The side at fault; None if the conversation did not fail and the twin did not spoil it."""
        if self.stop_reason in AGENT_FAULTS:
            return "agent"
        spoiled = any(fault.kind in SPOILING for fault in self.twin_faults)
        return "twin" if self.stop_reason in TWIN_FAULTS or spoiled else None

    @property
    def usage(self) -> Usage:
        """Tokens of all the twin's model calls."""
        return sum((exchange.answer.usage for exchange in self.exchanges), Usage())

    def to_json(self) -> dict[str, Any]:
        """Return the simulation as a JSON object."""
        names = [item.name for item in fields(self) if item.name != "agent_traceback"]
        shallow = {name: getattr(self, name) for name in names}  # asdict would convert the exchanges twice
        return shallow | {
            "messages": [dict(message) for message in self.messages],
            "exchanges": [exchange.to_json() for exchange in self.exchanges],
            "twin_faults": [asdict(fault) for fault in self.twin_faults],
            "checks": [asdict(check) for check in self.checks],
        }

    @classmethod
    def from_json(cls, raw: Any, speaker: str) -> Simulation:
        """Return the simulation that `to_json` wrote, of a twin of this speaker. ValueError if it is none."""
        values = as_type(dict[str, Any], raw)
        rows = as_type(list[dict[str, Any]], values.get("exchanges"))
        exchanges = [Exchange.from_json(row, speaker) for row in rows]
        return replace(as_type(cls, values | {"exchanges": []}), exchanges=exchanges)

    def conversation(self) -> Conversation:
        """Return the simulation in the interchange format, without calls of tools and their results."""
        turns = [
            Turn(self.twin if m["role"] == "user" else "agent", str(m["role"]), str(m["content"]))
            for m in self.messages
            if m["role"] != "tool" and m.get("content")
        ]
        return Conversation(self.thread_id, tuple(turns), None, {"stop_reason": self.stop_reason})


def conversation_id(scenario: str, twin: str, repeat: int) -> str:
    """Return the name of a conversation in its run."""
    return "/".join([*([scenario] if scenario else []), twin, str(repeat)])
