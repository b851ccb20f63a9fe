"""The score cache: each content is scored once, keys do not collide, and the file survives reopening and damage."""

from __future__ import annotations

import copy
import os
import sqlite3
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import tiny
from usertwin.memory.models.score_cache import CachedScorer
from usertwin.memory.models.scoring import FakeScorer, Likelihood
from usertwin.memory.models.transformers_scorer import TransformersScorer
from usertwin.personas import ModelError

pytestmark = pytest.mark.usefixtures("in_one_thread")


class RecordingScorer(FakeScorer):
    """A fake scorer that records its items."""

    def __init__(self, name: str = "fake:") -> None:
        self.name = name
        self.items: list[tuple[str, str]] = []

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        self.items += items
        return super().score(items)


class UnusedScorer(FakeScorer):
    """A scorer that must not be called."""

    def __init__(self, name: str) -> None:
        self.name = name

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        raise AssertionError(f"called with {items}")


def test_each_content_is_scored_once(tmp_path: Path) -> None:
    scorer = RecordingScorer()
    cached = CachedScorer(scorer, tmp_path / "deep" / "scores.sqlite")
    items = [("a b", "a"), ("c", "c d"), ("a b", "a")]
    first = cached.score(items)
    assert first == FakeScorer().score(items)
    assert scorer.items == [("a b", "a"), ("c", "c d")]
    assert cached.score([("new", "new"), *reversed(items)])[1:] == list(reversed(first))
    assert scorer.items[2:] == [("new", "new")]


def test_scores_survive_reopening(tmp_path: Path) -> None:
    before = CachedScorer(RecordingScorer(), tmp_path / "scores.sqlite").score([("a", "a b c")])
    scorer = RecordingScorer()
    assert CachedScorer(scorer, tmp_path / "scores.sqlite").score([("a", "a b c")]) == before
    assert scorer.items == []


def test_token_scores_survive_the_cache(tmp_path: Path) -> None:
    items = [("Them: hello\nMe:", " good dày 😀\n"), ("", "a"), ("abc", "")]
    fresh = TransformersScorer("tiny", tiny).score(items)
    assert CachedScorer(TransformersScorer("tiny", tiny), tmp_path / "scores.sqlite").score(items) == fresh
    assert CachedScorer(UnusedScorer("tiny"), tmp_path / "scores.sqlite").score(items) == fresh
    assert [score.token_ends[-1:] for score in fresh] == [(len(" good dày 😀\n"),), (1,), ()]


def test_cache_of_an_earlier_version_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    old = sqlite3.connect(path)
    old.execute("CREATE TABLE scores (key BLOB PRIMARY KEY, nats REAL NOT NULL, tokens INTEGER NOT NULL) STRICT, WITHOUT ROWID")
    old.execute("INSERT INTO scores VALUES (zeroblob(32), -1.5, 3)")
    old.commit()
    old.close()
    scorer = RecordingScorer()
    scores = CachedScorer(scorer, path).score([("a", "a b")])
    assert scores == FakeScorer().score([("a", "a b")])
    assert CachedScorer(UnusedScorer("fake:"), path).score([("a", "a b")]) == scores
    now = sqlite3.connect(path)
    assert [name for (name,) in now.execute("SELECT name FROM sqlite_master WHERE type = 'table'")] == ["likelihoods"]
    now.close()


def test_old_cache_can_be_opened_twice_at_once(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    old = sqlite3.connect(path)
    old.execute("CREATE TABLE scores (key BLOB PRIMARY KEY, nats REAL NOT NULL, tokens INTEGER NOT NULL)")
    old.commit()
    old.close()
    first, second = CachedScorer(RecordingScorer(), path), CachedScorer(RecordingScorer(), path)
    items = [("a", "b")]
    assert first.score(items) == second.score(items) == CachedScorer(UnusedScorer("fake:"), path).score(items)


def test_scorers_in_one_file_do_not_mix(tmp_path: Path) -> None:
    first, second = RecordingScorer("one"), RecordingScorer("two")
    CachedScorer(first, tmp_path / "scores.sqlite").score([("a", "b")])
    CachedScorer(second, tmp_path / "scores.sqlite").score([("a", "b")])
    assert second.items == [("a", "b")]
    assert CachedScorer(first, tmp_path / "scores.sqlite").name == "one"


def test_weights_with_the_same_name_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    for weights in ("", "one", "two"):
        scorer = RecordingScorer()
        CachedScorer(scorer, path, weights).score([("a", "b")])
        CachedScorer(scorer, path, weights).score([("a", "b")])
        assert scorer.items == [("a", "b")]


def test_prompt_boundary_is_part_of_the_key(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    names = [("a", "b", "cd"), ("a", "bc", "d"), ("ab", "c", "d"), ("a", "", "bcd"), ("", "ab", "cd"), ("a", "b\x00", "cd")]
    for name, prompt, continuation in names:
        scorer = RecordingScorer(name)
        CachedScorer(scorer, path).score([(prompt, continuation)])
        assert scorer.items == [(prompt, continuation)]


_TEXTS = st.text(st.characters() | st.characters(categories=["Cs"]), max_size=12)


@settings(max_examples=40, deadline=None)
@given(calls=st.lists(st.lists(st.tuples(_TEXTS, _TEXTS), max_size=6), max_size=4))
def test_cached_score_equals_the_score(calls: list[list[tuple[str, str]]], tmp_path_factory: pytest.TempPathFactory) -> None:
    scorer = RecordingScorer()
    cached = CachedScorer(scorer, tmp_path_factory.mktemp("cache") / "scores.sqlite")
    for items in calls:
        assert cached.score(items) == FakeScorer().score(items)
    assert len(scorer.items) == len(set(scorer.items))


def test_cache_file_holds_no_text(tmp_path: Path) -> None:
    cached = CachedScorer(FakeScorer(), tmp_path / "scores.sqlite")
    cached.score([("my secret prompt", "my secret answer")])
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert held.startswith(b"SQLite")
    assert b"secret" not in held


def test_failed_scorer_leaves_the_cache_usable(tmp_path: Path) -> None:
    class Failing(FakeScorer):
        def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
            raise ModelError("no weights")

    cached = CachedScorer(Failing(), tmp_path / "scores.sqlite")
    with pytest.raises(ModelError, match="no weights"):
        cached.score([("a", "b")])
    cached.scorer = FakeScorer()
    assert cached.score([("a", "b")]) == FakeScorer().score([("a", "b")])


def test_threads_can_share_a_cache(tmp_path: Path) -> None:
    scorer = RecordingScorer()
    cached = CachedScorer(scorer, tmp_path / "scores.sqlite")
    items = [(f"p{i}", f"c{i}") for i in range(20)]
    threads = [threading.Thread(target=cached.score, args=(items[i:] + items[:i],)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(scorer.items) == sorted(items)


def test_file_that_is_not_a_score_cache_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    path.write_bytes(b"this is no database, but it is longer than a header" * 40)
    with pytest.raises(ModelError, match=r"scores\.sqlite: the score cache cannot be used .*delete the file"):
        CachedScorer(FakeScorer(), path)
    with pytest.raises(ModelError, match="cannot be used"):
        CachedScorer(FakeScorer(), path / "below" / "a-file.sqlite")


def test_precisions_do_not_mix(tmp_path: Path) -> None:
    items = [("Them: hello\nMe:", " good day\n")]
    path = tmp_path / "scores.sqlite"
    rounded = CachedScorer(TransformersScorer("tiny", lambda: copy.deepcopy(tiny()), "bfloat16"), path, "file").score(items)
    assert CachedScorer(TransformersScorer("tiny", tiny), path, "file").score(items) != rounded
    assert CachedScorer(UnusedScorer("tiny, bfloat16"), path, "file").score(items) == rounded


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists a process's descriptors")
def test_no_cache_keeps_the_file_open_however_many_there_are(tmp_path: Path) -> None:
    def held() -> list[str]:
        return [target for entry in Path("/proc/self/fd").iterdir() if str(tmp_path) in (target := os.path.realpath(entry))]

    caches = [CachedScorer(FakeScorer(), tmp_path / "scores.sqlite") for _ in range(5)]
    for number, cache in enumerate(caches):
        cache.score([("a prompt", f"text {number}")])
        assert held() == []
    (tmp_path / "damaged.sqlite").write_bytes(b"no database" * 400)
    with pytest.raises(ModelError) as error:
        CachedScorer(FakeScorer(), tmp_path / "damaged.sqlite")
    assert held() == [], error  # which holds the frames in which it was raised
