"""evals/cli/tune.py: `usertwin tune` stores the settings that it chooses, and reports wrong input."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cli_runner import contents_of, error_of, output_of

from usertwin.memory import Settings, TwinRecord, existing_twin
from usertwin.memory.twin.record import default_home

pytestmark = pytest.mark.usefixtures("repeats_count")


def record(name: str) -> TwinRecord:
    return TwinRecord.load(existing_twin(name))


def test_tune_stores_the_settings_and_their_measurement(ann: str, script: str) -> None:
    before = record(ann)
    assert before.settings is None
    text = output_of("tune", ann, "--model", script, "--scorer", "fake:", "--seed", "4")
    assert "tuning: 8 settings on 6 validation turns: 48 turns scored and 6 traces written, 24 replies written" in text
    assert "2 conversations tell no rule from one reply; 8 are needed" in text
    settings = record(ann).settings
    assert settings is not None
    assert settings.measured is not None
    assert (settings.measured["scorer"], settings.measured["model"], settings.measured["seed"]) == ("fake:", script, 4)
    assert replace(record(ann), settings=None) == before
    assert f"{settings.k} pairs with" in output_of("show", ann)


def test_tune_on_fewer_turns_replaces_the_settings(ann: str, script: str) -> None:
    replace(record(ann), settings=Settings(k=40, window=9, traces="backward")).save(existing_twin(ann))
    output_of("tune", ann, "--model", script, "--scorer", "fake:", "--limit", "2")
    settings = record(ann).settings
    assert settings is not None
    assert settings.measured is not None
    assert settings.measured["turns"] == 2
    assert settings.k in {4, 8, 16, 32}


def test_the_table_of_tune_fits_80_columns(ann: str, script: str) -> None:
    text = output_of("tune", ann, "--model", script, "--scorer", "fake:", columns=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_without_validation_turns_the_twin_uses_no_traces(ann: str, script: str) -> None:
    replace(record(ann), validation=()).save(existing_twin(ann))
    text = output_of("tune", ann, "--model", script, "--scorer", "fake:")
    assert "validation turn" in text
    assert record(ann).settings == Settings(traces="none", reasons=False)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("ann", "--limit", "0"), "--limit is 0; it must be at least 1"),
        (("ann", "--limit", "-5"), "--limit is -5; it must be at least 1"),
        (("nobody",), 'there is no twin "nobody"'),
        (("../ann",), '"../ann"'),
        (("ann", "--scorer", "openai:gpt"), '"openai:gpt" cannot score texts'),
        (("ann", "--model", "nonsense"), '"nonsense"'),
        (("ann", "--model", "local"), "USERTWIN_ONLY_SCRIPTED"),
    ],
)
def test_wrong_arguments_of_tune_are_reported_in_one_sentence(
    ann: str, script: str, arguments: tuple[str, ...], error: str
) -> None:
    before = contents_of(default_home())
    name, *options = arguments
    assert error in error_of("tune", name, "--model", script, "--scorer", "fake:", *options)
    assert contents_of(default_home()) == before
