"""Who the Assistant is: the nearest mixture of the world's characters, and what is left.

The model's joint over two-turn dialogues (lm/joints.py) is compared with Σ_c w_c p_c. The
characters' joint is linear in w, so the fit

    argmin_w E_context KL(model ‖ Σ_c w_c p_c)

is convex; it stops at a duality gap below 1e-6 (residuals of parts: 1e-4).

Axes: M models   X contexts   O outcomes of a context   N = X * O   C characters   G groups
"""

import jax
import numpy as np

from toyllm.base import devices
from toyllm.lm import joints
from toyllm.lm.joints import Contexts
from toyllm.measures import named
from toyllm.posttrain import signals
from toyllm.runs.run_folder import Run
from toyllm.world.mixtures import fit, golden, groups, ranges
from toyllm.world.world import World


def measure(run: Run) -> dict:
    """Mixtures before and after every signal, from both starts: groups, ranges, residuals."""
    world = run.world
    ctx = joints.contexts(run.lm.tokenizer)
    X = len(ctx.voice_X)
    p_CN = joints.of_characters(world, ctx).reshape(len(world.characters), -1)
    prior_C = np.maximum(world.assistant_C, 1e-6)

    starts = devices.stack([run.params["pretrain"], run.params["align"]])
    models = jax.tree.map(lambda *x: np.concatenate(x), starts, run.narrow.kept)
    before_SN, after_RN = np.split(joints.of_models(run.lm, ctx)(models), [2])
    base_N = before_SN[0]
    floor = fit(base_N[None], p_CN, X).residual_M[0]
    parts = groups(base_N, p_CN, prior_C, X, floor)
    labels = [" + ".join(world.characters[c] for c in part) for part in parts]

    def table(w_C) -> dict[str, float]:
        return named(labels, [w_C[part].sum() for part in parts])

    result = {"groups": labels, "truth": table(world.assistant_C), "contexts": X}
    for start, before_N in zip(("pretrain", "align"), before_SN, strict=True):
        names = run.narrow.matched(start)
        # one model a signal: the mean of its seeds' joints at the kept parameters
        after = [after_RN[run.narrow.rows(start, name)].mean(0) for name in names]
        P_MN = np.stack([before_N, *after])
        best = fit(P_MN, p_CN, X)
        weights = [table(w_C) for w_C in best.w_MC]
        spans = [named(labels, b_G2) for b_G2 in ranges(P_MN, p_CN, best, X, parts, floor)]
        left = [
            {"all": residual} | residuals(world, ctx, P_N, name)
            for P_N, residual, name in zip(P_MN[1:], best.residual_M[1:], names, strict=True)
        ]
        result[start] = {
            "before": weights[0],
            "before_range": spans[0],
            "after": named(names, weights[1:]),
            "after_range": named(names, spans[1:]),
            "residual_before": best.residual_M[0],
            "residual_after": named(names, left),
            "floor": floor,
        }
    return result


def residuals(world: World, ctx: Contexts, P_N: np.ndarray, name: str) -> dict:
    """KL (nats a dialogue): contexts without the trained domains; with one local override.

    The override is one scalar, added to the log-odds of bad in the first trained domain.
    """
    X, C = len(ctx.voice_X), len(world.characters)
    trained = signals.parse(world, name).domains
    off = ~np.isin(ctx.domain_X2, trained).any(1)
    result = dict.fromkeys(("off_domain", "override", "override_shift"))
    if off.any():
        P_off = P_N.reshape(X, -1)[off].reshape(1, -1)
        p_CXO = joints.of_characters(world, ctx)[:, off]
        fitted = fit(P_off, p_CXO.reshape(C, -1), int(off.sum()), 1e-5)
        result["off_domain"] = fitted.residual_M[0]
    if len(trained) == 1:

        def cost(shift: float) -> float:
            p_CN = joints.of_characters(world, ctx, trained, shift).reshape(C, -1)
            return fit(P_N[None], p_CN, X, 1e-4).residual_M[0]

        shift = golden(cost, -8.0, 8.0)
        result["override"], result["override_shift"] = cost(shift), shift
    return result
