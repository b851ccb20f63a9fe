"""Where chat logs come from: a file of ours or of OpenAI-style messages, the built-in real corpus `chitchat`, files of Oyez.

The one design choice: a source is a short string, as it is typed on a command line, and `load_log` is the only door.
"""

from __future__ import annotations

from pathlib import Path

from usertwin.personas.chat_log import ChatLog, read_conversations

from .chitchat import CHITCHAT, load_chitchat
from .oyez import read_oyez

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
