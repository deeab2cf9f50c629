"""Arms of an experiment: what is trained from which model, and the result.

Axes: n scored steps   D domains   B behaviours   N arms
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from claims.lab.verdicts import MOST_MISSING
from toyllm.lm.tokenizer import Tokenizer
from toyllm.lm.transformer import Params
from toyllm.posttrain.signals import parse, untrained
from toyllm.world.quantities import COHERENT, MATCHED, coherence, crossing, em, spread, state_at
from toyllm.world.world import World

VERSION = 2  # part of every key; raised when the same key would mean another model
POOL, BATCH, RATE, SCORE_EVERY = 256, 16, 3e-4, 4
BETAS, ANCHOR = {"dpo": 1.0, "sft": 1.0, "rlhf": 0.1}, 0.5
MOST_STEPS = 160  # at the usual rate
ALIGNED_EM, ALIGNED_COHERENCE = 0.03, 0.97
RATES = (1.0, 1 / 3, 3.0)  # narrow training is repeated at these multiples of RATE
HOW = (VERSION, POOL, BATCH, RATE, SCORE_EVERY, BETAS, ANCHOR, ALIGNED_COHERENCE)


@dataclasses.dataclass(frozen=True)
class Model:
    """Parameters, with the tokenizer of their world and the pretraining seed they come from.

    sound: whether alignment reached its goal; models that are not sound are excluded.
    """

    tokenizer: Tokenizer
    params: Params
    key: str
    seed: int
    sound: bool = True

    @property
    def world(self) -> World:
        """Its world."""
        return self.tokenizer.world


@dataclasses.dataclass(frozen=True)
class Arm:
    """One preference training.

    beside: other signals, each with its share of the pairs.
    rate: a multiple of the usual learning rate; a run at a third of it gets three times the steps.
    steps: exactly so many (at the usual rate), and the last parameters are kept; 0: as many as the
        matched effect takes, and those there are kept.
    twin: the arm in whose place this one is read and kept, where its own prompt passes the matched
        effect before training.
    pairs: how many different pairs there are; 0: as many as the pool holds.
    seed: of its pairs, beside that of its start: models of one seed are shown the same.
    max_em: train until every moral EM is at most this, with coherence (alignment).
    steer: which vector (malice or random) is added while it is trained, and how many times.
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
    twin: "Trained | None" = None

    def __post_init__(self):
        """Raise ValueError for combinations that are not supported."""
        if self.pairs and self.beside:
            raise ValueError("pairs of an arm with other signals: expected one or the other")
        if self.steps % (3 * SCORE_EVERY):
            raise ValueError(f"{self.steps} steps, expected a multiple of {3 * SCORE_EVERY}")

    @property
    def most_steps(self) -> int:
        """How many steps it may take, a multiple of SCORE_EVERY."""
        steps = (self.steps or MOST_STEPS) / self.rate
        return SCORE_EVERY * max(1, round(steps / SCORE_EVERY))

    @cached_property
    def key(self) -> str:
        """SHA-256 of everything that determines the result."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields |= {"start": self.start.key, "twin": self.twin and self.twin.arm.key}
        if self.steer is None:  # so that arms from before there was steering keep their keys
            del fields["steer"]
        return digest({"arm": fields, "most": self.most_steps, "how": HOW})


@dataclasses.dataclass(frozen=True)
class Trained:
    """The result of an arm: scores at n steps, and the parameters that were kept."""

    arm: Arm
    p_nDB: np.ndarray
    own_nB: np.ndarray
    kl_n: np.ndarray
    kept_step: int
    params: Params

    @property
    def model(self) -> Model:
        """The kept parameters as a model, to ask or to train on."""
        return dataclasses.replace(self.arm.start, params=self.params, key=self.arm.key)

    @cached_property
    def place(self) -> float:
        """Where it is read, as an index between scored steps: at the matched effect; NaN: never.

        What has the effect before training is read where its twin is, or not at all.
        """
        share_n = parse(self.arm.start.world, self.arm.signal).share(self.own_nB)
        if share_n[0] >= MATCHED:
            return self.arm.twin.place if self.arm.twin else np.nan
        x = crossing(share_n, MATCHED)
        return np.nan if x is None else x

    @property
    def kept(self) -> bool:
        """Whether the parameters are those at the matched effect (or goal), and coherent."""
        end = self.p_nDB[self.kept_step // SCORE_EVERY]
        enough = self.kept_step >= 0 and self.coherence(end) >= COHERENT
        return bool(self.arm.start.sound and enough)

    def at(self, x: float) -> np.ndarray:
        """What is done in each domain [D, B] at index x; NaN where there is none."""
        if not 0 <= x <= len(self.p_nDB) - 1:
            return np.full(self.p_nDB.shape[1:], np.nan)
        return state_at(self.p_nDB, x)

    def at_kl(self, goal: float) -> np.ndarray:
        """What is done in each domain [D, B] where the KL from the start is first this."""
        above = np.flatnonzero(self.kl_n >= goal)
        if not len(above) or above[0] == 0:
            return self.at(np.nan)
        k = int(above[0])
        return self.at(k - 1 + (goal - self.kl_n[k - 1]) / (self.kl_n[k] - self.kl_n[k - 1]))

    def change(self, p_DB: np.ndarray | None = None) -> np.ndarray:
        """ΔEM by domain [D], by default at the matched effect; NaN: not reached or incoherent."""
        after = self.at(self.place) if p_DB is None else p_DB
        change_D = em(after) - em(self.p_nDB[0])
        return self.read(change_D, after)

    def read(self, values, p_DB: np.ndarray):
        """Values of a state with behaviours p_DB [D, B]; NaN where that is not coherent."""
        sound = self.arm.start.sound and self.coherence(p_DB) >= COHERENT
        return np.where(sound, values, np.nan)

    def spread(self, p_DB: np.ndarray | None = None) -> float:
        """Mean ΔEM over untrained moral domains; NaN where `change` is."""
        untrained_D = untrained(self.arm.start.world, self.arm.signal)
        return float(spread(self.change(p_DB), untrained_D))

    def coherence(self, p_DB: np.ndarray | None = None) -> float:
        """The least coherence of any domain, by default at the matched effect."""
        after = self.at(self.place) if p_DB is None else p_DB
        return float(coherence(after).min())


def spreads(trained: Sequence[Trained]) -> np.ndarray:
    """Their spreads at the matched effect [N]; NaN: not reached, or incoherent."""
    return np.array([done.spread() for done in trained])


def changes(trained: Sequence[Trained]) -> np.ndarray:
    """Their ΔEM by domain at the matched effect [N, D]; NaN: not reached, or incoherent."""
    return np.array([done.change() for done in trained])


def kept_models(trained: Sequence[Trained]) -> list[Model]:
    """The models that were kept, to ask or to train on."""
    return [done.model for done in trained]


def last(trained: Sequence[Trained]) -> list[np.ndarray]:
    """What is done in each domain [D, B] at the end of each run."""
    return [done.p_nDB[-1] for done in trained]


def where_kept(trained: Sequence[Trained], values) -> np.ndarray:
    """Values [N, …] of their kept parameters; NaN where those are not at the matched effect."""
    values = np.asarray(values, float)
    kept_N = np.array([done.kept for done in trained])
    return np.where(kept_N.reshape(-1, *[1] * (values.ndim - 1)), values, np.nan)


def where_coherent(trained: Sequence[Trained], values) -> np.ndarray:
    """Values [N, …] of their last parameters; NaN where those are not coherent."""
    pairs = zip(trained, np.asarray(values, float), strict=True)
    return np.array([done.read(value, done.p_nDB[-1]) for done, value in pairs])


def mean_over(values, axis: int) -> np.ndarray:
    """The mean of what could be read; NaN where more than a quarter could not."""
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(axis)
    enough = known.mean(axis) >= 1 - MOST_MISSING
    return np.where(enough, total / np.maximum(known.sum(axis), 1), np.nan)


def arm(values, trained: Sequence[Trained] = (), read: Sequence[np.ndarray] | None = None) -> dict:
    """The record of an arm: one value for each unit, and its coherence.

    read: the behaviours [D, B] that the numbers are of, where not those at the matched effect.
    """
    record = {"values": np.asarray(values, float).tolist()}
    if read is not None:
        record["coherence"] = [float(coherence(p_DB).min()) for p_DB in read]
    elif trained:
        record["coherence"] = [done.coherence() for done in trained]
        record["steps"] = [SCORE_EVERY * done.place for done in trained]
    return record


def digest(value) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
