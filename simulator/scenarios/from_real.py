"""Scenarios from real conversations: the goal that a person had there, and the turns up to where the simulation begins.

So a simulation has a real counterpart to compare it with. That only means something if the twin does not remember how it went:
a conversation in the twin's memory is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from usertwin.memory import TwinRecord
from usertwin.memory.text.sentences import sentences, size_in_words
from usertwin.memory.text.speaker_sides import SHORT_WORDS
from usertwin.personas import Conversation, Turn, UsageError
from usertwin.personas.conversation import LANGCHAIN_ROLES
from usertwin.personas.pairs import visible_turns
from usertwin.personas.roles import is_user

from ..agents import Message
from .facts import Fact
from .scenario import Scenario

#: The most words of a first request that become a goal; it is cut after a sentence.
_GOAL_WORDS = 60


def from_conversation(
    conversation: Conversation, person: str | None = None, *, fork_at: int = 0, twins: Sequence[str] = (), name: str = ""
) -> Scenario:  # fmt: skip
    """Return the scenario of a real conversation, simulated from a turn on.

    The goal is what the person was told to want (the private turns so far) or, without that, their first request. Private turns
    that came later become facts that they know from the same turn of theirs on.

    Args:
        conversation: the conversation.
        person: the speaker that a twin replaces; by default the only one in the role of a user.
        fork_at: the number of public turns, from the first, that are given; turns of one speaker in a row are one.
        twins: names of twins.
        name: name of the scenario; by default the conversation's id.

    Raises:
        UsageError: the person is not in the conversation or cannot be told, or there is no such turn.
    """
    speaker = _person_in(conversation, person)
    public = visible_turns(conversation.turns)
    if not 0 <= fork_at < len(public):
        raise UsageError(
            f'fork_at is {fork_at}, but conversation "{conversation.conversation_id}" has {len(public)} turns; '
            f"use a number from 0 to {len(public) - 1}"
        )
    start = tuple(_message(turn, speaker) for turn, _ in public[:fork_at])
    goal, facts = _goal_and_facts(conversation.turns, fork_at, speaker)
    return Scenario(
        name=name or conversation.conversation_id, twins=tuple(twins), goal=goal or first_request(conversation, speaker),
        facts=facts, start=start, counterpart=conversation.conversation_id,
    )  # fmt: skip


def first_request(conversation: Conversation, person: str) -> str:
    """Return the person's first turn of more than a few words, shortened to whole sentences; else their first turn."""
    own = [turn.text for turn, _ in visible_turns(conversation.turns) if turn.speaker == person]
    text = next((text for text in own if size_in_words(text) > SHORT_WORDS), own[0])
    kept = list[str]()
    for sentence in sentences(text):
        if kept and size_in_words(" ".join([*kept, sentence])) > _GOAL_WORDS:
            break
        kept.append(sentence)
    return " ".join(kept)


def check_held_out(scenario: Scenario, record: TwinRecord) -> None:
    """Raise UsageError if the real conversation behind a scenario is in the memory of a twin."""
    if scenario.counterpart and scenario.counterpart in record.corpus:
        raise UsageError(
            f'scenario "{scenario.name}": conversation "{scenario.counterpart}" is in the memory of {record.name}, which would '
            f"only repeat it; name one of its held-out conversations, such as {_examples(record)}"
        )


def to_message(turn: Turn) -> Message:
    """Return a turn as a message that still says who spoke, if the role does not."""
    role = "user" if is_user(turn.role) else "system" if turn.private else turn.role
    role = "assistant" if role in _AGENT_ROLES else role
    return {"role": role, "content": turn.text} | ({} if turn.speaker == turn.role else {"name": turn.speaker})


#: Roles under which agents are known.
_AGENT_ROLES = {"assistant", "agent", "bot", "model", "ai", "operator", "support"} | (
    {name for name, role in LANGCHAIN_ROLES.items() if role == "assistant"}
)


def _person_in(conversation: Conversation, person: str | None) -> str:
    """Return the speaker that a twin replaces. UsageError if they cannot be told."""
    speakers = sorted(conversation.speakers())
    if person is not None:
        if person not in speakers:
            known = ", ".join(f'"{name}"' for name in speakers)
            raise UsageError(f'"{person}" says nothing in conversation "{conversation.conversation_id}"; there are {known}')
        return person
    users = sorted({turn.speaker for turn in conversation.turns if is_user(turn.role)})
    if len(users) != 1:
        raise UsageError(
            f'conversation "{conversation.conversation_id}" has {len(users) or "no"} speakers in the role of a user; '
            f"say whom the twin replaces with person = {' or '.join(map(_quoted, speakers))}"
        )
    return users[0]


def _goal_and_facts(turns: Sequence[Turn], fork_at: int, speaker: str) -> tuple[str, tuple[Fact, ...]]:
    """Return the private turns before the person's first simulated turn, and those after it as facts by turn."""
    goal, facts, public, own, previous = list[str](), list[Fact](), 0, 0, ""
    for turn in turns:
        text = re.sub(r"\s+", " ", turn.text).strip()
        if not text:
            continue
        if not turn.private:
            starts = turn.speaker != previous
            public += starts
            own += starts and turn.speaker == speaker and public > fork_at
            previous = turn.speaker
        elif own:
            facts.append(Fact(text=text, reveal=own))
        else:
            goal.append(text)
    return "\n".join(goal), tuple(facts)


def _message(turn: Turn, speaker: str) -> Message:
    return {"role": "user" if turn.speaker == speaker else "assistant", "content": turn.text}


def _examples(record: TwinRecord) -> str:
    return ", ".join(map(_quoted, (record.test or record.validation)[:3])) or "one of another log"


def _quoted(text: str) -> str:
    return f'"{text}"'
