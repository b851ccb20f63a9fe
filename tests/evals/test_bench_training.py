"""evals/benchmarks/training.py: the two sides of a benchmark differ in the measured part only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_training import short_traces
from tiny_model import one_thread

from usertwin.evals.benchmarks import training as benchmark
from usertwin.evals.benchmarks.training import TrainSizes, prefix_figures, reward_figures
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer, Likelihood
from usertwin.memory.training.dataset import TrainingExample
from usertwin.personas import ChatLog, ModelError, split_pairs

pytest.importorskip("trl")
TINY = TrainSizes(batch=4, group=2, rounds=2)


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    """Compute in one thread and sample short traces."""
    with one_thread(), short_traces():
        yield


@pytest.fixture
def examples(log: ChatLog) -> list[TrainingExample]:
    return [TrainingExample("log", pair) for pair in split_pairs(log, "Ann").corpus if not pair.abandoned]


class CountingClock:
    """A clock that advances by a second whenever it is read."""

    now = 0.0

    def perf_counter(self) -> float:
        self.now += 1
        return self.now


class SlowScorer(FakeScorer):
    """Takes five seconds of the clock."""

    def __init__(self, clock: CountingClock) -> None:
        self.clock = clock

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        self.clock.now += 5
        return super().score(items)


def test_the_sides_of_the_reward_benchmark_differ_by_the_reward(
    base: Path, examples: list[TrainingExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = CountingClock()
    monkeypatch.setattr(benchmark, "time", clock)
    figures = dict(reward_figures(base, SlowScorer(clock), FakeEmbedder(64), examples, TINY))
    assert set(figures) == {"train.reward_overhead", "train.reward_share", "train.grpo_step_s"}
    assert {figure.n for figure in figures.values()} == {TINY.rounds}
    # A step scores two pairs once each; the clock is read twice for each of the four terms, and at the end of the step.
    assert figures["train.reward_overhead"].value == figures["train.grpo_step_s"].value == 2 * 5 + 4 * 2 + 1
    assert figures["train.reward_share"].value == pytest.approx((2 * 5 + 4) / 19)


def test_the_order_of_the_sides_alternates() -> None:
    steps: list[int] = []

    def reward(*, completion_ids: Any, number: int, **_: Any) -> list[float]:
        steps.append(number)
        return [0.5] * len(completion_ids)

    sampled: list[Any] = []
    [function] = benchmark._alternating([reward], sampled, [])
    rewards = [
        function(completion_ids=[[step]], trainer_state=SimpleNamespace(global_step=step), number=step) for step in range(8)
    ]
    assert steps == [0, 3, 4, 7]
    assert rewards == [[0.5], [1.0], [1.0], [0.5]] * 2
    assert sampled == [[[step]] for step in range(8)]


def test_steps_that_sampled_different_tokens_are_not_compared(
    base: Path, examples: list[TrainingExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    monkeypatch.setattr(transformers, "set_seed", lambda seed: None)
    with pytest.raises(ModelError, match="the same tokens"):
        list(reward_figures(base, FakeScorer(), FakeEmbedder(64), examples, TrainSizes(batch=4, group=2, rounds=1)))


def test_prefix_sharing_is_compared_with_the_same_step_without_it(
    base: Path, examples: list[TrainingExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock counts encoded tokens, so the figure is the share of tokens on the same rows."""
    from transformers.models.llama.modeling_llama import LlamaModel

    clock, plain_forward = SimpleNamespace(tokens=0, perf_counter=lambda: clock.tokens), LlamaModel.forward

    def forward(self: Any, input_ids: Any = None, **options: Any) -> Any:
        clock.tokens += input_ids.numel()
        return plain_forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(benchmark, "time", clock)
    monkeypatch.setattr(LlamaModel, "forward", forward)
    figures = dict(prefix_figures(base, examples, TINY))
    assert set(figures) == {"train.prefix_sharing", "train.dpo_step_s"}
    assert {figure.n for figure in figures.values()} == {TINY.rounds}
    assert 0 < figures["train.prefix_sharing"].value < 0.6
