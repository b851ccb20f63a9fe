"""The pytest plugin: simulated users in the tests of a chat agent.

    import pytest
    from my_agent import reply

    @pytest.mark.usertwin(twin="sam", goal="You want a refund.", max_turns=5)
    def test_refund(simulate):
        conversation = simulate(reply)
        assert any("refund" in m["content"].lower() for m in conversation.messages if m["role"] == "assistant")

A setting on the command line takes precedence over the marker, the marker over the fixture's arguments, and these over the ini
file.

Design: a test *fails* because of the agent (an exception, an empty or late reply, a failed assertion) and *errors* because of
the twin, so a failed test is always about the agent. The plugin is loaded in every pytest run of every user, so it imports
nothing but pytest until a test uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from usertwin.simulator import SimulatedUser, Simulation

#: Type, default and help text of each setting; max_turns and agent_timeout repeat defaults of simulation.py, a slow import.
_SETTINGS: dict[str, tuple[Callable[[str], Any], Any, str]] = {
    "twin": (str, None, "name of the twin that talks"),
    "home": (str, None, "folder that holds the twins (default: USERTWIN_HOME, else the user's data folder)"),
    "model": (str, "local", "model that acts for the twin"),
    "max_turns": (int, 8, "the most turns of the twin in a conversation"),
    "goal": (str, "", "what the twin wants"),
    "seed": (int, 0, "seed of the conversation; each turn's sampler seed is computed from it"),
    "agent_timeout": (float, 120.0, "seconds that the agent may take for a reply"),
}
#: For each conversation of a test, the twin's name and its closeness as text.
_CONVERSATIONS = pytest.StashKey[list[tuple[str, str]]]()


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
def simulate(
    request: pytest.FixtureRequest, _usertwin_opened: dict[tuple[str, ...], SimulatedUser]
) -> Callable[..., Simulation]:
    """Let a twin talk with an agent: `simulate(agent, twin=..., max_turns=..., goal=..., ...)`.

    Returns a `Simulation` with `messages`, `exchanges` (each with the recalled triples and the reasoning) and `stop_reason`.
    Further arguments go to `usertwin.simulator.simulate`. The test fails if the agent raises, returns nothing or is too slow;
    it errors if the twin does.
    """

    def run(agent: Any, **arguments: Any) -> Simulation:
        from usertwin.personas import UsertwinError
        from usertwin.simulator import simulate as run_simulation
        from usertwin.simulator.simulation import AGENT_FAULTS, TWIN_FAULTS

        try:
            settings, other = _split_settings(request, arguments)
            user = _open_twin(_usertwin_opened, settings)
        except UsertwinError as error:
            raise TwinFailed(str(error)) from error
        options = {key: settings[key] for key in ("max_turns", "goal", "seed", "agent_timeout")}
        simulation = run_simulation(user, agent, **options, **other)
        request.node.stash.setdefault(_CONVERSATIONS, []).append((user.name, _closeness_of(user)))
        if simulation.stop_reason in AGENT_FAULTS:
            context = f"after {len(simulation.exchanges)} turns, with seed {simulation.seed}"
            pytest.fail(f"{simulation.error} ({context})", pytrace=False)
        if simulation.stop_reason in TWIN_FAULTS:
            raise TwinFailed(simulation.error)
        return simulation

    return run


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

    key = (settings["twin"], settings["home"] or "", settings["model"])
    if key not in opened:
        opened[key] = SimulatedUser.load(settings["twin"], home=settings["home"], model=settings["model"])
    return opened[key]


def _closeness_of(user: SimulatedUser) -> str:
    """Return a twin's measured closeness as text."""
    if user.record.closeness is None:
        return f"not measured; usertwin eval {user.name}"
    from .reports.terminal import closeness_line

    return closeness_line(user.record.closeness)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Add the conversations and a failure of the twin to the report, as plain values that pytest-xdist can transfer."""
    report = yield
    report.usertwin_conversations = item.stash.get(_CONVERSATIONS, [])
    item.stash[_CONVERSATIONS] = []  # each is reported once, in the phase it belongs to
    if call.excinfo is not None and call.excinfo.errisinstance(TwinFailed):
        report.usertwin_failed = str(call.excinfo.value)
        report.longrepr = f"usertwin, not the agent: {call.excinfo.value}"
    return report


def pytest_report_teststatus(report: pytest.CollectReport | pytest.TestReport) -> tuple[str, str, str] | None:
    """Count a test in which the twin failed as an error."""
    return ("error", "E", "ERROR") if getattr(report, "usertwin_failed", None) is not None else None


class _Summary:
    """Lists the twins that talked, with their closeness, at the end of the test run."""

    def __init__(self) -> None:
        self._closeness: dict[str, list[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for twin, closeness in getattr(report, "usertwin_conversations", []):
            self._closeness.setdefault(twin, []).append(closeness)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self._closeness:
            terminalreporter.section("simulated users")
        for twin, closeness in self._closeness.items():
            count = "1 conversation" if len(closeness) == 1 else f"{len(closeness)} conversations"
            terminalreporter.line(f"{twin}: {count}; closeness: {closeness[-1]}")
