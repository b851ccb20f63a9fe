"""Small invented logs in every format that can be imported, each with the turns that are in it and the number it drops."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = Any


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A log: its files by name, its turns as "speaker: text", one list for each conversation, and what is dropped."""

    format: str
    files: dict[str, str | bytes]
    talks: list[list[str]]
    dropped: int = 0
    merged: int = 0
    first: str | None = None
    whole: bool = False  # a zip or folder, named as such

    def write(self, folder: Path) -> Path:
        """Write the files and return what a user names."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder if self.whole or len(self.files) > 1 else folder / next(iter(self.files))


def lines(*values: Json) -> str:
    """Return JSON lines."""
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def packed(files: dict[str, str]) -> bytes:
    """Return a zip."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


# ChatGPT ------------------------------------------------------------------------------------------------------------


def node(key: str, parent: str | None, role: str | None = None, *parts: Json, **message: Json) -> Json:
    """Return a node of ChatGPT's tree."""
    content = {"content_type": message.pop("content_type", "text"), "parts": list(parts)}
    body = {"id": key, "author": {"role": role}, "create_time": 1760000000.5, "content": content, "recipient": "all"} | message
    return {"id": key, "parent": parent, "children": [], "message": None if role is None else body}


def chatgpt(*nodes: Json, current: str | None, **record: Json) -> Json:
    """Return a conversation of a ChatGPT export."""
    mapping = {item["id"]: item for item in nodes}
    for item in nodes:
        if item["parent"] in mapping:
            mapping[item["parent"]]["children"].append(item["id"])
    return {"title": "Tea", "create_time": 1760000000.5, "mapping": mapping, "current_node": current} | record


_TREE = (
    node("r", None), node("s", "r", "system", "", metadata={"is_visually_hidden_from_conversation": True}),
    node("a", "s", "user", "hi"), node("b", "a", "assistant", "first try"), node("c", "a", "assistant", "hello"),
)  # fmt: skip
_TOOLS = (
    node("r", None), node("a", "r", "user", {"content_type": "image_asset_pointer"}, "what is this?"),
    node("b", "a", "assistant", "print(1)", content_type="code", recipient="python"),
    node("c", "b", "tool", "1", content_type="execution_output"), node("d", "c", "assistant", "a cat"),
)  # fmt: skip
_SPOKEN = (
    node("a", None, "user", {"content_type": "audio_transcription", "text": "good morning"}),
    node("b", "a", "assistant", "morning!", create_time=None), node("c", "b", "user", {"content_type": "image_asset_pointer"}),
)  # fmt: skip
CHATGPT = [
    Sample(
        format="chatgpt", files={"conversations.json": json.dumps([chatgpt(*_TREE, current="c", conversation_id="c1")])},
        talks=[["user: hi", "assistant: hello"]], dropped=2, first="2025-10-09T08:53:20.500000+00:00",
    ),
    Sample(
        format="chatgpt",
        files={"export.zip": packed({
            "conversations-000.json": json.dumps([chatgpt(*_TREE, current="c", id="c1")]), "user.json": "{}", "chat.html": "",
            "conversations-001.json": json.dumps([chatgpt(*_TOOLS, current="d", id="c2")]),
        })},
        talks=[["user: hi", "assistant: hello"], ["user: what is this?", "assistant: a cat"]], dropped=4,
    ),
    Sample(
        format="chatgpt",
        files={"conversations.json": json.dumps([chatgpt(*_SPOKEN, current=None, create_time=None)], indent=1)},
        talks=[["user: good morning", "assistant: morning!"]], dropped=1,
    ),
]  # fmt: skip

# Claude, ShareGPT, OpenAI, usertwin ---------------------------------------------------------------------------------


def claude(*messages: Json) -> Json:
    """Return a conversation of a Claude export."""
    return {"uuid": f"u-{len(messages)}", "name": "Tea", "created_at": "2026-03-01T08:00:00Z", "chat_messages": list(messages)}


def claude_message(sender: str | None, text: str, **more: Json) -> Json:
    """Return a message of a Claude export."""
    content = [{"type": "text", "text": text}] if text else []
    return {"sender": sender, "text": text, "content": content, "created_at": "2026-03-01T08:00:00Z"} | more


_PASTED = claude_message("human", "", attachments=[{"file_name": "p.txt", "extracted_content": "a long text"}])
_CLAUDE = claude(claude_message("human", "hi"), claude_message("assistant", "hello"), _PASTED)
_THOUGHT = claude(
    claude_message("human", "", files=[{"file_name": "cat.png"}]), claude_message(None, "lost"),
    claude_message("assistant", "", content=[{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a cat"}]),
    claude_message("assistant", "", content=[{"type": "tool_use", "name": "search", "input": {}}]),
)  # fmt: skip
CLAUDE = [
    Sample(
        format="claude", files={"conversations.json": json.dumps([_CLAUDE])},
        talks=[["human: hi", "assistant: hello", "human: a long text"]], first="2026-03-01T08:00:00Z",
    ),
    Sample(
        format="claude",
        files={"data.zip": packed({"users.json": "[]", "projects.json": "[]", "conversations.json": json.dumps([_THOUGHT])})},
        talks=[["assistant: a cat"]], dropped=3,
    ),
    Sample(
        format="claude",
        files={"conversations.json": json.dumps([claude(
            claude_message("human", "hi", uuid="a", parent_message_uuid="0"),
            claude_message("assistant", "first try", uuid="b", parent_message_uuid="a"),
            claude_message("assistant", "hello", uuid="c", parent_message_uuid="a"),
        )])},
        talks=[["human: hi", "assistant: hello"]], dropped=1,
    ),
    Sample(
        format="claude", files={"conversations.json": json.dumps([_CLAUDE], indent=2), "users.json": "[]"},
        talks=[["human: hi", "assistant: hello", "human: a long text"]],
    ),
]  # fmt: skip
_FROM = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}, {"from": "function_call", "value": "{}"}]
SHAREGPT = [
    Sample(
        format="sharegpt", files={"a.jsonl": lines({"id": "r0", "conversations": _FROM})},
        talks=[["human: hi", "gpt: hello"]], dropped=1,
    ),
    Sample(
        format="sharegpt", files={"a.json": json.dumps([{"system": "be kind", "conversations": [*_FROM, {"from": "human"}]}])},
        talks=[["system: be kind", "human: hi", "gpt: hello"]], dropped=2,
    ),
    Sample(
        format="sharegpt",
        files={"a.jsonl": lines({"items": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]})},
        talks=[["user: hi", "assistant: hello"]],
    ),
]  # fmt: skip
_USER, _REPLY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
_ROLES = [
    {"role": "developer", "content": "be kind"}, _USER, {"role": "assistant", "content": None, "tool_calls": [{}]},
    {"role": "tool", "content": "1"}, {"role": "function", "name": "f", "content": "1"}, _REPLY,
]  # fmt: skip
OPENAI = [
    Sample(format="usertwin", files={"a.jsonl": lines({"messages": _ROLES})},
           talks=[["developer: be kind", "user: hi", "assistant: hello"]], dropped=3),
    Sample(format="openai", files={"a.jsonl": lines({"prompt": "hi", "completion": " hello"})},
           talks=[["user: hi", "assistant: hello"]]),
    Sample(
        format="openai",
        files={"a.jsonl": lines(
            {"custom_id": "1", "body": {"messages": [_USER]}, "response": {"body": {"choices": [{"message": _REPLY}]}}},
            {"input": {"messages": [{"role": "user", "content": "yo"}]}, "preferred_output": [_REPLY], "non_preferred_output": []},
        )},
        talks=[["user: hi", "assistant: hello"], ["user: yo", "assistant: hello"]],
    ),
    Sample(
        format="openai",
        files={"a.jsonl": lines({"instructions": "be kind", "input": [_USER], "output": [
            {"type": "reasoning", "summary": []},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hello"}]},
        ]})},
        talks=[["system: be kind", "user: hi", "assistant: hello"]], dropped=1,
    ),
]  # fmt: skip
_OWN = {"conversation_id": "c1", "started_at": "2026-03-01T10:00:00Z", "turns": [
    {"speaker": "ann", "role": "user", "text": "hi"}, {"speaker": "desk", "role": "agent", "text": None},
    {"speaker": "ann", "role": "user", "text": "<Media omitted>"},
]}  # fmt: skip
OWN = [
    Sample(format="usertwin", files={"a.jsonl": lines(_OWN)}, talks=[["ann: hi"]], dropped=2, first="2026-03-01T10:00:00Z"),
    Sample(format="usertwin", files={"a.json": json.dumps([_OWN], indent=1)}, talks=[["ann: hi"]], dropped=2),
    Sample(format="usertwin", files={"a.jsonl": lines([_USER, _REPLY])}, talks=[["user: hi", "assistant: hello"]]),
]

# Messengers ---------------------------------------------------------------------------------------------------------


def whatsapp(*heads: str, media: str = "<Media omitted>") -> str:
    """Return a chat with the given beginnings of five lines."""
    texts = (": ", "Ann: hi", "Bob: hello\nand how are you?", f"Ann: {media}", "Ann: fine")
    texts = ("Messages and calls are end-to-end encrypted.", *texts[1:])
    return "".join(f"{head}{text}\n" for head, text in zip(heads, texts, strict=True))


_CHAT = [["Ann: hi", "Bob: hello\nand how are you?", "Ann: fine"]]
_REGIONS = {
    "us": ([f"3/{day}/26, 9:0{n}\u202fPM - " for n, day in enumerate((14, 14, 14, 14, 14))], "2026-03-14T21:01:00"),
    "uk": ([f"14/03/2026, 21:0{n} - " for n in range(5)], "2026-03-14T21:01:00"),
    "de": ([f"14.03.26, 21:0{n} - " for n in range(5)], "2026-03-14T21:01:00"),
    "es": ([f"14/3/26 9:0{n} p.\u00a0m. - " for n in range(5)], "2026-03-14T21:01:00"),
    "nl": ([f"14-03-2026 21:0{n} - " for n in range(5)], "2026-03-14T21:01:00"),
    "fi": ([f"14.3.2026 klo 21.0{n} - " for n in range(5)], "2026-03-14T21:01:00"),
    "zh": ([f"2026/3/14 下午9:0{n} - " for n in range(5)], "2026-03-14T21:01:00"),
    "se": ([f"2026-03-14 21:0{n} - " for n in range(5)], "2026-03-14T21:01:00"),
    "ios": ([f"\u200e[14.03.26, 21:0{n}:07] " for n in range(5)], "2026-03-14T21:01:07"),
}
WHATSAPP = [
    Sample(format="whatsapp", files={"WhatsApp Chat with Bob.txt": whatsapp(*heads)}, talks=_CHAT, dropped=2, first=first)
    for heads, first in _REGIONS.values()
]
WHATSAPP += [
    Sample(
        format="whatsapp", files={"Chat.zip": packed({"_chat.txt": whatsapp(*_REGIONS["ios"][0], media="\u200eimage omitted")})},
        talks=_CHAT, dropped=2,
    ),
    Sample(
        format="whatsapp",
        files={"c.txt": "14/03/26, 21:00 - Ann: IMG-1.jpg (file attached)\nlook!\n14/03/26, 21:00 - Ann: a cat <This message was edited>\n"},
        talks=[["Ann: look!\na cat"]], merged=1,
    ),
]  # fmt: skip


def telegram(*messages: Json) -> Json:
    """Return a chat of a Telegram export."""
    return {"name": "Bob", "type": "personal_chat", "id": 7, "messages": list(messages)}


def telegram_message(sender: str | None, text: Json, at: int = 1773522000, **more: Json) -> Json:
    """Return a message of a Telegram export."""
    body = {
        "id": 1,
        "type": "message",
        "date": "2026-03-14T21:00:00",
        "date_unixtime": str(at),
        "from": sender,
        "from_id": "u1",
    }
    return body | {"text": text} | more


_TELEGRAM = telegram(
    telegram_message(None, "", type="service", action="phone_call"), telegram_message("Ann", "hi"),
    telegram_message("Bob", ["see ", {"type": "link", "text": "a.org"}, " now"]), telegram_message("Ann", "", photo="p.jpg"),
)  # fmt: skip
TELEGRAM = [
    Sample(format="telegram", files={"result.json": json.dumps(_TELEGRAM)}, talks=[["Ann: hi", "Bob: see a.org now"]], dropped=2,
           first="2026-03-14T21:00:00+00:00"),
    Sample(format="telegram", files={"result.json": json.dumps({"about": "x", "chats": {"about": "y", "list": [_TELEGRAM]}})},
           talks=[["Ann: hi", "Bob: see a.org now"]], dropped=2),
    Sample(
        format="telegram",
        files={"result.json": json.dumps(telegram(
            telegram_message("Ann", "hi"), telegram_message("Ann", "joke", forwarded_from="Cy"),
            telegram_message(None, "who?", 1773540001),
        ), indent=1)},
        talks=[["Ann: hi"], ["u1: who?"]], dropped=1,
    ),
]  # fmt: skip


def discord_message(name: str, content: str, kind: str = "Default", **author: Json) -> Json:
    """Return a message of DiscordChatExporter."""
    who = {"id": "1", "name": name, "discriminator": "0000", "isBot": False} | author
    return {"id": "9", "type": kind, "timestamp": "2026-03-14T21:00:00.1+00:00", "content": content, "author": who,
            "attachments": [] if content else [{"url": "u"}]}  # fmt: skip


def discord(*messages: Json, channel_id: str = "5") -> str:
    """Return a channel of DiscordChatExporter."""
    channel = {"id": channel_id, "type": "GuildTextChat", "name": "tea"}
    return json.dumps({"guild": {"id": "2", "name": "G"}, "channel": channel, "messages": list(messages)}, indent=2)


_DISCORD = (discord_message("ann", "hi"), discord_message("bob", "hello", "Reply"), discord_message("ann", ""))
DISCORD = [
    Sample(format="discord", files={"G - tea [5].json": discord(*_DISCORD)}, talks=[["ann: hi", "bob: hello"]], dropped=1),
    Sample(
        format="discord",
        files={"a.json": discord(*_DISCORD, discord_message("bob", "Joined the server.", "GuildMemberJoin")),
               "b.json": discord(discord_message("cy", "yo", isBot=True, discriminator="1234"), channel_id="6")},
        talks=[["ann: hi", "bob: hello"], ["cy#1234: yo"]], dropped=2,
    ),
    Sample(format="discord", files={"a.json": discord(discord_message("ann", "hi"), discord_message("ann", "there", "0"))},
           talks=[["ann: hi\nthere"]], merged=1),
]  # fmt: skip
_USERS = json.dumps([{"id": "U1", "name": "ann", "profile": {"display_name": "Ann"}}, {"id": "U2", "real_name": "Bob"}])


def slack(user: str, text: str, ts: str = "1773522000.000100", **more: Json) -> Json:
    """Return a Slack message."""
    return {"type": "message", "user": user, "text": text, "ts": ts} | more


_SLACK = {
    "users.json": _USERS, "channels.json": "[]",
    "tea/2026-03-14.json": json.dumps([
        slack("U1", "<@U1> has joined", subtype="channel_join"), slack("U1", "hi <@U2> &amp; see <https://a.org|this>"),
        slack("U2", "in a thread", "1773522009.0", thread_ts="1773522000.000100"), slack("U2", "", "1773522010.0", files=[{}]),
    ]),
    "tea/2026-03-15.json": json.dumps([slack("U2", "next day", "1773608400.0")]),
}  # fmt: skip
_SLACK_TALKS = [["Ann: hi @Bob & see this", "Bob: in a thread"], ["Bob: next day"]]
SLACK = [
    Sample(
        format="slack",
        files={**_SLACK, "tea/2026-03-14.json": _SLACK["tea/2026-03-14.json"].replace(
            '"ts": "1773522000.000100"}, {"type": "message", "user": "U2"',
            '"ts": "1773522000.000100", "thread_ts": "1773522000.000100"}, {"type": "message", "user": "U2"')},
        talks=_SLACK_TALKS, dropped=2, whole=True,
    ),
    Sample(format="slack", files={"export.zip": packed(_SLACK)},
           talks=[["Ann: hi @Bob & see this"], ["Bob: in a thread"], ["Bob: next day"]], dropped=2),
    Sample(format="slack", files={"2026-03-14.json": json.dumps([slack("U1", "hi"), slack("", "beep", bot_id="B1")])},
           talks=[["U1: hi", "B1: beep"]]),
]  # fmt: skip
_WEECHAT = "2026-03-14 21:00:00\t-->\tann has joined\n2026-03-14 21:00:01\t@ann\thi\n2026-03-14 21:00:05\tbob\thello: you\n"
_IRSSI = (
    "--- Log opened Sat Mar 14 21:00:00 2026\n21:00 -!- ann [a@b] has joined #tea\n21:00 <@ann> hi\n21:01 < bob> hello: you\n"
)
IRC = [
    Sample(format="irc", files={"irc.net.#tea.weechatlog": _WEECHAT + "2026-03-14 21:01:00\t *\tann waves\n"}, dropped=1,
           talks=[["ann: hi", "bob: hello: you", "ann: waves"]], first="2026-03-14T21:00:01"),
    Sample(format="irc", files={"#tea.log": _IRSSI + "--- Day changed Sun Mar 15 2026\n09:00  * ann waves\n"}, dropped=3,
           talks=[["ann: hi", "bob: hello: you"], ["ann: waves"]], first="2026-03-14T21:00:00"),
    Sample(format="irc", files={"a.txt": "[21:00:00] <ann> hi\n[21:00:01] *** Joins: bob\n[21:00:02] <bob> hello\n"}, dropped=1,
           talks=[["ann: hi", "bob: hello"]]),
]  # fmt: skip


def mail(number: int, sender: str, subject: str, body: str, *more: str) -> str:
    """Return an e-mail with headers."""
    head = [
        f"From: {sender}",
        f"Subject: {subject}",
        f"Message-ID: <{number}@x>",
        f"Date: Sat, 14 Mar 2026 21:0{number}:00 +0000",
    ]
    return "\n".join([*head, *more, "", body, ""])


_FIRST = mail(1, "Ann <Ann@x.org>", "Tea", "Shall we have tea on Sunday?", "Content-Type: text/plain; charset=utf-8")
_SECOND = mail(2, "bob@x.org", "Re: Tea", "Yes, at four.\n\nOn Sat, Mar 14, 2026 Ann <ann@x.org> wrote:\n> Shall we have tea?",
               "References: <1@x>")  # fmt: skip
_HTML = mail(3, "ann@x.org", "AW: Tea", "<p>Good &amp; bye</p><blockquote>old</blockquote>", "Content-Type: text/html",
             "In-Reply-To: <2@x>")  # fmt: skip
_AWAY = mail(4, "bob@x.org", "Away", "I am away", "Auto-Submitted: auto-replied")
_POST = "From x@y Sat Mar 14 21:00:00 2026\n"
_MAILS = ["ann@x.org: Shall we have tea on Sunday?", "bob@x.org: Yes, at four."]
MAIL = [
    Sample(format="mail", files={"a.mbox": f"{_POST}{_FIRST}\n{_POST}{_SECOND}\n{_POST}{_AWAY}"}, talks=[_MAILS], dropped=1,
           first="2026-03-14T21:01:00+00:00"),
    Sample(format="mail", files={"1.eml": _FIRST, "2.eml": _SECOND, "3.eml": _HTML}, talks=[[*_MAILS, "ann@x.org: Good & bye"]]),
    Sample(format="mail", files={"a.mbox": f"{_POST}{_FIRST}\n{_POST}{mail(5, 'bob@x.org', 'Re: Tea', 'Fine.')}"},
           talks=[[_MAILS[0], "bob@x.org: Fine."]]),
]  # fmt: skip

# Transcripts and tables ---------------------------------------------------------------------------------------------
_VTT = "WEBVTT\n\n1\n00:00:01.000 --> 00:00:02.000\nAnn Lee: hi there\n\n2\n00:00:03.000 --> 00:00:04.000\nand welcome\n\n"
_TEAMS = (
    "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\n<v Ann Lee>hi there</v>\n\n00:00:03.000 --> 00:00:04.000\n<v Bob>hello</v>\n\n"
)
_SRT = "1\n00:00:01,000 --> 00:00:02,000\n[Music]\n\n2\n00:00:03,000 --> 00:00:04,000\nBOB: hello\n\n"
SUBTITLES = [
    Sample(format="subtitles", files={"call 2026-03-14.vtt": _VTT + "00:00:05.000 --> 00:00:06.000\nBob: hello\n"}, merged=1,
           talks=[["Ann Lee: hi there and welcome", "Bob: hello"]], first="2026-03-14T00:00:01"),
    Sample(format="subtitles", files={"a.vtt": _TEAMS}, talks=[["Ann Lee: hi there", "Bob: hello"]]),
    Sample(format="subtitles", files={"a.srt": _SRT + "3\n00:00:05,000 -->\nANN: lost\n\n4\n00:00:05,000 --> 00:00:06,000\nANN: hi\n"}, dropped=2,
           talks=[["BOB: hello", "ANN: hi"]]),
]  # fmt: skip
_ROWS = [("c1", "ann", "2026-03-14 21:00:00", "hi; you"), ("c2", "cy", "1773522000", "yo"), ("c1", "bob", "", "hello")]
_COMMA = "conversation_id,sender,timestamp,message\n" + "".join(f'{a},{b},{c},"{d}"\n' for a, b, c, d in _ROWS)
TABLE = [
    Sample(format="table", files={"a.csv": _COMMA}, talks=[["ann: hi; you", "bob: hello"], ["cy: yo"]]),
    Sample(format="table", files={"a.tsv": "Author\tText\nann\thi\nbob\t\ncy\n"}, talks=[["ann: hi"]], dropped=2),
    Sample(
        format="table",
        files={"a.jsonl": lines(*({"thread_id": a, "speaker": b, "created_at": c, "text": d} for a, b, c, d in _ROWS))},
        talks=[["ann: hi; you", "bob: hello"], ["cy: yo"]],
    ),
    Sample(format="table", files={"a.csv": "\ufeffname;body;date\nann;hi;2026-03-14T21:00:00\n"}, talks=[["ann: hi"]]),
]  # fmt: skip
_UTTERANCE = {"id": "u1", "conversation_id": "u1", "text": "hi", "speaker": "ann", "reply-to": None, "timestamp": 1773522000}
_ANSWER = {"id": "u2", "root": "u1", "text": "hello", "user": {"id": "bob"}, "reply_to": "u1", "timestamp": 1773522009.0}
CONVOKIT = [
    Sample(format="convokit", files={"utterances.jsonl": lines(_UTTERANCE, _ANSWER), "speakers.json": "{}", "corpus.json": "{}"},
           talks=[["ann: hi", "bob: hello"]]),
    Sample(format="convokit", files={"corpus.zip": packed({"corpus/utterances.jsonl": lines(_UTTERANCE, _ANSWER), "corpus/index.json": "{}"})},
           talks=[["ann: hi", "bob: hello"]]),
    Sample(format="convokit", files={"utterances.json": json.dumps([_ANSWER, {**_UTTERANCE, "text": None}])},
           talks=[["bob: hello"]], dropped=1),
]  # fmt: skip
_WILD = {"conversation_hash": "h", "model": "m", "timestamp": "2026-03-14T21:00:00", "language": "English", "conversation": [
    {"content": "hi", "role": "user", "hashed_ip": "ab"}, {"content": "hello", "role": "assistant", "timestamp": "2026-03-14T21:00:05"},
]}  # fmt: skip
_LMSYS = {"conversation_id": "c", "model": "m", "language": "English", "conversation": [_USER, _REPLY]}
_OASST = [
    {"message_id": "a", "parent_id": None, "message_tree_id": "a", "user_id": "ann", "text": "hi", "role": "prompter"},
    {"message_id": "b", "parent_id": "a", "message_tree_id": "a", "user_id": "bob", "text": "hello", "role": "assistant", "rank": 1},
    {"message_id": "c", "parent_id": "a", "message_tree_id": "a", "user_id": "cy", "text": "yo", "role": "assistant", "rank": 0},
]  # fmt: skip
_PRISM = {"conversation_id": "c1", "user_id": "user7", "conversation_history": [
    {"turn": 0, "role": "user", "content": "hi"}, {"turn": 0, "role": "model", "content": "hello", "if_chosen": True},
    {"turn": 0, "role": "model", "content": "bye", "if_chosen": False},
]}  # fmt: skip
_HUMANUAL = {"prompt": [{"role": "cy", "content": "a post", "metadata": {}}], "completion": "nice", "post_id": "p", "user_id": "ann",
             "timestamp": 1773522000}  # fmt: skip
_NESTED = {"message_tree_id": "a", "prompt": _OASST[0] | {"replies": [_OASST[1] | {"replies": []}, _OASST[2]]}}
DATASET = [
    Sample(format="dataset", files={"w.jsonl": lines(_WILD)}, talks=[["ab: hi", "assistant: hello"]]),
    Sample(format="dataset", files={"l.jsonl": lines(_LMSYS)}, talks=[["user: hi", "assistant: hello"]]),
    Sample(format="dataset", files={"o.jsonl": lines(*_OASST)}, talks=[["ann: hi", "cy: yo"]], dropped=1),
    Sample(format="dataset", files={"o.jsonl": lines(_NESTED)}, talks=[["ann: hi", "cy: yo"]], dropped=1),
    Sample(format="dataset", files={"p.jsonl": lines(_PRISM)}, talks=[["user7: hi", "model: hello"]], dropped=1),
    Sample(format="dataset", files={"h.jsonl": lines(_HUMANUAL)}, talks=[["cy: a post", "ann: nice"]]),
]

# Traces and help desks ----------------------------------------------------------------------------------------------
_ASK = {"role": "user", "content": "hi"}
_MORE = [_ASK, {"role": "assistant", "content": "hello"}, {"role": "user", "content": "tea?"}]


def run(number: int, inputs: Json, outputs: Json, **more: Json) -> Json:
    """Return a LangSmith run."""
    times = {"start_time": f"2026-03-14T21:0{number}:00", "end_time": f"2026-03-14T21:0{number}:05"}
    extra = {"metadata": {"thread_id": "t"}}
    return (
        {
            "id": f"r{number}",
            "trace_id": f"r{number}",
            "run_type": "chain",
            "inputs": inputs,
            "outputs": outputs,
            "extra": extra,
        }
        | times
        | more
    )


_LC = {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", "HumanMessage"], "kwargs": {"content": "hi"}}
_TALK = [["user: hi", "assistant: hello", "user: tea?", "assistant: yes"]]
_YES = {"role": "assistant", "content": "yes"}
LANGSMITH = [
    Sample(
        format="langsmith",
        files={"r.jsonl": lines(run(1, {"messages": [_ASK]}, {"messages": _MORE[:2]}), run(2, {"messages": _MORE}, {"output": "yes"}))},
        talks=_TALK, dropped=2,
    ),
    Sample(
        format="langsmith",
        files={"r.json": json.dumps([
            run(1, {"messages": [[_LC]]}, {"generations": [[{"text": "hello", "message": {"kwargs": {"content": "hello"}, "id": ["AIMessage"]}}]]}),
            run(2, {"question": "tea?"}, {"answer": "yes"}),
        ])},
        talks=_TALK,
    ),
    Sample(
        format="langsmith",
        files={"r.jsonl": lines(run(1, {"input": "hi"}, {"output": "hello"}), run(2, {"input": "x"}, {}, parent_run_id="r1", run_type="llm"))},
        talks=[["user: hi", "assistant: hello"]],
    ),
]  # fmt: skip


def span(number: int, attributes: Json, *events: Json) -> Json:
    """Return a span of OTLP."""
    pairs = [{"key": key, "value": {"stringValue": value}} for key, value in attributes.items()]
    times = {f"{end}TimeUnixNano": f"17735220{number}{place}000000000" for place, end in enumerate(("start", "end"))}
    return {"traceId": "t1", "spanId": f"s{number}", "name": "chat m", "attributes": pairs, "events": list(events)} | times


def otlp(*spans: Json) -> Json:
    """Return a request of OTLP."""
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": list(spans)}]}]}


def parts(role: str, text: str) -> Json:
    """Return a message of the GenAI conventions."""
    return {"role": role, "parts": [{"type": "text", "content": text}]}


_IN, _OUT = "gen_ai.input.messages", "gen_ai.output.messages"
_SPANS = (
    span(1, {_IN: json.dumps([parts("user", "hi")]), _OUT: json.dumps([parts("assistant", "hello")])}),
    span(2, {_IN: json.dumps([parts(m["role"], m["content"]) for m in _MORE]), _OUT: json.dumps([parts("assistant", "yes")])}),
)  # fmt: skip
OTEL = [
    Sample(format="otel", files={"t.jsonl": lines(otlp(_SPANS[1]), otlp(_SPANS[0]))}, talks=_TALK, dropped=2),
    Sample(
        format="otel",
        files={"t.jsonl": lines(otlp(span(1, {"gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": "hi",
                                              "gen_ai.completion.0.role": "assistant", "gen_ai.completion.0.content": "hello"})))},
        talks=[["user: hi", "assistant: hello"]],
    ),
    Sample(
        format="otel",
        files={"t.json": json.dumps({
            "name": "chat m", "context": {"trace_id": "0x1", "span_id": "0x2"}, "start_time": "2026-03-14T21:00:00.1Z",
            "end_time": "2026-03-14T21:00:05Z", "attributes": {"gen_ai.system": "openai"}, "events": [
                {"name": "gen_ai.user.message", "attributes": {"content": "hi"}},
                {"name": "gen_ai.choice", "attributes": {"message": json.dumps(_REPLY)}},
            ]}, indent=1)},
        talks=[["user: hi", "assistant: hello"]],
    ),
]  # fmt: skip
_TRACE = {"id": "1", "timestamp": "2026-03-14T21:00:00Z", "name": "chat", "userId": "ann", "sessionId": "s"}
LANGFUSE = [
    Sample(
        format="langfuse",
        files={"t.jsonl": lines(_TRACE | {"input": {"messages": [_ASK]}, "output": _REPLY},
                                _TRACE | {"id": "2", "timestamp": "2026-03-14T21:09:00Z", "input": {"messages": _MORE}, "output": "yes"})},
        talks=[["ann: hi", "assistant: hello", "ann: tea?", "assistant: yes"]], dropped=2,
    ),
    Sample(format="langfuse", files={"t.json": json.dumps([_TRACE | {"input": "hi", "output": "hello"}])},
           talks=[["ann: hi", "assistant: hello"]]),
    Sample(
        format="langfuse",
        files={"o.jsonl": lines({"id": "o1", "traceId": "t", "type": "GENERATION", "startTime": "2026-03-14T21:00:00Z",
                                 "input": [_ASK, {"role": "tool", "content": "1"}], "output": {"role": "assistant", "content": "hello"}})},
        talks=[["user: hi", "assistant: hello"]], dropped=1,
    ),
]  # fmt: skip
_COMMENTS = [
    {"author_id": 1, "body": "hi", "public": True, "created_at": "2026-03-14T21:00:00Z"},
    {"author_id": 2, "plain_body": "hello &", "html_body": "<p>hello</p>", "public": True, "created_at": "2026-03-14T21:05:00Z"},
    {"author_id": 2, "body": "a difficult one", "public": False, "created_at": "2026-03-14T21:06:00Z"},
]  # fmt: skip
_TICKET = {"id": 7, "subject": "Tea", "created_at": "2026-03-14T21:00:00Z", "requester_id": 1, "comments": _COMMENTS}
ZENDESK = [
    Sample(format="zendesk", files={"t.jsonl": lines(_TICKET)}, talks=[["1: hi", "2: hello &"]], dropped=1, first="2026-03-14T21:00:00Z"),
    Sample(format="zendesk", files={"t.json": json.dumps({"tickets": [_TICKET], "users": [{"id": 1, "name": "Ann"}, {"id": 2, "name": "Bob"}]})},
           talks=[["Ann: hi", "Bob: hello &"]], dropped=1),
    Sample(format="zendesk", files={"t.json": json.dumps([_TICKET | {"requester": {"id": 1, "name": "Ann"}, "comments": [
        *_COMMENTS, {"author_id": 1, "html_body": "one<br>two", "public": True}, {"author_id": 1, "body": "", "attachments": [{}]}]}])},
           talks=[["Ann: hi", "2: hello &", "Ann: one\ntwo"]], dropped=2),
]  # fmt: skip
_PARTS = [
    {"part_type": "comment", "body": "<p>hello</p>", "created_at": 1773522060, "author": {"type": "admin", "id": "9", "name": "Bob"}},
    {"part_type": "note", "body": "<p>vip</p>", "created_at": 1773522061, "author": {"type": "admin", "id": "9", "name": "Bob"}},
    {"part_type": "close", "body": None, "created_at": 1773522062, "author": {"type": "admin", "id": "9", "name": "Bob"}},
]  # fmt: skip
_INTERCOM = {"type": "conversation", "id": "7", "created_at": 1773522000, "source": {"body": "<p>hi</p>", "author": {
    "type": "user", "id": "1", "name": "Ann"}}, "conversation_parts": {"conversation_parts": _PARTS}}  # fmt: skip
INTERCOM = [
    Sample(format="intercom", files={"c.jsonl": lines(_INTERCOM)}, talks=[["Ann: hi", "Bob: hello"]], dropped=2),
    Sample(format="intercom", files={"c.json": json.dumps({"type": "conversation.list", "conversations": [_INTERCOM]}, indent=1)},
           talks=[["Ann: hi", "Bob: hello"]], dropped=2),
    Sample(format="intercom", files={"c.json": json.dumps([_INTERCOM | {"source": None, "conversation_parts": [
        *_PARTS[:1], {"part_type": "comment", "body": "", "attachments": [{}], "author": {"type": "user", "id": "1"}}]}])},
           talks=[["Bob: hello"]], dropped=1),
]  # fmt: skip
SAMPLES = [
    *CHATGPT, *CLAUDE, *SHAREGPT, *OPENAI, *OWN, *WHATSAPP, *TELEGRAM, *DISCORD, *SLACK, *IRC, *MAIL, *SUBTITLES, *TABLE,
    *CONVOKIT, *DATASET, *LANGSMITH, *OTEL, *LANGFUSE, *ZENDESK, *INTERCOM,
]  # fmt: skip
