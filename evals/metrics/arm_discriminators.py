"""The discriminators of a measurement: an arm's replies, or a control, against the real turns of each person.

One discriminator reads the text alone, the other one also how it fits its context. In a control, remembered turns of the same
person take the place of replies. Alone, or each in its own context, nothing but chance separates them from the held-out turns,
so the AUC must be near 0.5. In the context of the held-out turn they are out of place, which a discriminator that sees the
context must notice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from usertwin.evals.records.measured_turns import ContextFit, MeasuredTurn

from .context_features import context_features
from .discriminator import DiscriminatorScores, PairedReply, discriminate
from .statistics import Jackknife, mean_of_people, person_value

#: The measures that a discriminator computes, and whether it sees the context.
DISCRIMINATORS: Mapping[str, bool] = {"discriminator": False, "context_discriminator": True}


@dataclass(frozen=True, slots=True)
class PlacedText:
    """A text in a context of (speaker, text), and the person's goal; None for a fit that was not measured."""

    text: str
    context: Sequence[tuple[str, str]]
    goal: str
    fit: ContextFit | None


#: From a measured turn to the text that is compared with its real action; None to leave the turn out.
TextSource: TypeAlias = Callable[[MeasuredTurn], PlacedText | None]


def first_reply(arm: str) -> TextSource:
    """Return the source of an arm's first replies."""

    def source(turn: MeasuredTurn) -> PlacedText | None:
        replies = turn.replies.get(arm)
        return PlacedText(replies[0], turn.context, turn.goal, turn.fit.get(arm)) if replies else None

    return source


def past_turn(turn: MeasuredTurn) -> PlacedText | None:
    """Return a remembered turn in its own context."""
    return turn.past and PlacedText(turn.past.action, turn.past.context, turn.past.goal, turn.past.fit)


def misplaced_turn(turn: MeasuredTurn) -> PlacedText | None:
    """Return a remembered turn in the context of the held-out turn."""
    return turn.past and PlacedText(turn.past.action, turn.context, turn.goal, turn.past.misplaced_fit)


#: What takes the place of replies in each control, and whether the discriminator sees the context.
CONTROLS: Mapping[str, tuple[TextSource, bool]] = {
    "control": (past_turn, False),
    "context_control": (past_turn, True),
    "misplaced": (misplaced_turn, True),
}


@dataclass(frozen=True, slots=True)
class PersonScores:
    """The scores of a discriminator; `rows` holds their index by person and index of the person's turn."""

    scores: DiscriminatorScores
    rows: Mapping[str, Mapping[int, int]]

    def auc(self, person: str, places: Sequence[int]) -> Jackknife:
        """Return the AUC at some turns of a person, without an interval.

        One over the person's conversations would leave out that the classifier was trained on others of the same few: it covers
        too rarely. People have an interval together, over people.
        """
        return person_value(self.scores.auc([self.rows[person][place] for place in places]), len(places), share=True)


def person_scores(turns: Sequence[MeasuredTurn], source: TextSource, *, with_context: bool, seed: int) -> PersonScores | None:
    """Train a discriminator on the real turns and the texts of a source; None for too few."""
    rows: dict[str, dict[int, int]] = {}
    pairs: list[PairedReply] = []
    seen: Counter[str] = Counter()
    for turn in turns:
        place = seen[turn.person]
        seen[turn.person] += 1
        real, other = PlacedText(turn.action, turn.context, turn.goal, turn.real_fit), source(turn)
        if other is None or (with_context and (real.fit is None or other.fit is None)):
            continue
        real_features, reply_features = (_features(real), _features(other)) if with_context else ((), ())
        rows.setdefault(turn.person, {})[place] = len(pairs)
        pair = PairedReply(
            turn.person, turn.conversation_id, turn.action, other.text, real_features=real_features,
            reply_features=reply_features,
        )  # fmt: skip
        pairs.append(pair)
    scores = discriminate(pairs, seed=seed)
    return scores and PersonScores(scores, rows)


def _features(placed: PlacedText) -> tuple[float, ...]:
    assert placed.fit is not None
    return context_features(placed.text, placed.context, placed.goal, placed.fit)


def discriminator_controls(turns: Sequence[MeasuredTurn], *, seed: int) -> dict[str, Any] | None:
    """Return the folds and the mean AUC over people of each control (see above); None for too few turns with a past turn.

    `control`: past turns, to the discriminator without context. `context_control`: past turns in their own context, to the one
    with context; `misplaced`: in the context of the held-out turn. `people`: the value and n of each, by person.
    """
    controls = {
        name: person_scores(turns, source, with_context=with_context, seed=seed)
        for name, (source, with_context) in CONTROLS.items()
    }
    first = controls["control"]
    if first is None:
        return None
    people: dict[str, dict[str, dict[str, float]]] = {}
    for name, control in controls.items():
        if control is not None:
            for person, places in control.rows.items():
                auc = control.auc(person, list(places))
                people.setdefault(person, {})[name] = {"value": auc.value, "n": auc.n}
    return {"folds_by": first.scores.folds_by, "folds": first.scores.folds, **_control_estimates(people)}


def joined_controls(measurements: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Return the controls of the people of several measurements together, from what `discriminator_controls` returns for each.

    None if one has no controls, or not those of each person. `folds` is the fewest.
    """
    known = [own for own in measurements if own is not None and "people" in own]
    if not known or len(known) < len(measurements):
        return None
    people = {person: controls for own in known for person, controls in own["people"].items()}
    folds_by = ", ".join(dict.fromkeys(own["folds_by"] for own in known))
    return {"folds_by": folds_by, "folds": min(own["folds"] for own in known), **_control_estimates(people)}


def _control_estimates(people: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Return the mean over people of each control, and the values of each person."""
    estimates: dict[str, Any] = {}
    for name in CONTROLS:
        own = [person_value(rows[name]["value"], rows[name]["n"], share=True) for rows in people.values() if name in rows]
        estimates[name] = mean_of_people(own).estimate().to_json() if own else None
    return {**estimates, "people": people}
