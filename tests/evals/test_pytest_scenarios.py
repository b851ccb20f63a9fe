"""The pytest plugin with scenarios, repeated tests, faults of the twin in a conversation, transcripts, and reports."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from cli_runner import write_script

from usertwin.simulator.runs.run_folder import read_run

AGENTS = """
import pytest

def good(messages):
    return f"Reply number {len(messages)}. Which city?"

COUNT = iter(range(1000))

def every_second(messages):
    if next(COUNT) % 2:
        raise KeyError("no such city")
    return "Which city?"
"""
MARKER = '@pytest.mark.usertwin(twin="ann", max_turns=2)\n'


@pytest.fixture(autouse=True)
def _settings(pytester: pytest.Pytester, ann: str, weather: str) -> None:
    pytester.makeini(f"[pytest]\nusertwin_model = {weather}\n")


def run(pytester: pytest.Pytester, test: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(AGENTS + test)
    return pytester.runpytest_inprocess("--strict-markers", "-p", "no:asyncio", *options)


SCENARIOS = """
[[scenario]]
name = "weather"
twins = "ann"
goal = "You want the weather in Oslo."
opener = "hello, a question about the weather"
max_turns = 3

[[scenario]]
name = "parcel"
twins = "ann"
goal = "You want to know where your parcel is."
max_turns = 3
"""


def test_a_scenario_of_a_file_beside_the_test(pytester: pytest.Pytester) -> None:
    (pytester.path / "talks.toml").write_text(SCENARIOS, "utf-8")
    test = """
@pytest.mark.usertwin(scenarios="talks.toml", scenario="weather")
def test_talk(simulate):
    simulation = simulate(good)
    assert simulation.scenario == "weather"
    assert simulation.messages[0]["content"] == "hello, a question about the weather"
    assert len(simulation.exchanges) == 3
    assert len(simulate(good, max_turns=1).exchanges) == 1
"""
    run(pytester, test).assert_outcomes(passed=1)


def test_a_scenario_that_is_not_told_apart_is_an_error(pytester: pytest.Pytester) -> None:
    (pytester.path / "talks.toml").write_text(SCENARIOS, "utf-8")
    marker = '@pytest.mark.usertwin(scenarios="talks.toml")\n'
    result = run(pytester, f"{marker}def test_talk(simulate):\n    simulate(good)\n")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(['*talks.toml holds the scenarios "weather", "parcel"; name one with scenario=...'])


def test_a_twin_that_never_pursues_its_goal_is_an_error_and_no_failure(pytester: pytest.Pytester) -> None:
    (pytester.path / "talks.toml").write_text(SCENARIOS, "utf-8")
    marker = '@pytest.mark.usertwin(scenarios="talks.toml", scenario="parcel")\n'
    result = run(pytester, f"{marker}def test_talk(simulate):\n    simulate(good)\n    assert False\n")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*usertwin, not the agent: *never mentioned its goal*", "*1 of 1 spoiled by the twin*"])


def test_a_test_that_fails_after_a_fault_of_the_twin_is_an_error(pytester: pytest.Pytester, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assistant = write_script(tmp_path / "other", json.dumps({"when": "", "say": "The weather? How can I help you today?"}))
    test = f"""
@pytest.mark.usertwin(twin="ann", goal="You want the weather.", max_turns=1, model={assistant!r})
def test_failing(simulate):
    simulate(good)
    assert "sunny" == "rainy"

@pytest.mark.usertwin(twin="ann", goal="You want the weather.", max_turns=1, model={assistant!r})
def test_passing(simulate):
    simulate(good)
"""
    result = run(pytester, test)
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines(["*usertwin, not the agent: the test failed, but the twin spoke as the agent does*"])


def test_a_failing_test_shows_the_conversation_with_seed_goal_and_stop_reason(pytester: pytest.Pytester) -> None:
    test = f"{MARKER}def test_talk(simulate):\n    simulate(good, seed=7, goal='You want the weather.')\n    assert False\n"
    result = run(pytester, test)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*usertwin conversations*",
            'twin ann, seed 7, goal "You want the weather."',
            "ann: what is the weather in Oslo tomorrow",
            "agent: Reply number 1. Which city?",
            "ended with max_turns",
        ]
    )


@pytest.mark.parametrize(("rate", "outcome"), [(0.5, "passed"), (0.6, "failed")])
def test_a_share_of_the_runs_of_a_repeated_test_must_pass(pytester: pytest.Pytester, rate: float, outcome: str) -> None:
    marker = f'@pytest.mark.usertwin(twin="ann", max_turns=1, repeats=4, pass_rate={rate})\n'
    test = f"SEEDS = []\n{marker}def test_talk(simulate):\n    SEEDS.append(simulate(every_second).seed)\n"
    test += "def test_seeds():\n    assert SEEDS == [0, 2]\n"
    result = run(pytester, test)
    result.assert_outcomes(**({"passed": 2} if outcome == "passed" else {"failed": 1, "passed": 1}))
    if outcome == "failed":
        result.stdout.fnmatch_lines(["*2 of 4 runs passed, and 60% must", "*run 2: the agent raised KeyError*"])
    result.stdout.fnmatch_lines(["conversations: 2 of 4 passed (50%, 95% interval 15% to 85%)*"])


def test_runs_that_the_twin_spoils_do_not_count(pytester: pytest.Pytester, tmp_path: Path) -> None:
    (tmp_path / "mute").mkdir()
    mute = write_script(tmp_path / "mute", '{"when": "", "say": ""}')
    test = f"""
MODELS = iter([{mute!r}, None, None, {mute!r}])

@pytest.mark.usertwin(twin="ann", max_turns=1, repeats=4)
def test_talk(simulate):
    model = next(MODELS)
    simulate(good, **({{"model": model}} if model else {{}}))

@pytest.mark.usertwin(twin="ann", max_turns=1, repeats=2, model={mute!r})
def test_spoiled(simulate):
    simulate(good)
"""
    result = run(pytester, test)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*the twin spoiled every run: *"])


@pytest.mark.parametrize("setting", ["repeats=0", "pass_rate=0.0", "pass_rate=1.5"])
def test_repetitions_out_of_range_are_an_error(pytester: pytest.Pytester, setting: str) -> None:
    test = f'@pytest.mark.usertwin(twin="ann", {setting})\ndef test_talk(simulate):\n    simulate(good)\n'
    result = run(pytester, test)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"*{setting.split('=')[0]} is *; it must be*"])


def test_an_async_test_is_repeated_in_its_loop(pytester: pytest.Pytester) -> None:
    test = """
@pytest.fixture
def anyio_backend():
    return "asyncio"

SEEDS = []

@pytest.mark.anyio
@pytest.mark.usertwin(twin="ann", max_turns=1, repeats=3)
async def test_talk(asimulate):
    SEEDS.append((await asimulate(good)).seed)

def test_seeds():
    assert SEEDS == [0, 1, 2]
"""
    run(pytester, test).assert_outcomes(passed=2)


def test_the_twin_answers_in_a_test_without_an_agent(pytester: pytest.Pytester) -> None:
    test = f"""
{MARKER}def test_twin(twin):
    answer = twin.respond([{{"role": "assistant", "content": "Hello?"}}])
    assert answer.action == "what is the weather in Oslo tomorrow"
    assert answer.recalled
"""
    run(pytester, test).assert_outcomes(passed=1)


def test_a_report_holds_every_conversation_and_refuses_a_used_folder(pytester: pytest.Pytester) -> None:
    test = f"{MARKER}def test_good(simulate):\n    simulate(good)\n    simulate(good, seed=1)\n"
    test += f"{MARKER}def test_bad(simulate):\n    simulate(good)\n    assert False\n"
    result = run(pytester, test, "--usertwin-report", "talks")
    result.assert_outcomes(passed=1, failed=1)
    simulations = read_run(pytester.path / "talks").simulations
    assert [(s.scenario.rpartition("::")[2], s.repeat, s.checks[0].passed) for s in simulations] == [
        ("test_good", 0, True),
        ("test_good", 1, True),
        ("test_bad", 0, False),
    ]
    assert "the weather in Oslo" in (pytester.path / "talks" / "report.html").read_text("utf-8")
    result = run(pytester, test, "--usertwin-report", "talks")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_junit_holds_a_property_for_each_conversation(pytester: pytest.Pytester) -> None:
    run(pytester, f"{MARKER}def test_talk(simulate):\n    simulate(good)\n", "--junitxml=junit.xml")
    [line] = [p.attrib["value"] for p in ElementTree.parse(pytester.path / "junit.xml").iter("property")]
    assert line == "twin ann, seed 0; ended with max_turns"


@pytest.mark.parametrize(("call", "outcome"), [("pytest.xfail('known')", "xfailed"), ("pytest.skip('not today')", "skipped")])
def test_a_repeated_test_may_end_itself(pytester: pytest.Pytester, call: str, outcome: str) -> None:
    test = f'@pytest.mark.usertwin(twin="ann", repeats=3)\ndef test_talk(simulate):\n    {call}\n'
    run(pytester, test).assert_outcomes(**{outcome: 1})


def test_a_repeated_test_may_end_the_test_run(pytester: pytest.Pytester) -> None:
    test = '@pytest.mark.usertwin(twin="ann", repeats=3)\ndef test_talk(simulate):\n    pytest.exit("enough")\n'
    assert run(pytester, test).ret == pytest.ExitCode.INTERRUPTED


def test_a_fault_of_the_twin_is_an_error_in_unittest_too(pytester: pytest.Pytester, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assistant = write_script(tmp_path / "other", json.dumps({"when": "", "say": "The weather? How can I help you today?"}))
    (tmp_path / "mute").mkdir()
    mute = write_script(tmp_path / "mute", '{"when": "", "say": ""}')
    test = f"""
import unittest

@pytest.mark.usertwin(twin="ann", goal="You want the weather.", max_turns=1)
class TestTalk(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _twin(self, simulate):
        self.simulate = simulate

    @pytest.mark.usertwin(model={assistant!r})
    def test_spoiled(self):
        self.simulate(good)
        self.fail("not sunny")

    @pytest.mark.usertwin(model={mute!r})
    def test_caught(self):
        try:
            self.simulate(good)
        except Exception:
            pass
        self.fail("not sunny")

    def test_failed(self):
        self.simulate(good)
        self.fail("not sunny")

    @pytest.mark.usertwin(repeats=2)
    def test_repeated(self):
        self.simulate(good)
"""
    run(pytester, test).assert_outcomes(errors=2, failed=1, passed=1)


def test_a_report_that_cannot_be_written_is_said(pytester: pytest.Pytester) -> None:
    (pytester.path / "file").write_text("", "utf-8")
    test = f"{MARKER}def test_talk(simulate):\n    simulate(good)\n"
    assert run(pytester, test, "--usertwin-report", "file").ret == pytest.ExitCode.USAGE_ERROR
    result = run(pytester, test, "--usertwin-report", "file/talks")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["--usertwin-report: *file/talks: the folder cannot be created*"])


def test_a_report_of_tests_whose_ids_hold_slashes(pytester: pytest.Pytester) -> None:
    test = f"@pytest.mark.parametrize('city', ['a/b', 'São Paulo/::'])\n{MARKER}def test_talk(simulate, city):\n"
    test += "    simulate(good)\n    assert False\n"
    run(pytester, test, "--usertwin-report", "talks").assert_outcomes(failed=2)
    simulations = read_run(pytester.path / "talks").simulations
    assert [s.scenario.rpartition("test_talk")[2] for s in simulations] == ["[a/b]", "[S\\xe3o Paulo/::]"]


@pytest.mark.parametrize(("repeats", "passed"), [(1, 0), (2, 1)])
def test_a_conversation_of_a_fixture_counts_with_its_test(pytester: pytest.Pytester, repeats: int, passed: int) -> None:
    test = f"""
@pytest.fixture
def talked(simulate):
    return simulate(good)

@pytest.mark.usertwin(twin="ann", max_turns=1, repeats={repeats})
def test_talk(talked):
    assert "sunny" in talked.messages[-1]["content"]
"""
    result = run(pytester, test)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"conversations: {passed} of 1 passed*"])


def test_a_test_that_skips_after_a_conversation_counts_neither_way(pytester: pytest.Pytester) -> None:
    test = f"{MARKER}def test_talk(simulate):\n    simulate(good)\n    pytest.skip('not now')\n"
    result = run(pytester, test, "--usertwin-report=talks")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["conversations: 0 of 0 passed*"])
    assert read_run(pytester.path / "talks").simulations[0].checks[0].passed is None
