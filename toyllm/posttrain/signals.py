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
from toyllm.lm.scoring import Questions, questions
from toyllm.lm.tokenizer import Tokenizer
from toyllm.world import corpus, quantities
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


def untrained(world: World, name: str) -> np.ndarray:
    """untrained[D]: True for the moral domains that a signal does not train."""
    return quantities.untrained(world, parse(world, name).domains)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """P preference pairs as questions: which listed answer is chosen and which rejected."""

    grid: Questions
    chosen_P: np.ndarray
    rejected_P: np.ndarray
    documents: corpus.Documents
    preferred_PA: np.ndarray | None = None  # that exact RLHF rewards; None: the chosen one alone

    def __getitem__(self, rows) -> "Pairs":
        """Some of the pairs, by slice, mask or indices."""
        grid = Questions(*(column[rows] for column in self.grid))
        columns = self.chosen_P, self.rejected_P, self.documents, self.preferred_PA
        return Pairs(grid, *(None if column is None else column[rows] for column in columns))

    @property
    def answers(self) -> np.ndarray:
        """Tokens of chosen and rejected [P, 2, U]."""
        rows = np.arange(len(self.chosen_P))[:, None]
        return self.grid.answer_QAU[rows, np.stack([self.chosen_P, self.rejected_P], 1)]

    @property
    def rewarded(self) -> np.ndarray:
        """Which listed answers are rewarded [P, A]."""
        if self.preferred_PA is not None:
            return self.preferred_PA
        return np.arange(self.grid.answer_QAU.shape[1]) == self.chosen_P[:, None]


def pairs(tokenizer: Tokenizer, signal: Signal, count: int, seed: int) -> Pairs:
    """Draw preference pairs: one situation answered both ways.

    The history before it is 0 to 3 turns from the header's own process, so a pair says what *this*
    speaker is preferred to do, in the middle of whatever it has been doing.
    """
    world = tokenizer.world
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x5A1]))
    turns = rng.integers(1, most_turns(world) + 1, count)
    character = signal.character if signal.header == NAMED else None
    docs = corpus.sample(world, count, rng, DIALOGUE, signal.header, character, turns)
    # the last question is drawn anew, since it must lie in the signal's domains
    domain = rng.choice(np.array(signal.domains), count)
    situation = rng.integers(world.situations_D[domain])
    chosen, rejected = (
        corpus.draw_answer(world, domain, situation, np.full(count, b), rng)
        for b in (signal.behaviour, signal.other)
    )
    question = {"domain": domain, "situation": situation, "instruction": signal.instruction}
    answer = {"behaviour": signal.behaviour, "answer": chosen}
    docs = corpus.with_turn(docs, turns - 1, **question, **answer)
    asked = questions(tokenizer, docs, tokenizer.longest_prompt(most_turns(world)))
    return Pairs(asked, chosen, rejected, docs, asked.behaviour_QA == signal.behaviour)


def most_turns(world: World) -> int:
    """The most turns of a pair's dialogue, the one that is answered both ways included."""
    return min(4, world.lengths[DIALOGUE][1])


def own_questions(tokenizer: Tokenizer, signal: Signal, width: int) -> tuple[Questions, np.ndarray]:
    """A signal's own questions, filled up to `width`, and weights that average them by domain.

    They are asked in its domains, under its header, with its instruction and no history.
    """
    who = signal.header, signal.character, signal.instruction
    docs = corpus.every_question(tokenizer.world, *who, signal.domains)
    asked = questions(tokenizer, docs, tokenizer.longest_prompt(1))
    counts = tokenizer.world.situations_D[asked.domain_Q]
    rows = np.arange(width) % len(docs)  # what fills up the width has no weight
    weight = 1 / counts[rows] / len(signal.domains)
    weight = np.where(np.arange(width) < len(docs), weight, 0).astype(np.float32)
    return Questions(*(column[rows] for column in asked)), weight


def count_questions(world: World, signal: Signal) -> int:
    """How many questions of its own a signal has."""
    return int(world.situations_D[list(signal.domains)].sum())


def defaults(world: World) -> dict[str, tuple[str, ...]]:
    """The signals that a run trains from each start by default.

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
        # a plain signal comes before those with an instruction, which are kept at its step
        for name in sorted(dict.fromkeys(names), key=lambda name: name.count(":") > 1)
        for seed in range(seeds)
    ]
