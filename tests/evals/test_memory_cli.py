"""`usertwin memory`: looked at, checked, mended, grown and forgotten, as a user would type it."""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from conftest import other_conversation, small_conversation
from usertwin.evals.cli.main import main
from usertwin.memory import Settings, Triple, TripleStore, TwinRecord, existing_twin
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.twin.forget import forget
from usertwin.personas import Conversation, read_conversations, write_conversations


def usertwin(*words: str) -> Result:
    """What a command prints, and its exit code."""
    return CliRunner().invoke(main, ["memory", *words], env={"COLUMNS": "300"})


def done(*words: str) -> str:
    found = usertwin(*words)
    assert found.exit_code == 0, found.output
    return found.output


def known(name: str) -> list[Triple]:
    """The triples of a twin."""
    with TripleStore(existing_twin(name), FakeEmbedder(), create=False) as store:
        return list(store.triples())


def bytes_of(folder: Path) -> bytes:
    """Everything in a twin's folder, unpacked."""
    raw = [path.read_bytes() for path in folder.iterdir()]
    return b"".join(gzip.decompress(part) if part[:2] == b"\x1f\x8b" else part for part in raw)


def a_log(conversations: Sequence[Conversation], path: Path) -> str:
    write_conversations(conversations, path)
    return str(path)


def flip(path: Path, place: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)


# Looking -----------------------------------------------------------------------------------------------------------------


def test_stats_tell_what_is_held_and_how_it_is_searched(ann: str) -> None:
    text = done("stats", ann)
    for part in ("42, 42 with a trace, 0 silent leavings", "flat (chosen by size)", "1.000 (every triple is compared)"):
        assert part in text
    assert "2024-03-01 10:00+00:00, 2024-03-14 10:00+00:00" in text
    assert "fake:256, 256 numbers each" in text


def test_a_whole_memory_is_said_to_be_whole_and_looking_changes_nothing(ann: str) -> None:
    before = {path.name: path.read_bytes() for path in existing_twin(ann).iterdir()}
    assert done("check", ann).strip() == "all 42 triples are whole"
    assert {path.name: path.read_bytes() for path in existing_twin(ann).iterdir()} == before


def test_a_damaged_index_is_told_and_is_no_failure_since_it_mends_itself(ann: str) -> None:
    flip(existing_twin(ann) / "memory.faiss", 100)
    assert "memory.faiss is damaged; it is built again" in done("check", ann)
    assert "was built again from 42 triples" in done("stats", ann).replace("\n", " ")
    assert "memory.faiss" not in done("check", ann)


@pytest.mark.parametrize("command", ["stats", "check", "rebuild"])
def test_a_twin_that_is_not_there_is_said_with_those_that_are(ann: str, command: str) -> None:
    found = usertwin(command, "bea")
    assert found.exit_code == 2
    assert 'there is no twin "bea"' in found.output
    assert "(there: ann)" in found.output


# Mending -----------------------------------------------------------------------------------------------------------------


def test_of_a_damaged_memory_every_whole_triple_is_kept_and_the_rest_can_be_had_from_the_log(ann: str, log_file: Path) -> None:
    folder, before = existing_twin(ann), known(ann)
    raw = (folder / "memory.sqlite").read_bytes()
    flip(folder / "memory.sqlite", raw.rindex(before[20].pair.action.encode()) + 2)
    assert usertwin("stats", ann).exit_code == 2
    checked = usertwin("check", ann)
    assert checked.exit_code == 1
    assert "1 of 42 triples are not what was written" in checked.output
    assert "41 triples are whole; keep them with: usertwin memory rebuild ann" in checked.output
    assert "41 triples were kept, 1 could not be read and are lost" in done("rebuild", ann)
    kept = known(ann)
    assert kept == [triple for triple in before if triple in kept]
    assert done("check", ann).strip() == "all 41 triples are whole"
    assert "1 new moments are remembered" in done("add", ann, "--from", str(log_file))
    assert [t.pair for t in known(ann)] == [t.pair for t in before]


def test_what_can_be_read_is_kept_even_if_the_memory_no_longer_knows_itself(ann: str) -> None:
    folder, before = existing_twin(ann), known(ann)
    with sqlite3.connect(folder / "memory.sqlite") as database:
        database.execute("DELETE FROM meta")
    assert "what the memory knows about itself is lost" in usertwin("check", ann).output
    done("rebuild", ann)
    assert known(ann) == before


def test_a_memory_of_which_nothing_is_left_is_said_to_be_lost(ann: str) -> None:
    path = existing_twin(ann) / "memory.sqlite"
    path.write_bytes(b"\0" * path.stat().st_size)
    found = usertwin("rebuild", ann)
    assert found.exit_code == 2
    assert found.output.strip().endswith("learn the twin again with --overwrite")
    assert "Traceback" not in found.output


def test_the_kind_of_index_can_be_chosen_and_stays(ann: str) -> None:
    assert "flat (as wanted)" in done("rebuild", ann, "--index", "flat")
    assert "flat (as wanted)" in done("stats", ann)
    assert "flat (as wanted)" in done("rebuild", ann)
    assert "flat (chosen by size)" in done("rebuild", ann, "--index", "auto")
    assert usertwin("rebuild", ann, "--index", "magic").exit_code == 2


# Growing -----------------------------------------------------------------------------------------------------------------


def test_another_log_of_the_person_joins_and_what_is_there_or_held_out_is_skipped(
    ann: str, log_file: Path, tmp_path: Path
) -> None:
    before, record = known(ann), TwinRecord.load(existing_twin(ann))
    assert "nothing new" in done("add", ann, "--from", str(log_file))
    assert known(ann) == before
    fresh = [replace(small_conversation(n), started_at=f"2024-05-{n - 20:02d}") for n in range(21, 24)]
    path = a_log([*fresh, *map(small_conversation, range(20))], tmp_path / "more.jsonl")
    assert "9 new moments are remembered" in done("add", ann, "--from", path)
    after = known(ann)
    assert after[: len(before)] == before  # with their traces
    assert {t.pair.conversation_id for t in after[len(before) :]} == {c.conversation_id for c in fresh}
    grown = TwinRecord.load(existing_twin(ann))
    assert grown.corpus == (*record.corpus, *(c.conversation_id for c in fresh))
    assert replace(grown, corpus=()) == replace(record, corpus=())
    assert "nothing new" in done("add", ann, "--from", path)


def test_new_moments_get_traces_if_some_are_wanted(ann: str, tmp_path: Path) -> None:
    script = tmp_path / "script.txt"
    script.write_text("wants the weather\nis in a hurry\n")
    path = a_log([replace(small_conversation(21), started_at="2024-05-01")], tmp_path / "more.jsonl")
    done("add", ann, "--from", path, "--max-traces", "2", "--model", f"scripted:{script}", "--scorer", "fake:")
    assert [t.provenance is not None for t in known(ann)[-3:]] == [False, True, True]


def test_a_conversation_that_went_on_is_no_longer_one_that_was_left(ann: str, tmp_path: Path) -> None:
    whole = replace(small_conversation(22), started_at="2024-05-01")
    done("add", ann, "--from", a_log([replace(whole, turns=whole.turns[:-1])], tmp_path / "first.jsonl"))
    assert [t.pair.abandoned for t in known(ann)[-3:]] == [False, False, True]
    done("add", ann, "--from", a_log([whole], tmp_path / "then.jsonl"))
    assert [t.pair.action for t in known(ann)[-3:]] == [turn.text for turn in whole.turns if turn.speaker == "Ann"]


def test_a_log_that_does_not_fit_adds_nothing(ann: str, tmp_path: Path) -> None:
    before = known(ann)
    for conversations, why in (
        ([other_conversation(1)], 'nobody called "Ann" speaks here'),
        ([replace(small_conversation(25), started_at=None)], 'its conversations need "started_at"'),
    ):
        found = usertwin("add", ann, "--from", a_log(conversations, tmp_path / "odd.jsonl"))
        assert found.exit_code == 2
        assert why in found.output
    assert known(ann) == before


# Forgetting --------------------------------------------------------------------------------------------------------------


def test_a_forgotten_conversation_is_in_no_file_any_more(ann: str) -> None:
    folder = existing_twin(ann)
    gone = TwinRecord.load(folder).corpus[4]
    said = next(t.pair.action for t in known(ann) if t.pair.conversation_id == gone and "day" in t.pair.action)
    assert said.encode() in bytes_of(folder)
    assert "3 moments and 0 other conversations are forgotten" in done("forget", ann, "--conversation", gone)
    assert gone.encode() not in bytes_of(folder)
    assert said.encode() not in bytes_of(folder)
    assert len(known(ann)) == 39
    assert gone not in TwinRecord.load(folder).corpus


def test_a_held_out_conversation_is_forgotten_too(ann: str) -> None:
    folder = existing_twin(ann)
    record = TwinRecord.load(folder)
    assert "0 moments and 1 other conversations are forgotten" in done("forget", ann, "--conversation", record.test[0])
    assert TwinRecord.load(folder).test == record.test[1:]
    assert record.test[0].encode() not in bytes_of(folder)


def test_everything_before_or_after_a_date_is_forgotten(ann: str) -> None:
    folder = existing_twin(ann)
    done("forget", ann, "--before", "2024-03-05")
    assert min(t.pair.conversation_id for t in known(ann)) == "talk-04"
    done("forget", ann, "--after", "2024-03-10T09:00")
    assert max(t.pair.conversation_id for t in known(ann)) == "talk-08"
    record = TwinRecord.load(folder)
    assert (record.validation, record.test, record.closeness) == ((), (), None)
    assert all(f"talk-{n:02d}".encode() not in bytes_of(folder) for n in (*range(4), *range(9, 20)))
    assert len(record.corpus) == 5
    assert "15 moments" in done("forget", ann, "--after", "2024-01-01", "--before", "2024-12-31")
    assert known(ann) == []


def test_a_conversation_that_is_partly_too_late_is_forgotten_as_a_whole_where_it_is_kept_for_measuring(ann: str) -> None:
    folder = existing_twin(ann)
    held_out = list(read_conversations(folder / "held_out.jsonl.gz").conversations)
    turns = (replace(held_out[0].turns[0], time="2025-01-01T00:00:00+00:00"), *held_out[0].turns[1:])
    write_conversations([replace(held_out[0], turns=turns), *held_out[1:]], folder / "held_out.jsonl.gz")
    assert forget(folder, FakeEmbedder(), after=1735600000.0).conversations == 1
    assert len(read_conversations(folder / "held_out.jsonl.gz").conversations) == len(held_out) - 1


def test_what_was_decided_outlives_forgetting_and_its_figures_do_not(ann: str) -> None:
    """Traces that were found to hurt are not shown again only because something was forgotten."""
    folder = existing_twin(ann)
    decided = Settings(k=4, window=3, traces="none", reasons=False, measured={"turns": 6, "settings": []})
    replace(TwinRecord.load(folder), settings=decided).save(folder)
    done("forget", ann, "--conversation", known(ann)[0].pair.conversation_id)
    assert TwinRecord.load(folder).settings == replace(decided, measured=None)
    assert b'"turns": 6' not in (folder / "twin.json").read_bytes()


def test_forgetting_nothing_that_is_there_changes_nothing(ann: str) -> None:
    folder = existing_twin(ann)
    before = (folder / "twin.json").read_bytes()
    assert "0 moments and 0 other" in done("forget", ann, "--conversation", "nowhere")
    assert (folder / "twin.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "name either a conversation, or a date"),
        (("--conversation", "x", "--before", "2024-01-01"), "name either a conversation, or a date"),
        (("--before", "yesterday"), '"yesterday" is no date'),
    ],
)
def test_what_to_forget_must_be_said(ann: str, words: tuple[str, ...], why: str) -> None:
    before = known(ann)
    found = usertwin("forget", ann, *words)
    assert found.exit_code == 2
    assert why in found.output
    assert known(ann) == before


def test_a_twin_without_dates_forgets_by_conversation_only(ann: str) -> None:
    path = existing_twin(ann) / "twin.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dated": False}))
    found = usertwin("forget", ann, "--before", "2024-03-05")
    assert found.exit_code == 2
    assert "has no dates; name the conversation" in found.output


def test_in_a_log_without_dates_what_is_added_counts_as_later_than_everything(ann: str, tmp_path: Path) -> None:
    path = existing_twin(ann) / "twin.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"dated": False}))
    last = max(t.pair.when for t in known(ann))
    done("add", ann, "--from", a_log([replace(small_conversation(n), started_at=None) for n in (25, 26)], tmp_path / "m.jsonl"))
    added = [t.pair for t in known(ann)][-6:]
    assert {pair.conversation_id for pair in added} == {"talk-25", "talk-26"}
    held_out = len(record["validation"]) + len(record["test"])
    assert min(pair.when for pair in added) > max(last, record["corpus_ends"] + held_out)
