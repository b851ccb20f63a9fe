"""Importer of Discord channels as DiscordChatExporter writes them in JSON, a channel a file.

Source: https://github.com/Tyrrrz/DiscordChatExporter, whose JsonMessageWriter writes the keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from usertwin.personas.conversation import Turn

from ..source import Source
from ..thread import DAMAGED, EMPTY, PLACEHOLDER, SYSTEM, Tally, Thread, as_list, as_object, as_text, time_of

#: Types of messages that a person wrote; 19 is a reply and 0 a plain message where the exporter writes numbers.
_WRITTEN = {"Default", "Reply", "ThreadStarterMessage", "0", "19", "21", ""}


def recognises(source: Source) -> bool:
    """Return whether the first JSON file has a guild, a channel and messages."""
    files = source.ending(".json")
    return bool(files) and {"guild", "channel", "messages"} <= source.only(files[0]).keys


def read(source: Source, tally: Tally) -> Iterator[Thread]:
    """Yield the channel of each file."""
    for name in source.ending(".json"):
        record = as_object(source.json(name))
        channel, guild = as_object(record.get("channel")), as_object(record.get("guild"))
        turns = [turn for item in as_list(record.get("messages")) if (turn := _turn(as_object(item), tally)) is not None]
        parts = (guild.get("name"), channel.get("name"), channel.get("id"))
        yield Thread(turns=turns, name="/".join(filter(None, map(as_text, parts))) or source.stem)


def _turn(item: dict[str, Any], tally: Tally) -> Turn | None:
    author = as_object(item.get("author"))
    speaker, text = as_text(author.get("name")) or as_text(author.get("id")), as_text(item.get("content"))
    if (kind := as_text(item.get("type"))) not in _WRITTEN:
        tally.drop(SYSTEM, kind)
    elif not speaker:
        tally.drop(DAMAGED, "a message without an author")
    elif text.strip():
        number = as_text(author.get("discriminator"))
        speaker = speaker if number in {"", "0", "0000"} else f"{speaker}#{number}"
        return Turn(speaker, "bot" if author.get("isBot") is True else "participant", text, time=time_of(item.get("timestamp")))
    else:
        tally.drop(PLACEHOLDER if any(item.get(key) for key in ("attachments", "embeds", "stickers")) else EMPTY)
    return None
