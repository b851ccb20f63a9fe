"""Why a whole turn is not what the person would say there: an echo, the goal's text, a line of the agent, a repetition.

Design: such a turn is still better than none. So these are defects that a model is asked to mend, and the least bad of all
attempts is kept. Short turns ("yes", "hi") may repeat anything, and the person may do what they are shown to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher
from functools import cached_property

from usertwin.memory import Triple, TripleStore
from usertwin.memory.models.chat import Sample
from usertwin.memory.text.sentences import sentences, size_in_words
from usertwin.memory.text.speaker_sides import SHORT_WORDS, SpeakerSides
from usertwin.memory.text.transcript import single_line
from usertwin.memory.text.words import word_tokens
from usertwin.personas import Pair
from usertwin.personas.style_card import StyleCard, count_style

from .turn_text import UNFINISHED, is_repetitive

GOAL_TEXT, ECHO, REPEATED = "the text of the goal", "an echo of the other side", "an earlier turn again"
OTHER_SIDE, LOOP = "a line of the other side", "the same words over and over"
#: The defects of usable turns, the least bad first.
USABLE = (UNFINISHED, GOAL_TEXT, ECHO, REPEATED, OTHER_SIDE, LOOP)
#: The share of the longer of two sentences from which on one is a copy of the other, and the fewest words copied in a row.
_COPIED, _RUN = 0.8, 3
#: Turns of the memory that tell the sides of a conversation apart.
_MAX_TURNS = 4000
#: The latest turns of the person that the style card counts.
_COUNTED = 2000


def badness(reply: Sample) -> int:
    """Return 0 for a turn without a defect, more for a worse one, and most for a reply without any turn."""
    if not reply.text:
        return len(USABLE) + 1
    return USABLE.index(reply.defect) + 1 if reply.defect in USABLE else 0


def usable_defect(text: str, query: Pair, shown: Sequence[Triple], sides: SpeakerSides | None = None) -> str:
    """Return the worst defect of `USABLE` that a turn has in a place of a conversation, as `TurnChecker` does."""
    return TurnChecker(query, shown, sides).defect(text)


class TurnChecker:
    """Finds the defects of turns at one place of a conversation.

    Args:
        query: the context and the goal; its action is ignored.
        shown: triples that show the person's habits.
        sides: what each side says; None if that is not known.
    """

    def __init__(self, query: Pair, shown: Sequence[Triple], sides: SpeakerSides | None = None) -> None:
        self._goal, self._sides, self._pairs = query.goal, sides, [triple.pair for triple in shown]
        self._own, self._others = _turns(query, own=True), _turns(query, own=False)

    def defect(self, text: str) -> str:
        """Return the worst defect of `USABLE` that a turn has here; "" if it has none."""
        if is_repetitive(text):
            return LOOP
        if self._sides is not None and self._sides.of_the_other_side(text):
            return OTHER_SIDE
        for turns, defect in ((self._own, REPEATED), (self._others, ECHO)):
            if size_in_words(text) > SHORT_WORDS and _plain(text) in map(_plain, turns):
                return defect
        if _copies(text, self._other_sentences, self._is_said) and not self._echoes:
            return ECHO
        return GOAL_TEXT if _copies(text, self._goal_sentences, self._is_said) and not self._recites else ""

    def _is_said(self, words: Sequence[str]) -> bool:
        """Return whether a turn that the person is shown to have said has these words in a row."""
        return any(f" {' '.join(words)} " in turn for turn in self._said)

    @cached_property
    def _said(self) -> list[str]:
        """The words of each turn that the person is shown to have said."""
        turns = [turn for pair in self._pairs for turn in (pair.action, *_turns(pair, own=True))]
        return [f" {' '.join(word_tokens(turn))} " for turn in turns]

    @cached_property
    def _echoes(self) -> bool:
        return any(copies(pair.action, _turns(pair, own=False)) for pair in self._pairs)

    @cached_property
    def _recites(self) -> bool:
        return any(copies(pair.action, [pair.goal]) for pair in self._pairs)

    @cached_property
    def _other_sentences(self) -> list[list[str]]:
        return [words for turn in self._others for words in _long_sentences(turn)]

    @cached_property
    def _goal_sentences(self) -> list[list[str]]:
        return _long_sentences(self._goal)


def copies(text: str, sources: Iterable[str]) -> bool:
    """Return whether a sentence of a text repeats a sentence of a source, nearly word for word."""
    return _copies(text, [words for source in sources for words in _long_sentences(source)], lambda words: False)


def _copies(text: str, sources: Sequence[Sequence[str]], is_known: Callable[[Sequence[str]], bool]) -> bool:
    """Return the same for the words of sentences; known sentences do not count."""
    return any(
        any(_is_copy(words, other) for other in sources) and not is_known(words)
        for words in (_long_sentences(text) if sources else ())
    )


class MemorySides:
    """What each side says in a memory, counted when it is first asked for, and again after each change of the memory."""

    def __init__(self, store: TripleStore) -> None:
        self._store = store
        self._counted: tuple[int, SpeakerSides | None] = -1, None

    def __call__(self) -> SpeakerSides | None:
        """Return what each side says."""
        generation = self._store.generation
        if self._counted[0] != generation:
            self._counted = generation, sides_of(self._store.triples())
        return self._counted[1]


class StyleCards:
    """How the person writes, counted over their latest turns in a memory, and again after each change of the memory."""

    def __init__(self, store: TripleStore) -> None:
        self._store = store
        self._counted: tuple[tuple[int, float], StyleCard | None] | None = None

    def __call__(self, query: Pair) -> StyleCard | None:
        """Return how the person wrote before a query; None if the memory holds no earlier turn."""
        key, counted = (self._store.generation, query.when), self._counted
        if counted is None or counted[0] != key:
            earlier = [t.pair.action for t in self._store.triples(abandoned=False) if t.pair.when < query.when]
            counted = self._counted = key, count_style(earlier[-_COUNTED:])
        return counted[1]


def sides_of(triples: Iterable[Triple]) -> SpeakerSides:
    """Return what each side says in a memory: the latest turns of the person, and the turns that they answered."""
    pairs = [triple.pair for triple in triples][-_MAX_TURNS:]
    own = [pair.action for pair in pairs if not pair.abandoned]
    return SpeakerSides(own, [pair.context[-1].text for pair in pairs if pair.context[-1:] and _answers(pair)])


def _plain(text: str) -> str:
    return single_line(text).casefold()


def _answers(pair: Pair) -> bool:
    return pair.context[-1].speaker != pair.speaker


def _turns(pair: Pair, *, own: bool) -> list[str]:
    return [turn.text for turn in pair.context if (turn.speaker == pair.speaker) == own]


def _long_sentences(text: str) -> list[list[str]]:
    return [word_tokens(sentence) for sentence in sentences(text) if size_in_words(sentence) > SHORT_WORDS]


def _is_copy(words: Sequence[str], other: Sequence[str]) -> bool:
    """Return whether most words of two sentences are the same, in runs."""
    enough, known = _COPIED * max(len(words), len(other)), set(other)
    if min(len(words), len(other)) < enough or sum(word in known for word in words) < enough:
        return False  # too few common words for any runs
    blocks = SequenceMatcher(None, words, other, autojunk=False).get_matching_blocks()
    copied = sum(block.size for block in blocks if block.size >= _RUN)
    return copied >= enough
