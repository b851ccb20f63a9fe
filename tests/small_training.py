"""A training of a few steps with a tiny model, and processes that kill themselves in the middle of one.

A killed process is forked from a server that has already imported torch (multiprocessing's forkserver), which saves a second
start. It kills itself at a fixed step, so no timing decides where.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

from tiny_model import one_thread

from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.recon.distractors import Distractors
from usertwin.memory.recon.fidelity import Fidelity, FidelityScore
from usertwin.memory.recon.guards import rejection_reason
from usertwin.memory.recon.propose import TRACE_TOKENS
from usertwin.memory.training.audit import Audit, Auditor
from usertwin.memory.training.candidate_pool import ScoredCandidates
from usertwin.memory.training.config import TrainingConfig, TrainingResult
from usertwin.memory.training.dataset import TrainingExample
from usertwin.memory.training.policy import load_base
from usertwin.memory.training.rewards import Reward
from usertwin.memory.training.train import train
from usertwin.personas import Pair, Turn

KillPoint = Literal["after a checkpoint", "between checkpoints", "inside a checkpoint", "inside its last file"]
REQUESTS = ("a plum cake", "two train tickets", "a red umbrella", "the weather report", "my old parcel", "a quiet room")


def example(number: int) -> TrainingExample:
    """A pair of Ann's."""
    context = (Turn("desk", "agent", f"Hello, what can I do for you on day {number}?"),)
    action = f"i would like {REQUESTS[number % len(REQUESTS)]} please"
    return TrainingExample(
        "log/Ann",
        Pair(
            speaker="Ann",
            context=context,
            action=action,
            goal="",
            conversation_id=f"talk-{number}",
            position=1,
            when=float(number),
        ),
    )


EXAMPLES = [example(number) for number in range(8)]
VALIDATION = [example(number) for number in range(20, 23)]
#: Four steps of DPO or SFT; about four steps of GRPO until the token budget is spent.
CONFIG = TrainingConfig(
    method="dpo", base="transformers:tiny", group_size=2, batch_size=2, micro_batch_size=2, token_budget=90, epochs=1,
    learning_rate=1e-2, rank=2, save_every=2, audit_every=3,
)  # fmt: skip


def small_config(**changes: Any) -> TrainingConfig:
    """The configuration above with some changes."""
    return replace(CONFIG, **changes)


class AsciiFidelity:
    """Scores a trace by its share of ASCII letters."""

    name, floor, comparable = "ascii", 0.0, True

    async def score(self, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Any = None) -> list[FidelityScore]:
        """See `Fidelity.score`."""
        return [FidelityScore(sum(letter.isascii() for letter in trace) / (1 + len(trace)) - 0.5) for trace in traces]


def guard(trace: str, pair: Pair) -> str | None:
    """Rejects leaks by words alone."""
    return rejection_reason(trace, pair)


def pool_of(examples: Sequence[TrainingExample]) -> list[ScoredCandidates]:
    """A pool in which each pair has a good trace and a bad one."""
    good, bad = (Reward(fidelity=term, leak=1, length=1, format=1, score=score) for term, score in ((0.9, 0.4), (0.2, -0.3)))
    traces = ("I felt hungry and wanted to be polite.", "I had no idea what they meant by that.")
    return [ScoredCandidates(one, traces, (good, bad), 20) for one in examples]


def audit(reveals_action: float = 0.25, n: int = 32, gain: float = 0.1) -> Audit:
    """An audit with that share of traces that reveal the action, by a nat each, where the others lack one."""
    margins = tuple(1.0 if place < round(reveals_action * n) else -1.0 for place in range(n))
    return Audit(
        n=n, guarded_gain=gain, leak_rate=0.0, rejection_rate=0.0, reveals_action=reveals_action, words=12.0, margins=margins
    )


class ConstantAuditor:
    """An auditor that reports the given shares in turn, and then the last one; counts its calls."""

    def __init__(self, *shares: float) -> None:
        self.shares, self.calls = shares or (0.25,), 0

    def __call__(self, model: Any, tokenizer: Any) -> Audit:
        share = self.shares[min(self.calls, len(self.shares) - 1)]
        self.calls += 1
        return audit(share)


def real_auditor(
    config: TrainingConfig = CONFIG, scorer: Any = None, examples: Sequence[TrainingExample] = VALIDATION
) -> Auditor:
    """An auditor that samples from the policy, with a scorer without weights."""
    distractors = {"log/Ann": Distractors([one.pair for one in EXAMPLES], FakeEmbedder(64))}
    scorer = scorer or FakeScorer()
    return Auditor(examples, scorer, distractors, guard, config.style, config.proposal_mode, config.seed)


@contextmanager
def short_traces(tokens: int = 12) -> Generator[None]:
    """Limit traces to a few tokens without room for reasoning, since a random model rarely ends one."""
    limits = patch.dict(TRACE_TOKENS, dict.fromkeys(TRACE_TOKENS, tokens))
    with limits, patch("usertwin.memory.recon.propose.reasoning_room", lambda _: 0):
        yield


def trained(
    base: Path, folder: Path, config: TrainingConfig, auditor: Any = None, fidelity: Fidelity | None = None, **options: Any
) -> TrainingResult:
    """Train the tiny model, by default with audits that find nothing."""
    with one_thread(), short_traces():
        model, tokenizer = load_base(base)
        gc.freeze()  # accelerate collects garbage after every training; what is loaded by now need not be scanned again
        examples = options.pop("examples", EXAMPLES)
        return train(
            config, examples, folder, model, tokenizer, auditor or ConstantAuditor(), fidelity=fidelity or AsciiFidelity(),
            guard=options.pop("guard", guard), pool=options.pop("pool", pool_of(examples)), **options,
        )  # fmt: skip


def history_of(folder: Path) -> list[dict[str, Any]]:
    """trl's log history of a training."""
    return json.loads((folder / "trainer_state.json").read_text("utf-8"))["log_history"]


def steps_of(folder: Path) -> dict[int, dict[str, float]]:
    """The metrics of each step; each step is logged once."""
    rows = [row for row in history_of(folder) if "loss" in row]
    steps = [row["step"] for row in rows]
    assert len(steps) == len(set(steps)), f"a step is logged twice: {steps}"
    return {row["step"]: row for row in rows}


def audits_of(folder: Path) -> dict[int, dict[str, float]]:
    """The audit of each audited step; each is logged once."""
    rows = [row for row in history_of(folder) if "audit/n" in row]
    assert len(rows) == len({row["step"] for row in rows}), "an audit is logged twice"
    return {row["step"]: row for row in rows}


def weights_of(folder: Path) -> dict[str, Any]:
    """The adapter's weights."""
    from safetensors.torch import load_file

    return load_file(folder / "adapter" / "adapter_model.safetensors")


# Processes that are killed ---------------------------------------------------------------------------------------------

_PROCESSES = multiprocessing.get_context("forkserver")


def killed(base: Path, folder: Path, config: TrainingConfig, point: KillPoint, step: int) -> None:
    """Train in a separate process until it kills itself at that point."""
    _PROCESSES.set_forkserver_preload(["small_training", "usertwin.memory.training.trl_trainers", "trl.trainer.grpo_trainer",
                                       "trl.trainer.dpo_trainer"])  # fmt: skip
    process = _PROCESSES.Process(target=_train_until_killed, args=(base, folder, config, point, step), daemon=True)
    process.start()
    process.join(240)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL, f"the process was not killed {point} {step}: {process.exitcode}"


def _train_until_killed(base: Path, folder: Path, config: TrainingConfig, point: KillPoint, step: int) -> None:
    from transformers import Trainer, TrainerState
    from transformers.trainer_callback import CallbackHandler

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def before(owner: Any, name: str, action: Any, step_of: Any) -> None:
        """Run an action before a method of transformers at that step."""
        method = getattr(owner, name)

        def wrapped(self: Any, *args: Any, **options: Any) -> Any:
            if step_of(self, *args) == step:
                action(self, *args)
            return method(self, *args, **options)

        setattr(owner, name, wrapped)

    def write_half(state: Any, path: str) -> None:
        Path(path).write_text('{"global_step": 4, "log_hist', "utf-8")
        die()

    if point == "after a checkpoint":
        before(CallbackHandler, "on_save", die, lambda _, args, state, control: state.global_step)
    elif point == "between checkpoints":
        before(CallbackHandler, "on_step_begin", die, lambda _, args, state, control: state.global_step + 1)
    elif point == "inside a checkpoint":
        before(Trainer, "_save_rng_state", die, lambda trainer, path: trainer.state.global_step)
    else:
        before(TrainerState, "save_to_json", write_half, lambda state, path: state.global_step)
    trained(base, folder, config, real_auditor(config))
