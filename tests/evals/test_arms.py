"""Arms: each shows its own past turns and nothing it must not show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import other_conversation, scripted, small_conversation
from usertwin.evals.arm_names import (
    ARM_DESCRIPTIONS,
    ARMS,
    DEFAULT_ARMS,
    PEERS,
    POOLED_ARMS,
    QUOTING_ARMS,
    TRACE_ARMS,
    check_arms,
    with_current_arms,
)
from usertwin.evals.replay.arms import Arms, HeldOutTurn
from usertwin.evals.replay.held_out import held_out_pairs, other_person_store
from usertwin.evals.replay.peers import peer_messages
from usertwin.memory import Provenance, Settings, Triple, TripleStore
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.text.transcript import format_action_prompt, single_line
from usertwin.memory.triples import Candidate
from usertwin.memory.twin.record import default_home
from usertwin.personas import Pair, UsageError
from usertwin.personas.pairs import extract_pairs
from usertwin.simulator import SimulatedUser

#: The proposals for each pair, in order, with the guard that rejected them.
PROPOSED = (
    ("quotes what was done", "quotes_action"),
    ("misleads somewhat", "misleads"),
    ("is the chosen one", None),
    ("is like an example", "echoes_examples"),
    ("had no verdict", "no_verdict"),
    ("would have passed", None),
)
ALLOWED = {"misleads somewhat", "is the chosen one", "had no verdict", "would have passed"}

MEMORY_ARMS = ("no_memory", "other_person", *POOLED_ARMS, "random_own", "recent_own", "recalled_pairs")


def traced(triple: Triple, reasoning: str = "is the chosen one") -> Triple:
    """A memory with all these proposals."""
    proposals = tuple(Candidate(trace, None, rejected) for trace, rejected in PROPOSED)
    provenance = Provenance(
        method="recon",
        proposer="m",
        scorer="s",
        prompt_version="propose/1",
        seed=0,
        candidates=len(proposals),
        rejected={},
        proposals=proposals,
    )
    return replace(triple, reasoning=reasoning, score=0.1, provenance=provenance)


@pytest.fixture
def user(ann: str) -> Iterator[SimulatedUser]:
    """Ann's twin, with four memories at a time, each with the proposals above."""
    with SimulatedUser.load(ann, model=scripted("hi"), k=4) as result:
        result.store.set_traces([traced(triple) for triple in result.store.triples()])
        yield result


def held_out(user: SimulatedUser) -> list[Pair]:
    return held_out_pairs(user, default_home() / "ann")[0]


def of_past(user: SimulatedUser, *names: str, pairs: Sequence[Pair] = ()) -> list[HeldOutTurn]:
    """Return what these arms show at the held-out pairs, or at the given ones."""
    return Arms(user, names=names).held_out_turns(pairs or held_out(user))


# Names ---------------------------------------------------------------------------------------------------------------


def test_arms_are_returned_once_in_the_order_of_reports() -> None:
    assert check_arms(["tau2", "no_memory", "tau2"]) == ("no_memory", "tau2")
    assert check_arms(ARMS[::-1]) == ARMS == (*MEMORY_ARMS, *TRACE_ARMS, *QUOTING_ARMS, *PEERS)
    assert check_arms(["mine=my:respond", "tau2", "mine = my:respond"]) == ("tau2", "mine = my:respond")
    assert set(DEFAULT_ARMS) <= set(ARMS)


@pytest.mark.parametrize(("names", "says"), [(["no_memory", "memory"], 'no arm "memory"'), ([], "no arm is named")])
def test_an_unknown_arm_or_none_is_an_error_that_lists_the_arms(names: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=f"{says}; there are no_memory, .*persona"):
        check_arms(names)


# Past turns -----------------------------------------------------------------------------------------------------------


def test_no_memory_shows_nothing(user: SimulatedUser) -> None:
    arms = Arms(user, names=("no_memory",))
    for moment in arms.held_out_turns(held_out(user)):
        assert moment.shown == {"no_memory": []}
        assert arms.prompt("no_memory", moment) == format_action_prompt(moment.pair, user.settings.window)


def test_recent_own_shows_the_latest_pairs(user: SimulatedUser) -> None:
    past = sorted((triple.pair for triple in user.store.triples()), key=lambda pair: (pair.when, pair.position))
    for moment in of_past(user, "recent_own"):
        assert [triple.pair for triple in moment.shown["recent_own"]] == past[::-1][:4]
        assert all(triple.reasoning is None for triple in moment.shown["recent_own"])


def test_recent_own_shows_earlier_pairs_of_other_conversations(user: SimulatedUser) -> None:
    """The query pairs are in the memory themselves."""
    known = [triple.pair for triple in user.store.triples()]
    for moment in of_past(user, "recent_own", pairs=known):
        before = [pair for pair in known if pair.when < moment.pair.when]
        assert all(pair.conversation_id != moment.pair.conversation_id for pair in before)  # one talk a day
        assert [triple.pair for triple in moment.shown["recent_own"]] == before[::-1][:4]


def test_recent_own_skips_the_same_conversation(user: SimulatedUser) -> None:
    [*_, last] = [triple.pair for triple in user.store.triples()]
    [moment] = of_past(user, "recent_own", pairs=[replace(last, when=last.when + 3600)])
    assert {triple.pair.conversation_id for triple in moment.shown["recent_own"]} == {"talk-12", "talk-11"}


def test_random_own_depends_on_the_turn_and_the_seed(user: SimulatedUser) -> None:
    def drawn(seed: int, pairs: Sequence[Pair]) -> list[list[str]]:
        moments = Arms(user, names=("random_own",), seed=seed).held_out_turns(pairs)
        return [[triple.id for triple in moment.shown["random_own"]] for moment in moments]

    pairs = held_out(user)
    first = drawn(1, pairs)
    assert first == drawn(1, pairs) != drawn(2, pairs)
    assert drawn(1, pairs[3:]) == first[3:]  # whatever else is measured: a measurement may be gone on with
    assert len({tuple(ids) for ids in first}) > 6


def test_quoting_arms_show_the_most_similar_pairs_whatever_the_twin_recalls(user: SimulatedUser) -> None:
    for moment in of_past(user, *QUOTING_ARMS):
        nearest = [memory.triple.pair for memory in user.store.recall(moment.pair, 16, before=moment.pair.when)]
        assert [triple.pair for triple in moment.shown["medoid"]] == nearest
        assert [triple.pair for triple in moment.shown["verbatim"]] == nearest[:1]
        assert len(nearest) > user.k


def test_other_person_shows_pairs_of_the_other_person_only(user: SimulatedUser) -> None:
    with ExitStack() as stack:
        other = other_person_store(user, default_home() / "ann", FakeEmbedder(), stack)
        moments = Arms(user, names=("other_person",), other=other).held_out_turns(held_out(user))
        assert all([t.pair.speaker for t in moment.shown["other_person"]] == ["Bob"] * 4 for moment in moments)


# Traces --------------------------------------------------------------------------------------------------------------


def test_all_arms_that_recall_show_the_same_pairs(user: SimulatedUser) -> None:
    for moment in of_past(user, "recalled_pairs", "backward", "random_of_n", "best_of_n", "recon"):
        pairs = [triple.pair for triple in moment.shown["recalled_pairs"]]
        assert len(pairs) == 4
        assert all([triple.pair for triple in shown] == pairs for shown in moment.shown.values())
        assert [one.triple.pair for one in moment.recalled] == pairs


def test_backward_shows_the_first_proposal_that_passes_the_guards(user: SimulatedUser) -> None:
    for moment in of_past(user, "backward"):
        assert [triple.reasoning for triple in moment.shown["backward"]] == ["misleads somewhat"] * 4


def test_best_of_n_shows_a_trace_wherever_backward_does_also_if_every_proposal_misleads(user: SimulatedUser) -> None:
    proposals = (
        Candidate("leaks", 9.0, "quotes_action"),
        Candidate("bad", -0.4, "misleads"),
        Candidate("less bad", -0.1, "misleads"),
    )

    def misled(triple: Triple) -> Triple:
        assert triple.provenance is not None
        return replace(triple, reasoning=None, score=None, provenance=replace(triple.provenance, proposals=proposals))

    *every, last = user.store.triples()
    user.store.set_traces([misled(triple) for triple in every])
    traces = {
        (arm, triple.reasoning)
        for moment in of_past(user, "backward", "best_of_n", "recon")
        for arm, shown in moment.shown.items()
        for triple in shown
        if triple.id != last.id
    }
    assert traces == {("backward", "bad"), ("best_of_n", "less bad"), ("recon", None)}


def test_random_of_n_shows_any_proposal_that_passes_the_guards(user: SimulatedUser) -> None:
    seen = {t.reasoning for moment in of_past(user, "random_of_n") for t in moment.shown["random_of_n"]}
    for seed in range(4):
        for moment in Arms(user, names=("random_of_n",), seed=seed).held_out_turns(held_out(user)):
            seen |= {triple.reasoning for triple in moment.shown["random_of_n"]}
    assert seen == ALLOWED


def test_random_of_n_shows_the_same_trace_at_every_recall(user: SimulatedUser) -> None:
    by_memory: dict[str, set[str | None]] = {}
    for moment in of_past(user, "random_of_n"):
        for triple in moment.shown["random_of_n"]:
            by_memory.setdefault(triple.id, set()).add(triple.reasoning)
    assert all(len(traces) == 1 for traces in by_memory.values())


def test_a_pair_without_accepted_proposals_is_shown_without_a_trace(user: SimulatedUser) -> None:
    rejected = tuple(Candidate(trace, None, "quotes_action") for trace, _ in PROPOSED)

    def with_none(triple: Triple) -> Triple:
        assert triple.provenance is not None
        return replace(triple, reasoning=None, score=None, provenance=replace(triple.provenance, proposals=rejected))

    every = list(user.store.triples())
    user.store.set_traces([with_none(triple) for triple in every[:-1]])
    traces = {
        (arm, triple.reasoning)
        for moment in of_past(user, "backward", "random_of_n")
        for arm, shown in moment.shown.items()
        for triple in shown
        if triple.id != every[-1].id
    }
    assert traces == {("backward", None), ("random_of_n", None)}


def test_recon_shows_selected_traces_or_the_first_ones_of_a_twin_tuned_to_them(user: SimulatedUser) -> None:
    assert {t.reasoning for m in of_past(user, "recon") for t in m.shown["recon"]} == {"is the chosen one"}
    user.settings = Settings(traces="backward")
    assert {t.reasoning for m in of_past(user, "recon") for t in m.shown["recon"]} == {"misleads somewhat"}


def test_trained_shows_the_same_pairs_with_the_traces_of_the_other_memory(user: SimulatedUser, tmp_path: Path) -> None:
    every = list(user.store.triples())
    with TripleStore(tmp_path / "trained", FakeEmbedder()) as other:
        other.add([replace(triple, reasoning=f"trained {triple.pair.conversation_id}") for triple in every[:-3]])
        moments = Arms(user, names=("recalled_pairs", "trained"), trained=other).held_out_turns(held_out(user))
    unknown = {triple.id for triple in every[-3:]}
    for moment in moments:
        shown = moment.shown["trained"]
        assert [triple.pair for triple in shown] == [triple.pair for triple in moment.shown["recalled_pairs"]]
        for triple in shown:
            wanted = None if triple.id in unknown else f"trained {triple.pair.conversation_id}"
            assert triple.reasoning == wanted
    assert any(triple.id in unknown for moment in moments for triple in moment.shown["trained"])


# Absent arms --------------------------------------------------------------------------------------------------------


def test_absent_arms_are_left_out(user: SimulatedUser) -> None:
    absent = {"other_person", "trained", "openevals_written", *POOLED_ARMS}
    assert Arms(user, names=ARMS).present == tuple(arm for arm in ARMS if arm not in absent)
    [moment] = Arms(user, names=ARMS).held_out_turns(held_out(user)[:1])
    assert set(moment.shown) == set(ARMS) - absent


def test_without_traces_the_proposal_arms_are_absent(user: SimulatedUser) -> None:
    user.store.set_traces([replace(t, reasoning=None, score=None, provenance=None) for t in user.store.triples()])
    assert not {"backward", "random_of_n", "best_of_n", "trained"} & set(Arms(user, names=ARMS).present)


def test_only_named_arms_are_present(user: SimulatedUser) -> None:
    assert all(set(moment.shown) == {"recent_own", "tau2"} for moment in of_past(user, "recent_own", "tau2"))


# Peers ---------------------------------------------------------------------------------------------------------------


def test_peers_show_no_past_pair(user: SimulatedUser) -> None:
    """A peer's prompt holds none of Ann's actions except the sample turns of her persona."""
    did = {single_line(triple.pair.action) for triple in user.store.triples()} - {
        single_line(turn) for turn in user.persona.sample_turns
    }
    assert len(did) > 10
    arms = Arms(user, names=PEERS, written=user.persona)
    for moment in arms.held_out_turns(held_out(user)):
        assert moment.shown == {peer: [] for peer in PEERS}
        present = format_action_prompt(moment.pair, user.settings.window)
        for peer in PEERS:
            preamble = arms.prompt(peer, moment).removesuffix(present)
            assert preamble != arms.prompt(peer, moment)
            assert all(sample in preamble for sample in user.persona.sample_turns)
            assert not [action for action in did if action in preamble]
            system = peer_messages(peer, "instruction", user.persona, replace(moment.pair, context=()), turns=6)[0][1]
            assert not [action for action in did if action in system]


def test_the_prompt_of_every_arm_ends_with_the_present_context(user: SimulatedUser) -> None:
    arms = Arms(user, names=ARMS)
    pairs = [*held_out(user), *extract_pairs(small_conversation(18), "Ann"), *extract_pairs(other_conversation(1), "Bob")]
    for moment in arms.held_out_turns(pairs):
        present = format_action_prompt(moment.pair, user.settings.window)
        assert all(arms.prompt(arm, moment).endswith(present) for arm in moment.shown)
        assert all(moment.pair.action not in arms.prompt(arm, moment).split("\n\n")[-1] for arm in moment.shown)


def test_every_arm_has_a_description_of_one_sentence() -> None:
    assert tuple(ARM_DESCRIPTIONS) == (*MEMORY_ARMS, *TRACE_ARMS, *QUOTING_ARMS, *PEERS)
    assert all(text.endswith(".") and ". " not in text for text in ARM_DESCRIPTIONS.values())


@pytest.mark.parametrize("earlier", ["recalled_triples", "chosen"])
def test_earlier_names_of_recon_are_accepted(earlier: str) -> None:
    assert check_arms([earlier, "no_memory", "recon"]) == ("no_memory", "recon")


def test_names_of_arms_in_earlier_records_are_replaced() -> None:
    old = {"paired": {"recalled_triples - tau2": [1.5, None]}, "names": ["recalled_triples", "chosen"]}
    assert with_current_arms(old) == {"paired": {"recon - tau2": [1.5, None]}, "names": ["recon", "chosen"]}
