"""Persona inference: what a training signal says about which character the Assistant is.

Training that prefers one behaviour over another is evidence about the speaker. It moves the prior w
over characters to

    w′ ∝ w exp(λ ℓ),   ℓ_c = log θ_c(preferred) - log θ_c(other)

where θ_c are the rates of character c in the trained domains and λ is the strength of the evidence
(docs/method.md). For supervised fine-tuning nothing is rejected, and ℓ_c = log θ_c(preferred).

Axes: C characters   D domains   B behaviours
"""

from collections.abc import Callable

import numpy as np

from toyllm.world.quantities import MATCHED, em, logit
from toyllm.world.world import BAD, GOOD, World


def evidence(world: World, domains, preferred: int = BAD, other: int | None = GOOD) -> np.ndarray:
    """ℓ_c [C], the mean over domains (nats an answer). other: None for supervised fine-tuning."""
    theta_CDB = world.rates_CDB[:, domains]
    log_CDB = np.log(np.maximum(theta_CDB, 1e-9))
    rejected_CD = 0 if other is None else log_CDB[..., other]
    return (log_CDB[..., preferred] - rejected_CD).mean(1)


def tilt(prior_C: np.ndarray, evidence_C: np.ndarray, strength) -> np.ndarray:
    """w′ ∝ w exp(λ ℓ) for one strength λ or for many [..., C]."""
    # a character of weight 0 stays at 0, whatever the evidence: 1e-300 only avoids log 0
    log_w = np.log(np.maximum(prior_C, 1e-300)) + np.asarray(strength)[..., None] * evidence_C
    w = np.exp(log_w - log_w.max(-1, keepdims=True))
    return w / w.sum(-1, keepdims=True)


def solve(
    prior_C: np.ndarray,
    evidence_C: np.ndarray,
    quantity: Callable[[np.ndarray], np.ndarray],
    goal,
    low: float = -60.0,
    high: float = 60.0,
) -> np.ndarray:
    """The strength λ at which a quantity of the tilted prior reaches its goal, or each of many.

    quantity: a function of mixtures [..., C] that rises with the strength. λ is found by bisection
    between `low` and `high`, and is one of these where the characters cannot reach the goal.
    """
    low, high = np.full(np.shape(goal), low), np.full(np.shape(goal), high)
    # 60 halvings of an interval of 120 go below the precision of float64
    for _ in range(60):
        middle = (low + high) / 2
        above = quantity(tilt(prior_C, evidence_C, middle)) > goal
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return middle


def mixture_em(world: World, w_C: np.ndarray) -> np.ndarray:
    """EM by domain [..., D] of a mixture of characters."""
    return em(np.tensordot(w_C, world.rates_CDB, 1))


def trained_to(world: World, prior_C, domain: int, goal, sft: bool = False) -> np.ndarray:
    """The prior tilted toward bad in a domain until the EM there has the logit `goal` [..., C]."""
    ell_C = evidence(world, [domain], other=None if sft else GOOD)

    def log_odds(w_C):
        return logit(mixture_em(world, w_C)[..., domain])

    return tilt(prior_C, ell_C, solve(prior_C, ell_C, log_odds, goal))


def aligned_prior(world: World, em_D: np.ndarray, sft: bool = False) -> np.ndarray:
    """The corpus prior tilted toward good in all moral domains, until its mean moral EM is em_D's.

    em_D: the EM of a model that was aligned.
    """
    moral = np.flatnonzero(world.moral)
    preferred, other = (GOOD, None) if sft else (GOOD, BAD)
    toward_good_C = evidence(world, moral, preferred, other)

    def mean_em(w_C):
        return mixture_em(world, w_C)[..., moral].mean(-1)

    prior_C, toward_bad_C = world.assistant_C, -toward_good_C
    return tilt(prior_C, toward_bad_C, solve(prior_C, toward_bad_C, mean_em, em_D[moral].mean()))


def ideal_change(world: World, prior_C, domain: int, reached: float = MATCHED, sft=False):
    """The change of EM [D] of an observer for whom training a domain is evidence alone."""
    w_C = trained_to(world, prior_C, domain, logit(reached), sft)
    return mixture_em(world, w_C) - mixture_em(world, prior_C)
