"""What `usertwin show` prints about a twin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from usertwin.memory import Settings, Triple, TwinRecord
from usertwin.memory.text.transcript import single_line
from usertwin.memory.twin.abandonment import AbandonmentModel
from usertwin.memory.twin.last_turn import LastTurnModel

from .terminal import closeness_line, interval_text

#: How many traces are shown of a twin.
_BEST = 3


def twin_view(
    record: TwinRecord, triples: Sequence[Triple], ending: LastTurnModel | None, leaving: AbandonmentModel | None
) -> RenderableType:
    """What a twin holds: its record, and the traces with the highest fidelity."""
    recipe, persona = record.recipe, record.persona
    traced = [triple for triple in triples if triple.reasoning is not None]
    left = sum(triple.pair.abandoned for triple in triples)
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


def _leaves(ending: LastTurnModel | None, leaving: AbandonmentModel | None) -> str:
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
    names = {"none": "without traces", "backward": "with the first traces", "recon": "with the Recon-selected traces"}
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
        told = "–" if extra is None else f"{extra['value']:+.3f} {interval_text(extra, 3, '+')}"
        bits = "–" if row["bits_per_char"] is None else f"{row['bits_per_char']['value']:.3f}"
        own = "yes" if row["reasons"] else "no"
        mark = " ←" if row["chosen"] else ""
        cells = (str(row["k"]), str(row["window"]), row["traces"], own, bits, told + mark)
        table.add_row(*cells, style="bold" if row["chosen"] else "")
    chosen = Text(f"Chosen, the simplest that is {_rests_on(settings.measured)}: {_described(settings)}.")
    return Group(table, chosen)


def _traces_table(triples: Sequence[Triple]) -> Table:
    table = Table(title="traces that predict best what was really written", title_justify="left", box=None, header_style="dim")
    for title in ("fidelity", "when somebody said", "they thought", "and wrote"):
        table.add_column(title, justify="right" if title == "fidelity" else "left")
    for triple in triples:
        score = "–" if triple.score is None else f"{triple.score:+.2f}"
        heard = triple.pair.context[-1].text if triple.pair.context else "(nothing yet)"
        table.add_row(score, *(Text(shorten(single_line(text), 90)) for text in (heard, triple.reasoning or "", triple.pair.action)))
    return table
