"""The folder of a training run, read back.

The one design choice: what is read is checked against the shapes below before anything is done with it, so that a damaged file
is one sentence that names it, and what comes after need not ask again; a line that a kill cut off is left out and counted.

    manifest.json            what was trained on what: format, state, plan, people, pairs, sources, versions
    METHOD/curves.jsonl      a line for each training step ("values") and each look at held-out pairs ("audit")
    soup/PART/...            for that method likewise of each part, whose curves its own hold one after the other
    METHOD/result.json       what came of it: steps, tokens, seconds, why it stopped, what was measured, examples
    report.html, report.md, curves.svg   the same to be read
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from usertwin.memory.training.model_card import METHODS
from usertwin.personas import UsageError

from .measured_turns import MANIFEST, RESULT

if TYPE_CHECKING:
    from pydantic import TypeAdapter

#: The form of training folders that this version reads.
TRAINING_FORMAT = 1
CURVES = "curves.jsonl"
_AGAIN = "delete it, and run the same `usertwin train` again"
_Shape = TypeVar("_Shape")


@dataclass(frozen=True)
class TrainingEstimate:
    """A value and the ends of its interval, None where there are too few for one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class MeasuredChange:
    """A number of the base, the same of the trained model, and the paired difference, of which people weigh the same."""

    base: float | None = None
    trained: float | None = None
    difference: TrainingEstimate | None = None


@dataclass(frozen=True)
class Group:
    """What was measured on some people's held-out pairs.

    Attributes:
        n: pairs.
        people: whose.
        base: novel gain of the base's traces, nats per token.
        trained: of the trained model's.
        difference: trained minus base, paired.
        leak_rate: share of traces that a guard rejects since they tell the action.
        gives_away: share of traces that tell the action without the context (the audit, which is in no reward).
        words: of a trace, on average.
    """

    n: int = 0
    people: int = 1
    base: TrainingEstimate | None = None
    trained: TrainingEstimate | None = None
    difference: TrainingEstimate | None = None
    leak_rate: MeasuredChange | None = None
    gives_away: MeasuredChange | None = None
    words: MeasuredChange | None = None


@dataclass(frozen=True)
class Measured:
    """What was measured after the training: with which scorer, of the people trained on, of others, and of each."""

    scorer: str | None = None
    seen: Group | None = None
    unseen: Group | None = None
    people: Mapping[str, Group] = field(default_factory=dict[str, Group])


@dataclass(frozen=True)
class Example:
    """A held-out pair with a trace of the base and one of the trained model."""

    action: str
    base: str
    trained: str
    context: list[Any] = field(default_factory=list[Any])


@dataclass(frozen=True)
class MethodOutcome:
    """What came of a method; `stopped` says why it ended early, None if it did not."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    stopped: str | None = None
    measured: Measured | None = None
    examples: list[Example] = field(default_factory=list[Example])


@dataclass(frozen=True)
class Manifest:
    """What was trained on what; see the top of this file."""

    format: int
    kind: str
    state: str = "interrupted"
    plan: Mapping[str, Any] = field(default_factory=dict[str, Any])
    people: Mapping[str, list[str]] = field(default_factory=dict[str, list[str]])
    pairs: Mapping[str, int] = field(default_factory=dict[str, int])
    sources: Mapping[str, Any] | list[Any] = field(default_factory=dict[str, Any])
    versions: Mapping[str, Any] = field(default_factory=dict[str, Any])
    started_at: str | None = None


@dataclass(frozen=True)
class _Line:
    step: int
    values: Mapping[str, Any] | None = None
    audit: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Curve:
    """One number over the steps at which it was told, in order; both tuples are of the same length."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class MethodRun:
    """One method of a training.

    Attributes:
        name: "sft", "dpo", "grpo", "e2e".
        values: curves of the training itself, by name.
        audits: curves of the looks at fixed held-out pairs.
        audited: pairs of each look; 0 if not told.
        outcome: None while it is not finished.
        cut: lines of the curves that a kill cut off.
    """

    name: str
    values: Mapping[str, Curve]
    audits: Mapping[str, Curve]
    audited: int
    outcome: MethodOutcome | None
    cut: int


@dataclass(frozen=True)
class TrainingRun:
    """A training: its folder, what was planned, and its methods in the order of reports."""

    folder: Path
    manifest: Manifest
    methods: tuple[MethodRun, ...]


def is_training(folder: Path) -> bool:
    """Whether a folder's manifest says that it holds a training run; False if there is none that can be read."""
    try:
        found: Any = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("kind") == "training"


def read_training(folder: Path) -> TrainingRun:
    """Read a training run, finished or not.

    Args:
        folder: the run's folder.

    Raises:
        UsageError: there is no training, it is of another version, or a file of it is damaged; names the file and the line.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(f"{folder}: no run is there; name the folder of a training run")
    manifest = _checked(Manifest, _bytes_of(path), str(path), "name another folder, or train again into a new one")
    if manifest.kind != "training":
        raise UsageError(f"{folder}: holds a run of another kind ({manifest.kind}), and no training; name another folder")
    if manifest.format != TRAINING_FORMAT:
        raise UsageError(
            f"{folder}: a training of format {manifest.format}, and this version reads format {TRAINING_FORMAT}; train again "
            "into another folder"
        )
    known = list(METHODS)
    names = [one.parent.name for name in (CURVES, RESULT) for one in folder.glob(f"*/{name}")]
    in_order = sorted(set(names), key=lambda name: (known.index(name) if name in known else len(known), name))
    return TrainingRun(folder, manifest, tuple(_method(folder / name) for name in in_order))


def _method(folder: Path) -> MethodRun:
    lines, cut = _lines(folder / CURVES)
    path = folder / RESULT
    outcome = _checked(MethodOutcome, _bytes_of(path), str(path), _AGAIN) if path.is_file() else None
    audits = [(line.step, line.audit) for line in lines if line.audit]
    sizes = [n for _, audit in audits if isinstance(n := audit.get("n"), int)]
    return MethodRun(
        name=folder.name,
        values=_curves((line.step, line.values) for line in lines if line.values),
        audits=_curves((step, {name: value for name, value in audit.items() if name != "n"}) for step, audit in audits),
        audited=max(sizes, default=0),
        outcome=outcome,
        cut=cut,
    )


def _lines(path: Path) -> tuple[list[_Line], int]:
    """The lines of a file of curves, and how many were cut off: the last one, maybe within a letter, or none."""
    if not path.is_file():
        return [], 0
    *whole, rest = _bytes_of(path).split(b"\n")
    way_out = "delete that line, and write the report again with `usertwin report`"
    found = [_checked(_Line, line, f"{path}, line {number}", way_out) for number, line in enumerate(whole, 1) if line.strip()]
    if not rest.strip():
        return found, 0
    try:  # a line that lacks nothing but its end counts: no object is whole without its last brace
        return [*found, _checked(_Line, rest, str(path), way_out)], 0
    except UsageError:
        return found, 1


def _curves(told: Iterable[tuple[int, Mapping[str, Any]]]) -> dict[str, Curve]:
    """What was told at each step as curves; a step that was done again after a kill counts as it was the last time."""
    found: dict[str, dict[int, float]] = {}
    for step, values in told:
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15 and isfinite(value):
                found.setdefault(name, {})[step] = float(value)
    return {name: Curve(tuple(sorted(at)), tuple(at[step] for step in sorted(at))) for name, at in found.items()}


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); see that you may read it") from error


@cache
def _adapter(shape: type[_Shape]) -> TypeAdapter[_Shape]:
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


def _checked(shape: type[_Shape], data: bytes, where: str, way_out: str) -> _Shape:
    """JSON of a shape; UsageError says where it is not."""
    from pydantic import ValidationError

    try:
        return _adapter(shape).validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(f"{where}: damaged ({place + ': ' if place else ''}{first['msg']}); {way_out}") from None
