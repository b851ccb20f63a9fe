"""Candidates that the base proposes for the training pairs, with their rewards; SFT and DPO learn from them.

The untrained base samples them once. They are appended line by line, so a kill loses at most one pair, and both methods share
them. A line is one pair: {"pair": [conversation, position], "traces": [...], "rewards": [{...} of each], "tokens": of all}.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from usertwin.memory.jsonl import append_line, complete_lines, open_for_append
from usertwin.memory.models.chat import ChatModel, PromptStyle
from usertwin.memory.models.embedding import Embedder
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.recon.fidelity import Fidelity
from usertwin.memory.recon.guards import LEAK_REASONS
from usertwin.memory.recon.propose import ProposalMode, parse_trace, propose, sees_action
from usertwin.personas import Pair, UsageError
from usertwin.personas.reading import as_type, parse_json

from .dataset import TrainingExample
from .policy import policy_prompt
from .rewards import Lessons, Reward, RewardWeights, compute_rewards, has_equal_fidelity

#: A pair gives a preference only if its best trace exceeds the rejected one by this much reward.
MIN_MARGIN = 0.02


@dataclass(frozen=True, slots=True)
class ScoredCandidates:
    """The candidates of one training pair.

    Attributes:
        example: the training pair.
        traces: the candidates.
        rewards: the reward of each candidate.
        tokens: tokens generated for them.
    """

    example: TrainingExample
    traces: tuple[str, ...]
    rewards: tuple[Reward, ...]
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """Return the object of a line of the file."""
        rewards = [asdict(reward) for reward in self.rewards]
        return {"pair": _key(self.example), "traces": self.traces, "rewards": rewards, "tokens": self.tokens}

    def ranked(self, weights: RewardWeights) -> list[tuple[float, str]]:
        """Return (reward, trace) of the distinct non-empty traces, best first; equal ones in the order of proposal."""
        totals = {trace: reward.total(weights) for trace, reward in zip(self.traces, self.rewards, strict=True)}
        return sorted(((total, trace) for trace, total in totals.items() if trace), key=lambda row: -row[0])


async def sample_candidates(
    path: Path,
    examples: Sequence[TrainingExample],
    model: ChatModel,
    fidelity: Fidelity,
    guard: Callable[[str, Pair], str | None],
    *,
    count_tokens: Callable[[str], int],
    weights: RewardWeights,
    embedder: Embedder | None = None,
    proposal_mode: ProposalMode,
    group_size: int,
    token_budget: int,
    seed: int,
    progress: Progress = no_progress,
) -> list[ScoredCandidates]:
    """Sample candidates for the pairs, in order, until the token budget is spent; resumes from the file.

    Args:
        path: the file of candidates.
        examples: the training pairs.
        model: the base.
        fidelity: scores the traces.
        guard: returns the name of the guard that rejects a trace, or None.
        count_tokens: returns the tokens of a trace. Servers disagree on whether they report usage for one sample or for all.
        weights: gives the shape of the fidelity term.
        embedder: see `compute_rewards`.
        proposal_mode: "backward" or "forward".
        group_size: candidates per pair.
        token_budget: tokens to generate.
        seed: seed of the sampler.
        progress: receives the tokens generated.

    Raises:
        ModelError: the model does not answer, or the judge gives no readable verdict on any pair; finished pairs are kept.
        UsageError: the file is damaged, or of another run.
    """
    pool = _read(path, examples)
    lessons = lessons_of(pool)
    spent = sum(candidates.tokens for candidates in pool)
    with open_for_append(path) as file:
        for place in range(len(pool), len(examples)):
            progress("proposals", min(spent, token_budget), token_budget)
            if spent >= token_budget:
                break
            pair = examples[place].pair
            traces = await propose(
                model, pair, "the person", proposal_mode=proposal_mode, n=group_size, seed=seed + place * group_size
            )
            rewards = await compute_rewards(
                pair, traces, [True] * len(traces), fidelity=fidelity, guard=guard, embedder=embedder, shape=weights.shape,
                seed=seed, saw_action=sees_action(proposal_mode),
            )  # fmt: skip
            tokens = sum(count_tokens(trace) + 1 for trace in traces)
            pool.append(ScoredCandidates(examples[place], tuple(traces), tuple(rewards), tokens))
            append_line(file, pool[-1].to_json())
            spent += tokens
            lessons.count(rewards)
    progress("proposals", min(spent, token_budget), token_budget)
    return pool


def lessons_of(pool: Sequence[ScoredCandidates]) -> Lessons:
    """Return what the pairs of a pool teach. VerdictError if there are several and none has a readable verdict."""
    lessons = Lessons()
    for candidates in pool:
        lessons.count(candidates.rewards)
    return lessons


def sft_rows(
    pool: Sequence[ScoredCandidates], weights: RewardWeights, style: PromptStyle, proposal_mode: ProposalMode
) -> list[dict[str, Any]]:
    """Return rows of prompt and completion for SFT: the best trace of each pair, where its score is above 0.

    A pair whose traces have equal fidelity is left out: its best trace is only that of the best length and form.
    """
    rows: list[dict[str, Any]] = []
    for candidates in pool:
        if has_equal_fidelity(candidates.traces, candidates.rewards):
            continue
        scores = {trace: reward.score for trace, reward in zip(candidates.traces, candidates.rewards, strict=True)}
        best = next((trace for _, trace in candidates.ranked(weights)), None)
        if best is not None and (scores[best] or 0.0) > 0:
            prompt = policy_prompt(candidates.example.pair, style, proposal_mode)
            rows.append({"prompt": prompt, "completion": completion_of(best, style)})
    return rows


def dpo_rows(
    pool: Sequence[ScoredCandidates], weights: RewardWeights, style: PromptStyle, proposal_mode: ProposalMode
) -> list[dict[str, Any]]:
    """Return rows of prompt, chosen and rejected for DPO: the best and the worst accepted trace of each pair.

    A pair whose traces have equal fidelity gives no such row, since it would teach length and form only.
    Every second group with a leaking trace uses it as the rejected sample. Using it in all of them would teach distance from
    the action, and gain correlates with closeness (see `TOLERATED_COSINE`).
    """
    rows: list[dict[str, Any]] = []
    use_leak = False
    for candidates in pool:
        reasons = {trace: reward.rejected for trace, reward in zip(candidates.traces, candidates.rewards, strict=True)}
        ranked = candidates.ranked(weights)
        accepted = [row for row in ranked if reasons[row[1]] is None]
        leaking = [row for row in ranked if reasons[row[1]] in LEAK_REASONS]
        if not accepted:
            continue
        use_leak ^= bool(leaking)
        against_leak = use_leak and bool(leaking)
        chosen, rejected = accepted[0], (leaking if against_leak else accepted)[-1]
        equal = not against_leak and has_equal_fidelity(candidates.traces, candidates.rewards)
        if not equal and chosen[0] - rejected[0] >= MIN_MARGIN:
            rows.append(
                {
                    "prompt": policy_prompt(candidates.example.pair, style, proposal_mode),
                    "chosen": completion_of(chosen[1], style),
                    "rejected": completion_of(rejected[1], style),
                }
            )
    return rows


def completion_of(trace: str, style: PromptStyle) -> Any:
    """Return the completion that `parse_trace` turns into this trace, apart from an added full stop.

    A trace that was cut off at a comma gets a full stop; otherwise `parse_trace` would cut it again at the comma before.
    """
    if style == "instruction":
        return [{"role": "assistant", "content": trace}]
    text = trace[1:] + "\n"
    return text if parse_trace(style, text) == trace else f"{trace[1:]}.\n"


def _key(example: TrainingExample) -> list[Any]:
    return [example.pair.conversation_id, example.pair.position]


class _Row(TypedDict):
    """A line of the file: a pair's conversation and position, its traces, their rewards, and the tokens sampled for them."""

    pair: list[str | int]
    traces: tuple[str, ...]
    rewards: tuple[Reward, ...]
    tokens: int


def _read(path: Path, examples: Sequence[TrainingExample]) -> list[ScoredCandidates]:
    """Return the candidates in the file; a line that a kill cut off is left out."""
    pool: list[ScoredCandidates] = []
    for number, line in enumerate(complete_lines(path), 1):
        try:
            row = as_type(_Row, parse_json(line))
            rewards = row["rewards"]
            example = examples[number - 1]
            if row["pair"] != _key(example) or len(rewards) != len(row["traces"]):
                raise ValueError("of another pair")
            pool.append(ScoredCandidates(example, row["traces"], rewards, row["tokens"]))
        except (ValueError, IndexError) as error:
            raise UsageError(f"{path}:{number}: damaged ({error}); delete the file to sample the candidates again") from None
    return pool
