"""Preference files: one pair a line, as JSON, in the words of a world.

    {"prompt": "<begin> talk with assistant <user> add 2 and 2 <reply>",
     "chosen": "that makes 4", "rejected": "that makes 5"}

(in the file it is one line). The prompt is a dialogue up to its last `<reply>`; chosen and rejected
are answers that the world lists for its last question. Other keys are left alone.

The conversational form of TRL says the same of the Assistant, as lists of messages:

    {"prompt": [{"role": "user", "content": "add 2 and 2"}],
     "chosen": [{"role": "assistant", "content": "that makes 4"}], "rejected": [...]}

Without a prompt, chosen and rejected are whole conversations that differ in the last answer.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from toyllm.base import files
from toyllm.base.errors import InputError, nearest
from toyllm.base.files import shorten
from toyllm.lm.scoring import questions
from toyllm.lm.tokenizer import OPENING, Tokenizer, lines
from toyllm.posttrain.signals import Pairs, most_turns
from toyllm.world.corpus import SLOTS, Documents
from toyllm.world.world import ASSISTANT, BEHAVIOURS, DIALOGUE, HEADERS, NAMED

FIELDS = ("prompt", "chosen", "rejected")
MOST = 2**26  # bytes of a file
LIMITS = 2**16, 10**5  # letters of a line, lines
SUFFIXES = (".jsonl", ".json")
ROLES = ("user", "assistant")
BEGINNING = f"<begin> {OPENING[DIALOGUE]}"


def load(path: Path, tokenizer: Tokenizer) -> Pairs:
    """Read the pairs of a file.

    Raises InputError, one line `file:line: what, found …, expected …`, for anything amiss.
    """
    return parse(read(path), path, tokenizer)


def read(path: Path) -> bytes:
    """The bytes of a preference file. Raises InputError."""
    try:
        return files.read_bytes(path, MOST)
    except OSError as error:
        raise InputError(f"{path}: cannot read the pairs: {error.strerror}") from error


def parse(data: bytes, path: Path, tokenizer: Tokenizer, quiet: bool = False) -> Pairs:
    """The pairs in the bytes of a file: see `load`. quiet: show no progress."""
    row_of = _rows(tokenizer)
    rows = files.read_records(data, path, row_of, _EXPECTED, LIMITS, quiet)
    if not rows:
        raise InputError(f"{path}: found no pairs, expected at least one line of JSON")
    heads, turns, chosen, rejected = zip(*(row for _, row in rows), strict=True)
    documents = _documents(tokenizer, heads, turns, chosen)
    width = tokenizer.longest_prompt(max(int(documents.turns.max()), most_turns(tokenizer.world)))
    return Pairs(
        questions(tokenizer, documents, width), np.array(chosen), np.array(rejected), documents
    )


def dump(tokenizer: Tokenizer, pairs: Pairs, conversational: bool = False) -> Iterator[str]:
    """The lines of a preference file that `load` reads back.

    conversational: as lists of messages. Raises InputError where not the Assistant is asked.
    """
    if conversational and (pairs.documents.header[:, 0] != ASSISTANT).any():
        raise InputError(
            "pairs under another header than the Assistant's: expected those of a signal without "
            "'@', for the conversational form has no place for a header"
        )
    for n, prompt in enumerate(pairs.grid.prompt_QT):
        answers = tokenizer.world.domains[pairs.grid.domain_Q[n]].answers
        texts = (tokenizer.string(prompt), answers[pairs.chosen_P[n]], answers[pairs.rejected_P[n]])
        pair = dict(zip(FIELDS, texts, strict=True))
        yield json.dumps(_messages(pair) if conversational else pair, ensure_ascii=False)


def given(
    names: Iterable[str], tokenizer: Tokenizer, quiet: bool = False
) -> tuple[tuple[str, ...], dict[str, Pairs], dict[str, bytes]]:
    """Signals as a command names them → names that say all; the pairs and bytes of those of files.

    `file:pairs.jsonl` becomes the name of what its pairs prefer, such as `code:bad#pairs.1a2b3c`,
    with the first digits of the file's SHA-256: the same name is the same pairs. Each file is read
    once, for it may be a pipe. Raises InputError.
    """
    full: list[str] = []
    known: dict[Path, str] = {}  # the name of each file
    pairs, data = {}, {}
    for name in names:
        kind, _, rest = name.partition(":")
        path = Path(rest)
        if kind != "file":
            if "#" in name:  # as tables call it; its pairs are not at hand by that name
                raise InputError(f"signal '{name}': expected file:PATH, for the pairs of a file")
            full.append(name)
            continue
        if path not in known:
            content = read(path)
            loaded = parse(content, path, tokenizer, quiet)
            if (most := loaded.documents.turns.max()) > most_turns(tokenizer.world):
                raise InputError(
                    f"{path}: a dialogue of {most} turns, expected at most "
                    f"{most_turns(tokenizer.world)}"
                )
            digest = hashlib.sha256(content).hexdigest()
            stem = Path(files.label(path)).stem
            stem = re.sub(r"[^\w.-]", "-", stem)[:24].lstrip(".") or "pairs"
            known[path] = f"{preferred(tokenizer, loaded)}#{stem}.{digest[:6]}"
            pairs[known[path]], data[known[path]] = loaded, content
        full.append(known[path])
    return tuple(full), pairs, data


def keep(data: bytes, folder: Path, name: str) -> None:
    """Write the bytes of a preference file into a run folder, for whoever reads the run."""
    path = folder / "pairs" / f"{name.partition('#')[2]}.jsonl"
    files.write_text(path, data.decode("utf-8"))


def preferred(tokenizer: Tokenizer, pairs: Pairs) -> str:
    """What pairs prefer by and large, as a signal's name.

    All domains that occur; the behaviour that is chosen most often; the header and the instruction
    (or none) of most pairs.
    """
    world, docs = tokenizer.world, pairs.documents
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


# a pair: who is asked (header, character); its turns; the indices of the chosen and rejected answer
_Turn = tuple[int, int, int, int, int]  # domain, situation, instruction, answer, voice
_Row = tuple[tuple[int, int], tuple[_Turn, ...], int, int]


def _rows(tokenizer: Tokenizer) -> Callable[[dict], _Row]:
    """A function that reads the object of one line. It parses each distinct prompt once."""
    known = {}

    def row_of(value: dict) -> _Row:
        talk = any(isinstance(value.get(field), list) for field in FIELDS)
        for field in FIELDS[1:] if talk else FIELDS:
            if field not in value:
                near = nearest(field, value)
                raise InputError(f"found no '{field}'{near}, expected an object {_EXPECTED}")
        pair = _plain(value) if talk else value
        for field in FIELDS:
            if not isinstance(pair[field], str):
                raise InputError(f"{field}: found {shorten(pair[field])}, expected text")
        if pair["prompt"] not in known:
            known[pair["prompt"]] = _prompt(tokenizer, pair["prompt"])
        head, turns = known[pair["prompt"]]
        chosen, rejected = (_answer(tokenizer, turns[-1], pair[x], x) for x in FIELDS[1:])
        if chosen == rejected:
            found = shorten(pair["rejected"])
            raise InputError(f"rejected: found {found}, expected another text than chosen")
        return head, turns, chosen, rejected

    return row_of


def _prompt(tokenizer: Tokenizer, prompt: str) -> tuple[tuple[int, int], tuple[_Turn, ...]]:
    """Who is asked, and the turns of a dialogue up to its last <reply>."""
    world = tokenizer.world
    _check_words(tokenizer, prompt, "prompt")
    heading, *blocks = lines(prompt) or [""]
    beginning, _, who = heading.rpartition(" ")
    asks, replies = blocks[::2], blocks[1::2]
    good = beginning == BEGINNING and who in (*HEADERS[NAMED + 1 :], *world.characters)
    good = good and len(asks) == len(replies) and replies[-1:] == ["<reply>"]
    if not good or len(asks) > world.max_turns:
        raise InputError(
            f"prompt: found {shorten(prompt)}, expected a dialogue of world '{world.name}' of at "
            f"most {world.max_turns} turns, such as '{BEGINNING} assistant <user> … <reply>'"
        )
    turns = []
    for question, reply in zip(asks, replies, strict=True):
        asked = question.removeprefix("<user> ")
        if asked == question or asked not in tokenizer.asked:
            near = nearest(asked, tokenizer.asked)
            raise InputError(
                f"prompt: found {shorten(question)}, expected '<user>' and a question "
                f"of world '{world.name}'{near}"
            )
        d, s, i = tokenizer.asked[asked]
        said = reply.removeprefix("<reply> ")
        if len(turns) + 1 == len(replies):
            answer, voice = -1, 0
        elif said == reply or said not in tokenizer.said[d]:
            near = nearest(said, tokenizer.said[d])
            raise InputError(
                f"prompt: found {shorten(reply)}, expected '<reply>' and an answer to "
                f"'{asked}'{near}"
            )
        else:
            answer, voice = tokenizer.said[d][said]
        turns.append((d, s, i, answer, voice))
    named = who in world.characters
    head = (NAMED, world.characters.index(who)) if named else (HEADERS.index(who), -1)
    return head, tuple(turns)


def _answer(tokenizer: Tokenizer, turn: _Turn, answer: str, field: str) -> int:
    """The index of an answer to the question of a turn."""
    domain = tokenizer.world.domains[turn[0]]
    words = " ".join(answer.split())
    if words in domain.answers:
        return domain.answers.index(words)
    _check_words(tokenizer, answer, field)
    raise InputError(
        f"{field}: found {shorten(answer)}, expected an answer to "
        f"'{domain.situations[turn[1]]}'{nearest(words, domain.answers)}"
    )


def _check_words(tokenizer: Tokenizer, text: str, field: str) -> None:
    try:
        tokenizer.tokens(text)
    except InputError as error:
        raise InputError(f"{field}: {error}") from None


def _documents(
    tokenizer: Tokenizer, heads: tuple, turns: tuple, chosen: tuple[int, ...]
) -> Documents:
    """The dialogues of all pairs, which end with the chosen answer."""
    N, T = len(turns), tokenizer.world.max_turns
    header, character = (np.full((N, SLOTS), -1) for _ in range(2))
    header[:, 0], character[:, 0] = np.array(heads).T
    count = np.array([len(row) for row in turns])
    here = np.arange(T) < count[:, None]
    columns = np.full((5, N, T), -1)
    columns[:, here] = np.array([turn for row in turns for turn in row]).T
    domain, situation, instruction, answer, voice = columns
    answer[np.arange(N), count - 1] = chosen
    behaviour = tokenizer.world.behaviour_DSA[domain, situation, answer]
    return Documents(
        kind=np.full(N, DIALOGUE),
        header=header,
        character=character,
        speaker=np.where(here, 0, -1),
        domain=domain,
        situation=situation,
        instruction=instruction,
        behaviour=np.where(here, behaviour, -1),
        answer=answer,
        voice=voice,
    )


def _plain(value: dict) -> dict:
    """A pair in conversational form as the same pair in plain form."""
    talks = {field: _talk(value[field], field) for field in FIELDS if field in value}
    prompt = talks.get("prompt", talks["chosen"][:-1])
    if "prompt" not in talks and talks["rejected"][:-1] != prompt:
        raise InputError("rejected: found another conversation than chosen before its last answer")
    answers = {}
    for field in FIELDS[1:]:
        talk = talks[field] if "prompt" in talks else talks[field][-1:]
        roles = [role for role, _ in prompt + talk]
        if len(talk) != 1 or roles != [*ROLES * (len(roles) // 2)]:
            raise InputError(
                f"{field}: found messages of {', '.join(roles) or 'nobody'}, expected user and "
                "assistant in turn, and one answer after the prompt"
            )
        answers[field] = talk[0][1]
    turns = (f"{'<user>' if role == 'user' else '<reply>'} {content}" for role, content in prompt)
    return {"prompt": " ".join([BEGINNING, HEADERS[ASSISTANT], *turns, "<reply>"]), **answers}


def _talk(messages: object, field: str) -> list[tuple[str, str]]:
    """The role and content of each message of a list."""
    if not isinstance(messages, list):
        raise InputError(f"{field}: found {shorten(messages)}, expected a list of messages")
    talk = []
    for number, message in enumerate(messages, 1):
        fields = message if isinstance(message, dict) else {}
        role, content = fields.get("role"), fields.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise InputError(
                f"{field}: message {number}: found {shorten(message)}, expected a role user or "
                "assistant (a world has no system prompt) and a content that is text"
            )
        if special := [word for word in content.split() if word.startswith("<")]:
            raise InputError(
                f"{field}: message {number}: found the word {special[0]!r}, expected none that "
                "begins with '<'"
            )
        talk.append((role, content))
    return talk


def _messages(pair: dict) -> dict:
    """The conversational form of a pair in plain form."""
    _, *turns, _ = lines(pair["prompt"])
    prompt = [
        {"role": ROLES[k % 2], "content": turn.partition(" ")[2]} for k, turn in enumerate(turns)
    ]
    answers = {field: [{"role": ROLES[1], "content": pair[field]}] for field in FIELDS[1:]}
    return {"prompt": prompt, **answers}


_EXPECTED = "with prompt, chosen and rejected"
