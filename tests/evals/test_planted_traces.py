"""memory/recon/ on a planted case: a person with a hidden rule, and traces of which only one states it; it must score best.

A price above a hundred makes Ann angry, and she refuses; a lower price makes her happy, and she accepts. A copy of her reply
scores best without guards although it is no reason; with guards it scores worst.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from math import exp, fsum, log
from statistics import fmean
from typing import NamedTuple

import pytest
from scipy.stats import rankdata

from conftest import FunctionChatModel
from usertwin.memory import ChatModel, LikelihoodGain, Scorer, Synthesizer
from usertwin.memory.models.scoring import Likelihood
from usertwin.memory.recon.guards import rejection_reason
from usertwin.memory.text.words import content_words, word_tokens
from usertwin.personas import Pair, Turn

REFUSED = (
    ("The leather jacket is 180 euros. Shall I put it aside for you?",
     "That is outrageous! Nobody in their right mind pays that for a jacket."),
    ("We still have a seat on the wine tour, 240 per person. Do you want to come?",
     "You must be joking. I could feed a family for a month with that."),
    ("I can let you have my old bike for 150. What do you say?",
     "Are you serious? That rusty thing is not worth half of it."),
    ("The concert tickets would be 130 each. Should I get one for you too?",
     "What a shameless rip-off. They will not see me there, I swear."),
    ("The carpenter says the new shelf will come to 420. Shall we order it?",
     "No way! He should be ashamed of himself, asking that for a few boards."),
    ("A room with a view of the lake is 310 a night. Would you like it?",
     "This is ridiculous. Who do they think we are, millionaires?"),
    ("The course starts on Monday and costs 275. Can I sign you up?",
     "Forget it. These people are nothing but thieves, it makes me sick."),
    ("The premium plan is 199 a year. Shall I switch you over?",
     "Certainly not. It is an insult to even suggest such a thing to me."),
)  # fmt: skip
ACCEPTED = (
    ("I have two spare chairs here, 15 for both. Do you want them?",
     "Wonderful, I would love to have them! You really made my day."),
    ("The bus to the beach is 8 per person. Are you in?",
     "Hooray, of course I am! I can't wait to see the waves."),
    ("The repair would be 40 and done by Friday. Shall I go ahead?",
     "Yes, please! That is fantastic news, thank you so much."),
    ("Lunch at the new place is 12 today. Will you come along?",
     "Great idea, I'd be delighted! I have been dreaming of their soup."),
    ("A used copy of the book is 6. Should I send it?",
     "Oh, how lovely, yes! I have always wanted to read it, thank you."),
    ("The class on Sunday costs 20. Can I put your name down?",
     "Perfect, I'm so excited! I will bring a cake for everybody."),
    ("Delivery to your door would be 5. Is that all right?",
     "That is so kind, sure! You are the best, thanks a lot."),
    ("I can sell you my old lamp for 25. Interested?",
     "Awesome, I'll take it! It is going to look beautiful on my desk."),
)  # fmt: skip
WHY_REFUSED = (
    "It cost far more than a hundred, and prices like that make me furious, so I wanted to refuse and show how angry I was.",
    "That was way over my limit of a hundred, and I felt cheated and full of rage, so I decided to turn it down harshly.",
    "I noticed a price far above a hundred, was shocked and offended by the greed behind it, and decided to reject it rudely.",
)
WHY_ACCEPTED = (
    "It cost much less than a hundred, and prices like that make me happy, so I wanted to agree and show how glad I was.",
    "That was well under my limit of a hundred, and I felt lucky and full of joy, so I decided to accept it warmly.",
    "I noticed a price far below a hundred, was pleased and touched by the generosity behind it, and decided to accept it"
    " cheerfully.",
)
POST_HOC = (
    "I had just come home from work and was a little tired, and the message reached me while I was cooking for the evening.",
    "I remembered how we first met last summer at the station, and I thought about where we had been sitting back then.",
    "I was sitting on the train and looking out of the window at the fields, and I had some time to answer.",
    "It was raining outside and the radio was on, and I had been cleaning the kitchen when somebody wrote to me.",
)
KINDS = ("true", "post hoc", "shuffled", "bag of words", "copy")


class PlantedPair(NamedTuple):
    """A pair, and the trace of each kind."""

    pair: Pair
    traces: dict[str, str]


def planted_pairs() -> list[PlantedPair]:
    """Return sixteen pairs with their traces: true reason, unrelated story, opposite reason, shuffled words, the action."""
    result: list[PlantedPair] = []
    for index in range(8):
        reasons = WHY_REFUSED[index % 3], WHY_ACCEPTED[index % 3]
        for outcome, (text, action) in enumerate((REFUSED[index], ACCEPTED[index])):
            number = len(result)
            pair = Pair(
                speaker="Ann",
                context=(Turn("Bob", "agent", text),),
                action=action,
                goal="",
                conversation_id=f"talk {number}",
                position=1,
                when=float(number),
            )
            true = reasons[outcome]
            disorder = " ".join(random.Random(number).sample(true.split(), len(true.split())))
            story = POST_HOC[(index + outcome) % len(POST_HOC)]
            traces = (true, story, reasons[1 - outcome], disorder, f"I would say: {action}")
            result.append(PlantedPair(pair, dict(zip(KINDS, traces, strict=True))))
    return result


# Scores of all kinds ---------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """A score for each pair and kind, without and with guards; with guards a rejected trace has the lowest score."""

    unguarded: list[dict[str, float]]
    guarded: list[dict[str, float]]

    @staticmethod
    def of(scorer: Scorer) -> Table:
        """Score all traces of all pairs."""
        table = Table([], [])
        for pair, traces in planted_pairs():
            naive, guarded = (
                asyncio.run(LikelihoodGain(scorer, guarded=value).score(pair, list(traces.values()))) for value in (False, True)
            )  # fmt: skip
            rejected = [rejection_reason(trace, pair) for trace in traces.values()]
            bottom = float("-inf")
            table.unguarded.append({kind: value.value for kind, value in zip(traces, naive, strict=True)})
            table.guarded.append(
                {kind: bottom if why else value.value for kind, value, why in zip(traces, guarded, rejected, strict=True)}
            )
        return table


def mean_ranks(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean place of each kind, 1 for the best; equals share theirs."""
    ranks = [rankdata([-row[kind] for kind in KINDS]) for row in scores]
    return {kind: fmean(row[index] for row in ranks) for index, kind in enumerate(KINDS)}


def means(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean score of each kind."""
    return {kind: fmean(row[kind] for row in scores) for kind in KINDS}


def wins(scores: Sequence[dict[str, float]], other: str) -> int:
    """In how many moments the true reason beats another kind."""
    return sum(row["true"] > row[other] for row in scores)


# A reader who knows the person -----------------------------------------------------------------------------------------

SPEAKS_FOR = (
    ("more than a hundred", "make me furious", "wanted to refuse", "over my limit", "full of rage", "turn it down",
     "above a hundred", "shocked and offended", "reject it"),
    ("less than a hundred", "make me happy", "wanted to agree", "under my limit", "full of joy", "accept it",
     "below a hundred", "pleased and touched"),
)  # fmt: skip
_RATIO, _PRIOR, _ON_MIND = 4.0, 0.05, 10.0


@cache
def _vocabulary() -> tuple[Counter[str], Counter[str]]:
    """How often each word, and the end, is in what the person writes when she refuses and when she accepts."""
    counts = [Counter(word for _, action in kind for word in [*_plain(action), "\n"]) for kind in (REFUSED, ACCEPTED)]
    return counts[0], counts[1]


def _plain(text: str) -> list[str]:
    return [re.sub(r"[^\w']", "", word.casefold()) for word in text.split()]


class KnowingScorer:
    """An exact model of the person: Bayes' rule over what she may do, which is to refuse, to accept, or neither.

    Some phrases of a thought speak for the one or the other, each four to one, if their words are in this order; each word that
    she writes says more. Half of her words are those of what she does, the others are any, those that carry the content of her
    thought ten times as likely as the rest.
    """

    name = "knowing"

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """See `Scorer.score`."""
        return [self._one(prompt, continuation) for prompt, continuation in items]

    def _one(self, prompt: str, continuation: str) -> Likelihood:
        thought = result[1] if (result := re.search(r"\(Me thinking: (.*)\)\nMe:$", prompt)) else ""
        thought_text = " ".join(word_tokens(thought))
        belief = [_PRIOR * _RATIO ** sum(f" {phrase} " in f" {thought_text} " for phrase in phrases) for phrases in SPEAKS_FOR]
        belief = [value / fsum([*belief, 1 - 2 * _PRIOR]) for value in [*belief, 1 - 2 * _PRIOR]]
        kinds = _vocabulary()
        known = set(kinds[0] | kinds[1])
        on_mind = known & set(content_words(_plain(thought)))
        each: list[float] = []
        tokens = list(re.finditer(r"\s*\S+|\s+", continuation))
        for token in tokens:
            word = "".join(_plain(token[0])) or "\n"
            anything = (_ON_MIND if word in on_mind else 1) / (len(known) + (_ON_MIND - 1) * len(on_mind))
            likely = [*(0.5 * kind[word] / kind.total() + 0.5 * anything for kind in kinds), anything]
            whole = fsum(value * p for value, p in zip(belief, likely, strict=True))
            belief = [value * p / whole for value, p in zip(belief, likely, strict=True)]
            each.append(log(whole))
        return Likelihood(fsum(each), len(each), tuple(each), tuple(token.end() for token in tokens))


# The case --------------------------------------------------------------------------------------------------------------


def test_the_copy_is_rejected_at_every_moment_and_no_other_trace_is() -> None:
    for pair, traces in planted_pairs():
        rejected = {kind for kind, trace in traces.items() if rejection_reason(trace, pair)}
        assert rejected == {"copy"}


def test_knowing_scorer_is_a_distribution_and_ignores_unrelated_words() -> None:
    prompt = "(Me thinking: it was over my limit)\nMe:"
    kinds = _vocabulary()
    single = [KnowingScorer().score([(prompt, f" {word}")])[0].nats for word in set(kinds[0] | kinds[1]) - {"\n"}]
    end = KnowingScorer().score([(prompt, "\n")])[0].nats
    assert fsum(map(exp, [*single, end])) == pytest.approx(1)
    idle, nothing = KnowingScorer().score([("(Me thinking: xylophone)\nMe:", " Forget it\n"), ("Me:", " Forget it\n")])
    assert idle == nothing


def test_copy_ranks_first_unguarded_and_last_guarded() -> None:
    table = Table.of(KnowingScorer())
    assert mean_ranks(table.unguarded)["copy"] == 1
    assert mean_ranks(table.unguarded)["true"] == 2
    ranks, scores = mean_ranks(table.guarded), means(table.guarded)
    assert (ranks["true"], ranks["copy"]) == (1, len(KINDS))
    assert scores["true"] > 0.1 > 0.02 > max(scores["post hoc"], scores["bag of words"]) > -0.02 > -0.1 > scores["shuffled"]


def test_synthesizer_selects_the_true_reason() -> None:
    scorer = KnowingScorer()
    for number, (pair, traces) in enumerate(planted_pairs()):
        turn = itertools.cycle(random.Random(number).sample(list(traces.values()), len(traces)))
        model = ChatModel("writer", FunctionChatModel(reply=lambda *_, turn=turn: next(turn)))
        maker = Synthesizer(method="recon", model=model, fidelity=LikelihoodGain(scorer), scorer=scorer, candidates=len(traces))
        triple = asyncio.run(maker.synthesize(pair, "Ann"))
        assert triple.reasoning == traces["true"]
        assert triple.provenance is not None
        assert triple.provenance.measured["kept"] > 0.5


@pytest.mark.slow
def test_local_model_finds_the_true_reason_only_with_guards() -> None:
    from usertwin.simulator import load_scorer

    table = Table.of(load_scorer("local"))
    naive, ranks = mean_ranks(table.unguarded), mean_ranks(table.guarded)
    assert naive["copy"] < 1.2
    assert means(table.unguarded)["copy"] > means(table.unguarded)["true"] + 1.0
    assert ranks["copy"] == len(KINDS)
    others = [kind for kind in KINDS if kind not in {"true", "copy"}]
    assert ranks["true"] < min(ranks[kind] for kind in others) - 0.5
    scores = means(table.guarded)
    assert scores["true"] > max(0.0, *(scores[kind] for kind in others)) + 0.05
    assert {kind: wins(table.guarded, kind) >= 11 for kind in others} == dict.fromkeys(others, True)
