"""The index of a memory: which embeddings are most like this one, among those that may be seen.

The one design choice: an index is a base, in a file that is mapped rather than read where FAISS can, and a tail of what came
later, searched exactly; so to add costs nothing, and the file is written anew only when the tail has grown. Beside the
embeddings the file carries the few columns that recall filters by, and a stamp that says which memory it belongs to, and when
it was made. Similarities are exact cosines whatever the kind: the approximate kinds only choose the candidates.

    flat     every embedding is compared; exact
    hnsw     a graph of neighbours is followed; slow to build
    ivf      some of the clusters are compared
    ivfpq    of some clusters, four-bit codes are compared, and the best thousand then exactly
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from usertwin.memory.atomic_files import digest, replace_file
from usertwin.personas import Pair

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Columns = NDArray[np.void]
    Vectors = NDArray[np.float32]
    Mask = NDArray[np.bool_]

IndexKind = Literal["flat", "hnsw", "ivf", "ivfpq"]
INDEX_KINDS: tuple[IndexKind, ...] = get_args(IndexKind)
#: Up to so many triples every embedding is compared, if nobody says otherwise; from there on `ivfpq`: of a million it took a
#: tenth of the time of `hnsw` to build, answered as fast, and finds its neighbours also where embeddings have no clusters
#: (see evals/EXPERIMENTS.md).
FLAT_UP_TO = 200_000
#: Fewer triples than this are always compared one by one.
_LEAST = 256
#: What an approximate index is tuned to, so that 0.95 is kept on moments that are new.
_RECALL, _SAMPLED_QUERIES = 0.99, 200
#: If no more than this share of the triples may be seen, or so few of them, these are compared one by one.
_EXACT_SHARE, _EXACT_COUNT = 0.05, 5000
_CANDIDATES, _MOST_EFFORT, _BLOCK = 1000, 4096, 50_000
#: Of so many equally similar embeddings the latest are found; openings are often the same.
_TIES = 64
_TRAILER = struct.Struct("<QQ16s8s")
_MAGIC = b"usertwin"


class UnusableIndexError(Exception):
    """An index file is missing, damaged, or not of this memory as it is now; the text says which."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """How an index is searched.

    Attributes:
        kind: see the top of this file.
        effort: clusters (ivf, ivfpq) or candidates (hnsw) that are looked at; None for flat.
        recall_at_10: the share of the ten nearest that it finds, measured when it was built.
        queries: on how many moments, each halfway between two of its own, that was measured.
    """

    kind: IndexKind = "flat"
    effort: int | None = None
    recall_at_10: float = 1.0
    queries: int = 0


@dataclass(frozen=True, slots=True)
class Stamp:
    """Which memory an index belongs to, and which state of it (see `database.State`).

    `last` is the greatest number in it, and `witness` the checksum of that triple: copies of a memory that went on apart differ
    in it.
    """

    memory: str
    generation: int
    removals: int
    last: int
    witness: int
    count: int
    dimension: int


def column_type() -> np.dtype[np.void]:
    """The columns that recall filters by; text is there as a hash of it."""
    import numpy as np

    fields = [("number", "<i8"), ("moment", "<f8"), ("conversation", "<i8"), ("role", "<i8"), ("kind", "<i8"), ("left", "?")]
    return np.dtype(fields, align=True)


def column_of(number: int, pair: Pair) -> tuple[Any, ...]:
    """One triple's values for `column_type`."""
    hashed = (key(pair.conversation_id), key(pair.answers_role), key(pair.kind))
    return (number, pair.when, *hashed, pair.abandoned)


def key(text: str) -> int:
    """A text as 64 bits. Two conversations that share them only hide each other's triples from each other."""
    import xxhash

    return int(xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))) - 2**63


def kind_for(count: int, wanted: str) -> IndexKind:
    """The kind of index for so many triples; `wanted` is one of `INDEX_KINDS` or "auto"."""
    if count < _LEAST:
        return "flat"
    if wanted == "auto":
        return "flat" if count <= FLAT_UP_TO else "ivfpq"
    return cast("IndexKind", wanted)


class VectorIndex:
    """Embeddings and their columns, in the order of their numbers; "positions" count from 0 in that order."""

    def __init__(self, dimension: int) -> None:
        import numpy as np

        self.dimension, self.tuning = dimension, Tuning()
        self._base: Any = None
        self._kept: tuple[Any, ...] = ()  # FAISS objects that the base points to
        self._base_count = 0
        self._chunks: list[Columns] = [np.zeros(0, column_type())]
        self._tail: list[Vectors] = []

    # Making ----------------------------------------------------------------------------------------------------------

    @classmethod
    def build(cls, kind: IndexKind, dimension: int, count: int, blocks: Iterable[tuple[Columns, Vectors]]) -> VectorIndex:
        """An index over `count` embeddings, given in blocks."""
        import faiss
        import numpy as np

        index = cls(dimension)
        flat = faiss.IndexFlatIP(dimension)
        flat.codes.resize(count * dimension * 4)  # filled in place: added block by block it would take twice the memory
        flat.ntotal = count
        whole = faiss.rev_swig_ptr(flat.codes.data(), count * dimension * 4) if count else np.zeros(0, np.uint8)
        vectors = whole.view(np.float32).reshape(count, dimension)
        columns, done = np.zeros(count, column_type()), 0
        for some, matrix in blocks:
            columns[done : done + len(some)], vectors[done : done + len(some)] = some, matrix
            done += len(some)
        if done != count:
            raise ValueError(f"{done} embeddings instead of {count}")
        index._chunks, index._base, index._base_count = [columns], flat, count
        if kind != "flat":
            index._base, index._kept = _approximate(kind, flat, vectors)
            index._tune(kind, flat, vectors)
        return index

    def _tune(self, kind: IndexKind, flat: Any, vectors: Vectors) -> None:
        """Choose the least effort with which the index finds what it is to find.

        Measured with moments halfway between two of its own: these are as far from what is in the index as a moment that is new
        (see evals/EXPERIMENTS.md), where its own have near twins and are found too easily.
        """
        import numpy as np

        rng, count = np.random.default_rng(0), min(_SAMPLED_QUERIES, self._base_count)
        one, other = (vectors[rng.integers(self._base_count, size=count)] for _ in range(2))
        between = one + other
        queries = between / np.maximum(np.linalg.norm(between, axis=1, keepdims=True), 1e-6)
        k = min(10, self._base_count)
        least = flat.search(queries, k)[0][:, -1:] - 1e-5
        most = _clusters(self._base) if kind != "hnsw" else _MOST_EFFORT
        effort, recall = (k if kind == "hnsw" else 1), 0.0  # a graph is never searched with fewer candidates than k
        while True:
            self.tuning = Tuning(kind, effort, recall, count)
            found = self._search_base(queries, k, None)[1]
            recall = float((found >= least).sum(1).clip(0, k).mean() / k)
            if recall >= _RECALL or effort >= most:
                break
            effort = min(2 * effort, most)
        self.tuning = Tuning(kind, effort, round(recall, 4), count)

    def add(self, columns: Columns, vectors: Vectors) -> None:
        """Add embeddings to the tail; their numbers are greater than all before."""
        self._chunks.append(columns)
        self._tail.append(vectors)

    # Asking ----------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return sum(map(len, self._chunks))

    @property
    def tail_count(self) -> int:
        """How many embeddings came after the file was written."""
        return len(self) - self._base_count

    @property
    def columns(self) -> Columns:
        """The columns of all embeddings."""
        import numpy as np

        if len(self._chunks) > 1:
            self._chunks = [np.concatenate(self._chunks)]
        return self._chunks[0]

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> list[tuple[list[int], list[float]]]:
        """For each query the positions of the k most similar embeddings and their cosines, most similar first.

        Args:
            queries: shape (number of queries, dimension), unit rows.
            k: how many to find.
            allowed: shape (len(self),), which may be found; None for all.
        """
        import numpy as np

        before, after = (None, None) if allowed is None else (allowed[: self._base_count], allowed[self._base_count :])
        wide = max(k, _TIES) if k > 0 else 0
        positions, similarities = self._search_base(queries, wide, before)
        if self._tail:
            tail = self._whole_tail()
            near = queries @ tail.T
            if after is not None:
                near[:, ~after] = -np.inf
            best = np.argpartition(-near, min(wide, near.shape[1] - 1), axis=1)[:, :wide]
            scores = np.take_along_axis(near, best, 1)
            places = np.where(np.isneginf(scores), -1, best + self._base_count)
            positions, similarities = np.hstack([positions, places]), np.hstack([similarities, scores])
        moments = self.columns["moment"]
        found: list[tuple[list[int], list[float]]] = []
        for row, scores in zip(positions, similarities, strict=True):
            row, scores = row[row >= 0], scores[row >= 0]
            order = np.lexsort((-moments[row], -scores.round(6)))[:k]  # of equally similar ones the latest first
            found.append((row[order].tolist(), np.clip(scores[order], -1.0, 1.0).tolist()))
        return found

    def _search_base(self, queries: Vectors, k: int, allowed: Mask | None) -> tuple[NDArray[np.int64], Vectors]:
        import faiss
        import numpy as np

        seen = self._base_count if allowed is None else int(allowed.sum())
        k = min(k, seen)
        if k <= 0:
            return np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0), np.float32)
        bits = None if allowed is None else np.packbits(allowed, bitorder="little")
        make = cast("Any", faiss)  # its stubs do not know what its Python side adds
        # A selector even where all may be seen: without one FAISS takes a way that is made for many queries at once.
        selector = make.IDSelectorAll() if bits is None else make.IDSelectorBitmap(bits)
        kind, share = self.tuning.kind, seen / self._base_count
        exact = kind == "flat" or (share < 1 and (share < _EXACT_SHARE or seen <= _EXACT_COUNT))
        effort, base = math.ceil((self.tuning.effort or 1) / share), self._base
        if kind == "ivf":
            probes = _clusters(base) if exact else min(effort, _clusters(base))
            parameters = make.SearchParametersIVF(sel=selector, nprobe=probes)
        elif exact:
            base, parameters = _flat_part(base), make.SearchParameters(sel=selector)
        elif kind == "hnsw":
            parameters = make.SearchParametersHNSW(sel=selector, efSearch=max(k, min(effort, _MOST_EFFORT)))
        else:
            inner = make.SearchParametersIVF(sel=selector, nprobe=min(effort, _clusters(base)))
            factor = max(2.0, _CANDIDATES / k)
            parameters = make.IndexRefineSearchParameters(k_factor=factor, base_index_params=inner)
        with _threads(several=len(queries) > 1):
            similarities, positions = base.search(queries, k, params=parameters)
        return positions, similarities

    def _whole_tail(self) -> Vectors:
        import numpy as np

        if len(self._tail) > 1:
            self._tail = [np.concatenate(self._tail)]
        return self._tail[0]

    # The file --------------------------------------------------------------------------------------------------------

    def write(self, path: Path, memory: str, *, generation: int, removals: int, witness: int) -> None:
        """Write the index, which must have no tail, atomically; the others are for its `Stamp`."""
        import faiss

        partial = path.with_name(path.name + ".partial")
        columns = self.columns.tobytes()
        last = int(self.columns["number"][-1]) if len(self) else 0
        stamp = Stamp(memory, generation, removals, last, witness, len(self), self.dimension)
        known = json.dumps({"stamp": asdict(stamp), "tuning": asdict(self.tuning)}).encode()
        try:
            faiss.write_index(self._base, str(partial))
            with partial.open("ab") as file:
                file.write(columns + known + struct.pack("<QQ", len(columns), len(known)))
            checksum = bytes.fromhex(digest(partial))
            with partial.open("ab") as file:
                file.write(checksum + _MAGIC)
            replace_file(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    @classmethod
    def open(cls, path: Path) -> tuple[VectorIndex, Stamp]:
        """Read an index. UnusableIndexError if there is none, or a byte of it is not what was written."""
        import faiss
        import numpy as np

        try:
            with path.open("rb") as file:
                opened = os.fstat(file.fileno())
                end = opened.st_size - _TRAILER.size
                if end < 0:
                    raise UnusableIndexError("is damaged")
                file.seek(end)
                columns_bytes, known_bytes, checksum, magic = _TRAILER.unpack(file.read(_TRAILER.size))
                if magic != _MAGIC or digest(path, opened.st_size - 24) != checksum.hex():
                    raise UnusableIndexError("is damaged")
                file.seek(end - known_bytes - columns_bytes)
                columns = np.frombuffer(file.read(columns_bytes), column_type())
                known = json.loads(file.read(known_bytes))
            base = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
            if path.stat().st_ino != opened.st_ino:  # somebody has put a newer one in its place meanwhile
                return cls.open(path)
            stamp, tuning = Stamp(**known["stamp"]), Tuning(**known["tuning"])
        except FileNotFoundError:
            raise UnusableIndexError("is missing") from None
        except (TypeError, KeyError):  # whole, but written by another version
            raise UnusableIndexError("is of another format") from None
        index = cls(stamp.dimension)
        index.tuning = tuning
        index._base, index._base_count, index._chunks = base, stamp.count, [columns]
        return index, stamp


@contextmanager
def _threads(*, several: bool) -> Generator[None]:
    """One query is answered by one thread: others were measured to save nothing, and cost much on a busy machine."""
    import faiss

    usual = faiss.omp_get_max_threads()
    if not several:
        faiss.omp_set_num_threads(1)  # of this thread only
    try:
        yield
    finally:
        faiss.omp_set_num_threads(usual)


def _approximate(kind: IndexKind, flat: Any, vectors: Vectors) -> tuple[Any, tuple[Any, ...]]:
    """An approximate index over the embeddings, and what it points to."""
    import faiss
    import numpy as np

    count, dimension = vectors.shape
    if kind == "hnsw":
        graph = faiss.IndexHNSWFlat(dimension, 32, faiss.METRIC_INNER_PRODUCT)
        for start in range(0, count, _BLOCK):
            graph.add(vectors[start : start + _BLOCK])
        return graph, ()
    root = 2 ** round(math.log2(math.sqrt(count)))
    coarse = faiss.IndexFlatIP(dimension)
    if kind == "ivf":
        clusters = min(4 * root, count // 8)
        index = faiss.IndexIVFFlat(coarse, dimension, clusters, faiss.METRIC_INNER_PRODUCT)
    else:
        clusters, codes = min(root, count // 8), dimension // 2 if dimension % 2 == 0 else dimension
        index = faiss.IndexIVFPQFastScan(coarse, dimension, clusters, codes, 4, faiss.METRIC_INNER_PRODUCT)
        index.pq.cp.min_points_per_centroid = 1  # else FAISS prints a warning for each part of the code
    index.cp.min_points_per_centroid, index.cp.niter, index.cp.seed = 1, 10, 1234
    sampled = np.random.default_rng(1).choice(count, min(count, max(64 * clusters, 20_000)), replace=False)
    index.train(vectors[np.sort(sampled)])
    for start in range(0, count, _BLOCK):
        index.add(vectors[start : start + _BLOCK])
    if kind == "ivf":
        return index, (coarse,)
    return faiss.IndexRefine(index, flat), (coarse, index, flat)


def _flat_part(base: Any) -> Any:
    """The exact embeddings of a flat, hnsw or ivfpq index."""
    import faiss

    for name in ("storage", "refine_index"):
        if hasattr(base, name):
            return faiss.downcast_index(getattr(base, name))
    return base


def _clusters(base: Any) -> int:
    import faiss

    inner: Any = faiss.downcast_index(base.base_index) if hasattr(base, "base_index") else base
    return int(inner.nlist)
