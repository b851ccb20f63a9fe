"""Tests of evals/reports/compare_runs.py, and of the commands report, compare and export."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from invented_run import PEOPLE, TWIN, est, result, turns, write_run
from rich.console import Console

from usertwin.evals.cli.runs import compare as compare_command
from usertwin.evals.cli.runs import export, report
from usertwin.evals.metrics import statistics
from usertwin.evals.records.measured_turns import MeasuredTurn, read_result
from usertwin.evals.records.older_results import upgrade
from usertwin.evals.reports.compare_runs import compare, comparison_table, verdict_of
from usertwin.personas import UsageError

pytestmark = pytest.mark.usefixtures("two_clusters_suffice")


def cheaper(measured: list[MeasuredTurn], bits: float) -> list[MeasuredTurn]:
    """Return the same turns with this many fewer bits for the twin."""
    return [replace(turn, bits={**turn.bits, TWIN: turn.bits[TWIN] - bits * (1 + n / 4000)}) for n, turn in enumerate(measured)]


def test_twins_are_compared_turn_by_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The four people are few, so that the test is over their conversations."""
    monkeypatch.setattr(statistics, "MIN_PEOPLE", 5)
    comparison = compare(result(), result(), turns(), cheaper(turns(), 1.1))
    assert comparison["twin"]["value"] == pytest.approx(-0.1, abs=0.001)
    assert (comparison["twin"]["n"], comparison["twin"]["people"]) == (40, 4)
    assert comparison["twin"]["high"] < 0
    assert "closer: −0.100 bits per character, new minus old" in verdict_of(comparison)
    assert "over conversations of these people, p < 0.001, n=40 turns of 4 people" in verdict_of(comparison)


def test_only_turns_that_both_runs_hold_are_paired() -> None:
    changed = [replace(turn, action="something else") if turn.position < 10 else turn for turn in turns()]
    comparison = compare(result(), result(), turns(), cheaper(changed, 1.1)[:20])
    assert comparison["twin"]["n"] == 10


def test_twins_of_different_arms_are_paired_by_their_own_arm() -> None:
    comparison = compare(result(), result(twin_arm="persona"), turns(), turns())
    assert comparison["differs"] == {"twin_arm": [TWIN, "persona"]}
    assert comparison["twin"]["value"] == pytest.approx(sum(39.0 - turn.bits[TWIN] for turn in turns()) / (40 * 11), abs=0.05)


def test_without_a_common_turn_there_is_no_difference_of_twins() -> None:
    comparison = compare(result(), result(), turns()[:20], turns()[20:])
    assert comparison["twin"] is None
    assert "cannot be compared turn by turn" in verdict_of(comparison)


def test_bits_of_different_scorers_are_not_subtracted() -> None:
    other = result(models={**result()["models"], "scorer": "local:small"})
    comparison = compare(result(), other, turns(), turns())
    assert not comparison["comparable"]
    assert comparison["why_not"] == ["bits of different scorers (local, local:small) cannot be compared"]
    assert comparison["twin"] is None
    persona = comparison["arms"]["persona"]
    assert persona["bits_per_char"]["difference"] is None
    assert persona["choice"]["difference"] is None
    assert persona["chrf"]["difference"] == 0.0
    assert comparison["differs"] == {"models.scorer": ["local", "local:small"]}


def test_averages_over_different_people_are_not_subtracted_but_common_turns_are_paired() -> None:
    fewer = result(people={PEOPLE[0]: result()["people"][PEOPLE[0]]})
    comparison = compare(result(), fewer, turns(), [turn for turn in turns() if turn.person == PEOPLE[0]])
    assert "chitchat/bob, support/cyd, support/dee in one run only" in comparison["why_not"][0]
    assert all(measure["difference"] is None for arm in comparison["arms"].values() for measure in arm.values())
    assert (comparison["twin"]["n"], comparison["twin"]["p"]) == (10, 1.0)  # nothing differs


def test_measures_are_subtracted_arm_by_arm_and_missing_ones_are_none() -> None:
    new = result(arms={TWIN: {"bits_per_char": est(1.3), "new_measure": est(1.0)}})
    comparison = compare(result(), new)
    assert comparison["arms"][TWIN]["bits_per_char"]["difference"] == pytest.approx(1.3 - 1.396)
    assert comparison["arms"][TWIN]["new_measure"] == {"old": None, "new": est(1.0), "difference": None}
    assert comparison["arms"]["persona"]["chrf"]["new"] is None


def test_differences_in_setup_are_listed() -> None:
    new = result(settings={**result()["settings"], "k": 8}, seed=9, versions={"usertwin": "0.1.0"})
    assert compare(result(), new)["differs"] == {"settings.k": [4, 8], "versions.torch": ["2.13.0", None], "seed": [7, 9]}


def test_the_table_shows_both_values_with_their_n_and_ends_with_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    Console(width=120).print(comparison_table(compare(result(), result(seed=8), turns(), cheaper(turns(), 1.1))))
    shown = capsys.readouterr().out
    assert "1.404" in shown
    assert "n=412" in shown
    assert "seed: 7 → 8" in shown
    assert "cannot detect differences below" in " ".join(shown.split())


def test_markup_in_a_name_is_printed_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    Console(width=120).print(comparison_table(compare(result(name="[red]x[/blue]"), result())))
    assert "[red]x[/blue]" in capsys.readouterr().out


# Runs of an earlier version

OLD_NAMES = {
    "user_models": "settling", "examples": "lessons", "without_thoughts": "at_once", "memorized": "known_by_heart",
    "without_thoughts_against": "at_once_against", "predicted": "told", "observed": "left", "recon": "recalled_triples",
}  # fmt: skip


def in_old_form(value: Any) -> Any:
    """Return a JSON value with the names of version 0.1 for keys and arms."""
    if isinstance(value, dict):
        return {in_old_form(key): in_old_form(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [in_old_form(inner) for inner in value]
    return " - ".join(OLD_NAMES.get(part, part) for part in value.split(" - ")) if isinstance(value, str) else value


def old_run(folder: Path) -> Path:
    """Write a run as version 0.1 wrote it."""
    figures = in_old_form(result())
    assert {"settling", "arms"} <= set(figures)
    assert "recalled_triples" in figures["arms"]
    return write_run(folder, figures, turns())


def test_the_result_of_an_earlier_version_is_read_with_the_present_names(tmp_path: Path) -> None:
    assert read_result(old_run(tmp_path / "old")) == json.loads(json.dumps(result()))


def test_a_run_of_an_earlier_version_is_reported_like_a_present_one(tmp_path: Path) -> None:
    reports: list[str] = []
    for run in (old_run(tmp_path / "old"), write_run(tmp_path / "new", result(), turns())):
        assert CliRunner().invoke(report, [str(run)], catch_exceptions=False).exit_code == 0
        reports.append((run / "report.md").read_text("utf-8"))
    assert "## User models fine-tuned with traces" in reports[0]
    assert "Recon-selected traces" in reports[0]
    assert reports[0] == reports[1]


def test_a_run_of_an_earlier_version_is_compared_with_a_present_one(tmp_path: Path) -> None:
    old, new = old_run(tmp_path / "old"), write_run(tmp_path / "new", result(), turns())
    done = CliRunner().invoke(compare_command, [str(old), str(new), "--json", "-"], catch_exceptions=False)
    comparison = json.loads(done.stdout)
    assert comparison["differs"] == {}
    assert comparison["arms"]["recon"]["bits_per_char"]["difference"] == 0.0
    assert "recalled_triples" not in comparison["arms"]


def test_a_fidelity_and_a_control_of_an_earlier_version_have_their_present_names() -> None:
    old = {"settings": {"traces": {"fidelity": "novel", "propose": "backward"}}, "controls": {"own": {"novel": 1.0}}}
    new = {
        "settings": {"traces": {"fidelity": "guarded_gain", "propose": "backward"}},
        "controls": {"own": {"guarded_gain": 1.0}},
    }
    assert upgrade(old) == new
    assert upgrade(new) == new


# The commands


def test_report_writes_both_reports_again(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", result(intervals_over="conversations"), turns())
    done = CliRunner().invoke(report, [str(run)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "The twin predicts these people's next turn" in done.output
    assert "<!doctype html>" in (run / "report.html").read_text("utf-8")
    assert (run / "report.md").read_text("utf-8").startswith("# How close is the twin?")
    assert sorted(path.name for path in run.iterdir()) == ["manifest.json", "people", "report.html", "report.md", "result.json"]


def test_report_refuses_an_unfinished_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", result(), turns(), state="measuring")
    with pytest.raises(UsageError, match="is not finished"):
        CliRunner().invoke(report, [str(run)], catch_exceptions=False)
    assert not (run / "report.html").exists()


def test_report_refuses_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run"):
        CliRunner().invoke(report, [str(tmp_path)], catch_exceptions=False)


def test_compare_writes_every_figure(tmp_path: Path) -> None:
    old = write_run(tmp_path / "old", result(), turns())
    new = write_run(tmp_path / "new", result(name="later"), cheaper(turns(), 1.1))
    to_screen = CliRunner().invoke(compare_command, [str(old), str(new), "--json", "-"], catch_exceptions=False)
    comparison = json.loads(to_screen.stdout)
    assert comparison["names"] == ["four <people>", "later"]
    assert comparison["twin"]["n"] == 40
    file = tmp_path / "comparison.json"
    CliRunner().invoke(compare_command, [str(old), str(new), "--json", str(file)], catch_exceptions=False)
    assert json.loads(file.read_text("utf-8")) == comparison


def test_export_writes_a_line_for_each_reply_of_the_twin_or_the_named_arm(tmp_path: Path) -> None:
    run, out = write_run(tmp_path / "run", result(), turns()), tmp_path / "out.jsonl"
    for options, reply in (([], "twin says 0"), (["--arm", "persona"], "persona says 0")):
        done = CliRunner().invoke(export, [str(run), "--out", str(out), *options], catch_exceptions=False)
        lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
        assert done.exit_code == 0
        assert len(lines) == 40
        assert lines[0]["rollout_conversation"][-1]["content"].endswith(reply)
        assert lines[0]["metadata"]["run"] == "four <people>"


def test_export_of_an_unknown_arm_leaves_no_file(tmp_path: Path) -> None:
    run, out = write_run(tmp_path / "run", result(), turns()), tmp_path / "out.jsonl"
    with pytest.raises(UsageError, match='"nobody" is in this run; name one of persona, recalled_pairs'):
        CliRunner().invoke(export, [str(run), "--arm", "nobody", "--out", str(out)], catch_exceptions=False)
    assert not out.exists()


def test_export_names_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", result(), turns())
    with pytest.raises(UsageError, match="cannot be written"):
        CliRunner().invoke(export, [str(run), "--out", str(tmp_path / "no" / "out.jsonl")], catch_exceptions=False)
