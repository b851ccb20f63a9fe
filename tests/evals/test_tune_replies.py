"""evals/tuning/: a hosted model is tuned by what it writes, and the best of several replies is used where it pays."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from conftest import FunctionChatModel, function_model
from usertwin.evals.reports.twin_view import settings_table
from usertwin.evals.tuning.reranking import OPTIONS, SAMPLES, RankedTurn, choose_rule
from usertwin.evals.tuning.tune import KS, TunePlan, tune
from usertwin.memory import ChatModel, Settings, existing_twin
from usertwin.memory.twin.reranking import FEATURES
from usertwin.simulator import SimulatedUser

pytestmark = pytest.mark.usefixtures("two_clusters_suffice", "repeats_count")


def tuned(name: str, model: ChatModel, **options: Any) -> Settings:
    """Return the settings of a twin that is tuned by written replies, without its traces."""
    with SimulatedUser.load(name, model=model) as user:
        return asyncio.run(tune(user, None, folder=existing_twin(name), **options))


def writing(reply: Any) -> tuple[ChatModel, FunctionChatModel]:
    return function_model(reply)


# By replies ------------------------------------------------------------------------------------------------------------


def test_a_hosted_model_is_tuned_by_its_replies(ann: str) -> None:
    """It writes what the person said where eight pairs or more are shown, and something else where fewer are."""
    said = {"Which day": "tomorrow, day 3", "can I do": "hi, the weather in Oslo please", "else": "no thanks"}

    def reply(prompt: str, seed: int) -> str:
        latest = prompt.split("\n---\n\n")[-1]
        good = next((text for words, text in said.items() if words in latest), "bye")
        return good if prompt.count("\n---\n") >= 8 else "something quite different about trains"

    model, chat = writing(reply)
    plans: list[TunePlan] = []
    found = tuned(ann, model, on_plan=plans.append)
    assert (found.k, found.traces, found.words, found.reranking) == (8, "none", None, None)
    [plan] = plans
    assert not plan.scored
    assert len(chat.prompts) == plan.replies + plan.thoughts
    assert str(plan).startswith(f"{plan.settings} settings on 6 validation turns")
    assert "scored" not in str(plan)
    assert found.measured is not None
    assert found.measured["scorer"] == "written replies"
    by_k = {row["k"]: row["unlikeness"]["value"] for row in found.measured["settings"] if row["traces"] == "none"}
    assert by_k[4] > by_k[8]
    assert set(by_k) == set(KS)
    settings_table(found)


def test_equal_replies_give_the_simplest_setting(ann: str) -> None:
    found = tuned(ann, writing(lambda *_: "ok then")[0])
    assert replace(found, measured=None) == Settings(k=4, window=3, traces="none", reasons=False)


def test_no_reply_is_as_unlike_as_can_be(ann: str) -> None:
    found = tuned(ann, writing(lambda *_: "(Me thinking: hm) a")[0])
    assert found.measured is not None
    assert {row["unlikeness"]["value"] for row in found.measured["settings"]} == {1.0}


# The best of several ---------------------------------------------------------------------------------------------------


def turn(conversation: int, quality: Sequence[float], lengths: Sequence[float], written: Sequence[int | None]) -> RankedTurn:
    """Return a turn whose candidates differ in one feature."""
    features = np.zeros((len(quality), len(FEATURES)))
    features[:, FEATURES.index("length")] = lengths
    return RankedTurn(str(conversation), features=features, quality=np.array(quality), written=written, tokens=[10] * SAMPLES)


def turns(worth: float, quote: float = 0.0, count: int = 40) -> list[RankedTurn]:
    """Return turns of ten conversations: a written reply is better by `worth` a length, two quotes by `quote`."""
    rng = np.random.default_rng(0)
    made: list[RankedTurn] = []
    for number in range(count):
        lengths = [*rng.normal(size=SAMPLES), 3.0, 3.0]
        noise = rng.normal(scale=0.05, size=SAMPLES + 2)
        quality = [*(0.3 + worth * length for length in lengths[:SAMPLES]), 0.3 + quote, 0.3 + quote]
        made.append(turn(number % 10, [*(np.array(quality) + noise)], lengths, [*range(SAMPLES), None, None]))
    return made


def test_a_rule_that_pays_is_chosen_with_its_cost() -> None:
    rule, compared = choose_rule(turns(worth=0.2))
    assert rule is not None
    assert (rule.samples, rule.quotes) == (4, False)
    assert rule.weights["length"] > 0.1
    rows = {(row["samples"], row["quotes"]): row for row in compared["rules"]}
    assert set(rows) == set(OPTIONS)
    assert [option for option, row in rows.items() if row["chosen"]] == [(4, False)]
    assert rows[4, False]["gain"]["low"] > 0.1
    assert (rows[2, False]["tokens_per_turn"], rows[4, True]["tokens_per_turn"]) == (20.0, 40.0)
    assert compared["turns"] == 40
    assert compared["single"] == pytest.approx(0.3, abs=0.1)


def test_quotes_are_used_where_they_are_better() -> None:
    rule, _ = choose_rule(turns(worth=0.0, quote=0.3))
    assert rule is not None
    assert (rule.samples, rule.quotes) == (2, True)  # the cheapest within a standard error of the best


@pytest.mark.parametrize("worth", [0.0])
def test_a_rule_that_gains_nothing_is_not_used(worth: float) -> None:
    chosen = [choose_rule(_shuffled(turns(worth), seed))[0] is not None for seed in range(20)]
    assert sum(chosen) <= 12  # a gain above one standard error is chance in a sixth of cases, and four rules are tried


def _shuffled(given: Sequence[RankedTurn], seed: int) -> list[RankedTurn]:
    """Return the turns with the qualities of each in another order, so that no feature tells anything."""
    rng = np.random.default_rng(seed)
    return [replace(one, quality=rng.permutation(one.quality)) for one in given]


def test_one_conversation_or_none_gives_no_rule() -> None:
    assert choose_rule([])[0] is None
    alone = [replace(one, conversation="only") for one in turns(worth=0.3)]
    assert choose_rule(alone)[0] is None


def test_tune_compares_rules_at_the_given_number_of_turns(ann: str) -> None:
    model, chat = writing(lambda prompt, seed: f"tomorrow, day {seed % 9}")
    found = tuned(ann, model, replies=4)
    assert found.measured is not None
    assert found.measured["reranking"]["turns"] == 4
    assert len({seed for _, seed in chat.requests}) >= 4 * SAMPLES
    settings_table(found)


def test_the_real_replies_choose_the_rule(ann: str) -> None:
    """The model writes a long text, and then what the person says: the length tells them apart."""
    texts = ["something long about trains and planes and ships and cars and all that", "ok, thanks, bye"]
    model, _ = writing(lambda prompt, seed: texts[seed % 2])
    found = tuned(ann, model, replies=6)
    assert found.reranking is not None
    assert found.measured is not None
    [chosen] = [row for row in found.measured["reranking"]["rules"] if row["chosen"]]
    assert (chosen["samples"], chosen["quotes"]) == (found.reranking.samples, found.reranking.quotes)
    with SimulatedUser.load(ann, model=model, settings=found) as user:
        assert user.respond([{"role": "assistant", "content": "Is there anything else?"}]).candidates > 1
