"""The pytest plugin with recorded twins, checks and criteria of scenarios, and the agent's own traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_runner import write_script

AGENTS = """
import pytest

def good(messages):
    return f"Reply number {len(messages)}. Which city?"

def look_up(city):
    return {"Oslo": "rain"}[city]

def broken(messages):
    return look_up("Rome")
"""
TEST = """
@pytest.mark.usertwin(twin="ann", max_turns=2)
def test_talk(simulate):
    talk = simulate(good)
    assert talk.messages[0]["content"] == "what is the weather in Oslo tomorrow"
"""
FILE = "--usertwin-recording=talks.sqlite"


@pytest.fixture(autouse=True)
def _settings(pytester: pytest.Pytester, ann: str, weather: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    pytester.makeini(f"[pytest]\nusertwin_model = {weather}\n")


def run(pytester: pytest.Pytester, test: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(AGENTS + test)
    return pytester.runpytest_inprocess("--strict-markers", "-p", "no:asyncio", *options)


def script_of(weather: str) -> Path:
    return Path(weather.removeprefix("scripted:"))


def test_a_recorded_twin_is_replayed_without_its_model_in_ci(
    pytester: pytest.Pytester, weather: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(pytester, TEST, FILE).assert_outcomes(passed=1)
    script_of(weather).unlink()  # the model is gone
    monkeypatch.setenv("CI", "true")
    run(pytester, TEST, FILE).assert_outcomes(passed=1)


def test_what_the_recording_lacks_is_an_error_that_says_how_to_record_it(pytester: pytest.Pytester) -> None:
    run(pytester, TEST, FILE).assert_outcomes(passed=1)
    changed = TEST.replace("simulate(good)", "simulate(lambda messages: 'another reply')")
    result = run(pytester, changed, FILE, "--usertwin-record-mode=none")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*usertwin, not the agent: *the recording has no *--usertwin-record-mode new*"])
    run(pytester, changed, FILE, "--usertwin-record-mode=new").assert_outcomes(passed=1)
    run(pytester, changed, FILE, "--usertwin-record-mode=none").assert_outcomes(passed=1)


def test_without_a_recording_a_replay_is_an_error(pytester: pytest.Pytester) -> None:
    result = run(pytester, TEST, FILE, "--usertwin-record-mode=none")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*talks.sqlite: there is no recording; run the tests once with --usertwin-record-mode new*"])


def test_a_recording_that_is_made_anew_holds_the_present_replies(pytester: pytest.Pytester, weather: str) -> None:
    run(pytester, TEST, FILE).assert_outcomes(passed=1)
    script_of(weather).write_text(json.dumps({"when": "", "say": "what is the weather in Rome"}), "utf-8")
    run(pytester, TEST, FILE).assert_outcomes(passed=1)  # as it was recorded
    run(pytester, TEST, FILE, "--usertwin-record-mode=all").assert_outcomes(failed=1)
    run(pytester, TEST.replace("in Oslo tomorrow", "in Rome"), FILE, "--usertwin-record-mode=none").assert_outcomes(passed=1)


def test_the_ini_file_names_recording_and_mode(pytester: pytest.Pytester, weather: str) -> None:
    ini = f"[pytest]\nusertwin_model = {weather}\nusertwin_recording = talks.sqlite\n"
    pytester.makeini(ini)
    run(pytester, TEST).assert_outcomes(passed=1)
    assert (pytester.path / "talks.sqlite").is_file()
    pytester.makeini(ini + "usertwin_record_mode = once\n")
    result = run(pytester, TEST)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(['*usertwin_record_mode in the ini file is "once"; it must be none, new, all*'])


def test_a_twin_in_the_hands_of_a_test_is_replayed_and_its_failure_is_an_error(pytester: pytest.Pytester) -> None:
    test = '@pytest.mark.usertwin(twin="ann")\ndef test_turn(twin):\n    assert twin.respond([], goal={goal!r}).action\n'
    run(pytester, test.format(goal=""), FILE).assert_outcomes(passed=1)
    run(pytester, test.format(goal=""), FILE, "--usertwin-record-mode=none").assert_outcomes(passed=1)
    run(pytester, test.format(goal="You want tea."), FILE, "--usertwin-record-mode=none").assert_outcomes(errors=1)


def test_a_failing_agent_shows_its_own_lines_and_none_of_ours(pytester: pytest.Pytester) -> None:
    result = run(pytester, TEST.replace("simulate(good)", "simulate(broken)"))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*the agent raised KeyError: 'Rome'*", "in the agent:", "*in broken", "*in look_up"])
    assert "simulator/agents" not in result.stdout.str()


def test_a_failing_agent_shows_the_lines_of_the_cause_and_of_the_first_in_a_group(pytester: pytest.Pytester) -> None:
    agents = """
def wraps(messages):
    try:
        look_up("Rome")
    except KeyError as error:
        raise RuntimeError("outer") from error

async def groups(messages):
    import asyncio
    async with asyncio.TaskGroup() as group:
        group.create_task(child())

async def child():
    raise ValueError("inner")
"""
    result = run(pytester, agents + TEST.replace("simulate(good)", "simulate(wraps)"))
    result.stdout.fnmatch_lines(["in the agent:", "*in wraps", "*in look_up", "KeyError", "then:", "*in wraps", "RuntimeError"])
    result = run(pytester, agents + TEST.replace("simulate(good)", "simulate(groups)"))
    result.stdout.fnmatch_lines(["in the agent:", "*in child", "ValueError", "then:", "*in groups", "ExceptionGroup"])


SCENARIO = """
[[scenario]]
name = "weather"
twins = "ann"
goal = "You want the weather in Oslo."
max_turns = 2
checks = ["says:{text}", "never_says:password"]
{more}
"""
SCENARIO_TEST = """
@pytest.mark.usertwin(scenarios="talks.toml")
def test_talk(simulate):
    simulate(good)
"""


def test_checks_of_a_scenario_decide_the_test(pytester: pytest.Pytester) -> None:
    (pytester.path / "talks.toml").write_text(SCENARIO.format(text="which city", more=""), "utf-8")
    run(pytester, SCENARIO_TEST).assert_outcomes(passed=1)
    (pytester.path / "talks.toml").write_text(SCENARIO.format(text="rain", more=""), "utf-8")
    result = run(pytester, SCENARIO_TEST)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*1 of 2 checks do not hold", '*says "rain": the agent never says "rain"'])


def test_criteria_need_a_judge_whose_answers_are_recorded(pytester: pytest.Pytester, tmp_path: Path) -> None:
    more = 'criteria = ["The agent asks for the city."]'
    (pytester.path / "talks.toml").write_text(SCENARIO.format(text="which city", more=more), "utf-8")
    result = run(pytester, SCENARIO_TEST)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(['*scenario "weather" has criteria and no model judges them; name one with usertwin_judge*'])
    (tmp_path / "judge").mkdir()
    verdict = json.dumps({"why": "It never names one.", "quote": "", "met": "no"})
    judge = write_script(tmp_path / "judge", json.dumps({"when": "", "say": verdict}))
    options = (FILE, f"--usertwin-judge={judge}")
    result = run(pytester, SCENARIO_TEST, *options)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*The agent asks for the city.: It never names one."])
    script_of(judge).unlink()
    run(pytester, SCENARIO_TEST, *options, "--usertwin-record-mode=none").assert_outcomes(failed=1)


def test_assertions_of_checks_say_what_does_not_hold(pytester: pytest.Pytester) -> None:
    test = """
from usertwin.evals.agent_tests import assert_checks, says

def polite(talk):
    return "it never says please"

def mistaken(talk):
    return talk.nothing

@pytest.mark.usertwin(twin="ann", max_turns=1)
def test_holds(simulate):
    assert_checks(simulate(good), says("which city"), "never_says:password")

@pytest.mark.usertwin(twin="ann", max_turns=1)
def test_fails(simulate):
    assert_checks(simulate(good), says("which city"), polite)

@pytest.mark.usertwin(twin="ann", max_turns=1)
def test_mistaken(simulate):
    assert_checks(simulate(good), mistaken)
"""
    result = run(pytester, test)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*1 of 2 checks do not hold*", "*polite: it never says please*", "*mistaken: AttributeError*"])
