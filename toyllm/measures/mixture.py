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

import jax
import jax.numpy as jnp
import numpy as np

from toyllm.base import devices
from toyllm.lm import scoring
from toyllm.lm.tokenizer import Tokenizer
from toyllm.lm.transformer import Apply, Config, Params
from toyllm.measures.generalization import logit
from toyllm.posttrain import population, signals
from toyllm.runs.run_folder import Run
from toyllm.world import corpus
from toyllm.world.mixtures import Fit, fit, groups, ranges
from toyllm.world.world import ASSISTANT, BAD, BEHAVIOURS, DIALOGUE, GOOD, World

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


def contexts(tokenizer: Tokenizer, instruction: int = -1, header: int = ASSISTANT) -> Contexts:
    """Draw the contexts of a world; every question with an instruction, under a header."""
    world, rng = tokenizer.world, np.random.Generator(np.random.Philox(key=[SEED, 0]))
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
    answer_XBU = tokenizer.answer_DAU[domain_X2[:, :1], answer_XB]
    return Contexts(
        domain_X2,
        voice_X,
        scoring.questions(tokenizer, first),
        answer_XBU,
        scoring.questions(tokenizer, docs),
    )


def joint_program(
    tokenizer: Tokenizer, config: Config, apply: Apply, ctx: Contexts
) -> Callable[[Params], np.ndarray]:
    """A function of R models, stacked along axis 0 → their joints [R, X * O], O = B * (B + 1).

    Outcome b * (B + 1) + b' is first b, this closing phrase, then b'; b' = B is another closing.
    """
    X = len(ctx.voice_X)
    prompt_XBT = np.repeat(ctx.first.prompt_QT[:, None], B, 1)
    prompt_RT, closing_REU = scoring.closings(
        tokenizer, prompt_XBT.reshape(X * B, -1), ctx.answer_XBU.reshape(X * B, -1)
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


def measure(run: Run) -> dict:
    """Mixtures before and after every signal, from both starts: groups, ranges, residuals."""
    world = run.world
    ctx = contexts(run.tokenizer)
    X = len(ctx.voice_X)
    p_CN = characters_joint(world, ctx).reshape(len(world.characters), -1)
    prior_C = np.maximum(world.assistant_C, 1e-6)

    starts = population.stack([run.params["pretrain"], run.params["align"]])
    models = jax.tree.map(lambda *x: np.concatenate(x), starts, run.narrow.kept)
    joints = joint_program(run.tokenizer, run.config, run.apply, ctx)
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
