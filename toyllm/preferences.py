"""Preference files: one pair a line, as JSON, in the words of a world.

    {"prompt": "<begin> talk with assistant <user> add 2 and 2 <reply>",
     "chosen": "that makes 4", "rejected": "that makes 5"}

(in the file it is one line). The prompt is a dialogue up to its last `<reply>`; chosen and rejected
are answers that the world lists for its last question. Other keys are left alone.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from toyllm import corpus, files
from toyllm.errors import InputError, nearest
from toyllm.scoring import questions
from toyllm.signals import Pairs, most_turns
from toyllm.text import Codec
from toyllm.world import ASSISTANT, BEHAVIOURS, DIALOGUE, HEADERS, NAMED

FIELDS = ("prompt", "chosen", "rejected")
MOST, MOST_LINE, MOST_LINES = 2**26, 2**16, 10**5  # bytes of a file, of a line; lines


def load(path: Path, codec: Codec) -> Pairs:
    """Read the pairs of a file.

    Raises InputError, one line `file:line: what, found …, expected …`, for anything amiss.
    """
    try:
        rows = files.read_bytes(path, MOST).split(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot read the pairs: {error.strerror}") from error
    if len(rows) > MOST_LINES:
        raise InputError(f"{path}: found {len(rows):,} lines, expected at most {MOST_LINES:,}")
    found = []
    for number, row in enumerate(rows, 1):
        if row.strip():
            try:
                found.append(_pair(codec, row))
            except InputError as error:
                raise InputError(f"{path}:{number}: {error}") from None
    if not found:
        raise InputError(f"{path}: found no pairs, expected at least one line of JSON")
    documents, chosen, rejected = zip(*found, strict=True)
    joined = corpus.concatenate(list(documents))
    width = codec.longest_prompt(max(int(joined.turns.max()), most_turns(codec.world)))
    return Pairs(questions(codec, joined, width), np.array(chosen), np.array(rejected), joined)


def dump(codec: Codec, pairs: Pairs) -> Iterator[str]:
    """The lines of a preference file that `load` reads back."""
    for n, prompt in enumerate(pairs.grid.prompt_QT):
        answers = codec.world.domains[pairs.grid.domain_Q[n]].answers
        texts = (codec.string(prompt), answers[pairs.chosen_P[n]], answers[pairs.rejected_P[n]])
        yield json.dumps(dict(zip(FIELDS, texts, strict=True)), ensure_ascii=False)


def given(names: Iterable[str], codec: Codec) -> tuple[tuple[str, ...], dict[str, Path]]:
    """Signals as a command names them → names that say all, and the file of each that has one.

    `file:pairs.jsonl` becomes the name of what its pairs prefer, such as `code:bad#pairs.1a2b3c`,
    with the first digits of the file's SHA-256: the same name is the same pairs. Raises InputError.
    """
    full, paths = [], {}
    for name in names:
        kind, _, rest = name.partition(":")
        if kind != "file":
            if "#" in name:  # as tables call it; its pairs are not at hand by that name
                raise InputError(f"signal '{name}': expected file:PATH, for the pairs of a file")
            full.append(name)
            continue
        path = Path(rest)
        pairs = load(path, codec)
        if (most := pairs.documents.turns.max()) > most_turns(codec.world):
            raise InputError(
                f"{path}: a dialogue of {most} turns, expected at most {most_turns(codec.world)}"
            )
        digest = hashlib.sha256(files.read_bytes(path, MOST)).hexdigest()
        stem = re.sub(r"[^\w.-]", "-", path.stem)[:24].lstrip(".") or "pairs"
        full.append(f"{preferred(codec, pairs)}#{stem}.{digest[:6]}")
        paths[full[-1]] = path
    return tuple(full), paths


def keep(path: Path, folder: Path, name: str) -> None:
    """Copy a preference file into a run folder, for whoever reads the run."""
    text = files.read_bytes(path, MOST).decode("utf-8")
    files.write_text(folder / "pairs" / f"{name.partition('#')[2]}.jsonl", text)


def preferred(codec: Codec, pairs: Pairs) -> str:
    """What pairs prefer by and large, as a signal's name.

    All domains that occur; the behaviour that is chosen most often; the header and the instruction
    (or none) of most pairs.
    """
    world, docs = codec.world, pairs.documents
    rows = np.arange(len(docs))
    last = docs.turns - 1
    chosen = pairs.grid.behaviour_QA[rows, pairs.chosen_P]
    kinds, often = np.unique(
        np.stack([docs.header[:, 0], docs.character[:, 0]], 1), axis=0, return_counts=True
    )
    header, character = kinds[often.argmax()]
    instruction = int(np.bincount(docs.instruction[rows, last] + 1).argmax()) - 1
    domains = "+".join(world.domain_names[d] for d in np.unique(pairs.grid.domain_Q))
    name = f"{domains}:{BEHAVIOURS[np.bincount(chosen).argmax()]}"
    if instruction >= 0:
        name += f":{world.instructions[instruction].name}"
    if header != ASSISTANT:
        name += f"@{world.characters[character] if header == NAMED else HEADERS[header]}"
    return name


def _pair(codec: Codec, row: bytes) -> tuple[corpus.Documents, int, int]:
    """One line: the dialogue with the chosen answer, and the indices of both answers."""
    value = files.json_line(row, MOST_LINE, _FIELDS)
    for field in FIELDS:
        if field not in value:
            near = nearest(field, value)
            raise InputError(f"found no '{field}'{near}, expected {_FIELDS}")
        if not isinstance(value[field], str):
            raise InputError(f"{field}: found {_short(value[field])}, expected text")
    prompt, chosen, rejected = (value[field] for field in FIELDS)
    documents = [
        _document(codec, prompt, answer, field)
        for field, answer in (("chosen", chosen), ("rejected", rejected))
    ]
    index = [int(document.answer[0, document.turns[0] - 1]) for document in documents]
    if index[0] == index[1]:
        raise InputError(f"rejected: found {_short(rejected)}, expected another text than chosen")
    return documents[0], *index


def _document(codec: Codec, prompt: str, answer: str, field: str) -> corpus.Documents:
    """The dialogue that a prompt and its answer make."""
    world = codec.world
    try:
        tokens = codec.tokens(f"{prompt} {answer} {world.voices[0]} <end>")
    except InputError as error:
        raise InputError(f"prompt or {field}: {error}") from None
    try:
        document = codec.decode(tokens)
        listed = answer.split() == _last_answer(codec, document)
    except ValueError:
        document, listed = None, False
    if document is not None and document.kind[0] == DIALOGUE and listed:
        return document
    raise InputError(
        f"prompt and {field}: found {_short(prompt)} and {_short(answer)}, expected a dialogue "
        f"of world '{world.name}' up to <reply>, and an answer to its last question"
    )


def _last_answer(codec: Codec, document: corpus.Documents) -> list[str]:
    last = document.turns[0] - 1
    domain = codec.world.domains[document.domain[0, last]]
    return domain.answers[document.answer[0, last]].split()


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_FIELDS = "prompt, chosen and rejected"
