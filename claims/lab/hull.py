"""Inside and outside the characters' hull: mixtures fitted to joints, and strangers to test them.

Axes: M joints   X contexts   O outcomes of all contexts   C characters   D domains
"""

from collections.abc import Iterable
from functools import cached_property

import numpy as np

from toyllm.lm import joints
from toyllm.lm.joints import Contexts
from toyllm.lm.tokenizer import Tokenizer
from toyllm.world.mixtures import Fit, fit, golden
from toyllm.world.world import World

GAP = 1e-5  # where a fit may stop, nats


class Hull:
    """All mixtures of a world's characters, in the joint over two-turn dialogues."""

    def __init__(self, world: World, ctx: Contexts, members: range, kept_X: np.ndarray):
        """The hull of some characters, in the contexts that are kept [X]."""
        self.world, self.ctx, self.members, self.kept_X = world, ctx, members, kept_X
        self.X = int(kept_X.sum())

    @staticmethod
    def of_world(tokenizer: Tokenizer, members: range | None = None) -> "Hull":
        """The hull in all contexts that `mixture` draws; by default of all characters."""
        ctx = joints.contexts(tokenizer)
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
        joint_CXO = joints.of_characters(self.world, self.ctx, domains, shift)[list(self.members)]
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

        shift = golden(cost, -8.0, 8.0)
        return cost(shift), shift
