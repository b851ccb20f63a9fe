"""Every reader, given mutated inputs: each is read, or refused with a sentence; none is a traceback or hangs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from usertwin.evals.benchmarks.crash_safety import quiet
from usertwin.evals.benchmarks.fuzz.part import all_readers, fuzz
from usertwin.evals.benchmarks.fuzz.reader import Reader
from usertwin.personas import UsageError


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Reader]]:
    with quiet():
        yield all_readers(tmp_path_factory.mktemp("fuzz"))


def test_every_valid_input_is_read(readers: list[Reader]) -> None:
    for reader in readers:
        for content in reader.inputs:
            reader.read(content)


def test_mutated_inputs_are_read_or_refused_with_a_sentence(readers: list[Reader]) -> None:
    each = [Reader(name=r.name, inputs=r.inputs, mutate=r.mutate, read=r.read, weight=1) for r in readers]
    tally = fuzz(each, 20 * len(each), seed=1)
    assert tally.outside == {}
    assert tally.hangs == []
    assert tally.refused > tally.inputs / 4


def test_an_exception_outside_the_tree_and_a_hang_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usertwin.evals.benchmarks.fuzz.part._HANG", 0.05)

    def read(content: bytes) -> None:
        if content == b"a":
            raise KeyError("a")
        if content == b"b":
            raise UsageError("b")
        while True:
            pass

    for content, counts in ((b"a", (1, 0, 0)), (b"b", (0, 1, 0)), (b"c", (0, 0, 1))):
        reader = Reader(name="x", inputs=[content], mutate=lambda same, _: same, read=read)
        tally = fuzz([reader], 1)
        assert (sum(tally.outside.values()), tally.refused, len(tally.hangs)) == counts


def test_the_same_seed_gives_the_same_inputs() -> None:
    def inputs(seed: int) -> list[bytes]:
        seen: list[bytes] = []
        readers = [Reader(name="x", inputs=[b"abcdef"], mutate=_mutated, read=seen.append)]
        fuzz(readers, 20, seed)
        return seen

    assert inputs(1) == inputs(1) != inputs(2)


def _mutated(content: bytes, rng: object) -> bytes:
    from usertwin.evals.benchmarks.fuzz.mutations import mutate_bytes

    return mutate_bytes(content, rng)  # pyright: ignore[reportArgumentType]


def test_the_folder_of_the_examples_holds_every_file_of_a_twin(tmp_path: Path) -> None:
    from usertwin.evals.benchmarks.fuzz.examples import learn_twin

    names = {path.name for path in learn_twin(tmp_path).iterdir()}
    assert {
        "twin.json",
        "memory.sqlite",
        "memory.faiss",
        "memory.seal",
        "held_out.jsonl.gz",
        "ending.json",
        "leaving.json",
    } <= names
