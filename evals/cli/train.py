"""The command `usertwin train`.

It checks all input and prints what training takes before it loads a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import click

from usertwin.memory.models.scoring import Precision
from usertwin.memory.recon.propose import ProposalMode
from usertwin.memory.training.config import BETAS, LEARNING_RATES, TRAIN_METHODS, ReportTo, TrainingConfig, TrainMethod
from usertwin.memory.training.dataset import SplitConfig
from usertwin.memory.training.rewards import Shape
from usertwin.personas import UsageError

from .parts.options import (
    actor_option,
    check_writable,
    console_for,
    dry_run_option,
    embedder_option,
    fidelity_option,
    file_path,
    print_notes,
    progress_bars,
    scorer_option,
    seed_option,
    style_option,
)
from .parts.recipe_file import RecipeCommand, print_dry_run, recipe_option

if TYPE_CHECKING:
    from rich.console import Console

    from usertwin.evals.training_runs.plan import TrainingPlan
    from usertwin.evals.training_runs.run import TrainingRunner

_CONFIG, _SPLIT = TrainingConfig(), SplitConfig()
#: The ways to propose traces that a policy can be trained in.
_TRAINABLE_MODES: tuple[ProposalMode, ...] = ("backward", "forward")
_precision = click.Choice(get_args(Precision))


def _by_method(values: Mapping[TrainMethod, float]) -> str:
    """Return the defaults of an option that depend on the method."""
    return "  [default: " + ", ".join(f"{value:g} for {method}" for method, value in values.items()) + "]"


@click.command(
    cls=RecipeCommand,
    common=("from", "method", "base", "people", "train-pairs", "token-budget", "scorer", "recipe", "dry-run", "seed"),
)
@click.argument("out", type=file_path)
@click.option(
    "--from",
    "sources",
    required=True,
    multiple=True,
    help='Chat log, "chitchat", "oyez:FOLDER" or "twinbench:FILE"; may be repeated.',
)
@click.option(
    "--method",
    "methods",
    type=click.Choice(TRAIN_METHODS),
    multiple=True,
    default=(_CONFIG.method,),
    show_default=True,
    help="Fine-tuning on the best traces (sft), preference optimization (dpo), GRPO with the fidelity as reward (grpo), or "
    "GRPO with the prediction of another turn of the person as reward (e2e); may be repeated.",
)
@click.option("--base", default=_CONFIG.base, show_default=True, help="Model to train: local, local:small or transformers:DIR.")
@click.option(
    "--people",
    default=_SPLIT.people,
    show_default=True,
    help="People of each log to train on, those with the most turns first.",
)
@click.option("--train-pairs", default=_SPLIT.train_pairs, show_default=True, help="Training pairs of each person.")
@click.option(
    "--token-budget", default=_CONFIG.token_budget, show_default=True, help="Tokens to generate, the same for each method."
)
@scorer_option
@recipe_option
@dry_run_option
@seed_option
@style_option
@click.option(
    "--unseen",
    default=_SPLIT.unseen,
    show_default=True,
    help="People of each log to hold out, spread evenly by number of turns.",
)
@click.option("--hold-out", multiple=True, metavar="NAME", help="Hold out this person instead; may be repeated.")
@click.option("--role", help='Only use people with this role, such as "user", in logs that have roles.')
@click.option(
    "--validation-pairs", default=_SPLIT.validation_pairs, show_default=True, help="Validation pairs that the audits use."
)
@click.option(
    "--test-pairs", default=_SPLIT.test_pairs, show_default=True, help="Test pairs of each held-out person; 0 skips the test."
)
@click.option(
    "--later-test-pairs", type=int, help="Test pairs of each training person, from later chats.  [default: --test-pairs]"
)
@click.option(
    "--propose",
    type=click.Choice(_TRAINABLE_MODES),
    default=_CONFIG.proposal_mode,
    show_default=True,
    help="Whether the action is in the prompt of a trace (backward) or not (forward).",
)
@fidelity_option
@click.option(
    "--weights",
    default="1/0.2/0.1/0.1",
    show_default=True,
    help="Weights of the reward terms: fidelity/leak/length/format.",
)
@click.option(
    "--shape",
    type=click.Choice(get_args(Shape)),
    default=_CONFIG.weights.shape,
    show_default=True,
    help="Whether the fidelity term is the clipped fidelity, or its rank in the group.",
)
@click.option("--group-size", default=_CONFIG.group_size, show_default=True, help="Traces sampled for each pair.")
@click.option(
    "--batch-size", default=_CONFIG.batch_size, show_default=True, help="Traces (grpo, e2e) or rows (sft, dpo) of a step."
)
@click.option(
    "--micro-batch-size", default=_CONFIG.micro_batch_size, show_default=True, help="Traces or rows of a forward pass."
)
@click.option("--epochs", default=_CONFIG.epochs, show_default=True, help="Passes of sft and dpo over the rows.")
@click.option("--learning-rate", type=float, help=f"Learning rate.{_by_method(LEARNING_RATES)}")
@click.option("--beta", type=float, help=f"Weight of the divergence from the base model.{_by_method(BETAS)}")
@click.option("--rank", default=_CONFIG.rank, show_default=True, help="Rank of the LoRA adapter.")
@click.option(
    "--precision",
    type=_precision,
    default=_CONFIG.precision,
    show_default=True,
    help="Precision of the base model; bfloat16 is for GPUs.",
)
@click.option("--scorer-precision", type=_precision, default="float32", show_default=True, help="Precision of the scorers.")
@click.option("--measured-by", help="Scorer of the final test, best one that no reward uses.  [default: --scorer]")
@click.option("--samples", default=4, show_default=True, help="Traces sampled for each test pair.")
@actor_option
@click.option("--judge", help="Model that judges, for --fidelity judge.  [default: the base model]")
@embedder_option
@click.option("--save-every", default=_CONFIG.save_every, show_default=True, help="Steps between checkpoints.")
@click.option("--audit-every", default=_CONFIG.audit_every, show_default=True, help="Steps between audits.")
@click.option("--vllm", is_flag=True, help="Sample the traces of grpo and e2e with vLLM, on a GPU.")
@click.option(
    "--report-to",
    type=click.Choice(get_args(ReportTo)),
    default=_CONFIG.report_to,
    show_default=True,
    help="Where to write the training curves, besides the folder of the run.",
)
@click.pass_context
def train(ctx: click.Context, out: Path, dry_run: bool, **options: Any) -> None:
    """Train a synthesizer of reasoning traces on chat logs, into the folder OUT.

    Each method starts from the same base model and uses the same pairs and token budget. Some people, and the later chats of
    all others, are held out for the test. Training stops early if the traces begin to leak the action. Use the result with:
    usertwin learn NAME --from LOG --speaker WHO --synthesizer OUT/METHOD/adapter
    """
    from usertwin.evals.suites.people import looks_at
    from usertwin.evals.training_runs.plan import describe_plan
    from usertwin.memory.training.policy import check_installed

    from .twin_actions import print_looks

    console = console_for(stderr=dry_run)
    check_installed(vllm=options["vllm"], tensorboard=options["report_to"] == "tensorboard")
    with progress_bars(console) as bars:
        from usertwin.evals.training_runs.run import TrainingRunner

        runner = TrainingRunner(_plan(options), out, bars.fetch, bars)
        _check_may_be_trained_on(runner)
        lines = describe_plan(runner.plan, runner.dataset)
    if dry_run:
        print_dry_run(ctx, lines)
        return
    check_writable(out, "OUT")
    for log in runner.logs.values():
        print_notes(console, log)
    for line in lines:
        console.print(line, markup=False)
    with progress_bars(console) as bars:
        runner.fetch, runner.progress = bars.fetch, bars
        results = runner.run()
    _print_summary(console, out, list(results))
    print_looks(console, looks_at(_test_people(runner, "unseen"), f"usertwin train {out}"))


def _check_may_be_trained_on(runner: TrainingRunner) -> None:
    """Raise UsageError if the training or validation pairs are of a registered test person."""
    if chosen := _test_people(runner, "seen"):
        corpus, people = next(iter(chosen.items()))
        raise UsageError(
            f'{corpus}: "{people[0]}" is a test person, and nothing is trained on test people; take fewer people, or hold this '
            "one out with --hold-out"
        )


def _test_people(runner: TrainingRunner, part: Literal["seen", "unseen"]) -> dict[str, tuple[str, ...]]:
    """Return the registered test people among the seen or the unseen people of a training, by registered corpus."""
    from usertwin.evals.suites.people import registered_test_people

    people = {*runner.dataset.people[part]}
    logs = runner.logs
    speakers = [(log.source, who) for name, log in logs.items() for who in log.turn_counts() if f"{name}/{who}" in people]
    return registered_test_people(speakers, {log.source: log for log in logs.values()})


def _plan(options: dict[str, Any]) -> TrainingPlan:
    """Return the checked plan that the options describe. UsageError if two options contradict each other."""
    from usertwin.evals.training_runs.plan import TrainingPlan
    from usertwin.memory.training.rewards import parse_weights
    from usertwin.simulator.backends.load import prompt_style_of

    config_keys = (
        "base", "fidelity", "group_size", "batch_size", "micro_batch_size", "token_budget", "epochs", "learning_rate", "beta",
        "rank", "precision", "vllm", "report_to", "save_every", "audit_every", "seed",
    )  # fmt: skip
    config = TrainingConfig(
        method=options["methods"][0],
        style=prompt_style_of(options["base"], options["style"])[0],
        weights=parse_weights(options["weights"], options["shape"]),
        proposal_mode=options["propose"],
        **{key: options[key] for key in config_keys},
    )
    split_keys = ("people", "unseen", "role", "train_pairs", "validation_pairs", "test_pairs", "later_test_pairs")
    plan_keys = ("scorer", "scorer_precision", "measured_by", "samples", "actor", "judge", "embedder")
    plan = TrainingPlan(
        config=config,
        methods=tuple(dict.fromkeys(options["methods"])),
        sources=tuple(options["sources"]),
        split=SplitConfig(held_out=tuple(options["hold_out"]), **{key: options[key] for key in split_keys}),
        **{key: options[key] for key in plan_keys},
    )
    plan.check()
    return plan


def _print_summary(console: Console, out: Path, methods: list[str]) -> None:
    """Print the results of a training run, the report's path, and how to use each adapter."""
    from usertwin.evals.records.run_folder import MARKDOWN_REPORT
    from usertwin.evals.records.training_run import read_training
    from usertwin.evals.reports.training_summary import summarize_training

    for line in summarize_training(read_training(out)):
        console.print(line, markup=False)
    console.print(f"\nReport: {out / MARKDOWN_REPORT}", style="dim", markup=False, soft_wrap=True)
    for method in methods:
        adapter = out / method / "adapter"
        console.print(f"Use it: usertwin learn NAME ... --synthesizer {adapter}", style="dim", markup=False, soft_wrap=True)
