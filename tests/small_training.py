"""A training of a few steps with a tiny model, and ways to kill it: what the tests of training share with its processes.

A killed process is a child of a server that has nothing but the imports (multiprocessing's forkserver), so that it costs no
second start of torch; it kills itself, at a place that no clock decides, so none is left over.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tiny_model import one_thread

from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.recon.distractors import Distractors
from usertwin.memory.recon.fidelity import Fidelity, ScoredTraces
from usertwin.memory.recon.guards import rejection_reason
from usertwin.memory.training.audit import Audit, Auditor
from usertwin.memory.training.candidate_pool import ScoredCandidates
from usertwin.memory.training.config import TrainingConfig, TrainingResult
from usertwin.memory.training.curves import CURVES
from usertwin.memory.training.dataset import TrainingExample
from usertwin.memory.training.policy import load_base
from usertwin.memory.training.rewards import Reward
from usertwin.memory.training.train import train
from usertwin.personas import Pair, Turn

Where = Literal["after a checkpoint", "between checkpoints", "within a checkpoint", "within its last file"]
WANTED = ("a plum cake", "two train tickets", "a red umbrella", "the weather report", "my old parcel", "a quiet room")


def lesson(number: int) -> TrainingExample:
    """A moment of Ann's."""
    context = (Turn("desk", "agent", f"Hello, what can I do for you on day {number}?"),)
    wanted = WANTED[number % len(WANTED)]
    return TrainingExample(
        "log/Ann", Pair("Ann", context, f"i would like {wanted} please", "", f"talk-{number}", 1, float(number))
    )


LESSONS = [lesson(number) for number in range(12)]
WATCHED = [lesson(number) for number in range(20, 23)]
#: Six steps of DPO or SFT; of GRPO as many as the budget lasts, about as many.
PLAN = TrainingConfig(
    "dpo", "transformers:tiny", group_size=2, batch_size=2, micro_batch_size=2, token_budget=500, epochs=1, learning_rate=1e-2, rank=2, save_every=2,
    audit_every=3,
)  # fmt: skip


def a_plan(**changes: Any) -> TrainingConfig:
    """The plan above with some changes."""
    return replace(PLAN, **changes)


class Liking:
    """Likes traces that have many plain letters; never compares with anything."""

    name, floor, comparable = "liking", 0.0, True

    async def score(self, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Any = None) -> list[ScoredTraces]:
        """See `Fidelity.score`."""
        return [ScoredTraces(sum(letter.isascii() for letter in trace) / (1 + len(trace)) - 0.5) for trace in traces]


def guard(trace: str, pair: Pair) -> str | None:
    """Rejects what leaks, by words alone."""
    return rejection_reason(trace, pair)


def pool_of(lessons: Sequence[TrainingExample]) -> list[ScoredCandidates]:
    """A pool in which each pair has a good trace and a bad one."""
    good, bad = Reward(0.9, 1, 1, 1, 0.4, nearness=0.8), Reward(0.2, 1, 1, 1, -0.3)
    traces = ("I felt hungry and wanted to be polite.", "I had no idea what they meant by that.")
    return [ScoredCandidates(one, traces, (good, bad), 20) for one in lessons]


class Unmoved:
    """An auditor that sees the same each time, and counts how often it looks."""

    looks = 0

    def __call__(self, model: Any, tokenizer: Any) -> Audit:
        self.looks += 1
        return Audit(32, 0.1, 0.0, 0.0, 0.25, 12.0)


def an_auditor(plan: TrainingConfig = PLAN, scorer: Any = None, watched: Sequence[TrainingExample] = WATCHED) -> Auditor:
    """A real one, without any weights."""
    others = {"log/Ann": Distractors([one.pair for one in LESSONS], FakeEmbedder(64))}
    return Auditor(watched, scorer or FakeScorer(), others, guard, plan.style, plan.proposal_mode, plan.seed)


def trained(
    base: Path, folder: Path, plan: TrainingConfig, auditor: Any = None, fidelity: Fidelity | None = None, **options: Any
) -> TrainingResult:
    """Train the tiny model as the plan says."""
    with one_thread():
        model, tokenizer = load_base(base)
        lessons = options.pop("lessons", LESSONS)
        return train(
            plan, lessons, folder, model, tokenizer, auditor or an_auditor(plan), fidelity=fidelity or Liking(),
            guard=options.pop("guard", guard), pool=options.pop("pool", pool_of(lessons)), **options,
        )  # fmt: skip


def rows_of(folder: Path, kind: str = "values") -> dict[int, dict[str, float]]:
    """What the curves tell, by step; each step once."""
    rows = [json.loads(line) for line in (folder / CURVES).read_text("utf-8").splitlines()]
    steps = [row["step"] for row in rows if kind in row]
    assert len(steps) == len(set(steps)), f"a step is there twice: {steps}"
    return {row["step"]: row[kind] for row in rows if kind in row}


def weights_of(folder: Path) -> dict[str, Any]:
    """The adapter's weights."""
    from safetensors.torch import load_file

    return load_file(folder / "adapter" / "adapter_model.safetensors")


# Processes that are killed ---------------------------------------------------------------------------------------------

_PROCESSES = multiprocessing.get_context("forkserver")


def killed(base: Path, folder: Path, plan: TrainingConfig, where: Where, step: int) -> None:
    """Train in a process of its own until it kills itself there."""
    _PROCESSES.set_forkserver_preload(["small_training", "usertwin.memory.training.trl_trainers", "trl.trainer.grpo_trainer",
                                       "trl.trainer.dpo_trainer"])  # fmt: skip
    process = _PROCESSES.Process(target=_until_killed, args=(base, folder, plan, where, step), daemon=True)
    process.start()
    process.join(240)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL, f"the process was not killed {where} {step}: {process.exitcode}"


def _until_killed(base: Path, folder: Path, plan: TrainingConfig, where: Where, step: int) -> None:
    from transformers import Trainer, TrainerState
    from transformers.trainer_callback import CallbackHandler

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def before(owner: Any, name: str, then: Any, at: Any) -> None:
        """Have something done before a method of transformers is, if the step has come."""
        method = getattr(owner, name)

        def wrapped(self: Any, *args: Any, **options: Any) -> Any:
            if at(self, *args) == step:
                then(self, *args)
            return method(self, *args, **options)

        setattr(owner, name, wrapped)

    def half(state: Any, path: str) -> None:
        Path(path).write_text('{"global_step": 4, "log_hist', "utf-8")
        die()

    if where == "after a checkpoint":
        before(CallbackHandler, "on_save", die, lambda _, args, state, control: state.global_step)
    elif where == "between checkpoints":
        before(CallbackHandler, "on_log", die, lambda _, args, state, *rest: state.global_step)
    elif where == "within a checkpoint":
        before(Trainer, "_save_rng_state", die, lambda trainer, path: trainer.state.global_step)
    else:
        before(TrainerState, "save_to_json", half, lambda state, path: state.global_step)
    trained(base, folder, plan)
