"""Tests of evals/suites/run.py and measure_person.py: a run is finished or has no report, and repeats no completion."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from invented_suite import JUDGED, TRACED, Models, learned_twin, sane, small_suite, speaks, suite_file, talk, write_log
from judge_replies import judge_reply, shown_attempts

from conftest import WordWeightScorer, function_model
from usertwin.evals.records.measured_turns import MANIFEST, RESULT, VERDICTS, read_result, read_turns
from usertwin.evals.records.run_folder import HTML_REPORT, MARKDOWN_REPORT
from usertwin.evals.suites.config import Suite, logs_of
from usertwin.evals.suites.run import SuiteRun, work_estimate
from usertwin.memory import Triple, TripleStore, TwinRecord
from usertwin.memory.models.completion_cache import COMPLETIONS_FILE
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.run_lock import exclusive_run
from usertwin.memory.twin.record import update_record
from usertwin.personas import LogError, ModelError, TwinError, UsageError, UsertwinError
from usertwin.personas.pairs import group_pairs

#: The keys in which two runs of the same suite may differ.
TIMES = {"measured_at"}
NO_REPLIES = ("replies = 3", "replies = 0")
ONE_PERSON = ('people = ["Ann", "Bob"]', 'people = ["Ann"]')


def run(suite: Suite, folder: Path, models: Models | None = None, **options: Any) -> dict[str, Any]:
    loaded = (models or Models()).of(suite)
    return asyncio.run(SuiteRun(suite, folder, models=loaded, **options).run())


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in TIMES}


def state(folder: Path) -> str:
    return json.loads((folder / MANIFEST).read_text("utf-8"))["state"]


def assert_unfinished(folder: Path) -> None:
    """Check that the folder holds nothing that looks finished."""
    assert state(folder) == "interrupted"
    assert not any((folder / name).exists() for name in (HTML_REPORT, MARKDOWN_REPORT, RESULT))
    with pytest.raises(UsageError, match="is not finished; run the same command again to resume it"):
        read_result(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Models]:
    """A finished run with a judge, its result, and its models; tests only read it."""
    folder, models = tmp_path_factory.mktemp("whole"), Models()
    return folder / "run", run(small_suite(folder, JUDGED), folder / "run", models), models


# A finished run -----------------------------------------------------------------------------------------------


def test_a_finished_run_is_complete_and_has_every_file(whole: tuple[Path, dict[str, Any], Models]) -> None:
    folder, result, _ = whole
    assert state(folder) == "complete"
    for name in (HTML_REPORT, MARKDOWN_REPORT, VERDICTS, "people/0.jsonl", "people/0.json", "people/1.jsonl", "people/1.json"):
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


def test_the_manifest_names_people_sources_arms_and_prompts(whole: tuple[Path, dict[str, Any], Models]) -> None:
    manifest = json.loads((whole[0] / MANIFEST).read_text("utf-8"))
    assert manifest["people"] == ["shop/Ann", "shop/Bob"]
    assert set(manifest["sources"]) == {"shop"}
    assert manifest["suite"]["arms"] == ["no_memory", "other_person", "recalled_pairs"]
    assert {"openevals", "tau2"} <= set(manifest["prompts"])


def test_the_persons_own_words_bring_the_twin_closer_than_other_words(whole: tuple[Path, dict[str, Any], Models]) -> None:
    paired = whole[1]["paired"]
    for other in ("no_memory", "other_person"):
        assert paired[f"recalled_pairs - {other}"]["bits_per_char"]["value"] < 0


def test_the_report_has_the_summary_and_all_people(whole: tuple[Path, dict[str, Any], Models]) -> None:
    folder, result, _ = whole
    notes = (folder / MARKDOWN_REPORT).read_text("utf-8")
    assert result["summary"].split("(")[0].strip() in notes
    assert all(person in notes for person in result["people"])


# Resumption ----------------------------------------------------------------------------------------------------


def test_a_finished_suite_makes_no_call_and_has_the_same_result(
    whole: tuple[Path, dict[str, Any], Models], tmp_path: Path
) -> None:
    folder, result, _ = whole
    shutil.copytree(folder.parent, tmp_path / "copy")
    suite = small_suite(folder.parent, JUDGED)
    again = Models()
    assert timeless(run(suite, tmp_path / "copy" / "run", again)) == timeless(result)
    assert again.calls == (0, 0)
    assert state(tmp_path / "copy" / "run") == "complete"


def test_a_run_of_an_earlier_version_is_resumed(whole: tuple[Path, dict[str, Any], Models], tmp_path: Path) -> None:
    folder, result, _ = whole
    shutil.copytree(folder.parent, tmp_path / "copy")
    path = tmp_path / "copy" / "run" / MANIFEST
    manifest = json.loads(path.read_text("utf-8"))
    old = manifest["suite"]
    old["settling"] = old.pop("user_models")
    old["traces"] |= {"moments": old["traces"].pop("pairs"), "fidelity": "novel"}
    path.write_text(json.dumps(manifest), "utf-8")
    for facts in (tmp_path / "copy" / "run" / "people").glob("*.json"):
        facts.write_text(facts.read_text("utf-8").replace('"memorized"', '"known_by_heart"'), "utf-8")
    again = Models()
    assert timeless(run(small_suite(folder.parent, JUDGED), tmp_path / "copy" / "run", again)) == timeless(result)
    assert again.calls == (0, 0)


@pytest.mark.parametrize("max_calls", [(8, None), (21, None), (None, 25)], ids=str)
def test_a_run_that_a_failing_model_interrupts_is_resumed_without_repeated_calls(
    tmp_path: Path, whole: tuple[Path, dict[str, Any], Models], max_calls: tuple[int | None, int | None]
) -> None:
    suite = small_suite(tmp_path, JUDGED)
    down = Models(max_calls=max_calls)
    with pytest.raises(ModelError, match="the model is down; start it again"):
        run(suite, tmp_path / "run", down)
    assert_unfinished(tmp_path / "run")
    answered = tuple(calls if limit is None else min(calls, limit) for calls, limit in zip(down.calls, max_calls, strict=True))
    up = Models()
    result = run(suite, tmp_path / "run", up)
    _, expected, models = whole
    repeated = tuple(a + b - c for a, b, c in zip(answered, up.calls, models.calls, strict=True))
    assert repeated == ((1, 0) if max_calls[0] == 21 else (0, 0))  # two samples of a reply are one request
    assert without_paths(result) == without_paths(expected)
    assert state(tmp_path / "run") == "complete"


def test_only_the_reply_arms_write_and_the_twin_is_the_declared_arm(tmp_path: Path) -> None:
    arms = 'arms = ["no_memory", "recalled_pairs", "recalled_pairs+reranked", "recon", "verbatim"]'
    writing = ["no_memory", "recalled_pairs+reranked", "verbatim"]
    suite = small_suite(
        tmp_path, (arms_line(tmp_path), f'{arms}\ntwin = "recalled_pairs+reranked"\nreply_arms = {json.dumps(writing)}')
    )  # fmt: skip
    result = run(suite, tmp_path / "run")
    assert result["twin_arm"] == "recalled_pairs+reranked"
    turns = read_turns(tmp_path / "run")
    assert {arm for turn in turns for arm in turn.replies} == set(writing)
    assert {arm for turn in turns for arm in turn.bits} == {"no_memory", "recalled_pairs", "recalled_pairs+reranked", "recon"}
    for turn in turns:
        assert turn.bits["recalled_pairs+reranked"] == turn.bits["recalled_pairs"]
    assert result["settings"]["reply_arms"] == writing
    assert set(result["arms"]["recon"]) < set(result["arms"]["no_memory"])
    assert (tmp_path / "run" / HTML_REPORT).exists()


def test_a_run_with_prompts_of_another_version_is_not_resumed(tmp_path: Path) -> None:
    suite = small_suite(tmp_path, NO_REPLIES)
    run(suite, tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / MANIFEST).read_text("utf-8"))
    manifest["prompts"]["transcript"] = "3"
    (tmp_path / "run" / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(UsageError, match="holds a run of a version with other prompts; name another folder with --out"):
        run(suite, tmp_path / "run")


def test_a_declared_twin_shows_its_traces_whatever_it_was_learned_with(tmp_path: Path) -> None:
    learned_twin(tmp_path)  # without traces
    arms = (arms_line(tmp_path), 'twins = ["cid"]\narms = ["no_memory", "recalled_pairs", "recon"]\ntwin = "recon"')
    assert run(small_suite(tmp_path, arms, NO_REPLIES), tmp_path / "run")["twin_arm"] == "recon"


def arms_line(folder: Path) -> str:
    """Return the line of the small suite that names its arms."""
    return next(line for line in suite_file(folder).read_text("utf-8").splitlines() if line.startswith("arms = "))


def without_paths(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result without times and paths."""
    text = json.dumps({key: value for key, value in timeless(result).items() if key != "models"})
    return json.loads(text.replace(Path(result["models"]["action"].removeprefix("scripted:")).parent.as_posix(), ""))


def test_an_interrupted_drift_repeats_no_call(tmp_path: Path) -> None:
    suite = small_suite(tmp_path, ("replies = 3", "replies = 0\ndrift = 2"))
    run(suite, tmp_path / "whole", models := Models())
    with pytest.raises(ModelError):
        run(suite, tmp_path / "run", Models(max_calls=(5, None)))
    assert_unfinished(tmp_path / "run")
    result = run(suite, tmp_path / "run", up := Models())
    assert up.calls[0] == models.calls[0] - 5
    assert set(result["drift"]) == {"1", "3"}
    assert result["drift"]["3"]["difference"]["n"] == 4
    assert set(result["drift_lengths"]) == {"too_short", "as_long", "too_long"}


def test_a_truncated_record_is_measured_again(tmp_path: Path) -> None:
    suite = small_suite(tmp_path)
    expected = run(suite, tmp_path / "run")
    records = tmp_path / "run" / "people" / "0.jsonl"
    records.with_suffix(".json").unlink()
    lines = records.read_text("utf-8").splitlines(keepends=True)
    records.write_text("".join(lines[:3]) + lines[3][:40], "utf-8")
    assert timeless(run(suite, tmp_path / "run")) == timeless(expected)
    assert [json.loads(line) for line in records.read_text("utf-8").splitlines()] == [json.loads(line) for line in lines]


def test_a_resumed_run_that_fails_has_no_old_report(tmp_path: Path) -> None:
    suite = small_suite(tmp_path)
    run(suite, tmp_path / "run")
    assert (tmp_path / "run" / HTML_REPORT).exists()
    for path in (tmp_path / "run" / "people").iterdir():
        path.unlink()
    (tmp_path / "run" / COMPLETIONS_FILE).unlink()
    with pytest.raises(ModelError):
        run(suite, tmp_path / "run", Models(max_calls=(3, None)))
    assert_unfinished(tmp_path / "run")


# Errors -----------------------------------------------------------------------------------------------------------


def refused(suite: Suite, folder: Path, error: type[UsertwinError] = UsageError) -> str:
    models = Models()
    with pytest.raises(error) as raised:
        run(suite, folder, models)
    assert models.calls == (0, 0)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_two_processes_cannot_work_on_one_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with exclusive_run(folder):
        assert refused(small_suite(tmp_path), folder).startswith(f"{folder}: another process works on this run; wait until")
    with exclusive_run(folder):  # the lock is free again
        pass
    assert not list(folder.iterdir())


def test_a_folder_of_another_suite_is_refused_with_the_different_keys(tmp_path: Path) -> None:
    run(small_suite(tmp_path, NO_REPLIES), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    message = refused(small_suite(tmp_path, ("turns = 6", "turns = 5")), tmp_path / "run")
    assert message.endswith('holds a run of another suite (different keys: "turns", "replies"); name another folder with --out')
    assert {path: path.read_bytes() for path in before} == before  # the old run is unchanged


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ('{"format": 2}', "a run of format 2, but this version reads format 1; run the suite again elsewhere"),
        ("[]", "a run of format None"),
        ("{", "manifest.json: it is not JSON"),
        ('{"kind": "simulate"}', "holds conversations of `usertwin simulate`, not a run of a suite"),
        ('{"format": 1}', "holds a run of another suite"),
    ],
)
def test_a_folder_of_another_version_or_kind_is_refused(tmp_path: Path, manifest: str, message: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / MANIFEST).write_text(manifest, "utf-8")
    assert message in refused(small_suite(tmp_path), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [MANIFEST]


def test_a_changed_log_is_refused(tmp_path: Path) -> None:
    suite = small_suite(tmp_path, NO_REPLIES)
    run(suite, tmp_path / "run")
    write_log(tmp_path / "log.jsonl", "Ann", "Bob", more=[talk("Ann", 20)])
    message = refused(suite, tmp_path / "run")
    assert message.startswith(f"{tmp_path / 'log.jsonl'}: has changed since the run in {tmp_path / 'run'} started")
    assert state(tmp_path / "run") == "complete"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (("log.jsonl", "nowhere.jsonl"), LogError, r"nowhere\.jsonl"),
        (('["Ann", "Bob"]', '["Ann", "Eve"]'), LogError, r'no turns by "Eve"; .* \(most frequent: "desk"'),
        (("[models]", 'twins = ["nobody"]\n[models]'), TwinError, "nobody"),
        (('scorer = "fake:"', 'scorer = "fake:"\njudge = "scripted:no.txt"'), ModelError, r"no\.txt: the script cannot"),
        (('scorer = "fake:"', 'scorer = "fake:"\njudge = "openai:x"'), ModelError, "openai:x"),
    ],
)  # fmt: skip
def test_a_missing_file_person_or_key_is_named_before_anything_is_written(
    tmp_path: Path, change: tuple[str, str], error: type[UsertwinError], message: str
) -> None:
    suite = small_suite(tmp_path, change)
    with pytest.raises(error, match=message):
        asyncio.run(SuiteRun(suite, tmp_path / "run").run())
    assert not (tmp_path / "run").exists()


def test_a_repeated_person_is_refused(tmp_path: Path, ann: str) -> None:
    suite = small_suite(tmp_path, ("[models]", f'twins = ["{ann}"]\n[models]'), ('name = "shop"', 'name = "ann"'))
    assert '"ann/Ann" would be measured twice' in refused(suite, tmp_path / "run")


def test_the_work_of_a_suite_is_estimated_and_nothing_is_written(tmp_path: Path) -> None:
    suite = small_suite(tmp_path, JUDGED)
    logs = logs_of(suite)
    people = SuiteRun(suite, tmp_path / "run").people(logs)
    assert [person.label for person in people] == ["shop/Ann", "shop/Bob"]
    lines = work_estimate(suite, logs, people)
    assert "about 36 turns scored under fake:" in lines
    assert any(line.startswith("36 replies written by") for line in lines)
    assert not (tmp_path / "run").exists()


# Judges --------------------------------------------------------------------------------------------------------------------


def test_a_sane_judge_passes_the_sanity_checks(tmp_path: Path) -> None:
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
    assert judge["contrasts"]["recalled_pairs - other_person"]["win"]["value"] > 0.5


def test_a_model_of_another_family_compares_replies_by_likelihood_and_resumes(tmp_path: Path) -> None:
    """The fake scorer prefers words that were shown: Ann's and Bob's own, which the twin repeats and no other arm knows."""
    suite = small_suite(
        tmp_path, ('embedder = "fake:64"', 'embedder = "fake:64"\noutside = "fake:"'), ("replies = 3", "replies = 6")
    )
    with pytest.raises(ModelError):
        run(suite, tmp_path / "run", Models(max_calls=(40, None)))
    result = run(suite, tmp_path / "run")
    judged = result["likelihood_judge"]
    assert judged["model"] == "fake:"
    assert judged["contrasts"]["recalled_pairs - no_memory"]["win"]["value"] > 0.75
    assert judged["contrasts"]["recalled_pairs - other_person"]["win"]["value"] > 0.75
    assert judged["identical"]["value"] == 0.5
    assert set(result["spread"]) == {"no_memory", "other_person", "recalled_pairs"}
    assert "Judge by likelihood" in (tmp_path / "run" / MARKDOWN_REPORT).read_text("utf-8")


def test_a_judge_that_always_answers_first_is_unusable_and_the_report_warns(tmp_path: Path) -> None:
    result = run(small_suite(tmp_path, JUDGED), tmp_path / "run", Models(judge=lambda prompt, seed: '{"closer": "1"}'))
    judge = result["judge"]
    assert (judge["usable"], judge["first"]["value"]) == (False, 1.0)
    [warning] = [warning for warning in result["warnings"] if 'answers "1" in 100%' in warning]
    assert "do not use its figures" in warning
    for name in (HTML_REPORT, MARKDOWN_REPORT):
        assert "do not use its figures" in (tmp_path / "run" / name).read_text("utf-8")


def test_a_judge_that_follows_the_places_of_reconstructions_is_reported_for_each_person(tmp_path: Path) -> None:
    def first_place(prompt: str, seed: int) -> str:
        attempts = shown_attempts(prompt)
        return judge_reply([*attempts]) if attempts else sane(prompt, seed)

    judged = ("[[corpora]]", '[traces]\npairs = 24\ncandidates = 2\nfidelity = "judge"\n\n[[corpora]]')
    suite = small_suite(tmp_path, JUDGED, TRACED, NO_REPLIES, ONE_PERSON, judged)
    result = run(suite, tmp_path / "run", Models(judge=first_place))
    [warning] = [warning for warning in result["warnings"] if "its scores are not evidence" in warning]
    assert warning.startswith('shop/Ann: the judge "scripted:')
    assert "prefers the first place" in warning
    check = TwinRecord.load(tmp_path / "run" / "twins" / "p00").judge_check
    assert check is not None
    assert warning == f"shop/Ann: {check['sentence']}"


def test_a_damaged_check_of_the_judge_in_a_twin_spoils_no_run(tmp_path: Path) -> None:
    update_record(learned_twin(tmp_path), lambda record: replace(record, judge_check={"outcome": "failed"}))
    suite = small_suite(tmp_path, ("[models]", 'twins = ["cid"]\n[models]'), NO_REPLIES, ONE_PERSON)
    result = run(suite, tmp_path / "run")
    assert not [warning for warning in result["warnings"] if "evidence" in warning]


def test_a_run_without_a_judge_has_all_other_parts(tmp_path: Path) -> None:
    result = run(small_suite(tmp_path), tmp_path / "run")
    assert result["judge"] is None
    assert "chrf" in result["arms"]["recalled_pairs"]
    assert not (tmp_path / "run" / VERDICTS).exists()


# Arms, traces, twins -------------------------------------------------------------------------------------------------------


def proposes(mood: str) -> Callable[[str, int], str]:
    """Return a reply function with the same trace for every pair, and the usual replies."""
    trace = f"wanted to be done with it soon and was {mood} about all of that"
    return lambda prompt, seed: trace if prompt.endswith("Before I wrote that, I") else speaks(prompt, seed)


def test_traces_of_two_proposers_are_compared_under_two_scorers(tmp_path: Path) -> None:
    tables = """
        [traces]
        pairs = 6
        candidates = 2
        [transfer]
        proposers = ["scripted:action.txt", "scripted:b.txt"]
        scorers = ["fake:", "local"]
        turns = 4
        [[corpora]]
    """
    suite = small_suite(tmp_path, TRACED, NO_REPLIES, ("[[corpora]]", tables))
    models = Models(action=proposes("calm"))
    loaded = models.of(suite)
    loaded.loaded["chat", suite.transfer.proposers[1]] = function_model(proposes("hurried"))[0]  # pyright: ignore[reportOptionalMemberAccess]
    loaded.loaded["scorer", "local"] = WordWeightScorer({"hurried": 1.0})
    result = asyncio.run(SuiteRun(suite, tmp_path / "run", models=loaded).run())
    rows = result["transfer"]
    by = [(Path(row["proposer"].removeprefix("scripted:")).name, row["scorer"]) for row in rows]
    assert by == [("action.txt", "fake:"), ("action.txt", "local"), ("b.txt", "fake:"), ("b.txt", "local")]
    assert [row["bits_per_char"]["n"] for row in rows] == [8] * 4
    gains = [row["bits_per_char"]["value"] < 0 for row in rows]
    assert gains == [False, False, False, True]  # one model's traces hold the word that moves one of the scorers
    assert all((row["arm"], row["against"]) == ("recon", "recalled_pairs") for row in rows)
    assert result["twin_arm"] == "recon"
    calls = models.calls
    asyncio.run(SuiteRun(suite, tmp_path / "run", models=loaded).run())
    assert models.calls == calls


def test_the_arm_of_a_trained_synthesizer_shows_its_traces(tmp_path: Path) -> None:
    arms = (
        'arms = ["no_memory", "other_person", "recalled_pairs"]',
        'arms = ["recalled_pairs", "recon", "trained"]',
    )
    suite = small_suite(tmp_path, arms, NO_REPLIES, ('scorer = "fake:"', 'scorer = "fake:"\ntrained = "scripted:b.txt"'))
    loaded = Models(action=proposes("calm")).of(suite)
    loaded.loaded["chat", str(suite.models.trained)] = function_model(proposes("hurried"))[0]
    loaded.loaded["scorer", "fake:"] = WordWeightScorer({"hurried": 1.0})
    result = asyncio.run(SuiteRun(suite, tmp_path / "run", models=loaded).run())
    bits = {arm: measures["bits_per_char"]["value"] for arm, measures in result["arms"].items()}
    assert list(bits) == ["recalled_pairs", "recon", "trained"]
    assert bits["trained"] < bits["recon"] == bits["recalled_pairs"]
    assert result["arms"]["trained"]["bits_per_char"]["n"] == 12


def test_twins_learned_before_are_measured_and_unchanged(tmp_path: Path) -> None:
    learned = learned_twin(tmp_path)
    suite = small_suite(tmp_path, ("[models]", 'twins = ["cid"]\n[models]'), NO_REPLIES, ONE_PERSON)
    before = {path.name: path.read_bytes() for path in learned.iterdir()}
    result = run(suite, tmp_path / "run", models := Models())
    assert list(result["people"]) == ["cid/Cid", "shop/Ann"]
    assert {path.name: path.read_bytes() for path in learned.iterdir()} == before
    calls = models.calls
    run(suite, tmp_path / "run", models)
    assert models.calls == calls


def test_a_twin_learned_again_is_refused(tmp_path: Path) -> None:
    learned_twin(tmp_path)
    suite = small_suite(tmp_path, ("[models]", 'twins = ["cid"]\n[models]'), NO_REPLIES)
    run(suite, tmp_path / "run")
    learned_twin(tmp_path, overwrite=True, seed=1)
    message = refused(suite, tmp_path / "run")
    assert message.startswith('the twin "cid" has changed since the run in')
    assert state(tmp_path / "run") == "complete"


def test_people_of_the_same_name_in_two_corpora_are_distinct(tmp_path: Path) -> None:
    write_log(tmp_path / "b.jsonl", "Ann", "Cid")
    two = ('people = ["Ann", "Bob"]', 'people = ["Ann"]\n[[corpora]]\nname = "club"\nfrom = "b.jsonl"\npeople = ["Ann"]')
    result = run(small_suite(tmp_path, two, NO_REPLIES), tmp_path / "run")
    assert {name: person["turns"] for name, person in result["people"].items()} == {"shop/Ann": 6, "club/Ann": 6}
    assert result["turns"] == 12


def test_k_and_window_are_tuned_for_each_person_if_they_are_missing(tmp_path: Path) -> None:
    suite = small_suite(tmp_path, ("k = 3\nwindow = 4\n", ""), NO_REPLIES)
    settings = run(suite, tmp_path / "run")["settings"]
    assert settings["k"] in (4, 8) or set(settings["k"].values()) <= {4, 8}


# Leaks, endings, drift -------------------------------------------------------------------------------------------------------


def test_near_duplicates_of_held_out_turns_are_dropped_and_counted(tmp_path: Path) -> None:
    copies = [talk("Ann", number, same_as=number - 20) for number in (20, 21)]
    write_log(tmp_path / "log.jsonl", "Ann", "Bob", more=copies)
    result = run(small_suite(tmp_path, ("turns = 6", "turns = 0"), NO_REPLIES), tmp_path / "run")
    leak = result["leakage"]["shop/Ann"]
    assert leak["near_duplicates"] == 6
    assert result["people"]["shop/Ann"]["turns"] < leak["of"]
    assert result["leakage"]["shop/Bob"]["near_duplicates"] == 0
    assert not {"ann-20", "ann-21"} & {turn.conversation_id for turn in read_turns(tmp_path / "run")}


def test_a_held_out_conversation_in_the_memory_stops_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(ModelError):
        run(small_suite(tmp_path), folder, Models(max_calls=(0, None)))
    held = json.loads((folder / "twins" / "p00" / "twin.json").read_text("utf-8"))["test"][0]
    [group] = group_pairs([talk("Ann", int(held[-2:]))], "Ann", window=4)
    with TripleStore(folder / "twins" / "p00", FakeEmbedder(64)) as store:
        store.add([Triple(group[0])])
    for path in (folder / "people").iterdir():
        path.unlink()
    with pytest.raises(TwinError, match=f'the memory holds the held-out conversation "{held}"; learn the twin again'):
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
