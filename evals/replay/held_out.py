"""The turns that a twin is measured on, and the past of somebody else that it is compared with.

The one design choice: what is held out is read from the twin's own folder, by the ids that were written when it was learned,
so that no later choice can move a turn from one side to the other.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from usertwin.memory import Embedder, Triple, TripleStore
from usertwin.memory.twin.record import HELD_OUT, OTHER_PERSON
from usertwin.personas import LogError, Pair, read_conversations
from usertwin.personas.pairs import check_speaker, pairs_of_log
from usertwin.simulator import SimulatedUser


def held_out_pairs(user: SimulatedUser, folder: Path, against: str | Path | None = None) -> tuple[list[Pair], int]:
    """The moments to measure on, and how many conversations of `against` were dropped since the twin knows them.

    Args:
        user: the twin.
        folder: its folder.
        against: another log with turns of the same speaker to measure on instead.

    Raises:
        LogError: the log cannot be read, or holds nothing that is new to the twin.
    """
    record, window = user.record, user.record.recipe.window
    if against is None:
        log = read_conversations(folder / HELD_OUT)
        groups = pairs_of_log(log.conversations, record.recipe.speaker, window=window)
        # Without dates, `when` is the place in the log, and everything that was held out came after the corpus.
        pairs = [with_time_after(pair, record.dated, record.corpus_ends) for group in groups for pair in group]
        return [pair for pair in pairs if pair.conversation_id in set(record.test)], 0
    log = read_conversations(against)
    check_speaker(log, record.recipe.speaker)
    if record.dated and any(c.started_at is None for c in log.conversations):
        raise LogError(f'{against}: its conversations need "started_at", since those the twin was learned from have it')
    known = {*record.corpus, *record.validation}
    groups = pairs_of_log(log.conversations, record.recipe.speaker, window=window)
    fresh = [group for group in groups if group[0].conversation_id not in known]
    if not fresh:
        raise LogError(
            f"{against}: the twin was learned from every conversation of {record.recipe.speaker} in it; none is held out"
        )
    pairs = [with_time_after(pair, record.dated, record.corpus_ends) for group in fresh for pair in group]
    return pairs, len(groups) - len(fresh)


def with_time_after(pair: Pair, dated: bool, corpus_ends: float) -> Pair:
    """A held-out pair with a time after the corpus; without dates, `when` is only a place in the log."""
    return pair if dated else replace(pair, when=corpus_ends + 1 + pair.when)


def other_person(user: SimulatedUser, folder: Path, embedder: Embedder, stack: ExitStack) -> TripleStore | None:
    """The past of the person whom the twin is compared with, as long as the stack is open; None if there is nobody."""
    record = user.record
    if record.other_speaker is None:
        return None
    log = read_conversations(folder / OTHER_PERSON)
    groups = pairs_of_log(log.conversations, record.other_speaker, window=record.recipe.window)
    store = TripleStore(stack.enter_context(tempfile.TemporaryDirectory()), embedder)
    stack.callback(store.close)
    store.add([Triple(pair) for group in groups for pair in group])
    return store
