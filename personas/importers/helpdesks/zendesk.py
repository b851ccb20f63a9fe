"""Importer of Zendesk tickets with their comments, as JSON lines, a list, or a page of its API.

Internal notes are dropped: the customer never saw them. Source: https://developer.zendesk.com/api-reference/ticketing/tickets/
ticket_comments/ and the JSON export of https://support.zendesk.com/hc/articles/4408886165402.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from usertwin.personas.conversation import Turn
from usertwin.personas.dates import find_date

from ..markup import html_text
from ..records import records
from ..source import Source
from ..thread import DAMAGED, EMPTY, PLACEHOLDER, Tally, Thread, as_list, as_object, as_text, time_of

NOTE = "internal note"


def recognises(source: Source) -> bool:
    """Return whether there are tickets with comments."""
    return {"comments", "author_id"} <= source.keys and bool({"requester_id", "submitter_id", "requester"} & source.keys)


def read(source: Source, tally: Tally) -> Iterator[Thread]:
    """Yield the tickets."""
    for name in source.ending(".json", ".jsonl", ".ndjson") or source.names:
        for _, record in records(source, name, tally):
            names = _names(as_list(record.get("users")))
            tickets = as_list(record.get("tickets")) or [record.get("ticket") or record]
            for ticket in map(as_object, tickets):
                requester = as_text(ticket.get("requester_id")) or as_text(as_object(ticket.get("requester")).get("id"))
                known = {**names, **_names([ticket.get(key) for key in ("requester", "submitter", "assignee")])}
                comments = map(as_object, as_list(ticket.get("comments")))
                turns = [turn for item in comments if (turn := _turn(item, requester, known, tally)) is not None]
                extra = {"subject": subject} if (subject := as_text(ticket.get("subject"))) else {}
                yield Thread(turns=turns, name=as_text(ticket.get("id")) or None, started_at=find_date(ticket), extra=extra)


def _names(users: list[Any]) -> dict[str, str]:
    """Return the names of users by id; of two with one name, the e-mail address tells them apart."""
    named = {as_text(user.get("id")): user for user in map(as_object, users) if user.get("id") is not None}
    names = [as_text(user.get("name")) for user in named.values()]
    return {
        key: name if (name := as_text(user.get("name"))) and names.count(name) == 1 else as_text(user.get("email")) or key
        for key, user in named.items()
    }


def _turn(item: dict[str, Any], requester: str, names: dict[str, str], tally: Tally) -> Turn | None:
    author = as_text(item.get("author_id")) or as_text(as_object(item.get("author")).get("id"))
    text = as_text(item.get("plain_body")) or html_text(as_text(item.get("html_body"))) or as_text(item.get("body"))
    if item.get("public") is False:
        tally.drop(NOTE)
    elif not author:
        tally.drop(DAMAGED, "a comment without an author")
    elif text.strip():
        role = "user" if author == requester else "agent"
        return Turn(names.get(author, author), role, text.strip(), time=time_of(item.get("created_at")))
    else:
        tally.drop(PLACEHOLDER if item.get("attachments") else EMPTY)
    return None
