"""The pytest plugin: simulated users in the tests of a chat agent.

    import pytest
    from my_agent import reply

    @pytest.mark.usertwin(twin="sam", goal="You want a refund.", max_turns=5)
    def test_refund(simulate):
        conversation = simulate(reply)
        assert any("refund" in m["content"].lower() for m in conversation.messages if m["role"] == "assistant")

In an `async def` test or fixture it is awaited, `conversation = await simulate(reply)`, and runs in the test's own event loop.

A setting on the command line takes precedence over the call, the call over the marker, and the marker over the ini file. With
`repeats` and `pass_rate` the test is run several times, and a share of the runs must pass.

Design: a test *fails* because of the agent (an exception, an empty or late reply, a failed assertion) and *errors* because of
the twin: if it failed, never pursued its goal, or did something wrong in a conversation whose test fails. So a failed test is
always about the agent. The plugin is loaded in every pytest run of every user, so it imports
nothing but pytest until a test uses it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .pytest_support.open_twins import OpenTwins, begin_recording
from .pytest_support.repeats import repeated
from .pytest_support.settings import SETTINGS, add_options, scenario_of, settings_of, twin_of
from .pytest_support.verdict import Talk, TestTalks, TwinFailed, judged

if TYPE_CHECKING:
    from usertwin.evals.agent_tests import AgentChecks
    from usertwin.simulator import Scenario, SimulatedUser, Simulation

#: What the twins of a test did.
_TALKS = pytest.StashKey[TestTalks]()
#: The conversations that an async test was given to await.
_AWAITABLE = pytest.StashKey[list[Coroutine[Any, Any, "Simulation"]]]()
#: The test function as it was written, of a test that is repeated.
_WRITTEN = pytest.StashKey[Callable[..., Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add an option and an ini key for each setting."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker and the summary."""
    names = ", ".join(f"{name}=..." for name in SETTINGS)
    config.addinivalue_line("markers", f"usertwin({names}): settings of the fixtures `simulate` and `twin` in this test")
    begin_recording(config)
    folder = config.getoption("usertwin_report")
    if folder is not None:
        folder = str(config.invocation_params.dir / folder)  # a test may change the current folder
        if (Path(folder) / "manifest.json").exists():
            raise pytest.UsageError(f"--usertwin-report: {folder} holds a run already; name another folder")
        if Path(folder).exists() and not Path(folder).is_dir():
            raise pytest.UsageError(f"--usertwin-report: {folder} is not a folder; name another one")
    config.pluginmanager.register(_Summary(folder), "usertwin-summary")


@pytest.fixture(scope="session")
def _usertwin_opened(request: pytest.FixtureRequest) -> Iterator[OpenTwins]:
    """The twins that are open in this session."""
    opened = OpenTwins(request.config)
    yield opened
    opened.close()


@pytest.fixture
def twin(request: pytest.FixtureRequest, _usertwin_opened: OpenTwins) -> SimulatedUser:
    """The twin of the settings, open: `twin.respond(messages, goal=...)` returns its next turn."""
    talks = request.node.stash[_TALKS]
    with _twin_to_blame(talks):
        settings = settings_of(request.node, {})
        talks.has_twin = True
        return _usertwin_opened.open(twin_of(settings, scenario_of(request.node, settings)), settings.values)


@pytest.fixture
def simulate(request: pytest.FixtureRequest, _usertwin_opened: OpenTwins) -> Callable[..., Any]:
    """Let a twin talk with an agent: `simulate(agent, twin=..., scenario=..., max_turns=..., goal=..., ...)`.

    Returns a `Simulation` with `messages`, `exchanges` (each with the recalled triples and the reasoning) and `stop_reason`; in
    an `async def` test or fixture, a coroutine to await. Further arguments go to `usertwin.simulator.simulate`. The test fails
    if the agent raises, returns nothing or is too slow; it errors if the twin does.
    """
    node: pytest.Item = request.node

    def run(agent: Any, **arguments: Any) -> Simulation | Coroutine[Any, Any, Simulation]:
        from usertwin.memory.event_loop import run_sync
        from usertwin.simulator import simulate as run_simulation

        talk = _prepared(node, _usertwin_opened, arguments)
        if not _in_coroutine():
            with _replay_to_blame(node.stash[_TALKS]):
                simulation = run_simulation(talk.user, agent, **talk.options)
                simulation.checks += run_sync(talk.checks(simulation))
            return judged(node.stash[_TALKS], simulation, talk.about)
        node.stash[_AWAITABLE].append(_talk(node, agent, talk))
        return node.stash[_AWAITABLE][-1]

    return run


@pytest.fixture
def asimulate(request: pytest.FixtureRequest, _usertwin_opened: OpenTwins) -> Callable[..., Any]:
    """Let a twin talk with an agent, as `simulate` does, and return a coroutine to await, wherever it is called."""
    node: pytest.Item = request.node

    def run(agent: Any, **arguments: Any) -> Coroutine[Any, Any, Simulation]:
        node.stash[_AWAITABLE].append(_talk(node, agent, _prepared(node, _usertwin_opened, arguments)))
        return node.stash[_AWAITABLE][-1]

    return run


class _Prepared:
    """A conversation that is about to begin: the twin, arguments of `simulate`, checks of the scenario, the report's line."""

    def __init__(self, user: SimulatedUser, options: dict[str, Any], checks: AgentChecks, about: Talk) -> None:
        self.user, self.options, self.checks, self.about = user, options, checks, about


def _prepared(
    node: pytest.Item, opened: OpenTwins, arguments: dict[str, Any]
) -> _Prepared:  # fmt: skip
    """Return a conversation with the settings of a call; what is wrong with them or the twin is never the agent's fault."""
    from usertwin.simulator.simulation import check_limits

    talks = node.stash[_TALKS]
    with _twin_to_blame(talks):
        settings = settings_of(node, arguments)
        values = settings.values
        check_limits(max_turns=values["max_turns"], agent_timeout=values["agent_timeout"])
        scenario = scenario_of(node, settings)
        user = opened.open(twin_of(settings, scenario), values)
        note = _model_note(user, values, values["goal"] if scenario is None else scenario.goal)
        checks = _checks_of(scenario, opened, values)
        row = {"scenario": node.nodeid} if node.config.getoption("usertwin_report") else None
        about = Talk(
            twin=user.name, model=user.model.name, closeness=_closeness_of(user, values["home"]),
            speaker=user.record.recipe.speaker, note=note, row=row,
        )  # fmt: skip
    options = {"agent_timeout": values["agent_timeout"], "seed": values["seed"] + talks.offset, **settings.other}
    options |= {"max_turns": values["max_turns"], "goal": values["goal"]} if scenario is None else {"scenario": scenario}
    return _Prepared(user, options, checks, about)


def _checks_of(scenario: Scenario | None, opened: OpenTwins, values: Mapping[str, Any]) -> AgentChecks:
    """Return the checks of a scenario. UsageError if it has criteria and no judge is named."""
    from usertwin.evals.agent_tests.agent_checks import AgentChecks
    from usertwin.personas import UsageError

    named = values["judge"]
    if scenario is None or not (scenario.checks or scenario.criteria):
        return AgentChecks()
    if scenario.criteria and named is None:
        raise UsageError(f'scenario "{scenario.name}" has criteria and no model judges them; name one with usertwin_judge')
    judge = opened.judge(named) if scenario.criteria else None
    return AgentChecks([scenario], judge=judge, seed=values["seed"])


async def _talk(node: pytest.Item, agent: Any, talk: _Prepared) -> Simulation:
    from usertwin.simulator import asimulate

    with _replay_to_blame(node.stash[_TALKS]):
        simulation = await asimulate(talk.user, agent, **talk.options)
        simulation.checks += await talk.checks(simulation)
    return judged(node.stash[_TALKS], simulation, talk.about)


def _in_coroutine() -> bool:
    """Return whether a coroutine of the test called the fixture, so that the result can be awaited."""
    frame = inspect.currentframe()
    while frame is not None and not frame.f_globals.get("__name__", "").startswith(("_pytest.", "pluggy.", "asyncio.")):
        if frame.f_code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
            return True
        frame = frame.f_back
    return False


@contextmanager
def _twin_to_blame(talks: TestTalks) -> Generator[None]:
    """Turn any exception into `TwinFailed`."""
    try:
        yield
    except Exception as error:
        from usertwin.personas import UsertwinError

        text = str(error) if isinstance(error, UsertwinError) else f"the twin cannot be opened: {type(error).__name__}: {error}"
        raise talks.noted(TwinFailed(text)) from error


@contextmanager
def _replay_to_blame(talks: TestTalks) -> Generator[None]:
    """Turn a call that the recording lacks into `TwinFailed`."""
    from usertwin.personas import ReplayMiss

    try:
        yield
    except ReplayMiss as error:
        raise talks.noted(TwinFailed(str(error))) from error


def _model_note(user: SimulatedUser, settings: Any, goal: str) -> str:
    """Return what the tiny model cannot do, if it acts unasked or has a goal; "" otherwise."""
    from usertwin.simulator.backends.model_choice import tiny_model_note

    matters = settings["model"] is None or goal
    return tiny_model_note(user.model.name, goal=goal, option="--usertwin-model") if matters else ""


def _closeness_of(user: SimulatedUser, home: str | None) -> str:
    """Return the measured closeness of a twin in a home as text."""
    if user.record.closeness is None:
        from usertwin.memory.twin.record import twin_command

        return f"not measured; {twin_command('eval', user.name, home)}"
    from .reports.terminal import closeness_line

    return closeness_line(user.record.closeness)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Forget the last run of this test, if a plugin runs it again, and repeat it if its settings say so."""
    item.stash[_TALKS], item.stash[_AWAITABLE] = TestTalks(), []
    if "simulate" in getattr(item, "fixturenames", ()) or "asimulate" in getattr(item, "fixturenames", ()):
        _repeat(item)


def _repeat(item: Any) -> None:
    from usertwin.personas import UsageError

    with _twin_to_blame(item.stash[_TALKS]):
        try:
            values = settings_of(item, {}).values
        except UsageError:
            return  # the fixture says what is wrong
        count, rate = values["repeats"], values["pass_rate"]
        if not isinstance(count, int) or count < 1:
            raise UsageError(f"repeats is {count!r}; it must be a whole number from 1")
        if not 0 < rate <= 1:
            raise UsageError(f"pass_rate is {rate!r}; it must be a share above 0, and at most 1")
    if count > 1:
        written = item.stash.setdefault(_WRITTEN, item.obj)
        item.obj = repeated(written, item.stash[_TALKS], count, rate)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Raise the failure of a twin at the end of a test that caught it, and that of a conversation that was never awaited."""
    talks = item.stash[_TALKS]
    try:
        return (yield)
    finally:
        for conversation in item.stash[_AWAITABLE]:
            if inspect.getcoroutinestate(conversation) == inspect.CORO_CREATED:
                conversation.close()
                talks.noted(TwinFailed("simulate(...) was not awaited; in an async test, write: await simulate(...)"))
        error = sys.exc_info()[1]
        if not isinstance(error, KeyboardInterrupt | pytest.exit.Exception):
            fault = _twins_fault(talks, error)
            if fault is not None:
                raise fault


def _twins_fault(talks: TestTalks, error: BaseException | None) -> TwinFailed | None:
    """Return the twin's fault in a test that ended with this exception, or with none; None if the twin did nothing wrong."""
    if talks.failures:
        return talks.failures[0]
    if talks.has_twin and error is not None:
        from usertwin.personas import ModelError, TwinError

        if isinstance(error, ModelError | TwinError):
            return TwinFailed(str(error))
    if talks.suspicions and _is_failure(error):
        text = "; ".join(dict.fromkeys(talks.suspicions))
        return TwinFailed(f"the test failed, but {text} (the test: {_first_line(error)})")
    return None


def _is_skip(error: BaseException | None) -> bool:
    return isinstance(error, pytest.skip.Exception)


def _is_failure(error: BaseException | None) -> bool:
    """Return whether an exception makes a test fail: neither a skip nor an expected failure."""
    return error is not None and not isinstance(error, pytest.skip.Exception | pytest.xfail.Exception)


def _first_line(error: BaseException | None) -> str:
    return (str(error) or type(error).__name__).split("\n")[0]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Add the conversations and a failure of the twin to the report, as plain values that pytest-xdist can transfer.

    pytest counts and writes a failure as an error if it is not in the phase "call". This runs after pytest has applied xfail.
    """
    report = yield
    talks, error = item.stash.get(_TALKS, TestTalks()), None if call.excinfo is None else call.excinfo.value
    fault = error if isinstance(error, TwinFailed) else None
    if fault is None and error is not None and call.when == "call":  # unittest keeps what a test raises for itself until now
        fault = _twins_fault(talks, error)
    is_repeated = item.stash.get(_WRITTEN, None) is not None
    if call.when == "setup" and report.passed and not is_repeated:
        return report  # a conversation of a fixture counts with its test
    if call.when != "call" or not is_repeated:
        for talk in talks.talks:
            talk.spoiled, talk.passed = talk.spoiled and fault is not None, None if _is_skip(error) else report.passed
    report.usertwin_conversations = [talk.to_json() for talk in talks.talks]
    item.user_properties += [("usertwin", line) for line in _properties(talks)]  # JUnit writes those of the last report
    if error is not None and talks.sections:
        report.sections.append(("usertwin conversations", talks.text()))
    talks.talks, talks.sections = [], []  # each is reported once, in the phase it belongs to
    if fault is not None:
        report.outcome, report.longrepr = "failed", f"usertwin, not the agent: {fault}"
        report.when = "setup" if report.when == "call" else report.when
        vars(report).pop("wasxfail", None)
    return report


def _properties(talks: TestTalks) -> list[str]:
    """Return a line on each conversation for JUnit's properties."""
    lines = [section.split("\n") for section in talks.sections]
    return [f"{rows[0]}; {next(row for row in reversed(rows) if row.startswith('ended with'))}" for rows in lines]


class _Summary:
    """Lists the twins that talked, with their closeness, and what a model cannot do, at the end of the test run."""

    def __init__(self, report: str | None) -> None:
        self._folder, self._talks = report, list[Talk]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._talks += [Talk(**talk) for talk in getattr(report, "usertwin_conversations", [])]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self._talks:
            return
        from .pytest_support.summary import summary_lines, write_report

        terminalreporter.section("simulated users")
        for line, warns in summary_lines(self._talks):
            terminalreporter.line(line, yellow=warns)
        if self._folder is None:
            return
        from usertwin.personas import UsageError

        try:
            terminalreporter.line(write_report(self._folder, self._talks))
        except (OSError, UsageError) as error:  # the tests have run, and their results count
            terminalreporter.line(f"--usertwin-report: {error}", red=True)
