"""The cost of the reward is measured between steps that differ in the reward alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_model import tiny_model

from usertwin.evals.benchmarks import training as bench_train
from usertwin.evals.benchmarks.training import TrainSizes, overhead_figures, reading_figures
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer, Likelihood
from usertwin.memory.training.dataset import TrainingExample
from usertwin.personas import ChatLog, ModelError, split_pairs

pytest.importorskip("trl")
TINY = TrainSizes(batch=4, group=2, rounds=2)


@pytest.fixture
def lessons(log: ChatLog) -> list[TrainingExample]:
    return [TrainingExample("log", pair) for pair in split_pairs(log, "Ann").corpus if not pair.abandoned]


class Clock:
    """A clock that goes on by a second whenever it is looked at, so that no real time decides anything."""

    now = 0.0

    def perf_counter(self) -> float:
        self.now += 1
        return self.now


class Slow(FakeScorer):
    """Takes five seconds of the clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        self.clock.now += 5
        return super().score(items)


def test_what_the_scorer_takes_and_nothing_else_is_between_the_two_sides(
    tmp_path: Path, lessons: list[TrainingExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(bench_train, "time", clock)
    found = dict(overhead_figures(tiny_model(tmp_path / "base"), Slow(clock), FakeEmbedder(64), lessons, TINY))
    assert set(found) == {"train.reward_overhead", "train.reward_share", "train.grpo_step_s"}
    assert {one.n for one in found.values()} == {TINY.rounds}
    # Two pairs a step are scored, once each; the clock is looked at twice for each of the four terms, and at the step's end.
    assert found["train.reward_overhead"].value == found["train.grpo_step_s"].value == 2 * 5 + 4 * 2 + 1
    assert found["train.reward_share"].value == pytest.approx((2 * 5 + 4) / 19)


def test_ours_goes_first_in_one_round_and_second_in_the_next() -> None:
    asked: list[int] = []

    def ours(*, completion_ids: Any, number: int, **_: Any) -> list[float]:
        asked.append(number)
        return [0.5] * len(completion_ids)

    written: list[Any] = []
    [function] = bench_train._in_turn([ours], written, [])
    told = [
        function(completion_ids=[[step]], trainer_state=SimpleNamespace(global_step=step), number=step) for step in range(8)
    ]
    assert asked == [0, 3, 4, 7]
    assert told == [[0.5], [1.0], [1.0], [0.5]] * 2
    assert written == [[[step]] for step in range(8)]


def test_steps_that_wrote_other_tokens_are_not_compared(
    tmp_path: Path, lessons: list[TrainingExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    monkeypatch.setattr(transformers, "set_seed", lambda seed: None)
    with pytest.raises(ModelError, match="the same tokens"):
        list(overhead_figures(tiny_model(tmp_path / "base"), FakeScorer(), FakeEmbedder(64), lessons, TINY))


def test_a_step_that_reads_once_is_held_against_the_same_step_that_reads_all(
    tmp_path: Path, lessons: list[TrainingExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that counts the tokens read: what is measured is the reading, of the same rows on both sides."""
    from transformers.models.llama.modeling_llama import LlamaModel

    clock, own = SimpleNamespace(read=0, perf_counter=lambda: clock.read), LlamaModel.forward

    def counted(self: Any, input_ids: Any = None, **told: Any) -> Any:
        clock.read += input_ids.numel()
        return own(self, input_ids=input_ids, **told)

    monkeypatch.setattr(bench_train, "time", clock)
    monkeypatch.setattr(LlamaModel, "forward", counted)
    found = dict(reading_figures(tiny_model(tmp_path / "base"), lessons, TINY))
    assert set(found) == {"train.reading_once", "train.dpo_step_s"}
    assert {one.n for one in found.values()} == {TINY.rounds}
    assert 0 < found["train.reading_once"].value < 0.6
