"""How close each arm comes to the person, by every measure, with intervals over people and conversations.

The one design choice: every measure is, for one person and one arm, a function of how often each conversation counts; so one
bootstrap serves them all, every difference of two arms is paired, and people weigh the same whatever they wrote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

from usertwin.evals.arm_names import ARMS, PEERS
from usertwin.evals.records.measured_turns import MeasuredTurn

from .discriminator import DiscriminatorScores, PairedReply, area_under_curve, discriminate
from .measures import DISCRIMINATOR, MEASURES, Measure, is_measured, statistic_of
from .statistics import FEW_RESAMPLES, RESAMPLES, Drawn, Resampling, Statistic, holm, sign_flip

#: What is compared beside the twin and every other arm.
CONTRASTS = (
    ("recalled_pairs", "no_memory"),
    ("recalled_pairs", "other_person"),
    ("recalled_pairs", "random_own"),
    ("recalled_pairs", "recent_own"),
    ("recalled_triples", "recalled_pairs"),
    ("recalled_triples", "backward"),
    ("recalled_triples", "random_of_n"),
    ("trained", "recalled_pairs"),
    ("trained", "backward"),
)
#: The level of the declared family of tests, adjusted by Holm, and the measure they are about.
ALPHA, PRIMARY = 0.05, "bits_per_char"

Contrast: TypeAlias = tuple[str, str]
#: Where in the list of one person's turns.
_Places: TypeAlias = tuple[int, ...]


def closeness(
    turns: Sequence[MeasuredTurn], twin: str, *, seed: int = 0, contrasts: Sequence[Contrast] | None = None
) -> dict[str, Any]:
    """Every measure of every arm, and of the differences of arms, with intervals.

    A value of several people is the mean over people. An interval is the 95% percentile interval of resampled people and
    conversations (of conversations, for one person). A measure of an arm is of the turns where it was measured, a difference
    of those where it was measured for both. Several replies at a moment share its weight.

    Args:
        turns: of any people, in order.
        twin: the arm that is what the twin does.
        seed: for resampling and the discriminator.
        contrasts: what to compare; None for the twin with every other arm, and `CONTRASTS`.

    Returns:
        `arms`: a value, `low`, `high`, `n` by arm and measure; low and high are None where there is but one conversation.
        `paired`: by "A - B" and measure, how much further from the person A is than B (below 0: A is closer, whatever the
        measure), with the `p` of a sign-flip test over people (None for one person) and the smallest difference `visible`
        with 80% power; `p_holm` for the declared `family`. `people`: the same for each. `discriminator`: how it was folded,
        and as a `control` its AUC between the person's turns at these moments and elsewhere. Nothing is in it that was not
        measured.
    """
    by_person: dict[str, list[MeasuredTurn]] = {}
    for turn in turns:
        by_person.setdefault(turn.person, []).append(turn)
    arms = _arms(turns)
    wanted = _contrasts(arms, twin) if contrasts is None else [(a, b) for a, b in contrasts if a in arms and b in arms]
    result = _empty(by_person, arms, wanted)
    draws = Resampling(seed)
    told = {arm: _discriminated(turns, arm, seed) for arm in arms}
    for measure in MEASURES:
        people = {person: _OnePerson(own, measure, draws, told) for person, own in by_person.items()}
        for arm in arms:
            _put(result, people, draws, measure, arm)
        for a, b in wanted:
            _put_paired(result, people, draws, measure, a, b, seed)
    return {
        **_without_gaps(result),
        "family": _family(result["paired"], twin),
        "discriminator": _discriminator(by_person, told, draws, seed),
        "turns": len(turns),
        "conversations": len({turn.where for turn in turns}),
        "twin_arm": twin,
        "seed": seed,
    }


def _arms(turns: Sequence[MeasuredTurn]) -> list[str]:
    """The arms of which anything was measured, in order; those that are not known here come last."""
    named = set(chain.from_iterable(chain(turn.bits, turn.choice, turn.replies, turn.similarity, turn.rank) for turn in turns))
    return [arm for arm in ARMS if arm in named] + sorted(named - set(ARMS))


def _empty(people: Mapping[str, Sequence[MeasuredTurn]], arms: Sequence[str], contrasts: Sequence[Contrast]) -> dict[str, Any]:
    def places() -> dict[str, Any]:
        return {"arms": {arm: {} for arm in arms}, "paired": {f"{a} - {b}": {} for a, b in contrasts}}

    by_person = {
        person: {"turns": len(turns), "conversations": len({turn.conversation_id for turn in turns}), **places()}
        for person, turns in people.items()
    }
    return {**places(), "people": by_person}


def _contrasts(arms: Sequence[str], twin: str) -> list[Contrast]:
    found = [(twin, arm) for arm in arms if arm != twin and twin in arms]
    return list(dict.fromkeys([*found, *((a, b) for a, b in CONTRASTS if a in arms and b in arms)]))


def _put(result: dict[str, Any], people: Mapping[str, _OnePerson], draws: Resampling, measure: Measure, arm: str) -> None:
    found = {person: one.drawn(arm, one.measured(arm)) for person, one in people.items()}
    have = {person: drawn for person, drawn in found.items() if drawn is not None}
    for person, drawn in have.items():
        result["people"][person]["arms"][arm][measure.name] = drawn.estimate().to_json()
    if have:
        result["arms"][arm][measure.name] = draws.people(list(have.values())).estimate().to_json()


def _put_paired(
    result: dict[str, Any], people: Mapping[str, _OnePerson], draws: Resampling, measure: Measure, a: str, b: str, seed: int
) -> None:
    name = f"{a} - {b}"
    found = {person: one.difference(a, b) for person, one in people.items()}
    have = {person: drawn for person, drawn in found.items() if drawn is not None}
    for person, drawn in have.items():
        result["people"][person]["paired"][name][measure.name] = _paired(drawn, None)
    if have:
        p = sign_flip([drawn.value for drawn in have.values()], seed=seed)
        result["paired"][name][measure.name] = _paired(draws.people(list(have.values())), p)


def _paired(drawn: Drawn, p: float | None) -> dict[str, float | int | None]:
    return {**drawn.estimate().to_json(), "p": p, "visible": drawn.visible}


def _without_gaps(result: dict[str, Any]) -> dict[str, Any]:
    """Without the arms and comparisons of which nothing was measured."""
    told = {key: {name: found for name, found in result[key].items() if found} for key in ("arms", "paired")}
    if "people" in result:
        told["people"] = {person: {**own, **_without_gaps(own)} for person, own in result["people"].items()}
    return told


def _family(paired: Mapping[str, dict[str, Any]], twin: str) -> dict[str, Any]:
    """The declared family of tests, the ps adjusted: the twin against each peer, or no memory, if there is no peer."""

    def present(arms: Sequence[str]) -> list[str]:
        return [name for name in (f"{twin} - {arm}" for arm in arms) if PRIMARY in paired.get(name, {})]

    names = present(PEERS) or present(["no_memory"])
    for name in names:
        paired[name][PRIMARY]["p_holm"] = None
    tested = [name for name in names if paired[name][PRIMARY]["p"] is not None]
    for name, p in zip(tested, holm([paired[name][PRIMARY]["p"] for name in tested]), strict=True):
        paired[name][PRIMARY]["p_holm"] = p
    return {"measure": PRIMARY, "contrasts": names, "alpha": ALPHA}


# The discriminator -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scores:
    """What a discriminator said of an arm: (of the real turn, of the reply), by the place of the turn among its person's."""

    told: DiscriminatorScores
    by_place: Mapping[str, Mapping[int, tuple[float, float]]]


def _discriminated(turns: Sequence[MeasuredTurn], arm: str | None, seed: int) -> _Scores | None:
    """Trained on an arm's first reply of each moment; without an arm on other real turns of the same person."""
    places: list[tuple[str, int]] = []
    moments: list[PairedReply] = []
    seen: Counter[str] = Counter()
    for turn in turns:
        place = seen[turn.person]
        seen[turn.person] += 1
        reply = turn.own_action if arm is None else next(iter(turn.replies.get(arm, ())), None)
        if reply is not None and (arm is not None or reply):
            places.append((turn.person, place))
            moments.append(PairedReply(turn.person, turn.conversation_id, turn.action, reply))
    told = discriminate(moments, seed=seed)
    if told is None:
        return None
    by_place: dict[str, dict[int, tuple[float, float]]] = {}
    for (person, place), real, reply in zip(places, told.reals, told.replies, strict=True):
        by_place.setdefault(person, {})[place] = real, reply
    return _Scores(told, by_place)


def _discriminator(
    by_person: Mapping[str, Sequence[MeasuredTurn]], told: Mapping[str, _Scores | None], draws: Resampling, seed: int
) -> dict[str, Any] | None:
    """How it was folded, and the control, which cannot be told apart: the person's turns here and elsewhere."""
    control = _discriminated(list(chain.from_iterable(by_person.values())), None, seed)
    scores = next((one for one in (*told.values(), control) if one is not None), None)
    if scores is None:
        return None
    measure = next(measure for measure in MEASURES if measure.name == DISCRIMINATOR)
    people = [_OnePerson(own, measure, draws, {"control": control}) for own in by_person.values()]
    found = [one.drawn("control", one.measured("control")) for one in people]
    have = [drawn for drawn in found if drawn is not None]
    estimate = draws.people(have).estimate().to_json() if have else None
    return {"folds_by": scores.told.folds_by, "folds": scores.told.folds, "control": estimate}


# One person ------------------------------------------------------------------------------------------------------------


class _OnePerson:
    """One measure of one person's turns, arm by arm."""

    def __init__(
        self, turns: Sequence[MeasuredTurn], measure: Measure, draws: Resampling, told: Mapping[str, _Scores | None]
    ) -> None:
        self._turns, self._measure, self._draws, self._told = turns, measure, draws, told
        self._known: dict[tuple[str, _Places], Drawn | None] = {}

    def measured(self, arm: str) -> _Places:
        """At which turns the arm was measured."""
        return tuple(place for place, turn in enumerate(self._turns) if self._has(turn, place, arm))

    def _has(self, turn: MeasuredTurn, place: int, arm: str) -> bool:
        if self._measure.name != DISCRIMINATOR:
            return is_measured(self._measure, turn, arm)
        scores = self._told.get(arm)
        return scores is not None and place in scores.by_place.get(turn.person, {})

    def drawn(self, arm: str, places: _Places) -> Drawn | None:
        """The measure at some turns and in each resample of their conversations; None if it cannot be reckoned."""
        if (arm, places) not in self._known:
            self._known[arm, places] = self._draw(arm, places) if places else None
        return self._known[arm, places]

    def difference(self, a: str, b: str) -> Drawn | None:
        """How much further from the person one arm is than another, at the turns where both were measured."""
        other = set(self.measured(b))
        common = tuple(place for place in self.measured(a) if place in other)
        one, two = self.drawn(a, common), self.drawn(b, common)
        if one is None or two is None:
            return None
        import numpy as np

        far = self._measure.distance
        value = far(np.array([one.value, two.value]))
        draws = None if one.draws is None or two.draws is None else far(one.draws) - far(two.draws)
        return Drawn(float(value[0] - value[1]), draws, len(common))

    def _draw(self, arm: str, places: _Places) -> Drawn | None:
        statistic = self._statistic(arm, places)
        if statistic is None:
            return None
        conversations = len({self._turns[place].conversation_id for place in places})
        resamples = FEW_RESAMPLES if self._measure.slow else RESAMPLES
        centred = self._measure.centred
        return self._draws.person(statistic, conversations, len(places), resamples=resamples, centred=centred)

    def _statistic(self, arm: str, places: _Places) -> Statistic | None:
        turns = [self._turns[place] for place in places]
        if self._measure.name != DISCRIMINATOR:
            return statistic_of(self._measure, turns, arm)
        scores = self._told[arm]
        if scores is None:
            return None
        of_turn = scores.by_place[turns[0].person]
        number = {name: count for count, name in enumerate(dict.fromkeys(turn.conversation_id for turn in turns))}
        reals, replies = zip(*(of_turn[place] for place in places), strict=True)
        return area_under_curve(reals, replies, [number[turn.conversation_id] for turn in turns])
