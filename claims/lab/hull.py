"""Inside and outside the characters' hull: mixtures fitted to joints, and strangers to test them.

Axes: M joints   X contexts   O outcomes of all contexts   C characters   D domains
"""

import dataclasses
from collections.abc import Iterable
from functools import cached_property

import numpy as np

from toyllm.lm.tokenizer import Tokenizer
from toyllm.measures import mixture
from toyllm.measures.mixture import Contexts
from toyllm.world.mixtures import Fit, fit
from toyllm.world.world import World

GAP = 1e-5  # where a fit may stop, nats


class Hull:
    """All mixtures of a world's characters, in the joint over two-turn dialogues."""

    def __init__(self, world: World, ctx: Contexts, members: range, kept_X: np.ndarray):
        """Of some characters, in the contexts that are kept [X]."""
        self.world, self.ctx, self.members, self.kept_X = world, ctx, members, kept_X
        self.X = int(kept_X.sum())

    @staticmethod
    def of_world(tokenizer: Tokenizer, members: range | None = None) -> "Hull":
        """In all contexts that `mixture` draws; of all characters unless told."""
        ctx = mixture.contexts(tokenizer)
        members = members or range(len(tokenizer.world.characters))
        return Hull(tokenizer.world, ctx, members, np.ones(len(ctx.voice_X), bool))

    def where(self, kept_X: np.ndarray) -> "Hull":
        """The same characters in some of the contexts."""
        return Hull(self.world, self.ctx, self.members, self.kept_X & kept_X)

    def without(self, domains: tuple[int, ...]) -> "Hull":
        """In contexts that do not ask about these domains."""
        return self.where(~np.isin(self.ctx.domain_X2, domains).any(1))

    def part(self, P_MO: np.ndarray) -> np.ndarray:
        """Joints over all contexts, cut to those that are kept."""
        whole = P_MO.reshape(len(P_MO), len(self.kept_X), -1)
        return whole[:, self.kept_X].reshape(len(P_MO), -1)

    @cached_property
    def p_CO(self) -> np.ndarray:
        """Each character's joint."""
        return self.edited((), 0.0)

    def edited(self, domains: Iterable[int], shift: float) -> np.ndarray:
        """Each character's joint [C, O] with the log-odds of bad shifted in some domains."""
        rates_CDB = self.world.rates_CDB.copy()
        for domain in domains:
            rates_CDB[:, domain] = mixture.override(rates_CDB[:, domain], shift)
        world = dataclasses.replace(self.world, rates_CDB=rates_CDB)
        joint_CXO = mixture.characters_joint(world, self.ctx)[list(self.members)]
        return self.part(joint_CXO.reshape(len(self.members), -1))

    def fit(self, P_MO: np.ndarray, p_CO: np.ndarray | None = None) -> Fit:
        """The nearest mixtures of the characters, or of others with joints p_CO."""
        return fit(P_MO, self.p_CO if p_CO is None else p_CO, self.X, GAP)

    def kl(self, P_MO: np.ndarray, w_MC: np.ndarray) -> np.ndarray:
        """KL(P ‖ Σ w_c p_c) [M], nats a dialogue."""
        return self.divergence(P_MO, w_MC @ self.p_CO)

    def divergence(self, P_MO: np.ndarray, q_MO: np.ndarray) -> np.ndarray:
        """KL(P ‖ q) [M], nats a dialogue."""
        log_ratio = np.log(np.maximum(P_MO, 1e-300)) - np.log(np.maximum(q_MO, 1e-300))
        return (P_MO * log_ratio).sum(1) / self.X

    def override(self, P_O: np.ndarray, domain: int) -> tuple[float, float]:
        """The least residual when one scalar edits a domain's log-odds, and that scalar."""

        def cost(shift: float) -> float:
            return float(self.fit(P_O[None], self.edited((domain,), shift)).residual_M[0])

        shift = mixture.golden(cost, -8.0, 8.0)
        return cost(shift), shift


def strangers(world: World, ctx: Contexts, count: int, seed: int = 0) -> np.ndarray:
    """Joints [count, O], over all contexts, of characters who exist nowhere.

    In each domain a stranger has the rates of somebody else, drawn anew; it speaks with all voices.
    """
    rng = np.random.default_rng([seed, 0x57A])
    C, D = len(world.characters), len(world.domains)
    first_XB, voice = ctx.domain_X2, world.frequency_C @ world.voices_CV
    result = []
    for _ in range(count):
        rates_DB = world.rates_CDB[rng.integers(C, size=D), np.arange(D)]
        voice_X = voice[ctx.voice_X][:, None]
        first = rates_DB[first_XB[:, 0]]
        stays = (first * voice_X)[..., None] * rates_DB[first_XB[:, 1]][:, None, :]
        leaves = (first * (1 - voice_X))[..., None]
        result.append(np.concatenate([stays, leaves], 2).reshape(-1))
    return np.stack(result)
