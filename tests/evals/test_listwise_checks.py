"""evals/judges/listwise_checks.py: which judges of reconstructions pass questions with known answers."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from judge_replies import judge_reply, shown_attempts

from conftest import PAIR, FunctionChatModel, function_model
from usertwin.evals.judges.listwise_checks import CHECKED_PAIRS, LISTWISE_CHECKS, VERDICTS, check_judge
from usertwin.evals.records.result_shapes import ListwiseCheckShape
from usertwin.memory import ChatModel
from usertwin.personas import ModelError, Pair
from usertwin.personas.reading import as_type

#: From a prompt, its real reply and the attempts by letter to a ranking; a list in a ranking is a tie.
Rule = Callable[[str, dict[str, str]], Sequence[Any]]
_REAL = re.compile(r"The real reply:\n(.*)\n")


def pairs(count: int, conversations: int | None = None) -> list[tuple[Pair, tuple[str, ...]]]:
    """Return pairs with two traces each, one pair in a conversation unless their number is given."""
    return [
        (
            replace(PAIR, action=f"the train at {n}", conversation_id=f"talk {n % (conversations or count)}", position=n),
            (f"I was early {n}", f"I was late {n}"),
        )
        for n in range(count)
    ]


def actor() -> ChatModel:
    """Return a model that writes a text about the trace in its prompt."""
    return function_model(lambda prompt, seed: f"something {re.findall('I was (early|late)', prompt)[-1]}")[0]


def judge(rule: Rule) -> tuple[ChatModel, FunctionChatModel]:
    """Return a judge that ranks attempts by a rule."""

    def reply(prompt: str, seed: int) -> str:
        [real] = _REAL.findall(prompt)
        attempts = shown_attempts(prompt)
        ranking = rule(real, attempts)
        return judge_reply([*attempts]).replace(f'"ranking": {_json([*attempts])}', f'"ranking": {_json(ranking)}')

    return function_model(reply, "instruction")


def _json(value: object) -> str:
    return str(value).replace("'", '"')


def by_likeness(real: str, attempts: dict[str, str]) -> Sequence[Any]:
    """Rank by words shared with the real reply; equal texts are tied."""
    groups: dict[tuple[int, str], list[str]] = {}
    for letter, text in attempts.items():
        groups.setdefault((-len({*text.split()} & {*real.split()}), text), []).append(letter)
    return [letters if len(letters) > 1 else letters[0] for _, letters in sorted(groups.items())]


def by_place(real: str, attempts: dict[str, str]) -> Sequence[Any]:
    return [*attempts]


def by_place_from_the_end(real: str, attempts: dict[str, str]) -> Sequence[Any]:
    return [*attempts][::-1]


def all_tied(real: str, attempts: dict[str, str]) -> Sequence[Any]:
    return [[*attempts]]


def by_chance(real: str, attempts: dict[str, str]) -> Sequence[Any]:
    return random.Random(real + str(attempts)).sample([*attempts], len(attempts))


def check(model: ChatModel, traced: Sequence[tuple[Pair, Sequence[str]]], others: Sequence[str] = ("who won",)) -> Any:
    result = asyncio.run(check_judge(model, actor(), traced, others, seed=1))
    assert as_type(ListwiseCheckShape, result)
    return result


def test_a_judge_that_reads_the_attempts_passes() -> None:
    model, chat = judge(by_likeness)
    result = check(model, pairs(12))
    assert {name: row["holds"] for name, row in result["sanity"].items()} == dict.fromkeys(LISTWISE_CHECKS, True)
    assert (result["outcome"], result["pairs"], result["conversations"]) == ("passed", 12, 12)
    assert len(chat.requests) == VERDICTS * 12
    assert result["sanity"]["real"]["win"]["value"] == 1
    assert result["sanity"]["real"]["chance"] == pytest.approx(1 / 4)  # two reconstructions and another person's action
    assert result["sanity"]["another_person"]["win"]["value"] == 0
    assert result["sanity"]["identical"]["ties"]["value"] == 1
    assert result["sentence"].startswith('the judge "telling" passes its checks on pairs with known answers: the real action')


@pytest.mark.parametrize(("rule", "verb", "share"), [(by_place, "prefers", "100%"), (by_place_from_the_end, "avoids", "0%")])
def test_a_judge_that_follows_the_places_fails(rule: Rule, verb: str, share: str) -> None:
    result = check(judge(rule)[0], pairs(20))
    assert {name: row["holds"] for name, row in result["sanity"].items()} == dict.fromkeys(LISTWISE_CHECKS, False)
    assert result["outcome"] == "failed"
    assert f'the judge "telling" {verb} the first place: the attempt listed first wins in {share} (' in result["sentence"]
    assert result["sentence"].endswith("; its scores are not evidence")


def test_a_judge_that_ties_all_attempts_fails_by_the_real_action_alone() -> None:
    result = check(judge(all_tied)[0], pairs(12))
    holds = {name: row["holds"] for name, row in result["sanity"].items()}
    assert holds == {"first": True, "real": False, "another_person": False, "identical": True}
    assert "does not tell the real action from reconstructions: it comes first in 25% (" in result["sentence"]


def test_a_judge_that_ranks_by_chance_fails() -> None:
    assert check(judge(by_chance)[0], pairs(20))["outcome"] == "failed"


def test_a_judge_that_prefers_others_fails_by_that_check() -> None:
    def others_first(real: str, attempts: dict[str, str]) -> Sequence[Any]:
        return sorted(attempts, key=lambda letter: (attempts[letter] != "who won", attempts[letter] != real))

    result = check(judge(others_first)[0], pairs(12))
    assert result["sanity"]["another_person"]["holds"] is False
    assert "ranks another person's action above the real one in 100% (" in result["sentence"]


def test_equal_attempts_may_be_ranked_by_no_place_but_not_by_the_first() -> None:
    def decisive(real: str, attempts: dict[str, str]) -> Sequence[Any]:
        return sorted(attempts, key=lambda letter: (attempts[letter] != real, attempts[letter], letter))

    assert check(judge(decisive)[0], pairs(12))["sanity"]["identical"]["holds"] is False

    def undecided(real: str, attempts: dict[str, str]) -> Sequence[Any]:
        ranking = decisive(real, attempts)
        return ranking if len({*attempts.values()}) > 1 or int(real.split()[-1]) % 2 else ranking[::-1]

    assert check(judge(undecided)[0], pairs(12))["outcome"] == "passed"


def test_an_unreadable_judge_fails() -> None:
    model, _ = function_model(lambda *_: "I cannot decide.", "instruction")
    result = check(model, pairs(4))
    assert (result["outcome"], result["pairs"], result["unreadable"]) == ("failed", 4, {"value": 1.0, "n": 4 * VERDICTS})
    assert 'the judge "telling" gave 100% of 12 answers that cannot be read; its scores are' in result["sentence"]


@pytest.mark.parametrize(("count", "conversations"), [(0, 1), (9, 9), (12, 5)])
def test_few_pairs_or_conversations_decide_nothing(count: int, conversations: int) -> None:
    result = check(judge(by_place)[0], pairs(count, conversations))
    assert result["outcome"] == "too few pairs"
    assert f"{count} pairs with known answers in {conversations if count else 0} conversations; 10" in result["sentence"]


def test_without_another_person_that_check_is_left_out() -> None:
    for others in ((), ("",)):
        result = check(judge(by_likeness)[0], pairs(12), others)
        assert "another_person" not in result["sanity"]
        assert (result["outcome"], result["sanity"]["real"]["chance"]) == ("passed", pytest.approx(1 / 3))


def test_pairs_are_bounded_and_spread_evenly() -> None:
    model, chat = judge(by_likeness)
    assert check(model, pairs(100))["pairs"] == CHECKED_PAIRS
    assert len(chat.requests) == VERDICTS * CHECKED_PAIRS
    real = {int(re.findall(r"The real reply:\nthe train at (\d+)", prompt)[0]) for prompt in chat.prompts}
    assert real == {*range(0, 100, 5)}


def test_a_pair_whose_reconstructions_are_the_action_asks_nothing() -> None:
    model, chat = judge(by_likeness)
    same, _ = function_model(lambda *_: "the train at 0")
    assert asyncio.run(check_judge(model, same, pairs(1), (), seed=1))["pairs"] == 0
    assert chat.requests == []


def test_a_model_that_does_not_answer_is_an_error() -> None:
    def fail(prompt: str, seed: int) -> str:
        raise ModelError("gone")

    with pytest.raises(ModelError, match="gone"):
        check(function_model(fail, "instruction")[0], pairs(2))
