"""Closeness of arms: every measure has its expected value, and planted differences are detected."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usertwin.evals import chrf, mean, ratio
from usertwin.evals.arm_names import ARMS
from usertwin.evals.metrics.arm_discriminators import DISCRIMINATORS
from usertwin.evals.metrics.closeness import CONTRASTS, MEASURES, closeness
from usertwin.evals.metrics.writing_style import (
    cosine_distance,
    count_matrix,
    function_word_counts,
    style_distance,
    window_ratios,
)
from usertwin.evals.records.measured_turns import ContextFit, MeasuredTurn, PastTurn
from usertwin.memory.text.words import word_tokens

TWIN = "recalled_pairs"
LINES = (
    "hey there, is the shop open today?", "no idea :)", "Thanks a lot for the help", "i dont know what you mean by that",
    "can you say it again please?", "ok", "that is fine with me, we can do it tomorrow", "lol", "sorry, i was away", "Yes!",
)  # fmt: skip


def turn(action: str = "ok", person: str = "x/ann", talk: str = "t0", position: int = 0, **measured: Any) -> MeasuredTurn:
    """Return a turn with the given measurements only; a single reply may be a string."""
    replies = measured.pop("replies", {})
    said = {arm: (texts,) if isinstance(texts, str) else tuple(texts) for arm, texts in replies.items()}
    return MeasuredTurn(
        person=person, conversation_id=talk, position=position, context=(), action=action, characters=len(action) + 1,
        replies=said, **measured,
    )  # fmt: skip


def fits(rng: random.Random, *arms: str) -> dict[str, Any]:
    """Return a past turn, and fits that tell nothing of the real action, the past turn and the arms' replies."""
    real, past, misplaced, *own = (
        ContextFit(latest=rng.random(), context=rng.random(), own=rng.random(), goal=0.0) for _ in range(3 + len(arms))
    )
    old = PastTurn(conversation_id="old", position=0, context=(), action=rng.choice(LINES), fit=past, misplaced_fit=misplaced)
    return {"past": old, "real_fit": real, "fit": dict(zip(arms, own, strict=True))}


def several(people: int = 6, talks: int = 6, each: int = 4, seed: int = 0, gain: float = 0.3) -> list[MeasuredTurn]:
    """Everything measured for three arms: the twin costs `gain` bits per character less, and writes as people do."""
    rng = random.Random(seed)
    found: list[MeasuredTurn] = []
    for person in range(people):
        for talk in range(talks):
            for position in range(each):
                real = rng.choice(LINES)
                cost = 2.0 * (len(real) + 1) + rng.gauss(0, 1)
                twin = cost - gain * (len(real) + 1) + rng.gauss(0, 0.1)
                found.append(
                    turn(
                        real, f"x/p{person}", f"t{talk}", position,
                        bits={TWIN: twin, "no_memory": cost, "openevals": cost + 3},
                        choice={TWIN: 1.0, "no_memory": float(rng.random() < 0.5), "openevals": 0.0},
                        replies={TWIN: rng.choice(LINES), "no_memory": rng.choice(LINES), "openevals": "Certainly! I ask."},
                        similarity={TWIN: (0.9,), "no_memory": (0.5,), "openevals": (0.1,)},
                        rank={TWIN: (0.8,), "no_memory": (0.5,), "openevals": (0.2,)},
                        **fits(rng, TWIN, "no_memory", "openevals"),
                    )
                )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """Six people with six conversations each, three arms."""
    return closeness(several(), TWIN)


def value(found: Mapping[str, Any], measure: str, arm: str = TWIN) -> float:
    return found["arms"][arm][measure]["value"]


def further(found: Mapping[str, Any], measure: str, contrast: str = f"{TWIN} - no_memory") -> float:
    return found["paired"][contrast][measure]["value"]


# The result -------------------------------------------------------------------------------------------------------------


def test_every_arm_has_every_measure_with_interval_and_n(result: dict[str, Any]) -> None:
    measures = [measure.name for measure in MEASURES]
    assert list(result["arms"]) == ["no_memory", TWIN, "openevals"]
    for arm in result["arms"].values():
        assert list(arm) == measures
        for estimate in arm.values():
            assert set(estimate) == {"value", "low", "high", "n"}
            assert estimate["low"] is None or estimate["low"] < estimate["high"]
            assert estimate["n"] == 144
    with_interval = [name for name, estimate in result["arms"][TWIN].items() if estimate["low"] is not None]
    assert set(measures) - set(with_interval) == {"embedding_similarity", "rank"}  # these are equal in every conversation
    assert result["arms"][TWIN]["choice"]["low"] < result["arms"][TWIN]["choice"]["value"] == 1.0


def test_the_twin_is_compared_with_every_arm(result: dict[str, Any]) -> None:
    assert list(result["paired"]) == [f"{TWIN} - no_memory", f"{TWIN} - openevals"]
    for contrast in result["paired"].values():
        for name, estimate in contrast.items():
            assert set(estimate) - {"p_holm"} == {"value", "low", "high", "n", "p", "visible"}, name
            assert 2 / 64 <= estimate["p"] <= 1
            assert (estimate["visible"] is None) == (estimate["low"] is None)


def test_each_person_has_the_same_figures(result: dict[str, Any]) -> None:
    """Six conversations of a person are too few for a test; eight are enough, and the twin costs less for each of them."""
    assert list(result["people"]) == [f"x/p{number}" for number in range(6)]
    for own in result["people"].values():
        assert (own["turns"], own["conversations"]) == (24, 6)
        assert list(own["arms"]) == list(result["arms"])
        assert all(one["p"] is None for contrast in own["paired"].values() for one in contrast.values())
    for own in closeness(several(talks=8), TWIN)["people"].values():
        bits = own["paired"][f"{TWIN} - no_memory"]["bits_per_char"]
        assert bits["p"] < 0.001
        assert "p_holm" not in bits


def test_the_value_of_several_people_is_the_mean_of_theirs(result: dict[str, Any]) -> None:
    for arm in result["arms"]:
        for measure in MEASURES:
            own = [person["arms"][arm][measure.name]["value"] for person in result["people"].values()]
            assert value(result, measure.name, arm) == pytest.approx(sum(own) / len(own))


def test_a_planted_difference_is_detected(result: dict[str, Any]) -> None:
    bits = result["paired"][f"{TWIN} - no_memory"]["bits_per_char"]
    assert bits["value"] == pytest.approx(-0.3, abs=0.01)
    assert bits["high"] < 0
    assert result["arms"]["openevals"]["discriminator"]["value"] > 0.95
    assert value(result, "discriminator") == pytest.approx(0.5, abs=0.15)
    assert further(result, "discriminator", f"{TWIN} - openevals") < -0.3


def test_the_control_has_auc_near_one_half(result: dict[str, Any]) -> None:
    found = result["discriminator"]
    assert (found["folds_by"], found["folds"]) == ("person", 5)
    for name in ("control", "context_control", "misplaced"):
        assert found[name]["value"] == pytest.approx(0.5, abs=0.15)
        assert found[name]["n"] == 144
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]


def test_the_result_holds_the_counts(result: dict[str, Any]) -> None:
    assert (result["turns"], result["conversations"], result["twin_arm"], result["seed"]) == (144, 36, TWIN, 0)


def test_the_result_is_json_without_nan(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_the_same_seed_gives_the_same_result(result: dict[str, Any]) -> None:
    assert closeness(several(), TWIN) == result


def test_the_declared_family_is_no_memory_and_the_peers(result: dict[str, Any]) -> None:
    family = [f"{TWIN} - no_memory", f"{TWIN} - openevals"]
    assert result["family"] == {"measure": "bits_per_char", "contrasts": family, "alpha": 0.05}
    adjusted = [name for name, contrast in result["paired"].items() for one in contrast.values() if "p_holm" in one]
    assert adjusted == family


def test_the_declared_family_is_the_question_and_the_peers() -> None:
    arms = (TWIN, "no_memory", "openevals", "recon", "backward")
    turns = [turn(person=f"x/p{p}", bits={arm: 5.0 + p * place for place, arm in enumerate(arms)}) for p in range(6)]
    found = closeness(turns, TWIN, question=["backward - recon", f"recon - {TWIN}"])
    assert found["question"] == ["backward - recon", f"recon - {TWIN}"]
    family = [f"{TWIN} - recon", f"{TWIN} - openevals", "backward - recon"]
    assert sorted(found["family"]["contrasts"]) == sorted(family)
    adjusted = [name for name, contrast in found["paired"].items() for one in contrast.values() if "p_holm" in one]
    assert sorted(adjusted) == sorted(family)
    assert f"recon - {TWIN}" not in found["paired"]  # it is there the other way round


def test_without_no_memory_and_a_question_all_alternatives_are_adjusted_together() -> None:
    """The headline names the best of them, which is picked by the figures."""
    arms = (TWIN, "other_person", "random_own", "recon")
    turns = [turn(person=f"x/p{p}", bits={arm: 5.0 + p * place for place, arm in enumerate(arms)}) for p in range(6)]
    assert closeness(turns, TWIN)["family"]["contrasts"] == [f"{TWIN} - other_person", f"{TWIN} - random_own"]


@settings(max_examples=15)
@given(st.lists(st.sampled_from(ARMS), min_size=2, max_size=6, unique=True), st.data())
def test_no_pair_of_arms_is_compared_twice(arms: list[str], data: st.DataObject) -> None:
    asked = data.draw(st.lists(st.permutations(arms).map(lambda order: f"{order[0]} - {order[1]}"), max_size=3))
    turns = [turn(person=f"x/p{p}", bits=dict.fromkeys(arms, 5.0 + p)) for p in range(2)]
    pairs = [frozenset(name.split(" - ")) for name in closeness(turns, arms[0], question=asked)["paired"]]
    assert len(pairs) == len(set(pairs))
    assert {frozenset(name.split(" - ")) for name in asked} <= set(pairs)
    assert {frozenset((arms[0], arm)) for arm in arms[1:]} <= set(pairs)


def test_several_peers_are_adjusted_together() -> None:
    turns = [
        turn(person=f"x/p{p}", talk=f"t{t}", bits={TWIN: 5.0, "openevals": 7.0 + t, "tau2": 8.0 + t, "persona": 3.0 + p})
        for p in range(6)
        for t in range(3)
    ]
    found = closeness(turns, TWIN)
    ps = {name: one["bits_per_char"] for name, one in found["paired"].items()}
    assert [one["p"] for one in ps.values()] == [2 / 64, 2 / 64, 44 / 64]
    assert [one["p_holm"] for one in ps.values()] == pytest.approx([6 / 64, 6 / 64, 44 / 64])


def test_without_a_peer_the_family_is_no_memory() -> None:
    turns = [replace(one, bits={arm: one.bits[arm] for arm in (TWIN, "no_memory")}, replies={}) for one in several()]
    found = closeness(turns, TWIN)
    assert found["family"]["contrasts"] == [f"{TWIN} - no_memory"]
    assert found["paired"][f"{TWIN} - no_memory"]["bits_per_char"]["p_holm"] == 2 / 64


@pytest.mark.parametrize("people", [1, 3])
def test_few_people_have_intervals_and_tests_over_their_conversations(people: int) -> None:
    found = closeness(several(people=people, talks=8), TWIN)
    assert found["intervals_over"] == "conversations"
    peer, other = (found["paired"][f"{TWIN} - {arm}"]["bits_per_char"] for arm in ("openevals", "no_memory"))
    assert peer["p"] <= peer["p_holm"] < 0.001  # two contrasts are declared
    assert peer["high"] < 0
    assert peer["visible"] > 0
    assert other["p"] < 0.001


def test_one_person_has_the_figures_of_the_mean() -> None:
    found = closeness(several(people=1, talks=8), TWIN)
    assert found["discriminator"]["folds_by"] == "conversation"
    assert found["arms"] == found["people"]["x/p0"]["arms"]


@pytest.mark.parametrize("people", [1, 4])
def test_few_people_have_an_auc_and_no_interval_since_they_share_the_classifier(people: int) -> None:
    found = closeness(several(people=people, talks=10), TWIN)
    for measure in DISCRIMINATORS:
        for one in (found["arms"]["openevals"][measure], found["paired"][f"{TWIN} - openevals"][measure]):
            assert abs(one["value"]) > 0.2
            assert one["low"] is one["high"] is one.get("p") is one.get("visible") is None
    assert found["discriminator"]["control"]["low"] is None


def test_an_arm_without_fits_has_the_discriminator_of_texts_alone() -> None:
    found = closeness([replace(one, fit={TWIN: one.fit[TWIN]}) for one in several(people=2)], TWIN)
    assert "context_discriminator" in found["arms"][TWIN]
    assert "context_discriminator" not in found["arms"]["openevals"]
    assert "discriminator" in found["arms"]["openevals"]


def test_the_discriminator_with_context_sees_a_reply_out_of_place() -> None:
    """The twin repeats the person's turns in any context: the texts alone tell nothing."""
    poor = ContextFit(latest=0.1, context=0.1, own=0.1, goal=0.0)
    good = ContextFit(latest=0.9, context=0.9, own=0.9, goal=0.0)
    turns = [
        replace(
            one,
            replies={TWIN: one.replies[TWIN]},
            real_fit=good,
            fit={TWIN: poor},
            past=replace(one.past, misplaced_fit=poor, fit=good),
        )
        for one in several()
        if one.past is not None
    ]
    found = closeness(turns, TWIN)
    assert value(found, "discriminator") == pytest.approx(0.5, abs=0.15)
    assert value(found, "context_discriminator") > 0.95
    assert found["discriminator"]["misplaced"]["value"] > 0.95
    assert found["discriminator"]["context_control"]["value"] == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(("people", "talks"), [(1, 1), (1, 7), (4, 3)])
def test_few_conversations_or_people_have_values_and_no_interval_or_test(people: int, talks: int) -> None:
    found = closeness(several(people=people, talks=talks, each=12), TWIN)
    assert found["paired"][f"{TWIN} - openevals"]["bits_per_char"]["p_holm"] is None
    if (people, talks) == (1, 1):
        assert "discriminator" not in found["arms"][TWIN]
        assert found["discriminator"] is None
    for one in [*found["arms"][TWIN].values(), *found["paired"][f"{TWIN} - no_memory"].values()]:
        assert one["low"] is one["high"] is one.get("p") is one.get("visible") is None


def test_without_turns_the_result_is_empty() -> None:
    found = closeness([], TWIN)
    assert (found["arms"], found["paired"], found["people"], found["turns"]) == ({}, {}, {}, 0)
    bare = closeness([turn(), turn(talk="t1")], TWIN)
    assert (bare["arms"], bare["paired"], bare["turns"]) == ({}, {}, 2)


def test_default_contrasts_depend_on_the_arms() -> None:
    arms = ("no_memory", "other_person", "random_own", "recalled_pairs", "recon", "backward", "my_own_arm")
    turns = [turn(talk=f"t{t}", bits=dict.fromkeys(arms, 5.0)) for t in range(2)]
    found = list(closeness(turns, "recon")["paired"])
    twins = [f"recon - {arm}" for arm in (*arms[:4], "backward", "my_own_arm")]
    assert found == [*twins, *(f"{a} - {b}" for a, b in CONTRASTS[:3])]


def test_only_requested_contrasts_are_compared() -> None:
    found = closeness(several(people=2), TWIN, contrasts=[("no_memory", "openevals"), ("no_memory", "trained")])
    assert list(found["paired"]) == ["no_memory - openevals"]


# The measures -----------------------------------------------------------------------------------------------------------


def test_measures_of_one_person_equal_ratios_and_means_over_turns() -> None:
    """As they have been since before there were several people: the same values and the same intervals."""
    turns = several(people=1, talks=8)
    where = [one.conversation_id for one in turns]
    found = closeness(turns, TWIN, seed=4)["arms"][TWIN]
    lengths = [float(len(one.replies[TWIN][0])) for one in turns]
    expected = {
        "bits_per_char": ratio([t.bits[TWIN] for t in turns], [float(t.characters) for t in turns], where),
        "chrf": mean([chrf(t.replies[TWIN][0], t.action) for t in turns], where),
        "embedding_similarity": mean([t.similarity[TWIN][0] for t in turns], where),
        "length_ratio": ratio(lengths, [float(len(t.action)) for t in turns], where),
    }
    assert {name: found[name] for name in expected} == {name: one.to_json() for name, one in expected.items() if one}


def pooled(actions: Sequence[str], replies: Sequence[str]) -> dict[str, float]:
    turns = [
        turn(real, talk=f"t{i}", replies={TWIN: said}) for i, (real, said) in enumerate(zip(actions, replies, strict=True))
    ]
    return {name: one["value"] for name, one in closeness(turns, TWIN)["arms"][TWIN].items()}


def test_rates_are_shares_of_replies_minus_shares_of_real_turns() -> None:
    found = pooled(["why?", "hi you", "no thanks", ":)"], ["Why?", "What?", "Hello :)", "Ok?"])
    assert {name: found[name] for name in ("questions", "greetings", "politeness", "emoji")} == {
        "questions": 0.5, "greetings": 0.0, "politeness": -0.25, "emoji": 0.0
    }  # fmt: skip
    assert found["capitals"] == 1.0  # ":)" begins with no letter, and none of the other real turns with a capital


def test_capitals_are_left_out_where_no_turn_begins_with_a_letter() -> None:
    assert "capitals" not in pooled(["1", "2"], ["One", "Two"])
    assert "capitals" not in pooled(["One", "Two"], ["1", "2"])


def test_distances_are_those_of_all_texts_together() -> None:
    real, said = LINES[:5], LINES[5:]
    found = pooled(real, said)
    assert found["style"] == pytest.approx(style_distance(said, real))
    matrix = count_matrix([function_word_counts(" ".join(texts)) for texts in (said, real)])
    assert found["function_words"] == pytest.approx(cosine_distance(matrix[:1], matrix[1:])[0])


def test_function_words_are_left_out_where_the_person_uses_none() -> None:
    assert "function_words" not in pooled(["nein", "doch"], ["the", "doch"])


def test_diversity_is_the_difference_of_the_joined_texts() -> None:
    rng = random.Random(3)
    real, said = ([" ".join(rng.choices("abcdefghijklmnop"[:kinds], k=9)) for _ in range(12)] for kinds in (16, 5))
    diversity, real_diversity = (fmean(window_ratios(word_tokens(" ".join(texts)))) for texts in (said, real))
    expected = diversity - real_diversity
    assert expected < 0
    assert pooled(real, said)["diversity"] == pytest.approx(expected)


def test_diversity_is_left_out_of_texts_shorter_than_a_window() -> None:
    assert "diversity" not in pooled(["one two"] * 30, ["one"] * 30)


def test_several_replies_share_the_weight_of_their_turn() -> None:
    turns = [
        turn("abc", talk="t0", replies={TWIN: ["abc", "x?"]}, similarity={TWIN: (1.0, 0.0)}, rank={TWIN: (1.0, 0.5)}),
        turn("abc", talk="t1", replies={TWIN: ["abc"]}, similarity={TWIN: (1.0,)}, rank={TWIN: (1.0,)}),
    ]
    found = closeness(turns, TWIN)
    assert value(found, "embedding_similarity") == 0.75
    assert value(found, "rank") == 0.875
    assert value(found, "questions") == 0.25
    assert value(found, "length_ratio") == pytest.approx((2.5 + 3) / 6)
    assert value(found, "chrf") == pytest.approx(0.75)
    assert found["arms"][TWIN]["chrf"]["n"] == 2


def test_turns_without_replies_still_count_for_bits() -> None:
    turns = [turn(talk="t0", bits={TWIN: 3.0}, replies={TWIN: "ok"}), turn(talk="t1", bits={TWIN: 6.0}, replies={TWIN: ()})]
    found = closeness(turns, TWIN)["arms"][TWIN]
    assert (found["bits_per_char"]["n"], found["bits_per_char"]["value"]) == (2, 1.5)
    assert (found["chrf"]["n"], found["chrf"]["value"]) == (1, 1.0)


def test_empty_replies_have_a_finite_distance() -> None:
    turns = [turn("hello", talk=f"t{i}", replies={TWIN: "hello", "no_memory": ""}) for i in range(3)]
    found = closeness(turns, TWIN)
    assert value(found, "length_ratio", "no_memory") == 0
    assert further(found, "length_ratio") == pytest.approx(math.log(1e-3))
    assert value(found, "style", "no_memory") == 1.0
    json.dumps(found, allow_nan=False)


# Distance from the person -----------------------------------------------------------------------------------------------


def test_below_zero_is_closer_for_every_measure() -> None:
    """The twin repeats the person's turns; the other arm differs in every measure."""
    rng = random.Random(1)
    turns = [
        turn(
            real := rng.choice(LINES), f"x/p{i % 6}", f"t{i % 4}", i, **fits(rng, TWIN, "no_memory"),
            bits={TWIN: 1.0, "no_memory": 9.0 + rng.random()}, choice={TWIN: 1.0, "no_memory": float(rng.random() < 0.1)},
            replies={TWIN: real, "no_memory": "Hello, thank you! 😀 Would it be fine to ask? " * 2},
            similarity={TWIN: (1.0,), "no_memory": (rng.random() / 9,)}, rank={TWIN: (1.0,), "no_memory": (rng.random() / 9,)},
        )
        for i in range(60)
    ]  # fmt: skip
    found = closeness(turns, TWIN)["paired"][f"{TWIN} - no_memory"]
    assert set(found) == {measure.name for measure in MEASURES}
    assert all(one["value"] < 0 and (one["high"] is None or one["high"] < 0) for one in found.values())
    assert {name for name, one in found.items() if one["high"] is None} < set(found) - {"bits_per_char", "choice"}


@pytest.mark.parametrize(
    ("name", "near", "far"),
    [("bits_per_char", 1.0, 2.0), ("chrf", 0.6, 0.5), ("length_ratio", 1.5, 0.5), ("emoji", -0.1, 0.2), ("style", 0.2, 0.3)],
)
def test_the_distance_of_a_measure_depends_on_its_ideal(name: str, near: float, far: float) -> None:
    import numpy as np

    measure = next(one for one in MEASURES if one.name == name)
    assert measure.distance(np.array([near]))[0] < measure.distance(np.array([far]))[0]


def test_a_length_ratio_of_2_is_as_far_as_one_half() -> None:
    turns = [turn("abcd", talk=f"t{i}", replies={TWIN: "abcdabcd", "no_memory": "ab"}) for i in range(3)]
    assert further(closeness(turns, TWIN), "length_ratio") == pytest.approx(0)


def test_a_difference_covers_turns_measured_for_both_arms() -> None:
    """The second turn is measured for the twin alone, at a high cost."""
    turns = [turn(talk="t0", bits={TWIN: 3.0, "no_memory": 6.0}), turn(talk="t1", bits={TWIN: 60.0}, replies={TWIN: "a"})]
    found = closeness(turns, TWIN)
    paired = found["paired"][f"{TWIN} - no_memory"]
    assert set(paired) == {"bits_per_char"}
    assert (paired["bits_per_char"]["value"], paired["bits_per_char"]["n"]) == (-1.0, 1)
    assert value(found, "bits_per_char") == pytest.approx(63 / 6)


def test_shared_variance_does_not_widen_a_difference() -> None:
    rng = random.Random(2)
    costs = [rng.uniform(1, 90) for _ in range(40)]
    turns = [turn(talk=f"t{i}", bits={TWIN: cost, "no_memory": cost + 1 + rng.random() / 99}) for i, cost in enumerate(costs)]
    found = closeness(turns, TWIN)
    paired, alone = found["paired"][f"{TWIN} - no_memory"]["bits_per_char"], found["arms"][TWIN]["bits_per_char"]
    assert alone["high"] - alone["low"] > 4
    assert 0 < paired["high"] - paired["low"] < 0.01


def test_equal_replies_have_no_difference_in_any_measure() -> None:
    turns = [replace(one, replies={TWIN: one.replies[TWIN], "no_memory": one.replies[TWIN]}, bits={}) for one in several()]
    found = closeness([replace(one, choice={}, similarity={}, rank={}, fit={}) for one in turns], TWIN)
    for name, one in found["paired"][f"{TWIN} - no_memory"].items():
        assert (one["value"], one["low"], one["high"], one["p"]) == (0, None, None, 1), name


texts = st.text(max_size=12)


@settings(max_examples=25)
@given(st.lists(st.tuples(texts, texts, texts, st.integers(0, 2), st.integers(0, 2)), max_size=8))
def test_any_replies_give_json_with_ordered_intervals(rows: list[tuple[str, str, str, int, int]]) -> None:
    turns = [
        turn(real, f"x/{who}", f"t{talk}", i, replies={TWIN: one, "no_memory": two}, bits={TWIN: 1.0})
        for i, (real, one, two, who, talk) in enumerate(rows)
    ]
    found = json.loads(json.dumps(closeness(turns, TWIN), allow_nan=False))
    estimates = [one for key in ("arms", "paired") for measures in found[key].values() for one in measures.values()]
    assert all(one["low"] is None or one["low"] <= one["high"] for one in estimates)
    assert all(one["n"] >= 1 for one in estimates)


def test_the_number_of_traces_that_each_arm_shows_is_reported() -> None:
    """A moment whose proposals all mislead shows a trace in one arm and none in the other: the reader must see it."""
    counts = [{"backward": 4, "recon": 1, "recalled_pairs": 0}, {"backward": 4, "recon": 2, "recalled_pairs": 0}]
    turns = [turn(talk=f"t{place}", bits=dict.fromkeys(own, 9.0), traces=own) for place, own in enumerate(counts)]
    result = closeness(turns, "recon")
    assert result["traces"] == {"backward": {"value": 4.0, "n": 2}, "recon": {"value": 1.5, "n": 2}}
    assert closeness([turn(bits={"recon": 9.0})], "recon")["traces"] == {}  # a record of an earlier version
