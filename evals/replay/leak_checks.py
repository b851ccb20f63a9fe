"""Leaks between what a twin remembers and what it is measured on: checked when it is measured, not trusted to the past.

The one design choice: a leak of the split is an error, since no number after it means anything; near-duplicates, which honest
logs have too, are named, to be dropped with a count; what the model itself knows by heart is a number beside the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from math import log
from typing import Any

from usertwin.evals.metrics.statistics import evenly_spaced, mean
from usertwin.memory import Scorer
from usertwin.memory.text.transcript import ME, flat
from usertwin.memory.text.words import word_tokens
from usertwin.memory.twin.record import TwinRecord
from usertwin.personas import Pair, TwinError

#: Words of a shingle, and how much of their shingles two moments share to be nearly the same.
SHINGLE, RESEMBLANCE, CONTAINMENT = 5, 0.7, 0.8
#: Moments with fewer words, context and action together, are alike by nature ("thanks, bye") and never count.
FEWEST_WORDS = 8
#: A turn needs so many words to be continued from its middle; of longer ones the first so many are looked at.
FEWEST_TO_CONTINUE, MOST_TO_CONTINUE = 10, 200
#: A model that gives each token on average (geometric) more than an even chance says the text by heart.
BY_HEART = log(0.5)
_AT_ONCE = 256


def check_split(record: TwinRecord, known: Iterable[Pair], held_out: Sequence[Pair], *, by_time: bool = True) -> None:
    """Raise if anything that is held out, or a conversation of it, or something later, is known.

    Args:
        record: of the twin, which says what is held out.
        known: the moments in a memory, as they are now: `(triple.pair for triple in store.triples())`.
        held_out: the moments to measure on.
        by_time: whether what is known has to be older than all of these; False for the past of another person, which is
            recalled moment by moment only from before. Without dates there is no time to compare.

    Raises:
        TwinError: a leak: the sentence says which, and the way out.
    """
    learned, kept_back = set(record.corpus), {*record.validation, *record.test}
    if both := learned & kept_back:
        raise TwinError(
            f'{record.name}: the conversation "{min(both)}" was learned and is to be measured on, so that no number would mean '
            "anything; learn the twin again with --overwrite"
        )
    now = {pair.conversation_id for pair in held_out}
    first = min((pair.when for pair in held_out), default=None)
    for pair in known:
        if pair.conversation_id in now or pair.conversation_id in kept_back:
            raise TwinError(
                f'{record.name}: the memory knows the conversation "{pair.conversation_id}", which is to be measured on; '
                "learn the twin again with --overwrite"
            )
        if by_time and record.dated and first is not None and pair.when >= first:
            raise TwinError(
                f'{record.name}: the memory knows a moment of {_day(pair.when)} ("{pair.conversation_id}"), and the first turn '
                f"to measure on is of {_day(first)}; learn the twin again with --overwrite, from a log that has both"
            )


def _day(when: float) -> str:
    try:
        return datetime.fromtimestamp(when, UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):  # no calendar goes there
        return str(when)


# Near-duplicates -----------------------------------------------------------------------------------------------------


def near_duplicates(held_out: Sequence[Pair], known: Sequence[Pair], *, turns: int | None = None) -> dict[int, int]:
    """Which held-out moments are nearly the same as a known one: the same words in context and action.

    Two moments are sets of runs of 5 words over their turns; goals do not count, since tasks are given out many times. They
    are nearly the same if they share 0.7 of all their runs (resemblance), or if the known one has 0.8 of the held-out one's
    (containment): Broder 1997, "On the resemblance and containment of documents", where min-wise hashing estimates what is
    computed here exactly; for training data, Lee et al. 2021 (arXiv 2107.06499).

    Args:
        held_out: the moments to measure on.
        known: the moments in the memory.
        turns: how many turns of the context are looked at, the latest ones; all that a pair has if None.

    Returns:
        For the place in `held_out` of each such moment, the place in `known` of the one that it is most like.
    """
    ours = {place: found for place, pair in enumerate(held_out) if (found := _shingles(pair, turns))}
    theirs = {place: found for place, pair in enumerate(known) if (found := _shingles(pair, turns))}
    if not ours or not theirs:
        return {}
    import numpy as np
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(analyzer=_as_it_is, binary=True)  # pyright: ignore[reportArgumentType] - a function is right
    asked: Any = vectorizer.fit_transform(list(ours.values()))
    there: Any = vectorizer.transform(list(theirs.values()))  # runs that nobody asks for drop out
    sizes, their_sizes = (np.array([len(found) for found in side.values()]) for side in (ours, theirs))
    places, their_places = list(ours), list(theirs)
    likeness: dict[int, tuple[float, int]] = {}
    for start in range(0, len(places), _AT_ONCE):
        shared = (asked[start : start + _AT_ONCE] @ there.T).tocoo()
        rows, columns = shared.row + start, shared.col
        resemblance = shared.data / (sizes[rows] + their_sizes[columns] - shared.data)
        near = (resemblance >= RESEMBLANCE) | (shared.data / sizes[rows] >= CONTAINMENT)
        for row, column, like in zip(rows[near], columns[near], resemblance[near], strict=True):
            best = (float(like), -their_places[column])  # the first of those that are equally like
            likeness[places[row]] = max(likeness.get(places[row], best), best)
    return {place: -best for place, (_, best) in sorted(likeness.items())}


def _as_it_is(shingles: frozenset[str]) -> frozenset[str]:
    return shingles


def _shingles(pair: Pair, turns: int | None) -> frozenset[str]:
    """The runs of words of a moment; none if it has too few words. A silent leaving is told by what came before it."""
    context = pair.context if turns is None else pair.context[len(pair.context) - min(turns, len(pair.context)) :]
    said = [turn.text for turn in context] + ([] if pair.abandoned else [pair.action])
    words = [word for text in said for word in word_tokens(text)]
    if len(words) < FEWEST_WORDS:
        return frozenset()
    return frozenset(" ".join(words[at : at + SHINGLE]) for at in range(len(words) - SHINGLE + 1))


# What the model knows without any memory -----------------------------------------------------------------------------


def known_by_heart(scorer: Scorer, pairs: Sequence[Pair], *, most: int | None = 200, seed: int = 0) -> dict[str, Any]:
    """Whether the model knows the text itself: the second half of turns, given their first half and nothing else.

    What a model was trained on it continues from a part of it (Carlini et al. 2023, arXiv 2202.07646: a text is extractable if
    its beginning brings the rest); instead of decoding greedily, the rest is scored here, which any scorer can, and the mean
    log-probability of a text is also the plainest of the tests that tell training data (Shi et al. 2024, arXiv 2310.16789).
    The same halves after the first half of another turn are the reference: what a turn's own beginning is worth above it is
    topic and grammar where the model does not know the text, and far more where it does.

    Args:
        scorer: the model.
        pairs: moments whose actions are looked at: each text once, if it has 10 words or more.
        most: how many turns at most, spread evenly; None for all.
        seed: for the interval.

    Returns:
        A JSON object: `value`, the share of turns whose second half has a mean log-probability above log(0.5) per token, with
        its interval `low` and `high` (by conversation) and `n` turns; `nats_per_token`, the mean over turns of that
        log-probability (at most 0); `reference`, the same after another turn's first half, None for a single turn. All None
        where there is no such turn.
    """
    texts: dict[str, Pair] = {}
    for pair in pairs:
        if not pair.abandoned and len(flat(pair.action).split()) >= FEWEST_TO_CONTINUE:
            texts.setdefault(flat(pair.action), pair)
    chosen = evenly_spaced(list(texts.items()), most)
    halves = [_halves(text) for text, _ in chosen]
    own = _per_token(scorer, halves)
    others = [*halves[1:], *halves[:1]] if len(halves) > 1 else []
    moved = _per_token(scorer, [(before, rest) for (before, _), (_, rest) in zip(others, halves, strict=False)])
    share = mean([float(one > BY_HEART) for one in own], [pair.conversation_id for _, pair in chosen], seed=seed)
    found = {"value": None, "low": None, "high": None, "n": 0} if share is None else share.to_json()
    return found | {"nats_per_token": _average(own), "reference": _average(moved)}


def _halves(text: str) -> tuple[str, str]:
    """What is given of a turn, and what is asked for."""
    words = text.split()[:MOST_TO_CONTINUE]
    middle = len(words) // 2
    return f"{ME}: {' '.join(words[:middle])}", f" {' '.join(words[middle:])}"


def _per_token(scorer: Scorer, items: Sequence[tuple[str, str]]) -> list[float]:
    """The mean log-probability of each continuation's tokens, in nats."""
    return [found.nats / max(1, found.tokens) for found in scorer.score(items)]


def _average(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
