"""Scenario files: what is read from TOML, what is refused and how, and which conversations they make."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.memory import TwinRecord
from usertwin.memory.twin.record import twin_folder
from usertwin.personas import Conversation, Turn, UsageError, write_conversations
from usertwin.simulator.scenarios import Fact, Scenario, check_held_out, expand, from_conversation, read_scenarios

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "scenarios.toml"
TALK = Conversation(
    "real-1",
    (
        Turn("guide", "instruction", "You want a refund."),
        Turn("sarah", "user", "hi there"),
        Turn("desk", "agent", "Hello, how can I help?"),
        Turn("sarah", "user", "my shoes do not fit. I want my money back!"),
        Turn("guide", "instruction", "You still have the receipt."),
        Turn("desk", "agent", "Do you have the receipt?"),
        Turn("sarah", "user", "yes"),
        Turn("desk", "agent", "Done."),
    ),
)


@pytest.fixture(autouse=True)
def _own_modules() -> Iterator[None]:
    """Forget the modules and the folders that a test imported functions from."""
    modules, path = {*sys.modules}, [*sys.path]
    yield
    sys.path[:] = path
    for name in {*sys.modules} - modules:
        if name.startswith("my_"):
            del sys.modules[name]


def read(folder: Path, text: str, **values: Any) -> tuple[Scenario, ...]:
    """Return the scenarios of a file with this text."""
    path = folder / "s.toml"
    path.write_text(text, "utf-8")
    return read_scenarios(path, **values)


def test_every_key_is_read(tmp_path: Path) -> None:
    (tmp_path / "my_checks.py").write_text("def polite(messages): return True\ndef done(messages): return False\n")
    text = """
        [defaults]
        twins = "ann"
        max_turns = 6

        [[scenario]]
        name = "late parcel"
        twins = ["ann", "bob"]
        sample = 1
        goal = "Your parcel is late."
        facts = ["It is a gift.", { text = "Your order is 4711.", reveal = 2, value = "4711" }]
        private = "Be brief."
        start = [{ role = "human", content = "hi" }, { role = "assistant", content = "Hello." }]
        opener = "my parcel"
        agent_first = true
        script = { 2 = "and now?" }
        min_turns = 2
        max_turns = 5
        max_seconds = 60
        until = "goodbye"
        goal_reached = "my_checks:done"
        modifiers = ["typos"]
        repeats = 3
        checks = "my_checks:polite"
        criteria = ["The agent is polite."]

        [[scenario]]
        name = "second"
        max_seconds = inf
        [[scenario.facts]]
        text = "It rains."
        reveal = "at once"
        [scenario.script]
        1 = "ok"
        """
    first, second = read(tmp_path, text)
    import my_checks  # pyright: ignore[reportMissingImports] - the file above

    assert first == Scenario(
        name="late parcel", twins=("ann", "bob"), sample=1, goal="Your parcel is late.", private="Be brief.",
        facts=(Fact(text="It is a gift."), Fact(text="Your order is 4711.", reveal=2, value="4711")),
        start=({"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello."}),
        opener="my parcel", agent_first=True, script={2: "and now?"}, min_turns=2, max_turns=5, max_seconds=60.0,
        until=("goodbye",), goal_reached=my_checks.done, modifiers=("typos",), repeats=3, checks=(my_checks.polite,),
        criteria=("The agent is polite.",),
    )  # fmt: skip
    assert second == Scenario(
        name="second", twins=("ann",), max_turns=6, facts=(Fact(text="It rains.", reveal="at once"),), script={1: "ok"}
    )
    assert second.max_seconds == inf


START = '[[scenario]]\nname = "a"\n\n[[scenario]]\nname = "b"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (START + "max_turn = 3", 's.toml:6: there is no key "max_turn"; did you mean "max_turns"?'),
        (START + "zzz = 3", 's.toml:6: there is no key "zzz"; use name, twins,'),
        ("[defaults]\ngoals = 'x'\n" + START, 's.toml:2: there is no key "goals"; did you mean "goal"?'),
        ("[defaults]\nmax_turns = 'x'\n" + START, "s.toml:2: max_turns: input should be a valid integer, not 'x'"),
        (START + "max_turns = true", "s.toml:6: max_turns: input should be a valid integer, not True"),
        (START + "\nmax_turns = 0", 's.toml:7: scenario "b": max_turns is 0; it must be at least 1'),
        (START + "facts = [{ txt = 'x' }]", 's.toml:6: a fact has no key "txt"; did you mean "text"?'),
        (START + "facts = [{ text = 'x', reveal = 'soon' }]", "s.toml:6: facts.0.reveal: input should be 'at once' or"),
        (START + "start = [{ content = 'x' }]", 's.toml:6: message 1 needs a "role"'),
        (START + "start_file = 'none.json'", "s.toml:6: "),
        (START + "start = []\nstart_file = 'x'", "s.toml:6: both start and start_file give turns; leave one out"),
        (START + "checks = 'polite'", 's.toml:6: "polite" is not a function; write it as "module:function"'),
        (START + "checks = 'my_none:polite'", 's.toml:6: "my_none:polite": there is no module "my_none" in '),
        (START + "goal_reached = 'json:nothing'", 's.toml:6: "json:nothing": the module "json" has no "nothing"'),
        (START + "checks = 'json:__doc__'", 's.toml:6: "json:__doc__" is not a function but '),
        (START + "fork_at = 3", "s.toml:6: fork_at needs a real conversation; add from_conversation"),
        (START + "max_seconds = nan", "it holds a number that is not finite"),
        (START.replace('"b"', '"a"'), 's.toml:5: two scenarios have the name "a"; give each another one'),
        ("[[scenario]]\ngoal = 'x'", 's.toml:1: "name" is missing; give the scenario one'),
        ("[[scenarios]]\nname = 'x'", 's.toml:1: there is no key "scenarios"; write it as [[scenario]]'),
        ("name = 'x'", 's.toml:1: there is no key "name"; move it below [defaults] or [[scenario]]'),
        ("[scenario]\nname = 'x'", "s.toml: a file of scenarios holds [defaults] and [[scenario]] tables"),
        ("", "s.toml: there is no scenario; add one that begins with [[scenario]]"),
        ("[[scenario", "s.toml: it is not TOML"),
        (START + 'private = """\n[[scenario]]\n"""\nmax_turn = 1', 's.toml:9: there is no key "max_turn"'),
    ],
)
def test_a_wrong_file_is_refused_by_file_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)


def test_a_missing_file_is_said() -> None:
    with pytest.raises(UsageError, match=r"none.toml: no such file; name a scenario file, as in docs/scenarios.md"):
        read_scenarios("none.toml")


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_other_bytes_are_refused_in_a_sentence(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("x") / "s.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError):
        read_scenarios(path)


names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(str.strip)


@given(st.lists(names, min_size=1, max_size=4, unique=True), names, st.integers(1, 99))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, titles: list[str], goal: str, turns: int) -> None:
    def quoted(text: str) -> str:
        return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")

    tables = [f"[[scenario]]\nname = {quoted(title)}\ngoal = {quoted(goal)}\nmax_turns = {turns}\n" for title in titles]
    scenarios = read(tmp_path_factory.mktemp("x"), "\n".join(tables))
    assert scenarios == tuple(Scenario(name=title, goal=goal, max_turns=turns) for title in titles)


def test_a_module_of_the_same_name_from_elsewhere_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "my_rules.py").write_text("def polite(messages): return True\n")
    text = "[[scenario]]\nname = 'a'\nchecks = 'my_rules:polite'"
    read(tmp_path / "one", text)
    with pytest.raises(UsageError, match=r"has the same name as .*my_rules.py and is loaded already; rename one"):
        read(tmp_path / "two", text)


def test_given_turns_may_be_in_a_file_of_any_shape(tmp_path: Path) -> None:
    write_conversations([TALK], tmp_path / "log.jsonl")
    (tmp_path / "chat.json").write_text('{\n"messages": [{"role": "customer", "content": "hi"}]\n}')
    text = "[[scenario]]\nname = 'a'\nstart_file = '{}'"
    [one] = read(tmp_path, text.format("chat.json"))
    assert one.start == ({"role": "user", "content": "hi"},)
    [whole] = read(tmp_path, text.format("log.jsonl"))
    [same] = read(tmp_path, text.format("log.jsonl#real-1"))
    assert whole == same
    assert whole.start[:2] == (
        {"role": "system", "content": "You want a refund.", "name": "guide"},
        {"role": "user", "content": "hi there", "name": "sarah"},
    )
    with pytest.raises(UsageError, match=r'there is no conversation "x" in .*log.jsonl; name one as "log.jsonl#ID"'):
        read(tmp_path, text.format("log.jsonl#x"))


# Real conversations ----------------------------------------------------------------------------------------------------


def test_a_real_conversation_is_forked_at_a_turn() -> None:
    scenario = from_conversation(TALK, fork_at=3, twins=["sarah"])
    assert scenario.name == scenario.counterpart == "real-1"
    assert scenario.goal == "You want a refund.\nYou still have the receipt."
    assert [(m["role"], m["content"]) for m in scenario.start] == [
        ("user", "hi there"), ("assistant", "Hello, how can I help?"), ("user", "my shoes do not fit. I want my money back!"),
    ]  # fmt: skip
    assert scenario.facts == ()


def test_what_the_person_was_told_later_becomes_a_fact_of_that_turn() -> None:
    assert from_conversation(TALK).facts == (Fact(text="You still have the receipt.", reveal=2),)
    assert from_conversation(TALK, fork_at=2).facts == (Fact(text="You still have the receipt.", reveal=1),)


def test_without_a_stated_goal_it_is_the_first_request() -> None:
    public = Conversation("c", tuple(turn for turn in TALK.turns if turn.role != "instruction"))
    assert from_conversation(public).goal == "my shoes do not fit. I want my money back!"
    long = Conversation("c", (Turn("a", "user", "One is here. " + "Two is a longer sentence. " * 40),))
    assert 40 < len(from_conversation(long).goal.split()) <= 60
    short = Conversation("c", (Turn("a", "user", "hi"), Turn("b", "agent", "ho")))
    assert from_conversation(short).goal == "hi"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fork_at": 6}, 'fork_at is 6, but conversation "real-1" has 6 turns; use a number from 0 to 5'),
        ({"fork_at": -1}, "fork_at is -1"),
        ({"person": "tom"}, '"tom" says nothing in conversation "real-1"; there are "desk", "sarah"'),
    ],
)
def test_a_wrong_fork_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_conversation(TALK, **values)
    assert message in str(caught.value)


def test_the_person_must_be_named_if_the_roles_do_not_tell() -> None:
    talk = Conversation("c", (Turn("a", "participant", "hello to you all"), Turn("b", "participant", "hi")))
    with pytest.raises(
        UsageError, match='has no speakers in the role of a user; say whom the twin replaces with person = "a" or'
    ):
        from_conversation(talk)
    assert from_conversation(talk, "b", fork_at=1).start == ({"role": "assistant", "content": "hello to you all"},)


def test_a_conversation_in_the_memory_is_refused(ann: str, tmp_path: Path) -> None:
    record = TwinRecord.load(twin_folder(ann))
    known, held_out = record.corpus[0], record.test[0]
    talks = [Conversation(name, TALK.turns) for name in (known, held_out)]
    write_conversations(talks, tmp_path / "log.jsonl")
    text = f"[[scenario]]\nname = 'a'\ntwins = '{ann}'\nfork_at = 1\nfrom_conversation = 'log.jsonl#"
    [scenario] = read(tmp_path, f"{text}{held_out}'\ngoal = 'A new goal.'\nfacts = ['It rains.']")
    assert (scenario.counterpart, scenario.goal, len(scenario.start)) == (held_out, "A new goal.", 1)
    assert [fact.text for fact in scenario.facts] == ["You still have the receipt.", "It rains."]
    message = f'conversation "{known}" is in the memory of {ann}, which would only repeat it; name one of its held-out'
    with pytest.raises(UsageError, match=message):
        read(tmp_path, f"{text}{known}'")
    with pytest.raises(UsageError, match=message):
        check_held_out(Scenario(name="x", counterpart=known), record)


# The conversations of a run --------------------------------------------------------------------------------------------

TWINS = [f"twin-{number}" for number in range(30)]


def test_each_twin_of_a_scenario_gets_each_repetition() -> None:
    one, two = Scenario(name="a", twins=("x", "y"), repeats=2), Scenario(name="b", twins=("*",))
    assert [(s.name, twin, repeat) for s, twin, repeat in expand([one, two], ["y", "x"], 0)] == [
        ("a", "x", 0), ("a", "x", 1), ("a", "y", 0), ("a", "y", 1), ("b", "x", 0), ("b", "y", 0),
    ]  # fmt: skip


@given(st.integers(0, 2**40), st.integers(1, 20), names)
def test_a_sample_of_twins_is_stable(seed: int, size: int, name: str) -> None:
    scenario = Scenario(name=name, twins=("*",), sample=size)
    drawn = [twin for _, twin, _ in expand([scenario], TWINS, seed)]
    assert len({*drawn}) == size
    other = Scenario(name=f"{name} 2", twins=("*",), sample=3)
    assert [twin for s, twin, _ in expand([other, scenario], TWINS[::-1], seed) if s is scenario] == drawn
    assert len({*drawn} - {twin for _, twin, _ in expand([scenario], [*TWINS, "new"], seed)}) <= 1


def test_samples_depend_on_the_seed_and_the_scenario() -> None:
    samples = {
        tuple(twin for _, twin, _ in expand([Scenario(name=name, twins=("*",), sample=5)], TWINS, seed))
        for seed in range(5)
        for name in "ab"
    }
    assert len(samples) == 10


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        (Scenario(name="a"), 'scenario "a": twins is missing; name learned twins, or write twins = "*" for all'),
        (Scenario(name="a", twins=("z",)), 'scenario "a": there is no twin "z"; there are: x, y'),
        (
            Scenario(name="a", twins=("*",), sample=3),
            'scenario "a": sample is 3, above the number of twins (2); lower it, or name twins in the command',
        ),
    ],
)
def test_wrong_twins_are_refused(scenario: Scenario, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        expand([scenario], ["x", "y"], 0)
    assert str(caught.value) == message
    with pytest.raises(UsageError, match='two scenarios have the name "a"'):
        expand([Scenario(name="a", twins=("x",))] * 2, ["x"], 0)


def test_the_example_is_read() -> None:
    scenarios = read_scenarios(EXAMPLE)
    assert len(scenarios) >= 4
    assert {name for scenario in scenarios for name in scenario.modifiers} >= {"typos", "pushes"}
    assert all(scenario.goal for scenario in scenarios)
