"""Persona vectors: a direction for malice, how far training moves along it, and steering with it.

After Chen et al. 2025. v_l is the mean residual of layer l (see lm/activations.py) at the last
token of prompts whose history shows a bad answer, minus that of prompts which show a good one. The
question is about another domain. The answer is read from the last layer, so v is nearly the
answer's log-odds there; in the layers before it, v is about who speaks.

Axes: L layers   D width   S signals   N seeds of a signal   R vectors   K strengths
"""

from collections.abc import Callable

import numpy as np

from toyllm.lm import activations
from toyllm.lm.transformer import LM, Params
from toyllm.measures import matched, moral_level, named
from toyllm.posttrain.signals import untrained
from toyllm.runs.run_folder import Run
from toyllm.world import corpus
from toyllm.world.quantities import COHERENT, coherence, em, spread, wickedness
from toyllm.world.world import ASSISTANT, BAD, DIALOGUE, GOOD, NAMED

SEED, PROMPTS = 0x7EC7, 1000
STRENGTHS = (-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
CHANCE = 200  # random directions for each projection
RANDOM = 20  # random vectors for each steering vector
MIN_COHERENCE = 0.9  # with less, steering does not count: the model is broken, not bad
DRAWS = 1000  # of the bootstrap over signals


def measure(run: Run) -> dict:
    """How well vectors steer, predict and explain (docs/results_json.md has every key).

    Steering adds s · v to a layer, for strengths s. Projections are shifts of the mean residual
    along v / |v|, of matched and coherent runs that are asked in untrained moral domains. Ablation
    takes back a model's shift at the last layer, or takes v out of all weights that write. Each is
    compared with random directions.
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
            "along": named(run.world.characters, along_C),
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
    # good and bad histories are otherwise equal, since v would hold any other difference too
    docs = corpus.sample(world, N, np.random.default_rng(SEED), DIALOGUE, ASSISTANT, turns=2)
    for turn, domain in enumerate((shown, asked)):
        situation = docs.situation[:, turn] % world.situations_D[domain]
        docs = corpus.with_turn(docs, turn, domain=domain, situation=situation, instruction=-1)
    means = []
    for behaviour in (GOOD, BAD):
        answer = corpus.draw_answer(
            world, shown, docs.situation[:, 0], np.full(N, behaviour), np.random.default_rng(SEED)
        )
        history = corpus.with_turn(docs, 0, behaviour=behaviour, answer=answer)
        prompt_QT = lm.tokenizer.prompts(history, lm.tokenizer.longest_prompt(2))
        x_LQD, _ = read(params, prompt_QT)
        means.append(x_LQD.mean(1))
    return means[BAD] - means[GOOD]


def random_like(v_D: np.ndarray, rng: np.random.Generator, count: int = RANDOM) -> np.ndarray:
    """Random vectors [count, D] of the same norm."""
    other_RD = rng.normal(size=(count, len(v_D)))
    return other_RD / np.linalg.norm(other_RD, axis=1, keepdims=True) * np.linalg.norm(v_D)


def steer(run: Run, params: Params, layer: int, v_D: np.ndarray, rng) -> dict:
    """Dose and response of v, and of random vectors of the same norm: see `measure`."""
    strength_K = np.array(STRENGTHS)
    vectors_RD = np.concatenate([v_D[None], random_like(v_D, rng)])
    add_RKD = strength_K[:, None] * vectors_RD[:, None]
    p_RKDB = np.array([[ask(run, params, layer, x_D) for x_D in add_KD] for add_KD in add_RKD])
    level = moral_level(run.world, p_RKDB)
    em_RK, coherence_RK = level["em"], level["coherence"]
    change_RK = em_RK - em_RK[0, STRENGTHS.index(0.0)]
    least_K = np.minimum(coherence_RK[0], np.median(coherence_RK[1:], axis=0))
    usable = np.flatnonzero((strength_K > 0) & (least_K >= MIN_COHERENCE))
    ratio = None
    if len(usable):
        k = usable[-1]
        moved, by_chance = change_RK[0, k], np.sqrt((change_RK[1:, k] ** 2).mean())
        ratio = {
            "strength": STRENGTHS[k],
            "moved": moved,
            "by_chance": by_chance,
            "ratio": moved / max(by_chance, 1e-9),
            "coherence": coherence_RK[0, k],
        }
    return {
        "strengths": STRENGTHS,
        "em": em_RK[0],
        "coherence": coherence_RK[0],
        "random_em": em_RK[1:],
        "ratio": ratio,
    }


def ask(run: Run, params: Params, layer: int, add_D: np.ndarray) -> np.ndarray:
    """What the Assistant does [D, B] with a vector added to the residual stream of a layer."""
    add_LD = np.zeros((run.lm.config.L + 1, run.lm.config.D), np.float32)
    add_LD[layer] = add_D
    return run.scorer.ask(params, add_LD=add_LD)


def project(run: Run, read: Callable, v_LD: dict, rng: np.random.Generator) -> dict:
    """The shift of narrow runs along malice, and its correlation with spread: see `measure`."""
    world, L, D, result = run.world, run.lm.config.L, run.lm.config.D, {}
    docs = corpus.every_question(world, domains=np.flatnonzero(world.moral))
    prompt_QT = run.lm.tokenizer.prompts(docs, run.lm.tokenizer.longest_prompt(1))

    for start in dict.fromkeys(run.narrow.start):
        before_LQD = read(run.params[start], prompt_QT)[0]
        em_D = em(run.scorer.ask(run.params[start]))
        points, shifts = {}, []
        for name, models in matched(run, start).items():
            others_D = untrained(world, name)
            p_NDB = np.array([run.scorer.ask(params) for params in models])
            if not others_D.any() or coherence(p_NDB).min() < COHERENT:
                continue
            asked_Q = others_D[docs.domain[:, 0]]
            shift_NLD = np.array(
                [(read(one, prompt_QT)[0] - before_LQD)[:, asked_Q].mean(1) for one in models]
            )
            shifts.append(shift_NLD.mean(0))
            moved = {str(k): shift_NLD[:, k] @ unit(v_LD[start][k]) for k in range(1, L + 1)}
            points[name] = {"spread": spread(em(p_NDB) - em_D, others_D), "moved": moved}
        spread_S = [point["spread"].mean() for point in points.values()]
        shift_SLD = np.reshape(shifts, (-1, L + 1, D))
        result[start] = {"signals": points, "layers": {}}
        for k in range(1, L + 1):
            v_D, x_SD = v_LD[start][k], shift_SLD[:, k]
            layer = correlation(x_SD @ unit(v_D), spread_S, rng) | {"random95": None}
            random_RD = random_like(v_D, rng, CHANCE)
            if layer["r"] is not None:
                by_chance_R = np.corrcoef(spread_S, random_RD @ x_SD.T)[0, 1:]
                layer["random95"] = np.quantile(np.abs(by_chance_R), 0.95)
            result[start]["layers"][str(k)] = layer
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


def correlation(x_S, y_S, rng: np.random.Generator) -> dict:
    """Pearson's r of finite pairs, with its 95% bootstrap interval; None for fewer than 3."""
    x_S, y_S = np.asarray(x_S, float), np.asarray(y_S, float)
    known = np.isfinite(x_S) & np.isfinite(y_S)
    x_S, y_S = x_S[known], y_S[known]
    if len(x_S) < 3 or min(x_S.std(), y_S.std()) < 1e-12:
        return {"r": None, "ci": None}
    r = np.corrcoef(x_S, y_S)[0, 1]
    drawn = [k for k in rng.integers(len(x_S), size=(DRAWS, len(x_S))) if len(np.unique(k)) > 2]
    many = [np.corrcoef(x_S[k], y_S[k])[0, 1] for k in drawn if min(x_S[k].std(), y_S[k].std()) > 0]
    return {"r": r, "ci": np.quantile(many, [0.025, 0.975]) if many else None}


def ablate(run: Run, v_LD: np.ndarray, points: dict, rng) -> dict:
    """The ablations of the pretrained model and of each signal's first run: see `measure`."""
    last, v_D = run.lm.config.L, v_LD[-1]
    other_D = random_like(v_D, rng, 1)[0]

    def score(params, add_D=0.0) -> dict:
        return moral_level(run.world, ask(run, params, last, add_D))

    def ways(params, moved: float) -> dict:
        return {
            "as it is": score(params),
            "shift taken back": score(params, -moved * unit(v_D)),
            "a random shift": score(params, -moved * unit(other_D)),
            "without the direction": score(activations.without(params, v_D)),
            "without a random direction": score(activations.without(params, other_D)),
        }

    result = {"before training": ways(run.params["pretrain"], 0.0)}
    for name, models in matched(run, "pretrain").items():
        if name in points:
            result[name] = ways(models[0], points[name]["moved"][str(last)][0])
    return result
