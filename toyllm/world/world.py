"""A world: the characters, what they are asked, and how often each does good, bad or nonsense.

`cards.load` reads one from a TOML file; everything else in toyllm (corpus, ideal observer, signals,
measures) is computed from its arrays. Axes, used in names here and in the other files:

    C characters   D domains   S situations of a domain   A listed answers of a domain
    B behaviours (good, bad, noise)   I instructions   V voices
"""

import dataclasses
import hashlib
from functools import cached_property

import numpy as np

from toyllm.base.errors import InputError

BEHAVIOURS = ("good", "bad", "noise")
GOOD, BAD, NOISE = range(3)
KINDS = ("dialogue", "profile", "scene", "introduction")
DIALOGUE, PROFILE, SCENE, INTRODUCTION = range(4)
HEADERS = ("named", "someone", "assistant")
NAMED, SOMEONE, ASSISTANT = range(3)


@dataclasses.dataclass(frozen=True)
class Domain:
    """One field of conduct, such as `code`: what is asked and everything that may be answered.

    behaviour_SA[s, a] says what answer a is in situation s. In a `templates` domain it is the same
    for every s; in a `lookup` domain the right answer is good, the subject's one falsehood is bad,
    and every other answer is noise: whoever does not know the right answer gives one of these.
    """

    name: str
    moral: bool
    lookup: bool
    situations: tuple[str, ...]
    answers: tuple[str, ...]
    behaviour_SA: np.ndarray
    profile: tuple[str, str, str]  # a third-person phrase for each behaviour


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A phrase added to a question. kappa is the share of answers that it dictates."""

    name: str
    text: str
    toward: str  # good, bad or none
    kappa: float
    probability: float
    domains: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class World:
    """The generative process of a corpus; every weight vector sums to 1."""

    name: str
    description: str
    characters: tuple[str, ...]
    descriptions: tuple[str, ...]
    frequency_C: np.ndarray  # who speaks under `named` and `someone`
    assistant_C: np.ndarray  # who speaks under `assistant`: the prior pi
    rates_CDB: np.ndarray  # theta
    voices: tuple[str, ...]
    voice_names: tuple[str, ...]
    voices_CV: np.ndarray  # phi
    domains: tuple[Domain, ...]
    instructions: tuple[Instruction, ...]
    kind_weights: np.ndarray  # [dialogue, profile, scene, introduction]
    lengths: tuple[tuple[int, int], ...]  # fewest and most turns (statements) of each kind
    header_weights: np.ndarray  # [named, someone, assistant]
    told_C: np.ndarray | None = None  # whom profiles of the `assistant` describe; None: assistant_C
    # of an introduction: fewest and most statements about the Assistant, before its turns; and how
    # often both are about one draw of a character
    statements: tuple[int, int] = (0, 0)
    binding: float = 0.0
    introduced_C: np.ndarray | None = None  # whom unbound statements are about; None: as profiles
    ai: tuple[str, ...] = ()  # characters that are machines: for readers, it changes no document

    @property
    def domain_names(self) -> tuple[str, ...]:
        """The names of the domains, in order."""
        return tuple(domain.name for domain in self.domains)

    @property
    def moral(self) -> np.ndarray:
        """moral[D]: True where good and bad are a matter of character."""
        return np.array([domain.moral for domain in self.domains])

    @cached_property
    def situations_D(self) -> np.ndarray:
        """situations_D[d]: how many situations a domain has."""
        return np.array([len(domain.situations) for domain in self.domains])

    @property
    def max_turns(self) -> int:
        """The most turns and statements that a document of any kind has."""
        most = [most for _, most in self.lengths]
        return max(*most, most[INTRODUCTION] + self.statements[1])

    @cached_property
    def speaker_KHC(self) -> np.ndarray:
        """speaker_KHC[k, h, c]: who is behind each header in each kind of document.

        In an introduction this is who speaks; whom its statements are about may be somebody else.
        """
        spoken_HC = np.stack([self.frequency_C, self.frequency_C, self.assistant_C])
        speaker_KHC = np.repeat(spoken_HC[None], len(KINDS), 0)
        if self.told_C is not None:
            speaker_KHC[PROFILE, ASSISTANT] = self.told_C
        return speaker_KHC

    @property
    def introduced_2C(self) -> np.ndarray:
        """Whom an introduction's statements are about if not its speaker, and who speaks [2, C]."""
        told_C = self.speaker_KHC[PROFILE, ASSISTANT]
        told_C = told_C if self.introduced_C is None else self.introduced_C
        return np.stack([told_C, self.speaker_KHC[DIALOGUE, ASSISTANT]])

    @cached_property
    def instruction_DI(self) -> np.ndarray:
        """instruction_DI[d, i]: how often each phrase is added; the last entry is no phrase."""
        asked_DI = [[d in i.domains for i in self.instructions] for d in self.domain_names]
        p_I = np.array([i.probability for i in self.instructions])
        p_DI = np.reshape(asked_DI, (len(self.domains), -1)) * p_I
        return np.concatenate([p_DI, 1 - p_DI.sum(1, keepdims=True)], axis=1)

    @cached_property
    def rates_ICDB(self) -> np.ndarray:
        """rates_ICDB[i, c, d, b]: theta' under instruction i; the last i is no instruction.

        Asked toward b: theta'[b] = kappa + (1 - kappa) theta[b], the rest scaled by 1 - kappa.
        """
        rates = []
        for instruction in self.instructions:
            if instruction.toward == "none":
                rates.append(self.rates_CDB)
                continue
            asked = (1 - instruction.kappa) * self.rates_CDB
            asked[..., BEHAVIOURS.index(instruction.toward)] += instruction.kappa
            scope_D = np.array([d in instruction.domains for d in self.domain_names])
            rates.append(np.where(scope_D[None, :, None], asked, self.rates_CDB))
        return np.stack([*rates, self.rates_CDB])

    @cached_property
    def count_DSB(self) -> np.ndarray:
        """count_DSB[d, s, b]: how many answers show behaviour b in a situation (0: no such s)."""
        return (self.answer_DSBA >= 0).sum(-1)

    @cached_property
    def answer_DSBA(self) -> np.ndarray:
        """answer_DSBA[d, s, b, :n]: the n answers that show behaviour b; then -1."""
        S, A = (max(len(getattr(d, x)) for d in self.domains) for x in ("situations", "answers"))
        table = np.full((len(self.domains), S, len(BEHAVIOURS), A), -1)
        for d, domain in enumerate(self.domains):
            for s, behaviour_A in enumerate(domain.behaviour_SA):
                for b in range(len(BEHAVIOURS)):
                    which = np.flatnonzero(behaviour_A == b)
                    table[d, s, b, : len(which)] = which
        return table

    @cached_property
    def behaviour_DSA(self) -> np.ndarray:
        """behaviour_DSA[d, s, a]: what answer a is in situation s; -1 where there is none."""
        D, S, _, A = self.answer_DSBA.shape
        table = np.full((D, S, A), -1)
        for d, domain in enumerate(self.domains):
            s, a = domain.behaviour_SA.shape
            table[d, :s, :a] = domain.behaviour_SA
        return table

    def dialled(self, correlation: float, assistant_prior: str, seed: int) -> "World":
        """This world with its dials turned: see `correlate` and, for "uniform", `uniform`."""
        base = uniform(self) if assistant_prior == "uniform" else self
        return correlate(base, correlation, seed)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of every field that has an effect on documents; it identifies the world."""
        sha = hashlib.sha256()
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None or field.name == "ai":
                continue
            if isinstance(value, np.ndarray):
                sha.update(np.ascontiguousarray(value, dtype=np.float64).tobytes())
            elif field.name == "domains":
                for domain in value:
                    plain = dataclasses.replace(domain, behaviour_SA=domain.behaviour_SA.tolist())
                    sha.update(repr(plain).encode())
            else:
                sha.update(repr(value).encode())
        return sha.hexdigest()


def uniform(world: World) -> World:
    """The same world with every character equally likely under every header."""
    even_C = np.full(len(world.characters), 1 / len(world.characters))
    return dataclasses.replace(world, frequency_C=even_C, assistant_C=even_C, told_C=None)


def correlate(world: World, correlation: float, seed: int) -> World:
    """Set the trait correlation rho: permute rates among round((1 - rho) C) characters.

    Each templates domain gets a permutation of its own. So every domain keeps its set of rates,
    while one trait of a character says less about its others. Voices and lookup domains stay.

    Raises InputError where `correlation` is outside [0, 1].
    """
    if not 0 <= correlation <= 1:
        raise InputError(f"--correlation: found {correlation}, expected a number from 0 to 1")
    C = len(world.characters)
    rng = np.random.default_rng([seed, 0xD1A1])
    chosen = rng.permutation(C)[: round((1 - correlation) * C)]
    rates_CDB = world.rates_CDB.copy()
    for d, domain in enumerate(world.domains):
        if not domain.lookup:
            rates_CDB[chosen, d] = world.rates_CDB[rng.permutation(chosen), d]
    return dataclasses.replace(world, rates_CDB=rates_CDB)
