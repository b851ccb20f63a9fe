"""The registry of development people and test people, evals/people.toml.

Development people may be looked at while usertwin is developed. Test people are measured only: no setting is tuned on them, and
each look at them is noted in the registry with its date and reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import ClassVar

from usertwin.personas import ChatLog, UsageError, UsertwinError, load_log
from usertwin.personas.reading import STRICT, as_type, parse_toml, read_file

REGISTRY = Path(__file__).resolve().parents[1] / "people.toml"
#: A log is of a registered corpus, whatever its name, if this share of the corpus's test people speak in it.
_SAME_CORPUS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredCorpus:
    """A corpus of the registry.

    Attributes:
        sources: the names of its files, or of the built-in corpus.
        rule: how its people were divided, beside the rule at the top of the registry.
        development: people to develop with; everybody who is not in `test` is a development person, too.
        test: people who are only tested.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    sources: tuple[str, ...]
    rule: str
    development: tuple[str, ...]
    test: tuple[str, ...]

    def is_source(self, file: str, speakers: Set[str] | None) -> bool:
        """Return whether a log with this file name and these speakers (None if unknown) is of this corpus."""
        named = file in self.sources
        if speakers is None:
            return named
        test = len(speakers & {*self.test})
        return test >= max(1.0, _SAME_CORPUS * len(self.test)) or (named and bool(speakers & {*self.test, *self.development}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A look at test people of a registered corpus."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    date: str
    corpus: str
    people: tuple[str, ...]
    reason: str

    def to_toml(self) -> str:
        """Return the look as the lines to add to the registry."""
        values = {"date": self.date, "corpus": self.corpus, "people": list(self.people), "reason": self.reason}
        rows = [
            f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()
        ]  # JSON texts are TOML texts
        return "\n".join(["[[looks]]", *rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """All registered corpora by name, and the looks at their test people."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    corpora: Mapping[str, RegisteredCorpus]
    looks: tuple[Look, ...] = ()

    def corpus_of(self, source: str, log: ChatLog | None = None) -> str | None:
        """Return the name of the corpus that a source is; None for any other.

        A log is known by its speakers: many of the test people whatever its name, or any registered person in a file of the
        corpus's name. Without the log, the file name alone decides.
        """
        speakers = None if log is None else log.turn_counts().keys()
        return next((name for name, corpus in self.corpora.items() if corpus.is_source(Path(source).name, speakers)), None)


@cache
def registry(path: Path = REGISTRY) -> Registry:
    """Return the registry. UsageError if the file cannot be read."""
    return read_file(path, lambda content: as_type(Registry, parse_toml(content)), way_out="restore it", error=UsageError)


def people_of_kind(kind: str, source: str, log: ChatLog) -> list[str]:
    """Return the "development" or "test" people of a log. UsageError if it is of no registered corpus."""
    name = registry().corpus_of(source, log)
    if name is None:
        known = ", ".join(registry().corpora)
        raise UsageError(f'{source}: people = "{kind}" needs a registered corpus ({known}); name the people, or give a number')
    corpus = registry().corpora[name]
    return list(corpus.test if kind == "test" else corpus.development)


def registered_test_people(sources: Sequence[tuple[str, str]], logs: Mapping[str, ChatLog]) -> dict[str, tuple[str, ...]]:
    """Return the registered test people among (source, speaker) by corpus; `logs` holds loaded logs by source."""
    chosen: dict[str, tuple[str, ...]] = {}
    for source, speaker in dict.fromkeys(sources):
        if (name := corpus_of_test_person(source, speaker, logs.get(source))) is not None:
            chosen[name] = (*chosen.get(name, ()), speaker)
    return chosen


def corpus_of_test_person(source: str, speaker: str, log: ChatLog | None = None) -> str | None:
    """Return the corpus in which a speaker is a registered test person; None for anybody else.

    A log that is not given is read if a test person has the speaker's name; the source's file name decides if it cannot be.
    """
    corpora = registry().corpora
    if not any(speaker in corpus.test for corpus in corpora.values()):
        return None
    if log is None:
        with suppress(UsertwinError):
            log = load_log(source, skip_bad_lines=True)
    name = registry().corpus_of(source, log)
    return name if name is not None and speaker in corpora[name].test else None


def never_tuned(corpus: str, speaker: str) -> str:
    """Return why no setting is tuned on a test person, as the first part of a sentence."""
    return f'{corpus}: "{speaker}" is a test person, and no setting is tuned on test people'


def looks_at(chosen: Mapping[str, tuple[str, ...]], reason: str) -> list[Look]:
    """Return today's looks at these test people."""
    today = datetime.now(UTC).date().isoformat()
    return [Look(date=today, corpus=corpus, people=people, reason=reason) for corpus, people in chosen.items()]
