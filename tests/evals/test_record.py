"""Records of held-out turns survive being written, and a run's folder is read whole or refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.evals.records.measured_turns import (
    MANIFEST,
    RESULT,
    RUN_FORMAT,
    MeasuredTurn,
    Memory,
    read_manifest,
    read_result,
    read_turns,
    turns_of,
)
from usertwin.personas import UsageError

#: Any text that can be written to a file, with what breaks lines elsewhere made frequent.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["\u2028", "\u2029", "\x85", "\r\n", "\n", "\x0b\x0c", "\x00", "\ufeff", '"\\', "é\U0001f600", ""]
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SAID = st.lists(st.tuples(TEXTS, TEXTS), max_size=3).map(tuple)
SHARES = st.dictionaries(TEXTS, NUMBERS, max_size=3)
MEMORIES = st.builds(Memory, TEXTS, st.integers(0, 99), NUMBERS, SAID, TEXTS, st.none() | TEXTS)
TURNS = st.builds(
    MeasuredTurn, TEXTS, TEXTS, st.integers(0, 99), SAID, TEXTS, st.integers(1, 999), TEXTS, SHARES, SHARES,
    replies=st.dictionaries(TEXTS, st.lists(TEXTS, max_size=3).map(tuple), max_size=3),
    reasoning=st.dictionaries(TEXTS, TEXTS, max_size=3),
    similarity=st.dictionaries(TEXTS, st.lists(NUMBERS, max_size=3).map(tuple), max_size=3),
    rank=st.dictionaries(TEXTS, st.lists(NUMBERS, max_size=3).map(tuple), max_size=3),
    recalled=st.lists(MEMORIES, max_size=2).map(tuple), other_action=TEXTS, own_action=TEXTS,
)  # fmt: skip
TURN = MeasuredTurn(
    "x/Ann", "talk", 3, (("Me", "hi"), ("desk", "hello")), "fine\u2028thanks", 12, bits={"no_memory": 3.5},
    replies={"no_memory": ("é", "")}, recalled=(Memory("old", 1, 0.5, (("desk", "so?"),), "so", None),),
)  # fmt: skip


def line_of(turn: MeasuredTurn) -> str:
    return json.dumps(turn.to_json(), ensure_ascii=False) + "\n"


# Records -------------------------------------------------------------------------------------------------------------


@given(TURNS)
def test_a_record_comes_back_the_same_from_a_line_of_json(turn: MeasuredTurn) -> None:
    line = line_of(turn)
    assert line.count("\n") == 1
    found = MeasuredTurn.from_json(json.loads(line))
    assert found == turn
    assert hash(found.context) == hash(turn.context)  # tuples again, not lists
    assert line_of(found) == line


@given(st.lists(TURNS, max_size=3))
def test_records_come_back_the_same_from_a_file(tmp_path_factory: pytest.TempPathFactory, turns: list[MeasuredTurn]) -> None:
    path = tmp_path_factory.mktemp("run") / "0.jsonl"
    path.write_bytes("".join(map(line_of, turns)).encode())
    assert turns_of(path) == turns


@given(st.integers(0, len(line_of(TURN).encode()) - 1))
def test_a_last_line_that_was_cut_short_anywhere_is_left_out(tmp_path_factory: pytest.TempPathFactory, left: int) -> None:
    path = tmp_path_factory.mktemp("run") / "0.jsonl"
    path.write_bytes(line_of(TURN).encode() + line_of(TURN).encode()[:left])
    assert turns_of(path) == [TURN]


@given(st.recursive(st.none() | st.booleans() | NUMBERS | TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner)))
def test_a_line_that_is_something_else_is_refused_with_its_file_and_number(
    tmp_path_factory: pytest.TempPathFactory, value: object
) -> None:
    path = tmp_path_factory.mktemp("run") / "0.jsonl"
    path.write_text(line_of(TURN) + json.dumps(value) + "\n" + line_of(TURN), "utf-8")
    with pytest.raises(UsageError, match=r"0\.jsonl, line 2: no measured turn .*; delete that line"):
        turns_of(path)


@pytest.mark.parametrize("key", sorted(TURN.to_json()))
@pytest.mark.parametrize("wrong", [3, None])
def test_a_record_with_a_part_of_the_wrong_kind_is_refused_where_it_would_be_read(tmp_path: Path, key: str, wrong: Any) -> None:
    path = tmp_path / "0.jsonl"
    path.write_text(json.dumps(TURN.to_json() | {key: wrong}) + "\n", "utf-8")
    if key in {"context", "replies", "similarity", "rank", "recalled"}:
        with pytest.raises(UsageError, match="line 1"):
            turns_of(path)
    else:
        assert len(turns_of(path)) == 1


def test_an_unknown_part_is_refused_since_it_would_be_lost(tmp_path: Path) -> None:
    path = tmp_path / "0.jsonl"
    path.write_text(json.dumps(TURN.to_json() | {"mood": "good"}) + "\n", "utf-8")
    with pytest.raises(UsageError, match="mood"):
        turns_of(path)


def test_bytes_that_are_no_text_are_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "0.jsonl"
    path.write_bytes(line_of(TURN).encode() + b"\xff\xfe\n")
    with pytest.raises(UsageError, match="line 2"):
        turns_of(path)


def test_where_there_is_no_file_nothing_was_measured(tmp_path: Path) -> None:
    assert turns_of(tmp_path / "nowhere.jsonl") == []


# The folder ----------------------------------------------------------------------------------------------------------


def run_folder(tmp_path: Path, *, result: str | None = '{"turns": 3}', **manifest: Any) -> Path:
    folder = tmp_path / "run"
    (folder / "people").mkdir(parents=True)
    (folder / MANIFEST).write_text(json.dumps({"format": RUN_FORMAT, "state": "complete", **manifest}), "utf-8")
    if result is not None:
        (folder / RESULT).write_text(result, "utf-8")
    return folder


def test_a_finished_run_is_read(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, name="x")
    assert read_manifest(folder)["name"] == "x"
    assert read_result(folder) == {"turns": 3}


def test_people_are_read_in_their_order_also_beyond_ten(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    for number in (10, 2, 0):
        turn = MeasuredTurn(f"x/p{number}", "talk", 0, (), "hi", 3)
        (folder / "people" / f"{number}.jsonl").write_text(line_of(turn), "utf-8")
    (folder / "people" / "2.json").write_text("{}", "utf-8")
    assert [turn.person for turn in read_turns(folder)] == ["x/p0", "x/p2", "x/p10"]


@pytest.mark.parametrize("told", [0, RUN_FORMAT + 1, None, "1"])
def test_a_run_of_another_version_is_refused(tmp_path: Path, told: Any) -> None:
    folder = run_folder(tmp_path, format=told)
    for read in (read_manifest, read_result):
        with pytest.raises(UsageError, match=f"run of format {told}, and this version reads format {RUN_FORMAT}"):
            read(folder)


@pytest.mark.parametrize("content", ["[]", "3", "null"])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    folder = run_folder(tmp_path)
    (folder / MANIFEST).write_text(content, "utf-8")
    with pytest.raises(UsageError, match="format None"):
        read_manifest(folder)


@pytest.mark.parametrize("content", [b"", b"{broken", b"\xff\xfe"])
def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    folder = run_folder(tmp_path)
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(UsageError, match=r"manifest\.json: cannot be read"):
        read_manifest(folder)


def test_the_folder_of_simulated_conversations_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds conversations of `usertwin simulate`"):
        read_manifest(run_folder(tmp_path, kind="simulate"))


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run is there; name the folder of a run"):
        read_result(tmp_path / "nowhere")


@pytest.mark.parametrize("broken", [{"state": "interrupted"}, {"result": None}])
def test_an_unfinished_run_has_no_result(tmp_path: Path, broken: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="was not finished; the same command that began it goes on where it stopped"):
        read_result(run_folder(tmp_path, **broken))


def test_a_result_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"result\.json: cannot be read .*; run the suite again"):
        read_result(run_folder(tmp_path, result='{"turns": '))
