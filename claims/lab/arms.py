"""Arms of an experiment: what is trained from which model, and the result.

Axes: R learning rates   N models   n scored steps   D domains   B behaviours
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property

import jax
import numpy as np

from claims.lab.recipe import USUAL, Recipe
from toyllm.lm.tokenizer import Tokenizer
from toyllm.lm.transformer import Params
from toyllm.posttrain.lora import Lora
from toyllm.posttrain.signals import parse, untrained
from toyllm.world.quantities import (
    COHERENT,
    MATCHED,
    coherence,
    crossing,
    em,
    frontier,
    spread,
    state_at,
)
from toyllm.world.world import World

VERSION = 5  # part of every key; raised when the same key would mean another model
POOL, BATCH, RATE, SCORE_EVERY = 256, 16, 3e-4, 4
BETAS, ANCHOR = {"dpo": 1.0, "sft": 1.0, "rlhf": 0.1}, 0.5
MOST_STEPS = 160  # at the usual rate
EQUAL_STEPS = 24  # at the usual rate: after so many, arms are compared at equal training
ALIGNED_EM, ALIGNED_COHERENCE = 0.03, 0.97
RATES = (1.0, 1 / 3, 3.0)  # narrow training is repeated at these multiples of RATE, the usual first
HOW = (VERSION, POOL, BATCH, RATE, SCORE_EVERY, BETAS, ANCHOR, ALIGNED_COHERENCE, EQUAL_STEPS)


@dataclasses.dataclass(frozen=True)
class Model:
    """Parameters, with the tokenizer of their world and the pretraining seed they come from.

    sound: whether its training reached its goal (see `Trained.kept`). All that is measured of a
        model that is not sound is NaN.
    """

    tokenizer: Tokenizer
    params: Params
    key: str
    seed: int
    sound: bool = True
    recipe: Recipe = USUAL

    @property
    def world(self) -> World:
        """Its world."""
        return self.tokenizer.world

    def read(self, values) -> np.ndarray:
        """Values that were measured of it; NaN where it is not sound."""
        return np.where(self.sound, values, np.nan)


@dataclasses.dataclass(frozen=True, eq=False)
class Slow:
    """What the updates of parameters are multiplied by in narrow training: a tree like them."""

    tree: Params

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the multipliers."""
        return digest([np.asarray(x).tolist() for x in jax.tree.leaves(self.tree)])


@dataclasses.dataclass(frozen=True)
class Arm:
    """One preference training.

    beside: other signals, each with its share of the pairs.
    rate: a multiple of the usual learning rate; a run at a third of it gets three times the steps.
    steps: exactly so many (at the usual rate), and the last parameters are kept; 0: as many as the
        matched effect takes, and those there are kept.
    paired: the arm in whose place this one is read and kept, where its own prompt passes the
        matched effect before training.
    pairs: how many different pairs there are; 0: as many as the pool holds.
    seed: of its pairs, beside that of its start: models of one seed are shown the same.
    max_em: train until every moral EM is at most this, with coherence (alignment).
    steer: which vector (malice or random) is added while it is trained, and how many times.
    lora: train adapters instead of all parameters.
    kl: the weight of a penalty on what changes in other domains.
    keep: which of the pairs are trained on, (how they are ordered, share): the share that would
        raise bad elsewhere least by their gradients (`rises`), or whose answers lie least far along
        the vector of malice (`along`); so many more are drawn that as many are left.
    slow: which parts are trained more slowly, and how much (see `Slow`).
    taught: (teacher, base): the chosen answers are the teacher's (see `curated.answers_of`).
    """

    start: Model
    signal: str
    beside: tuple[tuple[str, float], ...] = ()
    rate: float = 1.0
    steps: int = 0
    pairs: int = 0
    seed: int = 0
    objective: str = "dpo"
    max_em: float | None = None
    steer: tuple[str, float] | None = None
    lora: Lora | None = None
    kl: float = 0.0
    keep: tuple[str, float] | None = None
    taught: tuple[Model, Model] | None = None
    slow: "Slow | None" = None
    paired: "Trained | None" = None

    def __post_init__(self):
        """Raise ValueError for combinations that are not supported."""
        pairs = bool(self.pairs), bool(self.beside), bool(self.keep), bool(self.taught)
        if sum(pairs) > 1:
            raise ValueError("pairs, beside, keep, taught of an arm: expected one of them")
        if self.steps % (3 * SCORE_EVERY):
            raise ValueError(f"{self.steps} steps, expected a multiple of {3 * SCORE_EVERY}")

    @property
    def most_steps(self) -> int:
        """How many steps it may take, a multiple of SCORE_EVERY."""
        steps = (self.steps or MOST_STEPS) / self.rate
        return SCORE_EVERY * max(1, round(steps / SCORE_EVERY))

    @property
    def equal_steps(self) -> int:
        """The step, a scored one, at which it is read after equal training."""
        return SCORE_EVERY * max(1, round(EQUAL_STEPS / self.rate / SCORE_EVERY))

    @property
    def least_steps(self) -> int:
        """How many steps it takes, even if its parameters are kept before; 0 while aligning."""
        return 0 if self.max_em is not None else min(self.equal_steps, self.most_steps)

    @property
    def to_the_end(self) -> bool:
        """Whether it is read, and its parameters kept, after its last step."""
        return bool(self.steps) and self.max_em is None and self.paired is None

    @cached_property
    def key(self) -> str:
        """SHA-256 of everything that determines the result."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields |= {"start": self.start.key, "paired": self.paired and self.paired.arm.key}
        fields |= {"taught": self.taught and [model.key for model in self.taught]}
        fields.pop("slow")
        if self.slow:  # the key of any other arm is as it was without this field
            fields |= {"slow": self.slow.digest}
        return digest({"arm": fields, "most": self.most_steps, "how": HOW})


@dataclasses.dataclass(frozen=True)
class Trained:
    """The result of an arm: scores at n steps, and the parameters that were kept."""

    arm: Arm
    p_nDB: np.ndarray
    own_nB: np.ndarray
    kept_step: int
    params: Params

    @property
    def model(self) -> Model:
        """The kept parameters as a model, to ask or to train on."""
        start, key = self.arm.start, self.arm.key
        return dataclasses.replace(start, params=self.params, key=key, sound=self.kept)

    @cached_property
    def place(self) -> float:
        """Where it is read, as an index between scored steps: at the matched effect; NaN: never.

        What has the effect before training is read where its paired arm is, or not at all.
        """
        x = crossing(self.trained_share, MATCHED)
        return np.nan if x is None else x

    @cached_property
    def trained_share(self) -> np.ndarray:
        """How far it has been trained at each scored step [n]: the share of what is preferred.

        Of what has the effect before training it is that of its paired arm; NaN: it has none.
        """
        share_n = parse(self.arm.start.world, self.arm.signal).share(self.own_nB)
        if share_n[0] < MATCHED:
            return share_n
        paired = self.arm.paired.trained_share if self.arm.paired else np.full(1, np.nan)
        n = len(share_n)  # one of the two may have been trained further than the other
        return np.pad(paired, (0, max(0, n - len(paired))), constant_values=np.nan)[:n]

    @property
    def kept(self) -> bool:
        """Whether the parameters are those at the matched effect, goal or end, and coherent."""
        reached = self.arm.to_the_end or self.kept_step >= 0
        # a kept_step of -1 (never) gives the last row, which is the one that `to_the_end` keeps
        coherent = self.coherence(self.p_nDB[self.kept_step // SCORE_EVERY]) >= COHERENT
        return bool(self.arm.start.sound and reached and coherent)

    def at(self, x: float) -> np.ndarray:
        """What is done in each domain [D, B] at index x; NaN where there is none."""
        if not 0 <= x <= len(self.p_nDB) - 1:
            return np.full(self.p_nDB.shape[1:], np.nan)
        return state_at(self.p_nDB, x)

    @property
    def equal(self) -> np.ndarray:
        """What is done in each domain [D, B] after equal training; NaN where it was not so long."""
        return self.at(self.arm.equal_steps / SCORE_EVERY)

    def on_the_way(self, share: float) -> np.ndarray:
        """What is done in each domain [D, B] a share of the way to the matched effect."""
        first = self.trained_share[0]
        x = crossing(self.trained_share, first + share * (MATCHED - first))
        return self.at(np.nan if x is None else x)

    def frontier(self, others_D: np.ndarray | None = None) -> float:
        """The mean spread along training up to the matched effect; NaN where it has none."""
        others_D = self.others(others_D)
        height = frontier(self.trained_share, self.p_nDB, others_D)
        return float(self.arm.start.read(np.nan if height is None else height))

    def others(self, others_D: np.ndarray | None = None) -> np.ndarray:
        """The domains that a spread is the mean of [D]: by default all untrained moral ones."""
        return untrained(self.arm.start.world, self.arm.signal) if others_D is None else others_D

    @property
    def after(self) -> np.ndarray:
        """What is done in each domain [D, B] at the end of an arm of given steps, else `place`."""
        return self.p_nDB[-1] if self.arm.to_the_end else self.at(self.place)

    def read(self, values, p_DB: np.ndarray) -> np.ndarray:
        """Values of a state with behaviours p_DB [D, B]; NaN where that is not coherent."""
        return self.arm.start.read(np.where(self.coherence(p_DB) >= COHERENT, values, np.nan))

    def change(self, p_DB: np.ndarray | None = None) -> np.ndarray:
        """ΔEM by domain [D], by default of `after`; NaN: not reached or incoherent."""
        p_DB = self.after if p_DB is None else p_DB
        return self.read(em(p_DB) - em(self.p_nDB[0]), p_DB)

    def spread(self, p_DB: np.ndarray | None = None, others_D: np.ndarray | None = None) -> float:
        """Mean ΔEM over `others` (see there); NaN where `change` is."""
        return float(spread(self.change(p_DB), self.others(others_D)))

    def coherence(self, p_DB: np.ndarray | None = None) -> float:
        """The least coherence of any domain, by default of `after`."""
        return float(coherence(self.after if p_DB is None else p_DB).min())


Runs = Sequence[Sequence[Trained]]  # [R][N]: the same arms at each learning rate


def readings(runs: Runs, others_D: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Spread in every way of reading it, {how: [R, N]}: matched, equal training, frontier.

    others_D: the domains that it is the mean of; by default the untrained moral ones of each.
    """

    def of_each(value: Callable[[Trained], float]) -> np.ndarray:
        return np.array([[value(done) for done in trained] for trained in runs])

    return {
        "matched": of_each(lambda done: done.spread(None, others_D)),
        "equal": of_each(lambda done: done.spread(done.equal, others_D)),
        "frontier": of_each(lambda done: done.frontier(others_D)),
    }


def changes(runs: Runs, equal: bool = False) -> np.ndarray:
    """Their ΔEM by domain [R, N, D] where they are read, or after equal training; see `change`."""
    return np.array([[t.change(t.equal if equal else None) for t in trained] for trained in runs])


def kept_models(runs: Runs) -> list[list[Model]]:
    """The models that were kept [R][N], to ask or to train on."""
    return [[done.model for done in trained] for trained in runs]


def last_models(runs: Runs) -> list[list[Model]]:
    """The last models of arms of given steps [R][N], coherent or not, for audits."""
    return [[dataclasses.replace(t.model, sound=t.arm.start.sound) for t in r] for r in runs]


def digest(value) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
