"""Importer of data sets of Hugging Face in Parquet or JSON lines: WildChat, LMSYS, OASST, PRISM and Humanual.

The person is the speaker where the data set tells people apart: by the hashed address in WildChat, the judge of the arena, the
user in OASST, PRISM and Humanual. Sources: the cards of allenai/WildChat-1M, lmsys/lmsys-chat-1m, OpenAssistant/oasst2,
HannahRoseKirk/prism-alignment, and snap-stanford/humanual-chat.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from usertwin.personas.conversation import Turn, content_text
from usertwin.personas.dates import find_date
from usertwin.personas.roles import is_unseen, is_user

from ..source import Source
from ..thread import BRANCH, DAMAGED, TOOL, Tally, Thread, as_list, as_object, as_text, time_of
from .rows import files, first_row, rows

_Row = dict[str, Any]


def recognises(source: Source) -> bool:
    """Return whether the first row is one of these data sets."""
    return _reader(first_row(source)) is not None


def read(source: Source, tally: Tally) -> Iterator[Thread]:
    """Yield the conversations of all files of the data set."""
    reader = None
    for name in files(source):
        trees: dict[str, list[_Row]] = defaultdict(list)
        for number, row in rows(source, name, tally):
            reader = reader or _reader(row)
            if reader is None:
                tally.refuse(source.place(name), number, "is no row of a known data set", "row")
            elif reader is _oasst_message:
                trees[as_text(row.get("message_tree_id"))].append(row)
            else:
                yield reader(row, tally)
        for tree in trees.values():
            yield _oasst_tree(tree, tally)


def _reader(row: _Row) -> Callable[[_Row, Tally], Thread] | None:
    """Return the reader of a row by its columns."""
    keys = row.keys()
    if {"conversation_history", "user_id"} <= keys:
        return _prism
    if {"message_id", "parent_id", "message_tree_id", "text"} <= keys:
        return _oasst_message
    if {"message_tree_id", "prompt"} <= keys:
        return _oasst_nested
    if {"prompt", "completion", "user_id"} <= keys:
        return _humanual
    if {"conversation_a", "conversation_b"} <= keys:
        return _arena
    first = as_object(next(iter(_list(row.get("conversation") or row.get("messages"))), None))
    return _chat if {"role", "content"} <= first.keys() else None


def _list(value: Any) -> list[Any]:
    """Return a list, which a table may hold as JSON text."""
    if isinstance(value, str) and value[:1] == "[":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    return as_list(value)


def _turns(messages: list[Any], tally: Tally, person: str, time: str | None = None) -> list[Turn]:
    """Return the turns of messages with a role and a content; `person` names their user."""
    turns: list[Turn] = []
    for message in map(as_object, messages):
        role, text = as_text(message.get("role")), content_text(message.get("content"))
        if not role or text is None:
            tally.drop(DAMAGED, "a message without role or text")
        elif is_unseen(role):
            tally.drop(TOOL, role)
        else:
            speaker = person if person and is_user(role) else role
            turns.append(Turn(speaker, role, text, time=time_of(message.get("timestamp")) or time))
    return turns


def _chat(row: _Row, tally: Tally) -> Thread:
    """Return a conversation of WildChat or LMSYS-Chat: WildChat writes the time of the last message, and of each answer."""
    messages = _list(row.get("conversation") or row.get("messages"))
    first = as_object(next(iter(messages), None))
    person = as_text(row.get("hashed_ip")) or as_text(first.get("hashed_ip")) or as_text(row.get("user_id"))
    name = next((text for key in ("conversation_hash", "conversation_id", "id") if (text := as_text(row.get(key)))), None)
    turns = _turns(messages, tally, person)
    started = next((turn.time for turn in turns if turn.time), None) or time_of(row.get("timestamp")) or find_date(row)
    extra = {key: value for key in ("model", "language") if (value := as_text(row.get(key)))}
    return Thread(turns=turns, name=name, started_at=started, extra=extra)


def _arena(row: _Row, tally: Tally) -> Thread:
    """Return a battle of the arena with the answers of the model that won, else of the first one."""
    winner = "conversation_b" if row.get("winner") == "model_b" else "conversation_a"
    other = _list(row.get("conversation_a" if winner == "conversation_b" else "conversation_b"))
    tally.drop(BRANCH, "the answers of the other model", len(other))
    name = as_text(row.get("question_id")) or as_text(row.get("id")) or None
    turns = _turns(_list(row.get(winner)), tally, as_text(row.get("judge")))
    return Thread(turns=turns, name=name, started_at=time_of(row.get("tstamp") or row.get("timestamp")))


def _prism(row: _Row, tally: Tally) -> Thread:
    """Return a conversation of PRISM with the answers that the person chose."""
    person, turns = as_text(row.get("user_id")), list[Turn]()
    for item in map(as_object, _list(row.get("conversation_history"))):
        role, text = as_text(item.get("role")), item.get("content")
        if not role or not isinstance(text, str):
            tally.drop(DAMAGED, "an item without role or text")
        elif role == "model" and item.get("if_chosen") is False:
            tally.drop(BRANCH, "an answer that was not chosen")
        else:
            turns.append(Turn(person if is_user(role) else role, role, text))
    return Thread(turns=turns, name=as_text(row.get("conversation_id")) or None, started_at=find_date(row))


def _humanual(row: _Row, tally: Tally) -> Thread:
    """Return a row of Humanual: a post with earlier comments, whose roles are their users, and the person's completion."""
    person, prompt = as_text(row.get("user_id")), row.get("prompt")
    messages = _list(prompt) or [{"role": "other", "content": prompt}]
    turns: list[Turn] = []
    for item in map(as_object, messages):
        speaker, text = as_text(item.get("name")) or as_text(item.get("role")), content_text(item.get("content"))
        if not speaker or text is None:
            tally.drop(DAMAGED, "a message without role or text")
            continue
        mine = speaker in {person, "user"}
        role = "user" if mine else "system" if speaker == "system" else "participant"
        turns.append(
            Turn(person if mine else speaker, role, text, time=time_of(as_object(item.get("metadata")).get("timestamp")))
        )
    turns.append(Turn(person, "user", as_text(row.get("completion")), time=time_of(row.get("timestamp"))))
    place = "/".join(filter(None, (as_text(row.get(key)) for key in ("post_id", "user_id", "turn_id"))))
    return Thread(turns=turns, name=as_text(row.get("id")) or place or None, started_at=time_of(row.get("timestamp")))


def _oasst_message(row: _Row, tally: Tally) -> Thread:
    """Return the tree of a single message."""
    return _oasst_tree([row], tally)


def _oasst_nested(row: _Row, tally: Tally) -> Thread:
    """Return a tree that is written as nested replies."""
    flat: list[_Row] = []
    waiting: list[tuple[_Row, str]] = [(as_object(row.get("prompt")), "")]
    while waiting:
        item, parent = waiting.pop()
        flat.append({**item, "parent_id": parent, "message_tree_id": row.get("message_tree_id")})
        waiting += [(as_object(reply), as_text(item.get("message_id"))) for reply in as_list(item.get("replies"))]
    return _oasst_tree(flat, tally)


def _oasst_tree(messages: list[_Row], tally: Tally) -> Thread:
    """Return the longest branch of a tree of messages, the better ranked one of two; the others are dropped."""
    children: dict[str, list[_Row]] = defaultdict(list)
    ids = {as_text(message.get("message_id")) for message in messages}
    for message in messages:
        parent = as_text(message.get("parent_id"))
        children[parent if parent in ids else ""].append(message)
    depth: dict[str, int] = {}
    order = list(children[""])
    for message in order:  # grows while it is walked: parents come before their answers
        order += children[as_text(message.get("message_id"))] if as_text(message.get("message_id")) else []
        if len(order) > len(messages):
            break
    for message in reversed(order):
        key = as_text(message.get("message_id"))
        depth[key] = 1 + max((depth.get(as_text(child.get("message_id")), 0) for child in children[key]), default=0)
    turns, options = list[Turn](), children[""]
    while options and len(turns) < len(messages):
        best = max(options, key=lambda item: (depth.get(as_text(item.get("message_id")), 0), -_rank(item)))
        role = as_text(best.get("role")) or "unknown"
        speaker = as_text(best.get("user_id")) or role
        turns.append(Turn(speaker, role, as_text(best.get("text")), time=time_of(best.get("created_date"))))
        options = children[as_text(best.get("message_id"))] if as_text(best.get("message_id")) else []
    tally.drop(BRANCH, count=len(messages) - len(turns))
    return Thread(turns=turns, name=as_text(messages[0].get("message_tree_id")) or None)


def _rank(message: _Row) -> float:
    rank = message.get("rank")
    return rank if isinstance(rank, int | float) else 1000.0
