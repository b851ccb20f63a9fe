"""Replay: score each held-out turn, and write replies to it, under every arm.

Design: a turn is measured completely, under every arm, and appended to the records before the next turn starts. So a stopped
measurement resumes, and every figure is computed from the same records:

    reasoning    the trace that the twin writes for the turn; it is part of the prompts of its bits, choice and replies
    bits         cost of the real action after each arm's prompt, all arms in one batch
    choice       whether the real action scores above other actions of the person (S4; Recon's forced choice)
    replies      replies of the twin's model under each arm, their similarity to the real action, and their fit to the context
    past         a remembered turn of the person, for the controls of the discriminators
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from usertwin.evals.arm_names import (
    ADAPTED,
    DEFAULT_ARMS,
    QUOTING_ARMS,
    base_arm,
    check_arms,
    is_adapted,
    is_reranked,
    peer_of,
    uses_words,
)
from usertwin.evals.metrics.statistics import evenly_spaced
from usertwin.evals.records.measured_turns import MeasuredTurn, PastTurn, RecalledTurn, read_turn_file
from usertwin.memory import Embedder, Scorer, Triple
from usertwin.memory.concurrency import gather, to_thread
from usertwin.memory.jsonl import append_line, open_for_append
from usertwin.memory.models.scoring import Likelihood
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.recon.distractors import Distractors
from usertwin.memory.recon.fidelity import CHOICES
from usertwin.memory.text.transcript import ME, action_completion
from usertwin.memory.twin.reranking import DEFAULT_RERANKING
from usertwin.personas import Pair, UsageError
from usertwin.simulator import SimulatedUser
from usertwin.simulator.prompts import RECALLED_TURNS

from .arms import Arms, HeldOutTurn, weights_of
from .context_fit import PlacedText, context_fits
from .outside_gain import outside_gains
from .past_turns import past_turns
from .peers import peer_messages, reply_of_peer

_BATCH_TURNS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayConfig:
    """The configuration of a measurement.

    Attributes:
        arms: the arms to compare, from `ARMS`, or simulators (see `check_arms`).
        limit: the most turns to score, evenly spaced; None for all.
        generate: the number of these for which each arm also writes replies, and makes a choice.
        samples: replies of each arm for a turn.
        choices: actions among which the real one must be found (S4); 0 skips this. Distractors that the log gives
            for a turn are taken as they are.
        concurrency: the most arms that wait for a model at once.
        seed: of random choices, of the sampler and of intervals.
        reply_arms: the arms that write replies; None for all.
    """

    arms: tuple[str, ...] = DEFAULT_ARMS
    limit: int | None = 100
    generate: int = 20
    samples: int = 1
    choices: int = 0
    concurrency: int = 1
    seed: int = 0
    reply_arms: tuple[str, ...] | None = None

    def check(self) -> None:
        """Raise UsageError for an unknown arm or a number out of range."""
        check_arms(self.arms)
        for name, minimum in {"limit": 1, "generate": 0, "samples": 1, "choices": 0, "concurrency": 1}.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise UsageError(f"{name} is {value}; it must be at least {minimum}")
        if self.choices == 1:
            raise UsageError("choices is 1; a choice needs at least 2 actions, and 0 skips it")


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Measures a twin turn by turn.

    The model of the twin writes the replies of all arms. The scorer scores real actions; the embedder computes similarities of
    replies. `person` is the person's name in the records. `outside` is a scorer of another model family than the twin's model,
    for the gains of replies (see outside_gain.py); None to skip these. `given` are the distractors that the log gives for the
    choice at a turn, by conversation and position; such a choice needs no replies.
    """

    user: SimulatedUser
    scorer: Scorer
    embedder: Embedder
    arms: Arms
    config: ReplayConfig
    person: str
    outside: Scorer | None = None
    given: Mapping[tuple[str, int], Sequence[str]] = field(default_factory=dict[tuple[str, int], Sequence[str]])

    async def run(
        self, pairs: Sequence[Pair], *, path: Path | None = None, progress: Progress = no_progress
    ) -> list[MeasuredTurn]:
        """Measure held-out pairs.

        `path` is a file of records to resume from and to append to. `progress` is called with "scoring" or "writing", the
        number of finished turns, and the total.

        Raises:
            ModelError: a model does not answer; the file keeps what is measured.
            UsageError: no arm has anything to show, or a line of the file is broken.
        """
        if not self.arms.present:
            raise UsageError(f"{self.person}: nothing to show for {', '.join(self.arms.names)}; name other arms")
        with_replies = {_key(pair) for pair in evenly_spaced(pairs, self.config.generate)}
        known = {(turn.conversation_id, turn.position): turn for turn in (read_turn_file(path) if path else [])}
        missing = [pair for pair in pairs if _key(pair) not in known]
        remembered = [triple.pair for triple in self.user.store.triples()]
        past, distractors = past_turns(pairs, remembered, seed=self.config.seed), Distractors(remembered, self.embedder)
        written = sum(_key(pair) in with_replies for pair in pairs if _key(pair) in known)
        with open_for_append(path) if path is not None else nullcontext() as file:
            for start in range(0, len(missing), _BATCH_TURNS):
                progress("scoring", len(known), len(pairs))
                held_out = await to_thread(self.arms.held_out_turns, missing[start : start + _BATCH_TURNS])
                held_out = [await self._with_thoughts(turn) for turn in held_out]
                records = await to_thread(self._score, held_out, past)
                for turn, record in zip(held_out, records, strict=True):
                    if _key(turn.pair) in with_replies:
                        progress("writing", written, len(with_replies))
                        record = await self._add_replies(record, turn, distractors)
                        written += 1
                    if self.config.choices:
                        others = self.given.get(_key(turn.pair), ())
                        if not others and _key(turn.pair) in with_replies:
                            others = distractors.nearest(turn.pair, self.config.choices - 1)
                        record = replace(record, choice=await to_thread(self._choices, turn, others))
                    if file is not None:
                        append_line(file, record.to_json())
                    known[_key(turn.pair)] = record
        progress("scoring", len(pairs), len(pairs))
        if with_replies:
            progress("writing", len(with_replies), len(with_replies))
        return [known[_key(pair)] for pair in pairs]

    async def _with_thoughts(self, turn: HeldOutTurn) -> HeldOutTurn:
        """Return the turn with the trace that the twin writes for it, under each arm in which it does."""
        thoughts: dict[str, str] = {}
        if self.user.settings.reasons:
            for arm, shown in turn.shown.items():
                if peer_of(arm) is None and self.arms.has_likelihood(arm) and self._reasons(arm, shown):
                    user = self.arms.user_of(arm)
                    thoughts[arm] = (await user.sample_reasoning(turn.pair, shown, seed=self.config.seed)).text
        return replace(turn, thoughts=thoughts)

    def _reasons(self, arm: str, shown: Sequence[Triple]) -> bool:
        # A baseline of plain pairs is one without reasoning, even if the twin's models could reason without examples.
        return any(triple.reasoning for triple in shown) or (base_arm(arm) == "recon" and self.user.reasons_after(shown))

    def _score(self, turns: Sequence[HeldOutTurn], past: Mapping[tuple[str, int], Pair]) -> list[MeasuredTurn]:
        """Return records of turns with the cost of the real actions; `past` is that of `past_turns`."""
        bits = self._bits(turns)
        records = [
            MeasuredTurn(
                person=self.person, conversation_id=turn.pair.conversation_id, position=turn.pair.position,
                context=_context(turn.pair), action=turn.pair.action, goal=turn.pair.goal,
                characters=len(action_completion(turn.pair.action)) - 1, recalled=_recalled_turns(turn),
                bits={arm: next(bits) for arm in self._likelihood_arms(turn)},
                traces={arm: sum(bool(triple.reasoning) for triple in turn.shown[arm]) for arm in self._likelihood_arms(turn)},
                reasoning={arm: thought for arm, thought in turn.thoughts.items() if thought},
                other_action=self._other_action(turn.pair),
            )
            for turn in turns
        ]  # fmt: skip
        return self._with_fits(records, past)

    def _bits(self, turns: Sequence[HeldOutTurn]) -> Iterator[float]:
        """Yield the cost of the real action of each turn under each arm that has likelihoods."""
        asked = [(turn, arm) for turn in turns for arm in self._likelihood_arms(turn)]
        items = [
            (is_adapted(arm), (self._prompt(arm, turn), action_completion(turn.pair.action))) for turn, arm in asked
        ]  # fmt: skip
        likelihoods: dict[tuple[bool, tuple[str, str]], Likelihood] = {}
        for adapted in dict.fromkeys(adapted for adapted, _ in items):
            scorer = self.arms.scorer_of(ADAPTED if adapted else "", self.scorer)
            # An arm shows the same prompt with own words and without.
            distinct = list(dict.fromkeys(item for of_adapted, item in items if of_adapted == adapted))
            likelihoods |= {(adapted, item): one for item, one in zip(distinct, scorer.score(distinct), strict=True)}
        for (turn, arm), item in zip(asked, items, strict=True):
            yield self.arms.likelihood(arm, likelihoods[item], turn.pair.action, turn.pair.when).bits

    def _with_fits(self, records: Sequence[MeasuredTurn], past: Mapping[tuple[str, int], Pair]) -> list[MeasuredTurn]:
        """Return the records with a remembered turn of the person, and with the fit of its action and of the real action."""
        placed: list[PlacedText] = []
        for record in records:
            placed.append((record.action, record.context, record.goal))
            if pair := past.get((record.conversation_id, record.position)):
                placed += [(pair.action, _context(pair), pair.goal), (pair.action, record.context, record.goal)]
        fits = iter(context_fits(self.embedder, placed))
        fitted: list[MeasuredTurn] = []
        for record in records:
            real_fit, turn = next(fits), None
            if pair := past.get((record.conversation_id, record.position)):
                turn = PastTurn(
                    conversation_id=pair.conversation_id, position=pair.position, context=_context(pair), action=pair.action,
                    goal=pair.goal, fit=next(fits), misplaced_fit=next(fits),
                )  # fmt: skip
            fitted.append(replace(record, real_fit=real_fit, past=turn))
        return fitted

    def _other_action(self, pair: Pair) -> str:
        rng = random.Random(f"{self.config.seed}/{pair.conversation_id}/{pair.position}")
        sampled = [] if self.arms.other is None else self.arms.other.sample(pair, 1, rng=rng)
        return sampled[0].pair.action if sampled else ""

    async def _add_replies(self, record: MeasuredTurn, turn: HeldOutTurn, distractors: Distractors) -> MeasuredTurn:
        """Return the record with each arm's replies and their similarities."""
        limit = asyncio.Semaphore(self.config.concurrency)

        async def sample_arm(arm: str) -> tuple[str, ...]:
            async with limit:
                return tuple(await self._sample_replies(turn, arm))

        writing = [arm for arm in turn.shown if self.config.reply_arms is None or arm in self.config.reply_arms]
        replies = dict(zip(writing, await gather(*(sample_arm(arm) for arm in writing)), strict=True))
        others = distractors.nearest(turn.pair, (self.config.choices or CHOICES) - 1)
        similarity, rank = await to_thread(self._similarity_and_rank, replies, turn.pair.action, others)
        first = {arm: texts[0] for arm, texts in replies.items() if texts}
        fits = await to_thread(context_fits, self.embedder, [(text, record.context, record.goal) for text in first.values()])
        gains: dict[str, float] = {}
        if self.outside is not None:
            gains = await to_thread(outside_gains, self.outside, self.user, turn, first)
        return replace(
            record, replies=replies, similarity=similarity, rank=rank, outside_gain=gains,
            fit=dict(zip(first, fits, strict=True)),
        )  # fmt: skip

    async def _sample_replies(self, turn: HeldOutTurn, arm: str) -> list[str]:
        """Return the replies under an arm."""
        user, pair, seed, n = self.arms.user_of(arm), turn.pair, self.config.seed, self.config.samples
        window = user.settings.window
        if (simulator := self.arms.simulators.get(arm)) is not None:
            return [
                await simulator.reply(user.persona, pair, turns=window, seed=seed, sample_number=number) for number in range(n)
            ]
        if arm in QUOTING_ARMS:
            quoted = await to_thread(self._medoid, [triple.pair.action for triple in turn.shown[arm]])
            return [] if quoted is None else [quoted]
        weights = weights_of(user, arm) if uses_words(arm) else None
        rule = (user.settings.reranking or DEFAULT_RERANKING) if is_reranked(arm) else None
        writer = await to_thread(user.writer_with, weights, rule, before=pair.when)
        if uses_words(arm) and writer.next_token is None:
            return []
        if (peer := peer_of(arm)) is not None:
            messages = peer_messages(peer, user.model.style, self.arms.persona(arm), pair, turns=window)
            answers = await writer.complete(messages, n=n, seed=seed, query=pair)
            return [reply_of_peer(peer, answer.text) for answer in answers]
        thought = turn.thoughts.get(arm, "")
        answers = await user.sample_action(pair, turn.shown[arm], thought, seed=seed, n=n, writer=writer)
        return [answer.text for answer in answers]

    def _medoid(self, texts: Sequence[str]) -> str | None:
        """Return the text with the largest summed cosine to all of them, the first of equal ones; None without texts."""
        if not texts:
            return None
        vectors = self.embedder.embed(texts)
        return texts[int((vectors @ vectors.sum(axis=0)).argmax())]

    def _similarity_and_rank(
        self, replies: dict[str, tuple[str, ...]], real: str, others: Sequence[str]
    ) -> tuple[dict[str, tuple[float, ...]], dict[str, tuple[float, ...]]]:
        """Return the cosine of each reply and the real action, and the share of other actions that are less similar (S3)."""
        texts = [text for arm in replies for text in replies[arm]]
        vectors = self.embedder.embed([*texts, real, *others])
        cosines = iter(vectors[: len(texts)] @ vectors[len(texts) :].T)
        similarity: dict[str, tuple[float, ...]] = {}
        rank: dict[str, tuple[float, ...]] = {}
        for arm, own in replies.items():
            rows = list(islice(cosines, len(own)))
            similarity[arm] = tuple(float(row[0]) for row in rows)
            if others:
                rank[arm] = tuple(float(((row[1:] < row[0]) + 0.5 * (row[1:] == row[0])).mean()) for row in rows)
        return similarity, rank

    def _choices(self, turn: HeldOutTurn, others: Sequence[str]) -> dict[str, float]:
        """Return, by arm, whether the real action gains most log-probability from the prompt, among other actions."""
        if not others:
            return {}
        actions = [action_completion(action) for action in (turn.pair.action, *others)]
        choices: dict[str, float] = {}
        for arm in self._likelihood_arms(turn):
            scorer = self.arms.scorer_of(arm, self.scorer)
            prior = [likelihood.nats for likelihood in scorer.score([(f"{ME}:", action) for action in actions])]
            scored = scorer.score([(self._prompt(arm, turn), action) for action in actions])
            texts = (turn.pair.action, *others)
            likelihoods = [
                self.arms.likelihood(arm, likelihood, text, turn.pair.when)
                for likelihood, text in zip(scored, texts, strict=True)
            ]
            gains = [likelihood.nats - nats for likelihood, nats in zip(likelihoods, prior, strict=True)]
            choices[arm] = (gains[0] == max(gains)) / gains.count(max(gains))
        return choices

    def _likelihood_arms(self, turn: HeldOutTurn) -> list[str]:
        return [arm for arm in turn.shown if self.arms.has_likelihood(arm)]

    def _prompt(self, arm: str, turn: HeldOutTurn) -> str:
        return self.arms.prompt(arm, turn, turn.thoughts.get(arm, ""))


def _key(pair: Pair) -> tuple[str, int]:
    return pair.conversation_id, pair.position


def _context(pair: Pair) -> tuple[tuple[str, str], ...]:
    return tuple((ME if turn.speaker == pair.speaker else turn.speaker, turn.text) for turn in pair.context)


def _recalled_turns(turn: HeldOutTurn) -> tuple[RecalledTurn, ...]:
    """Return what the twin is shown, most similar first; nothing if neither arm of the twin is measured."""
    shown = turn.shown.get("recon", turn.shown.get("recalled_pairs", ()))
    return tuple(
        RecalledTurn(
            conversation_id=triple.pair.conversation_id, position=triple.pair.position, action=triple.pair.action,
            similarity=round(recalled.similarity, 4), context=_context(triple.pair)[-RECALLED_TURNS:],
            reasoning=triple.reasoning,
        )
        for recalled, triple in zip(turn.recalled, shown, strict=False)
    )  # fmt: skip
