"""evals/reports/html.py, summary.py, tables.py and examples.py: what the page says, of whom, and that it keeps to itself."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from invented_run import EVIL, PEOPLE, TWIN, differences, est, paired, result, turn, turns

from usertwin.evals.metrics.closeness import closeness
from usertwin.evals.reports.example_turns import bits_gained, example_turns
from usertwin.evals.reports.html import forest_plot, render_html
from usertwin.evals.reports.labels import distance, number, turned, verdict
from usertwin.evals.reports.summary import best_alternative, summary_of
from usertwin.evals.reports.tables import forest_grid, power_lines, sections_of

PAGE = Path(__file__).resolve().parents[2] / "evals" / "reports" / "page.html"


class Tags(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.said = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.said += data


def against(value: float, half: float | None, rival: str = "persona", **changes: Any) -> dict[str, Any]:
    """A result in which the twin was compared with one arm."""
    told = {f"{TWIN} - {rival}": {"bits_per_char": paired(value, half)}}
    return result(paired=told, **changes)


# The summary


def test_the_summary_says_that_the_twin_is_closer_by_how_much_and_on_what() -> None:
    assert summary_of(against(-0.02, 0.006)) == (
        "The twin is closer to the people than the best alternative, a description of the person: what was really said "
        "surprises it by 0.020 bits per character (1.4%) less (95% interval 0.014 to 0.026; 412 held-out turns of 4 people in "
        "86 conversations)."
    )


def test_the_summary_is_bad_news_where_the_twin_loses() -> None:
    said = summary_of(against(0.02, 0.006))
    assert said.startswith("The twin is not as close as the best alternative, a description of the person")
    assert "0.020 bits per character (1.4%) more (95% interval 0.014 to 0.026;" in said


def test_the_summary_says_so_where_the_two_cannot_be_told_apart() -> None:
    said = summary_of(against(-0.004, 0.006))
    assert said.startswith("The twin cannot be told apart from the best alternative")
    assert "−0.004 bits per character (95% interval −0.010 to +0.002;" in said


def test_without_an_interval_nothing_is_sure() -> None:
    said = summary_of(against(-0.3, None))
    assert "cannot be told apart" in said
    assert "no interval: too few conversations" in said


def test_the_best_alternative_is_the_one_that_comes_nearest_and_not_the_weakest() -> None:
    found = best_alternative(result())
    assert found is not None
    assert found[0] == "persona"


def test_a_comparison_the_other_way_round_is_turned() -> None:
    told = {f"openevals - {TWIN}": {"bits_per_char": {**est(0.1), "low": 0.02, "high": 0.3}}}
    found = best_alternative(result(paired=told))
    assert found is not None
    assert (found[0], found[1]["value"], found[1]["low"], found[1]["high"]) == ("openevals", -0.1, -0.3, -0.02)


def test_another_way_to_show_the_same_memories_is_named_if_it_is_closer() -> None:
    told = {**differences(), f"{TWIN} - recalled_triples": {"bits_per_char": paired(0.02)}}
    assert "its own memories shown in another way (Recon-Select" in summary_of(result(paired=told))
    assert "another way" not in summary_of(result())


def test_a_run_that_compared_nothing_says_so() -> None:
    assert "compared with nothing" in summary_of(result(paired={}))


def test_every_summary_is_one_sentence() -> None:
    for found in (result(), against(0.1, 0.01), against(0.0, 0.01), result(paired={})):
        assert re.findall(r"\.(?!\d)", summary_of(found)) == ["."]


# Numbers


@given(st.floats(-1e6, 1e6), st.integers(0, 4), st.booleans())
def test_a_number_is_read_back_as_it_was_rounded(value: float, digits: int, signed: bool) -> None:
    said = number(value, digits, signed=signed)
    assert float(said.replace("−", "-")) == pytest.approx(round(value, digits), abs=10.0**-digits / 2)
    assert not re.fullmatch(r"[+−]0\.?0*", said)


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1))
def test_turning_a_difference_turns_what_it_says(value: float, below: float, above: float) -> None:
    one = {"value": value, "low": value - below, "high": value + above, "n": 3}
    assert {verdict(one), verdict(turned(one))} in ({"same"}, {"closer", "further"})
    assert turned(turned(one)) == one


def test_a_ratio_is_as_far_at_double_as_at_half() -> None:
    assert distance("length_ratio", 2.0) == pytest.approx(distance("length_ratio", 0.5))
    assert distance("capitals", -0.2) == distance("capitals", 0.2)
    assert distance("chrf", 0.4) < distance("chrf", 0.3)


# The tables


def test_nothing_is_printed_without_its_n() -> None:
    for section in sections_of(result()):
        for grid in section.grids:
            for row in grid.rows:
                for cell in row.cells:
                    has_decimals = re.fullmatch(r"[+−]?\d+\.\d+", cell.text)
                    told = grid.columns[row.cells.index(cell) + 1]
                    if has_decimals and told not in {"Told, on average", "What must be"}:
                        assert "n=" in cell.beside, (section.name, row.title, cell)


def test_a_measure_is_marked_where_the_interval_of_the_difference_excludes_zero() -> None:
    (grid,) = next(section for section in sections_of(result()) if section.name == "measures").grids
    bits, chrf = (next(row for row in grid.rows if row.title == title) for title in ("Bits per char", "chrF"))
    marks = dict(zip(grid.columns[1:], (cell.mark for cell in bits.cells), strict=True))
    assert marks["Persona"] == "closer"
    assert marks["Own, recalled (the twin)"] == "twin"
    assert marks["Recon-Select"] == ""
    assert {cell.mark for cell in chrf.cells} == {"", "twin"}


def test_the_star_is_with_the_arm_that_is_nearest_in_the_sense_of_the_measure() -> None:
    arms = {
        TWIN: {"length_ratio": est(1.6), "chrf": est(0.2)},
        "persona": {"length_ratio": est(0.9), "chrf": est(0.1)},
    }
    (grid,) = next(section for section in sections_of(result(arms=arms)) if section.name == "measures").grids
    assert [[cell.best for cell in row.cells] for row in grid.rows] == [[False, True], [True, False]]


def test_arms_that_are_not_the_twin_are_held_against_each_other_in_a_table_of_their_own() -> None:
    told = {
        "recalled_triples - trained": {"bits_per_char": paired(-0.01)},
        "trained - backward": {"bits_per_char": paired(-0.002, 0.004)},
        "trained - recalled_pairs": {"bits_per_char": paired(0.007, 0.004)},
        "trained - openevals": {"chrf": paired(0.1)},  # nothing to say in the measure that tests are about
    }
    whole = result(paired=told, twin_arm="recalled_triples")
    (grid,) = next(one for one in sections_of(whole) if one.name == "between").grids
    assert [(row.title, row.cells[0].text, row.cells[1].text) for row in grid.rows] == [
        ("Trained synthesizer minus Backward synthesis", "−0.002", "not told apart"),
        ("Trained synthesizer minus Own, recalled", "+0.007", "the second is closer"),
    ]
    assert not [cell for row in grid.rows for cell in row.cells if cell.mark]  # a mark speaks of the twin


def test_the_people_for_whom_the_twin_is_ahead_are_counted() -> None:
    people = next(section for section in sections_of(result()) if section.name == "people")
    assert "closer for 1, further off for 0 and not told apart for 3 of 4 people" in people.notes[0]
    assert [row.title for row in people.grids[0].rows] == list(PEOPLE)


def test_a_judge_that_fails_a_check_is_shown_to_fail_it() -> None:
    judge = next(section for section in sections_of(result()) if section.name == "judge")
    assert [(row.title, row.cells[-1].text) for row in judge.grids[1].rows] == [
        ("Identical", "yes"), ("Real turn", "no"), ("Same arm", "too few to tell"),
    ]  # fmt: skip
    assert "0.58" in judge.notes[1]
    assert judge.notes[2] == "it prefers what is shown first"


def test_what_a_judge_could_not_tell_is_called_not_known() -> None:
    """A judge that only calls ties names no reply, so there is no share of first ones and nothing decided."""
    whole = result()["judge"]
    win = {**whole["contrasts"][f"{TWIN} - persona"], "decided": None, "ties": None}
    tied = {**whole, "consistent": None, "first": None, "contrasts": {f"{TWIN} - persona": win}}
    judge = next(section for section in sections_of(result(judge=tied)) if section.name == "judge")
    assert "The same answer in both orders: not known." in judge.notes[1]
    assert [cell.text for cell in judge.grids[0].rows[0].cells[1:3]] == ["–", "–"]


def test_a_probe_that_had_no_turn_and_a_transfer_without_scores_are_left_out() -> None:
    heart = {PEOPLE[0]: {"near_duplicates": 0, "of": 3, "known_by_heart": {"value": None, "n": 0}, "checked": []}}
    gone = {**result()["transfer"][0], "bits_per_char": None}
    found = {section.name: section for section in sections_of(result(leakage=heart, transfer=[gone]))}
    assert found["leakage"].grids[0].rows[0].cells[1].text == "–"
    assert "transfer" not in found


def test_depths_come_in_the_order_of_numbers() -> None:
    drift = next(section for section in sections_of(result()) if section.name == "drift")
    assert [row.title for row in drift.grids[0].rows] == ["Turn 1", "Turn 3", "Turn 5", "Turn 10"]


def test_what_was_not_measured_has_no_section() -> None:
    bare = result(judge=None, leakage={}, endings={}, drift={}, transfer=[])
    assert [section.name for section in sections_of(bare)] == ["measures", "people"]


def test_an_arm_that_nobody_knows_is_called_by_its_own_name() -> None:
    told = {f"{TWIN} - my_arm": {"bits_per_char": paired(-0.1)}}
    assert forest_grid(result(paired=told)).rows[0].title == "my_arm"


def test_the_power_line_names_the_smallest_difference_that_would_be_seen() -> None:
    (line,) = power_lines(result())
    assert "differences under 0.009 bits per character (No memory, n=412) are invisible" in line
    (none,) = power_lines(result(paired={f"{TWIN} - persona": {"bits_per_char": paired(0.1, visible=None)}}))
    assert "Too few" in none


# The plot


@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(0, 1)), min_size=1, max_size=6))
@example([(0.0, 5e-324)])
def test_every_box_of_the_plot_is_inside_it_and_holds_its_dot(ends: list[tuple[float, float]]) -> None:
    told = {f"{TWIN} - arm{place}": {"bits_per_char": paired(*one)} for place, one in enumerate(ends)}
    plot = forest_plot(result(paired=told))
    assert 0 <= plot["zero"] <= 100
    assert len(plot["ticks"]) <= 7
    for box in plot["boxes"]:
        assert -0.01 <= box["left"] <= box["dot"] + 0.01
        assert box["dot"] - 0.01 <= box["left"] + box["width"] + 0.01 <= 100.03


def test_a_difference_without_an_interval_has_a_dot_alone() -> None:
    (box,) = forest_plot(against(-0.1, None))["boxes"]
    assert (box["width"], box["verdict"]) == (None, "same")


# Examples


def test_the_best_turns_are_the_closest_and_the_worst_the_furthest() -> None:
    found = example_turns(turns(40), TWIN)
    numbers = {kind: [one.position for one in some] for kind, some in found.items()}
    assert numbers["best"] == [39, 38, 37]
    assert numbers["worst"] == [0, 1, 2]
    assert all(15 <= place <= 24 for place in numbers["typical"])


def test_examples_are_of_different_people_and_none_is_shown_twice() -> None:
    found = example_turns(turns(40), TWIN)
    assert all(len({one.person for one in some}) == 3 for some in found.values())
    everything = [one.position for some in found.values() for one in some]
    assert len(set(everything)) == len(everything) == 9


def test_of_one_person_examples_are_of_different_conversations() -> None:
    found = example_turns([turn(number, PEOPLE[0], number / 20, number) for number in range(20)], TWIN)
    assert all(len({one.conversation_id for one in some}) == 3 for some in found.values())


@given(st.integers(0, 8))
def test_few_turns_are_shared_out_without_repeating_any(count: int) -> None:
    found = example_turns(turns(count), TWIN)
    places = [one.position for some in found.values() for one in some]
    assert len(places) == len(set(places)) == min(count, 9)


def test_turns_without_a_reply_are_no_examples() -> None:
    assert example_turns(turns(9), "trained") == {"typical": [], "best": [], "worst": []}


def test_what_a_turn_gains_needs_both_arms() -> None:
    assert bits_gained(turn(1, PEOPLE[0], gained=22.0), TWIN) == pytest.approx(2.0)
    assert bits_gained(turn(1, PEOPLE[0]), "trained") is None


# The page


def test_the_page_is_well_formed_and_says_what_the_tables_say() -> None:
    tags = Tags(render_html(result(), turns()))
    assert tags.open == []
    said = " ".join(tags.said.replace("\u00a0", " ").split())
    for text in (summary_of(result()), "the discriminator had few replies: 40", "−0.008", "−0.014 to −0.002, n=412", "Seed"):
        assert text in said
    assert [tag for tag, _ in tags.tags if tag in {"h1", "main", "nav"}] == ["h1", "main", "nav"]
    assert sum(tag == "table" for tag, _ in tags.tags) == sum(tag == "caption" for tag, _ in tags.tags)


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    page = render_html(result(), turns(said=EVIL))
    names = {tag for tag, _ in Tags(page).tags}
    assert names.isdisjoint({"script", "img", "iframe", "object", "form", "video"})
    links = [attrs[key] or "" for _, attrs in Tags(page).tags for key in ("href", "src") if key in attrs]
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"url\(|@import|https?://", page)


@settings(max_examples=25)  # each draws a whole report
@given(st.text(min_size=1))
def test_whatever_is_said_stays_text(said: str) -> None:
    evil = turn(1, PEOPLE[0], said=f"</style><b onclick='x'>{said}")
    tags = Tags(render_html(result(name=said, warnings=[said], suite_text=said), [evil]))
    assert not any("onclick" in attrs for _, attrs in tags.tags)
    assert tags.open == []


def test_the_page_has_a_place_for_every_link_inside_it() -> None:
    tags = Tags(render_html(result(), turns())).tags
    places = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(places) == len(set(places))
    assert {(attrs["href"] or "")[1:] for tag, attrs in tags if tag == "a"} <= set(places)


def test_examples_show_the_real_turn_the_twin_the_peer_and_the_memories() -> None:
    said = Tags(render_html(result(), [turn(1, PEOPLE[0], said="is it raining?")])).said
    shown = ("is it raining?", "twin says 1", "persona says 1", "wants number 1", "cosine 0.71", "good day", "is polite")
    assert [text for text in shown if text not in said] == []


def test_a_result_with_nothing_but_two_arms_is_still_a_page() -> None:
    bare = against(-0.1, 0.01, judge=None, leakage={}, endings={}, drift={}, transfer=[], warnings=[], family={})
    for missing in ("suite_text", "settings", "versions", "models", "measured_at", "name"):
        del bare[missing]
    assert "How it was measured" in Tags(render_html(bare, [])).said


def test_a_result_as_it_is_measured_is_a_page() -> None:
    """What is invented here could drift from what `closeness` gives."""
    whole = [replace(one, bits={TWIN: 10.0 - one.position % 3, "no_memory": 12.0, "persona": 11.0}) for one in turns(16)]
    page = render_html({**closeness(whole, TWIN, seed=0), "name": "real"}, whole)
    said = " ".join(Tags(page).said.split())
    assert "The twin is closer to the people than the best alternative" in said
    assert "16 held-out turns of 4 people" in said


# Colours


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_is_dark_enough_on_its_ground(scheme: str) -> None:
    """WCAG 2.2 AA: 4.5 for text."""
    style = PAGE.read_text("utf-8")
    blocks = re.findall(r":root \{([^}]*)\}", style)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[0 if scheme == "light" else 1]))
    grounds = {
        "text": ("page", "box", "closer-box", "further-box", "same-box", "mark-box"), "dim": ("page", "box", "mark-box"),
        "closer": ("page", "closer-box"), "further": ("page", "further-box"), "same": ("page",), "link": ("page",),
    }  # fmt: skip
    poor = [(a, b) for a, several in grounds.items() for b in several if _contrast(colours[a], colours[b]) < 4.5]
    assert poor == []
