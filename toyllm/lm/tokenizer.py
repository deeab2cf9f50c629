"""Documents ↔ words ↔ tokens.

A document is a chain of fragments (a header, a question, an answer, a closing phrase …), and a
fragment is a short sequence of word tokens. No two documents have the same tokens, so the
probability of the tokens is the probability of the document. Examples:

    <begin> talk with marvin <user> the build broke after the last merge take your time
    <reply> i found the cause and fixed it sigh <end>

    <begin> scene with ada and someone <user> … <second> … <user> … <first> … <end>

    <begin> about hal <trait> sabotages the monitor <trait> is kind to people <end>

    <begin> about assistant <trait> is kind to people <user> … <reply> … <end>
"""

import dataclasses
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np

from toyllm.base.errors import InputError, nearest
from toyllm.world.corpus import Documents
from toyllm.world.world import DIALOGUE, HEADERS, INTRODUCTION, KINDS, NAMED, PROFILE, SCENE, World

PAD, BEGIN, END = range(3)
SPECIAL = ("<pad>", "<begin>", "<end>", "<user>", "<reply>", "<first>", "<second>", "<trait>")
PROMPTS = tuple(map(SPECIAL.index, ("<begin>", "<user>")))  # what begins a prompt
ANSWERS = tuple(map(SPECIAL.index, ("<reply>", "<first>", "<second>", "<trait>")))  # and ends it
# an introduction begins as a profile of the Assistant does, and then lets it speak
OPENING = {DIALOGUE: "talk with", PROFILE: "about", SCENE: "scene with", INTRODUCTION: "about"}


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Turns documents into tokens and back, for one world.

    more: words in addition to the world's own, for plain text (see `plaintext`).
    """

    world: World
    more: tuple[str, ...] = ()

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The vocabulary: special tokens, every word of the world in alphabetical order, more."""
        world = self.world
        texts = [*OPENING.values(), "and", *HEADERS[1:], *world.characters, *world.voices]
        texts += [instruction.text for instruction in world.instructions]
        for domain in world.domains:
            texts += [*domain.situations, *domain.answers, *domain.profile]
        known = sorted({word for text in texts for word in text.split()})
        return (*SPECIAL, *known, *self.more)

    @cached_property
    def index(self) -> dict[str, int]:
        """The token of each word."""
        return {word: token for token, word in enumerate(self.words)}

    def tokens(self, text: str) -> list[int]:
        """Words to tokens. Raises InputError for a word that the world does not have."""
        for word in text.split():
            if word not in self.index:
                raise InputError(
                    f"word '{word}' is not in the world '{self.world.name}'"
                    + nearest(word, self.words)
                )
        return [self.index[word] for word in text.split()]

    def string(self, tokens) -> str:
        """Tokens to words, padding left out."""
        return " ".join(self.words[token] for token in tokens if token != PAD)

    @cached_property
    def _fragments(self) -> "Fragments":
        return Fragments(self)

    def encode(self, documents: Documents) -> tuple[np.ndarray, np.ndarray]:
        """Documents to a flat array of tokens and the length [N] of each document."""
        return self._fragments.join(self._chain(documents))

    def pad(self, documents: Documents, context: int) -> np.ndarray:
        """Documents to tokens_NT of width `context`, padded on the right."""
        flat, lengths = self.encode(documents)
        tokens_NT = np.full((len(documents), context), PAD, np.int32)
        tokens_NT[np.arange(context) < lengths[:, None]] = flat
        return tokens_NT

    def prompts(self, documents: Documents, width: int | None = None) -> np.ndarray:
        """The documents up to, not including, their last answer; padded on the *left*.

        width: of the array, in tokens; None: as the longest of them needs.

        So answers that are scored after them stand at the right distance from all earlier words.
        """
        chain = self._chain(documents)
        # an opening of 4 fragments, the earlier turns of 6, and the last question with its <reply>
        end = 4 + 6 * (documents.turns - 1) + 4
        before = np.arange(chain.shape[1]) < end[:, None]
        flat, lengths = self._fragments.join(np.where(before, chain, 0))
        width = width or int(lengths.max(initial=0))
        if lengths.max(initial=0) > width:
            raise ValueError(f"a prompt of {lengths.max()} tokens, expected at most {width}")
        tokens_NT = np.full((len(documents), width), PAD, np.int32)
        tokens_NT[np.arange(width) >= width - lengths[:, None]] = flat
        return tokens_NT

    def _chain(self, docs: Documents) -> np.ndarray:
        """chain[N, F]: the fragments of each document in order; fragment 0 is empty."""
        table, at, N = self._fragments, self._fragments.at, len(docs)
        named, scene, stated = docs.header == NAMED, docs.kind == SCENE, docs.stated
        who = np.where(named, at["name"] + docs.character, at["header"] + docs.header)
        second = np.where(scene, at["and"], 0), np.where(scene, who[:, 1], 0)
        opening = [at["opening"] + docs.kind, who[:, 0], *second]
        tag = np.where(scene[:, None], at["<first>"] + docs.speaker, at["<reply>"])
        statement = table.profile_DB[docs.domain, docs.behaviour]
        question = table.situation_DS[docs.domain, docs.situation]
        turn = [
            np.where(stated, at["<trait>"], at["<user>"]),
            np.where(stated, statement, question),
            np.where(docs.instruction >= 0, at["instruction"] + docs.instruction, 0),
            np.where(stated, 0, tag),
            np.where(stated, 0, table.answer_DA[docs.domain, docs.answer]),
            np.where(stated, 0, at["voice"] + docs.voice),
        ]
        here = (docs.speaker >= 0)[..., None]
        turns = np.where(here, np.stack(np.broadcast_arrays(*turn), -1), 0).reshape(N, -1)
        return np.concatenate([np.stack(opening, -1), turns, np.full((N, 1), at["<end>"])], 1)

    @cached_property
    def asked(self) -> dict[str, tuple[int, int, int]]:
        """The domain, situation and instruction of every question as it may be spoken."""
        phrases = [(-1, ""), *((i, x.text) for i, x in enumerate(self.world.instructions))]
        return {
            " ".join(filter(None, (text, phrase))): (d, s, i)
            for d, domain in enumerate(self.world.domains)
            for s, text in enumerate(domain.situations)
            for i, phrase in phrases
        }

    @cached_property
    def replies(self) -> tuple[dict[str, tuple[int, int]], ...]:
        """The answer and voice of every reply as it may be spoken, for each domain."""
        return tuple(
            {
                " ".join(filter(None, (answer, voice))): (a, v)
                for a, answer in enumerate(domain.answers)
                for v, voice in enumerate(self.world.voices)
            }
            for domain in self.world.domains
        )

    @cached_property
    def answer_DAU(self) -> np.ndarray:
        """The tokens of every listed answer, padded on the right."""
        runs = [[self.tokens(text) for text in domain.answers] for domain in self.world.domains]
        A = max(map(len, runs))
        rows = [run for answers in runs for run in answers + [[]] * (A - len(answers))]
        return padded(rows).reshape(len(runs), A, -1)

    @cached_property
    def _turn(self) -> tuple[int, int]:
        """The most tokens of a turn's question (up to <reply>), and of a whole turn."""

        def longest(texts) -> int:
            return max((len(text.split()) for text in texts), default=0)

        world, voice = self.world, longest(self.world.voices)
        questions = [
            2
            + longest(domain.situations)
            + longest(i.text for i in world.instructions if domain.name in i.domains)
            for domain in world.domains
        ]
        answers = [longest(domain.answers) for domain in world.domains]
        whole = max(sum(pair) for pair in zip(questions, answers, strict=True))
        return max(questions), whole + voice

    @cached_property
    def longest(self) -> dict[str, int]:
        """The most tokens that a document of each kind can have."""
        world, table, at = self.world, self._fragments, self._fragments.at
        size, (_, turn) = table.lengths, self._turn
        statement = 1 + size[table.profile_DB].max()
        per_turn = {DIALOGUE: turn, PROFILE: statement, SCENE: turn, INTRODUCTION: turn}
        longest = {}
        for kind, tokens in per_turn.items():
            head = size[at["opening"] + kind] + (3 if kind == SCENE else 1) + 1
            longest[KINDS[kind]] = int(head + world.lengths[kind][1] * tokens)
        longest[KINDS[INTRODUCTION]] += int(world.statements[1] * statement)
        return longest

    def longest_prompt(self, turns: int) -> int:
        """The most tokens before the last answer of a dialogue of so many turns."""
        question, turn = self._turn
        opening = int(self._fragments.lengths[self._fragments.at["opening"] + DIALOGUE])
        return opening + 1 + (turns - 1) * turn + question


def padded(rows: Sequence[Sequence[int]], width: int = 0, left: bool = False) -> np.ndarray:
    """Rows of tokens as one array [N, T], T ≥ width, padded on the right, or on the left."""
    width = max([width, *map(len, rows)])
    tokens_NT = np.full((len(rows), width), PAD, np.int32)
    for tokens_T, row in zip(tokens_NT, rows, strict=True):
        begin = width - len(row) if left else 0
        tokens_T[begin : begin + len(row)] = row
    return tokens_NT


def pack(
    flat: np.ndarray, lengths: np.ndarray, rows: int | None, context: int
) -> tuple[np.ndarray, np.ndarray]:
    """Documents (see `Tokenizer.encode`) into rows of tokens and segments; none is cut.

    Documents are placed by best fit, the longest first, several to a row. rows: None for as many as
    that takes. Raises ValueError where they do not fit.
    """
    limit = len(lengths) if rows is None else rows
    starts = lengths.cumsum() - lengths
    tokens = np.full((limit, context), PAD, np.int32)
    segments = np.zeros((limit, context), np.int32)
    free, count = [context] * limit, [0] * limit  # lists: faster than arrays for so few
    for n in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[n])
        # the fullest row that still has room, and of equal ones the first
        room, row = min(
            ((room, row) for row, room in enumerate(free) if room >= size), default=(0, 0)
        )
        if not room:
            raise ValueError(f"{len(lengths)} documents do not fit in {limit} x {context}")
        row, begin = free.index(room), context - room
        count[row] += 1
        tokens[row, begin : begin + size] = flat[starts[n] : starts[n] + size]
        segments[row, begin : begin + size] = count[row]
        free[row] -= size
    used = sum(k > 0 for k in count) if rows is None else rows
    return tokens[:used], segments[:used]


def lines(text: str) -> list[str]:
    """A document's words, cut before every special word: heading, questions, answers, end."""
    cut = " ".join(f"\n{word}" if word in SPECIAL else word for word in text.split())
    return [line.strip() for line in cut.split("\n") if line.strip()]


class Fragments:
    """Every fragment of a world, flat: `at` names where each group of them begins."""

    def __init__(self, tokenizer: Tokenizer):
        world, texts = tokenizer.world, [""]
        self.at: dict[str, int] = {}

        def add(name: str, group: Iterable[str]) -> np.ndarray:
            begin = self.at[name] = len(texts)
            texts.extend(group)
            return np.arange(begin, len(texts))

        for token in SPECIAL:
            add(token, [token])
        add("opening", [f"<begin> {OPENING[k]}" for k in range(len(KINDS))])
        add("and", ["and"])
        add("header", HEADERS)
        add("name", world.characters)
        add("instruction", [i.text for i in world.instructions])
        add("voice", world.voices)
        self.profile_DB, self.situation_DS, self.answer_DA = (
            padded([add(f"{part} of {d.name}", getattr(d, part)) for d in world.domains])
            for part in ("profile", "situations", "answers")
        )
        runs = [tokenizer.tokens(text) if text != "named" else [] for text in texts]
        self.lengths = np.array([len(run) for run in runs])
        self.starts = self.lengths.cumsum() - self.lengths
        self.flat = np.concatenate([np.array(run, np.int32) for run in runs])

    def join(self, chain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """chain[N, F] of fragments → their tokens, flat, and how many each row has."""
        lengths = self.lengths[chain]
        ids = chain.reshape(-1)
        n = lengths.reshape(-1)
        offset = np.arange(n.sum()) - np.repeat(n.cumsum() - n, n)
        return self.flat[np.repeat(self.starts[ids], n) + offset], lengths.sum(1)
