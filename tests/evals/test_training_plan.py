"""evals/training_runs/plan.py: what a training will take is reckoned from what it will do, without any model loaded."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import tiny_model

from conftest import PAIR
from usertwin.evals.training_runs.plan import plan_of_training
from usertwin.evals.training_runs.run import TrainingPlan
from usertwin.memory.recon.propose import written_tokens
from usertwin.memory.training.config import TRAIN_METHODS, TrainingConfig
from usertwin.memory.training.dataset import DatasetSplit, TrainingExample

GIB = 2**30


def lessons(train: int = 40, people: int = 2) -> DatasetSplit:
    """So many pairs to train on, of so many people."""
    own = tuple(TrainingExample(f"log/p{place % people}", replace(PAIR, position=place)) for place in range(train))
    return DatasetSplit(own, own[:3], own[:5], tuple(TrainingExample(f"log/u{place}", PAIR) for place in range(7)))


def order(*methods: Any, **told: Any) -> TrainingPlan:
    choices = {name: told.pop(name) for name in ("scorer", "measured_by", "scorer_precision") if name in told}
    return TrainingPlan(TrainingConfig(method=methods[0], **told), methods, ("log.jsonl",), **choices)


def planned(*methods: Any, train: int = 40, **told: Any) -> list[str]:
    return plan_of_training(order(*methods, **told), lessons(train))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny base, by name."""
    return f"transformers:{tiny_model(tmp_path_factory.mktemp('base'))}"


def steps_of(line: str) -> int:
    [found] = re.findall(r"([\d,]+) steps", line)
    return int(found.replace(",", ""))


def gib(line: str) -> float:
    return float(re.findall(r"about ([\d.]+) GiB", line)[0])


# People and methods --------------------------------------------------------------------------------------------------


def test_a_plan_says_of_whom_how_many_pairs_go_where() -> None:
    assert planned("dpo")[0] == (
        "40 pairs of 2 people to train on, 3 watched; measured on 5 later pairs of theirs and 7 of 7 people who are held out "
        "with every conversation they took part in"
    )


def test_each_method_has_a_line_with_the_same_budget() -> None:
    methods = TRAIN_METHODS
    lines = planned(*methods, budget=12_345)
    for method, line in zip(methods, lines[1:-2], strict=True):
        assert line.startswith(f"{method}: ")
        assert "until 12,345 tokens are generated" in line


def test_a_step_of_grpo_is_so_many_pairs_with_their_group() -> None:
    line = planned("grpo", batch=32, group=8, budget=32 * 30 * 7)[1]
    assert "about 7 steps of 4 pairs with 8 traces each" in line


def test_the_smallest_budget_still_makes_a_step() -> None:
    assert steps_of(planned("grpo", budget=8)[1]) == 1


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 6).map(lambda halves: halves / 2), st.integers(100, 90_000))
def test_so_many_steps_of_rows_at_most(train: int, batch: int, epochs: float, budget: int) -> None:
    line = planned("sft", train=train, batch=batch, epochs=epochs, budget=budget, at_once=1)[1]
    [pairs] = [int(found) for found in re.findall(r"about (\d+) pairs", line)]
    assert 1 <= pairs <= train
    assert pairs in {1, train} or pairs * 8 * written_tokens("transcript") <= budget
    # Every row is seen as often as there are epochs, and the last batch of an epoch may not be full.
    assert epochs * pairs / batch <= steps_of(line) <= epochs * (pairs / batch + 1) + 1


def test_a_pool_that_the_budget_does_not_fill_teaches_on_fewer_pairs() -> None:
    assert "about 10 pairs" in planned("dpo", budget=10 * 8 * written_tokens("transcript"), group=8)[1]


def test_a_soup_takes_the_steps_of_both_its_parts() -> None:
    one, both = planned("dpo", "soup")[1:3]
    assert steps_of(both) == 2 * steps_of(one)


# Who measures --------------------------------------------------------------------------------------------------------


def test_a_scorer_that_is_in_the_reward_and_measures_is_told() -> None:
    told = "rewards and audits by local; measured by local, which is in the reward, too"
    assert told in planned("dpo")
    assert told in planned("dpo", measured_by="local")
    assert "rewards and audits by local; measured by local:small" in planned("dpo", measured_by="local:small")


# Memory --------------------------------------------------------------------------------------------------------------


def test_where_no_weights_are_here_the_memory_is_not_known_and_nothing_is_fetched() -> None:
    line = planned("dpo", base="local")[-1]
    assert line.startswith("memory: not known until the weights of local are here")


def test_the_memory_is_that_of_weights_and_of_what_is_at_once(base: str) -> None:
    line = planned("sft", base=base)[-1]
    assert re.fullmatch(r"memory: about \d+\.\d GiB \(0\.0 of weights, the rest for 4 at once of up to \d+ tokens\)", line)


def test_more_at_once_and_pairs_of_traces_take_more(base: str) -> None:
    few, many, both, listed = (
        gib(planned(*methods, base=base, at_once=at_once, batch=8192)[-1])
        for methods, at_once in ((("sft",), 2048), (("sft",), 4096), (("dpo",), 2048), (("sft", "dpo"), 2048))
    )
    assert 0 < few < many
    assert many == pytest.approx(2 * few, abs=0.2)
    assert both == listed == many


def test_half_the_precision_halves_the_weights(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path)
    with (folder / "more.safetensors").open("wb") as file:
        file.truncate(4 * GIB)  # a hole: no disk is needed for it
    base = f"transformers:{folder}"
    whole = planned("sft", base=base, scorer=base)[-1]
    half = planned("sft", base=base, scorer=base, precision="bfloat16", scorer_precision="bfloat16")[-1]
    assert "(8.0 of weights" in whole
    assert "(4.0 of weights" in half
