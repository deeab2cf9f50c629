"""What spreads is characters, not a direction of traits.

Claimed: the model infers a character, one of those there are, and not a point along some axis of
badness. The two differ in third order, where means and covariances of traits are equal.

Arms: a world of four discrete characters, and one of 64 graded ones, with the same means and the
same covariances. There are three traits, a, b and c, each shown in two domains; a discrete
character has none or exactly two of them, so that any two are unrelated and all three are not; in
the graded world every combination of four degrees of each occurs, so traits are independent.
Voices go with traits alike in both. Signal `a+b:bad` (one domain of each), from the pretrained
model; `a:bad`; and, in context, a bad answer on a, then on b.
Measures: ΔEM of c, the mean of its two domains, after `a+b:bad` at the matched effect, and in
context; persona inference says it falls in the discrete world (whoever has a and b lacks c) and
stays in the graded one; an account by means and covariances says the same of both. The change by
`a:bad` of the covariance of bad answers on b and c in two-turn dialogues: down in the discrete
world, none in the graded one.

Supported if the gap between both worlds in ΔEM of c after training is > .5 of what persona
inference says (nearer to it than to none), and in context < -.05; and that of the change of
covariance is < -.01. In context says whether pretraining has learned the third order at all: where
it has not, the rest cannot be tested.
"""

import dataclasses
from itertools import product

import numpy as np

from claims.lab.arms import Model, changes, kept_models
from claims.lab.bench import Bench
from claims.lab.panels import dots
from claims.lab.quantities import Outcome, Quantity, each
from toyllm.lm import joints
from toyllm.lm.tokenizer import Tokenizer
from toyllm.world import corpus, observer, persona
from toyllm.world.quantities import MATCHED, em
from toyllm.world.world import ASSISTANT, BAD, BEHAVIOURS, DIALOGUE, World

NUMBER = "5b"
UNITS = 32  # the pilot asks for 27
SPREAD = 0.45  # a discrete character's EM is a half and this, or less it
DEGREES = (-0.49, -0.406, 0.406, 0.49)  # a graded one's around a half, of the same variance
PATTERNS = ((0, 0, 0), (1, 1, 0), (1, 0, 1), (0, 1, 1))  # traits that discrete characters have
TRAITS = A, B, C = range(3)  # domain d shows trait d % 3
COUNT = len(DEGREES) ** len(TRAITS)  # names in both worlds, so that their models have one shape
OWN, OTHERS = 0.4, 0.2  # how often a discrete character uses its own voice, and each other one


def test(bench: Bench) -> Outcome:
    names = bench.world.domain_names
    both, one = f"{names[A]}+{names[B]}:bad", f"{names[A]}:bad"
    worlds = {"discrete": discrete(bench.world), "graded": graded(bench.world)}
    models = bench.bases(worlds)
    on_both = {kind: bench.at_rates(models[kind], both) for kind in worlds}
    on_one = {kind: bench.at_rates(models[kind], one) for kind in worlds}
    change, equal = (
        {k: changes(runs, e)[..., C :: len(TRAITS)].mean(-1) for k, runs in on_both.items()}
        for e in (False, True)
    )
    before = {kind: covariance(bench, models[kind]) for kind in worlds}
    together = {
        kind: np.array([covariance(bench, kept) for kept in kept_models(runs)]) - before[kind]
        for kind, runs in on_one.items()
    }
    context = {kind: np.array([in_context(bench, m) for m in models[kind]]) for kind in worlds}
    exact = {kind: exact_in_context(models[kind][0].tokenizer) for kind in worlds}
    inferred = {kind: exact_after(world) for kind, world in worlds.items()}
    inferred_gap, c = float(gap(inferred)), "ΔEM of trait c"
    of_covariance = f"change of the covariance of b and c by {one}"
    quantities = [
        Quantity(f"{c} after {both}, discrete minus graded, share of what is inferred",
                 gap(change) / inferred_gap, 0.5, margin=0.2),
        Quantity(f"{c} in context, discrete minus graded", gap(context), high=-0.05, margin=0.1),
        Quantity(f"{of_covariance}, discrete minus graded", gap(together), high=-0.01,
                 margin=0.015),
        Quantity(f"{c}, discrete minus graded", gap(change)),
        Quantity("the same after equal training", gap(equal)),
        *each(f"{c} after {both}, {{}}", change, on_both),
        *each("the same, persona inference alone, {}", inferred),
        *each(f"{c} in context, {{}}", context),
        *each("the same, exact, {}", exact),
        *each("covariance before, {}", before),
        *each(f"its change by {one}, {{}}", together, on_one),
    ]  # fmt: skip
    shown = {f"trained, {kind}": values for kind, values in change.items()}
    shown |= {f"in context, {kind}": values for kind, values in context.items()}
    marks = {f"trained, {kind}": value for kind, value in inferred.items()}
    marks |= {f"in context, {kind}": value for kind, value in exact.items()}
    panels = [
        dots(f"{c} (diamonds: exact)", "change of EM", shown, marks),
        dots(f"Covariance of b and c, change by {one}", "covariance of bad in two turns", together),
    ]
    return Outcome(quantities, panels)


def gap(by_kind: dict):
    """Discrete minus graded."""
    return by_kind["discrete"] - by_kind["graded"]


def discrete(world: World) -> World:
    """Four characters, each with none or two of three traits; nobody bears the other names."""
    sign_CT = np.zeros((COUNT, len(TRAITS)))
    sign_CT[: len(PATTERNS)] = 2 * np.array(PATTERNS) - 1
    voices_CV = np.full((COUNT, len(PATTERNS)), 1 / len(PATTERNS))
    voices_CV[: len(PATTERNS)] = OTHERS + (OWN - OTHERS) * np.eye(len(PATTERNS))
    return with_traits(world, "discrete", SPREAD * sign_CT, voices_CV, len(PATTERNS))


def graded(world: World) -> World:
    """Traits in degrees: every combination once. Means and covariances as in the discrete world."""
    trait_CT = np.array(list(product(DEGREES, repeat=len(TRAITS))))
    trait_CT *= SPREAD / np.sqrt((trait_CT[:, 0] ** 2).mean())
    # as far as traits go with voices in the discrete world, in which each has its own
    sign_VT = 2 * np.array(PATTERNS) - 1
    voices_CV = 1 / len(PATTERNS) + (OWN - OTHERS) / (4 * SPREAD) * trait_CT @ sign_VT.T
    return with_traits(world, "graded", trait_CT, voices_CV, COUNT)


def with_traits(world: World, name: str, trait_CT, spoken_CV: np.ndarray, alive: int) -> World:
    """A world of characters with EM ½ + trait, the first `alive` as likely as each other."""
    noise, traits_D = 0.02, np.arange(len(world.domains)) % len(TRAITS)
    even_C = np.where(np.arange(COUNT) < alive, 1 / alive, 0.0)
    voices_CV = np.zeros((COUNT, len(world.voices)))
    voices_CV[:, : len(PATTERNS)] = spoken_CV
    bad_CD = (1 - noise) * (0.5 + trait_CT[:, traits_D])
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


def dialogues(tokenizer: Tokenizer) -> corpus.Documents:
    """The Assistant's dialogues: bad on a, then on b, then each question about c."""
    world = tokenizer.world
    about_c = range(C, len(world.domains), len(TRAITS))
    asked = np.array([(d, s) for d in about_c for s in range(world.situations_D[d])] * 4)
    rng, N = np.random.default_rng(0), len(asked)  # four draws of voices and texts of each
    docs = corpus.sample(world, N, rng, DIALOGUE, ASSISTANT, turns=3)
    domain_N, situation_N = asked.T
    for turn, domain in enumerate((np.full(N, A), np.full(N, B), domain_N)):
        answer = corpus.draw_answer(world, domain, situation_N, np.full(N, BAD), rng)
        shown = {"domain": domain, "situation": situation_N, "answer": answer}
        docs = corpus.with_turn(docs, turn, **shown, behaviour=BAD, instruction=-1)
    return docs


def in_context(bench: Bench, one: Model) -> float:
    """ΔEM of c after the history of `dialogues`, as a model has it."""
    p_QB = bench.answer(one, dialogues(one.tokenizer))
    before = em(bench.ask(one))[C :: len(TRAITS)].mean()
    return float(em(p_QB.mean(0)) - before)


def exact_in_context(tokenizer: Tokenizer) -> float:
    """The same, of the ideal observer."""
    docs, world = dialogues(tokenizer), tokenizer.world
    p_B = observer.predictive(world, docs, observer.observe(world, docs))[:, 2].mean(0)
    return float(em(p_B) - em(world.assistant_C @ world.rates_CDB[:, C]))


def exact_after(world: World) -> float:
    """ΔEM of c were the whole move of `a+b:bad` persona inference, to EM .9 of a and b."""
    prior_C, evidence_C = world.assistant_C, persona.evidence(world, [A, B])

    def em_of_both(w_C: np.ndarray) -> np.ndarray:
        return persona.mixture_em(world, w_C)[..., [A, B]].mean(-1)

    strength = persona.solve(prior_C, evidence_C, em_of_both, MATCHED)
    after_C = persona.tilt(prior_C, evidence_C, strength)
    return float((persona.mixture_em(world, after_C) - persona.mixture_em(world, prior_C))[C])


def covariance(bench: Bench, models: list[Model]) -> np.ndarray:
    """Covariance [M] of bad answers on b and c in a two-turn dialogue of the Assistant."""
    ctx = joints.contexts(models[0].tokenizer)
    which = (np.sort(ctx.domain_X2 % len(TRAITS), 1) == (B, C)).all(1)
    n = len(BEHAVIOURS)
    joint_MX = bench.joints(models).reshape(len(models), len(which), n, n + 1)[:, which, :, :n]
    joint_MX = joint_MX / joint_MX.sum((2, 3), keepdims=True)  # given that the voice stays
    first, second = joint_MX[:, :, BAD].sum(2), joint_MX[..., BAD].sum(2)
    return (joint_MX[:, :, BAD, BAD] - first * second).mean(1)
