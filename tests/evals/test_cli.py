"""The command line: every command, every kind of bad input, and a chat through a pseudo-terminal."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import click
import pexpect
import pytest
from click.testing import CliRunner, Result

from conftest import other_conversation, small_conversation
from usertwin.evals.cli.main import main
from usertwin.memory import TripleStore, TwinRecord, existing_twin
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.twin.record import default_home
from usertwin.personas import Conversation, write_conversations

#: Says first that Ctrl-C is to be heard: a test run in the background of a shell passes on that it is not.
PROGRAM = [
    sys.executable, "-c",
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from usertwin.evals.cli.main import main; main(prog_name='usertwin')",
]  # fmt: skip
FAKES = ("--scorer", "fake:", "--embedder", "fake:")


@pytest.fixture
def script(tmp_path: Path) -> str:
    """The name of a model that never says the same twice in a row, and nothing that ends a talk."""
    path = tmp_path / "script.txt"
    turns = [f"the weather in {city} please" for city in ("Oslo", "Rome", "Lima", "Cairo", "Kyoto", "Quito", "Paris", "Bern")]
    path.write_text("\n".join(turns) + "\n", "utf-8")
    return f"scripted:{path}"


@pytest.fixture
def agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, with a module of agents."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "my_agents.py").write_text(
        "def good(messages):\n    return 'Which city do you mean?'\n"
        "def raising(messages):\n    raise KeyError('no such city')\n"
        "def forgetful(messages):\n    return None\n"
        "def silent(messages):\n    return '  '\n"
        "def slow(messages):\n    import time\n    time.sleep(30)\n"
    )
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.delitem(sys.modules, "my_agents", raising=False)
    return folder


def run(*arguments: str | Path, give: str | None = None) -> Result:
    """Run the program in this process, on a screen wide enough not to break sentences."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=give, env={"COLUMNS": "300"})


def done(*arguments: str | Path, give: str | None = None) -> str:
    """What the program prints when all is well."""
    result = run(*arguments, give=give)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str | Path) -> str:
    """The one sentence the program says about wrong input; what learning would take may have been said before."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout.strip()[-29:] in {"", "(--measure 0 leaves that out)"}
    assert "Traceback" not in result.stderr
    [sentence] = result.stderr.splitlines()
    assert sentence.startswith("usertwin: ")
    return sentence


def learn(log: Path | str, script: str, *more: str | Path, name: str = "sam", speaker: str = "Ann") -> tuple[str | Path, ...]:
    """The arguments of a learning without weights."""
    return ("learn", name, "--from", log, "--speaker", speaker, "--model", script, "--candidates", "2", *FAKES, *more)


def write(path: Path, conversations: list[Conversation]) -> Path:
    write_conversations(conversations, path)
    return path


def triples_of(name: str) -> list[tuple[str, str | None]]:
    with TripleStore(existing_twin(name), FakeEmbedder()) as store:
        return [(triple.id, triple.reasoning) for triple in store.triples()]


# Help -----------------------------------------------------------------------------------------------------------------


def test_help_lists_the_commands_in_the_order_of_use() -> None:
    text = done("--help")
    names = (
        "demo",
        "learn",
        "chat",
        "simulate",
        "eval",
        "show",
        "tune",
        "controls",
        "suite",
        "report",
        "compare",
        "judge-by-hand",
    )
    places = [text.index(f"\n  {name} ") for name in (*names, "export", "memory")]
    assert places == sorted(places)


@pytest.mark.parametrize("name", list(main.commands))
def test_help_of_a_command_explains_each_option(name: str) -> None:
    text = done(name, "--help")
    for parameter in main.commands[name].params:
        if isinstance(parameter, click.Option):
            assert all(option in text for option in parameter.opts)
            assert parameter.help
        else:
            assert parameter.make_metavar(click.Context(main.commands[name])) in text


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("learn", "--from --speaker --max-triples --traces --candidates --model --scorer --home --seed --overwrite"),
        ("learn", "--skip-bad-lines"),
        ("chat", "--home"),
        ("simulate", "--agent --turns --count --goal --seed --out --home"),
        ("eval", "--against --limit --json --home"),
        ("eval", "--arms --generate --samples --choices --judge --out --model --scorer --style --seed"),
        ("compare", "--json --seed"),
        ("export", "--arm --out"),
        ("show", "--home"),
        ("controls", "--limit --candidates --json --price --home"),
        ("demo", "--home"),
    ],
)
def test_the_promised_options_exist(name: str, options: str) -> None:
    has = {option for parameter in main.commands[name].params for option in parameter.opts}
    assert set(options.split()) <= has


def test_the_home_can_come_from_the_environment_and_the_help_says_so() -> None:
    of_runs = {"train", "report", "compare", "judge-by-hand", "export"}  # work on the folder of a run, and no twin
    for name, command in main.commands.items():
        if isinstance(command, click.Group):
            for one in command.commands:
                assert "USERTWIN_HOME" in done(name, one, "--help")
        else:
            assert ("USERTWIN_HOME" in done(name, "--help")) == (name not in of_runs)


def test_the_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert done("--version").strip() == f"usertwin, version {version('usertwin')}"


def test_the_demonstration_does_not_run_where_its_models_are_forbidden() -> None:
    result = run("demo")
    assert result.exit_code == 2
    [sentence] = result.stderr.splitlines()
    assert "USERTWIN_ONLY_SCRIPTED" in sentence


# learn ----------------------------------------------------------------------------------------------------------------


def test_learn_keeps_to_its_options(log_file: Path, script: str, tmp_path: Path) -> None:
    home, persona = tmp_path / "other", tmp_path / "ann.toml"
    persona.write_text('name = "Annie"\ndescription = "Wants the weather."\n', "utf-8")
    more = ("--max-triples", "9", "--max-traces", "4", "--seed", "7", "--window", "3", "--home", home, "--persona", persona)
    text = done(*learn(log_file, script, *more, "--traces", "backward"))
    assert re.search(r"9 triples, [1-4] with a trace \(backward\)", text)
    assert _traced(existing_twin("sam", home) / "memory.sqlite") == 4
    assert "Annie: Wants the weather." in text
    made = TwinRecord.load(existing_twin("sam", home)).recipe
    assert (made.method, made.max_triples, made.seed, made.window, made.scorer) == ("backward", 9, 7, 3, "fake:")
    assert not default_home().exists()


def test_learn_without_traces_needs_no_model(log_file: Path) -> None:
    plain = ("--traces", "none", "--embedder", "fake:", "--measure", "0")
    assert "42 triples, 0 with a trace (none)" in done("learn", "sam", "--from", log_file, "--speaker", "Ann", *plain)


def test_an_existing_name_asks_for_overwrite_which_replaces_the_twin(log_file: Path, script: str) -> None:
    done(*learn(log_file, script))
    assert "--overwrite" in refused(*learn(log_file, script))
    done(*learn(log_file, script, "--overwrite", "--max-triples", "5"))
    assert len(triples_of("sam")) == 5


def test_an_unknown_speaker_gets_the_ten_most_frequent_ones(tmp_path: Path, script: str) -> None:
    talks = []
    for person in range(12):
        for number in range(12 - person):
            raw = other_conversation(number).to_json() | {"conversation_id": f"{person}-{number}"}
            raw["turns"] = [turn | ({"speaker": f"P{person}"} if turn["speaker"] == "Bob" else {}) for turn in raw["turns"]]
            talks.append(json.dumps(raw))
    path = tmp_path / "many.jsonl"
    path.write_text("\n".join(talks), "utf-8")
    sentence = refused(*learn(path, script, speaker="Zoe"))
    assert 'nobody called "Zoe"' in sentence
    listed = ["desk-0", *(f"P{i}" for i in range(9))]
    assert [sentence.index(f'"{name}"') for name in listed] == sorted(sentence.index(f'"{name}"') for name in listed)
    assert '"P9"' not in sentence


@pytest.mark.parametrize("content", ["", "\n\n", "[]", '{"conversation_id": "a", "turns": []}\n'])
def test_an_empty_log_is_called_empty(tmp_path: Path, script: str, content: str) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text(content, "utf-8")
    assert "empty" in refused(*learn(path, script))


def test_a_log_with_one_speaker_is_refused(tmp_path: Path, script: str) -> None:
    talk = small_conversation(1)
    alone = Conversation("alone", tuple(turn for turn in talk.turns if turn.speaker == "Ann"), talk.started_at)
    assert '"Ann" is the only speaker' in refused(*learn(write(tmp_path / "alone.jsonl", [alone]), script))


def test_a_person_with_too_few_turns_is_told_how_many_are_needed(tmp_path: Path, script: str) -> None:
    path = write(tmp_path / "few.jsonl", [small_conversation(number) for number in range(4)])
    sentence = refused(*learn(path, script))
    assert '"Ann" has 12 turns in 4 conversations; a twin needs at least 20 turns in 3' in sentence


@pytest.mark.parametrize(("line", "reason"), [("{broken", "not JSON"), ('{"turns": 3}', '"turns" must be a list')])
def test_a_broken_line_is_named_and_only_skipped_when_asked(log_file: Path, script: str, line: str, reason: str) -> None:
    lines = log_file.read_text("utf-8").splitlines()
    log_file.write_text("\n".join([*lines[:4], line, *lines[4:], line]), "utf-8")
    sentence = refused(*learn(log_file, script))
    assert "line 5" in sentence
    assert reason in sentence
    assert "--skip-bad-lines" in sentence
    assert not default_home().exists()
    text = done(*learn(log_file, script, "--skip-bad-lines"))
    assert "skipped line 5" in text
    assert "2 broken lines were skipped." in text
    assert "42 triples" in text


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--model", "nonsense"), '"nonsense" is no model'),
        (("--model", "scripted:nowhere.txt"), "nowhere.txt: the script cannot be read"),
        (("--model", "local"), "USERTWIN_ONLY_SCRIPTED"),
        (("--scorer", "openai:gpt"), "cannot score"),
        (("--max-triples", "0"), "at least one"),
        (("--candidates", "0"), "at least one"),
        (("--window", "0"), "window"),
        (("--persona", "nobody.toml"), "nobody.toml: no such file"),
        (("--from", "nowhere.jsonl"), "nowhere.jsonl: no such file"),
        (("--embedder", "fake:many"), '"fake:many"'),
    ],
)
def test_other_wrong_arguments_of_learn_get_one_sentence(log_file: Path, script: str, more: tuple[str, str], says: str) -> None:
    assert says in refused(*learn(log_file, script, *more))


def test_a_name_that_cannot_be_a_folders_is_refused_first(script: str) -> None:
    assert "cannot be a twin's name" in refused(*learn("nowhere.jsonl", script, name="../x"))


def test_a_home_that_is_a_file_is_refused(log_file: Path, script: str) -> None:
    assert "--home" in refused(*learn(log_file, script, "--home", log_file))


# show -----------------------------------------------------------------------------------------------------------------


def test_show_without_a_name_lists_the_twins(ann: str) -> None:
    shutil.copytree(default_home() / ann, default_home() / "bea")
    assert done("show").split() == ["ann", "bea"]


def test_show_lists_nothing_where_nothing_is(tmp_path: Path) -> None:
    assert done("show", "--home", tmp_path / "nowhere") == ""


def test_show_tells_what_a_twin_holds(ann: str) -> None:
    text = done("show", ann)
    assert "42 triples, 42 with a trace (recon)" in text
    assert "not measured: usertwin eval ann" in text


# simulate -------------------------------------------------------------------------------------------------------------


def test_simulate_shows_memories_reasoning_and_both_sides(ann: str, script: str, agents: Path) -> None:
    text = done("simulate", ann, "--agent", "my_agents:good", "--model", script, "--turns", "2")
    assert text.count("why Ann says this") == 2
    assert text.count("agent  Which city do you mean?") == 2
    assert "the weather in Oslo please" in text
    assert "conversation 1: 2 turns, max_turns" in text


def test_simulate_writes_the_run_and_keeps_a_run_that_is_there(ann: str, script: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ("simulate", ann, "--agent", "demo", "--model", script, "--turns", "2", "--count", "3", "--seed", "5")
    done(*command, "--goal", "You want a refund.", "--out", out)
    lines = [json.loads(line) for line in (out / "conversations.jsonl").read_text("utf-8").splitlines()]
    assert [line["seed"] for line in lines] == [5, 6, 7]
    assert {line["goal"] for line in lines} == {"You want a refund."}
    assert not any("refund" in message["content"] for line in lines for message in line["messages"])
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    assert (manifest["twin"], manifest["seed"], manifest["arguments"]["agent"]) == ("ann", 5, "demo")
    assert "holds a run already" in refused(*command, "--out", out)
    assert len((out / "conversations.jsonl").read_text("utf-8").splitlines()) == 3


def test_simulate_lets_the_agent_begin_if_asked(ann: str, script: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done("simulate", ann, "--agent", "demo", "--model", script, "--turns", "1", "--agent-first", "--out", out)
    [line] = map(json.loads, (out / "conversations.jsonl").read_text("utf-8").splitlines())
    assert [message["role"] for message in line["messages"]] == ["assistant", "user", "assistant"]


@pytest.mark.parametrize(
    ("agent", "reason", "error"),
    [
        ("raising", "agent_error", "the agent raised KeyError: 'no such city'"),
        ("forgetful", "agent_error", "the agent returned None instead of a reply"),
        ("silent", "agent_error", "the agent said nothing"),
        ("slow", "agent_timeout", "the agent took longer than 0.05 seconds"),
    ],
)
def test_an_agent_that_fails_is_recorded_with_the_reason_and_exit_code_one(
    ann: str, script: str, agents: Path, agent: str, reason: str, error: str
) -> None:
    command = ("simulate", ann, "--agent", f"my_agents:{agent}", "--model", script, "--count", "2", "--out", "run")
    result = run(*command, "--agent-timeout", "0.05" if agent == "slow" else "60")
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert f"conversation 2: 1 turns, {reason}: {error}" in result.stdout
    lines = [json.loads(line) for line in (agents / "run" / "conversations.jsonl").read_text("utf-8").splitlines()]
    assert [(line["stop_reason"], line["error"]) for line in lines] == [(reason, error)] * 2
    assert all(line["exchanges"][0]["answer"]["action"] for line in lines)  # what the twin said is not lost
    assert json.loads((agents / "run" / "summary.json").read_text("utf-8")) == {"stop_reasons": {reason: 2}}


def test_a_twin_that_fails_is_not_charged_to_the_agent(ann: str, tmp_path: Path) -> None:
    (tmp_path / "mute.txt").write_text('{"when": "", "say": ""}', "utf-8")
    result = run("simulate", ann, "--agent", "demo", "--model", f"scripted:{tmp_path / 'mute.txt'}")
    assert result.exit_code == 1
    assert "conversation 1: 0 turns, twin_error: the twin said nothing" in result.stdout


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--agent", "nonsense"), '"nonsense" is no agent'),
        (("--agent", "no_such_module:agent"), 'there is no module "no_such_module"'),
        (("--agent", "my_agents:nobody"), 'has no "nobody"'),
        (("--agent", ":nobody"), '":nobody"'),
        (("--turns", "0"), "0 turns"),
        (("--count", "0"), "0 conversations"),
        (("--out", "my_agents.py"), "my_agents.py"),
        (("--model", "nonsense"), '"nonsense" is no model'),
    ],
)
def test_wrong_arguments_of_simulate_get_one_sentence(
    ann: str, script: str, agents: Path, more: tuple[str, str], says: str
) -> None:
    assert says in refused("simulate", ann, "--agent", "my_agents:good", "--model", script, *more)


# Twins that are not what they should be -------------------------------------------------------------------------------


def each_command(name: str, script: str) -> list[tuple[str, ...]]:
    """Every command that opens a twin."""
    model = ("--model", script)
    return [
        ("show", name),
        ("chat", name, *model),
        ("simulate", name, "--agent", "demo", *model),
        ("eval", name, "--scorer", "fake:", *model),
        ("tune", name, "--scorer", "fake:", *model),
        ("controls", name, "--scorer", "fake:", *model),
    ]


def test_an_unknown_twin_gets_the_known_ones_and_the_command_that_makes_it(ann: str, script: str) -> None:
    for command in each_command("nobody", script):
        sentence = refused(*command)
        assert 'there is no twin "nobody"' in sentence
        assert "(there: ann)" in sentence
        assert "usertwin learn nobody --from FILE --speaker WHO" in sentence


def spoil(folder: Path, how: str) -> None:
    """Damage a twin's folder in one of the ways a crash, a full disk or an editor can."""
    match how:
        case "garbage memory":
            (folder / "memory.sqlite").write_bytes(b"garbage " * 4096)
        case "short memory":
            with closing(sqlite3.connect(folder / "memory.sqlite")) as database:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            raw = (folder / "memory.sqlite").read_bytes()
            (folder / "memory.sqlite").write_bytes(raw[: len(raw) // 2])
        case "no memory":
            (folder / "memory.sqlite").unlink()
        case "no record":
            (folder / "twin.json").unlink()
        case "garbage record":
            (folder / "twin.json").write_bytes(b"\xff\xfe{")
        case "half a record":
            (folder / "twin.json").write_text((folder / "twin.json").read_text("utf-8")[:200], "utf-8")
        case "another record":
            (folder / "twin.json").write_text('{"format": 1, "name": "ann"}', "utf-8")
        case "garbage ending":
            (folder / "ending.json").write_text("[1, 2", "utf-8")


@pytest.mark.parametrize(
    "how",
    [
        "garbage memory", "short memory", "no memory", "no record", "garbage record", "half a record", "another record",
        "garbage ending",
    ],
)  # fmt: skip
def test_a_damaged_twin_gets_one_sentence_from_every_command_and_can_be_learned_again(
    ann: str, script: str, log_file: Path, how: str
) -> None:
    spoil(existing_twin(ann), how)
    for command in each_command(ann, script):
        sentence = refused(*command)
        assert "--overwrite" in sentence
    done(*learn(log_file, script, "--overwrite", name=ann))
    assert len(triples_of(ann)) == 42


def test_a_damaged_index_is_made_again_without_a_word_to_the_user(ann: str, script: str) -> None:
    (existing_twin(ann) / "memory.faiss").write_bytes(b"garbage")
    assert "42 triples" in done("show", ann)
    done("simulate", ann, "--agent", "demo", "--model", script, "--turns", "1")


def test_without_the_held_out_turns_there_is_nothing_to_measure_on_and_that_is_said(ann: str, script: str) -> None:
    (existing_twin(ann) / "held_out.jsonl.gz").unlink()
    assert "held_out.jsonl.gz" in refused("eval", ann, "--model", script, "--scorer", "fake:")


# chat -----------------------------------------------------------------------------------------------------------------


def test_chat_ends_with_the_input(ann: str, script: str) -> None:
    text = done("chat", ann, "--model", script, give="Hello, what can I do for you?\n")
    assert "Ann answers" in text
    assert "Ann  the weather in" in text


def test_chat_through_a_terminal(ann: str, script: str) -> None:
    child = _spawn("chat", ann, "--model", script)
    child.expect("You are the agent; Ann answers")
    child.expect("you  ")
    child.sendline("/why")
    child.expect("Ann has not said anything yet")
    child.sendline("Hello, what can I do for you?")
    child.expect("Ann  the weather in [A-Z][a-z]+ please")
    child.expect("you  ")
    child.sendline("/why")
    child.expect("why Ann says this")
    child.expect("like now.*when somebody said.*they thought.*and wrote")
    child.expect("1.00.*Hello, what can I do for you.*hi, the weather in")  # the memory of the very same words
    child.expect("thinks  the weather in")
    child.expect("you  ")
    child.sendline("/nonsense")
    child.expect("/quit ends the chat")
    child.expect("you  ")
    child.sendline("/quit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_ctrl_c_ends_a_chat_without_a_traceback(ann: str, script: str) -> None:
    child = _spawn("chat", ann, "--model", script)
    child.expect("you  ")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert "Traceback" not in child.before


def test_a_twin_that_leaves_ends_the_chat(ann: str, tmp_path: Path) -> None:
    said = ("hi, the weather in Oslo please", "tomorrow, day 3", "no thats all thank you bye")
    (tmp_path / "bye.txt").write_text("".join(f"a thought\n{turn}\n" for turn in said), "utf-8")
    heard = ("Hello, what can I do for you?", "Which day do you mean for Oslo?", "It will be sunny. Anything else?")
    text = done("chat", ann, "--model", f"scripted:{tmp_path / 'bye.txt'}", give="\n".join([*heard, "nobody reads this", ""]))
    assert [turn in text for turn in said] == [True] * 3
    assert "Ann leaves the chat." in text
    assert text.count("Ann  ") == 3


def test_a_twin_that_cannot_answer_says_why_and_the_chat_goes_on(ann: str, tmp_path: Path) -> None:
    (tmp_path / "mute.txt").write_text('{"when": "two", "say": "I heard two"}\n{"when": "", "say": ""}', "utf-8")
    text = done("chat", ann, "--model", f"scripted:{tmp_path / 'mute.txt'}", give="one\ntwo\n/quit\n")
    assert "the twin said nothing" in text
    assert "Ann  I heard two" in text


def _spawn(*arguments: str) -> pexpect.spawn[str]:
    """The program on a pseudo-terminal, a wide one without colours, so that what it says can be read."""
    plain = {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "200", "LINES": "50"}
    return pexpect.spawn(PROGRAM[0], [*PROGRAM[1:], *arguments], encoding="utf-8", timeout=60, env=os.environ | plain)


# Ctrl-C while learning ------------------------------------------------------------------------------------------------


def _traced(database: Path) -> int:
    """For how many triples traces were proposed by now, read beside the program that writes them."""
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)) as connection:
            return int(connection.execute("SELECT count(*) FROM triples WHERE provenance IS NOT NULL").fetchone()[0])
    except sqlite3.Error:
        return 0  # not there yet


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_while_learning_leaves_a_usable_twin_and_the_same_command_goes_on(tmp_path: Path, script: str) -> None:
    log = write(tmp_path / "long.jsonl", [small_conversation(number) for number in range(300)])
    command = [*PROGRAM, *map(str, learn(log, script, "--max-traces", "-1"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not _traced(default_home() / ".sam.partial" / "memory.sqlite"):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "what was done until now is kept" in said

    first = {name: trace for name, trace in triples_of("sam") if trace is not None}
    everything = len(triples_of("sam"))
    assert 0 < len(first) < everything
    assert "interrupted: the same learn command goes on" in done("show", "sam")
    assert "sam was not learned to the end" in done("chat", "sam", "--model", script, give="Hello\n")
    assert len(triples_of("sam")) == everything

    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr
    assert TwinRecord.load(existing_twin("sam")).state == "complete"
    after = dict(triples_of("sam"))
    assert len(after) == everything
    assert (
        _traced(existing_twin("sam") / "memory.sqlite") == everything
    )  # a guard may have rejected what was proposed, but nothing was left out
    assert {name: after[name] for name in first} == first  # what was there has not been made again
    assert [path.name for path in default_home().iterdir()] == ["sam"]
