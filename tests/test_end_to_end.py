"""From a real person's chats to a measured twin, with the real tiny model and real embeddings, on ten real turns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from usertwin.evals.arm_names import USUAL_ARMS
from usertwin.evals.cli.demo import SPEAKER
from usertwin.evals.cli.main import main
from usertwin.memory import TripleStore, existing_twin
from usertwin.memory.recon.guards import rejection_reason
from usertwin.simulator import SimulatedUser, load_embedder

pytestmark = pytest.mark.slow


def test_a_real_person_becomes_a_twin_that_talks_and_is_measured(tmp_path: Path) -> None:
    def usertwin(*words: str) -> str:
        done = CliRunner().invoke(main, list(words))
        assert done.exit_code == 0, done.output
        return done.output

    bounds = ["--max-triples", "60", "--max-traces", "4", "--candidates", "2"]
    shown = usertwin("learn", "robin", "--from", "chitchat", "--speaker", SPEAKER, *bounds)
    assert "60 triples" in shown

    with TripleStore(existing_twin("robin"), load_embedder()) as store:
        traced = [triple for triple in store.triples() if triple.provenance is not None]
    assert len(traced) == 4
    for triple in traced:
        assert triple.provenance is not None
        assert (triple.provenance.proposer, triple.provenance.scorer) == ("local", "novel gain under local")
        assert triple.reasoning is None or rejection_reason(triple.reasoning, triple.pair) is None

    shown = usertwin("simulate", "robin", "--agent", "demo", "--turns", "2", "--agent-first", "--out", str(tmp_path / "run"))
    [line] = (tmp_path / "run" / "conversations.jsonl").read_text("utf-8").splitlines()
    simulation = json.loads(line)
    assert simulation["stop_reason"] in {"max_turns", "user_stop"}
    assert simulation["exchanges"][0]["answer"]["recalled"]

    usertwin("eval", "robin", "--limit", "10", "--generate", "1", "--json", str(tmp_path / "close.json"))
    result = json.loads((tmp_path / "close.json").read_text("utf-8"))
    assert list(result["arms"]) == list(USUAL_ARMS)
    for arm in USUAL_ARMS:
        bits = result["arms"][arm]["bits_per_char"]
        assert bits["n"] == result["turns"] == 10
        assert 0.3 < bits["value"] < 4.0  # a language model knows something about English, and not everything
        assert bits["low"] <= bits["value"] <= bits["high"]
    assert "bits per character" in usertwin("show", "robin")

    with SimulatedUser.load("robin") as user:
        asked = [{"role": "assistant", "content": "Hey, what are you up to this weekend?"}]
        first, again = user.respond(asked), user.respond(asked)
        assert user.settings.measured is not None  # what is recalled was decided by measuring
        assert len(first.recalled) == user.settings.k
    assert first.action == again.action  # the same seed says the same
