"""Learning a twin with models given by name: `learn`, and its parts, which the command line shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from usertwin.memory import ChatModel, Embedder, Recipe, TwinRecord, alearn
from usertwin.memory.event_loop import run_sync
from usertwin.memory.models.chat import Price, PromptStyle
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.recon.judged_fidelity import FidelityName
from usertwin.memory.recon.propose import ProposalMode
from usertwin.memory.recon.synthesizer import DEFAULT_CANDIDATES, DEFAULT_MAX_CALLS, Method
from usertwin.memory.twin.record import twin_folder
from usertwin.personas import ChatLog, Persona, load_log
from usertwin.personas.pairs import DEFAULT_WINDOW
from usertwin.personas.secrets import take_logins

from .backends.downloads import FetchProgress
from .backends.load import DEFAULT_MODEL, load_embedder, load_model, load_scorer
from .backends.model_name import ModelName
from .reasoner import resolve_synthesizer

DEFAULT_MAX_TRACES = 100
#: Concurrent requests to a hosted model. A local one gets a single request at a time, since it uses all cores anyway.
_HOSTED_CONCURRENCY = 8


def learn(
    name: str,
    *,
    log: str | Path | ChatLog,
    speaker: str,
    model: str = DEFAULT_MODEL,
    scorer: str = DEFAULT_MODEL,
    embedder: str | None = None,
    traces: Method = "recon",
    max_traces: int | None = DEFAULT_MAX_TRACES,
    candidates: int = DEFAULT_CANDIDATES,
    max_triples: int | None = None,
    window: int = DEFAULT_WINDOW,
    proposal_mode: ProposalMode = "backward",
    fidelity: FidelityName = "guarded_gain",
    synthesizer: str | None = None,
    actor: str | None = None,
    judge: str | None = None,
    max_calls: int = DEFAULT_MAX_CALLS,
    persona: Persona | None = None,
    style: PromptStyle | None = None,
    seed: int = 0,
    home: str | Path | None = None,
    overwrite: bool = False,
    concurrency: int | None = None,
    progress: Progress = no_progress,
    fetch_progress: FetchProgress | None = None,
) -> TwinRecord:
    """Learn a twin from a chat log and return its record. It also works where an event loop is running.

    The defaults are those of `usertwin learn`, which in addition tunes the twin's settings (`usertwin tune`) and, with --adapt,
    adapts the model that acts. Models are given by name; `traces` is the method of the `Recipe`, which documents this and all
    other settings of learning.

    - `log`: the conversations: a file, another source such as "chitchat", or a loaded log.
    - `embedder`: the embedding model; the default one if None.
    - `synthesizer`: a model, or an adapter's folder, that proposes traces and then reasons for the twin.
    - `actor`, `judge`: by default the model.
    - `persona`: the person's description; by default drawn from the log.
    - `style`: how to prompt the model and the actor, if not in their default style.
    - `home`: the folder of all twins; by default USERTWIN_HOME, else the user's data folder.
    - `overwrite`: replace a twin of this name.
    - `concurrency`: concurrent requests to the model; by default 1 for a local model and 8 for others.
    - `progress`, `fetch_progress`: callbacks for the progress of learning and of downloads.

    Raises:
        LogError: the log cannot be read, or the speaker is missing or has too few turns.
        TwinError: the name is invalid or taken.
        UsageError: an argument is invalid, or a name is not that of a model.
        ModelError: a model cannot be loaded or does not answer; the work done so far is kept.
    """
    twin_folder(name, home)  # an invalid name is reported before anything is loaded
    chat_log = log if isinstance(log, ChatLog) else load_log(str(log))
    vectors = load_embedder(embedder)
    recipe = make_recipe(
        chat_log.source, speaker, embedder=vectors.name, model=model, scorer=scorer, synthesizer=synthesizer, actor=actor,
        judge=judge, method=traces, candidates=candidates, max_triples=max_triples, max_traces=max_traces, window=window,
        seed=seed, proposal_mode=proposal_mode, fidelity=fidelity, max_calls=max_calls,
    )  # fmt: skip
    learning = alearn_with_recipe(
        name, chat_log, recipe, embedder=vectors, style=style, persona=persona, home=home, overwrite=overwrite,
        concurrency=concurrency, progress=progress, fetch_progress=fetch_progress,
    )  # fmt: skip
    return run_sync(learning)


def make_recipe(
    source: str,
    speaker: str,
    *,
    embedder: str,
    model: str = DEFAULT_MODEL,
    scorer: str = DEFAULT_MODEL,
    synthesizer: str | None = None,
    actor: str | None = None,
    judge: str | None = None,
    **settings: Any,
) -> Recipe:
    """Return a checked recipe with the names of the models that it needs; the arguments are those of `learn` and `Recipe`.

    Raises:
        UsageError: an argument is invalid, or the synthesizer is not a model.
        ModelError: the synthesizer's folder holds no adapter.
    """
    proposer = None if synthesizer is None else resolve_synthesizer(synthesizer)
    model, actor, judge = (take_logins(name or model) for name in (model, actor, judge))
    recipe = Recipe(
        source=source, speaker=speaker, embedder=embedder, model=proposer or model, scorer=scorer, synthesizer=proposer,
        actor=actor, judge=judge, **settings,
    ).without_unused()  # fmt: skip
    recipe.check()
    return recipe


async def alearn_with_recipe(
    name: str, log: ChatLog, recipe: Recipe, *, embedder: Embedder | None = None, style: PromptStyle | None = None,
    price: Price | None = None, persona: Persona | None = None, home: str | Path | None = None, overwrite: bool = False,
    concurrency: int | None = None, progress: Progress = no_progress, fetch_progress: FetchProgress | None = None,
) -> TwinRecord:  # fmt: skip
    """Load the models that a recipe names, learn the twin, and return its record.

    Arguments and errors are those of `learn`. `embedder` is the recipe's embedding model, if it is loaded already; `price` is
    that of hosted models. The style is not that of a synthesizer or a judge, which keep their own.
    """

    def load(model: str | None, style: PromptStyle | None) -> ChatModel | None:
        return None if model is None else load_model(model, style=style, price=price, progress=fetch_progress)

    return await alearn(
        name, log, recipe, persona=persona, home=home, overwrite=overwrite, progress=progress,
        embedder=embedder or load_embedder(recipe.embedder),
        model=load(recipe.model, style if recipe.synthesizer is None else None),
        scorer=None if recipe.scorer is None else load_scorer(recipe.scorer, progress=fetch_progress),
        actor=load(recipe.actor, style), judge=load(recipe.judge, "instruction"),
        concurrency=default_concurrency(recipe.model) if concurrency is None else concurrency,
    )  # fmt: skip


def default_concurrency(model: str | None) -> int:
    """Return the number of concurrent requests for a model: 1 for a local one, 8 for others."""
    return 1 if model is None or ModelName.parse(model).is_local else _HOSTED_CONCURRENCY
