"""Pairs (context, action) of one person, and their split into what a twin may remember and what it is measured on.

The one design choice: the split goes by whole conversations in the order of time, corpus before validation before test,
so that no turn a twin is measured on, nor a neighbour of it, nor anything later, can be in its memory. Where conversations
overlap, the turns said once a later part had begun are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from .chat_log import ChatLog
from .conversation import Conversation, Turn, seconds
from .errors import LogError

#: Turns before the action that a pair keeps, unless told otherwise.
DEFAULT_WINDOW = 6
#: A person with fewer turns or conversations than this cannot be split three ways.
MIN_TURNS, MIN_CONVERSATIONS = 20, 3
#: The action of a person who does not answer any more: it ends the pairs of a conversation in which others had the last word.
LEFT = "(left)"
#: Kinds of context (see `Pair.kind`).
MomentKind = Literal["opening", "question", "statement"]
KINDS: tuple[MomentKind, ...] = get_args(MomentKind)


@dataclass(frozen=True, slots=True)
class Pair:
    """What a person saw, and what they did.

    Attributes:
        speaker: whose action this is.
        context: the turns before it that others could see, oldest first, at most the window.
        action: the person's next turn.
        goal: what only the person had been told so far in this conversation, or "".
        conversation_id: the conversation it happened in.
        position: how many turns came before it in that conversation, as everybody saw it.
        when: seconds since 1970; in a log without dates, the place of the conversation in the log.
        ends: whether this was the end of the conversation for everybody: nobody said anything more.
    """

    speaker: str
    context: tuple[Turn, ...]
    action: str
    goal: str
    conversation_id: str
    position: int
    when: float
    ends: bool = False

    @property
    def abandoned(self) -> bool:
        """Whether the person did not answer any more, and was gone."""
        return self.ends and self.action == LEFT

    @property
    def kind(self) -> MomentKind:
        """The kind of context: the person speaks first, is asked something, or is told something."""
        if not self.context:
            return "opening"
        return "question" if "?" in self.context[-1].text else "statement"

    @property
    def answers_role(self) -> str:
        """The role of whoever spoke last, or "" if the person speaks first."""
        return self.context[-1].role if self.context else ""


@dataclass(frozen=True, slots=True)
class Split:
    """One person's pairs: what the twin remembers, what settings are chosen on, what it is measured on."""

    corpus: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    test: tuple[Pair, ...]


def visible_turns(turns: Iterable[Turn]) -> list[tuple[Turn, str]]:
    """The turns everybody saw, turns in a row by one speaker joined, each with what only the person knew before it."""
    merged: list[tuple[Turn, str]] = []
    goal: list[str] = []
    for turn in turns:
        if turn.private:
            goal.append(turn.text)
        elif not turn.text.strip():
            continue
        elif merged and merged[-1][0].speaker == turn.speaker:
            last, known = merged[-1]
            merged[-1] = (Turn(last.speaker, last.role, f"{last.text}\n{turn.text}", last.time, last.extra), known)
        else:
            merged.append((turn, "\n".join(goal)))
    return merged


def pairs_of(conversation: Conversation, speaker: str, *, window: int = DEFAULT_WINDOW, place: int = 0) -> list[Pair]:
    """The pairs of one speaker in one conversation, in order; empty if they said nothing.

    Where others had the last word, the last pair is the person's silent leaving, with the action `LEFT`.

    Args:
        conversation: whose turns are looked at.
        speaker: whose turns are the actions.
        window: how many turns of context to keep, at least 1.
        place: the moment of the pairs, where the conversation has no date (see `Pair.when`).
    """
    turns = visible_turns(conversation.turns)
    own = [index for index, (turn, _) in enumerate(turns) if turn.speaker == speaker]
    if not own:
        return []
    started = seconds(conversation.started_at)
    actions = [(index, turns[index][0].text, turns[index][1], turns[index][0].time) for index in own]
    if own[-1] < len(turns) - 1:  # others had the last word
        told = "\n".join(turn.text for turn in conversation.turns if turn.private)
        actions.append((len(turns), LEFT, told, turns[-1][0].time))
    found: list[Pair] = []
    for index, action, goal, time in actions:
        moment = seconds(time) if time is not None and started is not None else started
        found.append(
            Pair(
                speaker=speaker,
                context=tuple(before for before, _ in turns[max(0, index - window) : index]),
                action=action,
                goal=goal,
                conversation_id=conversation.conversation_id,
                position=index,
                when=float(place) if moment is None else moment,
                ends=index >= len(turns) - 1,
            )
        )
    return found


def pairs_of_log(conversations: Sequence[Conversation], speaker: str, *, window: int = DEFAULT_WINDOW) -> list[list[Pair]]:
    """The pairs of one speaker, a list for each conversation they spoke in, in the order of time."""
    grouped = (pairs_of(c, speaker, window=window, place=place) for place, c in enumerate(conversations))
    return [pairs for pairs in grouped if pairs]


def check_speaker(log: ChatLog, speaker: str) -> None:
    """Raise LogError, naming the ten most frequent speakers, if nobody of that name speaks in the log."""
    counts = log.turn_counts()
    if speaker in counts and len(counts) < 2:
        raise LogError(f'{log.source}: "{speaker}" is the only speaker; a twin is learned from conversations with somebody')
    if speaker not in counts:
        frequent = ", ".join(f'"{name}" ({n})' for name, n in list(counts.items())[:10])
        raise LogError(f'{log.source}: nobody called "{speaker}" speaks here; the most frequent speakers are {frequent}')


def split_pairs(
    log: ChatLog, speaker: str, *, window: int = DEFAULT_WINDOW, validation: float = 0.1, test: float = 0.2
) -> Split:
    """Split one person's pairs by conversation and time.

    Args:
        log: the conversations, in the order of time.
        speaker: the person.
        window: turns of context for each pair.
        validation: the least share of the pairs to choose settings on.
        test: the least share of the pairs, the latest ones, to measure on.

    Raises:
        LogError: an unknown speaker, a log with one speaker, or a person with too few turns (or all at one moment).
    """
    check_speaker(log, speaker)
    groups = pairs_of_log(log.conversations, speaker, window=window)
    said, total = sum(not pair.abandoned for pairs in groups for pair in pairs), sum(map(len, groups))
    if said < MIN_TURNS or len(groups) < MIN_CONVERSATIONS:
        raise LogError(
            f'{log.source}: "{speaker}" has {said} turns in {len(groups)} conversations; '
            f"a twin needs at least {MIN_TURNS} turns in {MIN_CONVERSATIONS} conversations"
        )
    groups.sort(key=lambda pairs: (pairs[0].when, pairs[0].conversation_id))
    test_from = _cut(groups, len(groups), test * total, keep=2)
    validation_from = _cut(groups, test_from, validation * total, keep=1)
    parts = (groups[:validation_from], groups[validation_from:test_from], groups[test_from:])
    corpus, chosen, held_out = (tuple(pair for pairs in part for pair in pairs) for part in parts)
    chosen = _before(chosen, held_out)
    corpus = _before(corpus, (*chosen, *held_out))
    if not corpus:
        raise LogError(
            f'{log.source}: the first conversations of "{speaker}" have the same "started_at" as those to measure on; '
            "give times that differ, or none (then the order in the file is the order of time)"
        )
    return Split(corpus, chosen, held_out)


def _before(pairs: Sequence[Pair], later: Sequence[Pair]) -> tuple[Pair, ...]:
    """The pairs that happened before the first of the later ones."""
    end = min(pair.when for pair in later)
    return tuple(pair for pair in pairs if pair.when < end)


def _cut(groups: Sequence[Sequence[Pair]], end: int, wanted: float, keep: int) -> int:
    """Where to cut `groups[:end]` so that the tail holds `wanted` pairs and at least `keep` groups stay before it."""
    count, index = 0, end
    while index > keep and count < max(1.0, wanted):
        index -= 1
        count += len(groups[index])
    return index
