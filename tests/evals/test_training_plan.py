"""evals/training_runs/plan.py: the description of a plan matches what training does, and loads no model."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import tiny_model

from conftest import PAIR
from usertwin.evals.training_runs.plan import TrainingPlan, describe_plan
from usertwin.memory.recon.propose import expected_trace_tokens
from usertwin.memory.training.config import TRAIN_METHODS, TrainingConfig
from usertwin.memory.training.dataset import DatasetSplit, TrainingExample

GIB = 2**30


def dataset(train: int = 40, people: int = 2) -> DatasetSplit:
    """A split with that many training pairs of that many people."""
    own = tuple(TrainingExample(f"log/p{place % people}", replace(PAIR, position=place)) for place in range(train))
    return DatasetSplit(own, own[:3], own[:5], tuple(TrainingExample(f"log/u{place}", PAIR) for place in range(7)))


def described(*methods: Any, train: int = 40, **options: Any) -> list[str]:
    plan_options = {name: options.pop(name) for name in ("scorer", "measured_by", "scorer_precision") if name in options}
    config = TrainingConfig(method=methods[0], **options)
    plan = TrainingPlan(config=config, methods=methods, sources=("log.jsonl",), **plan_options)
    return describe_plan(plan, dataset(train))


@pytest.fixture(scope="module")
def base_name(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a tiny base."""
    return f"transformers:{tiny_model(tmp_path_factory.mktemp('base'))}"


def steps_in(line: str) -> int:
    [steps] = re.findall(r"([\d,]+) steps", line)
    return int(steps.replace(",", ""))


def gib_in(line: str) -> float:
    return float(re.findall(r"about ([\d.]+) GiB", line)[0])


# People and methods --------------------------------------------------------------------------------------------------


def test_the_first_line_counts_the_pairs_of_every_part() -> None:
    assert described("dpo")[0] == (
        "40 training pairs of 2 people, 3 validation pairs; tested on 5 later pairs of theirs and 7 pairs of 7 people who are "
        "held out with every conversation they took part in"
    )


def test_every_method_has_a_line_with_the_same_budget() -> None:
    lines = described(*TRAIN_METHODS, token_budget=12_345)
    for method, line in zip(TRAIN_METHODS, lines[1:-2], strict=True):
        assert line.startswith(f"{method}: ")
        assert "until 12,345 tokens are generated" in line


def test_a_grpo_step_holds_whole_groups() -> None:
    line = described("grpo", batch_size=32, group_size=8, token_budget=32 * 30 * 7)[1]
    assert "about 7 steps of 4 pairs with 8 traces each" in line


def test_the_smallest_budget_gives_one_step() -> None:
    assert steps_in(described("grpo", token_budget=8)[1]) == 1


@settings(max_examples=50)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 6).map(lambda halves: halves / 2), st.integers(100, 90_000))
def test_the_steps_of_sft_follow_from_pairs_epochs_and_budget(train: int, batch_size: int, epochs: float, budget: int) -> None:
    options = {"batch_size": batch_size, "epochs": epochs, "token_budget": budget, "micro_batch_size": 1}
    line = described("sft", train=train, **options)[1]
    [pairs] = [int(count) for count in re.findall(r"about (\d+) pairs", line)]
    assert 1 <= pairs <= train
    assert pairs in {1, train} or pairs * 8 * expected_trace_tokens("transcript") <= budget
    # The last batch of an epoch may not be full.
    assert epochs * pairs / batch_size <= steps_in(line) <= epochs * (pairs / batch_size + 1) + 1


def test_a_small_budget_covers_fewer_pairs() -> None:
    budget = 10 * 8 * expected_trace_tokens("transcript")
    assert "about 10 pairs" in described("dpo", token_budget=budget, group_size=8)[1]


# Scorers -------------------------------------------------------------------------------------------------------------


def test_a_measuring_scorer_that_is_in_the_reward_is_named() -> None:
    line = "rewards and audits by local; measured by local, which is also in the reward"
    assert line in described("dpo")
    assert line in described("dpo", measured_by="local")
    assert "rewards and audits by local; measured by local:small" in described("dpo", measured_by="local:small")


# Memory --------------------------------------------------------------------------------------------------------------


def test_without_weights_on_disk_the_memory_is_unknown() -> None:
    assert described("dpo", base="local")[-1].startswith("memory: unknown until the weights of local are on disk")


def test_the_memory_covers_weights_and_a_micro_batch(base_name: str) -> None:
    line = described("sft", base=base_name)[-1]
    pattern = r"memory: about \d+\.\d GiB \(0\.0 of weights, the rest for a micro batch of 4 with up to \d+ tokens each\)"
    assert re.fullmatch(pattern, line)


def test_a_larger_micro_batch_and_dpo_take_more_memory(base_name: str) -> None:
    small, large, dpo, both = (
        gib_in(described(*methods, base=base_name, micro_batch_size=size, batch_size=8192)[-1])
        for methods, size in ((("sft",), 2048), (("sft",), 4096), (("dpo",), 2048), (("sft", "dpo"), 2048))
    )
    assert 0 < small < large
    assert large == pytest.approx(2 * small, abs=0.2)
    assert dpo == both == large


def test_half_the_precision_halves_the_weights(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path)
    with (folder / "more.safetensors").open("wb") as file:
        file.truncate(4 * GIB)  # a sparse file takes no disk space
    base = f"transformers:{folder}"
    whole = described("sft", base=base, scorer=base)[-1]
    half = described("sft", base=base, scorer=base, precision="bfloat16", scorer_precision="bfloat16")[-1]
    assert "(8.0 of weights" in whole
    assert "(4.0 of weights" in half
