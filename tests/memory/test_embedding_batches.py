"""Embedding in batches: the vectors of a call alone, one call for all that wait, errors for their own caller."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from usertwin.memory.models.embedding import FakeEmbedder, SentenceTransformerEmbedder
from usertwin.memory.models.embedding_batches import BatchedEmbedder

TEXTS = ["hi", "the weather in Oslo", "which day do you mean?", "refund my order, please", "", "  two\nlines ", "hi"]


class Gate(FakeEmbedder):
    """An embedder whose calls wait until the gate is open, and that cannot embed the text "bad"."""

    def __init__(self) -> None:
        super().__init__(32)
        self.calls: list[list[str]] = []
        self.open, self.entered = threading.Event(), threading.Event()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.calls.append(list(texts))
        self.entered.set()
        assert self.open.wait(30)
        if "bad" in texts:
            raise ValueError(f"cannot embed {len(texts)} texts")
        return super().embed(texts)


def waiting(embedder: BatchedEmbedder, number: int) -> None:
    """Wait until this many callers wait."""
    while len(embedder._waiting) < number:  # pyright: ignore[reportPrivateUsage]
        threading.Event().wait(0.005)


def embed_together(embedder: BatchedEmbedder, gate: Gate, *texts: Sequence[str]) -> list[object]:
    """Embed the texts of one caller while the model is busy, then those of the others; return vectors or exceptions."""
    with ThreadPoolExecutor(len(texts)) as pool:
        futures = [pool.submit(embedder.embed, texts[0])]
        assert gate.entered.wait(30)
        for number, own in enumerate(texts[1:], 1):
            futures.append(pool.submit(embedder.embed, own))
            waiting(embedder, number)
        gate.open.set()
        return [future.exception(30) or future.result() for future in futures]


def test_what_waits_while_the_model_computes_is_embedded_in_one_call_and_each_caller_gets_its_own() -> None:
    gate = Gate()
    results = embed_together(BatchedEmbedder(gate), gate, ["first"], ["hi", "there"], ["the weather"], ["hi"])
    assert gate.calls == [["first"], ["hi", "there", "the weather", "hi"]]
    for texts, vectors in zip((["first"], ["hi", "there"], ["the weather"], ["hi"]), results, strict=True):
        np.testing.assert_array_equal(vectors, FakeEmbedder(32).embed(texts))  # pyright: ignore[reportArgumentType]


def test_a_text_that_cannot_be_embedded_is_an_error_for_its_own_caller_only() -> None:
    gate = Gate()
    results = embed_together(BatchedEmbedder(gate), gate, ["first"], ["hi"], ["bad"], ["there"])
    assert [type(result) for result in results] == [np.ndarray, np.ndarray, ValueError, np.ndarray]
    assert str(results[2]) == "cannot embed 1 texts"


def test_a_batch_has_a_limit_and_a_call_beyond_it_is_made_as_it_is() -> None:
    gate = Gate()
    embedder = BatchedEmbedder(gate, max_texts=2)
    embed_together(embedder, gate, ["first"], ["a", "b"], ["c"], ["d"])
    assert gate.calls == [["first"], ["a", "b"], ["c", "d"]]
    assert embedder.embed(["a", "b", "c"]).shape == (3, 32)
    assert gate.calls[-1] == ["a", "b", "c"]
    assert embedder.embed([]).shape == (0, 32)


def test_an_interrupted_call_leaves_the_others_to_the_next_caller() -> None:
    class Interrupted(Gate):
        def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
            vectors = super().embed(texts)
            if "first" not in texts and len(self.calls) == 2:
                raise KeyboardInterrupt
            return vectors

    gate = Interrupted()
    results = embed_together(BatchedEmbedder(gate), gate, ["first"], ["a"], ["b"], ["c"])
    interrupted = [result for result in results if isinstance(result, BaseException)]
    assert [type(error) for error in interrupted] == [KeyboardInterrupt]
    assert sum(isinstance(result, np.ndarray) for result in results) == 3


@pytest.mark.parametrize("callers", [1, 7])
def test_vectors_of_concurrent_callers_are_those_of_one_call_each(callers: int) -> None:
    embedder = FakeEmbedder(64)
    with ThreadPoolExecutor(callers) as pool:
        results = list(pool.map(BatchedEmbedder(embedder).embed, [[text] for text in TEXTS * 20]))
    np.testing.assert_array_equal(np.concatenate(results), embedder.embed(TEXTS * 20))


def test_real_embeddings_do_not_depend_on_what_is_embedded_with_them() -> None:
    embedder = SentenceTransformerEmbedder()
    alone = np.concatenate([embedder.embed([text]) for text in TEXTS])
    with ThreadPoolExecutor(len(TEXTS)) as pool:
        together = np.concatenate(list(pool.map(BatchedEmbedder(embedder).embed, [[text] for text in TEXTS])))
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(embedder.embed(TEXTS), alone, atol=1e-6)
