"""`usertwin.simulator.learn`: from a log and model names to a learned twin."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any

import pytest
from cli_runner import learn_command, output_of

from usertwin.memory import TripleStore, TwinRecord, existing_twin
from usertwin.personas import ChatLog, LogError, Persona, TwinError, UsageError
from usertwin.simulator import SimulatedUser, learn, load_embedder
from usertwin.simulator.learning import default_concurrency, make_recipe


def options(script: str, **changes: Any) -> dict[str, Any]:
    """Return arguments of `learn` with models that need no weights."""
    return {"speaker": "Ann", "model": script, "scorer": "fake:", "embedder": "fake:", "candidates": 2} | changes


def test_learn_takes_a_file_and_model_names(log_file: Path, script: str) -> None:
    record = learn("sam", log=log_file, **options(script, max_traces=3))
    assert (record.name, record.state, record.recipe.source) == ("sam", "complete", str(log_file))
    assert record == TwinRecord.load(existing_twin("sam"))
    with TripleStore(existing_twin("sam"), load_embedder("fake:"), create=False) as store:
        assert sum(triple.provenance is not None for triple in store.triples()) == 3
    with SimulatedUser.load("sam", model=script) as user:
        assert user.respond([]).action


def test_learn_takes_a_loaded_log_and_works_inside_a_running_event_loop(log: ChatLog, script: str) -> None:
    async def notebook() -> TwinRecord:
        return learn("sam", log=log, **options(script, traces="none"))

    record = asyncio.run(notebook())
    assert record.recipe.source == log.source
    assert (record.recipe.model, record.recipe.scorer) == (None, None)


def test_learn_uses_the_persona_the_home_and_the_callbacks(log: ChatLog, script: str, tmp_path: Path) -> None:
    steps: list[str] = []

    def progress(step: str, done: int, total: int) -> None:
        steps.append(step)

    others = {"persona": Persona("Annie"), "home": tmp_path / "other", "progress": progress}
    record = learn("sam", log=log, **options(script, max_traces=1), **others)
    assert (record.persona.name, record.persona.description) == ("Annie", "")
    assert record.persona.typical_words > 0  # what the given persona does not say is counted in the log
    assert existing_twin("sam", tmp_path / "other").is_dir()
    assert steps


def test_learn_refuses_a_taken_name_unless_told_to_overwrite(log: ChatLog, script: str) -> None:
    learn("sam", log=log, **options(script, traces="none"))
    with pytest.raises(TwinError, match='"sam"'):
        learn("sam", log=log, **options(script, traces="none", window=3))
    assert learn("sam", log=log, overwrite=True, **options(script, traces="none", window=3)).recipe.window == 3


def test_learn_makes_the_twin_of_the_command(log_file: Path, script: str) -> None:
    output_of(*learn_command(log_file, script, "--max-traces", "2", "--tune-turns", "0"))
    by_command = TwinRecord.load(existing_twin("sam"))
    by_function = learn("max", log=log_file, **options(script, max_traces=2))
    assert by_function.recipe == by_command.recipe
    assert (by_function.corpus, by_function.persona) == (by_command.corpus, by_command.persona)


def test_the_defaults_are_those_of_the_command(log_file: Path) -> None:
    from usertwin.evals.cli.learn import learn as command

    parameters = inspect.signature(learn).parameters
    renamed = {"propose": "proposal_mode"}
    compared: set[str] = set()
    for option in command.params:
        name = renamed.get(str(option.name), str(option.name))
        if name in parameters and parameters[name].default is not inspect.Parameter.empty:
            default = parameters[name].default
            assert str(option.default) in ({str(default)} if default else {str(default), "Sentinel.UNSET"}), name
            compared.add(name)
    assert {"model", "scorer", "traces", "max_traces", "candidates", "window", "proposal_mode", "fidelity", "seed"} <= compared
    required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    assert required == ["name", "log", "speaker"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"speaker": "Zoe"}, LogError, "Zoe"),
        ({"model": "gpt-5"}, UsageError, '"gpt-5" is not a chat model'),
        ({"scorer": "openai:x"}, UsageError, '"openai:x" cannot score texts'),
        ({"candidates": 0}, UsageError, "candidates"),
        ({"synthesizer": "no/such"}, UsageError, 'the synthesizer "no/such" is neither'),
    ],
)
def test_invalid_arguments_leave_no_twin(
    log: ChatLog, script: str, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        learn("sam", log=log, **options(script, **changes))
    with pytest.raises(TwinError, match="no twin"):
        existing_twin("sam")


def test_an_invalid_name_is_refused_before_the_log_is_read() -> None:
    with pytest.raises(TwinError):
        learn("no/such name", log="no such file", speaker="Ann")


def test_make_recipe_names_only_the_models_it_needs(script: str) -> None:
    recipe = make_recipe("log.jsonl", "Ann", embedder="fake:256", model=script, scorer="fake:", method="recon", candidates=2,
                         max_triples=None, max_traces=None, window=6, seed=0)  # fmt: skip
    assert (recipe.model, recipe.scorer, recipe.actor, recipe.judge, recipe.synthesizer) == (script, "fake:", None, None, None)


def test_default_concurrency_is_1_for_local_models() -> None:
    names = ("local", "hf:o/r/x.gguf", "transformers:/x", "openai:gpt-5-mini", "scripted:x", None)
    assert [default_concurrency(name) for name in names] == [1, 1, 1, 8, 8, 1]


@pytest.mark.slow
def test_three_arguments_are_enough(log_file: Path) -> None:
    record = learn("ann", log=str(log_file), speaker="Ann", max_triples=24, max_traces=1, candidates=1)
    assert (record.recipe.model, record.recipe.scorer, record.state) == ("local", "local", "complete")
