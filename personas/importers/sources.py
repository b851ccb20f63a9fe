"""Where chat logs come from: a file of ours or of OpenAI-style messages, the built-in real corpus `chitchat`, files of Oyez.

The one design choice: a source is a short string, as it is typed on a command line, and `load_log` is the only door.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from usertwin.personas.conversation import ChatLog, Conversation, Turn, in_time_order, read_conversations
from usertwin.personas.errors import LogError

from .oyez import read_oyez

#: The name under which the conversations of the `chitchat-dataset` package are had.
CHITCHAT = "chitchat"
#: What stands before the folder or file of Supreme Court arguments (see oyez.py).
OYEZ = "oyez:"


def load_log(source: str | Path, *, skip_bad_lines: bool = False) -> ChatLog:
    """The conversations of a file, of `chitchat`, or of the files in `oyez:FOLDER`, in the order of time.

    Raises:
        LogError: the source cannot be read; the message names the file and the line.
    """
    if str(source) == CHITCHAT:
        return load_chitchat()
    if str(source).startswith(OYEZ):
        return read_oyez(str(source).removeprefix(OYEZ), skip_bad_lines=skip_bad_lines)
    return read_conversations(source, skip_bad_lines=skip_bad_lines)


def load_chitchat() -> ChatLog:
    """The two-person chats of the BYU Chit-Chat Challenge (2018), as the package `chitchat-dataset` carries them.

    Each message holds the lines one person sent in a row; they become one turn, the lines kept apart by newlines. Chats
    with any other number of people than two are left out. A chat starts with its first message: the start that the corpus
    gives is by another clock, six or seven hours ahead of the messages.
    """
    spec = find_spec("chitchat_dataset")
    if spec is None or spec.origin is None:
        raise LogError("the built-in corpus is not installed; run: pip install 'chitchat-dataset==0.9.0'")
    raw = cast("dict[str, Any]", json.loads((Path(spec.origin).parent / "dataset.json").read_text("utf-8")))
    found: list[Conversation] = []
    for conversation_id, chat in raw.items():
        turns: list[Turn] = []
        for message in chat["messages"]:
            lines = [line["text"].strip() for line in message if line["text"].strip()]
            if lines:
                turns.append(Turn(message[0]["sender"], "participant", "\n".join(lines), message[0]["timestamp"]))
        if len({turn.speaker for turn in turns}) == 2:
            found.append(Conversation(conversation_id, tuple(turns), turns[0].time))
    return ChatLog(in_time_order(found, CHITCHAT), CHITCHAT)
