"""The pytest plugin: simulated users in the tests of a chat agent.

    import pytest
    from my_agent import reply

    @pytest.mark.usertwin(twin="sam", goal="You want a refund.", max_turns=5)
    def test_refund(simulate):
        conversation = simulate(reply)
        assert any("refund" in m["content"].lower() for m in conversation.messages if m["role"] == "assistant")

In an `async def` test or fixture it is awaited, `conversation = await simulate(reply)`, and runs in the test's own event loop.

A setting on the command line takes precedence over the marker, the marker over the fixture's arguments, and these over the ini
file.

Design: a test *fails* because of the agent (an exception, an empty or late reply, a failed assertion) and *errors* because of
the twin, so a failed test is always about the agent. The plugin is loaded in every pytest run of every user, so it imports
nothing but pytest until a test uses it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from usertwin.simulator import SimulatedUser, Simulation

#: Type, default and help text of each setting; max_turns and agent_timeout repeat defaults of simulation.py, a slow import.
_SETTINGS: dict[str, tuple[Callable[[str], Any], Any, str]] = {
    "twin": (str, None, "name of the twin that talks"),
    "home": (str, None, "folder that holds the twins (default: USERTWIN_HOME, else the user's data folder)"),
    "model": (str, None, "model that acts for the twin (default: local:small if it is here and 6 GB are free, else local)"),
    "max_turns": (int, 8, "the most turns of the twin in a conversation"),
    "goal": (str, "", "what the twin wants"),
    "seed": (int, 0, "seed of the conversation; each turn's sampler seed is computed from it"),
    "agent_timeout": (float, 120.0, "seconds that the agent may take for a reply"),
}
#: For each conversation of a test, the twin's name, its closeness as text, and what its model cannot do ("" for nothing known).
_CONVERSATIONS = pytest.StashKey[list[tuple[str, str, str]]]()
#: The twin's failures in a test, also those that the test caught.
_FAILURES = pytest.StashKey[list["TwinFailed"]]()
#: The conversations that an async test was given to await.
_AWAITABLE = pytest.StashKey[list[Coroutine[Any, Any, "Simulation"]]]()


class TwinFailed(Exception):
    """The twin or its settings failed, not the agent: the test errors."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add an option and an ini key for each setting."""
    group = parser.getgroup("usertwin", "simulated users (usertwin)")
    for name, (type_, default, text) in _SETTINGS.items():
        option = "--usertwin-" + name.replace("_", "-")
        group.addoption(option, type=type_, default=None, dest=f"usertwin_{name}", help=text)
        parser.addini(f"usertwin_{name}", f"{text} (as {option})", default=None if default is None else str(default))


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker and the summary."""
    names = ", ".join(f"{name}=..." for name in _SETTINGS)
    config.addinivalue_line("markers", f"usertwin({names}): settings of the fixture `simulate` in this test")
    config.pluginmanager.register(_Summary(), "usertwin-summary")


@pytest.fixture(scope="session")
def _usertwin_opened(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, ...], SimulatedUser]]:
    """The twins that are open in this session, so that each is loaded once."""
    opened: dict[tuple[str, ...], SimulatedUser] = {}
    yield opened
    for user in opened.values():
        user.close()


@pytest.fixture
def simulate(request: pytest.FixtureRequest, _usertwin_opened: dict[tuple[str, ...], SimulatedUser]) -> Callable[..., Any]:
    """Let a twin talk with an agent: `simulate(agent, twin=..., max_turns=..., goal=..., ...)`.

    Returns a `Simulation` with `messages`, `exchanges` (each with the recalled triples and the reasoning) and `stop_reason`; in
    an `async def` test or fixture, a coroutine to await. Further arguments go to `usertwin.simulator.simulate`. The test fails
    if the agent raises, returns nothing or is too slow; it errors if the twin does.
    """
    node: pytest.Item = request.node

    def run(agent: Any, **arguments: Any) -> Simulation | Coroutine[Any, Any, Simulation]:
        from usertwin.simulator import asimulate
        from usertwin.simulator import simulate as run_simulation
        from usertwin.simulator.simulation import check_limits

        with _twin_to_blame(node):
            settings, other = _split_settings(request, arguments)
            check_limits(max_turns=settings["max_turns"], agent_timeout=settings["agent_timeout"])
            user = _open_twin(_usertwin_opened, settings)
            about = (_closeness_of(user, settings["home"]), _model_note(user, settings))
        options = {key: settings[key] for key in ("max_turns", "goal", "seed", "agent_timeout")} | other

        async def talk() -> Simulation:
            return _judged(node, await asimulate(user, agent, **options), about)

        if not _in_coroutine():
            return _judged(node, run_simulation(user, agent, **options), about)
        node.stash[_AWAITABLE].append(talk())
        return node.stash[_AWAITABLE][-1]

    return run


def _judged(node: pytest.Item, simulation: Simulation, about: tuple[str, str]) -> Simulation:
    """Return a conversation, after noting it for the report. Raises the fault that ended it, if one did.

    `about` is the closeness of the twin, and what its model cannot do.
    """
    from usertwin.personas.printable import printable
    from usertwin.simulator.records import AGENT_FAULTS, TWIN_FAULTS

    node.stash[_CONVERSATIONS].append((simulation.twin, *about))
    if simulation.stop_reason in AGENT_FAULTS:
        context = f"after {len(simulation.exchanges)} turns, with seed {simulation.seed}"
        pytest.fail(printable(f"{simulation.error} ({context})"), pytrace=False)
    if simulation.stop_reason in TWIN_FAULTS:
        raise _noted(node, TwinFailed(printable(simulation.error or "")))
    return simulation


def _in_coroutine() -> bool:
    """Return whether a coroutine of the test called the fixture, so that the result can be awaited."""
    frame = inspect.currentframe()
    while frame is not None and not frame.f_globals.get("__name__", "").startswith(("_pytest.", "pluggy.", "asyncio.")):
        if frame.f_code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
            return True
        frame = frame.f_back
    return False


@contextmanager
def _twin_to_blame(node: pytest.Item) -> Generator[None]:
    """Turn any exception into `TwinFailed`."""
    try:
        yield
    except Exception as error:
        from usertwin.personas import UsertwinError

        text = str(error) if isinstance(error, UsertwinError) else f"the twin cannot be opened: {type(error).__name__}: {error}"
        raise _noted(node, TwinFailed(text)) from error


def _noted(node: pytest.Item, failure: TwinFailed) -> TwinFailed:
    node.stash[_FAILURES].append(failure)
    return failure


def _split_settings(request: pytest.FixtureRequest, arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of a call in order of precedence, and its other arguments. UsageError for a wrong setting."""
    from usertwin.personas import UsageError

    marker: dict[str, Any] = {}
    for mark in reversed(list(request.node.iter_markers("usertwin"))):  # the closest marker comes last and takes precedence
        if mark.args or set(mark.kwargs) - set(_SETTINGS):
            raise UsageError(f"@pytest.mark.usertwin: unknown argument; the marker takes {', '.join(_SETTINGS)}, by name")
        marker |= mark.kwargs
    settings: dict[str, Any] = {}
    for name, (type_, _, _) in _SETTINGS.items():
        ini = request.config.getini(f"usertwin_{name}")
        try:
            settings[name] = type_(ini) if ini else "" if name == "goal" else None
        except ValueError:
            raise UsageError(f'usertwin_{name} in the ini file is "{ini}"; it must be a number') from None
        for value in (arguments.get(name), marker.get(name), request.config.getoption(f"usertwin_{name}")):
            settings[name] = settings[name] if value is None else value
    if not settings["twin"]:
        raise UsageError(
            'no twin is named; use @pytest.mark.usertwin(twin="..."), --usertwin-twin, or usertwin_twin in the ini file'
        )
    return settings, {key: value for key, value in arguments.items() if key not in _SETTINGS}


def _open_twin(opened: dict[tuple[str, ...], SimulatedUser], settings: dict[str, Any]) -> SimulatedUser:
    """Return the twin of the settings, from `opened` if it is there."""
    from usertwin.simulator import SimulatedUser
    from usertwin.simulator.backends.model_choice import acting_model

    key = (settings["twin"], settings["home"] or "", settings["model"] or "")
    if key not in opened:
        opened[key] = SimulatedUser.load(settings["twin"], home=settings["home"], model=acting_model(settings["model"]))
    return opened[key]


def _model_note(user: SimulatedUser, settings: dict[str, Any]) -> str:
    """Return what the tiny model cannot do, if it acts unasked or has a goal; "" otherwise."""
    from usertwin.simulator.backends.model_choice import tiny_model_note

    matters = settings["model"] is None or settings["goal"]
    return tiny_model_note(user.model.name, goal=settings["goal"], option="--usertwin-model") if matters else ""


def _closeness_of(user: SimulatedUser, home: str | None) -> str:
    """Return the measured closeness of a twin in a home as text."""
    if user.record.closeness is None:
        from usertwin.memory.twin.record import twin_command

        return f"not measured; {twin_command('eval', user.name, home)}"
    from .reports.terminal import closeness_line

    return closeness_line(user.record.closeness)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Forget the last run of this test, if a plugin runs it again."""
    item.stash[_CONVERSATIONS], item.stash[_FAILURES], item.stash[_AWAITABLE] = [], [], []


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Raise the failure of a twin at the end of a test that caught it, and that of a conversation that was never awaited."""
    try:
        return (yield)
    finally:
        for conversation in item.stash[_AWAITABLE]:
            if inspect.getcoroutinestate(conversation) == inspect.CORO_CREATED:
                conversation.close()
                _noted(item, TwinFailed("simulate(...) was not awaited; in an async test, write: await simulate(...)"))
        if item.stash[_FAILURES] and not isinstance(sys.exc_info()[1], KeyboardInterrupt | pytest.exit.Exception):
            raise item.stash[_FAILURES][0]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Add the conversations and a failure of the twin to the report, as plain values that pytest-xdist can transfer.

    pytest counts and writes a failure as an error if it is not in the phase "call". This runs after pytest has applied xfail.
    """
    report = yield
    report.usertwin_conversations = item.stash.get(_CONVERSATIONS, [])
    item.stash[_CONVERSATIONS] = []  # each is reported once, in the phase it belongs to
    if call.excinfo is not None and call.excinfo.errisinstance(TwinFailed):
        report.outcome, report.longrepr = "failed", f"usertwin, not the agent: {call.excinfo.value}"
        report.when = "setup" if report.when == "call" else report.when
        vars(report).pop("wasxfail", None)
    return report


class _Summary:
    """Lists the twins that talked, with their closeness, and what a model cannot do, at the end of the test run."""

    def __init__(self) -> None:
        self._closeness: dict[str, list[str]] = {}
        self._note = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for twin, closeness, note in getattr(report, "usertwin_conversations", []):
            self._closeness.setdefault(twin, []).append(closeness)
            self._note = note or self._note

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        from usertwin.personas.printable import printable

        if self._closeness:
            terminalreporter.section("simulated users")
        for twin, closeness in self._closeness.items():
            count = "1 conversation" if len(closeness) == 1 else f"{len(closeness)} conversations"
            terminalreporter.line(printable(f"{twin}: {count}; closeness: {closeness[-1]}"))
        if self._note:
            terminalreporter.line(self._note, yellow=True)
