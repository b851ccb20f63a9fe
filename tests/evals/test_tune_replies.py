"""evals/tuning/: a hosted model is tuned by what it writes, and the best of several replies is used where it pays."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from conftest import FunctionChatModel, function_model
from usertwin.evals.reports.twin_view import settings_table
from usertwin.evals.tuning.comparison import likeness
from usertwin.evals.tuning.reranking import OPTIONS, SAMPLES, Choices, RankedTurn, choose_rule, ranked_turn
from usertwin.evals.tuning.tune import KS, TunePlan, tune, validation_pairs
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


def turns(worth: float, quote: float = 0.0, *, seed: int = 0, shape: tuple[int, int] = (10, 4)) -> list[RankedTurn]:
    """Return turns whose written replies are better by `worth` for each unit of their length, and two quotes by `quote`."""
    rng, made = np.random.default_rng(seed), list[RankedTurn]()
    for conversation in range(shape[0]):
        for _ in range(shape[1]):
            lengths = rng.normal(size=SAMPLES + 2)
            quality = 0.3 + rng.normal(scale=0.1, size=SAMPLES + 2)
            quality[:SAMPLES] += worth * lengths[:SAMPLES]
            quality[SAMPLES:] += quote
            choices: dict[tuple[int, bool], Choices] = {}
            for samples, quotes in OPTIONS:
                places = [*range(samples), *(range(SAMPLES, SAMPLES + 2) if quotes else ())]
                features = np.zeros((len(places), len(FEATURES)))
                features[:, FEATURES.index("length")] = lengths[places]
                features[:, FEATURES.index("quoted")] = [2.0 * (place >= SAMPLES) for place in places]
                choices[samples, quotes] = Choices(features, quality[places])
            made.append(
                RankedTurn(conversation=str(conversation), choices=choices, single=float(quality[:SAMPLES].mean()), tokens=10.0)
            )
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
    assert rule.quotes
    assert rule.weights["quoted"] > 0.01


def test_a_rule_that_gains_nothing_is_seldom_used() -> None:
    for shape in ((8, 2), (12, 1), (10, 4)):
        used = sum(choose_rule(turns(0.0, seed=seed, shape=shape))[0] is not None for seed in range(60))
        assert used <= 15  # 5 of 100 for one rule, and four are tried that share their candidates


def test_a_rule_of_two_replies_sees_two_replies_and_one_reply_is_the_mean_of_all(ann: str) -> None:
    """Two replies agree with each other equally, whatever the model would have written next."""
    texts = ["tomorrow, day 3", "ok, thanks", "tomorrow, day 3", "tomorrow, day 3"]
    model, _ = writing(lambda prompt, seed: texts[seed % 4])
    with SimulatedUser.load(ann, model=model, settings=Settings(traces="none", reasons=False)) as user:
        [pair, *_] = validation_pairs(user, existing_twin(ann), 3)
        ranked = asyncio.run(ranked_turn(user, pair, seed=0))
        real = [likeness(text, pair.action, user.store.embedder) for text in texts]
    agreement = FEATURES.index("agreement")
    two, four = ranked.choices[2, False].features[:, agreement], ranked.choices[4, False].features[:, agreement]
    assert two[0] == pytest.approx(two[1])
    assert four[0] > four[1]
    assert ranked.single == pytest.approx(sum(real) / 4)


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


def test_the_real_replies_choose_the_rule(ann: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model writes a long text, and then what the person says: the length tells them apart."""
    monkeypatch.setattr("usertwin.evals.tuning.reranking.LEVEL", 0.6)  # there are two conversations only
    texts = ["something long about trains and planes and ships and cars and all that", "ok, thanks, bye"]
    model, _ = writing(lambda prompt, seed: texts[seed % 2])
    found = tuned(ann, model, replies=6)
    assert found.reranking is not None
    assert found.measured is not None
    [chosen] = [row for row in found.measured["reranking"]["rules"] if row["chosen"]]
    assert (chosen["samples"], chosen["quotes"]) == (found.reranking.samples, found.reranking.quotes)
    with SimulatedUser.load(ann, model=model, settings=found) as user:
        assert user.respond([{"role": "assistant", "content": "Is there anything else?"}]).candidates > 1
