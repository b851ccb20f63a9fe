"""Triples (context, action, reasoning trace): what a person did, and why, with where the why came from.

The one design choice: a triple's id is a hash of what really happened (who, where in which conversation, what was said),
so that the same moment is the same triple however often it is learned, and only its trace can change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import Any

from usertwin.personas import Pair

#: Keys of `Provenance.measured` until version 0.1, and the present ones.
_MEASURED_NAMES = {"novel": "guarded_gain"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A proposed trace: its score, if it was scored, and the guard that rejects it, if any."""

    trace: str
    score: float | None
    rejected_by: str | None


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a trace came from.

    Attributes:
        method: how it was chosen from the proposals: "recon", "backward" (the first one), "random", "longest", "quality".
        proposer: the model that wrote the trace.
        scorer: what scored it (see `Fidelity.name`), or None for a trace that was not scored.
        prompt_version: the version of the prompt it was asked for with.
        seed: the seed the proposals were sampled with.
        candidates: how many traces were proposed.
        rejected: how many of these a guard rejected, by the guard's name (see `guards.REASONS`).
        how: in which way they were proposed.
        proposals: the proposals themselves, in order, so that another choice among them needs no call.
        measured: figures of the selected trace that took no part in its selection: `gain` and `guarded_gain` (nats per token),
            `kept` (share of the gain left when the words shared with the action are masked), and `gives_away` (1 if the trace
            alone picks the action out of the person's other actions; the audit).
        cost: what the proposals and their scores cost; see `Ledger`.
    """

    method: str
    proposer: str
    scorer: str | None
    prompt_version: str
    seed: int
    candidates: int
    rejected: Mapping[str, int]
    proposal_mode: str = "backward"
    proposals: tuple[Candidate, ...] = ()
    measured: Mapping[str, float] = field(default_factory=dict[str, float])
    cost: Mapping[str, float | None] = field(default_factory=dict[str, float | None])

    def to_json(self) -> dict[str, Any]:
        """The provenance as a JSON object."""
        counts = dict(self.rejected)  # a Counter would be counted anew
        return asdict(replace(self, rejected=counts)) | {"proposals": [astuple(one) for one in self.proposals]}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Provenance:
        """Return the provenance in a JSON object; fields that an earlier version did not write keep their defaults."""
        known: dict[str, Any] = {**raw, "proposals": tuple(Candidate(*values) for values in raw.get("proposals", ()))}
        # Names until version 0.1: "how", and "novel gain" for the guarded gain.
        if "how" in known:
            known["proposal_mode"] = known.pop("how")
        known["measured"] = {_MEASURED_NAMES.get(name, name): value for name, value in raw.get("measured", {}).items()}
        if (known.get("scorer") or "").startswith("novel gain "):
            known["scorer"] = known["scorer"].replace("novel gain", "guarded gain", 1)
        return cls(**known)


@dataclass(frozen=True, slots=True)
class Triple:
    """A pair with its reasoning trace.

    Attributes:
        pair: what the person saw and did.
        reasoning: the trace, or None where none was asked for or none passed the guards.
        score: the trace's fidelity (see `Provenance.scorer`; by default in nats per token of the action: how much better it
            is predicted with the trace than with words that say nothing), or None for a trace that was not scored.
        provenance: where the trace came from; None where there is none.
    """

    pair: Pair
    reasoning: str | None = None
    score: float | None = None
    provenance: Provenance | None = None

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits that name the moment (not the trace)."""
        pair = self.pair
        parts = (pair.speaker, pair.conversation_id, str(pair.position), pair.action)
        return hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Recalled:
    """A triple that came to mind, and how similar its context is to the present one (cosine, -1 to 1)."""

    triple: Triple
    similarity: float
