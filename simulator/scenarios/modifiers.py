"""What makes a person difficult: impatience, typing errors, other topics, interruptions, and pushing against a refusal.

All of it is off by default, drawn from a seed, and recorded. Typing errors and interruptions change the written turn. The
other modifiers are a manner, which a model that follows instructions gets with its goal. A model that continues transcripts
follows no instruction. There, the manner is a turn of a short English list, said in place of a free turn now and then.

Design: a modifier never changes what the person knows. No error falls into a protected text, such as an order number, or into
any word with a digit, and no interruption cuts one in two or loses it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Literal, get_args

ModifierName = Literal["impatient", "typos", "off_topic", "interrupts", "pushes"]
MODIFIERS: tuple[ModifierName, ...] = get_args(ModifierName)
#: What a person with a modifier does, for models that follow instructions.
_MANNERS: Mapping[str, str] = {
    "impatient": "You are in a hurry and short of patience: you write little, and you say so when something takes long or when "
    "they ask you again.",
    "off_topic": "Now and then you drift to something else that has nothing to do with what you want here, and you come back "
    "to it when they answer.",
    "pushes": "When they refuse you something or name a rule, you do not accept it: you argue, ask for an exception, or want "
    "to speak with somebody else. You give in after their third refusal.",
}
#: Turns for models that follow no instructions.
_TURNS: Mapping[str, tuple[str, ...]] = {
    "impatient": (
        "can we speed this up?", "this is taking too long", "I don't have all day", "I already told you what I want", "well??",
        "just get it done please", "how long will this take?",
    ),
    "off_topic": (
        "by the way, how is the weather where you are?", "have you seen the game last night?", "sorry, my dog is barking again",
        "unrelated, but do you know a good pizza place?", "I should really go to bed earlier", "what music do you like?",
    ),
    "pushes": (
        "can't you make an exception?", "that's a stupid rule", "another company would do that for me",
        "then let me speak with your manager", "come on, nobody will notice", "last time somebody did it for me",
    ),
}  # fmt: skip
#: The share of words with a typing error, the shortest such word, and the shares of turns that are interrupted or replaced.
_TYPO_RATE, _TYPO_LENGTH, _INTERRUPT_RATE, _TURN_RATE = 0.08, 4, 0.4, 0.3
#: The share of interruptions that stop inside a sentence, and the fewest words of a turn that is interrupted.
_CUT_RATE, _MIN_WORDS = 0.5, 6
_WORD = re.compile(r"\S+")
_NEIGHBOURS: Mapping[str, str] = {
    "q": "wa", "w": "qes", "e": "wrd", "r": "etf", "t": "ryg", "y": "tuh", "u": "yij", "i": "uok", "o": "ipl", "p": "ol",
    "a": "qsz", "s": "awdx", "d": "sefc", "f": "drgv", "g": "fthb", "h": "gyjn", "j": "hukm", "k": "jil", "l": "kop",
    "z": "asx", "x": "zsdc", "c": "xdfv", "v": "cfgb", "b": "vghn", "n": "bhjm", "m": "njk",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModifiedTurn:
    """A turn after its modifiers: one message or several, and what was done to it, in sentences."""

    texts: tuple[str, ...]
    notes: tuple[str, ...] = ()


def manner(modifiers: Sequence[str]) -> list[str]:
    """Return what a person with these modifiers does, in sentences to them."""
    return [_MANNERS[name] for name in MODIFIERS if name in modifiers and name in _MANNERS]


def mixed_in_turn(modifiers: Sequence[str], seed: int, turn: int) -> ModifiedTurn | None:
    """Return a turn that a person who follows no instructions says in place of a free one; None for most turns.

    It is never the first turn, and no text comes twice. `turn` is the number of the person's turn, from 0.
    """
    for name in MODIFIERS:
        if name not in modifiers or name not in _TURNS:
            continue
        drawn = [_random(seed, number, f"{name} turn").random() < _TURN_RATE for number in range(1, turn + 1)]
        texts = list(_TURNS[name])
        _random(seed, 0, f"{name} order").shuffle(texts)
        if drawn and drawn[-1] and sum(drawn) <= len(texts):
            return ModifiedTurn((texts[sum(drawn) - 1],), (f"{name}: said in place of a free turn",))
    return None


def modified_turn(
    text: str, modifiers: Sequence[str], seed: int, turn: int, protected: Sequence[str] = ()
) -> ModifiedTurn:  # fmt: skip
    """Return a written turn after the modifiers that change text.

    Args:
        text: the turn.
        modifiers: names of modifiers; those that are a manner change nothing here.
        seed: seed of the conversation.
        turn: number of the person's turn, from 0.
        protected: texts that stay as they are, in any case, such as the values of facts.
    """
    texts, notes = (text,), list[str]()
    if "typos" in modifiers:
        texts, note = _with_typos(text, _random(seed, turn, "typos"), protected)
        notes += note
    if "interrupts" in modifiers:
        texts, note = _interrupted(texts[0], _random(seed, turn, "interrupts"), protected)
        notes += note
    return ModifiedTurn(texts, tuple(notes))


def _random(seed: int, turn: int, name: str) -> Random:
    return Random(f"{seed}/{turn}/{name}")  # a text, since seeds of texts do not depend on the process


def _with_typos(text: str, random: Random, protected: Sequence[str]) -> tuple[tuple[str], list[str]]:
    """Return a text with typing errors, and what they are."""
    pieces, notes, end = list[str](), list[str](), 0
    guarded = _spans(text, protected)
    for match in _WORD.finditer(text):
        word = match[0]
        letters = [i for i, char in enumerate(word) if char.isalpha()]
        is_word = len(letters) >= _TYPO_LENGTH and not re.search(r"[\d@/_<>{}\\]", word)
        if not is_word or _overlaps(match.span(), guarded) or random.random() >= _TYPO_RATE:
            continue
        kind = random.choice(_TYPOS)
        changed = kind(word, letters[1:], random)  # first letters are rarely wrong
        if changed != word:
            pieces += [text[end : match.start()], changed]
            end = match.end()
            notes.append(f'typos: "{word}" became "{changed}"')
    return ("".join([*pieces, text[end:]]),), notes


def _missed_key(word: str, letters: Sequence[int], random: Random) -> str:
    place = random.choice(letters)
    return word[:place] + word[place + 1 :]


def _double_key(word: str, letters: Sequence[int], random: Random) -> str:
    place = random.choice(letters)
    return word[:place] + word[place] + word[place:]


def _swapped_keys(word: str, letters: Sequence[int], random: Random) -> str:
    places = [i for i, following in pairwise(letters) if following == i + 1]
    if not places:
        return word
    place = random.choice(places)
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def _wrong_key(word: str, letters: Sequence[int], random: Random) -> str:
    place = random.choice(letters)
    near = _NEIGHBOURS.get(word[place].lower())
    if near is None:  # another script: its keyboard is not known
        return _swapped_keys(word, letters, random)
    key = random.choice(near)
    return word[:place] + (key.upper() if word[place].isupper() else key) + word[place + 1 :]


_TYPOS: tuple[Callable[[str, Sequence[int], Random], str], ...] = (_missed_key, _double_key, _swapped_keys, _wrong_key)


def _interrupted(text: str, random: Random, protected: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return a turn in two messages, or one that stops inside a sentence, and what was done."""
    words = list(_WORD.finditer(text))
    if len(words) < _MIN_WORDS or random.random() >= _INTERRUPT_RATE:
        return (text,), []
    guarded = _spans(text, protected)
    places = [word.start() for word in words[2:-1] if not _inside(word.start(), guarded)]
    if not places:
        return (text,), []
    place = random.choice(places)
    said, rest = text[:place].rstrip(), text[place:]
    loses = any(char.isdigit() for char in rest) or any(end > place for _, end in guarded)
    if random.random() < _CUT_RATE and not loses:
        return (said,), [f'interrupts: the turn stops before "{rest}"']
    return (said, rest), [f'interrupts: a second message begins with "{words_of(rest)}"']


def words_of(text: str, count: int = 3) -> str:
    """Return the first words of a text."""
    return " ".join(text.split()[:count])


def _spans(text: str, protected: Sequence[str]) -> list[tuple[int, int]]:
    """Return where protected texts are, in characters."""
    return [match.span() for part in protected if part for match in re.finditer(re.escape(part), text, re.IGNORECASE)]


def _overlaps(span: tuple[int, int], guarded: Sequence[tuple[int, int]]) -> bool:
    return any(start < span[1] and span[0] < end for start, end in guarded)


def _inside(place: int, guarded: Sequence[tuple[int, int]]) -> bool:
    return any(start < place < end for start, end in guarded)
