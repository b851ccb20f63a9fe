"""Human labels and `usertwin judge-by-hand`: blind pairs, resuming, and agreement."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pexpect
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sklearn.metrics import cohen_kappa_score

from usertwin.evals.cli.runs import judge_by_hand
from usertwin.evals.judges.human_judge import (
    HumanLabel,
    agreement,
    agreement_view,
    contrasts_to_judge,
    plan_questions,
    read_labels,
    reply_order,
)
from usertwin.evals.judges.model_judge import PROMPT, build_questions
from usertwin.evals.records.measured_turns import LABELS, MANIFEST, RUN_FORMAT, VERDICTS, MeasuredTurn
from usertwin.evals.records.verdicts import Closer, JudgeVerdict, Question
from usertwin.personas import UsageError

TWIN, NONE, OTHER = "recalled_pairs", "no_memory", "other_person"
CONTRASTS = [(TWIN, NONE)]
#: The labels of a judge in both orders, by verdict.
LABELS_IN_BOTH_ORDERS: dict[Closer, Any] = {"a": ("1", "2"), "b": ("2", "1"), "tie": ("tie", "tie")}
_FIRST = re.compile(r"^1  (.*)$", re.MULTILINE)


def turn(number: int, **changes: Any) -> MeasuredTurn:
    """Return a turn of one of three people; ann has the most."""
    person = ("ann", "ann", "ann", "bob", "cyd")[number % 5]
    base: dict[str, Any] = {
        "person": f"talks/{person}",
        "conversation_id": f"{person}-{number // 5 % 4}",
        "position": number,
        "context": (("desk", f"What is it, number {number}?"),),
        "action": f"the train at {number} please",
        "characters": 24,
        "replies": {TWIN: (f"train at {number}", f"train {number} pls"), NONE: (f"matter {number}", f"subject {number}")},
    }
    return MeasuredTurn(**(base | changes))


TURNS = [turn(number) for number in range(40)]


def verdict(question: Question, closer: Closer, judge: str = "model") -> JudgeVerdict:
    """Return a model's verdict on a pair."""
    return JudgeVerdict(
        key="key", pair=question.pair, kind=question.kind, a=question.a, b=question.b, person=question.person,
        conversation_id=question.conversation_id, position=question.position, sample=question.sample, judge=judge,
        identity="", prompt=PROMPT.version, seed=0, labels=LABELS_IN_BOTH_ORDERS[closer],
    )  # fmt: skip


def label(question: Question, closer: Closer | None, rater: str = "me", order: Any = "ab") -> HumanLabel:
    """Return a human label of a pair."""
    answer: Any = "skip" if closer is None else "tie" if closer == "tie" else str(order.index(closer) + 1)
    return HumanLabel(
        rater=rater, pair=question.pair, a=question.a, b=question.b, person=question.person,
        conversation_id=question.conversation_id, position=question.position, sample=question.sample, order=order,
        label=answer, when="2026-11-23T12:00:00+00:00",
    )  # fmt: skip


PAIRS = build_questions(TURNS, CONTRASTS, sanity=0)


def run_folder(
    folder: Path, turns: Sequence[MeasuredTurn] = TURNS, verdicts: Sequence[JudgeVerdict] = (), **manifest: Any
) -> Path:
    """A run's folder."""
    (folder / "people").mkdir(parents=True)
    (folder / MANIFEST).write_text(json.dumps({"format": RUN_FORMAT, "state": "complete"} | manifest), "utf-8")
    lines = {"people/1.jsonl": turns, VERDICTS: verdicts}
    for name, each in lines.items():
        (folder / name).write_text("".join(json.dumps(one.to_json()) + "\n" for one in each), "utf-8")
    return folder


def judge(folder: Path, given: str = "", *options: str) -> Result:
    """The command with these lines as input."""
    return CliRunner().invoke(judge_by_hand, [str(folder), *options], input=given)


def labels_on_disk(folder: Path) -> list[HumanLabel]:
    return read_labels(folder / LABELS)


# Questions --------------------------------------------------------------------------------------------------------------


def test_people_alternate() -> None:
    plan = plan_questions(TURNS, [], CONTRASTS)
    assert Counter(one.person for one in plan[:24]) == {"talks/ann": 8, "talks/bob": 8, "talks/cyd": 8}
    assert len(plan) == len({one.pair for one in plan}) == 80  # both samples, in the end


def test_a_turn_repeats_only_after_all_others() -> None:
    plan = plan_questions(TURNS, [], CONTRASTS)
    for person in ("ann", "bob", "cyd"):
        moments = [one.position for one in plan if one.person == f"talks/{person}"]
        half = len(moments) // 2
        assert len(set(moments[:half])) == half


def test_pairs_that_a_model_judged_come_first() -> None:
    judged = {one.pair for one in PAIRS[:15]}
    plan = plan_questions(TURNS, [verdict(one, "a") for one in PAIRS[:15]], CONTRASTS)
    for person in ("ann", "bob", "cyd"):
        known = [one.pair in judged for one in plan if one.person == f"talks/{person}"]
        assert known == sorted(known, reverse=True)
        assert any(known)


def test_unreadable_verdicts_do_not_count_as_judged() -> None:
    unreadable = [replace(verdict(one, "a"), labels=(None, "1")) for one in PAIRS[:15]]
    assert plan_questions(TURNS, unreadable, CONTRASTS) == plan_questions(TURNS, [], CONTRASTS)


def test_the_order_depends_on_the_seed_alone() -> None:
    assert plan_questions(TURNS, [], CONTRASTS, seed=3) == plan_questions(TURNS, [], CONTRASTS, seed=3)
    assert plan_questions(TURNS, [], CONTRASTS, seed=3) != plan_questions(TURNS, [], CONTRASTS, seed=4)


def test_equal_replies_are_not_shown() -> None:
    same = turn(0, replies={TWIN: ("yes", "yes"), NONE: ("yes ", "no")})
    assert [one.texts for one in plan_questions([same], [], CONTRASTS)] == [("yes", "no")]


def test_the_first_reply_is_random_for_each_pair_and_rater() -> None:
    mine, yours = ([reply_order(one, rater) for one in PAIRS] for rater in ("me", "you"))
    assert mine != yours
    assert 10 < mine.count("ab") < 30
    assert mine == [reply_order(one, "me") for one in PAIRS]


def test_the_default_contrasts_are_those_of_the_model_or_of_the_twin() -> None:
    turns = [turn(0, replies={NONE: ("a",), TWIN: ("b",), OTHER: ("c",)})]
    assert contrasts_to_judge(turns, []) == [(TWIN, NONE), (TWIN, OTHER)]
    one = build_questions(turns, [(OTHER, NONE)], sanity=1)
    assert contrasts_to_judge(turns, [verdict(each, "tie") for each in one]) == [(OTHER, NONE)]


@pytest.mark.parametrize("wanted", [f"{OTHER} - {NONE}", f"{NONE} - {OTHER}", f" {OTHER}  -  {NONE} "])
def test_a_contrast_is_found_in_either_order(wanted: str) -> None:
    turns = [turn(0, replies={NONE: ("a",), TWIN: ("b",), OTHER: ("c",)})]
    one = build_questions(turns, [(OTHER, NONE)], sanity=0)
    assert contrasts_to_judge(turns, [verdict(each, "tie") for each in one], wanted) == [(OTHER, NONE)]


@pytest.mark.parametrize("wanted", ["nobody - no_memory", TWIN, "", f"{TWIN} - {TWIN}", f"{TWIN} - {OTHER}"])
def test_an_unknown_contrast_is_an_error_that_lists_the_arms(wanted: str) -> None:
    with pytest.raises(UsageError, match=f'is not a contrast of this run; name two of its arms as "A - B": {TWIN}, {NONE}$'):
        contrasts_to_judge(TURNS, [], wanted)


@pytest.mark.parametrize(("replies", "has"), [({}, "no arm"), ({TWIN: ("a", "b")}, r"one arm only \(recalled_pairs\)")])
def test_fewer_than_two_arms_are_an_error(replies: dict[str, tuple[str, ...]], has: str) -> None:
    with pytest.raises(UsageError, match=f"this run has replies of {has}, and a comparison needs two"):
        contrasts_to_judge([turn(0, replies=replies)], [])


# Agreement --------------------------------------------------------------------------------------------------------------


def test_a_label_names_the_closer_arm_in_either_order() -> None:
    for order in ("ab", "ba"):
        assert [label(PAIRS[0], closer, order=order).closer for closer in ("a", "b", "tie", None)] == ["a", "b", "tie", None]
    assert label(PAIRS[0], "a", order="ba").label == "2"


LABELLINGS = st.lists(st.tuples(*[st.sampled_from(["a", "b", "tie"])] * 2), min_size=1, max_size=40)


@given(LABELLINGS)
def test_agreement_and_kappa_equal_scikit_learn(pairs: list[tuple[Closer, Closer]]) -> None:
    labels = [label(PAIRS[0], mine) for mine, _ in pairs]
    labels = [replace(one, pair=f"pair {number}", conversation_id="one") for number, one in enumerate(labels)]
    verdicts = [replace(verdict(PAIRS[0], yours), pair=f"pair {number}") for number, (_, yours) in enumerate(pairs)]
    [row] = agreement(labels, verdicts)["comparisons"]
    assert row["n"] == row["agreement"]["n"] == len(pairs)
    assert row["agreement"]["value"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    named = [(a, b) for a, b in pairs if "tie" not in {a, b}]
    assert (row["decided"] or {"n": 0})["n"] == len(named)
    if named:
        assert row["decided"]["value"] == pytest.approx(sum(a == b for a, b in named) / len(named))
    mine, yours = zip(*pairs, strict=True)
    assert {(a, b): n for a, own in row["table"].items() for b, n in own.items() if n} == Counter(pairs)
    if len({*mine, *yours}) == 1:
        assert row["kappa"] is None
    else:
        assert row["kappa"]["value"] == pytest.approx(cohen_kappa_score(mine, yours))


def test_intervals_are_over_conversations() -> None:
    closer: list[Closer] = ["a", "b", "tie"]
    labels = [label(one, closer[number % 3]) for number, one in enumerate(PAIRS)]
    verdicts = [verdict(one, closer[(number + (number % 4 == 0)) % 3]) for number, one in enumerate(PAIRS)]
    [row] = agreement(labels, verdicts)["comparisons"]
    for name in ("agreement", "decided", "kappa"):
        assert row[name]["low"] < row[name]["value"] < row[name]["high"]
    one = agreement([replace(each, person="p", conversation_id="c") for each in labels], verdicts)
    assert [one["comparisons"][0][name]["low"] for name in ("agreement", "decided", "kappa")] == [None] * 3
    assert one["notes"] == ["the pairs of me and model are from too few conversations for an interval of kappa"]


def test_raters_are_compared_on_common_pairs() -> None:
    labels = [label(one, "a", "ann") for one in PAIRS[:10]] + [label(one, "b", "bob") for one in PAIRS[5:20]]
    verdicts = [verdict(one, "a", "large") for one in PAIRS[:8]] + [verdict(one, "b", "small") for one in PAIRS[18:]]
    result = agreement(labels, verdicts)
    summary_rows = {(row["a"], row["b"]): (row["model"], row["n"], row["agreement"]["value"]) for row in result["comparisons"]}
    assert summary_rows == {
        ("ann", "large"): (True, 8, 1.0),
        ("bob", "large"): (True, 3, 0.0),
        ("bob", "small"): (True, 2, 1.0),
        ("ann", "bob"): (False, 5, 0.0),
    }
    assert (result["n"], result["raters"], result["judges"]) == (25, {"ann": 10, "bob": 15}, {"large": 8, "small": 22})
    assert "ann and large gave every pair the same label, so there is no kappa" in result["notes"]


def test_only_the_last_label_of_a_readable_contrast_counts() -> None:
    labels = [label(PAIRS[0], "b"), label(PAIRS[0], "a"), label(PAIRS[1], None), label(PAIRS[2], "a"), label(PAIRS[3], "a")]
    sanity = replace(verdict(PAIRS[3], "a"), kind="real")
    result = agreement(labels, [verdict(PAIRS[0], "a"), replace(verdict(PAIRS[2], "a"), labels=("1", None)), sanity])
    assert (result["n"], result["skipped"]) == (3, 1)
    [row] = result["comparisons"]
    assert (row["n"], row["agreement"]["value"]) == (1, 1.0)


def test_notes_explain_missing_figures() -> None:
    assert agreement([], [])["notes"] == ["no pair is judged by hand yet"]
    [note] = agreement([label(PAIRS[0], "a")], [])["notes"]
    assert note.startswith("no model judged pairs of this run, so there is nothing to compare with")
    [note] = agreement([label(PAIRS[0], "a")], [verdict(PAIRS[1], "a")])["notes"]
    assert note == "the model judged none of the pairs that were judged by hand"


def test_unreadable_verdicts_on_pairs_judged_by_hand_are_counted() -> None:
    labels = [label(one, "a") for one in PAIRS[:4]]
    verdicts = [verdict(one, "a") for one in PAIRS[:2]] + [replace(verdict(one, "a"), labels=(None, "1")) for one in PAIRS[2:6]]
    result = agreement(labels, verdicts)
    assert result["comparisons"][0]["n"] == 2
    assert result["notes"][0] == "verdicts of model that cannot be read and are left out: 2"


def test_the_view_shows_every_number_with_its_n_and_interval() -> None:
    closer: list[Closer] = ["a", "b", "tie"]
    labels = [label(one, closer[number % 3]) for number, one in enumerate(PAIRS)] + [label(PAIRS[0], None, "you")]
    verdicts = [verdict(one, closer[(number + (number % 4 == 0)) % 3], "openai:x [y]") for number, one in enumerate(PAIRS)]
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115 - nobody reads it
    console.print(agreement_view(agreement(labels, verdicts)))
    text = console.export_text()
    assert "judged by hand: 40 pairs (me 40); 1 skipped" in text
    assert "me and the judge openai:x [y], n=40" in text
    assert re.search(r"agreement +75% \(\d+% to \d+%\), n=40", text)
    assert re.search(r"agreement without ties +\d+% \(\d+% to \d+%\), n=\d+", text)
    assert re.search(r"Cohen's kappa +0\.6\d \(0\.\d\d to 0\.\d\d\), n=40", text)
    assert re.search(r"first arm +\d+ +\d+ +\d+", text)


# The command -------------------------------------------------------------------------------------------------------------


def test_answers_are_recorded_as_given_and_arms_stay_hidden(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", verdicts=[verdict(one, "a") for one in PAIRS])
    done = judge(folder, "1\nwhat?\n\n2\nT\ns\n1\n", "--count", "4")
    assert done.exit_code == 0, done.output
    assert [one.label for one in labels_on_disk(folder)] == ["1", "2", "tie", "skip", "1"]
    before = done.output.split("judged by hand")[0]
    assert not [word for word in (TWIN, NONE, "pairs_") if word in before]
    plan = plan_questions(TURNS, [verdict(one, "a") for one in PAIRS], CONTRASTS)
    for one, question, first in zip(labels_on_disk(folder), plan, _FIRST.findall(done.output), strict=False):
        assert one.pair == question.pair
        assert first.strip() == question.texts[0 if one.order == "ab" else 1]
        assert one.closer == (None if one.label == "skip" else "tie" if one.label == "tie" else one.order[int(one.label) - 1])
    assert "the train at" in done.output
    assert "judged by hand: 4 pairs (me 4); 1 skipped" in done.output
    assert "me and the judge model, n=4" in done.output


@pytest.mark.parametrize("end", ["q\n", ""])
def test_a_stopped_rater_resumes(tmp_path: Path, end: str) -> None:
    folder, whole = run_folder(tmp_path / "run"), run_folder(tmp_path / "whole")
    stopped = judge(folder, f"1\n2\ns\n{end}", "--count", "5")
    assert stopped.exit_code == 0, stopped.output
    assert "stopped; your labels are kept" in stopped.output
    on = judge(folder, "t\n1\n2\n", "--count", "5")
    assert "2 of 5 pairs are judged already" in on.output
    assert "stopped" not in on.output
    judge(whole, "1\n2\ns\nt\n1\n2\n", "--count", "5")
    assert [replace(one, when="") for one in labels_on_disk(folder)] == [replace(one, when="") for one in labels_on_disk(whole)]
    nothing = judge(folder, "", "--count", "5")
    assert nothing.exit_code == 0
    assert "pair 1" not in nothing.output
    assert len(labels_on_disk(folder)) == 6


def test_a_truncated_label_is_asked_again(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    judge(folder, "1\n2\n", "--count", "2")
    path = folder / LABELS
    path.write_bytes(path.read_bytes()[:-20])
    assert "1 of 2 pairs are judged already" in judge(folder, "t\n", "--count", "2").output
    assert [one.label for one in labels_on_disk(folder)] == ["1", "tie"]


def test_two_raters_see_the_same_pairs_and_are_compared(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", verdicts=[verdict(one, "a") for one in PAIRS])
    judge(folder, "1\n2\nt\n", "--count", "3", "--rater", "ann")
    done = judge(folder, "1\n2\nt\n", "--count", "3", "--rater", "bob")
    assert [one.pair for one in labels_on_disk(folder)[:3]] == [one.pair for one in labels_on_disk(folder)[3:]]
    assert "ann and bob, n=3" in done.output
    again = judge(folder, "1\n", "--summary")
    assert len(labels_on_disk(folder)) == 6
    assert done.output.endswith(again.output)


def test_a_large_count_takes_all_pairs(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", TURNS[:2])
    done = judge(folder, "1\n" * 9)
    assert "pair 4 of 4" in done.output
    assert len(labels_on_disk(folder)) == 4


def test_missing_model_verdicts_are_reported_first(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    done = judge(folder, "1\n", "--count", "1")
    assert done.output.startswith("no model has judged pairs of this run: your labels are kept, without a judge")
    assert "there is nothing to compare with; name a judge in the suite" in " ".join(done.output.split())
    assert "no pair is judged by hand yet" in judge(run_folder(tmp_path / "other"), "", "--summary").output


def test_invalid_input_is_one_sentence(tmp_path: Path) -> None:
    same = [turn(0, replies={TWIN: ("yes",), NONE: ("yes",)})]
    broken = run_folder(tmp_path / "broken")
    (broken / LABELS).write_text('{"rater": "me"}\n', "utf-8")
    cases = {
        "holds no run; name the folder of a run": judge(tmp_path / "nowhere"),
        "a run of format 99, but this version reads format 1": judge(run_folder(tmp_path / "old", format=99)),
        "this run has replies of no arm": judge(run_folder(tmp_path / "mute", [turn(0, replies={})])),
        "the replies of this contrast are all the same": judge(run_folder(tmp_path / "same", same)),
        "labels.jsonl:1: not a valid label": judge(broken),
        "--count is 0; it must be at least 1": judge(run_folder(tmp_path / "none"), "", "--count", "0"),
        "--rater is empty": judge(run_folder(tmp_path / "anon"), "", "--rater", " "),
        '"x - y" is not a contrast of this run': judge(run_folder(tmp_path / "odd"), "", "--contrast", "x - y"),
    }
    for sentence, done in cases.items():
        assert isinstance(done.exception, UsageError), (sentence, done.output)
        assert sentence in str(done.exception)


def test_a_single_key_answers_on_a_terminal(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", verdicts=[verdict(one, "a") for one in PAIRS])
    code = "from usertwin.evals.cli.runs import judge_by_hand; judge_by_hand(prog_name='usertwin')"
    plain = {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "120", "LINES": "50"}
    child = pexpect.spawn(
        sys.executable, ["-c", code, str(folder), "--count", "3"], encoding="utf-8", timeout=60, env=os.environ | plain
    )
    child.expect("pair 1 of 3")
    child.expect("q: quit")
    child.send("x")
    child.expect("q: quit")
    child.send("2")
    child.expect("pair 2 of 3")
    assert [one.label for one in labels_on_disk(folder)] == ["2"]  # on disk before the next pair is shown
    child.expect("q: quit")
    child.send("t")
    child.expect("pair 3 of 3")
    child.expect("q: quit")
    child.sendintr()
    child.expect("stopped; your labels are kept")
    child.expect(r"me and the judge model, n=2")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert [one.label for one in labels_on_disk(folder)] == ["2", "tie"]


def test_a_label_of_an_earlier_version_has_the_present_arm() -> None:
    current = replace(label(PAIRS[0], "a"), a="recon")
    assert HumanLabel.from_json(current.to_json() | {"a": "recalled_triples"}) == current
