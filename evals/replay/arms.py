"""The arms of a comparison: what a model is shown before the present moment, so that it says what the person would.

The one design choice: the arms differ in nothing but that. Each real action is scored under the same model after the same
present moment, so differences are paired turn by turn, and what a person's own memory, the right memories, their traces and
the peers' descriptions are worth can be read off one table.

    no_memory          the chat alone
    other_person       moments recalled, in the same way, from somebody else's past
    random_own         moments of the person's own past, drawn at random
    recent_own         the latest moments of the person's own past
    recalled_pairs     the person's own moments that are most like now
    backward           the same moments, each with the first proposal that the guards let pass (Backward Synthesis)
    random_of_n        the same, with any of the proposals
    recalled_triples   the same, with the traces that Recon chose
    trained            the same, with the traces of another synthesizer, where there is one
    openevals, tau2, persona    the peers (see peers.py): a description instead of moments

All arms that recall are shown the same moments; where the twin is shown traces, at least one of these has a trace, if any
moment has one.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from usertwin.evals.arm_names import PEERS
from usertwin.memory import Recalled, Triple, TripleStore
from usertwin.memory.recon.synthesizer import select
from usertwin.personas import Pair
from usertwin.simulator import SimulatedUser
from usertwin.simulator.prompts import act_transcript, as_shown

from .peers import peer_transcript


@dataclass(frozen=True, slots=True)
class HeldOutTurn:
    """A held-out moment and what each arm is shown of the past; a peer is shown none."""

    pair: Pair
    shown: Mapping[str, Sequence[Triple]]
    recalled: Sequence[Recalled]


@dataclass(frozen=True, slots=True)
class Arms:
    """What each arm shows a model.

    Attributes:
        user: the twin.
        names: which arms, of `ARMS`.
        other: the memory of another person; without it there is no such arm.
        trained: the memory of the same person with the traces of another synthesizer; likewise.
        seed: for what is drawn.
    """

    user: SimulatedUser
    names: tuple[str, ...]
    other: TripleStore | None = None
    trained: TripleStore | None = None
    seed: int = 0

    @property
    def with_traces(self) -> bool:
        """Whether the twin is shown traces, and so what is recalled for every arm includes a moment with one."""
        return self.user.settings.traces != "none"

    @property
    def present(self) -> tuple[str, ...]:
        """The arms that there is something to show for."""
        plain = not self.user.store.stats().traced
        missing = {"other_person": self.other is None, "trained": self.trained is None, "backward": plain, "random_of_n": plain}
        return tuple(arm for arm in self.names if not missing.get(arm, False))

    def moments(self, pairs: Sequence[Pair]) -> list[HeldOutTurn]:
        """For each held-out pair what each arm is shown; nothing later than the pair, nothing of its conversation."""
        user, names = self.user, set(self.present)
        times = [pair.when for pair in pairs]
        own = user.store.recall_many(pairs, user.k, before=times, with_trace=self.with_traces, ranking=user.ranking)
        theirs: list[list[Recalled]] = [[] for _ in pairs]
        if self.other is not None and "other_person" in names:
            before = times if user.record.dated else None
            theirs = self.other.recall_many(pairs, user.k, before=before, ranking=user.ranking)
        past = [triple for triple in user.store.triples() if not triple.pair.abandoned] if "recent_own" in names else []
        elsewhere = self._trained_traces() if "trained" in names else {}
        found: list[HeldOutTurn] = []
        for number, pair in enumerate(pairs):
            shown = self._remembered(pair, [r.triple for r in own[number]], elsewhere)
            shown |= {"other_person": [r.triple for r in theirs[number]], "recent_own": _latest(past, pair, user.k)}
            if "random_own" in names:
                rng = random.Random(f"{self.seed}/{pair.conversation_id}/{pair.position}")
                drawn = user.store.sample(pair, user.k, before=pair.when, rng=rng)
                shown["random_own"] = [Triple(triple.pair) for triple in drawn]
            found.append(HeldOutTurn(pair, {arm: shown.get(arm, []) for arm in self.present}, own[number]))
        return found

    def _remembered(
        self, pair: Pair, recalled: list[Triple], elsewhere: Mapping[tuple[str, int], str | None]
    ) -> dict[str, list[Triple]]:
        """The same recalled moments, with the traces of each arm."""
        return {
            "recalled_pairs": as_shown(recalled, "none"),
            "backward": as_shown(recalled, "backward"),
            "random_of_n": [replace(triple, reasoning=self._any_trace(triple)) for triple in recalled],
            # A twin that was found to do best with the first proposals is measured as it is.
            "recalled_triples": as_shown(recalled, "backward" if self.user.settings.traces == "backward" else "recon"),
            "trained": [
                replace(triple, reasoning=elsewhere.get((triple.pair.conversation_id, triple.pair.position)))
                for triple in recalled
            ],
        }

    def _any_trace(self, triple: Triple) -> str | None:
        if triple.provenance is None:
            return None
        # What only the score rejected is no reason for a choice that does not look at the score.
        allowed = [
            replace(one, rejected=None) if one.rejected_by in {"misleads", "no_verdict"} else one
            for one in triple.provenance.proposals
        ]
        chosen = select(allowed, "random", seed=f"{self.seed}/{triple.pair.conversation_id}/{triple.pair.position}")
        return None if chosen is None else chosen.trace

    def _trained_traces(self) -> dict[tuple[str, int], str | None]:
        if self.trained is None:
            return {}
        return {(one.pair.conversation_id, one.pair.position): one.reasoning for one in self.trained.triples()}

    def prompt(self, arm: str, moment: HeldOutTurn) -> str:
        """The text after which the real action is scored under an arm."""
        turns = self.user.settings.window
        if arm in PEERS:
            return peer_transcript(arm, self.user.persona, moment.pair, turns=turns)
        return act_transcript(moment.pair, moment.shown[arm], turns=turns)


def _latest(past: Sequence[Triple], pair: Pair, k: int) -> list[Triple]:
    """The k latest moments before a pair and not of its conversation, the latest first; `past` is in the order of time."""
    found: list[Triple] = []
    for triple in reversed(past):
        if len(found) == k:
            break
        if triple.pair.when < pair.when and triple.pair.conversation_id != pair.conversation_id:
            found.append(Triple(triple.pair))
    return found
