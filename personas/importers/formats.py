"""The formats of logs that can be read, and how a file's format is found by looking at its beginning.

A format is added with a file of its own in a subfolder, an entry in the table below, and a row in docs/chat-logs.md. The reader
of a format is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import cast

from usertwin.personas.errors import LogError, UsageError

from .source import Source
from .thread import Tally, Thread

Reader = Callable[[Source, Tally], Iterator[Thread]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format of logs.

    Attributes:
        name: as in `--format`.
        title: what it is, for messages.
        module: the file that reads it, below this folder; it has `recognises(source)` and `read(source, tally)`.
        is_thread: whether its conversations are endless channels, which are cut at silences.
        joiner: the text between messages of one speaker that are joined.
    """

    name: str
    title: str
    module: str
    is_thread: bool = False
    joiner: str = "\n"

    def recognises(self, source: Source) -> bool:
        """Return whether a log looks like one of this format."""
        return bool(import_module(f".{self.module}", __package__).recognises(source))

    def read(self, source: Source, tally: Tally) -> Iterator[Thread]:
        """Yield the threads of a log. LogError if it cannot be read."""
        return cast("Reader", import_module(f".{self.module}", __package__).read)(source, tally)


def _format(name: str, title: str, module: str, *, is_thread: bool = False, joiner: str = "\n") -> Format:
    return Format(name=name, title=title, module=module, is_thread=is_thread, joiner=joiner)


#: All formats, in the order in which they are tried.
FORMATS = {
    known.name: known
    for known in (
        _format("chatgpt", "ChatGPT data export", "assistants.chatgpt"),
        _format("claude", "Claude data export", "assistants.claude"),
        _format("usertwin", "JSON lines of usertwin, or of OpenAI messages", "assistants.interchange"),
        _format("slack", "Slack export", "messengers.slack", is_thread=True),
        _format("discord", "Discord, by DiscordChatExporter", "messengers.discord", is_thread=True),
        _format("telegram", "Telegram Desktop export (JSON)", "messengers.telegram", is_thread=True),
        _format("langsmith", "LangSmith runs", "traces.langsmith"),
        _format("otel", "OpenTelemetry spans of model calls", "traces.otel"),
        _format("langfuse", "Langfuse traces", "traces.langfuse"),
        _format("zendesk", "Zendesk tickets", "helpdesks.zendesk"),
        _format("intercom", "Intercom conversations", "helpdesks.intercom"),
        _format("convokit", "ConvoKit corpus", "transcripts.convokit", is_thread=True),
        _format("dataset", "Hugging Face data set (WildChat, LMSYS, OASST, PRISM, Humanual)", "tables.datasets"),
        _format("openai", "OpenAI fine-tuning, batches or recorded requests", "assistants.openai"),
        _format("sharegpt", "ShareGPT", "assistants.sharegpt"),
        _format("whatsapp", "WhatsApp text export", "messengers.whatsapp", is_thread=True),
        _format("subtitles", "WebVTT or SRT transcript", "transcripts.subtitles", is_thread=True, joiner=" "),
        _format("mail", "e-mail (mbox, .eml)", "messengers.mail", is_thread=True),
        _format("irc", "IRC log (weechat, irssi)", "messengers.irc", is_thread=True),
        _format("table", "CSV, Parquet or JSON lines with a message a row", "tables.columns", is_thread=True),
    )
}


def find_format(source: Source, name: str | None = None) -> Format:
    """Return the format with this name, or the first one that a log looks like. UsageError or LogError if there is none."""
    if name is not None:
        if name not in FORMATS:
            raise UsageError(f'--format: "{name}" is no format; choose one of {", ".join(FORMATS)}')
        return FORMATS[name]
    for known in FORMATS.values():
        if known.recognises(source):
            return known
    if import_module(".assistants.interchange", __package__).may_be(source):
        return FORMATS["usertwin"]
    raise LogError(f"{source.path}: no known format: {_seen(source)}; name one with --format ({', '.join(FORMATS)})")


def _seen(source: Source) -> str:
    """Return what a log of an unknown format holds, in words."""
    if not source.names:
        return "there is no file in it"
    where = "" if len(source.names) == 1 else f"{len(source.names)} files, of which {source.names[0]} "
    if source.keys:
        keys = list(source.record) or sorted(source.keys)
        return f"{where}holds JSON with the keys {', '.join(map(repr, keys[:12]))}"
    if b"\x00" in source.head[:1000] and source.head[:2] not in {b"\xff\xfe", b"\xfe\xff"}:
        return f"{where}holds binary data"
    line = next((line for line in source.text.splitlines() if line.strip()), "")
    return f'{where}begins with "{" ".join(line.split())[:60]}"' if line else f"{where}is empty"
