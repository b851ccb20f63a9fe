"""What a twin's graph passes on from step to step, and the answer a caller gets.

The one design choice: the state holds plain JSON values only, so that any checkpointer can keep it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, NotRequired, TypedDict, cast

from usertwin.memory import Recalled, Triple
from usertwin.memory.models.chat import Usage
from usertwin.personas import Pair, Turn


class RecalledTriple(TypedDict):
    """A recalled triple as the graph's state holds it."""

    id: str
    similarity: float
    conversation_id: str
    position: int
    when: float
    context: list[dict[str, str]]
    action: str
    reasoning: str | None
    score: float | None


def append_messages(old: list[Any] | None, new: list[Any]) -> list[Any]:
    """LangGraph's way of adding messages to a conversation, imported when it is first used."""
    from langgraph.graph.message import add_messages

    return cast("list[Any]", add_messages(cast("Any", old or []), cast("Any", new)))


class TwinState(TypedDict):
    """The state of the graph. Give `messages` (and `goal`); the other keys are what the twin makes of them."""

    messages: Annotated[list[Any], append_messages]
    goal: NotRequired[str]
    recalled: NotRequired[list[RecalledTriple]]
    reasoning: NotRequired[str]
    action: NotRequired[str]
    done: NotRequired[bool]
    leaving: NotRequired[float]
    usage: NotRequired[dict[str, int]]


@dataclass(frozen=True, slots=True)
class Answer:
    """One turn of a twin, with everything it came from.

    Attributes:
        action: what the twin says; "" if it leaves without another word (then it is done).
        reasoning: what went on in it; "" if its memory holds no traces and its model continues transcripts.
        recalled: the triples that came to mind, most similar first.
        done: whether the person leaves with this turn.
        leaving: how much of what came to mind are moments in which the person silently left, 0 to 1.
        reasoner: the name of the model that reasoned, where that is not the one that acts; else None.
        usage: tokens, over all model calls of the turn.
    """

    action: str
    reasoning: str
    recalled: tuple[RecalledTriple, ...] = field(repr=False)
    done: bool
    usage: Usage
    leaving: float = 0.0
    reasoner: str | None = None

    @property
    def message(self) -> dict[str, str]:
        """The turn as an OpenAI-style message."""
        return {"role": "user", "content": self.action}


def as_state(recalled: Recalled) -> RecalledTriple:
    """A recalled triple as plain JSON values."""
    triple, pair = recalled.triple, recalled.triple.pair
    return {
        "id": triple.id,
        "similarity": round(recalled.similarity, 6),
        "conversation_id": pair.conversation_id,
        "position": pair.position,
        "when": pair.when,
        "context": [{"speaker": t.speaker, "role": t.role, "text": t.text} for t in pair.context],
        "action": pair.action,
        "reasoning": triple.reasoning,
        "score": triple.score,
    }


def from_state(state: TwinState, speaker: str) -> list[Triple]:
    """The recalled triples of a state."""
    return [
        Triple(
            Pair(
                speaker=speaker,
                context=tuple(Turn(t["speaker"], t["role"], t["text"]) for t in row["context"]),
                action=row["action"],
                goal="",
                conversation_id=row["conversation_id"],
                position=row["position"],
                when=row["when"],
            ),
            row["reasoning"],
            row["score"],
        )
        for row in state.get("recalled", [])
    ]
