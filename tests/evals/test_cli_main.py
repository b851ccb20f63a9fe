"""evals/cli/main.py: help, version, lazy loading, and one sentence for every twin that cannot be opened."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from cli_runner import WEATHER, error_of, learn_command, output_of, run

from usertwin.evals.cli.main import COMMANDS, main
from usertwin.memory import TripleStore, existing_twin
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.twin.record import default_home

#: Commands that need no twin: most work on the folder of a run.
RUN_COMMANDS = {"import", "init", "train", "report", "compare", "join", "judge-by-hand", "export", "completion"}
#: What the model of `script` says.
SCRIPTED_REPLIES = WEATHER


def command_named(name: str) -> click.Command:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return command


def all_commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with the words that call it, those of groups included."""
    for name in COMMANDS:
        command = command_named(name)
        if isinstance(command, click.Group):
            yield from (((name, inner), command.commands[inner]) for inner in command.commands)
        yield (name,), command


# Help -----------------------------------------------------------------------------------------------------------------


def test_help_lists_the_commands_in_the_order_of_use() -> None:
    text = output_of("--help")
    positions = [text.index(f"\n  {name} ") for name in COMMANDS]
    assert positions == sorted(positions)
    first = ["demo", "import", "learn", "init", "chat", "play", "watch", "simulate", "eval", "show"]
    assert list(COMMANDS)[:10] == first


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_of_commands_repeats_the_first_line_of_each_help_text(name: str) -> None:
    assert (command_named(name).help or "").split("\n")[0] == COMMANDS[name][1]


@pytest.mark.parametrize(
    ("words", "command"), list(all_commands()), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_the_help_of_a_command_explains_each_option(words: tuple[str, ...], command: click.Command) -> None:
    text = output_of(*words, "--help")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert all(option in text for option in parameter.opts)
            assert parameter.help
        else:
            assert parameter.make_metavar(click.Context(command)) in text


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("learn", "--from --speaker --max-triples --traces --candidates --model --scorer --home --seed --overwrite"),
        ("learn", "--recipe --dry-run --tune-turns --max-calls --propose --skip-bad-lines"),
        ("train", "--train-pairs --validation-pairs --test-pairs --group-size --batch-size --micro-batch-size --token-budget"),
        ("chat", "--home"),
        ("simulate", "--agent --max-turns --count --goal --seed --out --home"),
        ("eval", "--against --limit --json --home"),
        ("eval", "--arms --generate --samples --choices --judge --out --model --scorer --style --seed"),
        ("tune", "--limit --model --scorer --style --seed"),
        ("compare", "--json --seed"),
        ("export", "--arm --out"),
        ("show", "--home"),
        ("controls", "--limit --candidates --json --price --home"),
        ("demo", "--home --yes --no-fetch --limit"),
    ],
)
def test_the_documented_options_exist(name: str, options: str) -> None:
    known = {option for parameter in command_named(name).params for option in parameter.opts}
    assert set(options.split()) <= known


def test_an_option_has_one_meaning_in_all_commands() -> None:
    """The same option has the same help text, but for the options that count something of the command's own."""
    own = {
        "--limit",
        "--from",
        "--max-turns",
        "--count",
        "--out",
        "--samples",
        "--seed",
        "--max-traces",
        "--judge",
        "--dry-run",
        "--model",  # conversations have another default
    }
    texts: dict[str, set[str]] = {}
    for _, command in all_commands():
        for option in (parameter for parameter in command.params if isinstance(parameter, click.Option)):
            texts.setdefault(option.opts[0], set()).add(option.help or "")
    assert {name for name, help_texts in texts.items() if len(help_texts) > 1} <= own | {"--propose"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_on_twins_takes_the_home_from_the_environment_and_documents_it(name: str) -> None:
    command = command_named(name)
    calls = [(name, inner) for inner in command.commands] if isinstance(command, click.Group) else [(name,)]
    for words in calls:
        assert ("USERTWIN_HOME" in output_of(*words, "--help")) == (name not in RUN_COMMANDS)


def test_the_help_of_eval_explains_each_arm() -> None:
    from usertwin.evals.arm_names import ARM_DESCRIPTIONS

    text = "".join(output_of("eval", "--help").split())  # click also wraps after a hyphen
    for arm, description in ARM_DESCRIPTIONS.items():
        assert f"{arm}{description}".replace(" ", "") in text


def test_an_unknown_command_is_a_usage_error() -> None:
    result = run("lern")
    assert result.exit_code == 2
    assert result.stderr == "usertwin: No such command 'lern'; did you mean usertwin learn? (see usertwin --help)\n"
    assert "did you mean" not in run("nonsense").stderr


@pytest.mark.parametrize(
    ("command", "named", "way_out"),
    [
        ("--foo", "--foo", "usertwin"),
        ("memory chek", "chek", "usertwin memory"),
        ("learn", "Missing argument 'NAME'", "usertwin learn"),
        ("learn x", "Missing option '--from'", "usertwin learn"),
        ("learn x --frm a", "--from", "usertwin learn"),
        ("learn x --from", "'--from' requires an argument", "usertwin learn"),
        ("eval x --limit many", "'--limit': 'many' is not a valid integer", "usertwin eval"),
        ("memory forget x y z", "extra arguments (y z)", "usertwin memory forget"),
        ("memory rebuild x --index a", "'a' is not one of 'auto', 'flat', 'ivfpq'", "usertwin memory rebuild"),
        ("eval x --limit \x1b[2J\n1", r"'\x1b[2J\n1' is not a valid integer", "usertwin eval"),
    ],
)
def test_a_command_that_cannot_be_parsed_is_one_line_with_the_way_out(command: str, named: str, way_out: str) -> None:
    sentence = error_of(*command.split(" "))
    assert named in sentence
    assert sentence.endswith(f" (see {way_out} --help)")


def test_a_command_without_a_twins_name_lists_the_twins(ann: str, tmp_path: Path) -> None:
    for command in (("chat",), ("memory", "stats"), ("guess",)):
        assert f"Missing argument 'NAME', one of: {ann} (see usertwin {' '.join(command)} --help)" in error_of(*command)
    assert f"there are: {ann}" in error_of("simulate", "--agent", "demo")
    assert "usertwin learn makes one" in error_of("eval", "--home", tmp_path / "nowhere")
    assert "usertwin learn makes one" in error_of("simulate", "--agent", "demo", "--home", tmp_path / "nowhere")


@pytest.mark.parametrize("command", [(), ("memory",)])
def test_a_group_without_a_command_shows_its_help(command: tuple[str, ...]) -> None:
    result = run(*command)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: usertwin")


def test_the_version_is_that_of_the_package() -> None:
    assert output_of("--version").strip() == f"usertwin, version {version('usertwin')}"


# Twins that cannot be opened ------------------------------------------------------------------------------------------


def commands_on(name: str, model: str) -> list[tuple[str, ...]]:
    """Every command that opens a twin."""
    models = ("--model", model)
    return [
        ("show", name),
        ("chat", name, *models),
        ("simulate", name, "--agent", "demo", *models),
        ("eval", name, "--scorer", "fake:", *models),
        ("tune", name, "--scorer", "fake:", *models),
        ("controls", name, "--scorer", "fake:", *models),
    ]


def test_an_unknown_twin_is_reported_with_the_known_ones_and_the_command_to_learn_it(ann: str, script: str) -> None:
    for command in commands_on("nobody", script):
        sentence = error_of(*command)
        assert 'there is no twin "nobody"' in sentence
        assert "ann" in sentence.removeprefix('there is no twin "nobody"')
        assert "usertwin learn nobody --from FILE --speaker WHO" in sentence


def test_a_command_that_is_named_repeats_the_home_that_was_given(ann: str, tmp_path: Path) -> None:
    home = tmp_path / "my twins"
    shutil.copytree(default_home(), home)
    learn = error_of("show", "nobody", "--home", home)
    assert f"usertwin learn nobody --from FILE --speaker WHO --home '{home}'" in learn
    assert f"usertwin eval {ann} --home '{home}'" in output_of("show", ann, "--home", home)
    damage(home / ann, "memory replaced")
    checked = run("memory", "check", ann, "--home", home)
    assert f"usertwin memory rebuild {ann} --home '{home}'\n" in checked.stdout


def damage(folder: Path, kind: str) -> None:
    """Damage a twin's folder as a crash, a full disk or an editor can."""
    match kind:
        case "memory replaced":
            (folder / "memory.sqlite").write_bytes(b"garbage " * 4096)
        case "memory truncated":
            with closing(sqlite3.connect(folder / "memory.sqlite")) as database:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            raw = (folder / "memory.sqlite").read_bytes()
            (folder / "memory.sqlite").write_bytes(raw[: len(raw) // 2])
        case "memory missing":
            (folder / "memory.sqlite").unlink()
        case "record missing":
            (folder / "twin.json").unlink()
        case "record replaced":
            (folder / "twin.json").write_bytes(b"\xff\xfe{")
        case "record truncated":
            (folder / "twin.json").write_text((folder / "twin.json").read_text("utf-8")[:200], "utf-8")
        case "record of other content":
            (folder / "twin.json").write_text('{"format": 1, "name": "ann"}', "utf-8")
        case _:
            (folder / "ending.json").write_text("[1, 2", "utf-8")


@pytest.mark.parametrize(
    "kind",
    [
        "memory replaced", "memory truncated", "memory missing", "record missing", "record replaced", "record truncated",
        "record of other content", "last-turn model truncated",
    ],
)  # fmt: skip
def test_a_damaged_twin_gets_one_sentence_from_every_command_and_can_be_learned_again(
    ann: str, script: str, log_file: Path, kind: str
) -> None:
    damage(existing_twin(ann), kind)
    for command in commands_on(ann, script):
        assert "--overwrite" in error_of(*command)
    output_of(*learn_command(log_file, script, "--overwrite", "--traces", "none", "--tune-turns", "0", name=ann))
    with TripleStore(existing_twin(ann), FakeEmbedder(), create=False) as store:
        assert len(list(store.triples())) == 42


def test_a_damaged_index_is_rebuilt_without_a_message(ann: str, script: str) -> None:
    (existing_twin(ann) / "memory.faiss").write_bytes(b"garbage")
    assert "42 triples" in output_of("show", ann)
    output_of("simulate", ann, "--agent", "demo", "--model", script, "--max-turns", "1")


@pytest.mark.parametrize("command", ["eval", "tune", "controls"])
@pytest.mark.parametrize("content", [None, b"garbage"])
def test_held_out_turns_that_are_missing_or_damaged_are_reported(
    ann: str, script: str, command: str, content: bytes | None
) -> None:
    path = existing_twin(ann) / "held_out.jsonl.gz"
    path.unlink() if content is None else path.write_bytes(content)
    assert "held_out.jsonl.gz" in error_of(command, ann, "--model", script, "--scorer", "fake:")


# show -----------------------------------------------------------------------------------------------------------------


def test_show_without_a_name_lists_the_twins(ann: str) -> None:
    shutil.copytree(default_home() / ann, default_home() / "bea")
    assert output_of("show").split() == ["ann", "bea"]


def test_show_without_twins_says_how_to_get_one(tmp_path: Path) -> None:
    result = run("show", "--home", tmp_path / "no where")
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"usertwin learn NAME --from FILE --home '{tmp_path / 'no where'}'" in result.stderr
    assert "usertwin demo" in result.stderr


def test_show_prints_the_memory_and_the_closeness_of_a_twin(ann: str) -> None:
    text = output_of("show", ann)
    assert "42 triples, 42 with a trace (recon)" in text
    assert "usertwin eval ann" in text
