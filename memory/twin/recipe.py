"""The recipe of a twin: every setting that learning depends on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from usertwin.memory.recon.judged_fidelity import FidelityName
from usertwin.memory.recon.propose import ProposalMode
from usertwin.memory.recon.synthesizer import DEFAULT_MAX_CALLS, Method, check_counts, is_scored
from usertwin.personas import UsageError
from usertwin.personas.reading import STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Settings of learning; equal recipes and logs give equal twins.

    Attributes:
        source: the log, as the user named it.
        speaker: the person in the log.
        method: how a trace is selected from the proposals (see recon/synthesizer.py).
        candidates: traces per pair that must pass the guards; up to three rounds replace rejected ones.
        max_triples: the most triples in the memory, latest first; None for all.
        max_traces: the most triples that get traces, latest first; None for all.
        window: number of context turns in a pair.
        embedder: name of the embedding model.
        model: name of the model that proposes traces; None without traces.
        scorer: name of the model that scores and guards traces; None without traces.
        seed: sampling seed.
        proposal_mode: how traces are proposed (see recon/propose.py).
        fidelity: how traces are scored (see recon/fidelity.py and recon/judged_fidelity.py).
        actor: name of the model that reconstructs actions, if the fidelity needs one.
        judge: name of the judge, if the method or the fidelity needs one.
        max_calls: number of completions that a search may use for a pair.
        synthesizer: name of a proposing model that also reasons for the twin; None if it does not.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    source: str
    speaker: str
    method: Method
    candidates: int
    max_triples: int | None
    max_traces: int | None
    window: int
    embedder: str
    model: str | None
    scorer: str | None
    seed: int
    proposal_mode: ProposalMode = "backward"
    fidelity: FidelityName = "guarded_gain"
    actor: str | None = None
    judge: str | None = None
    max_calls: int = DEFAULT_MAX_CALLS
    synthesizer: str | None = None

    @property
    def scored(self) -> bool:
        """Whether proposals are scored (see `is_scored`)."""
        return is_scored(self.method, self.proposal_mode)

    @property
    def reconstructs(self) -> bool:
        """Whether the fidelity needs reconstructions of the action, written by the actor."""
        return self.scored and self.fidelity in {"judge", "rank"}

    @property
    def judged(self) -> bool:
        """Whether a judge rates reconstructions or traces."""
        return self.method == "quality" or self.ranked_by_judge

    @property
    def ranked_by_judge(self) -> bool:
        """Whether the fidelity is a judge's ranking of reconstructions."""
        return self.scored and self.fidelity == "judge"

    def without_unused(self) -> Recipe:
        """Return the recipe without the names of models that it does not use."""
        traced = self.method != "none"
        return replace(
            self,
            model=self.model if traced else None,
            scorer=self.scorer if traced else None,
            actor=self.actor if self.reconstructs else None,
            judge=self.judge if self.judged else None,
        )

    def check(self) -> None:
        """Raise UsageError if a number is out of range, or two settings exclude each other."""
        if self.max_triples is not None and self.max_triples < 1:
            raise UsageError(f"max_triples is {self.max_triples}; it must be at least 1")
        if self.max_traces is not None and self.max_traces < 0:
            raise UsageError(f"max_traces is {self.max_traces}; it must be at least 0")
        if self.window < 1:
            raise UsageError(f"the window is {self.window} turns; it must be at least 1")
        if self.synthesizer is not None and (self.method == "none" or self.synthesizer != self.model):
            raise UsageError(
                f'the synthesizer "{self.synthesizer}" does not propose the traces; '
                'choose a method other than "none" with the same model, or leave the synthesizer out'
            )
        if self.method == "none":
            return
        check_counts(self.candidates, self.max_calls)
        if self.proposal_mode == "search" and self.fidelity == "judge":
            raise UsageError(
                'the fidelity "judge" gives no scores that a search can compare; choose another fidelity or proposal mode'
            )
