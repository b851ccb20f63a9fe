"""What was measured, as tables for the terminal.

The one design choice: these are pure functions of the objects that `--json` and `twin.json` hold, so that what is shown can
always be shown again, and nothing is shown without its interval and its n.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from usertwin.memory import EndingModel, Leaving, Triple, TwinRecord
from usertwin.memory.transcript import flat

#: How many traces are shown of a twin.
_BEST = 3
_ARM_NAMES = {
    "no_memory": "no memory",
    "other_person": "another's moments",
    "random_own": "own, at random",
    "recalled_pairs": "own, recalled",
    "recalled_triples": "twin: with traces",
}
_MEASURES = (
    ("bits_per_char", "bits per char", "low is close", 2),
    ("embedding_similarity", "meaning", "high is close", 2),
    ("chrf", "chrF", "high is close", 2),
    ("length_ratio", "length ratio", "1 is closest", 2),
)


def closeness_table(result: Mapping[str, Any]) -> RenderableType:
    """The arms of a measurement, with intervals, and what the comparisons say; it fits into 80 columns."""
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=f"How close is {result['twin']} to the person's held-out turns?",
        title_justify="left",
    )
    table.add_column("shown to the model", min_width=17)
    shown = [measure for measure in _MEASURES if any(measure[0] in arm for arm in result["arms"].values())]
    for key, title, direction, _ in shown:
        n = max(arm[key]["n"] for arm in result["arms"].values() if key in arm)
        table.add_column(f"{title}\n[dim]{direction}\nn={n}[/dim]", justify="right", no_wrap=True)
    for arm, measures in result["arms"].items():
        style = "bold" if arm == "recalled_triples" else ""
        table.add_row(_ARM_NAMES[arm], *(_cell(measures.get(key), digits) for key, _, _, digits in shown), style=style)
    return Group(table, *map(Text.from_markup, verdicts(result)))


def _cell(estimate: Mapping[str, Any] | None, digits: int) -> str:
    if estimate is None:
        return "–"
    interval = _interval(estimate, digits).strip("()")
    return f"{estimate['value']:.{digits}f}\n[dim]{interval}[/dim]"


def _interval(estimate: Mapping[str, Any], digits: int, sign: str = "") -> str:
    if estimate["low"] is None:
        return "(no interval)"
    return f"({estimate['low']:{sign}.{digits}f} to {estimate['high']:{sign}.{digits}f})"


def verdicts(result: Mapping[str, Any]) -> list[str]:
    """What the paired comparisons in bits per character say, a sentence each; rich markup."""
    said: list[str] = []
    for name, measures in result["paired"].items():
        difference = measures.get("bits_per_char")
        first, _, second = name.partition(" - ")
        if difference is None or (first, second) not in _TOLD:
            continue
        closer = "closer than" if difference["value"] < 0 else "further off than"
        sure = difference["low"] is not None and (difference["low"] > 0 or difference["high"] < 0)
        verdict = f"{closer} {_TOLD[first, second]}" if sure else f"not told apart from {_TOLD[first, second]}"
        numbers = f"{difference['value']:+.3f} bits per character {_interval(difference, 3, '+')}, n={difference['n']}"
        said.append(f"{_SUBJECT[first]} {verdict}: [dim]{numbers}[/dim]")
    where = f"{result['turns']} turns of {result['conversations']} conversations that the twin never saw"
    models = result["models"]
    ending = result.get("ending", {}).get("f1")
    if ending is not None:
        said.append(
            f"Knows when the person leaves: [dim]F1 {ending['value']:.2f} {_interval(ending, 2)}, n={ending['n']}[/dim]"
        )
    said.append(
        f"[dim]{where}; intervals: 95%, by conversation; scored by {escape(models['scorer'])}, "
        f"written by {escape(models['action'])}; seed {result['seed']}[/dim]"
    )
    return said


_TOLD = {
    ("recalled_pairs", "no_memory"): "the same model without a memory",
    ("recalled_pairs", "other_person"): "another person's memory",
    ("recalled_pairs", "random_own"): "own moments taken at random",
    ("recalled_triples", "recalled_pairs"): "the same moments without",
}
_SUBJECT = {"recalled_pairs": "Recalled moments are", "recalled_triples": "With their traces they are"}


def closeness_line(result: Mapping[str, Any]) -> str:
    """One line about a measurement."""
    best = result["arms"]["recalled_triples"]["bits_per_char"]
    against = result["paired"]["recalled_triples - no_memory"]["bits_per_char"]
    return (
        f"{best['value']:.3f} bits per character {_interval(best, 3)}, {against['value']:+.3f} {_interval(against, 3, '+')} "
        f"against no memory; n={best['n']} held-out turns, {result['measured_at'][:10]}"
    )


def twin_view(
    record: TwinRecord, triples: Sequence[Triple], ending: EndingModel | None, leaving: Leaving | None
) -> RenderableType:
    """What a twin holds: its record, and the traces with the highest fidelity."""
    recipe, persona = record.recipe, record.persona
    traced = [triple for triple in triples if triple.reasoning is not None]
    left = sum(triple.pair.left for triple in triples)
    leavings = f"; {left} of them silent leavings" if left else ""
    scores = [triple.score for triple in traced if triple.score is not None]
    table = Table(title=f"twin {record.name}", title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    score = f", mean fidelity {sum(scores) / len(scores):+.3f} nats per token" if scores else ""
    rows = {
        "state": record.state if record.state == "complete" else "interrupted: the same learn command goes on where it stopped",
        "person": f'"{recipe.speaker}" in {recipe.source}',
        "persona": f"{persona.name}: {persona.description}",
        "says": "\n".join(persona.sample_turns),
        "memory": f"{len(triples)} triples, {len(traced)} with a trace ({recipe.method}){score}{leavings}",
        "proposals": _proposals(triples),
        "leaving": _leaves(ending, leaving),
        "held out": f"{len(record.validation)} conversations for validation, {len(record.test)} to measure on",
        "compared with": record.other_speaker or "nobody else in the log",
        "models": f"traces {recipe.model or '–'}, scores {recipe.scorer or '–'}, vectors {recipe.embedder}, seed {recipe.seed}",
        "learned": f"{record.learned_at} with " + ", ".join(f"{name} {v}" for name, v in record.versions.items()),
        "closeness": closeness_line(record.closeness) if record.closeness else f"not measured: usertwin eval {record.name}",
    }
    for name, text in rows.items():
        table.add_row(name, Text(text))
    best = sorted(traced, key=lambda triple: triple.score or 0.0, reverse=True)[:_BEST]
    return Group(table, Text(), _traces_table(best)) if best else table


def _leaves(ending: EndingModel | None, leaving: Leaving | None) -> str:
    """How the twin knows when to leave."""
    told: list[str] = []
    if ending is not None:
        f1 = "no ending to check it on" if ending.f1 is None else f"F1 {ending.f1:.2f}, on the turns it was tuned on"
        told.append(f"with a last word, learned from {ending.endings} real endings ({f1}, n={ending.validation_turns})")
    if leaving is not None:
        told.append(
            f"without another word, by {leaving.leavings} remembered leavings "
            f"(F1 {leaving.f1:.2f}, on the moments it was tuned on, n={leaving.validation_moments})"
        )
    return "; ".join(told) or "never learned when to leave (too few real endings)"


def _proposals(triples: Sequence[Triple]) -> str:
    """Where the traces came from, and why the others were rejected."""
    told = [triple.provenance for triple in triples if triple.provenance is not None]
    if not told:
        return "none"
    rejected: Counter[str] = Counter()
    for provenance in told:
        rejected.update(provenance.rejected)
    why = ", ".join(f"{count} {name}" for name, count in rejected.most_common()) or "none"
    versions = ", ".join(sorted({provenance.prompt_version for provenance in told}))
    return f"{sum(p.candidates for p in told)} for {len(told)} moments, prompt {versions}; rejected: {why}"


def _traces_table(triples: Sequence[Triple]) -> Table:
    table = Table(title="traces that predict best what was really written", title_justify="left", box=None, header_style="dim")
    for title in ("fidelity", "when somebody said", "they thought", "and wrote"):
        table.add_column(title, justify="right" if title == "fidelity" else "left")
    for triple in triples:
        score = "–" if triple.score is None else f"{triple.score:+.2f}"
        heard = triple.pair.context[-1].text if triple.pair.context else "(nothing yet)"
        table.add_row(score, *(Text(shorten(flat(text), 90)) for text in (heard, triple.reasoning or "", triple.pair.action)))
    return table
