"""What spreads is characters, not a direction of traits.

Claimed: the model infers a character, one of those there are, and not a point along some axis of
badness. The two differ in third order only, where means and covariances of traits are equal.

Arms: a world of four discrete characters, and one of 64 graded ones (traits from a U-shaped Beta
distribution), with the same means and the same covariances. There are three traits, a, b and c,
each shown in two domains; a discrete character has none or exactly two of them, so that any two are
unrelated and all three are not. In the graded world traits are independent. Voices go with traits
in both alike. Signal `a+b:bad` (one domain of each), from the pretrained model; `a:bad`; and, in
context, a bad answer on a, then on b.
Measures: ΔEM of c, the mean of its two domains, after `a+b:bad` at the matched effect, and in
context; persona inference says it falls in the discrete world (whoever has a and b lacks c) and
stays in the graded one; an account by means and covariances says the same of both. After `a:bad`,
the covariance of bad answers on b and c in two-turn dialogues: below 0 in the discrete world, 0 in
the graded one. And the share of the move, off the trained domains, that the four explain.

Supported if ΔEM of c after training is less in the discrete than in the graded world, in context by
> .05, and the covariance by > .01; and the share is > .5. In context says whether pretraining has
learned the third order at all: where it has not, the rest cannot be tested.
"""

import dataclasses

import numpy as np
from scipy.special import betaincinv

from toyllm import bayes, corpus
from toyllm.arms import Arm, Model, arm
from toyllm.bench import Bench
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
COUNT = 64  # names of both worlds, so that their models have one shape
TRAITS = A, B, C = range(3)  # domain d shows trait d % 3
OWN, OTHERS = 0.4, 0.2  # how often a discrete character uses its own voice, and each other one


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
        return np.array([t.change()[C :: len(TRAITS)].mean() for t in done[kind, both][rate]])

    def covariances(kind: str, rate: float) -> np.ndarray:
        return covariance(bench, [t.model for t in done[kind, one][rate]])

    def gaps(measure) -> dict[float, np.ndarray]:
        return {r: measure("discrete", r) - measure("graded", r) for r in rates}

    change, together = gaps(changes), gaps(covariances)
    context = {kind: np.array([in_context(bench, m) for m in models[kind]]) for kind in worlds}
    exact = {kind: exact_in_context(models[kind][0].codec) for kind in worlds}
    share = selection(bench, models["discrete"], done["discrete", both][1.0])
    c = "trait c"
    return Outcome(
        [
            Prediction(
                f"ΔEM of {c} after {both}, discrete minus graded",
                change[1.0],
                high=0,
                repeats={f"{r:.2g}": change[r] for r in rates if r != 1},
            ),
            Prediction(
                f"ΔEM of {c} in context, discrete minus graded",
                context["discrete"] - context["graded"],
                high=-0.05,
            ),
            Prediction(
                f"covariance of b and c after {one}, discrete minus graded",
                together[1.0],
                high=-0.01,
                repeats={f"{r:.2g}": together[r] for r in rates if r != 1},
            ),
            Prediction("share of the move that the four explain", share, low=0.5),
        ],
        {
            f"ΔEM of {c} after {both}, {kind}": arm(changes(kind, 1.0), done[kind, both][1.0])
            for kind in worlds
        }
        | {f"ΔEM of {c} in context, {kind}": arm(context[kind]) for kind in worlds}
        | {f"ΔEM of {c} in context, exact, {kind}": arm([exact[kind]]) for kind in worlds}
        | {
            f"covariance of b and c after {one}, {kind}": arm(covariances(kind, 1.0))
            for kind in worlds
        }
        | {
            f"covariance before, {kind}": arm(covariance(bench, list(models[kind])))
            for kind in worlds
        }
        | {"share explained by the four": arm(share)},
        [
            dots(
                f"ΔEM of {c} (diamonds: exact)",
                "change of EM",
                {f"trained, {kind}": changes(kind, 1.0) for kind in worlds}
                | {f"in context, {kind}": context[kind] for kind in worlds},
                {f"in context, {kind}": exact[kind] for kind in worlds},
            ),
            dots(
                f"Covariance of b and c after {one}",
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
    """Four characters, each with none or two of three traits; nobody bears the other names."""
    has_CT = np.full((COUNT, len(TRAITS)), 0.5)
    has_CT[: len(PATTERNS)] = PATTERNS
    own_CV = (np.arange(COUNT)[:, None] == np.arange(len(PATTERNS))).astype(float)
    voices_CV = OTHERS + (OWN - OTHERS) * own_CV
    voices_CV[len(PATTERNS) :] = 1 / len(PATTERNS)
    return with_traits(world, "discrete", LOW + (HIGH - LOW) * has_CT, voices_CV, len(PATTERNS))


def graded(world: World) -> World:
    """Traits in degrees, independent, with the discrete world's means and covariances, voices too.

    Every combination of signs occurs, with its mirror image, so all odd moments are 0; the degrees
    are dealt out so that covariances are next to 0.
    """
    spread, half = (HIGH - LOW) / 2, COUNT // 2
    shape = ((0.5 / spread) ** 2 - 1) / 2  # of the Beta distribution with this variance
    degree_K = betaincinv(shape, shape, (np.arange(half) + 0.5) / COUNT + 0.5) - 0.5
    degree_K *= spread / np.sqrt((degree_K**2).mean())
    sign_KT = 2 * ((np.arange(half)[:, None] >> np.array(TRAITS)) & 1) - 1
    rng, best, least = np.random.default_rng(0), None, np.inf
    for _ in range(5000):
        dealt_KT = sign_KT * rng.permuted(np.repeat(degree_K[:, None], len(TRAITS), 1), axis=0)
        worst = np.abs(dealt_KT.T @ dealt_KT / half - spread**2 * np.eye(len(TRAITS))).max()
        if worst < least:
            best, least = dealt_KT, worst
    traits_CT = np.concatenate([best, -best])
    sign_VT = 2 * np.array(PATTERNS) - 1
    # as far as traits go with voices in the discrete world, in which each has its own
    voices_CV = 1 / len(PATTERNS) + (OWN - OTHERS) / (4 * spread) * traits_CT @ sign_VT.T
    return with_traits(world, "graded", 0.5 + traits_CT, voices_CV, COUNT)


def with_traits(world: World, name: str, bad_CT, spoken_CV: np.ndarray, alive: int) -> World:
    """A world of characters with these EM and voices, the first `alive` as likely as each other."""
    noise, traits_D = 0.02, np.arange(len(world.domains)) % len(TRAITS)
    even_C = np.where(np.arange(COUNT) < alive, 1 / alive, 0.0)
    voices_CV = np.zeros((COUNT, len(world.voices)))
    voices_CV[:, : len(PATTERNS)] = spoken_CV
    bad_CD = (1 - noise) * bad_CT[:, traits_D]
    return dataclasses.replace(
        world,
        name=name,
        characters=tuple(f"name{k}" for k in range(COUNT)),
        descriptions=("",) * COUNT,
        frequency_C=even_C,
        assistant_C=even_C,
        rates_CDB=np.stack([1 - noise - bad_CD, bad_CD, np.full_like(bad_CD, noise)], -1),
        voices_CV=voices_CV,
        header_weights=np.array([0.3, 0.3, 0.4]),
    )


def told(codec: Codec) -> corpus.Documents:
    """The Assistant's dialogues: bad on a, then on b, then each question about c."""
    world = codec.world
    asked = [
        (d, s)
        for d in range(C, len(world.domains), len(TRAITS))
        for s in range(len(world.domains[d].situations))
    ]
    rng, N = np.random.default_rng(0), len(asked)
    docs = corpus.sample(world, N, rng, DIALOGUE, ASSISTANT, turns=3)
    domain_N, situation_N = np.array(asked).T
    for turn, domain in enumerate((np.full(N, A), np.full(N, B), domain_N)):
        docs.domain[:, turn], docs.situation[:, turn] = domain, situation_N
        docs.behaviour[:, turn], docs.instruction[:, turn] = BAD, -1
        docs.answer[:, turn] = corpus.draw_answer(
            world, docs.domain[:, turn], situation_N, docs.behaviour[:, turn], rng
        )
    return docs


def in_context(bench: Bench, one: Model) -> float:
    """ΔEM of c by the history that `told` tells, as a model has it."""
    p_QB = bench.answer(one, told(one.codec))
    before = em(bench.ask(one))[C :: len(TRAITS)].mean()
    return float(em(p_QB.mean(0)) - before)


def exact_in_context(codec: Codec) -> float:
    """The same, of the ideal observer."""
    docs, world = told(codec), codec.world
    p_B = bayes.predictive(world, docs, bayes.observe(world, docs))[:, 2].mean(0)
    return float(em(p_B) - em(world.assistant_C @ world.rates_CDB[:, C]))


def covariance(bench: Bench, models: list[Model]) -> np.ndarray:
    """Covariance [M] of bad answers on b and c in a two-turn dialogue of the Assistant."""
    ctx = Hull.of(models[0].codec).ctx
    which = (np.sort(ctx.domain_X2 % len(TRAITS), 1) == (B, C)).all(1)
    n = len(BEHAVIOURS)
    joint_MX = bench.joints(models).reshape(len(models), len(which), n, n + 1)[:, which, :, :n]
    joint_MX = joint_MX / joint_MX.sum((2, 3), keepdims=True)  # given that the voice stays
    first, second = joint_MX[:, :, BAD].sum(2), joint_MX[..., BAD].sum(2)
    return (joint_MX[:, :, BAD, BAD] - first * second).mean(1)


def selection(bench: Bench, models: list[Model], trained: list) -> np.ndarray:
    """Share of the move, off the trained domains, that a mixture of the four explains [N]."""
    hull = Hull.of(models[0].codec, range(len(PATTERNS)))
    before_NO, _ = hull.without(bench.joints(list(models)), (A, B))
    after_NO, part = hull.without(bench.joints([t.model for t in trained]), (A, B))
    before, after = part.fit(before_NO), part.fit(after_NO)
    move_N = part.kl(after_NO, before.w_MC) - before.residual_M
    return 1 - (after.residual_M - before.residual_M) / move_N
