"""How somebody writes: questions, greetings, politeness, capitals, emoji, style, diversity; and when they leave.

The one design choice: what is counted in one turn is a function of its text, and what only many turns have (a style, a
diversity) is a function of counts that add up over turns, so that conversations can be resampled without reading them again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from usertwin.memory.text.transcript import flat
from usertwin.memory.text.words import word_tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The length in words of the window of `mattr`.
MATTR_WINDOW = 50
#: How many bins a reliability table has.
BINS = 10
#: The length in characters of the pieces that a style is told by.
GRAM = 3

_GREETING = re.compile(
    r"\W*(?:hi+|hello+|hey+|hiya|howdy|yo|greetings|welcome|hallo|good (?:morning|afternoon|evening|day))\b", re.IGNORECASE
)
_POLITE = re.compile(
    r"\b(?:please|pls|plz|thanks?|thx|ty|thank(?:ed|ing|ful)|grateful|appreciated?|sorry|apolog(?:y|ies|i[sz]e[ds]?)|pardon"
    r"|excuse me)\b",
    re.IGNORECASE,
)
#: Pictographs, dingbats, flags and weather signs, then the smileys that are typed with ASCII.
_EMOJI = re.compile(
    "[\U0001f300-\U0001faff\U0001f1e6-\U0001f1ff\u2600-\u27bf\u2b50\u2b55\u2b1b\u2b1c\u231a\u231b\u23e9-\u23f3\u203c\u2049]"
    r"|(?<![\d:;=])[:;=]['’]?-?[)(]+(?!\w)|(?<!\w)[8xX]-[)(D]"
    r"|(?<![\w:;=])(?:[:;=]['’]?-?[DPpOo3/\\|*\]\[]+|<3+|\^_*\^|[xX]D+|-_+-)(?!\w)"
)

#: Words that carry grammar rather than matter, by class; what is left of a text when its subject is taken out.
_CLASSES = {
    "personal": "i me my mine myself you your yours yourself he him his she her hers it its we us our ours they them their",
    "pronouns": "theirs this that these those who whom whose what which someone something anyone anything everyone everything",
    "quantities": "nothing a an the some any all both each every either neither much many more most few less several no none",
    "prepositions": "of in to for with on at by from about into over after before between through during under against",
    "more of them": "since until without within up down out off around",
    "conjunctions": "and or but if because so than while though although as unless whether",
    "auxiliaries": "am is are was were be been being have has had do does did will would shall should can could may might must",
    "contracted": "i'm i've i'd i'll you're it's that's we're they're don't doesn't didn't can't won't isn't",
    "adverbs": "not never very too just only also even still yet again ever rather quite really maybe perhaps however well",
    "more of those": "such then there here now when where why how",
}
FUNCTION_WORDS = tuple(word for words in _CLASSES.values() for word in words.split())
_FUNCTION_WORDS = frozenset(FUNCTION_WORDS)


def asks(text: str) -> bool:
    """Whether there is a question mark in a turn (also full-width, and the Arabic one)."""
    return any(mark in text for mark in "?？؟")


def greets(text: str) -> bool:
    """Whether a turn begins with an English greeting.

    >>> greets("Hey there!"), greets("I said hello to him")
    (True, False)
    """
    return _GREETING.match(text) is not None


def is_polite(text: str) -> bool:
    """Whether a turn asks, thanks or apologizes in English words.

    Three of the strategies of Danescu-Niculescu-Mizil et al. (2013, arXiv 1306.6078): gratitude, apologizing, please.

    >>> is_polite("no thats all thank you"), is_polite("give me that")
    (True, False)
    """
    return _POLITE.search(text) is not None


def capitalized(text: str) -> bool | None:
    """Whether the first letter of a turn is upper case; None for a turn that does not begin with a letter that has a case.

    >>> capitalized("Hello"), capitalized("hello"), capitalized("42 is it")
    (True, False, None)
    """
    first = text.lstrip()[:1]
    return first.isupper() if first.isupper() or first.islower() else None


def has_emoji(text: str) -> bool:
    """Whether there is an emoji in a turn, or a smiley of ASCII characters.

    >>> has_emoji("see you :)"), has_emoji("at 10:30 (maybe)")
    (True, False)
    """
    return _EMOJI.search(text) is not None


def grams(text: str) -> Counter[str]:
    """How often each piece of three characters is in a text, a blank on either side of it, case and punctuation kept.

    Character n-grams tell authors apart better than words do, by their affixes, punctuation and typing habits (Sapkota et al.
    2015, N15-1010; Kešelj et al. 2003).
    """
    padded = f" {flat(text)} "
    return Counter(padded[i : i + GRAM] for i in range(len(padded) - GRAM + 1))


def function_words(text: str) -> Counter[str]:
    """How often each of `FUNCTION_WORDS` is in a text."""
    return Counter(word for word in word_tokens(text) if word in _FUNCTION_WORDS)


def jensen_shannon(ones: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """The Jensen-Shannon distance of counts, row by row, with logarithms to base 2: 0 alike, 1 nothing in common.

    The same as `scipy.spatial.distance.jensenshannon` (Endres and Schindelin 2003), by entropies, which is much quicker.

    Args:
        ones: counts, shape (rows, pieces), not below 0, of either width of float.
        others: of the same shape.

    Returns:
        Shape (rows,). Where only one row has any count it is 1, where neither has 0.
    """
    import numpy as np

    def entropy(shares: NDArray[Any]) -> NDArray[Any]:
        return -np.einsum("ij,ij->i", shares, np.log(np.maximum(shares, 1e-30)))

    one, other = (rows / np.maximum(rows.sum(axis=1, keepdims=True), 1e-30) for rows in (ones, others))
    divergence = (entropy((one + other) / 2) - (entropy(one) + entropy(other)) / 2) / np.log(2)
    return _or_empty(np.sqrt(np.clip(divergence, 0, 1)), ones, others)


def cosine_distance(ones: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """One minus the cosine of counts, row by row: 0 the same shares, 1 nothing in common; shapes as `jensen_shannon`."""
    import numpy as np

    lengths = np.sqrt((ones**2).sum(axis=1) * (others**2).sum(axis=1))
    return _or_empty(np.clip(1 - (ones * others).sum(axis=1) / np.maximum(lengths, 1e-30), 0, 1), ones, others)


def _or_empty(distances: NDArray[Any], ones: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """The distances, with what is right where a row has no count."""
    import numpy as np

    some, any_other = ones.any(axis=1), others.any(axis=1)
    return np.where(some & any_other, distances, (some != any_other).astype(np.float64))


def counts(texts: Sequence[Counter[str]]) -> tuple[NDArray[Any], list[str]]:
    """Counters as a matrix, shape (texts, pieces), and the pieces, sorted."""
    import numpy as np

    pieces = sorted(set().union(*texts))
    place = {piece: number for number, piece in enumerate(pieces)}
    found = np.zeros((len(texts), len(pieces)))
    for row, counter in enumerate(texts):
        for piece, count in counter.items():
            found[row, place[piece]] = count
    return found, pieces


def style_distance(replies: Sequence[str], reals: Sequence[str]) -> float:
    """How far two people's typing is apart: the Jensen-Shannon distance of their character 3-grams, 0 to 1; see `grams`.

    Few texts are further apart than many, so compare only distances of as many texts.

    >>> style_distance(["see you"], ["see you"])
    0.0
    """
    ones, others = (sum(map(grams, texts), Counter[str]()) for texts in (replies, reals))
    found, _ = counts([ones, others])
    return float(jensen_shannon(found[:1], found[1:])[0])


def function_word_distance(replies: Sequence[str], reals: Sequence[str]) -> float:
    """How far apart the shares of function words are: one minus their cosine, 0 to 1.

    Function words tell authors whatever the subject (Mosteller and Wallace 1964; Burrows 2002; the cosine, which is steadier
    for short texts than Burrows' sum of differences: Evert et al. 2017, doi 10.1093/llc/fqx023).

    >>> function_word_distance(["the cat and the dog"], ["the sun and the moon"])
    0.0
    """
    ones, others = (sum(map(function_words, texts), Counter[str]()) for texts in (replies, reals))
    found, _ = counts([ones, others])
    return round(float(cosine_distance(found[:1], found[1:])[0]), 12)


def window_ratios(tokens: Sequence[str], window: int = MATTR_WINDOW) -> list[float]:
    """The share of different words in each window of so many; one of the whole text, if it is shorter; none of no text.

    The windows are in order of their first word.
    """
    if len(tokens) <= window:
        return [len(set(tokens)) / len(tokens)] if tokens else []
    seen = Counter(tokens[:window])
    found = [len(seen) / window]
    for old, new in zip(tokens, tokens[window:], strict=False):
        seen[old] -= 1
        if not seen[old]:
            del seen[old]
        seen[new] += 1
        found.append(len(seen) / window)
    return found


def mattr(tokens: Sequence[str], window: int = MATTR_WINDOW) -> float:
    """The moving-average type-token ratio, 0 to 1 (Covington and McFall 2010): diversity that does not fall with length.

    The mean over all windows of so many words of the share that are different words. A text that is shorter than the window
    has its plain type-token ratio, and one without a word 0.

    >>> mattr(["a", "b", "a", "b"], window=2)
    1.0
    """
    found = window_ratios(tokens, window)
    return sum(found) / len(found) if found else 0.0


def brier(probabilities: Sequence[float], happened: Sequence[bool]) -> list[float]:
    """What each forecast costs, 0 to 1: the square of what it is off (Brier 1950); their mean is the Brier score."""
    return [(told - real) ** 2 for told, real in zip(probabilities, happened, strict=True)]


class Bin(TypedDict):
    """A row of a reliability table: forecasts from `low` to `high`, their mean, how often it happened, and how many."""

    low: float
    high: float
    told: float
    left: float
    n: int


def reliability(probabilities: Sequence[float], happened: Sequence[bool], bins: int = BINS) -> list[Bin]:
    """Whether what is told to happen with probability p does so in a share p of cases (Murphy and Winkler 1977).

    Args:
        probabilities: one for each forecast, 0 to 1.
        happened: whether it did.
        bins: how many equal steps between 0 and 1.

    Returns:
        Every bin with a forecast, from low to high.
    """
    members: dict[int, list[tuple[float, bool]]] = {}
    for told, real in zip(probabilities, happened, strict=True):
        members.setdefault(min(int(told * bins), bins - 1), []).append((told, real))
    return [
        Bin(
            low=place / bins,
            high=(place + 1) / bins,
            told=sum(told for told, _ in members[place]) / len(members[place]),
            left=sum(real for _, real in members[place]) / len(members[place]),
            n=len(members[place]),
        )
        for place in sorted(members)
    ]
