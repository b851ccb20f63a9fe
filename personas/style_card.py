"""A style card: how a person writes, counted over their turns, with a few real turns.

Design: every statement is a count, and the card is computed from the turns whenever it is needed. So a turn that was forgotten
is gone from the card too, and no trait is guessed.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

#: "words" are separated by blanks; scripts without blanks between words are counted in characters.
LengthUnit = Literal["words", "characters"]
#: The version of the card's rules and of its text, for the versions of a prompt.
VERSION = "1"
#: Real turns on a card, and the length up to which a turn is short, by unit.
EXAMPLES = 16
_SHORT: dict[LengthUnit, int] = {"words": 14, "characters": 40}
_MAX_CHARACTERS = 200
#: Quantiles of the length of a turn.
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
#: An opening, closing or spelling is listed from this number of turns and this share of them; so many are listed.
_MIN_TURNS, _MIN_SHARE, _LISTED = 3, 0.03, 6
#: The share of common character bigrams from which two turns are nearly the same.
_SAME = 0.5
_UNSPACED = frozenset({"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"})
_SCRIPT_NAMES = {"CJK": "Chinese characters"}
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_CLOSERS, _TERMINALS = "\"'”’»)]}*_ ", ".!?…。！？｡؟۔।"
_SMILEY = re.compile(r"(?<![\w:;=])(?:[:;=]['’]?-?[)(DPpOo3/\\|*]+|[xX]D+|<3+|\^_*\^)(?!\w)")
#: Spellings of English chat that a dictionary lacks, without those that are frequent words of another language.
_INFORMAL_WORDS = """
u ur r kk ok okay okey k thx thnx tnx tx ty tysm pls plz plss ppl msg tmrw tmr tomo tonite 2day 2morrow b4 gr8 l8r m8
gonna wanna gotta gimme lemme dunno kinda sorta outta lotta hafta imma finna tryna aint ain't yall y'all
yea yeah yep yup ya yah nah nope huh hmm hm mhm uh uhh umm ooh aww ahh meh ugh yay woo whoa haha hehe hihi jaja хаха
lol lmao rofl xd omg wtf idk idc ikr imo imho tbh btw fyi asap brb afk gtg ttyl nvm np jk smh irl ngl tho thru
cuz coz bc bcuz becuz bruh wat wut wot whatcha gotcha betcha luv
im ive dont cant wont didnt doesnt isnt arent wasnt werent havent hasnt hadnt wouldnt couldnt shouldnt mustnt
thats whats wheres theres heres hows whos youre youve youll theyre theyve weve itll thatll shoulda coulda woulda
alright alrite nite hiya heya howdy wassup
"""
_INFORMAL = frozenset(_INFORMAL_WORDS.split())
#: A letter three times in a row ("sooo"), or a syllable three times ("jajaja").
_SHAPES = re.compile(r"(?!www$).*([^\W\d_])\1\1.*|([^\W\d_]{2})\2{2,}[^\W\d_]?")


@dataclass(frozen=True, slots=True, kw_only=True)
class StyleCard:
    """How a person writes, counted over their turns.

    Shares are of turns, from 0 to 1, with the most frequent item first in a list of (text, share).

    Attributes:
        turns: the number of turns.
        unit: the unit of lengths.
        lengths: the quantiles 10, 25, 50, 75 and 90% of the length of a turn.
        questions: the share of turns with a question mark.
        exclamations: the share with an exclamation mark.
        uncapitalized: the share that begins with a small letter, among those that begin with a letter that has two cases; None
            if none does.
        unpunctuated: the share without a mark at the end.
        with_emoji: the share with an emoji or a smiley.
        emoji: the most frequent emoji and smileys.
        openings: the most frequent first words, one or two.
        closings: the most frequent last words, one or two, of turns of more than three words.
        spellings: frequent words that are spelled as in a chat: see `is_own_spelling`.
        scripts: the scripts of the letters, with their shares of all letters.
        examples: at most `EXAMPLES` short turns, evenly spread over the turns, no two nearly the same.
    """

    turns: int
    unit: LengthUnit
    lengths: tuple[int, ...]
    questions: float
    exclamations: float
    uncapitalized: float | None
    unpunctuated: float
    with_emoji: float
    emoji: tuple[tuple[str, float], ...]
    openings: tuple[tuple[str, float], ...]
    closings: tuple[tuple[str, float], ...]
    spellings: tuple[tuple[str, float], ...]
    scripts: tuple[tuple[str, float], ...]
    examples: tuple[str, ...]

    def text(self) -> str:
        """Return the counts in a few lines; the examples are not in it."""
        low, lower, middle, upper, high = self.lengths
        plain = [
            f"- {self.unit} in a message: usually {lower} to {upper}, half have at most {middle};"
            f" one in ten has at most {low}, one in ten {high} or more",
            f"- question marks in {_share(self.questions)}, exclamation marks in {_share(self.exclamations)}",
        ]
        if self.uncapitalized is not None:
            plain.append(f"- a small letter at the start in {_share(self.uncapitalized)}")
        plain.append(f"- no full stop or other mark at the end in {_share(self.unpunctuated)}")
        plain.append(f"- emoji or smileys in {_share(self.with_emoji)}{_listed(self.emoji, ': ')}")
        for label, items in (("often begins", self.openings), ("often ends", self.closings), ("own spellings", self.spellings)):
            plain += [f"- {label}: {_listed(items)}"] if items else []
        if [name for name, _ in self.scripts] not in ([], ["Latin"]):
            plain.append(f"- scripts: {_listed(self.scripts)}")
        return "\n".join(plain)


def count_style(turns: Iterable[str]) -> StyleCard | None:
    """Return the style card of a person's turns, given in time order; None if no turn has any text."""
    texts = [text.strip() for text in turns if text.strip()]
    if not texts:
        return None
    scripts = _scripts(texts)
    unspaced = sum(share for script, share in scripts if script in _UNSPACED)
    unit: LengthUnit = "characters" if unspaced > 0.5 else "words"
    lengths = sorted(length_in(unit, text) for text in texts)
    capitals = [first.isupper() for text in texts if (first := text[0]).isupper() or first.islower()]
    emoji = [_emoji(text) for text in texts]
    words = [_WORD.findall(text) for text in texts]
    return StyleCard(
        turns=len(texts),
        unit=unit,
        lengths=tuple(quantile(lengths, share) for share in _QUANTILES),
        questions=_share_of(texts, lambda text: any(mark in text for mark in "?？؟")),
        exclamations=_share_of(texts, lambda text: "!" in text or "！" in text),
        uncapitalized=1 - sum(capitals) / len(capitals) if capitals else None,
        unpunctuated=_share_of(texts, lambda text: text.rstrip(_CLOSERS)[-1:] not in tuple(_TERMINALS)),
        with_emoji=sum(map(bool, emoji)) / len(texts),
        emoji=_frequent(emoji, len(texts), 1),
        openings=_edges(words, unit, first=True),
        closings=_edges(words, unit, first=False),
        spellings=_frequent(
            [{spelling for word in found if (spelling := _own_spelling(word))} for found in words], len(texts), _MIN_TURNS
        ),
        scripts=tuple((_SCRIPT_NAMES.get(name, name.title()), share) for name, share in scripts if share >= _MIN_SHARE),
        examples=_examples(texts, unit, quantile(lengths, 0.75)),
    )


def length_in(unit: LengthUnit, text: str) -> int:
    """Return the length of a text in a unit; blanks are no characters."""
    return len(text.split()) if unit == "words" else len("".join(text.split()))


def quantile(ascending: Sequence[int], share: float) -> int:
    """Return the value at a share, 0 to 1, of sorted values, by the nearest rank."""
    return ascending[round(share * (len(ascending) - 1))]


def is_own_spelling(word: str) -> bool:
    """Return whether a word is spelled as people type in chats and not as in a dictionary.

    It is on a list of English ones, or has a shape that holds in any language: a letter or a syllable three times in a row.

    >>> is_own_spelling("gonna"), is_own_spelling("sooo"), is_own_spelling("jajaja"), is_own_spelling("hotel")
    (True, True, True, False)
    """
    word = word.casefold().replace("’", "'")
    return word in _INFORMAL or (not word.isdigit() and _SHAPES.fullmatch(word) is not None)


def _own_spelling(word: str) -> str:
    """Return the word as it is listed if its spelling is the person's own; "" if not. A small "i" for "I" is one."""
    if word == "i" or (word[:2] in {"i'", "i’"} and len(word) > 2):
        return "i"
    return word.casefold() if is_own_spelling(word) else ""


def _share_of(texts: Sequence[str], holds: Callable[[str], bool]) -> float:
    return sum(map(holds, texts)) / len(texts)


def _frequent(items: Iterable[Iterable[str]], turns: int, min_turns: int) -> tuple[tuple[str, float], ...]:
    """Return the items of most turns, with their shares; each counts once in a turn."""
    counts = Counter(item for found in items for item in dict.fromkeys(found))
    frequent = [(item, count) for item, count in counts.items() if count >= max(min_turns, _MIN_SHARE * turns)]
    return tuple((item, count / turns) for item, count in sorted(frequent, key=lambda pair: (-pair[1], pair[0]))[:_LISTED])


def _edges(words: Sequence[Sequence[str]], unit: LengthUnit, *, first: bool) -> tuple[tuple[str, float], ...]:
    """Return the most frequent first or last words; two words stand for the one in them if most turns with it have both."""
    if unit == "characters":
        return ()
    lowered = [[word.casefold() for word in found] for found in words if len(found) > (0 if first else 3)]
    single = [found[:1] if first else found[-1:] for found in lowered]
    double = [found[:2] if first else found[-2:] for found in lowered]
    ones = dict(_frequent([[" ".join(edge)] for edge in single], len(words), _MIN_TURNS))
    twos = dict(_frequent([[" ".join(edge)] for edge in double if len(edge) == 2], len(words), _MIN_TURNS))
    for phrase, share in twos.items():
        word = phrase.split()[0 if first else -1]
        if share > 0.6 * ones.get(word, 1.0):
            ones = {edge: value for edge, value in ones.items() if edge != word} | {phrase: share}
    return tuple(sorted(ones.items(), key=lambda item: (-item[1], item[0])))


def _emoji(text: str) -> list[str]:
    """Return the emoji and smileys in a text."""
    smileys = _SMILEY.findall(text)
    if text.isascii():
        return smileys
    import emoji

    return [*smileys, *(item["emoji"] for item in emoji.emoji_list(text))]


def _scripts(texts: Sequence[str]) -> list[tuple[str, float]]:
    """Return the scripts of the letters, by the first word of their Unicode names, with their shares of all letters."""
    counts = Counter(map(_script, filter(str.isalpha, "".join(texts))))
    total = counts.total()
    return [(name, count / total) for name, count in counts.most_common()]


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "OTHER").partition(" ")[0]


def _examples(texts: Sequence[str], unit: LengthUnit, usual: int) -> tuple[str, ...]:
    """Return short turns from all parts of the time, no two nearly the same; `usual` is a length that is still short."""
    limit = max(usual, _SHORT[unit])
    distinct = dict[str, str]()
    for text in texts:
        if length_in(unit, text) <= limit and len(text) <= _MAX_CHARACTERS:
            distinct.setdefault(" ".join(_WORD.findall(text.casefold())) or text, text)
    short = list(distinct.values())
    kept = list[tuple[str, frozenset[str]]]()
    parts = min(EXAMPLES, len(short))
    for part in range(parts):
        group = short[part * len(short) // parts : (part + 1) * len(short) // parts]
        for text in group[len(group) // 2 :] + group[: len(group) // 2]:
            bigrams = _bigrams(text)
            if all(len(bigrams & other) <= _SAME * len(bigrams | other) for _, other in kept):
                kept.append((text, bigrams))
                break
    return tuple(text for text, _ in kept)


def _bigrams(text: str) -> frozenset[str]:
    line = f" {' '.join(text.casefold().split())} "
    return frozenset(line[i : i + 2] for i in range(len(line) - 1))


def _share(share: float) -> str:
    """Return a share in percent, in words where a reader would overdo what is rare."""
    if share < 0.005:
        return "none"
    return f"{share:.0%}" + (" (almost none)" if share < 0.05 else " (nearly all)" if share > 0.95 else "")


def _listed(items: Sequence[tuple[str, float]], before: str = "") -> str:
    return before + ", ".join(f"{text} ({share:.0%})" for text, share in items) if items else ""
