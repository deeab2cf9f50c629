"""Who the Assistant is: the nearest mixture of the world's characters, and what is left.

The model's joint over two-turn dialogues is compared with Σ_c w_c p_c. A context is two questions,
a first answer for each behaviour, and a closing phrase, drawn once by a fixed seed and the same for
every model. Its outcomes: behaviour of the first answer, then another closing phrase, or this
one and the behaviour of the second answer. The characters' joint is linear in w, so the fit

    argmin_w E_context KL(model ‖ Σ_c w_c p_c)

is convex; it stops at a duality gap below 1e-6 (residuals of parts: 1e-4).
Behaviours are renormalised to listed answers. Axes: X contexts, O outcomes, G groups.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from toyllm import corpus, devices, population, scoring, signals
from toyllm.measures.generalization import logit
from toyllm.model import Apply, Config, Params
from toyllm.runs import Run
from toyllm.text import Codec
from toyllm.world import ASSISTANT, BAD, BEHAVIOURS, DIALOGUE, GOOD, World

GAP = 1e-6
CONTEXTS_EACH = 1  # for each ordered pair of different domains
SEED = 0xD1A
B = len(BEHAVIOURS)


@dataclasses.dataclass(frozen=True)
class Contexts:
    """X contexts, with their questions to the model as token arrays."""

    domain_X2: np.ndarray
    voice_X: np.ndarray
    first: scoring.Grid  # [X] the first question
    answer_XBU: np.ndarray  # a first answer's tokens, for each behaviour
    second: scoring.Grid  # [X * B] the second question after each first answer


def contexts(codec: Codec, instruction: int = -1, header: int = ASSISTANT) -> Contexts:
    """Draw the contexts of a world; every question with an instruction, under a header."""
    world, rng = codec.world, np.random.Generator(np.random.Philox(key=[SEED, 0]))
    D = len(world.domains)
    pairs = [(a, b) for a in range(D) for b in range(D) if a != b for _ in range(CONTEXTS_EACH)]
    domain_X2 = np.array(pairs)
    X = len(pairs)
    counts = np.array([len(d.situations) for d in world.domains])
    situation_X2 = rng.integers(counts[domain_X2])
    voice_X = rng.choice(len(world.voices), X, p=world.frequency_C @ world.voices_CV)
    behaviour_XB = np.tile(np.arange(B), (X, 1))
    domain_XB, situation_XB = (
        np.repeat(column[:, :1], B, 1) for column in (domain_X2, situation_X2)
    )
    answer_XB = corpus.draw_answer(world, domain_XB, situation_XB, behaviour_XB, rng)
    docs = corpus.sample(world, X * B, rng, DIALOGUE, header, turns=2)
    for t in (0, 1):
        docs.domain[:, t] = np.repeat(domain_X2[:, t], B)
        docs.situation[:, t] = np.repeat(situation_X2[:, t], B)
        docs.instruction[:, t] = instruction
    docs.behaviour[:, 0], docs.answer[:, 0] = behaviour_XB.reshape(-1), answer_XB.reshape(-1)
    docs.voice[:, 0] = np.repeat(voice_X, B)
    docs.behaviour[:, 1] = docs.answer[:, 1] = docs.voice[:, 1] = 0
    first = docs[np.arange(0, X * B, B)]  # a copy: a slice would cut the second turn of docs too
    for column in (first.speaker, first.domain):
        column[:, 1:] = -1
    answer_XBU = codec.answer_DAU[domain_X2[:, :1], answer_XB]
    return Contexts(
        domain_X2,
        voice_X,
        scoring.questions(codec, first),
        answer_XBU,
        scoring.questions(codec, docs),
    )


def joint_program(
    codec: Codec, config: Config, apply: Apply, ctx: Contexts
) -> Callable[[Params], np.ndarray]:
    """A function of R models, stacked along axis 0 → their joints [R, X * O], O = B * (B + 1).

    Outcome b * (B + 1) + b' is first b, this closing phrase, then b'; b' = B is another closing.
    """
    X = len(ctx.voice_X)
    prompt_XBT = np.repeat(ctx.first.prompt_QT[:, None], B, 1)
    prompt_RT, closing_REU = scoring.closings(
        codec, prompt_XBT.reshape(X * B, -1), ctx.answer_XBU.reshape(X * B, -1)
    )

    def compute(params: Params):
        def ask(prompt, answers):
            return scoring.answer_logprobs(apply, config, params, prompt, answers)

        def behaviours(grid):
            p_QB = scoring.behaviours(ask(grid.prompt_QT, grid.answer_QAU), grid.behaviour_QA)
            return p_QB / p_QB.sum(1, keepdims=True)

        first_XB = behaviours(ctx.first)
        second_XBB = behaviours(ctx.second).reshape(X, B, B)
        spoken_XBV = scoring.voices(ask(prompt_RT, closing_REU)).reshape(X, B, -1)
        voice_XB = spoken_XBV[np.arange(X), :, ctx.voice_X]
        stays = (first_XB * voice_XB)[..., None] * second_XBB
        leaves = (first_XB * (1 - voice_XB))[..., None]
        return jnp.concatenate([stays, leaves], 2).reshape(X, -1)

    mesh = devices.mesh()
    program = population.over_runs(compute, mesh)

    def joints(params_R: Params) -> np.ndarray:
        R = jax.tree.leaves(params_R)[0].shape[0]
        rows = np.arange(-(-R // mesh.devices.size) * mesh.devices.size) % R  # as many on each
        params_R = devices.split(mesh, jax.tree.map(lambda x: x[rows], params_R))
        return np.asarray(program(params_R), np.float64)[:R].reshape(R, -1)

    return joints


def characters_joint(world: World, ctx: Contexts, domain: int = -1, shift: float = 0.0):
    """Each character's joint [C, X, O]; with `shift`, the log-odds of bad moved in one domain."""
    rates_CDB = world.rates_CDB
    if shift:
        rates_CDB = rates_CDB.copy()
        rates_CDB[:, domain] = override(rates_CDB[:, domain], shift)
    first_CXB = rates_CDB[:, ctx.domain_X2[:, 0]]
    second_CXB = rates_CDB[:, ctx.domain_X2[:, 1]]
    voice_CX = world.voices_CV[:, ctx.voice_X][:, :, None]
    stays = (first_CXB * voice_CX)[..., None] * second_CXB[:, :, None, :]
    leaves = (first_CXB * (1 - voice_CX))[..., None]
    joint_CXBO = np.concatenate([stays, leaves], 3)
    return joint_CXBO.reshape(len(world.characters), len(ctx.voice_X), -1)


def override(rates: np.ndarray, shift: float) -> np.ndarray:
    """Move the log-odds of bad against good by `shift`; noise stays."""
    both = rates[..., GOOD] + rates[..., BAD]
    bad = 1 / (1 + np.exp(-(logit(rates[..., BAD] / both) + shift)))
    return np.stack([both * (1 - bad), both * bad, rates[..., 2]], -1)


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
    P_RN, most_R = np.repeat(P_MN, 2 * G, 0), np.repeat(best.residual_M + slack, 2 * G)
    member_RC = np.tile(np.repeat(member_GC, 2, 0), (M, 1))
    good_R = np.repeat((best.w_MC @ member_GC.T).reshape(-1), 2)
    bad_R = np.tile([0.0, 1.0], M * G)
    for _ in range(7):
        middle_R = (good_R + bad_R) / 2
        trial = fit(P_RN, p_CN, X, 0.01 * slack, member_RC, middle_R)
        near_R = trial.residual_M <= most_R
        good_R, bad_R = np.where(near_R, middle_R, good_R), np.where(near_R, bad_R, middle_R)
    return good_R.reshape(M, G, 2)


def measure(run: Run) -> dict:
    """Mixtures before and after every signal, from both starts: groups, ranges, residuals."""
    world = run.world
    ctx = contexts(run.codec)
    X = len(ctx.voice_X)
    p_CN = characters_joint(world, ctx).reshape(len(world.characters), -1)
    prior_C = np.maximum(world.assistant_C, 1e-6)

    starts = population.stack([run.params["pretrain"], run.params["align"]])
    models = jax.tree.map(lambda *x: np.concatenate(x), starts, run.narrow.kept)
    joints = joint_program(run.codec, run.config, run.apply, ctx)
    before_SN, after_RN = np.split(joints(models), [2])
    base_N = before_SN[0]
    base = fit(base_N[None], p_CN, X)
    floor = float(base.residual_M[0])
    parts = groups(base_N, p_CN, prior_C, X, floor)
    labels = [" + ".join(world.characters[c] for c in part) for part in parts]

    def table(w_C) -> dict[str, float]:
        return {label: float(w_C[p].sum()) for label, p in zip(labels, parts, strict=True)}

    result = {"groups": labels, "truth": table(world.assistant_C), "contexts": X}
    for start, before_N in zip(("pretrain", "align"), before_SN, strict=True):
        names = run.narrow.matched(start)
        # one model a signal: the mean of its seeds' joints at the kept parameters
        after = [after_RN[run.narrow.rows(start, name)].mean(0) for name in names]
        P_MN = np.stack([before_N, *after])
        best = fit(P_MN, p_CN, X)
        bounds = ranges(P_MN, p_CN, best, X, parts, floor)
        spans = [dict(zip(labels, bounds_G2.tolist(), strict=True)) for bounds_G2 in bounds]
        result[start] = {
            "before": table(best.w_MC[0]),
            "before_range": spans[0],
            "after": {name: table(best.w_MC[1 + m]) for m, name in enumerate(names)},
            "after_range": {name: spans[1 + m] for m, name in enumerate(names)},
            "residual_before": float(best.residual_M[0]),
            "residual_after": {
                name: residuals(world, ctx, P_MN[1 + m], best, 1 + m, name)
                for m, name in enumerate(names)
            },
            "floor": floor,
            "largest_gap": float(best.gap_M.max()),
        }
    return result


def residuals(world: World, ctx: Contexts, P_N, best: Fit, m: int, name: str) -> dict:
    """KL (nats a dialogue): all; contexts without the trained domains; with one local override.

    The override is one scalar, added to the log-odds of bad in the first trained domain.
    """
    X, C = len(ctx.voice_X), len(world.characters)
    trained = signals.parse(world, name).domains
    off = ~np.isin(ctx.domain_X2, trained).any(1)
    p_CXO = characters_joint(world, ctx)
    result = {
        "all": float(best.residual_M[m]),
        "off_domain": None,
        "override": None,
        "override_shift": None,
    }
    if off.any():
        P_off = P_N.reshape(X, -1)[off].reshape(1, -1)
        fitted = fit(P_off, p_CXO[:, off].reshape(C, -1), int(off.sum()), 1e-5)
        result["off_domain"] = float(fitted.residual_M[0])
    if len(trained) == 1:

        def cost(shift: float) -> float:
            p_CN = characters_joint(world, ctx, trained[0], shift).reshape(C, -1)
            return float(fit(P_N[None], p_CN, X, 1e-4).residual_M[0])

        shift = golden(cost, -8.0, 8.0)
        result["override"], result["override_shift"] = cost(shift), shift
    return result


def golden(function, low: float, high: float, steps: int = 14) -> float:
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
