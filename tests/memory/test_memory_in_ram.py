"""memory/store/in_memory.py: a memory that is never written to disk behaves as one that is."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from kill_writer import EMBEDDER, QUERY, assert_recalls, similarities, triple, triples

from usertwin.memory import TripleStore


def test_a_memory_in_ram_gives_the_results_of_one_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with TripleStore(tmp_path / "disk", EMBEDDER) as disk, TripleStore(None, EMBEDDER) as ram:
        for store in (disk, ram):
            assert store.add(triples(*range(60))) == 60
            assert store.add(triples(3, 60)) == 1
            store.set_traces([triple(5, "was late")])
            store.edit(triple(4).id, triple(99))
            assert store.delete([triple(7).id]) == 1
            assert store.forget("c2") == 5
            store.save()
            assert_recalls(store, {t.id: t for t in store.triples()})
        assert list(ram.triples()) == list(disk.triples())
        assert similarities(ram.recall(QUERY, 20)) == similarities(disk.recall(QUERY, 20))
        sampled = [store.sample(QUERY, 5, rng=random.Random(1)) for store in (ram, disk)]
        assert sampled[0] == sampled[1]
        assert len(ram) == len(disk) == 55
        assert [recalled.triple for recalled in ram.recall(replace(QUERY, when=9.0), 60, before=9.0)]
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]
