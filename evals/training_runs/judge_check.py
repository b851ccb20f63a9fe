"""The check of the judge that rewards traces: questions with known answers about training pairs, before the training begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from usertwin.evals.judges.listwise_checks import CHECKED_PAIRS, TracedPair, check_judge
from usertwin.evals.metrics.statistics import evenly_spaced
from usertwin.memory import ChatModel
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.recon.propose import CUT_OFF, MALFORMED, ProposalMode, propose
from usertwin.memory.training.dataset import TrainingExample

#: Traces that the base proposes for a pair.
_TRACES = 2


async def check_reward_judge(
    examples: Sequence[TrainingExample], base: ChatModel, judge: ChatModel, actor: ChatModel, *,
    proposal_mode: ProposalMode, seed: int, progress: Progress = no_progress,
) -> dict[str, Any]:  # fmt: skip
    """Return how a judge answers questions about some training pairs, as `ListwiseCheckShape`.

    Args:
        examples: the training pairs; at most `CHECKED_PAIRS` are taken, evenly spaced.
        base: proposes the traces from which the actor reconstructs actions.
        judge: the judge.
        actor: reconstructs the actions.
        proposal_mode: how the base proposes.
        seed: of the samplers, of the orders, and of the intervals.
        progress: see `check_judge`.

    Raises:
        ModelError: a model does not answer.
    """
    selected = evenly_spaced(examples, CHECKED_PAIRS)
    traced: list[TracedPair] = []
    for example in selected:
        traces = await propose(base, example.pair, "the person", proposal_mode=proposal_mode, n=_TRACES, seed=seed)
        traced.append((example.pair, [trace for trace in traces if trace not in {"", MALFORMED, CUT_OFF}]))
    other_actions = [_action_of_another_person(selected, place) for place in range(len(selected))]
    return await check_judge(judge, actor, traced, other_actions, seed=seed, progress=progress)


def _action_of_another_person(examples: Sequence[TrainingExample], place: int) -> str:
    """Return the action of the example half of the list away, or of the next one by another person; "" without any."""
    start = (place + len(examples) // 2) % len(examples)
    rotated = [*examples[start:], *examples[:start]]
    return next((other.pair.action for other in rotated if other.label != examples[place].label), "")
