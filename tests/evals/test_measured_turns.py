"""Records of held-out turns and run folders: round trips and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invented_run import result as invented_result

from usertwin.evals.records.measured_turns import (
    MANIFEST,
    RESULT,
    RUN_FORMAT,
    ContextFit,
    MeasuredTurn,
    PastTurn,
    RecalledTurn,
    read_manifest,
    read_result,
    read_turn_file,
    read_turns,
)
from usertwin.personas import UsageError

#: Any text that a file can hold, with line separators of other formats made frequent.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["\u2028", "\u2029", "\x85", "\r\n", "\n", "\x0b\x0c", "\x00", "\ufeff", '"\\', "é\U0001f600", ""]
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
CONTEXTS = st.lists(st.tuples(TEXTS, TEXTS), max_size=3).map(tuple)
BY_ARM = st.dictionaries(TEXTS, NUMBERS, max_size=3)
RECALLED = st.builds(
    RecalledTurn, conversation_id=TEXTS, position=st.integers(0, 99), similarity=NUMBERS, context=CONTEXTS, action=TEXTS,
    reasoning=st.none() | TEXTS,
)  # fmt: skip
FITS = st.builds(ContextFit, latest=NUMBERS, context=NUMBERS, own=NUMBERS, goal=NUMBERS)
PAST = st.builds(
    PastTurn, conversation_id=TEXTS, position=st.integers(0, 99), context=CONTEXTS, action=TEXTS, goal=TEXTS, fit=FITS,
    misplaced_fit=FITS,
)  # fmt: skip
TURNS = st.builds(
    MeasuredTurn, person=TEXTS, conversation_id=TEXTS, position=st.integers(0, 99), context=CONTEXTS, action=TEXTS,
    characters=st.integers(1, 999), goal=TEXTS, bits=BY_ARM, choice=BY_ARM,
    replies=st.dictionaries(TEXTS, st.lists(TEXTS, max_size=3).map(tuple), max_size=3),
    reasoning=st.dictionaries(TEXTS, TEXTS, max_size=3),
    similarity=st.dictionaries(TEXTS, st.lists(NUMBERS, max_size=3).map(tuple), max_size=3),
    rank=st.dictionaries(TEXTS, st.lists(NUMBERS, max_size=3).map(tuple), max_size=3),
    recalled=st.lists(RECALLED, max_size=2).map(tuple), other_action=TEXTS, past=st.none() | PAST,
    real_fit=st.none() | FITS, fit=st.dictionaries(TEXTS, FITS, max_size=3),
)  # fmt: skip
TURN = MeasuredTurn(
    person="x/Ann", conversation_id="talk", position=3, context=(("Me", "hi"), ("desk", "hello")), action="fine\u2028thanks",
    characters=12, bits={"no_memory": 3.5}, replies={"no_memory": ("é", "")},
    recalled=(RecalledTurn(conversation_id="old", position=1, similarity=0.5, context=(("desk", "so?"),), action="so"),),
)  # fmt: skip


def line_of(turn: MeasuredTurn) -> str:
    return json.dumps(turn.to_json(), ensure_ascii=False) + "\n"


# Records -------------------------------------------------------------------------------------------------------------


@given(TURNS)
def test_a_record_round_trips(turn: MeasuredTurn) -> None:
    line = line_of(turn)
    assert line.count("\n") == 1
    found = MeasuredTurn.from_json(json.loads(line))
    assert found == turn
    assert hash(found.context) == hash(turn.context)  # tuples again, not lists
    assert line_of(found) == line


@given(st.lists(TURNS, max_size=3))
def test_records_round_trip_through_a_file(tmp_path_factory: pytest.TempPathFactory, turns: list[MeasuredTurn]) -> None:
    path = tmp_path_factory.getbasetemp() / "0.jsonl"
    path.write_bytes("".join(map(line_of, turns)).encode())
    assert read_turn_file(path) == turns


@given(st.integers(0, len(line_of(TURN).encode()) - 1))
def test_a_truncated_last_line_is_left_out(tmp_path_factory: pytest.TempPathFactory, left: int) -> None:
    path = tmp_path_factory.getbasetemp() / "0.jsonl"
    path.write_bytes(line_of(TURN).encode() + line_of(TURN).encode()[:left])
    assert read_turn_file(path) == [TURN]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=5
)


@given(JSON_VALUES)
def test_an_invalid_line_is_an_error_with_file_and_number(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "0.jsonl"
    path.write_text(line_of(TURN) + json.dumps(value) + "\n" + line_of(TURN), "utf-8")
    with pytest.raises(UsageError, match=r"0\.jsonl:2: not a valid measured turn: .*; delete that line"):
        read_turn_file(path)


@pytest.mark.parametrize("key", sorted(TURN.to_json()))
@pytest.mark.parametrize("wrong", [3, None])
def test_a_field_of_the_wrong_type_is_an_error(tmp_path: Path, key: str, wrong: Any) -> None:
    path = tmp_path / "0.jsonl"
    path.write_text(json.dumps(TURN.to_json() | {key: wrong}) + "\n", "utf-8")
    if (isinstance(TURN.to_json()[key], int) and wrong == 3) or (key in {"past", "real_fit"} and wrong is None):
        assert len(read_turn_file(path)) == 1
    else:
        with pytest.raises(UsageError, match=rf"0\.jsonl:1: not a valid measured turn: {key}: .*, not {wrong}"):
            read_turn_file(path)


def test_an_unknown_field_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "0.jsonl"
    path.write_text(json.dumps(TURN.to_json() | {"mood": "good"}) + "\n", "utf-8")
    with pytest.raises(UsageError, match="mood"):
        read_turn_file(path)


def test_invalid_bytes_are_an_error_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "0.jsonl"
    path.write_bytes(line_of(TURN).encode() + b"\xff\xfe\n")
    with pytest.raises(UsageError, match="jsonl:2"):
        read_turn_file(path)


def test_a_missing_file_has_no_turns(tmp_path: Path) -> None:
    assert read_turn_file(tmp_path / "nowhere.jsonl") == []


# Run folders ---------------------------------------------------------------------------------------------------------


def run_folder(tmp_path: Path, *, result: str | None = json.dumps(invented_result()), **manifest: Any) -> Path:
    folder = tmp_path / "run"
    (folder / "people").mkdir(parents=True)
    (folder / MANIFEST).write_text(json.dumps({"format": RUN_FORMAT, "state": "complete", **manifest}), "utf-8")
    if result is not None:
        (folder / RESULT).write_text(result, "utf-8")
    return folder


def test_a_finished_run_is_read(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, name="x")
    assert read_manifest(folder)["name"] == "x"
    assert read_result(folder) == json.loads(json.dumps(invented_result()))


def test_people_are_read_in_numeric_order(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    for number in (10, 2, 0):
        turn = MeasuredTurn(person=f"x/p{number}", conversation_id="talk", position=0, context=(), action="hi", characters=3)
        (folder / "people" / f"{number}.jsonl").write_text(line_of(turn), "utf-8")
    (folder / "people" / "2.json").write_text("{}", "utf-8")
    assert [turn.person for turn in read_turns(folder)] == ["x/p0", "x/p2", "x/p10"]


@pytest.mark.parametrize("written_format", [0, RUN_FORMAT + 1, None, "1"])
def test_a_run_of_another_format_is_an_error(tmp_path: Path, written_format: Any) -> None:
    folder = run_folder(tmp_path, format=written_format)
    for read in (read_manifest, read_result):
        with pytest.raises(UsageError, match=f"run of format {written_format}, but this version reads format {RUN_FORMAT}"):
            read(folder)


@pytest.mark.parametrize("content", ["[]", "3", "null"])
def test_a_manifest_of_another_type_is_an_error(tmp_path: Path, content: str) -> None:
    folder = run_folder(tmp_path)
    (folder / MANIFEST).write_text(content, "utf-8")
    with pytest.raises(UsageError, match="format None"):
        read_manifest(folder)


@pytest.mark.parametrize("content", [b"", b"{broken", b"\xff\xfe"])
def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    folder = run_folder(tmp_path)
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(UsageError, match=r"manifest\.json: it is not (JSON|UTF-8 text)"):
        read_manifest(folder)


def test_a_folder_of_simulated_conversations_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds conversations of `usertwin simulate`"):
        read_manifest(run_folder(tmp_path, kind="simulate"))


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run; name the folder of a run"):
        read_result(tmp_path / "nowhere")


@pytest.mark.parametrize("broken", [{"state": "interrupted"}, {"result": None}])
def test_an_unfinished_run_has_no_result(tmp_path: Path, broken: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="is not finished; run the same command again to resume it"):
        read_result(run_folder(tmp_path, **broken))


def test_a_result_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"result\.json: it is not JSON .*; run the suite again"):
        read_result(run_folder(tmp_path, result='{"turns": '))


def test_a_record_of_an_earlier_version_has_the_present_arms() -> None:
    turn = MeasuredTurn(
        person="x/Ann", conversation_id="talk", position=0, context=(), action="hi", characters=3, bits={"recon": 2.0},
        choice={"recon": 1.0}, replies={"recon": ("a",)}, reasoning={"recon": "b"}, similarity={"recon": (0.5,)},
        rank={"recon": (0.5,)},
    )  # fmt: skip
    old = json.loads(json.dumps(turn.to_json()).replace("recon", "recalled_triples")) | {"own_action": "so"}
    assert MeasuredTurn.from_json(old) == turn
