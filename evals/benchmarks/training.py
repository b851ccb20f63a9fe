"""What our reward costs a training step, and what reading a batch's common beginning once spares it: a part of `make bench`.

The one design choice: both sides are steps of one training, in turn, on the same pairs and from the same seed, with a learning
rate of 0: so the policy stays what it is, both sides write the same tokens (that is checked), and only one thing is another.
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

from usertwin.evals.cli.demo import SPEAKER
from usertwin.memory import Embedder, LikelihoodGain, Scorer
from usertwin.memory.models.score_cache import CachedScorer
from usertwin.memory.recon.guards import rejection_reason
from usertwin.memory.recon.propose import prompt_template
from usertwin.memory.training.config import TrainingConfig
from usertwin.memory.training.dataset import TrainingExample
from usertwin.memory.training.policy import check_installed, ends_of, load_base, prompt_of
from usertwin.memory.training.prefix_sharing import shared_prefix_forward
from usertwin.memory.training.trl_trainers import GroupRewards, group_trainer, preference_trainer
from usertwin.personas import ModelError, Pair, split_pairs
from usertwin.personas.importers.chitchat import load_chitchat
from usertwin.simulator import load_embedder, load_scorer
from usertwin.simulator.backends.weights import weights_folder

from .figures import Figure, figure, ratios


@dataclass(frozen=True, slots=True)
class TrainSizes:
    """How much is measured: traces of a step, how many of them are of one pair, and rounds of two steps after the first."""

    batch: int = 8
    group: int = 8
    rounds: int = 7


FULL = TrainSizes()


def train_part(sizes: TrainSizes = FULL) -> Iterator[tuple[str, Figure]]:
    """A step of GRPO with our reward, against the same step with a constant one; of DPO, reading once and reading all."""
    check_installed()
    corpus = split_pairs(load_chitchat(), SPEAKER).corpus
    lessons = [TrainingExample("chitchat", pair) for pair in corpus if not pair.abandoned]
    scorer: Any = load_scorer("local")
    with tempfile.TemporaryDirectory() as folder:
        # As in training, what was scored is kept; but what an earlier run of this has scored must not be known.
        fresh = CachedScorer(scorer.scorer, Path(folder) / "scores.sqlite")
        yield from overhead_figures(weights_folder("local"), fresh, load_embedder(), lessons, sizes)
    yield from reading_figures(weights_folder("local"), lessons, sizes)


def overhead_figures(
    base: Path, scorer: Scorer, embedder: Embedder, lessons: Sequence[TrainingExample], sizes: TrainSizes
) -> Iterator[tuple[str, Figure]]:
    """The figures of one base and one scorer.

    Args:
        base: the folder of the policy's weights.
        scorer: the reconstruction model.
        embedder: for the guard against saying the same in other words.
        lessons: what traces are proposed for, as many as the rounds need or more.
        sizes: how much is measured.

    Raises:
        ModelError: the two sides did not write the same tokens, so they cannot be compared.
    """
    from transformers import PrinterCallback

    model, tokenizer = load_base(base)
    each, rounds = sizes.batch // sizes.group, sizes.rounds + 1
    rows = [lesson for number in range(rounds) for lesson in [*lessons[number * each : (number + 1) * each]] * 2]
    plan = TrainingConfig(
        "grpo", group_size=sizes.group, batch_size=sizes.batch, token_budget=2 * rounds * sizes.batch, save_every=10**6
    )
    examples = prompt_template("propose_transcript").text

    def guard(trace: str, pair: Pair) -> str | None:
        return rejection_reason(trace, pair, examples, embedder)

    rewards = GroupRewards(plan, rows, LikelihoodGain(scorer), guard, ends_of(tokenizer, plan.style), embedder)
    written: list[Any] = []
    rewarding: list[float] = []
    turns, seconds = _turns_and_clock()
    with tempfile.TemporaryDirectory() as folder:
        functions = _in_turn(rewards.functions, written, rewarding)
        trainer = group_trainer(plan, Path(folder), model, tokenizer, rows, functions, turns)
        trainer.remove_callback(PrinterCallback)
        trainer.shuffle_dataset = False
        trainer.args.learning_rate = 0.0
        with shared_prefix_forward(model):
            trainer.train()
    if any(written[2 * number] != written[2 * number + 1] for number in range(rounds)):
        raise ModelError("the steps with our reward and with a constant one did not write the same tokens; nothing to compare")
    steps = range(2, 2 * rounds)  # the first round is warm-up
    ours = [seconds[step] for step in steps if _is_ours(step)]
    constant = [seconds[step] for step in steps if not _is_ours(step)]
    shares = [rewarding[step] / seconds[step] for step in steps if _is_ours(step)]
    which = f"{sizes.batch} traces of a group of {sizes.group}, of {_mean_length(written[2:]):.0f} tokens"
    yield (
        "train.reward_overhead",
        figure(ratios(ours, constant), "ratio", f"the step with a constant reward, {which} (bar: 1.15)"),
    )
    yield "train.reward_share", figure(shares, "share", "seconds of the same step")
    yield "train.grpo_step_s", figure(ours, "s", which)


def reading_figures(base: Path, lessons: Sequence[TrainingExample], sizes: TrainSizes) -> Iterator[tuple[str, Figure]]:
    """What a step of DPO takes that reads once what its rows begin with, against one that reads each from its start.

    Args:
        base: the folder of the policy's weights.
        lessons: what the prompts are of, as many as a batch or more; all steps are on the same ones.
        sizes: how much is measured.
    """
    from transformers import PrinterCallback, TrainerCallback

    model, tokenizer = load_base(base)
    steps, once = 2 * (sizes.rounds + 1), ExitStack()
    plan = TrainingConfig("dpo", batch_size=sizes.batch, micro_batch_size=4, epochs=steps, learning_rate=0.0, save_every=10**6)
    rows = [
        {
            "prompt": prompt_of(lesson.pair, plan.style, plan.proposal_mode),
            "chosen": " felt curious, and I wanted to hear more about it.\n",
            "rejected": " was tired of the subject, and I wanted to talk of something else.\n",
        }
        for lesson in lessons[: sizes.batch]
    ]
    turns, seconds = _turns_and_clock()

    class Reading(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if _is_ours(state.global_step):
                once.enter_context(shared_prefix_forward(model))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            once.close()

    with tempfile.TemporaryDirectory() as folder:
        trainer = preference_trainer(plan, Path(folder), model, tokenizer, rows, turns)
        trainer.add_callback(Reading())
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    ours, plain = ([seconds[step] for step in range(2, steps) if _is_ours(step) is side] for side in (True, False))
    which = f"{sizes.batch} rows of a chosen and a rejected trace"
    yield "train.reading_once", figure(ratios(ours, plain), "ratio", f"the step that reads each from its start, {which}")
    yield "train.dpo_step_s", figure(ours, "s", which)


def _mean_length(written: Sequence[Sequence[Sequence[int]]]) -> float:
    return fmean(len(one) for step in written for one in step)


def _is_ours(step: int) -> bool:
    """Whether a step is rewarded by us: the first of two, and in every other round the second."""
    return step % 4 in {0, 3}


def _in_turn(functions: Sequence[Any], written: list[Any], rewarding: list[float]) -> list[Any]:
    """Reward functions that are ours at some steps and constant at the others.

    Args:
        functions: ours.
        written: what was written at each step is noted there.
        rewarding: and there, for how many seconds we rewarded it.
    """

    def of(function: Any) -> Any:
        @wraps(function)
        def term(*, completion_ids: Any, trainer_state: Any, **rest: Any) -> list[float]:
            if trainer_state.global_step == len(written):  # the first function of the step
                written.append([list(one) for one in completion_ids])
                rewarding.append(0.0)
            if not _is_ours(trainer_state.global_step):
                return [1.0] * len(completion_ids)
            began = time.perf_counter()
            found = function(completion_ids=completion_ids, **rest)
            rewarding[-1] += time.perf_counter() - began
            return found

        return term

    return [of(function) for function in functions]


def _turns_and_clock() -> tuple[Any, list[float]]:
    """A callback that begins both steps of a round with the same seed, and the seconds each step takes."""
    from transformers import TrainerCallback, set_seed

    seconds: list[float] = []

    class Clock(TrainerCallback):
        began = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            set_seed(state.global_step // 2)
            self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seconds.append(time.perf_counter() - self.began)

    return Clock(), seconds
