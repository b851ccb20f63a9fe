"""The model judge: both orders, resuming, sanity checks, and unusable judges."""

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

from conftest import Endpoint, FunctionChatModel, function_model
from usertwin.evals.judges.model_judge import (
    PROMPT,
    SANITY_CHECKS,
    build_questions,
    judge_pairs,
    parse_label,
    summarize_verdicts,
)
from usertwin.evals.metrics.reply_similarity import chrf
from usertwin.evals.records.measured_turns import MeasuredTurn
from usertwin.evals.records.verdicts import JudgeVerdict, Label, Question, QuestionKind, read_verdicts, slot
from usertwin.memory import ChatModel
from usertwin.memory.models.chat import Ledger
from usertwin.memory.models.completion_cache import CompletionCache
from usertwin.personas import ModelError, UsageError
from usertwin.simulator import load_model

pytestmark = pytest.mark.usefixtures("two_clusters_suffice")

TWIN, NONE = "recalled_pairs", "no_memory"
CONTRASTS = [(TWIN, NONE)]
_SHOWN = re.compile(r"The real reply:\n(.*)\n\nReply 1:\n(.*)\n\nReply 2:\n(.*)\n")
LABELS: tuple[Label, ...] = ("1", "2", "tie")


def turn(number: int, **changes: Any) -> MeasuredTurn:
    """Return a turn of one of three people with four conversations each; the twin is close to it, no memory is not."""
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
    """Return the real reply and the two replies in a prompt."""
    [(real, first, second)] = _SHOWN.findall(prompt)
    return real, first, second


def judge_by_chrf(prompt: str, seed: int) -> str:
    """Return the answer of a judge that compares by chrF."""
    real, first, second = shown(prompt)
    difference = chrf(first, real) - chrf(second, real)
    return json.dumps({"closer": "tie" if abs(difference) < 1e-9 else "1" if difference > 0 else "2"})


def judge_with(
    say: Callable[[str, int], str], questions: Sequence[Question], path: Path, **options: Any
) -> tuple[list[JudgeVerdict], FunctionChatModel]:
    """Return the verdicts of a judge that answers by a function, and its chat model."""
    model, chat = function_model(say, "instruction")
    return asyncio.run(judge_pairs(model, questions, path=path, **options)), chat


def always(label: str) -> Callable[[str, int], str]:
    return lambda *_: json.dumps({"closer": label})


def verdict(first: Label | None, second: Label | None, number: int = 0, kind: QuestionKind = "contrast") -> JudgeVerdict:
    """Return a verdict with these labels on the pair of a turn."""
    judged = turn(number)
    return JudgeVerdict(
        key=f"key {number}", pair=f"pair {number}", kind=kind, a=TWIN, b=NONE, person=judged.person,
        conversation_id=judged.conversation_id, position=judged.position, sample=0, judge="telling", identity="",
        prompt=PROMPT.version, seed=0, labels=(first, second),
    )  # fmt: skip


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
def test_a_verdict_needs_both_orders_and_disagreement_is_a_tie(
    first: Label | None, second: Label | None, closer: str | None, score: float | None
) -> None:
    one = verdict(first, second)
    assert (one.closer, one.score) == (closer, score)
    unanimous = {("1", "2"), ("2", "1"), ("tie", "tie")}
    assert one.consistent is (None if None in {first, second} else (first, second) in unanimous)


@given(st.text(), st.text(), st.integers(0, 9), st.tuples(*[st.sampled_from([*LABELS, None])] * 2))
def test_a_verdict_round_trips(person: str, talk: str, sample: int, said: tuple[Label | None, Label | None]) -> None:
    one = replace(verdict(*said), person=person, conversation_id=talk, sample=sample)
    line = json.dumps(one.to_json(), ensure_ascii=False)
    assert "\n" not in line
    assert JudgeVerdict.from_json(json.loads(line)) == one


@given(st.sampled_from(LABELS), st.sampled_from(["{}", "```json\n{}\n```", "Gladly. {} Bye {{", '{"a": {} } {}', "{} and {}"]))
def test_a_label_is_parsed_from_surrounding_text(label: Label, around: str) -> None:
    assert parse_label(around.replace("{}", json.dumps({"why": {"x": 1}, "closer": label}))) == label


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
def test_other_text_is_not_parsed_as_a_label(text: str) -> None:
    assert parse_label(text) is None


def test_a_label_may_be_a_number() -> None:
    assert [parse_label(f'{{"closer": {number}}}') for number in (0, 1, 2, 3)] == [None, "1", "2", None]


# Questions --------------------------------------------------------------------------------------------------------------


def test_every_sample_that_both_arms_have_is_a_pair() -> None:
    turns = [*TURNS[:2], turn(2, replies={TWIN: ("one", "two"), NONE: ("only",)}), turn(3, replies={TWIN: ("alone",)})]
    found = build_questions(turns, CONTRASTS, samples=2, sanity=0)
    assert [(one.position, one.sample) for one in found] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert {one.kind for one in found} == {"contrast"}
    assert [one.texts for one in found[:2]] == [*zip(TURNS[0].replies[TWIN], TURNS[0].replies[NONE], strict=True)]
    assert [one.sample for one in build_questions(turns, CONTRASTS, samples=1, sanity=0)] == [0, 0, 0]


def test_sanity_pairs_are_evenly_spaced() -> None:
    found = [one for one in build_questions(TURNS, CONTRASTS, samples=2, sanity=6) if one.kind != "contrast"]
    assert Counter(one.kind for one in found) == dict.fromkeys(SANITY_CHECKS, 6)
    assert [one.position for one in found if one.kind == "real"] == [0, 4, 8, 12, 16, 20]
    for one in found:
        replies = TURNS[one.position].replies[TWIN]
        first = {"real": {one.action}, "another_person": {"who won the match last night"}}.get(one.kind, set(replies))
        assert one.texts[0] in first
        assert one.texts[1] in replies
        assert (one.texts[0] == one.texts[1]) == (one.kind == "identical")
    assert len({one.texts for one in found if one.kind == "same_arm"} & {turn.replies[TWIN] for turn in TURNS}) < 6  # drawn


def test_equal_replies_make_no_sanity_pair() -> None:
    said = "the train please"
    alike = turn(0, action=said, replies={TWIN: (said, f" {said}"), NONE: ("no",)}, other_action="other")
    single = turn(1, replies={TWIN: ("one",), NONE: ("no",)}, other_action="one")
    assert Counter((q.kind, q.position) for q in build_questions([alike, single], CONTRASTS) if q.kind != "contrast") == {
        ("identical", 0): 1, ("identical", 1): 1, ("real", 1): 1,
    }  # fmt: skip


def test_the_arm_of_sanity_pairs_can_be_named() -> None:
    found = build_questions(TURNS[:1], CONTRASTS, sanity=1, twin=NONE)
    assert {one.b for one in found if one.kind != "contrast"} == {NONE}
    assert not build_questions(TURNS, [])


def test_numbers_and_contrasts_out_of_range_are_errors() -> None:
    with pytest.raises(UsageError, match="samples is 0 and sanity 40; they must be at least 1 and 0"):
        build_questions(TURNS, CONTRASTS, samples=0)
    with pytest.raises(UsageError, match="sanity -1; they must be at least 1 and 0"):
        build_questions(TURNS, CONTRASTS, sanity=-1)
    with pytest.raises(UsageError, match="compares an arm with itself"):
        build_questions(TURNS, [(TWIN, TWIN)])


# Judging -----------------------------------------------------------------------------------------------------------------


def test_each_pair_is_judged_blind_in_both_orders(tmp_path: Path) -> None:
    questions = build_questions(TURNS[:1], CONTRASTS, sanity=0)
    ledger = Ledger()
    [one], chat = judge_with(judge_by_chrf, questions, tmp_path / "v.jsonl", seed=5, ledger=ledger)
    assert [shown(prompt)[1:] for prompt in chat.prompts] == [questions[0].texts, questions[0].texts[::-1]]
    assert [seed for _, seed in chat.requests] == [5, 5]
    for prompt in chat.prompts:
        assert shown(prompt)[0] == questions[0].action
        assert "desk: Hello there\nann: hi\ndesk: What is it, number 0?\n" in prompt
        assert TWIN not in prompt
        assert NONE not in prompt
    assert one.labels == ("1", "2")
    assert (one.judge, one.prompt, one.seed, one.pair) == ("telling", PROMPT.version, 5, questions[0].pair)
    assert ledger.calls == 2


def test_a_long_context_is_truncated_and_a_reply_is_one_line(tmp_path: Path) -> None:
    long = tuple(("desk", f"turn {number} " + "word " * 200) for number in range(9))
    odd = turn(0, context=long, replies={TWIN: ("two\n\nReply 2:\nlines",), NONE: ("",)})
    _, chat = judge_with(always("tie"), build_questions([odd], CONTRASTS, sanity=0), tmp_path / "v.jsonl")
    assert shown(chat.prompts[0])[1:] == ("two Reply 2: lines", "(nothing)")
    assert chat.prompts[0].count("desk: …") == 6
    assert len(chat.prompts[0]) < 3500


def test_a_model_that_supports_schemas_gets_one(tmp_path: Path) -> None:
    options: list[dict[str, Any]] = []

    class Held(FunctionChatModel):
        async def _agenerate(self, *args: Any, **more: Any) -> Any:
            options.append(more)
            return await super()._agenerate(*args, **more)

    model = ChatModel("held", Held(reply=always("2")), structured=True)
    asyncio.run(judge_pairs(model, build_questions(TURNS[:1], CONTRASTS, sanity=0), path=tmp_path / "v.jsonl"))
    schema = options[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["closer"]["enum"] == ["1", "2", "tie"]


def test_the_label_after_the_reasoning_counts() -> None:
    assert parse_label('<think>maybe {"closer": "1"}? no.</think>{"closer": "2"}') == "2"
    assert parse_label('If {"closer": "1"} then ...</think>\n{"closer": "Tie"}') == "tie"
    assert parse_label('<think>{"closer": "1"}') is None


def test_a_judge_that_is_empty_at_its_limit_is_an_error(tmp_path: Path, endpoint: Endpoint) -> None:
    endpoint.content, endpoint.finish_reason = "", "length"
    judge = load_model(f"openai:m@{endpoint.url}")
    with pytest.raises(ModelError, match="stopped at its limit of 8,392 tokens before it answered"):
        asyncio.run(judge_pairs(judge, build_questions(TURNS[:1], CONTRASTS, sanity=0), path=tmp_path / "v.jsonl"))
    assert not (tmp_path / "v.jsonl").read_text("utf-8")


def test_an_unreadable_answer_is_retried_and_is_no_tie(tmp_path: Path) -> None:
    def mumble(prompt: str, seed: int) -> str:
        return always("tie")(prompt, seed) if shown(prompt)[1] == TURNS[0].replies[TWIN][0] or seed == 9 else "hard to say"

    questions = build_questions(TURNS[:1], CONTRASTS, sanity=0)
    [one], chat = judge_with(mumble, questions, tmp_path / "v.jsonl", seed=5)
    assert one.labels == ("tie", None)
    assert one.score is None
    assert [seed for _, seed in chat.requests] == [5, 5, 6, 7]  # the same seed would only say the same
    [again], chat = judge_with(mumble, questions, tmp_path / "v.jsonl", seed=8)
    assert again.labels == ("tie", "tie")
    assert [seed for _, seed in chat.requests] == [8, 8, 9]


def test_an_answer_that_could_not_be_read_is_asked_for_again_by_the_next_call(tmp_path: Path) -> None:
    questions, path = build_questions(TURNS[:2], CONTRASTS, sanity=0), tmp_path / "v.jsonl"
    cache = CompletionCache(tmp_path / "completions")

    def judge(reply: Callable[[str, int], str]) -> tuple[list[JudgeVerdict], int]:
        model, chat = function_model(reply, "instruction")
        return asyncio.run(judge_pairs(replace(model, cache=cache), questions, path=path)), len(chat.requests)

    def half(prompt: str, seed: int) -> str:
        first = shown(prompt)[1] == questions[0].texts[0]
        return always("tie")(prompt, seed) if first else "hard to say"

    before, asked = judge(half)
    assert (before[0].labels, before[1].labels, asked) == (("tie", None), (None, None), 1 + 3 * 3)
    same, asked = judge(half)
    assert (same, asked) == (before, 3 * 3)
    assert len(path.read_text("utf-8").splitlines()) == 2  # nothing new
    after, asked = judge(always("1"))
    assert (after[0].labels, after[1].labels, asked) == (("tie", "1"), ("1", "1"), 3)
    assert read_verdicts(path) == after
    path.unlink()
    again, asked = judge(always("2"))  # readable answers were paid for, and are served from the cache
    assert (again, asked) == (after, 0)


@pytest.mark.parametrize("concurrency", [1, 4, 100])
def test_verdicts_are_in_order_and_on_disk_before_progress_is_reported(tmp_path: Path, concurrency: int) -> None:
    questions, path = build_questions(TURNS, CONTRASTS, sanity=2), tmp_path / "v.jsonl"
    updates: list[tuple[str, int, int, int]] = []
    found, _ = judge_with(
        judge_by_chrf,
        questions,
        path,
        concurrency=concurrency,
        progress=lambda *one: updates.append((*one, len(read_verdicts(path)))),
    )
    assert [slot(one) for one in found] == [slot(one) for one in questions]
    assert sorted(one.key for one in read_verdicts(path)) == sorted(one.key for one in found)
    assert updates == [("judging", done, len(questions), done) for done in range(len(questions) + 1)]


def test_recorded_pairs_are_not_judged_again(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    questions = build_questions(TURNS, CONTRASTS, sanity=2)
    first, chat = judge_with(judge_by_chrf, questions[:10], path)
    assert len(chat.requests) == 20
    again, chat = judge_with(judge_by_chrf, questions, path)
    assert len(chat.requests) == 2 * (len(questions) - 10)
    assert again[:10] == first
    assert len(path.read_text("utf-8").splitlines()) == len(questions)
    same, chat = judge_with(judge_by_chrf, questions, path)
    assert same == again
    assert not chat.requests


@pytest.mark.parametrize("what", ["seed", "judge", "weights", "text", "real turn", "context"])
def test_judge_prompt_seed_and_content_are_part_of_the_key(tmp_path: Path, what: str) -> None:
    path = tmp_path / "v.jsonl"
    judge_with(judge_by_chrf, build_questions(TURNS[:1], CONTRASTS, sanity=0), path)
    changes: dict[str, dict[str, Any]] = {
        "text": {"replies": {TWIN: ("new",), NONE: TURNS[0].replies[NONE]}},
        "real turn": {"action": "something else"},
        "context": {"context": (("desk", "Good day"),)},
    }
    model, chat = function_model(judge_by_chrf, "instruction")
    model = replace(model, name="other" if what == "judge" else model.name, identity="v2" if what == "weights" else "")
    questions = build_questions([turn(0, **changes.get(what, {}))], CONTRASTS, sanity=0)
    asyncio.run(judge_pairs(model, questions, path=path, seed=1 if what == "seed" else 0))
    assert len(chat.requests) == 2
    assert len(read_verdicts(path)) == 2


def test_pairs_with_equal_content_are_judged_once(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    twice = turn(0, replies={TWIN: ("yes", "yes"), NONE: ("no", "no")})
    questions = build_questions([twice], CONTRASTS, samples=2, sanity=0)
    found, chat = judge_with(judge_by_chrf, questions, path)
    assert [one.sample for one in found] == [0, 1]
    assert len(chat.requests) == 2
    more, chat = judge_with(judge_by_chrf, build_questions([twice], [(TWIN, NONE), (TWIN, "late")], samples=2, sanity=0), path)
    assert more == found
    assert not chat.requests
    elsewhere = replace(twice, conversation_id="elsewhere")
    moved, chat = judge_with(judge_by_chrf, build_questions([elsewhere], CONTRASTS, sanity=0), path)
    assert (moved[0].conversation_id, moved[0].labels) == ("elsewhere", found[0].labels)
    assert not chat.requests


@pytest.mark.parametrize("concurrency", [1, 3])
def test_an_interrupted_judge_resumes(tmp_path: Path, concurrency: int) -> None:
    path, questions, answered = tmp_path / "v.jsonl", build_questions(TURNS, CONTRASTS, sanity=0), Counter[str]()

    def down(prompt: str, seed: int) -> str:
        if answered.total() == 21:
            raise ConnectionError("nobody there")
        answered[prompt] += 1
        return judge_by_chrf(prompt, seed)

    with pytest.raises(ModelError, match='"telling" did not answer: ConnectionError: nobody there'):
        judge_with(down, questions, path, concurrency=concurrency)
    kept = read_verdicts(path)
    assert 10 - concurrency < len(kept) <= 10  # each worker loses at most the pair it was at
    found, chat = judge_with(judge_by_chrf, questions, path)
    assert len(chat.requests) == 2 * (len(questions) - len(kept))
    fresh, _ = judge_with(judge_by_chrf, questions, tmp_path / "fresh.jsonl")
    assert found == fresh


@pytest.mark.parametrize("cut", [1, 40, -1])
def test_a_truncated_line_is_judged_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "v.jsonl"
    questions = build_questions([turn(number, person="talks/ümit") for number in range(3)], CONTRASTS, sanity=0)
    whole, _ = judge_with(judge_by_chrf, questions, path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1] + lines[2][:cut])
    assert read_verdicts(path) == whole[:2]
    again, chat = judge_with(judge_by_chrf, questions, path)
    assert again == whole
    assert len(chat.requests) == 2
    assert path.read_bytes() == b"".join(lines)


@pytest.mark.parametrize(
    "broken",
    ["nonsense", "{}", "[]", '{"labels": ["3", null]}', '{"labels": ["1", "2"]}', '{"labels": [[], {}]}', '{"said": [3]}'],
)
def test_an_invalid_line_is_named(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "v.jsonl"
    path.write_text(f"{json.dumps(verdict('1', '2').to_json())}\n{broken}\n", "utf-8")
    with pytest.raises(UsageError, match=r"v\.jsonl:2: not a valid verdict: .*; delete that line"):
        judge_with(judge_by_chrf, [], path)


# Summary ----------------------------------------------------------------------------------------------------------------


def test_a_good_judge_prefers_the_twin_and_passes_every_check(tmp_path: Path) -> None:
    verdicts, _ = judge_with(judge_by_chrf, build_questions(TURNS, CONTRASTS, samples=2, sanity=24), tmp_path / "v.jsonl")
    found = summarize_verdicts(verdicts, seed=1)
    assert found["model"] == "telling"
    assert list(found["contrasts"]) == [f"{TWIN} - {NONE}"]
    row = found["contrasts"][f"{TWIN} - {NONE}"]
    three_agree = pytest.approx(3 / (3 + 1.96**2), abs=1e-4)
    assert row["win"] == {"value": 1.0, "low": three_agree, "high": 1.0, "n": 48}
    assert (row["ties"]["value"], row["p"], row["decided"]["n"]) == (0.0, 0.25, 48)  # 2 / 2^3
    assert {kind: one["holds"] for kind, one in found["sanity"].items()} == dict.fromkeys(SANITY_CHECKS, True)
    assert found["sanity"]["another_person"]["win"]["value"] == 0
    assert 0 < found["sanity"]["same_arm"]["win"]["value"] < 1
    assert (found["consistent"]["value"], found["first"]["value"]) == (1.0, 0.5)
    assert found["unreadable"] == {"value": 0.0, "n": 2 * len(verdicts)}
    assert (found["usable"], found["warnings"]) == (True, [])


def test_win_rates_weigh_people_equally_without_unreadable_answers() -> None:
    ann = [verdict("1", "2", number) for number in range(0, 24, 3)]
    said: list[Any] = [("2", "1"), ("tie", "tie"), ("1", "1"), ("1", "tie"), (None, "1")]
    bob = [verdict(*labels, 3 * place + 1) for place, labels in enumerate(said)]
    row = summarize_verdicts([*ann, *bob])["contrasts"][f"{TWIN} - {NONE}"]
    assert row["win"]["value"] == pytest.approx((1 + 1.5 / 4) / 2)
    assert row["win"]["n"] == 12
    assert row["win"]["low"] < row["win"]["value"] < row["win"]["high"]
    assert row["ties"]["value"] == pytest.approx(0.75 / 2)
    assert row["decided"]["value"] == pytest.approx((1 + 0.25) / 2)  # where both orders agree, a tie among them
    assert row["decided"]["n"] == 10
    assert row["p"] == 1.0
    alone = summarize_verdicts(ann)["contrasts"][f"{TWIN} - {NONE}"]
    assert alone["p"] == pytest.approx(0.0455, abs=1e-4)  # of a half, where four conversations agree


@pytest.mark.parametrize("label", ["1", "2"])
def test_a_constant_judge_is_unusable(tmp_path: Path, label: str) -> None:
    verdicts, _ = judge_with(always(label), build_questions(TURNS, CONTRASTS, samples=2, sanity=10), tmp_path / "v.jsonl")
    found = summarize_verdicts(verdicts)
    row = found["contrasts"][f"{TWIN} - {NONE}"]
    assert (row["win"]["value"], row["ties"]["value"], row["decided"]) == (0.5, 1.0, None)
    assert (found["consistent"]["value"], found["first"]["value"]) == (0.0, float(label == "1"))
    assert not found["usable"]
    verdict_count = 2 * (48 + 30)
    assert found["warnings"][0] == (
        f'the judge "telling" answers "{label}" in 100% of {verdict_count} verdicts: '
        "it follows the order, not the replies; do not use its figures"
    )
    assert {kind: one["holds"] for kind, one in found["sanity"].items()} == {
        "identical": False, "real": False, "same_arm": True, "another_person": False,
    }  # fmt: skip


def test_a_nearly_constant_judge_is_unusable() -> None:
    verdicts = [verdict("1", "2" if number == 3 else "1", number) for number in range(20)]
    found = summarize_verdicts(verdicts)
    assert 'answers "1" in 98% of 40 verdicts' in found["warnings"][0]
    assert not found["usable"]


def test_a_judge_that_always_calls_a_tie_is_unusable(tmp_path: Path) -> None:
    verdicts, _ = judge_with(always("tie"), build_questions(TURNS, CONTRASTS, sanity=10), tmp_path / "v.jsonl")
    found = summarize_verdicts(verdicts)
    assert 'answers "tie" in 100% of 108 verdicts: it ignores the replies' in found["warnings"][0]
    assert (found["usable"], found["first"]) == (False, None)
    assert found["sanity"]["identical"]["holds"]


def test_a_judge_that_does_not_prefer_the_real_turn_is_unusable(tmp_path: Path) -> None:
    def longest(prompt: str, seed: int) -> str:
        _, first, second = shown(prompt)
        return json.dumps({"closer": "1" if len(first) > len(second) else "2"})

    turns = [turn(number, action="ok then") for number in range(24)]
    verdicts, _ = judge_with(longest, build_questions(turns, CONTRASTS, sanity=10), tmp_path / "v.jsonl")
    found = summarize_verdicts(verdicts)
    assert found["sanity"]["real"]["win"]["value"] == 0
    assert not found["usable"]
    assert found["warnings"][0].startswith('the judge "telling" does not prefer the real turn to the twin\'s reply')


def test_a_failed_sanity_check_is_a_warning_with_the_result() -> None:
    real = [verdict("1", "2" if number % 5 else "1", number, "real") for number in range(20)]
    found = summarize_verdicts([*[verdict("1", "2", number) for number in range(20)], *real])
    assert found["usable"]
    [warning] = found["warnings"]
    assert "closer in at least 95% of the pairs; result: closer in 90% (" in warning
    assert warning.endswith("of 20 pairs")


def test_a_sanity_check_on_one_conversation_is_undecided() -> None:
    found = summarize_verdicts([verdict("1", "2", 0, "same_arm"), verdict("2", "1", 12, "another_person")])
    assert {kind: one["holds"] for kind, one in found["sanity"].items()} == {"same_arm": None, "another_person": None}
    assert found["contrasts"] == {}


def test_an_inconsistent_judge_is_a_warning() -> None:
    said: list[tuple[Label, Label]] = [("1", "2"), ("1", "1"), ("2", "tie"), ("2", "1"), ("tie", "2")]
    found = summarize_verdicts([verdict(*said[number % 5], number) for number in range(20)])
    assert found["usable"]
    [warning] = found["warnings"]
    assert warning.startswith('the judge "telling" agrees with itself in both orders in only 40% of 20 pairs')


@pytest.mark.parametrize(("bad", "usable", "warned"), [(0, True, False), (1, True, True), (3, True, True), (19, False, True)])
def test_the_share_of_unreadable_answers_is_returned(bad: int, usable: bool, warned: bool) -> None:
    fine = [verdict(*(("1", "2") if number % 2 else ("2", "1")), number) for number in range(bad, 20)]
    found = summarize_verdicts([*[verdict(None, None, number) for number in range(bad)], *fine])
    assert found["unreadable"] == {"value": pytest.approx(bad / 20), "n": 40}
    assert found["contrasts"][f"{TWIN} - {NONE}"]["win"]["n"] == 20 - bad
    assert found["usable"] is usable
    assert any("cannot be read" in warning for warning in found["warnings"]) is warned


def test_without_readable_verdicts_there_are_no_figures() -> None:
    empty, mute = summarize_verdicts([]), summarize_verdicts([verdict(None, None, number) for number in range(20)])
    for found in (empty, mute):
        assert (found["contrasts"], found["sanity"], found["consistent"], found["usable"]) == ({}, {}, None, False)
    assert empty["warnings"] == ["no pair was judged"]
    assert mute["warnings"] == ['the judge "telling" gave 100% of 40 answers that cannot be read: do not use its figures']


def test_the_summary_is_json(tmp_path: Path) -> None:
    verdicts, _ = judge_with(judge_by_chrf, build_questions(TURNS, CONTRASTS, sanity=5), tmp_path / "v.jsonl")
    found = summarize_verdicts(verdicts)
    assert json.loads(json.dumps(found)) == found


def test_a_verdict_of_an_earlier_version_is_read() -> None:
    current = replace(verdict("1", "2"), a="recon")
    old = json.loads(json.dumps(current.to_json()))
    old["said"], old["a"] = old.pop("labels"), "recalled_triples"
    assert JudgeVerdict.from_json(old) == current
