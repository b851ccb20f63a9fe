"""The built-in corpus: human-human chats of the chitchat-dataset wheel."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from usertwin.personas.chat_log import ChatLog, in_time_order
from usertwin.personas.conversation import Conversation, Turn
from usertwin.personas.errors import LogError

#: The name under which the conversations of the `chitchat-dataset` package are had.
CHITCHAT = "chitchat"


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
