"""evals/cli/demo.py: the demonstration repeats no finished step, learns anew what is stale, and replaces no other twin."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import documented_models
import pexpect
import pytest
from cli_runner import error_of
from rich.console import Console

from conftest import recipe, scripted, small_log
from usertwin.evals.cli import demo
from usertwin.evals.demo.guessing import BlindPair
from usertwin.evals.suites.people import corpus_of_test_person, registry
from usertwin.memory import TwinRecord, alearn, existing_twin, list_twins
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.twin.record import update_record
from usertwin.personas import TwinError
from usertwin.personas.files import write_private

TESTS = Path(__file__).resolve().parents[1]
ANN, BOB = demo.DemoPerson("demo", "Ann", "Robin"), demo.DemoPerson("demo-chat", "Bob", "Kim")


def run_demo(home: Path | None = None, *, limit: int = 4, interactive: bool = False, **options: Any) -> str:
    """Run a demonstration and return what it prints."""
    console = Console(file=io.StringIO(), width=120)
    demo.run_demo(console, home=home, limit=limit, interactive=interactive, **options)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def small(log_file: Path, monkeypatch: pytest.MonkeyPatch, repeats_count: None, two_clusters_suffice: None) -> None:
    """Let the demonstration be of Ann and Bob, with models that know nothing."""
    for name, value in {"SOURCE": str(log_file), "ROBIN": ANN, "KIM": BOB, "SHOWN": 2, "ROUNDS": 2}.items():
        monkeypatch.setattr(demo, name, value)
    documented_models.install(monkeypatch.setattr)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lines that somebody types; the input ends after them."""
    lines: list[str] = []

    def read(*_: object) -> str:
        if not lines:
            raise EOFError
        return lines.pop(0)

    monkeypatch.setattr("builtins.input", read)
    return lines


def test_the_demonstration_needs_real_models() -> None:
    assert "USERTWIN_ONLY_SCRIPTED" in error_of("demo")


def test_its_people_are_development_people() -> None:
    for person in (demo.ROBIN, demo.KIM):
        assert person.speaker in registry().corpora["chitchat"].development
        assert corpus_of_test_person(demo.SOURCE, person.speaker) is None


def test_a_limit_below_1_is_reported() -> None:
    assert "--limit is 0; it must be at least 1" in error_of("demo", "--limit", "0")


def test_a_twin_of_another_person_with_the_same_name_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "load_embedder", FakeEmbedder)
    asyncio.run(alearn("demo", small_log(), recipe(), embedder=FakeEmbedder(), model=scripted("I see"), scorer=FakeScorer()))
    with pytest.raises(TwinError, match="is of another person"):
        run_demo()
    assert TwinRecord.load(existing_twin("demo")).recipe.speaker == "Ann"


@pytest.mark.usefixtures("small")
def test_without_a_terminal_it_shows_moments_and_the_table_and_asks_nothing() -> None:
    text = run_demo()
    heads = [line for line in text.splitlines() if "the twin says" in line]
    assert len(heads) == 2
    assert all("Robin really said" in head for head in heads)
    assert text.count("no thats all thank you bye") >= 2  # what Ann really said
    assert text.count("I want to know it soon") == 2
    assert text.count("a remembered moment") == 2
    for arm in ("No memory", "Another person", "Recalled pairs + words", "Recalled pairs", "Persona"):
        assert arm in text
    assert "n=4" in text
    assert "need a terminal" in text
    assert "local:small" not in text
    assert list_twins() == ["demo"]  # the twin of the chat is not learned for nothing


@pytest.mark.usefixtures("small")
def test_a_second_run_computes_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_demo()

    def computed(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(demo, "alearn_with_recipe", computed)
    monkeypatch.setattr(demo, "measure_twin", computed)
    second = run_demo()
    assert "measured on" in second
    assert "measured on" not in first
    moments = [text[text.index("moment 1 of 2") : text.index("2 and 3,")] for text in (first, second)]
    assert moments[0] == moments[1]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("stale", ["recipe", "version", "unfinished"])
def test_a_stale_twin_is_learned_anew(stale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_demo()

    def changed(record: TwinRecord) -> TwinRecord:
        match stale:
            case "recipe":
                return replace(record, recipe=replace(record.recipe, max_triples=3))
            case "version":
                return replace(record, versions={**record.versions, "usertwin": "0.0.1"})
            case _:
                return replace(record, state="interrupted")

    update_record(existing_twin("demo"), changed)
    learned: list[str] = []
    learning = demo.alearn_with_recipe
    monkeypatch.setattr(demo, "alearn_with_recipe", lambda name, *a, **o: (learned.append(name), learning(name, *a, **o))[1])
    run_demo()
    assert learned == ["demo"]
    record = TwinRecord.load(existing_twin("demo"))
    assert (record.state, record.recipe.max_triples, record.settings) == ("complete", demo.MAX_TRIPLES, demo.SETTINGS)
    assert record.versions["usertwin"] != "0.0.1"


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("tuned", [False, True])
def test_other_settings_than_the_demonstrations_are_replaced_unless_tuned(monkeypatch: pytest.MonkeyPatch, tuned: bool) -> None:
    run_demo()
    folder = existing_twin("demo")
    other = replace(demo.SETTINGS, k=3, measured={"turns": 9}) if tuned else replace(demo.SETTINGS, words=None)
    update_record(folder, lambda record: replace(record, settings=other))
    monkeypatch.setattr(demo, "alearn_with_recipe", None)  # nothing is learned again
    text = run_demo()
    record = TwinRecord.load(folder)
    assert record.settings == (other if tuned else demo.SETTINGS)
    assert ("measured on" in text) == tuned  # else it is measured again


@pytest.mark.usefixtures("small")
def test_a_damaged_measurement_is_made_again() -> None:
    run_demo()
    folder = existing_twin("demo")
    text = (folder / "twin.json").read_text("utf-8").replace('"against": null', '"against": 3', 1)
    write_private(folder / "twin.json", text)
    assert "measured on" not in run_demo()


@pytest.mark.usefixtures("small")
def test_where_somebody_answers_there_is_a_game_and_a_chat_with_another_twin(typed: list[str]) -> None:
    typed += ["A", "B", "hello there", "/quit"]
    text = run_demo(interactive=True)
    assert "You found the real turn in " in text
    assert " of 2 pairs (95% interval " in text
    assert "You are a stranger; Kim answers" in text
    assert "Kim  I want to know it soon" in text
    assert list_twins() == ["demo", "demo-chat"]
    assert text.index("really wrote") < text.index("Kim answers") < text.index("No memory")
    assert "local:small is not downloaded for the chat: USERTWIN_ONLY_SCRIPTED forbids it" in text
    assert typed == []


@pytest.mark.usefixtures("small")
def test_the_game_is_about_other_moments_than_those_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[tuple[str, int]]] = []

    def play(console: object, name: str, pairs: list[BlindPair]) -> str:
        asked.append([(pair.moment.conversation_id, pair.moment.position) for pair in pairs])
        return ""

    shown: list[tuple[str, int]] = []
    monkeypatch.setattr(demo, "play", play)
    monkeypatch.setattr(demo, "_chat", lambda *_: None)
    monkeypatch.setattr(demo, "_show_moment", lambda c, u, pair, t: shown.append((pair.conversation_id, pair.position)))
    run_demo(interactive=True)
    assert len(shown) == 2
    assert asked[0]
    assert not set(shown) & set(asked[0])


@pytest.mark.usefixtures("small")
def test_the_reader_may_forbid_the_download(monkeypatch: pytest.MonkeyPatch, typed: list[str]) -> None:
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")
    monkeypatch.setattr(demo, "fetch_obstacle", lambda: "")
    monkeypatch.setattr(demo, "BackgroundFetch", lambda *_: pytest.fail("it downloads"))
    text = run_demo(interactive=True, may_fetch=False)
    assert "local:small is not downloaded for the chat: forbidden by --no-fetch" in text
    assert "the model local (135 million parameters) soon loses the thread" in text


@pytest.mark.usefixtures("small")
def test_the_small_model_is_fetched_while_the_reader_reads(monkeypatch: pytest.MonkeyPatch, typed: list[str]) -> None:
    class Download:
        is_running, bytes_done, error = True, 5, None
        stopped = False

        def __enter__(self) -> Download:
            return self

        def __exit__(self, *_: object) -> None:
            Download.stopped = True

    def sleep(seconds: float) -> None:
        Download.is_running = False

    models: list[str] = []
    open_twin = demo.open_twin

    def opened(console: Any, name: str, home: Any, model: str) -> Any:
        models.append(model)
        return open_twin(console, name, home, model)

    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")
    monkeypatch.setattr(demo, "fetch_obstacle", lambda: "")
    monkeypatch.setattr(demo, "BackgroundFetch", lambda weights: Download())
    monkeypatch.setattr(demo.time, "sleep", sleep)
    monkeypatch.setattr(demo, "acting_model", lambda named: "local" if Download.is_running else "local:small")
    monkeypatch.setattr(demo, "open_twin", opened)
    text = run_demo(interactive=True)
    assert "meanwhile local:small (1.1 GB) is downloaded" in text
    assert "USERTWIN_NO_FETCH=1 forbids it" in text
    assert models == ["local", "local:small"]  # it waited for the download
    assert "local:small plays the twin" in text
    assert Download.stopped


@pytest.mark.usefixtures("small")
def test_ctrl_c_ends_the_waiting_and_the_tiny_model_chats(monkeypatch: pytest.MonkeyPatch, typed: list[str]) -> None:
    class Download:
        is_running, bytes_done, error = True, 5, None

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo.time, "sleep", interrupt)
    console = Console(file=io.StringIO(), width=120)
    download: Any = Download()
    demo._chat(console, None, download)
    assert isinstance(console.file, io.StringIO)
    assert "local plays the twin" in console.file.getvalue()


def test_the_game_and_the_chat_on_a_terminal(log_file: Path, tmp_path: Path) -> None:
    code = f"""
import documented_models
from usertwin.evals.cli import demo, main
from usertwin.evals.metrics import statistics
from usertwin.evals.replay import leak_checks
leak_checks.MIN_WORDS = 10**6
demo.SOURCE, demo.SHOWN, demo.ROUNDS = {str(log_file)!r}, 1, 2
demo.ROBIN, demo.KIM = demo.DemoPerson("demo", "Ann", "Robin"), demo.DemoPerson("demo-chat", "Bob", "Kim")
documented_models.install()
main.main(["demo", "--limit", "4"], prog_name="usertwin")
"""
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "100", "LINES": "40"}
    child = pexpect.spawn(sys.executable, ["-c", code], encoding="utf-8", timeout=120, env=environment)
    child.expect("the twin says")
    child.expect("A or B")
    child.sendline("a")
    child.expect("really wrote")
    child.expect("A or B")
    child.sendline("")
    child.expect("of 1 pairs")
    child.expect("You are a stranger; Kim answers")
    child.sendline("hello there")
    child.expect("Kim  I want to know it soon")
    child.expect("you")  # Ctrl-C ends the chat at the prompt
    child.sendintr()
    child.expect("No memory")
    child.expect("Next: usertwin chat demo")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


@pytest.mark.slow
def test_the_real_tiny_model_answers_at_real_moments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"MAX_TRIPLES": 60, "SHOWN": 1, "ROUNDS": 1}.items():
        monkeypatch.setattr(demo, name, value)
    text = run_demo(tmp_path / "home", limit=2)
    assert "Robin really said" in text
    assert "a remembered moment (similarity 0." in text
    assert "n=2" in text
