"""Query embeddings of concurrent conversations, embedded together, beside one call for each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

from usertwin.memory import Embedder
from usertwin.memory.models.embedding import SentenceTransformerEmbedder, query_text
from usertwin.memory.models.embedding_batches import BatchedEmbedder
from usertwin.personas import ChatLog
from usertwin.personas.pairs import extract_pairs

from ..figures import Figure, figure, ratios, run_alternately
from .twins import SPEAKER, one_sided_log

#: Concurrent conversations.
CALLERS = 64


def embedding_part(
    rounds: int = 9, callers: int = CALLERS, embedder: Embedder | None = None, log: ChatLog | None = None
) -> Iterator[tuple[str, Figure]]:
    """Yield the time of queries that concurrent callers ask for at once, beside the same queries one by one."""
    embedder = embedder or SentenceTransformerEmbedder()
    queries = _queries(callers * (rounds + 1), log)
    batched = BatchedEmbedder(embedder)
    with ThreadPoolExecutor(callers) as pool:

        def together(number: int) -> float:
            texts, barrier = queries[number * callers : (number + 1) * callers], Barrier(callers + 1)
            futures = [pool.submit(partial(_embed_at_once, batched, barrier, text)) for text in texts]
            barrier.wait()
            start = time.perf_counter()
            for future in futures:
                future.result()
            return time.perf_counter() - start

        def one_by_one(number: int) -> float:
            start = time.perf_counter()
            for text in queries[number * callers : (number + 1) * callers]:
                embedder.embed([text])
            return time.perf_counter() - start

        ours, single = run_alternately(rounds + 1, together, one_by_one)
    against = f"one call for each of {callers} queries, the same queries (bar: 0.33)"
    yield "simulate.batched_embedding_vs_single", figure(ratios(ours[1:], single[1:]), "ratio", against)  # after warm-up
    yield "simulate.batched_embedding_ms", figure([1000 * s / callers for s in ours[1:]], "ms", "for each query")


def _embed_at_once(embedder: Embedder, barrier: Barrier, text: str) -> None:
    barrier.wait()
    embedder.embed([text])


def _queries(count: int, log: ChatLog | None) -> list[str]:
    """Return this many query texts of real conversations; they begin again if there are fewer."""
    conversations = one_sided_log(2 * count, log).conversations
    texts = [query_text(pair) for conversation in conversations for pair in extract_pairs(conversation, SPEAKER)]
    return [texts[number % len(texts)] for number in range(count)]
