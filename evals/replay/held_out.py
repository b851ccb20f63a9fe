"""The held-out pairs of a twin, and the memory of the person that it is compared with.

Design: the twin's folder lists the held-out conversations by id since the twin was learned, so no later choice can move a turn
from one side of the split to the other.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from usertwin.memory import Embedder, Triple, TripleStore
from usertwin.memory.twin.record import HELD_OUT_FILE, read_other_person_pairs, read_stored_conversations
from usertwin.personas import LogError, Pair, load_log, read_conversations
from usertwin.personas.conversation import DISTRACTORS
from usertwin.personas.pairs import check_speaker, group_pairs, visible_turns
from usertwin.personas.reading import as_type
from usertwin.simulator import SimulatedUser


def held_out_pairs(user: SimulatedUser, folder: Path, against: str | Path | None = None) -> tuple[list[Pair], int]:
    """Return the pairs to measure on, and the number of conversations of `against` that were dropped: the twin knows them.

    `folder` is the twin's; `against` another log with turns of the same speaker, to measure on instead.

    Raises:
        LogError: the log cannot be read, or has no conversation that is new to the twin.
    """
    record, window = user.record, user.record.recipe.window
    if against is None:
        log = read_conversations(folder / HELD_OUT_FILE)
        groups = group_pairs(log.conversations, record.recipe.speaker, window=window)
        # Without dates, `when` is an index into the log, and held-out conversations come after the corpus.
        pairs = [with_time_after(pair, record.dated, record.corpus_ends) for group in groups for pair in group]
        return [pair for pair in pairs if pair.conversation_id in set(record.test)], 0
    log = load_log(against)
    check_speaker(log, record.recipe.speaker)
    if record.dated and any(c.started_at is None for c in log.conversations):
        raise LogError(f'{against}: the twin was learned from a dated log; add "started_at" to every conversation')
    known = {*record.corpus, *record.validation}
    groups = group_pairs(log.conversations, record.recipe.speaker, window=window)
    fresh = [group for group in groups if group[0].conversation_id not in known]
    if not fresh:
        raise LogError(
            f"{against}: the twin was learned from every conversation of {record.recipe.speaker} in it; name another log"
        )
    pairs = [with_time_after(pair, record.dated, record.corpus_ends) for group in fresh for pair in group]
    return pairs, len(groups) - len(fresh)


def given_distractors(user: SimulatedUser, folder: Path) -> dict[tuple[str, int], tuple[str, ...]]:
    """Return the distractors that the log gives for held-out turns, by conversation and position.

    They are the list of texts under `DISTRACTORS` of a turn of the person. Values of another type are ignored.
    """
    given: dict[tuple[str, int], tuple[str, ...]] = {}
    for conversation in read_stored_conversations(folder / HELD_OUT_FILE):
        for position, (turn, _) in enumerate(visible_turns(conversation.turns)):
            if turn.speaker == user.record.recipe.speaker and DISTRACTORS in turn.extra:
                with suppress(ValueError):
                    given[conversation.conversation_id, position] = as_type(tuple[str, ...], turn.extra[DISTRACTORS])
    return given


def with_time_after(pair: Pair, dated: bool, corpus_ends: float) -> Pair:
    """Return a held-out pair with a time after the corpus; without dates, `when` is only an index into the log."""
    return pair if dated else replace(pair, when=corpus_ends + 1 + pair.when)


def other_person_store(user: SimulatedUser, folder: Path, embedder: Embedder, stack: ExitStack) -> TripleStore | None:
    """Return the memory of the other person, which the stack closes; None if the twin has no other person."""
    record = user.record
    if record.other_speaker is None:
        return None
    store = TripleStore(None, embedder)  # a stopped command must leave no turns of others in a temporary folder
    stack.callback(store.close)
    store.add([Triple(pair) for pair in read_other_person_pairs(folder, record)])
    return store
