"""Tests of evals/suites/user_model_experiment.py: training data, measured turns, resumption, and figures computed by hand."""

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

from usertwin.evals.records.measured_turns import MeasuredTurn, read_manifest, read_turn_file
from usertwin.evals.records.run_folder import HTML_REPORT, MARKDOWN_REPORT
from usertwin.evals.reports.tables import user_models_section
from usertwin.evals.suites.config import Suite, logs_of, read_suite
from usertwin.evals.suites.run import SuiteRun, work_estimate
from usertwin.evals.suites.user_model_experiment import (
    ExampleRow,
    TrainedPerson,
    check_user_models,
    example_rows,
    user_models_result,
)
from usertwin.memory.training.user_model import PromptCompletion
from usertwin.personas import Pair, UsageError
from usertwin.personas.pairs import group_pairs

pytestmark = pytest.mark.usefixtures("in_one_thread")

ARMS = 'arms = ["no_memory", "other_person", "recalled_pairs"]'
CORPORA = '[[corpora]]\nname = "shop"'
TABLE = """\
[traces]
pairs = 12
candidates = 2

[user_models]
base = "transformers:base"
steps = 2
batch_size = 2
rank = 2
thoughts = 2
turns = 3
of = "group"

"""


def experiment_suite(folder: Path, *changes: tuple[str, str]) -> Suite:
    """Return the invented suite with the experiment and little else."""
    base = [(ARMS, 'arms = ["no_memory"]'), ("turns = 6\nreplies = 3", "turns = 2\nreplies = 0"), (CORPORA, TABLE + CORPORA)]
    return small_suite(folder, *base, *changes)


def run(suite: Suite, folder: Path, models: Models | None = None, progress: Callable[..., None] | None = None) -> Any:
    options: dict[str, Any] = {} if progress is None else {"progress": progress}
    return asyncio.run(SuiteRun(suite, folder, models=(models or Models(action=thinks)).of(suite), **options).run())


def thinks(prompt: str, seed: int) -> str:
    """Return a varying thought that the guards accept."""
    return f"was {('calm', 'proud', 'shy', 'bold', 'tense')[seed % 5]} and wanted {len(prompt)} things"


@pytest.fixture(autouse=True)
def _weights_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED", raising=False)  # the base is a tiny model of this test


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a base model."""
    folder = tmp_path_factory.mktemp("experiment")
    tiny_model(folder / "base")
    return folder


@pytest.fixture(scope="module")
def killed(home: Path) -> tuple[Path, dict[str, Any], list[tuple[str, int, int]]]:
    """Return a run that was killed once while measuring and once while training, its result, and the steps after the kills."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("USERTWIN_ONLY_SCRIPTED", raising=False)
        suite, steps = experiment_suite(home), list[tuple[str, int, int]]()

        def until(stage: str, done: int) -> Callable[[str, int, int], None]:
            def progress(at: str, count: int, total: int) -> None:
                steps.append((at, count, total))
                if (at, count) == (stage, done):
                    raise KeyboardInterrupt

            return progress

        for stage, done in (("user models", 2), ("fitting", 2)):
            with pytest.raises(KeyboardInterrupt):
                run(suite, home / "run", progress=until(stage, done))
        steps.clear()
        return home / "run", run(suite, home / "run", progress=until("", -1)), steps


# A run ---------------------------------------------------------------------------------------------------------------------


def test_a_killed_run_resumes_and_measures_every_turn_once_under_every_kind(
    killed: tuple[Path, dict[str, Any], list[tuple[str, int, int]]],
) -> None:
    folder, result, steps = killed
    assert read_manifest(folder)["state"] == "complete"
    for number in (0, 1):
        for kind in ("base", "none", "backward", "recon"):
            turns = read_turn_file(folder / "people" / f"user-models-{number}-{kind}.part")
            assert len({(turn.conversation_id, turn.position) for turn in turns}) == len(turns) == 3
    assert result["user_models"]["turns"] == 6
    # The second kill was in the second step of the first model, so only that step of it was repeated.
    assert [done for stage, done, _ in steps if stage == "fitting"] == [2, 1, 2, 1, 2]


def test_a_finished_run_trains_nothing_and_has_the_same_result(
    home: Path, killed: tuple[Path, dict[str, Any], list[tuple[str, int, int]]]
) -> None:
    folder, result, _ = killed
    stages: list[str] = []
    again = run(experiment_suite(home), folder, Models(max_calls=(0, 0)), lambda *step: stages.append(step[0]))
    assert again["user_models"] == result["user_models"]
    assert "fitting" not in stages


def test_kinds_with_traces_score_with_and_without_thoughts_and_other_kinds_without(
    killed: tuple[Path, dict[str, Any], list[tuple[str, int, int]]],
) -> None:
    people = killed[0] / "people"
    for kind, bits in {"base": ["base"], "none": ["none"], "recon": ["recon, without thoughts", "recon"]}.items():
        for turn in read_turn_file(people / f"user-models-0-{kind}.part"):
            assert list(turn.bits) == bits
            assert all(math.isfinite(cost) and cost > 0 for cost in turn.bits.values())
            assert (kind in turn.reasoning) == (kind == "recon")


def test_every_kind_is_trained_on_the_same_pairs_for_the_same_steps(
    killed: tuple[Path, dict[str, Any], list[tuple[str, int, int]]],
) -> None:
    adapters = [json.loads(path.read_text("utf-8")) for path in (killed[0] / "user_models").glob("c0-*/usertwin.json")]
    assert {facts["kind"] for facts in adapters} == {"none", "backward", "recon"}
    assert len({(facts["rows"], facts["steps"]) for facts in adapters}) == 1
    assert len({facts["made_of"] for facts in adapters}) == 3 - _same_traces(adapters)
    assert killed[1]["user_models"]["models"]["c0"]["examples"] == adapters[0]["rows"] >= 8
    assert killed[1]["user_models"]["models"]["c0"]["people"] == ["shop/Ann", "shop/Bob"]


def _same_traces(adapters: list[dict[str, Any]]) -> bool:
    fingerprints = {facts["kind"]: facts["made_of"] for facts in adapters}
    return fingerprints["backward"] == fingerprints["recon"]


def test_no_held_out_turn_is_in_the_training_rows(
    home: Path, killed: tuple[Path, dict[str, Any], list[tuple[str, int, int]]]
) -> None:
    """Checked in the rows that reach the trainer."""
    import usertwin.evals.suites.user_model_experiment as module

    rows: list[str] = []

    def record(given: Sequence[PromptCompletion], *_: Any, **__: Any) -> dict[str, float]:
        rows.extend("".join(row) for row in given)
        return {"loss": 1.0}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fine_tune", record)
        run(experiment_suite(home), killed[0])
    held_out = {
        turn.conversation_id
        for number in (0, 1)
        for turn in read_turn_file(killed[0] / "people" / f"user-models-{number}-none.part")
    }
    log, questions = logs_of(experiment_suite(home))["shop"], dict[str, set[str]]()
    for name in ("Ann", "Bob"):
        for pair in (pair for group in group_pairs(log.conversations, name) for pair in group):
            questions.setdefault(pair.conversation_id, set()).add(pair.context[-1].text)  # seven random words
    training_text = "\n".join(rows)
    assert held_out <= set(questions)
    assert not [talk for talk in held_out if any(text in training_text for text in questions[talk])]
    assert len([talk for talk, texts in questions.items() if any(text in training_text for text in texts)]) >= 4


def test_the_report_has_the_table(killed: tuple[Path, dict[str, Any], list[tuple[str, int, int]]]) -> None:
    for name in (HTML_REPORT, MARKDOWN_REPORT):
        text = (killed[0] / name).read_text("utf-8")
        assert "User models fine-tuned with traces" in text
        assert "Recon-selected traces" in text


def test_each_person_can_have_a_separate_model_and_trained_is_a_kind(home: Path) -> None:
    changes = [
        ('of = "group"', 'of = "person"\nkinds = ["none", "trained"]'),
        ('scorer = "fake:"', 'scorer = "fake:"\ntrained = "scripted:action.txt"'),
        ('people = ["Ann", "Bob"]', 'people = ["Ann"]'),
    ]
    result = run(experiment_suite(home, *changes), home / "alone")["user_models"]
    assert list(result["models"]) == ["p00"]
    assert [row["kind"] for row in result["rows"]] == ["base", "none", "trained"]
    assert sorted(path.name for path in (home / "alone" / "user_models").iterdir()) == ["p00-none", "p00-trained"]


def test_a_run_without_the_table_has_no_such_section(tmp_path: Path) -> None:
    result = run(small_suite(tmp_path, (ARMS, 'arms = ["no_memory"]'), ("replies = 3", "replies = 0")), tmp_path / "run")
    assert result["user_models"] is None
    assert user_models_section(result) is None


def test_too_few_pairs_with_traces_are_refused_with_the_way_out(home: Path) -> None:
    suite = experiment_suite(home, ("pairs = 12", "pairs = 3"))
    with pytest.raises(
        UsageError, match=r"shop/Ann, shop/Bob: only 6 pairs have a trace of every kind \(none, backward, recon\), and 8"
    ):
        run(suite, home / "few")
    assert not (home / "few" / "user_models").exists()


# Training examples -----------------------------------------------------------------------------------------------------------


def trained_person(number: int, talks: str, held_out: str) -> TrainedPerson:
    examples: tuple[ExampleRow, ...] = tuple(
        (Pair(speaker="x", context=(), action="hi", goal="", conversation_id=talk, position=0, when=0.0), {"none": None})
        for talk in talks
    )
    return TrainedPerson(
        number=number, label=f"x/{number}", group="c0", examples=examples, test_pairs=(), held_out=frozenset(held_out)
    )


def test_a_group_learns_no_conversation_that_is_held_out_for_a_member() -> None:
    rows = example_rows([trained_person(0, "abc", "d"), trained_person(1, "bcd", "ae")])
    assert [pair.conversation_id for pair, _ in rows] == ["b", "c", "b", "c"]


# The table in a suite file --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("kind = 3", 'user_models.kind: there is no such key; did you mean "kinds"?'),
        ('kinds = ["recon"]', 'user_models.kinds: name the baseline "none" and at least one kind of traces'),
        ('kinds = ["none"]', 'user_models.kinds: name the baseline "none" and at least one kind of traces'),
        ('kinds = ["none", "x"]', "user_models.kinds[1]: Input should be "),
        ('kinds = ["none", "trained"]', 'user_models.kinds: "trained" needs the model models.trained; set it'),
        ("turns = 0", "user_models.turns: Input should be greater than or equal to 1, not 0"),
        ("of = 'all'", "user_models.of: Input should be 'person' or 'group', not 'all'"),
        ('base = "openai:x"', 'user_models.base: "openai:x" has no weights here; use "local"'),
    ],
)
def test_an_error_in_the_table_is_one_sentence_with_the_key(tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "s.toml").write_text(f'[[corpora]]\nname = "a"\nfrom = "chitchat"\n[user_models]\n{table}\n', "utf-8")
    with pytest.raises(UsageError) as error:
        read_suite(tmp_path / "s.toml")
    assert str(error.value).startswith(f"{tmp_path / 's.toml'}: {message}")


def test_trained_is_a_default_kind_only_with_a_trained_synthesizer(tmp_path: Path) -> None:
    assert experiment_suite(tmp_path).user_model_kinds == ("none", "backward", "recon")
    other = experiment_suite(tmp_path, ('scorer = "fake:"', 'scorer = "fake:"\ntrained = "local"'))
    assert other.user_model_kinds == ("none", "backward", "recon", "trained")
    assert read_suite(suite_file(tmp_path)).user_model_kinds == ()


@pytest.mark.parametrize("base", ["openai:x", "fake:", "transformers:", "scripted:x.txt"])
def test_a_base_that_cannot_be_trained_is_refused_before_anything_is_learned(tmp_path: Path, base: str) -> None:
    with pytest.raises(UsageError, match=r"suite\.toml: user_models\.base: .* has no weights here; use"):
        experiment_suite(tmp_path, ("transformers:base", base))
    suite = experiment_suite(tmp_path)
    assert suite.user_models is not None
    made_in_code = suite.model_copy(update={"user_models": suite.user_models.model_copy(update={"base": base})})
    with pytest.raises(UsageError, match="has no weights here"):
        check_user_models(made_in_code)


def test_the_estimate_has_the_work_of_the_experiment(tmp_path: Path) -> None:
    suite = experiment_suite(tmp_path)
    logs = logs_of(suite)
    lines = work_estimate(suite, logs, SuiteRun(suite, tmp_path / "run").people(logs))
    assert f"3 user models of transformers:{tmp_path / 'base'} (none, backward, recon), at most 6 steps of 2 pairs" in lines
    assert "48 turns scored under them, and 24 thoughts sampled" in lines  # 2 people, 3 turns: 1 + 3 + 2 kinds of 2 thoughts
    assert any(line.startswith("traces for the user models: 48 completions of scripted:") for line in lines)


def test_the_example_has_two_hundred_turns_or_more_and_the_default_kinds() -> None:
    suite = read_suite(Path(__file__).resolve().parents[2] / "examples" / "suite_user_models.toml")
    assert suite.user_model_kinds == ("none", "backward", "recon")
    assert suite.user_models is not None
    people = [corpus.people for corpus in suite.corpora]
    assert sum(count for count in people if isinstance(count, int)) * suite.user_models.turns >= 200


# Figures computed by hand ---------------------------------------------------------------------------------------------


def measured(person: str, number: int, gain: float) -> MeasuredTurn:
    """Return a turn of ten characters."""
    bits = {
        "base": 60.0,
        "none": 50.0,
        "recon": 50.0 - gain,
        "recon, without thoughts": 55.0,
        "backward": 50.0,
        "backward, without thoughts": 50.0,
    }
    return MeasuredTurn(
        person=f"x/{person}", conversation_id=f"talk-{number // 2}", position=number, context=(), action="what I say",
        characters=10, bits=bits,
    )  # fmt: skip


def test_the_rows_are_bits_and_differences_to_pairs_at_the_same_turns() -> None:
    """Ann gains 2 bits and Bob 4 bits on ten characters: 0.2 and 0.4 a character, 0.3 on average."""
    turns = [measured(person, number, gain) for person, gain in (("Ann", 2.0), ("Bob", 4.0)) for number in range(6)]
    result = user_models_result(turns, ("none", "backward", "recon"))
    rows = {row["kind"]: row for row in result["rows"]}
    assert list(rows) == ["base", "none", "backward", "recon"]
    assert rows["none"]["bits_per_char"]["value"] == pytest.approx(5.0)
    assert (rows["none"]["against"], rows["none"]["without_thoughts"], rows["base"]["without_thoughts"]) == (None, None, None)
    assert rows["base"]["against"]["value"] == pytest.approx(1.0)
    recon = rows["recon"]
    assert recon["bits_per_char"]["value"] == pytest.approx(4.7)
    assert recon["against"]["value"] == pytest.approx(-0.3)
    assert recon["against"]["low"] is recon["against"]["high"] is None  # of two people
    assert (recon["without_thoughts"]["value"], recon["without_thoughts_against"]["value"]) == pytest.approx((5.5, 0.5))
    assert recon["against"]["n"] == result["turns"] == 12
    assert rows["backward"]["against"]["value"] == pytest.approx(0.0)
    assert result["paired"]["recon - backward"]["value"] == pytest.approx(-0.3)
    assert (result["people"], result["conversations"]) == (2, 6)


def test_only_the_declared_family_is_corrected() -> None:
    """Six people who all gain: the smallest p of a sign flip is 2 / 2^6; Holm doubles the smaller of two."""
    turns = [measured(person, number, 2.0) for person in "ABCDEF" for number in range(4)]
    result = user_models_result(turns, ("none", "backward", "recon"))
    rows = {row["kind"]: row for row in result["rows"]}
    assert result["family"]["contrasts"] == ["backward - none", "recon - none"]
    assert rows["recon"]["against"]["p"] == pytest.approx(2 / 64)
    assert rows["recon"]["against"]["p_holm"] == pytest.approx(4 / 64)
    assert "p_holm" not in rows["base"]["against"]
    assert "p_holm" not in rows["recon"]["without_thoughts_against"]


def test_one_person_with_few_conversations_has_no_interval_and_no_test() -> None:
    result = user_models_result([measured("Ann", number, float(number % 3)) for number in range(6)], ("none", "recon"))
    against = result["rows"][-1]["against"]
    assert against["value"] == pytest.approx(-0.1)
    assert against["low"] is against["high"] is None  # of three conversations
    assert (against["p"], against["p_holm"]) == (None, None)


def test_the_table_has_the_figures() -> None:
    turns = [measured(person, number, 2.0) for person in "AB" for number in range(6)]
    facts = {"of": "person", "base": "local", "thoughts": 4, "examples": [90, 100], "steps": [36, 39]}
    section = user_models_section({"user_models": {**facts, **user_models_result(turns, ("none", "recon"))}})
    assert section is not None
    [grid] = section.grids
    assert [row.title for row in grid.rows] == ["Not trained", "Pairs alone", "Recon-selected traces"]
    recon = grid.rows[2].cells
    assert [cell.text for cell in (recon[0], recon[1], recon[3], recon[4])] == ["4.800", "−0.200", "5.500", "+0.500"]
    assert (recon[1].mark, recon[4].mark) == ("", "")  # of two people
    assert "each person has a separate model. All kinds were trained on the same pairs (90 to 100)" in section.notes[0]
    assert "36 to 39 steps" in section.notes[0]
