"""memory/store/ranking.py: age, diversity, words, the token budget, and the order of ties."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from usertwin.memory import Ranking, Triple, TripleStore
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.store.ranking import SIMILARITY, WordIndex, estimate_tokens, fit_token_budget, rank
from usertwin.personas import Pair, Turn, UsageError

DIMENSION = 8


class Directions:
    """Embeds a text as the vector that was given for it."""

    name, dimension = "directions", DIMENSION

    def __init__(self, **vectors: Sequence[float]) -> None:
        self.vectors = vectors

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        matrix = np.zeros((len(texts), DIMENSION), np.float32)
        for row, text in enumerate(texts):
            given_vector = self.vectors[text]
            matrix[row, : len(given_vector)] = given_vector
        return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def pair(text: str, when: float = 0.0, conversation: str = "", action: str = "") -> Pair:
    """Return a pair with this context; its action names it."""
    return Pair(
        speaker="Ann",
        context=(Turn("Bob", "agent", text),),
        action=action or text,
        goal="",
        conversation_id=conversation or f"c {action or text}",
        position=1,
        when=when,
    )


NOW = replace(pair("now"), conversation_id="now", when=100.0)


def recalled(store: TripleStore, k: int, ranking: Ranking = SIMILARITY, before: float | None = None) -> list[str]:
    """Return the actions of a recall."""
    return [result.triple.pair.action for result in store.recall(NOW, k, before=before, ranking=ranking)]


# Settings ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half_life", [0, -1, math.nan, -math.inf])
def test_a_half_life_is_greater_than_zero(half_life: float) -> None:
    with pytest.raises(UsageError, match=r"half_life is .*; it must be greater than 0"):
        Ranking(half_life=half_life)


@pytest.mark.parametrize("name", ["diversity", "words"])
@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf])
def test_diversity_and_words_are_shares(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{name} is {value}; it must be between 0 and 1"):
        Ranking(**{name: value})


@pytest.mark.parametrize("tokens", [0, -5])
def test_a_recall_needs_at_least_a_token(tokens: int) -> None:
    with pytest.raises(UsageError, match=f"tokens is {tokens}; it must be at least 1"):
        Ranking(tokens=tokens)


def test_the_bounds_themselves_are_allowed() -> None:
    assert Ranking(half_life=math.inf, diversity=1, words=1, tokens=1) == Ranking(math.inf, 1, 1, 1)
    assert Ranking(diversity=0, words=0) == SIMILARITY


def test_pool_exceeds_k_only_if_the_ranking_reorders() -> None:
    assert [ranking.pool(4) for ranking in (SIMILARITY, Ranking(tokens=9))] == [4, 4]
    for ranking in (Ranking(half_life=1), Ranking(diversity=0.1), Ranking(words=0.1)):
        assert (ranking.pool(0), ranking.pool(1), ranking.pool(8), ranking.pool(9)) == (0, 64, 64, 72)


# Selection ---------------------------------------------------------------------------------------------------------------

cosines = st.floats(-1, 1, width=16)
pools = st.lists(st.tuples(cosines, st.integers(-5, 50), st.floats(0, 1, width=16), st.integers(0, 2**32 - 1)), max_size=12)


def chosen(
    ranking: Ranking, k: int, pool: Sequence[tuple[float, int, float, int]]
) -> tuple[list[int], NDArray[np.float64], NDArray[np.float64]]:
    """Return the ranked positions of a pool, the relevance of each by an independent formula, and the cosines between them."""
    vectors = np.array([np.random.default_rng(seed).normal(size=DIMENSION) for *_, seed in pool]).reshape(-1, DIMENSION)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    similarity, age, words = (np.array([row[column] for row in pool], kind) for column, kind in enumerate("fdf"))
    relevance = np.array([
        ((1 - ranking.words) * (1 + s) / 2 + ranking.words * w) * 0.5 ** (max(a, 0) / (ranking.half_life or math.inf))
        for s, a, w, _ in pool
    ])  # fmt: skip
    positions = rank(ranking, k, similarity, age=age, words=words if ranking.words else None, vectors=vectors)
    return positions, relevance, (vectors @ vectors.T).astype(float)


@given(pools, st.integers(0, 15), st.none() | st.floats(0.5, 100), st.sampled_from([0, 0.3, 1]))
def test_without_diversity_the_most_relevant_are_chosen_and_of_ties_the_first(
    pool: list[tuple[float, int, float, int]], k: int, half_life: float | None, words: float
) -> None:
    positions, relevance, _ = chosen(Ranking(half_life=half_life, words=words), k, pool)
    assert len(positions) == len(set(positions)) == min(k, len(pool))
    np.testing.assert_allclose(relevance[positions], np.sort(relevance)[::-1][:k], atol=1e-6)
    for item, second in pairwise(positions):
        if pool[item][:3] == pool[second][:3]:
            assert item < second


@given(
    pools,
    st.integers(0, 15),
    st.none() | st.floats(0.5, 100),
    st.sampled_from([0, 0.4]),
    st.floats(0.01, 1),
)
def test_diversity_is_maximal_marginal_relevance(
    pool: list[tuple[float, int, float, int]], k: int, half_life: float | None, words: float, diversity: float
) -> None:
    positions, relevance, between = chosen(Ranking(half_life=half_life, diversity=diversity, words=words), k, pool)
    assert len(positions) == len(set(positions)) == min(k, len(pool))
    for count, place in enumerate(positions):
        before = positions[:count]
        value = {
            left: (1 - diversity) * relevance[left]
            - diversity * max(((1 + between[left, item]) / 2 for item in before), default=0)
            for left in range(len(pool))
            if left not in before
        }
        assert value[place] >= max(value.values()) - 1e-5  # of those left, none is better


def test_diversity_skips_a_near_duplicate() -> None:
    vectors = np.eye(3, dtype=np.float32)[[0, 0, 1]]
    similarity, age = np.array([0.9, 0.89, 0.5], np.float32), np.zeros(3)
    for diversity, expected in ((0.0, [0, 1]), (0.5, [0, 2])):
        assert rank(Ranking(diversity=diversity), 2, similarity, age=age, words=None, vectors=vectors) == expected


@given(cosines, st.floats(0, 100), st.floats(0, 100), st.floats(0.5, 50))
def test_age_never_improves_the_rank(item: float, age: float, more: float, half_life: float) -> None:
    ages, similarity = np.array([age, age + more]), np.array([item, item], np.float32)
    positions = rank(Ranking(half_life=half_life), 2, similarity, age=ages, words=None, vectors=np.eye(2, dtype=np.float32))
    assert positions == [0, 1]


# Through the store -------------------------------------------------------------------------------------------------------


def test_of_equally_similar_triples_the_latest_comes_first(tmp_path: Path) -> None:
    with TripleStore(tmp_path, Directions(now=[1], same=[1, 1], near=[1, 0.5])) as store:
        store.add([Triple(pair("same", when, action=f"{when:.0f}")) for when in (3.0, 1.0, 5.0)])
        store.save()
        store.add([Triple(pair("same", when, action=f"{when:.0f}")) for when in (4.0, 2.0)])
        store.add([Triple(pair("near", 0.0))])
        expected = ["near", "5", "4", "3", "2", "1"]
        assert recalled(store, 6) == expected
        for ranking in (Ranking(half_life=math.inf), Ranking(diversity=1e-9), Ranking(tokens=10_000)):
            assert recalled(store, 6, ranking) == expected


def test_latest_of_many_equally_similar_triples_are_recalled(tmp_path: Path) -> None:
    with TripleStore(tmp_path, Directions(now=[1], same=[1, 1])) as store:
        store.add([Triple(pair("same", float(when), action=str(when))) for when in range(60)])
        assert recalled(store, 3) == ["59", "58", "57"]  # from the tail
        store.save()
        assert recalled(store, 3) == ["59", "58", "57"]  # from the file


def test_age_counts_from_the_query_time_or_the_latest_triple(tmp_path: Path) -> None:
    with TripleStore(tmp_path, Directions(now=[1], like=[1, 0.2], unlike=[0.2, 1])) as store:
        store.add([Triple(pair("like", 0.0)), Triple(pair("unlike", 100.0))])
        assert recalled(store, 2) == recalled(store, 2, Ranking(half_life=10_000)) == ["like", "unlike"]
        assert (
            recalled(store, 2, Ranking(half_life=20)) == recalled(store, 2, Ranking(half_life=20), 101.0) == ["unlike", "like"]
        )
        assert recalled(store, 2, Ranking(half_life=20), 100.0) == ["like"]  # what is to come is not recalled, however near


def test_reported_similarity_is_the_plain_cosine(tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    with TripleStore(tmp_path, FakeEmbedder()) as store:
        store.add([Triple(pair(text, float(n))) for n, text in enumerate(("now and then", "then", "now", "never", "now not"))])
        plain = {result.triple.id: result.similarity for result in store.recall(NOW, 5)}
        for ranking in (Ranking(half_life=1), Ranking(diversity=0.9), Ranking(words=0.9), Ranking(1, 0.5, 0.5)):
            result = store.recall(NOW, 5, ranking=ranking)
            assert {item.triple.id for item in result} == set(plain)
            np.testing.assert_allclose(
                [item.similarity for item in result], [plain[item.triple.id] for item in result], atol=1e-6
            )


def test_diversity_recalls_different_triples(tmp_path: Path) -> None:
    directions = Directions(now=[1], one=[1, 0.1], twin=[1, 0.11], second=[1, 0, 0.9])
    with TripleStore(tmp_path, directions) as store:
        store.add([Triple(pair(text)) for text in ("second", "twin", "one")])
        assert recalled(store, 2) == ["one", "twin"]
        assert recalled(store, 2, Ranking(diversity=0.6)) == ["one", "second"]
        assert recalled(store, 3, Ranking(diversity=0.6)) == ["one", "second", "twin"]


def test_diversity_selects_from_a_pool_larger_than_k(tmp_path: Path) -> None:
    same = {f"same{n}": [1, n / 1000] for n in range(40)}
    with TripleStore(tmp_path, Directions(now=[1], second=[1, 0, 1], **same)) as store:
        store.add([Triple(pair(text)) for text in [*same, "second"]])
        assert recalled(store, 2, Ranking(diversity=0.6)) == ["same0", "second"]


# Words -------------------------------------------------------------------------------------------------------------------


def test_words_recall_a_triple_with_shared_rare_words_and_a_distant_embedding(tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    texts = {f"common thing {n}": [1, (n + 1) / 100] for n in range(100)}
    texts |= {"zanzibar": [-1.0], "now": [1.0]}
    query = replace(pair("zanzibar", conversation="q"), conversation_id="q")
    directions = Directions(**texts)
    with TripleStore(tmp_path, directions) as store:
        store.add([Triple(pair(text)) for text in texts])
        directions.vectors["zanzibar"] = [1.0]  # as the query: near to all the others
        first = [store.recall(query, 1, ranking=Ranking(words=words))[0].triple.pair.action for words in (0.0, 0.4, 0.9)]
        assert first == ["now", "now", "zanzibar"]  # though it is not among the sixty-four nearest
        assert store.recall(query, 1, ranking=Ranking(words=0.9))[0].similarity == pytest.approx(-1)


def test_words_respect_filters_and_deletions(tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    with TripleStore(tmp_path, FakeEmbedder()) as store:
        texts = ("rare bird", "rare fish", "plain thing", "another thing")
        store.add([Triple(pair(text, float(when))) for when, text in enumerate(texts)])
        query = replace(pair("rare"), conversation_id="q")
        by_words = Ranking(words=1)
        assert {r.triple.pair.action for r in store.recall(query, 2, ranking=by_words)} == {"rare bird", "rare fish"}
        assert store.recall(query, 1, before=1.0, ranking=by_words)[0].triple.pair.action == "rare bird"
        own = replace(query, conversation_id="c rare bird")
        assert store.recall(own, 1, ranking=by_words)[0].triple.pair.action == "rare fish"
        store.delete([Triple(pair("rare bird")).id])
        assert store.recall(query, 4, ranking=by_words)[0].triple.pair.action == "rare fish"
        assert len(store.recall(query, 9, ranking=by_words)) == 3
        store.add([Triple(pair("a rare rare stone", 9.0))])
        assert store.recall(query, 1, ranking=by_words)[0].triple.pair.action == "a rare rare stone"


def test_bm25_prefers_rare_words_and_ignores_unknown_words() -> None:
    pytest.importorskip("bm25s")
    index = WordIndex(["the cat sat", "the dog sat", "the dog ran and ran", ""])
    scores = index.scores("the cat")
    assert scores.argmax() == 0
    assert scores[3] == 0
    assert (scores >= 0).all()
    assert index.scores("CAT").tolist() == index.scores("cat").tolist()
    assert index.scores("zebra").tolist() == index.scores("").tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("texts", [[], [""], ["", "?!"]])
def test_word_index_of_texts_without_words_is_no_error(texts: list[str]) -> None:
    pytest.importorskip("bm25s")
    assert WordIndex(texts).scores("anything at all").tolist() == [0] * len(texts)


def test_words_without_the_extra_name_the_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with TripleStore(tmp_path, FakeEmbedder()) as store:
        store.add([Triple(pair("one"))])
        with pytest.raises(UsageError, match=r"pip install 'usertwin\[hybrid\]'"):
            store.recall(NOW, 1, ranking=Ranking(words=0.5))
        assert recalled(store, 1, Ranking(half_life=5)) == ["one"]


@pytest.mark.parametrize("ranking", [Ranking(half_life=5), Ranking(diversity=0.5), Ranking(words=0.5), Ranking(tokens=5)])
def test_every_ranking_of_an_empty_memory_or_of_no_triples_is_empty(tmp_path: Path, ranking: Ranking) -> None:
    if ranking.words:
        pytest.importorskip("bm25s")
    with TripleStore(tmp_path, FakeEmbedder()) as store:
        assert recalled(store, 3, ranking) == []
        store.add([Triple(pair("one", 5.0))])
        assert recalled(store, 0, ranking) == recalled(store, 3, ranking, before=5.0) == []
        assert recalled(store, 3, ranking) == ["one"]


# Tokens ------------------------------------------------------------------------------------------------------------------


def test_a_token_is_four_characters_of_context_trace_and_action_rounded_up() -> None:
    triple = Triple(
        Pair(
            speaker="Ann",
            context=(Turn("a", "b", "12345"), Turn("a", "b", "678")),
            action="90",
            goal="the goal",
            conversation_id="c",
            position=0,
            when=0.0,
        )
    )
    assert estimate_tokens(triple) == 3
    assert estimate_tokens(replace(triple, reasoning="abc")) == 4
    assert (
        estimate_tokens(Triple(Pair(speaker="Ann", context=(), action="", goal="", conversation_id="c", position=0, when=0.0)))
        == 0
    )


@given(st.lists(st.integers(0, 40), max_size=8), st.none() | st.integers(1, 40))
def test_token_budget_keeps_whole_triples_from_the_first(lengths: list[int], tokens: int | None) -> None:
    triples = [
        Triple(Pair(speaker="Ann", context=(), action="x" * length, goal="", conversation_id="c", position=n, when=0.0))
        for n, length in enumerate(lengths)
    ]
    count = fit_token_budget(Ranking(tokens=tokens), triples)
    sums = np.cumsum([0, *map(estimate_tokens, triples)]).tolist()
    assert count == len(triples) if tokens is None else count >= min(1, len(triples))
    if tokens is not None:
        assert count <= 1 or sums[count] <= tokens
        assert count == len(triples) or sums[count + 1] > tokens


def test_recall_respects_the_token_budget_except_for_the_first_triple(tmp_path: Path) -> None:
    with TripleStore(tmp_path, Directions(now=[1], first=[1, 0.1], second=[1, 0.2], third=[1, 0.3])) as store:
        actions = {"first": "x" * 35, "second": "y" * 94, "third": "z" * 3}  # 10, 25 and 2 tokens
        store.add([Triple(pair(text, action=action)) for text, action in actions.items()])
        for tokens, expected in ((1, 1), (10, 1), (34, 1), (35, 2), (36, 2), (37, 3)):
            assert recalled(store, 3, Ranking(tokens=tokens)) == list(actions.values())[:expected]
        assert recalled(store, 2, Ranking(tokens=1000)) == list(actions.values())[:2]
        assert recalled(store, 3, Ranking(half_life=9, diversity=0.01, tokens=35)) == list(actions.values())[:2]
