"""The shapes of a run's JSON files: which keys reports read from them, and the types of the values.

A file may hold more keys. Optional keys are those that some runs, or runs of earlier versions, do not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NotRequired

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from usertwin.personas.reading import STRICT


class EstimateShape(TypedDict):
    """A value with its interval, n, and the tests of a difference."""

    value: float
    n: float
    low: NotRequired[float | None]
    high: NotRequired[float | None]
    p: NotRequired[float | None]
    p_holm: NotRequired[float | None]
    visible: NotRequired[float | None]


#: Estimates by arm or contrast, and by measure.
EstimatesShape = Mapping[str, Mapping[str, EstimateShape]]


class PersonShape(TypedDict):
    """The figures of one person."""

    turns: int
    conversations: int
    arms: EstimatesShape
    paired: EstimatesShape


class FamilyShape(TypedDict):
    """The tests that were declared beforehand."""

    measure: str
    contrasts: list[str]
    alpha: float


class JudgedContrastShape(TypedDict):
    """A judge's comparison of two arms."""

    win: EstimateShape
    ties: EstimateShape | None
    decided: NotRequired[EstimateShape | None]
    p: NotRequired[float | None]


class SanityShape(TypedDict):
    """A judge's answers to pairs with a known answer."""

    win: EstimateShape
    ties: EstimateShape
    must: str
    holds: NotRequired[bool | None]


class JudgeShape(TypedDict):
    """The figures of a judge."""

    model: str
    contrasts: Mapping[str, JudgedContrastShape]
    sanity: Mapping[str, SanityShape]
    consistent: EstimateShape | None
    first: EstimateShape | None
    unreadable: EstimateShape
    warnings: NotRequired[list[str]]


class KnownAnswersShape(SanityShape):
    """The same with the share that wins by chance."""

    chance: float


class ListwiseCheckShape(TypedDict):
    """The answers of a judge of reconstructions to questions with known answers."""

    model: str
    pairs: int
    conversations: int
    sanity: Mapping[str, KnownAnswersShape]
    unreadable: EstimateShape
    outcome: Literal["passed", "failed", "too few pairs"]
    sentence: str
    seed: int


class WinRateShape(TypedDict):
    """How often one reply wins against another; `holds`: whether it must, and does."""

    win: EstimateShape
    p: NotRequired[float | None]
    holds: NotRequired[bool | None]


class LikelihoodJudgeShape(TypedDict):
    """The figures of the judge by likelihood."""

    model: str
    contrasts: Mapping[str, WinRateShape]
    real: Mapping[str, WinRateShape]
    identical: EstimateShape
    usable: bool
    warnings: list[str]


class DiscriminatorControlsShape(TypedDict):
    """The controls of the discriminators; earlier versions had one of the first kind alone."""

    folds_by: str
    folds: int
    control: EstimateShape | None
    context_control: NotRequired[EstimateShape | None]
    misplaced: NotRequired[EstimateShape | None]
    people: NotRequired[Mapping[str, Mapping[str, EstimateShape]]]


class SpreadShape(TypedDict):
    """How much an arm's replies differ between people."""

    spread: EstimateShape | None
    matching: EstimateShape | None
    pairs: int
    distances: NotRequired[list[tuple[str, str, float, float]]]


class MemorizedShape(TypedDict):
    """The share of turns that the scoring model knows by heart."""

    value: float | None
    n: float


class LeakageShape(TypedDict):
    """The checks that no held-out turn was known beforehand."""

    near_duplicates: int
    of: int
    memorized: MemorizedShape | None
    checked: list[str]


class CalibrationBinShape(TypedDict):
    """Predicted and observed shares of leaving, for a range of predictions."""

    low: float
    high: float
    predicted: float
    observed: float
    n: float


class CalibrationShape(TypedDict):
    """The calibration of the probabilities of leaving."""

    brier: EstimateShape | None
    bins: list[CalibrationBinShape]


class EndingShape(TypedDict):
    """How well leaving is predicted for a person."""

    f1: EstimateShape | None
    calibration: NotRequired[CalibrationShape | None]


class DepthShape(TypedDict):
    """Closeness at one depth of a free simulation."""

    similarity: EstimateShape | None
    real_history: EstimateShape | None
    difference: EstimateShape | None
    style: NotRequired[EstimateShape | None]


class TransferShape(TypedDict):
    """The effect of one model's traces on another."""

    proposer: str
    scorer: str
    arm: str
    against: str
    bits_per_char: EstimateShape | None


class UserModelShape(TypedDict):
    """The figures of user models trained on one kind of data."""

    kind: str
    bits_per_char: EstimateShape | None
    against: EstimateShape | None
    without_thoughts: EstimateShape | None
    without_thoughts_against: EstimateShape | None


class UserModelsShape(TypedDict):
    """The experiment with fine-tuned user models."""

    of: str
    base: str
    thoughts: int
    examples: list[int]
    steps: list[int]
    turns: int
    people: int
    rows: list[UserModelShape]
    paired: Mapping[str, EstimateShape | None]


class RunResult(TypedDict):
    """The content of result.json."""

    arms: EstimatesShape
    paired: EstimatesShape
    people: Mapping[str, PersonShape]
    turns: int
    conversations: int
    twin_arm: str
    seed: int
    name: NotRequired[str | None]
    summary: NotRequired[str | None]
    warnings: NotRequired[list[str]]
    measured_at: NotRequired[str]
    suite_text: NotRequired[str | None]
    looks: NotRequired[list[Mapping[str, Any]]]
    prompts: NotRequired[Mapping[str, Any]]
    models: NotRequired[Mapping[str, Any] | None]
    settings: NotRequired[Mapping[str, Any] | None]
    versions: NotRequired[Mapping[str, Any] | None]
    intervals_over: NotRequired[str]
    question: NotRequired[list[str]]
    family: NotRequired[FamilyShape | None]
    traces: NotRequired[Mapping[str, EstimateShape]]
    judge: NotRequired[JudgeShape | None]
    likelihood_judge: NotRequired[LikelihoodJudgeShape | None]
    discriminator: NotRequired[DiscriminatorControlsShape | None]
    spread: NotRequired[Mapping[str, SpreadShape]]
    leakage: NotRequired[Mapping[str, LeakageShape] | None]
    endings: NotRequired[Mapping[str, EndingShape | None] | None]
    drift: NotRequired[Mapping[int, DepthShape] | None]
    drift_lengths: NotRequired[Mapping[str, EstimateShape | None] | None]
    transfer: NotRequired[list[TransferShape] | None]
    user_models: NotRequired[UserModelsShape | None]


class ClosenessShape(TypedDict):
    """The closeness that a twin's record holds."""

    arms: EstimatesShape
    paired: EstimatesShape
    turns: int
    measured_at: str
    people: NotRequired[Mapping[str, PersonShape]]
    conversations: NotRequired[int]
    intervals_over: NotRequired[str]
    twin_arm: NotRequired[str]
    question: NotRequired[list[str]]
    family: NotRequired[FamilyShape | None]
    traces: NotRequired[Mapping[str, EstimateShape]]
    ending: NotRequired[Mapping[str, EstimateShape]]
    warnings: NotRequired[list[str]]


class MeasuredTwinShape(ClosenessShape):
    """The same with all that its table shows."""

    twin: str
    models: Mapping[str, str | None]
    seed: int
    against: str | None


class TunedRowShape(TypedDict):
    """A setting that was compared, and its figures."""

    k: int
    window: int
    traces: str
    reasons: bool
    chosen: bool
    bits_per_char: NotRequired[EstimateShape | None]
    unlikeness: NotRequired[EstimateShape | None]
    against_plain: EstimateShape | None


class RerankingShape(TypedDict):
    """The comparison of rules for the best of several replies with one reply."""

    rules: list[Mapping[str, Any]]
    turns: int
    single: float


class TuningShape(TypedDict):
    """The comparison behind a twin's settings."""

    settings: list[TunedRowShape]
    turns: int
    conversations: int
    scorer: str
    words: NotRequired[EstimateShape | None]
    reranking: NotRequired[RerankingShape]


class ColumnShape(TypedDict):
    """A measure of each person, in the order of the people; None without data."""

    value: list[float | None]
    n: list[float | None]


class PeopleColumns(TypedDict):
    """The values of each person in a file of joined runs; `distances` hold two indices of people, then two distances."""

    labels: list[str]
    turns: list[int]
    conversations: list[int]
    arms: Mapping[str, Mapping[str, ColumnShape]]
    paired: Mapping[str, Mapping[str, ColumnShape]]
    controls: Mapping[str, ColumnShape]
    distances: Mapping[str, list[tuple[int, int, float, float]]]


class JoinedFile(TypedDict):
    """What a file of joined runs holds beside the figures of a run."""

    format: int
    kind: Literal["joined"]
    people: PeopleColumns
    spread: Mapping[str, SpreadShape]
    discriminator: DiscriminatorControlsShape | None


class RunManifest(TypedDict):
    """The content of a run's manifest.json."""

    format: int
    kind: NotRequired[str]
    state: NotRequired[str]
    started_at: NotRequired[str]
    suite: NotRequired[Mapping[str, Any]]
    sources: NotRequired[Mapping[str, str]]
    twins: NotRequired[Mapping[str, str]]
    versions: NotRequired[Mapping[str, Any]]
    prompts: NotRequired[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftTurn:
    """A person's real turn (`action`), the reply after the twin's own turns (`free`), and after the real turns (`forced`).

    `depth` is the number of the person's turn in the conversation, from 1. Similarities are cosines to the real turn. `turns`
    is the number of the person's turns in the conversation (None in earlier versions), and `left_after` after how many of them
    the twin would have left; None if it would not have left in the simulated turns.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    person: str
    conversation_id: str
    depth: int
    action: str
    free: str
    forced: str
    free_similarity: float
    forced_similarity: float
    turns: int | None = None
    left_after: int | None = None


class PersonFacts(TypedDict):
    """The content of people/N.json: what is known of a person besides the measured turns."""

    twin_arm: str
    triples: int
    k: int
    window: int
    leakage: LeakageShape
    endings: EndingShape | None
    drift: list[DriftTurn]
    embedder: NotRequired[str]
    judge_check: NotRequired[ListwiseCheckShape | None]
