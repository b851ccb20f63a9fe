"""evals/judges/model_judge.py: both orders are asked, nothing is asked twice, what is known must come out, and bad judges are found out."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conftest import Telling, telling
from usertwin.evals.judges.model_judge import MUST, PROMPT, judge_pairs, judged, questions_of, read_verdict
from usertwin.evals.metrics.reply_similarity import chrf
from usertwin.evals.records.measured_turns import MeasuredTurn
from usertwin.evals.records.verdicts import JudgeVerdict, Label, Question, QuestionKind, read_verdicts
from usertwin.memory import ChatModel
from usertwin.memory.models.chat import Ledger
from usertwin.personas import ModelError, UsageError

TWIN, NONE = "recalled_pairs", "no_memory"
CONTRASTS = [(TWIN, NONE)]
_SHOWN = re.compile(r"The real reply:\n(.*)\n\nReply 1:\n(.*)\n\nReply 2:\n(.*)\n")
LABELS: tuple[Label, ...] = ("1", "2", "tie")


def turn(number: int, **changes: Any) -> MeasuredTurn:
    """A turn of one of three people, in one of four conversations each; the twin is close to it, nobody's model is not."""
    person, talk = ("ann", "bob", "cyd")[number % 3], number // 3 % 4
    said = f"the train to {('Oslo', 'Rome', 'Lima', 'Bern')[number % 4]} at {number} please"
    near = (said.replace("please", "pls"), said.replace("the train", "a train"))
    base: dict[str, Any] = {
        "person": f"talks/{person}",
        "conversation_id": f"{person}-{talk}",
        "position": number,
        "context": (("desk", "Hello there"), (person, "hi"), ("desk", f"What is it, number {number}?")),
        "action": said,
        "characters": len(said),
        "replies": {
            TWIN: near if number % 2 else near[::-1],
            NONE: (f"I can certainly assist you with matter {number}!", "Kindly elaborate."),
        },
        "other_action": "who won the match last night",
    }
    return MeasuredTurn(**(base | changes))


TURNS = [turn(number) for number in range(24)]


def shown(prompt: str) -> tuple[str, str, str]:
    """The real reply and the two replies that a judge was shown."""
    [(real, first, second)] = _SHOWN.findall(prompt)
    return real, first, second


def overlapping(prompt: str, seed: int) -> str:
    """What a judge says that goes by the n-grams that a reply shares with the real one."""
    real, first, second = shown(prompt)
    difference = chrf(first, real) - chrf(second, real)
    return json.dumps({"closer": "tie" if abs(difference) < 1e-9 else "1" if difference > 0 else "2"})


def asked(
    say: Callable[[str, int], str], questions: Sequence[Question], path: Path, **options: Any
) -> tuple[list[JudgeVerdict], Telling]:
    """The verdicts of a judge that says what a function makes of the prompt, and that judge."""
    model, chat = telling(say, "instruction")
    return asyncio.run(judge_pairs(model, questions, path=path, **options)), chat


def always(label: str) -> Callable[[str, int], str]:
    return lambda *_: json.dumps({"closer": label})


def verdict(first: Label | None, second: Label | None, number: int = 0, kind: QuestionKind = "contrast") -> JudgeVerdict:
    """What a judge said of the pair of a turn."""
    one = turn(number)
    place = (kind, TWIN, NONE, one.person, one.conversation_id, one.position, 0)
    return JudgeVerdict(f"key {number}", f"pair {number}", *place, "telling", "", PROMPT.version, 0, (first, second))


# Verdicts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "closer", "score"),
    [
        ("1", "2", "a", 1.0),
        ("2", "1", "b", 0.0),
        ("tie", "tie", "tie", 0.5),
        ("1", "1", "tie", 0.5),
        ("2", "2", "tie", 0.5),
        ("1", "tie", "tie", 0.5),
        ("tie", "1", "tie", 0.5),
        (None, "1", None, None),
        ("tie", None, None, None),
    ],
)
def test_a_pair_is_won_if_both_orders_say_so_and_a_tie_if_they_disagree(
    first: Label | None, second: Label | None, closer: str | None, score: float | None
) -> None:
    one = verdict(first, second)
    assert (one.closer, one.score) == (closer, score)
    unanimous = {("1", "2"), ("2", "1"), ("tie", "tie")}
    assert one.consistent is (None if None in {first, second} else (first, second) in unanimous)


@given(st.text(), st.text(), st.integers(0, 9), st.tuples(*[st.sampled_from([*LABELS, None])] * 2))
def test_a_verdict_comes_back_from_its_line(
    person: str, talk: str, sample: int, said: tuple[Label | None, Label | None]
) -> None:
    one = replace(verdict(*said), person=person, conversation_id=talk, sample=sample)
    line = json.dumps(one.to_json(), ensure_ascii=False)
    assert "\n" not in line
    assert JudgeVerdict.from_json(json.loads(line)) == one


@given(st.sampled_from(LABELS), st.sampled_from(["{}", "```json\n{}\n```", "Gladly. {} Bye {{", '{"a": {} } {}', "{} and {}"]))
def test_a_label_is_read_whatever_is_around_it(label: Label, around: str) -> None:
    assert read_verdict(around.replace("{}", json.dumps({"why": {"x": 1}, "closer": label}))) == label


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), lambda x: st.dictionaries(st.text(), x)).map(json.dumps))
@example('{"closer": ' + "[" * 100_000)
@example('{"closer": "1"')
@example('{"closer": true}')
@example('{"closer": 1.0}')
@example('{"closer": ["1"]}')
@example('{"closer": null}')
@example('{"closer": "A"}')
@example('{"closer": "1"} or rather {"closer": "2"}')
@example('{"closer": "1"} or {"closer": "neither"}')
@example('["1"] tie 2')
def test_what_is_no_verdict_is_never_read_as_one(text: str) -> None:
    assert read_verdict(text) is None


def test_a_label_may_be_a_number() -> None:
    assert [read_verdict(f'{{"closer": {number}}}') for number in (0, 1, 2, 3)] == [None, "1", "2", None]


# Which pairs -------------------------------------------------------------------------------------------------------------


def test_every_sample_that_both_arms_have_is_a_pair() -> None:
    turns = [*TURNS[:2], turn(2, replies={TWIN: ("one", "two"), NONE: ("only",)}), turn(3, replies={TWIN: ("alone",)})]
    found = questions_of(turns, CONTRASTS, samples=2, sanity=0)
    assert [(one.position, one.sample) for one in found] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert {one.kind for one in found} == {"contrast"}
    assert [one.texts for one in found[:2]] == [*zip(TURNS[0].replies[TWIN], TURNS[0].replies[NONE], strict=True)]
    assert [one.sample for one in questions_of(turns, CONTRASTS, samples=1, sanity=0)] == [0, 0, 0]


def test_pairs_of_which_it_is_known_are_on_so_many_turns_spread_evenly() -> None:
    found = [one for one in questions_of(TURNS, CONTRASTS, samples=2, sanity=6) if one.kind != "contrast"]
    assert Counter(one.kind for one in found) == dict.fromkeys(MUST, 6)
    assert [one.position for one in found if one.kind == "real"] == [0, 4, 8, 12, 16, 20]
    for one in found:
        replies = TURNS[one.position].replies[TWIN]
        first = {"real": {one.action}, "another_person": {"who won the match last night"}}.get(one.kind, set(replies))
        assert one.texts[0] in first
        assert one.texts[1] in replies
        assert (one.texts[0] == one.texts[1]) == (one.kind == "identical")
    assert len({one.texts for one in found if one.kind == "same_arm"} & {turn.replies[TWIN] for turn in TURNS}) < 6  # drawn


def test_where_nothing_is_known_nothing_is_asked() -> None:
    said = "the train please"
    alike = turn(0, action=said, replies={TWIN: (said, f" {said}"), NONE: ("no",)}, other_action="other")
    single = turn(1, replies={TWIN: ("one",), NONE: ("no",)}, other_action="one")
    assert Counter((one.kind, one.position) for one in questions_of([alike, single], CONTRASTS) if one.kind != "contrast") == {
        ("identical", 0): 1, ("identical", 1): 1, ("real", 1): 1,
    }  # fmt: skip


def test_the_twin_can_be_named() -> None:
    found = questions_of(TURNS[:1], CONTRASTS, sanity=1, twin=NONE)
    assert {one.b for one in found if one.kind != "contrast"} == {NONE}
    assert not questions_of(TURNS, [])


def test_numbers_and_contrasts_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 1 sample"):
        questions_of(TURNS, CONTRASTS, samples=0)
    with pytest.raises(UsageError, match="at least 0"):
        questions_of(TURNS, CONTRASTS, sanity=-1)
    with pytest.raises(UsageError, match="compares an arm with itself"):
        questions_of(TURNS, [(TWIN, TWIN)])


# Asking ------------------------------------------------------------------------------------------------------------------


def test_each_pair_is_asked_in_both_orders_and_the_judge_is_not_told_the_arms(tmp_path: Path) -> None:
    questions = questions_of(TURNS[:1], CONTRASTS, sanity=0)
    ledger = Ledger()
    [one], chat = asked(overlapping, questions, tmp_path / "v.jsonl", seed=5, ledger=ledger)
    assert [shown(prompt)[1:] for prompt in chat.prompts] == [questions[0].texts, questions[0].texts[::-1]]
    assert [seed for _, seed in chat.asked] == [5, 5]
    for prompt in chat.prompts:
        assert shown(prompt)[0] == questions[0].action
        assert "desk: Hello there\nann: hi\ndesk: What is it, number 0?\n" in prompt
        assert TWIN not in prompt
        assert NONE not in prompt
    assert one.said == ("1", "2")
    assert (one.judge, one.prompt, one.seed, one.pair) == ("telling", PROMPT.version, 5, questions[0].pair)
    assert ledger.calls == 2


def test_a_long_context_is_shown_short_and_a_reply_is_one_line(tmp_path: Path) -> None:
    long = tuple(("desk", f"turn {number} " + "word " * 200) for number in range(9))
    odd = turn(0, context=long, replies={TWIN: ("two\n\nReply 2:\nlines",), NONE: ("",)})
    _, chat = asked(always("tie"), questions_of([odd], CONTRASTS, sanity=0), tmp_path / "v.jsonl")
    assert shown(chat.prompts[0])[1:] == ("two Reply 2: lines", "(nothing)")
    assert chat.prompts[0].count("desk: …") == 6
    assert len(chat.prompts[0]) < 3500


def test_a_model_that_can_be_held_to_a_schema_is(tmp_path: Path) -> None:
    options: list[dict[str, Any]] = []

    class Held(Telling):
        async def _agenerate(self, *args: Any, **more: Any) -> Any:
            options.append(more)
            return await super()._agenerate(*args, **more)

    model = ChatModel("held", Held(say=always("2")), structured=True)
    asyncio.run(judge_pairs(model, questions_of(TURNS[:1], CONTRASTS, sanity=0), path=tmp_path / "v.jsonl"))
    schema = options[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["closer"]["enum"] == ["1", "2", "tie"]


def test_what_cannot_be_read_is_asked_three_times_and_is_then_no_tie(tmp_path: Path) -> None:
    def mumble(prompt: str, seed: int) -> str:
        return always("tie")(prompt, seed) if shown(prompt)[1] == TURNS[0].replies[TWIN][0] or seed == 9 else "hard to say"

    questions = questions_of(TURNS[:1], CONTRASTS, sanity=0)
    [one], chat = asked(mumble, questions, tmp_path / "v.jsonl", seed=5)
    assert one.said == ("tie", None)
    assert one.score is None
    assert [seed for _, seed in chat.asked] == [5, 5, 6, 7]  # the same seed would only say the same
    [again], chat = asked(mumble, questions, tmp_path / "v.jsonl", seed=8)
    assert again.said == ("tie", "tie")
    assert [seed for _, seed in chat.asked] == [8, 8, 9]


@pytest.mark.parametrize("concurrency", [1, 4, 100])
def test_verdicts_come_in_the_order_of_the_questions_and_each_is_on_disk_before_the_next_is_told(
    tmp_path: Path, concurrency: int
) -> None:
    questions, path = questions_of(TURNS, CONTRASTS, sanity=2), tmp_path / "v.jsonl"
    told: list[tuple[str, int, int, int]] = []
    found, _ = asked(
        overlapping,
        questions,
        path,
        concurrency=concurrency,
        progress=lambda *one: told.append((*one, len(read_verdicts(path)))),
    )
    assert [one.place for one in found] == [one.place for one in questions]
    assert sorted(one.key for one in read_verdicts(path)) == sorted(one.key for one in found)
    assert told == [("judging", done, len(questions), done) for done in range(len(questions) + 1)]


def test_what_is_in_the_file_is_not_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    questions = questions_of(TURNS, CONTRASTS, sanity=2)
    first, chat = asked(overlapping, questions[:10], path)
    assert len(chat.asked) == 20
    again, chat = asked(overlapping, questions, path)
    assert len(chat.asked) == 2 * (len(questions) - 10)
    assert again[:10] == first
    assert len(path.read_text("utf-8").splitlines()) == len(questions)
    same, chat = asked(overlapping, questions, path)
    assert same == again
    assert not chat.asked


@pytest.mark.parametrize("what", ["seed", "judge", "weights", "text", "real turn", "context"])
def test_whatever_matters_for_a_verdict_makes_it_another_one(tmp_path: Path, what: str) -> None:
    path = tmp_path / "v.jsonl"
    asked(overlapping, questions_of(TURNS[:1], CONTRASTS, sanity=0), path)
    changes: dict[str, dict[str, Any]] = {
        "text": {"replies": {TWIN: ("new",), NONE: TURNS[0].replies[NONE]}},
        "real turn": {"action": "something else"},
        "context": {"context": (("desk", "Good day"),)},
    }
    model, chat = telling(overlapping, "instruction")
    model = replace(model, name="other" if what == "judge" else model.name, identity="v2" if what == "weights" else "")
    questions = questions_of([turn(0, **changes.get(what, {}))], CONTRASTS, sanity=0)
    asyncio.run(judge_pairs(model, questions, path=path, seed=1 if what == "seed" else 0))
    assert len(chat.asked) == 2
    assert len(read_verdicts(path)) == 2


def test_pairs_of_the_same_content_are_asked_once_and_each_has_its_verdict(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    twice = turn(0, replies={TWIN: ("yes", "yes"), NONE: ("no", "no")})
    questions = questions_of([twice], CONTRASTS, samples=2, sanity=0)
    found, chat = asked(overlapping, questions, path)
    assert [one.sample for one in found] == [0, 1]
    assert len(chat.asked) == 2
    more, chat = asked(overlapping, questions_of([twice], [(TWIN, NONE), (TWIN, "late")], samples=2, sanity=0), path)
    assert more == found
    assert not chat.asked
    elsewhere = replace(twice, conversation_id="elsewhere")
    moved, chat = asked(overlapping, questions_of([elsewhere], CONTRASTS, sanity=0), path)
    assert (moved[0].conversation_id, moved[0].said) == ("elsewhere", found[0].said)
    assert not chat.asked


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_judge_that_is_down_half_way_is_asked_only_for_the_rest(tmp_path: Path, concurrency: int) -> None:
    path, questions, answered = tmp_path / "v.jsonl", questions_of(TURNS, CONTRASTS, sanity=0), Counter[str]()

    def down(prompt: str, seed: int) -> str:
        if answered.total() == 21:
            raise ConnectionError("nobody there")
        answered[prompt] += 1
        return overlapping(prompt, seed)

    with pytest.raises(ModelError, match='"telling" did not answer: ConnectionError: nobody there'):
        asked(down, questions, path, concurrency=concurrency)
    kept = read_verdicts(path)
    assert 10 - concurrency < len(kept) <= 10  # each worker loses at most the pair it was at
    found, chat = asked(overlapping, questions, path)
    assert len(chat.asked) == 2 * (len(questions) - len(kept))
    fresh, _ = asked(overlapping, questions, tmp_path / "fresh.jsonl")
    assert found == fresh


@pytest.mark.parametrize("cut", [1, 40, -1])
def test_a_line_that_was_cut_short_by_a_kill_is_asked_again_and_harms_no_other(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "v.jsonl"
    questions = questions_of([turn(number, person="talks/ümit") for number in range(3)], CONTRASTS, sanity=0)
    whole, _ = asked(overlapping, questions, path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1] + lines[2][:cut])
    assert read_verdicts(path) == whole[:2]
    again, chat = asked(overlapping, questions, path)
    assert again == whole
    assert len(chat.asked) == 2
    assert path.read_bytes() == b"".join(lines)


@pytest.mark.parametrize(
    "broken", ["nonsense", "{}", "[]", '{"said": ["3", null]}', '{"said": ["1", "2"]}', '{"said": [[], {}]}']
)
def test_a_line_that_is_no_verdict_is_named(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "v.jsonl"
    path.write_text(f"{json.dumps(verdict('1', '2').to_json())}\n{broken}\n", "utf-8")
    with pytest.raises(UsageError, match=r"v\.jsonl, line 2: no verdict .*; delete that line"):
        asked(overlapping, [], path)


# What they say -----------------------------------------------------------------------------------------------------------


def test_a_good_judge_says_that_the_twin_is_closer_and_passes_every_check(tmp_path: Path) -> None:
    verdicts, _ = asked(overlapping, questions_of(TURNS, CONTRASTS, samples=2, sanity=24), tmp_path / "v.jsonl")
    found = judged(verdicts, seed=1)
    assert found["model"] == "telling"
    assert list(found["contrasts"]) == [f"{TWIN} - {NONE}"]
    row = found["contrasts"][f"{TWIN} - {NONE}"]
    assert row["win"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 48}
    assert (row["ties"]["value"], row["p"], row["decided"]["n"]) == (0.0, 0.25, 48)  # 2 / 2^3
    assert {kind: one["holds"] for kind, one in found["sanity"].items()} == dict.fromkeys(MUST, True)
    assert found["sanity"]["another_person"]["win"]["value"] == 0
    assert 0 < found["sanity"]["same_arm"]["win"]["value"] < 1
    assert (found["consistent"]["value"], found["first"]["value"]) == (1.0, 0.5)
    assert found["unreadable"] == {"value": 0.0, "n": 2 * len(verdicts)}
    assert (found["usable"], found["warnings"]) == (True, [])


def test_win_rates_weigh_people_the_same_and_leave_out_what_cannot_be_read() -> None:
    ann = [verdict("1", "2", number) for number in range(0, 24, 3)]
    said: list[Any] = [("2", "1"), ("tie", "tie"), ("1", "1"), ("1", "tie"), (None, "1")]
    bob = [verdict(*labels, 3 * place + 1) for place, labels in enumerate(said)]
    row = judged([*ann, *bob])["contrasts"][f"{TWIN} - {NONE}"]
    assert row["win"]["value"] == pytest.approx((1 + 1.5 / 4) / 2)
    assert row["win"]["n"] == 12
    assert row["win"]["low"] < row["win"]["value"] < row["win"]["high"]
    assert row["ties"]["value"] == pytest.approx(0.75 / 2)
    assert row["decided"]["value"] == pytest.approx((1 + 0.25) / 2)  # where both orders agree, a tie among them
    assert row["decided"]["n"] == 10
    assert row["p"] == 1.0
    alone = judged(ann)["contrasts"][f"{TWIN} - {NONE}"]
    assert alone["p"] is None


@pytest.mark.parametrize("label", ["1", "2"])
def test_a_judge_that_always_says_the_same_label_is_found_out(tmp_path: Path, label: str) -> None:
    verdicts, _ = asked(always(label), questions_of(TURNS, CONTRASTS, samples=2, sanity=10), tmp_path / "v.jsonl")
    found = judged(verdicts)
    row = found["contrasts"][f"{TWIN} - {NONE}"]
    assert (row["win"]["value"], row["ties"]["value"], row["decided"]) == (0.5, 1.0, None)
    assert (found["consistent"]["value"], found["first"]["value"]) == (0.0, float(label == "1"))
    assert not found["usable"]
    verdict_count = 2 * (48 + 30)
    assert found["warnings"][0] == (
        f'the judge "telling" answers "{label}" in 100% of {verdict_count} verdicts: '
        "what it says tells the order, not the replies, and its figures are not to be used"
    )
    assert {kind: one["holds"] for kind, one in found["sanity"].items()} == {
        "identical": False, "real": False, "same_arm": True, "another_person": False,
    }  # fmt: skip


def test_a_judge_that_nearly_always_says_the_same_label_is_found_out() -> None:
    verdicts = [verdict("1", "2" if number == 3 else "1", number) for number in range(20)]
    found = judged(verdicts)
    assert 'answers "1" in 98% of 40 verdicts' in found["warnings"][0]
    assert not found["usable"]


def test_a_judge_that_always_sees_a_tie_is_found_out(tmp_path: Path) -> None:
    verdicts, _ = asked(always("tie"), questions_of(TURNS, CONTRASTS, sanity=10), tmp_path / "v.jsonl")
    found = judged(verdicts)
    assert 'answers "tie" in 100% of 108 verdicts: what it says tells nothing of the replies' in found["warnings"][0]
    assert (found["usable"], found["first"]) == (False, None)
    assert found["sanity"]["identical"]["holds"]


def test_a_judge_that_does_not_know_the_real_turn_when_it_sees_it_is_not_used(tmp_path: Path) -> None:
    def longest(prompt: str, seed: int) -> str:
        _, first, second = shown(prompt)
        return json.dumps({"closer": "1" if len(first) > len(second) else "2"})

    turns = [turn(number, action="ok then") for number in range(24)]
    verdicts, _ = asked(longest, questions_of(turns, CONTRASTS, sanity=10), tmp_path / "v.jsonl")
    found = judged(verdicts)
    assert found["sanity"]["real"]["win"]["value"] == 0
    assert not found["usable"]
    assert found["warnings"][0].startswith('the judge "telling" does not even tell the real turn from the twin\'s reply')


def test_a_check_that_does_not_hold_is_said_with_what_came_out() -> None:
    real = [verdict("1", "2" if number % 5 else "1", number, "real") for number in range(20)]
    found = judged([*[verdict("1", "2", number) for number in range(20)], *real])
    assert found["usable"]
    [warning] = found["warnings"]
    assert "closer in at least 95% of the pairs; what came out: closer in 90% (" in warning
    assert warning.endswith("of 20 pairs")


def test_a_check_on_one_conversation_says_that_it_cannot_be_told() -> None:
    found = judged([verdict("1", "2", 0, "same_arm"), verdict("2", "1", 12, "another_person")])
    assert {kind: one["holds"] for kind, one in found["sanity"].items()} == {"same_arm": None, "another_person": None}
    assert found["contrasts"] == {}


def test_a_judge_that_changes_its_mind_with_the_order_is_warned_of() -> None:
    said: list[tuple[Label, Label]] = [("1", "2"), ("1", "1"), ("2", "tie"), ("2", "1"), ("tie", "2")]
    found = judged([verdict(*said[number % 5], number) for number in range(20)])
    assert found["usable"]
    [warning] = found["warnings"]
    assert warning.startswith('the judge "telling" says the same in both orders in only 40% of 20 pairs')


@pytest.mark.parametrize(("bad", "usable", "warned"), [(1, True, False), (3, True, True), (19, False, True)])
def test_how_much_could_not_be_read_is_told(bad: int, usable: bool, warned: bool) -> None:
    fine = [verdict(*(("1", "2") if number % 2 else ("2", "1")), number) for number in range(bad, 20)]
    found = judged([*[verdict(None, None, number) for number in range(bad)], *fine])
    assert found["unreadable"] == {"value": pytest.approx(bad / 20), "n": 40}
    assert found["contrasts"][f"{TWIN} - {NONE}"]["win"]["n"] == 20 - bad
    assert found["usable"] is usable
    assert any("cannot be read" in warning for warning in found["warnings"]) is warned


def test_where_nothing_was_judged_or_could_be_read_there_are_no_figures_and_it_is_said() -> None:
    empty, mute = judged([]), judged([verdict(None, None, number) for number in range(20)])
    for found in (empty, mute):
        assert (found["contrasts"], found["sanity"], found["consistent"], found["usable"]) == ({}, {}, None, False)
    assert empty["warnings"] == ["no pair was judged"]
    assert mute["warnings"] == [
        'the judge "telling" gave 100% of 40 answers that cannot be read: its figures are not to be used'
    ]


def test_all_of_it_is_json(tmp_path: Path) -> None:
    verdicts, _ = asked(overlapping, questions_of(TURNS, CONTRASTS, sanity=5), tmp_path / "v.jsonl")
    found = judged(verdicts)
    assert json.loads(json.dumps(found)) == found
