"""Read the folder of a training run.

Every file is validated against the shapes below, so a damaged file gives one error that names it.

    manifest.json                format, state, plan, people, pairs, sources, versions, check of the judge
    METHOD/result.json           steps, tokens, seconds, why it stopped, what was measured, examples
    METHOD/trainer_state.json    trl's log history: the metrics of each step, and the audits
    report.md                    a summary for people
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from usertwin.memory.training.model_card import METHODS
from usertwin.memory.training.rewards import Lessons
from usertwin.personas import UsageError
from usertwin.personas.files import refuse_links_in
from usertwin.personas.reading import as_type, parse_json, read_file

from .measured_turns import MANIFEST, RESULT
from .older_results import upgrade
from .result_shapes import ListwiseCheckShape

#: Formats of training folders. Format 1, of earlier versions, can be read but not resumed.
TRAINING_FORMAT = 2
_READABLE = (1, 2)
_DELETE = "delete it, and run the same `usertwin train` again"
_T = TypeVar("_T")


@dataclass(frozen=True)
class TrainingEstimate:
    """A value, the ends of its interval, and the p of a difference; None where there are too few people or conversations.

    A difference in a run of an earlier version has no p, but may have an interval.
    """

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class MeasuredChange:
    """A value of the base, the same of the trained model, and their paired difference; people weigh the same."""

    base: float | None = None
    trained: float | None = None
    difference: TrainingEstimate | None = None


@dataclass(frozen=True, kw_only=True)
class GroupResult:
    """Results on the held-out pairs of some people.

    Attributes:
        n: pairs.
        people: people.
        compared: pairs for which a trace of both passes the guards; None for a run of an earlier version, whose gains count a
            rejected trace as 0.
        base: guarded gain of the base's passing traces at these pairs, in nats per token.
        trained: guarded gain of the trained model's traces.
        difference: trained minus base, paired.
        passing: share of traces that pass the guards.
        leak_rate: share of traces that a guard rejects for a leak.
        reveals_action: share of traces that identify the action without the context; in no reward.
        words: words per trace.
    """

    n: int = 0
    people: int = 1
    compared: int | None = None
    base: TrainingEstimate | None = None
    trained: TrainingEstimate | None = None
    difference: TrainingEstimate | None = None
    passing: MeasuredChange | None = None
    leak_rate: MeasuredChange | None = None
    reveals_action: MeasuredChange | None = None
    words: MeasuredChange | None = None


@dataclass(frozen=True)
class Measurements:
    """Results of a method: the scorer that measured, the people trained on, the held-out people, and each person."""

    scorer: str | None = None
    seen: GroupResult | None = None
    unseen: GroupResult | None = None
    people: Mapping[str, GroupResult] = field(default_factory=dict[str, GroupResult])


@dataclass(frozen=True)
class ExampleTraces:
    """A held-out action with one trace of the base and one of the trained model."""

    action: str
    base: str
    trained: str


@dataclass(frozen=True, kw_only=True)
class MethodOutcome:
    """The outcome of a finished method.

    `stopped` says why it ended early, or is None. `lessons` counts the training pairs by what their rewards taught.
    """

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    stopped: str | None = None
    lessons: Lessons = field(default_factory=Lessons)
    measured: Measurements | None = None
    examples: list[ExampleTraces] = field(default_factory=list[ExampleTraces])


@dataclass(frozen=True, kw_only=True)
class TrainingManifest:
    """What was trained on what."""

    format: int
    kind: str
    state: str = "interrupted"
    plan: Mapping[str, Any] = field(default_factory=dict[str, Any])
    people: Mapping[str, list[str]] = field(default_factory=dict[str, list[str]])
    pairs: Mapping[str, int] = field(default_factory=dict[str, int])
    sources: Mapping[str, Any] | list[Any] = field(default_factory=dict[str, Any])
    versions: Mapping[str, Any] = field(default_factory=dict[str, Any])
    started_at: str | None = None
    judge_check: ListwiseCheckShape | None = None


@dataclass(frozen=True)
class TrainingRun:
    """A training run: its folder, its manifest, and the outcome of each method, None while unfinished, in report order."""

    folder: Path
    manifest: TrainingManifest
    methods: Mapping[str, MethodOutcome | None]


def is_training(folder: Path) -> bool:
    """Return whether the folder's manifest is that of a training run; False without a readable manifest."""
    try:
        manifest = parse_json((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("kind") == "training"


def read_training(folder: Path) -> TrainingRun:
    """Read a training run, finished or not.

    Args:
        folder: the run's folder.

    Raises:
        UsageError: the folder holds no training, one of an unknown format or a removed method, a damaged file, or a link.
    """
    refuse_links_in(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(f"{folder}: holds no run; name the folder of a training run")
    manifest = _read(TrainingManifest, path, "name another folder, or train again into a new one")
    if manifest.kind != "training":
        raise UsageError(f"{folder}: holds a run of another kind ({manifest.kind}); name the folder of a training run")
    if manifest.format not in _READABLE:
        formats = " and ".join(map(str, _READABLE))
        raise UsageError(
            f"{folder}: a training of format {manifest.format}, and this version reads {formats}; train again into a new folder"
        )
    try:
        methods = as_type(list[str], manifest.plan.get("methods") or [])
    except ValueError as error:
        raise UsageError(f"{path}: plan.methods: {error}; name another folder, or train again into a new one") from None
    started = {path.parent.name for path in folder.glob("*/*") if path.name in {RESULT, "checkpoints", "curves.jsonl"}}
    if "soup" in started or "soup" in methods:
        raise UsageError(
            f'{folder}: was trained with the removed method "soup" (a weighted sum of adapters); read its own report.md instead'
        )
    known = list(METHODS)
    names = sorted(started, key=lambda name: (known.index(name) if name in known else len(known), name))
    return TrainingRun(folder, manifest, {name: _outcome(folder / name / RESULT) for name in names})


def read_outcome(path: Path) -> dict[str, Any]:
    """Return the content of a method's result.json with present names. UsageError if it is damaged."""
    _read(MethodOutcome, path, _DELETE)
    return upgrade(parse_json(path.read_bytes()))


def _outcome(path: Path) -> MethodOutcome | None:
    return _read(MethodOutcome, path, _DELETE) if path.is_file() else None


def _read(shape: type[_T], path: Path, way_out: str) -> _T:
    """Return the content of a JSON file as a dataclass. UsageError names the file and the field that is wrong."""

    def parse(content: bytes) -> _T:
        value = parse_json(content)
        return as_type(shape, upgrade(value) if path.name == RESULT else value)

    return read_file(path, parse, way_out=way_out, error=UsageError)
