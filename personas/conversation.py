"""Turns and conversations, and the interchange format they are read from and written to.

The one design choice: every shape a conversation can come in (our JSON lines, OpenAI-style message lists, LangChain
messages) becomes one frozen `Conversation` at the door, so that nothing further in knows about formats. A line is
`{"conversation_id", "started_at", "turns": [{"speaker", "role", "text"}]}`; unknown keys are kept and written back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

from .errors import LogError

#: Roles whose turns only the person saw (a task, an instruction). They become the goal, and never reach the agent.
PRIVATE_ROLES = frozenset({"instruction", "system"})

_LANGCHAIN_ROLES = {"human": "user", "ai": "assistant", "AIMessageChunk": "assistant", "HumanMessageChunk": "user"}


@dataclass(frozen=True, slots=True)
class Turn:
    """One thing somebody said. `time` is ISO 8601 where the log knows it, else None."""

    speaker: str
    role: str
    text: str
    time: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)

    @property
    def private(self) -> bool:
        """Whether only the person saw this turn (see `PRIVATE_ROLES`)."""
        return self.role in PRIVATE_ROLES


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in the order they were said. `started_at` is ISO 8601, or None for a log without dates."""

    conversation_id: str
    turns: tuple[Turn, ...]
    started_at: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)

    def speakers(self) -> frozenset[str]:
        """Everybody who said something that others could see."""
        return frozenset(turn.speaker for turn in self.turns if not turn.private)

    def to_json(self) -> dict[str, Any]:
        """The conversation as one object of the interchange format."""
        turns = [
            {"speaker": t.speaker, "role": t.role, "text": t.text}
            | ({} if t.time is None else {"time": t.time})
            | dict(t.extra)
            for t in self.turns
        ]
        return {"conversation_id": self.conversation_id, "started_at": self.started_at, "turns": turns} | dict(self.extra)

    def to_messages(self, user: str) -> list[dict[str, str]]:
        """As OpenAI-style messages: `user` is the user, what only they saw is "system", everybody else is the assistant."""
        roles = {True: "system", False: "assistant"}
        return [
            {"role": "user" if turn.speaker == user else roles[turn.private], "content": turn.text, "name": turn.speaker}
            for turn in self.turns
        ]


def seconds(moment: str | None) -> float | None:
    """An ISO 8601 moment as seconds since 1970, UTC where no zone is given. ValueError if it is not one."""
    if moment is None:
        return None
    parsed = datetime.fromisoformat(moment)
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def as_conversation(value: Any, conversation_id: str = "conversation") -> Conversation:
    """A `Conversation` from any accepted shape.

    Args:
        value: a Conversation, an object of the interchange format, a list of OpenAI-style or LangChain messages, or an
            object with such a list under "messages".
        conversation_id: the id to give where the value brings none.

    Raises:
        LogError: the value has none of these shapes; the message says what is wrong with it.
    """
    if isinstance(value, Conversation):
        return value
    if isinstance(value, Mapping):
        record = cast("Mapping[str, Any]", value)
        if "turns" in record:
            return _from_record(record, conversation_id)
        if "messages" in record:
            return _from_messages(record["messages"], record, conversation_id)
        raise LogError('a conversation needs "turns" (or "messages"), and has neither')
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return _from_messages(cast("Sequence[Any]", value), {}, conversation_id)
    raise LogError(f"a conversation is an object or a list of messages, not {type(value).__name__}")


def _from_record(record: Mapping[str, Any], conversation_id: str) -> Conversation:
    if not isinstance(record["turns"], list):
        raise LogError('"turns" must be a list')
    turns: list[Turn] = []
    for number, raw in enumerate(cast("list[Any]", record["turns"]), 1):
        if not isinstance(raw, Mapping):
            raise LogError(f"turn {number} must be an object")
        item = dict(cast("Mapping[str, Any]", raw))
        speaker, role, text = (item.pop(key, None) for key in ("speaker", "role", "text"))
        if not isinstance(speaker, str) or not speaker:
            raise LogError(f'turn {number} needs a "speaker"')
        if not isinstance(text, str):
            raise LogError(f'turn {number} needs a "text" that is a string')
        if role is not None and not isinstance(role, str):
            raise LogError(f'the "role" of turn {number} must be a string')
        time = _moment(item.pop("time", None), f"turn {number}")
        turns.append(Turn(whole(speaker), whole(role or "participant"), whole(text), time, item))
    return _conversation(record, tuple(turns), conversation_id, ("turns",))


def _from_messages(messages: Any, record: Mapping[str, Any], conversation_id: str) -> Conversation:
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise LogError('"messages" must be a list')
    turns: list[Turn] = []
    for number, message in enumerate(cast("Sequence[Any]", messages), 1):
        if isinstance(message, Mapping):
            item = cast("Mapping[str, Any]", message)
            role, content, name = item.get("role"), item.get("content"), item.get("name")
        else:  # a LangChain message, recognised by its shape so that langchain need not be imported
            kind = getattr(message, "type", None)
            role, content, name = (
                _LANGCHAIN_ROLES.get(str(kind), kind),
                getattr(message, "content", None),
                getattr(message, "name", None),
            )
        if not isinstance(role, str) or not role:
            raise LogError(f'message {number} needs a "role"')
        if role == "tool":
            continue  # what a tool returned was never said to the person
        text = text_of(content)
        if text is None:
            raise LogError(f'message {number} needs a "content" that is text')
        if text:
            speaker = name if isinstance(name, str) and name else role
            turns.append(Turn(whole(speaker), whole(role), whole(text)))
    return _conversation(record, tuple(turns), conversation_id, ("messages",))


def text_of(content: Any) -> str | None:
    """The text of a message's content: a string, None (a bare tool call) or a list of parts; None if it is neither."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        parts: list[str] = []
        for part in cast("Sequence[Any]", content):
            if isinstance(part, str):
                parts.append(part)
            elif isinstance(part, Mapping):
                piece = cast("Mapping[str, Any]", part).get("text")
                if isinstance(piece, str):
                    parts.append(piece)
        return "\n".join(parts)
    return None


def whole(text: str) -> str:
    """The text with U+FFFD for half characters (a log cut within an emoji has them), which no file and no model takes."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _conversation(record: Mapping[str, Any], turns: tuple[Turn, ...], fallback: str, used: tuple[str, ...]) -> Conversation:
    extra = {key: value for key, value in record.items() if key not in {"conversation_id", "started_at", *used}}
    name = record.get("conversation_id", fallback)
    if not isinstance(name, str | int):
        raise LogError('"conversation_id" must be a string')
    return Conversation(whole(str(name)), turns, _moment(record.get("started_at"), "started_at"), extra)


def _moment(value: Any, where: str) -> str | None:
    if value is None:
        return None
    try:
        if not isinstance(value, str):
            raise ValueError
        seconds(value)
    except ValueError:
        raise LogError(f"{where}: {value!r} is not an ISO 8601 date or time") from None
    return value
