"""Labels of arms and measures, and the text of numbers, for every report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from usertwin.evals.arm_names import MEMORY_ARMS, base_arm, is_adapted, is_reranked, uses_words
from usertwin.evals.arm_names import in_order as in_order
from usertwin.evals.metrics.closeness import ALPHA
from usertwin.evals.metrics.closeness import PRIMARY as PRIMARY
from usertwin.evals.metrics.measures import MEASURES, Measure
from usertwin.evals.metrics.statistics import MIN_CONVERSATIONS as MIN_CONVERSATIONS
from usertwin.evals.metrics.statistics import MIN_OWN
from usertwin.evals.metrics.statistics import MIN_PEOPLE as MIN_PEOPLE

#: "unknown": there are too few people or conversations for a test (`MIN_PEOPLE`, `MIN_CONVERSATIONS`).
DifferenceVerdict = Literal["closer", "further", "same", "unknown"]
Estimate = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ArmLabel:
    """Labels of an arm: its title in tables (at most 22 characters), and what predicts the person, for sentences."""

    title: str
    phrase: str


ARM_LABELS = {
    "no_memory": ArmLabel("No memory", "the same model without memory"),
    "other_person": ArmLabel("Another person", "the same model with another person's memory"),
    "pooled": ArmLabel("Pairs of others", "the same model with recalled pairs of everybody else in the log"),
    "pooled_with_own": ArmLabel("Pairs of everybody", "the same model with recalled pairs of everybody in the log"),
    "random_own": ArmLabel("Random own pairs", "the same model with random pairs of the same person"),
    "recent_own": ArmLabel("Recent own pairs", "the same model with the latest pairs of the same person"),
    "recalled_pairs": ArmLabel("Recalled pairs", "the same model with recalled pairs"),
    "backward": ArmLabel("Backward synthesis", "the same model with recalled pairs and their first traces"),
    "random_of_n": ArmLabel("Random traces", "the same model with recalled pairs and random traces"),
    "best_of_n": ArmLabel("Best-scored traces", "the same model with recalled pairs and their best-scored traces"),
    "recon": ArmLabel("Recon-selected traces", "the same model with recalled pairs and Recon-selected traces"),
    "trained": ArmLabel("Trained synthesizer", "the same model with recalled pairs and a trained synthesizer's traces"),
    "verbatim": ArmLabel("Nearest own turn", "the person's turn after the most similar context"),
    "medoid": ArmLabel("Most typical own turn", "the most typical of the person's turns after similar contexts"),
    "openevals": ArmLabel("openevals user", "openevals' simulated user"),
    "openevals_written": ArmLabel("openevals, LLM persona", "openevals' simulated user with a description by the model"),
    "tau2": ArmLabel("tau2-bench user", "tau2-bench's user simulator"),
    "persona": ArmLabel("Persona", "the same model with a description of the person"),
}

#: Titles of arms with own words whose own title leaves no room for "+ words".
_WITH_WORDS = {
    "pooled": "Others' pairs + words", "pooled_with_own": "Everybody + words", "random_own": "Random own + words",
    "recent_own": "Recent own + words", "backward": "Backward + words", "best_of_n": "Best-scored + words",
    "recon": "Recon + words", "trained": "Trained + words", "openevals_written": "openevals LLM + words",
    "tau2": "tau2-bench + words",
}  # fmt: skip

#: Short titles of arms with an adapter, or with the best of several replies.
_RERANKED = {
    "recalled_pairs": "Recalled", "backward": "Backward", "random_of_n": "Random", "best_of_n": "Scored", "recon": "Recon",
    "trained": "Trained",
}  # fmt: skip

MEASURE_DESCRIPTIONS = {
    "bits_per_char": "cost of the person's real turns under the scoring model",
    "choice": "share of turns where the real turn scores above the other choices",
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
    "context_discriminator": "the same, of a classifier that also sees how a reply fits the chat before it",
}


def arm_label(arm: str) -> ArmLabel:
    """Return the labels of an arm; an unknown one is a simulated user of that name."""
    label = ARM_LABELS.get(base_arm(arm))
    if label is None:
        return ArmLabel(arm, f'the simulated user "{arm}"')
    title, phrase = label.title, label.phrase
    if is_adapted(arm):
        title, phrase = f"{_RERANKED.get(base_arm(arm), title)}, adapted", f"{phrase} and the twin's adapter"
    if uses_words(arm):
        short = None if is_adapted(arm) else _WITH_WORDS.get(base_arm(arm))
        title, phrase = short or f"{title} + words", f"{phrase} and the person's own words"
    if is_reranked(arm):
        short = _RERANKED.get(base_arm(arm), title) + (", adapted" if is_adapted(arm) else "")
        title = f"{short}{' + words' if uses_words(arm) else ''}, best"
        phrase = f"{phrase}, and the best of several replies"
    return ArmLabel(title, phrase)


def is_rival(arm: str) -> bool:
    """Return whether an arm could replace the twin; the others show the pairs that the twin recalls in another way."""
    return base_arm(arm) not in MEMORY_ARMS


def contrast_title(contrast: str, joint: str) -> str:
    """Return the titles of the two arms of a contrast ("FIRST - SECOND") with a word between them."""
    return f" {joint} ".join(arm_label(arm).title for arm in contrast.split(" - "))


def twin_arm(result: Mapping[str, Any]) -> str:
    """Return the arm that shows what the twin itself is shown; older results have no such entry."""
    return str(result.get("twin_arm", "recon"))


def arm_title(arm: str, twin: str) -> str:
    """Return the title of an arm; "(twin)" marks the arm that shows what the twin itself is shown."""
    return arm_label(arm).title + (" (twin)" if arm == twin else "")


def measure_label(name: str) -> Measure:
    """Return a measure; an unknown measure has its own name as title."""
    unknown = Measure(name=name, title=name, direction="", ideal="low", source="", digits=3)
    return next((measure for measure in MEASURES if measure.name == name), unknown)


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


def p_text(paired: Estimate) -> str:
    """Return the p value of a difference as text, the one after Holm's correction where there is one; "no test" for none.

    >>> p_text({"p": 0.008, "p_holm": 0.024}), p_text({"p": 0.008}), p_text({"p": None})
    ('p = 0.024 after Holm', 'p = 0.008, not adjusted', 'no test')
    """
    if paired.get("p_holm") is not None:
        return f"{p_value(paired['p_holm'])} after Holm"
    return "no test" if paired.get("p") is None else f"{p_value(paired['p'])}, not adjusted"


def verdict(paired: Estimate) -> DifferenceVerdict:
    """Return what the test of a paired difference says of its first arm: "same" if p is 5% or more, "unknown" without a test.

    p is the one after Holm's correction where the difference is in the declared family. An interval that excludes zero is no
    test: it is not corrected, and a sign-flip test may disagree with it.
    """
    p = paired.get("p") if paired.get("p_holm") is None else paired["p_holm"]
    if p is None:
        return "unknown"
    return "same" if p >= ALPHA or not paired["value"] else "closer" if paired["value"] < 0 else "further"


def interval_basis(result: Mapping[str, Any]) -> str:
    """Return what the intervals of a result are over, or that it has too few people or conversations for any."""
    people: Mapping[str, Any] = result.get("people", {})
    over = result.get("intervals_over") or ("people" if len(people) > 1 else "conversations")  # an earlier version does not say
    if over == "people":
        few = len(people) < MIN_PEOPLE
        return f"no intervals and no verdicts from fewer than {MIN_PEOPLE} people" if few else "intervals: 95%, over people"
    if result["conversations"] < MIN_CONVERSATIONS:
        return f"no intervals and no verdicts from fewer than {MIN_CONVERSATIONS} conversations"
    if len(people) < 2:
        return "intervals: 95%, over conversations"
    if min(own["conversations"] for own in people.values()) < MIN_OWN:
        return f"no intervals and no verdicts from {len(people)} people of whom one has fewer than {MIN_OWN} conversations"
    return f"intervals: 95%, over conversations of these {len(people)} people, not over people"


def few_people_warnings(result: Mapping[str, Any]) -> list[str]:
    """Return what the people of a result are too few to show; empty for enough of them."""
    people, contrasts = len(result["people"]), max(1, len(result["family"]["contrasts"]))
    if people < MIN_PEOPLE:
        whom, needed = ("this person", "") if people == 1 else ("these people", f"; those over people need {MIN_PEOPLE} people")
        return [f"{plural(people, 'person', 'people')}: the intervals hold for {whom}, not for other people{needed}"]
    smallest = contrasts * 2 / 2**people
    if smallest < ALPHA:
        return []
    holm = f" after Holm's correction for {contrasts} contrasts" if contrasts > 1 else ""
    return [f"{people} people: their sign flips give no p below {smallest:.0%}{holm}, so no declared difference can be shown"]


def difference_of(result: Mapping[str, Any], contrast: str, measure: str = PRIMARY) -> Estimate | None:
    """Return the paired difference of a contrast "A - B", also if the result holds that of "B - A"; None without one."""
    first, _, second = contrast.partition(" - ")
    paired, turned = (result["paired"].get(name, {}).get(measure) for name in (contrast, f"{second} - {first}"))
    return paired if paired is not None else None if turned is None else negated(turned)


def contrasts_of(result: Mapping[str, Any], measure: str = PRIMARY) -> dict[str, Estimate]:
    """Return the paired differences twin minus other arm in a measure, by the other arm; below 0 it speaks for the twin."""
    twin, differences = twin_arm(result), dict[str, Estimate]()
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
