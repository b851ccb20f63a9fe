"""chrF and embedding similarity: known values and properties."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.evals import chrf, embedding_similarities
from usertwin.evals.metrics import reply_similarity as metrics
from usertwin.memory.models.embedding import FakeEmbedder

texts = st.text(max_size=40)


def test_the_same_text_scores_one() -> None:
    assert chrf("see you there", "see you there") == 1.0


def test_texts_without_a_common_character_score_zero() -> None:
    assert chrf("aaa", "zzz") == 0.0


def test_an_empty_reply_scores_zero() -> None:
    assert chrf("", "hello") == 0.0


def test_chrf_is_the_mean_over_orders_that_both_texts_have() -> None:
    """Of "ab" and "ac" half the single characters agree and no pair does: precision and recall are both (1/2 + 0) / 2."""
    assert chrf("ab", "ac") == pytest.approx(0.25)


def test_chrf_weighs_recall_over_precision() -> None:
    """With beta 2 it is worse to leave out half of the real turn than to say twice as much."""
    assert chrf("abc", "abcdef") < chrf("abcdef", "abc")


def test_docstring_examples_pass() -> None:
    result = doctest.testmod(metrics)
    assert result.attempted
    assert not result.failed


@given(texts, texts)
def test_chrf_lies_between_zero_and_one(reply: str, real: str) -> None:
    assert 0.0 <= chrf(reply, real) <= 1.0


@given(texts.filter(lambda text: text.strip()))
def test_the_real_turn_scores_one(text: str) -> None:
    assert chrf(text, text) == pytest.approx(1.0)


def test_similarities_are_pairwise_and_in_order() -> None:
    result = embedding_similarities(["see you", "a b", "red"], ["see you", "a c", "blue"], FakeEmbedder(4096))
    assert result == pytest.approx([1.0, 0.5, 0.0], abs=1e-6)


def test_no_replies_have_no_similarities() -> None:
    assert embedding_similarities([], [], FakeEmbedder()) == []


@given(st.lists(st.tuples(texts, texts), max_size=5))
def test_similarities_are_cosines(pairs: list[tuple[str, str]]) -> None:
    result = embedding_similarities([said for said, _ in pairs], [real for _, real in pairs], FakeEmbedder(64))
    assert len(result) == len(pairs)
    assert all(-1.00001 <= value <= 1.00001 for value in result)
