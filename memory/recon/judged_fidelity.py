"""Scoring by words: reconstruct the action from context and trace, and compare what came out with what was really written.

The one design choice: a judge sees all attempts of a pair at once, under letters, in an order drawn from the seed, and never
the traces they came from; what it says is read strictly, asked for again if it cannot be read, and is an error after that,
never a score of zero.

    Judged      S1  the paper's: a reconstruction for each trace, one listwise verdict (2N+1 calls with the N proposals)
    Ranked      S3  how much nearer the reconstruction is to the action than to the person's other actions
    plausibility    the "looks good" selector: the judge reads the traces themselves

`fidelity_by_name` makes any scorer, those of fidelity.py too.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import string
from collections.abc import Sequence
from statistics import fmean
from typing import Any, Literal, get_args

from usertwin.memory.models.chat import ChatModel, Ledger, sample
from usertwin.memory.models.embedding import Embedder
from usertwin.memory.models.scoring import Scorer
from usertwin.memory.text.transcript import context_lines, flat, shortened
from usertwin.personas import Pair, UsageError, VerdictError

from .distractors import Distractors
from .fidelity import CHOICES, Fidelity, ForcedChoice, LikelihoodGain, PriorCorrectedGain, ScoredTraces, reconstruct
from .propose import CONTEXT_TURNS, prompt_template

FidelityName = Literal["novel", "gain", "judge", "choice", "rank", "prior"]
FIDELITIES: tuple[FidelityName, ...] = get_args(FidelityName)

#: How many traces a judge can compare in one verdict: there is a letter for each.
MOST_ATTEMPTS = len(string.ascii_uppercase)
_TRIES = 3
_ACTION_TOKENS = {"transcript": 80, "instruction": 600}
_DIMENSIONS = {"judge_traces": ("style", "intent", "values"), "judge_quality": ("plausible", "specific", "clear")}
_MOST = 10
_OBJECT = re.compile(r"\{.*\}", re.DOTALL)


async def reconstructions(
    model: ChatModel, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Ledger | None = None
) -> list[str]:
    """What a model writes at this moment with each trace in mind: the action, as far as context and trace tell it."""
    continues = model.style == "transcript"
    prompts = [reconstruct(pair, trace) if continues else _act_prompt(pair, trace) for trace in traces]
    answers = await asyncio.gather(
        *(
            sample(
                model, [("user", prompt)], seed=seed, max_tokens=_ACTION_TOKENS[model.style], temperature=0.6,
                stop=["\n"] if continues else [], ledger=ledger,
            )
            for prompt in prompts
        )
    )  # fmt: skip
    return [flat(answer.text) for [answer] in answers]


def _act_prompt(pair: Pair, trace: str) -> str:
    return prompt_template("reconstruct_instruction").fill(
        goal=pair.goal, context=context_lines(pair, CONTEXT_TURNS), trace=trace
    )


async def verdict(
    judge: ChatModel,
    question: str,
    pair: Pair,
    attempts: Sequence[str],
    *,
    seed: int = 0,
    backwards: bool = False,
    ledger: Ledger | None = None,
) -> list[ScoredTraces]:
    """One listwise verdict: each attempt's place, from 1 (the best) to 0, and the marks it got, from 0 to 1.

    Args:
        judge: who judges.
        question: "judge_traces" (which attempt is closest to the action) or "judge_quality" (which note explains it best).
        pair: the moment.
        attempts: what is judged.
        seed: for the order in which they are shown, and for the sampler.
        backwards: whether that order is turned round, so that whoever was first is last.
        ledger: where to note what it cost.

    Raises:
        VerdictError: nothing that can be read, three times.
        ModelError: the judge does not answer.
    """
    if len(attempts) > MOST_ATTEMPTS:
        raise UsageError(f"{len(attempts)} attempts in one verdict: at most {MOST_ATTEMPTS} can be told apart")
    order = list(range(len(attempts)))
    random.Random(f"{seed}/{pair.conversation_id}/{pair.position}").shuffle(order)
    if backwards:
        order.reverse()
    labels = list(string.ascii_uppercase[: len(attempts)])
    prompt = prompt_template(question).fill(
        name=flat(pair.speaker)[:24], context=context_lines(pair, CONTEXT_TURNS), action=shortened(pair.action), labels=labels,
        attempts=[attempts[place] or "(nothing)" for place in order],
    )  # fmt: skip
    schema = _schema(labels, _DIMENSIONS[question])
    for attempt in range(_TRIES):
        [answer] = await sample(
            judge, [("user", prompt)], seed=seed + attempt, max_tokens=200 + 60 * len(labels), temperature=0.2 * attempt,
            schema=schema, ledger=ledger,
        )  # fmt: skip
        read = _read(answer.text, labels, _DIMENSIONS[question])
        if read is not None:
            return [read[labels[order.index(place)]] for place in range(len(attempts))]
    raise VerdictError(
        f'the judge "{judge.name}" gave no verdict that can be read, {_TRIES} times in a row; '
        "name a model that follows instructions"
    )


def _schema(labels: Sequence[str], dimensions: Sequence[str]) -> dict[str, Any]:
    mark = {"type": "integer", "minimum": 0, "maximum": _MOST}
    marks = {"type": "object", "properties": dict.fromkeys(dimensions, mark), "required": list(dimensions)}
    count = len(labels)
    return {
        "type": "object",
        "properties": {
            "scores": {"type": "object", "properties": dict.fromkeys(labels, marks), "required": list(labels)},
            "ranking": {"type": "array", "items": {"enum": list(labels)}, "minItems": count, "maxItems": count},
        },
        "required": ["scores", "ranking"],
    }


def _read(text: str, labels: Sequence[str], dimensions: Sequence[str]) -> dict[str, ScoredTraces] | None:
    """The place and the marks of each label; None if the text is no such verdict."""
    found = _OBJECT.search(text)
    try:
        told: Any = json.loads(found[0] if found else "")
        ranking = [str(label) for label in told["ranking"]]
        marks = {label: {one: float(told["scores"][label][one]) / _MOST for one in dimensions} for label in labels}
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    if sorted(ranking) != sorted(labels) or not all(0 <= one <= 1 for each in marks.values() for one in each.values()):
        return None
    last = max(1, len(labels) - 1)
    return {label: ScoredTraces(1 - ranking.index(label) / last, marks[label]) for label in labels}


class JudgeFidelity:
    """S1, the paper's score: what each trace lets a model reconstruct, ranked by a judge that sees no trace.

    Args:
        actor: the reconstruction model.
        judge: who ranks.
        orders: how many verdicts, each on another order of the same reconstructions, every second one turned round; their
            places are averaged, and `flips` says in which part of the pairs of attempts two verdicts contradict each other.
    """

    floor = None
    comparable = False  # a place is a place among those it was ranked with

    def __init__(self, actor: ChatModel, judge: ChatModel, *, orders: int = 1) -> None:
        self._actor, self._judge, self._orders = actor, judge, orders
        self.name = f"judged by {judge.name}, reconstructed by {actor.name}"

    async def score(
        self, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Ledger | None = None
    ) -> list[ScoredTraces]:
        """See `Fidelity.score`. VerdictError if the judge gives no verdict that can be read."""
        attempts = await reconstructions(self._actor, pair, traces, seed=seed, ledger=ledger)
        verdicts = [
            await verdict(
                self._judge,
                "judge_traces",
                pair,
                attempts,
                seed=seed + 101 * (turn // 2),
                backwards=turn % 2 == 1,
                ledger=ledger,
            )
            for turn in range(self._orders)
        ]
        flips = _flips([[one.value for one in told] for told in verdicts])
        found: list[ScoredTraces] = []
        for each in zip(*verdicts, strict=True):
            marks = {name: fmean(one.parts[name] for one in each) for name in each[0].parts}
            # Whoever shares a place is told apart by marks, which weigh less than any step between places.
            value = fmean(one.value for one in each) + 1e-3 * fmean(marks.values())
            found.append(ScoredTraces(value, marks | {"flips": flips}))
        return found


def _flips(places: Sequence[Sequence[float]]) -> float:
    """In which part of all pairs of attempts two orders contradict each other; 0 for one order."""
    count = len(places[0])
    told = [
        (first[a] - first[b]) * (second[a] - second[b]) < 0
        for place, first in enumerate(places)
        for second in places[:place]
        for a in range(count)
        for b in range(a)
    ]
    return fmean(told) if told else 0.0


class EmbeddingRankFidelity:
    """S3: of the person's other actions, the share that what a trace lets a model reconstruct is less like than the real one.

    A rank, since the similarity itself is high for whatever is on the topic.

    Args:
        actor: the reconstruction model.
        embedder: tells how alike two texts are.
        distractors: where the other actions come from.
        choices: how many actions there are, the real one among them.
    """

    floor = None
    comparable = True

    def __init__(self, actor: ChatModel, embedder: Embedder, distractors: Distractors, choices: int = CHOICES) -> None:
        self._actor, self._embedder, self._distractors, self._choices = actor, embedder, distractors, choices
        self.name = f"rank among {choices} by {embedder.name}, reconstructed by {actor.name}"

    async def score(
        self, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Ledger | None = None
    ) -> list[ScoredTraces]:
        """See `Fidelity.score`; without any other action to compare with, every score is 0.5."""
        attempts = await reconstructions(self._actor, pair, traces, seed=seed, ledger=ledger)
        others = self._distractors.of(pair, self._choices - 1)
        vectors = await asyncio.to_thread(self._embedder.embed, [*attempts, pair.action, *others])
        alike = vectors[: len(attempts)] @ vectors[len(attempts) :].T
        found: list[ScoredTraces] = []
        for row in alike:
            below = float((row[1:] < row[0]).sum() + 0.5 * (row[1:] == row[0]).sum())
            found.append(ScoredTraces(below / len(others) if others else 0.5, {"similarity": float(row[0])}))
        return found


async def plausibility(
    judge: ChatModel, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Ledger | None = None
) -> list[ScoredTraces]:
    """How good each trace looks to a judge that reads the traces themselves, with the action: no measure of fidelity."""
    return await verdict(judge, "judge_quality", pair, traces, seed=seed, ledger=ledger)


def fidelity_by_name(
    name: FidelityName,
    *,
    scorer: Scorer | None = None,
    actor: ChatModel | None = None,
    judge: ChatModel | None = None,
    embedder: Embedder | None = None,
    distractors: Distractors | None = None,
) -> Fidelity:
    """The scorer of that name, made of the models it needs. UsageError if one of these is missing, or there is no such scorer.

    Args:
        name: "novel" and "gain" (S2), "judge" (S1), "choice" (S4), "rank" (S3) or "prior" (S5).
        scorer: gives likelihoods; needed for "novel", "gain", "choice" and "prior".
        actor: reconstructs actions; needed for "judge" and "rank".
        judge: ranks reconstructions; needed for "judge".
        embedder: tells how alike texts are; needed for "rank".
        distractors: the person's other actions; needed for "choice" and "rank".
    """
    if name in {"novel", "gain"} and scorer is not None:
        return LikelihoodGain(scorer, novel=name == "novel")
    if name == "prior" and scorer is not None:
        return PriorCorrectedGain(scorer)
    if name == "choice" and scorer is not None and distractors is not None:
        return ForcedChoice(scorer, distractors)
    if name == "judge" and actor is not None and judge is not None:
        return JudgeFidelity(actor, judge)
    if name == "rank" and actor is not None and embedder is not None and distractors is not None:
        return EmbeddingRankFidelity(actor, embedder, distractors)
    if name not in FIDELITIES:
        raise UsageError(f'"{name}" scores no traces; there are {", ".join(FIDELITIES)}')
    needs = {
        "judge": "an actor and a judge",
        "rank": "an actor, an embedder and distractors",
        "choice": "a scorer and distractors",
    }.get(name, "a scorer")
    raise UsageError(f'traces scored by "{name}" need {needs}')
