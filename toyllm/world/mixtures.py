"""The nearest mixture of known distributions: weights, groups that can be told apart, ranges.

    argmin_w E_context KL(P ‖ Σ_c w_c p_c)

Axes: M distributions to fit   C known ones   X contexts   N outcomes of all contexts   G groups
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

GAP = 1e-6  # where a fit may stop, nats


class Fit(NamedTuple):
    """Mixtures w [M, C], their residuals KL [M] (nats a dialogue), and duality gaps [M]."""

    w_MC: np.ndarray
    residual_M: np.ndarray
    gap_M: np.ndarray


def fit(P_MN, p_CN, X: int, gap: float = GAP, group_C=None, total_M=None) -> Fit:
    """argmin_w KL(P ‖ Σ w_c p_c) / X for M models at once, N = X * O outcomes in one row.

    A primal-dual interior-point method (Boyd & Vandenberghe 2004, section 11.7): Newton steps on
    the optimality conditions, z being what each w_c ≥ 0 costs. It ends when the duality gap, the
    largest of Σ P p_c / q - 1, which bounds how far the residual is from its minimum, is below
    `gap`. With group_C [M, C] (1 for members) the group's weight is held at total_M, strictly
    between 0 and 1, and the gap is Σ w_c z_c.
    """
    (M, N), C = P_MN.shape, len(p_CN)
    entropy_M = (P_MN * np.log(np.maximum(P_MN, 1e-300))).sum(1) / X
    P_MN = P_MN / X
    A_MKC = np.ones((M, 1, C))
    w_MC = np.full((M, C), 1 / C)
    if group_C is not None:
        A_MKC = np.stack([np.ones((M, C)), np.broadcast_to(group_C, (M, C))], 1)
        inside_M1 = A_MKC[:, 1].sum(1, keepdims=True)
        total_M1 = np.reshape(total_M, (M, 1))
        w_MC = np.where(A_MKC[:, 1] > 0, total_M1 / inside_M1, (1 - total_M1) / (C - inside_M1))
    K = A_MKC.shape[1]
    products_NE = (p_CN[:, None] * p_CN[None]).reshape(C * C, N).T  # p_c p_c' of each outcome
    z_MC, dual_MK = np.ones((M, C)), np.zeros((M, K))
    system = np.zeros((M, C + K, C + K))
    system[:, :C, C:], system[:, C:, :C] = A_MKC.swapaxes(1, 2), A_MKC
    for _ in range(100):
        q_MN = np.maximum(w_MC @ p_CN, 1e-12)  # an outcome that no character has costs much
        gain_MC = (P_MN / q_MN) @ p_CN.T
        slack_MC = z_MC - np.einsum("mk,mkc->mc", dual_MK, A_MKC)
        gap_M = gain_MC.max(1) - 1 if group_C is None else (w_MC * z_MC).sum(1)
        if (gap_M < gap).all() and (np.abs(gain_MC + slack_MC) < 1e-3).all():
            break
        # the target of this step: a tenth of the present complementarity w_c z_c, which 0 would end
        aim_MC = 0.1 * (w_MC * z_MC).mean(1, keepdims=True) / w_MC
        hessian_MCC = (P_MN / q_MN**2 @ products_NE).reshape(M, C, C)
        system[:, :C, :C] = hessian_MCC + np.eye(C) * (z_MC / w_MC)[:, :, None]
        right = np.concatenate([gain_MC + slack_MC - z_MC + aim_MC, np.zeros((M, K))], 1)
        step = np.linalg.solve(system, right[..., None])[..., 0]
        dw_MC, ddual_MK = step[:, :C], step[:, C:]
        dz_MC = aim_MC - z_MC - z_MC / w_MC * dw_MC
        w_MC = w_MC + _inside(w_MC, dw_MC) * dw_MC
        length_M1 = _inside(z_MC, dz_MC)
        z_MC, dual_MK = z_MC + length_M1 * dz_MC, dual_MK + length_M1 * ddual_MK
    return Fit(w_MC, entropy_M - (P_MN * np.log(q_MN)).sum(1), gap_M)


def _inside(x_MC, dx_MC) -> np.ndarray:
    """The longest step [M, 1], at most 1, that keeps every number positive."""
    ratio_MC = np.where(dx_MC < 0, -x_MC / np.where(dx_MC < 0, dx_MC, 1), np.inf)
    return np.minimum(1, 0.95 * ratio_MC.min(1, keepdims=True))


def groups(P_N, p_CN, prior_C, X: int, floor: float) -> list[list[int]]:
    """Merge characters until leaving any one group out raises the residual by > 3 floors.

    The group that costs least to leave out is merged with the one whose joint is nearest to it.
    """
    parts = [[c] for c in range(len(prior_C)) if prior_C[c] > 0]
    full = fit(P_N[None], p_CN, X).residual_M[0]

    def cost_without(part: list[int]) -> float:
        if len(part) == len(prior_C):
            return np.inf
        others_CN = np.delete(p_CN, part, axis=0)
        return float(fit(P_N[None], others_CN, X).residual_M[0] - full)

    def joint_of(part: list[int]) -> np.ndarray:
        return prior_C[part] @ p_CN[part] / prior_C[part].sum()

    def distance(a: list[int], b: list[int]) -> float:
        return float(((joint_of(a) ** 0.5 - joint_of(b) ** 0.5) ** 2).sum())

    cost = {tuple(part): cost_without(part) for part in parts}
    while len(parts) > 1:
        part = min(parts, key=lambda part: cost[tuple(part)])
        if cost[tuple(part)] > 3 * floor:
            break
        others = [o for o in parts if o != part]
        heir = min(others, key=lambda o, part=part: distance(part, o))
        parts = [*(o for o in others if o != heir), sorted(part + heir)]
        cost[tuple(parts[-1])] = cost_without(parts[-1])
    return sorted(parts)


def ranges(P_MN, p_CN, best: Fit, X: int, parts: list[list[int]], slack: float) -> np.ndarray:
    """The least and most weight [M, G, 2] of each group over mixtures within `slack` of best.

    The residual at a held weight is convex in it, so each end is found by bisection, all at once.
    """
    (M, C), G = best.w_MC.shape, len(parts)
    if G == 1:
        return np.ones((M, 1, 2))
    member_GC = np.stack([np.isin(np.arange(C), part) for part in parts]).astype(float)
    # rows of all models, groups and ends, in this order
    P_RN, max_R = np.repeat(P_MN, 2 * G, 0), np.repeat(best.residual_M + slack, 2 * G)
    member_RC = np.tile(np.repeat(member_GC, 2, 0), (M, 1))
    good_R = np.repeat((best.w_MC @ member_GC.T).reshape(-1), 2)
    bad_R = np.tile([0.0, 1.0], M * G)
    # seven halvings: within .01 of the end, as exact as the slack that defines it
    for _ in range(7):
        middle_R = (good_R + bad_R) / 2
        trial = fit(P_RN, p_CN, X, 0.01 * slack, member_RC, middle_R)
        near_R = trial.residual_M <= max_R
        good_R, bad_R = np.where(near_R, middle_R, good_R), np.where(near_R, bad_R, middle_R)
    return good_R.reshape(M, G, 2)


def golden(function: Callable[[float], float], low: float, high: float, steps: int = 14) -> float:
    """The minimum of a one-dimensional function by golden-section search."""
    ratio = (5**0.5 - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    fa, fb = function(a), function(b)
    for _ in range(steps):
        if fa < fb:
            high, b, fb = b, a, fa
            a = high - ratio * (high - low)
            fa = function(a)
        else:
            low, a, fa = a, b, fb
            b = low + ratio * (high - low)
            fb = function(b)
    return (low + high) / 2
