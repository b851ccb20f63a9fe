"""Closeness of each arm to the person, by every measure, with intervals over people, or over one person's conversations.

Design: for one person and one arm, every measure is a function of the weights of the conversations. So one jackknife serves
them all, every difference of two arms is paired, and people have equal weight however much they wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from itertools import chain, product
from typing import Any, Literal, TypeAlias

from usertwin.evals.arm_names import PEERS, WORDS, in_order, usual_opponents
from usertwin.evals.records.measured_turns import MeasuredTurn

from .arm_discriminators import DISCRIMINATORS, PersonScores, discriminator_controls, first_reply, person_scores
from .measures import MEASURES, Measure, is_measured, measure_statistic
from .statistics import (
    Inference,
    Jackknife,
    add_holm,
    jackknife,
    mean_of_people,
    person_value,
    turns_by_conversation,
    unit_of,
)

#: Pairs of arms that are compared, beside the twin's arm and every other arm.
CONTRASTS = (
    ("recalled_pairs", "no_memory"),
    ("recalled_pairs", "other_person"),
    ("recalled_pairs", "random_own"),
    ("recalled_pairs", "recent_own"),
    ("recon", "recalled_pairs"),
    ("best_of_n", "backward"),  # selection alone: "recon" shows no trace where all proposals mislead
    ("best_of_n", "random_of_n"),
    ("trained", "recalled_pairs"),
    ("trained", "backward"),
)
#: The level of the declared family of tests, adjusted by Holm, and its measure.
ALPHA, PRIMARY = 0.05, "bits_per_char"

Contrast: TypeAlias = tuple[str, str]
#: Indices into the list of one person's turns.
_Places: TypeAlias = tuple[int, ...]


def closeness(
    turns: Sequence[MeasuredTurn], twin: str, *, seed: int = 0, contrasts: Sequence[Contrast] | None = None,
    question: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Return every measure of every arm and of the differences of arms, with intervals.

    A value of several people is the mean over people. Its 95% interval and its test are over people, or over the conversations
    of these people where there are few of them, and None where there are too few of both (see `mean_of_people`). A measure of
    an arm covers the turns measured for that arm; a difference covers the turns measured for both. Several replies at a turn
    share its weight.

    Args:
        turns: of any people, in order.
        twin: the arm that the twin uses.
        seed: of the discriminator and of tests over more than twelve people.
        contrasts: the comparisons; None for the twin's arm with every other arm, `CONTRASTS`, and the question's.
        question: the contrasts "A - B" that were declared before the measurement; see `Suite.question`.

    Returns:
        `arms`: `value`, `low`, `high`, `n` by arm and measure; low and high are None without an interval. `paired`: by
        "A - B" and measure, how much further from the person A is than B (below 0: A is closer, in every measure), with the
        `p` of its test and the smallest difference `visible` with 80% power; `p_holm`, which decides instead of `p`, for the
        declared `family`: the question's contrasts, and the twin with each peer. `intervals_over`: "people" or
        "conversations". `people`: the same for each person, over conversations, without `p_holm`. `discriminator`: the
        controls of both discriminators, see `discriminator_controls`.
        `traces`: the mean number of shown pairs that carry a trace, by arm. Measures and comparisons without data are left out.
    """
    by_person: dict[str, list[MeasuredTurn]] = {}
    for turn in turns:
        by_person.setdefault(turn.person, []).append(turn)
    arms = _arms(turns)
    wanted = _contrasts(arms, twin, question) if contrasts is None else contrasts
    compared = [(a, b) for a, b in wanted if a in arms and b in arms]
    result = _empty_result(by_person, arms, compared)
    for measure in MEASURES:
        scores = _discriminator_scores(turns, arms, measure, seed)
        people = {person: _PersonMeasure(own, measure, scores) for person, own in by_person.items()}
        for arm in arms:
            values = {person: own.value(arm, own.measured(arm)) for person, own in people.items()}
            _add(result, "arms", arm, measure.name, values, seed)
        for a, b in compared:
            differences = {person: own.difference(a, b) for person, own in people.items()}
            _add(result, "paired", f"{a} - {b}", measure.name, differences, seed)
    return {
        **_without_gaps(result),
        "intervals_over": unit_of(len(by_person)),
        "question": list(question),
        "family": _family(result["paired"], twin, question),
        "discriminator": discriminator_controls(turns, seed=seed),
        "traces": _traces(turns),
        **_counts(turns),
        "twin_arm": twin,
        "seed": seed,
    }


def joined_closeness(
    people: Mapping[str, Mapping[str, Any]], twin: str, *, seed: int = 0, question: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the part of the result of `closeness` that each person's own values determine, for people of several measurements.

    It equals that of one measurement of them all, except that a discriminator was trained within each measurement.

    Args:
        people: `people` of the results of `closeness`, together: `MIN_PEOPLE` or more, so that intervals are over people.
        twin: as in `closeness`, like the other arguments.
        seed: of tests over more than twelve people.
        question: the contrasts that were declared before the measurements.
    """
    result: dict[str, dict[str, dict[str, Any]]] = {
        "arms": {arm: {} for arm in _in_order(set(chain.from_iterable(own["arms"] for own in people.values())))},
        "paired": {name: {} for name in chain.from_iterable(own["paired"] for own in people.values())},
    }
    for section, rows in result.items():
        for row, measure in product(rows, MEASURES):
            estimates = [own[section].get(row, {}).get(measure.name) for own in people.values()]
            share = measure.share and section == "arms"  # a difference of shares is none
            values = [person_value(one["value"], one["n"], share=share) for one in estimates if one is not None]
            if values:
                rows[row][measure.name] = _to_json(mean_of_people(values, measured=len(people)), section, seed)
    return {
        **_without_gaps(result),
        "people": dict(people),
        "intervals_over": unit_of(len(people)),
        "question": list(question),
        "family": _family(result["paired"], twin, question),
        **{key: sum(own[key] for own in people.values()) for key in ("turns", "conversations")},
        "twin_arm": twin,
        "seed": seed,
    }


def _arms(turns: Sequence[MeasuredTurn]) -> list[str]:
    """Return the arms with data, in the order of reports."""
    named = chain.from_iterable(chain(turn.bits, turn.choice, turn.replies, turn.similarity, turn.rank) for turn in turns)
    return _in_order(set(named))


def _in_order(arms: Set[str]) -> list[str]:
    """Return arms in the order of reports; unknown arms come last."""
    return in_order(sorted(arms))


def _empty_result(
    people: Mapping[str, Sequence[MeasuredTurn]], arms: Sequence[str], contrasts: Sequence[Contrast]
) -> dict[str, Any]:
    def empty() -> dict[str, Any]:
        return {"arms": {arm: {} for arm in arms}, "paired": {f"{a} - {b}": {} for a, b in contrasts}}

    return {**empty(), "people": {person: {**_counts(turns), **empty()} for person, turns in people.items()}}


def _traces(turns: Sequence[MeasuredTurn]) -> dict[str, dict[str, float]]:
    """Return, by arm, the mean number of shown pairs that carry a trace, and the turns; arms without any trace are left out."""
    arms = in_order({arm for turn in turns for arm, count in turn.traces.items() if count})
    shown = {arm: [turn.traces[arm] for turn in turns if arm in turn.traces] for arm in arms}
    return {arm: {"value": sum(counts) / len(counts), "n": len(counts)} for arm, counts in shown.items()}


def _counts(turns: Sequence[MeasuredTurn]) -> dict[str, int]:
    return {"turns": len(turns), "conversations": len({turn.cluster for turn in turns})}


def _contrasts(arms: Sequence[str], twin: str, question: Sequence[str]) -> list[Contrast]:
    """Return the comparisons of a measurement; no pair of arms is compared twice, the other way round."""
    of_twin = [(twin, arm) for arm in arms if arm != twin]
    asked = [(a, b) for a, _, b in (name.partition(" - ") for name in question)]
    once: dict[frozenset[str], Contrast] = {}
    for pair in (*of_twin, *CONTRASTS, *asked):
        once.setdefault(frozenset(pair), pair)
    return list(once.values())


def _add(
    result: dict[str, Any], section: Literal["arms", "paired"], row: str, measure: str,
    by_person: Mapping[str, Jackknife | None], seed: int,
) -> None:  # fmt: skip
    """Add the estimates of each person and of the mean over people to a row of the result."""
    people = {person: own for person, own in by_person.items() if own is not None}
    if not people:
        return

    for person, own in people.items():
        result["people"][person][section][row][measure] = _to_json(own.inference(), section, seed)
    result[section][row][measure] = _to_json(mean_of_people(list(people.values()), measured=len(by_person)), section, seed)


def _to_json(inference: Inference, section: str, seed: int) -> dict[str, float | int | None]:
    """Return an estimate as in a result; that of a difference has its test."""
    tests = {"p": inference.p(seed=seed), "visible": inference.min_detectable_effect} if section == "paired" else {}
    return inference.estimate().to_json() | tests


def _without_gaps(result: dict[str, Any]) -> dict[str, Any]:
    """Return the result without the arms and comparisons that have no data."""
    filled = {key: {name: row for name, row in result[key].items() if row} for key in ("arms", "paired")}
    if "people" in result:
        filled["people"] = {person: {**own, **_without_gaps(own)} for person, own in result["people"].items()}
    return filled


def _family(paired: Mapping[str, dict[str, Any]], twin: str, question: Sequence[str]) -> dict[str, Any]:
    """Return the declared family of tests, and add adjusted p values to its differences.

    It holds the contrasts of the question and the twin with each peer. Without a question the summary names the best of the
    usual opponents, so all of them are in the family.
    """
    measured = [name for name, measures in paired.items() if PRIMARY in measures]
    others = [name.removeprefix(f"{twin} - ") for name in measured if name.startswith(f"{twin} - ")]
    asked = [frozenset(name.split(" - ")) for name in question] or [frozenset((twin, arm)) for arm in usual_opponents(others)]
    declared = {*asked, *(frozenset((twin, peer + words)) for peer in PEERS for words in ("", WORDS))}
    names = [name for name in measured if frozenset(name.split(" - ")) in declared]
    add_holm([paired[name][PRIMARY] for name in names])
    return {"measure": PRIMARY, "contrasts": names, "alpha": ALPHA}


def _discriminator_scores(
    turns: Sequence[MeasuredTurn], arms: Sequence[str], measure: Measure, seed: int
) -> dict[str, PersonScores | None] | None:
    """Return the scores of a discriminator by arm; None for any other measure."""
    if measure.name not in DISCRIMINATORS:
        return None
    with_context = DISCRIMINATORS[measure.name]
    return {arm: person_scores(turns, first_reply(arm), with_context=with_context, seed=seed) for arm in arms}


class _PersonMeasure:
    """One measure of one person's turns, by arm."""

    def __init__(
        self, turns: Sequence[MeasuredTurn], measure: Measure, scores: Mapping[str, PersonScores | None] | None
    ) -> None:
        self._turns, self._measure, self._scores = turns, measure, scores
        self._cache: dict[tuple[str, _Places], Jackknife | None] = {}

    def measured(self, arm: str) -> _Places:
        """Return the indices of the turns with data for an arm."""
        if self._scores is None:
            return tuple(place for place, turn in enumerate(self._turns) if is_measured(self._measure, turn, arm))
        scores = self._scores[arm]
        return () if scores is None else tuple(scores.rows.get(self._turns[0].person, ()))

    def value(self, arm: str, places: _Places) -> Jackknife | None:
        """Return the measure at some turns, also without each of their conversations; None without data."""
        if (arm, places) not in self._cache:
            self._cache[arm, places] = self._measured(arm, places) if places else None
        return self._cache[arm, places]

    def difference(self, a: str, b: str) -> Jackknife | None:
        """Return how much further from the person arm a is than arm b, at the turns with data for both."""
        common = tuple(sorted({*self.measured(a)} & {*self.measured(b)}))
        first, second = self.value(a, common), self.value(b, common)
        if first is None or second is None:
            return None
        import numpy as np

        distance = self._measure.distance
        values = distance(np.array([first.value, second.value]))
        left_out = distance(first.left_out) - distance(second.left_out)
        return Jackknife(float(values[0] - values[1]), left_out, first.sizes)

    def _measured(self, arm: str, places: _Places) -> Jackknife | None:
        turns = [self._turns[place] for place in places]
        if self._scores is not None:
            scores = self._scores[arm]
            return scores and scores.auc(turns[0].person, places)
        statistic = measure_statistic(self._measure, turns, arm)
        sizes = turns_by_conversation([turn.conversation_id for turn in turns])
        return statistic and jackknife(statistic, sizes, share=self._measure.share)
