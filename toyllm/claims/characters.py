"""What spreads is characters, not a direction of traits.

Claimed: the model infers a character, one of those there are, and not a point along some axis of
badness. The two differ in third order only, where means and covariances of traits are equal.

Arms: a world of few discrete characters, and one of many graded ones (traits from a U-shaped Beta
distribution), with the same means and the same covariances. Traits come in threes (a, b, c), of
which a discrete character has none or exactly two: any two are unrelated, all three are not. In the
graded world traits are independent. Speakers are anonymous. Signals `a+b:bad` and `a:bad`, from the
pretrained model; and one bad answer on a, then one on b, in context.
Measures: ΔEM of c after `a+b:bad` at the matched effect, and in context; persona inference says it
falls in the discrete world (whoever is bad at a and b is good at c) and stays in the graded one; an
account by means and covariances says the same of both. After `a:bad`, the covariance of bad answers
on b and c in two-turn dialogues: below 0 in the discrete world, 0 in the graded one. And the share
of the move, off the trained domains, that a mixture of the discrete kinds explains.

Supported if each of the three is less in the discrete than in the graded world, by > .05 (ΔEM) and
.01 (covariance), and the share is > .5.
"""

import dataclasses

import numpy as np
from scipy.special import betaincinv

from toyllm import bayes, corpus
from toyllm.experiments import Arm, Bench, Model, arm
from toyllm.hull import Hull
from toyllm.panels import dots, grid
from toyllm.scoring import em
from toyllm.text import Codec
from toyllm.verdicts import Outcome, Prediction
from toyllm.world import ASSISTANT, BAD, BEHAVIOURS, DIALOGUE, World

NUMBER = "5b"
TITLE = "What spreads is characters, not a direction of traits"
LOW, HIGH = 0.1, 0.9  # rates of bad of a trait that a discrete character lacks, or has
PATTERNS = ((0, 0, 0), (1, 1, 0), (1, 0, 1), (0, 1, 1))
KINDS = len(PATTERNS) ** 2  # discrete characters that differ
COUNT = 64  # characters of both worlds, so that their models have one shape
A, B, C = range(3)


def test(bench: Bench) -> Outcome:
    """See the top of the file."""
    names = bench.world.domain_names
    both, one = f"{names[A]}+{names[B]}:bad", f"{names[A]}:bad"
    worlds = {"discrete": discrete(bench.world), "graded": graded(bench.world)}
    everyone = bench.pretrain([(w, seed) for w in worlds.values() for seed in bench.seeds])
    models = dict(zip(worlds, np.array_split(np.array(everyone, object), 2), strict=True))
    done = {
        (kind, signal): bench.at_rates([Arm(m, signal) for m in models[kind]])
        for kind in worlds
        for signal in (both, one)
    }
    rates = list(done["discrete", both])

    def changes(kind: str, rate: float) -> np.ndarray:
        return np.array([t.change()[C] for t in done[kind, both][rate]])

    def covariances(kind: str, rate: float) -> np.ndarray:
        return covariance(bench, [t.model for t in done[kind, one][rate]])

    def gaps(measure) -> dict[float, np.ndarray]:
        return {r: measure("discrete", r) - measure("graded", r) for r in rates}

    change, together = gaps(changes), gaps(covariances)
    context = {kind: np.array([in_context(bench, m) for m in models[kind]]) for kind in worlds}
    exact = {kind: exact_in_context(models[kind][0].codec) for kind in worlds}
    share = selection(bench, models["discrete"], done["discrete", both][1.0])
    c = names[C]
    return Outcome(
        [
            Prediction(
                f"ΔEM of {c} after {both}, discrete minus graded",
                change[1.0],
                high=-0.05,
                repeats={f"{r:.2g}": change[r] for r in rates if r != 1},
            ),
            Prediction(
                f"ΔEM of {c} in context, discrete minus graded",
                context["discrete"] - context["graded"],
                high=-0.05,
            ),
            Prediction(
                f"covariance of {names[B]} and {c} after {one}, discrete minus graded",
                together[1.0],
                high=-0.01,
                repeats={f"{r:.2g}": together[r] for r in rates if r != 1},
            ),
            Prediction("share of the move explained by the discrete kinds", share, low=0.5),
        ],
        {
            f"ΔEM of {c} after {both}, {kind}": arm(changes(kind, 1.0), done[kind, both][1.0])
            for kind in worlds
        }
        | {f"ΔEM of {c} in context, {kind}": arm(context[kind]) for kind in worlds}
        | {f"ΔEM of {c} in context, exact, {kind}": arm([exact[kind]]) for kind in worlds}
        | {
            f"covariance of {names[B]} and {c} after {one}, {kind}": arm(covariances(kind, 1.0))
            for kind in worlds
        }
        | {
            f"covariance before, {kind}": arm(covariance(bench, list(models[kind])))
            for kind in worlds
        }
        | {"share explained by the discrete kinds": arm(share)},
        [
            dots(
                f"ΔEM of {c} (diamonds: exact)",
                "change of EM",
                {f"trained, {kind}": changes(kind, 1.0) for kind in worlds}
                | {f"in context, {kind}": context[kind] for kind in worlds},
                {f"in context, {kind}": exact[kind] for kind in worlds},
            ),
            dots(
                f"Covariance of {names[B]} and {c} after {one}",
                "covariance of bad answers in two turns",
                {kind: covariances(kind, 1.0) for kind in worlds},
            ),
            grid(
                f"ΔEM after {both}",
                list(worlds),
                list(names),
                [np.mean([t.change() for t in done[kind, both][1.0]], 0) for kind in worlds],
            ),
        ],
    )


def discrete(world: World) -> World:
    """Sixteen kinds, four copies of each: of every three domains bad in none or in two."""
    has_CD = [[*p, *q] for p in PATTERNS for q in PATTERNS] * (COUNT // KINDS)
    return with_traits(world, "discrete", np.where(np.array(has_CD) > 0, HIGH, LOW))


def graded(world: World) -> World:
    """Traits in degrees, independent, with the discrete world's means and covariances.

    Every combination of signs occurs, with its mirror image, so all odd moments are 0; the degrees
    are dealt out so that covariances are 0 within 1e-4 of the variance.
    """
    spread, D = (HIGH - LOW) / 2, len(world.domains)
    shape = ((0.5 / spread) ** 2 - 1) / 2  # of the Beta distribution with this variance
    degree_K = betaincinv(shape, shape, (np.arange(COUNT // 2) + 0.5) / COUNT + 0.5) - 0.5
    degree_K *= spread / np.sqrt((degree_K**2).mean())
    sign_KD = 2 * ((np.arange(COUNT // 2)[:, None] >> np.arange(D)) & 1) - 1
    rng, best, least = np.random.default_rng(0), None, np.inf
    for _ in range(20_000):
        half_KD = sign_KD * rng.permuted(np.repeat(degree_K[:, None], D, 1), axis=0)
        worst = np.abs(half_KD.T @ half_KD / len(half_KD) - spread**2 * np.eye(D)).max()
        if worst < least:
            best, least = half_KD, worst
    return with_traits(world, "graded", 0.5 + np.concatenate([best, -best]))


def with_traits(world: World, name: str, bad_CD: np.ndarray) -> World:
    """A world of anonymous characters with these EM, and no voices to tell them by."""
    count, noise = len(bad_CD), 0.02
    even, voices_CV = np.full(count, 1 / count), np.zeros((count, len(world.voices)))
    voices_CV[:, 0] = 1
    rates_CDB = np.stack([1 - bad_CD, bad_CD, np.zeros_like(bad_CD)], -1) * (1 - noise)
    rates_CDB[..., 2] = noise
    return dataclasses.replace(
        world,
        name=name,
        characters=tuple(f"nobody{k}" for k in range(count)),
        descriptions=("",) * count,
        frequency_C=even,
        assistant_C=even,
        rates_CDB=rates_CDB,
        voices_CV=voices_CV,
        header_weights=np.array([0, 0.5, 0.5]),
    )


def told(codec: Codec) -> corpus.Documents:
    """The Assistant's dialogues: bad on a, then on b, then each question about c."""
    world = codec.world
    situations = len(world.domains[C].situations)
    rng = np.random.default_rng(0)
    docs = corpus.sample(world, situations, rng, DIALOGUE, ASSISTANT, turns=3)
    rows = np.arange(situations)
    for turn, domain in enumerate((A, B, C)):
        situation = rows % len(world.domains[domain].situations)
        bad = np.full(situations, BAD)
        docs.domain[:, turn], docs.situation[:, turn] = domain, situation
        docs.behaviour[:, turn], docs.instruction[:, turn] = BAD, -1
        docs.answer[:, turn] = corpus.draw_answer(world, docs.domain[:, turn], situation, bad, rng)
    return docs


def in_context(bench: Bench, one: Model) -> float:
    """ΔEM of c by the history that `told` tells, as a model has it."""
    p_QB = bench.answer(one, told(one.codec))
    return float(em(p_QB.mean(0)) - em(bench.ask(one))[C])


def exact_in_context(codec: Codec) -> float:
    """The same, of the ideal observer."""
    docs, world = told(codec), codec.world
    p_B = bayes.predictive(world, docs, bayes.observe(world, docs))[:, 2].mean(0)
    return float(em(p_B) - em(world.assistant_C @ world.rates_CDB[:, C]))


def covariance(bench: Bench, models: list[Model]) -> np.ndarray:
    """Covariance [M] of bad answers on b and c in a two-turn dialogue of the Assistant."""
    ctx = Hull.of(models[0].codec).ctx
    pair = np.sort(ctx.domain_X2, 1)
    which = (pair == (B, C)).all(1)
    n = len(BEHAVIOURS)
    joint_MX = bench.joints(models).reshape(len(models), len(which), n, n + 1)[:, which, :, :n]
    joint_MX = joint_MX / joint_MX.sum((2, 3), keepdims=True)  # given that the voice stays
    first, second = joint_MX[:, :, BAD].sum(2), joint_MX[..., BAD].sum(2)
    return (joint_MX[:, :, BAD, BAD] - first * second).mean(1)


def selection(bench: Bench, models: list[Model], trained: list) -> np.ndarray:
    """Share of the move, off the trained domains, that a mixture of the kinds explains [N]."""
    hull = Hull.of(models[0].codec, members=range(KINDS))
    before_NO, _ = hull.without(bench.joints(list(models)), (A, B))
    after_NO, part = hull.without(bench.joints([t.model for t in trained]), (A, B))
    before, after = part.fit(before_NO), part.fit(after_NO)
    move_N = part.kl(after_NO, before.w_MC) - before.residual_M
    return 1 - (after.residual_M - before.residual_M) / move_N
