"""The commands with a synthesizer: a model that proposes a twin's traces and then reasons for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_runner import THOUGHTS, WEATHER, error_of, learn_command, output_of
from reasoning_twins import adapter_folder, set_synthesizer

from usertwin.memory import Settings, TripleStore, TwinRecord, existing_twin
from usertwin.simulator import load_embedder
from usertwin.simulator.backends.scripted import ScriptedChatModel

pytestmark = pytest.mark.usefixtures("repeats_count")


@pytest.fixture
def script(tmp_path: Path) -> str:
    """The name of the model that acts."""
    path = tmp_path / "actor.txt"
    path.write_text("\n".join(WEATHER), "utf-8")
    return f"scripted:{path}"


@pytest.fixture
def synthesizer(tmp_path: Path) -> str:
    """The name of the model that reasons."""
    path = tmp_path / "thinker.txt"
    path.write_text("\n".join(THOUGHTS), "utf-8")
    return f"scripted:{path}"


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The requests to scripted models: the model's first reply, which identifies it, and the prompt."""
    recorded: list[tuple[str, str]] = []
    generate = ScriptedChatModel._generate

    def record(self: ScriptedChatModel, messages: Any, *rest: Any, **options: Any) -> Any:
        recorded.append((self.answers[0], "\n".join(str(message.text) for message in messages)))
        return generate(self, messages, *rest, **options)

    monkeypatch.setattr(ScriptedChatModel, "_generate", record)
    return recorded


def reasoning_models(requests: list[tuple[str, str]]) -> set[str]:
    """Return the first replies of the models that were asked to reason."""
    return {first_reply for first_reply, prompt in requests if prompt.endswith("(Me thinking:")}


def test_learn_takes_its_traces_from_the_synthesizer_and_names_it(log_file: Path, script: str, synthesizer: str) -> None:
    options = ("--synthesizer", synthesizer, "--tune-turns", "0", "--fidelity", "rank")
    text = output_of(*learn_command(log_file, script, *options))
    recipe = TwinRecord.load(existing_twin("sam")).recipe
    assert (recipe.model, recipe.synthesizer, recipe.actor) == (synthesizer, synthesizer, script)
    with TripleStore(existing_twin("sam"), load_embedder("fake:"), create=False) as store:
        traces = [triple.reasoning for triple in store.triples() if triple.reasoning]
    assert traces
    assert all(trace.startswith("I felt ") for trace in traces)
    assert f"it reasons with {synthesizer}" in text
    assert f" completions of {synthesizer} " in text


def test_a_dry_run_names_the_synthesizer_and_calls_no_model(
    log_file: Path, script: str, synthesizer: str, requests: list[tuple[str, str]]
) -> None:
    text = output_of(*learn_command(log_file, script, "--synthesizer", synthesizer, "--dry-run"))
    assert f"it reasons with {synthesizer}" in text
    assert requests == []


def test_the_cost_of_an_adapter_is_estimated_in_the_style_it_was_trained_with(
    log_file: Path, script: str, tmp_path: Path
) -> None:
    folder = adapter_folder(tmp_path / "adapter", base="local:small", style="instruction")
    text = output_of(*learn_command(log_file, script, "--synthesizer", folder, "--dry-run"))
    assert f"about 84 completions of local:small+{folder} (at most 252 if guards reject)" in text
    assert "7,560 output tokens: $0.00" in text  # JSON objects are longer than lines


def test_the_synthesizer_keeps_its_own_style(
    log_file: Path, script: str, synthesizer: str, requests: list[tuple[str, str]]
) -> None:
    options = ("--synthesizer", synthesizer, "--style", "instruction", "--max-traces", "2", "--tune-turns", "0")
    output_of(*learn_command(log_file, script, *options))
    assert requests
    assert all(prompt.endswith("Before I wrote that, I") for _, prompt in requests)


def test_a_synthesizer_without_traces_is_refused_before_the_log_is_read(script: str, synthesizer: str) -> None:
    sentence = error_of(*learn_command(Path("no such log"), script, "--synthesizer", synthesizer, "--traces", "none"))
    assert "--synthesizer proposes traces, and --traces none makes none" in sentence


def test_learn_tunes_with_the_synthesizers_reasoning(
    log_file: Path, script: str, synthesizer: str, requests: list[tuple[str, str]]
) -> None:
    output_of(*learn_command(log_file, script, "--synthesizer", synthesizer, "--tune-turns", "4"))
    assert reasoning_models(requests) == {THOUGHTS[0]}


def test_tune_uses_the_synthesizer_even_if_the_settings_disable_reasoning(
    ann: str, script: str, synthesizer: str, requests: list[tuple[str, str]]
) -> None:
    set_synthesizer(ann, synthesizer, Settings(traces="none", reasons=False))
    output_of("tune", ann, "--limit", "4", "--model", script, "--scorer", "fake:")
    assert reasoning_models(requests) == {THOUGHTS[0]}


def test_show_names_the_synthesizer_and_whether_it_reasons(ann: str, synthesizer: str) -> None:
    assert "reasons with" not in output_of("show", ann)
    set_synthesizer(ann, synthesizer)
    assert f"reasons with {synthesizer}" in " ".join(output_of("show", ann).split())
    set_synthesizer(ann, synthesizer, Settings(traces="none", reasons=False))
    expected = f"reasons with no model, since it showed no gain; its traces are by {synthesizer}"
    assert expected in " ".join(output_of("show", ann).split())


def test_a_chat_names_the_reasoner(ann: str, script: str, synthesizer: str) -> None:
    set_synthesizer(ann, synthesizer)
    text = output_of("chat", ann, "--model", script, stdin="Hello, what can I do for you?\n/why\n/quit\n")
    assert f"{THOUGHTS[0]}  (reasoned by {synthesizer})" in text


def test_a_chat_without_the_missing_synthesizer_is_refused(ann: str, script: str) -> None:
    set_synthesizer(ann, "scripted:/no/such/file")
    sentence = error_of("chat", ann, "--model", script)
    assert 'the twin "ann" reasons with "scripted:/no/such/file", which cannot be loaded' in sentence


def test_controls_do_not_need_the_synthesizer(ann: str, script: str) -> None:
    set_synthesizer(ann, "scripted:/no/such/file")
    output_of("controls", ann, "--limit", "4", "--model", script, "--scorer", "fake:")


def test_the_files_of_simulate_and_eval_name_the_reasoner(
    ann: str, script: str, synthesizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_synthesizer(ann, synthesizer)
    (tmp_path / "desk.py").write_text("def reply(messages):\n    return 'Which city?'\n", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    output_of("simulate", ann, "--agent", "desk:reply", "--max-turns", "1", "--model", script, "--out", tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))
    assert manifest["twins"]["ann"]["reasoner"] == synthesizer
    line = (tmp_path / "run" / "conversations.jsonl").read_text("utf-8")
    assert json.loads(line)["exchanges"][0]["answer"]["reasoner"] == synthesizer
    output_of("eval", ann, "--limit", "2", "--model", script, "--scorer", "fake:", "--json", tmp_path / "eval.json")
    assert json.loads((tmp_path / "eval.json").read_text("utf-8"))["models"]["reasoner"] == synthesizer


def test_added_pairs_get_traces_from_the_synthesizer_unless_a_model_is_named(
    ann: str, script: str, synthesizer: str, tmp_path: Path, requests: list[tuple[str, str]]
) -> None:
    set_synthesizer(ann, synthesizer)
    log = tmp_path / "more.jsonl"
    turns = [
        {"speaker": "desk-0", "role": "agent", "text": "Welcome back, what is it today?"},
        {"speaker": "Ann", "role": "user", "text": "hi, is the harbour open tonight"},
    ]
    for number, options in enumerate([(), ("--model", script)]):
        raw = {"conversation_id": f"new-{number}", "started_at": f"2024-05-0{number + 1}T10:00:00+00:00", "turns": turns}
        log.write_text(json.dumps(raw) + "\n", "utf-8")
        output_of("memory", "add", ann, "--from", log, "--max-traces", "1", "--scorer", "fake:", *options)
    [first, *_, last] = [first_reply for first_reply, _ in requests]
    assert (first, last) == (THOUGHTS[0], WEATHER[0])
