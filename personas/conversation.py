"""Turns and conversations, and the interchange format for them.

A conversation in JSON is `{"conversation_id", "started_at", "turns": [{"speaker", "role", "text"}]}`; unknown keys are kept and
written back. `as_conversation` also accepts OpenAI-style and LangChain message lists. All other code sees only `Conversation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

from .errors import LogError

#: Roles whose turns only the person saw (a task, an instruction). They become the goal and are never sent to the agent.
PRIVATE_ROLES = frozenset({"instruction", "system"})

_LANGCHAIN_ROLES = {"human": "user", "ai": "assistant", "AIMessageChunk": "assistant", "HumanMessageChunk": "user"}


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation. `time` is ISO 8601, or None if the log has no time for it."""

    speaker: str
    role: str
    text: str
    time: str | None = None
    _: KW_ONLY
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)

    @property
    def private(self) -> bool:
        """Whether only the person saw this turn (see `PRIVATE_ROLES`)."""
        return self.role in PRIVATE_ROLES


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order. `started_at` is ISO 8601, or None for a log without dates."""

    conversation_id: str
    turns: tuple[Turn, ...]
    started_at: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)

    def speakers(self) -> frozenset[str]:
        """Return the speakers of all public turns."""
        return frozenset(turn.speaker for turn in self.turns if not turn.private)

    def to_json(self) -> dict[str, Any]:
        """Return the conversation as an object of the interchange format."""
        turns = [
            {"speaker": t.speaker, "role": t.role, "text": t.text}
            | ({} if t.time is None else {"time": t.time})
            | dict(t.extra)
            for t in self.turns
        ]
        return {"conversation_id": self.conversation_id, "started_at": self.started_at, "turns": turns} | dict(self.extra)

    def to_messages(self, user: str) -> list[dict[str, str]]:
        """Return OpenAI-style messages: `user` has the role "user", private turns "system", all other turns "assistant"."""
        roles = {True: "system", False: "assistant"}
        return [
            {"role": "user" if turn.speaker == user else roles[turn.private], "content": turn.text, "name": turn.speaker}
            for turn in self.turns
        ]


def to_timestamp(time: str | None) -> float | None:
    """Return an ISO 8601 time as seconds since 1970 (UTC if it has no zone). Raises ValueError if it is not ISO 8601."""
    if time is None:
        return None
    parsed = datetime.fromisoformat(time)
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def as_conversation(value: Any, conversation_id: str = "conversation") -> Conversation:
    """Return a `Conversation` made from any accepted form; `conversation_id` is its id if the value has none.

    The forms are a Conversation, an object of the interchange format, a list of OpenAI-style or LangChain messages, and an
    object with such a list under "messages".

    Raises:
        LogError: the value has none of these forms; the message names the missing or invalid part.
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
        time = _checked_time(item.pop("time", None), f"turn {number}")
        speaker, role, text = map(replace_lone_surrogates, (speaker, role or "participant", text))
        turns.append(Turn(speaker, role, text, time=time, extra=item))
    return _build(record, turns, conversation_id, "turns")


def _from_messages(messages: Any, record: Mapping[str, Any], conversation_id: str) -> Conversation:
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise LogError('"messages" must be a list')
    turns: list[Turn] = []
    for number, message in enumerate(cast("Sequence[Any]", messages), 1):
        if isinstance(message, Mapping):
            item = cast("Mapping[str, Any]", message)
            role, content, name = item.get("role"), item.get("content"), item.get("name")
        else:  # a LangChain message, recognised by its attributes so that langchain is not imported
            kind, content, name = (getattr(message, key, None) for key in ("type", "content", "name"))
            role = _LANGCHAIN_ROLES.get(str(kind), kind)
        if not isinstance(role, str) or not role:
            raise LogError(f'message {number} needs a "role"')
        if role == "tool":
            continue  # the person never saw the result of a tool call
        text = _content_text(content)
        if text is None:
            raise LogError(f'message {number} needs a "content" that is text')
        if text:
            speaker = name if isinstance(name, str) and name else role
            speaker, role, text = map(replace_lone_surrogates, (speaker, role, text))
            turns.append(Turn(speaker, role, text))
    return _build(record, turns, conversation_id, "messages")


def _content_text(content: Any) -> str | None:
    """Return the text of a message's content (a string, None or a list of parts), or None for any other type."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, Sequence):
        return None
    parts = [cast("Any", part).get("text") if isinstance(part, Mapping) else part for part in cast("Sequence[Any]", content)]
    return "\n".join(part for part in parts if isinstance(part, str))


def replace_lone_surrogates(text: str) -> str:
    """Return the text with each lone surrogate replaced by U+FFFD.

    Logs that were cut within an emoji contain lone surrogates; UTF-8 files and models cannot take them.
    """
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _build(record: Mapping[str, Any], turns: list[Turn], fallback: str, turns_key: str) -> Conversation:
    extra = {key: value for key, value in record.items() if key not in {"conversation_id", "started_at", turns_key}}
    name = record.get("conversation_id", fallback)
    if not isinstance(name, str | int):
        raise LogError('"conversation_id" must be a string or an integer')
    started_at = _checked_time(record.get("started_at"), "started_at")
    return Conversation(replace_lone_surrogates(str(name)), tuple(turns), started_at, extra)


def _checked_time(value: Any, where: str) -> str | None:
    try:
        to_timestamp(value)
    except (TypeError, ValueError):
        raise LogError(f"{where}: {value!r} is not an ISO 8601 date or time") from None
    return value
