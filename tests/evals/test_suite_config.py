"""Tests of evals/suites/config.py: valid suite files are read, and an error is one sentence with the file and the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invented_suite import suite_file, talk, write_log

from usertwin.evals.arm_names import ARMS, DEFAULT_ARMS, PEERS, POOLED_ARMS, QUOTING_ARMS
from usertwin.evals.suites.config import Corpus, Suite, logs_of, people_of, read_suite
from usertwin.evals.suites.people import registry
from usertwin.personas import LogError, UsageError, read_conversations
from usertwin.personas.importers.chitchat import CHITCHAT

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MINIMAL = '[[corpora]]\nname = "casual"\nfrom = "chitchat"\n'


def read(folder: Path, text: str) -> Suite:
    (folder / "s.toml").write_text(text, "utf-8")
    return read_suite(folder / "s.toml")


def refused(folder: Path, text: str) -> str:
    """Return the error message of a suite, which is one line, without the file name at its start."""
    with pytest.raises(UsageError) as error:
        read(folder, text)
    message = str(error.value)
    assert message.startswith(f"{folder / 's.toml'}: ")
    assert "\n" not in message
    assert "pydantic" not in message
    return message.removeprefix(f"{folder / 's.toml'}: ")


# Valid files ----------------------------------------------------------------------------------------------------------


def test_a_minimal_suite_has_the_default_arms(tmp_path: Path) -> None:
    suite = read(tmp_path, MINIMAL)
    assert (suite.arms, suite.turns, suite.k, suite.window) == (DEFAULT_ARMS, 100, None, None)
    assert suite.corpora == (Corpus.model_validate({"name": "casual", "from": CHITCHAT, "people": 2}),)
    assert suite.models.judge is None


def test_arms_are_in_the_order_of_reports(tmp_path: Path) -> None:
    suite = read(tmp_path, 'arms = ["persona", "recalled_pairs", "no_memory", "persona"]\n' + MINIMAL)
    assert suite.arms == ("no_memory", "recalled_pairs", "persona")


def test_paths_of_corpora_and_models_are_relative_to_the_file(tmp_path: Path) -> None:
    text = """
        [models]
        action = "scripted:replies.txt"
        judge = "local:models/big.gguf"
        scorer = "transformers:../weights"
        trained = "local:small"
        proposer = "openai:NAME@http://127.0.0.1/v1"
        [transfer]
        proposers = ["local", "scripted:x/y.txt"]
        scorers = ["fake:"]
        [[corpora]]
        name = "court"
        from = "oyez:court"
        [[corpora]]
        name = "desk"
        from = "logs/desk.jsonl.gz"
        [[corpora]]
        name = "casual"
        from = "chitchat"
    """
    suite = read(tmp_path, text)
    models = suite.models
    assert [corpus.source for corpus in suite.corpora] == [
        f"oyez:{tmp_path / 'court'}",
        f"{tmp_path / 'logs/desk.jsonl.gz'}",
        CHITCHAT,
    ]
    assert (models.action, models.judge) == (f"scripted:{tmp_path / 'replies.txt'}", f"local:{tmp_path / 'models/big.gguf'}")
    assert (models.scorer, models.trained) == (f"transformers:{tmp_path.parent / 'weights'}", "local:small")
    assert models.proposer == "openai:NAME@http://127.0.0.1/v1"
    assert suite.transfer is not None
    assert (suite.transfer.proposers, suite.transfer.scorers) == (("local", f"scripted:{tmp_path / 'x/y.txt'}"), ("fake:",))


def test_absolute_paths_are_unchanged(tmp_path: Path) -> None:
    suite = read(
        tmp_path, f'[models]\naction = "scripted:{tmp_path}/a.txt"\n[[corpora]]\nname = "a"\nfrom = "{tmp_path}/l.jsonl"\n'
    )
    assert (suite.models.action, suite.corpora[0].source) == (f"scripted:{tmp_path}/a.txt", f"{tmp_path}/l.jsonl")


@given(st.permutations(ARMS), st.integers(1, len(ARMS)), st.integers(0, 10_000), st.integers(1, 9))
def test_any_arms_and_numbers_are_read_back(tmp_path_factory: Any, arms: list[str], count: int, turns: int, k: int) -> None:
    folder = tmp_path_factory.getbasetemp()
    suite = read(folder, f"arms = {json.dumps(arms[:count])}\nturns = {turns}\nk = {k}\nwindow = {k}\n{MINIMAL}")
    assert set(suite.arms) == set(arms[:count])
    assert (suite.turns, suite.k, suite.window) == (turns, k, k)


@pytest.mark.parametrize(
    ("question", "contrasts"),
    [
        ("", ()),
        ('question = "recon - no_memory"', ("recon - no_memory",)),
        ('question = ["recon - recalled_pairs", "recon - no_memory"]', ("recon - recalled_pairs", "recon - no_memory")),
        ('question = ["recalled_triples - no_memory", " recon - no_memory "]', ("recon - no_memory",)),
    ],
)
def test_a_question_is_one_contrast_or_several(tmp_path: Path, question: str, contrasts: tuple[str, ...]) -> None:
    suite = read(tmp_path, f"{question}\n{MINIMAL}")
    assert suite.question == contrasts
    assert Suite.model_validate(suite.model_dump(mode="json", by_alias=True)) == suite


# Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("turn = 3\n" + MINIMAL, 'turn: there is no such key; did you mean "turns"?'),
        (MINIMAL + "\n[models]\nacton = 'local'\n", 'models.acton: there is no such key; did you mean "action"?'),
        (MINIMAL + "peple = 2\n", 'corpora[0].peple: there is no such key; did you mean "people"?'),
        (MINIMAL + MINIMAL.replace("casual", "b") + "rule = 1\n", 'corpora[1].rule: there is no such key; did you mean'),
        ("zzz = 1\n" + MINIMAL, "zzz: there is no such key; use name, arms, twin, question, turns, "),
        ("traces = { pair = 3 }\n" + MINIMAL, 'traces.pair: there is no such key; did you mean "pairs"?'),
        ("models.sorer = 'local'\n" + MINIMAL, 'models.sorer: there is no such key; did you mean "scorer"?'),
        ('arms = ["tau"]\n' + MINIMAL, f'arms: there is no arm "tau"; there are {", ".join(ARMS)}'),
        ("arms = []\n" + MINIMAL, "arms: no arm is named; there are "),
        ('question = "recon"\n' + MINIMAL, 'question: "recon" is no contrast; write two arms as "A - B"'),
        ('question = "recon - recon"\n' + MINIMAL, 'question: "recon - recon" is no contrast; write two arms as "A - B"'),
        (
            'question = ["recon - tau2"]\n' + MINIMAL,
            'question: "recon - tau2" names "tau2", which is not measured; add it to arms, or ask about another',
        ),
        (
            'question = "recon - medoid"\narms = ["recon", "medoid"]\n' + MINIMAL,
            'question: "recon - medoid": "medoid" has replies alone, and no bits per character; ask about other arms',
        ),
        ('question = "recon - me"\narms = ["recon", "me = a:b"]\n' + MINIMAL, 'question: "recon - me": "me" has replies alone'),
        ('question = "recon - no_memory"\narms = ["tau"]\n' + MINIMAL, 'arms: there is no arm "tau"'),
        ('twin = "tau2"\narms = ["tau2", "recon"]\n' + MINIMAL, 'twin: "tau2" cannot be the twin; name one of'),
        ('twin = "recon+words"\n' + MINIMAL, 'twin: "recon+words" cannot be the twin'),
        ('reply_arms = ["recon"]\n' + MINIMAL, "reply_arms: the twin's replies are compared with the others'; set twin"),
        (
            'question = "recon+reranked - recon"\narms = ["recon", "recon+reranked"]\n' + MINIMAL,
            'question: "recon+reranked - recon": the best of several replies has the same bits per character',
        ),
        ('reply_arms = ["medoid"]\n' + MINIMAL, 'reply_arms: "medoid" is not measured; add it to arms, or leave it out'),
        ('arms = ["verbatim+reranked"]\n' + MINIMAL, 'arms: there is no arm "verbatim+reranked"'),
        ('arms = ["recon+reranked+words"]\n' + MINIMAL, 'arms: there is no arm "recon+reranked+words"'),
        ("question = 3\n" + MINIMAL, "question: Input should be a valid array, not 3"),
        ("name = 'nobody'\n", "there are no people to measure; add [[corpora]] or twins"),
        ("twins = []\n", "there are no people to measure; add [[corpora]] or twins"),
        ("# first\nk = 8\n" + MINIMAL, '"k" and "window" must be set together'),
        ("window = 8\n" + MINIMAL, '"k" and "window" must be set together'),
        ('turns = "many"\n' + MINIMAL, "turns: Input should be a valid integer, not 'many'"),
        ("turns = true\n" + MINIMAL, "turns: Input should be a valid integer, not True"),
        ("turns = 2.5\n" + MINIMAL, "turns: Input should be a valid integer, not 2.5"),
        ("\nreplies = -1\n" + MINIMAL, "replies: Input should be greater than or equal to 0, not -1"),
        ("samples = 0\n" + MINIMAL, "samples: Input should be greater than or equal to 1, not 0"),
        ("seed = 2024-01-01\n" + MINIMAL, "seed: Input should be a valid integer, not '2024-01-01'"),
        ("arms = 'all'\n" + MINIMAL, "arms: Input should be a valid array, not 'all'"),
        ("arms = [3]\n" + MINIMAL, "arms[0]: Input should be a valid string, not 3"),
        (MINIMAL + "people = []\n", "corpora[0].people: name at least one person, or give a number of people"),
        (MINIMAL + "people = 0\n", "corpora[0].people: name at least one person, or give a number of people"),
        (MINIMAL + "people = ['Ann', 'Bob', 'Ann']\n", 'corpora[0].people: "Ann" is named twice'),
        (
            MINIMAL + "people = 'Ann'\n",
            "corpora[0].people: Input should be a number of people, a list of names, \"development\" or \"test\", not 'Ann'",
        ),
        (MINIMAL + "people = ['Ann', 3]\n", "corpora[0].people: Input should be a number of people, a list of names, "),
        (MINIMAL + MINIMAL, 'two corpora have the name "casual"; give each corpus another name'),
        ("[[corpora]]\nname = 'x'\n", "corpora[0].from: Field required"),
        (MINIMAL + "[[corpora]]\nfrom = 'x'\n", "corpora[1].name: Field required"),
        ("corpora = 3\n", "corpora: Input should be a valid array, not 3"),
        ("corpora = ['chitchat']\n", "corpora[0]: Input should be an object, not 'chitchat'"),
        ("models = 'local'\n" + MINIMAL, "models: Input should be an object, not 'local'"),
        ("models.style = 'x'\n" + MINIMAL, "models.style: Input should be 'transcript' or 'instruction', not 'x'"),
        ("models.judge = 'gpt-9'\n" + MINIMAL, 'models.judge: "gpt-9" is not a chat model; use "local"'),
        ("models.scorer = 'locl'\n" + MINIMAL, 'models.scorer: "locl" cannot score texts; use "local"'),
        (MINIMAL + "[transfer]\nproposers = []\nscorers = ['fake:']\n", "transfer.proposers: name at least one model"),
        (MINIMAL + "[transfer]\nproposers = ['local']\n", "transfer.scorers: Field required"),
        (MINIMAL + "[transfer]\nproposers = ['local', 'x']\nscorers = ['fake:']\n", 'transfer.proposers[1]: "x" is not a chat'),
        (MINIMAL + "[settling]\nsteps = 3\n", "[settling] is now called [user_models]; rename the table, and its key batch"),
        ("turns = \n" + MINIMAL, "it is not TOML (Invalid value (at line 1, column 9)"),
        (MINIMAL + "[[corpora]\n", "it is not TOML (Expected ']]' at the end of an array declaration (at line 4, column 10)"),
        ("turns = 3\nturns = 4\n", "it is not TOML (Cannot overwrite a value (at line 2, column 10)"),
    ],
)  # fmt: skip
def test_an_error_is_one_sentence_with_the_key(tmp_path: Path, text: str, message: str) -> None:
    assert refused(tmp_path, text).startswith(message)


def test_names_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    old = 'arms = ["recalled_triples", "no_memory"]\ntraces = { moments = 7, fidelity = "novel" }\n'
    suite = read(tmp_path, old + MINIMAL)
    assert suite.arms == ("no_memory", "recon")
    assert (suite.traces.pairs, suite.traces.fidelity) == (7, "guarded_gain")
    assert suite == read(tmp_path, old.replace("moments", "pairs").replace("novel", "guarded_gain") + MINIMAL)


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.toml: no such file"):
        read_suite(tmp_path / "nowhere.toml")
    with pytest.raises(UsageError, match=r"cannot be read \(is a directory\)"):
        read_suite(tmp_path)
    (tmp_path / "s.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(UsageError, match=r"s\.toml: it is not UTF-8 text \(byte 8\)"):
        read_suite(tmp_path / "s.toml")


@given(
    st.dictionaries(
        st.sampled_from([*Suite.model_fields, "other"]), st.sampled_from([0, -1, "", "x", [], ["x"], {}, {"a": 1}, True, 1.5])
    )
)
def test_any_file_is_read_or_refused_with_one_sentence(tmp_path_factory: Any, data: dict[str, Any]) -> None:
    def toml(value: object) -> str:
        return "{ a = 1 }" if value == {"a": 1} and isinstance(value, dict) else json.dumps(value)

    folder = tmp_path_factory.getbasetemp()
    text = "".join(f"{key} = {toml(value)}\n" for key, value in data.items())
    try:
        read(folder, text)
    except UsageError as error:
        assert str(error).startswith(str(folder / "s.toml"))  # noqa: PT017 - both outcomes are valid
        assert "\n" not in str(error)  # noqa: PT017 - likewise


# People -----------------------------------------------------------------------------------------------------------


def corpus(**changes: Any) -> Corpus:
    return Corpus.model_validate({"name": "shop", "from": "log.jsonl"} | changes)


def test_an_unknown_person_is_named_with_the_most_frequent_speakers(tmp_path: Path) -> None:
    log = read_conversations(write_log(tmp_path / "log.jsonl", "Ann", "Bob"))
    with pytest.raises(
        LogError,
        match=r'log\.jsonl: no turns by "Eve"; name a speaker with --speaker \(most frequent: "desk" \(108\), "Ann" \(54\)',
    ):
        people_of(corpus(people=("Ann", "Eve")), log, 6)


def test_the_most_frequent_speakers_of_a_role_are_taken_if_they_have_enough_turns(tmp_path: Path) -> None:
    log = read_conversations(write_log(tmp_path / "log.jsonl", "Ann", "Bob", more=[talk("Cid", 0, turns=90)]))
    assert people_of(corpus(people=2, role="user"), log, 6) == ["Ann", "Bob"]
    assert people_of(corpus(people=1), log, 6) == ["desk"]
    with pytest.raises(LogError, match=r'log\.jsonl: only 2 people have enough turns to learn, and corpus "shop" asks for 3'):
        people_of(corpus(people=3, role="user"), log, 6)
    with pytest.raises(LogError, match=r'"Cid" has 90 turns in 1 conversations; a twin needs at least'):
        people_of(corpus(people=("Cid",)), log, 6)


def test_a_missing_corpus_is_named(tmp_path: Path) -> None:
    suite = read_suite(suite_file(tmp_path, ("log.jsonl", "nowhere.jsonl")))
    with pytest.raises(LogError, match=r"nowhere\.jsonl"):
        logs_of(suite)


# Example suites ------------------------------------------------------------------------------------------


def test_the_suite_of_the_paper_has_four_domains_eight_people_traces_and_all_peers() -> None:
    suite = read_suite(EXAMPLES / "suite_four_domains.toml")
    assert len(suite.corpora) == 4
    assert [corpus.people for corpus in suite.corpora] == [2] * 4
    assert {corpus.source.partition(":")[0] for corpus in suite.corpora} >= {"oyez", CHITCHAT}
    assert set(suite.arms) >= {
        "no_memory",
        "recalled_pairs",
        "backward",
        "random_of_n",
        "recon",
        "openevals",
        "tau2",
        "persona",
    }
    assert suite.turns >= 100


def test_the_suite_of_all_arms_measures_registered_test_people_with_fixed_settings() -> None:
    suite = read_suite(EXAMPLES / "suite_all_arms.toml")
    assert len(suite.arms) == 19
    assert suite.twin == "recalled_pairs+words+reranked"
    assert set(suite.reply_arms or ()) < set(suite.arms)
    assert set(suite.arms) > {*PEERS, *POOLED_ARMS, *QUOTING_ARMS}
    assert (suite.k, suite.window) == (8, 6)
    corpora = [registry().corpus_of(corpus.source) for corpus in suite.corpora]
    assert sorted(map(str, corpora)) == sorted(registry().corpora)
    assert {corpus.people for corpus in suite.corpora} == {"test"}
    people = sum(len(registry().corpora[str(registry().corpus_of(c.source))].test[: c.most]) for c in suite.corpora)
    assert people == 31


def test_the_small_suite_needs_only_the_built_in_chats_and_its_script() -> None:
    suite = read_suite(EXAMPLES / "suite_small.toml")
    assert [corpus.source for corpus in suite.corpora] == [CHITCHAT]
    assert suite.models.action == f"scripted:{EXAMPLES / 'suite_small_replies.txt'}"
    assert (suite.models.scorer, suite.models.embedder) == ("fake:", "fake:256")
    for model in (suite.models.action, suite.models.judge):
        assert model is not None
        assert Path(model.removeprefix("scripted:")).is_file()
