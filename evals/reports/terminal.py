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

from usertwin.memory import EndingModel, Leaving, Settings, Triple, TwinRecord
from usertwin.memory.text.transcript import flat

from .labels import PRIMARY, arm_name

#: How many traces are shown of a twin.
_BEST = 3
_ARM_NAMES = {
    "no_memory": "no memory",
    "other_person": "another's moments",
    "random_own": "own, at random",
    "recalled_pairs": "own, recalled",
    "recalled_triples": "own, with traces",
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
    twin = twin_arm(result)
    for arm, measures in result["arms"].items():
        style, mark = ("bold", " (twin)") if arm == twin else ("", "")
        table.add_row(
            _ARM_NAMES.get(arm, arm_name(arm).title) + mark,
            *(_cell(measures.get(key), digits) for key, _, _, digits in shown),
            style=style,
        )
    return Group(table, *map(Text.from_markup, verdicts(result)))


def run_table(result: Mapping[str, Any]) -> RenderableType:
    """The arms of a run in bits per character, and how much further off than the twin each is; it fits into 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=Text(str(result["name"])), title_justify="left")
    table.add_column("shown to the model", no_wrap=True)
    table.add_column("bits per char\n[dim]low is close[/dim]", justify="right", no_wrap=True)
    table.add_column("twin minus it\n[dim]below 0 is closer[/dim]", justify="right", no_wrap=True)
    table.add_column("replies told apart\n[dim]0.5: they are not[/dim]", justify="right", no_wrap=True)
    twin = twin_arm(result)
    for arm, measures in result["arms"].items():
        paired = result["paired"].get(f"{twin} - {arm}", {}).get(PRIMARY)
        cells = (measures.get(PRIMARY), paired, measures.get("discriminator"))
        counted = [f"n={one['n']} {_cell(one, 3)}" if one else "–" for one in cells]
        mark = " (twin)" if arm == twin else ""
        table.add_row(arm_name(arm).title + mark, *counted, style="bold" if arm == twin else "")
    people = f"{result['turns']} turns of {result['conversations']} conversations of {len(result['people'])} people"
    note = f"[dim]{people}; intervals: 95%, over people and conversations; scored by {escape(result['models']['scorer'])}[/dim]"
    return Group(table, Text.from_markup(note))


def twin_arm(result: Mapping[str, Any]) -> str:
    """The arm that is what the twin does: with or without traces, as was found best for it."""
    return str(result.get("twin_arm", "recalled_triples"))


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
    """One line about a measurement; it may have been one without the twin's own arm, or without one to hold it against."""
    twin, day = twin_arm(result), result["measured_at"][:10]
    best = result["arms"].get(twin, {}).get(PRIMARY)
    if best is None:
        return f"only {', '.join(result['arms'])} measured; n={result['turns']} held-out turns, {day}"
    against = result["paired"].get(f"{twin} - no_memory", {}).get(PRIMARY)
    told = "" if against is None else f", {against['value']:+.3f} {_interval(against, 3, '+')} against no memory"
    return f"{best['value']:.3f} bits per character {_interval(best, 3)}{told}; n={best['n']} held-out turns, {day}"


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
        "audit": _audit(traced),
        "cost": _cost(triples),
        "shown": _shown(record.settings),
        **({} if recipe.synthesizer is None else {"reasons with": _reasons_with(recipe.synthesizer, record.settings)}),
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


def _audit(traced: Sequence[Triple]) -> str:
    """What the detector that is in no score says of the traces that were kept."""
    told = [t.provenance.measured["gives_away"] for t in traced if t.provenance and "gives_away" in t.provenance.measured]
    if not told:
        return "none"
    return f"{sum(told):.0f} of {len(told)} traces tell the action from other actions without the context"


def _cost(triples: Sequence[Triple]) -> str:
    """What the traces took, in texts, tokens and money."""
    told = [triple.provenance.cost for triple in triples if triple.provenance is not None and triple.provenance.cost]
    if not told:
        return "not known"

    def total(key: str) -> float:
        return sum(one.get(key) or 0 for one in told)

    price = "price not known" if any(one.get("dollars") is None for one in told) else f"${total('dollars'):.4g}"
    return (
        f"{total('calls'):.0f} texts, {total('repeated'):.0f} more from kept answers; {total('input_tokens'):.0f} tokens read, "
        f"{total('output_tokens'):.0f} written; {price}; a moment: {total('calls') / len(told):.1f} texts, "
        f"{(total('input_tokens') + total('output_tokens')) / len(told):.0f} tokens"
    )


def _shown(settings: Settings | None) -> str:
    """How the twin uses its memory, and on what that rests."""
    if settings is None:
        return "8 moments with their traces; not measured whether that is best (usertwin tune)"
    return _described(settings) + ("" if settings.measured is None else f"; {_rests_on(settings.measured)}")


def _reasons_with(synthesizer: str, settings: Settings | None) -> str:
    """Which model reasons for the twin, where that is not the one that acts."""
    if settings is None or settings.reasons:
        return synthesizer
    return f"nothing, since that was not found to help; its traces are by {synthesizer}"


def _described(settings: Settings) -> str:
    names = {"none": "without traces", "backward": "with the first traces", "chosen": "with the chosen traces"}
    own = ", and a trace of its own before it acts" if settings.reasons else ""
    return f"{settings.k} moments {names[settings.traces]}, {settings.window} turns of the chat{own}"


def _rests_on(measured: Mapping[str, Any]) -> str:
    return (
        f"best within a standard error on {measured['turns']} validation turns of {measured['conversations']} conversations, "
        f"scored by {measured['scorer']}"
    )


def settings_table(settings: Settings) -> RenderableType:
    """What was compared to find how a twin best uses its memory, and what was chosen."""
    if settings.measured is None:
        return Text("nothing to decide on: there is no validation turn; the twin is shown its memories without traces")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title="What the twin is best shown", title_justify="left")
    for title in ("moments", "turns", "traces", "own"):
        table.add_column(title)
    table.add_column("bits per char", justify="right")
    table.add_column("against the best without traces", justify="right")
    for row in settings.measured["settings"]:
        extra = row["against_plain"]
        told = "–" if extra is None else f"{extra['value']:+.3f} {_interval(extra, 3, '+')}"
        bits = "–" if row["bits_per_char"] is None else f"{row['bits_per_char']['value']:.3f}"
        own = "yes" if row["reasons"] else "no"
        mark = " ←" if row["chosen"] else ""
        cells = (str(row["k"]), str(row["window"]), row["traces"], own, bits, told + mark)
        table.add_row(*cells, style="bold" if row["chosen"] else "")
    chosen = Text(f"Chosen, the simplest that is {_rests_on(settings.measured)}: {_described(settings)}.")
    return Group(table, chosen)


_CONTROL_NAMES = {
    "own": "own trace",
    "filler": "0 filler",
    "copy": "1 the action",
    "paraphrase": "2 paraphrase",
    "shuffled": "3 shuffled",
    "other": "4 other person",
    "bag": "5 bag of words",
    "keywords": "6 keywords",
    "swapped": "7 swapped",
    "forward": "8 forward",
}


_REASON_NAMES = {
    "quotes_action": "quotes",
    "echoes_examples": "echoes",
    "same_meaning": "same sense",
    "leans_on_words": "leans",
}


def controls_table(found: Mapping[str, Any]) -> RenderableType:
    """Control traces beside the real ones, and whether the score is more than leakage; it fits into 80 columns."""
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,  # a blank is between columns anyway, and five figures are wide
        title=f"Is the score of {found['twin']}'s traces more than leakage? Nats per token",
        title_justify="left",
    )
    table.add_column("trace", no_wrap=True)
    for title in (
        "gain\n[dim]unguarded",
        "gain\n[dim]words not copied",
        "own minus it\n[dim]words not copied",
        "rejected\n[dim]why",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for name, row in found["controls"].items():
        against = found["own_minus"].get(name)
        reason = max(row["reasons"], key=row["reasons"].get, default="")
        table.add_row(
            _CONTROL_NAMES[name],
            _signed(row["gain"]),
            _signed(row["novel"]),
            "–" if against is None else _signed(against),
            f"{row['rejected']} of {row['n']}\n[dim]{_REASON_NAMES.get(reason, reason)}",
            style="bold" if name == "own" else "",
        )
    return Group(table, *map(Text.from_markup, _leakage_verdicts(found)))


def _signed(estimate: Mapping[str, Any] | None) -> str:
    return "–" if estimate is None else f"{estimate['value']:+.3f}\n[dim]{_interval(estimate, 2, '+').strip('()')}"


def _leakage_verdicts(found: Mapping[str, Any]) -> list[str]:
    """The decision, condition by condition, and what it rests on; rich markup."""
    said: list[str] = []
    told = {"a swapped trace moves the other action": found["swap_contrast"]}
    told |= {"the score predicts the benefit downstream": found["validity"]}
    told |= {f"own beats {name}": one for name, one in found["own_minus"].items()}
    told |= {f"choosing by score beats {name.removeprefix('recon - ')}": one for name, one in found["selection"].items()}
    for condition, holds in found["decision"]["conditions"].items():
        one = told.get(condition)
        numbers = "not measured" if one is None else f"{one['value']:+.4f} {_interval(one, 4, '+')}, n={one['n']}"
        said.append(f"{'[green]yes[/green]' if holds else '[red]no [/red]'} {condition}: [dim]{numbers}[/dim]")
    verdict = "more than leakage" if found["decision"]["more_than_leakage"] else "not shown to be more than leakage"
    models = found["models"]
    said.append(f"[bold]The score is {verdict}[/bold] on this person, with these models (each: 95% interval above 0).")
    spent = found["cost"]
    said.append(
        f"[dim]{found['turns']} validation turns of {found['conversations']} conversations; intervals by conversation; "
        f"traces by {escape(models['proposer'])}, scored by {escape(models['scorer'])}; {spent['calls']} texts written, "
        f"{spent['repeated']} from kept answers; seed {found['seed']}[/dim]"
    )
    return said


def _traces_table(triples: Sequence[Triple]) -> Table:
    table = Table(title="traces that predict best what was really written", title_justify="left", box=None, header_style="dim")
    for title in ("fidelity", "when somebody said", "they thought", "and wrote"):
        table.add_column(title, justify="right" if title == "fidelity" else "left")
    for triple in triples:
        score = "–" if triple.score is None else f"{triple.score:+.2f}"
        heard = triple.pair.context[-1].text if triple.pair.context else "(nothing yet)"
        table.add_row(score, *(Text(shorten(flat(text), 90)) for text in (heard, triple.reasoning or "", triple.pair.action)))
    return table
