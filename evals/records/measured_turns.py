"""What was measured at held-out turns, and the folder of a run that keeps it.

The one design choice: a run's folder is all that reports, comparisons and judgements by hand read, and it is written turn by
turn; so a stopped run goes on where it was, and what is reported can be looked at and reckoned again.

    manifest.json     what was run: format, versions, models, prompts, seeds, settings, state; no secrets
    people/N.jsonl    a line for each held-out turn of a person
    people/N.json     what is known of that person besides: the split, leaks, endings, drift
    answers.sqlite    what models answered, so that nothing is asked twice
    verdicts.jsonl    what a judge said, a line for each pair of replies
    labels.jsonl      what somebody said who judged by hand
    result.json       every figure; report.html, report.md: the same to be read
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from usertwin.memory.jsonl import read_lines
from usertwin.personas import UsageError

#: The form of run folders that this version writes and reads.
RUN_FORMAT = 1
MANIFEST, RESULT, VERDICTS, LABELS = "manifest.json", "result.json", "verdicts.jsonl", "labels.jsonl"


@dataclass(frozen=True, slots=True)
class Memory:
    """A past moment that the twin was shown.

    Attributes:
        conversation_id: where it is from.
        position: which turn of it.
        similarity: how like the present moment it is (cosine).
        context: the turns before it, (who, text).
        action: what the person did.
        reasoning: its trace, if it was shown with one.
    """

    conversation_id: str
    position: int
    similarity: float
    context: tuple[tuple[str, str], ...]
    action: str
    reasoning: str | None = None


@dataclass(frozen=True, slots=True)
class MeasuredTurn:
    """What was measured at one held-out turn; everything with an arm's name is by arm.

    Attributes:
        person: whose turn, as the report calls them: corpus and speaker.
        conversation_id: where it is from.
        position: which turn of it.
        context: the latest turns before it, (who, text).
        action: what the person really said.
        characters: of the action as it is scored, the end of the turn included.
        goal: what only the person knew.
        bits: what the real action costs.
        choice: 1.0 if the real action was told from others of the same person (S4), 0.0 if not; ties share.
        replies: what was written there, one text for each sample.
        reasoning: the thought that was written before the first reply.
        similarity: cosine of each reply and the real action.
        rank: of the person's other actions, the share that each reply is less like than the real one (S3).
        recalled: what the twin was shown.
        other_action: what another person said somewhere, for checks of a judge.
        own_action: what the same person said somewhere else, likewise.
    """

    person: str
    conversation_id: str
    position: int
    context: tuple[tuple[str, str], ...]
    action: str
    characters: int
    goal: str = ""
    bits: Mapping[str, float] = field(default_factory=dict[str, float])
    choice: Mapping[str, float] = field(default_factory=dict[str, float])
    replies: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    reasoning: Mapping[str, str] = field(default_factory=dict[str, str])
    similarity: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    rank: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    recalled: tuple[Memory, ...] = ()
    other_action: str = ""
    own_action: str = ""

    @property
    def where(self) -> tuple[str, str]:
        """Person and conversation, for intervals."""
        return self.person, self.conversation_id

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MeasuredTurn:
        """Back from `to_json`. KeyError, TypeError, ValueError or AttributeError if it is something else."""

        def pairs(turns: Iterable[Iterable[str]]) -> tuple[tuple[str, str], ...]:
            return tuple((who, text) for who, text in turns)

        several: dict[str, Any] = {
            name: {arm: tuple(found) for arm, found in data[name].items()} for name in ("replies", "similarity", "rank")
        }
        memories = tuple(Memory(**dict[str, Any](memory, context=pairs(memory["context"]))) for memory in data["recalled"])
        read: dict[str, Any] = {**data, **several, "context": pairs(data["context"]), "recalled": memories}
        return cls(**read)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run. UsageError if the folder holds none, or one of another version."""
    path = folder / MANIFEST
    try:
        found: Any = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{folder}: no run is there; name the folder of a run") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); run the suite again into another folder") from error
    if isinstance(found, dict) and found.get("kind") == "simulate":
        raise UsageError(f"{folder}: holds conversations of `usertwin simulate`, and no run of a suite; name another folder")
    if isinstance(found, dict) and found.get("kind") == "training":
        raise UsageError(f"{folder}: holds a training of `usertwin train`, and no run of a suite; name another folder")
    if not isinstance(found, dict) or found.get("format") != RUN_FORMAT:
        told = found.get("format") if isinstance(found, dict) else None
        raise UsageError(
            f"{folder}: a run of format {told}, and this version reads format {RUN_FORMAT}; run the suite again elsewhere"
        )
    return found


def read_result(folder: Path) -> dict[str, Any]:
    """Every figure of a finished run. UsageError if there is no run, one of another version, or one that was not finished."""
    manifest = read_manifest(folder)
    path = folder / RESULT
    if manifest.get("state") != "complete" or not path.is_file():
        raise UsageError(f"{folder}: this run was not finished; the same command that began it goes on where it stopped")
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); run the suite again") from error


def read_turns(folder: Path) -> list[MeasuredTurn]:
    """Every measured turn of a run, person by person. UsageError names the file and line that is broken."""
    found: list[MeasuredTurn] = []
    for path in sorted((folder / "people").glob("*.jsonl"), key=lambda path: (len(path.stem), path.stem)):
        found += turns_of(path)
    return found


def turns_of(path: Path) -> list[MeasuredTurn]:
    """The measured turns of one file; a last line that was cut short by a kill, maybe within a letter, is left out."""
    return read_lines(path, MeasuredTurn.from_json, "measured turn", "delete that line, and run the suite again")
