"""evals/suites/run.py and measurer.py: a run is finished or has no report, and nothing is asked twice."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from invented_suite import JUDGED, TRACED, Models, learned_twin, small_suite, speaks, talk, write_log

from conftest import WeighingScorer, telling
from usertwin.evals.records.measured_turns import MANIFEST, RESULT, VERDICTS, read_result, read_turns
from usertwin.evals.records.run_folder import NOTES, PAGE, exclusive_run
from usertwin.evals.suites.config import Suite, logs_of
from usertwin.evals.suites.run import SuiteRun, plan_of
from usertwin.memory import Triple, TripleStore
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.personas import LogError, ModelError, TwinError, UsageError, UsertwinError
from usertwin.personas.pairs import pairs_of_log

#: When it was measured is all that two runs of the same suite may differ in.
TIMES = {"measured_at"}


def run(suite: Suite, folder: Path, models: Models | None = None, **options: Any) -> dict[str, Any]:
    loaded = (models or Models()).of(suite)
    return asyncio.run(SuiteRun(suite, folder, models=loaded, **options).run())


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in TIMES}


def state(folder: Path) -> str:
    return json.loads((folder / MANIFEST).read_text("utf-8"))["state"]


def assert_unfinished(folder: Path) -> None:
    """There is nothing in it that looks whole."""
    assert state(folder) == "interrupted"
    assert not any((folder / name).exists() for name in (PAGE, NOTES, RESULT))
    with pytest.raises(UsageError, match="was not finished; the same command that began it goes on where it stopped"):
        read_result(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Models]:
    """A finished run with a judge, its result, and its models; nobody changes it."""
    folder, models = tmp_path_factory.mktemp("whole"), Models()
    return folder / "run", run(small_suite(folder, JUDGED), folder / "run", models), models


# What a finished run holds -----------------------------------------------------------------------------------------------


def test_a_finished_run_is_complete_and_has_every_file(whole: tuple[Path, dict[str, Any], Models]) -> None:
    folder, result, _ = whole
    assert state(folder) == "complete"
    for name in (PAGE, NOTES, VERDICTS, "people/0.jsonl", "people/0.json", "people/1.jsonl", "people/1.json"):
        assert (folder / name).stat().st_size > 0
    assert read_result(folder) == result
    assert len(read_turns(folder)) == result["turns"] == 12


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers(inner)
    elif isinstance(value, float):
        yield value


def test_the_result_is_plain_json_with_finite_numbers_and_every_part(whole: tuple[Path, dict[str, Any], Models]) -> None:
    folder, result, _ = whole
    assert json.loads((folder / RESULT).read_text("utf-8")) == result
    assert all(math.isfinite(number) for number in numbers(result))
    assert {
        "arms", "paired", "people", "family", "turns", "conversations", "twin_arm", "seed", "format", "name", "models",
        "settings", "versions", "measured_at", "judge", "leakage", "endings", "drift", "transfer", "warnings", "summary",
    } <= set(result)  # fmt: skip
    assert list(result["people"]) == ["shop/Ann", "shop/Bob"]
    assert list(result["arms"]) == ["no_memory", "other_person", "recalled_pairs"]
    assert (result["twin_arm"], result["settings"]["k"], result["settings"]["window"]) == ("recalled_pairs", 3, 4)
    assert all(estimate["n"] > 0 for measures in result["arms"].values() for estimate in measures.values())


def test_the_manifest_says_what_was_run_and_holds_nothing_secret(whole: tuple[Path, dict[str, Any], Models]) -> None:
    manifest = json.loads((whole[0] / MANIFEST).read_text("utf-8"))
    assert manifest["people"] == ["shop/Ann", "shop/Bob"]
    assert set(manifest["sources"]) == {"shop"}
    assert manifest["suite"]["arms"] == ["no_memory", "other_person", "recalled_pairs"]
    assert {"openevals", "tau2"} <= set(manifest["prompts"])


def test_a_persons_own_words_bring_the_twin_nearer_than_anybody_elses(whole: tuple[Path, dict[str, Any], Models]) -> None:
    paired = whole[1]["paired"]
    for other in ("no_memory", "other_person"):
        assert paired[f"recalled_pairs - {other}"]["bits_per_char"]["high"] < 0


def test_the_report_tells_the_summary_and_names_everybody(whole: tuple[Path, dict[str, Any], Models]) -> None:
    folder, result, _ = whole
    notes = (folder / NOTES).read_text("utf-8")
    assert result["summary"].split("(")[0].strip() in notes
    assert all(person in notes for person in result["people"])


# The same command again ----------------------------------------------------------------------------------------------------


def test_the_same_suite_again_asks_nothing_and_says_the_same(
    whole: tuple[Path, dict[str, Any], Models], tmp_path: Path
) -> None:
    folder, result, _ = whole
    shutil.copytree(folder.parent, tmp_path / "copy")
    suite = small_suite(folder.parent, JUDGED)
    again = Models()
    assert timeless(run(suite, tmp_path / "copy" / "run", again)) == timeless(result)
    assert again.calls == (0, 0)
    assert state(tmp_path / "copy" / "run") == "complete"


@pytest.mark.parametrize("most", [(8, None), (21, None), (None, 25)], ids=str)
def test_what_a_model_that_goes_down_interrupts_is_finished_without_asking_anything_again(
    tmp_path: Path, whole: tuple[Path, dict[str, Any], Models], most: tuple[int | None, int | None]
) -> None:
    suite = small_suite(tmp_path, JUDGED)
    down = Models(most=most)
    with pytest.raises(ModelError, match="the model is down; start it again"):
        run(suite, tmp_path / "run", down)
    assert_unfinished(tmp_path / "run")
    answered = tuple(min(asked, limit) if limit is not None else asked for asked, limit in zip(down.calls, most, strict=True))
    up = Models()
    result = run(suite, tmp_path / "run", up)
    _, expected, models = whole
    twice = tuple(a + b - c for a, b, c in zip(answered, up.calls, models.calls, strict=True))
    assert twice == ((1, 0) if most[0] == 21 else (0, 0))  # two samples of a reply are one question, asked whole or not
    assert alike(result) == alike(expected)
    assert state(tmp_path / "run") == "complete"


def alike(result: dict[str, Any]) -> dict[str, Any]:
    """Without when, and where the files lie."""
    told = json.dumps({key: value for key, value in timeless(result).items() if key != "models"})
    return json.loads(told.replace(Path(result["models"]["action"].removeprefix("scripted:")).parent.as_posix(), ""))


def test_a_drift_that_is_interrupted_does_not_ask_again_what_was_said(tmp_path: Path) -> None:
    suite = small_suite(tmp_path, ("replies = 3", "replies = 0\ndrift = 2"))
    run(suite, tmp_path / "whole", models := Models())
    with pytest.raises(ModelError):
        run(suite, tmp_path / "run", Models(most=(5, None)))
    assert_unfinished(tmp_path / "run")
    result = run(suite, tmp_path / "run", up := Models())
    assert up.calls[0] == models.calls[0] - 5
    assert set(result["drift"]) == {"1", "3"}
    assert result["drift"]["3"]["difference"]["n"] == 4


def test_a_record_that_a_kill_cut_short_is_measured_again(tmp_path: Path) -> None:
    suite = small_suite(tmp_path)
    expected = run(suite, tmp_path / "run")
    records = tmp_path / "run" / "people" / "0.jsonl"
    records.with_suffix(".json").unlink()
    lines = records.read_text("utf-8").splitlines(keepends=True)
    records.write_text("".join(lines[:3]) + lines[3][:40], "utf-8")
    assert timeless(run(suite, tmp_path / "run")) == timeless(expected)
    assert [json.loads(line) for line in records.read_text("utf-8").splitlines()] == [json.loads(line) for line in lines]


def test_a_run_that_is_begun_again_and_fails_has_no_report_of_before(tmp_path: Path) -> None:
    suite = small_suite(tmp_path)
    run(suite, tmp_path / "run")
    assert (tmp_path / "run" / PAGE).exists()
    for path in (tmp_path / "run" / "people").iterdir():
        path.unlink()
    (tmp_path / "run" / "answers.sqlite").unlink()
    with pytest.raises(ModelError):
        run(suite, tmp_path / "run", Models(most=(3, None)))
    assert_unfinished(tmp_path / "run")


# What is refused -----------------------------------------------------------------------------------------------------------


def refused(suite: Suite, folder: Path, error: type[UsertwinError] = UsageError) -> str:
    models = Models()
    with pytest.raises(error) as said:
        run(suite, folder, models)
    assert models.calls == (0, 0)
    assert "\n" not in str(said.value)
    return str(said.value)


def test_two_processes_do_not_go_on_with_one_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with exclusive_run(folder):
        assert refused(small_suite(tmp_path), folder).startswith(f"{folder}: another process works on this run; wait until")
    with exclusive_run(folder):  # it is free again
        pass
    assert not list(folder.iterdir())


def test_a_folder_of_another_suite_is_refused_and_what_differs_is_said(tmp_path: Path) -> None:
    run(small_suite(tmp_path, ("replies = 3", "replies = 0")), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    said = refused(small_suite(tmp_path, ("turns = 6", "turns = 5")), tmp_path / "run")
    assert said.endswith('holds a run of another suite (what differs: "turns", "replies"); name another folder with --out')
    assert {path: path.read_bytes() for path in before} == before  # the run that is there stays whole


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ('{"format": 2}', "a run of format 2, and this version reads format 1; run the suite again elsewhere"),
        ("[]", "a run of format None"),
        ("{", "manifest.json: cannot be read"),
        ('{"kind": "simulate"}', "holds conversations of `usertwin simulate`, and no run of a suite"),
        ('{"format": 1}', "holds a run of another suite"),
    ],
)
def test_a_folder_of_another_version_or_kind_is_refused(tmp_path: Path, manifest: str, said: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / MANIFEST).write_text(manifest, "utf-8")
    assert said in refused(small_suite(tmp_path), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [MANIFEST]


def test_a_log_that_was_changed_since_is_noticed(tmp_path: Path) -> None:
    suite = small_suite(tmp_path, ("replies = 3", "replies = 0"))
    run(suite, tmp_path / "run")
    write_log(tmp_path / "log.jsonl", "Ann", "Bob", more=[talk("Ann", 20)])
    said = refused(suite, tmp_path / "run")
    assert said.startswith(f"{tmp_path / 'log.jsonl'}: is not what it was when the run in {tmp_path / 'run'} was begun")
    assert state(tmp_path / "run") == "complete"


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (("log.jsonl", "nowhere.jsonl"), LogError, r"nowhere\.jsonl"),
        (('["Ann", "Bob"]', '["Ann", "Eve"]'), LogError, 'nobody called "Eve" .* most frequent speakers are "desk"'),
        (("[models]", 'twins = ["nobody"]\n[models]'), TwinError, "nobody"),
        (('scorer = "fake:"', 'scorer = "locl"'), UsageError, '"locl" cannot score texts'),
        (('scorer = "fake:"', 'scorer = "fake:"\njudge = "gpt-9"'), UsageError, '"gpt-9" is no model\'s name'),
        (('scorer = "fake:"', 'scorer = "fake:"\njudge = "scripted:no.txt"'), ModelError, r"no\.txt: the script cannot"),
        (('scorer = "fake:"', 'scorer = "fake:"\njudge = "openai:x"'), ModelError, "openai:x"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_before_anything_is_made(
    tmp_path: Path, change: tuple[str, str], error: type[UsertwinError], said: str
) -> None:
    suite = small_suite(tmp_path, change)
    with pytest.raises(error, match=said):
        asyncio.run(SuiteRun(suite, tmp_path / "run").run())
    assert not (tmp_path / "run").exists()


def test_somebody_who_would_be_measured_twice_is_refused(tmp_path: Path, ann: str) -> None:
    suite = small_suite(tmp_path, ("[models]", f'twins = ["{ann}"]\n[models]'), ('name = "shop"', 'name = "ann"'))
    assert '"ann/Ann" would be measured twice' in refused(suite, tmp_path / "run")


def test_what_a_suite_takes_is_told_and_nothing_is_made(tmp_path: Path) -> None:
    suite = small_suite(tmp_path, JUDGED)
    logs = logs_of(suite)
    people = SuiteRun(suite, tmp_path / "run").people(logs)
    assert [person.label for person in people] == ["shop/Ann", "shop/Bob"]
    said = plan_of(suite, logs, people)
    assert "about 36 turns scored under fake:" in said
    assert any(line.startswith("36 replies written by") for line in said)
    assert not (tmp_path / "run").exists()


# Judges --------------------------------------------------------------------------------------------------------------------


def test_the_pairs_of_which_it_is_known_come_out_as_they_must_with_a_sane_judge(tmp_path: Path) -> None:
    suite = small_suite(
        tmp_path, JUDGED, ("turns = 6", "turns = 0"), ("replies = 3", "replies = 12"), ("sanity = 3", "sanity = 24")
    )
    judge = run(suite, tmp_path / "run")["judge"]
    assert {kind: row["holds"] for kind, row in judge["sanity"].items()} == {
        "identical": True, "real": True, "same_arm": True, "another_person": True,
    }  # fmt: skip
    assert (judge["usable"], judge["warnings"]) == (True, [])
    assert judge["first"]["value"] == 0.5
    assert judge["consistent"]["value"] == 1.0
    assert judge["contrasts"]["recalled_pairs - other_person"]["win"]["low"] > 0.5


def test_a_judge_that_always_says_the_first_is_called_of_no_use_and_the_report_says_so(tmp_path: Path) -> None:
    result = run(small_suite(tmp_path, JUDGED), tmp_path / "run", Models(judge=lambda prompt, seed: '{"closer": "1"}'))
    judge = result["judge"]
    assert (judge["usable"], judge["first"]["value"]) == (False, 1.0)
    [warning] = [one for one in result["warnings"] if 'answers "1" in 100%' in one]
    assert "its figures are not to be used" in warning
    for name in (PAGE, NOTES):
        assert "its figures are not to be used" in (tmp_path / "run" / name).read_text("utf-8")


def test_without_a_judge_everything_else_is_there(tmp_path: Path) -> None:
    result = run(small_suite(tmp_path), tmp_path / "run")
    assert result["judge"] is None
    assert "chrf" in result["arms"]["recalled_pairs"]
    assert not (tmp_path / "run" / VERDICTS).exists()


# Arms, traces, twins -------------------------------------------------------------------------------------------------------


def proposes(mood: str) -> Callable[[str, int], str]:
    """What a model says that gives the same trace for everything, and replies as the others do."""
    trace = f"wanted to be done with it soon and was {mood} about all of that"
    return lambda prompt, seed: trace if prompt.endswith("Before I wrote that, I") else speaks(prompt, seed)


def test_traces_of_two_proposers_are_compared_under_two_scorers(tmp_path: Path) -> None:
    tables = """
        [traces]
        moments = 6
        candidates = 2
        [transfer]
        proposers = ["scripted:action.txt", "scripted:b.txt"]
        scorers = ["fake:", "local"]
        turns = 4
        [[corpora]]
    """
    suite = small_suite(tmp_path, TRACED, ("replies = 3", "replies = 0"), ("[[corpora]]", tables))
    models = Models(action=proposes("calm"))
    loaded = models.of(suite)
    loaded.kept["chat", suite.transfer.proposers[1]] = telling(proposes("hurried"))[0]  # pyright: ignore[reportOptionalMemberAccess]
    loaded.kept["scorer", "local"] = WeighingScorer({"hurried": 1.0})
    result = asyncio.run(SuiteRun(suite, tmp_path / "run", models=loaded).run())
    rows = result["transfer"]
    by = [(Path(row["proposer"].removeprefix("scripted:")).name, row["scorer"]) for row in rows]
    assert by == [("action.txt", "fake:"), ("action.txt", "local"), ("b.txt", "fake:"), ("b.txt", "local")]
    assert [row["bits_per_char"]["n"] for row in rows] == [8] * 4
    gains = [row["bits_per_char"]["high"] < 0 for row in rows]
    assert gains == [False, False, False, True]  # one model's traces hold the word that moves one of the scorers
    assert all((row["arm"], row["against"]) == ("recalled_triples", "recalled_pairs") for row in rows)
    assert result["twin_arm"] == "recalled_triples"
    asked = models.calls
    asyncio.run(SuiteRun(suite, tmp_path / "run", models=loaded).run())
    assert models.calls == asked


def test_the_arm_of_a_trained_synthesizer_shows_its_traces(tmp_path: Path) -> None:
    arms = (
        'arms = ["no_memory", "other_person", "recalled_pairs"]',
        'arms = ["recalled_pairs", "recalled_triples", "trained"]',
    )
    suite = small_suite(tmp_path, arms, ('scorer = "fake:"', 'scorer = "fake:"\ntrained = "scripted:b.txt"'))
    loaded = Models(action=proposes("calm")).of(suite)
    loaded.kept["chat", str(suite.models.trained)] = telling(proposes("hurried"))[0]
    loaded.kept["scorer", "fake:"] = WeighingScorer({"hurried": 1.0})
    result = asyncio.run(SuiteRun(suite, tmp_path / "run", models=loaded).run())
    bits = {arm: measures["bits_per_char"]["value"] for arm, measures in result["arms"].items()}
    assert list(bits) == ["recalled_pairs", "recalled_triples", "trained"]
    assert bits["trained"] < bits["recalled_triples"] == bits["recalled_pairs"]
    assert result["arms"]["trained"]["bits_per_char"]["n"] == 12


def test_twins_that_were_learned_before_are_measured_and_stay_as_they_are(tmp_path: Path) -> None:
    learned = learned_twin(tmp_path)
    suite = small_suite(tmp_path, ("[models]", 'twins = ["cid"]\n[models]'))
    before = {path.name: path.read_bytes() for path in learned.iterdir()}
    result = run(suite, tmp_path / "run", models := Models())
    assert list(result["people"]) == ["cid/Cid", "shop/Ann", "shop/Bob"]
    assert {path.name: path.read_bytes() for path in learned.iterdir()} == before
    asked = models.calls
    run(suite, tmp_path / "run", models)
    assert models.calls == asked


def test_a_twin_that_was_learned_anew_since_is_noticed(tmp_path: Path) -> None:
    learned_twin(tmp_path)
    suite = small_suite(tmp_path, ("[models]", 'twins = ["cid"]\n[models]'), ("replies = 3", "replies = 0"))
    run(suite, tmp_path / "run")
    learned_twin(tmp_path, overwrite=True, seed=1)
    said = refused(suite, tmp_path / "run")
    assert said.startswith('the twin "cid" is not what it was when the run in')
    assert state(tmp_path / "run") == "complete"


def test_people_of_the_same_name_in_two_corpora_are_two(tmp_path: Path) -> None:
    write_log(tmp_path / "b.jsonl", "Ann", "Cid")
    two = ('people = ["Ann", "Bob"]', 'people = ["Ann"]\n[[corpora]]\nname = "club"\nfrom = "b.jsonl"\npeople = ["Ann"]')
    result = run(small_suite(tmp_path, two), tmp_path / "run")
    assert {name: found["turns"] for name, found in result["people"].items()} == {"shop/Ann": 6, "club/Ann": 6}
    assert result["turns"] == 12


def test_k_and_window_are_found_for_each_person_if_they_are_not_given(tmp_path: Path) -> None:
    suite = small_suite(tmp_path, ("k = 3\nwindow = 4\n", ""), ("replies = 3", "replies = 0"))
    settings = run(suite, tmp_path / "run")["settings"]
    assert settings["k"] in (4, 8) or set(settings["k"].values()) <= {4, 8}


# Leaks, endings, drift -------------------------------------------------------------------------------------------------------


def test_held_out_turns_that_the_memory_nearly_knows_are_dropped_and_counted(tmp_path: Path) -> None:
    copies = [talk("Ann", number, same_as=number - 20) for number in (20, 21)]
    write_log(tmp_path / "log.jsonl", "Ann", "Bob", more=copies)
    result = run(small_suite(tmp_path, ("turns = 6", "turns = 0")), tmp_path / "run")
    leak = result["leakage"]["shop/Ann"]
    assert leak["near_duplicates"] == 6
    assert result["people"]["shop/Ann"]["turns"] < leak["of"]
    assert result["leakage"]["shop/Bob"]["near_duplicates"] == 0
    assert not {"ann-20", "ann-21"} & {turn.conversation_id for turn in read_turns(tmp_path / "run")}


def test_a_held_out_conversation_in_the_memory_stops_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(ModelError):
        run(small_suite(tmp_path), folder, Models(most=(0, None)))
    held = json.loads((folder / "twins" / "p00" / "twin.json").read_text("utf-8"))["test"][0]
    [group] = pairs_of_log([talk("Ann", int(held[-2:]))], "Ann", window=4)
    with TripleStore(folder / "twins" / "p00", FakeEmbedder(64)) as store:
        store.add([Triple(group[0])])
    for path in (folder / "people").iterdir():
        path.unlink()
    with pytest.raises(TwinError, match=f'the memory knows the conversation "{held}", which is to be measured on'):
        run(small_suite(tmp_path), folder)
    assert_unfinished(folder)


def test_endings_and_drift_are_part_of_the_result(tmp_path: Path) -> None:
    result = run(small_suite(tmp_path, ("turns = 6", "turns = 6\ndrift = 1")), tmp_path / "run")
    for person in ("shop/Ann", "shop/Bob"):
        assert 0 <= result["endings"][person]["f1"]["value"] <= 1
        assert result["endings"][person]["calibration"]["brier"]["n"] > 0
    assert set(result["drift"]) == {"1", "3"}
    assert result["drift"]["1"]["difference"]["value"] == 0
    assert result["drift"]["1"]["similarity"]["n"] == 2
