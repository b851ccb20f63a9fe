"""Tests of evals/suites/people.py: development people and test people are held apart."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from cli_runner import WEATHER, error_of, learn_command, output_of, write_script
from cli_runner import run as run_command
from invented_suite import Models, suite_file, write_log

from usertwin.evals.cli import demo
from usertwin.evals.records.measured_turns import MANIFEST
from usertwin.evals.suites import people
from usertwin.evals.suites.config import logs_of, read_suite
from usertwin.evals.suites.people import Look, RegisteredCorpus, Registry, looks_at, registered_test_people, registry
from usertwin.evals.suites.run import SuiteRun
from usertwin.memory import TwinRecord, existing_twin
from usertwin.personas import UsageError, load_log
from usertwin.personas.reading import as_type, parse_toml

INVENTED = Registry(
    corpora={"desk": RegisteredCorpus(sources=("log.jsonl",), rule="invented", development=("Ann",), test=("Bob",))}
)
TEST = ('people = ["Ann", "Bob"]', 'people = "test"')
REASON = ('name = "invented"', 'name = "invented"\nreason = "is the twin close?"')
TUNED = ("k = 3\nwindow = 4\n", "")


@pytest.fixture
def invented(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register Ann as a development person of log.jsonl, and Bob as a test person."""
    monkeypatch.setattr(people, "registry", lambda: INVENTED)


def run(path: Path, *changes: tuple[str, str]) -> SuiteRun:
    suite = read_suite(suite_file(path, *changes))
    return SuiteRun(suite, path / "run", models=Models().of(suite))


# The registry ---------------------------------------------------------------------------------------------------------


def test_thirty_or_more_people_of_four_corpora_are_only_tested() -> None:
    corpora = registry().corpora
    assert set(corpora) == {"chitchat", "agent_support", "online_debate", "tech_meetings"}
    assert sum(len(corpus.test) for corpus in corpora.values()) >= 30
    for corpus in corpora.values():
        assert len({*corpus.test}) == len(corpus.test) >= 7
        assert not {*corpus.test} & {*corpus.development}


def test_no_test_person_is_named_in_the_sources_examples_or_experiments() -> None:
    root = Path(__file__).resolve().parents[2]
    files = [path for folder in ("evals", "examples", "memory", "personas", "simulator") for path in (root / folder).rglob("*")]
    texts = {p: p.read_text("utf-8") for p in files if p.suffix in {".py", ".toml", ".md"} and p.name != "people.toml"}
    named = [
        (person, path.name)
        for corpus in registry().corpora.values()
        for person in corpus.test
        for path, text in texts.items()
        if person in text or ("-" in person and f"{person[:8]}…" in text)
    ]
    assert named == []


def test_every_look_names_registered_test_people_with_a_date_and_a_reason() -> None:
    for look in registry().looks:
        assert {*look.people} <= {*registry().corpora[look.corpus].test}
        assert look.date.startswith("2026-")
        assert look.reason


def test_test_people_of_the_built_in_corpus_can_be_learned() -> None:
    log = load_log("chitchat")
    assert {*registry().corpora["chitchat"].test} <= set(log.turn_counts())
    assert {*registry().corpora["chitchat"].development} <= set(log.turn_counts())


@pytest.mark.usefixtures("invented")
def test_a_copy_under_another_name_is_the_same_corpus(tmp_path: Path) -> None:
    copy = load_log(str(write_log(tmp_path / "copy.jsonl", "Ann", "Bob")))
    assert INVENTED.corpus_of(copy.source) is None
    assert INVENTED.corpus_of(copy.source, copy) == "desk"
    assert registered_test_people([(copy.source, "Bob"), (copy.source, "Ann")], {copy.source: copy}) == {"desk": ("Bob",)}


def test_a_look_is_printed_as_lines_that_the_registry_reads() -> None:
    [look] = looks_at({"desk": ('Bob "the bus"', "Zoë")}, "is it close?")
    [row] = parse_toml(look.to_toml())["looks"]
    assert as_type(Look, row) == look


def test_a_damaged_registry_is_refused(tmp_path: Path) -> None:
    (tmp_path / "people.toml").write_text("[corpora.x]\nsources = 3\n", "utf-8")
    with pytest.raises(UsageError, match=r"people\.toml"):
        registry(tmp_path / "people.toml")


# Suites ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("invented")
def test_a_suite_takes_the_registered_people(tmp_path: Path) -> None:
    for kind, person in (("development", "Ann"), ("test", "Bob")):
        suite_run = run(tmp_path, (TEST[0], f'people = "{kind}"'), REASON)
        assert [one.speaker for one in suite_run.people(logs_of(suite_run.suite))] == [person]


def test_registered_people_of_an_unknown_corpus_are_refused(tmp_path: Path) -> None:
    suite_run = run(tmp_path, TEST, REASON)
    with pytest.raises(UsageError, match=r'log\.jsonl: people = "test" needs a registered corpus \(chitchat, .*\); name the'):
        suite_run.people(logs_of(suite_run.suite))


def test_a_look_at_test_people_needs_a_reason(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'reason: test people are looked at for a reason; add reason = "\.\.\."'):
        read_suite(suite_file(tmp_path, TEST))


@pytest.mark.usefixtures("invented")
@pytest.mark.parametrize("named", [(TEST, REASON), ()])
def test_a_suite_refuses_to_tune_on_test_people(tmp_path: Path, named: tuple[tuple[str, str], ...]) -> None:
    suite_run = run(tmp_path, TUNED, *named)
    with pytest.raises(UsageError, match=r'desk: "Bob" is a test person, and no setting is tuned .* set k and window'):
        suite_run.people(logs_of(suite_run.suite))


@pytest.mark.usefixtures("invented")
def test_a_suite_tunes_on_development_people(tmp_path: Path) -> None:
    suite_run = run(tmp_path, TUNED, (TEST[0], 'people = "development"'))
    assert [one.speaker for one in suite_run.people(logs_of(suite_run.suite))] == ["Ann"]


def measured(path: Path, *changes: tuple[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the suite without replies; return its result and its manifest."""
    result = asyncio.run(run(path, ("replies = 3", "replies = 0"), *changes).run())
    return result, json.loads((path / "run" / MANIFEST).read_text("utf-8"))


@pytest.mark.usefixtures("invented")
def test_a_look_is_in_the_manifest_and_in_the_result(tmp_path: Path) -> None:
    result, manifest = measured(tmp_path, TEST, REASON)
    [look] = manifest["looks"]
    assert (look["corpus"], look["people"], look["reason"]) == ("desk", ["Bob"], "is the twin close?")
    assert result["looks"] == manifest["looks"]
    assert not [warning for warning in result["warnings"] if "test p" in warning]


@pytest.mark.usefixtures("invented")
def test_a_test_person_without_the_declaration_is_said_in_the_report(tmp_path: Path) -> None:
    result, manifest = measured(tmp_path)
    assert [look["people"] for look in manifest["looks"]] == [["Bob"]]
    assert '1 registered test person of desk measured without people = "test": Bob' in result["warnings"]
    assert "registered test person" in (tmp_path / "run" / "report.md").read_text("utf-8")


def test_a_suite_of_unregistered_people_has_no_look(tmp_path: Path) -> None:
    result, manifest = measured(tmp_path)
    assert (result["looks"], manifest["looks"]) == ([], [])


# The commands of one twin ---------------------------------------------------------------------------------------------


NEVER_TUNED = 'desk: "Bob" is a test person, and no setting is tuned on test people; '


def learn_bob(log: Path, *options: str) -> tuple[str | Path, ...]:
    return learn_command(log, "scripted:unused", "--traces", "none", *options, name="bob", speaker="Bob")


@pytest.mark.usefixtures("invented", "repeats_count")
def test_learn_does_not_tune_on_a_test_person_and_tune_refuses(log_file: Path) -> None:
    sentence = f"{NEVER_TUNED}the twin keeps the default settings"
    for text in (run_command(*learn_bob(log_file, "--dry-run")).stderr, output_of(*learn_bob(log_file))):
        assert text.count(sentence) == 1
        assert "are scored under a few settings" not in text
    assert TwinRecord.load(existing_twin("bob")).settings is None
    error = error_of("tune", "bob", "--scorer", "fake:")
    assert error.startswith(f"{NEVER_TUNED}tune a twin of a development person, and give this one its settings by hand: Sim")
    assert sentence not in output_of(*learn_bob(log_file, "--overwrite", "--tune-turns", "0"))


@pytest.mark.usefixtures("invented", "repeats_count")
def test_eval_of_a_test_person_prints_the_look_for_the_registry(log_file: Path, tmp_path: Path) -> None:
    output_of(*learn_bob(log_file))
    script = write_script(tmp_path, *WEATHER)
    measure = ("eval", "bob", "--model", script, "--scorer", "fake:", "--limit", "2", "--generate", "0")
    for command in (measure, (*measure, "--out", tmp_path / "run")):
        text = output_of(*command)
        assert text.count("this was a look at test people; add these lines to evals/people.toml:\n[[looks]]\n") == 1
        [row] = parse_toml(text[text.index("[[looks]]") :])["looks"]
        look = as_type(Look, row)
        assert (look.corpus, look.people) == ("desk", ("Bob",))
    assert "usertwin eval bob" in output_of(*measure)


@pytest.mark.usefixtures("invented", "repeats_count")
def test_commands_of_other_people_say_nothing_of_the_registry(log_file: Path, tmp_path: Path) -> None:
    script = write_script(tmp_path, *WEATHER)
    text = output_of(*learn_command(log_file, script, "--traces", "none"))
    text += output_of("eval", "sam", "--model", script, "--scorer", "fake:", "--limit", "2", "--generate", "0")
    assert "test p" not in text
    settings = TwinRecord.load(existing_twin("sam")).settings
    assert settings is not None
    assert settings.measured is not None


def test_a_log_with_the_name_of_a_corpus_is_not_that_corpus(tmp_path: Path) -> None:
    corpus = RegisteredCorpus(sources=("log.jsonl",), rule="invented", development=("Cid",), test=("Bob", "Dan", "Eve"))
    found = Registry(corpora={"desk": corpus})
    stranger = load_log(str(write_log(tmp_path / "log.jsonl", "Ann")))
    assert found.corpus_of("log.jsonl", stranger) is None
    assert found.corpus_of("log.jsonl") == "desk"  # nothing is known of the speakers
    part = load_log(str(write_log(tmp_path / "log.jsonl", "Ann", "Bob")))
    assert found.corpus_of("log.jsonl", part) == "desk"
    assert found.corpus_of("other.jsonl", part) is None  # one of three test people may be somebody else


@pytest.mark.usefixtures("invented")
def test_the_log_of_a_twin_is_only_read_if_a_test_person_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(people, "load_log", lambda source, **_: read.append(source) or load_log(source))
    path = str(write_log(tmp_path / "copy.jsonl", "Ann", "Bob"))
    assert people.corpus_of_test_person(path, "Ann") is None
    assert read == []
    assert people.corpus_of_test_person(path, "Bob") == "desk"
    assert people.corpus_of_test_person("gone/log.jsonl", "Bob") == "desk"  # by its name
    assert people.corpus_of_test_person("gone/copy.jsonl", "Bob") is None
    assert read == [path, "gone/log.jsonl", "gone/copy.jsonl"]


def test_the_demonstration_is_of_development_people() -> None:
    for person in (demo.ROBIN, demo.KIM):
        assert people.corpus_of_test_person(demo.SOURCE, person.speaker) is None
        assert person.speaker in registry().corpora["chitchat"].development
