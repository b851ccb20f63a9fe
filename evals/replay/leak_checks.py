"""Checks for leaks between a twin's memory and its held-out pairs.

Every measurement checks the split, drops near-duplicates, and measures memorization.

Design: a leak of the split is an error, since it makes every number meaningless. Near-duplicates also occur in honest logs, so
they are dropped and counted. Memorization by the model itself is reported as a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from math import log
from typing import Any

from usertwin.evals.metrics.statistics import evenly_spaced, mean
from usertwin.memory import Scorer
from usertwin.memory.text.transcript import ME, single_line
from usertwin.memory.text.words import word_tokens
from usertwin.memory.twin.record import TwinRecord
from usertwin.personas import Pair, TwinError, UsageError

#: Words of a shingle, and the limits above which two pairs are near-duplicates.
SHINGLE, RESEMBLANCE, CONTAINMENT = 5, 0.7, 0.8
#: Pairs with fewer words, context and action together, are alike by nature ("thanks, bye") and never near-duplicates.
MIN_WORDS = 8
#: Words of a turn that is tested for memorization, at least; of longer turns only the first words are used.
MIN_WORDS_TO_CONTINUE, MAX_WORDS_TO_CONTINUE = 10, 200
#: Mean log-probability of a token above which a text counts as memorized: (geometric) mean probability above 0.5.
MEMORIZED = log(0.5)
_BATCH_PAIRS = 256


def check_split(record: TwinRecord, known: Iterable[Pair], held_out: Sequence[Pair], *, by_time: bool = True) -> None:
    """Raise TwinError if the memory, of `known` pairs, holds a held-out conversation, or a pair of a later time.

    With `by_time` all known pairs must be older than the held-out ones. It is False where each recall is limited to earlier
    pairs. Undated pairs are not compared.
    """
    learned, reserved = set(record.corpus), {*record.validation, *record.test}
    if both := learned & reserved:
        raise TwinError(
            f'{record.name}: the conversation "{min(both)}" was learned and is also held out, so no number has a meaning; '
            "learn the twin again with --overwrite"
        )
    measured = {pair.conversation_id for pair in held_out}
    first = min((pair.when for pair in held_out), default=None)
    for pair in known:
        if pair.conversation_id in measured or pair.conversation_id in reserved:
            raise TwinError(
                f'{record.name}: the memory holds the held-out conversation "{pair.conversation_id}"; '
                "learn the twin again with --overwrite"
            )
        if by_time and record.dated and first is not None and pair.when >= first:
            raise TwinError(
                f'{record.name}: the memory holds a turn of {_day(pair.when)} ("{pair.conversation_id}"), but the first '
                f"held-out turn is of {_day(first)}; learn the twin again with --overwrite, from a log that has both"
            )


def _day(when: float) -> str:
    try:
        return datetime.fromtimestamp(when, UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):  # outside the calendar
        return str(when)


def without_near_duplicates(label: str, held_out: Sequence[Pair], known: Sequence[Pair]) -> list[Pair]:
    """Return the held-out pairs that no known pair nearly repeats. UsageError if none of them has an action."""
    duplicates = near_duplicates(held_out, known)
    fresh = [pair for place, pair in enumerate(held_out) if place not in duplicates]
    if all(pair.abandoned for pair in fresh):
        raise all_repeat_error(label)
    return fresh


def all_repeat_error(label: str) -> UsageError:
    """Return the error for a person of whom every held-out turn nearly repeats the memory."""
    return UsageError(f"{label}: every held-out turn is nearly the same as one in the memory; use a log with more turns")


def near_duplicates(held_out: Sequence[Pair], known: Sequence[Pair], *, turns: int | None = None) -> dict[int, int]:
    """Return the held-out pairs that nearly equal a known pair, by the words of context and action.

    A pair is a set of runs of 5 words over its turns; goals do not count, since tasks are handed out many times. Two pairs are
    near-duplicates if they share 0.7 of all their runs (resemblance), or if the known one contains 0.8 of the held-out one's
    (containment): Broder 1997, "On the resemblance and containment of documents"; computed exactly here, without min-wise
    hashing. For training data see Lee et al. 2021 (arXiv 2107.06499).

    Returns:
        From the index of each such pair in `held_out` to the index in `known` of the most similar one.
    """
    ours = {place: shingles for place, pair in enumerate(held_out) if (shingles := _shingles(pair, turns))}
    theirs = {place: shingles for place, pair in enumerate(known) if (shingles := _shingles(pair, turns))}
    if not ours or not theirs:
        return {}
    import numpy as np
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer: Any = CountVectorizer(analyzer=frozenset, binary=True)  # pyright: ignore[reportArgumentType] - takes a function
    our_matrix = vectorizer.fit_transform(list(ours.values()))
    their_matrix = vectorizer.transform(list(theirs.values()))  # drops runs that no held-out pair has
    our_sizes, their_sizes = (np.array(list(map(len, side.values()))) for side in (ours, theirs))
    our_places, their_places = list(ours), list(theirs)
    best_matches: dict[int, tuple[float, int]] = {}
    for start in range(0, len(our_places), _BATCH_PAIRS):
        shared = (our_matrix[start : start + _BATCH_PAIRS] @ their_matrix.T).tocoo()
        rows, columns = shared.row + start, shared.col
        resemblance = shared.data / (our_sizes[rows] + their_sizes[columns] - shared.data)
        near = (resemblance >= RESEMBLANCE) | (shared.data / our_sizes[rows] >= CONTAINMENT)
        for row, column, similarity in zip(rows[near], columns[near], resemblance[near], strict=True):
            match = (float(similarity), -their_places[column])  # the first of equally similar ones
            best_matches[our_places[row]] = max(best_matches.get(our_places[row], match), match)
    return {place: -match for place, (_, match) in sorted(best_matches.items())}


def _shingles(pair: Pair, turns: int | None) -> frozenset[str]:
    """Return the runs of words of a pair, of its context alone if abandoned; none for too few words."""
    context = pair.context if turns is None else pair.context[len(pair.context) - min(turns, len(pair.context)) :]
    texts = [turn.text for turn in context] + ([] if pair.abandoned else [pair.action])
    words = [word for text in texts for word in word_tokens(text)]
    if len(words) < MIN_WORDS:
        return frozenset()
    return frozenset(" ".join(words[start : start + SHINGLE]) for start in range(len(words) - SHINGLE + 1))


def measure_memorization(scorer: Scorer, pairs: Sequence[Pair], *, max_turns: int | None = 200) -> dict[str, Any]:
    """Return how well the model predicts the second half of turns from the first half alone.

    A model continues a text of its training data from a prefix (Carlini et al. 2023, arXiv 2202.07646). Scoring the second half
    replaces greedy decoding, so any scorer works; the mean log-probability is also the basic membership test (Shi et al. 2024,
    arXiv 2310.16789). The reference is the same second half after the first half of another turn: a turn's own first half adds
    topic and grammar if the text is unknown, and far more if it is memorized.

    The actions of pairs are tested: each text once, if it has 10 words or more; at most `max_turns`, evenly spaced.

    Returns:
        A JSON object: `value`, the share of turns whose second half has a mean log-probability above log(0.5) per token, with
        its interval `low` and `high` (by conversation) and `n` turns; `nats_per_token`, the mean over turns of that
        log-probability (at most 0); `reference`, the same after another turn's first half, None for a single turn. All are
        None without such turns.
    """
    texts: dict[str, Pair] = {}
    for pair in pairs:
        if not pair.abandoned and len(single_line(pair.action).split()) >= MIN_WORDS_TO_CONTINUE:
            texts.setdefault(single_line(pair.action), pair)
    tested = evenly_spaced(list(texts.items()), max_turns)
    halves = [_halves(text) for text, _ in tested]
    own = _nats_per_token(scorer, halves)
    others = [*halves[1:], *halves[:1]] if len(halves) > 1 else []
    reference = _nats_per_token(scorer, [(first, rest) for (first, _), (_, rest) in zip(others, halves, strict=False)])
    share = mean([float(nats > MEMORIZED) for nats in own], [pair.conversation_id for _, pair in tested], share=True)
    result = {"value": None, "low": None, "high": None, "n": 0} if share is None else share.to_json()
    averages = {"nats_per_token": own, "reference": reference}
    return result | {name: sum(nats) / len(nats) if nats else None for name, nats in averages.items()}


def _halves(text: str) -> tuple[str, str]:
    """Return the first half of a turn as a prompt, and the second half as its completion."""
    words = text.split()[:MAX_WORDS_TO_CONTINUE]
    middle = len(words) // 2
    return f"{ME}: {' '.join(words[:middle])}", f" {' '.join(words[middle:])}"


def _nats_per_token(scorer: Scorer, items: Sequence[tuple[str, str]]) -> list[float]:
    """Return the mean log-probability per token of each completion, in nats."""
    return [likelihood.nats / max(1, likelihood.tokens) for likelihood in scorer.score(items)]
