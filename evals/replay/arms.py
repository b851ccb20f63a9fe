"""The turns of the past that each arm shows a model before the present context, or replies with.

Design: the arms differ in these turns only. Each real action is scored by the same model after the same context, so differences
between arms are paired by turn. All arms that recall the person's own pairs show the same pairs, those that the twin recalls
when it talks. `ARM_DESCRIPTIONS` in evals/arm_names.py describes each arm.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from itertools import islice

from usertwin.evals.arm_names import MEMORY_ARMS, POOLED_ARMS, QUOTING_ARMS, base_arm, is_adapted, peer_of, uses_words
from usertwin.memory import Recalled, Scorer, Triple, TripleStore
from usertwin.memory.models.scoring import Likelihood, Tokenizer
from usertwin.memory.own_words.own_words import DEFAULT_WEIGHTS, WEIGHTS_WITHOUT_MEMORY, OwnWords, WordMixture
from usertwin.memory.own_words.word_weights import WordWeights
from usertwin.memory.recon.synthesizer import Method, select, traces_to_compare
from usertwin.memory.text.transcript import action_completion
from usertwin.personas import Pair, Persona
from usertwin.simulator import SimulatedUser
from usertwin.simulator.prompts import act_transcript, with_shown_traces

from .adapted import AdaptedTwin
from .peers import peer_transcript
from .simulators import Simulator

#: Arms other than those of the twin that show turns of the person.
_OWN_TURNS_SHOWN = ("random_own", "recent_own", "pooled_with_own")
#: Pairs whose medoid is the reply of the arm "medoid".
MEDOID_OF = 16


@dataclass(frozen=True, slots=True)
class HeldOutTurn:
    """A held-out pair and the triples that each arm shows; a peer shows none.

    `recalled` holds the similarities, `thoughts` the twin's own trace for the turn by arm, where it writes one.
    """

    pair: Pair
    shown: Mapping[str, Sequence[Triple]]
    recalled: Sequence[Recalled]
    thoughts: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Arms:
    """The arms of a comparison of a twin, by names from `ARMS` or of `simulators`. An arm without what it needs is absent.

    Attributes:
        other: the memory of another person, for "other_person".
        trained: the memory of the person with the traces of a trained synthesizer, for "trained".
        pool: a memory of everybody else's pairs, for "pooled" and "pooled_with_own".
        written: the persona with a description that a model wrote, for "openevals_written".
        simulators: other simulated users by the names of their arms.
        words: the person's own words in the scorer's tokens, for the arms with own words.
        adapted: the twin with its adapter, for the arms with it; `user` is the twin without.
        seed: of random pairs and traces.
    """

    user: SimulatedUser
    names: tuple[str, ...]
    _: KW_ONLY
    other: TripleStore | None = None
    trained: TripleStore | None = None
    pool: TripleStore | None = None
    written: Persona | None = None
    simulators: Mapping[str, Simulator] = field(default_factory=dict[str, Simulator])
    words: OwnWords | None = None
    adapted: AdaptedTwin | None = None
    seed: int = 0

    @property
    def present(self) -> tuple[str, ...]:
        """The arms that have something to show."""
        untraced = not self.user.store.stats().traced
        absent = {"other_person": self.other is None, "trained": self.trained is None}
        absent |= dict.fromkeys(("backward", "random_of_n", "best_of_n"), untraced) | dict.fromkeys(
            POOLED_ARMS, self.pool is None
        )
        absent |= {"openevals_written": self.written is None}
        kept = (arm for arm in self.names if not absent.get(base_arm(arm), False))
        kept = (arm for arm in kept if self.adapted is not None or not is_adapted(arm))
        return tuple(arm for arm in kept if self.words is not None or not uses_words(arm))

    def has_likelihood(self, arm: str) -> bool:
        """Return whether real actions can be scored under an arm: it shows a prompt to a model of ours, which the scorer is."""
        if is_adapted(arm) and (self.adapted is None or self.adapted.scorer is None):
            return False
        return arm not in QUOTING_ARMS and arm not in self.simulators

    def user_of(self, arm: str) -> SimulatedUser:
        """Return the twin whose model writes under an arm."""
        return self.adapted.user if self.adapted is not None and is_adapted(arm) else self.user

    def scorer_of(self, arm: str, scorer: Scorer) -> Scorer:
        """Return what scores real actions under an arm: the given scorer, or the same with the twin's adapter."""
        return (self.adapted and self.adapted.scorer if is_adapted(arm) else None) or scorer

    def likelihood(self, arm: str, likelihood: Likelihood, action: str, before: float) -> Likelihood:
        """Return the likelihood of a turn under an arm; `likelihood` is that of the scorer after the arm's prompt."""
        if self.words is None or not uses_words(arm):
            return likelihood
        return WordMixture(self.words, weights_of(self.user, arm)).likelihood(likelihood, action, before)

    def persona(self, arm: str) -> Persona:
        """Return the persona that an arm shows."""
        return self.written if base_arm(arm) == "openevals_written" and self.written is not None else self.user.persona

    def held_out_turns(self, pairs: Sequence[Pair]) -> list[HeldOutTurn]:
        """Return what each arm shows for each held-out pair: nothing later than the pair, nothing of its conversation."""
        user, names = self.user, set(map(base_arm, self.present))
        times = [pair.when for pair in pairs]
        own = user.recall_many(pairs, before=times)
        others: list[list[Recalled]] = [[] for _ in pairs]
        if self.other is not None and "other_person" in names:
            before = times if user.record.dated else None
            others = self.other.recall_many(pairs, user.k, before=before, ranking=user.ranking)
        crowd: list[list[Recalled]] = [[] for _ in pairs]
        if self.pool is not None and names & set(POOLED_ARMS):
            crowd = self.pool.recall_many(pairs, user.k, before=times if user.record.dated else None, ranking=user.ranking)
        plain = user.store.recall_many(pairs, user.k, before=times, ranking=user.ranking) if "pooled_with_own" in names else own
        quoting = names & set(QUOTING_ARMS)
        quoted = user.store.recall_many(pairs, MEDOID_OF, before=times) if quoting else []
        past = [triple for triple in user.store.triples() if not triple.pair.abandoned] if "recent_own" in names else []
        traced = self.trained.triples() if self.trained is not None and "trained" in names else ()
        trained = {(triple.pair.conversation_id, triple.pair.position): triple.reasoning for triple in traced}
        turns: list[HeldOutTurn] = []
        for number, pair in enumerate(pairs):
            shown = self._with_traces(pair, [recalled.triple for recalled in own[number]], trained)
            shown["other_person"] = [recalled.triple for recalled in others[number]]
            shown["pooled"] = [recalled.triple for recalled in crowd[number]]
            everybody = sorted([*plain[number], *crowd[number]], key=lambda recalled: -recalled.similarity)[: user.k]
            shown["pooled_with_own"] = with_shown_traces([recalled.triple for recalled in everybody], "none")
            shown["recent_own"] = _latest(past, pair, user.k)
            if "random_own" in names:
                rng = random.Random(f"{self.seed}/{pair.conversation_id}/{pair.position}")
                sampled = user.store.sample(pair, user.k, before=pair.when, rng=rng)
                shown["random_own"] = [Triple(triple.pair) for triple in sampled]
            if quoting:
                nearest = [recalled.triple for recalled in quoted[number]]
                shown |= {"verbatim": nearest[:1], "medoid": nearest}
            turns.append(HeldOutTurn(pair, {arm: shown.get(base_arm(arm), []) for arm in self.present}, own[number]))
        return turns

    def _with_traces(
        self, pair: Pair, recalled: list[Triple], trained: Mapping[tuple[str, int], str | None]
    ) -> dict[str, list[Triple]]:
        """Return the same recalled pairs with the traces of each arm."""
        # A twin that does best with first proposals is measured with them.
        traces = "backward" if self.user.settings.traces == "backward" else "recon"
        return {
            "recalled_pairs": with_shown_traces(recalled, "none"),
            "backward": with_shown_traces(recalled, "backward"),
            "random_of_n": [replace(triple, reasoning=self._selected(triple, "random")) for triple in recalled],
            "best_of_n": [replace(triple, reasoning=self._selected(triple, "recon")) for triple in recalled],
            "recon": with_shown_traces(recalled, traces),
            "trained": [
                replace(triple, reasoning=trained.get((triple.pair.conversation_id, triple.pair.position)))
                for triple in recalled
            ],
        }

    def _selected(self, triple: Triple, method: Method) -> str | None:
        """Return the trace that a method selects among the same proposals as every other method."""
        seed = f"{self.seed}/{triple.pair.conversation_id}/{triple.pair.position}"
        proposal = select(traces_to_compare(triple), method, seed=seed)
        return None if proposal is None else proposal.trace

    def prompt(self, arm: str, turn: HeldOutTurn, thought: str = "") -> str:
        """Return the text after which the real action is scored under an arm; `thought` is the twin's for the present turn."""
        window = self.user.settings.window
        if (peer := peer_of(arm)) is not None:
            return peer_transcript(peer, self.persona(arm), turn.pair, turns=window)
        return act_transcript(turn.pair, turn.shown[arm], thought or None, persona=self.user.persona, turns=window)


def _latest(past: Sequence[Triple], pair: Pair, k: int) -> list[Triple]:
    """Return the k latest pairs before a pair and from other conversations, latest first; `past` is in order of time."""
    pairs = (triple.pair for triple in reversed(past))
    earlier = (own for own in pairs if own.when < pair.when and own.conversation_id != pair.conversation_id)
    return [Triple(own) for own in islice(earlier, k)]


def weights_of(user: SimulatedUser, arm: str) -> WordWeights:
    """Return the weights of the person's own words under an arm: the twin's, if it has some, for the pairs that it recalls.

    Any other arm has the weights that were fitted for its kind of prompt.
    """
    if base_arm(arm) in MEMORY_ARMS:
        return user.settings.words or DEFAULT_WEIGHTS
    return DEFAULT_WEIGHTS if base_arm(arm) in _OWN_TURNS_SHOWN else WEIGHTS_WITHOUT_MEMORY


def own_words(user: SimulatedUser, scorer: Scorer, arms: Sequence[str]) -> OwnWords | None:
    """Return the words in a twin's memory in the tokens of a scorer.

    None if no arm has own words, or the scorer does not tell the tokens of a text.
    """
    if not any(map(uses_words, arms)) or not isinstance(scorer, Tokenizer):
        return None

    def encode(turns: Sequence[str]) -> list[list[int]]:
        return scorer.tokenize([action_completion(turn) for turn in turns])

    return OwnWords(encode, scorer.vocabulary_size, list(user.store.triples()))
