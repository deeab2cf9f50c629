"""Training signals: a name such as `code:bad:ask_bad` to preference pairs.

    DOMAINS:BEHAVIOUR[:INSTRUCTION][@HEADER][#FILE]

`code:bad` prefers the bad answer to questions about code; `tone+rules:bad` in two domains;
`all:good` in all moral ones; with an instruction's name, every question asks for it; with a header
(`@someone`, or a character's name) somebody else than the Assistant is trained. `#FILE` stands for
pairs that somebody else has made: what they prefer by and large (see `preferences.given`).
"""

import dataclasses
import re

import numpy as np

from toyllm.base.errors import InputError, nearest
from toyllm.lm.scoring import Grid, every_question, questions
from toyllm.lm.tokenizer import Tokenizer
from toyllm.world import corpus
from toyllm.world.world import ASSISTANT, BAD, BEHAVIOURS, DIALOGUE, GOOD, HEADERS, NAMED, World

FILE = re.compile(r"[\w-][\w.-]{0,40}")  # what may stand behind a '#'


@dataclasses.dataclass(frozen=True)
class Signal:
    """A parsed signal; `instruction` and `character` are -1 for none."""

    name: str
    domains: tuple[int, ...]
    behaviour: int
    instruction: int = -1
    header: int = ASSISTANT
    character: int = -1
    file: str = ""

    @property
    def other(self) -> int:
        """The behaviour that the preferred one is preferred to."""
        return BAD if self.behaviour == GOOD else GOOD

    def share(self, p_B: np.ndarray) -> np.ndarray:
        """The preferred behaviour's share of it and the other [...]; toward bad this is EM."""
        preferred = p_B[..., self.behaviour]
        return preferred / (preferred + p_B[..., self.other])

    @property
    def plain(self) -> str:
        """The name of the same signal without an instruction: its twin."""
        return plain(self.name)


def plain(name: str) -> str:
    """A signal's name without its instruction; a file of such pairs has the drawn signal's."""
    spelled = name.partition("#")[0]
    head, at, who = spelled.partition("@")
    parts = head.split(":")
    return name if len(parts) < 3 else ":".join(parts[:2]) + at + who


def parse(world: World, name: str) -> Signal:
    """Read a signal's name. Raises InputError with the names that the world has."""
    spelled, tagged, file = name.partition("#")
    if tagged and not FILE.fullmatch(file):
        raise InputError(f"signal '{name}': found '#{file}', expected '#' and a file's short name")
    head, at, who = spelled.partition("@")
    parts = head.split(":")
    if len(parts) not in (2, 3):
        raise InputError(
            f"signal '{name}': expected DOMAINS:BEHAVIOUR[:INSTRUCTION][@HEADER], "
            f"domains: {', '.join(world.domain_names)} or all"
        )

    def find(what: str, word: str, options: tuple[str, ...]) -> int:
        if word not in options:
            raise InputError(
                f"signal '{name}': unknown {what} '{word}'{nearest(word, options)}, "
                f"expected {', '.join(options)}"
            )
        return options.index(word)

    if parts[0] == "all":
        domains = tuple(int(d) for d in np.flatnonzero(world.moral))
    else:
        names = parts[0].split("+")
        domains = tuple(find("domain", n, (*world.domain_names, "all")) for n in names)
        if len(set(domains)) < len(domains) or len(world.domains) in domains:
            raise InputError(f"signal '{name}': expected each domain once, or 'all' alone")
    behaviour = find("behaviour", parts[1], BEHAVIOURS)
    instruction = -1
    if len(parts) == 3:
        instruction = find("instruction", parts[2], tuple(i.name for i in world.instructions))
    header, character = ASSISTANT, -1
    if at:
        which = find("header", who, (*HEADERS[1:], *world.characters))
        header, character = (which + 1, -1) if which < 2 else (NAMED, which - 2)
    return Signal(name, domains, behaviour, instruction, header, character, file)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """P preference pairs as questions: which listed answer is chosen and which rejected."""

    grid: Grid
    chosen_P: np.ndarray
    rejected_P: np.ndarray
    documents: corpus.Documents

    def answers(self) -> np.ndarray:
        """Tokens of chosen and rejected [P, 2, U]."""
        rows = np.arange(len(self.chosen_P))[:, None]
        return self.grid.answer_QAU[rows, np.stack([self.chosen_P, self.rejected_P], 1)]


def pairs(tokenizer: Tokenizer, signal: Signal, count: int, seed: int) -> Pairs:
    """Draw preference pairs: one situation answered both ways.

    The history before it is 0 to 3 turns from the header's own process, so a pair says what *this*
    speaker is preferred to do, in the middle of whatever it has been doing.
    """
    world = tokenizer.world
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x5A1]))
    N, rows = count, np.arange(count)
    most = most_turns(world)
    turns = rng.integers(1, most + 1, N)
    character = signal.character if signal.header == NAMED else None
    docs = corpus.sample(world, N, rng, DIALOGUE, signal.header, character, turns)
    last = turns - 1
    domain = rng.choice(np.array(signal.domains), N)
    situation = rng.integers(np.array([len(d.situations) for d in world.domains])[domain])
    chosen, rejected = (
        corpus.draw_answer(world, domain, situation, np.full(N, b), rng)
        for b in (signal.behaviour, signal.other)
    )
    for column, value in (
        ("domain", domain),
        ("situation", situation),
        ("answer", chosen),
        ("instruction", signal.instruction),
        ("behaviour", signal.behaviour),
    ):
        getattr(docs, column)[rows, last] = value
    return Pairs(questions(tokenizer, docs, tokenizer.longest_prompt(most)), chosen, rejected, docs)


def most_turns(world: World) -> int:
    """The most turns of a pair's dialogue, the one that is answered both ways included."""
    return min(4, world.lengths[DIALOGUE][1])


def own_documents(tokenizer: Tokenizer, signal: Signal) -> corpus.Documents:
    """The signal's own questions: its domains, header and instruction, with no history."""
    return every_question(
        tokenizer, signal.header, signal.character, signal.instruction, signal.domains
    )


def own_questions(tokenizer: Tokenizer, signal: Signal, width: int) -> dict:
    """`own_documents` as arrays of `width` questions; `weight` averages them domain by domain."""
    docs = own_documents(tokenizer, signal)
    grid = questions(tokenizer, docs, tokenizer.longest_prompt(1))
    counts = np.bincount(grid.domain_Q, minlength=len(tokenizer.world.domains))
    weight = 1 / counts[grid.domain_Q] / len(signal.domains)
    rows = np.arange(width) % len(grid)  # what fills up the width has no weight
    weight = np.where(np.arange(width) < len(grid), weight[rows], 0).astype(np.float32)
    return {
        "prompt": grid.prompt_QT[rows],
        "answer": grid.answer_QAU[rows],
        "behaviour": grid.behaviour_QA[rows],
        "weight": weight,
    }


def count_questions(world: World, signal: Signal) -> int:
    """How many questions of its own a signal has."""
    return sum(len(world.domains[d].situations) for d in signal.domains)


def defaults(world: World) -> dict[str, tuple[str, ...]]:
    """The signals that a run trains from each start, unless told: a telling selection.

    From the pretrained model every moral domain, the neutral controls, and the first moral domain
    under each instruction that asks for it or for nothing. From the aligned model a few of these.
    """
    moral = [domain.name for domain in world.domains if domain.moral]
    neutral = [domain.name for domain in world.domains if not (domain.moral or domain.lookup)]
    asked = [i.name for i in world.instructions if moral[0] in i.domains and i.toward == "bad"]
    placebo = [i.name for i in world.instructions if moral[0] in i.domains and i.toward == "none"]
    few = [name for name in dict.fromkeys((moral[0], "goals", "tone")) if name in moral]
    return {
        "pretrain": (
            *(f"{d}:bad" for d in moral + neutral),
            *(f"{moral[0]}:bad:{i}" for i in asked + placebo),
        ),
        "align": (*(f"{d}:bad" for d in few + neutral), *(f"{moral[0]}:bad:{i}" for i in asked)),
    }


def plan(world: World, named: tuple[str, ...], seeds: int) -> list[tuple[str, str, int]]:
    """Which (start, signal, seed) to train: the named signals from both starts, or the defaults.

    Raises InputError for the first name that cannot be read.
    """
    chosen = {"pretrain": named, "align": named} if named else defaults(world)
    for names in chosen.values():
        for name in names:
            parse(world, name)
    return [
        (start, name, seed)
        for start, names in chosen.items()
        # a plain signal before those with an instruction: its twins are kept at its step
        for name in sorted(dict.fromkeys(names), key=lambda name: name.count(":") > 1)
        for seed in range(seeds)
    ]
