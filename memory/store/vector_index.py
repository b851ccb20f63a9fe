"""The vector index of a memory: the embeddings most similar to a query, among those that a filter allows.

An index is a base in a file, memory-mapped where FAISS can, and a tail of later additions that is searched exactly. Adding
therefore costs nothing, and the file is rewritten only when the tail has grown. The file also holds the columns that recall
filters by, and a stamp: the memory that the index belongs to, and its state. Similarities are exact cosines for both kinds; the
approximate one only selects the candidates.

    flat     compares every embedding; exact
    ivfpq    compares the four-bit codes of some clusters, then the best thousand embeddings exactly
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

from usertwin.memory.atomic_files import file_checksum
from usertwin.personas import Pair
from usertwin.personas.files import open_private, replace_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Columns = NDArray[np.void]
    Vectors = NDArray[np.float32]
    Mask = NDArray[np.bool_]

IndexKind = Literal["flat", "ivfpq"]
INDEX_KINDS: tuple[IndexKind, ...] = get_args(IndexKind)
#: Largest memory for which "auto" takes `flat`; above it `ivfpq` (see evals/EXPERIMENTS.md). Applies at the next index build.
FLAT_UP_TO = 200_000
#: Smallest memory that can have an approximate index.
_MIN_APPROXIMATE = 256
#: Recall on its own sampled queries that an approximate index is tuned to, so that new queries keep 0.95; number of them.
_RECALL, _SAMPLED_QUERIES = 0.99, 200
#: Search is exact if a filter allows at most this share of the embeddings, or at most this many.
_EXACT_SHARE, _EXACT_COUNT = 0.05, 5000
#: Candidates that are compared exactly, and embeddings that are added at once.
_CANDIDATES, _BLOCK = 1000, 50_000
#: Smallest number of embeddings to retrieve, so that the latest of equally similar ones are among them; openings often repeat.
_TIES = 64
_TRAILER = struct.Struct("<QQ16s8s")
_MAGIC = b"usertwin"


class UnusableIndexError(Exception):
    """An index file is missing, damaged, or does not match the memory; the text says which."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """How an index is searched.

    Attributes:
        kind: see the top of this file.
        effort: number of clusters that are searched; None for flat.
        recall_at_10: share of the ten nearest embeddings that the index retrieves, measured when it was built.
        queries: number of queries of that measurement, each halfway between two embeddings of the index.
    """

    kind: IndexKind = "flat"
    effort: int | None = None
    recall_at_10: float = 1.0
    queries: int = 0


@dataclass(kw_only=True, frozen=True, slots=True)
class Stamp:
    """The memory that an index belongs to, and the state of that memory (see `database.State`).

    `last` is the greatest triple number in the index, and `witness` the checksum of that triple; it differs between copies of a
    memory that were changed separately.
    """

    memory: str
    generation: int
    removals: int
    last: int
    witness: int
    count: int
    dimension: int


def column_dtype() -> np.dtype[np.void]:
    """Return the type of the columns that recall filters by; texts are stored as hashes."""
    import numpy as np

    fields = [("number", "<i8"), ("moment", "<f8"), ("conversation", "<i8"), ("role", "<i8"), ("kind", "<i8")]
    return np.dtype([*fields, ("abandoned", "?")], align=True)


def column_values(number: int, pair: Pair) -> tuple[Any, ...]:
    """Return the values of `column_dtype` for one triple."""
    hashed = (hash_key(pair.conversation_id), hash_key(pair.previous_role), hash_key(pair.kind))
    return (number, pair.when, *hashed, pair.abandoned)


def _without_padding(columns: Columns) -> Columns:
    """Return the columns with zeros between the fields, where numpy may leave what was in the process's memory."""
    import numpy as np

    clean = np.zeros(len(columns), column_dtype())
    for name in clean.dtype.names or ():
        clean[name] = columns[name]
    return clean


def hash_key(text: str) -> int:
    """Return a 64-bit hash of a text. If two conversations collide, they only hide each other's triples from each other."""
    import xxhash

    return int(xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))) - 2**63


def kind_for(count: int, requested: str) -> IndexKind:
    """Return the kind of index for `count` triples; `requested` is one of `INDEX_KINDS` or "auto"."""
    if count < _MIN_APPROXIMATE:
        return "flat"
    if requested == "auto":
        return "flat" if count <= FLAT_UP_TO else "ivfpq"
    return cast("IndexKind", requested)


class VectorIndex:
    """Embeddings and their columns, in the order of triple numbers; a "position" is an index in that order."""

    def __init__(self, dimension: int) -> None:
        import numpy as np

        self.dimension, self.tuning = dimension, Tuning()
        self._base: Any = None
        self._referenced: tuple[Any, ...] = ()  # keeps FAISS objects alive that the base points to
        self._base_count = 0
        self._chunks: list[Columns] = [np.zeros(0, column_dtype())]
        self._tail: list[Vectors] = []

    # Making ----------------------------------------------------------------------------------------------------------

    @classmethod
    def build(cls, kind: IndexKind, dimension: int, count: int, blocks: Iterable[tuple[Columns, Vectors]]) -> VectorIndex:
        """Return an index over `count` embeddings, given in blocks."""
        import faiss
        import numpy as np

        index = cls(dimension)
        flat = faiss.IndexFlatIP(dimension)
        flat.codes.resize(count * dimension * 4)  # filled in place: adding blocks would take twice the memory
        flat.ntotal = count
        data = faiss.rev_swig_ptr(flat.codes.data(), count * dimension * 4) if count else np.zeros(0, np.uint8)
        vectors = data.view(np.float32).reshape(count, dimension)
        columns, done = np.zeros(count, column_dtype()), 0
        for block, matrix in blocks:
            columns[done : done + len(block)], vectors[done : done + len(block)] = block, matrix
            done += len(block)
        if done != count:
            raise ValueError(f"{done} embeddings instead of {count}")
        index._chunks, index._base, index._base_count = [columns], flat, count
        if kind != "flat":
            index._base, index._referenced = _build_ivfpq(flat, vectors)
            index._tune(kind, flat, vectors)
        return index

    def _tune(self, kind: IndexKind, flat: Any, vectors: Vectors) -> None:
        """Pick the smallest search effort that reaches the target recall.

        Design: the queries lie halfway between two embeddings of the index, which makes them as far from it as new queries are
        (see evals/EXPERIMENTS.md). Its own embeddings have near-duplicates in it and are retrieved too easily.
        """
        import numpy as np

        rng, count = np.random.default_rng(0), min(_SAMPLED_QUERIES, self._base_count)
        first, second = (vectors[rng.integers(self._base_count, size=count)] for _ in range(2))
        between = first + second
        queries = between / np.maximum(np.linalg.norm(between, axis=1, keepdims=True), 1e-6)
        k = min(10, self._base_count)
        threshold = flat.search(queries, k)[0][:, -1:] - 1e-5
        effort, max_effort, recall = 1, _clusters(self._base), 0.0
        while True:
            self.tuning = Tuning(kind, effort, recall, count)
            cosines = self._search_base(queries, k, None)[1]
            recall = float((cosines >= threshold).sum(1).clip(0, k).mean() / k)
            if recall >= _RECALL or effort >= max_effort:
                break
            effort = min(2 * effort, max_effort)
        self.tuning = Tuning(kind, effort, round(recall, 4), count)

    def add(self, columns: Columns, vectors: Vectors) -> None:
        """Add embeddings to the tail; their numbers must be greater than all before."""
        self._chunks.append(columns)
        self._tail.append(vectors)

    # Searching -------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return sum(map(len, self._chunks))

    @property
    def tail_count(self) -> int:
        """Number of embeddings that were added after the file was written."""
        return len(self) - self._base_count

    @property
    def columns(self) -> Columns:
        """The columns of all embeddings."""
        import numpy as np

        if len(self._chunks) > 1:
            self._chunks = [np.concatenate(self._chunks)]
        return self._chunks[0]

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> list[tuple[list[int], list[float]]]:
        """Return, for each query, the positions and cosines of the k most similar embeddings, most similar first.

        Args:
            queries: shape (number of queries, dimension), unit rows.
            k: number of embeddings.
            allowed: shape (len(self),), the embeddings that may be returned; None for all.
        """
        import numpy as np

        in_base, in_tail = (None, None) if allowed is None else (allowed[: self._base_count], allowed[self._base_count :])
        wide = max(k, _TIES) if k > 0 else 0
        positions, cosines = self._search_base(queries, wide, in_base)
        if self._tail:
            tail_cosines = queries @ self._tail_matrix().T
            if in_tail is not None:
                tail_cosines[:, ~in_tail] = -np.inf
            best = np.argpartition(-tail_cosines, min(wide, tail_cosines.shape[1] - 1), axis=1)[:, :wide]
            best_cosines = np.take_along_axis(tail_cosines, best, 1)
            tail_positions = np.where(np.isneginf(best_cosines), -1, best + self._base_count)
            positions, cosines = np.hstack([positions, tail_positions]), np.hstack([cosines, best_cosines])
        times = self.columns["moment"]
        results: list[tuple[list[int], list[float]]] = []
        for row, row_cosines in zip(positions, cosines, strict=True):
            row, row_cosines = row[row >= 0], row_cosines[row >= 0]
            order = np.lexsort((-times[row], -row_cosines.round(6)))[:k]  # of equally similar ones the latest first
            results.append((row[order].tolist(), np.clip(row_cosines[order], -1.0, 1.0).tolist()))
        return results

    def _search_base(self, queries: Vectors, k: int, allowed: Mask | None) -> tuple[NDArray[np.int64], Vectors]:
        import faiss
        import numpy as np

        seen = self._base_count if allowed is None else int(allowed.sum())
        k = min(k, seen)
        if k <= 0:
            return np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0), np.float32)
        bits = None if allowed is None else np.packbits(allowed, bitorder="little")
        make = cast("Any", faiss)  # the stubs lack keyword arguments
        # A selector even without a filter: without one FAISS takes a code path that is made for batches of queries.
        selector = make.IDSelectorAll() if bits is None else make.IDSelectorBitmap(bits)
        share, base = seen / self._base_count, self._base
        if self.tuning.kind == "flat" or (share < 1 and (share < _EXACT_SHARE or seen <= _EXACT_COUNT)):
            base, parameters = _flat_part(base), make.SearchParameters(sel=selector)
        else:
            effort = math.ceil((self.tuning.effort or 1) / share)
            inner = make.SearchParametersIVF(sel=selector, nprobe=min(effort, _clusters(base)))
            factor = max(2.0, _CANDIDATES / k)
            parameters = make.IndexRefineSearchParameters(k_factor=factor, base_index_params=inner)
        with _threads(parallel=len(queries) > 1):
            cosines, positions = base.search(queries, k, params=parameters)
        return positions, cosines

    def _tail_matrix(self) -> Vectors:
        import numpy as np

        if len(self._tail) > 1:
            self._tail = [np.concatenate(self._tail)]
        return self._tail[0]

    # The file --------------------------------------------------------------------------------------------------------

    def write(self, path: Path, memory: str, *, generation: int, removals: int, witness: int) -> None:
        """Write the index atomically. It must have no tail; the keyword arguments are fields of its `Stamp`."""
        import faiss

        partial = path.with_name(path.name + ".partial")
        columns = _without_padding(self.columns).tobytes()
        last = int(self.columns["number"][-1]) if len(self) else 0
        stamp = Stamp(
            memory=memory,
            generation=generation,
            removals=removals,
            last=last,
            witness=witness,
            count=len(self),
            dimension=self.dimension,
        )
        metadata = json.dumps({"stamp": asdict(stamp), "tuning": asdict(self.tuning)}).encode()
        try:
            with open_private(partial, "wb") as file:  # FAISS would print its own message on a full disk
                writer: Any = faiss.PyCallbackIOWriter(file.write, 2**20)  # pyright: ignore[reportAttributeAccessIssue] - no stub
                faiss.write_index(self._base, writer)
                file.write(columns + metadata + struct.pack("<QQ", len(columns), len(metadata)))
            checksum = bytes.fromhex(file_checksum(partial))
            with partial.open("ab") as file:
                file.write(checksum + _MAGIC)
            replace_file(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    @classmethod
    def open(cls, path: Path) -> tuple[VectorIndex, Stamp]:
        """Open an index. UnusableIndexError if it is missing, a byte was changed, or another version wrote it."""
        import faiss
        import numpy as np

        try:
            with path.open("rb") as file:
                opened = os.fstat(file.fileno())
                end = opened.st_size - _TRAILER.size
                if end < 0:
                    raise UnusableIndexError("is damaged")
                file.seek(end)
                columns_bytes, metadata_bytes, checksum, magic = _TRAILER.unpack(file.read(_TRAILER.size))
                if magic != _MAGIC or file_checksum(path, opened.st_size - 24) != checksum.hex():
                    raise UnusableIndexError("is damaged")
                file.seek(end - metadata_bytes - columns_bytes)
                columns = np.frombuffer(file.read(columns_bytes), column_dtype())
                metadata = json.loads(file.read(metadata_bytes))
            base = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
            if path.stat().st_ino != opened.st_ino:  # another process has replaced it meanwhile
                return cls.open(path)
            stamp, tuning = Stamp(**metadata["stamp"]), Tuning(**metadata["tuning"])
        except FileNotFoundError:
            raise UnusableIndexError("is missing") from None
        except (TypeError, KeyError):  # intact, but written by another version
            raise UnusableIndexError("is of another format") from None
        if tuning.kind not in INDEX_KINDS:  # "hnsw" and "ivf" in development snapshots before 0.1.0
            raise UnusableIndexError(f'is of the kind "{tuning.kind}", which this version does not have')
        index = cls(stamp.dimension)
        index.tuning = tuning
        index._base, index._base_count, index._chunks = base, stamp.count, [columns]
        return index, stamp


@contextmanager
def _threads(*, parallel: bool) -> Generator[None]:
    """Search a single query with one thread: measured, more threads save nothing and are slow on a busy machine."""
    import faiss

    default = faiss.omp_get_max_threads()
    if not parallel:
        faiss.omp_set_num_threads(1)  # of this thread only
    try:
        yield
    finally:
        faiss.omp_set_num_threads(default)


def _build_ivfpq(flat: Any, vectors: Vectors) -> tuple[Any, tuple[Any, ...]]:
    """Return an ivfpq index over the embeddings, and the FAISS objects that it points to."""
    import faiss
    import numpy as np

    count, dimension = vectors.shape
    clusters = min(2 ** round(math.log2(math.sqrt(count))), count // 8)
    codes = dimension // 2 if dimension % 2 == 0 else dimension
    coarse = faiss.IndexFlatIP(dimension)
    index = faiss.IndexIVFPQFastScan(coarse, dimension, clusters, codes, 4, faiss.METRIC_INNER_PRODUCT)
    index.pq.cp.min_points_per_centroid = 1  # otherwise FAISS prints a warning for each part of the code
    index.cp.min_points_per_centroid, index.cp.niter, index.cp.seed = 1, 10, 1234
    sampled = np.random.default_rng(1).choice(count, min(count, max(64 * clusters, 20_000)), replace=False)
    index.train(vectors[np.sort(sampled)])
    for start in range(0, count, _BLOCK):
        index.add(vectors[start : start + _BLOCK])
    return faiss.IndexRefine(index, flat), (coarse, index, flat)


def _flat_part(base: Any) -> Any:
    """Return the exact embeddings of a flat or ivfpq index."""
    import faiss

    return faiss.downcast_index(base.refine_index) if hasattr(base, "refine_index") else base


def _clusters(base: Any) -> int:
    """Return the number of clusters of an ivfpq index."""
    import faiss

    inner: Any = faiss.downcast_index(base.base_index)
    return int(inner.nlist)
