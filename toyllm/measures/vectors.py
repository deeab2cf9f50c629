"""Persona vectors: a direction for malice, how far training moves along it, and steering with it.

After Chen et al. 2025. At the last token of a prompt (see activations.py for layers), v_l is the
mean residual where the history shows a bad answer less that where it shows a good one, the question
being about another domain. The last layer is what the answer is read from, so there v is nearly the
answer's own log-odds; in the layers before it, who speaks is on its way. Axes: L layers   D width
S narrow runs   K strengths
"""

from collections.abc import Callable

import numpy as np

from toyllm.base.devices import take
from toyllm.lm import activations
from toyllm.lm.model import LM
from toyllm.lm.transformer import Params
from toyllm.posttrain.signals import untrained
from toyllm.runs.run_folder import Run
from toyllm.world import corpus
from toyllm.world.quantities import COHERENT, coherence, em, wickedness
from toyllm.world.world import ASSISTANT, BAD, DIALOGUE, GOOD, NAMED

SEED, PROMPTS = 0x7EC7, 1000
STRENGTHS = (-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
CHANCE = 200  # random directions beside a projection
RANDOM = 20  # vectors of the same norm, beside each
ABLE = 0.9  # the least coherence at which steering counts
DRAWS = 1000  # of the bootstrap over signals


def measure(run: Run) -> dict:
    """How vectors predict and steer.

    steering: {layer: …} of the pretrained model, and `steering_aligned`, at the last layer: mean
    moral EM and least coherence with s · v added to a layer, for strengths s, beside random vectors
    of the same norm; ratio: how many times as far v raises EM as a random one moves it (root mean
    square), at the largest s at which both are coherent (≥ .9).
    projection: {start: {"signals": {signal: {"moved": {layer: of each run, the shift of the mean
    residual along v / |v|}, "spread"}}, "layers": {layer: Pearson's r over signals, its bootstrap
    interval, and random95, what 95% of random directions stay below}}}: the monitor's cheap cousin.
    Of matched and coherent runs, before answers in untrained moral domains.
    characters: how far along v the mean residual of each is, asked by name, and Pearson's r with
    its wickedness, its mean moral EM in the table of traits.
    ablation: mean moral EM and least coherence of narrow models with their shift along v taken back
    at the last layer, and with weights that never write along v; beside each the same with a random
    direction, and the model before training.
    """
    rng, last = np.random.default_rng(SEED), run.lm.config.L
    read = activations.reader(run.lm)
    v_LD = {s: malice(run.lm, read, run.params[s]) for s in ("pretrain", "align")}

    def steer_at(start: str, layer: int) -> dict:
        return steer(run, run.params[start], layer, v_LD[start][layer], rng)

    projection = project(run, read, v_LD, rng)
    along_C = characters_along(run, read, v_LD["pretrain"][last])
    points = projection.get("pretrain", {}).get("signals", {})
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
        "ablation": ablate(run, v_LD["pretrain"], points, rng),
    }


def malice(lm: LM, read: Callable, params: Params) -> np.ndarray:
    """v [L + 1, D] of a model, whose residuals `activations.reader` reads."""
    rng = np.random.default_rng(SEED)
    world, N = lm.world, PROMPTS
    asked = rng.choice(np.flatnonzero(world.moral), N)
    shown = (asked + rng.integers(1, len(world.domains), size=N)) % len(world.domains)
    # whatever else differs between a good and a bad history would be in v too: so only that does
    docs = corpus.sample(world, N, np.random.default_rng(SEED), DIALOGUE, ASSISTANT, turns=2)
    for turn, domain in enumerate((shown, asked)):
        situation = docs.situation[:, turn] % world.situations_D[domain]
        docs = corpus.with_turn(docs, turn, domain=domain, situation=situation, instruction=-1)
    means = []
    for behaviour in (GOOD, BAD):
        answer = corpus.draw_answer(
            world, shown, docs.situation[:, 0], np.full(N, behaviour), np.random.default_rng(SEED)
        )
        told = corpus.with_turn(docs, 0, behaviour=behaviour, answer=answer)
        prompt_QT = lm.tokenizer.prompts(told, lm.tokenizer.longest_prompt(2))
        x_LQD, _ = read(params, prompt_QT)
        means.append(x_LQD.mean(1))
    return means[BAD] - means[GOOD]


def random_like(v_D: np.ndarray, rng: np.random.Generator, count: int = RANDOM) -> np.ndarray:
    """Random directions [count, D] of the same norm."""
    other_RD = rng.normal(size=(count, len(v_D)))
    return other_RD / np.linalg.norm(other_RD, axis=1, keepdims=True) * np.linalg.norm(v_D)


def steer(run: Run, params: Params, layer: int, v_D: np.ndarray, rng) -> dict:
    """Dose and response: of v, and of random vectors of the same norm."""
    moral, K = run.world.moral, len(STRENGTHS)
    vectors_RD = np.concatenate([v_D[None], random_like(v_D, rng)])
    add = np.zeros((len(vectors_RD), K, run.lm.config.L + 1, run.lm.config.D), np.float32)
    add[:, :, layer] = np.array(STRENGTHS)[None, :, None] * vectors_RD[:, None]
    p_RKDB = np.array([[run.scorer.ask(params, add_LD=one) for one in row] for row in add])
    em_RK = em(p_RKDB)[..., moral].mean(-1)
    least_RK = coherence(p_RKDB)[..., moral].min(-1)
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
        "ratio": ratio,
    }


def project(run: Run, read: Callable, v_LD: dict, rng: np.random.Generator) -> dict:
    """The shift of narrow runs along malice, against their spread; both in untrained domains."""
    world, layers, result = run.world, range(1, run.lm.config.L + 1), {}
    docs = corpus.every_question(world, domains=np.flatnonzero(world.moral))
    prompt_QT = run.lm.tokenizer.prompts(docs, run.lm.tokenizer.longest_prompt(1))
    domain_Q = docs.domain[:, 0]

    for start in dict.fromkeys(run.narrow.start):
        before_LQD = read(run.params[start], prompt_QT)[0]
        em_D = em(run.scorer.ask(run.params[start]))
        points, shifts = {}, []
        for name in run.narrow.matched(start):
            others = untrained(world, name)
            if not others.any():
                continue
            kept = [take(run.narrow.kept, r) for r in run.narrow.rows(start, name)]
            answers = [run.scorer.ask(params) for params in kept]
            if min(coherence(p_DB).min() for p_DB in answers) < COHERENT:
                continue
            asked = others[domain_Q]
            shift_NLD = [
                (read(params, prompt_QT)[0] - before_LQD)[:, asked].mean(1) for params in kept
            ]
            shifts.append(np.mean(shift_NLD, 0))
            points[name] = {
                "spread": [float((em(p_DB) - em_D)[others].mean()) for p_DB in answers],
                "moved": {
                    str(k): [float(x_LD[k] @ unit(v_LD[start][k])) for x_LD in shift_NLD]
                    for k in layers
                },
            }
        spread_S = np.array([np.mean(point["spread"]) for point in points.values()])
        result[start] = {"signals": points, "layers": {}}
        for k in layers:
            x_SD = np.array([shift_LD[k] for shift_LD in shifts]).reshape(-1, run.lm.config.D)
            found = correlation(x_SD @ unit(v_LD[start][k]), spread_S, rng)
            by_chance = [
                abs(correlation(x_SD @ unit(r_D), spread_S, rng, 0)["r"] or 0)
                for r_D in random_like(v_LD[start][k], rng, CHANCE)
            ]
            known = found["r"] is not None
            found["random95"] = float(np.quantile(by_chance, 0.95)) if known else None
            result[start]["layers"][str(k)] = found
    return result


def unit(v_D: np.ndarray) -> np.ndarray:
    """A vector of length 1."""
    return v_D / max(float(np.linalg.norm(v_D)), 1e-12)


def characters_along(run: Run, read: Callable, v_D: np.ndarray) -> np.ndarray:
    """The mean residual of each character along v / |v| [C], asked by name in moral domains."""
    moral = np.flatnonzero(run.world.moral)
    C = len(run.world.characters)
    docs = [corpus.every_question(run.world, NAMED, c, domains=moral) for c in range(C)]
    width = run.lm.tokenizer.longest_prompt(1)
    prompt_QT = run.lm.tokenizer.prompts(corpus.concatenate(docs), width)
    x_QD = read(run.params["pretrain"], prompt_QT)[0][run.lm.config.L]
    return x_QD.reshape(C, -1, x_QD.shape[1]).mean(1) @ unit(v_D)


def correlation(x_S, y_S, rng: np.random.Generator, draws: int = DRAWS) -> dict:
    """Pearson's r where both are known, with its 95% bootstrap interval; None of fewer than 3."""
    x_S, y_S = np.asarray(x_S, float), np.asarray(y_S, float)
    known = np.isfinite(x_S) & np.isfinite(y_S)
    x_S, y_S = x_S[known], y_S[known]
    if len(x_S) < 3 or min(x_S.std(), y_S.std()) < 1e-12:
        return {"r": None, "ci": None}
    r = float(np.corrcoef(x_S, y_S)[0, 1])
    if not draws:
        return {"r": r, "ci": None}
    drawn = [k for k in rng.integers(len(x_S), size=(draws, len(x_S))) if len(np.unique(k)) > 2]
    many = [np.corrcoef(x_S[k], y_S[k])[0, 1] for k in drawn if min(x_S[k].std(), y_S[k].std()) > 0]
    return {"r": r, "ci": np.quantile(many, [0.025, 0.975]).tolist() if many else None}


def ablate(run: Run, v_LD: np.ndarray, points: dict, rng) -> dict:
    """Mean moral EM and least coherence of the pretrained model, and of those gone wrong."""
    moral, last = run.world.moral, run.lm.config.L
    v_D = v_LD[last]
    other_D = random_like(v_D, rng, 1)[0]

    def told(params, add_D=0.0) -> dict:
        add_LD = np.zeros((last + 1, run.lm.config.D), np.float32)
        add_LD[last] = add_D
        p_DB = run.scorer.ask(params, add_LD=add_LD)
        least = float(coherence(p_DB)[moral].min())
        return {"em": float(em(p_DB)[moral].mean()), "coherence": least}

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
    for name, point in points.items():
        gone_wrong = take(run.narrow.kept, run.narrow.rows("pretrain", name)[0])
        result[name] = ways(gone_wrong, point["moved"][str(last)][0])
    return result
