"""Every word and sign of a report that favours an arm follows the test of that difference, whatever its interval says."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from invented_run import TWIN, est, paired, result, turns, user_models
from rich.console import Console, RenderableType

from usertwin.evals.reports.compare_runs import comparison_table, verdict_of
from usertwin.evals.reports.html import forest_plot, render_html
from usertwin.evals.reports.labels import DifferenceVerdict, verdict
from usertwin.evals.reports.summary import answer_of, model_warnings, question_of, summary_of
from usertwin.evals.reports.tables import forest_grid, sections_of
from usertwin.evals.reports.terminal import closeness_line, closeness_table
from usertwin.evals.reports.write_reports import render_markdown

#: What a text says where a difference is shown; after "not" it says the opposite.
CLAIMS = re.compile(
    r"(?<!not shown to be )closer|less close|% (?:better|worse) than|[✓✗★]|class=\"(?:summary |track )?(?:closer|further)"
)
#: A difference whose interval excludes zero while its test does not.
UNTESTED = {"value": -0.05, "low": -0.06, "high": -0.04, "n": 412, "visible": 0.009}


def with_tests(p: float | None, p_holm: float | None, others: float | None) -> dict[str, Any]:
    """Return a result with every part, in which all differences are alike.

    Those of the twin have these p values, and all others, those of a judge and of single people too, have that of `others`.
    """
    difference = UNTESTED | {"p": others}
    adjusted = UNTESTED | {"p": p, "p_holm": p_holm}
    whole = result(warnings=[])

    def alike(rows: Mapping[str, Mapping[str, Any]], estimate: dict[str, Any]) -> dict[str, Any]:
        return {name: dict.fromkeys(measures, estimate) for name, measures in rows.items()}

    whole["paired"] = alike(whole["paired"], adjusted)
    whole["paired"] |= {
        "recon - backward": {"bits_per_char": difference},
        f"{TWIN} - persona": dict.fromkeys(("bits_per_char", "discriminator", "rank"), adjusted),
    }
    whole["people"] = {name: own | {"paired": alike(own["paired"], difference)} for name, own in whole["people"].items()}
    win = {"win": est(0.55, 0.01), "ties": est(0.3), "p": others, "decided": est(0.55, 0.01)}
    for judge in ("judge", "likelihood_judge"):
        whole[judge] = whole.get(judge, {}) | {"contrasts": {f"{TWIN} - persona": win}, "warnings": []}
    whole["transfer"] = [row | {"bits_per_char": difference} for row in whole["transfer"]]
    rows = [row | {"against": adjusted, "without_thoughts_against": difference} for row in user_models()["rows"]]
    whole["user_models"] |= {"rows": rows, "paired": {"recon - backward": difference}}
    return whole


def drawn(table: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=1000)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def compared(whole: dict[str, Any]) -> dict[str, Any]:
    """Return the comparison of two runs whose twins differ as the arms of this result do."""
    twin = whole["paired"][f"{TWIN} - no_memory"]["bits_per_char"] | {"people": 8}
    decisive = twin["p"] if twin["p_holm"] is None else twin["p_holm"]
    names = ["first", "second"]
    return {"names": names, "differs": {}, "why_not": [], "arms": {}, "twin": twin | {"p": decisive, "p_holm": decisive}}


def page(whole: dict[str, Any]) -> str:
    """Return the page without its style and its examples."""
    return re.sub(r"(?s)<style>.*?</style>", "", render_html(whole, turns()))


RENDERERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "summary": summary_of,
    "terminal": lambda whole: drawn(closeness_table(whole)),
    "markdown": render_markdown,
    "page": page,
    "compare": lambda whole: verdict_of(compared(whole)),
    "compare table": lambda whole: drawn(comparison_table(compared(whole))),
    "show": lambda whole: closeness_line(whole),
}


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize(("p", "p_holm", "others"), [(0.008, 0.25, 0.25), (0.25, None, 0.5), (None, None, None)])
def test_without_a_test_below_five_percent_nothing_is_claimed(
    renderer: str, p: float | None, p_holm: float | None, others: float | None
) -> None:
    """All intervals exclude zero."""
    assert CLAIMS.findall(RENDERERS[renderer](with_tests(p, p_holm, others))) == []


@pytest.mark.parametrize("renderer", ["markdown", "page"])
def test_with_a_test_below_five_percent_every_form_says_so(renderer: str) -> None:
    text = RENDERERS[renderer](with_tests(0.008, 0.024, 0.01)).replace("&#39;", "'")
    assert "predicts these people's next turn 3.5% better than the same model without memory" in text
    assert len(CLAIMS.findall(text)) > 10
    assert "★" not in text


def expected(value: float, p: float | None, p_holm: float | None) -> DifferenceVerdict:
    decisive = p if p_holm is None else p_holm
    if decisive is None:
        return "unknown"
    return "same" if decisive >= 0.05 or value == 0 else "closer" if value < 0 else "further"


ps = st.none() | st.floats(0, 1)


@settings(max_examples=40)
@given(st.floats(-1, 1), st.floats(0, 1), ps, ps)
def test_words_signs_and_colours_agree_with_the_p_that_decides(
    value: float, half: float, p: float | None, p_holm: float | None
) -> None:
    if p is None:
        p_holm = None
    difference = paired(value, half, p=p) | ({} if p_holm is None else {"p_holm": p_holm})
    whole = result(paired={f"{TWIN} - no_memory": {"bits_per_char": difference, "rank": difference}})
    outcome = expected(value, p, p_holm)
    assert verdict(difference) == outcome

    headline = summary_of(whole)
    claims = {
        "closer": "% better than",
        "further": "% worse than",
        "same": "is not shown to predict",
        "unknown": "not known yet",
    }
    assert [name for name, words in claims.items() if words in headline.split(" In written")[0]] == [outcome]
    replies = {"closer": "replies it is closer", "further": "replies it is less close", "same": "replies it is not shown to be"}
    assert [name for name, words in replies.items() if words in headline] == [outcome] * (outcome != "unknown")

    [row] = forest_grid(whole).rows
    words = {"closer": "twin closer", "further": "twin less close", "same": "no difference shown", "unknown": "no test"}
    assert row.cells[1].text == words[outcome]
    mark = outcome if outcome in {"closer", "further"} else ""
    measures = next(section for section in sections_of(whole) if section.name == "measures").grids[0]
    cells = [row.cells[measures.columns.index("No memory") - 1] for row in measures.rows if row.title == "Bits per char"]
    assert {row.cells[0].mark, row.cells[1].mark, *(cell.mark for cell in cells)} == {mark}
    [box] = forest_plot(whole)["boxes"]
    assert box["verdict"] == outcome
    answer = answer_of(whole)
    assert answer is not None
    assert verdict(answer) == outcome


# The question


def test_the_headline_answers_the_declared_question_in_its_direction() -> None:
    contrasts = {
        "recalled_pairs - recon": {"bits_per_char": paired(-0.02, p_holm=0.016)},
        "recon - backward": {"bits_per_char": paired(0.003, p_holm=0.6)},
        f"{TWIN} - no_memory": {"bits_per_char": paired(-0.05)},
    }  # fmt: skip
    whole = result(paired=contrasts, question=["recon - recalled_pairs", "recon - backward"])
    assert summary_of(whole) == (
        "The model with recalled pairs and Recon-selected traces predicts these people's next turn 1.4% worse than the twin: "
        "it needs 0.020 more bits per character (95% interval 0.014 to 0.026, p = 0.016 after Holm; 412 held-out turns of 4 "
        "people in 86 conversations; measured with local, replies written by local). The model with recalled pairs and "
        "Recon-selected traces is not shown to predict these people's next turn better than the same model with recalled pairs "
        "and their first traces: the difference is +0.003 bits per character (95% interval −0.003 to +0.009, p = 0.600 after "
        "Holm; n=412)."
    )


def test_a_headline_about_few_people_says_that_it_is_about_their_conversations() -> None:
    assert "over conversations of these people alone; 412 held-out" in summary_of(result(intervals_over="conversations"))
    for over, people in (("people", result()["people"]), ("conversations", {"ann": result()["people"]["chitchat/ann"]})):
        assert "alone" not in summary_of(result(intervals_over=over, people=people))


def test_a_headline_has_three_contrasts_at_most_and_counts_the_others() -> None:
    question = [f"{TWIN} - {arm}" for arm in ("no_memory", "openevals", "tau2", "persona", "recon")]
    summary = summary_of(result(question=question))
    assert summary.count("bits per character") == 3
    assert "2 more contrasts of the question are in the tables." in summary


def test_without_a_question_the_twin_is_compared_with_no_memory_or_with_the_best_alternative() -> None:
    assert question_of(result()) == [f"{TWIN} - no_memory"]
    contrasts = result()["paired"]
    del contrasts[f"{TWIN} - no_memory"]
    assert question_of(result(paired=contrasts)) == [f"{TWIN} - persona"]  # it trails the twin by least
    only_own = {f"{TWIN} - recon": {"bits_per_char": paired(0.02)}}
    assert question_of(result(paired=only_own)) == []
    assert "The twin was compared with nothing (412 held-out turns" in summary_of(result(paired=only_own))


def test_a_headline_without_the_twins_arm_names_it() -> None:
    arms = {"persona": result()["arms"]["persona"]}
    assert f'nothing: its arm "{TWIN}" is not among the measured ones' in summary_of(result(arms=arms, paired={}))


def test_the_headline_names_the_model_that_acts_only_where_it_wrote() -> None:
    models = {"scorer": "local:/a/b.gguf+/c/d", "action": "openai:x@http://h/v1"}
    assert "measured with local:b.gguf+d, replies written by openai:x@http://h/v1)" in summary_of(result(models=models))
    bits = {arm: {"bits_per_char": measures["bits_per_char"]} for arm, measures in result()["arms"].items()}
    assert "measured with local:b.gguf+d)" in summary_of(result(models=models, arms=bits))


# Models for tests


@pytest.mark.parametrize(
    ("models", "sentence"),
    [
        ({"scorer": "fake:", "action": "scripted:a.txt", "judge": "scripted:b.txt", "embedder": "fake:256"},
         "the scorer (fake:), the action model (scripted:a.txt), the judge (scripted:b.txt) and the embedder (fake:256) are "
         "test models: no figure that rests on them says anything about a person"),
        ({"scorer": "local", "action": "scripted:a.txt", "judge": None},
         "the action model (scripted:a.txt) is a test model: no figure that rests on it says anything about a person"),
        ({"scorer": "local", "action": "openai:gpt", "judge": None, "embedder": "all-MiniLM-L6-v2"}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_models_for_tests_are_warned_of(models: dict[str, str | None], sentence: str | None) -> None:
    assert model_warnings(result(models=models)) == ([] if sentence is None else [sentence])
