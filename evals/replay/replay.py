"""Replaying held-out turns: what each arm makes of the moments before them, measured turn by turn.

The one design choice: a turn is measured whole, under every arm, and kept before the next one is begun, so that a
measurement that is stopped goes on where it was and every figure is reckoned from the same records. What is measured:

    bits         what the real action costs after each arm's prompt, in one batch for all arms
    choice       whether it is told from other actions of the same person (S4; Recon's forced choice)
    replies      what the twin's model writes there under each arm, with how like the real action they are
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from usertwin.evals.arm_names import PEERS, USUAL_ARMS, Peer, check_arms
from usertwin.evals.metrics.statistics import evenly_spaced
from usertwin.evals.records.measured_turns import MeasuredTurn, Memory, turns_of
from usertwin.memory import Embedder, Scorer
from usertwin.memory.jsonl import open_to_append, write_line
from usertwin.memory.recon.distractors import Distractors
from usertwin.memory.recon.fidelity import CHOICES
from usertwin.memory.text.transcript import ME, action_line
from usertwin.personas import Pair, UsageError
from usertwin.simulator import SimulatedUser
from usertwin.simulator.prompts import RECALLED_TURNS

from .arms import Arms, HeldOutTurn
from .peers import peer_messages, said_by

_AT_ONCE = 20

#: Is told the stage ("scoring" or "writing"), how many turns are done, of how many.
ReplayProgress = Callable[[str, int, int], None]


def quiet(stage: str, done: int, total: int) -> None:
    """Report no progress."""


@dataclass(frozen=True, slots=True)
class ReplayConfig:
    """How a twin is measured.

    Attributes:
        arms: what is compared; see arms.py.
        limit: the most turns to measure on, spread evenly over all there are; None for all.
        generate: on how many of them each arm also writes replies, and has to choose.
        samples: how many replies each time.
        choices: among how many actions the real one is to be found (S4); 0 leaves that out.
        concurrency: how many arms may wait for a model at once.
        seed: for what is drawn and sampled, and for intervals.
    """

    arms: tuple[str, ...] = USUAL_ARMS
    limit: int | None = 100
    generate: int = 20
    samples: int = 1
    choices: int = 0
    concurrency: int = 1
    seed: int = 0

    def check(self) -> None:
        """UsageError if there is no such arm, or a number makes no sense."""
        check_arms(self.arms)
        if (self.limit is not None and self.limit < 1) or self.generate < 0:
            raise UsageError("a limit is at least 1, and the number of written replies at least 0")
        if self.samples < 1 or self.choices < 0 or self.choices == 1 or self.concurrency < 1:
            raise UsageError("at least one sample, one arm at a time, and two actions to choose from (or 0, for none)")


@dataclass(frozen=True, slots=True)
class Replay:
    """Measures a twin turn by turn.

    Attributes:
        user: the twin; its model writes the replies of all arms.
        scorer: the model under which real actions are scored.
        embedder: tells how like two texts are.
        arms: what is compared.
        protocol: how.
        person: what to call the person in the records.
    """

    user: SimulatedUser
    scorer: Scorer
    embedder: Embedder
    arms: Arms
    config: ReplayConfig
    person: str

    async def run(
        self, pairs: Sequence[Pair], *, keep: Path | None = None, progress: ReplayProgress = quiet
    ) -> list[MeasuredTurn]:
        """Measure held-out moments.

        Args:
            pairs: the moments.
            keep: a file of records to go on from and to write to.
            progress: is told how far things are.

        Raises:
            ModelError: a model does not answer; what was measured is kept.
            UsageError: there is nothing to show for any of the arms, or a line of the file is broken.
        """
        if not self.arms.present:
            raise UsageError(f"{self.person}: nothing is there to show for {', '.join(self.arms.names)}; name other arms")
        writing = {_key(pair) for pair in evenly_spaced(pairs, self.config.generate)} if self.config.generate else set[Any]()
        known = {(turn.conversation_id, turn.position): turn for turn in (turns_of(keep) if keep else [])}
        missing = [pair for pair in pairs if _key(pair) not in known]
        distractors = Distractors([triple.pair for triple in self.user.store.triples()], self.embedder)
        wrote = sum(_key(pair) in writing for pair in pairs if _key(pair) in known)
        with open_to_append(keep) if keep is not None else nullcontext() as file:
            for start in range(0, len(missing), _AT_ONCE):
                progress("scoring", len(known), len(pairs))
                moments = await asyncio.to_thread(self.arms.moments, missing[start : start + _AT_ONCE])
                turns = await asyncio.to_thread(self._scored, moments, pairs)
                for moment, scored in zip(moments, turns, strict=True):
                    turn = scored
                    if _key(moment.pair) in writing:
                        progress("writing", wrote, len(writing))
                        turn = await self._written(scored, moment, distractors)
                        wrote += 1
                    if file is not None:
                        write_line(file, turn.to_json())
                    known[_key(moment.pair)] = turn
        progress("scoring", len(pairs), len(pairs))
        if writing:
            progress("writing", len(writing), len(writing))
        return [known[_key(pair)] for pair in pairs]

    def _scored(self, moments: Sequence[HeldOutTurn], pairs: Sequence[Pair]) -> list[MeasuredTurn]:
        """The records of moments, with what the real actions cost."""
        places = [(place, arm) for place, moment in enumerate(moments) for arm in moment.shown]
        items = [(self.arms.prompt(arm, moments[i]), action_line(moments[i].pair.action)) for i, arm in places]
        bits: list[dict[str, float]] = [{} for _ in moments]
        for (place, arm), likelihood in zip(places, self.scorer.score(items), strict=True):
            bits[place][arm] = likelihood.bits
        found: list[MeasuredTurn] = []
        for moment, costs in zip(moments, bits, strict=True):
            pair = moment.pair
            found.append(
                MeasuredTurn(
                    self.person,
                    pair.conversation_id,
                    pair.position,
                    _said(pair),
                    pair.action,
                    len(action_line(pair.action)) - 1,
                    pair.goal,
                    costs,
                    recalled=_memories(moment),
                    other_action=self._other_action(pair),
                    own_action=_elsewhere(pair, pairs),
                )
            )
        return found

    def _other_action(self, pair: Pair) -> str:
        other = self.arms.other
        if other is None:
            return ""
        drawn = other.sample(pair, 1, rng=random.Random(f"{self.config.seed}/{pair.conversation_id}/{pair.position}"))
        return drawn[0].pair.action if drawn else ""

    async def _written(self, turn: MeasuredTurn, moment: HeldOutTurn, distractors: Distractors) -> MeasuredTurn:
        """The record with the replies of each arm, how like the real action they are, and what each arm chooses."""
        limit = asyncio.Semaphore(self.config.concurrency)

        async def one(arm: str) -> tuple[str, list[str]]:
            async with limit:
                return await self._replies(moment, arm)

        answers = dict(zip(moment.shown, await asyncio.gather(*(one(arm) for arm in moment.shown)), strict=True))
        replies = {arm: tuple(texts) for arm, (_, texts) in answers.items()}
        others = distractors.of(moment.pair, (self.config.choices or CHOICES) - 1)
        similarity, rank = await asyncio.to_thread(self._compared, replies, moment.pair.action, others)
        choice = await asyncio.to_thread(self._chosen, moment, others) if self.config.choices else {}
        reasoning = {arm: thought for arm, (thought, _) in answers.items() if thought}
        return replace(turn, replies=replies, reasoning=reasoning, similarity=similarity, rank=rank, choice=choice)

    async def _replies(self, moment: HeldOutTurn, arm: str) -> tuple[str, list[str]]:
        """The thought, if the twin has one of its own, and the replies that the twin's model writes under an arm."""
        user, pair, seed, n = self.user, moment.pair, self.config.seed, self.config.samples
        if arm in PEERS:
            peer: Peer = arm
            messages = peer_messages(peer, user.model.style, user.persona, pair, turns=user.settings.window)
            return "", [said_by(peer, answer.text) for answer in await user.complete(messages, n=n, seed=seed)]
        reasoning, answers = await user.sample_reply(pair, moment.shown[arm], seed=seed, n=n)
        return reasoning, [answer.text for answer in answers]

    def _compared(
        self, replies: dict[str, tuple[str, ...]], real: str, others: Sequence[str]
    ) -> tuple[dict[str, tuple[float, ...]], dict[str, tuple[float, ...]]]:
        """Cosine of each reply and the real action, and of the person's other actions the share that it is less like (S3)."""
        texts = [text for arm in replies for text in replies[arm]]
        vectors = self.embedder.embed([*texts, real, *others])
        alike = vectors[: len(texts)] @ vectors[len(texts) :].T
        similarity: dict[str, tuple[float, ...]] = {}
        rank: dict[str, tuple[float, ...]] = {}
        start = 0
        for arm, said in replies.items():
            rows = alike[start : start + len(said)]
            start += len(said)
            similarity[arm] = tuple(float(row[0]) for row in rows)
            if others:
                rank[arm] = tuple(float(((row[1:] < row[0]) + 0.5 * (row[1:] == row[0])).mean()) for row in rows)
        return similarity, rank

    def _chosen(self, moment: HeldOutTurn, others: Sequence[str]) -> dict[str, float]:
        """Whether each arm tells the real action from others, by how much likelier its prompt makes it than no prompt does."""
        if not others:
            return {}
        actions = [action_line(action) for action in (moment.pair.action, *others)]
        usual = [found.nats for found in self.scorer.score([(f"{ME}:", action) for action in actions])]
        chosen: dict[str, float] = {}
        for arm in moment.shown:
            found = self.scorer.score([(self.arms.prompt(arm, moment), action) for action in actions])
            likely = [one.nats - nats for one, nats in zip(found, usual, strict=True)]
            best = max(likely)
            chosen[arm] = (likely[0] == best) / likely.count(best)
        return chosen


def _key(pair: Pair) -> tuple[str, int]:
    return pair.conversation_id, pair.position


def _said(pair: Pair) -> tuple[tuple[str, str], ...]:
    return tuple((ME if turn.speaker == pair.speaker else turn.speaker, turn.text) for turn in pair.context)


def _memories(moment: HeldOutTurn) -> tuple[Memory, ...]:
    """What the twin was shown, most similar first."""
    shown = moment.shown.get("recalled_triples", moment.shown.get("recalled_pairs", ()))
    found: list[Memory] = []
    for one, triple in zip(moment.recalled, shown, strict=False):  # an evaluation without these arms shows none
        pair = triple.pair
        said = _said(replace(pair, context=pair.context[-RECALLED_TURNS:]))
        found.append(Memory(pair.conversation_id, pair.position, round(one.similarity, 4), said, pair.action, triple.reasoning))
    return tuple(found)


def _elsewhere(pair: Pair, pairs: Sequence[Pair]) -> str:
    """What the person said at another held-out moment, half of them away and in another conversation."""
    place = next(i for i, other in enumerate(pairs) if _key(other) == _key(pair))
    start = (place + len(pairs) // 2) % len(pairs)  # so that each turn stands in for another about once
    turned = [*pairs[start:], *pairs[:start]]
    return next((other.action for other in turned if other.conversation_id != pair.conversation_id), "")
