"""memory/training/rewards.py: terms lie in [0, 1], rejected traces earn nothing, and better traces earn more."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ACTION, PAIR, FixedSimilarityEmbedder, WordWeightScorer
from usertwin.memory.models.chat import Ledger
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.recon.fidelity import FidelityScore, LikelihoodGain
from usertwin.memory.recon.guards import MAX_TRACE_WORDS, PARAPHRASE_COSINE, rejection_reason
from usertwin.memory.text.transcript import filler_text
from usertwin.memory.training.rewards import (
    CLIP,
    SHAPES,
    TOLERATED_COSINE,
    DownstreamReward,
    Lessons,
    Reward,
    RewardWeights,
    Shape,
    compute_rewards,
    parse_weights,
)
from usertwin.personas import Pair, UsageError, VerdictError

TERMS = ("fidelity", "leak", "length", "format")


def weights_of(fidelity: float, leak: float, length: float, form: float, shape: Shape = "clipped") -> RewardWeights:
    return RewardWeights(fidelity=fidelity, leak=leak, length=length, format=form, shape=shape)


EQUAL = weights_of(1.0, 1.0, 1.0, 1.0)


class FixedFidelity:
    """A fidelity with fixed scores, which records what it scores."""

    name, floor = "fixed", 0.0

    def __init__(self, scores: Mapping[str, float], *, comparable: bool = True) -> None:
        self.comparable, self.calls = comparable, list[list[str]]()
        self._scores = scores

    async def score(
        self, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Ledger | None = None
    ) -> list[FidelityScore]:
        """See `Fidelity.score`."""
        self.calls.append(list(traces))
        return [FidelityScore(self._scores[trace]) for trace in traces]


class UndecidedFidelity(FixedFidelity):
    """A judge whose verdicts cannot be parsed."""

    async def score(
        self, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Ledger | None = None
    ) -> list[FidelityScore]:
        """See `Fidelity.score`."""
        raise VerdictError("no verdict")


def accept(trace: str, pair: Pair) -> str | None:
    """A guard that accepts every trace."""
    return None


def rewards_of(fidelity: Any, traces: Sequence[str], pair: Pair = PAIR, **options: Any) -> list[Reward]:
    """The rewards of traces that all ended by themselves, by default without a guard."""
    options = {"guard": accept, "finished": [True] * len(traces)} | options
    return asyncio.run(compute_rewards(pair, traces, options.pop("finished"), fidelity=fidelity, **options))


def fidelity_terms(scores: Sequence[float], shape: Shape = "clipped", comparable: bool = True) -> list[float]:
    traces = [f"t{place}" for place in range(len(scores))]
    fidelity = FixedFidelity(dict(zip(traces, scores, strict=True)), comparable=comparable)
    return [reward.fidelity for reward in rewards_of(fidelity, traces, shape=shape)]


# All terms -----------------------------------------------------------------------------------------------------------

#: Words of the action, of the context and of neither, and words that guards reject.
WORDS = st.sampled_from([*ACTION.split(), "hello", "go", "calm", "wanted", "sea", "I", "I'll say", "Oslo", "7", "…", "{", "\n"])
TRACES = st.lists(st.lists(WORDS, max_size=150).map(" ".join), min_size=1, max_size=6)


@settings(max_examples=50)
@given(TRACES, st.sampled_from(SHAPES), st.data())
def test_terms_lie_in_0_1_and_are_0_for_a_rejected_trace(traces: list[str], shape: Shape, data: st.DataObject) -> None:
    finished = data.draw(st.lists(st.booleans(), min_size=len(traces), max_size=len(traces)))
    fidelity = LikelihoodGain(FakeScorer())
    rewards = rewards_of(fidelity, traces, finished=finished, guard=rejection_reason, shape=shape)
    for trace, ended, reward in zip(traces, finished, rewards, strict=True):
        terms = [getattr(reward, name) for name in TERMS]
        assert reward.rejected == rejection_reason(trace, PAIR)
        if reward.rejected is None:
            assert all(0 <= term <= 1 for term in terms)
            assert reward.fidelity > 0 or shape == "clipped"
            assert reward.format == float(ended)
            assert reward.score is not None
        else:
            assert (terms, reward.score, reward.total(EQUAL)) == ([0.0] * 4, None, 0.0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), st.sampled_from(SHAPES), st.booleans())
def test_a_better_score_never_earns_less_and_equal_scores_earn_the_same(
    scores: list[float], shape: Shape, comparable: bool
) -> None:
    terms = fidelity_terms(scores, shape, comparable)
    assert all(0 <= term <= 1 for term in terms)
    for (score, term), (better_score, better_term) in pairwise(sorted(zip(scores, terms, strict=True))):
        assert term <= better_term
        assert term == better_term or score != better_score


def test_a_forward_trace_is_rewarded_for_foreseeing_the_action() -> None:
    foreseeing, vague = f"I want {ACTION}", "I was calm and waited"
    fidelity = LikelihoodGain(FakeScorer(), guarded=False)
    guard = partial(rejection_reason, saw_action=False)
    rewards = rewards_of(fidelity, [foreseeing, vague], guard=guard, embedder=FakeEmbedder(), saw_action=False)
    assert (rewards[0].rejected, rewards[0].leak) == (None, 1.0)
    assert rewards[0].total(EQUAL) > rewards[1].total(EQUAL)
    assert rewards_of(fidelity, [foreseeing], guard=rejection_reason)[0].total(EQUAL) == 0


def test_no_weights_make_a_rejected_trace_worth_more_than_an_accepted_one() -> None:
    leaking, honest = "I want the early train to Rome please", "I was in a hurry"
    fidelity = FixedFidelity({honest: -9.0})
    rewards = rewards_of(fidelity, [leaking, honest], finished=[True, False], guard=rejection_reason)
    assert rewards[0].rejected == "quotes_action"
    for weights in (EQUAL, weights_of(9.0, 0.0, 0.0, 0.0), weights_of(0.1, 0.0, 0.0, 9.0)):
        assert rewards[0].total(weights) <= rewards[1].total(weights)


def test_the_total_is_the_weighted_sum() -> None:
    reward = Reward(fidelity=0.5, leak=0.25, length=1.0, format=0.0)
    assert reward.total(weights_of(2.0, 4.0, 8.0, 16.0)) == 1.0 + 1.0 + 8.0


# Fidelity ------------------------------------------------------------------------------------------------------------


def test_a_clipped_gain_is_half_at_zero_and_ends_at_the_clips() -> None:
    assert fidelity_terms([0.0, CLIP, -CLIP, CLIP / 2, 9.0, -9.0]) == [0.5, 1.0, 0.0, 0.75, 1.0, 0.0]


def test_ranks_go_up_to_1_and_equal_scores_share_a_rank() -> None:
    assert fidelity_terms([0.1, 0.4, 0.2, 0.3], "rank") == [0.25, 1.0, 0.5, 0.75]
    assert fidelity_terms([0.1, 0.4, 0.4, 0.3], "rank") == [0.25, 0.875, 0.875, 0.5]
    assert fidelity_terms([7.0] * 4, "rank") == [0.625] * 4


def test_scores_that_cannot_be_compared_are_always_ranked() -> None:
    assert fidelity_terms([0.1, 0.4], "clipped", comparable=False) == [0.5, 1.0]


def test_only_accepted_traces_are_ranked() -> None:
    fidelity = FixedFidelity({"a": 1.0, "b": 2.0})
    rewards = rewards_of(
        fidelity, ["a", "bad", "b"], shape="rank", guard=lambda trace, pair: "empty" if trace == "bad" else None
    )
    assert [reward.fidelity for reward in rewards] == [0.5, 0.0, 1.0]


def test_a_repeated_trace_is_scored_once() -> None:
    fidelity = FixedFidelity({"a": 0.1, "b": 0.2})
    rewards = rewards_of(fidelity, ["a", "b", "a"])
    assert fidelity.calls == [["a", "b"]]
    assert rewards[0] == rewards[2] != rewards[1]


def test_nothing_is_scored_if_all_traces_are_rejected() -> None:
    fidelity = FixedFidelity({})
    assert rewards_of(fidelity, ["a", "b"], guard=lambda trace, pair: "new_words") == [Reward(rejected="new_words")] * 2
    assert fidelity.calls == []


def test_without_a_verdict_no_trace_earns_anything_whatever_its_length() -> None:
    traces = ["one word", "two words of a much longer trace", "quotes"]
    rewards = rewards_of(
        UndecidedFidelity({}, comparable=False), traces,
        guard=lambda trace, pair: "quotes_action" if trace == "quotes" else None,
    )  # fmt: skip
    assert rewards == [Reward(rejected="no_verdict")] * 2 + [Reward(rejected="quotes_action")]


def test_pairs_are_counted_by_what_they_teach() -> None:
    unread, equal, different = [Reward(rejected="no_verdict")] * 2, [Reward(fidelity=0.5)] * 2, [Reward(), Reward(fidelity=0.5)]
    lessons = Lessons()
    for rewards in (unread, equal, [Reward(rejected="empty")] * 2, different):
        lessons.count(rewards)
    assert lessons == Lessons(pairs=4, no_verdict=1, equal=2)
    lessons.check()


def test_pairs_of_equal_rewards_only_are_refused() -> None:
    lessons = Lessons()
    lessons.check()  # there is no pair yet
    for rewards in ([Reward(fidelity=0.5)] * 2, [Reward(rejected="no_verdict")] * 2):
        lessons.count(rewards)
    with pytest.raises(UsageError, match="nothing was learned: of 2 pairs, 1 had traces of equal fidelity and 1 no readable"):
        lessons.check()


def test_a_judge_without_any_readable_verdict_is_an_error() -> None:
    lessons, unread = Lessons(), [Reward(rejected="no_verdict")] * 2
    for _ in range(3):
        lessons.count(unread)
    with pytest.raises(VerdictError, match="no readable verdict for any of 4 pairs"):
        lessons.count(unread)


# Leak and length -----------------------------------------------------------------------------------------------------

MANY_WORDS = replace(PAIR, action="kind grey tall wise young brave loud quick calm warm")


def test_a_trace_earns_less_the_more_new_words_of_the_action_it_has() -> None:
    traces = ["soft", "kind", "kind grey", "kind grey tall"]
    fidelity = FixedFidelity(dict.fromkeys(traces, 0.0))
    assert [reward.leak for reward in rewards_of(fidelity, traces)] == [1.0] * 4  # the action has none of these words
    assert [reward.leak for reward in rewards_of(fidelity, traces, MANY_WORDS)] == pytest.approx([1.0, 2 / 3, 1 / 3, 0.0])


@pytest.mark.parametrize(
    ("cosine", "term"),
    [(0.0, 1.0), (TOLERATED_COSINE, 1.0), (0.525, 0.75), (0.575, 0.25), (PARAPHRASE_COSINE, 0.0), (0.9, 0.0)],
)
def test_a_trace_earns_less_the_closer_a_sentence_is_to_the_actions_meaning(cosine: float, term: float) -> None:
    embedder = FixedSimilarityEmbedder({ACTION: 1.0, "I was off.": cosine, "so off?": 0.95})
    with_close_turn = replace(PAIR, context=(*PAIR.context, replace(PAIR.context[-1], text="so off?")))
    fidelity = FixedFidelity({"I was off. It was late": 0.0})
    for pair in (PAIR, with_close_turn):  # earlier turns do not matter: a lower reward is not yet a rejection
        [reward] = rewards_of(fidelity, ["I was off. It was late"], pair, embedder=embedder)
        assert reward.leak == pytest.approx(term, abs=1e-6)


def test_the_larger_of_the_two_leaks_counts() -> None:
    embedder = FixedSimilarityEmbedder({MANY_WORDS.action: 1.0, "soft": 0.525, "kind grey": 0.525})
    fidelity = FixedFidelity({"soft": 0.0, "kind grey": 0.0})
    rewards = rewards_of(fidelity, ["soft", "kind grey"], MANY_WORDS, embedder=embedder)
    assert [reward.leak for reward in rewards] == pytest.approx([0.75, 1 / 3], abs=1e-6)


def test_a_trace_of_usual_length_earns_more_than_one_word_or_very_many() -> None:
    traces = [" ".join(["calm"] * words) for words in (0, 1, 5, 60, 90, MAX_TRACE_WORDS, MAX_TRACE_WORDS + 50)]
    rewards = rewards_of(FixedFidelity(dict.fromkeys(traces, 0.0)), traces)
    assert [reward.length for reward in rewards] == [0.0, 0.2, 1.0, 1.0, 0.5, 0.0, 0.0]


# Weights -------------------------------------------------------------------------------------------------------------

NUMBER = st.floats(0, 1e6)


@settings(max_examples=50)
@given(st.floats(0.001, 1e6), NUMBER, NUMBER, NUMBER, st.sampled_from(SHAPES))
def test_weights_are_parsed(fidelity: float, leak: float, length: float, form: float, shape: Shape) -> None:
    text = f"{fidelity}/{leak}/{length}/{form}"
    assert parse_weights(text, shape) == weights_of(fidelity, leak, length, form, shape)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", '--weights: "" has 1 values; 4 are needed'), ("1", "has 1 values; 4 are needed"), ("1/2/3", "has 3 values"),
     ("1/2/3/4/5", "has 5 values"), ("1/a/3/4", "is not made of numbers; write"), ("1//3/4", "is not made of numbers")],
)  # fmt: skip
def test_malformed_weights_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_weights(text)


@pytest.mark.parametrize("text", ["0/1/1/1", "1/-1/0/0", "-1/0/0/0", "nan/0/0/0", "1/nan/0/0", "1/0/inf/0", "inf/0/0/0"])
def test_weights_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not negative, and the weight of fidelity must not be 0"):
        parse_weights(text)


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(UsageError, match='--shape: "round" is unknown; choose from clipped, rank'):
        parse_weights("1/0/0/0", "round")  # pyright: ignore[reportArgumentType]


def test_every_term_has_a_weight() -> None:
    assert set(TERMS) <= set(asdict(Reward())) & set(asdict(RewardWeights()))


# Downstream ----------------------------------------------------------------------------------------------------------

RELATED = replace(PAIR, conversation_id="another", action="a quiet seat by the window")


def downstream(
    weights: Mapping[str, float], traces: Sequence[str], related: Pair | None = RELATED
) -> tuple[list[float], WordWeightScorer]:
    scorer = WordWeightScorer(weights)
    fidelity = DownstreamReward(scorer, {} if related is None else {PAIR: related})
    return [score.value for score in asyncio.run(fidelity.score(PAIR, traces))], scorer


def test_the_downstream_gain_is_that_of_the_related_action_per_token() -> None:
    scores, _ = downstream({"helpful": 0.25, "misleading": -0.5}, ["one helpful word", "nothing", "misleading"])
    assert scores == pytest.approx([0.25, 0.0, -0.5])


def test_the_pair_is_the_example_before_the_related_pair() -> None:
    _, scorer = downstream({}, ["a thought"])
    [[(with_filler, action), (with_trace, same)]] = scorer.calls
    assert action == same == f" {RELATED.action}\n"
    assert f"Me: {ACTION}" in with_filler
    assert RELATED.action not in with_filler
    assert with_trace.replace("(Me thinking: a thought)", f"(Me thinking: {filler_text(2)})") == with_filler


def test_the_downstream_baseline_is_filler_text_of_about_the_length_of_each_trace() -> None:
    """A scorer that likes any words in the trace's place gives no trace a reward for them."""
    short, long = "so it goes", " ".join(["so it goes"] * 9)
    values, _ = downstream({"thinking": 3.0}, [short, long, filler_text(5), filler_text(20)])
    assert values == pytest.approx([0.0] * 4)


def test_without_a_related_pair_every_score_is_0() -> None:
    assert downstream({"good": 1.0}, ["good", "bad"], None)[0] == [0.0, 0.0]


@pytest.mark.parametrize(
    "change", [{"speaker": "Eve"}, {"conversation_id": "b"}, {"position": 9}, {"action": "said in another log"}]
)
def test_a_pair_that_differs_in_any_key_has_no_related_pair(change: dict[str, Any]) -> None:
    fidelity = DownstreamReward(WordWeightScorer({"good": 1.0}), {PAIR: RELATED})
    [score] = asyncio.run(fidelity.score(replace(PAIR, **change), ["good"]))
    assert score.value == 0.0


@pytest.mark.parametrize("saw_action", [True, False])
def test_guards_and_embeddings_do_not_run_on_the_event_loop(saw_action: bool):
    """They would hold up all other work, and slow torch in all threads afterwards."""
    loops: list[object] = []

    def note() -> None:
        loops.append(asyncio._get_running_loop())  # pyright: ignore[reportPrivateUsage]

    class NotingEmbedder(FakeEmbedder):
        def embed(self, texts: Sequence[str]) -> Any:
            note()
            return super().embed(texts)

    def guard(trace: str, pair: Pair) -> str | None:
        note()
        return None

    rewards_of(FixedFidelity({"a": 1.0, "b": 2.0}), ["a", "b"], embedder=NotingEmbedder(), guard=guard, saw_action=saw_action)
    assert len(loops) >= 2
    assert set(loops) == {None}
