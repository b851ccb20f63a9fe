"""Triples (context, action, reasoning trace) and the provenance of their traces.

Design: a triple's id is a hash of speaker, conversation, position and action. Learning a turn again gives the same triple, so
only its trace is replaced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import Any

from usertwin.personas import Pair

_OLD_MEASURES = {"novel": "guarded_gain", "gives_away": "reveals_action"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A proposed trace, its score (None if not scored) and the guard that rejected it (None if none did)."""

    trace: str
    score: float | None
    rejected_by: str | None


@dataclass(kw_only=True, frozen=True, slots=True)
class Provenance:
    """The origin of a trace.

    Attributes:
        method: the selection among the proposals: "recon", "backward" (the first proposal), "random", "longest", "quality".
        proposer: the model that wrote the trace.
        scorer: the fidelity that scored it (see `Fidelity.name`), or None if it was not scored.
        candidates: the number of proposals.
        rejected: the number of rejected proposals by guard (see `guards.REASONS`).
        proposals: the proposals in order, so that another selection among them needs no model call.
        measured: measurements of the selected trace that took no part in its selection: `gain` and `guarded_gain` (nats per
            token), `kept` (the share of the gain that remains when the words shared with the action are masked) and
            `reveals_action` (1 if the trace alone identifies the action among the person's other actions).
        cost: the cost of the proposals and their scores; see `Ledger.to_json`.
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
        """Return the provenance as a JSON object."""
        plain = replace(self, rejected=dict(self.rejected))  # asdict() cannot copy a Counter
        return asdict(plain) | {"proposals": list(map(astuple, self.proposals))}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Provenance:
        """Return the provenance in a JSON object; fields that an earlier version did not write keep their defaults."""
        known: dict[str, Any] = {**raw, "proposals": tuple(Candidate(*values) for values in raw.get("proposals", ()))}
        # Names in development snapshots before 0.1.0 are read as well: "how", "novel" and "gives_away".
        if "how" in known:
            known["proposal_mode"] = known.pop("how")
        known["measured"] = {_OLD_MEASURES.get(key, key): value for key, value in raw.get("measured", {}).items()}
        if (known.get("scorer") or "").startswith("novel gain "):
            known["scorer"] = known["scorer"].replace("novel gain", "guarded gain", 1)
        return cls(**known)


@dataclass(frozen=True, slots=True)
class Triple:
    """A pair with its reasoning trace.

    Attributes:
        pair: the context and the action.
        reasoning: the trace; None if none was requested or none passed the guards.
        score: the trace's fidelity (see `Provenance.scorer`), or None if it was not scored. By default, the gain in the
            action's log-probability over filler text, in nats per token.
        provenance: the origin of the trace; None if there is none.
    """

    pair: Pair
    reasoning: str | None = None
    score: float | None = None
    provenance: Provenance | None = None

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits that identify the pair (not the trace)."""
        parts = (self.pair.speaker, self.pair.conversation_id, str(self.pair.position), self.pair.action)
        return hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Recalled:
    """A recalled triple and the cosine similarity of its context to the query (-1 to 1)."""

    triple: Triple
    similarity: float
