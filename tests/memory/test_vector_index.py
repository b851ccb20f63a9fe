"""memory/store/vector_index.py: recall of each kind, filters, exact cosines, and refusal of damaged files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from usertwin.memory.store import vector_index as index_module
from usertwin.memory.store.vector_index import (
    FLAT_UP_TO,
    INDEX_KINDS,
    IndexKind,
    Stamp,
    Tuning,
    UnusableIndexError,
    VectorIndex,
    column_dtype,
    column_values,
    hash_key,
    kind_for,
)
from usertwin.personas import Pair, Turn

Vectors = NDArray[np.float32]
COUNT, DIMENSION = 12_000, 32
APPROXIMATE = [kind for kind in INDEX_KINDS if kind != "flat"]


def unit(vectors: NDArray[np.floating]) -> Vectors:
    """The same directions with length 1."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clustered(count: int, dimension: int = DIMENSION, *, seed: int = 0) -> Vectors:
    """Embeddings around sixty centres, the same for every seed."""
    centres = np.random.default_rng(99).normal(size=(60, dimension))
    rng = np.random.default_rng(seed)
    return unit(centres[rng.integers(60, size=count)] + 0.6 * rng.normal(size=(count, dimension)))


def columns(count: int, first: int = 1) -> NDArray[np.void]:
    """Columns of so many triples, one a second."""
    array = np.zeros(count, column_dtype())
    array["number"] = np.arange(first, first + count)
    array["moment"] = array["number"]
    return array


def built(kind: IndexKind, vectors: Vectors) -> VectorIndex:
    """An index over these, given in three blocks."""
    count = len(vectors)
    cuts = [0, count // 3, count // 2, count]
    every = columns(count)
    blocks = ((every[a:b], vectors[a:b]) for a, b in pairwise(cuts))
    return VectorIndex.build(kind, vectors.shape[1], count, blocks)


def recall_at_10(index: VectorIndex, vectors: Vectors, queries: Vectors, allowed: NDArray[np.bool_] | None = None) -> float:
    """The share of the ten truly nearest that are found."""
    cosines = queries @ vectors.T
    if allowed is not None:
        cosines[:, ~allowed] = -np.inf
    least = np.sort(cosines, axis=1)[:, -10] - 1e-6
    results = index.search(queries, 10, allowed)
    assert all(len(set(positions)) == len(positions) for positions, _ in results)
    near = [np.sum(np.array(similarities) >= bar) for (_, similarities), bar in zip(results, least, strict=True)]
    return float(np.mean(near)) / 10


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    """Twelve thousand embeddings."""
    return clustered(COUNT)


@pytest.fixture(scope="module")
def queries() -> Vectors:
    """Embeddings that are in no index."""
    return clustered(100, seed=1)


@pytest.fixture(scope="module")
def index_of(vectors: Vectors) -> Callable[[IndexKind], VectorIndex]:
    """The index of a kind over all embeddings, built once."""
    array: dict[IndexKind, VectorIndex] = {}

    def index(kind: IndexKind) -> VectorIndex:
        if kind not in array:
            array[kind] = built(kind, vectors)
        return array[kind]

    return index


Indexes = Callable[[IndexKind], VectorIndex]

# What is found -----------------------------------------------------------------------------------------------------------


def test_flat_returns_the_exact_nearest_in_order(index_of: Indexes, vectors: Vectors, queries: Vectors) -> None:
    for query, (positions, similarities) in zip(queries, index_of("flat").search(queries, 10), strict=True):
        exact = vectors @ query
        np.testing.assert_allclose(similarities, np.sort(exact)[::-1][:10], atol=1e-6)
        np.testing.assert_allclose(exact[positions], similarities, atol=1e-6)
    assert index_of("flat").tuning == Tuning("flat", None, 1.0, 0)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_recall_measured_at_build_holds_for_new_queries(
    index_of: Indexes, vectors: Vectors, queries: Vectors, kind: IndexKind
) -> None:
    index = index_of(kind)
    assert (index.tuning.kind, index.tuning.queries) == (kind, 200)
    assert index.tuning.effort is not None
    assert 0.95 <= index.tuning.recall_at_10 <= 1
    assert recall_at_10(index, vectors, queries) >= 0.95


def test_lower_effort_lowers_recall(index_of: Indexes, vectors: Vectors, queries: Vectors) -> None:
    index = index_of("ivfpq")  # otherwise the recall of the test above would not show that tuning works
    tuned = index.tuning
    index.tuning = replace(tuned, effort=1)
    try:
        assert recall_at_10(index, vectors, queries) < 0.9
    finally:
        index.tuning = tuned


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_similarities_are_exact_cosines_in_order(
    index_of: Indexes, vectors: Vectors, queries: Vectors, kind: IndexKind
) -> None:
    allowed = np.random.default_rng(5).random(COUNT) < 0.6
    for mask in (None, np.ones(COUNT, bool), allowed):
        for query, (positions, similarities) in zip(queries, index_of(kind).search(queries, 20, mask), strict=True):
            np.testing.assert_allclose(similarities, vectors[positions] @ query, atol=1e-5)
            assert similarities == sorted(similarities, reverse=True)
            assert len(positions) == 20


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.0])
@pytest.mark.parametrize("kind", INDEX_KINDS)
@pytest.mark.parametrize("exact_count", [0, 5000])
def test_filtered_search_returns_only_allowed_and_keeps_recall(
    index_of: Indexes,
    vectors: Vectors,
    queries: Vectors,
    kind: IndexKind,
    share: float,
    exact_count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(index_module, "_EXACT_COUNT", exact_count)  # 0: a tenth is searched as all of them are
    allowed = np.random.default_rng(7).random(COUNT) < share
    results = index_of(kind).search(queries, 10, allowed)
    assert all(allowed[positions].all() for positions, _ in results)
    if not allowed.any():
        assert results == [([], [])] * len(queries)
    else:
        assert recall_at_10(index_of(kind), vectors, queries, allowed) >= (0.95 if kind != "flat" else 1)


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_single_allowed_position_is_found(index_of: Indexes, queries: Vectors, kind: IndexKind) -> None:
    for position in (0, 31, COUNT - 1):
        allowed = np.arange(COUNT) == position
        assert [positions for positions, _ in index_of(kind).search(queries[:5], 10, allowed)] == [[position]] * 5


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_k_of_zero_returns_nothing(index_of: Indexes, queries: Vectors, kind: IndexKind) -> None:
    for mask in (None, np.ones(COUNT, bool), np.zeros(COUNT, bool)):
        assert index_of(kind).search(queries[:2], 0, mask) == [([], []), ([], [])]


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_k_above_count_returns_all_allowed(kind: IndexKind) -> None:
    small = clustered(300, seed=4)
    allowed = np.arange(300) % 2 == 0
    [(positions, _)] = built(kind, small).search(small[:1], 1000, allowed)
    assert sorted(positions) == list(range(0, 300, 2))


def test_ivfpq_keeps_recall_on_data_without_clusters() -> None:
    rng = np.random.default_rng(2)
    vectors, queries = unit(rng.normal(size=(5000, 64))), unit(rng.normal(size=(100, 64)))
    index = built("ivfpq", vectors)
    assert index.tuning.recall_at_10 >= 0.95
    assert recall_at_10(index, vectors, queries) >= 0.95


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_odd_dimension_works(kind: IndexKind, tmp_path: Path) -> None:
    vectors, queries = clustered(2000, 33), clustered(50, 33, seed=1)
    index = built(kind, vectors)
    assert recall_at_10(index, vectors, queries) >= 0.95
    index.write(tmp_path / "index", "m", generation=5, removals=0, witness=7)
    assert VectorIndex.open(tmp_path / "index")[0].search(queries, 5) == index.search(queries, 5)


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_duplicate_embeddings_are_all_returned_latest_first(kind: IndexKind) -> None:
    vectors = np.repeat(clustered(30, seed=3), 20, axis=0)
    index = built(kind, vectors)
    for position in range(30):
        [(positions, similarities)] = index.search(vectors[20 * position][None], 20)
        assert sorted(positions) == list(range(20 * position, 20 * position + 20))
        assert positions == sorted(positions, reverse=True)  # the latest first
        np.testing.assert_allclose(similarities, 1, atol=1e-5)
        assert max(similarities) <= 1
    [(positions, _)] = built(kind, np.repeat(vectors[:1], 300, axis=0)).search(vectors[:1], 10)
    assert len(set(positions)) == 10


# Making ------------------------------------------------------------------------------------------------------------------


def test_build_is_deterministic(queries: Vectors) -> None:
    vectors = clustered(1000, seed=8)
    for kind in INDEX_KINDS:
        first, second = built(kind, vectors), built(kind, vectors)
        assert first.tuning == second.tuning
        assert first.search(queries, 10) == second.search(queries, 10)


@pytest.mark.parametrize("count", [99, 101])
def test_wrong_count_of_embeddings_is_an_error(count: int) -> None:
    with pytest.raises(ValueError, match=r"100 embeddings instead of 99|100 embeddings instead of 101|could not broadcast"):
        VectorIndex.build("flat", DIMENSION, count, [(columns(100), clustered(100))])


def test_empty_index_can_be_written_opened_and_extended(tmp_path: Path) -> None:
    index = VectorIndex.build("flat", DIMENSION, 0, [])
    assert (len(index), index.search(clustered(1), 3)) == (0, [([], [])])
    index.write(tmp_path / "index", "m", generation=5, removals=0, witness=7)
    opened, stamp = VectorIndex.open(tmp_path / "index")
    assert (stamp, len(opened)) == (
        Stamp(memory="m", generation=5, removals=0, last=0, witness=7, count=0, dimension=DIMENSION),
        0,
    )
    opened.add(columns(3), clustered(3))
    assert opened.search(clustered(3)[:1], 1)[0][0] == [0]


# The tail ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_tail_is_searched_exactly_together_with_base(kind: IndexKind, tmp_path: Path) -> None:
    vectors, added, queries = clustered(1000), clustered(150, seed=6), clustered(50, seed=1)
    built(kind, vectors).write(tmp_path / "index", "m", generation=5, removals=0, witness=7)
    index, _ = VectorIndex.open(tmp_path / "index")
    index.add(columns(100, first=1001), added[:100])
    index.add(columns(50, first=1101), added[100:])
    assert (len(index), index.tail_count) == (1150, 150)
    assert index.columns["number"].tolist() == list(range(1, 1151))
    every = np.concatenate([vectors, added])
    assert recall_at_10(index, every, queries) >= 0.95
    [(positions, similarities)] = index.search(added[120][None], 1)
    assert positions == [1120]
    np.testing.assert_allclose(similarities, 1, atol=1e-5)
    tail, small = np.arange(1150) >= 1000, np.arange(1150) % 7 == 0
    for allowed in (tail, small, tail & small, ~tail & small):  # so few that the base is searched exactly too
        results = index.search(queries, 5, allowed)
        exact = np.sort(np.where(allowed, queries @ every.T, -np.inf), axis=1)[:, ::-1][:, :5]
        np.testing.assert_allclose([similarities for _, similarities in results], exact, atol=1e-5)
        assert all(allowed[positions].all() for positions, _ in results)
    assert index.search(queries[:1], 5, np.zeros(1150, bool)) == [([], [])]


def test_index_without_base_finds_the_nearest() -> None:
    vectors, index = clustered(100), VectorIndex(DIMENSION)
    for start in range(0, 100, 10):
        index.add(columns(10, first=start + 1), vectors[start : start + 10])
    assert index.tail_count == 100
    assert recall_at_10(index, vectors, clustered(20, seed=1)) == 1
    assert len(index.search(vectors[:1], 500)[0][0]) == 100


def test_latest_of_equally_similar_comes_first_in_base_and_tail() -> None:
    same = np.repeat(clustered(1), 10, axis=0)
    index = built("flat", same)
    index.add(columns(10, first=11), same)
    index.columns["moment"][:] = np.random.default_rng(0).permutation(20)
    [(positions, _)] = index.search(same[:1], 20)
    assert index.columns["moment"][positions].tolist() == list(range(19, -1, -1))


# The file ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_opened_index_equals_written_index(index_of: Indexes, queries: Vectors, kind: IndexKind, tmp_path: Path) -> None:
    index, path = index_of(kind), tmp_path / "index"
    index.write(path, "memory", generation=5, removals=3, witness=7)
    opened, stamp = VectorIndex.open(path)
    assert stamp == Stamp(memory="memory", generation=5, removals=3, last=COUNT, witness=7, count=COUNT, dimension=DIMENSION)
    assert (opened.tuning, len(opened), opened.tail_count, opened.dimension) == (index.tuning, COUNT, 0, DIMENSION)
    np.testing.assert_array_equal(opened.columns, index.columns)
    allowed = np.random.default_rng(3).random(COUNT)
    for mask in (None, allowed < 0.7, allowed < 0.02):
        assert opened.search(queries, 10, mask) == index.search(queries, 10, mask)
    assert [file.name for file in tmp_path.iterdir()] == ["index"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped")
@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_opened_index_is_memory_mapped_and_outlives_its_file(
    index_of: Indexes, queries: Vectors, kind: IndexKind, tmp_path: Path
) -> None:
    index, path = index_of(kind), tmp_path / "index"
    index.write(path, "memory", generation=5, removals=0, witness=7)
    opened, _ = VectorIndex.open(path)
    assert str(path) in Path("/proc/self/maps").read_text()
    second = built("flat", clustered(300))
    second.write(path, "memory", generation=5, removals=1, witness=7)  # is put in its place while it is used
    assert opened.search(queries, 10) == index.search(queries, 10)
    assert len(VectorIndex.open(path)[0]) == 300
    path.unlink()
    assert opened.search(queries, 10) == index.search(queries, 10)


def test_index_of_another_version_is_refused_but_not_as_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "index"
    with monkeypatch.context() as later:
        later.setattr("usertwin.memory.store.vector_index.asdict", lambda value: asdict(value) | {"more": 1})
        built("flat", clustered(300)).write(path, "memory", generation=5, removals=1, witness=7)
    with pytest.raises(UnusableIndexError, match=r"^is of another format$"):
        VectorIndex.open(path)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_index_of_a_deleted_kind_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = tmp_path / "index"
    index = built("flat", clustered(300))
    index.tuning = Tuning(cast("IndexKind", kind), 32, 0.99, 200)
    index.write(path, "memory", generation=5, removals=1, witness=7)
    with pytest.raises(UnusableIndexError, match=rf'^is of the kind "{kind}", which this version does not have$'):
        VectorIndex.open(path)


def test_missing_index_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UnusableIndexError, match=r"^is missing$"):
        VectorIndex.open(tmp_path / "index")


@pytest.fixture(scope="module", params=INDEX_KINDS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a small index."""
    path = tmp_path_factory.mktemp("index") / "index"
    built(request.param, clustered(300, 8)).write(path, "memory", generation=5, removals=1, witness=7)
    return path.read_bytes()


def refused(path: Path, content: bytes) -> bool:
    """Whether a file of this content is refused as damaged."""
    path.write_bytes(content)
    try:
        VectorIndex.open(path)
    except UnusableIndexError as error:
        return str(error) == "is damaged"
    return False


def test_truncated_index_is_refused(written: bytes, tmp_path: Path) -> None:
    assert not refused(tmp_path / "index", written)
    size, rows = len(written), 300 * column_dtype().itemsize
    known = int.from_bytes(written[-32:-24], "little")
    seams = [0, 4, 40, size - 40 - known - rows, size - 40 - known, size - 40, size - 32, size - 24, size - 8, size]
    cuts = {max(0, seam + near) for seam in seams for near in (-1, 0, 1)} | set(range(0, size, size // 60))
    assert [cut for cut in sorted(cuts) if cut < size and not refused(tmp_path / "index", written[:cut])] == []


def test_index_with_extra_bytes_is_refused(written: bytes, tmp_path: Path) -> None:
    assert refused(tmp_path / "index", written + b"\0")
    assert refused(tmp_path / "index", written + written)
    assert refused(tmp_path / "index", written + written[-40:])


def test_index_with_a_flipped_bit_is_refused(written: bytes, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    places = {*range(60), *range(len(written) - 60, len(written)), *rng.integers(len(written), size=150).tolist()}
    missed: list[int] = []
    for position in sorted(places):
        flipped = bytearray(written)
        flipped[position] ^= 1 << int(rng.integers(8))
        if not refused(tmp_path / "index", bytes(flipped)):
            missed.append(position)
    assert missed == []


def test_failed_write_keeps_the_old_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "index"
    built("flat", clustered(20)).write(path, "memory", generation=5, removals=1, witness=7)
    old = path.read_bytes()

    def fails(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index_module, "file_checksum", fails)
    with pytest.raises(OSError, match="No space left"):
        built("flat", clustered(30)).write(path, "memory", generation=5, removals=2, witness=7)
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["index"]


# Columns and kinds -------------------------------------------------------------------------------------------------------


def test_hash_keys_are_stable() -> None:
    """The keys are in the files: another hash would make every index a stale one."""
    assert (hash_key(""), hash_key("conversation"), hash_key("é😀")) == (
        -5978950695371172670,
        -8815689583414575061,
        2174458947901212273,
    )
    texts = [*map(str, range(1000)), "a", "A", "a ", "\ud83d", "a\0"]
    assert len({hash_key(text) for text in texts}) == len(texts)
    assert all(-(2**63) <= hash_key(text) < 2**63 for text in texts)


def test_columns_hold_the_filter_values() -> None:
    context = (Turn("desk", "agent", "Which day?"),)
    pair = Pair(speaker="Ann", context=context, action="tomorrow", goal="", conversation_id="c1", position=3, when=9.5)
    assert column_values(7, pair) == (7, 9.5, hash_key("c1"), hash_key("agent"), hash_key("question"), False)
    gone = replace(pair, context=(), action="(left)", ends_conversation=True)
    assert column_values(8, gone) == (8, 9.5, hash_key("c1"), hash_key(""), hash_key("opening"), True)
    assert column_values(8, replace(gone, ends_conversation=False))[-1] is False
    both = np.array([column_values(7, pair), column_values(8, gone)], column_dtype())
    assert both["abandoned"].tolist() == [False, True]
    assert both["moment"].tolist() == [9.5, 9.5]


@pytest.mark.parametrize(
    ("count", "wanted", "kind"),
    [
        (0, "auto", "flat"),
        (FLAT_UP_TO, "auto", "flat"),
        (FLAT_UP_TO + 1, "auto", "ivfpq"),
        (255, "ivfpq", "flat"),
        (256, "ivfpq", "ivfpq"),
        (FLAT_UP_TO + 1, "flat", "flat"),
    ],
)
def test_kind_depends_on_size_unless_requested(count: int, wanted: str, kind: IndexKind) -> None:
    assert kind_for(count, wanted) == kind


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_every_kind_can_be_built_at_the_smallest_count(kind: IndexKind) -> None:
    vectors = clustered(256, seed=11)
    index = built(kind, vectors)
    assert index.tuning.kind == kind
    assert recall_at_10(index, vectors, clustered(50, seed=12)) >= 0.9


def test_a_file_holds_nothing_of_the_process_between_the_fields(tmp_path: Path) -> None:
    """Equal indexes give equal files, whatever numpy left in the padding of the columns."""
    contents: list[bytes] = []
    for left in (0x00, 0xA7):
        array = np.full(3 * column_dtype().itemsize, left, np.uint8).view(column_dtype())
        for name in column_dtype().names or ():
            array[name] = [1, 2, 3] if name == "number" else 0
        index = VectorIndex.build("flat", DIMENSION, 3, [(array, clustered(3))])
        index._chunks = [array]  # as in an index that was caught up
        path = tmp_path / f"index-{left}"
        index.write(path, "memory", generation=5, removals=0, witness=7)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]
