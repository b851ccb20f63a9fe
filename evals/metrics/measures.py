"""What is measured of one person's turns and an arm's replies, as functions of how often each conversation counts.

The one design choice: a measure keeps only sums for each conversation, so a thousand resamples are a matrix product and no
text is read twice; what is not a sum (a distance, an area under a curve) is reckoned from sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

from usertwin.evals.records.measured_turns import MeasuredTurn
from usertwin.memory.text.words import word_tokens

from . import writing_style as manner
from .reply_similarity import chrf
from .statistics import Statistic, of_sums, sums

if TYPE_CHECKING:
    from .statistics import Floats


@dataclass(frozen=True, slots=True)
class Measure:
    """What is measured.

    Attributes:
        name: its key in a result.
        title: what a table calls it.
        direction: what is close, for a reader.
        ideal: the value of an arm that is like the person; "low" or "high" where there is no such value.
        source: where it is from.
        digits: how many are told.
        slow: whether each resample takes long, so that there are fewer.
        centred: whether resamples of it are biased, which is taken out; see `Resampling.person`.
    """

    name: str
    title: str
    direction: str
    ideal: Literal["low", "high"] | float
    source: str
    digits: int = 2
    slow: bool = False
    centred: bool = False

    def distance(self, values: Floats) -> Floats:
        """How far from the person values are; only differences of it mean anything where there is no ideal value."""
        import numpy as np

        if self.ideal == "low":
            return values
        if self.ideal == "high":
            return -values
        if self.ideal == 1.0:  # a ratio: twice as long is as far as half as long, and silence is far but not endlessly so
            return np.abs(np.log(np.clip(values, 1e-3, 1e3)))
        return np.abs(values)


#: The measure that is a classifier trained on everybody's turns; the others are functions of one person's.
DISCRIMINATOR = "discriminator"
_MINUS = "0 is closest"
MEASURES: tuple[Measure, ...] = (
    Measure("bits_per_char", "bits per char", "low is close", "low", "held-out likelihood of the real turn, Shannon 1951", 3),
    Measure("choice", "own turn found", "high is close", "high", "forced choice among the person's own turns, by likelihood"),
    Measure("chrf", "chrF", "high is close", "high", "Popović 2015, by sacrebleu"),
    Measure(
        "embedding_similarity", "meaning", "high is close", "high", "cosine of sentence embeddings, Reimers and Gurevych 2019"
    ),
    Measure("rank", "rank among own", "high is close", "high", "share of the person's other turns that the reply is less like"),
    Measure("length_ratio", "length ratio", "1 is closest", 1.0, "characters written to characters of the real turns"),
    Measure("questions", "questions", _MINUS, 0.0, "share of turns with a question mark, minus the real share"),
    Measure("greetings", "greetings", _MINUS, 0.0, "share of turns that begin with a greeting, minus the real share"),
    Measure("politeness", "politeness", _MINUS, 0.0, "share with please, thanks, sorry, minus the real; Danescu et al. 2013"),
    Measure(
        "capitals", "capitals", _MINUS, 0.0, "share that begin with a capital, of those with a letter, minus the real share"
    ),
    Measure("emoji", "emoji", _MINUS, 0.0, "share of turns with an emoji or smiley, minus the real share"),
    Measure(
        "style",
        "style distance",
        "low is close",
        "low",
        "Jensen-Shannon distance of character 3-grams, Kešelj et al. 2003",
        slow=True,
        centred=True,
    ),
    Measure(
        "function_words",
        "function words",
        "low is close",
        "low",
        "one minus cosine of their counts, Evert et al. 2017",
        3,
        centred=True,
    ),
    Measure("diversity", "diversity", _MINUS, 0.0, "MATTR of 50 words, minus the real; Covington and McFall 2010", 3),
    Measure(DISCRIMINATOR, "told apart", "0.5 is closest", "low", "AUC of a trained classifier, Lopez-Paz and Oquab 2017"),
)
_RATES: Mapping[str, Callable[[str], bool | None]] = {
    "questions": manner.asks,
    "greetings": manner.greets,
    "politeness": manner.is_polite,
    "capitals": manner.capitalized,
    "emoji": manner.has_emoji,
}


def is_measured(measure: Measure, turn: MeasuredTurn, arm: str) -> bool:
    """Whether a turn was measured for an arm."""
    match measure.name:
        case "bits_per_char":
            return arm in turn.bits
        case "choice":
            return arm in turn.choice
        case "embedding_similarity":
            return bool(turn.similarity.get(arm))
        case "rank":
            return bool(turn.rank.get(arm))
        case _:
            return bool(turn.replies.get(arm))


def statistic_of(measure: Measure, turns: Sequence[MeasuredTurn], arm: str) -> Statistic | None:
    """A measure of one person's turns, all measured for the arm, as a statistic of how often each conversation was drawn.

    Args:
        measure: any but the discriminator, which is trained on everybody's turns.
        turns: of one person, in order, at least one.
        arm: whose.

    Returns:
        The statistic, conversations in order of appearance; its values are not finite where there is nothing to reckon it
        from. None where that is so of all the turns together.
    """
    where = [turn.conversation_id for turn in turns]
    match measure.name:
        case "bits_per_char":
            return _ratio([turn.bits[arm] for turn in turns], [float(turn.characters) for turn in turns], where)
        case "choice":
            return _mean([turn.choice[arm] for turn in turns], where)
        case "embedding_similarity":
            return _mean([_average(turn.similarity[arm]) for turn in turns], where)
        case "rank":
            return _mean([_average(turn.rank[arm]) for turn in turns], where)
        case "chrf":
            return _mean([_average([chrf(reply, turn.action) for reply in turn.replies[arm]]) for turn in turns], where)
        case "length_ratio":
            lengths = [_average([float(len(reply)) for reply in turn.replies[arm]]) for turn in turns]
            return _ratio(lengths, [float(len(turn.action)) for turn in turns], where)
        case "style":
            return _distance(turns, arm, manner.grams, manner.jensen_shannon)
        case "function_words":
            return _distance(turns, arm, manner.function_words, manner.cosine_distance)
        case "diversity":
            return _diversity(turns, arm)
        case name:
            return _rate(turns, arm, _RATES[name])


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean(values: Sequence[float], where: Sequence[Hashable]) -> Statistic | None:
    return _ratio(values, [1.0] * len(values), where)


def _ratio(above: Sequence[float], below: Sequence[float], where: Sequence[Hashable]) -> Statistic | None:
    return of_sums(sums(above, where), sums(below, where)) if sum(below) else None


def _difference_of_ratios(
    above: Sequence[float], below: Sequence[float], from_above: Sequence[float], from_below: Sequence[float],
    where: Sequence[Hashable],
) -> Statistic | None:  # fmt: skip
    """One ratio of sums minus another; not a number in a resample that has nothing below."""
    if not sum(below) or not sum(from_below):
        return None
    first, second, third, fourth = (sums(values, where) for values in (above, below, from_above, from_below))

    def statistic(weights: Floats) -> Floats:
        import numpy as np

        with np.errstate(invalid="ignore", divide="ignore"):
            return (weights @ first) / (weights @ second) - (weights @ third) / (weights @ fourth)

    return statistic


def _rate(turns: Sequence[MeasuredTurn], arm: str, holds: Callable[[str], bool | None]) -> Statistic | None:
    """The share of replies of which something holds, minus the share of real turns; what has no answer is not counted."""
    above: list[float] = []
    below: list[float] = []
    for turn in turns:
        told = [holds(reply) for reply in turn.replies[arm]]
        above.append(told.count(True) / len(told))
        below.append(1 - told.count(None) / len(told))
    real = [holds(turn.action) for turn in turns]
    real_above, real_below = [float(one or False) for one in real], [float(one is not None) for one in real]
    return _difference_of_ratios(above, below, real_above, real_below, [turn.conversation_id for turn in turns])


def _distance(
    turns: Sequence[MeasuredTurn],
    arm: str,
    pieces: Callable[[str], Counter[str]],
    distance: Callable[[Floats, Floats], Floats],
) -> Statistic | None:
    """The distance of what replies are made of from what real turns are; None if the real turns have nothing of it."""
    by_reply: dict[str, Counter[str]] = {}
    by_real: dict[str, Counter[str]] = {}
    for turn in turns:
        own, real = by_reply.setdefault(turn.conversation_id, Counter()), by_real.setdefault(turn.conversation_id, Counter())
        real.update(pieces(turn.action))
        for reply in turn.replies[arm]:
            own.update(pieces(reply))
    if not any(by_real.values()):
        return None
    found, _ = manner.counts([*by_reply.values(), *by_real.values()])
    counted = {width: (found[: len(by_reply)].astype(width), found[len(by_reply) :].astype(width)) for width in ("f4", "f8")}

    def statistic(weights: Floats) -> Floats:
        width = "f8" if len(weights) == 1 else "f4"  # an interval needs no more digits, and takes a third of the time
        replies, reals = counted[width]
        drawn = weights.astype(width)
        return distance(drawn @ replies, drawn @ reals).astype("f8")

    return statistic


def _diversity(turns: Sequence[MeasuredTurn], arm: str) -> Statistic | None:
    """MATTR of the replies minus that of the real turns; a window counts to the conversations that its words are from.

    None if either has fewer words than a window: the shares of different words of texts of other lengths do not compare.
    """
    samples = max(len(turn.replies[arm]) for turn in turns)
    written = [[one for turn in turns for one in turn.replies[arm][sample : sample + 1] or ("",)] for sample in range(samples)]
    above, below, real_above, real_below = ([0.0] * len(turns) for _ in range(4))
    told = [_windows(texts, above, below) for texts in written]
    if not all(told) or not _windows([turn.action for turn in turns], real_above, real_below):
        return None
    return _difference_of_ratios(above, below, real_above, real_below, [turn.conversation_id for turn in turns])


def _windows(texts: Sequence[str], shares: list[float], number: list[float]) -> bool:
    """Adds to each text's `shares` and `number` what its words have of the windows they are in; False if there are none."""
    words = [(word, place) for place, text in enumerate(texts) for word in word_tokens(text)]
    if len(words) < manner.MATTR_WINDOW:
        return False
    ratios = manner.window_ratios([word for word, _ in words])
    before = [0.0, *accumulate(ratios)]
    for position, (_, place) in enumerate(words):
        first, last = max(0, position - manner.MATTR_WINDOW + 1), min(position + 1, len(ratios))
        shares[place] += (before[last] - before[first]) / manner.MATTR_WINDOW
        number[place] += (last - first) / manner.MATTR_WINDOW
    return True
