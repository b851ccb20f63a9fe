"""evals/cli/parts/recipe_file.py: recipes are read strictly, give way to the command line, and survive a dry run unchanged."""

from __future__ import annotations

import tomllib
from pathlib import Path

import click
import pytest
from cli_runner import error_of, learn_command, output_of
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from usertwin.evals.cli.learn import learn
from usertwin.evals.cli.parts.recipe_file import ADVANCED, RecipeCommand, effective_recipe, read_recipe, recipe_option
from usertwin.evals.cli.train import train
from usertwin.personas import UsageError

#: What --help lists first.
COMMON = {
    "learn": "--from --speaker --model --traces --max-traces --recipe --dry-run --overwrite --home --seed --help",
    "train": "--from --method --base --people --train-pairs --token-budget --scorer --recipe --dry-run --seed --help",
}
TRAIN = ("--embedder", "fake:64", "--people", "1", "--unseen", "1", "--train-pairs", "16", "--scorer", "fake:")


@click.command(cls=RecipeCommand, common=("recipe",))
@recipe_option
@click.option("--word", default="plain")
@click.option("--number", type=int)
@click.option("--share", default=0.5)
@click.option("--some-names", multiple=True)
@click.option("--flag", is_flag=True)
@click.option("--colour", type=click.Choice(["red", "blue"]), default="red")
@click.option("--home")
@click.pass_context
def sample_command(ctx: click.Context, **options: object) -> None:
    """Print the effective recipe."""
    click.echo(effective_recipe(ctx))


def recipe_of(*arguments: str) -> dict[str, object]:
    """Return the recipe that the sample command prints."""
    result = CliRunner().invoke(sample_command, arguments, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return tomllib.loads(result.stdout)


# Help -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMON)
def test_the_help_lists_ten_options_first_and_all_others_as_advanced(name: str) -> None:
    common, advanced = output_of(name, "--help").split(f"{ADVANCED}:")
    command = {"learn": learn, "train": train}[name]
    names = [option.opts[0] for option in command.params if isinstance(option, click.Option) and not option.hidden]
    assert {option for option in [*names, "--help"] if f"  {option} " in common or f", {option} " in common} == set(
        COMMON[name].split()
    )
    for option in set(names) - set(COMMON[name].split()):
        assert f"  {option} " in advanced


# Precedence -----------------------------------------------------------------------------------------------------------


def test_the_file_replaces_defaults_and_the_command_line_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('word = "from the file"\nnumber = 3\nsome_names = ["a", "b"]\nflag = true\n')
    expected = {"word": "from the file", "number": 3, "share": 0.5, "some_names": ["a", "b"], "flag": True, "colour": "red"}
    assert recipe_of("--recipe", str(path)) == expected
    assert recipe_of("--number", "4", "--recipe", str(path), "--word", "typed") == expected | {"number": 4, "word": "typed"}
    assert recipe_of("--recipe", str(path), "--some-names", "c") == expected | {"some_names": ["c"]}


def test_options_without_a_value_are_left_out() -> None:
    assert recipe_of() == {"word": "plain", "share": 0.5, "some_names": [], "flag": False, "colour": "red"}


def test_a_whole_number_is_accepted_for_a_float(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("share = 2\n")
    assert recipe_of("--recipe", str(path))["share"] == 2.0


# Wrong files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('wort = "x"', 'there is no key "wort"; did you mean "word"?'),
        ("zzzzz = 1", 'there is no key "zzzzz"; the keys are the options of usertwin sample --help'),
        ('number = "3"', "\"number\": input should be a valid integer, not '3'"),
        ("number = true", '"number": input should be a valid integer, not True'),
        ("number = 3.5", '"number": '),
        ("word = 3", '"word": input should be a valid string, not 3'),
        ("flag = 1", '"flag": input should be a valid boolean, not 1'),
        ('share = "much"', "\"share\": input should be a valid number, not 'much'"),
        ('colour = "green"', "\"colour\": input should be 'red' or 'blue', not 'green'"),
        ('some_names = "a"', "\"some_names\": input should be a valid array, not 'a'"),
        ("some_names = [1]", '"some_names": input should be a valid string, not 1'),
        ("[word]\nx = 1", '"word": '),
        ('home = "x"', '"home" can only be given on the command line; remove it from the file'),
        ('recipe = "x"', '"recipe" can only be given on the command line'),
        ("word = ", "Invalid value"),
    ],
)
def test_a_wrong_recipe_is_reported_with_the_file_and_the_key(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_recipe(path, sample_command)
    assert str(caught.value).startswith(f"{path}: ")
    assert error in str(caught.value)


def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    assert "no such file; name a recipe file with --recipe" in error_of("learn", "sam", "--recipe", tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff")
    assert "binary.toml: " in error_of("train", "out", "--recipe", tmp_path / "binary.toml")


# The round trip -------------------------------------------------------------------------------------------------------


@given(
    word=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n")),
    number=st.integers(),
    share=st.floats(allow_nan=False),
    names=st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
)
def test_any_value_survives_the_round_trip(word: str, number: int, share: float, names: list[str]) -> None:
    context = click.Context(sample_command)
    context.params = {"word": word, "number": number, "share": share, "some_names": tuple(names), "flag": True, "colour": "red"}
    expected = context.params | {"some_names": names}
    assert tomllib.loads(effective_recipe(context)) == expected


def test_a_dry_run_of_learn_prints_a_recipe_that_gives_the_same_dry_run(log_file: Path, tmp_path: Path) -> None:
    options = ("--fidelity", "rank", "--price", "1/2", "--max-triples", "20", "--seed", "3", "--persona", tmp_path / "ann.toml")
    (tmp_path / "ann.toml").write_text('name = "Annie"\ndescription = "Wants the weather."\n', "utf-8")
    printed = output_of(*learn_command(log_file, "openai:gpt-5", *options, "--dry-run"))
    path = tmp_path / "recipe.toml"
    path.write_text(printed, "utf-8")
    assert output_of("learn", "sam", "--recipe", path, "--dry-run") == printed
    recipe = tomllib.loads(printed)
    assert (recipe["from"], recipe["speaker"], recipe["fidelity"], recipe["max_triples"]) == (str(log_file), "Ann", "rank", 20)
    assert "usertwin learn NAME --recipe FILE" in printed
    assert "home" not in recipe
    changed = output_of("learn", "sam", "--recipe", path, "--seed", "4", "--dry-run")
    assert tomllib.loads(changed) == recipe | {"seed": 4}


def test_a_learned_twin_follows_the_recipe_file(log_file: Path, tmp_path: Path) -> None:
    from usertwin.memory import TwinRecord, existing_twin

    path = tmp_path / "recipe.toml"
    path.write_text(
        f'from = "{log_file}"\nspeaker = "Ann"\ntraces = "none"\nembedder = "fake:"\nmax_triples = 7\ntune_turns = 0\n', "utf-8"
    )
    output_of("learn", "sam", "--recipe", path, "--window", "2")
    recipe = TwinRecord.load(existing_twin("sam")).recipe
    assert (recipe.source, recipe.max_triples, recipe.window) == (str(log_file), 7, 2)


def test_a_dry_run_of_train_prints_a_recipe_that_gives_the_same_dry_run(
    log_file: Path, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trl")
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")
    out, path = tmp_path / "out", tmp_path / "recipe.toml"
    options = ("--from", log_file, "--base", f"transformers:{base}", *TRAIN, "--method", "grpo", "--method", "sft")
    printed = output_of("train", out, *options, "--hold-out", "Bob", "--learning-rate", "1e-5", "--dry-run")
    path.write_text(printed, "utf-8")
    assert output_of("train", out, "--recipe", path, "--dry-run") == printed
    recipe = tomllib.loads(printed)
    assert (recipe["from"], recipe["method"], recipe["hold_out"]) == ([str(log_file)], ["grpo", "sft"], ["Bob"])
    assert recipe["learning_rate"] == 1e-5
    assert "usertwin train OUT --recipe FILE" in printed
    changed = output_of("train", out, "--recipe", path, "--method", "dpo", "--dry-run")
    assert tomllib.loads(changed) == recipe | {"method": ["dpo"]}
    assert not out.exists()
