"""memory/training/train.py, trainers.py and watching.py: real steps of a tiny model, stopped, killed and gone on with."""

from __future__ import annotations

import errno
import json
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from judge_replies import judge_reply, shown_attempts
from small_training import (
    LESSONS,
    PLAN,
    Liking,
    Unmoved,
    Where,
    a_plan,
    an_auditor,
    guard,
    killed,
    lesson,
    pool_of,
    rows_of,
    trained,
    weights_of,
)
from tiny_model import tiny_model

from conftest import scripted, function_model
from usertwin.memory.models.scoring import Likelihood
from usertwin.memory.recon.fidelity import FidelityScore
from usertwin.memory.recon.judged_fidelity import JudgeFidelity
from usertwin.memory.training import trl_trainers as trainers
from usertwin.memory.training.audit import Audit
from usertwin.memory.training.candidate_pool import dpo_rows, sft_rows
from usertwin.memory.training.checkpoints import check_room, last_checkpoint
from usertwin.memory.training.config import TRAIN_METHODS
from usertwin.memory.training.downstream_reward import DownstreamReward
from usertwin.memory.training.policy import (
    check_chat_template,
    check_installed,
    empty_base,
    stop_tokens,
    load_base,
    policy_prompt,
    completion_text,
)
from usertwin.memory.training.rewards import RewardWeights
from usertwin.memory.training.train import train
from usertwin.memory.training.trl_trainers import GroupRewards
from usertwin.personas import Pair, UsageError
from usertwin.simulator import load_scorer

pytest.importorskip("trl")
pytestmark = pytest.mark.usefixtures("in_one_thread")

every_method = pytest.mark.parametrize("method", TRAIN_METHODS)
dpo_and_grpo = pytest.mark.parametrize("method", ["dpo", "grpo"])


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of an uninterrupted training by a method, trained once."""
    known: dict[str, Path] = {}

    def of(method: str) -> Path:
        if method not in known:
            known[method] = tmp_path_factory.mktemp(method)
            outcome = trained(base, known[method], a_plan(method=method))
            (known[method] / "outcome.json").write_text(json.dumps([outcome.stopped, outcome.steps, outcome.tokens]))
        return known[method]

    return of


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[name], other[name], rtol=0, atol=1e-5) for name in one)


# Every method ------------------------------------------------------------------------------------------------------


@every_method
def test_every_method_moves_every_layer_of_the_adapter(whole: Any, method: str) -> None:
    moved = {name: weight for name, weight in weights_of(whole(method)).items() if "lora_B" in name}  # these begin as zeros
    assert len(moved) == 2 * 7
    assert all(bool(weight.isfinite().all()) and float(weight.abs().max()) > 0 for weight in moved.values())


@every_method
def test_every_step_and_every_audit_is_noted_once(whole: Any, method: str) -> None:
    _, steps, _ = json.loads((whole(method) / "outcome.json").read_text())
    assert list(rows_of(whole(method))) == list(range(1, steps + 1))
    assert steps >= 3
    assert list(rows_of(whole(method), "audit")) == sorted({0, steps, *range(3, steps + 1, 3)})


@dpo_and_grpo
def test_the_same_seed_makes_the_same_adapter_and_another_seed_another(
    base: Path, whole: Any, method: str, tmp_path: Path
) -> None:
    trained(base, tmp_path / "again", a_plan(method=method))
    trained(base, tmp_path / "other", a_plan(method=method, seed=1))
    first, other = weights_of(whole(method)), weights_of(tmp_path / "other")
    assert_same(first, weights_of(tmp_path / "again"))
    assert not all(torch.allclose(first[name], other[name], atol=1e-4) for name in first)


def test_how_often_one_looks_changes_nothing(base: Path, whole: Any, tmp_path: Path) -> None:
    trained(base, tmp_path, a_plan(method="grpo", audit_every=1, save_every=100))
    assert_same(weights_of(whole("grpo")), weights_of(tmp_path))


def test_how_many_rows_are_in_memory_at_once_changes_nothing(base: Path, whole: Any, tmp_path: Path) -> None:
    trained(base, tmp_path, a_plan(method="sft", at_once=1))
    assert_same(weights_of(whole("sft")), weights_of(tmp_path))


def test_fine_tuning_makes_the_chosen_trace_likelier_and_dpo_prefers_it(base: Path, whole: Any) -> None:
    first, *_, last = rows_of(whole("sft")).values()
    assert last["loss"] < first["loss"]
    first, *_, last = rows_of(whole("dpo")).values()
    assert last["margin"] > 0.1 > abs(first["margin"])


# Stopped and gone on with ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "within"), [("dpo", "within a checkpoint"), ("grpo", "within its last file")])
def test_a_training_that_was_killed_again_and_again_ends_with_the_adapter_of_one_that_was_not(
    base: Path, whole: Any, method: str, within: Where, tmp_path: Path
) -> None:
    plan, checkpoints = a_plan(method=method), tmp_path / "checkpoints"
    killed(base, tmp_path, plan, "after a checkpoint", 2)
    killed(base, tmp_path, plan, "between checkpoints", 3)
    assert [one.name for one in checkpoints.glob("checkpoint-*")] == ["checkpoint-2"]
    killed(base, tmp_path, plan, within, 4)
    half = checkpoints / "checkpoint-4" / "trainer_state.json"
    assert half.parent.is_dir()
    assert not half.exists() or not half.read_text().endswith("}\n")
    with (tmp_path / "curves.jsonl").open("a") as file:
        file.write('{"step": 5, "valu')
    outcome = trained(base, tmp_path, plan)
    assert [outcome.stopped, outcome.steps, outcome.tokens] == json.loads((whole(method) / "outcome.json").read_text())
    assert_same(weights_of(whole(method)), weights_of(tmp_path))
    assert rows_of(tmp_path).keys() == rows_of(whole(method)).keys()
    assert rows_of(tmp_path, "audit") == rows_of(whole(method), "audit")
    for step, row in rows_of(whole(method)).items():
        assert rows_of(tmp_path)[step]["loss"] == pytest.approx(row["loss"], abs=1e-4)


@every_method
def test_a_training_that_was_killed_after_its_last_checkpoint_does_no_step_too_many(
    base: Path, method: str, tmp_path: Path
) -> None:
    plan = a_plan(method=method, save_every=1, audit_every=1, budget=200, epochs=0.5)
    before = trained(base, tmp_path, plan)
    weights, curves = weights_of(tmp_path), (tmp_path / "curves.jsonl").read_text()
    shutil.rmtree(tmp_path / "adapter")
    after = trained(base, tmp_path, plan)
    assert (after.steps, after.tokens, after.stopped) == (before.steps, before.tokens, before.stopped)
    assert_same(weights, weights_of(tmp_path))
    assert (tmp_path / "curves.jsonl").read_text() == curves


def test_a_training_that_was_killed_when_its_adapter_was_there_puts_it_there_again(
    base: Path, whole: Any, tmp_path: Path
) -> None:
    shutil.copytree(whole("dpo"), tmp_path / "run")
    trained(base, tmp_path / "run", a_plan(method="dpo"))
    assert_same(weights_of(whole("dpo")), weights_of(tmp_path / "run"))
    assert not (tmp_path / "run" / "adapter.partial").exists()


def test_half_a_checkpoint_is_deleted_and_the_one_before_it_taken(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "none") is None
    for step in (9, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "adapter_model.safetensors").touch()
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-100" / "trainer_state.json").touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]


# Stopping by itself ----------------------------------------------------------------------------------------------------


class Rising:
    """A scorer to which, when it was asked often enough, one action is plain from any trace."""

    name = "rising"

    def __init__(self, action: str, left: int) -> None:
        self.action, self.left = action, left

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """See `Scorer.score`."""
        found: list[Likelihood] = []
        for prompt, continuation in items:
            self.left -= 1
            told = "thinking" in prompt and self.left < 0 and self.action in continuation
            found.append(Likelihood(-1.0 if told else -9.0, 1, (-1.0 if told else -9.0,), (len(continuation),)))
        return found


class Told:
    """An auditor that says what it is told to say, in turn."""

    def __init__(self, *shares: float) -> None:
        self.shares, self.looks = shares, 0

    def __call__(self, model: Any, tokenizer: Any) -> Audit:
        share = self.shares[min(self.looks, len(self.shares) - 1)]
        self.looks += 1
        return Audit(32, 0.1, 0.0, 0.0, share, 12.0)


@dpo_and_grpo
def test_training_stops_with_the_reason_when_the_audit_rises_and_stays_stopped(base: Path, method: str, tmp_path: Path) -> None:
    plan = a_plan(method=method, audit_every=2)
    outcome = trained(base, tmp_path, plan, Told(0.25, 0.75))
    assert outcome.steps == 2
    assert outcome.stopped is not None
    assert outcome.stopped.startswith("the audit rises: from 24 of 32 traces alone the action can be told, it was 8 of 32")
    assert rows_of(tmp_path, "audit").keys() == {0, 2}
    weights = weights_of(tmp_path)
    shutil.rmtree(tmp_path / "adapter")  # as if it was killed then
    again = trained(base, tmp_path, plan, Told(0.0))
    assert (again.stopped, again.steps) == (outcome.stopped, 2)
    assert_same(weights, weights_of(tmp_path))


def test_training_goes_on_while_the_audit_rises_no_more_than_by_chance(base: Path, tmp_path: Path) -> None:
    outcome = trained(base, tmp_path, a_plan(method="sft", audit_every=1), Told(0.25, 0.4, 0.25, 0.4, 0.1))
    assert (outcome.stopped, outcome.steps) == (None, 6)


def test_a_detector_that_begins_to_tell_the_action_stops_the_training(base: Path, tmp_path: Path) -> None:
    watched = [lesson(20 + 6 * number) for number in range(8)]  # the same action each time
    scorer = Rising(watched[0].pair.action, 0)
    auditor = an_auditor(PLAN, scorer, watched)
    assert auditor.audit(["I was hungry."] * 8).gives_away == 1
    scorer.left = 10**9
    assert auditor.audit(["I was hungry."] * 8).gives_away == 0
    scorer.left = (10**9 - scorer.left) * 3 // 2  # the second look at the policy, or the third, is beyond it
    outcome = trained(base, tmp_path, a_plan(method="sft", audit_every=1), auditor)
    assert outcome.stopped is not None
    assert re.match(r"the audit rises: from \d of 8 traces alone .*, it was 0 of 8 before", outcome.stopped)
    assert 1 <= outcome.steps < 6


@pytest.mark.parametrize("method", ["grpo", "e2e"])
def test_training_ends_with_the_step_in_which_the_budget_of_tokens_is_spent(whole: Any, method: str) -> None:
    stopped, _, tokens = json.loads((whole(method) / "outcome.json").read_text())
    told = [row["tokens"] for row in rows_of(whole(method)).values()]
    assert stopped is None
    assert told == sorted(told)
    assert told[-2] < PLAN.token_budget <= told[-1] == tokens


# Soups -----------------------------------------------------------------------------------------------------------------


def changed(folder: Path) -> dict[str, torch.Tensor]:
    """What an adapter adds to each layer."""
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    weights = weights_of(folder)
    return {
        name: config["lora_alpha"] / config["r"] * weights[name.replace("lora_A", "lora_B")] @ weights[name]
        for name in weights
        if "lora_A" in name
    }


def test_a_soup_is_the_weighted_sum_of_its_parts_and_has_the_rank_of_both(base: Path, whole: Any, tmp_path: Path) -> None:
    toward, away, soup = (changed(whole("soup") / name) for name in ("toward", "away", "."))
    assert soup.keys() == toward.keys()
    assert all(torch.allclose(soup[name], 2.0 * toward[name] + 0.6 * away[name], atol=1e-5) for name in soup)
    assert json.loads((whole("soup") / "adapter" / "adapter_config.json").read_text())["r"] == 2 * PLAN.rank
    trained(base, tmp_path, a_plan(method="soup", soup=(0.5, 1.5)))
    other = changed(tmp_path)
    assert all(torch.allclose(other[name], 0.5 * toward[name] + 1.5 * away[name], atol=1e-5) for name in other)


def test_the_parts_of_a_soup_prefer_what_is_near_and_what_is_far(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")
    near = replace(pool_of(LESSONS[:1])[0].rewards[0], fidelity=0.5)
    pool = [replace(one, rewards=(near, replace(near, nearness=0.1))) for one in pool_of(LESSONS)]
    trained(base, tmp_path, a_plan(method="soup", epochs=3), Unmoved(), pool=pool)
    prompts = [policy_prompt(one.lesson.pair, "transcript", "backward") for one in pool]
    asked = [(prompt, trace[1:]) for prompt in prompts for trace in pool[0].traces]
    plain = [one.nats for one in load_scorer(f"transformers:{base}").score(asked)]
    for name, sign in {"toward": 1, "away": -1}.items():
        found = [one.nats for one in load_scorer(f"transformers:{base}+{tmp_path / name / 'adapter'}").score(asked)]
        risen = [after - before for after, before in zip(found, plain, strict=True)]
        assert all(sign * (close - far) > 0 for close, far in zip(risen[::2], risen[1::2], strict=True))


def test_a_base_is_without_an_adapter_again_when_its_training_is_over(base: Path, tmp_path: Path) -> None:
    model, tokenizer = load_base(base)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    train(a_plan(method="soup"), LESSONS, tmp_path, model, tokenizer, Unmoved(), pool=pool_of(LESSONS))
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_soup_that_was_killed_in_each_part_ends_with_the_adapter_of_one_that_was_not(
    base: Path, whole: Any, tmp_path: Path
) -> None:
    plan = a_plan(method="soup")
    killed(base, tmp_path, plan, "after a checkpoint", 2)
    assert not (tmp_path / "away").exists()
    killed(base, tmp_path, plan, "within a checkpoint", 4)
    killed(base, tmp_path, plan, "after a checkpoint", 2)
    assert (tmp_path / "away" / "checkpoints" / "checkpoint-2").is_dir()
    assert not (tmp_path / "adapter").exists()
    outcome = trained(base, tmp_path, plan)
    assert [outcome.stopped, outcome.steps, outcome.tokens] == json.loads((whole("soup") / "outcome.json").read_text())
    assert_same(weights_of(whole("soup")), weights_of(tmp_path))
    assert rows_of(tmp_path, "audit") == rows_of(whole("soup"), "audit")


def test_an_audit_that_rises_in_a_part_stops_it_and_one_that_rises_in_the_sum_is_told(base: Path, tmp_path: Path) -> None:
    plan = a_plan(method="soup", audit_every=2)
    part = trained(base, tmp_path / "part", plan, Told(0.25, 0.75, 0.25))  # two of toward, four of away, one of the sum
    assert part.steps == 2 + 6
    assert part.stopped is not None
    assert part.stopped.startswith("in the part toward the action, the audit rises: from 24 of 32 traces")
    summed = trained(base, tmp_path / "sum", plan, Told(*[0.25] * 8, 0.75))
    assert summed.steps == 6 + 6
    assert summed.stopped is not None
    assert summed.stopped.startswith("the audit rises: from 24 of 32 traces")


# Rewards ---------------------------------------------------------------------------------------------------------------


def rewarded(
    traces: Sequence[str], fidelity: Any, weights: RewardWeights | None = None, finished: Sequence[bool] | None = None
) -> tuple[list[list[float]], dict[str, float]]:
    """The four terms of traces of the first lesson as trl is told them, and what is logged."""
    weights = weights or RewardWeights()
    plan = a_plan(method="grpo", group=len(traces), batch=len(traces), weights=weights)
    logged: dict[str, float] = {}
    rewards = GroupRewards(plan, LESSONS, fidelity, guard, [7])
    completions = [trace.removeprefix("I") + "\nand more" for trace in traces]
    ids = [[1, 2, 7] if ended else [1, 2] for ended in finished or [True] * len(traces)]
    terms = [
        function(completions=completions, completion_ids=ids, lesson=[0] * len(traces), log_metric=logged.__setitem__)
        for function in rewards.functions
    ]
    return terms, logged


HONEST, LEAK, OTHER = "I was hungry and wanted to be polite.", "I would like a plum cake please.", "I wanted to be quick."


def test_a_hard_leak_is_worth_nothing_in_every_term_and_the_least_of_its_group() -> None:
    class Generous(Liking):
        async def score(self, pair: Pair, traces: Sequence[str], **_: Any) -> list[FidelityScore]:
            assert LEAK not in traces, "what a guard rejects is never scored"
            return [FidelityScore(-9.0) for _ in traces]  # all others are as bad as can be

    assert guard(LEAK, LESSONS[0].pair) is not None
    terms, logged = rewarded([HONEST, LEAK, OTHER, HONEST], Generous())
    assert [term[1] for term in terms] == [0, 0, 0, 0]
    totals = [sum(each) for each in zip(*terms, strict=True)]
    assert totals[1] == 0
    assert min(totals[0], *totals[2:]) > 0
    assert logged["leak_rate"] == logged["rejected"] == 0.25


def test_a_leak_has_the_lowest_advantage_when_trl_has_standardised_the_rewards(base: Path, tmp_path: Path) -> None:
    from trl.trainer.grpo_trainer import GRPOTrainer

    advantages: list[Any] = []
    scored = GRPOTrainer._generate_and_score_completions

    def leaks_at_first(trace: str, pair: Pair) -> str | None:
        seen.append(trace)
        return "quotes_action" if len(seen) % 4 == 1 else None

    def noting(self: Any, inputs: Any) -> Any:
        found = scored(self, inputs)
        advantages.append(found["advantages"].tolist())
        return found

    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRPOTrainer, "_generate_and_score_completions", noting)
        trained(base, tmp_path, a_plan(method="grpo", group=4, batch=4, budget=300), Unmoved(), guard=leaks_at_first)
    assert advantages
    for group in advantages:
        assert group[0] < 0
        assert group[0] == min(group)
        assert group.count(group[0]) == 1
    assert {row["leak_rate"] for row in rows_of(tmp_path).values()} == {0.25}


@pytest.mark.parametrize("method", ["grpo", "e2e"])
def test_each_term_is_logged_apart_and_the_reward_is_their_weighted_sum(whole: Any, method: str) -> None:
    for row in rows_of(whole(method)).values():
        assert row.keys() >= {
            "reward", "fidelity", "leak", "length", "format", "novel", "leak_rate", "rejected", "words", "no_variance",
            "tokens", "loss", "entropy", "grad_norm", "learning_rate",
        }  # fmt: skip
        told = row["fidelity"] + 0.2 * row["leak"] + 0.1 * row["length"] + 0.1 * row["format"]
        assert row["reward"] == pytest.approx(told, abs=1e-4)
        assert all(math.isfinite(value) for value in row.values())


def test_groups_in_which_all_are_worth_the_same_are_counted(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path, a_plan(method="grpo", budget=60), Unmoved(), guard=lambda trace, pair: "too_long")
    row = rows_of(tmp_path)[1]
    assert (row["no_variance"], row["reward"], row["rejected"], row["leak_rate"]) == (1.0, 0.0, 1.0, 0.0)


def test_a_trace_that_came_to_no_end_lacks_the_point_for_it() -> None:
    terms, _ = rewarded([HONEST, OTHER], Liking(), finished=[True, False])
    assert terms[3] == [1.0, 0.0]


def test_the_terms_of_one_step_are_reckoned_once() -> None:
    class Counting(Liking):
        asked = 0

        async def score(self, pair: Pair, traces: Sequence[str], **_: Any) -> list[FidelityScore]:
            Counting.asked += 1
            return [FidelityScore(0.0) for _ in traces]

    rewarded([HONEST, OTHER], Counting())
    assert Counting.asked == 1


def test_the_same_traces_in_another_list_are_rewarded_afresh() -> None:
    rewards = GroupRewards(a_plan(method="grpo"), LESSONS, Liking(), guard, [7])
    for _ in range(2):
        rewards.functions[0](completions=[" was", " is"], completion_ids=[[1]] * 2, lesson=[0, 0], log_metric=lambda *_: None)
    assert rewards.tokens == 4


def test_each_group_is_ranked_among_itself() -> None:
    plan = a_plan(method="grpo", batch=4, weights=RewardWeights(shape="rank"))
    rewards = GroupRewards(plan, LESSONS, Liking(), lambda trace, pair: None, [7])
    completions = [" éééé", " eeee", " ffff", " ffff ffff ffff"]
    [found, *_] = (
        function(completions=completions, completion_ids=[[7]] * 4, lesson=[0, 0, 3, 3], log_metric=lambda *_: None)
        for function in rewards.functions
    )
    assert found == [0.5, 1.0, 0.5, 1.0]


def test_a_judge_ranks_and_one_who_cannot_be_read_rewards_all_the_same() -> None:
    def say(prompt: str, seed: int) -> str:
        return judge_reply(sorted(shown_attempts(prompt), key=lambda label: -len(shown_attempts(prompt)[label])))

    actor, _ = function_model(lambda prompt, seed: " cake" if "hungry" in prompt else " one very long reply")
    judge, chat = function_model(say, "instruction")
    terms, _ = rewarded([HONEST, OTHER], JudgeFidelity(actor, judge))
    assert terms[0] == [0.5, 1.0]
    assert HONEST not in "".join(chat.prompts)
    terms, _ = rewarded([HONEST, OTHER, LEAK], JudgeFidelity(actor, scripted("I cannot decide.")))
    assert terms[0] == [0.75, 0.75, 0.0]


def test_a_judge_can_be_the_reward_of_a_training(base: Path, tmp_path: Path) -> None:
    judge, _ = function_model(lambda prompt, seed: judge_reply(list(shown_attempts(prompt))), "instruction")
    fidelity = JudgeFidelity(scripted("one cake", "two tickets please"), judge)
    trained(base, tmp_path, a_plan(method="grpo", budget=60), Unmoved(), fidelity, guard=lambda trace, pair: None)
    assert rows_of(tmp_path)[1]["fidelity"] == pytest.approx(0.75)  # the ranks of two: 1/2 and 1


class Reading:
    """A scorer that keeps what it is asked, and likes prompts by their length."""

    name = "reading"

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """See `Scorer.score`."""
        self.asked += items
        return [Likelihood(len(prompt) / 100 - 9, 2, (0.0, 0.0), (1, len(text))) for prompt, text in items]


def test_the_reward_of_e2e_asks_for_the_other_moment_and_never_for_the_action_itself() -> None:
    scorer, other = Reading(), lesson(40).pair
    fidelity = DownstreamReward(scorer, {LESSONS[0].pair: other})
    terms, logged = rewarded([HONEST, OTHER], fidelity)
    assert {text.strip() for _, text in scorer.asked} == {other.action}
    assert terms[0][0] > terms[0][1] > 0.5  # the longer trace makes this scorer's prompt longer
    assert logged["novel"] > 0
    assert all("on day 40" in prompt for prompt, _ in scorer.asked)


def test_without_another_moment_no_trace_is_better_than_another_by_e2e() -> None:
    scorer = Reading()
    terms, logged = rewarded([HONEST, OTHER], DownstreamReward(scorer, {}))
    assert (terms[0], logged["novel"], scorer.asked) == ([0.5, 0.5], 0.0, [])


# Instructions ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a chat template."""
    return tiny_model(tmp_path_factory.mktemp("chatty") / "tiny", chat_template=True)


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_base_that_follows_instructions_learns_from_a_pool_of_messages(chatty: Path, method: str, tmp_path: Path) -> None:
    trained(chatty, tmp_path, a_plan(method=method, style="instruction"), Unmoved())
    assert list(rows_of(tmp_path)) == [1, 2, 3, 4, 5, 6]
    assert float(max(weight.abs().max() for name, weight in weights_of(tmp_path).items() if "lora_B" in name)) > 0


def test_grpo_reads_traces_out_of_messages(chatty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainers, "TRACE_TOKENS", {"instruction": 12})
    seen: list[str] = []

    def looking(trace: str, pair: Pair) -> None:
        seen.append(trace)

    trained(chatty, tmp_path, a_plan(method="grpo", style="instruction", budget=40), Unmoved(), guard=looking)
    assert len(seen) >= 4
    assert all(seen)
    assert all("content" not in trace and "<|" not in trace for trace in seen)


def test_prompts_are_messages_for_instructions_and_text_for_transcripts() -> None:
    [message] = policy_prompt(LESSONS[0].pair, "instruction", "backward")
    assert message["role"] == "user"
    assert LESSONS[0].pair.action in message["content"]
    assert LESSONS[0].pair.action not in policy_prompt(LESSONS[0].pair, "instruction", "forward")[0]["content"]
    assert policy_prompt(LESSONS[0].pair, "transcript", "backward").endswith("Before I wrote that, I")
    assert completion_text([{"role": "assistant", "content": "hungry"}]) == completion_text("hungry") == "hungry"
    pool = pool_of(LESSONS[:1])
    [row] = dpo_rows(pool, RewardWeights(), "instruction", "backward")
    assert row["chosen"] == [{"role": "assistant", "content": pool[0].traces[0]}]
    [row] = sft_rows(pool, RewardWeights(), "transcript", "backward")
    assert row["completion"] == pool[0].traces[0][1:] + "\n"


def test_a_transcript_ends_with_any_token_that_holds_a_lines_end_and_an_instruction_with_the_models_own(base: Path) -> None:
    _, tokenizer = load_base(base)
    ends = stop_tokens(tokenizer, "transcript")
    assert tokenizer.eos_token_id in ends
    assert tokenizer("\n").input_ids[-1] in ends
    assert all("\n" in tokenizer.decode([token]) for token in ends if token != tokenizer.eos_token_id)
    assert stop_tokens(tokenizer, "instruction") == [tokenizer.eos_token_id]


# What is wrong is said -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "magic"}, '"magic" is no way to train; there are sft, dpo, soup, grpo, e2e'),
        ({"how": "search"}, 'not "search"'),
        ({"group": 1}, "at least 2 are needed"),
        ({"method": "grpo", "group": 3, "batch": 8}, "a multiple of 3, such as 9"),
        ({"batch": 6, "at_once": 4}, "portions of 4"),
        ({"at_once": 0}, "portions of 0"),
        ({"batch": 0}, "at least 1"),
        ({"rank": 0}, "at least 1"),
        ({"save_every": 0}, "at least 1"),
        ({"audit_every": -1}, "at least 1"),
        ({"epochs": 0.0}, "at least 1"),
        ({"epochs": math.nan}, "at least 1"),
        ({"budget": 1}, "the budget a group"),
        ({"learning_rate": -1e-4}, "learning rate"),
        ({"learning_rate": math.nan}, "learning rate"),
        ({"beta": math.inf}, "beta"),
        ({"vllm": True}, "vLLM"),
        ({"lean": 0.0}, "lean"),
        ({"lean": math.nan}, "lean"),
        ({"soup": (2.0, 0.0)}, "soup"),
        ({"soup": (math.inf, 0.6)}, "soup"),
        ({"weights": RewardWeights(fidelity=0)}, "weights"),
        ({"weights": RewardWeights(leak=math.nan)}, "weights"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_in_a_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        a_plan(**changes).check()
    assert "\n" not in str(caught.value)


def test_too_few_pairs_are_told_before_a_step_is_done(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only 1 pairs of 1 have traces to learn from, fewer than a batch of 2"):
        trained(base, tmp_path / "dpo", a_plan(), lessons=LESSONS[:1])
    with pytest.raises(UsageError, match="only 2 pairs to train on, and a batch of 8 holds groups of 4"):
        trained(base, tmp_path / "grpo", a_plan(method="grpo", batch=8), lessons=LESSONS[:2])


def test_a_disk_without_room_is_told_before_a_step_is_done(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    with pytest.raises(UsageError, match=r"needs 64 MiB for its checkpoints, and 1 are free; make room"):
        trained(base, tmp_path, a_plan())
    assert not (tmp_path / "curves.jsonl").exists()
    with pytest.raises(UsageError, match="make room"):
        check_room(empty_base(base), tmp_path, 16)


def full_at(step: int, error: Exception, patch: pytest.MonkeyPatch) -> None:
    """Have the disk full when the checkpoint of a step is written."""
    from transformers import Trainer

    written = Trainer._save_optimizer_and_scheduler

    def full(self: Any, folder: str) -> None:
        if self.state.global_step == step:
            raise error
        written(self, folder)

    patch.setattr(Trainer, "_save_optimizer_and_scheduler", full)


def test_a_disk_that_fills_while_a_checkpoint_is_written_is_told_and_the_training_goes_on_later(
    base: Path, whole: Any, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        full_at(4, OSError(errno.ENOSPC, "No space left on device"), patch)
        with pytest.raises(UsageError, match=r"cannot be written \(.*\); make room, and give the same command"):
            trained(base, tmp_path, a_plan())
    trained(base, tmp_path, a_plan())
    assert_same(weights_of(whole("dpo")), weights_of(tmp_path))


def test_a_full_disk_is_known_by_whatever_name_it_comes(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    for number, error in enumerate((
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:668] . PytorchStreamWriter failed writing file data/0"),
    )):  # fmt: skip
        full_at(1, error, monkeypatch)
        with pytest.raises(UsageError, match="make room"):
            trained(base, tmp_path / str(number), a_plan(method="sft", save_every=1), Unmoved())


def test_an_error_that_is_not_of_the_disk_is_not_called_one(base: Path, tmp_path: Path) -> None:
    def broken(model: Any, tokenizer: Any) -> Audit:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        trained(base, tmp_path, a_plan(), broken)


@pytest.mark.parametrize("package", ["trl", "peft", "datasets"])
def test_a_missing_package_is_named_with_the_command_that_brings_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else object())
    with pytest.raises(UsageError, match=re.escape("pip install 'usertwin[train]'")):
        check_installed()


def test_what_is_asked_for_besides_is_missed_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in {"vllm", "tensorboard"} else object())
    check_installed()
    for package in ("vllm", "tensorboard"):
        with pytest.raises(UsageError, match=f"--{package} needs a package that is not installed"):
            check_installed(**{package: True})


def test_a_base_without_a_chat_template_cannot_be_told_what_to_do(base: Path, chatty: Path) -> None:
    check_chat_template(load_base(chatty)[1], "chatty", "instruction")
    check_chat_template(load_base(base)[1], "plain", "transcript")
    with pytest.raises(UsageError, match=r'the base "plain" has no chat template.* pass --style transcript'):
        check_chat_template(load_base(base)[1], "plain", "instruction")
