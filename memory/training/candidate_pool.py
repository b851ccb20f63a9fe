"""What the base proposes for the training pairs: the traces that fine-tuning and DPO learn from, and their rewards.

The one design choice: they are sampled once, by the untrained base, written line by line as they come, and shared by the
methods that learn from them, so that these start from the same texts and a stop loses at most one pair.

A line of the file is one pair: {"pair": [conversation, position], "traces": [...], "rewards": [{...} of each], "tokens": all}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from usertwin.memory.jsonl import open_to_append, whole_lines, write_line
from usertwin.memory.models.chat import ChatModel, Style
from usertwin.memory.models.embedding import Embedder
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.recon.fidelity import Fidelity
from usertwin.memory.recon.guards import LEAKS
from usertwin.memory.recon.propose import ProposalMode, as_trace, propose
from usertwin.personas import Pair, UsageError

from .dataset import TrainingExample
from .policy import prompt_of
from .rewards import Reward, RewardWeights, compute_rewards

#: A pair teaches a preference only if its best trace is worth so much more than its worst.
LEAST_MARGIN = 0.02


@dataclass(frozen=True, slots=True)
class ScoredCandidates:
    """What was proposed for a lesson.

    Attributes:
        lesson: for which.
        traces: what was proposed.
        rewards: of each.
        tokens: that were written for it.
    """

    lesson: TrainingExample
    traces: tuple[str, ...]
    rewards: tuple[Reward, ...]
    tokens: int

    def ranked(self, weights: RewardWeights, lean: float = 0.0) -> list[tuple[float, str]]:
        """The traces in which something was written, each with its worth, the best first; of equals the first proposed.

        Args:
            weights: of the reward's terms.
            lean: what being near the action is worth beside these; what being far from it is worth, if negative.
        """
        told = {trace: one.total(weights) + _leaning(one, lean) for trace, one in zip(self.traces, self.rewards, strict=True)}
        return sorted(((worth, trace) for trace, worth in told.items() if trace), key=lambda one: -one[0])


def _leaning(reward: Reward, lean: float) -> float:
    """Never negative, and 0 for a trace that is rejected, so that this is worth no more than one that is not."""
    return 0.0 if reward.rejected else lean * (reward.nearness if lean > 0 else reward.nearness - 1)


async def sample_candidates(
    path: Path,
    lessons: Sequence[TrainingExample],
    model: ChatModel,
    fidelity: Fidelity,
    guard: Callable[[str, Pair], str | None],
    *,
    count: Callable[[str], int],
    weights: RewardWeights,
    embedder: Embedder | None = None,
    how: ProposalMode,
    group: int,
    budget: int,
    seed: int,
    progress: Progress = no_progress,
) -> list[ScoredCandidates]:
    """Have traces proposed for the lessons, in order, until so many tokens are written; goes on where it was stopped.

    Args:
        path: the file they are kept in.
        lessons: for which.
        model: the base.
        fidelity: scores them.
        guard: the name of the guard that rejects a trace, or None.
        count: the tokens of a text. What was cut off a trace is not counted; servers do not agree on whether they tell those of
            all samples of a prompt, or of one.
        weights: tell the shape of the reward.
        embedder: see `rewards_of`.
        how: in which way they are proposed.
        group: how many for each.
        budget: of tokens.
        seed: for the sampler.
        progress: is told how many tokens of the budget are written.

    Raises:
        ModelError: the model does not answer; what was done is kept.
        UsageError: the file is not what this run wrote.
    """
    found = _read(path, lessons)
    spent = sum(one.tokens for one in found)
    with open_to_append(path) as file:
        for place in range(len(found), len(lessons)):
            progress("proposals", min(spent, budget), budget)
            if spent >= budget:
                break
            lesson = lessons[place]
            traces = await propose(model, lesson.pair, "the person", proposal_mode=how, n=group, seed=seed + place * group)
            rewards = await compute_rewards(
                lesson.pair, traces, [True] * len(traces),
                fidelity=fidelity, guard=guard, embedder=embedder, shape=weights.shape, seed=seed,
            )  # fmt: skip
            tokens = sum(count(trace) + 1 for trace in traces)
            found.append(ScoredCandidates(lesson, tuple(traces), tuple(rewards), tokens))
            row = {"pair": _key(lesson), "traces": traces, "rewards": [asdict(one) for one in rewards], "tokens": tokens}
            write_line(file, row)
            spent += tokens
    progress("proposals", min(spent, budget), budget)
    return found


def sft_rows(pool: Sequence[ScoredCandidates], weights: RewardWeights, style: Style, how: ProposalMode) -> list[dict[str, Any]]:
    """Rows to fine-tune on: for each pair the best trace, where it helps; prompt and completion as trl takes them."""
    rows: list[dict[str, Any]] = []
    for one in pool:
        scores = {trace: reward.score for trace, reward in zip(one.traces, one.rewards, strict=True)}
        best = next(iter(one.ranked(weights)), None)
        if best is not None and (scores[best[1]] or 0.0) > 0:
            rows.append({"prompt": prompt_of(one.lesson.pair, style, how), "completion": completion_of(best[1], style)})
    return rows


def dpo_rows(
    pool: Sequence[ScoredCandidates], weights: RewardWeights, style: Style, how: ProposalMode, lean: float = 0.0
) -> list[dict[str, Any]]:
    """Rows for DPO: for each pair its best trace, and the worst of those that are allowed, where the best is clearly better.

    In every other group that holds a trace that leaks, this stands in for the worst. Such traces are near the action
    (see `TOLERATED_MEANING` in rewards.py): with one from each of these groups, what is preferred would on the whole be farther
    from the action than what it is preferred to, and it is with nearness that a gain mostly comes. Where the choice leans
    toward the action or away from it (see `Proposed.ranked`), this is decided, and it stands in in each such group.
    """
    rows: list[dict[str, Any]] = []
    turn = False
    for one in pool:
        why = {trace: reward.rejected for trace, reward in zip(one.traces, one.rewards, strict=True)}
        ranked = one.ranked(weights, lean)
        allowed = [told for told in ranked if why[told[1]] is None]
        leaking = [told for told in ranked if why[told[1]] in LEAKS]
        if not allowed:
            continue
        turn ^= bool(leaking)
        best, against = allowed[0], (leaking if leaking and (turn or lean) else allowed)[-1]
        if best[0] - against[0] >= LEAST_MARGIN:
            rows.append(
                {
                    "prompt": prompt_of(one.lesson.pair, style, how),
                    "chosen": completion_of(best[1], style),
                    "rejected": completion_of(against[1], style),
                }
            )
    return rows


def completion_of(trace: str, style: Style) -> Any:
    """What a model would have written for `as_trace` to make this trace of it, but for a full stop that it may end with.

    A trace that was cut off at a comma gets one: as it is, it would be cut again, at the comma before.
    """
    if style == "instruction":
        return [{"role": "assistant", "content": trace}]
    written = trace[1:] + "\n"
    return written if as_trace(style, written) == trace else f"{trace[1:]}.\n"


def _key(lesson: TrainingExample) -> list[Any]:
    return [lesson.pair.conversation_id, lesson.pair.position]


def _read(path: Path, lessons: Sequence[TrainingExample]) -> list[ScoredCandidates]:
    """What the file holds; see json_lines.py."""
    found: list[ScoredCandidates] = []
    for number, line in enumerate(whole_lines(path), 1):
        try:
            row: Any = json.loads(line)
            rewards = tuple(Reward(**one) for one in row["rewards"])
            lesson = lessons[number - 1]
            if row["pair"] != _key(lesson) or len(rewards) != len(row["traces"]):
                raise ValueError("of another pair")
            found.append(ScoredCandidates(lesson, tuple(row["traces"]), rewards, int(row["tokens"])))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise UsageError(f"{path}, line {number}: is damaged ({error}); delete the file to have it written again") from None
    return found
