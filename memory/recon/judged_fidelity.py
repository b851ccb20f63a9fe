"""Judged fidelity: generate the action from context and trace, and compare the result with the real action.

Design: a judge sees all attempts of a pair in one verdict, under letters and in an order drawn from the seed, and never the
traces. Its answer is parsed strictly; an unreadable answer is asked for again and then raises an error, never a score of 0.

`judge_quality` reads the traces themselves: it serves a selection method and does not measure fidelity. `fidelity_by_name`
makes any fidelity, those of fidelity.py included.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from itertools import combinations
from statistics import fmean
from typing import Any, Literal, get_args

from usertwin.memory.concurrency import gather, to_thread
from usertwin.memory.models.chat import ChatModel, Ledger, limit_error, sample, sample_readable
from usertwin.memory.models.embedding import Embedder
from usertwin.memory.models.scoring import Scorer
from usertwin.memory.models.token_limits import token_limit
from usertwin.memory.text.completions import json_objects, without_reasoning
from usertwin.memory.text.transcript import context_lines, single_line, truncate_action
from usertwin.personas import Pair, UsageError, VerdictError

from .distractors import Distractors
from .fidelity import CHOICES, Fidelity, FidelityScore, ForcedChoice, LikelihoodGain, PriorCorrectedGain, reconstruction_prompt
from .propose import CONTEXT_TURNS, ProposalMode, prompt_template, sees_action

FidelityName = Literal["guarded_gain", "gain", "judge", "choice", "rank", "prior"]
FIDELITIES: tuple[FidelityName, ...] = get_args(FidelityName)

#: Number of attempts that a judge can compare in one verdict: there is a letter for each.
MAX_ATTEMPTS = len(string.ascii_uppercase)
#: Verdicts on the reconstructions of a pair: one order and its reverse, since a judge may prefer a place in the list.
ORDERS = 2
#: Tokens of the marks of one attempt in a verdict.
_MARK_TOKENS = 60
_DIMENSIONS = {"judge_traces": ("style", "intent", "values"), "judge_quality": ("plausible", "specific", "clear")}
_MAX_MARK = 10


async def reconstruct_actions(
    model: ChatModel, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Ledger | None = None
) -> list[str]:
    """Return one action for each trace, generated from the context and that trace.

    Raises:
        VerdictError: a completion is empty at its limit of tokens; no verdict on it would be about the trace.
        ModelError: the model does not answer.
    """
    transcript = model.style == "transcript"
    max_tokens = token_limit("reconstruction", model.style)
    prompts = [reconstruction_prompt(pair, trace) if transcript else _instruction(pair, trace) for trace in traces]
    samples = await gather(
        *(
            sample(
                model, [("user", prompt)], seed=seed, max_tokens=max_tokens, temperature=0.6,
                stop=["\n"] if transcript else [], ledger=ledger,
            )
            for prompt in prompts
        )
    )  # fmt: skip
    if any(completion.at_limit and not completion.text.strip() for [completion] in samples):
        raise VerdictError(str(limit_error(model, max_tokens)))
    return [single_line(completion.text) for [completion] in samples]


def _instruction(pair: Pair, trace: str) -> str:
    return prompt_template("reconstruct_instruction").fill(
        goal=pair.goal, context=context_lines(pair, CONTEXT_TURNS), trace=trace
    )


async def listwise_verdict(
    judge: ChatModel,
    question: str,
    pair: Pair,
    attempts: Sequence[str],
    *,
    seed: int = 0,
    reverse: bool = False,
    ledger: Ledger | None = None,
) -> list[FidelityScore]:
    """Return one listwise verdict: each attempt's rank, scaled from 1 (best) to 0, and its marks, from 0 to 1.

    Attempts that the judge calls tied share the mean of their ranks.

    Args:
        judge: the judge.
        question: "judge_traces" (which attempt is closest to the action) or "judge_quality" (which note explains it best).
        pair: the pair.
        attempts: the texts to rank.
        seed: seed of the order in which they are shown, and of the sampler.
        reverse: reverse that order.
        ledger: records the cost.

    Raises:
        VerdictError: three answers in a row are unreadable, or empty at their limit of tokens.
        ModelError: the judge does not answer.
    """
    if len(attempts) > MAX_ATTEMPTS:
        raise UsageError(f"{len(attempts)} attempts in one verdict of a judge: at most {MAX_ATTEMPTS} are possible")
    order = shown_order(pair, len(attempts), seed=seed, reverse=reverse)
    labels = list(string.ascii_uppercase[: len(attempts)])
    prompt = prompt_template(question).fill(
        name=single_line(pair.speaker)[:24], context=context_lines(pair, CONTEXT_TURNS), action=truncate_action(pair.action),
        labels=labels, attempts=[attempts[index] or "(nothing)" for index in order],
    )  # fmt: skip
    max_tokens, dimensions = token_limit("ranking", judge.style) + _MARK_TOKENS * len(labels), _DIMENSIONS[question]
    scores, is_cut_off = await sample_readable(
        judge, [("user", prompt)], lambda text: _parse_verdict(text, labels, dimensions), seed=seed, max_tokens=max_tokens,
        schema=_verdict_schema(labels, dimensions), ledger=ledger,
    )  # fmt: skip
    if scores is not None:
        return [scores[labels[order.index(index)]] for index in range(len(attempts))]
    if is_cut_off:
        raise VerdictError(str(limit_error(judge, max_tokens)))
    raise VerdictError(
        f'the judge "{judge.name}" returned no readable verdict, 3 times in a row; use a model that follows instructions'
    )


def shown_order(pair: Pair, attempts: int, *, seed: int = 0, reverse: bool = False) -> list[int]:
    """Return the indices of the attempts in the order in which `listwise_verdict` shows them."""
    order = list(range(attempts))
    random.Random(f"{seed}/{pair.conversation_id}/{pair.position}").shuffle(order)
    return order[::-1] if reverse else order


def _verdict_schema(labels: Sequence[str], dimensions: Sequence[str]) -> dict[str, Any]:
    mark = {"type": "integer", "minimum": 0, "maximum": _MAX_MARK}
    label = {"enum": list(labels)}
    tied = {"type": "array", "items": label, "minItems": 2}
    marks = {"type": "object", "properties": dict.fromkeys(dimensions, mark), "required": list(dimensions)}
    count = len(labels)
    return {
        "type": "object",
        "properties": {
            "scores": {"type": "object", "properties": dict.fromkeys(labels, marks), "required": list(labels)},
            "ranking": {"type": "array", "items": {"anyOf": [label, tied]}, "minItems": 1, "maxItems": count},
        },
        "required": ["scores", "ranking"],
    }


def _parse_verdict(text: str, labels: Sequence[str], dimensions: Sequence[str]) -> dict[str, FidelityScore] | None:
    """Return the rank and the marks of each label in the last verdict; None if the text holds no complete verdict."""
    verdicts = [raw for raw in json_objects(without_reasoning(text).text) if "ranking" in raw]
    try:
        raw = verdicts[-1]
        ranking = [place if isinstance(place, list) else [place] for place in raw["ranking"]]
        order = [str(label) for place in ranking for label in place]
        marks = {label: {name: float(raw["scores"][label][name]) / _MAX_MARK for name in dimensions} for label in labels}
    except (ValueError, LookupError, TypeError, OverflowError):
        return None
    if sorted(order) != sorted(labels) or not all(0 <= mark <= 1 for row in marks.values() for mark in row.values()):
        return None
    last = max(1, len(labels) - 1)
    ranks = {str(label): fmean(order.index(str(other)) for other in place) for place in ranking for label in place}
    return {label: FidelityScore(1 - ranks[label] / last, marks[label]) for label in labels}


class JudgeFidelity:
    """The paper's score: the reconstructions of all traces, ranked by a judge that sees no trace.

    Args:
        actor: the reconstruction model.
        judge: ranks the reconstructions.
        orders: number of verdicts, each on another order of the same reconstructions; every second order is the reverse of
            the one before. Ranks are averaged, and the part `flips` is the share of attempt pairs that two orders contradict,
            of those that both decide; None if there are none, as with a single order.
    """

    floor = None
    comparable = False  # a rank only compares with the ranks of the same verdict

    def __init__(self, actor: ChatModel, judge: ChatModel, *, orders: int = ORDERS) -> None:
        self._actor, self._judge, self._orders = actor, judge, orders
        self.name = f"judged by {judge.name}, reconstructed by {actor.name}"

    async def score(
        self, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Ledger | None = None
    ) -> list[FidelityScore]:
        """See `Fidelity.score`. Raises VerdictError if the judge returns no readable verdict."""
        attempts = await reconstruct_actions(self._actor, pair, traces, seed=seed, ledger=ledger)
        distinct = list(dict.fromkeys(attempts))  # equal reconstructions are tied, whatever a judge would say
        verdicts = [
            await listwise_verdict(
                self._judge,
                "judge_traces",
                pair,
                distinct,
                seed=seed + 101 * (order // 2),
                reverse=order % 2 == 1,
                ledger=ledger,
            )
            for order in range(self._orders)
        ]
        flips = _flip_rate([[score.value for score in verdict] for verdict in verdicts])
        scores: list[FidelityScore] = []
        for attempt in attempts:
            trace_scores = [verdict[distinct.index(attempt)] for verdict in verdicts]
            marks = {name: fmean(score.parts[name] or 0.0 for score in trace_scores) for name in trace_scores[0].parts}
            # Marks break ties between equal ranks; their weight is below any step between ranks.
            value = fmean(score.value for score in trace_scores) + 1e-3 * fmean(marks.values())
            scores.append(FidelityScore(value, marks | {"flips": flips}))
        return scores


def _flip_rate(ranks: Sequence[Sequence[float]]) -> float | None:
    """Return the share of attempt pairs that two orders rank in opposite ways, of those that both decide; None for none."""
    products = [
        (first[a] - first[b]) * (second[a] - second[b])
        for first, second in combinations(ranks, 2)
        for a, b in combinations(range(len(first)), 2)
    ]
    decided = [product < 0 for product in products if product]
    return fmean(decided) if decided else None


class EmbeddingRankFidelity:
    """The share of the person's other actions that the reconstruction is less similar to than to the real action.

    Design: a rank, since the similarity itself is high for any text on the same topic.

    Args:
        actor: the reconstruction model.
        embedder: measures how similar two texts are.
        distractors: source of the other actions.
        choices: number of actions, the real one among them.
    """

    floor = None
    comparable = True

    def __init__(self, actor: ChatModel, embedder: Embedder, distractors: Distractors, choices: int = CHOICES) -> None:
        self._actor, self._embedder, self._distractors, self._choices = actor, embedder, distractors, choices
        self.name = f"rank among {choices} by {embedder.name}, reconstructed by {actor.name}"

    async def score(
        self, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Ledger | None = None
    ) -> list[FidelityScore]:
        """See `Fidelity.score`; every score is 0.5 where there is no other action to compare with."""
        attempts = await reconstruct_actions(self._actor, pair, traces, seed=seed, ledger=ledger)
        others = self._distractors.nearest(pair, self._choices - 1)
        vectors = await to_thread(self._embedder.embed, [*attempts, pair.action, *others])
        cosines = vectors[: len(attempts)] @ vectors[len(attempts) :].T  # (attempts, actions); the real action comes first
        scores: list[FidelityScore] = []
        for row in cosines:
            below = float((row[1:] < row[0]).sum() + 0.5 * (row[1:] == row[0]).sum())
            scores.append(FidelityScore(below / len(others) if others else 0.5, {"similarity": float(row[0])}))
        return scores


async def judge_quality(
    judge: ChatModel, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Ledger | None = None
) -> list[FidelityScore]:
    """Return how good each trace looks to a judge that reads traces and action; this does not measure fidelity."""
    return await listwise_verdict(judge, "judge_quality", pair, traces, seed=seed, ledger=ledger)


def fidelity_by_name(
    name: FidelityName,
    *,
    scorer: Scorer | None = None,
    actor: ChatModel | None = None,
    judge: ChatModel | None = None,
    embedder: Embedder | None = None,
    distractors: Distractors | None = None,
    proposal_mode: ProposalMode = "backward",
) -> Fidelity:
    """Return the fidelity of that name. UsageError if a model it needs is missing, or there is no such fidelity.

    Args:
        name: "guarded_gain", "gain", "judge", "choice", "rank" or "prior".
        scorer: likelihoods; needed for "guarded_gain", "gain", "choice" and "prior".
        actor: reconstructs actions; needed for "judge" and "rank".
        judge: ranks reconstructions; needed for "judge".
        embedder: similarities; needed for "rank".
        distractors: the person's other actions; needed for "choice" and "rank".
        proposal_mode: how the traces are proposed; without the action in the prompt, no word is copied from it, and
            "guarded_gain" is "gain".
    """
    if name in {"guarded_gain", "gain"} and scorer is not None:
        return LikelihoodGain(scorer, guarded=name == "guarded_gain" and sees_action(proposal_mode))
    if name == "prior" and scorer is not None:
        return PriorCorrectedGain(scorer)
    if name == "choice" and scorer is not None and distractors is not None:
        return ForcedChoice(scorer, distractors)
    if name == "judge" and actor is not None and judge is not None:
        return JudgeFidelity(actor, judge)
    if name == "rank" and actor is not None and embedder is not None and distractors is not None:
        return EmbeddingRankFidelity(actor, embedder, distractors)
    if name not in FIDELITIES:
        raise UsageError(f'the fidelity is "{name}"; it must be one of {", ".join(FIDELITIES)}')
    needs = {
        "judge": "an actor and a judge",
        "rank": "an actor, an embedder and distractors",
        "choice": "a scorer and distractors",
    }.get(name, "a scorer")
    raise UsageError(f'the fidelity "{name}" needs {needs}')
