"""A persona: the short description of a person that a twin carries beside its memory.

Design: a persona derived from a log states only counts (length, case, questions, ...) and guesses no traits. To say more about
a person, write a TOML file.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from .errors import LogError
from .pairs import Pair
from .reading import parse_toml, read_file

_POLITE = re.compile(r"\b(please|thanks|thank you|thx)\b", re.IGNORECASE)
_COUNTS = re.compile(r" usually writes about \d+ words? a turn, starts \d+% of turns in lower case, ")
_SAMPLES = 5


@dataclass(frozen=True, slots=True)
class Persona:
    """The person that a twin plays.

    `description` is a few sentences, `typical_words` the median number of words in a turn, and `sample_turns` a few real turns
    for display.
    """

    name: str
    description: str = ""
    typical_words: int = 0
    sample_turns: tuple[str, ...] = ()

    @property
    def derived(self) -> bool:
        """Whether the description only states counts, as `derive_persona` writes it."""
        return _COUNTS.search(self.description) is not None

    def to_json(self) -> dict[str, Any]:
        """Return the persona as a JSON object for `Persona.from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Persona:
        """Return a persona from an object with these four keys; only "name" is required. LogError names an invalid key."""
        if not isinstance(value, dict):
            raise LogError("a persona is an object")
        value = cast("dict[str, Any]", value)
        name, keys = value.get("name"), ("name", "description", "typical_words", "sample_turns")
        if unknown := '", "'.join(sorted({*value} - {*keys})):
            raise LogError(f'unknown key "{unknown}"; a persona has {", ".join(keys)}')
        if not isinstance(name, str) or not name.strip():
            raise LogError('a persona needs a "name"')
        description, words, samples = value.get("description", ""), value.get("typical_words", 0), value.get("sample_turns", ())
        if not isinstance(description, str) or not isinstance(words, int) or isinstance(words, bool):
            raise LogError('a persona\'s "description" must be text and its "typical_words" an integer')
        if not isinstance(samples, list | tuple) or not all(isinstance(s, str) for s in cast("list[Any]", samples)):
            raise LogError('a persona\'s "sample_turns" must be a list of texts')
        return cls(name.strip(), description, words, tuple(cast("list[str]", samples)))


def read_persona(path: str | Path) -> Persona:
    """Read a persona from a TOML file with `name` and optionally `description`, `typical_words` and `sample_turns`.

    Raises:
        LogError: the file is missing, not TOML, or not a persona; the message names the file.
    """

    def parse(content: bytes) -> Persona:
        try:
            return Persona.from_json(parse_toml(content))
        except ValueError as error:
            raise LogError(f"{path}: {error}") from None

    return read_file(Path(path), parse, way_out="name a TOML file with --persona", error=LogError)


def derive_persona(pairs: Sequence[Pair], name: str) -> Persona:
    """Return a persona whose every statement is a count over the given pairs (at least one)."""
    pairs = [pair for pair in pairs if not pair.abandoned]
    actions = [pair.action for pair in pairs]
    words = round(statistics.median(len(action.split()) for action in actions))
    lower = _share(actions, lambda a: a[:1].islower())
    description = (
        f"{name} usually writes about {words} word{'s' if words != 1 else ''} a turn, "
        f"starts {lower:.0%} of turns in lower case, "
        f"asks a question in {_share(actions, lambda a: '?' in a):.0%} of turns, "
        f"exclaims in {_share(actions, lambda a: '!' in a):.0%}, "
        f"and says please or thanks in {_share(actions, lambda a: bool(_POLITE.search(a))):.0%}. "
        f"Seen in {len(actions)} turns of {len({p.conversation_id for p in pairs})} conversations."
    )
    by_typicality = sorted(pairs, key=lambda p: (abs(len(p.action.split()) - words), -p.when, p.position))
    samples = dict.fromkeys(" ".join(pair.action.split()) for pair in by_typicality)
    return Persona(name, description, words, tuple(samples)[:_SAMPLES])


def _share(actions: Sequence[str], predicate: Callable[[str], bool]) -> float:
    return sum(predicate(action.strip()) for action in actions) / len(actions)
