"""memory/training/train.py, callback.py, checkpoints.py: real steps of a tiny model, stopped, killed and resumed."""

from __future__ import annotations

import errno
import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from judge_replies import judge_reply, shown_attempts
from small_training import (
    CONFIG,
    EXAMPLES,
    AsciiFidelity,
    ConstantAuditor,
    KillPoint,
    audit,
    audits_of,
    example,
    killed,
    pool_of,
    real_auditor,
    small_config,
    steps_of,
    trained,
    weights_of,
)
from tiny_model import tiny_model

from conftest import function_model, scripted
from usertwin.memory.models.scoring import Likelihood
from usertwin.memory.recon.fidelity import FidelityScore
from usertwin.memory.recon.judged_fidelity import JudgeFidelity
from usertwin.memory.training.audit import Audit, reason_to_stop
from usertwin.memory.training.candidate_pool import ScoredCandidates
from usertwin.memory.training.checkpoints import check_room, last_checkpoint
from usertwin.memory.training.config import TRAIN_METHODS
from usertwin.memory.training.policy import empty_base, load_base
from usertwin.memory.training.rewards import Reward
from usertwin.memory.training.train import train
from usertwin.personas import Pair, UsageError

pytest.importorskip("trl")
pytestmark = pytest.mark.usefixtures("in_one_thread")

every_method = pytest.mark.parametrize("method", TRAIN_METHODS)
dpo_and_grpo = pytest.mark.parametrize("method", ["dpo", "grpo"])


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the folder of an uninterrupted training by a method, trained once; tests work on copies."""
    folders: dict[str, Path] = {}

    def folder_of(method: str) -> Path:
        if method not in folders:
            folder = tmp_path_factory.mktemp(method)
            result = trained(base, folder, small_config(method=method), real_auditor())
            (folder / "result.json").write_text(json.dumps([result.stopped, result.steps, result.tokens]))
            folders[method] = folder
        return folders[method]

    return folder_of


def result_of(folder: Path) -> list[Any]:
    return json.loads((folder / "result.json").read_text())


def assert_same_weights(folder: Path, other: Path) -> None:
    first, second = weights_of(folder), weights_of(other)
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name], rtol=0, atol=1e-5) for name in first)


# Every method ------------------------------------------------------------------------------------------------------


@every_method
def test_every_method_trains_every_layer_of_the_adapter(finished: Any, method: str) -> None:
    trained_weights = {name: weight for name, weight in weights_of(finished(method)).items() if "lora_B" in name}
    assert len(trained_weights) == 2 * 7
    # They are initialised with zeros.
    assert all(bool(weight.isfinite().all()) and float(weight.abs().max()) > 0 for weight in trained_weights.values())


@every_method
def test_every_step_and_every_audit_is_logged_once(finished: Any, method: str) -> None:
    _, steps, _ = result_of(finished(method))
    assert list(steps_of(finished(method))) == list(range(1, steps + 1))
    assert steps >= 3
    assert sorted(audits_of(finished(method))) == sorted({0, steps, *range(3, steps + 1, 3)})


@dpo_and_grpo
def test_another_seed_trains_another_adapter(base: Path, finished: Any, method: str, tmp_path: Path) -> None:
    trained(base, tmp_path, small_config(method=method, seed=1))
    first, other = weights_of(finished(method)), weights_of(tmp_path)
    assert not all(torch.allclose(first[name], other[name], atol=1e-4) for name in first)


def test_the_frequency_of_audits_does_not_change_the_adapter(base: Path, finished: Any, tmp_path: Path) -> None:
    config = small_config(method="grpo", audit_every=1, save_every=100)
    trained(base, tmp_path, config, real_auditor())
    assert_same_weights(finished("grpo"), tmp_path)


def test_the_micro_batch_size_does_not_change_the_adapter(base: Path, finished: Any, tmp_path: Path) -> None:
    trained(base, tmp_path, small_config(method="sft", micro_batch_size=1))
    assert_same_weights(finished("sft"), tmp_path)


def test_sft_lowers_the_loss_and_dpo_widens_the_margin(finished: Any) -> None:
    first, *_, last = steps_of(finished("sft")).values()
    assert last["loss"] < first["loss"]
    first, *_, last = steps_of(finished("dpo")).values()
    assert last["rewards/margins"] > 0.1 > abs(first["rewards/margins"])


@pytest.mark.parametrize("method", ["grpo", "e2e"])
def test_the_reward_is_the_weighted_sum_of_its_logged_terms(finished: Any, method: str) -> None:
    for row in steps_of(finished(method)).values():
        assert row.keys() >= {
            "reward",
            "passing_score",
            "leak_rate",
            "rejection_rate",
            "words",
            "tokens",
            "entropy",
            "grad_norm",
        }
        fidelity, leak, length, form = (row[f"rewards/{term}/mean"] for term in ("fidelity", "leak", "length", "format"))
        assert row["reward"] == pytest.approx(fidelity + 0.2 * leak + 0.1 * length + 0.1 * form, abs=1e-4)
        assert all(math.isfinite(value) for value in row.values())


@pytest.mark.parametrize("method", ["grpo", "e2e"])
def test_training_ends_with_the_step_that_spends_the_token_budget(finished: Any, method: str) -> None:
    stopped, _, tokens = result_of(finished(method))
    counts = [row["tokens"] for row in steps_of(finished(method)).values()]
    assert stopped is None
    assert counts == sorted(counts)
    assert counts[-2] < CONFIG.token_budget <= counts[-1] == tokens


def test_the_base_has_no_adapter_after_training(base: Path, tmp_path: Path) -> None:
    model, tokenizer = load_base(base)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    config = small_config(method="sft", epochs=0.5)
    train(config, EXAMPLES, tmp_path, model, tokenizer, ConstantAuditor(), pool=pool_of(EXAMPLES))  # pyright: ignore[reportArgumentType]
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


# Killed and resumed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "first_kill", "inside"),
    [("dpo", ("after a checkpoint", 2), "inside a checkpoint"), ("grpo", ("between checkpoints", 3), "inside its last file")],
)
def test_a_killed_training_ends_with_the_adapter_of_an_uninterrupted_one(
    base: Path, finished: Any, method: str, first_kill: tuple[KillPoint, int], inside: KillPoint, tmp_path: Path
) -> None:
    config, checkpoints, whole = small_config(method=method), tmp_path / "checkpoints", finished(method)
    killed(base, tmp_path, config, *first_kill)
    assert [path.name for path in checkpoints.glob("checkpoint-*")] == ["checkpoint-2"]
    killed(base, tmp_path, config, inside, 4)
    state = checkpoints / "checkpoint-4" / "trainer_state.json"
    assert state.parent.is_dir()
    assert not state.exists() or not state.read_text().endswith("}\n")
    result = trained(base, tmp_path, config, real_auditor())
    assert [result.stopped, result.steps, result.tokens] == result_of(whole)
    assert_same_weights(whole, tmp_path)
    assert steps_of(tmp_path).keys() == steps_of(whole).keys()
    for step, row in steps_of(whole).items():
        assert steps_of(tmp_path)[step]["loss"] == pytest.approx(row["loss"], abs=1e-4)
    assert audits_of(tmp_path).keys() == audits_of(whole).keys()
    for step, row in audits_of(whole).items():
        again = audits_of(tmp_path)[step]
        assert again.pop("audit/margins") == pytest.approx(row["audit/margins"])
        assert again == pytest.approx({name: value for name, value in row.items() if name != "audit/margins"})


@dpo_and_grpo
@pytest.mark.parametrize("lost", ["adapter", None])
def test_a_training_killed_after_its_last_checkpoint_does_no_further_step(
    base: Path, finished: Any, method: str, lost: str | None, tmp_path: Path
) -> None:
    whole, folder = finished(method), tmp_path / "run"
    shutil.copytree(whole, folder)
    if lost is not None:
        shutil.rmtree(folder / lost)
    result = trained(base, folder, small_config(method=method), real_auditor())
    assert [result.stopped, result.steps, result.tokens] == result_of(whole)
    assert_same_weights(whole, folder)
    assert steps_of(folder) == steps_of(whole)
    assert audits_of(folder) == audits_of(whole)
    assert not (folder / "adapter.partial").exists()


def test_an_incomplete_checkpoint_is_deleted_and_the_one_before_is_used(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "none") is None
    for step in (9, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "adapter_model.safetensors").touch()
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-100" / "trainer_state.json").touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]


# Stopped early ---------------------------------------------------------------------------------------------------------


@dpo_and_grpo
def test_training_stops_when_the_audit_rises_and_stays_stopped(base: Path, method: str, tmp_path: Path) -> None:
    config = small_config(method=method, audit_every=2)
    result = trained(base, tmp_path, config, ConstantAuditor(0.25, 0.75))
    assert result.steps == 2
    assert result.stopped is not None
    assert result.stopped.startswith("the audit rises: 24 of 32 traces alone identify the action, 8 of 32 did before training")
    assert audits_of(tmp_path).keys() == {0, 2}
    weights = weights_of(tmp_path)
    shutil.rmtree(tmp_path / "adapter")  # as if the process was killed then
    again = trained(base, tmp_path, config, ConstantAuditor(0.0))
    assert (again.stopped, again.steps) == (result.stopped, 2)
    assert all(torch.equal(weight, weights_of(tmp_path)[name]) for name, weight in weights.items())


def test_training_continues_while_the_rise_may_be_chance(base: Path, tmp_path: Path) -> None:
    auditor = ConstantAuditor(0.25, 0.4, 0.25, 0.4, 0.1)
    result = trained(base, tmp_path, small_config(method="sft", audit_every=1), auditor)
    assert (result.stopped, result.steps, auditor.calls) == (None, 4, 5)


class RisingScorer:
    """A scorer that finds one action likely after any trace, once it has scored `remaining` texts."""

    name = "rising"

    def __init__(self, action: str, remaining: int) -> None:
        self.action, self.remaining = action, remaining

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """See `Scorer.score`."""
        likelihoods: list[Likelihood] = []
        for prompt, continuation in items:
            self.remaining -= 1
            likely = "thinking" in prompt and self.remaining < 0 and self.action in continuation
            nats = -1.0 if likely else -9.0
            likelihoods.append(Likelihood(nats, 1, (nats,), (len(continuation),)))
        return likelihoods


def test_a_detector_that_starts_to_identify_the_action_stops_the_training(base: Path, tmp_path: Path) -> None:
    validation = [example(20 + 6 * number) for number in range(8)]  # all have the same action
    scorer = RisingScorer(validation[0].pair.action, 0)
    auditor = real_auditor(CONFIG, scorer, validation)
    assert auditor.audit(["I was hungry."] * 8).reveals_action == 1
    scorer.remaining = 10**9
    assert auditor.audit(["I was hungry."] * 8).reveals_action == 0
    scorer.remaining = (10**9 - scorer.remaining) * 3 // 2  # reached in the second or third audit of the policy
    result = trained(base, tmp_path, small_config(method="sft", audit_every=1), auditor)
    assert result.stopped is not None
    assert re.match(r"the audit rises: \d of 8 traces alone .*, 0 of 8 did before", result.stopped)
    assert 1 <= result.steps < 4


def test_a_logged_audit_decides_like_the_original() -> None:
    from usertwin.memory.training.callback import logged_audits

    original = audit(1 / 30, 30)
    numbers = {name: value for name, value in asdict(original).items() if name != "margins"}
    row: dict[str, Any] = {f"audit/{name}": round(value, 6) for name, value in numbers.items()}
    row["audit/margins"] = list(original.margins)
    history = json.loads(json.dumps([row | {"step": 0, "epoch": 0.0}, {"loss": 1.0, "step": 1}]))
    logged = logged_audits(history)
    assert list(logged) == [0]
    history[0]["audit/gives_away"] = history[0].pop("audit/reveals_action")  # the name before 0.1.0
    assert logged_audits(history) == logged
    assert reason_to_stop(logged[0], audit(10 / 30, 30)) == reason_to_stop(original, audit(10 / 30, 30)) is not None


# Rewards of GRPO -------------------------------------------------------------------------------------------------------


def test_a_leak_has_the_lowest_advantage_of_its_group(base: Path, tmp_path: Path) -> None:
    from trl.trainer.grpo_trainer import GRPOTrainer

    advantages: list[Any] = []
    traces: list[str] = []
    generate = GRPOTrainer._generate_and_score_completions

    def reject_first(trace: str, pair: Pair) -> str | None:
        traces.append(trace)
        return "quotes_action" if len(traces) % 4 == 1 else None

    def record(self: Any, inputs: Any) -> Any:
        batch = generate(self, inputs)
        advantages.append(batch["advantages"].tolist())
        return batch

    config = small_config(method="grpo", group_size=4, batch_size=4, token_budget=90)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRPOTrainer, "_generate_and_score_completions", record)
        trained(base, tmp_path, config, guard=reject_first)
    assert advantages
    for group in advantages:
        assert group[0] < 0
        assert group[0] == min(group)
        assert group.count(group[0]) == 1
    assert {row["leak_rate"] for row in steps_of(tmp_path).values()} == {0.25}


class EqualFidelity(AsciiFidelity):
    """Gives all traces the same score, except for the first `different` pairs."""

    def __init__(self, different: int = 0) -> None:
        self.different = different

    async def score(self, pair: Pair, traces: Sequence[str], **options: Any) -> list[FidelityScore]:
        """See `Fidelity.score`."""
        self.different -= 1
        return [FidelityScore(0.1 * number * (self.different >= 0)) for number, _ in enumerate(traces)]


def test_groups_with_equal_rewards_are_counted_and_a_training_of_such_groups_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing was learned: of 1 pairs, 1 had traces of equal fidelity"):
        trained(base, tmp_path, small_config(method="grpo", token_budget=20), guard=lambda trace, pair: "too_long")
    assert not (tmp_path / "adapter").exists()


def test_lengths_are_not_learned_from_traces_of_equal_fidelity(base: Path, tmp_path: Path) -> None:
    config = small_config(method="grpo", token_budget=60)
    with pytest.raises(UsageError, match="nothing was learned"):
        trained(base, tmp_path, config, fidelity=EqualFidelity(), guard=lambda trace, pair: None)
    result = trained(base, tmp_path / "some", config, fidelity=EqualFidelity(1), guard=lambda trace, pair: None)
    assert result.lessons["pairs"] - result.lessons["equal"] == 1
    assert result.lessons["no_verdict"] == 0


def test_a_pool_without_verdicts_is_refused_with_its_counts(base: Path, tmp_path: Path) -> None:
    unread = [ScoredCandidates(one, ("I was.", "I felt."), (Reward(rejected="no_verdict"),) * 2, 9) for one in EXAMPLES[:3]]
    with pytest.raises(UsageError, match=r"only 0 of 3 pairs .* 0 had traces of equal fidelity and 3 no readable verdict"):
        trained(base, tmp_path, small_config(), pool=unread)


def test_a_judge_can_be_the_reward_of_a_training(base: Path, tmp_path: Path) -> None:
    def longest_first(prompt: str, seed: int) -> str:
        attempts = shown_attempts(prompt)
        return judge_reply(sorted(attempts, key=lambda label: -len(attempts[label])))

    judge, _ = function_model(longest_first, "instruction")
    fidelity = JudgeFidelity(scripted("one cake", "two tickets please"), judge)
    config = small_config(method="grpo", token_budget=20)
    trained(base, tmp_path, config, fidelity=fidelity, guard=lambda trace, pair: None)
    assert steps_of(tmp_path)[1]["rewards/fidelity/mean"] == pytest.approx(0.75)  # the ranks of two: 1/2 and 1


# Instructions ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chat_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a chat template."""
    return tiny_model(tmp_path_factory.mktemp("chat") / "tiny", chat_template=True)


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_an_instruction_model_learns_from_a_pool_of_messages(chat_base: Path, method: str, tmp_path: Path) -> None:
    trained(chat_base, tmp_path, small_config(method=method, style="instruction", epochs=0.5))
    assert list(steps_of(tmp_path)) == [1, 2]
    assert float(max(weight.abs().max() for name, weight in weights_of(tmp_path).items() if "lora_B" in name)) > 0


def test_grpo_extracts_traces_from_messages(chat_base: Path, tmp_path: Path) -> None:
    traces: list[str] = []

    def record(trace: str, pair: Pair) -> None:
        traces.append(trace)

    trained(chat_base, tmp_path, small_config(method="grpo", style="instruction", token_budget=40), guard=record)
    assert len(traces) >= 4
    assert all(traces)
    assert all("content" not in trace and "<|" not in trace for trace in traces)


# Errors ----------------------------------------------------------------------------------------------------------------


def test_too_few_pairs_are_refused_before_the_first_step(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only 1 of 1 pairs have traces to learn from, fewer than --batch-size 2"):
        trained(base, tmp_path / "dpo", small_config(), examples=EXAMPLES[:1])
    with pytest.raises(UsageError, match="only 2 pairs to train on, and --batch-size 8 holds 4 groups"):
        trained(base, tmp_path / "grpo", small_config(method="grpo", batch_size=8), examples=EXAMPLES[:2])


def test_a_full_disk_is_refused_before_the_first_step(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    with pytest.raises(UsageError, match=r"needs 64 MiB for its checkpoints, and 1 MiB are free; free space"):
        trained(base, tmp_path, small_config())
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="free space"):
        check_room(empty_base(base), tmp_path, 16)


def fail_checkpoint(step: int, error: Exception, patch: pytest.MonkeyPatch) -> None:
    """Make the disk full when the checkpoint of a step is written."""
    from transformers import Trainer

    save = Trainer._save_optimizer_and_scheduler

    def fail(self: Any, folder: str) -> None:
        if self.state.global_step == step:
            raise error
        save(self, folder)

    patch.setattr(Trainer, "_save_optimizer_and_scheduler", fail)


def test_a_training_whose_disk_fills_up_can_be_resumed(base: Path, finished: Any, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fail_checkpoint(4, OSError(errno.ENOSPC, "No space left on device"), patch)
        with pytest.raises(UsageError, match=r"cannot be written \(.*\); free space, and run the same command"):
            trained(base, tmp_path, small_config())
    trained(base, tmp_path, small_config())
    assert_same_weights(finished("dpo"), tmp_path)


@pytest.mark.parametrize("library", ["safetensors", "torch", "torch, at the end", "torch, the random state", "tokenizers"])
def test_the_error_of_every_library_for_a_full_disk_is_recognised(
    base: Path, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    error = {
        "safetensors": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        "torch": RuntimeError("[enforce fail at inline_container.cc:668] . PytorchStreamWriter failed writing file data/0"),
        "torch, at the end": RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 14464 vs 14356"),
        "torch, the random state": RuntimeError("basic_ios::clear: iostream error"),
        "tokenizers": Exception("No space left on device (os error 28)"),
    }[library]
    fail_checkpoint(1, error, monkeypatch)
    with pytest.raises(UsageError, match="free space"):
        trained(base, tmp_path, small_config(method="sft", save_every=1))


def test_another_error_passes_through(base: Path, tmp_path: Path) -> None:
    def broken(model: Any, tokenizer: Any) -> Audit:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        trained(base, tmp_path, small_config(), broken)


def test_an_online_method_needs_a_fidelity_and_a_guard(base: Path, tmp_path: Path) -> None:
    model, tokenizer = load_base(base)
    with pytest.raises(UsageError, match='"grpo" needs a fidelity and a guard'):
        train(small_config(method="grpo"), EXAMPLES, tmp_path, model, tokenizer, ConstantAuditor())  # pyright: ignore[reportArgumentType]


def test_audits_are_reported_to_tensorboard(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained(base, tmp_path, small_config(method="sft", report_to="tensorboard", epochs=0.5))
    tags: set[str] = set()
    for path in tmp_path.rglob("events.out.tfevents*"):
        tags |= set(EventAccumulator(str(path)).Reload().Tags()["scalars"])
    assert {"train/loss", "train/audit/reveals_action"} <= tags
