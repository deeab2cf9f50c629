"""Inside and outside the characters' hull: mixtures fitted to joints over two-turn dialogues.

Axes: M joints   X contexts   O outcomes of all contexts   C characters
"""

import dataclasses
from collections.abc import Iterable
from functools import cached_property

import numpy as np

from toyllm.lm import joints
from toyllm.lm.joints import Contexts
from toyllm.lm.tokenizer import Tokenizer
from toyllm.world.mixtures import Fit, fit, golden
from toyllm.world.world import World

GAP = 1e-5  # where a fit may stop, nats


@dataclasses.dataclass(frozen=True)
class Hull:
    """All mixtures of a world's characters, compared with joints in some of the contexts.

    kept_X: the contexts that count. Methods take joints [M, O] over all contexts, as `Bench.joints`
        gives them; what is not known of a joint that is NaN is NaN.
    """

    world: World
    ctx: Contexts
    kept_X: np.ndarray

    @staticmethod
    def of_world(tokenizer: Tokenizer) -> "Hull":
        """The hull in all contexts."""
        ctx = joints.contexts(tokenizer)
        return Hull(tokenizer.world, ctx, np.ones(len(ctx.voice_X), bool))

    def without(self, *domains: str) -> "Hull":
        """In contexts that do not ask about these domains."""
        left_out = [self.world.domain_names.index(name) for name in domains]
        asks_X = np.isin(self.ctx.domain_X2, left_out).any(1)
        return dataclasses.replace(self, kept_X=self.kept_X & ~asks_X)

    @property
    def X(self) -> int:
        """The number of contexts."""
        return int(self.kept_X.sum())

    @cached_property
    def p_CO(self) -> np.ndarray:
        """Each character's joint, in the contexts that are kept."""
        return self.edited((), 0.0)

    def edited(self, domains: Iterable[int], shift: float) -> np.ndarray:
        """The same with the log-odds of bad shifted in some domains."""
        joint_CXO = joints.of_characters(self.world, self.ctx, domains, shift)
        return joint_CXO[:, self.kept_X].reshape(len(joint_CXO), -1)

    def fit(self, P_MO: np.ndarray, p_CO: np.ndarray | None = None) -> Fit:
        """The nearest mixtures of the characters, or of others with joints p_CO."""
        known_M = np.isfinite(P_MO).all(1)
        p_CO = self.p_CO if p_CO is None else p_CO
        known = fit(self._part(P_MO[known_M]), p_CO, self.X, GAP)
        filled = Fit(*(np.full((len(P_MO), *x.shape[1:]), np.nan) for x in known))
        for whole, part in zip(filled, known, strict=True):
            whole[known_M] = part
        return filled

    def residual(self, P_MO: np.ndarray) -> np.ndarray:
        """What no mixture explains [M], nats a dialogue."""
        return self.fit(P_MO).residual_M

    def kl(self, P_MO: np.ndarray, q_MO: np.ndarray) -> np.ndarray:
        """KL(P ‖ q) [M], nats a dialogue; q: joints in the contexts that are kept."""
        P_MO = self._part(P_MO)
        log_ratio = np.log(np.maximum(P_MO, 1e-300)) - np.log(np.maximum(q_MO, 1e-300))
        return (P_MO * log_ratio).sum(1) / self.X

    def override(self, P_O: np.ndarray, domain: int) -> tuple[float, float]:
        """The least residual when one scalar edits a domain's log-odds, and that scalar."""
        if np.isnan(P_O).any():
            return np.nan, np.nan

        def cost(shift: float) -> float:
            return float(self.fit(P_O[None], self.edited((domain,), shift)).residual_M[0])

        shift = golden(cost, -8.0, 8.0)
        return cost(shift), shift

    def _part(self, P_MO: np.ndarray) -> np.ndarray:
        """Joints over all contexts, cut to those that are kept."""
        return P_MO[:, np.repeat(self.kept_X, P_MO.shape[1] // len(self.kept_X))]
