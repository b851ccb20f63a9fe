"""The curves of a training as pictures: SVG for the page, and one file with all of them.

The one design choice: each panel is a picture of its own, so that a page can set them side by side or one below the other, and
each says in words where its lines begin and end; what is drawn depends on the numbers alone, so a run
gives one and the same file.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from usertwin.evals.records.training_run import Curve, MethodRun
from usertwin.memory.training.model_card import METHODS
from usertwin.personas import UsageError

from .labels import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INSTALL = "the picture of the curves needs matplotlib, which is not installed; install it with: pip install 'usertwin[train]'"
#: Lines that are seen on white and on black alike (3 to 1 at least on both), told apart by their dashes, too.
LINES: tuple[tuple[str, Any], ...] = (
    ("#2b7de0", "-"), ("#c8620a", (0, (5, 1.5))), ("#12885a", (0, (1.5, 1.2))), ("#b24fc0", (0, (6, 1.5, 1.5, 1.5))),
    ("#87771a", (0, (3, 1, 1, 1, 1, 1))), ("#7a7f87", (0, (8, 3))),
)  # fmt: skip
#: Stands for the colour of the text around a picture, which matplotlib does not know.
_TEXT = "#010203"
_STYLE = """<style>svg{color:#1b1f24;background:#ffffff}
@media (prefers-color-scheme:dark){svg{color:#e6e9ee;background:#14181d}}</style>"""
_WIDE, _HIGH = 4.6, 2.7


@dataclass(frozen=True, slots=True)
class PanelKind:
    """A panel that may be drawn.

    Attributes:
        title: what is over it.
        said: what the number is.
        curve: its name among the curves of the training; empty if it is told at audits alone.
        audit: its name among those of the audits; empty if it is not told there.
        digits: after the point; None for three that count, wherever the point is.
        main: whether it is of those that everybody should look at.
    """

    title: str
    said: str
    curve: str
    audit: str = ""
    digits: int | None = 3
    main: bool = True


PANELS = (
    PanelKind("Reward", "the weighted sum of the terms", "reward"),
    PanelKind("Reward: fidelity", "how well the trace lets the action be reconstructed", "fidelity"),
    PanelKind("Reward: closeness", "how close the action comes that follows the trace", "closeness"),
    PanelKind("Reward: leak", "1 for a trace with few of the action's new words", "leak"),
    PanelKind("Reward: length", "1 for a trace of a usual length", "length"),
    PanelKind("Reward: format", "1 for a trace that came to its end by itself", "format"),
    PanelKind("Novel gain", "nats per token, without words that the trace has from the action", "novel", "novel"),
    PanelKind("Leak rate", "share of traces that a guard rejects since they tell the action", "leak_rate", "leak_rate"),
    PanelKind("Rejected", "share of traces that any guard rejects", "rejected", "rejected"),
    PanelKind("Gives away", "share of traces that tell the action without the context", "gives_away", "gives_away"),
    PanelKind("Words", "words of a trace", "words", "words", 1),
    PanelKind("Groups without variance", "share of groups whose traces are all worth the same", "no_variance"),
    PanelKind("Loss", "what the optimiser makes smaller; not to be compared between methods", "loss"),
)


@dataclass(frozen=True, slots=True)
class Line:
    """What a panel shows of one method."""

    method: str
    curve: Curve | None
    audit: Curve | None


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel with its lines, and what it says in words: a sentence for each line."""

    kind: PanelKind
    lines: tuple[Line, ...]

    @property
    def told(self) -> str:
        """Where each line begins and ends."""
        return f"{self.kind.title}, {self.kind.said}. " + " ".join(_told(line, self.kind.digits) for line in self.lines)


def panels_of(methods: Sequence[MethodRun]) -> list[Panel]:
    """The panels for which there are numbers, those that nobody knows last."""
    known = {name for kind in PANELS for name in (kind.curve, kind.audit)} | {"n"}
    told = dict.fromkeys(name for one in methods for name in (*one.values, *one.audits))
    kinds = [*PANELS, *(_logged(name) for name in told if name not in known)]
    found = [Panel(kind, tuple(line for one in methods if (line := _line(one, kind)) is not None)) for kind in kinds]
    return [panel for panel in found if panel.lines]


def _logged(name: str) -> PanelKind:
    """The panel of something that a trainer logs and that we have no words for."""
    title = "".join(letter if letter.isprintable() else " " for letter in name).replace("_", " ").strip()
    return PanelKind(title.capitalize(), "as logged", name, name, digits=None, main=False)


def _line(one: MethodRun, kind: PanelKind) -> Line | None:
    curve, audit = one.values.get(kind.curve), one.audits.get(kind.audit)
    return None if curve is None and audit is None else Line(one.name, curve, audit)


def running_mean(values: Sequence[float]) -> list[float]:
    """Each value's mean with its neighbours, about a tenth of all; fewer at both ends.

    >>> running_mean([0.0, 3.0, 6.0, 3.0])
    [1.5, 3.0, 4.0, 4.5]
    """
    half = max(1, len(values) // 20)
    return [fmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def method_title(name: str) -> str:
    """How a method is called."""
    return METHODS[name][0] if name in METHODS else name


def _told(line: Line, digits: int | None) -> str:
    parts: list[str] = []
    if line.curve is not None:
        parts.append(_ends(line.curve.steps, running_mean(line.curve.values), digits))
    if line.audit is not None:
        parts.append("on held-out pairs " + _ends(line.audit.steps, line.audit.values, digits))
    return f"{method_title(line.method)}: {', '.join(parts)}."


def _ends(steps: Sequence[int], values: Sequence[float], digits: int | None) -> str:
    first, last = (f"{value:.3g}" if digits is None else number(value, digits) for value in (values[0], values[-1]))
    begins = f"{first} at step {steps[0]}"
    return begins if len(steps) == 1 else f"{begins}, {last} at step {steps[-1]}"


def colours_of(methods: Sequence[MethodRun]) -> dict[str, tuple[str, Any]]:
    """The colour and the dashes of each method's line; more than there are colours share them."""
    return {one.name: LINES[place % len(LINES)] for place, one in enumerate(methods)}


def inline_panel(panel: Panel, lines: Mapping[str, tuple[str, Any]]) -> str:
    """A panel as an SVG element to stand in a page: no background, text in the colour of the page.

    Args:
        panel: what to draw.
        lines: the colour and the dashes of each method's line.

    Raises:
        UsageError: matplotlib is not installed.
    """
    figure = _figure(1, 1)
    _draw(figure.subplots(), panel, lines)
    drawn = _svg(figure, panel.kind.title)
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", drawn).replace("xlink:href", "href")


def whole_picture(panels: Sequence[Panel], lines: Mapping[str, tuple[str, Any]]) -> str:
    """Every main panel in one SVG file, two abreast, with a legend; light or dark as the reader likes it.

    Args:
        panels: what to draw.
        lines: the colour and the dashes of each method's line.

    Raises:
        UsageError: matplotlib is not installed.
    """
    shown = [panel for panel in panels if panel.kind.main]
    rows = max(1, (len(shown) + 1) // 2)
    figure = _figure(rows, 2)
    grid: Any = figure.subplots(rows, 2, squeeze=False)
    axes = list(grid.flat)
    for ax, panel in zip(axes, shown, strict=False):
        _draw(ax, panel, lines)
    for ax in axes[len(shown) :]:
        ax.set_axis_off()
    handles = [_sample(name, *style) for name, style in lines.items()]
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, labelcolor=_TEXT)
    drawn = _svg(figure, "curves")
    start = drawn.index(">", drawn.index("<svg")) + 1
    return f'<?xml version="1.0" encoding="utf-8"?>\n{drawn[:start]}\n{_STYLE}{drawn[start:]}\n'


def legend_mark(colour: str, dashes: Any) -> str:
    """A short line as it is drawn, as an SVG element for a legend in a page."""
    pattern = "" if dashes == "-" else f' stroke-dasharray="{" ".join(str(2 * part) for part in dashes[1])}"'
    line = f'<line x1="1" y1="6" x2="43" y2="6" stroke="{colour}" stroke-width="2.6"{pattern}/>'
    return f'<svg width="44" height="12" viewBox="0 0 44 12" aria-hidden="true">{line}</svg>'


def _figure(rows: int, columns: int) -> Figure:
    """An empty figure that draws on nothing, outside of any state that matplotlib shares."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(_INSTALL) from None
    figure = Figure(figsize=(_WIDE * columns, _HIGH * rows + (0.5 if columns > 1 else 0)), layout="constrained")
    figure.patch.set_alpha(0.0)
    return figure


def _draw(ax: Axes, panel: Panel, lines: Mapping[str, tuple[str, Any]]) -> None:
    """Raw points faint, their running mean as a line, audits as large marks joined by a thin line."""
    from matplotlib.ticker import MaxNLocator

    ax.patch.set_alpha(0.0)
    for line in panel.lines:
        colour, dashes = lines[line.method]
        if line.curve is not None:
            steps, values = line.curve.steps, line.curve.values
            ax.plot(steps, values, ".", color=colour, alpha=0.55, markersize=4.5, markeredgewidth=0)
            ax.plot(steps, running_mean(values), color=colour, linestyle=dashes, linewidth=1.8)
        if line.audit is not None:
            style: dict[str, Any] = {"color": colour, "markerfacecolor": "none", "markeredgewidth": 1.4, "linewidth": 0.8}
            ax.plot(line.audit.steps, line.audit.values, "D", linestyle=dashes, markersize=5.5, **style)
    ax.set_title(panel.kind.title, fontsize=11, color=_TEXT, loc="left", parse_math=False)
    ax.set_xlabel("step", fontsize=9, color=_TEXT)
    ax.tick_params(colors=_TEXT, labelsize=9)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.margins(x=0.03)
    ax.grid(visible=True, color=_TEXT, alpha=0.12, linewidth=0.6)
    for name, spine in ax.spines.items():
        spine.set_visible(name in {"left", "bottom"})
        spine.set_color(_TEXT)


def _sample(name: str, colour: str, dashes: Any) -> Any:
    from matplotlib.lines import Line2D

    label = method_title(name).replace("$", r"\$")
    return Line2D([], [], color=colour, linestyle=dashes, linewidth=1.8, label=label)


def _svg(figure: Figure, salt: str) -> str:
    """A figure as one SVG element that is the same each time, with text as text and no names but those it needs."""
    from matplotlib import rc_context

    file = io.StringIO()
    salted: Any = {
        "svg.hashsalt": salt,
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
    }
    with rc_context(salted):
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawn = file.getvalue()
    drawn = drawn[drawn.index("<svg") :].strip()
    drawn = re.sub(r"<style.*?</style>|<!--.*?-->|<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', drawn))
    drawn = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", drawn)
    return re.sub(r"\n\s*\n", "\n", drawn.replace(_TEXT, "currentColor"))
