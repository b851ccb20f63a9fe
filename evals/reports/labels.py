"""Labels of arms and measures, and the text of numbers, for every report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from usertwin.evals.metrics.closeness import PRIMARY as PRIMARY
from usertwin.evals.metrics.measures import MEASURES, Measure
from usertwin.evals.metrics.statistics import MIN_CLUSTERS as MIN_CLUSTERS

#: "unknown": there are too few people or conversations for a verdict (`MIN_CLUSTERS`).
DifferenceVerdict = Literal["closer", "further", "same", "unknown"]
Estimate = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ArmLabel:
    """Labels of an arm: its title in tables, and a phrase for sentences."""

    title: str
    phrase: str
    rival: bool = False  #: whether the arm could replace the twin; other arms show the twin's own memory in another way


ARM_LABELS = {
    "no_memory": ArmLabel("No memory", "the same model without a memory", True),
    "other_person": ArmLabel("Another person", "another person's memory", True),
    "random_own": ArmLabel("Random own pairs", "random own pairs", True),
    "recent_own": ArmLabel("Recent own pairs", "the latest own pairs", True),
    "recalled_pairs": ArmLabel("Recalled pairs", "recalled pairs"),
    "backward": ArmLabel("Backward synthesis", "recalled pairs with the first traces"),
    "random_of_n": ArmLabel("Random traces", "recalled pairs with random traces"),
    "best_of_n": ArmLabel("Best-scored traces", "recalled pairs with the best-scored traces"),
    "recon": ArmLabel("Recon-selected traces", "recalled pairs with Recon-selected traces"),
    "trained": ArmLabel("Trained synthesizer", "recalled pairs with a trained synthesizer's traces"),
    "openevals": ArmLabel("openevals user", "openevals' simulated user", True),
    "tau2": ArmLabel("tau2-bench user", "tau2-bench's user simulator", True),
    "persona": ArmLabel("Persona", "a description of the person", True),
}

MEASURE_DESCRIPTIONS = {
    "bits_per_char": "cost of the person's real turns under the scoring model",
    "choice": "share of turns where the real turn scores above the person's other turns",
    "chrf": "character n-grams shared by reply and real turn",
    "embedding_similarity": "cosine of reply and real turn",
    "rank": "share of the person's other turns that are less similar to the reply than the real turn is",
    "length_ratio": "characters of the replies divided by characters of the real turns",
    "questions": "share of replies with a question, minus that of real turns",
    "greetings": "share of replies with a greeting, minus that of real turns",
    "politeness": "share of replies with please, thanks or sorry, minus that of real turns",
    "capitals": "share of replies that begin with a capital, minus that of real turns",
    "emoji": "share of replies with an emoji, minus that of real turns",
    "style": "distance of character n-gram frequencies",
    "function_words": "distance of function word frequencies",
    "diversity": "variety of words, minus the person's",
    "discriminator": "AUC of a classifier that separates replies from real turns",
}


def arm_label(arm: str) -> ArmLabel:
    """Return the labels of an arm; an unknown arm is labelled by its own name."""
    return ARM_LABELS.get(arm, ArmLabel(arm, arm))


def contrast_title(contrast: str, joint: str) -> str:
    """Return the titles of the two arms of a contrast ("FIRST - SECOND") with a word between them."""
    return f" {joint} ".join(arm_label(arm).title for arm in contrast.split(" - "))


def arm_title(arm: str, twin: str) -> str:
    """Return the title of an arm; "(twin)" marks the arm that shows what the twin itself is shown."""
    return arm_label(arm).title + (" (twin)" if arm == twin else "")


def measure_label(name: str) -> Measure:
    """Return a measure; an unknown measure has its own name as title."""
    unknown = Measure(name=name, title=name, direction="", ideal="low", source="", digits=3)
    return next((measure for measure in MEASURES if measure.name == name), unknown)


def in_order(arms: Iterable[str]) -> list[str]:
    """Return arms in the order of reports, unknown ones last."""
    arms = list(arms)
    return [*(arm for arm in ARM_LABELS if arm in arms), *(arm for arm in arms if arm not in ARM_LABELS)]


def distance(measure: str, value: float) -> float:
    """Return how far a value of a measure is from the person: smaller is closer."""
    import numpy as np

    return float(measure_label(measure).distance(np.asarray(value)))


def number(value: float, digits: int, *, signed: bool = False) -> str:
    """Return a number with a real minus sign; a value that rounds to zero has no sign.

    >>> number(-0.0314, 3, signed=True)
    '−0.031'
    """
    rounded = round(value, digits) + 0.0  # -0.0 becomes 0.0
    return ("+" if signed and rounded > 0 else "") + f"{rounded:.{digits}f}".replace("-", "−")


def interval(estimate: Estimate, digits: int, *, signed: bool = False) -> str:
    """Return the two ends of an interval; "no interval" without one, or of an older version with the width 0."""
    if estimate.get("low") is None or estimate.get("high") is None or estimate["low"] == estimate["high"]:
        return "no interval"
    low, high = (number(estimate[end], digits, signed=signed) for end in ("low", "high"))
    return f"{low} to {high}" if low != high else f"narrower than {number(10**-digits, digits)}"


def with_interval(estimate: Estimate, digits: int, *, signed: bool = False, unit: str = "") -> str:
    """Return the value of an estimate, a unit, and the interval in parentheses."""
    value = number(estimate["value"], digits, signed=signed)
    return f"{value}{unit and ' ' + unit} ({interval(estimate, digits, signed=signed)})"


def counted(n: float) -> str:
    """Return a count with thousands separators.

    >>> counted(12345)
    '12,345'
    """
    return f"{round(n):,}"


def plural(n: int, singular: str, plural_form: str = "") -> str:
    """Return a count with its noun.

    >>> plural(1, "person", "people"), plural(2, "turn")
    ('1 person', '2 turns')
    """
    return f"{counted(n)} {singular if n == 1 else plural_form or singular + 's'}"


def p_value(p: float | None) -> str:
    """Return a p value as text; empty for None.

    >>> p_value(0.0004), p_value(0.031), p_value(None)
    ('p < 0.001', 'p = 0.031', '')
    """
    return "" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def verdict(paired: Estimate) -> DifferenceVerdict:
    """Return what the interval of a paired difference says of its first arm: "same" if it holds zero."""
    low, high = paired.get("low"), paired.get("high")
    if low is None or high is None:
        return "unknown"
    return "same" if low <= 0 <= high else "closer" if high < 0 else "further"


def interval_basis(result: Mapping[str, Any]) -> str:
    """Return what the intervals of a result are over, or that it has too few people or conversations for any."""
    people, conversations = len(result.get("people", ())), result["conversations"]
    clusters, unit = (people, "people") if people > 1 else (conversations, "conversations")
    if clusters < MIN_CLUSTERS:
        return f"no intervals and no verdicts from fewer than {MIN_CLUSTERS} {unit}"
    return f"intervals: 95%, over {unit}"


def contrasts_of(result: Mapping[str, Any], measure: str = PRIMARY) -> dict[str, Estimate]:
    """Return the paired differences twin minus other arm in a measure, by the other arm; below 0 the twin is closer."""
    twin, differences = str(result["twin_arm"]), dict[str, Estimate]()
    for name, measures in result["paired"].items():
        first, _, second = name.partition(" - ")
        paired = measures.get(measure)
        if paired is not None and first == twin:
            differences[second] = paired
        elif paired is not None and second == twin:
            differences.setdefault(first, negated(paired))
    return {arm: differences[arm] for arm in in_order(differences)}


def negated(paired: Estimate) -> dict[str, Any]:
    """Return a paired difference with its two arms exchanged."""
    low, high = (None if paired.get(end) is None else -paired[end] for end in ("high", "low"))
    return {**paired, "value": -paired["value"], "low": low, "high": high}
