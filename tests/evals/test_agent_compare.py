"""Two runs compared at the same conversations, and the commands report and compare on their folders."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cli_runner import error_of, output_of, run
from invented_conversations import talk, write_run
from invented_run import result, turns
from invented_run import write_run as write_suite_run

from usertwin.evals.agent_tests import compare_runs, read_agent_run
from usertwin.evals.agent_tests.compare import comparison_verdict
from usertwin.evals.agent_tests.read import AgentRun, is_agent_run
from usertwin.personas import UsageError
from usertwin.simulator.records import CheckResult, Simulation

HOLDS = CheckResult(name="is polite", passed=True)
AGENT: dict[str, Any] = {"agent": "my_agent:better"}
FAILS = CheckResult(name="is polite", passed=False, reason="it shouts")


def talks(passed: list[bool], **changes: Any) -> list[Simulation]:
    """Return conversations of twins of their own; those that are not passed fail a check."""
    return [
        talk("hi", "Hello.", "bye", **{"twin": f"twin-{number}", "seed": 7, "checks": [HOLDS if good else FAILS]} | changes)
        for number, good in enumerate(passed)
    ]


def runs(tmp_path: Path, old: list[Simulation], new: list[Simulation], **manifest: Any) -> tuple[AgentRun, AgentRun]:
    """Write two runs, the second with changes in its manifest, and read them."""
    first, second = (
        write_run(tmp_path / "old", old),
        write_run(tmp_path / "new", new, **(AGENT | manifest)),
    )
    return read_agent_run(first), read_agent_run(second)


def test_two_agents_are_compared_at_the_same_twins_and_seeds(tmp_path: Path) -> None:
    comparison = compare_runs(*runs(tmp_path, talks([False] * 9 + [True] * 3), talks([True] * 11 + [False])))
    difference = comparison.difference
    assert (comparison.why_not, comparison.notes) == ((), ())
    assert difference is not None
    assert (difference.n, difference.gained, difference.lost) == (12, 9, 1)
    assert difference.p == pytest.approx(2 * 11 / 2**10)
    assert [change.id for change in comparison.changes if not change.gained] == ["refund/twin-11/0"]
    assert comparison.changes[0].why == "is polite: it shouts"
    assert comparison_verdict(comparison) == (
        "my_agent:better passes more: +67 points (+19 to +95), p = 0.021, over conversations, n=12 conversations in both runs."
    )
    json.dumps(comparison.to_json())


def test_a_difference_that_the_test_does_not_show_is_not_claimed(tmp_path: Path) -> None:
    comparison = compare_runs(*runs(tmp_path, talks([False] * 3 + [True] * 9), talks([True] * 12)))
    assert comparison_verdict(comparison).startswith("No difference is shown: +25 points (")
    few = compare_runs(*runs(tmp_path / "few", talks([False] * 7), talks([True] * 7)))
    assert comparison_verdict(few) == "No verdict: 7 conversations in common, and 8 are needed."


def test_conversations_that_a_twin_spoiled_in_one_run_are_left_out_of_both(tmp_path: Path) -> None:
    spoiled = talks([True] * 10)
    spoiled[4].stop_reason = "twin_error"
    comparison = compare_runs(*runs(tmp_path, spoiled, talks([True] * 9 + [False])))
    assert comparison.difference is not None
    assert comparison.difference.n == 9
    assert comparison.notes == ("1 of 10 common conversations are set aside in one run or both",)


def test_conversations_without_a_counterpart_are_counted(tmp_path: Path) -> None:
    comparison = compare_runs(*runs(tmp_path, talks([True] * 10), talks([True] * 12)))
    assert comparison.notes == ("0 conversations of the first run and 2 of the second have no counterpart",)
    other_seeds = compare_runs(*runs(tmp_path / "seeds", talks([True] * 10), talks([True] * 10, seed=8)))
    assert other_seeds.difference is None
    assert other_seeds.why_not == (
        "no conversation of one run has the scenario, twin, repetition and seed of one of the other",
    )


def test_two_runs_of_one_agent_are_named_by_their_folders(tmp_path: Path) -> None:
    comparison = compare_runs(*runs(tmp_path, talks([False] * 10), talks([True] * 10), agent="my_agent:reply"))
    assert comparison.notes == ("both runs have the agent my_agent:reply",)
    assert comparison_verdict(comparison).startswith("new passes more: +100 points")


@pytest.mark.parametrize(
    ("manifest", "sentence"),
    [
        ({"prompts": {"act": "act/2"}}, "the versions of the prompts differ: act: act/1 → act/2"),
        ({"models": {"action": "local:small"}}, "the twin's models differ: action: scripted:test → local:small"),
        ({"judge": {"model": "openai:x"}}, 'the judges differ: none → {"model": "openai:x"}'),
        ({"arguments": {"max_turns": 3}}, "the arguments differ: max_turns: none → 3"),
        ({"twins": {"twin-0": {"speaker": "ann", "k": 4}}}, 'the twin "twin-0" is another one: k: 8 → 4'),
    ],
)
def test_runs_that_differ_in_more_than_the_agent_are_not_compared_silently(
    tmp_path: Path, manifest: dict[str, Any], sentence: str
) -> None:
    first, second = runs(tmp_path, talks([False] * 10), talks([True] * 10), **manifest)
    comparison = compare_runs(first, second)
    assert comparison.why_not == (sentence,)
    assert (comparison.difference, comparison.changes) == (None, ())
    assert comparison_verdict(comparison).startswith("No verdict: the runs have no usable conversation in common, or cannot")
    anyway = compare_runs(first, second, anyway=True)
    assert anyway.why_not == (sentence,)
    assert anyway.difference is not None


def test_runs_with_other_checks_are_not_compared_silently(tmp_path: Path) -> None:
    other = [HOLDS, CheckResult(name="criterion: It answers.", passed=True)]
    comparison = compare_runs(*runs(tmp_path, talks([True] * 9), talks([True] * 9, checks=other)))
    [sentence] = comparison.why_not
    assert sentence == "the checks differ, as in refund/twin-0/0: the second run alone has criterion: It answers."


def test_a_changed_scenario_is_named_and_closeness_versions_and_limits_may_differ(tmp_path: Path) -> None:
    scenarios = [{"name": "refund", "goal": "You want a refund.", "repeats": 1}]
    old = read_agent_run(write_run(tmp_path / "old", talks([True] * 8), scenarios=scenarios))
    changed = [{"name": "refund", "goal": "You want a new one.", "repeats": 5}]
    new = read_agent_run(write_run(tmp_path / "new", talks([True] * 8), scenarios=changed))
    [sentence] = compare_runs(old, new).why_not
    assert sentence == 'a scenario has changed: "refund" (goal: You want a refund. → You want a new one.)'
    twins = {f"twin-{number}": {"speaker": "ann", "k": 8, "closeness": "better now"} for number in range(8)}
    other = read_agent_run(
        write_run(
            tmp_path / "other", talks([True] * 8), scenarios=[scenarios[0] | {"repeats": 5}], twins=twins,
            versions={"usertwin": "2"}, limits={"agent_timeout": 3},
        )
    )  # fmt: skip
    comparison = compare_runs(old, other)
    assert comparison.why_not == ()
    assert comparison.notes == (
        "versions differ: usertwin: 1 → 2",
        'limits differ: none → {"agent_timeout": 3}',
        "both runs have the agent my_agent:reply",
    )


# The reader


def test_a_run_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    old = talks([True, True])
    rows = [simulation.to_json() | {"twin": "ann", "scenario": ""} for simulation in old]
    for row in rows:
        for key in ("scenario", "repeat", "twin_faults", "checks", "final_state", "seconds"):
            del row[key]
    (folder / "conversations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = {"agent": "demo", "count": 2, "goal_reached": "my_agent:done"}
    (folder / "manifest.json").write_text(json.dumps({"kind": "simulate", "twin": "ann", "seed": 3, "arguments": arguments}))
    (folder / "summary.json").write_text('{"stop_reasons": {"user_stop": 2}}')
    conversations = read_agent_run(folder)
    assert [simulation.id for simulation in conversations.simulations] == ["ann/0", "ann/1"]
    assert (conversations.agent, conversations.finished) == ("demo", True)
    assert "my_agent" not in output_of("report", folder)
    assert "Goal reached    0% (0% to 66%) of 2, by rule" in output_of("report", folder)


def test_other_folders_are_no_runs_with_an_agent(tmp_path: Path) -> None:
    assert not is_agent_run(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    assert not is_agent_run(tmp_path)
    with pytest.raises(UsageError, match="holds no run"):
        read_agent_run(tmp_path / "nothing")


# The commands


def test_report_prints_the_summary_writes_the_page_and_keeps_the_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "nightly", talks([True] * 9 + [False]))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    text = output_of("report", folder, columns=80)
    assert text.startswith("10 conversations of 10 twins with my_agent:reply, in 1 scenario\nPassed          90% (60% to 98%)")
    assert text.endswith(f"written to {folder}/report.html\n")
    assert len(text.splitlines()) <= 31
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "report.html"} == before


def test_limits_set_the_exit_code(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "nightly", talks([True] * 9 + [False]))
    assert run("report", folder, "--min-pass-rate", "0.9", "--max-twin-faults", "0").exit_code == 0
    failed = run("report", folder, "--min-pass-rate", "0.9", "--by-interval", "--quiet")
    assert failed.exit_code == 1
    assert failed.stdout.splitlines() == [
        "nightly: my_agent:reply passed 90% (60% to 98%) of 10 usable conversations",
        "FAILED  pass rate: 90.0% of 10, the lower end of the interval 59.6%, below 90% (--min-pass-rate)",
    ]
    few = run("report", folder, "--min-pass-rate", "0.5", "--min-conversations", "20")
    assert few.exit_code == 1
    assert "no verdict on the agent: 10 of 10 conversations are usable, and 20 are needed" in few.stdout
    assert "Limits that were not kept" in (folder / "report.html").read_text("utf-8")


def test_report_writes_its_figures_as_json(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "nightly", talks([True] * 8))
    figures = json.loads(run("report", folder, "--json", "-", "--min-pass-rate", "1").stdout)
    assert (figures["usable"], figures["pass_rate"]["value"], figures["failures"]) == (8, 1.0, [])


def test_limits_are_refused_where_they_mean_nothing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "nightly", talks([True] * 8))
    assert error_of("report", folder, "--min-pass-rate", "90") == "--min-pass-rate is 90.0; it must be a share from 0 to 1"
    suite = write_suite_run(tmp_path / "suite", result(), turns())
    assert "holds no conversations with an agent; limits, --quiet and --json are for these" in error_of(
        "report", suite, "--min-pass-rate", "0.9"
    )
    assert error_of("compare", folder, suite) == (
        f"{suite}: holds no conversations with an agent; name two runs of usertwin simulate"
    )


def test_compare_prints_both_runs_and_what_changed(tmp_path: Path) -> None:
    runs(tmp_path, talks([False] * 9 + [True] * 3), talks([True] * 11 + [False]))
    text = output_of("compare", tmp_path / "old", tmp_path / "new")
    assert re.search(r"passed +25%, n=12 +92%, n=12 +\+67 points", text)
    assert "Changed sides: 9 now passed, 1 now failed" in text
    assert "  - refund/twin-11/0: is polite: it shouts" in text
    figures = json.loads(run("compare", tmp_path / "old", tmp_path / "new", "--json", "-").stdout)
    assert figures["difference"]["gained"] == 9


def test_compare_says_what_forbids_it_and_compares_anyway_when_told_to(tmp_path: Path) -> None:
    runs(tmp_path, talks([False] * 10), talks([True] * 10), prompts={"act": "act/2"})
    text = output_of("compare", tmp_path / "old", tmp_path / "new")
    assert "Not comparable: the versions of the prompts differ: act: act/1 → act/2." in text
    assert "passes more" not in text
    text = output_of("compare", tmp_path / "old", tmp_path / "new", "--anyway")
    assert "Not comparable: the versions of the prompts differ" in text
    assert "my_agent:better passes more: +100 points" in text
