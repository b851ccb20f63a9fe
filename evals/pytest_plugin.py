"""The pytest plugin: simulated users in the tests of a chat agent.

    import pytest
    from my_agent import reply

    @pytest.mark.usertwin(twin="sam", goal="You want a refund.", turns=5)
    def test_refund(simulate):
        conversation = simulate(reply)
        assert any("refund" in m["content"].lower() for m in conversation.messages if m["role"] == "assistant")

The one design choice: a test *fails* on what the agent did (it raised, was silent or too slow, or an assertion of the test) and
*errors* on what the twin did, so that a red test always means the agent. What is set on the command line wins over the
marker, the marker over the call of the fixture, and that over the ini file. Nothing but pytest is imported until a test asks.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from usertwin.simulator import SimulatedUser, Simulation

_SETTINGS: dict[str, tuple[Callable[[str], Any], Any, str]] = {
    "twin": (str, None, "the twin that talks, unless a test names another"),
    "home": (str, None, "where twins live (default: USERTWIN_HOME, else the user's data folder)"),
    "model": (str, "local", "the model that acts for the twin"),
    "turns": (int, 8, "the most turns the twin has"),
    "goal": (str, "", "what the twin wants"),
    "seed": (int, 0, "for the twin's sampler"),
    "agent_timeout": (float, 120.0, "seconds the agent may take for a reply"),
}
#: How close each twin is that talked in a test, a line for each conversation.
_TALKS = pytest.StashKey[list[tuple[str, str]]]()


class TwinFailed(Exception):
    """The twin, or how it was asked for, and not the agent, is to blame: the test errors."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add an option and an ini key for each setting."""
    group = parser.getgroup("usertwin", "simulated users (usertwin)")
    for name, (kind, default, text) in _SETTINGS.items():
        option = "--usertwin-" + name.replace("_", "-")
        group.addoption(option, type=kind, default=None, dest=f"usertwin_{name}", help=text)
        parser.addini(f"usertwin_{name}", f"{text} (as {option})", default=None if default is None else str(default))


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    names = ", ".join(f"{name}=..." for name in _SETTINGS)
    config.addinivalue_line("markers", f"usertwin({names}): what the fixture `simulate` is to use in this test")
    config.pluginmanager.register(_Summary(), "usertwin-summary")


@pytest.fixture(scope="session")
def _usertwin_opened(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, ...], SimulatedUser]]:
    """Twins that were opened in this session, so that each is loaded once."""
    opened: dict[tuple[str, ...], SimulatedUser] = {}
    yield opened
    for user in opened.values():
        user.close()


@pytest.fixture
def simulate(
    request: pytest.FixtureRequest, _usertwin_opened: dict[tuple[str, ...], SimulatedUser]
) -> Callable[..., Simulation]:
    """Let a twin talk with an agent: `simulate(agent, twin=..., turns=..., goal=..., ...)`.

    Returns a `Simulation`, with `messages`, `exchanges` (each with the memories and the reasoning) and `stop_reason`. The test
    fails if the agent raised, returned nothing or took too long; it errors if the twin did.
    """

    def run(agent: Any, **told: Any) -> Simulation:
        from usertwin.personas import UsertwinError
        from usertwin.simulator import simulate as simulate_once
        from usertwin.simulator.simulation import AGENT_FAULTS, TWIN_FAULTS

        try:
            settings, rest = _settings(request, told)
            user = _open(_usertwin_opened, settings)
        except UsertwinError as error:
            raise TwinFailed(str(error)) from error
        user.seed = settings["seed"]
        wanted = {key: settings[key] for key in ("turns", "goal", "agent_timeout")}
        found = simulate_once(user, agent, **wanted, **rest)
        request.node.stash.setdefault(_TALKS, []).append((user.name, _how_close(user)))
        if found.stop_reason in AGENT_FAULTS:
            pytest.fail(f"{found.error} (after {len(found.exchanges)} turns, with seed {found.seed})", pytrace=False)
        if found.stop_reason in TWIN_FAULTS:
            raise TwinFailed(found.error)
        return found

    return run


def _settings(request: pytest.FixtureRequest, told: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a call, by precedence, and what else was told, which is for `usertwin.simulator.simulate`."""
    from usertwin.personas import UsageError

    marker: dict[str, Any] = {}
    for mark in reversed(list(request.node.iter_markers("usertwin"))):  # the closest one last, so that it wins
        if mark.args or set(mark.kwargs) - set(_SETTINGS):
            raise UsageError(f"the marker usertwin takes {', '.join(_SETTINGS)}, by name")
        marker |= mark.kwargs
    rest = {key: value for key, value in told.items() if key not in _SETTINGS}
    found: dict[str, Any] = {}
    for name, (kind, _, _) in _SETTINGS.items():
        ini = request.config.getini(f"usertwin_{name}")
        try:
            found[name] = kind(ini) if ini else "" if name == "goal" else None
        except ValueError:
            raise UsageError(f'usertwin_{name} in the ini file is "{ini}", which is no number') from None
        for value in (told.get(name), marker.get(name), request.config.getoption(f"usertwin_{name}")):
            found[name] = found[name] if value is None else value
    if not found["twin"]:
        raise UsageError(
            'which twin? name one: @pytest.mark.usertwin(twin="..."), --usertwin-twin, or usertwin_twin in the ini file'
        )
    return found, rest


def _open(opened: dict[tuple[str, ...], SimulatedUser], settings: dict[str, Any]) -> SimulatedUser:
    from usertwin.simulator import SimulatedUser

    key = (settings["twin"], settings["home"] or "", settings["model"])
    if key not in opened:
        opened[key] = SimulatedUser.load(settings["twin"], home=settings["home"], model=settings["model"])
    return opened[key]


def _how_close(user: SimulatedUser) -> str:
    if user.record.closeness is None:
        return f"not measured; usertwin eval {user.name}"
    from .reports.terminal import closeness_line

    return closeness_line(user.record.closeness)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Note on a report which twins talked and whether one failed, in plain values that pytest-xdist can carry."""
    report = yield
    report.usertwin_talks = item.stash.get(_TALKS, [])
    item.stash[_TALKS] = []  # each is told once, by the phase it happened in
    if call.excinfo is not None and call.excinfo.errisinstance(TwinFailed):
        report.usertwin_failed = str(call.excinfo.value)
        report.longrepr = f"usertwin, not the agent: {call.excinfo.value}"
    return report


def pytest_report_teststatus(report: pytest.CollectReport | pytest.TestReport) -> tuple[str, str, str] | None:
    """Count a test in which the twin failed as an error."""
    return ("error", "E", "ERROR") if getattr(report, "usertwin_failed", None) is not None else None


class _Summary:
    """Says at the end which twins talked, and how close they are to the people they play; nothing if none did."""

    def __init__(self) -> None:
        self._talks: dict[str, list[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for twin, closeness in getattr(report, "usertwin_talks", []):
            self._talks.setdefault(twin, []).append(closeness)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self._talks:
            terminalreporter.section("simulated users")
        for twin, closeness in self._talks.items():
            talks = "1 conversation" if len(closeness) == 1 else f"{len(closeness)} conversations"
            terminalreporter.line(f"{twin}: {talks}; closeness: {closeness[-1]}")
