"""How a report calls things and writes numbers: arms, measures, differences, intervals.

The one design choice: whatever is shown, on a page, in Markdown or in a terminal, takes its names and its numbers from here,
so that one thing is called the same everywhere, and no number can be had without its interval and its n.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Any, Literal

from usertwin.evals.metrics.measures import MEASURES

DifferenceVerdict = Literal["closer", "further", "same"]
Estimates = Mapping[str, Any]

#: What everything is decided by; the others are shown beside it.
PRIMARY = "bits_per_char"


@dataclass(frozen=True, slots=True)
class ArmName:
    """How an arm is called.

    Attributes:
        title: short.
        said: what the model is given, in a few words.
        rival: whether somebody might use it instead of a twin; the others are the twin's own memories, shown in other ways.
    """

    title: str
    said: str
    rival: bool


ARM_NAMES = {
    "no_memory": ArmName("No memory", "the same model and the chat alone", True),
    "other_person": ArmName("Another person", "moments recalled from somebody else's past", True),
    "random_own": ArmName("Own, at random", "moments of the person's own past, drawn at random", True),
    "recent_own": ArmName("Own, most recent", "the latest moments of the person's own past", True),
    "recalled_pairs": ArmName("Own, recalled", "the person's own moments that are most like now", False),
    "backward": ArmName("Backward synthesis", "the same moments, each with the first reasoning that was proposed", False),
    "random_of_n": ArmName("Any of N", "the same moments, each with any of the proposed reasonings", False),
    "recalled_triples": ArmName("Recon-Select", "the same moments, each with the reasoning that reconstructs it best", False),
    "trained": ArmName("Trained synthesizer", "the same moments, with reasoning by a trained model", False),
    "openevals": ArmName("openevals' user", "the prompt of openevals' simulated user", True),
    "tau2": ArmName("tau2-bench's user", "the prompt of tau2-bench's user simulator", True),
    "persona": ArmName("Persona", "a description of the person, drawn from the same log", True),
}


@dataclass(frozen=True, slots=True)
class MeasureName:
    """How a measure is called.

    Attributes:
        title: short.
        closest: which values are near the person.
        said: what it is, in words that need no paper.
        source: where it is from.
        best: the value of the person, if there is one; "low" or "high" otherwise.
        digits: after the point.
    """

    title: str
    closest: str = ""
    said: str = ""
    source: str = ""
    best: float | Literal["low", "high"] = "low"
    digits: int = 3


_PLAINLY = {
    "bits_per_char": "how surprised the model is by what was really said",
    "choice": "how often the real turn is told from others of the person",
    "chrf": "characters that reply and real turn have in common",
    "embedding_similarity": "cosine of reply and real turn",
    "rank": "share of the person's other turns that the reply is less like",
    "length_ratio": "characters of replies to characters of real turns",
    "questions": "share of replies that ask, minus that of real turns",
    "greetings": "share of replies that greet, minus that of real turns",
    "politeness": "share of replies with please or thanks, minus that of real turns",
    "capitals": "share of replies that begin with a capital, minus that of real turns",
    "emoji": "share of replies with an emoji, minus that of real turns",
    "style": "distance of character n-grams",
    "function_words": "distance of how often small words are used",
    "diversity": "variety of words, minus the person's",
    "discriminator": "how well a classifier tells replies from real turns (AUC)",
}


def arm_name(arm: str) -> ArmName:
    """How an arm is called; one that a later version may add is called by its own name."""
    return ARM_NAMES.get(arm, ArmName(arm, "", False))


def measure_name(measure: str) -> MeasureName:
    """How a measure is called; one that a later version may add is called by its own name."""
    known = next((one for one in MEASURES if one.name == measure), None)
    if known is None:
        return MeasureName(measure)
    title = known.title.capitalize() if known.title.islower() else known.title
    return MeasureName(title, known.direction, _PLAINLY.get(measure, ""), known.source, known.ideal, known.digits)


def in_order(arms: Mapping[str, Any]) -> list[str]:
    """Arms in the order of reports, those that are not known last."""
    return [*(arm for arm in ARM_NAMES if arm in arms), *(arm for arm in arms if arm not in ARM_NAMES)]


def distance(measure: str, value: float) -> float:
    """How far a value of a measure is from the person: smaller is closer."""
    best = measure_name(measure).best
    if best == 1.0:  # a ratio: twice as long is as far as half as long
        return abs(log(min(max(value, 1e-3), 1e3)))
    if isinstance(best, float):
        return abs(value - best)
    return value if best == "low" else -value


def number(value: float, digits: int, *, signed: bool = False) -> str:
    """A number with a real minus sign; what rounds to zero has no sign.

    >>> number(-0.0314, 3, signed=True)
    '−0.031'
    """
    rounded = round(value, digits) + 0.0
    sign = "+" if signed and rounded > 0 else ""
    return sign + f"{abs(rounded) if rounded == 0 else rounded:.{digits}f}".replace("-", "−")


def interval(estimate: Estimates, digits: int, *, signed: bool = False) -> str:
    """The two ends of an interval, or that there is none."""
    if estimate.get("low") is None or estimate.get("high") is None:
        return "no interval"
    return f"{number(estimate['low'], digits, signed=signed)} to {number(estimate['high'], digits, signed=signed)}"


def beside(estimate: Estimates, digits: int, *, signed: bool = False, of: str = "") -> str:
    """What is written beside a value: its interval and its n."""
    return f"{interval(estimate, digits, signed=signed)}, n={counted(estimate['n'])}{of}"


def counted(n: float) -> str:
    """A count.

    >>> counted(12345)
    '12,345'
    """
    return f"{round(n):,}"


def plural(n: int, one: str, many: str = "") -> str:
    """A count of things.

    >>> several(1, "person", "people"), several(2, "turn")
    ('1 person', '2 turns')
    """
    return f"{counted(n)} {one if n == 1 else many or one + 's'}"


def verdict(paired: Estimates) -> DifferenceVerdict:
    """What a paired difference says of its first arm: closer or further if the interval excludes zero."""
    low, high = paired.get("low"), paired.get("high")
    if low is None or high is None or low <= 0 <= high:
        return "same"
    return "closer" if high < 0 else "further"


def chance(p: float | None) -> str:
    """A p value, as it is written.

    >>> chance(0.0004), chance(0.031), chance(None)
    ('p < 0.001', 'p = 0.031', '')
    """
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def contrasts_of(result: Mapping[str, Any], measure: str = PRIMARY) -> dict[str, Estimates]:
    """The paired differences twin minus other arm in a measure, by the other arm, in order; below 0 the twin is closer.

    A difference that was only taken the other way round is turned.
    """
    twin, found = str(result["twin_arm"]), dict[str, Estimates]()
    for name, measures in result["paired"].items():
        first, _, second = name.partition(" - ")
        one = measures.get(measure)
        if one is None or twin not in (first, second):
            continue
        if first == twin:
            found[second] = one
        elif first not in found:
            found[first] = turned(one)
    return {arm: found[arm] for arm in in_order(found)}


def turned(paired: Estimates) -> dict[str, Any]:
    """A paired difference, seen from its second arm."""

    def minus(value: float | None) -> float | None:
        return None if value is None else -value

    return {**paired, "value": -paired["value"], "low": minus(paired.get("high")), "high": minus(paired.get("low"))}
