"""Spread: how much the twins of several people differ from each other, compared with the people.

Twins that all have the same voice may each be close to their person, and yet they do not stand for these people together. So
the distances between the replies to the turns of two people are compared with the distances between the turns themselves.

Design: distances are of surface features (lengths, punctuation, capitals, questions, ...). With character n-grams the subjects
of the conversations hid the people: distances between real turns and those between earlier turns of the same people correlated
by 0.49 instead of 0.67 (25 development people).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from math import inf, isnan, sqrt
from typing import TYPE_CHECKING, Any

from usertwin.evals.records.measured_turns import MeasuredTurn

from .discriminator import surface_features
from .statistics import CONFIDENCE, MIN_PEOPLE, Estimate, optional_json, t_quantile

if TYPE_CHECKING:
    from .statistics import Floats


def spread(turns: Sequence[MeasuredTurn]) -> dict[str, dict[str, Any]]:
    """Return, by arm, how much the replies differ between people, compared with the people's real turns.

    Two people of a corpus have a distance (see `_distances`) between their real turns, and one between an arm's first replies
    to these turns. Intervals are Student's t with the standard error of the jackknife that leaves out one person at a time,
    since pairs share people (Efron and Tibshirani 1993, chapter 11); there is none from few people (`MIN_PEOPLE`).

    Returns:
        `spread`: the sum of the distances between replies, divided by that between real turns: 1 for twins that are as
        different as the people, 0 for one voice. `matching`: the correlation of both lists of distances, minus their means in
        each corpus: 1 if those people differ most whose twins do; noise in the distances lowers it. Each has the number of
        people as n, and is None where it is not defined. `pairs`: the number of pairs of people. `distances`: the two people of
        each pair, the distance between their real turns, and that between the replies. Arms without pairs are left out.
    """
    arms = dict.fromkeys(chain.from_iterable(turn.replies for turn in turns))
    return _figures({arm: _compare([turn for turn in turns if turn.replies.get(arm)], arm) for arm in arms})


def joined_spread(measurements: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the spread of the people of several measurements together, from what `spread` returns for each."""
    pairs: dict[str, list[_Pair]] = {}
    for arm, row in chain.from_iterable(own.items() for own in measurements):
        for first, second, real, replies in row.get("distances", ()):
            pairs.setdefault(arm, []).append(_Pair((first, second), real, replies))
    return _figures(pairs)


def _figures(by_arm: Mapping[str, Sequence[_Pair]]) -> dict[str, dict[str, Any]]:
    return {
        arm: {
            "spread": optional_json(_jackknife(pairs, _spread)),
            "matching": optional_json(_jackknife(pairs, _matching, 1.0)),
            "pairs": len(pairs),
            "distances": [[*pair.people, pair.real, pair.replies] for pair in pairs],
        }
        for arm, pairs in by_arm.items()
        if pairs
    }


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two people of a corpus, the distance between their real turns, and that between the replies to these."""

    people: tuple[str, str]
    real: float
    replies: float

    @property
    def corpus(self) -> str:
        """The corpus of both."""
        return _corpus_of(self.people[0])


def _corpus_of(person: str) -> str:
    return person.rpartition("/")[0]


def _compare(turns: Sequence[MeasuredTurn], arm: str) -> list[_Pair]:
    """Return all pairs of people of a corpus whose distances are defined; the turns have replies of the arm."""
    by_corpus: dict[str, list[MeasuredTurn]] = {}
    for turn in turns:
        by_corpus.setdefault(_corpus_of(turn.person), []).append(turn)
    pairs: list[_Pair] = []
    for own in by_corpus.values():
        people = list(dict.fromkeys(turn.person for turn in own))
        if len(people) < 2:
            continue
        standardized = _standardized([turn.action for turn in own], [turn.replies[arm][0] for turn in own])
        real, replies = (_distances(own, features) for features in standardized)
        for (i, first), (j, second) in combinations(enumerate(people), 2):
            if not isnan(real[i, j]):
                pairs.append(_Pair((first, second), float(real[i, j]), float(replies[i, j])))
    return pairs


def _standardized(reals: Sequence[str], replies: Sequence[str]) -> tuple[Floats, Floats]:
    """Return the surface features of real turns and replies, in standard deviations of the real turns; (turns, features)."""
    from sklearn.preprocessing import StandardScaler

    features: Any = [[surface_features(text) for text in texts] for texts in (reals, replies)]
    scaler: Any = StandardScaler().fit(features[0])
    return scaler.transform(features[0]), scaler.transform(features[1])


def _distances(turns: Sequence[MeasuredTurn], features: Floats) -> Floats:
    """Return the squared distance of the mean features of each two people, one text for each turn; shape (people, people).

    It is estimated without bias: as the squared maximum mean discrepancy of a linear kernel (Gretton et al. 2012, "A kernel
    two-sample test", lemma 6). So it is 0 on average for people who write alike, however few their texts are, and at times
    below 0. Texts of the same conversation are not compared, those of the same person nor those of two: they share its
    subject. NaN where no texts are left to compare.
    """
    import numpy as np

    people = {person: number for number, person in enumerate(dict.fromkeys(turn.person for turn in turns))}
    groups = {cluster: number for number, cluster in enumerate(dict.fromkeys(turn.cluster for turn in turns))}
    conversations = [conversation for _, conversation in groups]
    apart = np.array([[first != second for second in conversations] for first in conversations])
    of_group = np.zeros((len(groups), len(turns)))
    of_group[[groups[turn.cluster] for turn in turns], range(len(turns))] = 1.0
    of_person = np.zeros((len(people), len(groups)))
    of_person[[people[person] for person, _ in groups], range(len(groups))] = 1.0
    sums, sizes = of_group @ features, of_group.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        similarities = (of_person @ ((sums @ sums.T) * apart) @ of_person.T) / (
            of_person @ (np.outer(sizes, sizes) * apart) @ of_person.T
        )
    own = similarities.diagonal()
    return own[:, None] + own[None, :] - 2 * similarities


def _spread(pairs: Sequence[_Pair]) -> float | None:
    real = sum(pair.real for pair in pairs)
    return sum(pair.replies for pair in pairs) / real if real > 0 else None


def _matching(pairs: Sequence[_Pair]) -> float | None:
    import numpy as np

    columns = np.array([(pair.real, pair.replies) for pair in pairs])
    for corpus in {pair.corpus for pair in pairs}:
        own = [pair.corpus == corpus for pair in pairs]
        columns[own] -= columns[own].mean(axis=0)
    lengths = np.sqrt((columns**2).sum(axis=0))
    return float((columns[:, 0] @ columns[:, 1]) / lengths.prod()) if len(pairs) > 2 and (lengths > 1e-9).all() else None


def _jackknife(
    pairs: Sequence[_Pair], statistic: Callable[[Sequence[_Pair]], float | None], limit: float = inf
) -> Estimate | None:
    """Return a statistic of at most `limit` with its interval over people; without one from few people, or if all agree."""
    people = list(dict.fromkeys(chain.from_iterable(pair.people for pair in pairs)))
    value, n = statistic(pairs), len(people)
    if value is None:
        return None
    left_out = [statistic([pair for pair in pairs if person not in pair.people]) for person in people]
    values = [left for left in left_out if left is not None]
    if n < MIN_PEOPLE or len(values) < n:
        return Estimate(value, None, None, n)
    mean = sum(values) / n
    half = t_quantile((1 + CONFIDENCE) / 2, n - 1) * sqrt((n - 1) / n * sum((left - mean) ** 2 for left in values))
    if half < 1e-9:
        return Estimate(value, None, None, n)
    return Estimate(value, max(value - half, -limit), min(value + half, limit), n)
