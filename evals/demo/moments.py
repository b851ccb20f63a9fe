"""Selection of the held-out moments that the demonstration shows, by a rule that does not see what the person said.

Design: the tiny model makes sense in short chats with a similar memory. The rule looks for such moments and uses nothing but
the chat before each of them, so it cannot choose replies that happen to be good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from usertwin.evals.metrics.statistics import evenly_spaced
from usertwin.evals.replay.leak_checks import check_split, near_duplicates
from usertwin.memory.twin.record import HELD_OUT_FILE, read_stored_conversations
from usertwin.personas import Pair
from usertwin.personas.pairs import group_pairs
from usertwin.simulator import SimulatedUser
from usertwin.simulator.agents import Message

#: Turns of the chat before a moment: at least these, the last of them are shown, and each of these has at most so many words.
MIN_TURNS, SHOWN_TURNS, MAX_WORDS = 4, 4, 25
#: The fewest words of the last turn, and the most moments that are compared, evenly spaced.
MIN_WORDS, MAX_COMPARED = 3, 120
RULE = (
    f"Chosen by a rule that does not see what {{name}} really said: {MIN_TURNS} turns or more of a held-out chat, the last "
    f"ones short ({MAX_WORDS} words at most), the remembered moment as similar as possible, no two beside each other."
)
_WHOLE_CHAT = 10**6


def choose_moments(user: SimulatedUser, folder: Path, count: int) -> list[Pair]:
    """Return at most `count` held-out pairs, those with the most similar memory first.

    Each context is the whole chat before the moment. The last turns of a chat, which are shown, hold no other chosen moment.
    `folder` is the twin's. Chats that the memory nearly repeats are left out.

    Raises:
        TwinError: a held-out conversation is in the memory.
    """
    fresh = evenly_spaced([pair for pair in _fresh_moments(user, folder) if _is_short(pair)], MAX_COMPARED)
    recalled = user.recall_many(fresh)
    ranked = sorted(
        zip(fresh, (memories[0].similarity if memories else -1.0 for memories in recalled), strict=True),
        key=lambda row: (-row[1], row[0].conversation_id, row[0].position),
    )
    chosen: list[Pair] = []
    for pair, _ in ranked:
        if len(chosen) < count and not any(_is_beside(pair, other) for other in chosen):
            chosen.append(pair)
    return chosen


def draw_moments(user: SimulatedUser, folder: Path, *, seed: int = 0) -> list[Pair]:
    """Return all held-out pairs that answer something, in random order, each with the whole chat before it as its context.

    Moments that the memory nearly repeats are left out. `folder` is the twin's.

    Raises:
        TwinError: the held-out conversations are missing, or one of them is in the memory.
    """
    moments = [pair for pair in _fresh_moments(user, folder) if pair.context]
    Random(seed).shuffle(moments)
    return moments


def _fresh_moments(user: SimulatedUser, folder: Path) -> list[Pair]:
    """Return the held-out pairs with an action, each with the whole chat before it, that the memory does not nearly repeat."""
    record = user.record
    groups = group_pairs(read_stored_conversations(folder / HELD_OUT_FILE), record.recipe.speaker, window=_WHOLE_CHAT)
    test = set(record.test)
    pairs = [pair for group in groups for pair in group if pair.conversation_id in test and not pair.abandoned]
    known = [triple.pair for triple in user.store.triples()]
    check_split(record, known, pairs, by_time=False)
    repeated = near_duplicates(_without_action(pairs), _without_action(known), turns=record.recipe.window)
    return [pair for place, pair in enumerate(pairs) if place not in repeated]


def messages_before(pair: Pair) -> list[Message]:
    """Return the chat before a moment as messages, in which "user" is the person."""
    return [{"role": "user" if turn.speaker == pair.speaker else "assistant", "content": turn.text} for turn in pair.context]


def _is_short(pair: Pair) -> bool:
    """Return whether the chat before a moment is long enough, and its last turns are short."""
    words = [len(turn.text.split()) for turn in pair.context[-SHOWN_TURNS:]]
    return len(pair.context) >= MIN_TURNS and max(words) <= MAX_WORDS and words[-1] >= MIN_WORDS


def _is_beside(pair: Pair, other: Pair) -> bool:
    """Return whether one of two moments is among the turns that are shown for the other."""
    return pair.conversation_id == other.conversation_id and abs(pair.position - other.position) <= SHOWN_TURNS


def _without_action(pairs: Sequence[Pair]) -> list[Pair]:
    return [replace(pair, action="") for pair in pairs]
