"""evals/cli/memory.py: a twin's memory is inspected, checked, repaired, extended and erased."""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from cli_runner import THOUGHTS, contents_of, learn_command, run, write_script
from click.testing import Result
from judge_replies import judge_rule

from conftest import other_conversation, small_conversation
from usertwin.memory import Settings, Triple, TripleStore, TwinRecord, existing_twin
from usertwin.memory.models.completion_cache import COMPLETIONS_FILE, CompletionCache
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.twin.forget import forget
from usertwin.personas import Conversation, read_conversations, write_conversations


def run_memory(*arguments: str) -> Result:
    """Run `usertwin memory`."""
    return run("memory", *arguments)


def output_of(*arguments: str) -> str:
    """Return what `usertwin memory` prints if it succeeds."""
    result = run_memory(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def triples_of(name: str) -> list[Triple]:
    with TripleStore(existing_twin(name), FakeEmbedder(), create=False) as store:
        return list(store.triples())


def unpacked(folder: Path) -> bytes:
    """Return all bytes in a twin's folder, decompressed."""
    parts = contents_of(folder).values()
    return b"".join(gzip.decompress(part) if part[:2] == b"\x1f\x8b" else part for part in parts)


def log_of(conversations: Sequence[Conversation], path: Path) -> str:
    write_conversations(conversations, path)
    return str(path)


def flip_bit(path: Path, position: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)


# stats and check ------------------------------------------------------------------------------------------------------


def test_stats_show_the_contents_and_the_index(ann: str) -> None:
    text = output_of("stats", ann)
    for part in ("42, 42 with a trace, 0 abandonments", "flat (chosen by size)", "1.000 (every triple is compared)"):
        assert part in text
    assert "2024-03-01 10:00+00:00, 2024-03-14 10:00+00:00" in text
    assert "fake:256, 256 dimensions" in text


def test_check_passes_an_intact_memory_and_changes_nothing(ann: str) -> None:
    before = contents_of(existing_twin(ann))
    assert output_of("check", ann).strip() == "all 42 triples are intact"
    assert contents_of(existing_twin(ann)) == before


def test_a_damaged_index_is_reported_but_rebuilt_automatically(ann: str) -> None:
    flip_bit(existing_twin(ann) / "memory.faiss", 100)
    assert "memory.faiss is damaged; it is rebuilt when the twin is next opened" in output_of("check", ann)
    assert "from 42 triples" in output_of("stats", ann).replace("\n", " ")
    assert "memory.faiss" not in output_of("check", ann)


@pytest.mark.parametrize("command", ["stats", "check", "rebuild"])
def test_an_unknown_twin_is_reported_with_the_known_ones(ann: str, command: str) -> None:
    result = run_memory(command, "bea")
    assert result.exit_code == 2
    assert 'there is no twin "bea"' in result.output
    assert "ann" in result.output


# rebuild --------------------------------------------------------------------------------------------------------------


def test_rebuild_keeps_intact_triples_and_add_restores_the_others(ann: str, log_file: Path) -> None:
    folder, before = existing_twin(ann), triples_of(ann)
    raw = (folder / "memory.sqlite").read_bytes()
    flip_bit(folder / "memory.sqlite", raw.rindex(before[20].pair.action.encode()) + 2)
    assert run_memory("stats", ann).exit_code == 2
    checked = run_memory("check", ann)
    assert checked.exit_code == 1
    assert "1 of 42 triples" in checked.output
    assert "41 triples are intact; keep them with: usertwin memory rebuild ann" in checked.output
    assert "41 triples were kept, 1 were unreadable and are lost" in output_of("rebuild", ann)
    kept = triples_of(ann)
    assert kept == [triple for triple in before if triple in kept]
    assert output_of("check", ann).strip() == "all 41 triples are intact"
    assert "1 pairs added" in output_of("add", ann, "--from", str(log_file))
    assert [triple.pair for triple in triples_of(ann)] == [triple.pair for triple in before]


def test_rebuild_works_without_the_metadata(ann: str) -> None:
    folder, before = existing_twin(ann), triples_of(ann)
    with sqlite3.connect(folder / "memory.sqlite") as database:
        database.execute("DELETE FROM meta")
    assert "the metadata is lost" in run_memory("check", ann).output
    output_of("rebuild", ann)
    assert triples_of(ann) == before


def test_a_memory_without_anything_readable_is_reported_as_lost(ann: str) -> None:
    path = existing_twin(ann) / "memory.sqlite"
    path.write_bytes(b"\0" * path.stat().st_size)
    result = run_memory("rebuild", ann)
    assert result.exit_code == 2
    assert "--overwrite" in result.output
    assert "Traceback" not in result.output


def test_the_requested_kind_of_index_is_kept(ann: str) -> None:
    assert "flat (as requested)" in output_of("rebuild", ann, "--index", "flat")
    assert "flat (as requested)" in output_of("stats", ann)
    assert "flat (as requested)" in output_of("rebuild", ann)
    assert "flat (chosen by size)" in output_of("rebuild", ann, "--index", "auto")
    assert "flat (ivfpq is requested, but needs more triples)" in output_of("rebuild", ann, "--index", "ivfpq")
    assert run_memory("rebuild", ann, "--index", "magic").exit_code == 2


# add ------------------------------------------------------------------------------------------------------------------


def test_add_skips_known_and_held_out_pairs(ann: str, log_file: Path, tmp_path: Path) -> None:
    before, record = triples_of(ann), TwinRecord.load(existing_twin(ann))
    assert "nothing added" in output_of("add", ann, "--from", str(log_file))
    assert triples_of(ann) == before
    new = [replace(small_conversation(n), started_at=f"2024-05-{n - 20:02d}") for n in range(21, 24)]
    path = log_of([*new, *map(small_conversation, range(20))], tmp_path / "more.jsonl")
    assert "9 pairs added" in output_of("add", ann, "--from", path)
    after = triples_of(ann)
    assert after[: len(before)] == before  # with their traces
    assert {triple.pair.conversation_id for triple in after[len(before) :]} == {c.conversation_id for c in new}
    extended = TwinRecord.load(existing_twin(ann))
    assert extended.corpus == (*record.corpus, *(c.conversation_id for c in new))
    assert replace(extended, corpus=()) == replace(record, corpus=())
    assert "nothing added" in output_of("add", ann, "--from", path)


def test_the_latest_new_pairs_get_traces_on_request(ann: str, tmp_path: Path) -> None:
    model = write_script(tmp_path, "wants the weather", "is in a hurry")
    path = log_of([replace(small_conversation(21), started_at="2024-05-01")], tmp_path / "more.jsonl")
    output_of("add", ann, "--from", path, "--max-traces", "2", "--model", model, "--scorer", "fake:")
    assert [triple.provenance is not None for triple in triples_of(ann)[-3:]] == [False, True, True]


@pytest.mark.parametrize(
    ("traces", "fidelity"), [("random", "guarded_gain"), ("recon", "rank"), ("recon", "judge"), ("quality", "guarded_gain")]
)
def test_new_traces_use_the_scorer_the_actor_and_the_judge_of_the_recipe(
    log_file: Path, tmp_path: Path, traces: str, fidelity: str
) -> None:
    model = write_script(tmp_path, judge_rule("AB"), *THOUGHTS)
    ways = ("--traces", traces, "--fidelity", fidelity, "--max-traces", "1", "--tune-turns", "0")
    learned = run(*learn_command(log_file, model, *ways))
    assert learned.exit_code == 0, learned.output
    path = log_of([replace(small_conversation(21), started_at="2024-05-01")], tmp_path / "more.jsonl")
    output_of("add", "sam", "--from", path, "--max-traces", "2", "--model", model)
    first, *new = triples_of("sam")[-3:]
    assert first.provenance is None
    for triple in new:
        assert triple.provenance is not None
        assert triple.provenance.candidates > 0
        assert (triple.reasoning is not None) == ("guarded_gain" in triple.provenance.measured)  # audited with the scorer
    if traces == "random":
        assert all(triple.reasoning for triple in new)


def test_a_conversation_that_continues_is_no_longer_abandoned(ann: str, tmp_path: Path) -> None:
    whole = replace(small_conversation(22), started_at="2024-05-01")
    output_of("add", ann, "--from", log_of([replace(whole, turns=whole.turns[:-1])], tmp_path / "first.jsonl"))
    assert [triple.pair.abandoned for triple in triples_of(ann)[-3:]] == [False, False, True]
    output_of("add", ann, "--from", log_of([whole], tmp_path / "then.jsonl"))
    actions = [triple.pair.action for triple in triples_of(ann)[-3:]]
    assert actions == [turn.text for turn in whole.turns if turn.speaker == "Ann"]


@pytest.mark.parametrize(
    ("conversation", "error"),
    [(other_conversation(1), '"Ann"'), (replace(small_conversation(25), started_at=None), '"started_at"')],
)
def test_a_log_that_does_not_fit_adds_nothing(ann: str, tmp_path: Path, conversation: Conversation, error: str) -> None:
    before = triples_of(ann)
    result = run_memory("add", ann, "--from", log_of([conversation], tmp_path / "odd.jsonl"))
    assert result.exit_code == 2
    assert error in result.output
    assert triples_of(ann) == before


def test_pairs_added_to_a_log_without_dates_count_as_the_latest(ann: str, tmp_path: Path) -> None:
    path = existing_twin(ann) / "twin.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"dated": False}))
    last = max(triple.pair.when for triple in triples_of(ann))
    undated = [replace(small_conversation(n), started_at=None) for n in (25, 26)]
    output_of("add", ann, "--from", log_of(undated, tmp_path / "m.jsonl"))
    added = [triple.pair for triple in triples_of(ann)][-6:]
    assert {pair.conversation_id for pair in added} == {"talk-25", "talk-26"}
    held_out = len(record["validation"]) + len(record["test"])
    assert min(pair.when for pair in added) > max(last, record["corpus_ends"] + held_out)


# forget ---------------------------------------------------------------------------------------------------------------


def test_an_erased_conversation_is_in_no_file(ann: str) -> None:
    folder = existing_twin(ann)
    erased = TwinRecord.load(folder).corpus[4]
    action = next(
        triple.pair.action
        for triple in triples_of(ann)
        if triple.pair.conversation_id == erased and "day" in triple.pair.action
    )
    assert action.encode() in unpacked(folder)
    assert "3 pairs, and 0 conversations held out or kept for comparison, erased" in output_of(
        "forget", ann, "--conversation", erased
    )
    assert erased.encode() not in unpacked(folder)
    assert action.encode() not in unpacked(folder)
    assert len(triples_of(ann)) == 39
    assert erased not in TwinRecord.load(folder).corpus


def test_a_held_out_conversation_can_be_erased(ann: str) -> None:
    folder = existing_twin(ann)
    record = TwinRecord.load(folder)
    assert "0 pairs, and 1 conversations held out or kept for comparison, erased" in output_of(
        "forget", ann, "--conversation", record.test[0]
    )
    assert TwinRecord.load(folder).test == record.test[1:]
    assert record.test[0].encode() not in unpacked(folder)


def test_everything_before_or_after_a_date_can_be_erased(ann: str) -> None:
    folder = existing_twin(ann)
    output_of("forget", ann, "--before", "2024-03-05")
    assert min(triple.pair.conversation_id for triple in triples_of(ann)) == "talk-04"
    output_of("forget", ann, "--after", "2024-03-10T09:00")
    assert max(triple.pair.conversation_id for triple in triples_of(ann)) == "talk-08"
    record = TwinRecord.load(folder)
    assert (record.validation, record.test, record.closeness) == ((), (), None)
    assert all(f"talk-{n:02d}".encode() not in unpacked(folder) for n in (*range(4), *range(9, 20)))
    assert len(record.corpus) == 5
    assert "15 pairs" in output_of("forget", ann, "--after", "2024-01-01", "--before", "2024-12-31")
    assert triples_of(ann) == []


def test_a_held_out_conversation_that_is_partly_in_the_time_span_is_erased_whole(ann: str) -> None:
    folder = existing_twin(ann)
    held_out = list(read_conversations(folder / "held_out.jsonl.gz").conversations)
    turns = (replace(held_out[0].turns[0], time="2025-01-01T00:00:00+00:00"), *held_out[0].turns[1:])
    write_conversations([replace(held_out[0], turns=turns), *held_out[1:]], folder / "held_out.jsonl.gz")
    assert forget(folder, FakeEmbedder(), after=1735600000.0).conversations == 1
    assert len(read_conversations(folder / "held_out.jsonl.gz").conversations) == len(held_out) - 1


def test_erasing_keeps_the_tuned_settings_and_drops_their_measurement(ann: str) -> None:
    """Traces that tuning switched off stay off."""
    folder = existing_twin(ann)
    tuned = Settings(k=4, window=3, traces="none", reasons=False, measured={"turns": 6, "settings": []})
    replace(TwinRecord.load(folder), settings=tuned).save(folder)
    output_of("forget", ann, "--conversation", triples_of(ann)[0].pair.conversation_id)
    assert TwinRecord.load(folder).settings == replace(tuned, measured=None)
    assert b'"turns": 6' not in (folder / "twin.json").read_bytes()


def test_erasing_an_unknown_conversation_is_an_error_and_changes_nothing(ann: str) -> None:
    folder = existing_twin(ann)
    with closing(CompletionCache(folder / COMPLETIONS_FILE)) as cache:
        cache.put(["a request"], "a paid answer")
    before = contents_of(folder)
    assert COMPLETIONS_FILE in before
    result = run_memory("forget", ann, "--conversation", "nowhere")
    assert result.exit_code == 2
    assert result.stderr == 'usertwin: ann: there is no conversation "nowhere" in the twin; nothing was changed\n'
    assert contents_of(folder) == before
    assert "0 pairs" in output_of("forget", ann, "--before", "1999-01-01")  # as a nightly job finds nothing to erase
    assert contents_of(folder) == before


def test_erasing_removes_the_cached_completions(ann: str) -> None:
    folder = existing_twin(ann)
    with closing(CompletionCache(folder / COMPLETIONS_FILE)) as cache:
        cache.put(["a request"], "a paid answer")
    output_of("forget", ann, "--conversation", TwinRecord.load(folder).corpus[0])
    assert not list(folder.glob(f"{COMPLETIONS_FILE}*"))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ((), "conversation"),
        (("--conversation", "x", "--before", "2024-01-01"), "conversation"),
        (("--before", "yesterday"), '"yesterday"'),
    ],
)
def test_without_a_clear_request_nothing_is_erased(ann: str, options: tuple[str, ...], error: str) -> None:
    before = triples_of(ann)
    result = run_memory("forget", ann, *options)
    assert result.exit_code == 2
    assert error in result.stderr.removeprefix("usertwin: ")
    assert triples_of(ann) == before


def test_a_twin_without_dates_forgets_by_conversation_only(ann: str) -> None:
    path = existing_twin(ann) / "twin.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dated": False}))
    result = run_memory("forget", ann, "--before", "2024-03-05")
    assert result.exit_code == 2
    assert "dates" in result.output
    assert "conversation" in result.output
