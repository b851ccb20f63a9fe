"""Tests of evals/suites/join.py and evals/records/joined_runs.py: parts of a suite have the figures of the whole suite."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cli_runner import error_of, output_of
from invented_run import result as invented_result
from invented_suite import TRACED, WORDS, Models, suite_file, write_log

from usertwin.evals.metrics.arm_discriminators import DISCRIMINATORS
from usertwin.evals.records.joined_runs import read_joined, write_joined
from usertwin.evals.records.measured_turns import read_result
from usertwin.evals.suites.config import Suite, read_suite
from usertwin.evals.suites.join import join_runs, read_part, with_corpora
from usertwin.evals.suites.run import SuiteRun
from usertwin.personas import UsageError

SHOP, BANK = ("Ann", "Bob", "Cid"), ("Dan", "Eve", "Fay")
#: Six people in two corpora, with traces, and tests over all of them.
SIX = (
    TRACED,
    ('name = "invented"', 'name = "invented"\nquestion = "recalled_pairs - no_memory"'),
    ('people = ["Ann", "Bob"]', 'people = ["Ann", "Bob", "Cid"]\n\n[[corpora]]\nname = "bank"\nfrom = "bank.jsonl"\n'
     'people = ["Dan", "Eve", "Fay"]'),
    ("replies = 3", "replies = 4"),  # of three people: enough for a discriminator
    ("sanity = 3", "sanity = 3\nchoices = 3"),
    ('embedder = "fake:64"', 'embedder = "fake:64"\n\n[traces]\npairs = 12\ncandidates = 2'),
)  # fmt: skip
Result = dict[str, Any]


def suite_of_six(folder: Path) -> Suite:
    write_log(folder / "log.jsonl", *SHOP)
    write_log(folder / "bank.jsonl", *BANK)
    return read_suite(suite_file(folder, *SIX))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three finished runs: of the whole suite, and of each corpus. Tests only read it."""
    folder = tmp_path_factory.mktemp("six")
    suite = suite_of_six(folder)
    for name, corpora in {"whole": (), "shop": ("shop",), "bank": ("bank",)}.items():
        part = with_corpora(suite, corpora)
        asyncio.run(SuiteRun(part, folder / name, models=Models().of(part)).run())
    return folder


@pytest.fixture(scope="module")
def parts(folder: Path) -> dict[str, Result]:
    """The results of the three runs."""
    return {name: read_result(folder / name) for name in ("whole", "shop", "bank")}


def joined(parts: Mapping[str, Result], *names: str) -> Result:
    return join_runs([(name, parts[name]) for name in names])


def leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values in a JSON value with their places."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, f"{at}/{key}")
    else:
        yield at, value


def assert_same(result: Mapping[str, Any], expected: Mapping[str, Any], *keys: str, but: tuple[str, ...] = ()) -> None:
    """Check that parts of two results agree but for rounding, without the measures in `but`."""
    for key in keys:
        both = [
            {place: leaf for place, leaf in leaves(own[key]) if not {*place.split("/")} & {*but}} for own in (result, expected)
        ]
        assert both[0].keys() == both[1].keys(), key
        for place, leaf in both[1].items():
            assert both[0][place] == (pytest.approx(leaf, rel=1e-6, abs=1e-6) if isinstance(leaf, float) else leaf), key + place


#: The parts of a result that are of all people together.
OF_ALL = ("arms", "paired", "people", "family", "traces", "turns", "conversations", "spread", "intervals_over", "question")


# The figures ----------------------------------------------------------------------------------------------------------


def test_a_single_run_keeps_all_of_its_figures(parts: dict[str, Result]) -> None:
    same = joined(parts, "whole")
    kept = ("discriminator", "leakage", "endings", "models", "settings", "versions", "prompts", "looks", "warnings", "summary")
    assert_same(same, parts["whole"], *OF_ALL, *kept, "twin_arm", "seed", "name", "measured_at")


def test_the_people_of_one_run_in_two_parts_have_its_figures(parts: dict[str, Result]) -> None:
    """The discriminators' too: each person's AUC is the same, wherever the people stand."""
    whole = parts["whole"]
    halves = [
        {**whole, "people": {person: own for person, own in whole["people"].items() if person.startswith(corpus)}}
        for corpus in ("shop", "bank")
    ]
    assert [len(half["people"]) for half in halves] == [3, 3]
    assert_same(join_runs([("a", halves[0]), ("b", halves[1])]), whole, "arms", "paired", "people", "family")


def test_runs_of_each_corpus_have_the_figures_of_one_run_of_both(parts: dict[str, Result]) -> None:
    both = joined(parts, "shop", "bank")
    assert_same(both, parts["whole"], *OF_ALL, "leakage", "endings", but=(*DISCRIMINATORS, "name"))
    assert {row["bits_per_char"]["n"] for row in both["arms"].values()} == {36}
    assert all("p_holm" in both["paired"][name]["bits_per_char"] for name in both["family"]["contrasts"])
    assert both["intervals_over"] == "people"
    assert parts["shop"]["intervals_over"] == "conversations"


def test_the_discriminators_are_those_of_each_run(parts: dict[str, Result]) -> None:
    both = joined(parts, "bank", "shop")
    for name in DISCRIMINATORS:
        own = [part["people"][person]["arms"]["recon"][name]["value"] for part in (parts["shop"], parts["bank"])
               for person in part["people"]]  # fmt: skip
        assert both["arms"]["recon"][name]["value"] == pytest.approx(sum(own) / 6)
    people = {**parts["shop"]["discriminator"]["people"], **parts["bank"]["discriminator"]["people"]}
    assert both["discriminator"]["people"] == people
    for control in ("control", "context_control", "misplaced"):
        estimate, values = both["discriminator"][control], [own[control]["value"] for own in people.values()]
        assert estimate["value"] == pytest.approx(sum(values) / 6)
        assert estimate["low"] < estimate["value"] < estimate["high"]
    assert joined(parts | {"shop": {**parts["shop"], "discriminator": None}}, "shop", "bank")["discriminator"] is None


def test_a_run_without_a_trace_has_none_at_all_of_its_turns(parts: dict[str, Result]) -> None:
    shown = parts["shop"]["traces"]["recon"]
    assert (shown["n"], shown["value"] > 0) == (18, True)
    both = joined(parts | {"bank": {**parts["bank"], "traces": {}}}, "shop", "bank")
    assert both["traces"] == {"recon": {"value": pytest.approx(shown["value"] / 2), "n": 36}}


def test_warnings_of_few_people_go_and_those_of_single_runs_stay(parts: dict[str, Result]) -> None:
    assert any("3 people" in warning for warning in parts["shop"]["warnings"])
    judged = {**parts["shop"], "judge": {"model": "x"}, "warnings": [*parts["shop"]["warnings"], "a leak"]}
    other = {**parts["bank"], "versions": {**parts["bank"]["versions"], "torch": "0"}}
    warnings = joined({"shop": judged, "bank": other}, "shop", "bank")["warnings"]
    assert not any("3 people" in warning for warning in warnings)
    assert warnings[-3:] == [
        "a leak", "the runs used different versions of torch", "judge: the figures are in the reports of the single runs",
    ]  # fmt: skip


# The file -------------------------------------------------------------------------------------------------------------


def test_the_file_is_read_again_and_can_be_joined_with_later_runs(parts: dict[str, Result], tmp_path: Path) -> None:
    both = joined(parts, "shop", "bank")
    write_joined(tmp_path / "both.json", both)
    again = read_joined(tmp_path / "both.json")
    small = {
        name: {key: own[key] for key in ("turns", "conversations")}
        | {
            section: {
                row: {measure: {key: estimate[key] for key in ("value", "n")} for measure, estimate in measures.items()}
                for row, measures in own[section].items()
            }
            for section in ("arms", "paired")
        }
        for name, own in both["people"].items()
    }
    assert_same(again, {**both, "people": small}, *both)
    later = {person.replace("shop", "new"): own for person, own in parts["shop"]["people"].items()}
    parts = {"file": again, "later": {**parts["shop"], "people": later}, "shop": parts["shop"], "bank": parts["bank"]}
    assert_same(joined(parts, "file", "later"), joined(parts, "shop", "bank", "later"), "arms", "paired", "family", "turns")


def test_the_file_holds_no_text_of_people(parts: dict[str, Result], tmp_path: Path) -> None:
    write_joined(tmp_path / "both.json", joined(parts, "shop", "bank"))
    text = (tmp_path / "both.json").read_text("utf-8")
    assert "shop/Ann" in text
    spoken = [word for words in WORDS.values() for word in words.split()]
    assert not [word for word in spoken if f"{word} " in text]
    assert "parcel" not in text


def _without_key(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda raw: raw["people"].pop(key)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda raw: raw.update(kind="closeness"), "kind: "),
        (lambda raw: raw.update(format=99), "is of format 99, but this version reads format 1; join the runs again"),
        (_without_key("arms"), "people.arms: "),
        (lambda raw: raw["people"]["turns"].pop(), "people: lists of different lengths; join the runs again"),
        (
            lambda raw: raw["people"]["arms"]["recon"]["chrf"]["n"].pop(),
            "people: lists of different lengths; join the runs again",
        ),
        (lambda raw: raw["people"]["distances"]["recon"].append([0, 9, 1.0, 1.0]), "people.distances names a person"),
        (lambda raw: raw.pop("twin_arm"), "twin_arm: "),
    ],
)
def test_a_damaged_file_is_refused(
    parts: dict[str, Result], tmp_path: Path, damage: Callable[[dict[str, Any]], None], reason: str
) -> None:
    path = tmp_path / "both.json"
    write_joined(path, joined(parts, "shop", "bank"))
    raw = json.loads(path.read_text("utf-8"))
    damage(raw)
    path.write_text(json.dumps(raw), "utf-8")
    with pytest.raises(UsageError) as error:
        read_part(path)
    assert str(error.value).startswith(f"{path}: ")
    assert reason in str(error.value)


# What is not joined ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda own: own["settings"].update(turns=7),
            "bank: differs from shop in settings.turns (6, 7); join runs of one suite",
        ),
        (lambda own: own["models"].update(scorer="local"), "bank: differs from shop in models.scorer (fake:, local); join"),
        (lambda own: own["prompts"].update(tau2="9"), "bank: differs from shop in prompts.tau2 ("),
        (lambda own: own.update(seed=1), "bank: differs from shop in seed (0, 1); join"),
        (
            lambda own: own.update(twin_arm="recalled_pairs"),
            "bank: differs from shop in twin_arm (recon, recalled_pairs); join",
        ),
        (lambda own: own["people"].update({"shop/Ann": own["people"]["bank/Dan"]}), 'bank: "shop/Ann" is in shop too, and a'),
    ],
)
def test_runs_that_differ_are_refused_in_one_sentence(
    parts: dict[str, Result], change: Callable[[Result], None], sentence: str
) -> None:
    other = json.loads(json.dumps(parts["bank"]))
    change(other)
    with pytest.raises(UsageError) as error:
        joined({"shop": parts["shop"], "bank": other}, "shop", "bank")
    assert str(error.value).startswith(sentence)


def test_settings_tuned_for_each_person_are_no_difference(parts: dict[str, Result]) -> None:
    tuned = {
        name: {**part, "settings": {**part["settings"], "k": dict.fromkeys(part["people"], 4)}} for name, part in parts.items()
    }
    settings = joined(tuned, "shop", "bank")["settings"]
    assert settings["k"] == dict.fromkeys(parts["whole"]["people"], 4)
    assert settings["triples"] == parts["whole"]["settings"]["triples"]


def test_fewer_than_five_people_are_refused(parts: dict[str, Result]) -> None:
    with pytest.raises(UsageError, match="shop: the runs have 3 people in all, and intervals over people need 5; add runs"):
        joined(parts, "shop")


def test_an_unknown_corpus_is_refused(tmp_path: Path) -> None:
    suite = suite_of_six(tmp_path)
    assert with_corpora(suite, ()) == suite
    assert [corpus.name for corpus in with_corpora(suite, ("bank",)).corpora] == ["bank"]
    with pytest.raises(UsageError, match='--corpus: the suite has no corpus "bar"; there are shop, bank'):
        with_corpora(suite, ("bank", "bar"))


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command_prints_the_table_and_writes_both_files(folder: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "both.json", tmp_path / "both.md"
    text = output_of("join", folder / "shop", folder / "bank", "--out", out, "--report", report)
    assert "How close is invented?" in text
    assert "intervals: 95%, over people" in text
    assert f"written to {out} and {report}" in text
    assert "6 people" in report.read_text("utf-8")
    assert output_of("join", out, "--out", tmp_path / "again.json").count("Recalled pairs") >= 1
    sentence = error_of("join", out, folder / "shop", "--out", tmp_path / "twice.json")
    assert sentence.startswith(f'{folder / "shop"}: "shop/Ann" is in {out} too')
    assert not (tmp_path / "twice.json").exists()


def test_a_run_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    assert "holds no run" in error_of("join", tmp_path, "--out", tmp_path / "out.json")


def test_an_invented_run_of_an_earlier_version_cannot_be_joined_with_a_present_one(parts: dict[str, Result]) -> None:
    with pytest.raises(UsageError, match="old: differs from shop in twin_arm"):
        join_runs([("shop", parts["shop"]), ("old", invented_result())])
