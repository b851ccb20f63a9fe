"""memory/training/rewards.py and downstream.py: every term lies within 0 and 1, what is rejected is worth nothing, signs are right."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import ACTION, PAIR, FixedSimilarityEmbedder, WordWeightScorer
from usertwin.memory.models.chat import Ledger
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.recon.fidelity import LikelihoodGain, FidelityScore
from usertwin.memory.recon.guards import MAX_TRACE_WORDS, PARAPHRASE_COSINE, rejection_reason
from usertwin.memory.training.downstream_reward import DownstreamReward
from usertwin.memory.training.rewards import (
    CLIP,
    SHAPES,
    TOLERATED_MEANING,
    Reward,
    RewardWeights,
    Shape,
    compute_rewards,
    parse_weights,
)
from usertwin.personas import Pair, UsageError, VerdictError

TERMS = ("fidelity", "leak", "length", "format")
EVEN = RewardWeights(1.0, 1.0, 1.0, 1.0)


class Known:
    """A fidelity whose scores are known beforehand, and that remembers what it was asked."""

    name, floor = "known", 0.0

    def __init__(self, scores: Mapping[str, float], *, comparable: bool = True) -> None:
        self.comparable, self.asked = comparable, list[list[str]]()
        self._scores = scores

    async def score(
        self, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Ledger | None = None
    ) -> list[FidelityScore]:
        """See `Fidelity.score`."""
        self.asked.append(list(traces))
        return [FidelityScore(self._scores[trace]) for trace in traces]


class Undecided(Known):
    """A judge of whose verdicts none can be read."""

    async def score(
        self, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Ledger | None = None
    ) -> list[FidelityScore]:
        """See `Fidelity.score`."""
        raise VerdictError("no verdict")


def allowed(trace: str, pair: Pair) -> str | None:
    """A guard that has nothing against a trace."""
    return None


def rewarded(
    scores: Mapping[str, float], traces: Sequence[str], shape: Shape = "clipped", comparable: bool = True
) -> list[Reward]:
    known = Known(scores, comparable=comparable)
    finished = [True] * len(traces)
    return asyncio.run(compute_rewards(PAIR, traces, finished, fidelity=known, guard=allowed, shape=shape))


def fidelities(scores: Sequence[float], shape: Shape = "clipped", comparable: bool = True) -> list[float]:
    traces = [f"t{place}" for place in range(len(scores))]
    found = rewarded(dict(zip(traces, scores, strict=True)), traces, shape, comparable)
    return [one.fidelity for one in found]


# Every term ----------------------------------------------------------------------------------------------------------

#: Words of the action, of the context, and of neither; and what guards are there against.
WORDS = st.sampled_from([*ACTION.split(), "hello", "go", "calm", "wanted", "sea", "I", "I'll say", "Oslo", "7", "…", "{", "\n"])
TRACES = st.lists(st.lists(WORDS, max_size=150).map(" ".join), min_size=1, max_size=6)


@given(TRACES, st.sampled_from(SHAPES), st.data())
def test_terms_lie_between_0_and_1_and_are_0_for_a_trace_that_is_rejected(
    traces: list[str], shape: Shape, data: st.DataObject
) -> None:
    finished = data.draw(st.lists(st.booleans(), min_size=len(traces), max_size=len(traces)))
    found = asyncio.run(
        compute_rewards(PAIR, traces, finished, fidelity=LikelihoodGain(FakeScorer()), guard=rejection_reason, shape=shape)
    )  # fmt: skip
    for trace, ended, one in zip(traces, finished, found, strict=True):
        terms = [getattr(one, name) for name in TERMS]
        assert one.rejected == rejection_reason(trace, PAIR)
        if one.rejected is None:
            assert all(0 <= term <= 1 for term in terms)
            assert one.fidelity > 0 or shape == "clipped"
            assert one.format == float(ended)
            assert one.score is not None
        else:
            assert (terms, one.score, one.total(EVEN)) == ([0.0] * 4, None, 0.0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), st.sampled_from(SHAPES), st.booleans())
def test_a_better_score_is_never_worth_less_and_an_equal_one_is_worth_the_same(
    scores: list[float], shape: Shape, comparable: bool
) -> None:
    worths = fidelities(scores, shape, comparable)
    assert all(0 <= worth <= 1 for worth in worths)
    for (score, worth), (better, more) in pairwise(sorted(zip(scores, worths, strict=True))):
        assert worth <= more
        assert worth == more or score != better


def test_no_weights_make_a_rejected_trace_worth_more_than_one_that_is_allowed() -> None:
    leaking, honest = "I want the early train to Rome please", "I was in a hurry"
    found = asyncio.run(
        compute_rewards(PAIR, [leaking, honest], [True, False], fidelity=Known({honest: -9.0}), guard=rejection_reason)
    )  # fmt: skip
    assert found[0].rejected == "quotes_action"
    for weights in (EVEN, RewardWeights(9.0, 0.0, 0.0, 0.0), RewardWeights(0.1, 0.0, 0.0, 9.0)):
        assert found[0].total(weights) <= found[1].total(weights)


def test_the_total_is_the_weighted_sum() -> None:
    assert Reward(0.5, 0.25, 1.0, 0.0).total(RewardWeights(2.0, 4.0, 8.0, 16.0)) == 1.0 + 1.0 + 8.0


# Fidelity ------------------------------------------------------------------------------------------------------------


def test_a_clipped_gain_is_half_where_a_trace_changes_nothing_and_ends_at_the_clips() -> None:
    assert fidelities([0.0, CLIP, -CLIP, CLIP / 2, 9.0, -9.0]) == [0.5, 1.0, 0.0, 0.75, 1.0, 0.0]


def test_ranks_go_from_1_for_the_best_and_equal_ones_share_theirs() -> None:
    assert fidelities([0.1, 0.4, 0.2, 0.3], "rank") == [0.25, 1.0, 0.5, 0.75]
    assert fidelities([0.1, 0.4, 0.4, 0.3], "rank") == [0.25, 0.875, 0.875, 0.5]
    assert fidelities([7.0] * 4, "rank") == [0.625] * 4


def test_scores_that_cannot_be_compared_are_ranked_whatever_the_shape() -> None:
    assert fidelities([0.1, 0.4], "clipped", comparable=False) == [0.5, 1.0]


def test_a_rank_is_among_those_that_are_allowed() -> None:
    found = asyncio.run(
        compute_rewards(
            PAIR, ["a", "bad", "b"], [True] * 3, fidelity=Known({"a": 1.0, "b": 2.0}), shape="rank",
            guard=lambda trace, pair: "empty" if trace == "bad" else None,
        )
    )  # fmt: skip
    assert [one.fidelity for one in found] == [0.5, 0.0, 1.0]


def test_a_trace_that_came_twice_is_scored_once_and_worth_the_same_twice() -> None:
    known = Known({"a": 0.1, "b": 0.2})
    found = asyncio.run(compute_rewards(PAIR, ["a", "b", "a"], [True] * 3, fidelity=known, guard=allowed))
    assert known.asked == [["a", "b"]]
    assert found[0] == found[2] != found[1]


def test_where_all_are_rejected_nobody_is_asked() -> None:
    known = Known({})
    found = asyncio.run(compute_rewards(PAIR, ["a", "b"], [True] * 2, fidelity=known, guard=lambda trace, pair: "new_words"))
    assert found == [Reward(rejected="new_words")] * 2
    assert known.asked == []


def test_without_a_verdict_all_that_are_allowed_are_worth_the_same() -> None:
    undecided = Undecided({}, comparable=False)
    found = asyncio.run(compute_rewards(PAIR, ["one word", "two words"], [True] * 2, fidelity=undecided, guard=allowed))
    assert found[0].fidelity == found[1].fidelity
    assert [one.score for one in found] == [0.0, 0.0]


# Leak and length -----------------------------------------------------------------------------------------------------


def test_a_trace_is_worth_less_the_more_of_the_new_words_it_has() -> None:
    pair = replace(PAIR, action="kind grey tall wise young brave loud quick calm warm")
    traces = ["soft", "kind", "kind grey", "kind grey tall"]
    clean = [one.leak for one in rewarded(dict.fromkeys(traces, 0.0), traces)]
    assert clean == [1.0] * 4  # they are not new where the action has none of them
    known = Known(dict.fromkeys(traces, 0.0))
    found = asyncio.run(compute_rewards(pair, traces, [True] * 4, fidelity=known, guard=allowed))
    assert [one.leak for one in found] == pytest.approx([1.0, 2 / 3, 1 / 3, 0.0])


@pytest.mark.parametrize(
    ("cosine", "worth"), [(0.0, 1.0), (TOLERATED_MEANING, 1.0), (0.525, 0.75), (0.575, 0.25), (PARAPHRASE_COSINE, 0.0), (0.9, 0.0)]
)
def test_a_trace_is_worth_less_the_nearer_one_of_its_sentences_comes_to_what_the_action_means(
    cosine: float, worth: float
) -> None:
    embedder = FixedSimilarityEmbedder({ACTION: 1.0, "I was off.": cosine, "so off?": 0.95})
    said = replace(PAIR, context=(*PAIR.context, replace(PAIR.context[-1], text="so off?")))
    known = Known({"I was off. It was late": 0.0})
    for pair in (PAIR, said):  # whatever was said before: worth less is not yet rejected
        found = asyncio.run(
            compute_rewards(pair, ["I was off. It was late"], [True], fidelity=known, guard=allowed, embedder=embedder)
        )  # fmt: skip
        assert found[0].leak == pytest.approx(worth, abs=1e-6)


def test_of_words_and_meaning_the_one_that_tells_more_counts() -> None:
    pair = replace(PAIR, action="kind grey tall wise young brave loud quick calm warm")
    near = FixedSimilarityEmbedder({pair.action: 1.0, "soft": 0.525, "kind grey": 0.525})
    known = Known(dict.fromkeys(["soft", "kind grey"], 0.0))
    told = asyncio.run(
        compute_rewards(pair, ["soft", "kind grey"], [True] * 2, fidelity=known, guard=allowed, embedder=near)
    )  # fmt: skip
    assert [one.leak for one in told] == pytest.approx([0.75, 1 / 3], abs=1e-6)


def test_a_trace_of_a_usual_length_is_worth_more_than_one_word_or_very_many() -> None:
    traces = [" ".join(["calm"] * words) for words in (0, 1, 5, 60, 90, MAX_TRACE_WORDS, MAX_TRACE_WORDS + 50)]
    assert [one.length for one in rewarded(dict.fromkeys(traces, 0.0), traces)] == [0.0, 0.2, 1.0, 1.0, 0.5, 0.0, 0.0]


# Weights -------------------------------------------------------------------------------------------------------------

NUMBER = st.floats(0, 1e6)


@given(st.floats(0.001, 1e6), NUMBER, NUMBER, NUMBER, st.sampled_from(SHAPES))
def test_weights_are_read_as_they_are_written(fidelity: float, leak: float, length: float, form: float, shape: Shape) -> None:
    told = f"{fidelity}/{leak}/{length}/{form}"
    assert parse_weights(told, shape) == RewardWeights(fidelity, leak, length, form, shape)


@pytest.mark.parametrize("told", ["", "1", "1/2/3", "1/2/3/4/5", "1/a/3/4", "1//3/4"])
def test_what_are_no_four_numbers_are_no_weights(told: str) -> None:
    with pytest.raises(UsageError, match="are no weights of a reward; write those of fidelity, leak, length and format"):
        parse_weights(told)


@pytest.mark.parametrize("told", ["0/1/1/1", "1/-1/0/0", "-1/0/0/0", "nan/0/0/0", "1/nan/0/0", "1/0/inf/0", "inf/0/0/0"])
def test_weights_that_make_no_sense_are_refused(told: str) -> None:
    with pytest.raises(UsageError, match="numbers that are not negative, and that of fidelity is not 0"):
        parse_weights(told)


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(UsageError, match='"round" is no shape of a reward; there are clipped, rank'):
        parse_weights("1/0/0/0", "round")  # pyright: ignore[reportArgumentType]


def test_the_terms_of_a_reward_are_those_that_are_weighed() -> None:
    assert set(TERMS) <= set(asdict(Reward())) & set(asdict(RewardWeights()))


# Downstream ----------------------------------------------------------------------------------------------------------

LATER = replace(PAIR, conversation_id="another", action="a quiet seat by the window")


def downstream(
    weights: Mapping[str, float], traces: Sequence[str], later: Pair | None = LATER
) -> tuple[list[float], WordWeightScorer]:
    scorer = WordWeightScorer(weights)
    found = DownstreamReward(scorer, {} if later is None else {PAIR: later})
    return [one.value for one in asyncio.run(found.score(PAIR, traces))], scorer


def test_a_trace_that_makes_the_other_moment_likelier_gains_by_as_much_a_token_and_one_that_misleads_loses() -> None:
    gained, _ = downstream({"helpful": 0.25, "misleading": -0.5}, ["one helpful word", "nothing", "misleading"])
    assert gained == pytest.approx([0.25, 0.0, -0.5])


def test_what_is_scored_is_the_action_of_the_other_moment_after_this_one_as_its_example() -> None:
    _, scorer = downstream({}, ["a thought"])
    [[(plain, action), (told, same)]] = scorer.calls
    assert action == same == f" {LATER.action}\n"
    assert f"Me: {ACTION}" in plain
    assert LATER.action not in plain
    assert told.replace("(Me thinking: a thought)\n", "") == plain


def test_without_another_moment_every_trace_is_worth_the_same_and_nothing_is_scored() -> None:
    assert downstream({"good": 1.0}, ["good", "bad"], None)[0] == [0.0, 0.0]


@pytest.mark.parametrize(
    "change", [{"speaker": "Eve"}, {"conversation_id": "b"}, {"position": 9}, {"action": "said in another log"}]
)
def test_pairs_are_told_apart_by_who_where_when_and_what(change: dict[str, Any]) -> None:
    found = DownstreamReward(WordWeightScorer({"good": 1.0}), {PAIR: LATER})
    [other] = asyncio.run(found.score(replace(PAIR, **change), ["good"]))
    assert other.value == 0.0
