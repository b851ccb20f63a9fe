"""(context, action) pairs of one person, and their split into corpus, validation and test.

The split is by whole conversations in time order: corpus, then validation, then test. So no test turn, no turn of the same
conversation and no later turn is in a twin's memory. Where conversations overlap, turns after the start of a later part are
dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal, get_args

from .chat_log import ChatLog
from .conversation import Conversation, Turn
from .dates import to_timestamp
from .errors import LogError

#: Default number of context turns in a pair.
DEFAULT_WINDOW = 6
#: The fewest turns and conversations of a person that can be split into three parts.
MIN_TURNS, MIN_CONVERSATIONS = 20, 3
#: The action that stands for silence: the person did not answer the last turns of a conversation.
ABANDONED = "(left)"
#: Kinds of context (see `Pair.kind`).
ContextKind = Literal["opening", "question", "statement"]
CONTEXT_KINDS: tuple[ContextKind, ...] = get_args(ContextKind)


@dataclass(kw_only=True, frozen=True, slots=True)
class Pair:
    """A context and the person's action in it.

    Attributes:
        context: the public turns before the action, oldest first, at most the window.
        action: the person's next turn, or `ABANDONED`.
        goal: the private turns of the conversation so far, joined by newlines, or "".
        position: the number of public turns before the action.
        when: seconds since 1970; in a log without dates, the index of the conversation in the log.
        ends_conversation: whether no public turn follows; never of a turn with the text of `ABANDONED`.
    """

    speaker: str
    context: tuple[Turn, ...]
    action: str
    goal: str
    conversation_id: str
    position: int
    when: float
    ends_conversation: bool = False

    @property
    def abandoned(self) -> bool:
        """Whether the person left without an answer to the last turns."""
        return self.ends_conversation and self.action == ABANDONED

    @property
    def kind(self) -> ContextKind:
        """The kind of context: empty, or its last turn is a question or a statement."""
        if not self.context:
            return "opening"
        return "question" if "?" in self.context[-1].text else "statement"

    @property
    def previous_role(self) -> str:
        """The role of the last context turn, or "" for an empty context."""
        return self.context[-1].role if self.context else ""


@dataclass(frozen=True, slots=True)
class Split:
    """One person's pairs: `corpus` for the memory, `validation` for choosing settings, `test` for measuring."""

    corpus: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    test: tuple[Pair, ...]


def visible_turns(turns: Iterable[Turn]) -> list[tuple[Turn, str]]:
    """Return the public turns, each with the goal known before it; consecutive turns of one speaker are merged."""
    merged: list[tuple[Turn, str]] = []
    goal: list[str] = []
    for turn in turns:
        if turn.private:
            goal.append(turn.text)
        elif not turn.text.strip():
            continue
        elif merged and merged[-1][0].speaker == turn.speaker:
            last, goal_before = merged[-1]
            merged[-1] = (replace(last, text=f"{last.text}\n{turn.text}"), goal_before)
        else:
            merged.append((turn, "\n".join(goal)))
    return merged


def extract_pairs(
    conversation: Conversation, speaker: str, *, window: int = DEFAULT_WINDOW, fallback_when: int = 0
) -> list[Pair]:
    """Return the pairs of a speaker in a conversation, in order; empty if the speaker has no public turn.

    If others had the last word, the last pair has the action `ABANDONED`. A context has at most `window` turns.
    `fallback_when` is `Pair.when` if the conversation has no date.
    """
    turns = visible_turns(conversation.turns)
    own = [index for index, (turn, _) in enumerate(turns) if turn.speaker == speaker]
    if not own:
        return []
    started = to_timestamp(conversation.started_at)
    actions = [(index, turns[index][0].text, turns[index][1], turns[index][0].time) for index in own]
    if own[-1] < len(turns) - 1:  # others had the last word
        goal = "\n".join(turn.text for turn in conversation.turns if turn.private)
        actions.append((len(turns), ABANDONED, goal, turns[-1][0].time))
    pairs: list[Pair] = []
    for index, action, goal, time in actions:
        context = tuple(turn for turn, _ in turns[max(0, index - window) : index])
        when = started if started is None or time is None else to_timestamp(time)
        when, last = float(fallback_when) if when is None else when, index >= len(turns) - 1
        pairs.append(
            Pair(
                speaker=speaker,
                context=context,
                action=action,
                goal=goal,
                conversation_id=conversation.conversation_id,
                position=index,
                when=when,
                ends_conversation=last and (index == len(turns) or action != ABANDONED),  # a turn may have this text
            )
        )
    return pairs


def group_pairs(conversations: Sequence[Conversation], speaker: str, *, window: int = DEFAULT_WINDOW) -> list[list[Pair]]:
    """Return the pairs of a speaker, one list for each conversation with any, in time order."""
    grouped = (extract_pairs(c, speaker, window=window, fallback_when=place) for place, c in enumerate(conversations))
    return [pairs for pairs in grouped if pairs]


def check_speaker(log: ChatLog, speaker: str) -> None:
    """Raise LogError if the speaker has no turn in the log (naming the ten most frequent) or is its only speaker."""
    counts = log.turn_counts()
    if speaker in counts and len(counts) < 2:
        raise LogError(f'{log.source}: "{speaker}" is the only speaker; a twin is learned from conversations between people')
    if speaker not in counts:
        frequent = ", ".join(f'"{name}" ({n})' for name, n in list(counts.items())[:10])
        raise LogError(f'{log.source}: no turns by "{speaker}"; name a speaker with --speaker (most frequent: {frequent})')


def split_pairs(
    log: ChatLog, speaker: str, *, window: int = DEFAULT_WINDOW, validation: float = 0.1, test: float = 0.2
) -> Split:
    """Split a person's pairs by conversation and time; a context has at most `window` turns.

    `validation` and `test` are the smallest shares of the pairs in these parts.

    Raises:
        LogError: an unknown speaker, a log with one speaker, too few turns, or no pairs before the validation part.
    """
    check_speaker(log, speaker)
    groups = group_pairs(log.conversations, speaker, window=window)
    turns, total = sum(not pair.abandoned for pairs in groups for pair in pairs), sum(map(len, groups))
    if turns < MIN_TURNS or len(groups) < MIN_CONVERSATIONS:
        raise LogError(
            f'{log.source}: "{speaker}" has {turns} turns in {len(groups)} conversations; '
            f"a twin needs at least {MIN_TURNS} turns in {MIN_CONVERSATIONS} conversations"
        )
    groups.sort(key=lambda pairs: (pairs[0].when, pairs[0].conversation_id))
    test_from = _cut(groups, len(groups), test * total, keep=2)
    validation_from = _cut(groups, test_from, validation * total, keep=1)
    parts = (groups[:validation_from], groups[validation_from:test_from], groups[test_from:])
    corpus, validation_pairs, test_pairs = (tuple(chain.from_iterable(part)) for part in parts)
    validation_pairs = _before(validation_pairs, test_pairs)
    corpus = _before(corpus, (*validation_pairs, *test_pairs))
    if not corpus:
        raise LogError(
            f'{log.source}: the first conversations of "{speaker}" have the same "started_at" as those of the test part; '
            "give times that differ, or none (then the order in the file is the time order)"
        )
    return Split(corpus, validation_pairs, test_pairs)


def _before(pairs: Sequence[Pair], later: Sequence[Pair]) -> tuple[Pair, ...]:
    """Return the pairs from before the earliest of the later pairs."""
    end = min(pair.when for pair in later)
    return tuple(pair for pair in pairs if pair.when < end)


def _cut(groups: Sequence[Sequence[Pair]], end: int, min_pairs: float, keep: int) -> int:
    """Return an index into `groups[:end]`: `min_pairs` pairs come after it, and at least `keep` groups before it."""
    count, index = 0, end
    while index > keep and count < max(1.0, min_pairs):
        index -= 1
        count += len(groups[index])
    return index
