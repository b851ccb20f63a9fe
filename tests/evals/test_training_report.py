"""evals/records/training_run.py, curves.py, training_report.py: a folder is read or refused in a sentence, and drawn as it is."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from test_webpage import Tags

from usertwin.evals.cli.main import main
from usertwin.evals.records.training_run import CURVES, Curve, Manifest, MethodRun, TrainingRun, is_training
from usertwin.evals.reports.training_curves import LINES, colours_of, inline_panel, panels_of, running_mean, whole_picture
from usertwin.evals.reports.training_report import (
    PICTURE,
    read_training,
    render_training,
    render_training_markdown,
    summary_of_training,
    training_pages,
)
from usertwin.personas import UsageError

EVIL = "</svg></style><script>alert('x')</script>"
MANIFEST: dict[str, Any] = {
    "format": 1,
    "kind": "training",
    "state": "complete",
    "plan": {"base": "local", "scorer": "local", "weights": {"fidelity": 1.0, "leak": 0.2}, "rate": None},
    "people": {"seen": ["support/p1", "chat/p2"], "unseen": ["chat/p3"]},
    "pairs": {"train": 1210, "watched": 32},
    "sources": {"chat": "chitchat"},
    "versions": {"trl": "1.16.0"},
    "started_at": "2026-11-23T20:00:00+00:00",
}


def group(value: float, half: float | None = 0.01, **changes: Any) -> dict[str, Any]:
    """What was measured on a group of people: a difference and half its interval."""

    def estimate(at: float) -> dict[str, Any]:
        return {"value": at, "low": None if half is None else at - half, "high": None if half is None else at + half}

    whole = {
        "n": 90, "people": 1, "base": estimate(0.01), "trained": estimate(0.01 + value), "difference": estimate(value),
        "leak_rate": {"base": 0.12, "trained": 0.08, "difference": {"value": -0.04, "low": -0.08, "high": 0.01}},
        "gives_away": {"base": 0.2, "trained": 0.21},
        "words": {"base": 22.4, "trained": 15.0},
    }  # fmt: skip
    return whole | changes


def outcome(unseen: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    """What came of a method."""
    measured = {
        "scorer": "local:small",
        "seen": group(0.03, n=120, people=2),
        "unseen": unseen,
        "people": {"chat/p3": group(0.02)},
    }
    example = {
        "context": [["agent", "Hello"], {"speaker": "p3", "text": "hi"}, "bare"],
        "action": "to Rome",
        "base": "b",
        "trained": "t",
    }
    return {
        "method": "dpo",
        "stopped": None,
        "steps": 4,
        "tokens": 40123,
        "seconds": 750.0,
        "measured": measured,
        "examples": [example],
    } | changes


def curves(values: Sequence[float], name: str = "reward") -> list[dict[str, Any]]:
    """Lines of a file of curves, with an audit at the first and the last step."""
    steps = [{"step": step, "values": {name: value, "loss": 1.0 / step}} for step, value in enumerate(values, 1)]
    audits = [{"step": step, "audit": {"n": 32, "novel": 0.01 * step, "gives_away": 0.25}} for step in (0, len(values))]
    return [audits[0], *steps, audits[1]]


def write(folder: Path, methods: dict[str, Any], lines: dict[str, list[dict[str, Any]]] | None = None, **changes: Any) -> Path:
    """A run's folder with a result for each method that has one."""
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(MANIFEST | changes), "utf-8")
    for name, found in methods.items():
        (folder / name).mkdir()
        told = (lines or {}).get(name, curves([0.4, 0.5, 0.45, 0.6]))
        (folder / name / CURVES).write_text("".join(json.dumps(line) + "\n" for line in told), "utf-8")
        if found is not None:
            (folder / name / "result.json").write_text(json.dumps(found), "utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run of two methods, one of which stopped by itself."""
    stopped = outcome(group(-0.03, leak_rate={"base": 0.1, "trained": 0.2}), stopped="the audit rises: 20 of 32.")
    return write(tmp_path / "run", {"grpo": stopped, "dpo": outcome(group(0.021))})


def words(page: str) -> str:
    """The text of a page, in one line."""
    return " ".join(Tags(page).said.replace("\u00a0", " ").split())


# Reading


def test_methods_come_in_the_order_of_reports(tmp_path: Path) -> None:
    run = read_training(write(tmp_path / "run", dict.fromkeys(("zz", "grpo", "e2e", "sft", "dpo"))))
    assert [one.name for one in run.methods] == ["sft", "dpo", "grpo", "e2e", "zz"]


def test_curves_are_read_by_name_and_audits_apart(folder: Path) -> None:
    grpo = read_training(folder).methods[1]
    assert grpo.values["reward"] == Curve((1, 2, 3, 4), (0.4, 0.5, 0.45, 0.6))
    assert grpo.audits["novel"] == Curve((0, 4), (0.0, 0.04))
    assert (grpo.audited, grpo.cut, set(grpo.audits)) == (32, 0, {"novel", "gives_away"})


def test_a_step_that_was_done_again_after_a_kill_counts_as_it_was_the_last_time(tmp_path: Path) -> None:
    lines = [{"step": step, "values": {"loss": value}} for step, value in ((1, 1.0), (2, 0.9), (3, 0.8), (2, 0.7))]
    run = read_training(write(tmp_path / "run", {"dpo": None}, {"dpo": lines}))
    assert run.methods[0].values["loss"] == Curve((1, 2, 3), (1.0, 0.7, 0.8))


def test_what_is_no_number_is_in_no_curve(tmp_path: Path) -> None:
    told = {"a": None, "b": "x", "c": True, "d": float("nan"), "e": float("inf"), "f": 10**400, "g": 2}
    run = read_training(write(tmp_path / "run", {"dpo": None}, {"dpo": [{"step": 1, "values": told}]}))
    assert run.methods[0].values == {"g": Curve((1,), (2.0,))}


def test_a_last_line_that_a_kill_cut_off_is_left_out_and_counted(folder: Path) -> None:
    path = folder / "dpo" / CURVES
    path.write_bytes(path.read_bytes()[:-20])
    run = read_training(folder)
    assert (run.methods[0].cut, run.methods[0].audits["novel"].steps) == (1, (0,))
    assert "DPO: 1 line of its curves, cut off by a kill, was left out." in render_training_markdown(run)


def test_a_last_line_that_lacks_only_its_end_counts(folder: Path) -> None:
    path = folder / "dpo" / CURVES
    path.write_bytes(path.read_bytes()[:-1])
    assert (read_training(folder).methods[0].cut, read_training(folder).methods[0].audits["novel"].steps) == (0, (0, 4))


def test_a_broken_line_within_the_curves_is_named(folder: Path) -> None:
    path = folder / "dpo" / CURVES
    path.write_text(path.read_text().replace('{"step": 2', '{"step": "two"', 1))
    with pytest.raises(UsageError, match=rf"{re.escape(str(path))}, line 3: damaged \(step: .*\); delete that line, and write"):
        read_training(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kind": "simulate"}, r"holds a run of another kind \(simulate\)"),
        ({"format": 2}, "a training of format 2, and this version reads format 1"),
        ({"people": ["p1"]}, r"manifest\.json: damaged \(people: "),
        ({"pairs": {"train": "many"}}, r"manifest\.json: damaged \(pairs\.train: "),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        read_training(write(tmp_path / "run", {}, **changes))


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run is there; name the folder of a training run"):
        read_training(tmp_path)
    assert not is_training(tmp_path)


def test_a_damaged_result_is_named_with_the_way_out(folder: Path) -> None:
    path = folder / "dpo" / "result.json"
    path.write_text(json.dumps(outcome(group(0.1, n="many"))))
    with pytest.raises(UsageError, match=r"result\.json: damaged \(measured\.unseen\.n: .*\); delete it, and run the same"):
        read_training(folder)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is damaged in one file after the other."""
    return write(tmp_path_factory.mktemp("kept") / "run", {"dpo": outcome(group(0.02)), "grpo": None})


@settings(max_examples=150)
@given(name=st.sampled_from(["manifest.json", "dpo/curves.jsonl", "dpo/result.json"]), data=st.data())
def test_however_a_file_is_damaged_it_is_a_run_or_a_sentence(kept: Path, name: str, data: st.DataObject) -> None:
    path = kept / name
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    put = data.draw(st.one_of(st.none(), st.binary(min_size=1, max_size=3)))
    said = "no error; at all"
    try:
        path.write_bytes(whole[:place] if put is None else whole[:place] + put + whole[place + len(put) :])
        is_training(kept)
        run = read_training(kept)
        assert summary_of_training(run)
        assert render_training_markdown(run).startswith("# What did the training bring?")
    except UsageError as error:
        said = str(error).removeprefix(str(kept))
        said = said if said != str(error) else "the folder is not named"
    finally:
        path.write_bytes(whole)
    assert re.fullmatch(r"[^\n]+; [^\n]+", said)


@given(st.integers(0, 400))
def test_curves_that_are_cut_lose_one_line_at_most(kept: Path, place: int) -> None:
    path = kept / "dpo" / CURVES
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:place])
        found = read_training(kept).methods[0]
    finally:
        path.write_bytes(whole)
    ended = whole[:place].count(b"\n")
    told = len(found.values.get("reward", Curve((), ())).steps) + len(found.audits.get("novel", Curve((), ())).steps)
    assert told in (ended, ended + 1)
    assert found.cut in (0, 1)


# What it says


def test_the_summary_has_a_sentence_for_each_method(folder: Path) -> None:
    first, dpo, grpo = summary_of_training(read_training(folder))
    assert first == "2 methods from the base local, on 1,210 pairs of 2 people; 1 other was kept apart to be measured on."
    assert dpo == (
        "DPO writes better traces than the base: novel gain +0.021 nats per token against it (95% interval +0.011 to +0.031; "
        "90 held-out pairs of 1 person not trained on); leak rate 0.120 → 0.080."
    )
    assert grpo.startswith("Recon-GRPO writes worse traces than the base: novel gain −0.030")
    assert grpo.endswith("leak rate 0.100 → 0.200. It stopped by itself: the audit rises: 20 of 32.")


@pytest.mark.parametrize(
    ("unseen", "told"),
    [
        (group(0.005), "cannot be told apart from the base: novel gain +0.005"),
        (group(0.5, None), "novel gain +0.500 nats per token against it (no interval: too few"),
        (None, "writes better traces than the base: novel gain +0.030 nats per token against it (95% interval +0.020 to "
         "+0.040; 120 held-out pairs of 2 people trained on, later turns)"),
    ],
)  # fmt: skip
def test_a_sentence_is_no_surer_than_its_interval(tmp_path: Path, unseen: dict[str, Any] | None, told: str) -> None:
    assert told in summary_of_training(read_training(write(tmp_path / "run", {"dpo": outcome(unseen)})))[1]


def test_a_method_that_is_not_finished_or_not_measured_says_so(tmp_path: Path) -> None:
    run = read_training(write(tmp_path / "run", {"sft": outcome(None, measured=None), "dpo": None}, state="interrupted"))
    assert summary_of_training(run)[1:] == [
        "SFT on selected traces came to its end; nothing was measured on held-out pairs.",
        "DPO is not finished: 4 steps so far.",
    ]
    assert "The training is not finished; the same command goes on where it stopped." in render_training_markdown(run)


def test_what_makes_the_figures_doubtful_is_said(tmp_path: Path) -> None:
    own = outcome(group(0.02), tokens=10)
    own["measured"]["scorer"] = "local"
    page = render_training_markdown(read_training(write(tmp_path / "run", {"dpo": own, "grpo": outcome(group(0.02))})))
    assert "DPO was measured with local, the scorer that was in its reward; take another." in page
    assert "did not generate the same number of tokens, so they are no fair rivals: DPO 10, Recon-GRPO 40,123." in page


def test_of_whom_the_curves_of_a_sum_are_is_said(tmp_path: Path) -> None:
    told = "only the audit at its end is of the sum itself"
    pages = [
        render_training_markdown(read_training(write(tmp_path / name, {name: outcome(group(0.02))})))
        for name in ("soup", "dpo")
    ]
    assert [told in page for page in pages] == [True, False]


def test_nothing_is_doubtful_in_a_run_that_kept_the_rules(tmp_path: Path) -> None:
    page = render_training_markdown(read_training(write(tmp_path / "run", {"dpo": outcome(group(0.02))})))
    assert "Before you believe it" not in page


def test_a_change_stands_beside_its_interval_and_its_n(tmp_path: Path) -> None:
    page = words(render_training(read_training(write(tmp_path / "run", {"dpo": outcome(group(0.02))}))))
    assert "0.120 → 0.080 −0.040 (−0.080 to +0.010), n=90" in page


def test_a_rise_of_leaks_is_said(folder: Path) -> None:
    page = words(render_training(read_training(folder)))
    assert "Recon-GRPO leaks more than the base on people not trained on: 0.100 → 0.200 (n=90)." in page
    assert "DPO leaks more" not in page


def test_the_tables_mark_what_is_sure(folder: Path) -> None:
    page = render_training_markdown(read_training(folder))
    assert (
        "| DPO (people not trained on) | ✓ +0.021 (+0.011 to +0.031, n=90, 1 person) | 0.010 (0.000 to 0.020, n=90) |" in page
    )
    assert "| Recon-GRPO (people not trained on) | ✗ −0.030 (−0.040 to −0.020, n=90, 1 person) |" in page
    assert "| Recon-GRPO (grpo) | 4 | 40,123 | 12.5 min | stopped (the audit rises: 20 of 32.) |" in page
    assert "| chat/p3 (not trained on) | ✓ +0.020 (+0.010 to +0.030, n=90) |" in page


def test_the_plan_and_the_versions_are_shown(folder: Path) -> None:
    page = words(render_training(read_training(folder)))
    assert "base: local; scorer: local; weights: fidelity: 1.0; leak: 0.2; rate: none" in page
    assert "trl: 1.16.0" in page
    assert "on the same 32 held-out pairs each time" in page


# The picture


def test_a_running_mean_is_taken_over_neighbours() -> None:
    assert running_mean([5.0]) == [5.0]
    assert running_mean([0.0, 3.0, 6.0, 3.0]) == [1.5, 3.0, 4.0, 4.5]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200))
def test_a_running_mean_stays_within_its_values(values: list[float]) -> None:
    found = running_mean(values)
    assert len(found) == len(values)
    assert min(values) - 1e-6 <= min(found) <= max(found) <= max(values) + 1e-6


def test_there_is_a_panel_for_whatever_was_told_and_no_other(folder: Path) -> None:
    panels = panels_of(read_training(folder).methods)
    assert [panel.kind.title for panel in panels] == ["Reward", "Novel gain", "Gives away", "Loss"]


def test_a_number_that_nobody_knows_has_a_panel_among_the_others(tmp_path: Path) -> None:
    run = read_training(write(tmp_path / "run", {"dpo": None}, {"dpo": curves([0.5, 0.6], f"$odd_{EVIL}")}))
    last = panels_of(run.methods)[-1]
    assert (last.kind.title, last.kind.main) == (f"$odd {EVIL}".capitalize(), False)
    drawn = inline_panel(last, colours_of(run.methods))
    assert "<script" not in drawn.lower()
    assert Tags(drawn).open == []


def test_a_panel_says_in_words_where_its_lines_begin_and_end(folder: Path) -> None:
    told = {panel.kind.title: panel.told for panel in panels_of(read_training(folder).methods)}
    assert told["Reward"].endswith("Recon-GRPO: 0.450 at step 1, 0.525 at step 4.")
    assert "DPO: on held-out pairs 0.000 at step 0, 0.040 at step 4." in told["Novel gain"]


def test_the_picture_is_the_same_each_time_and_well_formed(folder: Path) -> None:
    run = read_training(folder)
    drawn = whole_picture(panels_of(run.methods), colours_of(run.methods))
    assert drawn == whole_picture(panels_of(run.methods), colours_of(run.methods))
    root = ElementTree.fromstring(drawn)
    said = [part.text for part in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"Reward", "Novel gain", "DPO", "Recon-GRPO"} <= set(said)
    assert "<metadata" not in drawn


def test_the_picture_shows_every_line_in_its_colour(folder: Path) -> None:
    run = read_training(folder)
    drawn = inline_panel(panels_of(run.methods)[0], colours_of(run.methods))
    assert all(colour in drawn for colour, _ in LINES[:2])
    assert LINES[2][0] not in drawn
    assert "currentColor" in drawn


def test_the_lines_can_be_seen_on_white_and_on_black() -> None:
    """WCAG 2.2: 3 to 1 for what is drawn."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark = luminance("#14181d")
    seen = {colour: (1.05 / (luminance(colour) + 0.05), (luminance(colour) + 0.05) / (dark + 0.05)) for colour, _ in LINES}
    assert {colour: found for colour, found in seen.items() if min(found) < 3.0} == {}


# The pages


def test_the_page_is_well_formed_and_loads_and_runs_nothing(folder: Path) -> None:
    page = render_training(read_training(folder))
    tags = Tags(page)
    assert tags.open == []
    assert {tag for tag, _ in tags.tags}.isdisjoint({"script", "img", "iframe", "object", "form"})
    assert not re.search(r"@import|https?://|url\((?!#)", page)
    links = [attrs["href"] or "" for tag, attrs in tags.tags if "href" in attrs]
    assert all(link.startswith(("#", "data:")) for link in links)


def test_no_name_in_the_page_is_given_to_two_things(folder: Path) -> None:
    tags = Tags(render_training(read_training(folder))).tags
    places = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(places) == len(set(places))
    assert {(attrs["href"] or "")[1:] for tag, attrs in tags if tag in {"a", "use"}} <= set(places)


def test_every_picture_of_the_page_is_told_in_words(folder: Path) -> None:
    run = read_training(folder)
    pictures = [attrs["aria-label"] for _, attrs in Tags(render_training(run)).tags if attrs.get("role") == "img"]
    assert pictures == [panel.told for panel in panels_of(run.methods)]


def test_what_people_and_models_said_stays_text(tmp_path: Path) -> None:
    example = {"context": [[EVIL, EVIL], [], [EVIL]], "action": EVIL, "base": "", "trained": EVIL}
    found = outcome(group(0.02), stopped=EVIL, examples=[example])
    run = read_training(write(tmp_path / "run", {"dpo": found}, plan={EVIL: EVIL}, people={"seen": [EVIL]}))
    tags = Tags(render_training(run))
    assert tags.open == []
    assert "script" not in {tag for tag, _ in tags.tags}
    assert EVIL in tags.said
    assert "<script" not in render_training_markdown(run).replace("\\<", "")


def test_examples_show_the_trace_before_and_after(folder: Path) -> None:
    page = render_training(read_training(folder))
    shown = re.findall(
        r'(?:<b>(\w+)</b> )?<span class="said">(\w+)</span>|<h4>([\w\' &#;]+)</h4><p class="said">([\w ]+)</p>', page
    )
    assert ["/".join(filter(None, one)) for one in shown][:6] == [
        "agent/Hello", "p3/hi", "bare", "Really said/to Rome", "The base's trace/b", "The trained model's/t",
    ]  # fmt: skip


def test_a_run_that_has_just_begun_is_a_page(tmp_path: Path) -> None:
    bare = {"format": 1, "kind": "training"}
    (tmp_path / "manifest.json").write_text(json.dumps(bare))
    run = read_training(tmp_path)
    training_pages(run)
    assert "No method has begun" in (tmp_path / "report.md").read_text("utf-8")
    assert summary_of_training(run) == ["0 methods from the same base, on 0 pairs of 0 people; nobody was kept apart."]


def test_the_report_command_writes_the_report_of_a_training_anew(folder: Path) -> None:
    done = CliRunner().invoke(main, ["report", str(folder)])
    assert done.exit_code == 0, done.output
    assert "DPO writes better traces than the base" in " ".join(done.output.split())
    assert {"report.html", "report.md", PICTURE} <= {one.name for one in folder.iterdir()}
    assert f"]({PICTURE})" in (folder / "report.md").read_text("utf-8")


def test_the_report_command_refuses_a_damaged_training_in_a_sentence(folder: Path) -> None:
    (folder / "dpo" / "result.json").write_text("{")
    done = CliRunner().invoke(main, ["report", str(folder)])
    assert done.exit_code == 2
    assert "result.json: damaged" in " ".join(done.output.split())


def test_a_training_is_not_compared_as_if_it_were_a_suite(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    done = CliRunner().invoke(main, ["compare", str(folder), str(other)])
    assert done.exit_code == 2
    assert "holds a training of `usertwin train`" in " ".join(done.output.split())


def test_a_missing_matplotlib_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"pip install 'usertwin\[train\]'"):
        training_pages(read_training(folder))
    assert not (folder / "report.md").exists()


def test_more_methods_than_colours_still_have_lines() -> None:
    many = [MethodRun(f"m{place}", {"loss": Curve((1, 2), (1.0, 0.5))}, {}, 0, None, 0) for place in range(len(LINES) + 1)]
    assert len(colours_of(many)) == len(many)
    run = TrainingRun(Path("run"), Manifest(format=1, kind="training"), tuple(many))
    assert len(summary_of_training(run)) == len(many) + 1
