"""`usertwin train`: a synthesizer that writes better traces than its base, by one or several methods.

The one design choice: everything that can be wrong is said, and what it will take is printed, before a model is loaded; the
same command goes on where it was stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from .options import console_for, embedder_option, fidelity_option, progress_bars, seed_option

if TYPE_CHECKING:
    from rich.console import Console

    from usertwin.evals.training_runs.run import Trainer, TrainingPlan

_METHODS = ["sft", "dpo", "grpo", "e2e"]
_PRECISION = click.Choice(["float32", "bfloat16"])


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--from", "sources", required=True, multiple=True, help='A log, "chitchat" or "oyez:FOLDER"; may be given several times.'
)
@click.option(
    "--method",
    "methods",
    type=click.Choice(_METHODS),
    multiple=True,
    default=("dpo",),
    show_default=True,
    help="Fine-tuning on selected traces, DPO, GRPO by reconstruction, GRPO by what is downstream; may "
    "be given several times.",
)
@click.option(
    "--base", default="local", show_default=True, help='The model to train: "local", "local:small", "transformers:DIR".'
)
@click.option(
    "--style", type=click.Choice(["transcript", "instruction"]), help="How to prompt it.  [default: as its name says]"
)
@click.option("--people", default=8, show_default=True, help="People of each log to train on, those who said most.")
@click.option("--unseen", default=4, show_default=True, help="People of each log to hold out, spread evenly among them.")
@click.option("--hold-out", multiple=True, metavar="NAME", help="Hold out this person instead; may be given several times.")
@click.option("--role", help='Only people of this role, such as "user", in logs that have it.')
@click.option("--pairs", default=16, show_default=True, help="Training pairs of each person.")
@click.option("--watched", default=32, show_default=True, help="Held-out pairs that are looked at while training.")
@click.option("--measured", default=16, show_default=True, help="Held-out pairs of each person to measure on; 0 for none.")
@click.option("--later", type=int, help="Of each person trained on, instead: their later conversations.  [default: as many]")
@click.option(
    "--propose",
    "how",
    type=click.Choice(["backward", "forward"]),
    default="backward",
    show_default=True,
    help="Traces that are written with the action in sight, or without.",
)
@fidelity_option("What a trace is rewarded for; see learn.")
@click.option(
    "--weights", default="1/0.2/0.1/0.1", show_default=True, help="Of the reward's terms: fidelity/leak/length/format."
)
@click.option(
    "--shape",
    type=click.Choice(["clipped", "rank"]),
    default="clipped",
    show_default=True,
    help="Fidelity itself, or its rank.",
)
@click.option("--group", default=8, show_default=True, help="Traces of a pair that are compared.")
@click.option("--budget", default=40_000, show_default=True, help="Tokens to be generated, the same for each method.")
@click.option("--batch", default=16, show_default=True, help="Traces of a step of GRPO, rows of one of the others.")
@click.option("--at-once", default=4, show_default=True, help="How many of them are in memory at once.")
@click.option("--epochs", default=2.0, show_default=True, help="How often sft and dpo see each row.")
@click.option("--learning-rate", type=float, help="[default: 2e-4 for sft, 5e-5 for dpo, 1e-4 for the others]")
@click.option("--beta", type=float, help="How strongly to hold to the base.  [default: 0.1 for dpo, else 0]")
@click.option("--rank", default=16, show_default=True, help="Of the LoRA.")
@click.option("--precision", type=_PRECISION, default="float32", show_default=True, help="Of the base; bfloat16 is for GPUs.")
@click.option("--scorer", default="local", show_default=True, help="The model in the reward and in the audit.")
@click.option("--scorer-precision", type=_PRECISION, default="float32", show_default=True, help="Of the scorers.")
@click.option("--measured-by", help="A scorer that is in no reward, to measure with at the end.  [default: the scorer]")
@click.option("--samples", default=4, show_default=True, help="Traces of each held-out pair that are measured.")
@click.option("--actor", help="The model that reconstructs actions, for judge and rank.  [default: the base]")
@click.option("--judge", help="The model that judges.  [default: the base]")
@embedder_option
@click.option("--save-every", default=20, show_default=True, help="Steps between checkpoints.")
@click.option("--audit-every", default=20, show_default=True, help="Steps between audits.")
@click.option("--vllm", is_flag=True, help="Let vLLM write the traces of GRPO, on a GPU.")
@click.option("--tensorboard", is_flag=True, help="Write the curves for TensorBoard, too.")
@seed_option
@click.option("--dry-run", is_flag=True, help="Print what it would take, and do nothing.")
def train(out: Path, dry_run: bool, **told: Any) -> None:
    """Train a synthesizer on people's logs, into the folder OUT.

    Each method starts from the same base and the same pairs, and may have the same number of tokens generated. What is held
    out is never trained on: some people wholly, and the later conversations of all others. Training stops by itself where
    the traces begin to carry the action. Use what comes out with: usertwin learn NAME --from LOG --speaker WHO --synthesizer
    OUT/METHOD/adapter
    """
    from usertwin.evals.training_runs.plan import plan_of_training
    from usertwin.memory.training.policy import check_installed

    console = console_for()
    check_installed(vllm=told["vllm"], tensorboard=told["tensorboard"])
    with progress_bars(console) as bars:
        from usertwin.evals.training_runs.run import Trainer

        trainer = Trainer(_order(told), out, bars.fetch, bars)
        lines = plan_of_training(trainer.order, trainer.lessons)
    for line in lines:
        console.print(line, markup=False)
    if dry_run:
        return
    with progress_bars(console) as bars:
        trainer.fetch, trainer.progress = bars.fetch, bars
        results = trainer.run()
    _show(console, trainer, results)


def _order(told: dict[str, Any]) -> TrainingPlan:
    from usertwin.evals.training_runs.run import TrainingPlan
    from usertwin.memory.training.config import TrainingConfig
    from usertwin.memory.training.dataset import SplitConfig
    from usertwin.memory.training.rewards import RewardWeights, parse_weights
    from usertwin.simulator.backends.load import prompt_style_of

    base: str = told["base"]
    style: Literal["transcript", "instruction"] = prompt_style_of(base, told["style"])[0]
    weights: RewardWeights = parse_weights(told["weights"], told["shape"])
    plan = TrainingConfig(
        method=told["methods"][0], style=style, weights=weights,
        proposal_mode=told["how"], group_size=told["group"], batch_size=told["batch"], micro_batch_size=told["at_once"],
        token_budget=told["budget"],
        **{key: told[key] for key in (
            "base", "fidelity", "epochs", "learning_rate", "beta", "rank", "precision", "vllm", "tensorboard",
            "save_every", "audit_every", "seed",
        )},
    )  # fmt: skip
    enrolment = SplitConfig(
        told["people"],
        told["unseen"],
        told["hold_out"],
        told["role"],
        told["pairs"],
        told["watched"],
        told["measured"],
        later_test_pairs=told["later"],
    )
    order = TrainingPlan(
        plan, tuple(dict.fromkeys(told["methods"])), told["sources"], enrolment,
        **{key: told[key] for key in ("scorer", "scorer_precision", "measured_by", "samples", "actor", "judge", "embedder")},
    )  # fmt: skip
    order.check()
    return order


def _show(console: Console, trainer: Trainer, results: dict[str, Any]) -> None:
    from usertwin.evals.records.training_run import read_training
    from usertwin.evals.reports.training_report import summary_of_training

    for line in summary_of_training(read_training(trainer.out)):
        console.print(line, markup=False)
    console.print(f"\nReport: {trainer.out / 'report.html'}", style="dim", markup=False, soft_wrap=True)
    for method in results:
        adapter = trainer.out / method / "adapter"
        console.print(f"Use it: usertwin learn NAME ... --synthesizer {adapter}", style="dim", markup=False, soft_wrap=True)
