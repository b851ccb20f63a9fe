"""Importer of ConvoKit corpora: a folder or zip with utterances.jsonl (or .json), as `Corpus.dump` writes it.

Source: https://convokit.cornell.edu/documentation/data_format.html; earlier versions write "user" and "root" for "speaker" and
"conversation_id".
"""

from __future__ import annotations

from collections.abc import Iterator

from usertwin.personas.conversation import Turn

from ..records import records
from ..source import Source
from ..thread import DAMAGED, Tally, Thread, as_object, as_text, time_of


def _files(source: Source) -> list[str]:
    named = [name for name in source.names if name.rsplit("/", 1)[-1].startswith("utterances.json")]
    return named or (list(source.names) if len(source.names) == 1 else [])


def recognises(source: Source) -> bool:
    """Return whether the first utterance has the keys of ConvoKit."""
    files = _files(source)
    keys = source.only(files[0]).keys if files else frozenset[str]()
    return "text" in keys and bool({"reply-to", "reply_to"} & keys) and bool({"speaker", "user"} & keys)


def read(source: Source, tally: Tally) -> Iterator[Thread]:
    """Yield the conversations, in the order of their first utterances."""
    for name in _files(source):
        threads: dict[str, list[Turn]] = {}
        for _, record in records(source, name, tally):
            speaker = record.get("speaker", record.get("user"))
            speaker = as_text(as_object(speaker).get("id")) or as_text(speaker)
            key = as_text(record.get("conversation_id")) or as_text(record.get("root")) or as_text(record.get("id"))
            text = record.get("text")
            if not speaker or not isinstance(text, str):
                tally.drop(DAMAGED, f"{source.place(name)}: an utterance without {'a text' if speaker else 'a speaker'}")
                continue
            role = as_text(as_object(record.get("meta")).get("role")) or "participant"
            threads.setdefault(key, []).append(Turn(speaker, role, text, time=time_of(record.get("timestamp"))))
        for key, turns in threads.items():
            yield Thread(turns=turns, name=key or None, whole=True)
