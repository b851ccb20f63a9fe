"""The pytest plugin, from outside: other people's test runs, with twins that were really learned."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from conftest import recipe, scripted, small_conversation
from usertwin.memory import TwinRecord, alearn, existing_twin
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.twin.record import default_home
from usertwin.personas import ChatLog
from usertwin.simulator import SimulatedUser

AGENTS = """
import time
import pytest

def good(messages):
    return f"Reply number {len(messages)}. Which city?"

def raising(messages):
    raise KeyError("no such city")

def forgetful(messages):
    return None

def silent(messages):
    return "  "

def slow(messages):
    time.sleep(30)
"""
MARKED = '@pytest.mark.usertwin(twin="ann")\n'


@pytest.fixture
def script(tmp_path: Path) -> str:
    """The name of a model whose turns are all different, and none of which ends a talk."""
    path = tmp_path / "script.txt"
    path.write_text("".join(f"the weather in {city} please\n" for city in ("Oslo", "Rome", "Lima", "Cairo", "Kyoto")), "utf-8")
    return f"scripted:{path}"


@pytest.fixture
def mute(tmp_path: Path) -> str:
    """The name of a model that never writes anything."""
    path = tmp_path / "mute.txt"
    path.write_text(json.dumps({"when": "", "say": ""}), "utf-8")
    return f"scripted:{path}"


@pytest.fixture(scope="module", autouse=True)
def _everything_imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Do once what the tests do: pytester forgets what is first imported in its test, and numpy cannot be imported twice."""
    home = tmp_path_factory.mktemp("home")
    log = ChatLog(tuple(map(small_conversation, range(8))), "test")
    asyncio.run(alearn("first", log, recipe(), embedder=FakeEmbedder(), model=scripted("hm"), scorer=FakeScorer(), home=home))
    with SimulatedUser.load("first", home=home, model=scripted("hello there")) as user:
        user.respond([{"role": "assistant", "content": "hi"}])


def run(pytester: pytest.Pytester, test: str, *options: str) -> pytest.RunResult:
    """A user's test file with the agents above, run with these options."""
    pytester.makepyfile(AGENTS + test)
    return pytester.runpytest_inprocess("--strict-markers", *options)


def talk(agent: str, *, marker: str = MARKED, call: str = "", then: str = "pass") -> str:
    """A test in which a twin talks with one of the agents."""
    return f"\n{marker}def test_talk(simulate):\n    found = simulate({agent}{call})\n    {then}\n"


# Outcomes -------------------------------------------------------------------------------------------------------------


def test_a_test_with_a_good_agent_passes_and_sees_the_conversation(pytester: pytest.Pytester, ann: str, script: str) -> None:
    then = 'assert [m["role"] for m in found.messages] == ["user", "assistant"] * 3 and found.exchanges[0].answer.recalled'
    result = run(pytester, talk("good", call=", turns=3", then=then), "--usertwin-model", script)
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("agent", "blame"),
    [
        ("raising", "the agent raised KeyError: 'no such city' (after 1 turns, with seed 0)"),
        ("forgetful", "the agent returned None instead of a reply"),
        ("silent", "the agent said nothing"),
    ],
)
def test_a_test_fails_on_what_the_agent_did(pytester: pytest.Pytester, ann: str, script: str, agent: str, blame: str) -> None:
    result = run(pytester, talk(agent), "--usertwin-model", script)
    result.assert_outcomes(failed=1)
    assert blame in result.stdout.str()
    assert "Traceback" not in result.stdout.str()


def test_a_test_fails_on_an_agent_that_is_too_slow(pytester: pytest.Pytester, ann: str, script: str) -> None:
    result = run(pytester, talk("slow"), "--usertwin-model", script, "--usertwin-agent-timeout", "0.05")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*the agent took longer than 0.05 seconds*"])


def test_a_test_fails_on_its_own_assertion(pytester: pytest.Pytester, ann: str, script: str) -> None:
    result = run(pytester, talk("good", then="assert found.stop_reason == 'user_stop'"), "--usertwin-model", script)
    result.assert_outcomes(failed=1)


def test_a_test_errors_on_a_twin_that_says_nothing(pytester: pytest.Pytester, ann: str, mute: str) -> None:
    result = run(pytester, talk("good"), "--usertwin-model", mute)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*usertwin, not the agent: the twin said nothing*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_the_agent_is_not_blamed_even_if_it_would_have_failed_too(pytester: pytest.Pytester, ann: str, mute: str) -> None:
    run(pytester, talk("raising"), "--usertwin-model", mute).assert_outcomes(errors=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--usertwin-twin", "nobody"], '*there is no twin "nobody"*(there: ann)*'),
        (["--usertwin-model", "scripted:nowhere.txt"], "*the script cannot be read*"),
        (["--usertwin-model", "local"], "*USERTWIN_ONLY_SCRIPTED forbids*"),
    ],
)
def test_a_test_errors_on_a_twin_that_cannot_be_had(
    pytester: pytest.Pytester, ann: str, options: Sequence[str], said: str
) -> None:
    result = run(pytester, talk("good"), *options)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([said])
    assert "Traceback" not in result.stdout.str()


def test_a_test_errors_on_a_damaged_twin(pytester: pytest.Pytester, ann: str, script: str) -> None:
    (existing_twin(ann) / "twin.json").write_text("{", "utf-8")
    result = run(pytester, talk("good"), "--usertwin-model", script)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*is damaged*--overwrite*"])


def test_one_bad_twin_does_not_spoil_the_other_tests(pytester: pytest.Pytester, ann: str, script: str, mute: str) -> None:
    tests = talk("good") + talk("raising").replace("test_talk", "test_raising")
    tests += talk("good", call=f", model={mute!r}").replace("test_talk", "test_mute")
    pytester.makeini(f"[pytest]\nusertwin_model = {script}\n")
    run(pytester, tests).assert_outcomes(passed=1, failed=1, errors=1)


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ini", "call", "marker", "option", "turns"),
    [("1", None, None, None, 1), ("1", 2, None, None, 2), ("1", 2, 3, None, 3), ("1", 2, 3, 4, 4), (None, None, 3, 1, 1)],
)
def test_the_command_line_wins_over_the_marker_that_over_the_call_and_that_over_the_ini_file(
    pytester: pytest.Pytester,
    ann: str,
    script: str,
    ini: str | None,
    call: int | None,
    marker: int | None,
    option: int | None,
    turns: int,
) -> None:
    pytester.makeini("[pytest]\n" + (f"usertwin_turns = {ini}\n" if ini else ""))
    marked = f'@pytest.mark.usertwin(twin="ann"{f", turns={marker}" if marker else ""})\n'
    told = f", turns={call}" if call else ""
    options = ["--usertwin-turns", str(option)] if option else []
    test = talk("good", marker=marked, call=told, then=f"assert len(found.exchanges) == {turns}")
    run(pytester, test, "--usertwin-model", script, *options).assert_outcomes(passed=1)


def test_without_any_setting_a_twin_has_eight_turns_and_no_goal(pytester: pytest.Pytester, ann: str, script: str) -> None:
    test = talk("good", then='assert (len(found.exchanges), found.goal, found.seed) == (8, "", 0)')
    run(pytester, test, "--usertwin-model", script).assert_outcomes(passed=1)


def test_every_setting_can_stand_in_the_ini_file(
    pytester: pytest.Pytester, ann: str, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = default_home()
    monkeypatch.setenv("USERTWIN_HOME", str(home / "elsewhere"))
    settings = (
        "usertwin_twin = ann", f"usertwin_home = {home}", f"usertwin_model = {script}", "usertwin_turns = 2",
        "usertwin_goal = You want a refund.", "usertwin_seed = 5", "usertwin_agent_timeout = 9.5",
    )  # fmt: skip
    pytester.makeini("\n".join(("[pytest]", *settings)))
    then = 'assert (found.twin, len(found.exchanges), found.goal, found.seed) == ("ann", 2, "You want a refund.", 5)'
    run(pytester, talk("good", marker="", then=then)).assert_outcomes(passed=1)


def test_every_setting_can_stand_on_the_command_line(
    pytester: pytest.Pytester, ann: str, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = default_home()
    monkeypatch.setenv("USERTWIN_HOME", str(home / "elsewhere"))
    then = 'assert (found.twin, len(found.exchanges), found.goal, found.seed) == ("ann", 2, "a refund", 5)'
    options = (
        "--usertwin-twin=ann", f"--usertwin-home={home}", f"--usertwin-model={script}", "--usertwin-turns=2",
        "--usertwin-goal=a refund", "--usertwin-seed=5", "--usertwin-agent-timeout=9",
    )  # fmt: skip
    run(pytester, talk("good", marker="", then=then), *options).assert_outcomes(passed=1)


def test_the_closest_marker_wins_and_the_others_fill_in(pytester: pytest.Pytester, ann: str, script: str) -> None:
    test = """
pytestmark = pytest.mark.usertwin(twin="ann", turns=1, goal="far")

@pytest.mark.usertwin(goal="near")
def test_talk(simulate):
    found = simulate(good)
    assert (len(found.exchanges), found.goal) == (1, "near")
"""
    run(pytester, test, "--usertwin-model", script).assert_outcomes(passed=1)


def test_a_seed_of_one_call_does_not_stick_to_the_next(pytester: pytest.Pytester, ann: str, script: str) -> None:
    then = "assert (found.seed, simulate(good, turns=1).seed) == (3, 0)"
    run(pytester, talk("good", call=", seed=3", then=then), "--usertwin-model", script).assert_outcomes(passed=1)


def test_what_else_is_told_goes_to_the_simulation(pytester: pytest.Pytester, ann: str, script: str) -> None:
    then = 'assert (found.messages[0]["role"], found.stop_reason) == ("assistant", "goal_reached")'
    call = ", agent_first=True, goal_reached=lambda messages: True"
    run(pytester, talk("good", call=call, then=then), "--usertwin-model", script).assert_outcomes(passed=1)


def test_the_marker_is_registered(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.usertwin(twin=*turns=*agent_timeout=*"])


def test_the_options_are_in_the_help(pytester: pytest.Pytester) -> None:
    text = pytester.runpytest_inprocess("--help").stdout.str()
    for name in ("twin", "home", "model", "turns", "goal", "seed", "agent-timeout"):
        assert f"--usertwin-{name}" in text
        assert f"usertwin_{name.replace('-', '_')}" in text


@pytest.mark.parametrize("marker", ['twin="ann", trun=3', '"ann"'])
def test_a_marker_with_something_unknown_says_what_it_takes(pytester: pytest.Pytester, ann: str, marker: str) -> None:
    result = run(pytester, talk("good", marker=f"@pytest.mark.usertwin({marker})\n"))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*the marker usertwin takes twin, home, model, turns, goal, seed, agent_timeout, by name*"])


def test_without_a_twin_the_ways_to_name_one_are_said(pytester: pytest.Pytester) -> None:
    result = run(pytester, talk("good", marker=""))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*which twin? name one: *--usertwin-twin*usertwin_twin in the ini file*"])


def test_a_setting_in_the_ini_file_that_is_no_number_is_named(pytester: pytest.Pytester, ann: str) -> None:
    pytester.makeini("[pytest]\nusertwin_turns = many\n")
    result = run(pytester, talk("good"))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*usertwin_turns*many*"])


# The summary ----------------------------------------------------------------------------------------------------------


def test_the_summary_names_the_twins_that_talked(pytester: pytest.Pytester, ann: str, script: str) -> None:
    result = run(pytester, talk("good", then="simulate(good)"), "--usertwin-model", script)
    result.stdout.fnmatch_lines(["*= simulated users =*", "ann: 2 conversations; closeness: not measured; usertwin eval ann"])


def test_the_summary_tells_how_close_a_measured_twin_is(pytester: pytest.Pytester, ann: str, script: str) -> None:
    folder = existing_twin(ann)
    figure = {"bits_per_char": {"value": 1.25, "low": 1.0, "high": 1.5, "n": 12}}
    paired = {"recalled_triples - no_memory": {"bits_per_char": {"value": -0.5, "low": -0.75, "high": -0.25, "n": 12}}}
    closeness = {"arms": {"recalled_triples": figure}, "paired": paired, "measured_at": "2024-05-06T00:00:00+00:00"}
    TwinRecord.load(folder).with_closeness(closeness).save(folder)
    result = run(pytester, talk("good"), "--usertwin-model", script)
    result.stdout.fnmatch_lines(
        ["ann: 1 conversation; closeness: 1.250 bits per character (1.000 to 1.500), -0.500 (-0.750 to -0.250) against *n=12*"]
    )


def test_there_is_no_summary_if_no_twin_talked(pytester: pytest.Pytester) -> None:
    result = run(pytester, "\ndef test_other():\n    pass\n")
    result.assert_outcomes(passed=1)
    assert "simulated users" not in result.stdout.str()


# The cost of a plugin that is not used --------------------------------------------------------------------------------


def test_a_run_that_does_not_use_the_plugin_imports_nothing_heavy(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read in a process of its own, where of all plugins only ours is loaded; asking for the fixture is not yet using it."""
    pytester.makepyfile("""
        import sys

        HEAVY = {"torch", "transformers", "faiss", "numpy", "scipy", "sklearn", "rich", "jinja2", "openai", "pydantic"}

        def test_nothing_heavy(request, simulate):
            assert request.config.pluginmanager.hasplugin("usertwin")
            loaded = {name.partition(".")[0] for name in sys.modules}
            assert not [name for name in loaded if name in HEAVY or name.startswith(("langchain", "langgraph"))]
        """)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.runpytest_subprocess("-p", "usertwin").assert_outcomes(passed=1)


# In other processes ---------------------------------------------------------------------------------------------------


def test_a_run_of_its_own_finds_the_plugin_by_itself(pytester: pytest.Pytester, ann: str, script: str) -> None:
    pytester.makepyfile(AGENTS + talk("good") + talk("silent").replace("test_talk", "test_silent"))
    result = pytester.runpytest_subprocess("--strict-markers", "--usertwin-model", script)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["ann: 2 conversations; closeness: *"])


def test_outcomes_and_summary_survive_pytest_xdist(pytester: pytest.Pytester, ann: str, script: str, mute: str) -> None:
    pytest.importorskip("xdist")
    tests = talk("good") + talk("raising").replace("test_talk", "test_raising")
    tests += talk("good", call=f", model={mute!r}").replace("test_talk", "test_mute")
    pytester.makeini(f"[pytest]\nusertwin_model = {script}\n")
    pytester.makepyfile(AGENTS + tests)
    result = pytester.runpytest_subprocess("-n", "1", "-p", "xdist")
    result.assert_outcomes(passed=1, failed=1, errors=1)
    result.stdout.fnmatch_lines(["*usertwin, not the agent: the twin said nothing*"])
    result.stdout.fnmatch_lines(["ann: 3 conversations; closeness: *"])
