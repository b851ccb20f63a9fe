"""Each arm shows what it says it shows, and nothing that it must not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import other_conversation, scripted, small_conversation
from usertwin.evals.arm_names import ARMS, MEMORY_ARMS, PEERS, TRACE_ARMS, USUAL_ARMS, check_arms
from usertwin.evals.replay.arms import Arms, HeldOutTurn
from usertwin.evals.replay.held_out import held_out_pairs, other_person
from usertwin.evals.replay.peers import peer_messages
from usertwin.memory import Provenance, Settings, Triple, TripleStore
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.text.transcript import current_moment, flat
from usertwin.memory.triples import Candidate
from usertwin.memory.twin.record import default_home
from usertwin.personas import Pair, UsageError
from usertwin.personas.pairs import pairs_of
from usertwin.simulator import SimulatedUser

#: What was proposed for each memory, in order: by what it was rejected, if it was.
PROPOSED = (
    ("quotes what was done", "quotes_action"),
    ("misleads somewhat", "misleads"),
    ("is the chosen one", None),
    ("is like an example", "echoes_examples"),
    ("had no verdict", "no_verdict"),
    ("would have passed", None),
)
ALLOWED = {"misleads somewhat", "is the chosen one", "had no verdict", "would have passed"}


def traced(triple: Triple, reasoning: str = "is the chosen one") -> Triple:
    """A memory with all these proposals."""
    proposals = tuple(Candidate(trace, None, rejected) for trace, rejected in PROPOSED)
    provenance = Provenance("recon", "m", "s", "propose/1", 0, len(proposals), {}, proposals=proposals)
    return replace(triple, reasoning=reasoning, score=0.1, provenance=provenance)


@pytest.fixture
def user(ann: str) -> Iterator[SimulatedUser]:
    """Ann's twin, with four memories at a time, each with the proposals above."""
    with SimulatedUser.load(ann, model=scripted("hi"), k=4) as found:
        found.store.set_traces([traced(triple) for triple in found.store.triples()])
        yield found


def held_out(user: SimulatedUser) -> list[Pair]:
    return held_out_pairs(user, default_home() / "ann")[0]


def of_past(user: SimulatedUser, *names: str, pairs: Sequence[Pair] = ()) -> list[HeldOutTurn]:
    """What these arms are shown at held-out moments, or at those given."""
    return Arms(user, names).moments(pairs or held_out(user))


# Names ---------------------------------------------------------------------------------------------------------------


def test_arms_are_reported_in_one_order_and_once() -> None:
    assert check_arms(["tau2", "no_memory", "tau2"]) == ("no_memory", "tau2")
    assert check_arms(ARMS[::-1]) == ARMS == (*MEMORY_ARMS, *TRACE_ARMS, *PEERS)
    assert set(USUAL_ARMS) <= set(ARMS)


@pytest.mark.parametrize(("names", "says"), [(["no_memory", "memory"], 'no arm "memory"'), ([], "no arm is named")])
def test_an_unknown_arm_or_none_is_refused_with_those_there_are(names: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=f"{says}; there are no_memory, .*persona"):
        check_arms(names)


# Memories ------------------------------------------------------------------------------------------------------------


def test_no_memory_is_shown_nothing(user: SimulatedUser) -> None:
    arms = Arms(user, ("no_memory",))
    for moment in arms.moments(held_out(user)):
        assert moment.shown == {"no_memory": []}
        assert arms.prompt("no_memory", moment) == current_moment(moment.pair, user.settings.window)


def test_the_most_recent_moments_are_the_latest_ones_of_all_the_past(user: SimulatedUser) -> None:
    past = sorted((triple.pair for triple in user.store.triples()), key=lambda pair: (pair.when, pair.position))
    for moment in of_past(user, "recent_own"):
        assert [triple.pair for triple in moment.shown["recent_own"]] == past[::-1][:4]
        assert all(triple.reasoning is None for triple in moment.shown["recent_own"])


def test_the_most_recent_moments_are_before_the_present_one_and_of_other_conversations(user: SimulatedUser) -> None:
    """Asked about moments that the memory holds itself."""
    known = [triple.pair for triple in user.store.triples()]
    for moment in of_past(user, "recent_own", pairs=known):
        before = [pair for pair in known if pair.when < moment.pair.when]
        assert all(pair.conversation_id != moment.pair.conversation_id for pair in before)  # one talk a day
        assert [triple.pair for triple in moment.shown["recent_own"]] == before[::-1][:4]


def test_the_most_recent_moment_of_the_same_conversation_is_passed_over(user: SimulatedUser) -> None:
    [*_, last] = [triple.pair for triple in user.store.triples()]
    [moment] = of_past(user, "recent_own", pairs=[replace(last, when=last.when + 3600)])
    assert {triple.pair.conversation_id for triple in moment.shown["recent_own"]} == {"talk-12", "talk-11"}


def test_random_moments_are_drawn_anew_for_each_moment_and_by_the_seed(user: SimulatedUser) -> None:
    def drawn(seed: int, pairs: Sequence[Pair]) -> list[list[str]]:
        moments = Arms(user, ("random_own",), seed=seed).moments(pairs)
        return [[triple.id for triple in moment.shown["random_own"]] for moment in moments]

    pairs = held_out(user)
    first = drawn(1, pairs)
    assert first == drawn(1, pairs) != drawn(2, pairs)
    assert drawn(1, pairs[3:]) == first[3:]  # whatever else is measured: a measurement may be gone on with
    assert len({tuple(ids) for ids in first}) > 6


def test_the_other_persons_moments_are_all_theirs(user: SimulatedUser) -> None:
    with ExitStack() as stack:
        other = other_person(user, default_home() / "ann", FakeEmbedder(), stack)
        moments = Arms(user, ("other_person",), other).moments(held_out(user))
        assert all([t.pair.speaker for t in moment.shown["other_person"]] == ["Bob"] * 4 for moment in moments)


# Traces --------------------------------------------------------------------------------------------------------------


def test_all_arms_that_recall_are_shown_the_same_moments(user: SimulatedUser) -> None:
    for moment in of_past(user, "recalled_pairs", "backward", "random_of_n", "recalled_triples"):
        pairs = [triple.pair for triple in moment.shown["recalled_pairs"]]
        assert len(pairs) == 4
        assert all([triple.pair for triple in shown] == pairs for shown in moment.shown.values())
        assert [one.triple.pair for one in moment.recalled] == pairs


def test_backward_is_the_first_proposal_that_no_guard_rejected_by_its_words(user: SimulatedUser) -> None:
    for moment in of_past(user, "backward"):
        assert [triple.reasoning for triple in moment.shown["backward"]] == ["misleads somewhat"] * 4


def test_random_of_n_is_any_proposal_but_none_that_was_rejected_by_its_words(user: SimulatedUser) -> None:
    seen = {t.reasoning for moment in of_past(user, "random_of_n") for t in moment.shown["random_of_n"]}
    for seed in range(4):
        for moment in Arms(user, ("random_of_n",), seed=seed).moments(held_out(user)):
            seen |= {triple.reasoning for triple in moment.shown["random_of_n"]}
    assert seen == ALLOWED


def test_random_of_n_gives_one_memory_one_trace_whenever_it_is_recalled(user: SimulatedUser) -> None:
    by_memory: dict[str, set[str | None]] = {}
    for moment in of_past(user, "random_of_n"):
        for triple in moment.shown["random_of_n"]:
            by_memory.setdefault(triple.id, set()).add(triple.reasoning)
    assert all(len(traces) == 1 for traces in by_memory.values())


def test_a_memory_of_which_every_proposal_was_rejected_is_shown_without_a_trace(user: SimulatedUser) -> None:
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


def test_the_twins_arm_is_shown_the_chosen_traces_or_the_first_ones_if_that_was_best_for_it(user: SimulatedUser) -> None:
    assert {t.reasoning for m in of_past(user, "recalled_triples") for t in m.shown["recalled_triples"]} == {
        "is the chosen one"
    }
    user.settings = Settings(traces="backward")
    assert {t.reasoning for m in of_past(user, "recalled_triples") for t in m.shown["recalled_triples"]} == {
        "misleads somewhat"
    }


def test_trained_is_the_same_moments_with_the_traces_of_the_other_memory(user: SimulatedUser, tmp_path: Path) -> None:
    every = list(user.store.triples())
    with TripleStore(tmp_path / "trained", FakeEmbedder()) as other:
        other.add([replace(triple, reasoning=f"trained {triple.pair.conversation_id}") for triple in every[:-3]])
        moments = Arms(user, ("recalled_pairs", "trained"), trained=other).moments(held_out(user))
    unknown = {triple.id for triple in every[-3:]}
    for moment in moments:
        shown = moment.shown["trained"]
        assert [triple.pair for triple in shown] == [triple.pair for triple in moment.shown["recalled_pairs"]]
        for triple in shown:
            wanted = None if triple.id in unknown else f"trained {triple.pair.conversation_id}"
            assert triple.reasoning == wanted
    assert any(triple.id in unknown for moment in moments for triple in moment.shown["trained"])


# What there is nothing for -------------------------------------------------------------------------------------------


def test_arms_without_anything_to_show_are_left_out(user: SimulatedUser) -> None:
    assert Arms(user, ARMS).present == tuple(arm for arm in ARMS if arm not in {"other_person", "trained"})
    [moment] = Arms(user, ARMS).moments(held_out(user)[:1])
    assert set(moment.shown) == set(ARMS) - {"other_person", "trained"}


def test_without_any_trace_there_are_no_arms_of_proposals(user: SimulatedUser) -> None:
    user.store.set_traces([replace(t, reasoning=None, score=None, provenance=None) for t in user.store.triples()])
    assert not {"backward", "random_of_n", "trained"} & set(Arms(user, ARMS).present)


def test_only_arms_that_are_named_are_there(user: SimulatedUser) -> None:
    assert all(set(moment.shown) == {"recent_own", "tau2"} for moment in of_past(user, "recent_own", "tau2"))


# Peers ---------------------------------------------------------------------------------------------------------------


def test_peers_are_shown_no_past_moment(user: SimulatedUser) -> None:
    """None of what Ann did is in what a peer is told, but for the few turns that are part of her persona."""
    did = {flat(triple.pair.action) for triple in user.store.triples()} - {flat(turn) for turn in user.persona.sample_turns}
    assert len(did) > 10
    arms = Arms(user, PEERS)
    for moment in arms.moments(held_out(user)):
        assert moment.shown == {peer: [] for peer in PEERS}
        present = current_moment(moment.pair, user.settings.window)
        for peer in PEERS:
            told = arms.prompt(peer, moment).removesuffix(present)
            assert told != arms.prompt(peer, moment)
            assert all(sample in told for sample in user.persona.sample_turns)
            assert not [action for action in did if action in told]
            system = peer_messages(peer, "instruction", user.persona, replace(moment.pair, context=()), turns=6)[0][1]
            assert not [action for action in did if action in system]


def test_the_prompt_of_every_arm_ends_with_the_present_moment(user: SimulatedUser) -> None:
    arms = Arms(user, ARMS)
    pairs = [*held_out(user), *pairs_of(small_conversation(18), "Ann"), *pairs_of(other_conversation(1), "Bob")]
    for moment in arms.moments(pairs):
        present = current_moment(moment.pair, user.settings.window)
        assert all(arms.prompt(arm, moment).endswith(present) for arm in moment.shown)
        assert all(moment.pair.action not in arms.prompt(arm, moment).split("\n\n")[-1] for arm in moment.shown)
