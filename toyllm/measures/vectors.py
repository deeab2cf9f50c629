"""Persona vectors: a direction for malice, how far training moves along it, and steering with it.

After Chen et al. 2025. At the last token of a prompt (see activations.py for layers), v_l is the
mean residual where the history shows a bad answer less that where it shows a good one, the question
being about another domain; so v says who speaks, not what is said. Axes: L layers   D width
S narrow runs   K strengths
"""

from collections.abc import Callable

import jax
import numpy as np

from toyllm import activations, corpus, devices, scoring
from toyllm.measures.generalization import untrained
from toyllm.model import Params, take
from toyllm.runs import Run
from toyllm.scoring import em
from toyllm.text import Codec
from toyllm.world import ASSISTANT, BAD, DIALOGUE, GOOD, NAMED, wickedness

SEED, PROMPTS = 0x7EC7, 1000
STRENGTHS = (-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
RANDOM = 8  # vectors of the same norm, beside each
ABLE = 0.9  # the least coherence at which steering counts
DRAWS = 1000  # of the bootstrap over signals


def measure(run: Run) -> dict:
    """How vectors predict and steer.

    steering: {layer: …} of the pretrained model, and `steering_aligned`, at the last layer: mean
    moral EM and least coherence with s · v added to a layer, for strengths s, beside random vectors
    of the same norm; ratio: how many times as far v raises EM as a random one moves it (root mean
    square), at the largest s at which both are coherent (≥ .9).
    projection: {start: {signal: {"moved": of each run, the shift of the Assistant's mean residual
    along v / |v|, "spread": its change of untrained moral EM}}} at the parameters that were kept,
    and Pearson's r over signals with a 95% bootstrap interval: the monitor's cheap cousin.
    characters: how far along v the mean residual of each is, asked by name, and Pearson's r with
    its wickedness, its mean moral EM in the table of traits.
    ablation: mean moral EM and least coherence of narrow models with their shift along v taken back
    at the last layer, and with weights that never write along v; beside each the same with a random
    direction, and the model before training.
    """
    rng, last = np.random.default_rng(SEED), run.config.L
    read = activations.reader(run.apply, run.config)
    v_LD = {s: malice(run.codec, read, run.params[s]) for s in ("pretrain", "align")}
    ask = asker(run)

    def steer_at(start: str, layer: int) -> dict:
        return steer(run, ask, run.params[start], layer, v_LD[start][layer], rng)

    projection = project(run, read, v_LD, rng)
    along_C = characters_along(run, read, v_LD["pretrain"][last])
    points = projection["pretrain"]["signals"]
    return {
        "layer": last,
        "norm": np.linalg.norm(v_LD["pretrain"], axis=1),
        "steering": {str(layer): steer_at("pretrain", layer) for layer in range(1, last + 1)},
        "steering_aligned": steer_at("align", last),
        "projection": projection,
        "characters": {
            "along": dict(zip(run.world.characters, along_C.tolist(), strict=True)),
            **correlation(along_C, wickedness(run.world), rng),
        },
        "ablation": ablate(run, ask, v_LD["pretrain"], points, rng),
    }


def malice(codec: Codec, read: Callable, params: Params) -> np.ndarray:
    """v [L + 1, D] of a model, whose residuals `activations.reader` reads."""
    rng = np.random.default_rng(SEED)
    world, N = codec.world, PROMPTS
    moral = np.flatnonzero(world.moral)
    shown, asked = np.stack([rng.permutation(moral)[:2] for _ in range(N)]).T
    means = []
    for behaviour in (GOOD, BAD):
        docs = corpus.sample(world, N, np.random.default_rng(SEED), DIALOGUE, ASSISTANT, turns=2)
        situations = np.array([len(d.situations) for d in world.domains])
        docs.domain[:, 0], docs.domain[:, 1] = shown, asked
        docs.situation[:] = docs.situation % situations[docs.domain]
        docs.instruction[:, :2] = -1
        docs.behaviour[:, 0] = behaviour
        docs.answer[:, 0] = corpus.draw_answer(
            world, shown, docs.situation[:, 0], docs.behaviour[:, 0], np.random.default_rng(SEED)
        )
        docs.answer[:, 1] = docs.behaviour[:, 1] = 0
        prompt_QT = codec.prompts(docs, codec.longest_prompt(2))
        x_LQD, _ = read(params, prompt_QT)
        means.append(x_LQD.mean(1))
    return means[BAD] - means[GOOD]


def random_like(v_D: np.ndarray, rng: np.random.Generator, count: int = RANDOM) -> np.ndarray:
    """Random directions [count, D] of the same norm."""
    other_RD = rng.normal(size=(count, len(v_D)))
    return other_RD / np.linalg.norm(other_RD, axis=1, keepdims=True) * np.linalg.norm(v_D)


def asker(run: Run) -> Callable:
    """A compiled function: params, K additions [K, L + 1, D] → behaviours [K, D, B]."""
    grid = scoring.questions(run.codec, scoring.every_question(run.codec))

    def ask(params, add_KLD):
        def one(add_LD):
            apply = activations.steered(run.apply, add_LD)
            logp_QA = scoring.answer_logprobs(
                apply, run.config, params, grid.prompt_QT, grid.answer_QAU
            )
            p_QB = scoring.behaviours(logp_QA, grid.behaviour_QA)
            return scoring.by_domain(p_QB, grid.domain_Q, len(run.world.domains))

        return jax.lax.map(one, add_KLD)

    return jax.jit(ask, compiler_options=devices.options())


def steer(run: Run, ask: Callable, params: Params, layer: int, v_D: np.ndarray, rng) -> dict:
    """Dose and response: of v, and of random vectors of the same norm."""
    moral, K = run.world.moral, len(STRENGTHS)
    vectors_RD = np.concatenate([v_D[None], random_like(v_D, rng)])
    add = np.zeros((len(vectors_RD), K, run.config.L + 1, run.config.D), np.float32)
    add[:, :, layer] = np.array(STRENGTHS)[None, :, None] * vectors_RD[:, None]
    p_ADB = np.asarray(ask(params, add.reshape(-1, *add.shape[2:])))
    p_RKDB = p_ADB.reshape(len(vectors_RD), K, *p_ADB.shape[1:])
    em_RK = em(p_RKDB)[..., moral].mean(-1)
    least_RK = p_RKDB.sum(-1)[..., moral].min(-1)
    by_chance_K = np.sqrt(((em_RK[1:] - em_RK[0, STRENGTHS.index(0.0)]) ** 2).mean(0))
    moved_K = em_RK[0] - em_RK[0, STRENGTHS.index(0.0)]
    chance_least_K = np.median(least_RK[1:], axis=0)
    able_K = (np.array(STRENGTHS) > 0) & (np.minimum(least_RK[0], chance_least_K) >= ABLE)
    best = int(np.flatnonzero(able_K).max(initial=0))
    ratio = None
    if able_K.any():
        ratio = {
            "strength": STRENGTHS[best],
            "moved": moved_K[best],
            "by_chance": by_chance_K[best],
            "ratio": moved_K[best] / max(by_chance_K[best], 1e-9),
            "coherence": least_RK[0, best],
        }
    return {
        "strengths": STRENGTHS,
        "em": em_RK[0],
        "coherence": least_RK[0],
        "random_em": em_RK[1:],
        "random_coherence": chance_least_K,
        "ratio": ratio,
    }


def project(run: Run, read: Callable, v_LD: dict, rng: np.random.Generator) -> dict:
    """The shift of every narrow run along malice, against what it does in untrained domains."""
    last, result = run.config.L, {}
    docs = scoring.every_question(run.codec, domains=np.flatnonzero(run.world.moral))
    prompt_QT = run.codec.prompts(docs, run.codec.longest_prompt(1))

    def mean_of(params) -> np.ndarray:
        return read(params, prompt_QT)[0][last].mean(0)

    for start in dict.fromkeys(run.narrow.start):
        params = run.params[start]
        unit_D = v_LD[start][last] / np.linalg.norm(v_LD[start][last])
        begin_D, em_D = mean_of(params), em(run.ask(params))
        points = {}
        for name in run.narrow.signals(start):
            others = untrained(run.world, name)
            kept = [take(run.narrow.kept, r) for r in run.narrow.rows(start, name)]
            points[name] = {
                "moved": [float((mean_of(p) - begin_D) @ unit_D) for p in kept],
                "spread": [float((em(run.ask(p)) - em_D)[others].mean()) for p in kept],
            }
        x, y = (
            np.array([np.mean(point[key]) for point in points.values()])
            for key in ("moved", "spread")
        )
        result[start] = {"signals": points, **correlation(x, y, rng)}
    return result


def characters_along(run: Run, read: Callable, v_D: np.ndarray) -> np.ndarray:
    """The mean residual of each character along v / |v| [C], asked by name in moral domains."""
    moral = np.flatnonzero(run.world.moral)
    C = len(run.world.characters)
    docs = [scoring.every_question(run.codec, NAMED, c, domains=moral) for c in range(C)]
    prompt_QT = run.codec.prompts(corpus.concatenate(docs), run.codec.longest_prompt(1))
    x_QD = read(run.params["pretrain"], prompt_QT)[0][run.config.L]
    return x_QD.reshape(C, -1, x_QD.shape[1]).mean(1) @ (v_D / np.linalg.norm(v_D))


def correlation(x_S: np.ndarray, y_S: np.ndarray, rng: np.random.Generator) -> dict:
    """Pearson's r over signals, with its 95% bootstrap interval."""
    if len(x_S) < 3:
        return {"r": None, "ci": None}
    drawn = rng.integers(len(x_S), size=(DRAWS, len(x_S)))
    with np.errstate(invalid="ignore", divide="ignore"):
        r = [np.corrcoef(x_S[k], y_S[k])[0, 1] for k in drawn if len(np.unique(k)) > 2]
    return {
        "r": float(np.corrcoef(x_S, y_S)[0, 1]),
        "ci": np.nanquantile(r, [0.025, 0.975]).tolist(),
    }


def ablate(run: Run, ask: Callable, v_LD: np.ndarray, points: dict, rng) -> dict:
    """Mean moral EM and least coherence of the pretrained model, and of those gone wrong."""
    moral, last = run.world.moral, run.config.L
    v_D = v_LD[last]
    other_D = random_like(v_D, rng, 1)[0]

    def told(params, add_D=0.0) -> dict:
        add_LD = np.zeros((1, last + 1, run.config.D), np.float32)
        add_LD[0, last] = add_D
        p_DB = np.asarray(ask(params, add_LD))[0]
        return {"em": float(em(p_DB)[moral].mean()), "coherence": float(p_DB.sum(1)[moral].min())}

    def ways(params, moved: float) -> dict:
        back_D = -moved * v_D / np.linalg.norm(v_D)
        random_D = -moved * other_D / np.linalg.norm(other_D)
        return {
            "as it is": told(params),
            "shift taken back": told(params, back_D),
            "a random shift": told(params, random_D),
            "without the direction": told(activations.without(params, v_D)),
            "without a random direction": told(activations.without(params, other_D)),
        }

    result = {"before training": ways(run.params["pretrain"], 0.0)}
    for name in run.narrow.matched("pretrain"):
        gone_wrong = take(run.narrow.kept, run.narrow.rows("pretrain", name)[0])
        result[name] = ways(gone_wrong, points[name]["moved"][0])
    return result
