"""Replaying held-out turns: how well each way of remembering predicts what the person really said.

The one design choice: the arms differ in nothing but the moments that are shown before the present one. Each real action is
scored under the same model after the same prompt the twin acts on, so differences are paired turn by turn, and the cost of
a person's own memory, of the right memories and of their traces can be read off one table. Lower bits are closer.

    no_memory          the chat alone
    other_person       moments recalled, in the same way, from somebody else's past
    random_own         moments of the person's own past, drawn at random
    recalled_pairs     the person's own moments that are most like now
    recalled_triples   the same moments, with their traces
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from usertwin.memory import Embedder, Scorer, Triple, TripleStore
from usertwin.memory.leaving import NEIGHBOURS
from usertwin.memory.transcript import action_line
from usertwin.memory.twin import HELD_OUT, OTHER_PERSON
from usertwin.personas import LogError, Pair, UsageError, read_conversations
from usertwin.personas.pairs import check_speaker, pairs_of_log
from usertwin.simulator import SimulatedUser
from usertwin.simulator.prompts import act_transcript, as_shown

from .metrics import chrf, embedding_similarities
from .statistics import Estimate, mean, ratio

ARMS = ("no_memory", "other_person", "random_own", "recalled_pairs", "recalled_triples")
#: The comparisons that are reported, each paired turn by turn.
CONTRASTS = (
    ("other_person", "no_memory"),
    ("random_own", "no_memory"),
    ("recalled_pairs", "no_memory"),
    ("recalled_triples", "no_memory"),
    ("recalled_pairs", "other_person"),
    ("recalled_pairs", "random_own"),
    ("recalled_triples", "recalled_pairs"),
)
_SCORED_AT_ONCE = 20

T = TypeVar("T")

#: Is told the stage ("scoring" or "writing"), how many turns are done, of how many.
ReplayProgress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Turnwise:
    """What was measured at one held-out turn, by arm."""

    pair: Pair
    shown: dict[str, list[Triple]]
    bits: dict[str, float] = field(default_factory=dict[str, float])
    replies: dict[str, str] = field(default_factory=dict[str, str])
    similarity: dict[str, float] = field(default_factory=dict[str, float])


async def evaluate(
    user: SimulatedUser,
    scorer: Scorer,
    embedder: Embedder,
    *,
    folder: Path,
    against: str | Path | None = None,
    limit: int | None = 100,
    generate: int = 20,
    seed: int = 0,
    progress: ReplayProgress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Measure how close a twin is to the person, beside the baselines.

    Args:
        user: the twin.
        scorer: the model under which real actions are scored.
        embedder: for recall in the other person's past, and for similarity.
        folder: the twin's folder, which holds the held-out conversations.
        against: another log with turns of the same speaker to measure on instead.
        limit: the most turns to measure on, spread evenly over all there are; None for all.
        generate: on how many of them each arm also writes a reply of its own.
        seed: for random moments, sampling and intervals.
        progress: is told how far things are.

    Returns:
        Everything that `usertwin eval --json` writes.

    Raises:
        LogError: there is nothing to measure on.
        UsageError: a limit that makes no sense.
    """
    if (limit is not None and limit < 1) or generate < 0:
        raise UsageError("a limit is at least 1, and the number of written replies at least 0")
    held_out, dropped = _held_out(user, folder, against)
    chosen = spread([pair for pair in held_out if not pair.left], limit)
    progress("recalling", 0, len(chosen))
    with ExitStack() as stack:
        other = _other_person(user, folder, embedder, stack)
        turns = _recall_all(user, other, chosen, seed)
    progress("recalling", len(turns), len(turns))
    for start in range(0, len(turns), _SCORED_AT_ONCE):
        progress("scoring", start, len(turns))
        _score(turns[start : start + _SCORED_AT_ONCE], scorer, user.settings.window)
    progress("scoring", len(turns), len(turns))
    writing = spread(turns, generate) if generate else []
    for done, turn in enumerate(writing):
        progress("writing", done, len(writing))
        for arm in turn.shown:
            turn.replies[arm] = await _write(user, turn, arm, seed)
    if writing:
        progress("writing", len(writing), len(writing))
        _compare(writing, embedder)
    ending = _ending(user, held_out, seed)
    return _result(user, scorer, turns, writing, ending, dropped, against, seed)


def _held_out(user: SimulatedUser, folder: Path, against: str | Path | None) -> tuple[list[Pair], int]:
    """The turns to measure on, and how many conversations of `against` were dropped since the twin knows them."""
    record, window = user.record, user.record.recipe.window
    if against is None:
        log = read_conversations(folder / HELD_OUT)
        groups = pairs_of_log(log.conversations, record.recipe.speaker, window=window)
        # Without dates, `when` is the place in the log, and everything that was held out came after the corpus.
        pairs = [later(pair, record.dated, record.corpus_ends) for group in groups for pair in group]
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
    pairs = [later(pair, record.dated, record.corpus_ends) for group in fresh for pair in group]
    return pairs, len(groups) - len(fresh)


def later(pair: Pair, dated: bool, corpus_ends: float) -> Pair:
    """A held-out pair with a time after the corpus; without dates, `when` is only a place in the log."""
    return pair if dated else replace(pair, when=corpus_ends + 1 + pair.when)


def spread(items: Sequence[T], most: int | None) -> list[T]:
    """At most so many items, spread evenly."""
    if most is None or len(items) <= most:
        return list(items)
    return [items[(i * len(items)) // most] for i in range(most)]


def _other_person(user: SimulatedUser, folder: Path, embedder: Embedder, stack: ExitStack) -> TripleStore | None:
    """A memory of the other person's past, for the time of the measurement."""
    record = user.record
    if record.other_speaker is None:
        return None
    log = read_conversations(folder / OTHER_PERSON)
    groups = pairs_of_log(log.conversations, record.other_speaker, window=record.recipe.window)
    store = TripleStore(stack.enter_context(tempfile.TemporaryDirectory()), embedder)
    stack.callback(store.close)
    store.add([Triple(pair) for group in groups for pair in group])
    return store


def _recall_all(user: SimulatedUser, other: TripleStore | None, pairs: Sequence[Pair], seed: int) -> list[Turnwise]:
    """For each turn, what each arm is shown. An arm that has nothing to show anywhere is left out."""
    times = [pair.when for pair in pairs]
    traced = user.settings.traces != "none"
    own = user.store.recall_many(pairs, user.k, before=times, with_trace=traced, ranking=user.ranking)
    theirs = None
    if other is not None:
        theirs = other.recall_many(pairs, user.k, before=times if user.record.dated else None, ranking=user.ranking)
    found: list[Turnwise] = []
    for number, pair in enumerate(pairs):
        recalled = [r.triple for r in own[number]]
        shown = {"no_memory": list[Triple]()}
        if theirs is not None:
            shown["other_person"] = [r.triple for r in theirs[number]]
        rng = random.Random(f"{seed}/{number}")
        drawn = user.store.draw(pair, user.k, before=pair.when, rng=rng)
        shown["random_own"] = [Triple(triple.pair) for triple in drawn]
        shown["recalled_pairs"] = [Triple(triple.pair) for triple in recalled]
        shown["recalled_triples"] = as_shown(recalled, "backward" if user.settings.traces == "backward" else "chosen")
        found.append(Turnwise(pair, shown))
    return found


def _score(turns: Sequence[Turnwise], scorer: Scorer, turns_shown: int) -> None:
    """Put the cost in bits of each real action, under each arm, where it belongs."""
    places = [(turn, arm) for turn in turns for arm in turn.shown]
    items = [(act_transcript(t.pair, t.shown[arm], turns=turns_shown), action_line(t.pair.action)) for t, arm in places]
    for (turn, arm), likelihood in zip(places, scorer.score(items), strict=True):
        turn.bits[arm] = likelihood.bits


async def _write(user: SimulatedUser, turn: Turnwise, arm: str, seed: int) -> str:
    """The reply that the twin's model writes under an arm; the arm with traces reasons first, if the twin does."""
    pair, shown, reasoning = turn.pair, turn.shown[arm], ""
    if user.settings.reasons and any(triple.reasoning for triple in shown):
        reasoning = (await user.think(pair, shown, seed=seed)).text
    return (await user.speak(pair, shown, reasoning, seed=seed, afresh=not reasoning)).text


def _compare(turns: Sequence[Turnwise], embedder: Embedder) -> None:
    places = [(turn, arm) for turn in turns for arm in turn.replies]
    said = [turn.replies[arm] for turn, arm in places]
    for (turn, arm), value in zip(
        places, embedding_similarities(said, [t.pair.action for t, _ in places], embedder), strict=True
    ):
        turn.similarity[arm] = value


def _result(
    user: SimulatedUser,
    scorer: Scorer,
    turns: Sequence[Turnwise],
    writing: Sequence[Turnwise],
    ending: Estimate | None,
    dropped: int,
    against: str | Path | None,
    seed: int,
) -> dict[str, Any]:
    arms = [arm for arm in ARMS if any(arm in turn.bits for turn in turns)]
    measured = {arm: _arm(turns, writing, arm, seed) for arm in arms}
    paired = {f"{a} - {b}": _contrast(turns, writing, a, b, seed) for a, b in CONTRASTS if a in arms and b in arms}
    return {
        "twin": user.name,
        "arms": {arm: _json(estimates) for arm, estimates in measured.items()},
        "paired": {name: _json(estimates) for name, estimates in paired.items()},
        "ending": _json({"f1": ending}),
        "turns": len(turns),
        "conversations": len({turn.pair.conversation_id for turn in turns}),
        "models": {
            "action": user.model.name,
            "scorer": scorer.name,
            "embedder": user.store.embedder.name,
            "proposer": user.record.recipe.model,
        },
        "seed": seed,
        "k": user.k,
        "twin_arm": "recalled_pairs" if user.settings.traces == "none" else "recalled_triples",
        "triples": len(user.store),
        "against": None if against is None else str(against),
        "dropped_conversations": dropped,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _json(estimates: dict[str, Estimate | None]) -> dict[str, Any]:
    return {name: estimate.to_json() for name, estimate in estimates.items() if estimate is not None}


def _arm(turns: Sequence[Turnwise], writing: Sequence[Turnwise], arm: str, seed: int) -> dict[str, Estimate | None]:
    """Every measure of one arm."""
    where, wrote = _where(turns), _where(writing)
    return {
        "bits_per_char": ratio([t.bits[arm] for t in turns], [_characters(t) for t in turns], where, seed=seed),
        "embedding_similarity": mean([t.similarity[arm] for t in writing], wrote, seed=seed),
        "chrf": mean([chrf(t.replies[arm], t.pair.action) for t in writing], wrote, seed=seed),
        "length_ratio": ratio(
            [float(len(t.replies[arm])) for t in writing], [float(len(t.pair.action)) for t in writing], wrote, seed=seed
        ),
    }


def _contrast(turns: Sequence[Turnwise], writing: Sequence[Turnwise], a: str, b: str, seed: int) -> dict[str, Estimate | None]:
    """The differences of two arms, paired turn by turn."""
    where, wrote = _where(turns), _where(writing)
    real = [t.pair.action for t in writing]
    return {
        "bits_per_char": ratio([t.bits[a] - t.bits[b] for t in turns], [_characters(t) for t in turns], where, seed=seed),
        "embedding_similarity": mean([t.similarity[a] - t.similarity[b] for t in writing], wrote, seed=seed),
        "chrf": mean(
            [chrf(t.replies[a], r) - chrf(t.replies[b], r) for t, r in zip(writing, real, strict=True)], wrote, seed=seed
        ),
        "length_ratio": ratio(
            [float(len(t.replies[a]) - len(t.replies[b])) for t in writing], [float(len(r)) for r in real], wrote, seed=seed
        ),
    }


def _ending(user: SimulatedUser, moments: Sequence[Pair], seed: int) -> Estimate | None:
    """F1 of "the person leaves now, or with this turn", told from all real turns before: 2TP / (2TP + FP + FN)."""
    if user.ending is None and user.leaving is None:
        return None
    silent = [False] * len(moments)
    if user.leaving is not None:
        near = user.store.recall_many(moments, NEIGHBOURS, before=[pair.when for pair in moments], left=None)
        own = [any(turn.speaker == pair.speaker for turn in pair.context) for pair in moments]
        silent = [spoken and user.leaving.leaves(recalled) for recalled, spoken in zip(near, own, strict=True)]
    said = [
        gone or (user.ending is not None and not pair.left and user.ending.leaves(pair))
        for gone, pair in zip(silent, moments, strict=True)
    ]
    hits = [2.0 * (told and pair.ends) for told, pair in zip(said, moments, strict=True)]
    costs = [hit + (told != pair.ends) for hit, told, pair in zip(hits, said, moments, strict=True)]
    return ratio(hits, costs, [pair.conversation_id for pair in moments], seed=seed)


def _where(turns: Sequence[Turnwise]) -> list[str]:
    return [turn.pair.conversation_id for turn in turns]


def _characters(turn: Turnwise) -> float:
    """The characters of the action as it was scored, the end of the line included."""
    return float(len(action_line(turn.pair.action)) - 1)
