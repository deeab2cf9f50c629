"""Inside and outside the characters' hull: mixtures fitted to joints, and strangers to test them.

Axes: M joints   X contexts   O outcomes of all contexts   C characters   D domains
"""

from functools import cached_property

import numpy as np

from toyllm.measures import mixture
from toyllm.measures.mixture import Contexts, Fit, characters_joint
from toyllm.text import Codec
from toyllm.world import World

GAP = 1e-5  # where a fit may stop, nats


class Hull:
    """All mixtures of a world's characters, in the joint over two-turn dialogues."""

    def __init__(self, world: World, ctx: Contexts, members: range | None = None):
        """Of all characters of a world, or of some, in these contexts."""
        self.world, self.ctx, self.X = world, ctx, len(ctx.voice_X)
        self.members = members or range(len(world.characters))

    @staticmethod
    def of(codec: Codec, members: range | None = None) -> "Hull":
        """In the contexts that `mixture` draws."""
        return Hull(codec.world, mixture.contexts(codec), members)

    @cached_property
    def p_CO(self) -> np.ndarray:
        """Each character's joint."""
        joint_CXO = characters_joint(self.world, self.ctx)[list(self.members)]
        return joint_CXO.reshape(len(self.members), -1)

    def fit(self, P_MO: np.ndarray, shift: tuple[int, float] | None = None) -> Fit:
        """The nearest mixtures; with `shift` (domain, log-odds), of characters so edited."""
        p_CO = self.p_CO
        if shift:
            edited_CXO = characters_joint(self.world, self.ctx, *shift)[list(self.members)]
            p_CO = edited_CXO.reshape(p_CO.shape)
        return mixture.fit(P_MO, p_CO, self.X, GAP)

    def without(self, P_MO: np.ndarray, domains: tuple[int, ...]) -> tuple[np.ndarray, "Hull"]:
        """The joints, and the hull, in contexts that do not ask about these domains."""
        kept = ~np.isin(self.ctx.domain_X2, domains).any(1)
        return self.select(P_MO, kept)

    def select(self, P_MO: np.ndarray, kept_X: np.ndarray) -> tuple[np.ndarray, "Hull"]:
        """The joints, and the hull, in some contexts."""
        part = Hull(self.world, self.ctx.some(kept_X), self.members)
        return P_MO.reshape(len(P_MO), self.X, -1)[:, kept_X].reshape(len(P_MO), -1), part

    def kl(self, P_MO: np.ndarray, w_MC: np.ndarray) -> np.ndarray:
        """KL(P ‖ Σ w_c p_c) [M], nats a dialogue."""
        q_MO = np.maximum(w_MC @ self.p_CO, 1e-300)
        return (P_MO * (np.log(np.maximum(P_MO, 1e-300)) - np.log(q_MO))).sum(1) / self.X

    def override(self, P_O: np.ndarray, domain: int) -> tuple[float, float]:
        """The least residual when one scalar edits a domain's log-odds, and that scalar."""

        def cost(shift: float) -> float:
            return float(self.fit(P_O[None], (domain, shift)).residual_M[0])

        shift = mixture.golden(cost, -8.0, 8.0)
        return cost(shift), shift


def strangers(world: World, ctx: Contexts, count: int, seed: int = 0) -> np.ndarray:
    """Joints [count, O] of characters who exist nowhere: in each domain somebody else's rates."""
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
