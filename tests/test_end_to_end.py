"""The whole way, with the default models: from a real person's chat log to a twin that talks and is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_runner import run

from usertwin.evals.arm_names import DEFAULT_ARMS
from usertwin.evals.cli.demo import SPEAKER
from usertwin.memory import TripleStore, existing_twin
from usertwin.memory.recon.guards import rejection_reason
from usertwin.simulator import SimulatedUser, load_embedder

pytestmark = pytest.mark.slow


def usertwin(*words: str) -> str:
    """Return the output of a command that succeeds."""
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_real_person_becomes_a_twin_that_talks_and_is_measured(tmp_path: Path) -> None:
    limits = ["--max-triples", "30", "--max-traces", "2", "--candidates", "2", "--tune-turns", "2"]
    assert "30 triples" in usertwin("learn", "robin", "--from", "chitchat", "--speaker", SPEAKER, *limits)

    with TripleStore(existing_twin("robin"), load_embedder()) as store:
        traced = [triple for triple in store.triples() if triple.provenance is not None]
    assert len(traced) == 2
    for triple in traced:
        assert triple.provenance is not None
        assert (triple.provenance.proposer, triple.provenance.scorer) == ("local", "guarded gain under local")
        assert triple.reasoning is None or rejection_reason(triple.reasoning, triple.pair) is None

    usertwin("simulate", "robin", "--agent", "demo", "--max-turns", "1", "--agent-first", "--out", str(tmp_path / "run"))
    [line] = (tmp_path / "run" / "conversations.jsonl").read_text("utf-8").splitlines()
    simulation = json.loads(line)
    assert simulation["stop_reason"] in {"max_turns", "user_stop"}
    assert simulation["exchanges"][0]["answer"]["recalled"]

    file = tmp_path / "closeness.json"
    usertwin("eval", "robin", "--limit", "4", "--generate", "1", "--json", str(file))
    result = json.loads(file.read_text("utf-8"))
    assert list(result["arms"]) == list(DEFAULT_ARMS)
    for arm in DEFAULT_ARMS:
        bits = result["arms"][arm]["bits_per_char"]
        assert bits["n"] == result["turns"] == 4
        assert 0.3 < bits["value"] < 4.0  # better than random letters, worse than knowing the text
        assert bits["low"] <= bits["value"] <= bits["high"]
    assert "bits per character" in usertwin("show", "robin")

    with SimulatedUser.load("robin") as user:
        messages = [{"role": "assistant", "content": "Hey, what are you up to this weekend?"}]
        first, again = user.respond(messages, seed=3), user.respond(messages, seed=3)
        assert user.settings.measured is not None  # `learn` tuned the settings
        assert len(first.recalled) == user.settings.k
        assert [memory.triple.id for memory in first.recalled] == [memory.triple.id for memory in again.recalled]
    assert first.action == again.action
