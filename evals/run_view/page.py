"""The page of one run, or of two beside each other: one HTML file that needs no network.

Design: the data are JSON in script elements that no browser runs, one for each conversation, so that a conversation is parsed
when it is opened. view.js makes the page of it with text nodes alone. The content policy allows this script and this style by
their hashes, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from usertwin.evals.agent_tests.compare import compare_runs, comparison_verdict
from usertwin.evals.agent_tests.outcomes import outcomes_of
from usertwin.evals.agent_tests.page import manifest_facts
from usertwin.evals.agent_tests.read import AgentRun, summary_of_run
from usertwin.evals.agent_tests.screen import summary_line
from usertwin.evals.records.run_folder import write_atomically
from usertwin.evals.reports.labels import plural
from usertwin.evals.reports.templates import COLOURS, template
from usertwin.personas import UsageError
from usertwin.personas.printable import visible
from usertwin.personas.secrets import mask

from .conversations import Shared, details_of, row_of
from .rebuilt_prompts import PromptRebuilder

VIEW, COMPARISON = "view.html", "comparison.html"
_HERE = Path(__file__).parent


@dataclass(slots=True)
class View:
    """What a page holds.

    Attributes:
        path: the file.
        conversations: number of its conversations; a pair of two runs counts once.
        prompts: number of prompts that it shows.
        missing: why turns have no prompt, or lack one, with the number of these turns.
    """

    path: Path
    conversations: int = 0
    prompts: int = 0
    missing: Counter[str] = field(default_factory=Counter[str])

    @property
    def prompt_lines(self) -> list[str]:
        """A sentence on the prompts that are shown, and one on each reason for which there is none, the most frequent first."""
        reasons = [f"{plural(count, 'turn')}: {why}" for why, count in self.missing.most_common()]
        return [f"{plural(self.prompts, 'prompt')} shown, each with the checksum that the run noted.", *reasons]


def write_view(
    run: AgentRun, other: AgentRun | None = None, *, home: str | Path | None = None, out: str | Path | None = None
) -> View:
    """Write the page of a run, or of two runs, whose conversations of the same scenario, twin and repetition are paired.

    Args:
        run: the run, or the first one.
        other: the second run.
        home: the folder of all twins, from which prompts are built again.
        out: the file; by default view.html, or comparison.html of two runs, in the folder of the first.

    Raises:
        UsageError: the two runs are in the same folder, or the file cannot be written.
    """
    if other is not None and run.folder.resolve() == other.folder.resolve():
        raise UsageError(f"{run.folder}: is named twice; name two runs, or one to view it alone")
    view = View(Path(out) if out is not None else run.folder / (VIEW if other is None else COMPARISON))
    write_atomically(view.path, _rendered([run] if other is None else [run, other], home, view))
    return view


def _rendered(runs: Sequence[AgentRun], home: str | Path | None, view: View) -> str:
    shared, talks, rows = Shared(), list[tuple[str, str]](), list[dict[str, dict[str, Any]]]()
    for number, run in enumerate(runs):
        with PromptRebuilder(run, home) as rebuilder:
            talks += [(f"talk-{number}-{place}", text) for place, text in enumerate(_talks(run, rebuilder, shared, view))]
        outcomes = outcomes_of(run.simulations, run.scenarios)
        rows.append({outcome.simulation.id: row_of(outcome, place) for place, outcome in enumerate(outcomes)})
    items = [[own.get(name) for own in rows] for name in dict.fromkeys(name for own in rows for name in own)]
    view.conversations = len(items)
    index = {"runs": [_title(run, number, len(runs)) for number, run in enumerate(runs)], "items": items}
    script, style = _file(_HERE / "view.js"), _file(COLOURS) + _file(_HERE / "view.css")
    return template("view.html", _HERE).render(
        names=[run.name for run in runs], lines=[f"{summary_line(summary_of_run(run))}." for run in runs],
        comparison=_comparison(runs), facts=[(run.name, manifest_facts(run)) for run in runs], prompts=view.prompt_lines,
        index=_data(index), shared=_data({"lines": shared.lines, "memories": shared.memories}), talks=talks,
        script=_verbatim(script), style=_verbatim(style), script_hash=_hash(script), style_hash=_hash(style),
    )  # fmt: skip


def _talks(run: AgentRun, rebuilder: PromptRebuilder, shared: Shared, view: View) -> Iterator[str]:
    """Yield each conversation of a run as JSON; count its prompts in `view`."""
    for simulation in run.simulations:
        prompts = rebuilder.prompts_of(simulation)
        view.prompts += sum(len(turn.prompts) for turn in prompts)
        view.missing.update(turn.why_not for turn in prompts if turn.why_not)
        yield _data(details_of(simulation, prompts, shared))


def _title(run: AgentRun, number: int, runs: int) -> dict[str, str]:
    """Return the names of a run: the short one tells two runs apart."""
    return {"short": "AB"[number] if runs > 1 else "", "name": visible(run.name)}


def _comparison(runs: Sequence[AgentRun]) -> list[str]:
    """Return sentences on what the second of two runs changed, and on what else differs; none for one run."""
    if len(runs) < 2:
        return []
    comparison = compare_runs(runs[0], runs[1])
    notes = [f"Not comparable: {reason}." for reason in comparison.why_not]
    notes += [f"{note[0].upper()}{note[1:]}." for note in comparison.notes]
    return [comparison_verdict(comparison), *notes]


def _file(path: Path) -> str:
    return path.read_text("utf-8")  # with line ends as the browser reads them, for the hash


def _hash(text: str) -> str:
    """Return a script or a style as the content policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _verbatim(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _data(value: Any) -> Any:
    """Return JSON without secrets that cannot end the script element it stands in."""
    import orjson
    from jinja2.utils import htmlsafe_json_dumps

    def dumps(data: Any) -> str:
        return mask(orjson.dumps(data).decode())

    return htmlsafe_json_dumps(value, dumps)
