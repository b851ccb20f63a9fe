"""Tests of evals/reports/terminal.py, twin_view.py and controls_table.py: figures with interval and n, and no false claims."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console, RenderableType

from conftest import recipe
from usertwin.evals.arm_names import ARMS, DEFAULT_ARMS
from usertwin.evals.reports.controls_table import REASON_NAMES, controls_table
from usertwin.evals.reports.labels import ARM_LABELS, number
from usertwin.evals.reports.summary import summary_of
from usertwin.evals.reports.terminal import closeness_line, closeness_table, twin_arm
from usertwin.evals.reports.twin_view import settings_table, twin_view
from usertwin.evals.traces.control_verdict import CONTROLS, decide
from usertwin.memory import Provenance, Settings, Triple, TwinRecord
from usertwin.memory.recon.guards import REASONS
from usertwin.memory.twin.abandonment import AbandonmentModel
from usertwin.memory.twin.last_turn import LastTurnModel
from usertwin.personas import Pair, Persona, Turn


def estimate(value: float, low: float | None, high: float | None, n: int = 12) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": n}


def measurement(twin: str = "recon", **difference: Any) -> dict[str, Any]:
    """Return a measurement with this difference of the twin's arm to every other arm."""
    paired = {"value": -0.2, "low": -0.3, "high": -0.1, "p": 0.03, "n": 12} | difference
    arms = {
        arm: {"bits_per_char": estimate(1.5 - i / 10, 1.2, 1.8), "chrf": estimate(0.25, 0.125, 0.375, 3)}
        for i, arm in enumerate(DEFAULT_ARMS)
    }
    return {
        "twin": "ann",
        "arms": arms,
        "paired": {f"{twin} - {arm}": {"bits_per_char": paired} for arm in DEFAULT_ARMS if arm != twin},
        "twin_arm": twin,
        "ending": {"f1": estimate(0.75, 0.5, 1.0)},
        "turns": 12,
        "conversations": 14,
        "models": {"action": "local:small", "scorer": "local", "embedder": "all-MiniLM-L6-v2", "proposer": None},
        "seed": 7,
        "measured_at": "2024-05-06T07:08:09+00:00",
    }


RECORD = TwinRecord(
    name="ann",
    persona=Persona("Ann", "Ann writes [short].", 5, ("hi there", "thank you")),
    recipe=recipe(),
    state="complete",
    learned_at="2024-05-05T00:00:00+00:00",
    dated=True,
    corpus_ends=1.0,
    corpus=("a",),
    validation=("v1",),
    test=("t1", "t2"),
    other_speaker="Bob",
    versions={"usertwin": "0.1.0"},
)


def make_triples(count: int, traced: int = 0) -> list[Triple]:
    """Return triples; the first `traced` ones have traces of rising scores."""
    provenance = Provenance(
        method="recon",
        proposer="local",
        scorer="local",
        prompt_version="propose/1",
        seed=0,
        candidates=2,
        rejected={"misleads": 1},
    )
    pairs = [
        Pair(
            speaker="Ann",
            context=(Turn("Bob", "agent", f"how was day {i}?"),),
            action=f"it was fine {i}",
            goal="",
            conversation_id=f"talk-{i}",
            position=1,
            when=float(i),
        )
        for i in range(count)
    ]
    return [
        Triple(pair, f"I felt [glad] {i}", i / 100, provenance) if i < traced else Triple(pair) for i, pair in enumerate(pairs)
    ]


def printed(table: RenderableType, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def shown(result: dict[str, Any], width: int = 400) -> str:
    """Return what is printed of a measurement; wide enough, by default, for a headline on one line."""
    return printed(closeness_table(result), width=width)


def test_every_arm_has_a_row_with_its_value_and_the_twins_difference() -> None:
    text = shown(measurement(), 80).splitlines()
    assert max(map(len, text)) <= 80
    names = ("No memory", "Another person", "Random own pairs", "Recalled pairs", "Recon-selected")
    for i, name in enumerate(names):
        [row] = [line for line in text if line.startswith(name)]
        assert f"{1.5 - i / 10:.3f} (1.200 to 1.800)" in row
        assert ("the twin" if name == "Recon-selected" else "−0.200 (−0.300 to −0.100)  0.030") in row


def test_a_usual_measurement_is_a_screenful() -> None:
    result = measurement(p_holm=0.03)
    for arm in DEFAULT_ARMS:
        result["arms"][arm]["discriminator"] = estimate(0.7, 0.6, 0.8)
        if arm != "recon":
            result["paired"][f"recon - {arm}"]["discriminator"] = estimate(-0.02, -0.125, 0.0625) | {"p": 0.3}
    text = shown(result, 80).splitlines()
    assert len(text) <= 24
    assert sum("−0.02 (−0.12 to +0.06)  0.300" in line for line in text) == 4


def test_of_many_arms_those_without_a_likelihood_have_the_difference_in_a_measure_of_replies() -> None:
    result = run_result()
    for arm in ("verbatim", "medoid"):
        del result["arms"][arm]["bits_per_char"], result["paired"][f"recalled_pairs - {arm}"]["bits_per_char"]
        result["paired"][f"recalled_pairs - {arm}"]["discriminator"] = estimate(-0.02, -0.125, 0.0625) | {"p": 0.3}
    result["arms"]["mine"] = {"discriminator": estimate(0.9, None, None)}
    text = shown(result, 80).splitlines()
    assert max(map(len, text)) <= 80
    assert sum("−0.02 (−0.12 to +0.06)  0.300" in line for line in text) == 2
    assert [line.split()[-1] for line in text if line.startswith("mine")] == ["–"]
    assert sum("0.5 is closest, n=12 to 40" in line for line in text) == 1
    assert sum(line.startswith("openevals user") for line in text) == 1  # it has a likelihood


def test_a_missing_difference_is_a_dash_and_a_difference_without_a_test_has_no_p() -> None:
    result = measurement(p=None)
    del result["paired"]["recon - no_memory"]
    text = shown(result, 80).splitlines()
    [row] = [line for line in text if line.startswith("No memory")]
    assert row.rstrip().endswith("–")
    [row] = [line for line in text if line.startswith("Another person")]
    assert row.rstrip().endswith("(−0.300 to −0.100)      –")


def test_adjusted_p_values_are_marked_and_explained() -> None:
    result = measurement()
    for arm in ("no_memory", "other_person"):
        result["paired"][f"recon - {arm}"]["bits_per_char"] = estimate(-0.2, -0.3, -0.1) | {"p": 0.03, "p_holm": 0.06}
    result["family"] = {"measure": "bits_per_char", "contrasts": ["recon - no_memory", "recon - other_person"], "alpha": 0.05}
    text = shown(result)
    assert text.count("0.060*") == 2
    assert "*: declared beforehand, after Holm's correction for 2 contrasts" in text


def test_the_measure_of_replies_is_one_with_tests_that_every_arm_without_a_likelihood_has() -> None:
    result = measurement()
    for arm in DEFAULT_ARMS:
        result["arms"][arm] |= {"discriminator": estimate(0.7, None, None), "rank": estimate(0.6, 0.5, 0.7)}
        if arm != "recon":
            result["paired"][f"recon - {arm}"] |= {
                "discriminator": estimate(-0.1, None, None),
                "rank": estimate(-0.1, -0.2, 0.1),
            }
    assert "Discriminator AUC" in shown(result)
    result["paired"]["recon - no_memory"]["rank"]["p"] = 0.4  # as of one person, whose AUC has no test
    assert "Discriminator AUC" not in shown(result)
    result["paired"]["recon - no_memory"]["discriminator"]["p"] = 0.4
    result["arms"]["mine"] = {"rank": estimate(0.5, 0.4, 0.6)}
    assert "mine" in shown(result)


def test_the_headline_the_warnings_and_the_ending_are_below_the_table() -> None:
    text = shown(measurement() | {"warnings": ["few [words]"]})
    assert "measured with local, replies written by local:small" in text
    assert "F1 0.75 (0.50 to 1.00), n=12" in text
    assert "seed 7" in text
    assert text.rstrip().endswith("few [words]")
    assert summary_of(measurement()) in text


def test_a_twin_that_never_leaves_has_no_score_for_leaving() -> None:
    assert "leaves" not in shown(measurement() | {"ending": {}})


def test_brackets_in_the_name_of_a_model_are_kept() -> None:
    result = measurement()
    result["models"] |= {"action": "local:/odd/my[model].gguf", "scorer": "openai:[/odd]/y"}
    assert "measured with openai:[/odd]/y, replies written by local:my[model].gguf)" in shown(result)


def test_the_line_has_value_difference_test_n_and_day() -> None:
    assert closeness_line(measurement(p_holm=0.03)) == (
        "1.100 bits per character (1.200 to 1.800), −0.200 (−0.300 to −0.100) against no memory, p = 0.030 after Holm; "
        "n=12 held-out turns, 2024-05-06"
    )


def test_the_line_of_a_measurement_by_test_models_says_so() -> None:
    result = measurement()
    result["models"]["scorer"] = "fake:"
    assert closeness_line(result).endswith("2024-05-06; by test models, which know nothing about people")


def test_the_line_of_a_measurement_without_a_baseline_claims_nothing() -> None:
    result = measurement()
    del result["paired"]["recon - no_memory"]
    assert closeness_line(result) == "1.100 bits per character (1.200 to 1.800); n=12 held-out turns, 2024-05-06"


def test_the_line_of_a_measurement_without_the_twins_arm_names_the_measured_arms() -> None:
    result = measurement()
    result["arms"] = {"no_memory": result["arms"]["no_memory"]}
    assert closeness_line(result) == "only no_memory measured; n=12 held-out turns, 2024-05-06"


def test_the_line_of_a_measurement_by_an_earlier_version_has_the_same_figures() -> None:
    old = json.loads(json.dumps(measurement()).replace("recon", "recalled_triples"))
    assert closeness_line(old) == closeness_line(measurement())


# A run ---------------------------------------------------------------------------------------------------------------------


def run_result() -> dict[str, Any]:
    """Return the result of a run of two people with every arm."""
    arms = {
        arm: {"bits_per_char": estimate(1.5 + i / 100, 1.25, 1.75, 200), "discriminator": estimate(0.625, 0.5, 0.75, 40)}
        for i, arm in enumerate(ARMS)
    }
    paired = {
        f"recalled_pairs - {arm}": {"bits_per_char": estimate(-0.125, -0.25, -0.0625, 198) | {"p": 0.25}}
        for arm in ARMS
        if arm != "recalled_pairs"
    }
    return {
        "name": "four [domains]", "arms": arms, "paired": paired, "twin_arm": "recalled_pairs", "seed": 0,
        "people": {"a/Ann": {}, "b/Bob": {}}, "turns": 200, "conversations": 21, "models": {"scorer": "local:/[/odd]/y.gguf"},
    }  # fmt: skip


def test_the_rows_of_a_run_are_one_line_each_in_eighty_columns() -> None:
    text = shown(run_result(), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert text.count("(1.250 to 1.750)") == len(ARMS)
    assert text.count("−0.125 (−0.250 to −0.062)  0.250") == len(ARMS) - 1  # the twin has no contrast with itself
    for i in range(len(ARMS)):
        assert f"{1.5 + i / 100:.3f} (1.250" in text


def test_the_twins_row_of_a_run_is_marked_and_the_basis_is_printed() -> None:
    text = shown(run_result())
    [row] = [line for line in text.splitlines() if "   the twin " in line]
    assert row.startswith("Recalled pairs")
    assert "198 held-out turns of 2 people in 21 conversations; measured with local:y.gguf)" in text


def test_brackets_in_the_name_of_a_run_are_kept() -> None:
    assert "four [domains]" in shown(run_result())


# A twin --------------------------------------------------------------------------------------------------------------------


def test_the_view_of_a_twin_holds_its_whole_record() -> None:
    record = replace(RECORD, closeness=measurement())
    text = printed(
        twin_view(
            record,
            make_triples(42, traced=40),
            LastTurnModel(weights=(), bias=0.0, threshold=0.5, f1=0.9, endings=14, validation_turns=6),
            None,
        )
    )
    for part in (
        "twin ann", "complete", '"Ann" in test', "Ann: Ann writes [short].", "hi there", "thank you",
        "42 triples, 40 with a trace (recon), mean fidelity +0.195 nats per token",
        "80 for 40 pairs, prompt propose/1; rejected: 40 misleads",
        "traces with the highest fidelity", "+0.39", "how was day 39?", "I felt [glad] 39", "it was fine 39",
        "learned from 14 real endings (F1 0.90 on its validation turns, n=6)",
        "1 conversations for validation, 2 for the test", "Bob",
        "traces scripted:test, scores fake:, vectors fake:256, seed 0",
        "usertwin 0.1.0", "1.100 bits per character",
    ):  # fmt: skip
        assert part in text


def test_missing_parts_of_a_twin_are_named() -> None:
    record = replace(RECORD, state="interrupted", other_speaker=None, recipe=recipe(method="none", model=None, scorer=None))
    text = printed(twin_view(record, make_triples(42), None, None))
    for part in (
        "interrupted; run the same learn command to continue", "no other person in the log",
        "not learned (too few real endings)", "traces –, scores –", "not measured; run usertwin eval ann",
    ):  # fmt: skip
        assert part in text
    assert "fidelity" not in text


def test_an_ending_without_validation_has_no_score() -> None:
    text = printed(
        twin_view(
            RECORD,
            make_triples(42),
            LastTurnModel(weights=(), bias=0.0, threshold=0.5, f1=None, endings=14, validation_turns=6),
            AbandonmentModel(0.4, 0.75, 9, 30),
        )
    )
    assert "no validation turn is an ending" in text
    assert "without a last turn, by 9 remembered abandonments (F1 0.75 on its validation turns, n=30)" in text


# The arm of the twin ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "name", "bits"),
    [
        ({}, "Recon-selected traces", "1.100"),
        ({"twin_arm": "recon"}, "Recon-selected traces", "1.100"),
        ({"twin_arm": "recalled_pairs"}, "Recalled pairs", "1.200"),
    ],
)
def test_the_arm_of_the_twin_is_marked_and_in_the_line(change: dict[str, str], name: str, bits: str) -> None:
    result = measurement()
    del result["twin_arm"]
    result |= change
    assert twin_arm(result) == change.get("twin_arm", "recon")
    [row] = [line for line in shown(result).splitlines() if "   the twin " in line]
    assert row.startswith(name)
    assert closeness_line(result).startswith(f"{bits} bits per character")


def test_no_title_of_an_arm_breaks_its_row() -> None:
    assert [arm for arm, label in ARM_LABELS.items() if len(label.title) > 22] == []
    assert set(ARM_LABELS) == set(ARMS)


# Settings ----------------------------------------------------------------------------------------------------

COMPARED = {
    "settings": [
        {"k": k, "window": window, "traces": traces, "reasons": reasons, "bits_per_char": bits, "against_plain": against,
         "chosen": chosen}
        for k, window, traces, reasons, bits, against, chosen in (
            (4, 3, "none", False, estimate(1.5, 1.25, 1.75), estimate(0.25, -0.125, 0.5), False),
            (8, 3, "none", False, estimate(1.25, 1.0, 1.5), None, False),
            (8, 3, "backward", False, estimate(1.375, None, None), estimate(0.125, None, None), False),
            (8, 3, "recon", True, estimate(1.0, 0.75, 1.25), estimate(-0.25, -0.375, -0.0625), True),
            (8, 3, "recon", False, None, None, False),
        )
    ],
    "turns": 24, "conversations": 9, "scorer": "local:/my[models]/x.gguf", "model": "local", "seed": 0,
}  # fmt: skip


def test_every_compared_setting_has_a_row_and_the_selected_one_a_mark() -> None:
    text = printed(settings_table(Settings(k=8, window=3, traces="recon", reasons=True, measured=COMPARED)), width=400)
    rows = [line.split() for line in text.splitlines() if re.match(r" +\d", line)]
    assert rows == [
        ["4", "3", "none", "no", "1.500", "+0.250", "(−0.125", "to", "+0.500)"],
        ["8", "3", "none", "no", "1.250", "–"],
        ["8", "3", "backward", "no", "1.375", "+0.125", "(no", "interval)"],
        ["8", "3", "recon", "yes", "1.000", "−0.250", "(−0.375", "to", "−0.062)", "←"],
        ["8", "3", "recon", "no", "–", "–"],
    ]
    assert (
        "Selected, as the simplest that is best within a standard error on 24 validation turns of 9 conversations, scored by "
        "local:/my[models]/x.gguf: 8 pairs with Recon-selected traces, 3 turns of the chat, and a trace of its own before it "
        "acts."
    ) in text


def test_the_settings_fit_into_eighty_columns_uncut() -> None:
    wide, narrow = (
        printed(settings_table(Settings(k=8, window=3, traces="recon", reasons=True, measured=COMPARED)), width)
        for width in (200, 80)
    )
    assert max(map(len, narrow.splitlines())) <= 80
    assert "…" not in narrow
    assert sorted(narrow.split()) == sorted(wide.split())


def test_settings_without_a_validation_turn_say_so() -> None:
    assert "There is no validation turn" in printed(settings_table(Settings(traces="none", reasons=False)))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (None, "8 pairs with their traces; not tuned (usertwin tune)"),
        (Settings(k=4, window=3, traces="none", reasons=False), "4 pairs without traces, 3 turns of the chat\n"),
        (Settings(k=4, window=6, traces="backward", reasons=False), "4 pairs with the first traces, 6 turns of the chat\n"),
        (
            Settings(k=8, window=3, traces="recon", reasons=True, measured=COMPARED),
            "8 pairs with Recon-selected traces, 3 turns of the chat, and a trace of its own before it acts; best within "
            "a standard error on 24 validation turns of 9 conversations, scored by local:/my[models]/x.gguf",
        ),
    ],
)
def test_the_view_of_a_twin_has_its_settings(settings: Settings | None, says: str) -> None:
    text = re.sub(" *\n", "\n", printed(twin_view(replace(RECORD, settings=settings), make_triples(3), None, None), width=400))
    [row] = [line for line in text.splitlines(keepends=True) if line.startswith("settings ")]
    assert says in row


# Cost and audit of traces --------------------------------------------------------------------------------


def traced_with(measured: list[dict[str, float]], cost: list[dict[str, float | None]]) -> list[Triple]:
    """Return triples whose traces have these measurements and costs."""
    return [
        replace(
            triple,
            provenance=Provenance(
                method="recon",
                proposer="local",
                scorer="local",
                prompt_version="propose/1",
                seed=0,
                candidates=2,
                rejected={},
                measured=flags,
                cost=spent,
            ),
        )
        for triple, flags, spent in zip(make_triples(len(measured), traced=len(measured)), measured, cost, strict=True)
    ]


def row_of(name: str, triples: list[Triple]) -> str:
    text = printed(twin_view(RECORD, triples, None, None), width=400)
    [row] = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return row.removeprefix(name).strip()


def test_the_audit_counts_the_kept_traces_that_identify_the_action() -> None:
    triples = traced_with(
        [{"reveals_action": 1.0, "kept": 1.0}, {"reveals_action": 0.0}, {"reveals_action": 1.0}, {"kept": 1.0}], [{}] * 4
    )
    rejected = replace(triples[0], reasoning=None)
    assert row_of("audit", [*triples, rejected]) == "2 of 3 traces identify the action without the context"
    assert row_of("audit", make_triples(3)) == "none"


def test_the_cost_is_in_completions_tokens_and_money_and_per_pair() -> None:
    spent = {"calls": 4, "repeated": 1, "input_tokens": 1000, "cached_tokens": 0, "output_tokens": 100, "dollars": 0.0125}
    none = {"calls": 0, "repeated": 5, "input_tokens": 0, "cached_tokens": 0, "output_tokens": 0, "dollars": 0.0}
    triples = traced_with([{}] * 3, [spent, spent, none])
    assert row_of("cost", triples) == (
        "8 completions, 7 more from the cache; 2000 tokens read, 200 written; $0.025; per pair: 2.7 completions, 733 tokens"
    )
    unknown = traced_with([{}] * 2, [spent, spent | {"dollars": None}])
    assert "; price unknown; " in row_of("cost", unknown)
    assert row_of("cost", make_triples(3)) == "unknown"
    assert row_of("cost", traced_with([{}], [{}])) == "unknown"  # an early version did not store costs


# Controls ------------------------------------------------------------------------------------------------------------------


def controls_found(low: float = 0.01, **changes: Any) -> dict[str, Any]:
    """Return a control experiment with this lower bound in every contrast, and with the widest possible figures."""
    rows = {
        name: {
            "gain": estimate(-10.123456, -12.345678, 11.345678, 100),
            "guarded_gain": estimate(10.123456, -12.345678, -11.345678, 100),
            "guarded": None, "rejected": 100 if place else 0, "reasons": {reason: 100} if place else {}, "n": 100,
        }
        for place, (name, reason) in enumerate(zip(CONTROLS, [*REASONS][:len(CONTROLS)], strict=True))
    }  # fmt: skip
    found: dict[str, Any] = {
        "twin": "ann",
        "controls": rows,
        "own_minus": {name: estimate(0.5, low, 12.25, 100) for name in CONTROLS if name != "own"},
        "swap_contrast": estimate(0.5, low, 1.0, 90),
        "validity": estimate(0.25, low, 0.5, 240),
        "selection": {f"recon - {name}": estimate(0.125, low, 0.25, 60) for name in ("random", "longest", "backward")},
        "turns": 100, "conversations": 40, "seed": 3,
        "models": {"proposer": "local:/my[models]/x.gguf", "scorer": "local:small", "embedder": "fake:256"},
        "cost": {"calls": 1200, "repeated": 34},
    }  # fmt: skip
    found |= changes
    return found | {"decision": decide(found)}


@pytest.mark.parametrize("guard", [*REASONS])
def test_the_controls_fit_into_eighty_columns_uncut(guard: str) -> None:
    found = controls_found()
    for row in found["controls"].values():
        row["reasons"] = {guard: 100, "empty": 1}
    wide, narrow = (printed(controls_table(found), width) for width in (200, 80))
    assert max(map(len, narrow.splitlines())) <= 80
    assert "…" not in narrow + wide
    assert sorted(narrow.split()) == sorted(wide.split())
    assert narrow.count("100 of 100") == 9
    assert narrow.count(REASON_NAMES.get(guard, guard)) >= 10
    assert narrow.count("−12.35 to +11.35") == 10


def test_a_missing_control_or_contrast_is_shown_as_missing() -> None:
    found = controls_found()
    del found["controls"]["other"], found["own_minus"]["other"]
    found["controls"]["copy"]["guarded_gain"] = None
    found = found | {"decision": decide(found)}
    text = printed(controls_table(found))
    assert "4 other person" not in text
    assert "own beats other: not measured" in text
    [row] = [line for line in text.splitlines() if "1 the action" in line]
    assert "–" in row
    [own] = [line for line in text.splitlines() if "own trace" in line]
    assert "–" in own  # no contrast with itself


@pytest.mark.parametrize(("low", "verdict"), [(0.01, "more than leakage"), (-0.01, "not shown to be more than leakage")])
def test_the_decision_is_printed_by_condition_with_its_figures(low: float, verdict: str) -> None:
    text = printed(controls_table(controls_found(low)), width=300)
    word = "yes" if low > 0 else "no "
    signed = number(low, 4, signed=True)
    for line in (
        f"{word} own beats shuffled: +0.5000 ({signed} to +12.2500), n=100",
        f"{word} own beats keywords: +0.5000 ({signed} to +12.2500), n=100",
        f"{word} a swapped trace moves the other action: +0.5000 ({signed} to +1.0000), n=90",
        f"{word} the score predicts the benefit downstream: +0.2500 ({signed} to +0.5000), n=240",
        f"{word} choosing by score beats random: +0.1250 ({signed} to +0.2500), n=60",
        f"{word} choosing by score beats longest: +0.1250 ({signed} to +0.2500), n=60",
    ):
        assert line in text
    assert len(re.findall(r"^(?:yes|no ) ", text, re.MULTILINE)) == 8
    assert f"The score is {verdict} for this person with these models (each condition: 95% interval above 0)." in text


def test_the_basis_of_the_controls_is_printed_and_brackets_in_model_names_are_kept() -> None:
    assert (
        "100 validation turns of 40 conversations; intervals by conversation; traces by local:/my[models]/x.gguf, scored by "
        "local:small; 1200 texts sampled, 34 from the cache; seed 3"
    ) in printed(controls_table(controls_found()), width=400)


def test_a_condition_without_an_interval_is_open() -> None:
    found = controls_found(swap_contrast=estimate(0.5, None, None, 3), validity=None)
    text = printed(controls_table(found), width=300)
    assert "?   a swapped trace moves the other action: +0.5000 (no interval), n=3" in text
    assert "?   the score predicts the benefit downstream: not measured" in text
    assert "The score cannot be judged yet" in text
