"""evals/cli/controls.py: `usertwin controls` prints a table and a decision, writes JSON, and reports wrong input."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from cli_runner import error_of, learn_command, output_of

from conftest import small_conversation
from usertwin.evals.traces.control_verdict import decide
from usertwin.evals.tuning import tune
from usertwin.memory import TwinRecord, existing_twin
from usertwin.personas import write_conversations

pytestmark = pytest.mark.usefixtures("repeats_count")


def record(name: str) -> TwinRecord:
    return TwinRecord.load(existing_twin(name))


def controls_command(name: str, model: str, *options: str | Path) -> tuple[str | Path, ...]:
    """Return the arguments of `usertwin controls` with a fake scorer."""
    return ("controls", name, "--model", model, "--scorer", "fake:", *options)


def test_controls_print_a_table_and_a_decision(ann: str, script: str, prompts: list[str]) -> None:
    before = record(ann)
    text = output_of(*controls_command(ann, script))
    [planned] = re.findall(r"6 validation turns: about (\d+) completions of scripted:", text)
    assert len(prompts) == pytest.approx(int(planned), rel=0.35)
    assert "scored under fake:" in text
    for name in (
        "own trace", "0 filler", "1 the action", "2 paraphrase", "3 shuffled", "4 other person", "5 bag of words", "6 keywords",
        "7 swapped", "8 forward",
    ):  # fmt: skip
        assert f"\n {name} " in text
    assert len(re.findall(r"^\?    ?", text, re.MULTILINE)) == 8  # validation turns of two conversations decide nothing
    assert "The score cannot be judged yet" in text
    assert record(ann) == before


def test_controls_write_all_figures_with_all_turns(ann: str, script: str, tmp_path: Path) -> None:
    path = tmp_path / "controls.json"
    output_of(*controls_command(ann, script, "--limit", "4", "--json", path, "--seed", "2"))
    result = json.loads(path.read_text("utf-8"))
    assert (result["twin"], result["turns"], result["seed"]) == ("ann", 4, 2)
    assert result["models"] == {"proposer": script, "scorer": "fake:", "embedder": "fake:256"}
    assert set(result["cost"]) == {"calls", "repeated", "input_tokens", "cached_tokens", "output_tokens", "dollars"}
    assert result["decision"] == decide(result)
    assert len(result["turn_details"]) == 4
    assert {turn["conversation_id"] for turn in result["turn_details"]} <= set(record(ann).validation)
    for turn in result["turn_details"]:
        assert turn["traces"]["copy"]["trace"] == f"I would say: {turn['action']}"
        for row in turn["traces"].values():
            assert set(row) == {"trace", "gain", "guarded_gain", "rejected", "reveals_action", "slot"}


def test_json_to_standard_output_is_all_that_is_printed_there(ann: str, script: str) -> None:
    from cli_runner import run

    result = run(*controls_command(ann, script, "--limit", "2", "--json", "-"))
    assert json.loads(result.stdout)["twin"] == "ann"
    assert "own trace" in result.stderr


def test_the_same_controls_again_use_the_cached_completions(ann: str, script: str, tmp_path: Path, prompts: list[str]) -> None:
    paths = tmp_path / "first.json", tmp_path / "second.json"
    counts: list[int] = []
    for path in paths:
        # One request at a time: of two equal ones at once, the script would answer each differently.
        output_of(*controls_command(ann, script, "--limit", "4", "--json", path, "--concurrency", "1"))
        counts.append(len(prompts))
    assert counts[0] == counts[1]
    first, second = (json.loads(path.read_text("utf-8")) for path in paths)
    assert first["cost"]["calls"] > 0
    assert second["cost"]["calls"] == 0
    assert second["cost"]["repeated"] >= first["cost"]["calls"]
    assert {**first, "cost": 0} == {**second, "cost": 0}


def test_controls_say_which_turns_nearly_repeat_the_memory(
    ann: str, script: str, monkeypatch: pytest.MonkeyPatch, prompts: list[str]
) -> None:
    monkeypatch.setattr(tune, "near_duplicates", lambda held_out, known: {0: 0, 1: 0})
    text = output_of(*controls_command(ann, script, "--candidates", "1"))
    assert "2 of 6 validation turns nearly repeat the memory, and were dropped" in text
    monkeypatch.setattr(tune, "near_duplicates", lambda held_out, known: dict.fromkeys(range(len(held_out)), 0))
    prompts.clear()
    sentence = "ann: every held-out turn is nearly the same as one in the memory; use a log with more turns"
    assert error_of(*controls_command(ann, script)) == sentence
    assert prompts == []
    assert "on 0 validation turns: 0 turns scored; 6 more nearly repeat the memory" in output_of(
        "tune", ann, "--model", script, "--scorer", "fake:"
    )


def test_controls_follow_the_recipe_of_the_twin(log_file: Path, script: str, prompts: list[str]) -> None:
    options = ("--propose", "forward", "--max-traces", "2", "--tune-turns", "0")
    output_of(*learn_command(log_file, script, *options))
    assert "8 forward" in output_of(*controls_command("sam", script, "--limit", "2"))


def test_the_table_of_controls_fits_80_columns(ann: str, script: str) -> None:
    wide, narrow = (output_of(*controls_command(ann, script, "--limit", "4"), columns=columns) for columns in (300, 80))
    assert max(map(len, narrow.splitlines())) <= 80
    assert "…" not in narrow
    for figure in re.findall(r"[+-]\d\.\d+", wide):
        assert figure in narrow


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("ann", "--limit", "1"), "--limit is 1; controls need at least 2 turns"),
        (("ann", "--limit", "-3"), "--limit is -3"),
        (("ann", "--candidates", "0"), "0"),
        (("ann", "--concurrency", "0"), "--concurrency is 0; it must be at least 1"),
        (("ann", "--concurrency", "-1"), "--concurrency is -1"),
        (("ann", "--price", "nonsense"), '"nonsense" is not a price'),
        (("ann", "--json", "nowhere/controls.json"), "--json: nowhere/controls.json cannot be written"),
        (("ann", "--json", "."), "--json: . cannot be written"),
        (("nobody",), 'there is no twin "nobody"'),
        (("ann", "--scorer", "nonsense"), '"nonsense" cannot score texts'),
        (("ann", "--model", "scripted:nowhere.txt"), "nowhere.txt"),
    ],
)
def test_wrong_arguments_of_controls_are_reported_before_any_request(
    ann: str, script: str, prompts: list[str], arguments: tuple[str, ...], error: str
) -> None:
    name, *options = arguments
    assert error in error_of(*controls_command(name, script, *options))
    assert prompts == []


def test_too_few_validation_turns_are_reported(ann: str, script: str) -> None:
    replace(record(ann), validation=()).save(existing_twin(ann))
    assert "controls need at least 2" in error_of(*controls_command(ann, script))


def test_without_another_person_in_the_log_that_control_is_left_out(tmp_path: Path, script: str) -> None:
    path = tmp_path / "alone.jsonl"
    write_conversations([small_conversation(number) for number in range(20)], path)
    output_of(*learn_command(path, script, "--max-traces", "2", "--tune-turns", "0"))
    text = output_of(*controls_command("sam", script, "--limit", "4"))
    assert "4 other person" not in text
    assert "not measured" in text
