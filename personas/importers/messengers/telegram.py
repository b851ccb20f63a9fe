"""Importer of the JSON export of Telegram Desktop: result.json of one chat, or of an account.

Source: https://core.telegram.org/import-export and files of Telegram Desktop 5. Forwarded messages are dropped, since another
person wrote them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from usertwin.personas.conversation import Turn

from ..source import Source
from ..thread import DAMAGED, EMPTY, PLACEHOLDER, SYSTEM, Tally, Thread, as_list, as_object, as_text, time_of

_MEDIA = (
    "photo",
    "file",
    "media_type",
    "location_information",
    "contact_information",
    "poll",
    "game_title",
    "invoice_information",
)


def _files(source: Source) -> list[str]:
    return list(source.names) if len(source.names) == 1 else [name for name in source.names if name.endswith("result.json")]


def recognises(source: Source) -> bool:
    """Return whether messages have the keys of Telegram."""
    files = _files(source)
    keys = source.only(files[0]).keys if files else frozenset[str]()
    return {"messages", "type", "date"} <= keys and bool({"from_id", "actor_id", "date_unixtime", "text_entities"} & keys)


def read(source: Source, tally: Tally) -> Iterator[Thread]:
    """Yield the chats."""
    for name in _files(source):
        record = as_object(source.json(name))
        chats = [record] if isinstance(record.get("messages"), list) else []
        for group in ("chats", "left_chats"):
            chats += map(as_object, as_list(as_object(record.get(group)).get("list")))
        for chat in chats:
            turns = [turn for item in as_list(chat.get("messages")) if (turn := _turn(as_object(item), tally)) is not None]
            names = (as_text(chat.get("name")), as_text(chat.get("id")))
            yield Thread(turns=turns, name="/".join(filter(None, names)) or source.stem)


def _turn(item: dict[str, Any], tally: Tally) -> Turn | None:
    speaker = as_text(item.get("from")) or as_text(item.get("from_id"))
    text = _text(item.get("text"))
    if item.get("type") != "message":
        tally.drop(SYSTEM if item else DAMAGED, as_text(item.get("action")))
    elif item.get("forwarded_from") is not None or item.get("saved_from") is not None:
        tally.drop("forwarded message")
    elif not speaker:
        tally.drop(DAMAGED, "a message without a sender")
    elif text.strip():
        unix = as_text(item.get("date_unixtime"))
        return Turn(speaker, "participant", text, time=time_of(unix) or time_of(item.get("date")))
    else:
        media = next((key for key in _MEDIA if key in item), None)
        tally.drop(EMPTY if media is None else PLACEHOLDER, media or "")
    return None


def _text(value: Any) -> str:
    """Return a text, which is a string or a list of strings and of marked parts."""
    if isinstance(value, str):
        return value
    return "".join(part if isinstance(part, str) else as_text(as_object(part).get("text")) for part in as_list(value))
