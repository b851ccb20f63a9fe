"""Figures of large memories: a million triples, and every kind of index at 200,000.

The one design choice: whatever is measured runs in a process of its own, so that it pays for nobody else's memory, and "exact"
is a FAISS index of all embeddings in memory, asked the same questions in turn, one at a time.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from usertwin.memory import Triple, TripleStore
from usertwin.memory.store.vector_index import INDEX_KINDS, VectorIndex, column_type
from usertwin.personas import Pair, Turn

from .figures import Figure, figure, in_child, in_turn, one_figure, ratios, timed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

_NEAREST, _K = 10, 8


class _Sizes(Protocol):
    """See `bench_memory.Sizes`."""

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
    """An embedder that has the next query's vector ready, so that to embed costs nothing."""

    name = "bench"

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.vector: Any = None

    def embed(self, texts: Sequence[str]) -> Vectors:
        """The vector that was prepared."""
        return self.vector[None]


def units(rng: np.random.Generator, count: int, dimension: int) -> Vectors:
    """Random directions."""
    import numpy as np

    return _scaled(rng.standard_normal((count, dimension), np.float32))


def _scaled(matrix: NDArray[np.floating[Any]]) -> Vectors:
    import numpy as np

    return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True), np.float32)


def variants(rng: np.random.Generator, known: Vectors, start: int, count: int) -> Vectors:
    """Embeddings number `start` to `start + count`: first the known ones, then each a mixture of two of them and some noise."""
    import numpy as np

    one, other = rng.integers(len(known), size=(2, count))
    share = rng.uniform(0.5, 1, (count, 1)).astype(np.float32)
    noise = rng.standard_normal((count, known.shape[1]), np.float32) * np.float32(0.2 / known.shape[1] ** 0.5)
    mixed = _scaled(share * known[one] + (1 - share) * known[other] + noise)
    mixed[: max(0, len(known) - start)] = known[start : start + count]
    return mixed


def large_part(folder: Path, embeddings: Vectors | None, sizes: _Sizes) -> Iterator[tuple[str, Figure]]:
    """A million triples: with real embeddings, the last of which are the queries, or with random ones."""
    import numpy as np

    (folder / "memory").mkdir(parents=True)
    kind = "" if embeddings is not None else "random_"
    rng = np.random.default_rng(2)
    queries = units(rng, sizes.queries, sizes.dimension) if embeddings is None else embeddings[-sizes.queries :]
    np.save(folder / "queries.npy", queries)
    if embeddings is not None:
        np.save(folder / "known.npy", embeddings[: -sizes.queries])
    add_s, build_s = in_child(_fill, str(folder), sizes.large, sizes.chunk, sizes.dimension)
    found = in_child(_compare, str(folder), sizes.dimension, sizes.timed_queries)
    what = f"{sizes.large} {'random' if kind else 'real'} embeddings"
    yield f"memory.ann_1m_{kind}recall_at_10", figure_of_mean(found["recall"], "share", f"exact search of {what} (bar: 0.95)")
    against = f"exact search of {what}, one query at a time (bar: 0.1)"
    yield f"memory.ann_1m_{kind}time_vs_exact", figure(ratios(found["ours"], found["exact"]), "ratio", against)
    if not kind:
        yield "memory.ann_1m_search_ms", figure([1000 * s for s in found["ours"]], "ms", what)
        yield "memory.recall_1m_ms", figure([1000 * s for s in found["whole"]], "ms", f"search and {_K} whole triples, {what}")
        raw = sizes.large * sizes.dimension * 4
        used = in_child(_resident, str(folder), sizes.dimension, sizes.resident_recalls)
        after = f"the raw vectors; a process that opened the memory and recalled {sizes.resident_recalls} times"
        yield "memory.rss_1m_vs_vectors", one_figure(used["VmRSS"] / raw, "ratio", f"{after} (bar: 1.6)")
        yield "memory.rss_peak_1m_vs_vectors", one_figure(used["VmHWM"] / raw, "ratio", f"{after}; the most it ever had")
        yield "memory.open_1m_s", one_figure(used["open_s"], "s", what)
        yield "memory.add_1m_s", one_figure(add_s, "s", f"{what}, in batches of {sizes.chunk}")
        yield "memory.build_1m_s", one_figure(build_s, "s", "the index built, tuned and written when the memory is closed")
    shutil.rmtree(folder)


def figure_of_mean(values: list[float], unit: str, against: str) -> Figure:
    """The mean of shares, which have few values, with the interval that holds it with 95%."""
    import numpy as np

    mean, error = float(np.mean(values)), 1.96 * float(np.std(values)) / len(values) ** 0.5
    return Figure(value=mean, unit=unit, low=mean - error, high=min(1.0, mean + error), n=len(values), against=against)


def short_triples(start: int, count: int) -> list[Triple]:
    """Triples of a few words, so that a million of them fit on a small disk."""

    def one(number: int) -> Triple:
        asked = Turn("somebody", "user", f"what about {number}?")
        return Triple(Pair("me", (asked,), f"it is {number}", "", f"talk-{number // 10}", number % 10, float(number)))

    return [one(number) for number in range(start, start + count)]


def _fill(name: str, count: int, chunk: int, dimension: int) -> tuple[float, float]:
    """Make a memory and a plain file of its embeddings; seconds to add, and to close, which builds the index."""
    import numpy as np

    folder, rng, seconds = Path(name), np.random.default_rng(1), 0.0
    known = np.load(folder / "known.npy") if (folder / "known.npy").exists() else None
    store = TripleStore(folder / "memory", Prepared(dimension))
    with (folder / "vectors").open("wb") as file:
        for start in range(0, count, chunk):
            some = min(chunk, count - start)
            vectors = units(rng, some, dimension) if known is None else variants(rng, known, start, some)
            triples = short_triples(start, some)
            seconds += timed(lambda triples=triples, vectors=vectors: store.add(triples, vectors))
            vectors.tofile(file)
    return seconds, timed(store.close)


def _now() -> Pair:
    return Pair("me", (Turn("somebody", "user", "and now?"),), "", "", "now", 0, 0.0)


def _compare(name: str, dimension: int, timed_queries: int) -> dict[str, list[float]]:
    """What share of the ten nearest is found, and how long that takes against exact search."""
    import faiss
    import numpy as np

    folder, embedder = Path(name), Prepared(dimension)
    queries: Vectors = np.load(folder / "queries.npy")
    exact: Any = faiss.IndexFlatIP(dimension)
    exact.add(np.fromfile(folder / "vectors", np.float32).reshape(-1, dimension))
    nearest = exact.search(queries, _NEAREST)[1]
    with TripleStore(folder / "memory", embedder, create=False) as store:
        search = store._memory.index.search  # pyright: ignore[reportPrivateUsage]
        found = [search(query[None], _NEAREST)[0][0] for query in queries]
        recall = [len(set(ours) & set(theirs)) / _NEAREST for ours, theirs in zip(found, nearest.tolist(), strict=True)]

        def ours(number: int) -> float:
            query = queries[number % len(queries)][None]
            return timed(lambda: search(query, _NEAREST))

        def theirs(number: int) -> float:
            query = queries[number % len(queries)][None]
            return timed(lambda: exact.search(query, _NEAREST))

        def whole(number: int) -> float:
            embedder.vector = queries[number % len(queries)]
            return timed(lambda: store.recall(_now(), _K))

        ours_s, theirs_s, whole_s = in_turn(timed_queries, ours, theirs, whole)
    return {"recall": recall, "ours": ours_s, "exact": theirs_s, "whole": whole_s}


def _resident(name: str, dimension: int, recalls: int) -> dict[str, float]:
    """Bytes of this process after some recalls, the most it ever had, and the seconds that opening took."""
    import numpy as np

    folder, embedder, stores = Path(name), Prepared(dimension), list[TripleStore]()
    queries = np.load(folder / "queries.npy")
    seconds = timed(lambda: stores.append(TripleStore(folder / "memory", embedder, create=False)))
    with stores[0] as store:
        for number in range(recalls):
            embedder.vector = queries[number % len(queries)]
            store.recall(_now(), _K)
        status = Path("/proc/self/status").read_text("utf-8")
    kilobytes = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", status))
    return {"open_s": seconds} | {key: 1024.0 * int(value) for key, value in kilobytes.items()}


# Every kind of index -------------------------------------------------------------------------------------------------


def kinds_part(folder: Path, embeddings: Vectors, sizes: _Sizes) -> Iterator[tuple[str, Figure]]:
    """What each kind of index costs and finds, at a size where all of them can be used."""
    import numpy as np

    folder.mkdir(parents=True)
    np.save(folder / "queries.npy", embeddings[-sizes.queries :])
    np.save(folder / "known.npy", embeddings[: -sizes.queries])
    for kind in INDEX_KINDS:
        found = in_child(_one_kind, str(folder), kind, sizes.kinds, sizes.timed_queries)
        name, what = f"memory.kinds_200k.{kind}", f"{sizes.kinds} real embeddings"
        yield f"{name}.build_s", one_figure(found["build_s"], "s", what)
        yield f"{name}.query_ms", figure(found["query_ms"], "ms", f"{what}, one query at a time")
        yield f"{name}.recall_at_10", figure_of_mean(found["recall"], "share", f"exact search of {what}")
        yield f"{name}.bytes", one_figure(found["bytes"], "bytes", what)
    shutil.rmtree(folder)


def _one_kind(name: str, kind: Any, count: int, timed_queries: int) -> dict[str, Any]:
    import faiss
    import numpy as np

    folder, built = Path(name), list[VectorIndex]()
    queries, known = np.load(folder / "queries.npy"), np.load(folder / "known.npy")
    vectors = variants(np.random.default_rng(1), known, 0, count)
    columns = np.zeros(count, column_type())
    columns["number"] = np.arange(1, count + 1)
    seconds = timed(lambda: built.append(VectorIndex.build(kind, vectors.shape[1], count, [(columns, vectors)])))
    path = folder / "memory.faiss"
    built[0].write(path, "bench", generation=0, removals=0, witness=0)
    index, _ = VectorIndex.open(path)
    exact: Any = faiss.IndexFlatIP(vectors.shape[1])
    exact.add(vectors)
    nearest = exact.search(queries, _NEAREST)[1].tolist()
    found = [index.search(query[None], _NEAREST)[0][0] for query in queries]
    times = [1000 * timed(lambda query=query: index.search(query[None], _NEAREST)) for query in queries[:timed_queries]]
    return {
        "build_s": seconds,
        "query_ms": times,
        "recall": [len(set(ours) & set(theirs)) / _NEAREST for ours, theirs in zip(found, nearest, strict=True)],
        "bytes": path.stat().st_size,
    }
