"""Scenario files: TOML with a table [[scenario]] for each scenario, and [defaults] for all of them.

    [defaults]
    twins = "*"                      # all learned twins
    sample = 5

    [[scenario]]
    name = "late parcel"
    goal = "Your parcel is late. You want to know when it comes."
    facts = [{ text = "Your order number is 4711.", value = "4711" }]

The attributes of `Scenario` and `Fact` are the keys. Further keys read what is in other files: `start_file`, and
`from_conversation` with `fork_at` and `person`. Paths and functions are looked for in the folder of the file.

Design: every key, file and function is checked before the first conversation; an error names the file, the line and the key.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from math import inf
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, cast

from usertwin.memory import TwinRecord
from usertwin.memory.twin.record import list_twins, twin_folder
from usertwin.personas import Conversation, UsageError, UsertwinError, as_conversation, read_conversations
from usertwin.personas.reading import STRICT, as_type, parse_json, parse_toml, read_file, shown

from .facts import Fact
from .from_real import check_held_out, from_conversation, to_message
from .scenario import ALL_TWINS, Scenario, nearest

_WAY_OUT = "name a scenario file, as in docs/scenarios.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """The keys of a scenario in a file; None for those that are not there."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    name: str | None = None
    twins: tuple[str, ...] | None = None
    sample: int | None = None
    goal: str | None = None
    facts: tuple[Fact, ...] | None = None
    private: str | None = None
    start: Any = None
    opener: str | None = None
    agent_first: bool | None = None
    script: dict[int, str] | None = None
    min_turns: int | None = None
    max_turns: int | None = None
    max_seconds: float | None = None
    until: tuple[str, ...] | None = None
    goal_reached: str | None = None
    modifiers: tuple[str, ...] | None = None
    repeats: int | None = None
    checks: tuple[str, ...] | None = None
    criteria: tuple[str, ...] | None = None
    start_file: str | None = None
    from_conversation: str | None = None
    fork_at: int | None = None
    person: str | None = None


#: Checks by name; what they do is in evals/agent_tests/ready_made.py.
READY_MADE = {"says", "never_says", "called_tool", "only_tools", "replies_within", "final_state", "reaches_goal"}
_LISTS = {"twins", "until", "modifiers", "checks", "criteria"}
_KEYS = [item.name for item in fields(_Table)]


def read_scenarios(path: str | Path, *, home: str | Path | None = None) -> tuple[Scenario, ...]:
    """Read a scenario file; `home` is the folder of all twins, in which those exist that a real conversation is checked for.

    Raises:
        UsageError: the file or one that it names cannot be read, or a value is wrong; it names the file, the line and the key.
    """
    path = Path(path)
    text, raw = read_file(path, _parsed, way_out=_WAY_OUT, error=UsageError)
    places = _Places(path, text)
    if unknown := [key for key in raw if key not in {"defaults", "scenario"}]:
        raise UsageError(f'{places.of(unknown[0])}: there is no key "{unknown[0]}"; {_top_level(unknown[0])}')
    defaults, tables = raw.get("defaults", {}), raw.get("scenario", [])
    if not isinstance(defaults, dict) or not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise UsageError(f"{path}: a file of scenarios holds [defaults] and [[scenario]] tables; write the brackets like that")
    if not tables:
        raise UsageError(f"{path}: there is no scenario; add one that begins with [[scenario]]")
    _check_keys(cast("dict[str, Any]", defaults), places, None)
    scenarios = [
        _scenario(cast("dict[str, Any]", defaults), cast("dict[str, Any]", table), places, number, home)
        for number, table in enumerate(cast("list[Any]", tables))
    ]
    names = [scenario.name for scenario in scenarios]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UsageError(f'{places.of("name", number)}: two scenarios have the name "{name}"; give each another one')
    return tuple(scenarios)


def expand(
    scenarios: Sequence[Scenario], known_twins: Sequence[str], seed: int, *, twins: Sequence[str] = (), times: int = 1
) -> list[tuple[Scenario, str, int]]:
    """Return (scenario, twin, number of the repetition) for every conversation, in order.

    `twins` replaces the twins of the scenarios, and `times` multiplies the repetitions.

    A sample of twins depends on the seed, the scenario's name and the twins' names only. So it stays the same when scenarios
    are added, and a new twin changes at most one of those drawn.

    Raises:
        UsageError: a scenario names no twin, an unknown one, or fewer than it samples; or two have the same name.
    """
    names = [scenario.name for scenario in scenarios]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UsageError(f'two scenarios have the name "{repeated[0]}"; give each another one')
    if twins:
        scenarios = [replace(scenario, twins=tuple(twins), sample=None) for scenario in scenarios]
    return [
        (scenario, twin, repeat)
        for scenario in scenarios
        for twin in _twins_of(scenario, known_twins, seed)
        for repeat in range(scenario.repeats * times)
    ]


def load_function(name: str, folder: Path) -> Callable[..., Any]:
    """Return the function "module:function"; a module in the folder comes before others of its name. UsageError without it."""
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")) or not attribute:
        raise UsageError(f'"{name}" is not a function; write it as "module:function"')
    folder = folder.resolve()
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))  # and stays there, since a function may import its neighbours when it is called
    try:
        module = importlib.import_module(module_name)
        function = attrgetter(attribute)(module)
    except ModuleNotFoundError as error:
        raise UsageError(f'"{name}": there is no module "{error.name}" in {folder}; write it there, or install it') from None
    except AttributeError:
        raise UsageError(f'"{name}": the module "{module_name}" has no "{attribute}"; add it, or mend the name') from None
    except (Exception, SystemExit) as error:  # code of the user's
        raise UsageError(f'"{name}": cannot be imported ({type(error).__name__}: {error}); mend the module') from error
    beside = folder / f"{module_name.replace('.', '/')}.py"
    if beside.is_file() and module.__file__ and Path(module.__file__).resolve() != beside:
        raise UsageError(f'"{name}": {module.__file__} has the same name as {beside} and is loaded already; rename one')
    if not callable(function):
        raise UsageError(f'"{name}" is not a function but {shown(function)}; name a function')
    return cast("Callable[..., Any]", function)


def _twins_of(scenario: Scenario, known: Sequence[str], seed: int) -> list[str]:
    """Return the twins that a scenario is run with. UsageError if there are too few, or one is unknown."""
    place = f'scenario "{scenario.name}"'
    if not scenario.twins:
        raise UsageError(f'{place}: twins is missing; name learned twins, or write twins = "{ALL_TWINS}" for all')
    listed = ", ".join(known[:10]) or "none yet; learn one with: usertwin learn NAME --from FILE --speaker WHO"
    if unknown := [name for name in scenario.twins if name not in known and name != ALL_TWINS]:
        raise UsageError(f'{place}: there is no twin "{unknown[0]}"; there are: {listed}')
    twins = sorted(known) if ALL_TWINS in scenario.twins else list(dict.fromkeys(scenario.twins))
    if len(twins) < (scenario.sample or 1):
        raise UsageError(
            f"{place}: sample is {scenario.sample or 1}, above the number of twins ({len(twins)}); "
            "lower it, or name twins in the command"
        )
    if scenario.sample is None:
        return twins
    drawn = sorted(twins, key=lambda twin: sha256(f"{seed}/{scenario.name}/{twin}".encode()).digest())[: scenario.sample]
    return [twin for twin in twins if twin in drawn]


def _parsed(content: bytes) -> tuple[str, dict[str, Any]]:
    return content.decode("utf-8", "replace"), parse_toml(content)


def _top_level(key: str) -> str:
    hint = "move it below [defaults] or [[scenario]]" if key in _KEYS else "write it as [[scenario]]"
    return hint if key in {*_KEYS, "scenarios"} else nearest(key, ("defaults", "scenario"))


def _check_keys(table: Mapping[str, Any], places: _Places, number: int | None) -> None:
    """Raise UsageError for the first unknown key of a table."""
    for key in table:
        if key not in _KEYS:
            raise UsageError(f'{places.of(key, number)}: there is no key "{key}"; {nearest(key, _KEYS)}')
    known = [item.name for item in fields(Fact)]
    facts = table.get("facts", ())
    for fact in cast("list[Any]", facts) if isinstance(facts, list) else []:
        for key in cast("dict[str, Any]", fact) if isinstance(fact, dict) else ():
            if key not in known:
                raise UsageError(f'{places.of("facts", number)}: a fact has no key "{key}"; {nearest(key, known)}')


def _scenario(
    defaults: dict[str, Any], table: dict[str, Any], places: _Places, number: int, home: str | Path | None
) -> Scenario:  # fmt: skip
    """Return the scenario of a table. UsageError if it is wrong."""
    _check_keys(table, places, number)
    merged = {key: _listed(key, value) for key, value in (defaults | table).items()}
    seconds = merged.pop("max_seconds", inf) if merged.get("max_seconds") == inf else None  # JSON has no infinite number
    with places.named("name", number):
        if "name" not in merged and "from_conversation" not in merged:
            raise UsageError('"name" is missing; give the scenario one')
        if not str(merged.get("name", "-")).strip():
            raise UsageError('"name" is empty; give the scenario one')
        try:
            given = as_type(_Table, merged)
        except ValueError as error:
            key, problem = (
                str(error).split(":")[0].split(".")[0],
                re.sub(r"\.(?:literal\[[^]]*\]|int|str)(?=:)", "", str(error)),
            )
            raise UsageError(f"{places.of(key if key in merged else 'name', number)}: {problem}") from None
    values = {key: value for key in _KEYS if (value := getattr(given, key)) is not None}
    values |= {} if seconds is None else {"max_seconds": seconds}
    folder = places.path.parent
    with places.named("start" if "start" in values else "start_file", number):
        values["start"] = _start(values.pop("start", None), values.pop("start_file", None), folder)
    for key in ("goal_reached", "checks"):
        with places.named(key, number):
            if key == "checks":
                values[key] = tuple(
                    name if name.partition(":")[0] in READY_MADE else load_function(name, folder)
                    for name in values.get(key, ())
                )
            elif key in values:
                values[key] = load_function(values[key], folder)
    with places.named("from_conversation" if "from_conversation" in values else "name", number):
        return _with_counterpart(values, folder, home)


def _with_counterpart(values: dict[str, Any], folder: Path, home: str | Path | None) -> Scenario:
    """Return the scenario of a table's values, with what it takes from a real conversation."""
    source, fork_at, person = values.pop("from_conversation", None), values.pop("fork_at", None), values.pop("person", None)
    if source is None:
        if fork_at is not None or person is not None:
            key = "fork_at" if fork_at is not None else "person"
            raise UsageError(f'{key} needs a real conversation; add from_conversation = "FILE.jsonl#ID"')
        return Scenario(**values)
    if values["start"]:
        raise UsageError("both start and from_conversation give turns; leave one out")
    names = values.get("twins", ())
    existing = list_twins(home)
    records = [TwinRecord.load(twin_folder(n, home)) for n in existing if n in names or ALL_TWINS in names]
    conversation = _conversation_at(source, folder)
    speakers = {record.recipe.speaker for record in records} & conversation.speakers()
    if person is None and len(speakers) == 1:
        [person] = speakers
    real = from_conversation(conversation, person, fork_at=fork_at or 0, name=values.get("name", ""))
    facts = (*real.facts, *values.pop("facts", ()))
    given = {key: value for key, value in values.items() if key != "start"}
    scenario = replace(real, **given, facts=facts)
    for record in records:
        check_held_out(scenario, record)
    return scenario


def _listed(key: str, value: Any) -> Any:
    """Return a text as a list of one where a list is expected, and the texts of facts as facts."""
    if key in _LISTS and isinstance(value, str):
        return [value]
    if key == "facts" and isinstance(value, list):
        return [{"text": fact} if isinstance(fact, str) else fact for fact in cast("list[Any]", value)]
    return value


def _start(start: Any, start_file: str | None, folder: Path) -> tuple[dict[str, Any], ...]:
    """Return the given turns as messages."""
    if start is not None and start_file is not None:
        raise UsageError("both start and start_file give turns; leave one out")
    if start_file is not None:
        conversation = _conversation_at(start_file, folder)
    elif start is None:
        return ()
    else:
        conversation = as_conversation(start)
    return tuple(to_message(turn) for turn in conversation.turns if turn.text.strip())


def _conversation_at(reference: str, folder: Path) -> Conversation:
    """Return the conversation "FILE#ID", or the only one of "FILE"."""
    name, _, wanted = reference.partition("#")
    path = folder / Path(name).expanduser()
    try:
        return as_conversation(parse_json(path.read_bytes()), path.stem) if not wanted else _conversation_in(path, wanted)
    except (OSError, ValueError):
        return _conversation_in(path, wanted)


def _conversation_in(path: Path, wanted: str) -> Conversation:
    conversations = {conversation.conversation_id: conversation for conversation in read_conversations(path).conversations}
    if not wanted and len(conversations) == 1:
        return next(iter(conversations.values()))
    if wanted not in conversations:
        known = ", ".join(f'"{name}"' for name in list(conversations)[:5])
        count = f"{path} holds {len(conversations)} conversations"
        problem = f'there is no conversation "{wanted}" in {path}' if wanted else count
        raise UsageError(f'{problem}; name one as "{path.name}#ID" (the first are {known})')
    return conversations[wanted]


class _Places:
    """Where the tables and keys of a file are, for messages."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        without = re.sub(r'"""(?:.|\n)*?"""|\'\'\'(?:.|\n)*?\'\'\'', lambda match: "\n" * match[0].count("\n"), text)
        self._lines = without.splitlines()
        self._starts = [i for i, line in enumerate(self._lines) if re.match(r"\s*\[\[\s*[\"']?scenario[\"']?\s*\]\]", line)]

    def of(self, key: str, number: int | None = None) -> str:
        """Return the file and the line of a key of a scenario, of a default or of the file; else of its table."""
        start = self._starts[number] if number is not None and number < len(self._starts) else 0
        end = len(self._lines) if number is None else next((other for other in self._starts if other > start), len(self._lines))
        key_line = re.compile(rf"\s*(?:\[+\s*)?(?:scenario\.)?[\"']?{re.escape(key)}[\"']?\s*[=.\]]")
        places = [*range(start, end), *range(self._starts[0] if self._starts else 0)]  # the table, then the defaults
        line = next((place for place in places if key_line.match(self._lines[place])), start)
        return f"{self.path}:{line + 1}"

    @contextmanager
    def named(self, key: str, number: int) -> Generator[None]:
        """Add the file and the line of a key to the errors of a block, unless they are there."""
        try:
            yield
        except UsertwinError as error:
            text = str(error)
            if (about := re.match(r'(?:scenario ".*?": )?(\w+)', text)) and about[1] in _KEYS:
                key = about[1]
            raise UsageError(text if text.startswith(f"{self.path}:") else f"{self.of(key, number)}: {text}") from None
