"""Tests of memory/own_words: n-gram models, the weights of a mixture, and what follows the memory."""

from __future__ import annotations

import random
from math import fsum, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.memory import Triple
from usertwin.memory.models.scoring import FakeScorer, Likelihood
from usertwin.memory.models.token_writer import sample_token
from usertwin.memory.own_words.ngram_model import NgramModel
from usertwin.memory.own_words.own_words import DEFAULT_WEIGHTS, OwnWords, WordMixture
from usertwin.memory.own_words.word_weights import TokenEvidence, WordWeights, fit_weights
from usertwin.personas import Pair

VOCABULARY = 12
SEQUENCES = st.lists(st.lists(st.integers(0, VOCABULARY - 1), max_size=6), max_size=6)
HISTORIES = st.lists(st.integers(0, VOCABULARY - 1), max_size=6)


def triple(action: str, when: float) -> Triple:
    return Triple(Pair(speaker="Ann", context=(), action=action, goal="", conversation_id=f"c{when}", position=0, when=when))


def own_words(*actions: str) -> OwnWords:
    scorer = FakeScorer()
    triples = [triple(action, float(place)) for place, action in enumerate(actions)]
    return OwnWords(scorer.tokenize, scorer.vocabulary_size, triples)


# n-gram models --------------------------------------------------------------------------------------------------------


@given(SEQUENCES, HISTORIES, st.integers(1, 5))
def test_the_probabilities_of_all_tokens_sum_to_one(sequences: list[list[int]], history: list[int], order: int) -> None:
    model = NgramModel(sequences, VOCABULARY, order)
    assert fsum(model.probability(history, token) for token in range(VOCABULARY)) == pytest.approx(1)
    assert 0 <= model.match_length(history) < order
    assert all(model.probability(history, token) > 0 for token in range(VOCABULARY))


@given(SEQUENCES.filter(any), st.data())
def test_what_was_said_matches_itself_and_is_continued_as_it_was(sequences: list[list[int]], data: st.DataObject) -> None:
    sequence = data.draw(st.sampled_from([own for own in sequences if own]))
    place = data.draw(st.integers(0, len(sequence) - 1))
    model = NgramModel(sequences, VOCABULARY, 4)
    assert model.match_length(sequence[:place]) == min(3, place + 1)
    assert sequence[place] in model.continuations(sequence[:place])


def test_witten_bell_by_hand() -> None:
    model = NgramModel([[1, 2], [1, 3]], 10, 2)
    # unigrams: 1 twice, 2 and 3 once: P(2) = (1 + 3 / 10) / (4 + 3); after 1: two tokens, two kinds
    unigram = (1 + 3 * 0.1) / 7
    assert model.probability([1], 2) == pytest.approx((1 + 2 * unigram) / 4)
    assert model.probability([], 1) == pytest.approx((2 + 1 * (2 + 3 * 0.1) / 7) / 3)  # at the beginning of a turn
    assert model.probability([9], 5) == pytest.approx(3 * 0.1 / 7)  # nothing was seen after 9


def test_an_empty_model_is_uniform() -> None:
    model = NgramModel([], 8, 5)
    assert model.probability([1, 2], 3) == 1 / 8
    assert (model.match_length([1]), model.continuations([1])) == (0, set())


# Weights --------------------------------------------------------------------------------------------------------------


def evidence(rng: random.Random, share: float, count: int) -> list[TokenEvidence]:
    """Tokens of which a share comes from the person's words, where the model gives little."""
    return [TokenEvidence(0.01, 0.9, 2) if rng.random() < share else TokenEvidence(0.9, 0.01, 2) for _ in range(count)]


def test_fitting_finds_the_share_of_own_words() -> None:
    prior = WordWeights(own=(0.1, 0.1, 0.1))
    fitted = fit_weights(evidence(random.Random(1), 0.4, 4000), prior)
    assert fitted.own[2] == pytest.approx(0.4, abs=0.05)
    assert fitted.own[:2] == pytest.approx((0.1, 0.1))  # no evidence


def test_fitting_never_makes_the_tokens_less_likely_than_the_prior_does() -> None:
    rng = random.Random(5)
    for _ in range(20):
        tokens = [TokenEvidence(rng.random(), rng.random(), rng.randrange(5)) for _ in range(50)]
        prior = WordWeights(own=(0.1,) * 5)
        fitted = fit_weights(tokens, prior, prior_tokens=1e-9)
        assert fsum(fitted.nats(tokens)) >= fsum(prior.nats(tokens)) - 1e-9


@pytest.mark.parametrize("weight", [-0.1, 1.0, float("nan")])
def test_a_weight_is_a_share_below_one(weight: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        WordWeights(own=(0.1, weight))


def test_the_mixture_of_two_distributions_is_one() -> None:
    words = own_words("yes sure thing", "yes please")
    weights, model = WordWeights(own=(0.2, 0.3)), words.own(float("inf"))
    history = FakeScorer().tokenize(["yes"])[0]
    total = fsum(
        weights.mixed(TokenEvidence(1 / 2000, model.probability(history, token), model.match_length(history)))
        for token in range(2000)
    )
    assert total == pytest.approx(1)


# The memory -----------------------------------------------------------------------------------------------------------


def likelihood(action: str, probability: float) -> Likelihood:
    words = len(action.split())
    return Likelihood(words * log(probability), words, (log(probability),) * words)


def test_a_turn_like_earlier_ones_becomes_more_likely_and_another_one_hardly_less() -> None:
    mixture = WordMixture(own_words("see you later alligator", "see you later mate"), DEFAULT_WEIGHTS)
    for action, sign in (("see you later alligator", 1), ("quite another thing altogether", -1)):
        alone = likelihood(action, 0.01)
        mixed = mixture.likelihood(alone, action, float("inf"))
        assert sign * (mixed.nats - alone.nats) > 0
        assert mixed.tokens == 4
    assert mixed.nats > alone.nats - 1


def test_words_said_later_than_a_turn_do_not_count_for_it() -> None:
    mixture = WordMixture(own_words("first words", "later words here", "latest"), DEFAULT_WEIGHTS)
    action = "later words here"
    before = mixture.likelihood(likelihood(action, 0.01), action, 1.0)
    after = mixture.likelihood(likelihood(action, 0.01), action, 2.0)
    assert after.nats > before.nats
    alone = WordMixture(own_words("first words"), DEFAULT_WEIGHTS)
    assert before == alone.likelihood(likelihood(action, 0.01), action, 9.0)


def test_writing_uses_the_same_probabilities_as_scoring() -> None:
    words = own_words("see you later alligator", "see you soon")
    mixture = WordMixture(words, DEFAULT_WEIGHTS)
    [tokens] = FakeScorer().tokenize(["see you later alligator"])
    next_token = mixture.next_token()
    model = dict.fromkeys(tokens, 0.01)
    written = fsum(log(next_token(tokens[:place], model)[token]) for place, token in enumerate(tokens))
    assert written == pytest.approx(
        mixture.likelihood(likelihood("see you later alligator", 0.01), "see you later alligator", 9).nats
    )
    assert set(next_token(tokens[:2], {})) == {tokens[2], FakeScorer().tokenize(["soon"])[0][0]}


def test_a_long_turn_that_was_scored_in_part_counts_in_part() -> None:
    mixture = WordMixture(own_words("a b c d"), DEFAULT_WEIGHTS)
    assert mixture.likelihood(likelihood("a b", 0.01), "a b c d", 9.0).tokens == 2


# Sampling -------------------------------------------------------------------------------------------------------------


def test_tokens_are_drawn_in_proportion_and_do_not_depend_on_the_order_of_the_mapping() -> None:
    probabilities = {7: 0.2, 3: 0.6, 5: 0.2}
    rng = random.Random(0)
    drawn = [sample_token(probabilities, 1.0, rng) for _ in range(3000)]
    assert drawn.count(3) / 3000 == pytest.approx(0.6, abs=0.04)
    reverse = dict(reversed(probabilities.items()))
    assert [sample_token(reverse, 1.0, random.Random(s)) for s in range(50)] == [
        sample_token(probabilities, 1.0, random.Random(s)) for s in range(50)
    ]
    assert sample_token(probabilities, 0.0, rng) == 3


def test_a_lower_temperature_sharpens() -> None:
    rng = random.Random(0)
    drawn = [sample_token({1: 0.5, 2: 0.25}, 0.5, rng) for _ in range(3000)]
    assert drawn.count(1) / 3000 == pytest.approx(0.8, abs=0.03)  # 0.5² to 0.25²
