"""Tests of evals/reports/html.py, summary.py, tables.py, labels.py and example_turns.py."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from invented_run import EVIL, PEOPLE, TWIN, est, paired, result, turn, turns

from usertwin.evals.metrics.closeness import closeness
from usertwin.evals.reports.example_turns import bits_gained, example_turns
from usertwin.evals.reports.html import forest_plot, render_html
from usertwin.evals.reports.labels import negated, number, verdict
from usertwin.evals.reports.summary import answer_of, summary_of
from usertwin.evals.reports.tables import forest_grid, power_sentence, sections_of
from usertwin.evals.reports.templates import COLOURS
from usertwin.evals.reports.write_reports import render_markdown


class Tags(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def against(value: float, half: float | None, rival: str = "persona", **changes: Any) -> dict[str, Any]:
    """Return a result in which the twin was compared with one arm."""
    contrasts = {f"{TWIN} - {rival}": {"bits_per_char": paired(value, half, p_holm=0.008)}}
    return result(paired=contrasts, **changes)


# The headline


def test_the_headline_of_a_twin_that_predicts_better_has_the_difference_its_test_and_its_basis() -> None:
    assert summary_of(against(-0.02, 0.006)) == (
        "The twin predicts these people's next turn 1.4% better than the same model with a description of the person: it needs "
        "0.020 fewer bits per character (95% interval 0.014 to 0.026, p = 0.008 after Holm; 412 held-out turns of 4 people in "
        "86 conversations; measured with local, replies written by local)."
    )


def test_the_headline_says_that_the_twin_predicts_worse() -> None:
    summary = summary_of(against(0.02, 0.006))
    assert summary.startswith("The twin predicts these people's next turn 1.4% worse than the same model with a description of")
    assert "it needs 0.020 more bits per character (95% interval 0.014 to 0.026, p = 0.008 after Holm;" in summary


def test_a_contrast_of_other_arm_minus_twin_is_negated() -> None:
    contrasts = {f"openevals - {TWIN}": {"bits_per_char": {**est(0.1), "low": 0.02, "high": 0.3}}}
    answer = answer_of(result(paired=contrasts))
    assert answer is not None
    assert (answer["value"], answer["low"], answer["high"]) == (-0.1, -0.3, -0.02)


def test_a_contrast_that_was_not_measured_says_so() -> None:
    summary = summary_of(result(question=["trained - backward"]))
    assert "was not compared with the same model with recalled pairs and their first traces: no turn was measured" in summary


# Numbers


@given(st.floats(-1e6, 1e6), st.integers(0, 4), st.booleans())
def test_a_number_parses_to_the_rounded_value(value: float, digits: int, signed: bool) -> None:
    shown = number(value, digits, signed=signed)
    assert float(shown.replace("−", "-")) == pytest.approx(round(value, digits), abs=10.0**-digits / 2)
    assert not re.fullmatch(r"[+−]0\.?0*", shown)


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_negated_difference_has_the_opposite_verdict(value: float, below: float, above: float, p: float) -> None:
    difference = {"value": value, "low": value - below, "high": value + above, "n": 3, "p": p}
    assert {verdict(difference), verdict(negated(difference))} in ({"same"}, {"closer", "further"})
    assert negated(negated(difference)) == difference


# The tables


def test_every_estimate_has_its_n() -> None:
    for section in sections_of(result()):
        for grid in section.grids:
            for row in grid.rows:
                for cell in row.cells:
                    has_decimals = re.fullmatch(r"[+−]?\d+\.\d+", cell.text)
                    head = grid.columns[row.cells.index(cell) + 1]
                    if has_decimals and head not in {"Mean prediction", "Expected"}:
                        assert "n=" in cell.detail, (section.name, row.title, cell)


def test_a_measure_is_marked_where_the_difference_has_a_verdict() -> None:
    contrasts = {
        f"{TWIN} - {arm}": {"bits_per_char": paired(-0.01, p=p), "chrf": paired(-0.01, p=0.3)}
        for arm, p in (("persona", 0.01), ("recon", 0.3))
    }
    (grid,) = next(section for section in sections_of(result(paired=contrasts)) if section.name == "measures").grids
    bits, chrf = (next(row for row in grid.rows if row.title == title) for title in ("Bits per char", "chrF"))
    marks = dict(zip(grid.columns[1:], (cell.mark for cell in bits.cells), strict=True))
    assert marks["Persona"] == "closer"
    assert marks["Recalled pairs (twin)"] == "twin"
    assert marks["Recon-selected traces"] == ""
    assert {cell.mark for cell in chrf.cells} == {"", "twin"}


def test_only_the_signs_that_are_shown_are_explained() -> None:
    starts = ((-0.02, 0.01, "✓ the twin is closer to the person than this arm (p"), (0.02, 0.01, "✗ it is less close (p"))
    for value, p, note in (*starts, (-0.02, 0.3, "No difference is shown (p")):
        contrasts = {f"{TWIN} - persona": {"bits_per_char": paired(value, p=p)}}
        section = next(section for section in sections_of(result(paired=contrasts)) if section.name == "measures")
        assert section.notes[0].startswith(note)


def test_a_win_rate_of_a_judge_that_fails_its_checks_has_no_mark() -> None:
    for usable, mark in ((True, "closer"), (False, "")):
        judge = result()["judge"] | {"usable": usable}
        section = next(section for section in sections_of(result(judge=judge)) if section.name == "judge")
        assert section.grids[0].rows[0].cells[0].mark == mark


def test_contrasts_of_other_arms_have_a_separate_table() -> None:
    contrasts = {
        "recon - trained": {"bits_per_char": paired(-0.01)},
        "trained - backward": {"bits_per_char": paired(-0.002, 0.004, p=0.4)},
        "trained - recalled_pairs": {"bits_per_char": paired(0.007, 0.004)},
        "trained - openevals": {"chrf": paired(0.1)},  # not in the primary measure
    }
    whole = result(paired=contrasts, twin_arm="recon")
    (grid,) = next(section for section in sections_of(whole) if section.name == "between").grids
    assert [(row.title, row.cells[0].text, row.cells[1].text) for row in grid.rows] == [
        ("Trained synthesizer minus Backward synthesis", "−0.002", "no difference shown"),
        ("Trained synthesizer minus Recalled pairs", "+0.007", "second closer"),
    ]
    assert not [cell for row in grid.rows for cell in row.cells if cell.mark]  # a mark speaks of the twin


def test_the_verdicts_of_single_people_on_the_question_are_counted() -> None:
    whole = result()
    for name, p in zip(PEOPLE, (0.01, 0.3, None, 0.02), strict=True):
        whole["people"][name]["paired"][f"{TWIN} - no_memory"]["bits_per_char"]["p"] = p
    people = next(section for section in sections_of(whole) if section.name == "people")
    assert people.notes[0].startswith(
        "Recalled pairs (twin) against No memory: closer for 2, with no difference shown for 1, without a test for 1, of 4"
    )
    assert [row.title for row in people.grids[0].rows] == list(PEOPLE)


def test_a_failed_sanity_check_of_the_judge_is_shown() -> None:
    judge = next(section for section in sections_of(result()) if section.name == "judge")
    assert [(row.title, row.cells[-1].text) for row in judge.grids[1].rows] == [
        ("Identical", "yes"), ("Real turn", "no"), ("Same arm", "too few pairs"),
    ]  # fmt: skip
    assert "0.58" in judge.notes[1]
    assert judge.notes[2] == "it prefers what is shown first"


def test_an_unknown_share_of_the_judge_is_called_unknown() -> None:
    """A judge that always answers "tie" chooses no reply, so two shares have no value."""
    whole = result()["judge"]
    win = {**whole["contrasts"][f"{TWIN} - persona"], "decided": None, "ties": None}
    tied = {**whole, "consistent": None, "first": None, "contrasts": {f"{TWIN} - persona": win}}
    judge = next(section for section in sections_of(result(judge=tied)) if section.name == "judge")
    assert "Same answer in both orders: unknown." in judge.notes[1]
    assert [cell.text for cell in judge.grids[0].rows[0].cells[1:3]] == ["–", "–"]


def test_a_memorization_without_turns_and_a_transfer_without_scores_are_left_out() -> None:
    leakage = {PEOPLE[0]: {"near_duplicates": 0, "of": 3, "memorized": {"value": None, "n": 0}, "checked": []}}
    gone = {**result()["transfer"][0], "bits_per_char": None}
    sections = {section.name: section for section in sections_of(result(leakage=leakage, transfer=[gone]))}
    assert sections["leakage"].grids[0].rows[0].cells[1].text == "–"
    assert "transfer" not in sections


def test_depths_are_in_numeric_order() -> None:
    drift = next(section for section in sections_of(result()) if section.name == "drift")
    assert [row.title for row in drift.grids[0].rows] == ["Turn 1", "Turn 3", "Turn 5", "Turn 10"]


def test_the_lengths_of_free_simulations_are_a_table_of_drift() -> None:
    [drift] = [section for section in sections_of(result()) if section.name == "drift"]
    assert [row.cells[0].text for row in drift.grids[1].rows] == ["0.20", "0.70", "0.10"]
    [old] = [section for section in sections_of(result(drift_lengths=None)) if section.name == "drift"]
    assert len(old.grids) == 1


def test_a_missing_part_has_no_section() -> None:
    bare = result(
        judge=None, leakage={}, endings={}, drift={}, transfer=[], user_models=None, discriminator=None, spread={},
        likelihood_judge=None,
    )  # fmt: skip
    assert [section.name for section in sections_of(bare)] == ["measures", "people"]


def test_an_unknown_arm_has_its_own_name_as_title() -> None:
    contrasts = {f"{TWIN} - my_arm": {"bits_per_char": paired(-0.1)}}
    assert forest_grid(result(paired=contrasts)).rows[0].title == "my_arm"


def test_the_power_line_names_the_smallest_detectable_difference() -> None:
    line = power_sentence(result())
    assert "Differences below 0.009 bits per character (No memory, n=412) would be missed" in line
    none = power_sentence(result(paired={f"{TWIN} - persona": {"bits_per_char": paired(0.1, visible=None)}}))
    assert "too few people" in none


# The plot


@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(0, 1)), min_size=1, max_size=6))
@example([(0.0, 5e-324)])
def test_every_interval_of_the_plot_is_inside_it_and_holds_its_dot(ends: list[tuple[float, float]]) -> None:
    contrasts = {f"{TWIN} - arm{place}": {"bits_per_char": paired(*end)} for place, end in enumerate(ends)}
    plot = forest_plot(result(paired=contrasts))
    assert 0 <= plot["zero"] <= 100
    assert len(plot["ticks"]) <= 7
    for box in plot["boxes"]:
        assert -0.01 <= box["left"] <= box["dot"] + 0.01
        assert box["dot"] - 0.01 <= box["left"] + box["width"] + 0.01 <= 100.03


def test_a_difference_without_an_interval_has_only_a_dot() -> None:
    (box,) = forest_plot(against(-0.1, None))["boxes"]
    assert (box["left"], box["width"]) == (None, None)


# Examples


def test_the_best_turns_are_the_closest_and_the_worst_the_least_close() -> None:
    examples = example_turns(turns(40), TWIN)
    numbers = {kind: [turn.position for turn in kind_turns] for kind, kind_turns in examples.items()}
    assert numbers["best"] == [39, 38, 37]
    assert numbers["worst"] == [0, 1, 2]
    assert all(15 <= place <= 24 for place in numbers["typical"])


def test_examples_are_of_different_people_and_none_is_shown_twice() -> None:
    examples = example_turns(turns(40), TWIN)
    assert all(len({turn.person for turn in kind_turns}) == 3 for kind_turns in examples.values())
    everything = [turn.position for kind_turns in examples.values() for turn in kind_turns]
    assert len(set(everything)) == len(everything) == 9


def test_of_one_person_examples_are_of_different_conversations() -> None:
    examples = example_turns([turn(number, PEOPLE[0], number / 20, number) for number in range(20)], TWIN)
    assert all(len({turn.conversation_id for turn in kind_turns}) == 3 for kind_turns in examples.values())


@given(st.integers(0, 8))
def test_few_turns_are_divided_without_repetition(count: int) -> None:
    examples = example_turns(turns(count), TWIN)
    places = [turn.position for kind_turns in examples.values() for turn in kind_turns]
    assert len(places) == len(set(places)) == min(count, 9)


def test_turns_without_a_reply_are_not_examples() -> None:
    assert example_turns(turns(9), "trained") == {"typical": [], "best": [], "worst": []}


def test_the_gain_of_a_turn_needs_both_arms() -> None:
    assert bits_gained(turn(1, PEOPLE[0], gained=22.0), TWIN) == pytest.approx(2.0)
    assert bits_gained(turn(1, PEOPLE[0]), "trained") is None


# The page


def test_the_page_is_well_formed_and_holds_the_figures() -> None:
    tags = Tags(render_html(result(), turns()))
    assert tags.open == []
    page_text = " ".join(tags.text.replace("\u00a0", " ").split())
    for text in (summary_of(result()), "the discriminator had few replies: 40", "−0.008", "−0.014 to −0.002, n=412", "Seed"):
        assert text in page_text
    assert [tag for tag, _ in tags.tags if tag in {"h1", "main", "nav"}] == ["h1", "main", "nav"]
    assert sum(tag == "table" for tag, _ in tags.tags) == sum(tag == "caption" for tag, _ in tags.tags)


def test_the_page_loads_nothing_and_has_no_script() -> None:
    page = render_html(result(), turns(text=EVIL))
    names = {tag for tag, _ in Tags(page).tags}
    assert names.isdisjoint({"script", "img", "iframe", "object", "form", "video"})
    links = [attrs[key] or "" for _, attrs in Tags(page).tags for key in ("href", "src") if key in attrs]
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"url\(|@import|https?://", page)


@settings(max_examples=25)  # each draws a whole report
@given(st.text(min_size=1))
def test_any_text_is_escaped(text: str) -> None:
    evil = turn(1, PEOPLE[0], text=f"</style><b onclick='x'>{text}")
    tags = Tags(render_html(result(name=text, warnings=[text], suite_text=text), [evil]))
    assert not any("onclick" in attrs for _, attrs in tags.tags)
    assert tags.open == []


def test_every_link_inside_the_page_has_a_target() -> None:
    tags = Tags(render_html(result(), turns())).tags
    places = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(places) == len(set(places))
    assert {(attrs["href"] or "")[1:] for tag, attrs in tags if tag == "a"} <= set(places)


def test_examples_show_the_real_turn_the_twin_a_rival_and_the_recalled_pairs() -> None:
    page_text = Tags(render_html(result(), [turn(1, PEOPLE[0], text="is it raining?")])).text
    shown = ("is it raining?", "twin says 1", "persona says 1", "wants number 1", "cosine 0.71", "good day", "is polite")
    assert [text for text in shown if text not in page_text] == []


def test_a_result_with_nothing_but_two_arms_is_still_a_page() -> None:
    bare = against(
        -0.1, 0.01, judge=None, leakage={}, endings={}, drift={}, transfer=[], user_models=None, warnings=[], family={}
    )
    for missing in ("suite_text", "settings", "versions", "models", "measured_at", "name"):
        del bare[missing]
    assert "Method" in Tags(render_html(bare, [])).text


def test_a_result_of_closeness_makes_a_page() -> None:
    """The invented result could drift from the result of `closeness`."""
    whole = [replace(turn, bits={TWIN: 10.0 - turn.position % 3, "no_memory": 12.0, "persona": 11.0}) for turn in turns(16)]
    page = render_html({**closeness(whole, TWIN, seed=0), "name": "real"}, whole)
    page_text = " ".join(Tags(page).text.split())
    assert "than the same model without memory:" in page_text
    assert "16 held-out turns of 4 people" in page_text


# Colours


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(first: str, second: str) -> float:
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(scheme: str) -> None:
    """WCAG 2.2 AA: 4.5 for text."""
    style = COLOURS.read_text("utf-8")
    blocks = re.findall(r":root \{([^}]*)\}", style)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[0 if scheme == "light" else 1]))
    backgrounds = {
        "text": ("page", "box", "closer-box", "further-box", "same-box", "mark-box"), "dim": ("page", "box", "mark-box"),
        "closer": ("page", "closer-box"), "further": ("page", "further-box"), "same": ("page",), "link": ("page",),
    }  # fmt: skip
    poor = [(a, b) for a, others in backgrounds.items() for b in others if _contrast(colours[a], colours[b]) < 4.5]
    assert poor == []


def test_user_models_without_a_training_are_no_error() -> None:
    models = {**result()["user_models"], "examples": [], "steps": []}
    assert "for 0 steps" in render_html(result(user_models=models), turns())


def test_control_characters_are_in_no_report() -> None:
    evil = "a\x1b[2Jb\u202ec"
    page = render_html(result(name=evil, warnings=[evil]), turns(text=evil)) + render_markdown(
        result(name=evil, suite_text=evil)
    )
    assert not {"\x1b", "\u202e"} & set(page)
    assert "␛[2J" in page
