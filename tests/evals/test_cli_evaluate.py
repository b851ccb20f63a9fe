"""`usertwin eval`: the table, runs with a report, and wrong input."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from cli_runner import WEATHER
from click.testing import CliRunner, Result

from usertwin.evals.arm_names import ARMS, POOLED_ARMS
from usertwin.evals.cli.main import main
from usertwin.evals.records.measured_turns import read_manifest, read_result, read_turns
from usertwin.evals.replay import leak_checks
from usertwin.evals.reports.labels import ARM_LABELS, number
from usertwin.memory import TwinRecord, existing_twin
from usertwin.personas import Conversation, Turn, write_conversations

pytestmark = pytest.mark.usefixtures("repeats_count")
#: What the model of `script` says.
SCRIPTED_REPLIES = WEATHER


def run(*arguments: str | Path) -> Result:
    """Run the program in this process, on a screen wide enough not to break sentences."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], env={"COLUMNS": "300"})


def done(*arguments: str | Path) -> str:
    """What the program prints when all is well."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def error_of(*arguments: str | Path) -> str:
    """Return the one-line error of a command."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert not result.stdout.strip()
    assert "Traceback" not in result.stderr
    [sentence] = result.stderr.splitlines()
    assert sentence.startswith("usertwin: ")
    return sentence


def figures(ann: str, script: str, tmp_path: Path, *more: str | Path) -> dict[str, Any]:
    """What `usertwin eval` writes as JSON."""
    path = tmp_path / "closeness.json"
    done("eval", ann, "--model", script, "--scorer", "fake:", "--json", path, *more)
    return json.loads(path.read_text("utf-8"))


# One twin ------------------------------------------------------------------------------------------------------------


def test_eval_prints_a_table_and_records_the_measurement(ann: str, script: str) -> None:
    text = done("eval", ann, "--model", script, "--scorer", "fake:", "--limit", "6", "--generate", "2")
    assert "How close is ann" in text
    measured = "6 held-out turns of 1 person in 4 conversations; measured with fake:, replies written by scripted:script.txt"
    assert measured in " ".join(text.split())
    noted = TwinRecord.load(existing_twin(ann)).closeness
    assert noted is not None
    assert noted["turns"] == 6
    assert "n=6 held-out turns" in done("show", ann)


def test_eval_writes_every_figure_as_json(ann: str, script: str, tmp_path: Path) -> None:
    path = tmp_path / "closeness.json"
    done("eval", ann, "--model", script, "--scorer", "fake:", "--generate", "2", "--seed", "3", "--json", path)
    found = json.loads(path.read_text("utf-8"))
    assert {"twin", "arms", "paired", "turns", "conversations", "models", "seed"} <= set(found)
    assert set(found["arms"]) == {"no_memory", "other_person", "random_own", "recalled_pairs", "recon"}
    assert set(found["arms"]["recon"]["bits_per_char"]) == {"value", "low", "high", "n"}
    assert (found["twin"], found["turns"], found["seed"]) == ("ann", 12, 3)


def test_eval_prints_only_json_on_request(ann: str, script: str) -> None:
    result = run("eval", ann, "--model", script, "--scorer", "fake:", "--generate", "0", "--limit", "0", "--json", "-")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["turns"] == 12
    assert "How close is ann" in result.stderr


def test_eval_against_another_log_counts_dropped_conversations(ann: str, script: str, log_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "closeness.json"
    done("eval", ann, "--model", script, "--scorer", "fake:", "--generate", "0", "--against", log_file, "--json", path)
    assert json.loads(path.read_text("utf-8"))["dropped_conversations"] == 16  # corpus and validation


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--limit", "-1"), "limit is -1; it must be at least 1"),
        (("--generate", "-1"), "generate is -1; it must be at least 0"),
        (("--against", "nowhere.jsonl"), "nowhere.jsonl: no such file"),
        (("--scorer", "nonsense"), '"nonsense" cannot score'),
        (("--model", "nonsense"), '"nonsense" is not a chat model'),
        (("--json", "nowhere/closeness.json"), "nowhere/closeness.json"),
        (("--arms", "no_memory,memories"), 'there is no arm "memories"; there are no_memory, '),
        (("--arms", ","), "no arm is named"),
        (("--arms", "trained"), "nothing to show for trained"),
        (("--samples", "0"), "samples is 0; it must be at least 1"),
        (("--choices", "1"), "a choice needs at least 2 actions"),
        (("--judge", "scripted:judge.txt"), "--judge needs --out"),
        (("--out", "run", "--against", "log.jsonl"), "--against and --out exclude each other"),
    ],
)
def test_wrong_arguments_are_one_sentence(ann: str, script: str, more: tuple[str, str], says: str) -> None:
    assert says in error_of("eval", ann, "--model", script, "--scorer", "fake:", *more)


def test_eval_compares_named_arms_in_order(ann: str, script: str, tmp_path: Path) -> None:
    found = figures(ann, script, tmp_path, "--arms", "persona, recon,no_memory", "--generate", "0")
    assert list(found["arms"]) == ["no_memory", "recon", "persona"]
    assert found["family"]["contrasts"] == ["recon - no_memory", "recon - persona"]


def test_eval_compares_the_twin_with_every_arm_in_the_table_and_in_the_file(ann: str, script: str, tmp_path: Path) -> None:
    """Arms without likelihoods are compared by their replies."""
    path = tmp_path / "closeness.json"
    arms = ("no_memory", "recalled_pairs", "verbatim", "openevals", "tau2")
    named = ",".join(("recon", *arms, "mine=" + script))
    text = done("eval", ann, "--model", script, "--scorer", "fake:", "--arms", named, "--generate", "3", "--json", path)
    found = json.loads(path.read_text("utf-8"))
    assert {name for name in found["paired"] if name.startswith("recon - ")} == {f"recon - {arm}" for arm in (*arms, "mine")}
    for arm in (*arms, "mine"):
        measure = "rank" if arm in {"verbatim", "mine"} else "bits_per_char"
        difference = found["paired"][f"recon - {arm}"][measure]
        assert set(difference) - {"p_holm"} == {"value", "low", "high", "n", "p", "visible"}
        [row] = [line for line in text.splitlines() if line.startswith(ARM_LABELS[arm].title if arm != "mine" else "mine")]
        assert number(difference["value"], 3 if measure == "bits_per_char" else 2, signed=True) in row


def test_models_for_tests_are_warned_of_in_the_terminal_and_in_the_file(ann: str, script: str, tmp_path: Path) -> None:
    path = tmp_path / "closeness.json"
    text = done("eval", ann, "--model", script, "--scorer", "fake:", "--generate", "0", "--json", path)
    [warning] = [line for line in json.loads(path.read_text("utf-8"))["warnings"] if "test models" in line]
    assert warning in text
    assert "the scorer (fake:), the action model (scripted:script.txt)" in warning


def test_eval_compares_all_present_arms(ann: str, script: str, tmp_path: Path) -> None:
    found = figures(ann, script, tmp_path, "--arms", "all", "--generate", "1", "--limit", "4")
    assert list(found["arms"]) == [arm for arm in ARMS if arm not in {"trained", *POOLED_ARMS}]  # these need a suite
    assert all(arm["chrf"]["n"] == 1 for arm in found["arms"].values())


def test_eval_without_the_twins_arm_makes_no_claim(ann: str, script: str, tmp_path: Path) -> None:
    figures(ann, script, tmp_path, "--arms", "persona", "--generate", "0")
    assert "only persona measured; n=12 held-out turns" in done("show", ann)


def test_eval_measures_choices_on_request(ann: str, script: str, tmp_path: Path) -> None:
    found = figures(ann, script, tmp_path, "--choices", "4", "--generate", "3")
    assert {arm["choice"]["n"] for arm in found["arms"].values()} == {3}
    assert all(0.0 <= arm["choice"]["value"] <= 1.0 for arm in found["arms"].values())


# A run -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def zoe(tmp_path: Path) -> str:
    """A twin of a person without repeated turns, since runs drop near-duplicates."""
    rng, words = (
        random.Random(0),
        [f"{a}{b}" for a in ("mo", "ka", "ri", "su", "te", "lo", "na") for b in ("ra", "ni", "ko", "ve")],
    )

    def said(who: str) -> Turn:
        return Turn(who, "user" if who == "Zoe" else "agent", " ".join(rng.choices(words, k=7)))

    talks = [
        Conversation(f"talk-{day:02d}", tuple(said(who) for who in ("Bo", "Zoe") * 3), f"2024-03-{day + 1:02d}T10:00:00+00:00")
        for day in range(20)
    ]
    log = tmp_path / "zoe.jsonl"
    write_conversations(talks, log)
    done("learn", "zoe", "--from", log, "--speaker", "Zoe", "--traces", "none", "--embedder", "fake:", "--tune-turns", "0")
    return "zoe"


def test_eval_with_a_folder_writes_a_run_and_its_report(zoe: str, script: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    how = ("--arms", "no_memory,recalled_pairs,openevals", "--limit", "6", "--generate", "2", "--samples", "2")
    text = done("eval", zoe, "--model", script, "--scorer", "fake:", "--out", folder, *how)
    assert f"report: {folder / 'report.html'}" in text
    assert "6 held-out turns of 1 person in 4 conversations" in text
    assert read_manifest(folder)["state"] == "complete"
    assert list(read_result(folder)["arms"]) == ["no_memory", "recalled_pairs", "openevals"]
    turns = read_turns(folder)
    assert len(turns) == 6
    assert [len(turn.replies["openevals"]) for turn in turns if turn.replies] == [2, 2]
    assert (folder / "report.md").is_file()


def test_eval_into_the_folder_of_another_run_is_an_error(zoe: str, script: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    how = ("eval", zoe, "--model", script, "--scorer", "fake:", "--generate", "0", "--arms", "no_memory,recalled_pairs")
    done(*how, "--limit", "4", "--out", folder)
    assert "holds a run of another suite" in error_of(*how, "--limit", "5", "--out", folder)
    assert read_result(folder)["turns"] == 4


@pytest.mark.parametrize("out", [True, False])
def test_near_duplicates_only_are_an_error(
    ann: str, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: bool
) -> None:
    monkeypatch.setattr(leak_checks, "MIN_WORDS", 8)
    how = ("--model", script, "--scorer", "fake:", "--generate", "0", *(("--out", tmp_path / "run") if out else ()))
    assert "every held-out turn is nearly the same as one in the memory" in error_of("eval", ann, *how)


def test_eval_says_how_many_turns_nearly_repeat_the_memory(
    zoe: str, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leak_checks, "MIN_WORDS", 8)
    monkeypatch.setattr(leak_checks, "near_duplicates", lambda held_out, known: {0: 0})
    text = done("eval", zoe, "--model", script, "--scorer", "fake:", "--generate", "0", "--limit", "4")
    assert re.search(r"1 of \d+ held-out turns nearly repeat the memory, and were dropped", text)


def test_eval_takes_all_arms_and_a_simulated_user(
    ann: str, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_users.py").write_text("def respond(messages):\n    return 'hi there'\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    found = figures(ann, script, tmp_path, "--arms", "all,mine=my_users:respond", "--generate", "2", "--limit", "4")
    assert list(found["arms"])[-1] == "mine"
    assert "bits_per_char" not in found["arms"]["mine"]
    assert 'arm "mine": "nowhere:x"' in error_of(
        "eval", ann, "--model", script, "--scorer", "fake:", "--arms", "mine=nowhere:x"
    )
