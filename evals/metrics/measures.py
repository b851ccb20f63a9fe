"""Measures of one person's turns and an arm's replies, as functions of the weights of the conversations.

Design: a measure keeps only sums by conversation, so leaving out each in turn is one matrix product and no text is read twice.
Distances are computed from sums too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import accumulate, zip_longest
from typing import TYPE_CHECKING, Literal

from usertwin.evals.records.measured_turns import MeasuredTurn
from usertwin.memory.text.words import word_tokens

from . import writing_style
from .reply_similarity import chrf
from .statistics import Statistic, ratio_of_sums, sums_by_conversation

if TYPE_CHECKING:
    from .statistics import Floats


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure of closeness.

    Attributes:
        name: its key in a result.
        title: its title in a table.
        direction: which values are close, for a reader.
        ideal: the value of an arm that equals the person; "low" or "high" where there is no such value.
        source: the definition.
        digits: digits in a table.
        share: whether it is a share of all cases, which has intervals of its own.
    """

    name: str
    title: str
    direction: str
    ideal: Literal["low", "high"] | float
    _: KW_ONLY
    source: str
    digits: int = 2
    share: bool = False

    def distance(self, values: Floats) -> Floats:
        """Return the distance of values from the person; only its differences have a meaning where there is no ideal value."""
        import numpy as np

        if self.ideal == "low":
            return values
        if self.ideal == "high":
            return -values
        if self.ideal == 1.0:  # a ratio: 2 is as far as 1/2, and 0 has a finite distance
            return np.abs(np.log(np.clip(values, 1e-3, 1e3)))
        return np.abs(values)


_LOW, _HIGH, _ZERO = "low is close", "high is close", "0 is closest"
MEASURES: tuple[Measure, ...] = (
    Measure(
        "bits_per_char", "Bits per char", _LOW, "low", source="held-out likelihood of the real turn, Shannon 1951", digits=3,
    ),
    Measure(
        "choice", "Forced choice", _HIGH, "high", share=True,
        source="forced choice by likelihood, among the person's own turns or those that the log lists",
    ),
    Measure("chrf", "chrF", _HIGH, "high", source="Popović 2015, by sacrebleu"),
    Measure(
        "embedding_similarity", "Embedding similarity", _HIGH, "high",
        source="cosine of sentence embeddings, Reimers and Gurevych 2019",
    ),
    Measure(
        "rank", "Rank among own turns", _HIGH, "high",
        source="share of the person's other turns that are less similar to the reply than the real turn is",
    ),
    Measure("length_ratio", "Length ratio", "1 is closest", 1.0, source="characters written to characters of the real turns"),
    Measure("questions", "Questions", _ZERO, 0.0, source="share of turns with a question mark, minus the real share"),
    Measure("greetings", "Greetings", _ZERO, 0.0, source="share of turns that begin with a greeting, minus the real share"),
    Measure(
        "politeness", "Politeness", _ZERO, 0.0, source="share with please, thanks, sorry, minus the real; Danescu et al. 2013",
    ),
    Measure(
        "capitals", "Capitals", _ZERO, 0.0,
        source="share that begin with a capital, of those with a letter, minus the real share",
    ),
    Measure("emoji", "Emoji", _ZERO, 0.0, source="share of turns with an emoji or smiley, minus the real share"),
    Measure(
        "style", "Style distance", _LOW, "low", source="Jensen-Shannon distance of character 3-grams, Kešelj et al. 2003",
    ),
    Measure(
        "function_words", "Function words", _LOW, "low", source="one minus cosine of their counts, Evert et al. 2017",
        digits=3,
    ),
    Measure(
        "diversity", "Diversity", _ZERO, 0.0, source="MATTR of 50 words, minus the real; Covington and McFall 2010", digits=3,
    ),
    Measure(
        "discriminator", "Discriminator AUC", "0.5 is closest", "low",
        source="AUC of a trained classifier that reads the text alone, Lopez-Paz and Oquab 2017", share=True,
    ),
    Measure(
        "context_discriminator", "Discriminator AUC, with context", "0.5 is closest", "low",
        source="the same for a classifier that also reads how the text fits the chat before it", share=True,
    ),
)  # fmt: skip
_RATES: Mapping[str, Callable[[str], bool | None]] = {
    "questions": writing_style.has_question,
    "greetings": writing_style.has_greeting,
    "politeness": writing_style.is_polite,
    "capitals": writing_style.starts_with_capital,
    "emoji": writing_style.has_emoji,
}


#: The mapping of a measured turn that holds the data of a measure; the other measures read the replies.
_FIELDS = {"bits_per_char": "bits", "choice": "choice", "embedding_similarity": "similarity", "rank": "rank"}


def is_measured(measure: Measure, turn: MeasuredTurn, arm: str) -> bool:
    """Return whether a turn has data for a measure of an arm."""
    values = getattr(turn, _FIELDS.get(measure.name, "replies")).get(arm)
    return values is not None and values != ()


def measure_statistic(measure: Measure, turns: Sequence[MeasuredTurn], arm: str) -> Statistic | None:
    """Return a measure of one person's turns as a statistic of the weights of the conversations.

    Args:
        measure: any but the discriminators, which are trained on the turns of all people.
        turns: at least one, of one person, in order, all with data for the arm.
        arm: the arm.

    Returns:
        Takes conversations in order of appearance; not finite for weights that leave no data. None if no turn has data.
    """
    where = [turn.conversation_id for turn in turns]
    match measure.name:
        case "bits_per_char":
            return _ratio([turn.bits[arm] for turn in turns], [float(turn.characters) for turn in turns], where)
        case "choice":
            return _mean([(turn.choice[arm],) for turn in turns], where)
        case "embedding_similarity":
            return _mean([turn.similarity[arm] for turn in turns], where)
        case "rank":
            return _mean([turn.rank[arm] for turn in turns], where)
        case "chrf":
            return _mean([[chrf(reply, turn.action) for reply in turn.replies[arm]] for turn in turns], where)
        case "length_ratio":
            lengths = [sum(map(len, turn.replies[arm])) / len(turn.replies[arm]) for turn in turns]
            return _ratio(lengths, [float(len(turn.action)) for turn in turns], where)
        case "style":
            return _distance(turns, arm, writing_style.char_ngrams, writing_style.jensen_shannon)
        case "function_words":
            return _distance(turns, arm, writing_style.function_word_counts, writing_style.cosine_distance)
        case "diversity":
            return _diversity(turns, arm)
        case name:
            return _rate(turns, arm, _RATES[name])


def _mean(by_turn: Sequence[Sequence[float]], where: Sequence[Hashable]) -> Statistic | None:
    return _ratio([sum(values) / len(values) for values in by_turn], [1.0] * len(by_turn), where)


def _ratio(above: Sequence[float], below: Sequence[float], where: Sequence[Hashable]) -> Statistic | None:
    return ratio_of_sums(sums_by_conversation(above, where), sums_by_conversation(below, where)) if sum(below) else None


def _difference_of_ratios(
    reply_above: Sequence[float], reply_below: Sequence[float], real_above: Sequence[float], real_below: Sequence[float],
    where: Sequence[Hashable],
) -> Statistic | None:  # fmt: skip
    """Return the ratio of sums of the replies minus that of the real turns; NaN for weights that leave no denominator."""
    if not sum(reply_below) or not sum(real_below):
        return None
    first, second, third, fourth = (
        sums_by_conversation(values, where) for values in (reply_above, reply_below, real_above, real_below)
    )

    def statistic(weights: Floats) -> Floats:
        import numpy as np

        with np.errstate(invalid="ignore", divide="ignore"):
            return (weights @ first) / (weights @ second) - (weights @ third) / (weights @ fourth)

    return statistic


def _rate(turns: Sequence[MeasuredTurn], arm: str, feature: Callable[[str], bool | None]) -> Statistic | None:
    """Return the share of replies with a feature minus the share of real turns; texts with None are not counted."""
    replies, reals = (
        [[feature(reply) for reply in turn.replies[arm]] for turn in turns],
        [feature(turn.action) for turn in turns],
    )
    return _difference_of_ratios(
        [values.count(True) / len(values) for values in replies], [1 - values.count(None) / len(values) for values in replies],
        [float(value or False) for value in reals], [float(value is not None) for value in reals],
        [turn.conversation_id for turn in turns],
    )  # fmt: skip


def _distance(
    turns: Sequence[MeasuredTurn], arm: str, pieces: Callable[[str], Counter[str]], distance: Callable[[Floats, Floats], Floats]
) -> Statistic | None:
    """Return the distance of the replies' counts from those of the real turns; None if the real turns have none."""
    by_reply: dict[str, Counter[str]] = {}
    by_real: dict[str, Counter[str]] = {}
    for turn in turns:
        own, real = by_reply.setdefault(turn.conversation_id, Counter()), by_real.setdefault(turn.conversation_id, Counter())
        real.update(pieces(turn.action))
        for reply in turn.replies[arm]:
            own.update(pieces(reply))
    if not any(by_real.values()):
        return None
    matrix = writing_style.count_matrix([*by_reply.values(), *by_real.values()])
    replies, reals = matrix[: len(by_reply)], matrix[len(by_reply) :]
    return lambda weights: distance(weights @ replies, weights @ reals)


def _diversity(turns: Sequence[MeasuredTurn], arm: str) -> Statistic | None:
    """Return the MATTR of the replies minus that of the real turns; a window counts for the conversations of its words.

    None if either has fewer words than a window: type-token ratios of texts of different lengths do not compare.
    """
    texts_by_sample = zip_longest(*(turn.replies[arm] for turn in turns), fillvalue="")
    reply_above, reply_below, real_above, real_below = ([0.0] * len(turns) for _ in range(4))
    long_enough = [_add_windows(texts, reply_above, reply_below) for texts in texts_by_sample]
    if not all(long_enough) or not _add_windows([turn.action for turn in turns], real_above, real_below):
        return None
    return _difference_of_ratios(reply_above, reply_below, real_above, real_below, [turn.conversation_id for turn in turns])


def _add_windows(texts: Sequence[str], ratios_by_text: list[float], windows_by_text: list[float]) -> bool:
    """Add to each text its words' share of the windows and their ratios; return False for fewer words than a window."""
    size = writing_style.MATTR_WINDOW
    words = [(word, place) for place, text in enumerate(texts) for word in word_tokens(text)]
    if len(words) < size:
        return False
    ratios = writing_style.window_ratios([word for word, _ in words])
    cumulative = [0.0, *accumulate(ratios)]
    for position, (_, place) in enumerate(words):
        first, last = max(0, position - size + 1), min(position + 1, len(ratios))
        ratios_by_text[place] += (cumulative[last] - cumulative[first]) / size
        windows_by_text[place] += (last - first) / size
    return True
