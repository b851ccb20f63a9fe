"""Who speaks in a chat log, for a command that needs a speaker and got none."""

from __future__ import annotations

from collections import Counter

from rich.table import Table
from rich.text import Text

from usertwin.personas import ChatLog
from usertwin.personas.pairs import MIN_CONVERSATIONS, MIN_TURNS

#: The most people that the table lists.
_LISTED = 20


def speakers_table(log: ChatLog) -> Table:
    """Return a table of the people with the most turns: role, turns, conversations, and whether a twin needs more."""
    roles, conversations = _roles_and_conversations(log)
    counts = log.turn_counts()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("speaker", "role", "turns", "conversations", ""):
        table.add_column(heading, header_style="dim", overflow="fold")
    for name, turns in list(counts.items())[:_LISTED]:
        few = turns < MIN_TURNS or conversations[name] < MIN_CONVERSATIONS
        table.add_row(
            *map(Text, (name, roles[name], str(turns), str(conversations[name]), "too few for a twin" if few else ""))
        )
    if len(counts) > _LISTED:
        table.add_row(f"... and {len(counts) - _LISTED} others")
    return table


def most_likely_person(log: ChatLog) -> str:
    """Return the speaker of the most turns as a user; if nobody is one, the speaker of the most turns."""
    return next(iter(log.turn_counts("user") or log.turn_counts()))


def _roles_and_conversations(log: ChatLog) -> tuple[dict[str, str], Counter[str]]:
    """Return the role that each speaker has most often in public turns, and the number of their conversations."""
    roles, conversations = Counter[tuple[str, str]](), Counter[str]()
    for conversation in log.conversations:
        public = [turn for turn in conversation.turns if not turn.private]
        roles.update((turn.speaker, turn.role) for turn in public)
        conversations.update({turn.speaker for turn in public})
    return {speaker: role for (speaker, role), _ in reversed(roles.most_common())}, conversations
