"""Replies of a run as conversations in JSON lines, for mirrorbench and whatever else compares real with simulated users.

The one design choice: a line is one measured turn, the real conversation up to it and the same with an arm's reply, and it has
the keys of both forms that are in use: those of rollouts ("real_conversation", "rollout_conversation") and those of the
datasets that mirrorbench 0.0.1 reads itself ("conversation_id", "turns", "task_description"), where roles must take turns.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from usertwin.evals.records.measured_turns import MeasuredTurn
from usertwin.personas import UsageError

TASK_TAG = "next_turn"
#: What stands where nothing was said: mirrorbench refuses a message without text.
_SILENT = "…"


def mirrorbench_lines(turns: Sequence[MeasuredTurn], arm: str, *, about: Mapping[str, Any] | None = None) -> Iterator[str]:
    """A JSON line for each measured turn that an arm answered; the first reply is taken.

    Args:
        turns: what was measured.
        arm: whose replies.
        about: what goes into every line's metadata.

    Yields:
        Lines without their end. The person has the role "user", everybody else "assistant"; turns of one role that follow each
        other become one message, their texts on lines of their own.

    Raises:
        UsageError: no turn has a reply of this arm.
    """
    written = [turn for turn in turns if turn.replies.get(arm)]
    if not written:
        there = sorted({name for turn in turns for name, replies in turn.replies.items() if replies})
        ways = f"name one of {', '.join(there)}" if there else "run the suite with replies, and export that"
        raise UsageError(f'no reply of the arm "{arm}" is in this run; {ways}')
    for turn in written:
        yield json.dumps(_line(turn, arm, about or {}), ensure_ascii=False)


def _line(turn: MeasuredTurn, arm: str, about: Mapping[str, Any]) -> dict[str, Any]:
    corpus, _, speaker = turn.person.partition("/")
    before = [("user" if who == (speaker or corpus) else "assistant", text) for who, text in turn.context]
    real = _messages([*before, ("user", turn.action)])
    episode = f"{turn.person}/{turn.conversation_id}/{turn.position}"
    metadata = {
        **about,
        "arm": arm,
        "person": turn.person,
        "conversation_id": turn.conversation_id,
        "position": turn.position,
        "measured_user_turn": sum(message["role"] == "user" for message in real) - 1,
    }
    return {
        "episode_id": episode,
        "task_id": turn.person,
        "real_conversation": real,
        "rollout_conversation": _messages([*before, ("user", turn.replies[arm][0])]),
        "metadata": metadata,
        "conversation_id": episode,
        "turns": real,
        "task_tag": TASK_TAG,
        "task_description": turn.goal,
    }


def _messages(turns: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Messages whose roles take turns."""
    found: list[dict[str, str]] = []
    for role, text in turns:
        said = text if text.strip() else _SILENT
        if found and found[-1]["role"] == role:
            found[-1]["content"] += "\n" + said
        else:
            found.append({"role": role, "content": said})
    return found
