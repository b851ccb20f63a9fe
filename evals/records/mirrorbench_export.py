"""Replies of a run as conversations in JSON lines, for mirrorbench and other tools that compare real with simulated users.

Design: a line is one measured turn: the real conversation up to it, and the same with an arm's reply. It has the keys of
rollouts ("real_conversation", "rollout_conversation") and those of the datasets of mirrorbench 0.0.1 ("conversation_id",
"turns", "task_description"), which requires alternating roles.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from usertwin.personas import UsageError

from .measured_turns import MeasuredTurn

#: The text of an empty message; mirrorbench rejects a message without text.
_SILENT = "…"


def mirrorbench_lines(turns: Sequence[MeasuredTurn], arm: str, *, about: Mapping[str, Any] | None = None) -> Iterator[str]:
    """Yield a JSON line, with `about` as metadata, for each measured turn with a reply of an arm; the first reply counts.

    The person has the role "user", every other speaker "assistant"; consecutive turns of one role become one message, their
    texts on separate lines. UsageError if no turn has a reply of this arm.
    """
    written = [turn for turn in turns if turn.replies.get(arm)]
    if not written:
        arms = sorted({name for turn in turns for name, replies in turn.replies.items() if replies})
        hint = f"name one of {', '.join(arms)}" if arms else "run the suite with replies, and export that run"
        raise UsageError(f'no reply of the arm "{arm}" is in this run; {hint}')
    for turn in written:
        corpus, _, speaker = turn.person.partition("/")
        context = [("user" if who == (speaker or corpus) else "assistant", text) for who, text in turn.context]
        real = _messages([*context, ("user", turn.action)])
        episode = f"{turn.person}/{turn.conversation_id}/{turn.position}"
        metadata = {
            **(about or {}), "arm": arm, "person": turn.person, "conversation_id": turn.conversation_id,
            "position": turn.position, "measured_user_turn": sum(message["role"] == "user" for message in real) - 1,
        }  # fmt: skip
        line = {
            "episode_id": episode, "task_id": turn.person, "real_conversation": real,
            "rollout_conversation": _messages([*context, ("user", turn.replies[arm][0])]), "metadata": metadata,
            "conversation_id": episode, "turns": real, "task_tag": "next_turn", "task_description": turn.goal,
        }  # fmt: skip
        yield json.dumps(line)


def _messages(turns: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Messages with alternating roles."""
    messages: list[dict[str, str]] = []
    for role, text in turns:
        content = text if text.strip() else _SILENT
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += "\n" + content
        else:
            messages.append({"role": role, "content": content})
    return messages
