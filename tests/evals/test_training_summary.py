"""evals/records/training_run.py and evals/reports/training_summary.py: a run is read or refused, and summarized as it is."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from usertwin.evals.cli.main import main
from usertwin.evals.records.training_run import is_training, read_training
from usertwin.evals.reports.training_summary import summarize_training, training_page, write_training_summary
from usertwin.personas import UsageError

MANIFEST: dict[str, Any] = {
    "format": 2,
    "kind": "training",
    "state": "complete",
    "plan": {"base": "local", "scorer": "local", "weights": {"fidelity": 1.0, "leak": 0.2}, "learning_rate": None},
    "people": {"seen": ["support/p1", "chat/p2"], "unseen": ["chat/p3"]},
    "pairs": {"train": 1210, "validation": 32},
    "sources": {"chat": "chitchat"},
    "versions": {"trl": "1.16.0"},
    "started_at": "2026-11-23T20:00:00+00:00",
}


def group(value: float, half: float | None = 0.01, **changes: Any) -> dict[str, Any]:
    """The results on a group of people, from a difference and half its interval; its test agrees with the interval."""
    p = None if half is None else 0.01 if abs(value) > half else 0.4

    def estimate(center: float) -> dict[str, Any]:
        return {
            "value": center, "low": None if half is None else center - half, "high": None if half is None else center + half
        }  # fmt: skip

    return {
        "n": 90, "people": 1, "base": estimate(0.01), "trained": estimate(0.01 + value),
        "difference": estimate(value) | {"p": p},
        "leak_rate": {"base": 0.12, "trained": 0.08, "difference": {"value": -0.04, "low": -0.08, "high": 0.01}},
        "reveals_action": {"base": 0.2, "trained": 0.21},
        "words": {"base": 22.4, "trained": 15.0},
    } | changes  # fmt: skip


def outcome(unseen: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    """The result.json of a method."""
    seen, people = group(0.03, n=120, people=2), {"chat/p3": group(0.02)}
    return {
        "method": "dpo",
        "stopped": None,
        "steps": 4,
        "tokens": 40123,
        "seconds": 750.0,
        "measured": {"scorer": "local:small", "seen": seen, "unseen": unseen, "people": people},
        "examples": [{"context": ["agent: Hello"], "action": "to Rome", "base": "a base trace", "trained": "a new | trace"}],
    } | changes


def write(folder: Path, methods: dict[str, Any], **changes: Any) -> Path:
    """A run folder with a result for each method, or only checkpoints where the result is None."""
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(MANIFEST | changes), "utf-8")
    for name, result in methods.items():
        (folder / name / "checkpoints").mkdir(parents=True)
        if result is not None:
            (folder / name / "result.json").write_text(json.dumps(result), "utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run of two methods, one of which stopped early."""
    stopped = outcome(group(-0.03, leak_rate={"base": 0.1, "trained": 0.2}), stopped="the audit rises: 20 of 32.")
    return write(tmp_path / "run", {"grpo": stopped, "dpo": outcome(group(0.021))})


def page_of(folder: Path) -> str:
    return training_page(read_training(folder))


# Reading -------------------------------------------------------------------------------------------------------------


def test_methods_come_in_report_order(tmp_path: Path) -> None:
    run = read_training(write(tmp_path / "run", dict.fromkeys(("zz", "grpo", "e2e", "sft", "dpo"))))
    assert list(run.methods) == ["sft", "dpo", "grpo", "e2e", "zz"]


def test_a_run_of_format_1_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", {"dpo": outcome(group(0.021))}, format=1, pairs={"train": 16, "watched": 3})
    (folder / "grpo").mkdir()
    (folder / "grpo" / "curves.jsonl").touch()
    assert [outcome is None for outcome in read_training(folder).methods.values()] == [False, True]
    assert "DPO writes better traces" in summarize_training(read_training(folder))[1]


def test_a_result_with_the_earlier_name_of_a_measure_is_read(tmp_path: Path) -> None:
    present = group(0.02)
    earlier = {"gives_away" if key == "reveals_action" else key: value for key, value in present.items()}
    old = read_training(write(tmp_path / "old", {"dpo": outcome(earlier)}))
    new = read_training(write(tmp_path / "new", {"dpo": outcome(present)}))
    assert "gives_away" in earlier
    assert old.methods == new.methods


@pytest.mark.parametrize("where", ["folder", "plan"])
def test_a_run_of_the_removed_method_is_refused(where: str, tmp_path: Path) -> None:
    methods = {"soup": outcome(group(0.02))} if where == "folder" else {}
    folder = write(tmp_path / "run", methods, format=1, plan={"methods": ["soup"]} if where == "plan" else {})
    with pytest.raises(UsageError, match=r'removed method "soup" \(a weighted sum of adapters\); read its own report.md'):
        read_training(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "simulate"}, r"holds a run of another kind \(simulate\)"),
        ({"format": 3}, "a training of format 3, and this version reads 1 and 2"),
        ({"people": ["p1"]}, r"manifest\.json: people: "),
        ({"pairs": {"train": "many"}}, r"manifest\.json: pairs\.train: "),
    ],
)
def test_another_manifest_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_training(write(tmp_path / "run", {}, **changes))


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run; name the folder of a training run"):
        read_training(tmp_path)
    assert not is_training(tmp_path)


def test_a_damaged_result_is_named(folder: Path) -> None:
    path = folder / "dpo" / "result.json"
    path.write_text(json.dumps(outcome(group(0.1, n="many"))))
    with pytest.raises(UsageError, match=r"result\.json: measured\.unseen\.n: .*; delete it, and run the same"):
        read_training(folder)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose files are damaged one after another."""
    return write(tmp_path_factory.mktemp("damaged") / "run", {"dpo": outcome(group(0.02)), "grpo": None})


@settings(max_examples=60)
@given(name=st.sampled_from(["manifest.json", "dpo/result.json"]), data=st.data())
def test_a_damaged_file_gives_a_summary_or_one_sentence(damaged: Path, name: str, data: st.DataObject) -> None:
    path = damaged / name
    whole = path.read_bytes()
    place, message = data.draw(st.integers(0, len(whole) - 1)), f"{damaged}: no error; at all"
    damage = data.draw(st.one_of(st.none(), st.binary(min_size=1, max_size=3)))
    try:
        path.write_bytes(whole[:place] if damage is None else whole[:place] + damage + whole[place + len(damage) :])
        is_training(damaged)
        assert page_of(damaged).startswith("# Training run run\n")
    except UsageError as error:
        message = str(error)
    finally:
        path.write_bytes(whole)
    assert message.startswith(str(damaged))
    assert re.fullmatch(r"[^\n]+; [^\n]+", message)


# Sentences -----------------------------------------------------------------------------------------------------------


def test_every_method_has_a_sentence(folder: Path) -> None:
    first, dpo, grpo = summarize_training(read_training(folder))
    assert first == "2 methods from the base local, trained on 1,210 pairs of 2 people; 1 other person held out."
    assert dpo == (
        "DPO writes better traces than the base: guarded gain +0.021 nats per token (95% interval +0.011 to +0.031, p = 0.010; "
        "90 held-out pairs of 1 person not trained on); leak rate 0.120 → 0.080 (−0.080 to +0.010)."
    )
    assert grpo.startswith("Recon-GRPO writes worse traces than the base: guarded gain −0.030")
    assert grpo.endswith("leak rate 0.100 → 0.200. It stopped early: the audit rises: 20 of 32.")


@pytest.mark.parametrize(
    ("unseen", "sentence"),
    [
        (group(0.005), "does not differ measurably from the base: guarded gain +0.005"),
        (group(0.5, None), "cannot yet be compared with the base (5 people, or 8 conversations of fewer, are needed): "
         "guarded gain +0.500 nats per token (no interval; "),
        (None, "writes better traces than the base: guarded gain +0.030 nats per token (95% interval +0.020 to "
         "+0.040, p = 0.010; 120 held-out pairs of 2 people trained on, later turns)"),
        (group(0.03, difference={"value": 0.03, "low": 0.02, "high": 0.04, "p": 0.25}),
         "does not differ measurably from the base: guarded gain +0.030 nats per token (95% interval +0.020 to +0.040, p ="),
        (group(0.03, difference={"value": 0.03, "low": 0.02, "high": 0.04}),
         "was not tested against the base, in a run of an earlier version: guarded gain +0.030"),
    ],
)  # fmt: skip
def test_a_sentence_claims_no_more_than_its_test(tmp_path: Path, unseen: dict[str, Any] | None, sentence: str) -> None:
    assert sentence in summarize_training(read_training(write(tmp_path / "run", {"dpo": outcome(unseen)})))[1]


def test_an_unfinished_or_unmeasured_method_says_so(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", {"sft": outcome(None, measured=None), "dpo": None}, state="interrupted")
    assert summarize_training(read_training(folder))[1:] == [
        "SFT on selected traces finished; nothing was measured on held-out pairs.",
        "DPO is not finished.",
    ]
    assert "The training is not finished; run the same command to resume it." in page_of(folder)


# The page ------------------------------------------------------------------------------------------------------------


def test_warnings_name_what_weakens_the_results(tmp_path: Path) -> None:
    own = outcome(group(0.02), tokens=10)
    own["measured"]["scorer"] = "local"
    page = page_of(write(tmp_path / "run", {"dpo": own, "grpo": outcome(group(0.02))}))
    assert "DPO was measured by local, which is also in its reward; pass another --measured-by." in page
    assert "different numbers of tokens, so do not compare them: DPO 10, Recon-GRPO 40,123." in page


def test_a_run_that_keeps_the_rules_has_no_warnings(tmp_path: Path) -> None:
    assert "## Warnings" not in page_of(write(tmp_path / "run", {"dpo": outcome(group(0.02))}))


def test_a_rise_of_the_leak_rate_is_a_warning(folder: Path) -> None:
    page = page_of(folder)
    assert "Recon-GRPO has a higher leak rate than the base on people not trained on: 0.100 → 0.200 (n=90)." in page
    assert "DPO leaks more" not in page


def test_every_result_has_its_interval_and_its_n(folder: Path) -> None:
    page = page_of(folder)
    assert (
        "| DPO | not trained on | +0.021 (+0.011 to +0.031) | 0.010 (0.000 to 0.020) | 0.031 (0.021 to 0.041) | – | "
        "0.120 → 0.080 (−0.080 to +0.010) | 0.200 → 0.210 | 22.4 → 15.0 | 90 |"
    ) in page
    assert "| DPO | chat/p3 | +0.020 (+0.010 to +0.030) |" in page
    assert "| Recon-GRPO | 4 | 40,123 | 12.5 | the audit rises: 20 of 32. |" in page


def test_the_page_shows_configuration_and_examples(folder: Path) -> None:
    page = page_of(folder)
    assert "- plan: base: local; scorer: local; weights: fidelity: 1.0; leak: 0.2; learning\\_rate: None" in page
    assert "- trained on: support/p1, chat/p2" in page
    assert "- versions: trl: 1.16.0" in page
    assert "| to Rome | a base trace | a new \\| trace |" in page


def test_texts_of_people_and_models_cannot_break_the_page(tmp_path: Path) -> None:
    text = "a | b\n# <script>"
    example = {"action": text, "base": "", "trained": text}
    folder = write(tmp_path / "run", {"dpo": outcome(group(0.02), stopped=text, examples=[example])}, people={"seen": [text]})
    page = page_of(folder)
    assert "a \\| b \\# \\<script\\>" in page
    assert not re.search(r"(?<!\\)<|^# <", page)
    widths = {line.replace("\\|", "").count("|") for line in page.splitlines() if line.startswith("|")}
    assert widths == {11, 6, 4}


def test_a_run_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 2, "kind": "training"}))
    run = read_training(tmp_path)
    assert write_training_summary(run) == tmp_path / "report.md"
    assert summarize_training(run) == [
        "0 methods from the base unknown, trained on 0 pairs of 0 people; 0 other people held out."
    ]


# Commands ------------------------------------------------------------------------------------------------------------


def test_the_report_command_writes_the_summary_again(folder: Path) -> None:
    result = CliRunner().invoke(main, ["report", str(folder)])
    assert result.exit_code == 0, result.output
    assert "DPO writes better traces than the base" in " ".join(result.output.split())
    assert (folder / "report.md").read_text("utf-8") == page_of(folder)


def test_the_report_command_refuses_a_damaged_training(folder: Path) -> None:
    (folder / "dpo" / "result.json").write_text("{")
    result = CliRunner().invoke(main, ["report", str(folder)])
    assert result.exit_code == 2
    assert "result.json: it is not JSON" in " ".join(result.output.split())


def test_the_compare_command_refuses_a_training(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    result = CliRunner().invoke(main, ["compare", str(folder), str(other)])
    assert result.exit_code == 2
    assert "usertwin train" in " ".join(result.output.split())
