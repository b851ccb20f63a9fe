"""Triples (context, action, reasoning trace): what a person did, and why, with where the why came from.

The one design choice: a triple's id is a hash of what really happened (who, where in which conversation, what was said),
so that the same moment is the same triple however often it is learned, and only its trace can change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from usertwin.personas import Pair


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a trace came from.

    Attributes:
        method: "recon" or "backward".
        proposer: the model that wrote the trace.
        scorer: the model that scored it, or None for a trace that was not scored.
        prompt_version: the version of the prompt it was asked for with.
        seed: the seed the proposals were sampled with.
        candidates: how many traces were proposed.
        rejected: how many of these a guard rejected, by the guard's name.
    """

    method: str
    proposer: str
    scorer: str | None
    prompt_version: str
    seed: int
    candidates: int
    rejected: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """The provenance as a JSON object."""
        return {
            "method": self.method,
            "proposer": self.proposer,
            "scorer": self.scorer,
            "prompt_version": self.prompt_version,
            "seed": self.seed,
            "candidates": self.candidates,
            "rejected": dict(self.rejected),
        }


@dataclass(frozen=True, slots=True)
class Triple:
    """A pair with its reasoning trace.

    Attributes:
        pair: what the person saw and did.
        reasoning: the trace, or None where none was asked for or none passed the guards.
        score: the trace's fidelity in nats per token of the action (how much better the action is predicted with the
            trace than without), or None for a trace that was not scored.
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
