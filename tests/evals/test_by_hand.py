"""evals/judges/human_judge.py and its command: blind pairs, each answer kept at once, and how far people and models agree."""

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

from usertwin.evals.cli.judge_by_hand import judge_by_hand
from usertwin.evals.judges.human_judge import (
    HandLabel,
    agreement,
    agreement_view,
    contrasts_to_judge,
    order_of,
    planned,
    read_labels,
)
from usertwin.evals.judges.model_judge import PROMPT, questions_of
from usertwin.evals.records.measured_turns import LABELS, MANIFEST, RUN_FORMAT, VERDICTS, MeasuredTurn
from usertwin.evals.records.verdicts import Closer, JudgeVerdict, Question
from usertwin.personas import UsageError

TWIN, NONE, OTHER = "recalled_pairs", "no_memory", "other_person"
CONTRASTS = [(TWIN, NONE)]
#: What a judge says in both orders.
SAID: dict[Closer, Any] = {"a": ("1", "2"), "b": ("2", "1"), "tie": ("tie", "tie")}
_FIRST = re.compile(r"^1  (.*)$", re.MULTILINE)


def turn(number: int, **changes: Any) -> MeasuredTurn:
    """A turn of one of three people, of whom ann has the most."""
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
    """What a model said of a pair."""
    return JudgeVerdict("key", question.pair, *question.place, judge, "", PROMPT.version, 0, SAID[closer])


def label(question: Question, closer: Closer | None, rater: str = "me", order: Any = "ab") -> HandLabel:
    """What somebody said of a pair."""
    answer: Any = "skip" if closer is None else "tie" if closer == "tie" else str(order.index(closer) + 1)
    place = (question.a, question.b, question.person, question.conversation_id, question.position, question.sample)
    return HandLabel(rater, question.pair, *place, order, answer, "2026-11-23T12:00:00+00:00")


PAIRS = questions_of(TURNS, CONTRASTS, sanity=0)


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


def kept(folder: Path) -> list[HandLabel]:
    return read_labels(folder / LABELS)


# Which pairs -------------------------------------------------------------------------------------------------------------


def test_people_come_in_turn_however_much_there_is_of_each() -> None:
    plan = planned(TURNS, [], CONTRASTS)
    assert Counter(one.person for one in plan[:24]) == {"talks/ann": 8, "talks/bob": 8, "talks/cyd": 8}
    assert len(plan) == len({one.pair for one in plan}) == 80  # both samples, in the end


def test_a_moment_comes_again_only_after_all_others() -> None:
    plan = planned(TURNS, [], CONTRASTS)
    for person in ("ann", "bob", "cyd"):
        moments = [one.position for one in plan if one.person == f"talks/{person}"]
        half = len(moments) // 2
        assert len(set(moments[:half])) == half


def test_pairs_that_a_model_judged_come_first() -> None:
    judged = {one.pair for one in PAIRS[:15]}
    plan = planned(TURNS, [verdict(one, "a") for one in PAIRS[:15]], CONTRASTS)
    for person in ("ann", "bob", "cyd"):
        known = [one.pair in judged for one in plan if one.person == f"talks/{person}"]
        assert known == sorted(known, reverse=True)
        assert any(known)


def test_what_a_judge_said_that_could_not_be_read_does_not_count() -> None:
    unreadable = [replace(verdict(one, "a"), said=(None, "1")) for one in PAIRS[:15]]
    assert planned(TURNS, unreadable, CONTRASTS) == planned(TURNS, [], CONTRASTS)


def test_the_seed_alone_decides_what_comes() -> None:
    assert planned(TURNS, [], CONTRASTS, seed=3) == planned(TURNS, [], CONTRASTS, seed=3)
    assert planned(TURNS, [], CONTRASTS, seed=3) != planned(TURNS, [], CONTRASTS, seed=4)


def test_two_replies_that_are_the_same_are_not_shown() -> None:
    same = turn(0, replies={TWIN: ("yes", "yes"), NONE: ("yes ", "no")})
    assert [one.texts for one in planned([same], [], CONTRASTS)] == [("yes", "no")]


def test_which_reply_is_first_is_drawn_for_each_pair_and_rater() -> None:
    mine, yours = ([order_of(one, rater) for one in PAIRS] for rater in ("me", "you"))
    assert mine != yours
    assert 10 < mine.count("ab") < 30
    assert mine == [order_of(one, "me") for one in PAIRS]


def test_without_a_wish_it_is_what_a_model_judged_or_else_the_twin_against_all() -> None:
    turns = [turn(0, replies={NONE: ("a",), TWIN: ("b",), OTHER: ("c",)})]
    assert contrasts_to_judge(turns, []) == [(TWIN, NONE), (TWIN, OTHER)]
    one = questions_of(turns, [(OTHER, NONE)], sanity=1)
    assert contrasts_to_judge(turns, [verdict(each, "tie") for each in one]) == [(OTHER, NONE)]


@pytest.mark.parametrize("wanted", [f"{OTHER} - {NONE}", f"{NONE} - {OTHER}", f" {OTHER}  -  {NONE} "])
def test_a_contrast_is_found_in_either_order(wanted: str) -> None:
    turns = [turn(0, replies={NONE: ("a",), TWIN: ("b",), OTHER: ("c",)})]
    one = questions_of(turns, [(OTHER, NONE)], sanity=0)
    assert contrasts_to_judge(turns, [verdict(each, "tie") for each in one], wanted) == [(OTHER, NONE)]


@pytest.mark.parametrize("wanted", ["nobody - no_memory", TWIN, "", f"{TWIN} - {TWIN}", f"{TWIN} - {OTHER}"])
def test_a_contrast_that_is_not_there_is_refused_and_the_arms_are_named(wanted: str) -> None:
    with pytest.raises(UsageError, match=f'is no contrast of this run; name two of its arms as "A - B": {TWIN}, {NONE}$'):
        contrasts_to_judge(TURNS, [], wanted)


@pytest.mark.parametrize(("replies", "has"), [({}, "no arm"), ({TWIN: ("a", "b")}, r"one arm \(recalled_pairs\)")])
def test_fewer_than_two_replies_at_a_moment_are_not_enough(replies: dict[str, tuple[str, ...]], has: str) -> None:
    with pytest.raises(UsageError, match=f"this run has replies of {has}, and two are compared"):
        contrasts_to_judge([turn(0, replies=replies)], [])


# How far they agree ------------------------------------------------------------------------------------------------------


def test_a_label_says_which_arm_is_closer_in_whatever_order_it_was_shown() -> None:
    for order in ("ab", "ba"):
        assert [label(PAIRS[0], closer, order=order).closer for closer in ("a", "b", "tie", None)] == ["a", "b", "tie", None]
    assert label(PAIRS[0], "a", order="ba").label == "2"


LABELLINGS = st.lists(st.tuples(*[st.sampled_from(["a", "b", "tie"])] * 2), min_size=1, max_size=40)


@given(LABELLINGS)
def test_agreement_and_kappa_are_what_scikit_learn_says(pairs: list[tuple[Closer, Closer]]) -> None:
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


def test_intervals_resample_conversations() -> None:
    closer: list[Closer] = ["a", "b", "tie"]
    labels = [label(one, closer[number % 3]) for number, one in enumerate(PAIRS)]
    verdicts = [verdict(one, closer[(number + (number % 4 == 0)) % 3]) for number, one in enumerate(PAIRS)]
    [row] = agreement(labels, verdicts, seed=1)["comparisons"]
    for name in ("agreement", "decided", "kappa"):
        assert row[name]["low"] < row[name]["value"] < row[name]["high"]
    assert agreement(labels, verdicts, seed=1) == agreement(labels, verdicts, seed=1)
    one = agreement([replace(each, person="p", conversation_id="c") for each in labels], verdicts)
    assert [one["comparisons"][0][name]["low"] for name in ("agreement", "decided", "kappa")] == [None] * 3
    assert one["notes"] == ["the pairs of me and model are of too few conversations for an interval of kappa"]


def test_every_two_are_compared_on_what_both_judged() -> None:
    labels = [label(one, "a", "ann") for one in PAIRS[:10]] + [label(one, "b", "bob") for one in PAIRS[5:20]]
    verdicts = [verdict(one, "a", "large") for one in PAIRS[:8]] + [verdict(one, "b", "small") for one in PAIRS[18:]]
    found = agreement(labels, verdicts)
    told = {(row["a"], row["b"]): (row["model"], row["n"], row["agreement"]["value"]) for row in found["comparisons"]}
    assert told == {
        ("ann", "large"): (True, 8, 1.0),
        ("bob", "large"): (True, 3, 0.0),
        ("bob", "small"): (True, 2, 1.0),
        ("ann", "bob"): (False, 5, 0.0),
    }
    assert (found["n"], found["raters"], found["judges"]) == (25, {"ann": 10, "bob": 15}, {"large": 8, "small": 22})
    assert "ann and large gave every pair the same label, so there is no kappa" in found["notes"]


def test_skipped_pairs_unreadable_verdicts_and_sanity_pairs_do_not_count_and_the_last_label_does() -> None:
    labels = [label(PAIRS[0], "b"), label(PAIRS[0], "a"), label(PAIRS[1], None), label(PAIRS[2], "a"), label(PAIRS[3], "a")]
    sanity = replace(verdict(PAIRS[3], "a"), kind="real")
    found = agreement(labels, [verdict(PAIRS[0], "a"), replace(verdict(PAIRS[2], "a"), said=("1", None)), sanity])
    assert (found["n"], found["skipped"]) == (3, 1)
    [row] = found["comparisons"]
    assert (row["n"], row["agreement"]["value"]) == (1, 1.0)


def test_what_could_not_be_reckoned_is_said() -> None:
    assert agreement([], [])["notes"] == ["nothing was judged by hand yet"]
    [note] = agreement([label(PAIRS[0], "a")], [])["notes"]
    assert note.startswith("no model has judged pairs of this run, so there is nothing to compare with")
    [note] = agreement([label(PAIRS[0], "a")], [verdict(PAIRS[1], "a")])["notes"]
    assert note == "the model judged none of the pairs that were judged by hand"


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
    assert re.search(r"where both name a reply +\d+% \(\d+% to \d+%\), n=\d+", text)
    assert re.search(r"Cohen's kappa +0\.6\d \(0\.\d\d to 0\.\d\d\), n=40", text)
    assert re.search(r"first arm +\d+ +\d+ +\d+", text)


# The command -------------------------------------------------------------------------------------------------------------


def test_answers_are_kept_as_they_were_given_and_arms_are_never_shown(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", verdicts=[verdict(one, "a") for one in PAIRS])
    done = judge(folder, "1\nwhat?\n\n2\nT\ns\n1\n", "--count", "4")
    assert done.exit_code == 0, done.output
    assert [one.label for one in kept(folder)] == ["1", "2", "tie", "skip", "1"]
    before = done.output.split("judged by hand")[0]
    assert not [word for word in (TWIN, NONE, "pairs_") if word in before]
    plan = planned(TURNS, [verdict(one, "a") for one in PAIRS], CONTRASTS)
    for one, question, first in zip(kept(folder), plan, _FIRST.findall(done.output), strict=False):
        assert one.pair == question.pair
        assert first.strip() == question.texts[0 if one.order == "ab" else 1]
        assert one.closer == (None if one.label == "skip" else "tie" if one.label == "tie" else one.order[int(one.label) - 1])
    assert "the train at" in done.output
    assert "judged by hand: 4 pairs (me 4); 1 skipped" in done.output
    assert "me and the judge model, n=4" in done.output


@pytest.mark.parametrize("end", ["q\n", ""])
def test_whoever_stops_goes_on_where_they_were(tmp_path: Path, end: str) -> None:
    folder, whole = run_folder(tmp_path / "run"), run_folder(tmp_path / "whole")
    stopped = judge(folder, f"1\n2\ns\n{end}", "--count", "5")
    assert stopped.exit_code == 0, stopped.output
    assert "stopped; what you said is kept" in stopped.output
    on = judge(folder, "t\n1\n2\n", "--count", "5")
    assert "2 of 5 pairs are judged already" in on.output
    assert "stopped" not in on.output
    judge(whole, "1\n2\ns\nt\n1\n2\n", "--count", "5")
    assert [replace(one, when="") for one in kept(folder)] == [replace(one, when="") for one in kept(whole)]
    nothing = judge(folder, "", "--count", "5")
    assert nothing.exit_code == 0
    assert "pair 1" not in nothing.output
    assert len(kept(folder)) == 6


def test_a_label_that_was_cut_short_by_a_kill_is_asked_again(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    judge(folder, "1\n2\n", "--count", "2")
    path = folder / LABELS
    path.write_bytes(path.read_bytes()[:-20])
    assert "1 of 2 pairs are judged already" in judge(folder, "t\n", "--count", "2").output
    assert [one.label for one in kept(folder)] == ["1", "tie"]


def test_two_raters_are_asked_about_the_same_pairs_and_compared(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", verdicts=[verdict(one, "a") for one in PAIRS])
    judge(folder, "1\n2\nt\n", "--count", "3", "--rater", "ann")
    done = judge(folder, "1\n2\nt\n", "--count", "3", "--rater", "bob")
    assert [one.pair for one in kept(folder)[:3]] == [one.pair for one in kept(folder)[3:]]
    assert "ann and bob, n=3" in done.output
    again = judge(folder, "1\n", "--summary")
    assert len(kept(folder)) == 6
    assert done.output.endswith(again.output)


def test_there_are_no_more_pairs_than_there_are(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", TURNS[:2])
    done = judge(folder, "1\n" * 9)
    assert "pair 4 of 4" in done.output
    assert len(kept(folder)) == 4


def test_without_verdicts_of_a_model_that_is_said_first(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    done = judge(folder, "1\n", "--count", "1")
    assert done.output.startswith("no model has judged pairs of this run: your labels are kept, but")
    assert "there is nothing to compare with; name a judge in the suite" in " ".join(done.output.split())
    assert "nothing was judged by hand yet" in judge(run_folder(tmp_path / "other"), "", "--summary").output


def test_what_cannot_be_judged_is_one_sentence(tmp_path: Path) -> None:
    same = [turn(0, replies={TWIN: ("yes",), NONE: ("yes",)})]
    broken = run_folder(tmp_path / "broken")
    (broken / LABELS).write_text('{"rater": "me"}\n', "utf-8")
    cases = {
        "no run is there; name the folder of a run": judge(tmp_path / "nowhere"),
        "a run of format 99, and this version reads format 1": judge(run_folder(tmp_path / "old", format=99)),
        "this run has replies of no arm": judge(run_folder(tmp_path / "mute", [turn(0, replies={})])),
        "no two replies of this contrast differ": judge(run_folder(tmp_path / "same", same)),
        "labels.jsonl, line 1: no label": judge(broken),
        "at least one pair is judged": judge(run_folder(tmp_path / "none"), "", "--count", "0"),
        "a name is needed": judge(run_folder(tmp_path / "anon"), "", "--rater", " "),
        '"x - y" is no contrast of this run': judge(run_folder(tmp_path / "odd"), "", "--contrast", "x - y"),
    }
    for sentence, done in cases.items():
        assert isinstance(done.exception, UsageError), (sentence, done.output)
        assert sentence in str(done.exception)


def test_on_a_terminal_one_key_is_an_answer(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", verdicts=[verdict(one, "a") for one in PAIRS])
    code = "from usertwin.evals.cli.judge_by_hand import judge_by_hand; judge_by_hand(prog_name='usertwin')"
    plain = {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "120", "LINES": "50"}
    child = pexpect.spawn(
        sys.executable, ["-c", code, str(folder), "--count", "3"], encoding="utf-8", timeout=60, env=os.environ | plain
    )
    child.expect("pair 1 of 3")
    child.expect("q: stop")
    child.send("x")
    child.expect("q: stop")
    child.send("2")
    child.expect("pair 2 of 3")
    assert [one.label for one in kept(folder)] == ["2"]  # on disk before the next pair is shown
    child.expect("q: stop")
    child.send("t")
    child.expect("pair 3 of 3")
    child.expect("q: stop")
    child.sendintr()
    child.expect("stopped; what you said is kept")
    child.expect(r"me and the judge model, n=2")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert [one.label for one in kept(folder)] == ["2", "tie"]
