"""Writing style: questions, greetings, politeness, capitals, emoji, character n-grams, lexical diversity; and calibration.

Design: what one turn shows is a function of its text. What only many turns show (a distance, a diversity) is a function of
counts that add up over turns, so conversations can be left out without reading the others again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from usertwin.memory.text.transcript import single_line
from usertwin.memory.text.words import word_tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Words in a window of `window_ratios`.
MATTR_WINDOW = 50
#: Bins of a reliability table.
BINS = 10
#: Characters of an n-gram of the style distance.
NGRAM = 3

_GREETING = re.compile(
    r"\W*(?:hi+|hello+|hey+|hiya|howdy|yo|greetings|welcome|hallo|good (?:morning|afternoon|evening|day))\b", re.IGNORECASE
)
_POLITE = re.compile(
    r"\b(?:please|pls|plz|thanks?|thx|ty|thank(?:ed|ing|ful)|grateful|appreciated?|sorry|apolog(?:y|ies|i[sz]e[ds]?)|pardon"
    r"|excuse me)\b",
    re.IGNORECASE,
)
#: Smileys typed in ASCII.
_SMILEY = re.compile(
    r"(?<![\d:;=])[:;=]['’]?-?[)(]+(?!\w)|(?<!\w)[8xX]-[)(D]"
    r"|(?<![\w:;=])(?:[:;=]['’]?-?[DPpOo3/\\|*\]\[]+|<3+|\^_*\^|[xX]D+|-_+-)(?!\w)"
)

#: English function words: they carry grammar and do not depend on the subject of a text.
_WORDS = """
i me my mine myself you your yours yourself he him his she her hers it its we us our ours they them their
theirs this that these those who whom whose what which someone something anyone anything everyone everything
nothing a an the some any all both each every either neither much many more most few less several no none
of in to for with on at by from about into over after before between through during under against
since until without within up down out off around
and or but if because so than while though although as unless whether
am is are was were be been being have has had do does did will would shall should can could may might must
i'm i've i'd i'll you're it's that's we're they're don't doesn't didn't can't won't isn't
not never very too just only also even still yet again ever rather quite really maybe perhaps however well
such then there here now when where why how
"""
FUNCTION_WORDS = tuple(_WORDS.split())
_FUNCTION_WORDS = frozenset(FUNCTION_WORDS)


def has_question(text: str) -> bool:
    """Return whether a turn has a question mark, full-width and Arabic ones included."""
    return any(mark in text for mark in "?？؟")


def has_greeting(text: str) -> bool:
    """Return whether a turn begins with an English greeting.

    >>> has_greeting("Hey there!"), has_greeting("I said hello to him")
    (True, False)
    """
    return _GREETING.match(text) is not None


def is_polite(text: str) -> bool:
    """Return whether a turn has an English word of request, thanks or apology.

    Three of the strategies of Danescu-Niculescu-Mizil et al. (2013, arXiv 1306.6078): please, gratitude, apologizing.

    >>> is_polite("no thats all thank you"), is_polite("give me that")
    (True, False)
    """
    return _POLITE.search(text) is not None


def starts_with_capital(text: str) -> bool | None:
    """Return whether the first letter of a turn is upper case; None if the turn does not begin with a cased letter.

    >>> starts_with_capital("Hello"), starts_with_capital("hello"), starts_with_capital("42 is it")
    (True, False, None)
    """
    first = text.lstrip()[:1]
    return first.isupper() if first.isupper() or first.islower() else None


def has_emoji(text: str) -> bool:
    """Return whether a turn has an emoji (of Unicode's list, by the package `emoji`) or an ASCII smiley.

    >>> has_emoji("see you :)"), has_emoji("at 10:30 (maybe)")
    (True, False)
    """
    if _SMILEY.search(text) is not None:
        return True
    if text.isascii():
        return False
    import emoji

    return emoji.emoji_count(text) > 0


def char_ngrams(text: str) -> Counter[str]:
    """Return the counts of a text's character 3-grams, case and punctuation kept, with a blank before and after the text.

    Character n-grams separate authors better than words do, by affixes, punctuation and typing habits (Sapkota et al. 2015,
    N15-1010; Kešelj et al. 2003).
    """
    padded = f" {single_line(text)} "
    return Counter(padded[i : i + NGRAM] for i in range(len(padded) - NGRAM + 1))


def function_word_counts(text: str) -> Counter[str]:
    """Return the counts of `FUNCTION_WORDS`; they identify authors on any subject (Mosteller, Wallace 1964; Burrows 2002)."""
    return Counter(word for word in word_tokens(text) if word in _FUNCTION_WORDS)


def jensen_shannon(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """Return the Jensen-Shannon distance of counts, row by row, by scipy with logarithms to base 2.

    From two arrays of shape (rows, pieces) to one of (rows,): 0 for equal shares, 1 for nothing in common. A row without counts
    has distance 1 to a row with counts, and 0 to another without. float32 halves the time of float64.
    """
    import numpy as np
    from scipy.spatial.distance import jensenshannon

    with np.errstate(invalid="ignore", divide="ignore"):
        distances: Any = jensenshannon(first, second, base=2, axis=1)  # pyright: ignore[reportCallIssue] - scipy has no stubs
        return _with_empty_rows(distances, first, second)


def cosine_distance(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """Return one minus the cosine of counts, row by row: 0 for equal shares, 1 for nothing in common.

    Shapes, and rows without counts, are as in `jensen_shannon`. For function words the cosine is more stable on short texts
    than Burrows' sum of differences (Evert et al. 2017, doi 10.1093/llc/fqx023).
    """
    import numpy as np

    lengths = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    cosines = (first * second).sum(axis=1) / np.maximum(lengths, 1e-30)
    return _with_empty_rows(np.clip(1 - cosines, 0, 1), first, second)


def _with_empty_rows(distances: NDArray[Any], first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """Return distances with the values of rows without counts set: 1 if one of the two rows is empty, 0 if both are."""
    import numpy as np

    any_first, any_second = first.any(axis=1), second.any(axis=1)
    return np.where(any_first & any_second, distances, (any_first != any_second).astype(np.float64))


def count_matrix(counters: Sequence[Counter[str]]) -> NDArray[Any]:
    """Return counters as a matrix of shape (counters, pieces), pieces in sorted order, by scikit-learn."""
    from sklearn.feature_extraction import DictVectorizer

    matrix: Any = DictVectorizer(sparse=False).fit_transform(counters)
    return matrix


def style_distance(replies: Sequence[str], reals: Sequence[str]) -> float:
    """Return the Jensen-Shannon distance of the character 3-grams of two sets of texts, 0 to 1; see `char_ngrams`.

    The distance grows as the number of texts falls, so compare distances of equally many texts only.

    >>> style_distance(["see you"], ["see you"])
    0.0
    """
    matrix = count_matrix([sum(map(char_ngrams, texts), Counter[str]()) for texts in (replies, reals)])
    return float(jensen_shannon(matrix[:1], matrix[1:])[0])


def window_ratios(tokens: Sequence[str], window: int = MATTR_WINDOW) -> list[float]:
    """Return the type-token ratio of each window of words; the mean is the MATTR (Covington and McFall 2010).

    The MATTR is a diversity, 0 to 1, that does not depend on length. A text that is not longer than the window has one ratio,
    of the whole text; a text without words has none.

    Design: leaving out conversations needs the ratio of every window. Libraries return the mean only, and those on PyPI bring
    pandas and matplotlib (lexicalrichness), a pickle (taaled), or had their last release in 2020 (lexical-diversity).
    """
    if len(tokens) <= window:
        return [len(set(tokens)) / len(tokens)] if tokens else []
    counts = Counter(tokens[:window])
    ratios = [len(counts) / window]
    for old, new in zip(tokens, tokens[window:], strict=False):
        counts[old] -= 1
        if not counts[old]:
            del counts[old]
        counts[new] += 1
        ratios.append(len(counts) / window)
    return ratios


def squared_errors(probabilities: Sequence[float], outcomes: Sequence[bool]) -> list[float]:
    """Return the squared error of each forecast, 0 to 1; the mean is the Brier score (Brier 1950)."""
    return [(probability - outcome) ** 2 for probability, outcome in zip(probabilities, outcomes, strict=True)]


def reliability_table(
    probabilities: Sequence[float], outcomes: Sequence[bool], bins: int = BINS
) -> list[dict[str, float | int]]:
    """Return mean forecasts beside observed shares (Murphy and Winkler 1977); calibrated forecasts have equal ones.

    Every bin (of equal steps from 0 to 1) with a forecast has a row, from low to high: `low` and `high` bound its forecasts,
    `predicted` is their mean, `observed` the share of true outcomes, `n` their number.

    Design: `sklearn.calibration.calibration_curve` returns neither the bounds nor the number of forecasts of a bin.
    """
    members: dict[int, list[tuple[float, bool]]] = {}
    for probability, outcome in zip(probabilities, outcomes, strict=True):
        members.setdefault(min(int(probability * bins), bins - 1), []).append((probability, outcome))
    return [
        {
            "low": number / bins,
            "high": (number + 1) / bins,
            "predicted": sum(probability for probability, _ in rows) / len(rows),
            "observed": sum(outcome for _, outcome in rows) / len(rows),
            "n": len(rows),
        }
        for number, rows in sorted(members.items())
    ]
