"""A reply with the thoughts behind it in one JSON object: its schema, its reading, and whether the person leaves with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from usertwin.memory.text.completions import json_objects
from usertwin.memory.text.goal_words import goal_is_mentioned
from usertwin.memory.text.transcript import single_line
from usertwin.personas import Pair

_THOUGHTS = ("noticed", "wants", "still_open")
#: Thoughts before the reply, so that the reply follows from them, and `done` last.
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in (*_THOUGHTS, "reply")} | {"done": {"type": "boolean"}},
    "required": [*_THOUGHTS, "reply", "done"],
    "additionalProperties": False,
}
#: The defect of a completion that holds no such object.
UNREADABLE = "an unreadable JSON object"
#: Words with which both sides close a conversation, and those with which the person who is served does, in some languages.
_FAREWELL = (
    r"\b(?:(?:good)?bye|cya|ciao|farewell|take care|see you|tschüss|au revoir|adi[óo]s|tchau|до свидания"
    r"|(?:good|(?:have|enjoy) (?:a|your) \w+) (?:day|night|evening|weekend|one))\b|再见|さようなら"
)
_THANKS = (
    r"\b(?:thanks?|thx|ty|cheers|that'?s (?:all|it)|danke|merci|gracias|obrigad[oa]|grazie|спасибо)\b|谢谢|ありがとう|감사"
)
#: The tags of an instruction that a model may write around a reply, or the other side's before it.
_OWN_TAG, _OTHER_TAG = (
    re.compile(r"\s*(?:<me>)?(.*?)(?:</me>.*)?", re.IGNORECASE | re.DOTALL),
    re.compile(r"\s*<them\b", re.IGNORECASE),
)
_NOTHING = re.compile(r"\W*(?:none|nothing|n/?a|null|-)?\W*", re.IGNORECASE)


class StructuredReply(NamedTuple):
    """The person's turn, the thoughts behind it in one line, and whether the model says that the person leaves with it."""

    text: str
    thought: str
    done: bool


def read_structured(completion: str) -> StructuredReply | None:
    """Return the reply in a completion, with the thoughts that it has; None if there is no object with a reply."""
    for raw in json_objects(completion):
        reply = raw.get("reply")
        if isinstance(reply, str) and reply.strip():
            return StructuredReply(reply, _thought(raw), raw.get("done") is True)
    return None


def without_tags(reply: str) -> str:
    """Return a reply without the prompt's tag of the person's turns around it; "" if it is a turn of the other side."""
    match = _OWN_TAG.fullmatch(reply)
    return "" if match is None or _OTHER_TAG.match(reply) else match[1]


def may_leave(pair: Pair) -> bool:
    """Return whether the person may leave with the pair's action as the model says: models say so too early.

    Both sides have spoken before. With a goal, it was mentioned before; without one, somebody closes the conversation now.
    """
    own = [turn for turn in pair.context if turn.speaker == pair.speaker]
    if not own or len(own) == len(pair.context):
        return False
    if pair.goal:
        return goal_is_mentioned(pair, with_action=False)
    return _says(_FAREWELL, pair.context[-1].text) or _says(f"{_FAREWELL}|{_THANKS}", pair.action)


def says_farewell(text: str) -> bool:
    """Return whether a turn closes the conversation with a farewell, in some languages."""
    return _says(_FAREWELL, text)


def _says(pattern: str, text: str) -> bool:
    return re.search(pattern, text.replace("’", "'"), re.IGNORECASE) is not None


def _thought(raw: Mapping[str, Any]) -> str:
    parts = {name: single_line(text) for name in _THOUGHTS if isinstance(text := raw.get(name), str)}
    sentences = [
        ("Still open: " if name == "still_open" else "") + (text if text[-1] in ".!?…。！？" else f"{text}.")
        for name, text in parts.items()
        if _NOTHING.fullmatch(text) is None
    ]
    return " ".join(sentences)
