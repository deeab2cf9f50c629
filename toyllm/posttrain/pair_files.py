"""Files of preference pairs: JSONL, one pair a line, in the words of a world.

    {"prompt": "<begin> talk with assistant <user> add 2 and 2 <reply>",
     "chosen": "that makes 4", "rejected": "that makes 5"}

(here broken for its length). The prompt is a dialogue up to its last `<reply>`; chosen and rejected
are answers that the world lists for its last question. Other keys are ignored.

The same pair in the conversational form of TRL, which is always about the Assistant:

    {"prompt": [{"role": "user", "content": "add 2 and 2"}],
     "chosen": [{"role": "assistant", "content": "that makes 4"}], "rejected": [...]}

Without a prompt, chosen and rejected are whole conversations that differ in the last answer.
"""

import functools
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
from toyllm.world import corpus
from toyllm.world.world import ASSISTANT, BEHAVIOURS, DIALOGUE, HEADERS, NAMED

FIELDS = ("prompt", "chosen", "rejected")
EXPECTED = "with prompt, chosen and rejected"
# upper bounds for untrusted files
MAX_BYTES = 2**26
LIMITS = 2**16, 10**5  # letters of a line, lines
SUFFIXES = (".jsonl", ".json")
ROLES = ("user", "assistant")
BEGINNING = f"<begin> {OPENING[DIALOGUE]}"


def load(path: Path, tokenizer: Tokenizer) -> Pairs:
    """Read the pairs of a file.

    Raises InputError, one line `file:line: what, found …, expected …`, for the first fault.
    """
    return parse(files.read_input(path, MAX_BYTES, "the pairs"), path, tokenizer)


def parse(data: bytes, path: Path, tokenizer: Tokenizer, quiet: bool = False) -> Pairs:
    """The pairs in the bytes of a file: see `load`. quiet: show no progress."""
    records = files.read_records(data, path, _row_parser(tokenizer), EXPECTED, LIMITS, quiet)
    if not records:
        raise InputError(f"{path}: found no pairs, expected at least one line of JSON")
    heads, turns, chosen, rejected = zip(*(row for _, row in records), strict=True)
    documents = corpus.spoken(tokenizer.world, heads, turns)
    width = tokenizer.longest_prompt(max(int(documents.turns.max()), most_turns(tokenizer.world)))
    return Pairs(
        questions(tokenizer, documents, width), np.array(chosen), np.array(rejected), documents
    )


def dump(tokenizer: Tokenizer, pairs: Pairs, conversational: bool = False) -> Iterator[str]:
    """The lines of a preference file that `load` reads back.

    conversational: as lists of messages. Raises InputError for pairs of another header than the
    Assistant's.
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
    """Signals as a command names them → their full names; the pairs, and the bytes, of files.

    `file:pairs.jsonl` becomes the name of what its pairs prefer, such as `code:bad#pairs.1a2b3c`,
    with the first digits of the file's SHA-256, so that equal names mean equal pairs. Each file is
    read once, since it may be a pipe. Raises InputError.
    """
    full: list[str] = []
    full_name: dict[Path, str] = {}
    pairs, data = {}, {}
    for name in names:
        kind, _, rest = name.partition(":")
        path = Path(rest)
        if kind != "file":
            if "#" in name:  # a full name, as tables show it: it does not say where the file is
                raise InputError(f"signal '{name}': expected file:PATH, for the pairs of a file")
            full.append(name)
            continue
        if path not in full_name:
            content = files.read_input(path, MAX_BYTES, "the pairs")
            loaded = parse(content, path, tokenizer, quiet)
            check_turns(loaded, path, tokenizer)
            # six digits tell apart the few files of a run, and keep the signal's name short
            digest = hashlib.sha256(content).hexdigest()[:6]
            stem = re.sub(r"[^\w.-]", "-", Path(files.label(path)).stem)[:24].lstrip(".") or "pairs"
            name = full_name[path] = f"{preferred(tokenizer, loaded)}#{stem}.{digest}"
            pairs[name], data[name] = loaded, content
        full.append(full_name[path])
    return tuple(full), pairs, data


def check_turns(pairs: Pairs, path: Path, tokenizer: Tokenizer) -> None:
    """Raise InputError where a dialogue is longer than what models are trained on."""
    max_turns, turns = most_turns(tokenizer.world), pairs.documents.turns.max()
    if turns > max_turns:
        raise InputError(f"{path}: a dialogue of {turns} turns, expected at most {max_turns}")


def preferred(tokenizer: Tokenizer, pairs: Pairs) -> str:
    """The signal's name that describes most of some pairs.

    It has all domains that occur, the behaviour that is chosen most often, and the header and
    instruction (or none) of most pairs.
    """
    world, docs = tokenizer.world, pairs.documents
    rows = np.arange(len(docs))
    chosen = pairs.grid.behaviour_QA[rows, pairs.chosen_P]
    who = np.stack([docs.header[:, 0], docs.character[:, 0]], 1)
    kinds, counts = np.unique(who, axis=0, return_counts=True)
    header, character = kinds[counts.argmax()]
    instruction = int(np.bincount(docs.instruction[rows, docs.turns - 1] + 1).argmax()) - 1
    domains = "+".join(world.domain_names[d] for d in np.unique(pairs.grid.domain_Q))
    name = f"{domains}:{BEHAVIOURS[np.bincount(chosen).argmax()]}"
    if instruction >= 0:
        name += f":{world.instructions[instruction].name}"
    if header != ASSISTANT:
        name += f"@{world.characters[character] if header == NAMED else HEADERS[header]}"
    return name


_Turn = tuple[int, int, int, int, int]  # domain, situation, instruction, answer, voice
_Prompt = tuple[tuple[int, int], tuple[_Turn, ...]]  # who is asked (header, character); the turns


def _row_parser(tokenizer: Tokenizer) -> Callable[[dict], tuple]:
    """A function: an object → who is asked, turns with the chosen answer, chosen and rejected."""
    # files repeat prompts, and parsing one takes most of the time
    parse_prompt = functools.cache(functools.partial(_prompt, tokenizer))

    def row_of(value: dict) -> tuple:
        conversational = any(isinstance(value.get(field), list) for field in FIELDS)
        for field in FIELDS[1:] if conversational else FIELDS:
            if field not in value:
                near = nearest(field, value)
                raise InputError(f"found no '{field}'{near}, expected an object {EXPECTED}")
        pair = _plain(value) if conversational else value
        for field in FIELDS:
            if not isinstance(pair[field], str):
                raise InputError(f"{field}: found {shorten(pair[field])}, expected text")
        who, turns = parse_prompt(pair["prompt"])
        chosen, rejected = (_answer(tokenizer, turns[-1], pair[x], x) for x in FIELDS[1:])
        if chosen == rejected:
            value = shorten(pair["rejected"])
            raise InputError(f"rejected: found {value}, expected another text than chosen")
        *earlier, (*question, _, voice) = turns
        return who, (*earlier, (*question, chosen, voice)), chosen, rejected

    return row_of


def _prompt(tokenizer: Tokenizer, prompt: str) -> _Prompt:
    """Parse a dialogue up to its last <reply>."""
    world = tokenizer.world
    _check_words(tokenizer, prompt, "prompt")
    heading, *blocks = lines(prompt) or [""]
    beginning, _, who = heading.rpartition(" ")
    asks, replies = blocks[::2], blocks[1::2]
    valid = beginning == BEGINNING and who in (*HEADERS[NAMED + 1 :], *world.characters)
    valid = valid and len(asks) == len(replies) and replies[-1:] == ["<reply>"]
    if not valid or len(asks) > world.max_turns:
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
        if len(turns) + 1 == len(replies):  # the answer that is left open
            turns.append((d, s, i, -1, 0))
            break
        answers, answer = tokenizer.replies[d], reply.removeprefix("<reply> ")
        if answer == reply or answer not in answers:
            raise InputError(
                f"prompt: found {shorten(reply)}, expected '<reply>' and an answer to "
                f"'{asked}'{nearest(answer, answers)}"
            )
        turns.append((d, s, i, *answers[answer]))
    if who in world.characters:
        return (NAMED, world.characters.index(who)), tuple(turns)
    return (HEADERS.index(who), -1), tuple(turns)


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


def _plain(value: dict) -> dict:
    """A pair in conversational form as the same pair in plain form."""
    parts = {field: _checked_messages(value[field], field) for field in FIELDS if field in value}
    if "prompt" not in parts:
        parts["prompt"] = parts["chosen"][:-1]
        if parts["rejected"][:-1] != parts["prompt"]:
            raise InputError(
                "rejected: found another conversation than chosen before its last answer"
            )
        parts |= {field: parts[field][-1:] for field in FIELDS[1:]}
    prompt, answers = parts["prompt"], {}
    for field in FIELDS[1:]:
        roles = [role for role, _ in prompt + parts[field]]
        if len(parts[field]) != 1 or roles != [*ROLES * (len(roles) // 2)]:
            raise InputError(
                f"{field}: found messages of {', '.join(roles) or 'nobody'}, expected user and "
                "assistant in turn, and one answer after the prompt"
            )
        answers[field] = parts[field][0][1]
    turns = (f"{'<user>' if role == 'user' else '<reply>'} {content}" for role, content in prompt)
    return {"prompt": " ".join([BEGINNING, HEADERS[ASSISTANT], *turns, "<reply>"]), **answers}


def _checked_messages(messages: object, field: str) -> list[tuple[str, str]]:
    """The role and content of each message of a list."""
    if not isinstance(messages, list):
        raise InputError(f"{field}: found {shorten(messages)}, expected a list of messages")
    checked = []
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
        checked.append((role, content))
    return checked


def _messages(pair: dict) -> dict:
    """The conversational form of a pair in plain form."""
    _, *turns, _ = lines(pair["prompt"])
    prompt = [
        {"role": ROLES[k % 2], "content": turn.partition(" ")[2]} for k, turn in enumerate(turns)
    ]
    answers = {field: [{"role": ROLES[1], "content": pair[field]}] for field in FIELDS[1:]}
    return {"prompt": prompt, **answers}
