"""A soup: the sum of two adapters that DPO trains on one pool, one leaning toward the action, the other away from it.

The one design choice: both prefer what gains and shun what leaks, and they differ only in what being near the action is worth.
Nearness is what a gain and a leak have in common, so that one training buys the one with the other; as a part of a sum it is
weighed apart. Measured on people held out, the sum leaks less than its base, but a gain beside that is not shown under a model
that was in no reward (evals/EXPERIMENTS.md).

Sources: adapters trained for different rewards are added in arXiv 2306.04488 (rewarded soups), task vectors in 2212.04089. The
sum is exact: peft puts the matrices of both side by side, so that its rank is twice theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .audit import Audit, reason_to_stop
from .checkpoints import ADAPTER, save_adapter, training_errors
from .curves import CURVES, Curves

if TYPE_CHECKING:
    from .config import TrainingConfig, TrainingResult

#: The parts, each trained in the folder of its name, and their leans in units of the plan's.
PARTS: Mapping[str, int] = {"toward": 1, "away": -1}
_SUM = "default"  # an adapter of this name peft writes into a folder itself, others into one below


def cook(
    plan: TrainingConfig,
    folder: Path,
    model: Any,
    tokenizer: Any,
    auditor: Callable[[Any, Any], Audit],
    train_part: Callable[[Path, float], TrainingResult],
) -> tuple[str | None, int]:
    """Train the parts and add them, or go on with that; the adapter is then in `folder`/adapter.

    Args:
        plan: tells the lean, and the weights of the parts.
        folder: of the method; its curves are those of the parts, one after the other, and the audit of the sum.
        model: the base; it is as it was when this returns.
        tokenizer: its own.
        auditor: looks at the sum.
        train_part: trains one part in a folder with a lean, leaving the base as it was.

    Returns:
        What the audit of the sum says against it, or why a part stopped by itself, or None; and the steps of both.
    """
    ended = [train_part(folder / name, sign * plan.lean) for name, sign in PARTS.items()]
    curves, done = list[dict[str, Any]](), 0
    for name, part in zip(PARTS, ended, strict=True):
        rows = Curves(folder / name / CURVES).read()
        curves += [row | {"step": row["step"] + done} for row in rows if row["step"] or not done]
        done += part.steps
    with training_errors(folder), added([folder / name / ADAPTER for name in PARTS], plan.soup, model) as soup:
        audit = auditor(soup, tokenizer)
        save_adapter(soup, tokenizer, folder)
    noted = Curves(folder / CURVES)
    noted.write([row for row in curves if row["step"] < done or "audit" not in row])
    noted.add_audit(done, audit)
    first = noted.first_audit()
    reasons = [
        f"in the part {name} the action, {part.stopped}" for name, part in zip(PARTS, ended, strict=True) if part.stopped
    ]
    own = None if first is None else reason_to_stop(first, audit)
    return own or next(iter(reasons), None), done


@contextmanager
def added(adapters: list[Path], weights: tuple[float, ...], model: Any) -> Generator[Any]:
    """A base with the weighted sum of adapters of it, exact, of the sum of their ranks; without it again afterwards.

    Args:
        adapters: their folders.
        weights: one for each.
        model: the base.
    """
    from peft import PeftModel

    first, *others = names = [str(place) for place in range(len(adapters))]
    soup = PeftModel.from_pretrained(model, str(adapters[0]), adapter_name=first)
    try:
        for name, adapter in zip(others, adapters[1:], strict=True):
            soup.load_adapter(str(adapter), name)
        soup.add_weighted_adapter(names, list(weights), _SUM, combination_type="cat")
        soup.set_adapter(_SUM)
        for name in names:
            soup.delete_adapter(name)
        yield soup
    finally:
        soup.unload()
