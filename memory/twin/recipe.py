"""The recipe of a twin: every setting that learning depends on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from usertwin.memory.recon.judged_fidelity import FidelityName
from usertwin.memory.recon.propose import ProposalMode
from usertwin.memory.recon.synthesizer import SEARCH_CALLS, Method, check_counts, is_scored
from usertwin.personas import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a twin is learned; two equal recipes make the same twin.

    Attributes:
        source: the log, as it was named.
        speaker: the person in it.
        method: how a trace is chosen among the proposals (see recon.py).
        candidates: how many traces are proposed for a pair.
        max_triples: the most triples to hold, the latest ones; None for all.
        max_traces: the most of them to find traces for, the latest ones; None for all.
        window: turns of context for each pair.
        embedder: the embedding model.
        model: who proposes traces; None if nobody does.
        scorer: under which they are scored and guarded; None if nobody does.
        seed: for the sampler.
        how: in which way traces are proposed (see propose.py).
        fidelity: what scores them (see fidelity.py).
        actor: who reconstructs actions, where the fidelity needs that.
        judge: who judges, where the method or the fidelity needs that.
        calls: how many texts a search may take for one pair.
        synthesizer: who proposed the traces, where that model is also to do the twin's own reasoning; None if it is not.
    """

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
    fidelity: FidelityName = "novel"
    actor: str | None = None
    judge: str | None = None
    max_calls: int = SEARCH_CALLS
    synthesizer: str | None = None

    @property
    def scored(self) -> bool:
        """Whether proposals are given a fidelity (see `is_scored`)."""
        return is_scored(self.method, self.proposal_mode)

    @property
    def reconstructs(self) -> bool:
        """Whether a model, the actor, writes what the person may have done: for a judge, or to see how like it is."""
        return self.scored and self.fidelity in {"judge", "rank"}

    @property
    def judged(self) -> bool:
        """Whether a judge reads something: reconstructions, or the traces themselves."""
        return self.method == "quality" or (self.scored and self.fidelity == "judge")

    def without_unused(self) -> Recipe:
        """The same without the models that nothing in it needs."""
        makes = self.method != "none"
        return replace(
            self,
            model=self.model if makes else None,
            scorer=self.scorer if makes else None,
            actor=self.actor if self.reconstructs else None,
            judge=self.judge if self.judged else None,
        )

    def check(self) -> None:
        """UsageError if a number makes no sense, or two choices together do not."""
        if self.max_triples is not None and self.max_triples < 1:
            raise UsageError(f"{self.max_triples} triples at most: a twin needs at least one")
        if self.max_traces is not None and self.max_traces < 0:
            raise UsageError(f"{self.max_traces} traces at most: a number of traces is not negative")
        if self.window < 1:
            raise UsageError(f"a window of {self.window} turns: an action belongs to at least one turn before it")
        if self.synthesizer is not None and (self.method == "none" or self.synthesizer != self.model):
            raise UsageError(
                f'the synthesizer "{self.synthesizer}" is to propose the traces, and it does not: '
                "choose a way to make traces other than none, or leave the synthesizer out"
            )
        if self.method == "none":
            return
        check_counts(self.candidates, self.max_calls)
        if self.proposal_mode == "search" and self.fidelity == "judge":
            raise UsageError("a search compares scores of different steps, which those of a judge are not made for")
