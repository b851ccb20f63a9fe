"""memory/models/answer_cache.py: what a model once answered is found again, by exactly what was asked, also after a kill."""

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

from usertwin.memory.models.answer_cache import CompletionCache
from usertwin.personas import ModelError

_TEXTS = st.text(st.characters() | st.characters(min_codepoint=0xDC00, max_codepoint=0xDFFF), max_size=8)  # halves too
_ALIKE = st.lists(st.text('a", ', max_size=3) | st.lists(st.text('a", ', max_size=2), max_size=2), max_size=3)
_ASKED = st.lists(st.none() | st.booleans() | st.integers() | _TEXTS | st.lists(_TEXTS, max_size=3), max_size=4)
_ANSWERS = st.lists(st.tuples(_TEXTS, st.lists(st.integers(0, 9), max_size=3)), min_size=1, max_size=3)


def in_json(answer: list[tuple[str, list[int]]]) -> list[list[Any]]:
    return [list(one) for one in answer]


def raw(path: Path, statement: str) -> None:
    database = sqlite3.connect(path)
    database.execute(statement)
    database.commit()
    database.close()


@settings(max_examples=40)
@given(said=st.lists(st.tuples(_ASKED, _ANSWERS), max_size=6), never=_ASKED)
def test_the_last_answer_to_each_question_is_found_also_after_reopening(
    said: list[tuple[list[Any], Any]], never: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("answers") / "answers.sqlite"
    expected: dict[str, Any] = {}
    cache = CompletionCache(path)
    for asked, answer in said:
        cache.put(asked, answer)
        expected[repr(asked)] = in_json(answer)
        assert cache.get(asked) == in_json(answer)
    cache.close()
    again = CompletionCache(path)
    assert {repr(asked): again.get(asked) for asked, _ in said} == expected
    assert again.get(never) == expected.get(repr(never))
    again.close()


@settings(max_examples=40)
@given(one=_ALIKE, other=_ALIKE)
def test_two_questions_that_differ_do_not_share_an_answer(
    one: list[Any], other: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = CompletionCache(tmp_path_factory.mktemp("answers") / "answers.sqlite")
    cache.put(one, ["mine"])
    assert cache.get(other) == (["mine"] if repr(one) == repr(other) else None)
    cache.close()


def test_where_one_part_of_a_question_ends_matters_and_the_order_of_options_does_not(tmp_path: Path) -> None:
    cache = CompletionCache(tmp_path / "answers.sqlite")
    cache.put(["m", "", [["user", "ab"]], 1, 0, {"stop": None, "max_tokens": 5}], ["mine"])
    assert cache.get(["m", "", [["user", "ab"]], 1, 0, {"max_tokens": 5, "stop": None}]) == ["mine"]
    for other in (["m", "", [["user", "a"], ["b"]]], ["m", "user", [["", "ab"]]], ["m", "", [["user", "ab"]], 10]):
        assert cache.get([*other, 1, 0, {"max_tokens": 5, "stop": None}]) is None
    cache.close()


def test_an_answer_is_there_for_others_as_soon_as_it_is_kept(tmp_path: Path) -> None:
    one, other = CompletionCache(tmp_path / "answers.sqlite"), CompletionCache(tmp_path / "answers.sqlite")
    one.put(["q"], ["yes"])
    assert other.get(["q"]) == ["yes"]
    other.put(["q"], ["no"])
    assert one.get(["q"]) == ["no"]
    one.close()
    other.close()


def test_several_threads_may_use_one(tmp_path: Path) -> None:
    cache = CompletionCache(tmp_path / "answers.sqlite")
    wrong: list[object] = []

    def work(number: int) -> None:
        for turn in range(20):
            cache.put([number, turn], [number * turn])
            if cache.get([number, turn]) != [number * turn]:
                wrong.append((number, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert [cache.get([number, 19]) for number in range(5)] == [[19 * number] for number in range(5)]
    cache.close()


def answer_on(there: Connection, path: str) -> None:
    """Keep answers until killed, saying after each that it is kept."""
    cache, number = CompletionCache(path), 0
    while True:
        cache.put(["question", number], [f"answer {number}"])
        there.send(number)
        number += 1


def test_no_answer_that_was_kept_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    child = Child(answer_on, str(path))
    while child.hear() < 20:
        pass
    kept = max([20, *child.kill()])
    assert child.process.exitcode == -signal.SIGKILL
    cache = CompletionCache(path)
    assert [cache.get(["question", number]) for number in range(kept + 1)] == [[f"answer {n}"] for n in range(kept + 1)]
    cache.close()


def test_what_was_asked_is_not_in_the_file(tmp_path: Path) -> None:
    cache = CompletionCache(tmp_path / "answers.sqlite")
    cache.put(["m", [["user", "a secret question"]]], ["an open answer"])
    cache.close()
    held = (tmp_path / "answers.sqlite").read_bytes()
    assert b"an open answer" in held
    assert b"secret" not in held


# What cannot be used -----------------------------------------------------------------------------------------------------


def test_a_file_that_is_no_cache_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    path.write_bytes(b"this is no database, but it is longer than a header" * 40)
    with pytest.raises(ModelError, match=r"answers\.sqlite: the kept answers cannot be used .*delete that file"):
        CompletionCache(path)
    with pytest.raises(ModelError, match="cannot be used"):
        CompletionCache(tmp_path / "nowhere" / "answers.sqlite")


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE answers SET answer = '[\"half an ans'",
        "DROP TABLE answers",
        "ALTER TABLE answers RENAME COLUMN answer TO said",
    ],
)
def test_damage_inside_the_file_is_told_in_one_sentence(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "answers.sqlite"
    cache = CompletionCache(path)
    cache.put(["q"], ["yes"])
    raw(path, damage)
    with pytest.raises(ModelError, match=r"the kept answers cannot be used .*; delete that file and try again$"):
        cache.get(["q"])
    cache.close()


def test_a_closed_cache_says_so_and_may_be_closed_again(tmp_path: Path) -> None:
    cache = CompletionCache(tmp_path / "answers.sqlite")
    cache.close()
    cache.close()
    with pytest.raises(ModelError, match="closed"):
        cache.get(["q"])
    with pytest.raises(ModelError, match="closed"):
        cache.put(["q"], ["yes"])


def test_an_answer_that_cannot_be_written_is_an_error_and_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    cache = CompletionCache(path)
    cache.put(["q"], ["yes"])
    raw(path, "CREATE TRIGGER full BEFORE INSERT ON answers BEGIN SELECT raise(ABORT, 'disk is full'); END")
    with pytest.raises(ModelError, match="disk is full"):
        cache.put(["other"], ["no"])
    assert (cache.get(["q"]), cache.get(["other"])) == (["yes"], None)
    cache.close()
