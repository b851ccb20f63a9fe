"""The built-in corpus: human-human chats of the `chitchat-dataset` package."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from usertwin.personas.chat_log import ChatLog, sort_by_time
from usertwin.personas.conversation import Conversation, Turn
from usertwin.personas.errors import LogError

#: The source name of the corpus, as in `--from chitchat`.
CHITCHAT = "chitchat"


def load_chitchat() -> ChatLog:
    """Return the two-person chats of the BYU Chit-Chat Challenge (2018) from the package `chitchat-dataset`.

    A message holds consecutive lines of one person; they become one turn, joined by newlines. Chats with more or fewer than two
    speakers are dropped. `started_at` is the time of the first message, because the corpus's own start times are six or seven
    hours ahead of its messages.
    """
    spec = find_spec("chitchat_dataset")
    if spec is None or spec.origin is None:
        raise LogError("the built-in corpus is not installed; run: pip install 'chitchat-dataset==0.9.0'")
    raw = cast("dict[str, Any]", json.loads((Path(spec.origin).parent / "dataset.json").read_text("utf-8")))
    conversations: list[Conversation] = []
    for conversation_id, chat in raw.items():
        turns: list[Turn] = []
        for message in chat["messages"]:
            lines = [line["text"].strip() for line in message if line["text"].strip()]
            if lines:
                turns.append(Turn(message[0]["sender"], "participant", "\n".join(lines), time=message[0]["timestamp"]))
        if len({turn.speaker for turn in turns}) == 2:
            conversations.append(Conversation(conversation_id, tuple(turns), turns[0].time))
    return ChatLog(sort_by_time(conversations, CHITCHAT), CHITCHAT)
