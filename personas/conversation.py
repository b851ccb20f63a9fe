"""Turns and conversations, and the interchange format for them.

A conversation in JSON is `{"conversation_id", "started_at", "turns": [{"speaker", "role", "text"}]}`; unknown keys are kept and
written back. `as_conversation` also accepts OpenAI-style and LangChain message lists. All other code sees only `Conversation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, cast

from .dates import find_date, is_missing, read_date, to_timestamp
from .errors import LogError
from .extended_json import plain_value
from .roles import is_private, is_unseen

#: Roles by the type of a LangChain message, which has no role of its own.
LANGCHAIN_ROLES = {
    "human": "user", "HumanMessageChunk": "user", "ai": "assistant", "AIMessageChunk": "assistant", "system": "system",
    "SystemMessageChunk": "system", "tool": "tool", "ToolMessageChunk": "tool", "function": "function",
    "FunctionMessageChunk": "function", "remove": "remove",
}  # fmt: skip
#: The key of a turn for what the person did not say there: a list of texts, among which a measurement looks for the real one.
DISTRACTORS = "distractors"
#: Keys of messages that need no text, since they call a tool or hold an answer in another form.
_WITHOUT_TEXT = frozenset({"tool_calls", "function_call", "audio", "refusal", "reasoning", "reasoning_content", "thinking"})


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
        """Whether only the person saw this turn: a task or an instruction. It becomes part of the goal."""
        return is_private(self.role)


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
        turns: list[dict[str, Any]] = []
        for turn in self.turns:
            item: dict[str, Any] = {"speaker": turn.speaker, "role": turn.role, "text": turn.text}
            if turn.time is not None:
                item["time"] = turn.time
            item.update(turn.extra)
            turns.append(item)
        return {"conversation_id": self.conversation_id, "started_at": self.started_at, "turns": turns} | dict(self.extra)

    def to_messages(self, user: str) -> list[dict[str, str]]:
        """Return OpenAI-style messages: `user` has the role "user", private turns "system", all other turns "assistant"."""
        roles = {True: "system", False: "assistant"}
        return [
            {"role": "user" if turn.speaker == user else roles[turn.private], "content": turn.text, "name": turn.speaker}
            for turn in self.turns
        ]


def as_conversation(value: Any, conversation_id: str = "conversation", *, damaged: list[str] | None = None) -> Conversation:
    """Return a `Conversation` made from any accepted form; `conversation_id` is its id if the value has none, nor an "_id".

    The forms are a Conversation, an object of the interchange format, a list of OpenAI-style or LangChain messages, and an
    object with such a list under "messages". Calls and results of tools are left out. With a list `damaged`, damaged turns are
    left out too, and the list receives a sentence for each.

    Raises:
        LogError: the value has none of these forms; the message names the missing or invalid part.
    """
    if isinstance(value, Conversation):
        return value
    if isinstance(value, Mapping):
        record = cast("Mapping[str, Any]", value)
        for key in ("turns", "messages"):
            if key in record:
                return _build(record, conversation_id, key, damaged)
        raise LogError('a conversation needs "turns" (or "messages"), and has neither')
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return _build({"messages": value}, conversation_id, "messages", damaged)
    raise LogError(f"a conversation is an object or a list of messages, not {type(value).__name__}")


def _build(record: Mapping[str, Any], fallback: str, key: str, damaged: list[str] | None) -> Conversation:
    items = record[key]
    if not isinstance(items, Sequence) or isinstance(items, str | bytes):
        raise LogError(f'"{key}" must be a list')
    turns: list[Turn] = []
    for number, raw in enumerate(cast("Sequence[Any]", items), 1):
        problems: list[str] = []
        try:
            turn = (_turn if key == "turns" else _message)(raw, problems)
        except LogError as error:
            if damaged is None:
                raise LogError(f"{key[:-1]} {number} {error}") from None
            problems, turn = [str(error)], None
        if damaged is not None:
            damaged += [f"{key[:-1]} {number} {problem}" for problem in problems]
        turns += [] if turn is None else [turn]
    extra = {name: value for name, value in record.items() if name not in {"conversation_id", "started_at", key}}
    name, of_database = plain_value(record.get("conversation_id")), plain_value(record.get("_id"))
    if name is None:
        name = of_database if isinstance(of_database, str | int) else fallback
    if not isinstance(name, str | int):
        raise LogError('"conversation_id" must be a string or an integer')
    try:
        written = record.get("started_at")
        started_at = (None if is_missing(written) else read_date(written)) or find_date(extra)
    except ValueError as error:
        raise LogError(f'"started_at": {_shown(record["started_at"])} {error}') from None
    return Conversation(replace_lone_surrogates(str(name)), tuple(turns), started_at, extra)


def _turn(raw: Any, problems: list[str]) -> Turn | None:
    """Return the turn in an object of the interchange format; None for a tool's. LogError if it is damaged.

    `problems` receives what is wrong with a turn that can be read all the same.
    """
    if not isinstance(raw, Mapping):
        raise LogError("must be an object")
    item = dict(cast("Mapping[str, Any]", raw))
    speaker, role, text = item.pop("speaker", None), item.pop("role", None), item.pop("text", None)
    if not (isinstance(speaker, str) and isinstance(role, str) and isinstance(text, str)):
        speaker, role, text = plain_value(speaker), plain_value(role), plain_value(text)
    if is_unseen(role):
        return None
    if isinstance(speaker, int) and not isinstance(speaker, bool):
        speaker = str(speaker)
    if not isinstance(speaker, str) or not speaker:
        raise LogError('needs a "speaker"')
    if not isinstance(text, str):
        raise LogError(f'needs a "text" that is a string, not {_shown(text)}')
    if role is not None and not isinstance(role, str):
        raise LogError(f'needs a "role" that is a string, not {_shown(role)}')
    time = _time_of(item, problems) if item else None
    speaker, role = replace_lone_surrogates(speaker), replace_lone_surrogates(role or "participant")
    return Turn(speaker, role, replace_lone_surrogates(text), time=time, extra=item)


def _message(raw: Any, problems: list[str]) -> Turn | None:
    """Return the turn in an OpenAI-style or LangChain message; None if it holds no speech. LogError if it is damaged."""
    if isinstance(raw, Mapping):
        item = dict(cast("Mapping[str, Any]", raw))
    else:  # an object of LangChain or of a client, recognised by its attributes so that none of them is imported
        item = {key: getattr(raw, key, None) for key in ("role", "type", "name", "content", "refusal")}
    role, name = item.get("role") or LANGCHAIN_ROLES.get(str(item.get("type"))), plain_value(item.get("name"))
    if not isinstance(role, str) or not role:
        raise LogError('needs a "role"')
    if is_unseen(role) or is_unseen(item.get("channel")):
        return None  # the person never saw the result of a tool call, nor a model's analysis
    text = content_text(item.get("content"))
    if text is None:
        raise LogError(f'needs a "content" that is text, not {_shown(item.get("content"))}')
    if not text and isinstance(refusal := item.get("refusal"), str):
        text = refusal
    if not text:
        if item.get("content") is None and isinstance(raw, Mapping) and not {*item} & _WITHOUT_TEXT:
            problems.append('needs a "content" that is text, not null')
        return None
    time = _time_of(item, problems)
    speaker = name if isinstance(name, str) and name else role
    speaker, role, text = map(replace_lone_surrogates, (speaker, role, text))
    return Turn(speaker, role, text, time=time)


def _time_of(item: dict[str, Any], problems: list[str]) -> str | None:
    """Remove "time" from a turn and return when it was written; a time that is unreadable is added to the problems."""
    raw = item.pop("time", None)
    if isinstance(raw, str) and raw[:1].isdigit() and "-" in raw:
        with suppress(ValueError):  # most are ISO 8601
            to_timestamp(raw)
            return raw
    try:
        return (None if is_missing(raw) else read_date(raw)) or find_date(item)
    except ValueError as error:
        problems.append(f'has a "time" that {error}: {_shown(raw)}')
        return find_date(item)


def content_text(content: Any) -> str | None:
    """Return the text of a message's content (a string, None or a list of parts), or None for any other type."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, Sequence):
        return None
    return "\n".join(filter(None, map(_part_text, cast("Sequence[Any]", content))))


def _part_text(part: Any) -> str:
    """Return the text of a part of a message's content; "" for an image, a tool's result or a model's reasoning."""
    if isinstance(part, Mapping):
        item = cast("Mapping[str, Any]", part)
        if is_unseen(item.get("type")) or item.get("thought") is True:  # the second: of Gemini
            return ""
        part = item.get("text") or item.get("refusal")
        if isinstance(part, Mapping):  # of OpenAI's threads
            part = cast("Mapping[str, Any]", part).get("value")
    return part if isinstance(part, str) else ""


def _shown(value: Any) -> str:
    """Return the beginning of a JSON value as it is written in the log."""
    try:
        text = "null" if value is None else repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or nested too deeply
        text = f"a very long {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:59]}…"


def replace_lone_surrogates(text: str) -> str:
    """Return the text with each lone surrogate replaced by U+FFFD.

    Logs that were cut within an emoji contain lone surrogates; UTF-8 files and models cannot take them.
    """
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
