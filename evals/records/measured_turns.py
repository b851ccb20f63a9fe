"""Measurements of held-out turns, and the run folder that holds them.

Design: reports, comparisons and judgements by hand read the run folder alone, which is written turn by turn. So a stopped run
resumes, and every reported figure can be inspected and computed again.

    manifest.json     the run: format, versions, models, prompts, seeds, settings, state; no secrets
    people/N.jsonl    one line per held-out turn of a person
    people/N.json     other facts about that person: split, leaks, endings, drift
    answers.sqlite    cached completions
    verdicts.jsonl    verdicts of the judge, one line per pair of replies
    labels.jsonl      labels by human raters
    result.json       every figure; report.html and report.md present them
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from usertwin.evals.arm_names import with_current_arms
from usertwin.memory.jsonl import read_lines
from usertwin.personas import UsageError
from usertwin.personas.files import refuse_links_in
from usertwin.personas.reading import STRICT, as_type, parse_json, read_file

from .older_results import upgrade, without_dropped_fields
from .result_shapes import PersonFacts, RunManifest, RunResult

_T = TypeVar("_T")

#: The format of run folders that this version writes and reads.
RUN_FORMAT = 1
MANIFEST, RESULT, VERDICTS, LABELS = "manifest.json", "result.json", "verdicts.jsonl", "labels.jsonl"
#: The key of the real action beside those of arms; no arm can have this name.
REAL_TURN = "(real)"
_AGAIN = "run the suite again"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecalledTurn:
    """A past turn of the person that the twin was shown, with its trace if it was shown with one.

    `similarity` is the cosine to the present context; `context` the turns before, (speaker, text).
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    conversation_id: str
    position: int
    similarity: float
    context: tuple[tuple[str, str], ...]
    action: str
    reasoning: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextFit:
    """Cosines of a text with parts of a context; 0 for a part that is not there.

    Attributes:
        latest: with the latest turn of somebody else.
        context: with the mean of all turns of the context.
        own: with the person's own latest turn.
        goal: with the person's goal.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    latest: float
    context: float
    own: float
    goal: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PastTurn:
    """A remembered turn of the person, for the controls of the discriminators.

    `context` and `goal` are its own; `fit` is that of the action in its own context, `misplaced_fit` that in the context of the
    held-out turn.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    conversation_id: str
    position: int
    context: tuple[tuple[str, str], ...]
    action: str
    goal: str = ""
    fit: ContextFit
    misplaced_fit: ContextFit


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredTurn:
    """The measurements of one held-out turn; mappings are by arm.

    Attributes:
        person: corpus and speaker, as in reports.
        position: the index of the turn in its conversation.
        context: the latest turns before it, (speaker, text).
        action: the person's real turn.
        characters: of the action as it is scored, the end of the turn included.
        goal: the person's goal, which only the person knew.
        bits: cost of the real action.
        choice: 1.0 if the real action scores above other actions of the person (S4), 0.0 if not; ties share.
        replies: the replies, one text per sample.
        traces: the number of shown pairs that carry a trace.
        reasoning: the trace written before the first reply.
        similarity: cosine of each reply and the real action.
        rank: for each reply, the share of the person's other actions that are less similar to it than the real one (S3).
        recalled: the turns that the twin was shown.
        other_action: a turn of another person, for the sanity checks of a judge.
        past: a remembered turn of the same person, for the controls of the discriminators.
        real_fit: how the real action fits its context.
        fit: how the first reply does.
        outside_gain: how much the person's past helps a model outside the action model's family to predict the first reply, or
            the real action (`REAL_TURN`), in bits per character.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

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
    traces: Mapping[str, int] = field(default_factory=dict[str, int])
    similarity: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    rank: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    recalled: tuple[RecalledTurn, ...] = ()
    other_action: str = ""
    past: PastTurn | None = None
    real_fit: ContextFit | None = None
    fit: Mapping[str, ContextFit] = field(default_factory=dict[str, ContextFit])
    outside_gain: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def cluster(self) -> tuple[str, str]:
        """Person and conversation; turns of the same one are not independent."""
        return self.person, self.conversation_id

    def to_json(self) -> dict[str, Any]:
        """Return the turn as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> MeasuredTurn:
        """Read the object of `to_json`, or that of an earlier version. ValueError for any other value."""
        turn = as_type(cls, without_dropped_fields(raw))
        by_arm = ("bits", "choice", "fit", "outside_gain", "reasoning", "replies", "similarity", "rank", "traces")
        current = {name: {with_current_arms(arm): value for arm, value in getattr(turn, name).items()} for name in by_arm}
        return replace(turn, **current)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a run, earlier names of arms replaced. UsageError without a run of this format, or for a link."""
    refuse_links_in(folder)
    path, way_out = folder / MANIFEST, "run the suite again into another folder"
    missing = f"{folder}: holds no run; name the folder of a run"
    raw = read_file(path, parse_json, way_out=way_out, error=UsageError, missing=missing)
    manifest: dict[str, Any] = raw if isinstance(raw, dict) else {}
    if manifest.get("kind") == "simulate":
        raise UsageError(f"{folder}: holds conversations of `usertwin simulate`, not a run of a suite; name another folder")
    if manifest.get("kind") == "training":
        raise UsageError(f"{folder}: holds a run of `usertwin train`, not of a suite; name another folder")
    if (version := manifest.get("format")) != RUN_FORMAT:
        raise UsageError(
            f"{folder}: a run of format {version}, but this version reads format {RUN_FORMAT}; run the suite again elsewhere"
        )
    return _checked(RunManifest, path, manifest, way_out)


def read_result(folder: Path) -> dict[str, Any]:
    """Return every figure of a finished run, earlier names replaced. UsageError without a finished run."""
    manifest = read_manifest(folder)
    path = folder / RESULT
    if manifest.get("state") != "complete" or not path.is_file():
        raise UsageError(f"{folder}: this run is not finished; run the same command again to resume it")
    value = read_file(path, parse_json, way_out=_AGAIN, error=UsageError)
    return _checked(RunResult, path, value, _AGAIN)


def read_facts(path: Path) -> dict[str, Any]:
    """Return the facts about a person in people/N.json, earlier names replaced. UsageError if the file is damaged."""
    way_out = "delete the file, and run the suite again"
    return _checked(PersonFacts, path, read_file(path, parse_json, way_out=way_out, error=UsageError), way_out)


def read_turns(folder: Path) -> list[MeasuredTurn]:
    """Return every measured turn of a run, person by person. UsageError names the file and the line that is broken."""
    paths = sorted((folder / "people").glob("*.jsonl"), key=lambda path: (len(path.stem), path.stem))
    return [turn for path in paths for turn in read_turn_file(path)]


def read_turn_file(path: Path) -> list[MeasuredTurn]:
    """Return the measured turns of one file, without an incomplete last line. UsageError names a line that is broken."""
    return read_lines(path, MeasuredTurn.from_json, "measured turn", "delete that line, and run the suite again")


def _checked(shape: type[_T], path: Path, value: Any, way_out: str) -> dict[str, Any]:
    """Return the value of a file with present names, all of its keys kept. UsageError if it does not have the shape."""
    current = upgrade(value)
    try:
        as_type(shape, current)
    except ValueError as error:
        raise UsageError(f"{path}: {error}; {way_out}") from None
    return current
