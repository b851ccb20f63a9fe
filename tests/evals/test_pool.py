"""The pool of other people's pairs: earlier turns of everybody else, and nothing that is held out."""

from __future__ import annotations

import asyncio
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from invented_suite import WORDS, Models, suite_file, talk, write_log

from usertwin.evals.replay.pool import StoredEmbedder, open_pool, other_peoples_pairs
from usertwin.evals.suites.config import read_suite
from usertwin.evals.suites.run import SuiteRun
from usertwin.memory import TwinRecord, existing_twin
from usertwin.memory.models.embedding import FakeEmbedder, query_text
from usertwin.personas import Conversation, Turn, read_conversations
from usertwin.personas.pairs import extract_pairs

ARMS = ('"no_memory", "other_person", "recalled_pairs"]', '"recalled_pairs", "pooled", "pooled_with_own"]')


class Counting(FakeEmbedder):
    """An embedder that counts its texts."""

    def __init__(self) -> None:
        super().__init__(64)
        self.texts: list[str] = []

    def embed(self, texts: list[str]) -> np.ndarray:  # type: ignore[override]
        self.texts += texts
        return super().embed(texts)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object], Models]:
    """A suite with the pooled arms over three people, and its models."""
    folder, models = tmp_path_factory.mktemp("pooled"), Models()
    write_log(folder / "log.jsonl", "Ann", "Bob", "Cid")
    suite = read_suite(suite_file(folder, ARMS))
    return folder, asyncio.run(SuiteRun(suite, folder / "run", models=models.of(suite)).run()), models


def test_pooled_arms_are_measured_and_need_the_log(measured: tuple[Path, dict[str, object], Models]) -> None:
    _, result, _ = measured
    assert list(result["arms"]) == ["pooled", "pooled_with_own", "recalled_pairs"]  # type: ignore[arg-type]
    paired = result["paired"]["recalled_pairs - pooled"]["bits_per_char"]  # type: ignore[index]
    assert paired["value"] < 0  # no two people share a word, so the person's own past is closer


def test_the_pool_is_kept_in_private_files_of_the_run(measured: tuple[Path, dict[str, object], Models]) -> None:
    pools = measured[0] / "run" / "pools"
    assert [path.name for path in pools.iterdir()] == ["c0.npz"]
    assert stat.S_IMODE(pools.stat().st_mode) == 0o700
    assert stat.S_IMODE((pools / "c0.npz").stat().st_mode) == 0o600


def pairs_for(folder: Path, *, limit: int = 5000) -> tuple[TwinRecord, list, float]:
    record = TwinRecord.load(existing_twin("p00", folder / "run" / "twins"))
    log = read_conversations(folder / "log.jsonl")
    first = min(
        pair.when
        for conversation in log.conversations
        if conversation.conversation_id in record.test
        for pair in extract_pairs(conversation, record.recipe.speaker)
    )
    return record, other_peoples_pairs(log, record, first, limit=limit), first


def test_the_pool_holds_earlier_pairs_of_others_with_the_persons_role(measured: tuple[Path, dict[str, object], Models]) -> None:
    record, pairs, first = pairs_for(measured[0])
    log = read_conversations(measured[0] / "log.jsonl")
    speakers = {turn.speaker for talk in log.conversations for turn in talk.turns} & {*WORDS}
    assert {pair.speaker for pair in pairs} == speakers - {record.recipe.speaker}  # and no agent
    assert all(pair.when < first and not pair.abandoned for pair in pairs)
    assert [pair.when for pair in pairs] == sorted(pair.when for pair in pairs)
    assert pairs_for(measured[0], limit=5)[1] == pairs[-5:]


@pytest.mark.parametrize("dated", [True, False])
def test_nothing_of_the_held_out_conversations_is_pooled(measured: tuple[Path, dict[str, object], Models], dated: bool) -> None:
    """Another customer speaks in Ann's held-out conversations, and before the first held-out turn."""
    record, _, first = pairs_for(measured[0])
    record = replace(record, dated=dated)
    log = read_conversations(measured[0] / "log.jsonl")
    joined = tuple(
        Conversation(c.conversation_id, (*c.turns, Turn("Dan", "user", "a secret of this talk")), "2023-01-01T10:00:00+00:00")
        if c.conversation_id in {*record.test, *record.validation}
        else c
        for c in log.conversations
    )
    pairs = other_peoples_pairs(replace(log, conversations=joined), record, first)
    assert pairs
    assert not {pair.conversation_id for pair in pairs} & {*record.test, *record.validation}
    assert "Dan" not in {pair.speaker for pair in pairs}


def test_embeddings_of_a_pool_are_computed_once(tmp_path: Path) -> None:
    pairs = [pair for number in range(4) for pair in extract_pairs(talk("Ann", number), "Ann")]
    first, again, changed = Counting(), Counting(), Counting()
    for embedder, shown in ((first, pairs[:8]), (again, pairs), (changed, pairs)):
        if embedder is changed:
            (tmp_path / "c0.npz").write_bytes(b"PK\x03\x04 damaged")
        pool = open_pool(shown, embedder, tmp_path / "c0.npz")
        assert pool is not None
        with_one = pool.recall(pairs[2], 2)
        assert with_one[0].triple.pair.action
        pool.close()
    texts = {query_text(pair) for pair in pairs}
    assert set(again.texts) == texts - {query_text(pair) for pair in pairs[:8]}
    assert set(changed.texts) == texts  # a damaged file is computed again


def test_an_empty_pool_is_none_and_another_embedder_shares_nothing(tmp_path: Path) -> None:
    assert open_pool([], FakeEmbedder()) is None
    stored = StoredEmbedder(FakeEmbedder(32), tmp_path / "v.npz")
    vectors = stored.embed(["a", "b", "a"])
    stored.save()
    assert np.array_equal(StoredEmbedder(FakeEmbedder(32), tmp_path / "v.npz").embed(["a", "b", "a"]), vectors)
    assert StoredEmbedder(FakeEmbedder(16), tmp_path / "v.npz").embed(["a"]).shape == (1, 16)
