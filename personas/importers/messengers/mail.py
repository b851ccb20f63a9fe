"""Importer of e-mail: mbox files, single messages (.eml), and folders or zips of them, such as Google Takeout gives.

A conversation is a thread by References and In-Reply-To (RFC 5322), else by subject. Quoted parts and signatures are removed
with `mail-parser-reply`. Source: RFC 4155 for mbox.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from email import policy
from email.errors import MessageError
from email.message import EmailMessage, Message
from email.parser import BytesParser
from email.utils import parseaddr
from typing import Any

from usertwin.personas.conversation import Turn
from usertwin.personas.errors import LogError

from ..markup import html_text
from ..source import Source
from ..thread import DAMAGED, EMPTY, PLACEHOLDER, SYSTEM, Tally, Thread, shown, time_of

_FROM = re.compile(rb"From \S+.*\d{4}")
_HEADER = re.compile(rb"(?:[A-Za-z][A-Za-z0-9-]{1,40}:[ \t].*\r?\n(?:[ \t].*\r?\n)*){2}")
_REPLY = re.compile(r"^(?:\s*(?:re|aw|fw|fwd|wg|sv|vs|antw|rif|res|tr|odp)\s*(?:\[\d+\])?:)+\s*", re.IGNORECASE)
_ID = re.compile(r"<[^<>\s]+>")
#: Languages whose headers of quoted e-mails are known, and the characters of an e-mail that are looked through for them.
_LANGUAGES, _MAX_PARSED = ("en", "de", "fr", "es", "it", "nl", "pl", "sv", "da", "ja", "ko", "zh"), 8000
_AUTOMATIC = {"auto-generated", "auto-replied"}


def _files(source: Source) -> list[str]:
    return source.ending(".mbox", ".mbx", ".eml") or (list(source.names) if len(source.names) == 1 else [])


def recognises(source: Source) -> bool:
    """Return whether the first file begins with a message of an mbox, or with the headers of one."""
    files = _files(source)
    if not files:
        return False
    head = source.only(files[0]).head
    return _FROM.match(head) is not None or (_HEADER.match(head) is not None and b"\nFrom:" in b"\n" + head)


def read(source: Source, tally: Tally) -> Iterator[Thread]:
    """Yield the threads, in the order of their first messages."""
    threads: dict[str, list[Turn]] = defaultdict(list)
    thread_of: dict[str, str] = {}
    parser = BytesParser(policy=policy.default)
    for name in _files(source):
        for raw in _raw_messages(source, name):
            try:
                message = parser.parsebytes(raw)
                turn = _turn(message, tally)
                key = _thread(message, thread_of)
            except (MessageError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
                tally.drop(DAMAGED, f"a message of {source.place(name)} ({type(error).__name__})")
                continue
            if turn is not None:
                threads[key].append(turn)
    for key, turns in threads.items():
        turns.sort(key=lambda turn: turn.time or "")
        yield Thread(turns=turns, name=key or None, whole=True)


def _raw_messages(source: Source, name: str) -> Iterator[bytes]:
    """Yield the messages of an mbox, or the only one of a file."""
    lines: list[bytes] = []
    with source.open(name) as file:
        blank = True
        for line in file:
            if blank and _FROM.match(line):
                if lines:
                    yield b"".join(lines)
                lines = []
            else:
                lines.append(line[1:] if re.match(rb">+From ", line) else line)
            blank = not line.strip()
    if lines:
        yield b"".join(lines)


def _thread(message: Message, thread_of: dict[str, str]) -> str:
    """Return the id of a message's thread: that of an earlier message it refers to, else its first reference, else its own."""
    references = _ID.findall(f"{message.get('References', '')} {message.get('In-Reply-To', '')}")
    own = next(iter(_ID.findall(str(message.get("Message-ID", "")))), "")
    subject = _REPLY.sub("", str(message.get("Subject", ""))).strip()
    by_subject = f"subject: {subject}" if subject and not references and _REPLY.match(str(message.get("Subject", ""))) else ""
    known = next((thread_of[key] for key in (*references, by_subject) if key in thread_of), None)
    key = known or next(iter(references), own or by_subject or f"subject: {subject}")
    for reference in (*references, own, f"subject: {subject}" if subject else ""):
        if reference:
            thread_of.setdefault(reference, key)
    return key


def _turn(message: EmailMessage, tally: Tally) -> Turn | None:
    name, address = parseaddr(str(message.get("From", "")))
    subject = shown(str(message.get("Subject", "")))
    if str(message.get("Auto-Submitted", "")).split(";")[0].strip().lower() in _AUTOMATIC:
        tally.drop(SYSTEM, subject)
    elif not (speaker := address.lower() or name):
        tally.drop(DAMAGED, "an e-mail without a sender")
    elif text := _own_words(_body(message)):
        return Turn(speaker, "participant", text, time=time_of(str(message.get("Date", ""))))
    else:
        tally.drop(PLACEHOLDER if any(message.iter_attachments()) else EMPTY, subject)
    return None


def _body(message: EmailMessage) -> str:
    part = message.get_body(("plain", "html"))
    if part is None:
        return ""
    content: Any = part.get_content()
    text = content if isinstance(content, str) else ""
    if part.get_content_type() == "text/html":
        text = html_text(text)
    return text.replace("\r\n", "\n")


def _own_words(text: str) -> str:
    """Return what the sender wrote: without quoted parts, their headers, and the signature."""
    try:
        from mailparser_reply import EmailReplyParser
    except ImportError:
        raise LogError("e-mails need mail-parser-reply: pip install 'usertwin[import]'") from None
    start = text[:_MAX_PARSED]
    own = (EmailReplyParser(languages=list(_LANGUAGES)).parse_reply(text=start) or "").strip() if start.strip() else ""
    return own + text[_MAX_PARSED:] if own and start.rstrip().endswith(own[-40:]) else own
