"""The settings of the pytest plugin, and the order in which their sources count: ini file, marker, call, command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .open_twins import add_recording_options

if TYPE_CHECKING:
    from usertwin.simulator import Scenario

#: Type, default and help text of each setting; max_turns and agent_timeout repeat defaults of simulation.py, a slow import.
SETTINGS: dict[str, tuple[Callable[[str], Any], Any, str]] = {
    "twin": (str, None, "name of the twin that talks"),
    "home": (str, None, "folder that holds the twins (default: USERTWIN_HOME, else the user's data folder)"),
    "model": (str, None, "model that acts for the twin (default: local:small if it is here and 6 GB are free, else local)"),
    "scenarios": (str, None, "TOML file of scenarios, relative to the test's file or to the root folder"),
    "scenario": (str, None, "name of the scenario (default: the only one in the file)"),
    "max_turns": (int, 8, "the most turns of the twin in a conversation"),
    "goal": (str, "", "what the twin wants"),
    "seed": (int, 0, "seed of the conversation; each turn's sampler seed is computed from it"),
    "agent_timeout": (float, 120.0, "seconds that the agent may take for a reply"),
    "judge": (str, None, "model that judges the criteria of a scenario"),
    "repeats": (int, 1, "times that a test with the fixture is run, each with the next seed"),
    "pass_rate": (float, 1.0, "share of these that must pass, 0 to 1; those that the twin spoils do not count"),
}
#: Settings of a test, which a call cannot change any more.
OF_TEST = {"repeats", "pass_rate"}
_IN_SCENARIO = {"max_turns", "goal"}


@dataclass(frozen=True, slots=True)
class CallSettings:
    """The settings of one conversation.

    Attributes:
        values: the settings by name.
        given: the names of those that a marker, a call or the command line gives.
        other: further arguments of the call.
    """

    values: Mapping[str, Any]
    given: frozenset[str]
    other: Mapping[str, Any]


def add_options(parser: pytest.Parser) -> None:
    """Add an option and an ini key for each setting."""
    group = parser.getgroup("usertwin", "simulated users (usertwin)")
    for name, (type_, default, text) in SETTINGS.items():
        option = "--usertwin-" + name.replace("_", "-")
        group.addoption(option, type=type_, default=None, dest=f"usertwin_{name}", help=text)
        parser.addini(f"usertwin_{name}", f"{text} (as {option})", default=None if default is None else str(default))
    help_ = "folder to write all conversations and a page of them to; it must not hold a run"
    add_recording_options(group, parser)
    group.addoption("--usertwin-report", default=None, metavar="FOLDER", help=help_)


def settings_of(node: pytest.Item, arguments: Mapping[str, Any]) -> CallSettings:
    """Return the settings of a call in a test. UsageError for a wrong one, or without a twin."""
    from usertwin.personas import UsageError

    marker: dict[str, Any] = {}
    for mark in reversed(list(node.iter_markers("usertwin"))):  # the closest marker comes last and takes precedence
        if mark.args or set(mark.kwargs) - set(SETTINGS):
            raise UsageError(f"@pytest.mark.usertwin: unknown argument; the marker takes {', '.join(SETTINGS)}, by name")
        marker |= mark.kwargs
    if fixed := OF_TEST & arguments.keys():
        raise UsageError(f"{', '.join(sorted(fixed))}: set this with @pytest.mark.usertwin, not in the call")
    values: dict[str, Any] = {}
    given = set[str]()
    for name, (type_, _, _) in SETTINGS.items():
        ini = node.config.getini(f"usertwin_{name}")
        try:
            values[name] = type_(ini) if ini else "" if name == "goal" else None
        except ValueError:
            raise UsageError(f'usertwin_{name} in the ini file is "{ini}"; it must be a number') from None
        for value in (marker.get(name), arguments.get(name), node.config.getoption(f"usertwin_{name}")):
            if value is not None:
                values[name] = value
                given.add(name)
    other = {key: value for key, value in arguments.items() if key not in SETTINGS}
    return CallSettings(values, frozenset(given), other)


def scenario_of(node: pytest.Item, settings: CallSettings) -> Scenario | None:
    """Return the scenario of a call, with the goal and the most turns that are given beside it; None if there is none.

    UsageError if it cannot be read, or if the file has several and none is named.
    """
    from dataclasses import replace

    from usertwin.personas import UsageError
    from usertwin.simulator import Scenario
    from usertwin.simulator.scenarios import read_scenarios

    named, file = settings.values["scenario"], settings.values["scenarios"]
    if named is None and file is None:
        return None
    if isinstance(named, Scenario):
        found = named
    else:
        if file is None:
            raise UsageError(f'scenario "{named}": no file of scenarios is named; give scenarios="FILE.toml"')
        beside = node.path.parent / file
        scenarios = read_scenarios(beside if beside.is_file() else Path(node.config.rootpath, file))
        matching = [scenario for scenario in scenarios if named in (None, scenario.name)]
        if len(matching) != 1:
            names = ", ".join(f'"{scenario.name}"' for scenario in scenarios)
            raise UsageError(f"{file} holds the scenarios {names}; name one with scenario=...")
        [found] = matching
    over = {name: settings.values[name] for name in _IN_SCENARIO & settings.given}
    return replace(found, **over)


def twin_of(settings: CallSettings, scenario: Scenario | None) -> str:
    """Return the name of the twin that talks: the named one, else the only one of the scenario. UsageError if there is none."""
    from usertwin.personas import UsageError

    named = settings.values["twin"]
    if not named and scenario is not None and len(scenario.twins) == 1 and scenario.twins != ("*",):
        return scenario.twins[0]
    if not named:
        raise UsageError(
            'no twin is named; use @pytest.mark.usertwin(twin="..."), --usertwin-twin, or usertwin_twin in the ini file'
        )
    return str(named)
