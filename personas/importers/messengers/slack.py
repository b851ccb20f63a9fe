"""Importer of a Slack workspace export: a folder or zip with a folder for each channel and a JSON file for each day.

Answers in a thread are a conversation of their own, with the message that they answer. Source:
https://slack.com/help/articles/220556107 and https://api.slack.com/events/message for the subtypes.
"""

from __future__ import annotations

import html
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from usertwin.personas.conversation import Turn

from ..source import Source
from ..thread import DAMAGED, EMPTY, PLACEHOLDER, SYSTEM, Tally, Thread, as_list, as_object, as_text, time_of

_DAY = re.compile(r"(?:^|/)([^/]+)/\d{4}-\d\d-\d\d\.json$")
_WRITTEN = {"", "thread_broadcast", "me_message", "bot_message", "file_share", "file_comment", "reply_broadcast"}
_LINK = re.compile(r"<([@#!])?([^<>|]+)(?:\|([^<>]*))?>")


def recognises(source: Source) -> bool:
    """Return whether there are files of days, or a single file of Slack messages."""
    if any(_DAY.search(name) for name in source.names):
        return any(name.endswith(("users.json", "channels.json", "dms.json")) for name in source.names)
    return len(source.names) == 1 and {"ts", "type", "text"} <= source.record.keys() and "user" in source.keys


def read(source: Source, tally: Tally) -> Iterator[Thread]:
    """Yield the channels and the threads in them."""
    names = _user_names(source)
    channels: dict[str, list[str]] = defaultdict(list)
    for name in source.names:
        if match := _DAY.search(name):
            channels[match[1]].append(name)
    if not channels:
        channels[source.stem] = list(source.names)
    for channel, files in sorted(channels.items()):
        threads: dict[str, list[Turn]] = defaultdict(list)
        messages = [as_object(item) for name in sorted(files) for item in as_list(source.json(name))]
        parents = {as_text(item.get("thread_ts")) for item in messages if item.get("thread_ts") != item.get("ts")} - {""}
        for item in messages:
            if (turn := _turn(item, names, tally)) is not None:
                thread = as_text(item.get("thread_ts"))
                threads[thread if thread in parents else ""].append(turn)
        for thread, turns in threads.items():
            yield Thread(turns=turns, name=f"{channel}/{thread}" if thread else channel, whole=bool(thread))


def _user_names(source: Source) -> dict[str, str]:
    """Return the names of users by id: the display name, else the real name, else the account."""
    names: dict[str, str] = {}
    for name in source.names:
        if name.rsplit("/", 1)[-1] == "users.json":
            for user in map(as_object, as_list(source.json(name))):
                profile = as_object(user.get("profile"))
                shown = (profile.get("display_name"), user.get("real_name"), profile.get("real_name"), user.get("name"))
                names[as_text(user.get("id"))] = next(filter(None, map(as_text, shown)), as_text(user.get("id")))
    return names


def _turn(item: Mapping[str, Any], names: Mapping[str, str], tally: Tally) -> Turn | None:
    subtype, user = as_text(item.get("subtype")), as_text(item.get("user"))
    speaker = names.get(user) or as_text(as_object(item.get("user_profile")).get("display_name")) or user
    speaker = speaker or as_text(item.get("username")) or as_text(item.get("bot_id"))
    text = as_text(item.get("text"))
    if subtype == "tombstone":
        tally.drop(PLACEHOLDER, subtype)
    elif item.get("type") != "message" or subtype not in _WRITTEN:
        tally.drop(SYSTEM if item else DAMAGED, subtype)
    elif not speaker:
        tally.drop(DAMAGED, "a message without a user")
    elif text.strip():
        role = "bot" if subtype == "bot_message" or (item.get("bot_id") and not user) else "participant"
        return Turn(speaker, role, _plain(text, names), time=time_of(item.get("ts")))
    else:
        tally.drop(PLACEHOLDER if item.get("files") or item.get("attachments") or item.get("blocks") else EMPTY)
    return None


def _plain(text: str, names: Mapping[str, str]) -> str:
    """Return a text with links, mentions and entities as they were shown."""

    def shown(match: re.Match[str]) -> str:
        kind, target, label = match.groups()
        if kind == "@":
            return f"@{names.get(target) or label or target}"
        return f"{kind.replace('!', '@')}{label or target.split('^')[0]}" if kind else label or target

    return html.unescape(_LINK.sub(shown, text)) if "<" in text or "&" in text else text
