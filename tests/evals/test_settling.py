"""evals/suites/user_model_experiment.py: what is learned and what is measured, a run that is killed, and the figures by hand."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from invented_suite import Models, small_suite, suite_file
from tiny_model import tiny_model

from usertwin.evals.records.measured_turns import MeasuredTurn, read_manifest, turns_of
from usertwin.evals.records.run_folder import NOTES, PAGE
from usertwin.evals.reports.tables import settling_section
from usertwin.evals.suites.config import Suite, logs_of, read_suite
from usertwin.evals.suites.run import SuiteRun, plan_of
from usertwin.evals.suites.user_model_experiment import (
    ExampleRow,
    TrainedPerson,
    check_user_models,
    example_rows,
    user_models_result,
)
from usertwin.memory.training.user_model import Row
from usertwin.personas import Pair, UsageError
from usertwin.personas.pairs import pairs_of_log

pytestmark = pytest.mark.usefixtures("in_one_thread")

ARMS = 'arms = ["no_memory", "other_person", "recalled_pairs"]'
CORPORA = '[[corpora]]\nname = "shop"'
TABLE = """\
[traces]
moments = 12
candidates = 2

[settling]
base = "transformers:base"
steps = 2
batch = 2
rank = 2
thoughts = 2
turns = 3
of = "group"

"""


def settling_suite(folder: Path, *changes: tuple[str, str]) -> Suite:
    """The invented suite with the experiment, and nothing else that takes long."""
    base = [(ARMS, 'arms = ["no_memory"]'), ("turns = 6\nreplies = 3", "turns = 2\nreplies = 0"), (CORPORA, TABLE + CORPORA)]
    return small_suite(folder, *base, *changes)


def run(suite: Suite, folder: Path, models: Models | None = None, progress: Callable[..., None] | None = None) -> Any:
    options: dict[str, Any] = {} if progress is None else {"progress": progress}
    return asyncio.run(SuiteRun(suite, folder, models=(models or Models(action=thinks)).of(suite), **options).run())


def thinks(prompt: str, seed: int) -> str:
    """A thought that no guard rejects, or not the same one twice."""
    return f"was {('calm', 'proud', 'shy', 'bold', 'tense')[seed % 5]} and wanted {len(prompt)} things"


@pytest.fixture(autouse=True)
def _weights_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED", raising=False)  # the base is a folder that was made here


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model."""
    folder = tmp_path_factory.mktemp("settling")
    tiny_model(folder / "base")
    return folder


@pytest.fixture(scope="module")
def killed(home: Path) -> tuple[Path, dict[str, Any], list[tuple[str, int, int]]]:
    """A run that was killed once amid measuring and once amid training, its result, and what was done after the kills."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("USERTWIN_ONLY_SCRIPTED", raising=False)
        suite, told = settling_suite(home), list[tuple[str, int, int]]()

        def until(stage: str, done: int) -> Callable[[str, int, int], None]:
            def progress(at: str, count: int, total: int) -> None:
                told.append((at, count, total))
                if (at, count) == (stage, done):
                    raise KeyboardInterrupt

            return progress

        for stage, done in (("settling", 2), ("fitting", 2)):
            with pytest.raises(KeyboardInterrupt):
                run(suite, home / "run", progress=until(stage, done))
        told.clear()
        return home / "run", run(suite, home / "run", progress=until("", -1)), told


# A run ---------------------------------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_and_measures_every_turn_once_under_every_kind(
    killed: tuple[Path, dict[str, Any], list[tuple[str, int, int]]],
) -> None:
    folder, result, told = killed
    assert read_manifest(folder)["state"] == "complete"
    for number in (0, 1):
        for kind in ("base", "none", "backward", "recon"):
            turns = turns_of(folder / "people" / f"settling-{number}-{kind}.part")
            assert len({(turn.conversation_id, turn.position) for turn in turns}) == len(turns) == 3
    assert result["settling"]["turns"] == 6
    # The second kill was in the second step of the first model: only that step was made again, of it.
    assert [done for stage, done, _ in told if stage == "fitting"] == [2, 1, 2, 1, 2]


def test_the_same_command_again_trains_nothing_and_says_the_same(
    home: Path, killed: tuple[Path, dict[str, Any], list[tuple[str, int, int]]]
) -> None:
    folder, result, _ = killed
    fitted: list[str] = []
    again = run(settling_suite(home), folder, Models(most=(0, 0)), lambda *told: fitted.append(told[0]))
    assert again["settling"] == result["settling"]
    assert "fitting" not in fitted


def test_what_was_learned_with_traces_is_asked_in_both_ways_and_the_others_at_once(
    killed: tuple[Path, dict[str, Any], list[tuple[str, int, int]]],
) -> None:
    people = killed[0] / "people"
    for kind, bits in {"base": ["base"], "none": ["none"], "recon": ["recon, at once", "recon"]}.items():
        for turn in turns_of(people / f"settling-0-{kind}.part"):
            assert list(turn.bits) == bits
            assert all(math.isfinite(cost) and cost > 0 for cost in turn.bits.values())
            assert (kind in turn.reasoning) == (kind == "recon")


def test_every_kind_learns_from_the_same_moments_with_as_many_steps(
    killed: tuple[Path, dict[str, Any], list[tuple[str, int, int]]],
) -> None:
    noted = [json.loads(path.read_text("utf-8")) for path in (killed[0] / "settling").glob("c0-*/usertwin.json")]
    assert {one["kind"] for one in noted} == {"none", "backward", "recon"}
    assert len({(one["rows"], one["steps"]) for one in noted}) == 1
    assert len({one["made_of"] for one in noted}) == 3 - _same_traces(noted)
    assert killed[1]["settling"]["models"]["c0"]["lessons"] == noted[0]["rows"] >= 8
    assert killed[1]["settling"]["models"]["c0"]["people"] == ["shop/Ann", "shop/Bob"]


def _same_traces(noted: list[dict[str, Any]]) -> bool:
    made = {one["kind"]: one["made_of"] for one in noted}
    return made["backward"] == made["recon"]


def test_no_held_out_turn_is_learned(home: Path, killed: tuple[Path, dict[str, Any], list[tuple[str, int, int]]]) -> None:
    """Seen in the rows that the trainer is really given."""
    import usertwin.evals.suites.user_model_experiment as module

    rows: list[str] = []

    def seen(given: Sequence[Row], *_: Any, **__: Any) -> dict[str, float]:
        rows.extend("".join(row) for row in given)
        return {"loss": 1.0}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fit", seen)
        run(settling_suite(home), killed[0])
    held_out = {
        turn.conversation_id for number in (0, 1) for turn in turns_of(killed[0] / "people" / f"settling-{number}-none.part")
    }
    log, asked = logs_of(settling_suite(home))["shop"], dict[str, set[str]]()
    for name in ("Ann", "Bob"):
        for pair in (pair for group in pairs_of_log(log.conversations, name) for pair in group):
            asked.setdefault(pair.conversation_id, set()).add(pair.context[-1].text)  # seven words drawn at random
    learned = "\n".join(rows)
    assert held_out <= set(asked)
    assert not [talk for talk in held_out if any(text in learned for text in asked[talk])]
    assert len([talk for talk, texts in asked.items() if any(text in learned for text in texts)]) >= 4


def test_the_report_has_its_table(killed: tuple[Path, dict[str, Any], list[tuple[str, int, int]]]) -> None:
    for name in (PAGE, NOTES):
        text = (killed[0] / name).read_text("utf-8")
        assert "What a model learns from reasoning" in text
        assert "Recon-Select" in text


def test_each_person_has_a_model_of_their_own_if_the_suite_says_so_and_the_trained_synthesizer_is_a_kind(home: Path) -> None:
    changes = [
        ('of = "group"', 'of = "person"\nkinds = ["none", "trained"]'),
        ('scorer = "fake:"', 'scorer = "fake:"\ntrained = "scripted:action.txt"'),
        ('people = ["Ann", "Bob"]', 'people = ["Ann"]'),
    ]
    result = run(settling_suite(home, *changes), home / "alone")["settling"]
    assert list(result["models"]) == ["p00"]
    assert [row["kind"] for row in result["rows"]] == ["base", "none", "trained"]
    assert sorted(path.name for path in (home / "alone" / "settling").iterdir()) == ["p00-none", "p00-trained"]


def test_a_run_without_the_table_has_no_such_section(tmp_path: Path) -> None:
    result = run(small_suite(tmp_path, (ARMS, 'arms = ["no_memory"]'), ("replies = 3", "replies = 0")), tmp_path / "run")
    assert result["settling"] is None
    assert settling_section(result) is None


def test_too_few_moments_with_traces_are_told_with_the_way_out(home: Path) -> None:
    suite = settling_suite(home, ("moments = 12", "moments = 3"))
    with pytest.raises(
        UsageError, match=r"shop/Ann, shop/Bob: only 6 moments have a trace of every kind \(none, backward, recon\), and at"
    ):
        run(suite, home / "few")
    assert not (home / "few" / "settling").exists()


# What is learned -----------------------------------------------------------------------------------------------------------


def taught(number: int, talks: str, held_out: str) -> TrainedPerson:
    lessons: tuple[ExampleRow, ...] = tuple((Pair("x", (), "hi", "", talk, 0, 0.0), {"none": None}) for talk in talks)
    return TrainedPerson(number, f"x/{number}", "c0", lessons, (), frozenset(held_out))


def test_a_group_learns_nothing_of_a_talk_that_is_held_out_of_anybody_in_it() -> None:
    found = example_rows([taught(0, "abc", "d"), taught(1, "bcd", "ae")])
    assert [pair.conversation_id for pair, _ in found] == ["b", "c", "b", "c"]


# What a suite may say ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("kind = 3", ', line 5: there is no key "settling.kind" (did you mean "kinds"?)'),
        ('kinds = ["recon"]', ', line 5: "kinds": name "none", which the others are compared with, and at least one kind of'),
        ('kinds = ["none"]', ', line 5: "kinds": name "none", which the others are compared with, and at least one kind of'),
        ('kinds = ["none", "x"]', ', line 5: "settling.kinds": input should be '),
        ('kinds = ["none", "trained"]', ', line 4: "settling": the kind "trained" needs a model that makes the traces'),
        ("turns = 0", ', line 5: "settling.turns": input should be greater than or equal to 1, not 0'),
        ("of = 'all'", ", line 5: \"settling.of\": input should be 'person' or 'group', not 'all'"),
    ],
)
def test_what_is_wrong_in_the_table_is_one_sentence_with_the_line(tmp_path: Path, table: str, said: str) -> None:
    (tmp_path / "s.toml").write_text(f'[[corpora]]\nname = "a"\nfrom = "chitchat"\n[settling]\n{table}\n', "utf-8")
    with pytest.raises(UsageError) as error:
        read_suite(tmp_path / "s.toml")
    assert str(error.value).startswith(f"{tmp_path / 's.toml'}{said}")


def test_without_a_trained_synthesizer_it_is_no_kind_and_with_one_it_is(tmp_path: Path) -> None:
    assert settling_suite(tmp_path).settled == ("none", "backward", "recon")
    other = settling_suite(tmp_path, ('scorer = "fake:"', 'scorer = "fake:"\ntrained = "local"'))
    assert other.settled == ("none", "backward", "recon", "trained")
    assert read_suite(suite_file(tmp_path)).settled == ()


@pytest.mark.parametrize("base", ["openai:x", "fake:", "transformers:", "scripted:x.txt"])
def test_a_base_that_cannot_be_trained_is_refused_before_anything_is_learned(tmp_path: Path, base: str) -> None:
    suite = settling_suite(tmp_path, ("transformers:base", base))
    with pytest.raises(UsageError, match=r"cannot be fine-tuned; settling\.base is"):
        check_user_models(suite)


def test_the_plan_says_what_the_experiment_takes(tmp_path: Path) -> None:
    suite = settling_suite(tmp_path)
    logs = logs_of(suite)
    said = plan_of(suite, logs, SuiteRun(suite, tmp_path / "run").people(logs))
    assert f"3 user models of transformers:{tmp_path / 'base'} (none, backward, recon), at most 6 steps of 2 moments" in said
    assert "48 turns scored under them, and 24 thoughts written" in said  # 2 people, 3 turns: 1 + 3 + 2 kinds of 2 thoughts
    assert any(line.startswith("traces for the user models: 48 texts of scripted:") for line in said)


def test_the_example_names_two_hundred_turns_or_more_and_all_kinds_that_can_be_had() -> None:
    found = read_suite(Path(__file__).resolve().parents[2] / "examples" / "suite_settling.toml")
    assert found.settled == ("none", "backward", "recon")
    assert found.settling is not None
    people = [corpus.people for corpus in found.corpora]
    assert sum(count for count in people if isinstance(count, int)) * found.settling.turns >= 200


# The figures by hand -------------------------------------------------------------------------------------------------------


def measured(person: str, number: int, gain: float) -> MeasuredTurn:
    """A turn of ten characters."""
    bits = {
        "base": 60.0,
        "none": 50.0,
        "recon": 50.0 - gain,
        "recon, at once": 55.0,
        "backward": 50.0,
        "backward, at once": 50.0,
    }
    return MeasuredTurn(f"x/{person}", f"talk-{number // 2}", number, (), "what I say", 10, bits=bits)


def test_the_rows_are_the_costs_and_the_differences_from_pairs_at_the_same_turns() -> None:
    """Ann gains 2 bits and Bob 4 bits on ten characters: 0.2 and 0.4 a character, 0.3 on average."""
    turns = [measured(person, number, gain) for person, gain in (("Ann", 2.0), ("Bob", 4.0)) for number in range(6)]
    found = user_models_result(turns, ("none", "backward", "recon"))
    rows = {row["kind"]: row for row in found["rows"]}
    assert list(rows) == ["base", "none", "backward", "recon"]
    assert rows["none"]["bits_per_char"]["value"] == pytest.approx(5.0)
    assert (rows["none"]["against"], rows["none"]["at_once"], rows["base"]["at_once"]) == (None, None, None)
    assert rows["base"]["against"]["value"] == pytest.approx(1.0)
    recon = rows["recon"]
    assert recon["bits_per_char"]["value"] == pytest.approx(4.7)
    assert recon["against"]["value"] == pytest.approx(-0.3)
    assert (recon["against"]["low"], recon["against"]["high"]) == pytest.approx((-0.4, -0.2))
    assert (recon["at_once"]["value"], recon["at_once_against"]["value"]) == pytest.approx((5.5, 0.5))
    assert recon["against"]["n"] == found["turns"] == 12
    assert rows["backward"]["against"]["value"] == pytest.approx(0.0)
    assert found["paired"]["recon - backward"]["value"] == pytest.approx(-0.3)
    assert (found["people"], found["conversations"]) == (2, 6)


def test_what_is_tested_together_is_adjusted_and_nothing_else() -> None:
    """Five people who all gain: the least p of a sign flip is 2 / 2^5; of two tests the smaller one is doubled."""
    turns = [measured(person, number, 2.0) for person in "ABCDE" for number in range(4)]
    found = user_models_result(turns, ("none", "backward", "recon"))
    rows = {row["kind"]: row for row in found["rows"]}
    assert found["family"]["contrasts"] == ["backward - none", "recon - none"]
    assert rows["recon"]["against"]["p"] == pytest.approx(2 / 32)
    assert rows["recon"]["against"]["p_holm"] == pytest.approx(4 / 32)
    assert "p_holm" not in rows["base"]["against"]
    assert "p_holm" not in rows["recon"]["at_once_against"]


def test_one_person_has_an_interval_over_talks_and_no_test() -> None:
    found = user_models_result([measured("Ann", number, float(number % 3)) for number in range(6)], ("none", "recon"))
    against = found["rows"][-1]["against"]
    assert against["value"] == pytest.approx(-0.1)
    assert against["low"] <= against["value"] <= against["high"]
    assert (against["p"], against["p_holm"]) == (None, None)


def test_the_table_says_what_the_figures_are() -> None:
    turns = [measured(person, number, 2.0) for person in "AB" for number in range(6)]
    facts = {"of": "person", "base": "local", "thoughts": 4, "lessons": [90, 100], "steps": [36, 39]}
    section = settling_section({"settling": {**facts, **user_models_result(turns, ("none", "recon"))}})
    assert section is not None
    [grid] = section.grids
    assert [row.title for row in grid.rows] == ["Not trained", "Pairs", "Recon-Select"]
    recon = grid.rows[2].cells
    assert [cell.text for cell in (recon[0], recon[1], recon[3], recon[4])] == ["4.800", "−0.200", "5.500", "+0.500"]
    assert (recon[1].mark, recon[4].mark) == ("closer", "further")
    assert "each person has a model of their own: 90 to 100 moments" in section.notes[0]
    assert "36 to 39 steps" in section.notes[0]
