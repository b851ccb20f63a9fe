"""evals/pytest_plugin.py, from outside: test runs of users, with learned twins."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from cli_runner import WEATHER, write_script

from conftest import Endpoint, recipe, scripted, small_conversation
from usertwin.memory import TwinRecord, alearn, existing_twin
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.twin.record import default_home
from usertwin.personas import ChatLog
from usertwin.simulator import SimulatedUser, load_model
from usertwin.simulator.backends import model_choice

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
#: pytest-asyncio warns of every run without its settings.
NO_ASYNCIO = ("-p", "no:asyncio")
#: What the model of `script` says.
SCRIPTED_REPLIES = WEATHER[:5]
MARKER = '@pytest.mark.usertwin(twin="ann")\n'


@pytest.fixture
def mute(tmp_path: Path) -> str:
    """The name of a model that writes nothing."""
    (tmp_path / "mute").mkdir()
    return write_script(tmp_path / "mute", '{"when": "", "say": ""}')


@pytest.fixture(scope="module", autouse=True)
def _everything_imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Import all that a twin needs: pytester drops modules that its run imports first, and numpy cannot be imported twice."""
    home = tmp_path_factory.mktemp("home")
    log = ChatLog(tuple(map(small_conversation, range(8))), "test")
    asyncio.run(alearn("first", log, recipe(), embedder=FakeEmbedder(), model=scripted("hm"), scorer=FakeScorer(), home=home))
    with SimulatedUser.load("first", home=home, model=scripted("hello there")) as user:
        user.respond([{"role": "assistant", "content": "hi"}])


def run(pytester: pytest.Pytester, test: str, *options: str) -> pytest.RunResult:
    """Run a user's test file, with the agents above, in this process."""
    pytester.makepyfile(AGENTS + test)
    return pytester.runpytest_inprocess("--strict-markers", *(() if "pytest_asyncio" in test else NO_ASYNCIO), *options)


def talk(agent: str, *, marker: str = MARKER, arguments: str = "", then: str = "pass", name: str = "test_talk") -> str:
    """Return a test in which a twin talks with one of the agents."""
    return f"\n{marker}def {name}(simulate):\n    simulation = simulate({agent}{arguments})\n    {then}\n"


# Outcomes -------------------------------------------------------------------------------------------------------------


def test_a_test_with_a_good_agent_passes_and_gets_the_simulation(pytester: pytest.Pytester, ann: str, script: str) -> None:
    then = (
        'assert [m["role"] for m in simulation.messages] == ["user", "assistant"] * 3 '
        "and simulation.exchanges[0].answer.recalled"
    )
    result = run(pytester, talk("good", arguments=", max_turns=3", then=then), "--usertwin-model", script)
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("agent", "error"),
    [
        ("raising", "the agent raised KeyError: 'no such city' (after 1 turns, with seed 0)"),
        ("forgetful", "the agent returned None instead of a reply"),
        ("silent", "the agent returned an empty reply"),
    ],
)
def test_a_test_fails_because_of_the_agent(pytester: pytest.Pytester, ann: str, script: str, agent: str, error: str) -> None:
    result = run(pytester, talk(agent), "--usertwin-model", script)
    result.assert_outcomes(failed=1)
    assert error in result.stdout.str()
    assert "Traceback" not in result.stdout.str()


def test_a_test_fails_if_the_agent_is_too_slow(pytester: pytest.Pytester, ann: str, script: str) -> None:
    result = run(pytester, talk("slow"), "--usertwin-model", script, "--usertwin-agent-timeout", "0.05")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*the agent took longer than 0.05 seconds*"])


def test_a_test_fails_because_of_its_own_assertion(pytester: pytest.Pytester, ann: str, script: str) -> None:
    result = run(pytester, talk("good", then="assert simulation.stop_reason == 'user_stop'"), "--usertwin-model", script)
    result.assert_outcomes(failed=1)


@pytest.mark.parametrize("agent", ["good", "raising"])
def test_a_test_errors_because_of_the_twin(pytester: pytest.Pytester, ann: str, mute: str, agent: str) -> None:
    result = run(pytester, talk(agent), "--usertwin-model", mute)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*usertwin, not the agent: the twin*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--usertwin-twin", "nobody"], '*there is no twin "nobody"*ann*'),
        (["--usertwin-model", "scripted:nowhere.txt"], "*nowhere.txt*"),
        (["--usertwin-max-turns", "0"], "*max_turns is 0; it must be at least 1*"),
        (["--usertwin-agent-timeout", "nan"], "*agent_timeout is nan; it must be*"),
        (["--usertwin-model", "local"], "*USERTWIN_ONLY_SCRIPTED forbids*"),
    ],
)
def test_a_test_errors_if_the_twin_cannot_be_loaded(
    pytester: pytest.Pytester, ann: str, options: Sequence[str], error: str
) -> None:
    result = run(pytester, talk("good"), *options)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([error])
    assert "Traceback" not in result.stdout.str()


def test_a_test_errors_if_the_twin_is_damaged(pytester: pytest.Pytester, ann: str, script: str) -> None:
    (existing_twin(ann) / "twin.json").write_text("{", "utf-8")
    result = run(pytester, talk("good"), "--usertwin-model", script)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*damaged*--overwrite*"])


# A failure of the twin is an error, whatever the test does with it ----------------------------------------------------


def junit(pytester: pytest.Pytester) -> list[tuple[str, str, str]]:
    """Return name, outcome and message of each test case in the JUnit file."""
    cases = ElementTree.parse(pytester.path / "junit.xml").getroot().iter("testcase")
    outcomes = {case: [child for child in case if child.tag != "properties"] for case in cases}
    return [(str(case.get("name")), *((c.tag, str(c.get("message"))) for c in outcomes[case])) for case in outcomes]  # pyright: ignore


XFAIL = '@pytest.mark.xfail(reason="known"{})\n' + MARKER
CATCHES = {
    "nothing": talk("good"),
    "xfail": talk("good", marker=XFAIL.format("")),
    "strict xfail": talk("good", marker=XFAIL.format(", strict=True")),
    "xfail of its exception": talk("good", marker=XFAIL.format(", raises=Exception")),
    "raises": f"{MARKER}def test_talk(simulate):\n    with pytest.raises(Exception):\n        simulate(good)\n",
    **{
        f"an except with {name}": f"{MARKER}def test_talk(simulate):\n"
        f"    try:\n        simulate(good)\n    except Exception:\n        {body}\n"
        for name, body in {
            "pass": "pass", "skip": 'pytest.skip("x")', "xfail": 'pytest.xfail("x")', "fail": 'pytest.fail("x")',
            "assert": "assert 1 == 2", "exit": "raise SystemExit(1)",
        }.items()
    },
    "a fixture": "@pytest.fixture\ndef talked(simulate):\n    return simulate(good)\n\n"
    f"{MARKER}def test_talk(talked):\n    pass\n",
    "a fixture that catches it": "@pytest.fixture\ndef talked(simulate):\n    try:\n        return simulate(good)\n"
    f"    except Exception:\n        pass\n\n{MARKER}def test_talk(talked):\n    pass\n",
    "an xfail of a fixture": "@pytest.fixture\ndef talked(simulate):\n    return simulate(good)\n\n"
    f"{XFAIL.format('')}def test_talk(talked):\n    pass\n",
}  # fmt: skip


@pytest.mark.parametrize("test", CATCHES.values(), ids=CATCHES)
def test_a_failure_of_the_twin_is_an_error_whatever_catches_it(
    pytester: pytest.Pytester, ann: str, mute: str, test: str
) -> None:
    result = run(pytester, test, "--usertwin-model", mute, "-rA", "--junitxml=junit.xml")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*ERROR at setup of test_talk*", "usertwin, not the agent: the twin*", "ERROR *::test_talk*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    [(name, (tag, message))] = junit(pytester)
    assert (name, tag) == ("test_talk", "error")
    assert "usertwin, not the agent: the twin" in message


def test_a_failure_of_the_agent_is_a_failure_that_xfail_takes(pytester: pytest.Pytester, ann: str, script: str) -> None:
    tests = talk("silent", name="test_fails") + talk("silent", marker=XFAIL.format(", strict=True"), name="test_known")
    result = run(pytester, tests, "--usertwin-model", script, "--junitxml=junit.xml")
    result.assert_outcomes(failed=1, xfailed=1)
    assert [tag for _, (tag, _) in junit(pytester)] == ["failure", "skipped"]


@pytest.mark.skipif(not hasattr(pytest, "Subtests"), reason="subtests came with pytest 9")
def test_a_failure_of_the_twin_in_a_subtest_is_an_error(pytester: pytest.Pytester, ann: str, mute: str) -> None:
    test = f"{MARKER}def test_talk(simulate, subtests):\n    with subtests.test('a'):\n        simulate(good)\n"
    result = run(pytester, test, "--usertwin-model", mute, "--junitxml=junit.xml")
    result.assert_outcomes(errors=2)
    assert {tag for _, *children in junit(pytester) for tag, _ in children} == {"error"}


def test_an_unexpected_exception_of_the_twin_is_an_error(pytester: pytest.Pytester, ann: str, script: str) -> None:
    (existing_twin(ann) / "twin.json").unlink()
    (existing_twin(ann) / "twin.json").mkdir()
    run(pytester, talk("good"), "--usertwin-model", script).assert_outcomes(errors=1)


def test_an_interrupt_after_a_failure_of_the_twin_ends_the_run(pytester: pytest.Pytester, ann: str, mute: str) -> None:
    body = "try:\n        simulate(good)\n    except Exception:\n        pytest.exit('enough')"
    test = f"{MARKER}def test_talk(simulate):\n    {body}\n" + talk("good", name="test_next")
    assert run(pytester, test, "--usertwin-model", mute).ret == pytest.ExitCode.INTERRUPTED


def test_each_run_of_a_repeated_test_counts_alone(pytester: pytest.Pytester, ann: str, script: str, mute: str) -> None:
    """As pytest-rerunfailures repeats a test: in the same process, with the same item."""
    pytester.makeconftest("""
        from _pytest.runner import runtestprotocol

        def pytest_runtest_protocol(item, nextitem):
            runtestprotocol(item, log=False, nextitem=nextitem)
            runtestprotocol(item, nextitem=nextitem)
            return True
        """)
    test = f"models = [{mute!r}, {script!r}]\n" + talk("good", arguments=", model=models.pop(0)")
    run(pytester, test).assert_outcomes(passed=1)


# Event loops ----------------------------------------------------------------------------------------------------------

ASYNC = """
import asyncio

@pytest.fixture
def anyio_backend():
    return "asyncio"

class Bound:
    "An agent that works only in the loop it was made in, as a client with a connection."
    def __init__(self):
        self.ready = asyncio.get_running_loop().create_future()
        self.ready.get_loop().call_soon(self.ready.set_result, "Which city?")

    async def reply(self, messages):
        return await self.ready

@ASYNC_FIXTURE
async def agent():
    return Bound()

@ASYNC_FIXTURE
async def talked(simulate, agent):
    return await simulate(agent.reply)

pytestmark = [pytest.mark.PLUGIN, pytest.mark.usertwin(twin="ann", max_turns=3)]

async def test_awaited(simulate, agent):
    assert len((await simulate(agent.reply)).exchanges) == 3

async def test_at_once(simulate, agent):
    first, second = await asyncio.gather(*(simulate(agent.reply, seed=seed) for seed in (1, 2)))
    assert (first.seed, second.seed) == (1, 2)

async def test_a_task(simulate, agent):
    assert (await asyncio.create_task(simulate(agent.reply))).stop_reason == "max_turns"

async def test_a_fixture(talked):
    assert len(talked.exchanges) == 3

async def test_in_a_thread(simulate):
    assert (await asyncio.to_thread(simulate, good)).stop_reason == "max_turns"

async def test_a_sync_agent(simulate):
    assert (await simulate(good)).stop_reason == "max_turns"
"""


def async_tests(plugin: str, *tests: str) -> str:
    fixture = "pytest.fixture" if plugin == "anyio" else "__import__('pytest_asyncio').fixture"
    return "".join([ASYNC, *tests]).replace("ASYNC_FIXTURE", fixture).replace("PLUGIN", plugin)


@pytest.fixture(params=["anyio", "asyncio"])
def plugin(request: pytest.FixtureRequest, pytester: pytest.Pytester, script: str) -> str:
    """The name of a plugin for async tests, which is its marker, too; the ini file names the model."""
    loop_scope = "asyncio_default_fixture_loop_scope = function\n" if request.param == "asyncio" else ""
    pytester.makeini(f"[pytest]\nusertwin_model = {script}\n{loop_scope}")
    if loop_scope:
        pytest.importorskip("pytest_asyncio")
    return request.param


def test_in_an_async_test_the_conversation_runs_in_the_tests_own_loop(pytester: pytest.Pytester, ann: str, plugin: str) -> None:
    run(pytester, async_tests(plugin)).assert_outcomes(passed=6)


def test_attribution_is_the_same_in_an_async_test(pytester: pytest.Pytester, ann: str, mute: str, plugin: str) -> None:
    tests = f"""
async def test_agent(simulate):
    await simulate(silent)

async def test_twin(simulate):
    await simulate(good, model={mute!r})

async def test_swallowed(simulate):
    with pytest.raises(Exception):
        await simulate(good, model={mute!r})

async def test_together(simulate):
    async with asyncio.TaskGroup() as group:
        group.create_task(simulate(good, model={mute!r}))
"""
    result = run(pytester, async_tests(plugin, tests), "--junitxml=junit.xml")
    result.assert_outcomes(passed=6, failed=1, errors=3)
    outcomes = {name: [tag for tag, _ in children] for name, *children in junit(pytester)}
    assert {name: tags for name, tags in outcomes.items() if tags} == {
        "test_agent": ["failure"], "test_twin": ["error"], "test_swallowed": ["error"], "test_together": ["error"],
    }  # fmt: skip
    result.stdout.fnmatch_lines(["ann: 11 conversations; closeness: *"])


@pytest.mark.parametrize("body", ["simulate(good)", "conversation = simulate(good)\n    assert conversation.messages"])
def test_a_conversation_that_is_not_awaited_is_an_error(pytester: pytest.Pytester, ann: str, plugin: str, body: str) -> None:
    tests = f"\nasync def test_forgotten(simulate):\n    {body}\n"
    result = run(pytester, async_tests(plugin, tests), "-W", "error", "-k", "forgotten")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*simulate(...) was not awaited; in an async test, write: await simulate(...)*"])


def test_a_sync_test_inside_a_running_loop_needs_no_await(pytester: pytest.Pytester, ann: str, script: str) -> None:
    """As in a notebook, where tests run below the loop of the kernel."""
    pytester.makepyfile(AGENTS + talk("good", then='assert simulation.stop_reason == "max_turns"'))

    async def notebook() -> pytest.RunResult:
        return pytester.runpytest_inprocess("--usertwin-model", script, *NO_ASYNCIO)

    asyncio.run(notebook()).assert_outcomes(passed=1)


def test_an_agent_with_one_async_client_works_in_every_test(
    pytester: pytest.Pytester, ann: str, script: str, endpoint: Endpoint
) -> None:
    """create_react_agent over ChatOpenAI, which keeps its connections."""
    endpoint.server.RequestHandlerClass.protocol_version = "HTTP/1.1"  # pyright: ignore
    test = f"""
from langchain_openai import ChatOpenAI
from langgraph.prebuilt import create_react_agent

agent = create_react_agent(ChatOpenAI(model="m", base_url={endpoint.url!r}, api_key="none", max_retries=0), [])

@pytest.mark.filterwarnings("ignore")
@pytest.mark.usertwin(twin="ann", max_turns=2)
@pytest.mark.parametrize("seed", range(4))
def test_talk(simulate, seed):
    simulate(agent, seed=seed)
"""
    run(pytester, test, "--usertwin-model", script).assert_outcomes(passed=4)


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ini", "argument", "marker", "option", "turns"),
    [("1", None, None, None, 1), ("1", None, 2, None, 2), ("1", 3, 2, None, 3), ("1", 2, 3, 4, 4), (None, None, 3, 1, 1)],
)
def test_the_command_line_precedes_the_call_the_marker_and_the_ini_file(
    pytester: pytest.Pytester,
    ann: str,
    script: str,
    ini: str | None,
    argument: int | None,
    marker: int | None,
    option: int | None,
    turns: int,
) -> None:
    pytester.makeini("[pytest]\n" + (f"usertwin_max_turns = {ini}\n" if ini else ""))
    marked = f'@pytest.mark.usertwin(twin="ann"{f", max_turns={marker}" if marker else ""})\n'
    arguments = f", max_turns={argument}" if argument else ""
    options = ["--usertwin-max-turns", str(option)] if option else []
    test = talk("good", marker=marked, arguments=arguments, then=f"assert len(simulation.exchanges) == {turns}")
    run(pytester, test, "--usertwin-model", script, *options).assert_outcomes(passed=1)


def test_by_default_a_twin_has_eight_turns_no_goal_and_seed_0(pytester: pytest.Pytester, ann: str, script: str) -> None:
    test = talk("good", then='assert (len(simulation.exchanges), simulation.goal, simulation.seed) == (8, "", 0)')
    run(pytester, test, "--usertwin-model", script).assert_outcomes(passed=1)


@pytest.mark.parametrize("place", ["ini file", "command line"])
def test_every_setting_has_an_ini_key_and_an_option(
    pytester: pytest.Pytester, ann: str, script: str, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    home = default_home()
    monkeypatch.setenv("USERTWIN_HOME", str(home / "elsewhere"))
    settings = {
        "twin": "ann", "home": home, "model": script, "max-turns": 2, "goal": "You want the weather.", "seed": 5,
        "agent-timeout": 9.5,
    }  # fmt: skip
    options: list[str] = []
    if place == "ini file":
        lines = [f"usertwin_{name.replace('-', '_')} = {value}" for name, value in settings.items()]
        pytester.makeini("\n".join(["[pytest]", *lines]))
    else:
        options = [f"--usertwin-{name}={value}" for name, value in settings.items()]
    facts = "(simulation.twin, len(simulation.exchanges), simulation.goal, simulation.seed)"
    then = f'assert {facts} == ("ann", 2, "You want the weather.", 5)'
    run(pytester, talk("good", marker="", then=then), *options).assert_outcomes(passed=1)


def test_the_closest_marker_takes_precedence_and_the_others_complete_it(
    pytester: pytest.Pytester, ann: str, script: str
) -> None:
    test = """
pytestmark = pytest.mark.usertwin(twin="ann", max_turns=1, goal="far")

@pytest.mark.usertwin(goal="near")
def test_talk(simulate):
    simulation = simulate(good)
    assert (len(simulation.exchanges), simulation.goal) == (1, "near")
"""
    run(pytester, test, "--usertwin-model", script).assert_outcomes(passed=1)


def test_the_seed_of_a_call_does_not_carry_over_to_the_next(pytester: pytest.Pytester, ann: str, script: str) -> None:
    then = "assert (simulation.seed, simulate(good, max_turns=1).seed) == (3, 0)"
    run(pytester, talk("good", arguments=", seed=3", then=then), "--usertwin-model", script).assert_outcomes(passed=1)


def test_other_arguments_go_to_the_simulation(pytester: pytest.Pytester, ann: str, script: str) -> None:
    then = 'assert (simulation.messages[0]["role"], simulation.stop_reason) == ("assistant", "goal_reached")'
    arguments = ", agent_first=True, goal_reached=lambda messages: True"
    run(pytester, talk("good", arguments=arguments, then=then), "--usertwin-model", script).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("options", "lacks"),
    [
        ((), "soon loses the thread"),
        (("--usertwin-goal", "You want the weather."), "pursues no goal"),
        (("--usertwin-model", "local", "--usertwin-goal", "You want the weather."), "pursues no goal"),
        (("--usertwin-model", "local"), None),
    ],
)
def test_the_summary_says_what_the_tiny_model_cannot_do(
    pytester: pytest.Pytester, ann: str, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], lacks: str | None
) -> None:
    model = replace(scripted(*WEATHER[:5]), name="local")
    monkeypatch.setattr("usertwin.simulator.backends.lora_of_twin.load_model", lambda name, **_: model)
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")
    result = run(pytester, talk("good") + talk("good", name="test_again"), *options)
    result.assert_outcomes(passed=2)
    text = result.stdout.str()
    assert text.count("the model local (135 million parameters)") == (lacks is not None)
    if lacks is not None:
        result.stdout.fnmatch_lines([f"the model local * {lacks}*--usertwin-model local:small*1.1 GB*"])


def test_the_small_model_acts_where_it_can_and_no_model_is_named(
    pytester: pytest.Pytester, ann: str, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[str] = []
    load = load_model
    monkeypatch.setattr(
        "usertwin.simulator.backends.lora_of_twin.load_model", lambda name, **_: (named.append(name), load(script))[1]
    )
    monkeypatch.setattr(model_choice, "cached_file", lambda weights: weights)
    monkeypatch.setattr(model_choice, "free_memory", lambda: 8_000_000_000)
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")
    run(pytester, talk("good")).assert_outcomes(passed=1)
    run(pytester, talk("good"), "--usertwin-model", "local").assert_outcomes(passed=1)
    assert named == ["local:small", "local"]


def test_the_marker_is_registered(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--markers", *NO_ASYNCIO)
    result.stdout.fnmatch_lines(["@pytest.mark.usertwin(twin=*max_turns=*agent_timeout=*"])


def test_the_options_are_in_the_help(pytester: pytest.Pytester) -> None:
    text = pytester.runpytest_inprocess("--help", *NO_ASYNCIO).stdout.str()
    for name in ("twin", "home", "model", "max-turns", "goal", "seed", "agent-timeout"):
        assert f"--usertwin-{name}" in text
        assert f"usertwin_{name.replace('-', '_')}" in text


@pytest.mark.parametrize("marker", ['twin="ann", max_trun=3', '"ann"'])
def test_a_wrong_marker_is_reported_with_its_arguments(pytester: pytest.Pytester, ann: str, marker: str) -> None:
    result = run(pytester, talk("good", marker=f"@pytest.mark.usertwin({marker})\n"))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    names = "twin, home, model, scenarios, scenario, max_turns, goal, seed, agent_timeout, judge, repeats, pass_rate"
    result.stdout.fnmatch_lines([f"*the marker takes {names}, by name*"])


def test_a_test_without_a_twin_is_told_how_to_name_one(pytester: pytest.Pytester) -> None:
    result = run(pytester, talk("good", marker=""))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*no twin is named; use *--usertwin-twin*usertwin_twin in the ini file*"])


def test_a_setting_in_the_ini_file_that_is_not_a_number_is_reported(pytester: pytest.Pytester, ann: str) -> None:
    pytester.makeini("[pytest]\nusertwin_max_turns = many\n")
    result = run(pytester, talk("good"))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(['*usertwin_max_turns in the ini file is "many"; it must be a number*'])


@pytest.mark.parametrize("value", ["nan", "0", "-1", "-inf"])
def test_a_limit_that_is_not_above_0_is_an_error_and_never_a_failure_of_the_agent(
    pytester: pytest.Pytester, ann: str, script: str, value: str
) -> None:
    agent = "raising"  # which is not called
    result = run(pytester, talk(agent), "--usertwin-model", script, f"--usertwin-agent-timeout={value}")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"*usertwin, not the agent: agent_timeout is {float(value)!r}; it must be*"])
    arguments = f", max_turns=float('{value}'), agent_timeout=9"
    result = run(pytester, talk(agent, arguments=arguments), "--usertwin-model", script)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*usertwin, not the agent: max_turns is *; it must be *"])


# The summary ----------------------------------------------------------------------------------------------------------


def test_the_summary_names_the_twins_that_talked(pytester: pytest.Pytester, ann: str, script: str) -> None:
    result = run(pytester, talk("good", then="simulate(good)"), "--usertwin-model", script)
    result.stdout.fnmatch_lines(["*= simulated users =*", "ann: 2 conversations; closeness: not measured; usertwin eval ann"])


def test_the_summary_shows_the_closeness_of_a_measured_twin(pytester: pytest.Pytester, ann: str, script: str) -> None:
    folder = existing_twin(ann)
    figure = {"bits_per_char": {"value": 1.25, "low": 1.0, "high": 1.5, "n": 12}}
    paired = {
        "recon - no_memory": {"bits_per_char": {"value": -0.5, "low": -0.75, "high": -0.25, "n": 12, "p": 0.01, "p_holm": 0.01}}
    }
    closeness = {"arms": {"recon": figure}, "paired": paired, "turns": 12, "conversations": 9}
    closeness["measured_at"] = "2024-05-06T00:00:00+00:00"
    TwinRecord.load(folder).with_closeness(closeness).save(folder)
    result = run(pytester, talk("good"), "--usertwin-model", script)
    figures = "1.250 bits per character (1.000 to 1.500), −0.500 (−0.750 to −0.250) against no memory, p = 0.010 after Holm"
    result.stdout.fnmatch_lines([f"ann: 1 conversation; closeness: {figures}*n=12*"])
    TwinRecord.load(folder).with_closeness(closeness | {"conversations": 5}).save(folder)
    result = run(pytester, talk("good"), "--usertwin-model", script)
    result.stdout.fnmatch_lines(["*closeness: 1.250 bits per character (no interval)*against no memory, no test;*"])


def test_there_is_no_summary_if_no_twin_talked(pytester: pytest.Pytester) -> None:
    result = run(pytester, "\ndef test_other():\n    pass\n")
    result.assert_outcomes(passed=1)
    assert "simulated users" not in result.stdout.str()


# Other processes ------------------------------------------------------------------------------------------------------


def test_a_run_that_does_not_use_the_plugin_imports_nothing_heavy(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs in its own process with no other plugin; requesting the fixture does not count as using it."""
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


def test_outcomes_and_summary_in_a_process_of_its_own_with_xdist(
    pytester: pytest.Pytester, ann: str, script: str, mute: str
) -> None:
    """The plugin is found by its entry point, a bad twin spoils no other test, and xdist transfers the reports."""
    pytest.importorskip("xdist")
    tests = talk("good") + talk("raising", name="test_raising")
    tests += talk("good", arguments=f", model={mute!r}", name="test_mute")
    tests += talk("good", arguments=f", model={mute!r}", name="test_known", marker=XFAIL.format(""))
    pytester.makeini(f"[pytest]\nusertwin_model = {script}\n")
    pytester.makepyfile(AGENTS + tests)
    result = pytester.runpytest_subprocess("--strict-markers", "-n", "1", "-p", "xdist", "--junitxml=junit.xml", *NO_ASYNCIO)
    result.assert_outcomes(passed=1, failed=1, errors=2)
    result.stdout.fnmatch_lines(["*usertwin, not the agent: the twin*"])
    result.stdout.fnmatch_lines(["ann: 4 conversations; closeness: *"])
    assert [[tag for tag, _ in children] for _, *children in junit(pytester)] == [[], ["failure"], ["error"], ["error"]]
