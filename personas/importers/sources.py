"""The sources of chat logs: files of any known format, the built-in corpus `chitchat`, `oyez:FOLDER`, or `twinbench:FILE`."""

from __future__ import annotations

from pathlib import Path

from usertwin.personas.chat_log import ChatLog

from .assemble import Rules
from .chitchat import CHITCHAT, load_chitchat
from .oyez import read_oyez
from .read_logs import import_log
from .twinbench import TWINBENCH, read_twinbench


# A new source is also named in the help texts of cli/learn.py and cli/train.py, in suites/config.py and in docs/chat-logs.md.
def load_log(source: str | Path, *, skip_bad_lines: bool = False, rules: Rules | None = None) -> ChatLog:
    """Return the conversations of a file, folder or zip of any known format, or of a named source, in time order.

    Named sources are `chitchat`, `oyez:FOLDER` and `twinbench:FILE`. `rules` say where a log is cut into conversations.

    Raises:
        LogError: the source cannot be read; the message names the file and the line.
    """
    if str(source) == CHITCHAT:
        return load_chitchat()
    if str(source).startswith("oyez:"):
        return read_oyez(str(source).removeprefix("oyez:"), skip_bad_lines=skip_bad_lines)
    if str(source).startswith(TWINBENCH):
        return read_twinbench(str(source).removeprefix(TWINBENCH), skip_bad_lines=skip_bad_lines)
    return import_log(source, rules=rules, skip_bad_lines=skip_bad_lines)
