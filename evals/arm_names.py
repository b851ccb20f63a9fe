"""The names of the arms that an evaluation can compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from usertwin.personas import UsageError

Peer = Literal["openevals", "tau2", "persona"]
PEERS: tuple[Peer, ...] = get_args(Peer)

MEMORY_ARMS = ("no_memory", "other_person", "random_own", "recent_own", "recalled_pairs")


TRACE_ARMS = ("backward", "random_of_n", "recalled_triples", "trained")


ARMS: tuple[str, ...] = (*MEMORY_ARMS, *TRACE_ARMS, *PEERS)


#: What is compared where nothing else is said.
USUAL_ARMS = ("no_memory", "other_person", "random_own", "recalled_pairs", "recalled_triples")


def check_arms(names: Sequence[str]) -> tuple[str, ...]:
    """The arms of these names, in the order in which they are reported. UsageError if there is no such arm, or none."""
    unknown = [name for name in names if name not in ARMS]
    if unknown or not names:
        told = f'there is no arm "{unknown[0]}"' if unknown else "no arm is named"
        raise UsageError(f"{told}; there are {', '.join(ARMS)}")
    return tuple(arm for arm in ARMS if arm in names)
