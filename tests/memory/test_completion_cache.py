"""The completion cache: exact keys, durability after a kill, and errors for damaged files."""

from __future__ import annotations

import signal
import sqlite3
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kill_writer import Child

from usertwin.memory.models.completion_cache import CompletionCache
from usertwin.personas import ModelError

_TEXTS = st.text(
    st.characters() | st.characters(min_codepoint=0xDC00, max_codepoint=0xDFFF), max_size=8
)  # with lone surrogates
_SIMILAR_REQUESTS = st.lists(st.text('a", ', max_size=3) | st.lists(st.text('a", ', max_size=2), max_size=2), max_size=3)
_REQUESTS = st.lists(st.none() | st.booleans() | st.integers() | _TEXTS | st.lists(_TEXTS, max_size=3), max_size=4)
_COMPLETIONS = st.lists(st.tuples(_TEXTS, st.lists(st.integers(0, 9), max_size=3)), min_size=1, max_size=3)


def as_json(answer: list[tuple[str, list[int]]]) -> list[list[Any]]:
    return [list(row) for row in answer]


def execute(path: Path, statement: str) -> None:
    database = sqlite3.connect(path)
    database.execute(statement)
    database.commit()
    database.close()


@settings(max_examples=40)
@given(calls=st.lists(st.tuples(_REQUESTS, _COMPLETIONS), max_size=6), absent=_REQUESTS)
def test_last_completion_of_each_request_is_returned_even_after_reopening(
    calls: list[tuple[list[Any], Any]], absent: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("answers") / "answers.sqlite"
    expected: dict[str, Any] = {}
    cache = CompletionCache(path)
    for request, answer in calls:
        cache.put(request, answer)
        expected[repr(request)] = as_json(answer)
        assert cache.get(request) == as_json(answer)
    cache.close()
    again = CompletionCache(path)
    assert {repr(request): again.get(request) for request, _ in calls} == expected
    assert again.get(absent) == expected.get(repr(absent))
    again.close()


@settings(max_examples=40)
@given(first=_SIMILAR_REQUESTS, second=_SIMILAR_REQUESTS)
def test_different_requests_do_not_share_a_completion(
    first: list[Any], second: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = CompletionCache(tmp_path_factory.mktemp("answers") / "answers.sqlite")
    cache.put(first, ["mine"])
    assert cache.get(second) == (["mine"] if repr(first) == repr(second) else None)
    cache.close()


def test_key_depends_on_part_boundaries_but_not_on_option_order(tmp_path: Path) -> None:
    cache = CompletionCache(tmp_path / "answers.sqlite")
    cache.put(["m", "", [["user", "ab"]], 1, 0, {"stop": None, "max_tokens": 5}], ["mine"])
    assert cache.get(["m", "", [["user", "ab"]], 1, 0, {"max_tokens": 5, "stop": None}]) == ["mine"]
    for other in (["m", "", [["user", "a"], ["b"]]], ["m", "user", [["", "ab"]]], ["m", "", [["user", "ab"]], 10]):
        assert cache.get([*other, 1, 0, {"max_tokens": 5, "stop": None}]) is None
    cache.close()


def test_completion_is_visible_to_other_connections_at_once(tmp_path: Path) -> None:
    first, second = CompletionCache(tmp_path / "answers.sqlite"), CompletionCache(tmp_path / "answers.sqlite")
    first.put(["q"], ["yes"])
    assert second.get(["q"]) == ["yes"]
    second.put(["q"], ["no"])
    assert first.get(["q"]) == ["no"]
    first.close()
    second.close()


def test_threads_can_share_a_cache(tmp_path: Path) -> None:
    cache = CompletionCache(tmp_path / "answers.sqlite")
    errors: list[object] = []

    def work(number: int) -> None:
        for turn in range(20):
            cache.put([number, turn], [number * turn])
            if cache.get([number, turn]) != [number * turn]:
                errors.append((number, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [cache.get([number, 19]) for number in range(5)] == [[19 * number] for number in range(5)]
    cache.close()


def put_until_killed(there: Connection, path: str) -> None:
    """Store completions until killed, and report each one after it is stored."""
    cache, number = CompletionCache(path), 0
    while True:
        cache.put(["question", number], [f"answer {number}"])
        there.send(number)
        number += 1


def test_no_stored_completion_is_lost_in_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    child = Child(put_until_killed, str(path))
    while child.hear() < 20:
        pass
    kept = max([20, *child.kill()])
    assert child.process.exitcode == -signal.SIGKILL
    cache = CompletionCache(path)
    assert [cache.get(["question", number]) for number in range(kept + 1)] == [[f"answer {n}"] for n in range(kept + 1)]
    cache.close()


def test_file_holds_no_request_text(tmp_path: Path) -> None:
    cache = CompletionCache(tmp_path / "answers.sqlite")
    cache.put(["m", [["user", "a secret question"]]], ["an open answer"])
    cache.close()
    held = (tmp_path / "answers.sqlite").read_bytes()
    assert b"an open answer" in held
    assert b"secret" not in held


# Errors -----------------------------------------------------------------------------------------------------


def test_file_that_is_not_a_cache_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    path.write_bytes(b"this is no database, but it is longer than a header" * 40)
    with pytest.raises(ModelError, match=r"answers\.sqlite: the completion cache cannot be used .*delete the file"):
        CompletionCache(path)
    with pytest.raises(ModelError, match="cannot be used"):
        CompletionCache(tmp_path / "nowhere" / "answers.sqlite")


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE answers SET answer = '[\"half an ans'",
        "DROP TABLE answers",
        "ALTER TABLE answers RENAME COLUMN answer TO text",
    ],
)
def test_damaged_content_is_a_one_sentence_error(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "answers.sqlite"
    cache = CompletionCache(path)
    cache.put(["q"], ["yes"])
    execute(path, damage)
    with pytest.raises(ModelError, match=r"the completion cache cannot be used .*; delete the file and try again$"):
        cache.get(["q"])
    cache.close()


def test_closed_cache_is_an_error_and_close_is_idempotent(tmp_path: Path) -> None:
    cache = CompletionCache(tmp_path / "answers.sqlite")
    cache.close()
    cache.close()
    with pytest.raises(ModelError, match="closed"):
        cache.get(["q"])
    with pytest.raises(ModelError, match="closed"):
        cache.put(["q"], ["yes"])


def test_failed_write_is_an_error_and_keeps_other_completions(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    cache = CompletionCache(path)
    cache.put(["q"], ["yes"])
    execute(path, "CREATE TRIGGER full BEFORE INSERT ON answers BEGIN SELECT raise(ABORT, 'disk is full'); END")
    with pytest.raises(ModelError, match="disk is full"):
        cache.put(["other"], ["no"])
    assert (cache.get(["q"]), cache.get(["other"])) == (["yes"], None)
    cache.close()
