"""Benchmarks of large memories: a million triples, and every kind of index at 200,000.

Each measurement runs in a process of its own, so that its memory use is its own. "Exact" is a FAISS index of all embeddings in
memory; both sides get the same queries in turn, one at a time.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from usertwin.memory import Triple, TripleStore
from usertwin.memory.store.vector_index import INDEX_KINDS, VectorIndex, column_dtype
from usertwin.personas import Pair, Turn

from .figures import Figure, figure, ratios, run_alternately, run_in_subprocess, single_figure, timed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

_NEAREST, _K = 10, 8


class _Sizes(Protocol):
    """See `memory.Sizes`."""

    @property
    def dimension(self) -> int: ...
    @property
    def large(self) -> int: ...
    @property
    def kinds(self) -> int: ...
    @property
    def chunk(self) -> int: ...
    @property
    def queries(self) -> int: ...
    @property
    def timed_queries(self) -> int: ...
    @property
    def resident_recalls(self) -> int: ...


class Prepared:
    """An embedder that returns a prepared vector, so that embedding costs nothing."""

    name = "bench"

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.vector: Any = None

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return the prepared vector."""
        return self.vector[None]


def units(rng: np.random.Generator, count: int, dimension: int) -> Vectors:
    """Return random unit vectors, shape (count, dimension)."""
    import numpy as np

    return _scaled(rng.standard_normal((count, dimension), np.float32))


def _scaled(matrix: NDArray[np.floating[Any]]) -> Vectors:
    import numpy as np

    return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True), np.float32)


def variants(rng: np.random.Generator, known: Vectors, start: int, count: int) -> Vectors:
    """Return embeddings `start` to `start + count`: first the known ones, then noisy mixtures of two known ones each."""
    import numpy as np

    first, second = rng.integers(len(known), size=(2, count))
    share = rng.uniform(0.5, 1, (count, 1)).astype(np.float32)
    noise = rng.standard_normal((count, known.shape[1]), np.float32) * np.float32(0.2 / known.shape[1] ** 0.5)
    mixed = _scaled(share * known[first] + (1 - share) * known[second] + noise)
    mixed[: max(0, len(known) - start)] = known[start : start + count]
    return mixed


def large_part(folder: Path, embeddings: Vectors | None, sizes: _Sizes) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of a million triples, with real embeddings (the last ones are the queries) or with random ones."""
    import numpy as np

    (folder / "memory").mkdir(parents=True)
    kind = "" if embeddings is not None else "random_"
    rng = np.random.default_rng(2)
    queries = units(rng, sizes.queries, sizes.dimension) if embeddings is None else embeddings[-sizes.queries :]
    np.save(folder / "queries.npy", queries)
    if embeddings is not None:
        np.save(folder / "known.npy", embeddings[: -sizes.queries])
    add_s, build_s = run_in_subprocess(_fill, str(folder), sizes.large, sizes.chunk, sizes.dimension)
    compared = run_in_subprocess(_compare, str(folder), sizes.dimension, sizes.timed_queries)
    what = f"{sizes.large} {'random' if kind else 'real'} embeddings"
    yield (
        f"memory.ann_1m_{kind}recall_at_10",
        figure_of_mean(compared["recall"], "share", f"exact search of {what} (limit: 0.95)"),
    )
    against = f"exact search of {what}, one query at a time (limit: 0.1)"
    yield f"memory.ann_1m_{kind}time_vs_exact", figure(ratios(compared["ours"], compared["exact"]), "ratio", against)
    if not kind:
        yield "memory.ann_1m_search_ms", figure([1000 * s for s in compared["ours"]], "ms", what)
        yield "memory.recall_1m_ms", figure([1000 * s for s in compared["recall_s"]], "ms", f"search and {_K} triples, {what}")
        raw = sizes.large * sizes.dimension * 4
        used = run_in_subprocess(_resident, str(folder), sizes.dimension, sizes.resident_recalls)
        after = f"the raw vectors; a process that opened the memory and recalled {sizes.resident_recalls} times"
        yield "memory.rss_1m_vs_vectors", single_figure(used["VmRSS"] / raw, "ratio", f"{after} (limit: 1.6)")
        yield "memory.rss_peak_1m_vs_vectors", single_figure(used["VmHWM"] / raw, "ratio", f"{after}; peak")
        yield "memory.open_1m_s", single_figure(used["open_s"], "s", what)
        yield "memory.add_1m_s", single_figure(add_s, "s", f"{what}, in batches of {sizes.chunk}")
        yield "memory.build_1m_s", single_figure(build_s, "s", "the index built, tuned and written when the memory is closed")
    shutil.rmtree(folder)


def figure_of_mean(values: list[float], unit: str, against: str) -> Figure:
    """Return the mean of shares with its 95% interval; a median would be coarse, since they have few values."""
    import numpy as np

    mean, error = float(np.mean(values)), 1.96 * float(np.std(values)) / len(values) ** 0.5
    return Figure(value=mean, unit=unit, low=mean - error, high=min(1.0, mean + error), n=len(values), against=against)


def short_triples(start: int, count: int) -> list[Triple]:
    """Return triples of a few words, so that a million of them fit on a small disk."""

    def triple(number: int) -> Triple:
        turn = Turn("somebody", "user", f"what about {number}?")
        return Triple(
            Pair(
                speaker="me",
                context=(turn,),
                action=f"it is {number}",
                goal="",
                conversation_id=f"talk-{number // 10}",
                position=number % 10,
                when=float(number),
            )
        )

    return [triple(number) for number in range(start, start + count)]


def _fill(name: str, count: int, chunk: int, dimension: int) -> tuple[float, float]:
    """Make a memory and a plain file of its embeddings; return the seconds to add, and to close (builds the index)."""
    import numpy as np

    folder, rng, seconds = Path(name), np.random.default_rng(1), 0.0
    known = np.load(folder / "known.npy") if (folder / "known.npy").exists() else None
    store = TripleStore(folder / "memory", Prepared(dimension))
    with (folder / "vectors").open("wb") as file:
        for start in range(0, count, chunk):
            size = min(chunk, count - start)
            vectors = units(rng, size, dimension) if known is None else variants(rng, known, start, size)
            triples = short_triples(start, size)
            seconds += timed(lambda triples=triples, vectors=vectors: store.add(triples, vectors))
            vectors.tofile(file)
    return seconds, timed(store.close)


def _present_pair() -> Pair:
    return Pair(
        speaker="me",
        context=(Turn("somebody", "user", "and now?"),),
        action="",
        goal="",
        conversation_id="now",
        position=0,
        when=0.0,
    )


def _compare(name: str, dimension: int, timed_queries: int) -> dict[str, list[float]]:
    """Return the recall@10 of each query, and the seconds of our search, of exact search, and of a whole recall."""
    import faiss
    import numpy as np

    folder, embedder = Path(name), Prepared(dimension)
    queries: Vectors = np.load(folder / "queries.npy")
    exact: Any = faiss.IndexFlatIP(dimension)
    exact.add(np.fromfile(folder / "vectors", np.float32).reshape(-1, dimension))
    nearest = exact.search(queries, _NEAREST)[1]
    with TripleStore(folder / "memory", embedder, create=False) as store:
        search = store._memory.index.search  # pyright: ignore[reportPrivateUsage]
        retrieved = [search(query[None], _NEAREST)[0][0] for query in queries]
        recall = [len(set(ours) & set(theirs)) / _NEAREST for ours, theirs in zip(retrieved, nearest.tolist(), strict=True)]

        def ours(number: int) -> float:
            query = queries[number % len(queries)][None]
            return timed(lambda: search(query, _NEAREST))

        def theirs(number: int) -> float:
            query = queries[number % len(queries)][None]
            return timed(lambda: exact.search(query, _NEAREST))

        def whole_recall(number: int) -> float:
            embedder.vector = queries[number % len(queries)]
            return timed(lambda: store.recall(_present_pair(), _K))

        ours_s, theirs_s, recall_s = run_alternately(timed_queries, ours, theirs, whole_recall)
    return {"recall": recall, "ours": ours_s, "exact": theirs_s, "recall_s": recall_s}


def _resident(name: str, dimension: int, recalls: int) -> dict[str, float]:
    """Return the resident bytes of this process after some recalls, their peak, and the seconds to open the memory."""
    import numpy as np

    folder, embedder, stores = Path(name), Prepared(dimension), list[TripleStore]()
    queries = np.load(folder / "queries.npy")
    seconds = timed(lambda: stores.append(TripleStore(folder / "memory", embedder, create=False)))
    with stores[0] as store:
        for number in range(recalls):
            embedder.vector = queries[number % len(queries)]
            store.recall(_present_pair(), _K)
        status = Path("/proc/self/status").read_text("utf-8")
    kilobytes = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", status))
    return {"open_s": seconds} | {key: 1024.0 * int(value) for key, value in kilobytes.items()}


# Every kind of index -------------------------------------------------------------------------------------------------


def kinds_part(folder: Path, embeddings: Vectors, sizes: _Sizes) -> Iterator[tuple[str, Figure]]:
    """Yield build time, query time, recall and size of each kind of index."""
    import numpy as np

    folder.mkdir(parents=True)
    np.save(folder / "queries.npy", embeddings[-sizes.queries :])
    np.save(folder / "known.npy", embeddings[: -sizes.queries])
    for kind in INDEX_KINDS:
        measured = run_in_subprocess(_measure_kind, str(folder), kind, sizes.kinds, sizes.timed_queries)
        name, what = f"memory.kinds_200k.{kind}", f"{sizes.kinds} real embeddings"
        yield f"{name}.build_s", single_figure(measured["build_s"], "s", what)
        yield f"{name}.query_ms", figure(measured["query_ms"], "ms", f"{what}, one query at a time")
        yield f"{name}.recall_at_10", figure_of_mean(measured["recall"], "share", f"exact search of {what}")
        yield f"{name}.bytes", single_figure(measured["bytes"], "bytes", what)
    shutil.rmtree(folder)


def _measure_kind(name: str, kind: Any, count: int, timed_queries: int) -> dict[str, Any]:
    import faiss
    import numpy as np

    folder, built = Path(name), list[VectorIndex]()
    queries, known = np.load(folder / "queries.npy"), np.load(folder / "known.npy")
    vectors = variants(np.random.default_rng(1), known, 0, count)
    columns = np.zeros(count, column_dtype())
    columns["number"] = np.arange(1, count + 1)
    seconds = timed(lambda: built.append(VectorIndex.build(kind, vectors.shape[1], count, [(columns, vectors)])))
    path = folder / "memory.faiss"
    built[0].write(path, "bench", generation=0, removals=0, witness=0)
    index, _ = VectorIndex.open(path)
    exact: Any = faiss.IndexFlatIP(vectors.shape[1])
    exact.add(vectors)
    nearest = exact.search(queries, _NEAREST)[1].tolist()
    retrieved = [index.search(query[None], _NEAREST)[0][0] for query in queries]
    times = [1000 * timed(lambda query=query: index.search(query[None], _NEAREST)) for query in queries[:timed_queries]]
    return {
        "build_s": seconds,
        "query_ms": times,
        "recall": [len(set(ours) & set(theirs)) / _NEAREST for ours, theirs in zip(retrieved, nearest, strict=True)],
        "bytes": path.stat().st_size,
    }
