"""evals/cli/twin_actions.py: `learn`, `show` and `controls` say whether the judge that selects traces can be trusted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cli_runner import error_of, learn_command, output_of, run, write_script
from judge_replies import judge_reply

from usertwin.memory import TwinRecord, existing_twin
from usertwin.memory.twin.record import update_record

pytestmark = pytest.mark.usefixtures("repeats_count")
#: The sentence about a judge that always ranks the attempt listed first in the first place.
PLACES = "prefers the first place: the attempt listed first wins in 100%"


@pytest.fixture
def judge(tmp_path: Path) -> str:
    """A judge that ranks the attempts in the order of listing."""
    folder = tmp_path / "judge"
    folder.mkdir()
    lists = ["ABCDE"[:count] for count in range(1, 6)]
    return write_script(
        folder,
        *(json.dumps({"when": f"all the letters ({', '.join(letters)})", "say": judge_reply(letters)}) for letters in lists),
    )


def learn(log: Path, script: str, judge: str, *options: str) -> tuple[str | Path, ...]:
    return learn_command(
        log, script, "--fidelity", "judge", "--judge", judge, "--max-traces", "24", "--tune-turns", "0", *options
    )


def on_one_line(text: str) -> str:
    """Return the text without the line breaks of the terminal."""
    return " ".join(text.split())


def record() -> TwinRecord:
    return TwinRecord.load(existing_twin("sam"))


def test_learn_checks_the_judge_and_show_repeats_the_outcome(log_file: Path, script: str, judge: str) -> None:
    text = on_one_line(output_of(*learn(log_file, script, judge)))
    check = record().judge_check
    assert check is not None
    assert (check["model"], check["pairs"], check["outcome"]) == (judge, 20, "failed")
    assert "another_person" in check["sanity"]
    assert PLACES in check["sentence"]
    assert check["sentence"].endswith("its scores are not evidence")
    assert text.count(check["sentence"]) == 2  # when it is checked, and in the view of the twin
    assert check["sentence"] in on_one_line(output_of("show", "sam"))


def test_the_check_costs_what_learn_announces(log_file: Path, script: str, judge: str, prompts: list[str]) -> None:
    text = output_of(*learn(log_file, script, judge))
    assert f"then the judge is checked on 20 of these pairs: 60 completions of {judge}" in text
    checks = [prompt for prompt in prompts if "all the letters (A, B, C, D)" in prompt]
    assert len(checks) == 2 * 20  # the third question about a pair has two letters, as the questions of learning
    known = len(prompts)
    output_of(*learn(log_file, script, judge, "--overwrite"))
    assert len(prompts) == known  # all completions are cached


def test_a_command_that_was_stopped_before_the_check_only_checks(
    log_file: Path, script: str, judge: str, prompts: list[str]
) -> None:
    output_of(*learn(log_file, script, judge))
    update_record(existing_twin("sam"), lambda record: replace(record, judge_check=None))
    assert "the judge" not in output_of("show", "sam")
    known = len(prompts)
    assert PLACES in output_of(*learn(log_file, script, judge))
    assert len(prompts) == known
    assert record().judge_check is not None
    assert "already" in error_of(*learn(log_file, script, judge))


def test_other_fidelities_have_no_check(log_file: Path, script: str) -> None:
    text = output_of(*learn_command(log_file, script, "--max-traces", "2", "--tune-turns", "0"))
    assert "the judge" not in text
    assert record().judge_check is None


def test_controls_say_whether_the_judge_passes(log_file: Path, script: str, judge: str, tmp_path: Path) -> None:
    output_of(*learn(log_file, script, judge))
    stored, path = record(), tmp_path / "controls.json"
    command = ("controls", "sam", "--model", script, "--scorer", "fake:", "--limit", "4", "--json", path)
    assert PLACES in output_of(*command)
    assert json.loads(path.read_text("utf-8"))["judge_check"] == stored.judge_check
    replace(stored, judge_check={"sentence": 3}).save(existing_twin("sam"))  # damaged
    assert "its check is damaged" in output_of("show", "sam")
    assert PLACES in output_of(*command)
    assert json.loads(path.read_text("utf-8"))["judge_check"] == stored.judge_check


def test_forgetting_removes_the_check(log_file: Path, script: str, judge: str) -> None:
    output_of(*learn(log_file, script, judge))
    result = run("memory", "forget", "sam", "--conversation", record().corpus[0])
    assert result.exit_code == 0, result.output
    assert record().judge_check is None
