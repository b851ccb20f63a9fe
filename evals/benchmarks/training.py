"""Benchmarks of a training step: the cost of our reward, and the saving of prefix sharing.

Design: both sides are steps of one training, alternating, on the same pairs with the same seed. The learning rate is 0, so the
policy stays fixed and both sides sample the same tokens (which is checked). Only the measured part differs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from statistics import fmean
from typing import Any

from usertwin.evals.cli.demo import ROBIN
from usertwin.memory import Embedder, LikelihoodGain, Scorer
from usertwin.memory.models.score_cache import CachedScorer
from usertwin.memory.recon.guards import rejection_reason
from usertwin.memory.recon.propose import prompt_template
from usertwin.memory.training.config import TrainingConfig
from usertwin.memory.training.dataset import TrainingExample
from usertwin.memory.training.policy import check_installed, load_base, policy_prompt, stop_tokens
from usertwin.memory.training.prefix_sharing import shared_prefix_forward
from usertwin.memory.training.trl_trainers import GroupRewards, group_trainer, preference_trainer
from usertwin.personas import ModelError, Pair, split_pairs
from usertwin.personas.importers.chitchat import load_chitchat
from usertwin.simulator import load_embedder, load_scorer
from usertwin.simulator.backends.weights import weights_folder

from .figures import Figure, figure, ratios

_NO_CHECKPOINTS = 10**6


@dataclass(frozen=True, slots=True)
class TrainSizes:
    """Sizes of the benchmark: traces per step, traces per pair, and rounds of two steps after a warm-up round."""

    batch: int = 8
    group: int = 8
    rounds: int = 7


FULL = TrainSizes()


def train_part(sizes: TrainSizes = FULL) -> Iterator[tuple[str, Figure]]:
    """Yield all figures of this file, with the default model."""
    check_installed()
    corpus = split_pairs(load_chitchat(), ROBIN.speaker).corpus
    examples = [TrainingExample("chitchat", pair) for pair in corpus if not pair.abandoned]
    scorer: Any = load_scorer("local")
    with tempfile.TemporaryDirectory() as folder:
        # Scores are cached as in training, but in a new file: an earlier benchmark must not have filled it.
        new_cache = CachedScorer(scorer.scorer, Path(folder) / "scores.sqlite")
        yield from reward_figures(weights_folder("local"), new_cache, load_embedder(), examples, sizes)
    yield from prefix_figures(weights_folder("local"), examples, sizes)


def reward_figures(
    base: Path, scorer: Scorer, embedder: Embedder, examples: Sequence[TrainingExample], sizes: TrainSizes
) -> Iterator[tuple[str, Figure]]:
    """Yield the cost of our reward in a GRPO step, against the same step with a constant reward.

    Args:
        base: folder of the policy's weights.
        scorer: the reconstruction model.
        embedder: for the guard against paraphrases.
        examples: pairs to propose traces for, at least as many as the rounds need.
        sizes: the sizes.

    Raises:
        ModelError: the two sides sampled different tokens, so they cannot be compared.
    """
    from transformers import PrinterCallback

    model, tokenizer = load_base(base)
    pairs, rounds = sizes.batch // sizes.group, sizes.rounds + 1
    rows = [row for number in range(rounds) for row in [*examples[number * pairs : (number + 1) * pairs]] * 2]
    config = TrainingConfig(
        method="grpo",
        group_size=sizes.group,
        batch_size=sizes.batch,
        token_budget=2 * rounds * sizes.batch,
        save_every=_NO_CHECKPOINTS,
    )
    prompt_examples = prompt_template("propose_transcript").text

    def guard(trace: str, pair: Pair) -> str | None:
        return rejection_reason(trace, pair, prompt_examples, embedder)

    rewards = GroupRewards(config, rows, LikelihoodGain(scorer), guard, stop_tokens(tokenizer, config.style), embedder)
    sampled: list[Any] = []
    reward_seconds: list[float] = []
    clock, seconds = _step_clock()
    with tempfile.TemporaryDirectory() as folder:
        functions = _alternating(rewards.functions, sampled, reward_seconds)
        trainer = group_trainer(config, Path(folder), model, tokenizer, rows, functions, clock)
        trainer.remove_callback(PrinterCallback)
        trainer.shuffle_dataset = False
        trainer.args.learning_rate = 0.0
        with shared_prefix_forward(model):
            trainer.train()
    if any(sampled[2 * number] != sampled[2 * number + 1] for number in range(rounds)):
        raise ModelError("the steps with our reward and with a constant one did not sample the same tokens; run it again")
    steps = range(2, 2 * rounds)  # the first round is warm-up
    ours = [seconds[step] for step in steps if _is_ours(step)]
    constant = [seconds[step] for step in steps if not _is_ours(step)]
    shares = [reward_seconds[step] / seconds[step] for step in steps if _is_ours(step)]
    tokens = fmean(len(trace) for step in sampled[2:] for trace in step)
    workload = f"{sizes.batch} traces in groups of {sizes.group}, {tokens:.0f} tokens each"
    against = f"the step with a constant reward, {workload} (bar: 1.15)"
    yield "train.reward_overhead", figure(ratios(ours, constant), "ratio", against)
    yield "train.reward_share", figure(shares, "share", "seconds of the same step")
    yield "train.grpo_step_s", figure(ours, "s", workload)


def prefix_figures(base: Path, examples: Sequence[TrainingExample], sizes: TrainSizes) -> Iterator[tuple[str, Figure]]:
    """Yield the time of a DPO step with prefix sharing, against the same step without.

    Args:
        base: folder of the policy's weights.
        examples: pairs of the prompts, at least one batch; all steps use the same ones.
        sizes: the sizes.
    """
    from transformers import PrinterCallback, TrainerCallback

    model, tokenizer = load_base(base)
    steps, patch = 2 * (sizes.rounds + 1), ExitStack()
    config = TrainingConfig(
        method="dpo",
        batch_size=sizes.batch,
        micro_batch_size=4,
        epochs=steps,
        learning_rate=0.0,
        save_every=_NO_CHECKPOINTS,
    )
    rows = [
        {
            "prompt": policy_prompt(example.pair, config.style, config.proposal_mode),
            "chosen": " felt curious, and I wanted to hear more about it.\n",
            "rejected": " was tired of the subject, and I wanted to talk of something else.\n",
        }
        for example in examples[: sizes.batch]
    ]
    clock, seconds = _step_clock()

    class SharingCallback(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if _is_ours(state.global_step):
                patch.enter_context(shared_prefix_forward(model))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            patch.close()

    with tempfile.TemporaryDirectory() as folder:
        trainer = preference_trainer(config, Path(folder), model, tokenizer, rows, clock)
        trainer.add_callback(SharingCallback())
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    shared, plain = ([seconds[step] for step in range(2, steps) if _is_ours(step) is side] for side in (True, False))
    workload = f"{sizes.batch} rows of a chosen and a rejected trace"
    yield "train.prefix_sharing", figure(ratios(shared, plain), "ratio", f"the step without prefix sharing, {workload}")
    yield "train.dpo_step_s", figure(shared, "s", workload)


def _is_ours(step: int) -> bool:
    """Return whether a step is on our side: the first of two, and in every other round the second."""
    return step % 4 in {0, 3}


def _alternating(functions: Sequence[Any], sampled: list[Any], reward_seconds: list[float]) -> list[Any]:
    """Return reward functions that are constant in every second step.

    Args:
        functions: our reward functions.
        sampled: receives the tokens sampled at each step.
        reward_seconds: receives the seconds that our reward takes at each step.
    """

    def alternate(function: Any) -> Any:
        @wraps(function)
        def term(*, completion_ids: Any, trainer_state: Any, **inputs: Any) -> list[float]:
            if trainer_state.global_step == len(sampled):  # the first function of the step
                sampled.append([list(tokens) for tokens in completion_ids])
                reward_seconds.append(0.0)
            if not _is_ours(trainer_state.global_step):
                return [1.0] * len(completion_ids)
            start = time.perf_counter()
            rewards = function(completion_ids=completion_ids, **inputs)
            reward_seconds[-1] += time.perf_counter() - start
            return rewards

        return term

    return [alternate(function) for function in functions]


def _step_clock() -> tuple[Any, list[float]]:
    """Return a callback that seeds both steps of a round alike, and the list of seconds that it fills."""
    from transformers import TrainerCallback, set_seed

    seconds: list[float] = []

    class ClockCallback(TrainerCallback):
        start = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            set_seed(state.global_step // 2)
            self.start = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seconds.append(time.perf_counter() - self.start)

    return ClockCallback(), seconds
