"""evals/cli/learn.py: the cost estimate, the twin that `usertwin learn` leaves, wrong input, and Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_runner import (
    FAKES,
    WEATHER,
    contents_of,
    error_of,
    learn_command,
    output_of,
    run,
    write_script,
)
from judge_replies import judge_rule

from conftest import other_conversation, small_conversation
from usertwin.memory import TripleStore, TwinRecord, existing_twin
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.twin.record import default_home
from usertwin.personas import Conversation, write_conversations

#: Leaves out tuning, which most tests do not look at.
NO_TUNING = ("--tune-turns", "0")


def log_of(path: Path, conversations: list[Conversation]) -> Path:
    write_conversations(conversations, path)
    return path


def record(name: str = "sam") -> TwinRecord:
    return TwinRecord.load(existing_twin(name))


def traces(name: str) -> list[tuple[str, str | None]]:
    with TripleStore(existing_twin(name), FakeEmbedder(), create=False) as store:
        return [(triple.id, triple.reasoning) for triple in store.triples()]


def count_traced(database: Path) -> int:
    """Return for how many triples traces were proposed; readable while another process writes."""
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)) as connection:
            return int(connection.execute("SELECT count(*) FROM triples WHERE provenance IS NOT NULL").fetchone()[0])
    except sqlite3.Error:
        return 0  # not created yet


# The cost estimate ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options", "line"),
    [
        ("local", (), "about 84 completions of local (at most 252 if guards reject), 10,"),
        ("local", (), "and 2,520 output tokens: $0.00"),
        ("local:small", ("--style", "instruction"), "7,560 output tokens: $0.00"),
        ("openai:gpt-5-mini", (), "7,560 output tokens: price unknown (--price)"),
        ("openai:gpt-5-mini", ("--price", "0/1000"), "7,560 output tokens: $7.56"),
        ("openai:gpt-5-mini", ("--price", "0/0"), "7,560 output tokens: $0.00"),
        ("openai:gpt@http://localhost:1/v1", ("--price", "0/1000"), "7,560 output tokens: $7.56"),
        ("local", ("--price", "1000/1000"), "2,520 output tokens: $0.00"),
        ("local", ("--judge", "openai:gpt-5", "--traces", "quality"), "price unknown (--price)"),
        ("local", ("--traces", "quality"), "about 126 completions of local"),
        ("local", ("--fidelity", "judge"), "about 252 completions of local"),
        ("local", ("--propose", "search", "--max-calls", "6"), "about 252 completions of local, "),
        ("local", ("--traces", "backward"), "about 42 completions of local (at most 126 if guards reject)"),
        ("local", ("--max-triples", "9", "--max-traces", "4"), "9 pairs to remember, 4 to select traces for"),
        ("local", ("--traces", "none"), "42 pairs to remember, 0 to select traces for"),
        ("local", ("--tune-turns", "7"), "then up to 7 validation turns are scored"),
    ],
)
def test_a_dry_run_prints_the_cost_estimate_and_writes_nothing(
    log_file: Path, tmp_path: Path, model: str, options: tuple[str, ...], line: str
) -> None:
    """It needs neither the key of a hosted model nor the weights of a local one."""
    before = contents_of(tmp_path)
    assert line in output_of(*learn_command(log_file, model, *options, "--dry-run"))
    assert contents_of(tmp_path) == before
    assert not default_home().exists()


def test_a_model_that_writes_one_completion_per_request_reads_each_prompt_again(log_file: Path) -> None:
    def input_tokens(model: str) -> int:
        text = output_of(*learn_command(log_file, model, "--style", "transcript", "--dry-run"))
        [tokens] = re.findall(r"([\d,]+) input and", text)
        return int(tokens.replace(",", ""))

    assert input_tokens("openai:gpt-5-mini") == pytest.approx(2 * input_tokens("openai:gpt-4o"), abs=2)
    assert input_tokens("local") == input_tokens("openai:gpt-4o")


def test_a_dry_run_sends_no_request_and_changes_no_twin(log_file: Path, script: str, prompts: list[str]) -> None:
    output_of(*learn_command(log_file, script, "--max-traces", "2", *NO_TUNING))
    before = contents_of(default_home())
    prompts.clear()
    text = output_of(*learn_command(log_file, script, "--overwrite", "--seed", "3", "--dry-run"))
    assert "$0.00" in text
    assert "Talk to it" not in text
    assert prompts == []
    assert contents_of(default_home()) == before


def test_the_estimate_leaves_out_what_does_not_apply(log_file: Path) -> None:
    text = output_of(*learn_command(log_file, "local", "--traces", "none", *NO_TUNING, "--dry-run"))
    estimate = text.split("# The effective recipe")[0]
    assert estimate == "# 42 pairs to remember, 0 to select traces for\n"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--candidates", "0"), "0"),
        (("--max-triples", "0"), "0"),
        (("--window", "0"), "0"),
        (("--max-calls", "1"), "1"),
        (("--propose", "search", "--fidelity", "judge"), "search"),
        (("--model", "nonsense"), '"nonsense"'),
        (("--model", "openai:"), '"openai:"'),
        (("--speaker", "Zoe"), '"Zoe"'),
        (("--price", "nonsense"), '"nonsense" is not a price'),
    ],
)
def test_a_dry_run_refuses_what_learning_refuses(log_file: Path, options: tuple[str, ...], error: str) -> None:
    result = run(*learn_command(log_file, "local", *options, "--dry-run"))
    assert result.exit_code == 2
    assert error in result.stderr
    assert result.stdout == ""


# The twin -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("repeats_count")
def test_learning_prints_the_estimate_makes_traces_tunes_and_shows_the_twin(
    log_file: Path, script: str, prompts: list[str]
) -> None:
    text = output_of(*learn_command(log_file, script, "--max-traces", "5"))
    expected = [
        "42 pairs to remember, 5 to select traces for", "about 10 completions of scripted:", "then up to 24 validation turns",
        "tuning: ", "twin sam", "Talk to it:",
    ]  # fmt: skip
    positions = [text.index(part) for part in expected]
    assert positions == sorted(positions)
    assert record().state == "complete"
    assert record().settings is not None
    with TripleStore(existing_twin("sam"), FakeEmbedder(), create=False) as store:
        assert sum(triple.provenance is not None for triple in store.triples()) == 5
    assert len(prompts) == 10 + 6  # the estimate, and a trace for each validation turn


def test_the_options_reach_the_recipe_and_the_home(log_file: Path, script: str, tmp_path: Path) -> None:
    home, persona = tmp_path / "other", tmp_path / "ann.toml"
    persona.write_text('name = "Annie"\ndescription = "Wants the weather."\n', "utf-8")
    options = ("--max-triples", "9", "--max-traces", "4", "--seed", "7", "--window", "3", "--home", home, "--persona", persona)
    text = output_of(*learn_command(log_file, script, *options, "--traces", "backward"))
    assert re.search(r"9 triples, [1-4] with a trace \(backward\)", text)
    assert count_traced(existing_twin("sam", home) / "memory.sqlite") == 4
    assert "Annie: Wants the weather." in text
    recipe = TwinRecord.load(existing_twin("sam", home)).recipe
    assert (recipe.method, recipe.max_triples, recipe.seed, recipe.window, recipe.scorer) == ("backward", 9, 7, 3, "fake:")
    assert not default_home().exists()


def test_learning_without_traces_needs_no_model(log_file: Path) -> None:
    options = ("--traces", "none", "--embedder", "fake:", *NO_TUNING)
    text = output_of("learn", "sam", "--from", log_file, "--speaker", "Ann", *options)
    assert "42 triples, 0 with a trace (none)" in text


def test_without_tuning_no_settings_are_stored(log_file: Path, script: str) -> None:
    text = output_of(*learn_command(log_file, script, "--max-traces", "2", *NO_TUNING))
    assert "tuning:" not in text
    assert "usertwin tune" in text
    assert record().settings is None


@pytest.mark.parametrize(
    ("traces", "propose", "fidelity", "needs_actor"),
    [
        ("random", "forward", "gain", False),
        ("longest", "scaffolded", "prior", False),
        ("recon", "search", "choice", False),
        ("recon", "backward", "rank", True),
        ("random", "search", "rank", True),
    ],
)
def test_every_way_to_make_traces_is_stored_in_the_recipe(
    log_file: Path, script: str, traces: str, propose: str, fidelity: str, needs_actor: bool
) -> None:
    ways = ("--traces", traces, "--propose", propose, "--fidelity", fidelity, "--max-calls", "4")
    output_of(*learn_command(log_file, script, *ways, "--max-traces", "2", *NO_TUNING))
    recipe = record().recipe
    assert (recipe.method, recipe.proposal_mode, recipe.fidelity, recipe.max_calls) == (traces, propose, fidelity, 4)
    assert recipe.actor == (script if needs_actor else None)


@pytest.mark.parametrize("way", [("--traces", "quality"), ("--fidelity", "judge")])
def test_a_judge_that_gives_no_verdict_is_an_error_and_another_judge_finishes_the_twin(
    log_file: Path, script: str, tmp_path: Path, way: tuple[str, str]
) -> None:
    command = learn_command(log_file, script, *way, "--max-traces", "3", *NO_TUNING)
    result = run(*command)
    assert result.exit_code == 2
    error = f'usertwin: the judge "{script}" gave no readable verdict in all 6 proposals for 3 pairs; use another judge'
    assert error in result.stderr.splitlines()
    assert record().state != "complete"
    assert record().recipe.judge == script
    assert count_traced(existing_twin("sam") / "memory.sqlite") == 0
    (tmp_path / "judge").mkdir()
    judge = write_script(tmp_path / "judge", judge_rule("AB"))
    text = output_of(*command, "--judge", judge, "--overwrite")
    assert "42 triples, 3 with a trace" in text
    assert record().recipe.judge == judge


def test_learning_the_same_again_uses_the_cached_completions(log_file: Path, script: str, prompts: list[str]) -> None:
    output_of(*learn_command(log_file, script, *NO_TUNING))
    prompts.clear()
    text = output_of(*learn_command(log_file, script, *NO_TUNING, "--overwrite"))
    assert prompts == []
    assert re.search(r"\b0 completions, \d\d+ more from the cache", text)


def test_a_twin_is_only_replaced_with_overwrite(log_file: Path, script: str) -> None:
    output_of(*learn_command(log_file, script, *NO_TUNING))
    for options in (("--seed", "9"), NO_TUNING, ("--candidates", "3")):
        assert "--overwrite" in error_of(*learn_command(log_file, script, *NO_TUNING, *options))
    output_of(*learn_command(log_file, script, *NO_TUNING, "--overwrite", "--max-triples", "5"))
    assert len(traces("sam")) == 5


@pytest.mark.usefixtures("repeats_count")
def test_a_command_that_was_stopped_while_tuning_only_tunes(
    log_file: Path, script: str, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("usertwin.evals.cli.learn.tune_twin", stop)
        result = run(*learn_command(log_file, script))
    assert result.exit_code == 130
    assert "finished work is kept" in result.stderr
    learned = record()
    assert (learned.state, learned.settings) == ("complete", None)
    prompts.clear()
    output_of(*learn_command(log_file, script))
    assert len(prompts) == 6  # the traces for the validation turns
    assert replace(record(), settings=None) == learned
    assert record().settings is not None
    assert "--overwrite" in error_of(*learn_command(log_file, script))


# Wrong input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--tune-turns", "-1"), "--tune-turns is -1; it must be at least 0"),
        (("--concurrency", "0"), "--concurrency is 0; it must be at least 1"),
        (("--concurrency", "-2"), "--concurrency is -2; it must be at least 1"),
        (("--price", "nonsense"), '--price: "nonsense" is not a price; give dollars per million input and output tokens'),
        (("--model", "nonsense"), '"nonsense"'),
        (("--model", "scripted:nowhere.txt"), "nowhere.txt"),
        (("--model", "local"), "USERTWIN_ONLY_SCRIPTED"),
        (("--model", "openai:gpt-5"), "USERTWIN_ONLY_SCRIPTED"),
        (("--scorer", "openai:gpt"), '"openai:gpt" cannot score'),
        (("--fidelity", "judge", "--judge", "nonsense"), '"nonsense"'),
        (("--fidelity", "rank", "--actor", "scripted:nowhere.txt"), "nowhere.txt"),
        (("--synthesizer", "local", "--traces", "none"), "--synthesizer proposes traces, and --traces none makes none"),
        (("--max-triples", "0"), "0"),
        (("--candidates", "0"), "0"),
        (("--window", "0"), "window"),
        (("--persona", "nobody.toml"), "nobody.toml: no such file"),
        (("--from", "nowhere.jsonl"), "nowhere.jsonl: no such file"),
        (("--embedder", "fake:many"), '"fake:many"'),
    ],
)
def test_wrong_options_of_learn_are_reported_in_one_sentence(
    log_file: Path, script: str, options: tuple[str, ...], error: str
) -> None:
    assert error in error_of(*learn_command(log_file, script, *options))
    assert not default_home().exists()


def test_an_invalid_name_is_reported_before_the_log_is_read(script: str) -> None:
    assert '"../x"' in error_of(*learn_command("nowhere.jsonl", script, name="../x"))


def test_a_home_that_is_a_file_is_refused(log_file: Path, script: str) -> None:
    assert "--home" in error_of(*learn_command(log_file, script, "--home", log_file))


def test_an_unknown_speaker_is_reported_with_the_ten_most_frequent_ones(tmp_path: Path, script: str) -> None:
    conversations = []
    for person in range(12):
        for number in range(12 - person):
            raw = other_conversation(number).to_json() | {"conversation_id": f"{person}-{number}"}
            raw["turns"] = [turn | ({"speaker": f"P{person}"} if turn["speaker"] == "Bob" else {}) for turn in raw["turns"]]
            conversations.append(json.dumps(raw))
    path = tmp_path / "many.jsonl"
    path.write_text("\n".join(conversations), "utf-8")
    sentence = error_of(*learn_command(path, script, speaker="Zoe"))
    assert '"Zoe"' in sentence
    positions = [sentence.index(f'"{name}"') for name in ("desk-0", *(f"P{number}" for number in range(9)))]
    assert positions == sorted(positions)
    assert '"P9"' not in sentence


@pytest.mark.parametrize("content", ["", "\n\n", "[]", '{"conversation_id": "a", "turns": []}\n'])
def test_an_empty_log_is_refused(tmp_path: Path, script: str, content: str) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text(content, "utf-8")
    assert "empty" in error_of(*learn_command(path, script))


def test_a_log_with_one_speaker_is_refused(tmp_path: Path, script: str) -> None:
    whole = small_conversation(1)
    alone = Conversation("alone", tuple(turn for turn in whole.turns if turn.speaker == "Ann"), whole.started_at)
    assert '"Ann" is the only speaker' in error_of(*learn_command(log_of(tmp_path / "alone.jsonl", [alone]), script))


def test_too_few_turns_are_reported_with_the_number_that_is_needed(tmp_path: Path, script: str) -> None:
    path = log_of(tmp_path / "few.jsonl", [small_conversation(number) for number in range(4)])
    sentence = error_of(*learn_command(path, script))
    assert '"Ann" has 12 turns in 4 conversations' in sentence
    assert "20 turns in 3" in sentence


@pytest.mark.parametrize(("line", "reason"), [("{broken", "not JSON"), ('{"turns": 3}', '"turns"')])
def test_a_broken_line_is_reported_and_skipped_only_on_request(log_file: Path, line: str, reason: str) -> None:
    lines = log_file.read_text("utf-8").splitlines()
    log_file.write_text("\n".join([*lines[:4], line, *lines[4:], line]), "utf-8")
    plain = ("learn", "sam", "--from", log_file, "--speaker", "Ann", "--traces", "none", *FAKES, *NO_TUNING)
    sentence = error_of(*plain)
    assert "log.jsonl:5: " in sentence
    assert reason in sentence
    assert "--skip-bad-lines" in sentence
    assert not default_home().exists()
    text = output_of(*plain, "--skip-bad-lines")
    assert "skipped line 5" in text
    assert "2 broken lines were skipped" in text
    assert "42 triples" in text


# Ctrl-C ---------------------------------------------------------------------------------------------------------------

PROGRAM = [sys.executable, "-c", "from usertwin.evals.cli.main import main; main(prog_name='usertwin')"]


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_leaves_a_usable_twin_and_the_same_command_continues(tmp_path: Path) -> None:
    script = write_script(tmp_path, *WEATHER)
    log = log_of(tmp_path / "long.jsonl", [small_conversation(number) for number in range(100)])
    options = learn_command(log, script, "--max-traces", "-1", *NO_TUNING)
    command = [*PROGRAM, *map(str, options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not count_traced(default_home() / ".sam.partial" / "memory.sqlite"):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "finished work is kept" in errors

    first = {triple: trace for triple, trace in traces("sam") if trace is not None}
    total = len(traces("sam"))
    assert 0 < len(first) < total
    assert "interrupted" in output_of("show", "sam")
    assert "sam is not fully learned" in output_of("chat", "sam", "--model", script, stdin="Hello\n")
    assert len(traces("sam")) == total

    output_of(*options)
    assert record().state == "complete"
    after = dict(traces("sam"))
    assert len(after) == total
    assert count_traced(existing_twin("sam") / "memory.sqlite") == total  # a guard may reject traces, but no pair is left out
    assert {triple: after[triple] for triple in first} == first  # finished work is not repeated
    assert [path.name for path in default_home().iterdir()] == ["sam"]
