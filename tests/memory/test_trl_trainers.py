"""memory/training/trl_trainers.py: the rewards of a GRPO step as trl's reward functions."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import pytest
from judge_replies import judge_reply, shown_attempts
from small_training import EXAMPLES, AsciiFidelity, example, guard, small_config

from conftest import function_model, scripted
from usertwin.memory.models.scoring import Likelihood
from usertwin.memory.recon.fidelity import FidelityScore
from usertwin.memory.recon.judged_fidelity import JudgeFidelity
from usertwin.memory.training.rewards import CLIP, DownstreamReward, RewardWeights
from usertwin.memory.training.trl_trainers import GroupRewards
from usertwin.personas import Pair

HONEST, LEAK, OTHER = "I was hungry and wanted to be polite.", "I would like a plum cake please.", "I wanted to be quick."
STOP = 7


def ignore(name: str, value: float) -> None:
    """Do not log."""


def reward_terms(
    traces: Sequence[str], fidelity: Any, finished: Sequence[bool] | None = None
) -> tuple[list[list[float]], dict[str, float]]:
    """The four terms of traces of the first example, and the logged metrics."""
    config = small_config(method="grpo", group_size=len(traces), batch_size=len(traces))
    logged: dict[str, float] = {}
    rewards = GroupRewards(config, EXAMPLES, fidelity, guard, [STOP])
    completions = [trace.removeprefix("I") + "\nand more" for trace in traces]
    ids = [[1, 2, STOP] if ended else [1, 2] for ended in finished or [True] * len(traces)]
    terms = [
        function(completions=completions, completion_ids=ids, example=[0] * len(traces), log_metric=logged.__setitem__)
        for function in rewards.functions
    ]
    return terms, logged


def test_a_leak_earns_nothing_in_any_term_and_is_the_worst_of_its_group() -> None:
    class LowFidelity(AsciiFidelity):
        async def score(self, pair: Pair, traces: Sequence[str], **_: Any) -> list[FidelityScore]:
            assert LEAK not in traces, "rejected traces are never scored"
            return [FidelityScore(-9.0) for _ in traces]

    assert guard(LEAK, EXAMPLES[0].pair) is not None
    terms, logged = reward_terms([HONEST, LEAK, OTHER, HONEST], LowFidelity())
    assert [term[1] for term in terms] == [0, 0, 0, 0]
    totals = [sum(each) for each in zip(*terms, strict=True)]
    assert totals[1] == 0
    assert min(totals[0], *totals[2:]) > 0
    assert logged["leak_rate"] == logged["rejection_rate"] == 0.25


def test_an_unfinished_trace_loses_the_format_term() -> None:
    terms, _ = reward_terms([HONEST, OTHER], AsciiFidelity(), finished=[True, False])
    assert terms[3] == [1.0, 0.0]


def test_the_four_functions_compute_the_rewards_of_a_step_once() -> None:
    class CountingFidelity(AsciiFidelity):
        calls = 0

        async def score(self, pair: Pair, traces: Sequence[str], **_: Any) -> list[FidelityScore]:
            CountingFidelity.calls += 1
            return [FidelityScore(0.0) for _ in traces]

    reward_terms([HONEST, OTHER], CountingFidelity())
    assert CountingFidelity.calls == 1


def test_equal_traces_in_a_new_list_are_rewarded_again() -> None:
    rewards = GroupRewards(small_config(method="grpo"), EXAMPLES, AsciiFidelity(), guard, [STOP])
    for _ in range(2):
        rewards.functions[0](completions=[" was", " is"], completion_ids=[[1]] * 2, example=[0, 0], log_metric=ignore)
    assert rewards.tokens == 4


def test_each_group_is_ranked_separately() -> None:
    config = small_config(method="grpo", batch_size=4, weights=RewardWeights(shape="rank"))
    rewards = GroupRewards(config, EXAMPLES, AsciiFidelity(), lambda trace, pair: None, [STOP])
    completions = [" éééé", " eeee", " ffff", " ffff ffff ffff"]
    fidelity = rewards.functions[0]
    ids = [[STOP]] * 4
    assert fidelity(completions=completions, completion_ids=ids, example=[0, 0, 3, 3], log_metric=ignore) == [
        0.5,
        1.0,
        0.5,
        1.0,
    ]


def test_a_judge_gives_ranks_and_without_its_verdict_every_reward_is_0() -> None:
    def rule(prompt: str, seed: int) -> str:
        attempts = shown_attempts(prompt)
        return judge_reply(sorted(attempts, key=lambda label: -len(attempts[label])))

    actor, _ = function_model(lambda prompt, seed: " cake" if "hungry" in prompt else " one very long reply")
    judge, chat = function_model(rule, "instruction")
    terms, _ = reward_terms([HONEST, OTHER], JudgeFidelity(actor, judge))
    assert terms[0] == [0.5, 1.0]
    assert HONEST not in "".join(chat.prompts)
    terms, logged = reward_terms([HONEST, OTHER, LEAK], JudgeFidelity(actor, scripted("I cannot decide.")))
    assert terms == [[0.0] * 3] * 4
    assert {name: logged[f"lessons/{name}"] for name in ("pairs", "no_verdict", "equal")} == {
        "pairs": 1,
        "no_verdict": 1,
        "equal": 0,
    }
    assert logged["rejection_rate"] == logged["leak_rate"] == pytest.approx(1 / 3)


class LengthScorer:
    """A scorer that prefers long prompts, and records what it scores."""

    name = "length"

    def __init__(self) -> None:
        self.items: list[tuple[str, str]] = []

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """See `Scorer.score`."""
        self.items += items
        return [Likelihood(len(prompt) / 100 - 9, 2, (0.0, 0.0), (1, len(text))) for prompt, text in items]


def test_the_e2e_reward_scores_the_related_action_and_never_the_pairs_own() -> None:
    scorer, other = LengthScorer(), example(40).pair
    terms, logged = reward_terms([HONEST, OTHER], DownstreamReward(scorer, {EXAMPLES[0].pair: other}))
    assert {text.strip() for _, text in scorer.items} == {other.action}
    assert terms[0][0] != terms[0][1]
    assert logged["passing_score"] == pytest.approx(CLIP * (2 * fmean(terms[0]) - 1))  # against filler text
    assert all("on day 40" in prompt for prompt, _ in scorer.items)


def test_without_a_related_pair_all_e2e_rewards_are_equal() -> None:
    scorer = LengthScorer()
    terms, logged = reward_terms([HONEST, OTHER], DownstreamReward(scorer, {}))
    assert logged["lessons/equal"] == 1
    assert (terms[0], logged["passing_score"], scorer.items) == ([0.5, 0.5], 0.0, [])
