"""The state of a twin's graph, and the answer that callers get.

Design: the state holds plain JSON values, so that any checkpointer can store it; `Answer` holds typed objects.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypedDict, cast, get_type_hints

from usertwin.memory import Recalled, Triple
from usertwin.memory.event_loop import run_sync
from usertwin.memory.models.chat import Usage
from usertwin.personas import Pair, Turn
from usertwin.personas.pairs import visible_turns
from usertwin.personas.reading import as_type
from usertwin.personas.roles import is_user

if TYPE_CHECKING:
    from langchain_core.runnables import Runnable, RunnableConfig


#: The conversation of a turn that is not in the log.
_LIVE = "(live)"


class RecalledRow(TypedDict):
    """A recalled triple as plain JSON values, in the state and in files."""

    id: str
    similarity: float
    conversation_id: str
    position: int
    when: float
    context: list[dict[str, str]]
    goal: NotRequired[str]
    action: str
    reasoning: str | None
    score: float | None


def append_messages(old: list[Any] | None, new: list[Any]) -> list[Any]:
    """LangGraph's `add_messages`, imported when it is first called."""
    from langgraph.graph.message import add_messages

    return cast("list[Any]", add_messages(cast("Any", old or []), cast("Any", new)))


class TwinState(TypedDict):
    """The state of the graph. `messages`, `goal` and `seed` are its input; the twin computes the other keys.

    The seed is that of the conversation: the sampler's seed is computed from it and from the number of the turn.
    """

    messages: Annotated[list[Any], append_messages]
    goal: NotRequired[str]
    seed: NotRequired[int]
    recalled: NotRequired[list[RecalledRow]]
    reasoning: NotRequired[str]
    action: NotRequired[str]
    done: NotRequired[bool]
    abandonment_rate: NotRequired[float]
    usage: NotRequired[dict[str, int]]
    discarded: NotRequired[int]
    candidates: NotRequired[int]
    cut_turns: NotRequired[int]
    cut_recalled: NotRequired[int]
    prompts: NotRequired[list[str]]


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a turn, as the steps of one run share it: the context and the goal, and the triples recalled for it."""

    query: Pair
    recalled: Sequence[Recalled] = ()


def working_state() -> type[Any]:
    """Return `TwinState` with the key "place", which is never checkpointed; a step computes it if it is missing.

    So the conversation is converted once a turn, and not in each step.
    """
    from langgraph.channels import UntrackedValue

    place = Annotated[Place, UntrackedValue]
    return cast("Any", TypedDict)(
        "WorkingState", get_type_hints(TwinState, include_extras=True) | {"place": NotRequired[place]}
    )


def as_node(name: str, step: Callable[[Any, RunnableConfig], Awaitable[dict[str, Any]]]) -> Runnable[Any, Any]:
    """Return an async step as a node of a graph that also runs synchronously.

    LangGraph traces each node itself; a `RunnableLambda` would trace it a second time, which costs more than the step.
    """
    from langchain_core.runnables import Runnable, ensure_config

    class Node(Runnable[Any, Any]):
        def invoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> Any:
            return run_sync(cast("Any", step(input, ensure_config(config))))

        async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> Any:
            return await step(input, ensure_config(config))

    node = Node()
    node.name = name
    return node


def is_traced() -> bool:
    """Return whether a run that begins here would be observed: by LangSmith, or by callbacks of a run that is going on."""
    from langchain_core.callbacks import AsyncCallbackManager
    from langchain_core.runnables import ensure_config

    return bool(AsyncCallbackManager.configure(ensure_config().get("callbacks")).handlers)


def to_messages(turns: Iterable[Turn]) -> list[dict[str, str]]:
    """Return turns as OpenAI-style messages, with the names of other speakers."""
    return [
        {"role": "user" if is_user(turn.role) else "system" if turn.private else "assistant", "content": turn.text}
        | ({} if turn.private or is_user(turn.role) or turn.speaker == turn.role else {"name": turn.speaker})
        for turn in turns
    ]


def add_usage(state: TwinState, usage: Usage) -> dict[str, int]:
    """Return the usage in a state plus another one."""
    return asdict(Usage(**state.get("usage", {})) + usage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One turn of a twin, with the memories and the reasoning behind it.

    Attributes:
        action: the twin's message; "" if it leaves without a word (then `done` is true).
        reasoning: the twin's reasoning; "" if it did not reason.
        recalled: the recalled triples with their similarities, most similar first.
        done: whether the person leaves with this turn.
        usage: tokens of all model calls of the turn.
        abandonment_rate: the share of the most similar pairs in which the person left without a word, 0 to 1.
        reasoner: the name of the model that reasoned if it is not the one that acted; else None.
        discarded: replies of the model that were asked for again, since they were empty, not one turn of the person, or had a
            defect (see turn_checks.py).
        candidates: the turns without a defect that it was chosen among, by the twin's rule; 0 if it chose among none.
        cut_turns: earlier turns of the conversation that the prompt did not hold whole, oldest first: a transcript shows the
            tuned number of turns, and every prompt must fit into the model's context.
        cut_recalled: recalled triples that were left out because the model's context was full.
        prompts: the checksums of the prompts (see `prompt_checksum`): for the reasoning, if there was one, and for the turn;
            none if no model wrote it.
    """

    action: str
    reasoning: str
    recalled: tuple[Recalled, ...] = field(repr=False)
    done: bool
    usage: Usage
    abandonment_rate: float = 0.0
    reasoner: str | None = None
    discarded: int = 0
    candidates: int = 0
    cut_turns: int = 0
    cut_recalled: int = 0
    prompts: tuple[str, ...] = ()

    @property
    def message(self) -> dict[str, str]:
        """The turn as an OpenAI-style message."""
        return {"role": "user", "content": self.action}

    def to_json(self) -> dict[str, Any]:
        """Return the answer as a JSON object."""
        return asdict(self) | {"recalled": to_rows(self.recalled)}

    @classmethod
    def from_json(cls, raw: dict[str, Any], speaker: str) -> Answer:
        """Return the answer that `to_json` wrote; `from_rows` says what its recalled triples lack. ValueError if it is none."""
        rows = cast("list[RecalledRow]", as_type(list[dict[str, Any]], raw.get("recalled")))
        try:
            return replace(as_type(cls, raw | {"recalled": []}), recalled=tuple(from_rows(rows, speaker)))
        except (KeyError, TypeError) as error:
            raise ValueError(f"recalled: {error!r}") from None


def upcoming_turn(turns: Sequence[Turn], goal: str, speaker: str) -> Pair:
    """Return the speaker's next turn after these as a pair without an action; private turns are part of its goal."""
    goals = [goal, *(turn.text for turn in turns if turn.private)]
    turns = [turn for turn, _ in visible_turns(turns)]
    context = tuple(Turn(speaker if is_user(turn.role) else turn.speaker, turn.role, turn.text) for turn in turns)
    return Pair(
        speaker=speaker, context=context, action="", goal="\n".join(filter(None, goals)), conversation_id=_LIVE,
        position=len(turns), when=float("inf"),
    )  # fmt: skip


def sampler_seed(state: TwinState, query: Pair) -> int:
    """Return the sampler seed of a turn, computed from the seed of the conversation and the position of the turn."""
    return (state.get("seed", 0) * 7919 + query.position) % 2**31


def has_left(state: TwinState) -> bool:
    """Return whether the person has left without a word."""
    return bool(state.get("done"))


def to_rows(recalled: Sequence[Recalled]) -> list[RecalledRow]:
    """Return recalled triples as plain JSON values."""
    rows = list[RecalledRow]()
    for memory in recalled:
        triple, pair = memory.triple, memory.triple.pair
        rows.append({
            "id": triple.id, "similarity": round(memory.similarity, 6), "conversation_id": pair.conversation_id,
            "position": pair.position, "when": pair.when, "goal": pair.goal, "action": pair.action,
            "reasoning": triple.reasoning,
            "context": [{"speaker": t.speaker, "role": t.role, "text": t.text} for t in pair.context], "score": triple.score,
        })  # fmt: skip
    return rows


def from_rows(rows: Sequence[RecalledRow], speaker: str) -> list[Recalled]:
    """Return recalled triples from plain JSON values, which hold no provenance, and no goals in rows of earlier versions."""
    recalled = list[Recalled]()
    for row in rows:
        pair = Pair(
            speaker=speaker, context=tuple(Turn(t["speaker"], t["role"], t["text"]) for t in row["context"]),
            goal=row.get("goal", ""), action=row["action"], conversation_id=row["conversation_id"],
            position=row["position"], when=row["when"],
        )  # fmt: skip
        recalled.append(Recalled(Triple(pair, row["reasoning"], row["score"]), row["similarity"]))
    return recalled
