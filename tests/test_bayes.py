"""The ideal observer, against brute-force enumeration of every document of a small world."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from tests.tolerances import FLOAT64, close
from toyllm.world import corpus, observer
from toyllm.world.corpus import Documents
from toyllm.world.world import ASSISTANT, DIALOGUE, INTRODUCTION, NAMED, PROFILE, SCENE, SOMEONE


def theta(world, c, d, i, b):
    """θ' written out from its definition, for the small world's one instruction (toward bad)."""
    rate = world.rates_CDB[c, d, b]
    if i < 0:
        return rate
    kappa = world.instructions[i].kappa
    return kappa + (1 - kappa) * rate if b == 1 else (1 - kappa) * rate


def headers(world, kind):
    """Every (header, name shown, {c: p}) with its probability, the name's included."""
    told = world.assistant_C if world.told_C is None else world.told_C
    names = range(len(world.characters))
    for h, p_header in enumerate(world.header_weights):
        if h == NAMED:
            for c in names:
                yield h, c, {c: 1.0}, p_header * world.frequency_C[c]
        else:
            spoken = told if kind == PROFILE else world.assistant_C
            weights = world.frequency_C if h == SOMEONE else spoken
            yield h, -1, {c: weights[c] for c in names}, p_header


def turns(world):
    """Every turn (d, s, i, b, a, v) with its probability given each character."""
    for d, domain in enumerate(world.domains):
        for s, _ in enumerate(domain.situations):
            asked = [i for i, x in enumerate(world.instructions) if domain.name in x.domains]
            plain = 1 - sum(world.instructions[i].probability for i in asked)
            for i in [-1, *asked]:
                p_i = plain if i < 0 else world.instructions[i].probability
                for a, b in enumerate(domain.behaviour_SA[s]):
                    texts = sum(domain.behaviour_SA[s] == b)
                    for v in range(len(world.voices)):
                        p = {
                            c: p_i
                            / len(world.domains)
                            / len(domain.situations)
                            * theta(world, c, d, i, b)
                            / texts
                            * world.voices_CV[c, v]
                            for c in range(len(world.characters))
                        }
                        yield (d, s, i, int(b), a, v), p


def enumerate_documents(world):
    """Every document of the small world as (row, probability), by summing over who speaks."""
    said = list(turns(world))
    D = len(world.domains)
    for kind in (DIALOGUE, PROFILE, SCENE):
        low, high = world.lengths[kind]
        for T in range(low, high + 1):
            p_kind = world.kind_weights[kind] / (high - low + 1)
            whos = list(headers(world, kind))
            pairs = itertools.product(whos, whos) if kind == SCENE else [(w,) for w in whos]
            for who in pairs:
                p_who = math.prod(w[3] for w in who)
                if kind == PROFILE:
                    for ds in itertools.permutations(range(D), T):
                        p_ds = math.prod(1 / (D - k) for k in range(T))
                        for bs in itertools.product(range(3), repeat=T):
                            p = sum(
                                w
                                * math.prod(
                                    world.rates_CDB[c, d, b] for d, b in zip(ds, bs, strict=True)
                                )
                                for c, w in who[0][2].items()
                            )
                            rows = [(d, -1, -1, b, -1, -1) for d, b in zip(ds, bs, strict=True)]
                            yield row(kind, who, [0] * T, rows), p_kind * p_who * p_ds * p
                    continue
                for slots in itertools.product(range(len(who)), repeat=T):
                    for chosen in itertools.product(said, repeat=T):
                        p = len(who) ** -T
                        for slot, w in enumerate(who):
                            mine = [q for k, (_, q) in enumerate(chosen) if slots[k] == slot]
                            p *= sum(w[2][c] * math.prod(q[c] for q in mine) for c in w[2])
                        yield row(kind, who, slots, [x for x, _ in chosen]), p_kind * p_who * p
    if world.kind_weights[INTRODUCTION]:
        for columns, p_CK in enumerate_introductions(world):
            yield columns, p_CK.sum()


def enumerate_introductions(world):
    """Every introduction of a statement and a turn, with p(it, about c, spoken by k) [C, C]."""
    C, D = len(world.characters), len(world.domains)
    who = [(ASSISTANT, -1), (ASSISTANT, -1)]
    for (d, b), (said, q) in itertools.product(
        itertools.product(range(D), range(3)), list(turns(world))
    ):
        p_CK = np.zeros((C, C))
        for c, k in itertools.product(range(C), repeat=2):
            told = world.assistant_C if world.told_C is None else world.told_C
            prior = (1 - world.binding) * told[c] * world.assistant_C[k]
            prior += world.binding * world.assistant_C[c] * (c == k)
            p_CK[c, k] = prior * world.rates_CDB[c, d, b] / D * q[k]
        columns = row(INTRODUCTION, who, [0, 1], [(d, -1, -1, b, -1, -1), said])
        yield columns, world.kind_weights[INTRODUCTION] * p_CK


def row(kind, who, slots, rows, T=2):
    pad = [-1] * (T - len(rows))
    columns = [[*column, *pad] for column in zip(*rows, strict=True)]
    header = [w[0] for w in who] + [-1] * (2 - len(who))
    shown = [w[1] for w in who] + [-1] * (2 - len(who))
    return (kind, header, shown, [*slots, *pad], *columns)


@pytest.fixture(scope="module")
def every(small):
    """All documents of the small world, and their probabilities."""
    return documents_of(small)


def documents_of(world):
    return as_documents(enumerate_documents(world))


def as_documents(rows_and_p):
    rows, p = zip(*rows_and_p, strict=True)
    kind, header, shown, speaker, d, s, i, b, a, v = map(np.array, zip(*rows, strict=True))
    return Documents(kind, header, shown, speaker, d, s, i, b, a, v), np.array(p)


def test_log_prob_is_that_of_the_enumeration(small, every):
    docs, p = every
    close(p.sum(), 1, FLOAT64)
    close(observer.log_prob(small, docs), np.log(p), FLOAT64)


def test_profiles_may_tell_of_another_assistant(small):
    told = dataclasses.replace(small, told_C=np.array([0.1, 0.9]))
    docs, p = documents_of(told)
    close(observer.log_prob(told, docs), np.log(p), FLOAT64)
    profile = (docs.kind == PROFILE) & (docs.header[:, 0] == ASSISTANT)
    before = observer.log_prob(small, docs)
    assert (np.abs(before - np.log(p))[profile] > 1e-3).any()
    close(before[~profile], np.log(p[~profile]), FLOAT64)


@pytest.fixture(params=[0.0, 0.3, 1.0])
def introducing(small, request):
    """The small world with introductions, of which so many are about their speaker."""
    return dataclasses.replace(
        small,
        kind_weights=np.array([0.4, 0.2, 0.1, 0.3]),
        lengths=(*small.lengths[:3], (1, 1)),
        statements=(1, 1),
        binding=request.param,
        told_C=np.array([0.2, 0.8]),
    )


def test_an_introduction_is_as_probable_as_the_enumeration_says(introducing):
    docs, p = documents_of(introducing)
    close(p.sum(), 1, FLOAT64)
    close(observer.log_prob(introducing, docs), np.log(p), FLOAT64)


def test_both_of_an_introduction_are_inferred_together(introducing):
    """The posterior of either, and what is done next given the statement, by summing the joint."""
    docs, p_NCK = as_documents(enumerate_introductions(introducing))
    both_NLC = np.stack([p_NCK.sum(2), p_NCK.sum(1)], 1)
    close(
        observer.posterior(introducing, docs), both_NLC / p_NCK.sum((1, 2))[:, None, None], FLOAT64
    )
    beliefs = observer.observe(introducing, docs)
    predictive_NTB = observer.predictive(introducing, docs, beliefs)
    blind = observer.observe(introducing, docs, history_blind=True)
    asked = np.stack([docs.domain[:, 1], docs.instruction[:, 1]], 1)
    stated = np.stack([docs.domain[:, 0], docs.behaviour[:, 0]], 1)
    for n in np.random.default_rng(0).choice(len(docs), 40, replace=False):
        # all questions alike, after the same statement: the share that each behaviour has of them
        same = (asked == asked[n]).all(1) & (stated == stated[n]).all(1)
        known_K = p_NCK[same].sum((0, 1))
        theta_KB = introducing.rates_ICDB[docs.instruction[n, 1], :, docs.domain[n, 1]]
        close(np.exp(beliefs.log_before_NTC[n, 1]), known_K / known_K.sum(), FLOAT64)
        close(predictive_NTB[n, 1], known_K @ theta_KB / known_K.sum(), FLOAT64)
    close(
        np.exp(blind.log_before_NTC[:, 1]),
        introducing.assistant_C + np.zeros((len(docs), 1)),
        FLOAT64,
    )
    moved = np.abs(np.exp(beliefs.log_before_NTC[:, 1]) - introducing.assistant_C).max()
    assert (moved > 0.05) == (introducing.binding > 0)


def test_introductions_are_drawn_as_the_world_says(introducing):
    docs = corpus.sample(introducing, 40_000, np.random.default_rng(1), INTRODUCTION)
    told_C, b = introducing.told_C, introducing.binding
    prior_CK = (1 - b) * np.outer(told_C, introducing.assistant_C)
    prior_CK += b * np.diag(introducing.assistant_C)
    counts_CK = np.zeros((2, 2))
    np.add.at(counts_CK, tuple(docs.character.T), 1 / len(docs))
    assert np.abs(counts_CK - prior_CK).max() < 4 * 0.5 / len(docs) ** 0.5
    assert (docs.header == ASSISTANT).all()
    assert (docs.speaker == [0, 1]).all()
    # what is stated is about the first, and what is done is by the second
    d = introducing.domain_names.index("facts")
    for slot in range(2):
        here = (docs.domain[:, slot] == d) & (docs.character[:, slot] == 1)
        done = np.bincount(docs.behaviour[here, slot], minlength=3) / here.sum()
        assert np.abs(done - introducing.rates_CDB[1, d]).max() < 4 * 0.5 / here.sum() ** 0.5


def test_predictive_is_the_conditional_of_the_enumeration(small, every):
    """p(a | d, i, history, header) by dividing sums of enumerated probabilities."""
    docs, p = every
    two = np.flatnonzero(
        (docs.kind == DIALOGUE) & (docs.turns == 2) & (docs.header[:, 0] == ASSISTANT)
    )
    rng = np.random.default_rng(0)
    for n in rng.choice(two, 40, replace=False):
        same = [
            n2
            for n2 in two
            if all(
                getattr(docs, f)[n2, 0] == getattr(docs, f)[n, 0]
                for f in ("domain", "situation", "instruction", "answer", "voice")
            )
            and docs.domain[n2, 1] == docs.domain[n, 1]
            and docs.instruction[n2, 1] == docs.instruction[n, 1]
        ]
        by_b = np.array([sum(p[m] for m in same if docs.behaviour[m, 1] == b) for b in range(3)])
        one = docs[n : n + 1]
        exact = observer.predictive(small, one, observer.observe(small, one))[0, 1]
        close(exact, by_b / by_b.sum(), FLOAT64)


def test_posterior_is_bayes_rule_by_hand(small, every):
    docs, _ = every
    n = np.flatnonzero(
        (docs.kind == DIALOGUE) & (docs.turns == 2) & (docs.header[:, 0] == SOMEONE)
    )[37]
    one = docs[n : n + 1]
    # p(document | c) for each character: the document as if it were the only one behind a header
    by_hand = (
        np.array(
            [
                np.exp(observer.log_prob(dataclasses.replace(small, frequency_C=only_C), one)[0])
                for only_C in np.eye(len(small.characters))
            ]
        )
        * small.frequency_C
    )
    close(observer.posterior(small, one)[0, 0], by_hand / by_hand.sum(), FLOAT64)


def test_floor_is_the_expectation_of_the_enumeration(small, small_codec, every):
    """Exact, and by Monte Carlo within 4 standard errors."""
    docs, p = every
    _, lengths = small_codec.encode(docs)
    exact = -(p * np.log(p)).sum() / (p * (lengths - 1)).sum()
    drawn = corpus.sample(small, 40_000, np.random.default_rng(0))
    _, n = small_codec.encode(drawn)
    nll = -observer.log_prob(small, drawn)
    measured, nats = nll.sum() / (n - 1).sum(), nll - exact * (n - 1)
    error = nats.std() / len(drawn) ** 0.5 / (n - 1).mean()
    assert abs(measured - exact) < 4 * error


def test_blind_observers_lose_what_they_do_not_see(small, every):
    """Their expected loss is positive, and zero where there is nothing to see."""
    docs, p = every
    full = observer.log_prob(small, docs)
    for which in ("history_blind", "name_blind"):
        blind = observer.observe(small, docs, **{which: True}).log_prob_N
        assert (p * (full - blind)).sum() > 1e-3, which
    single = docs.turns == 1
    blind = observer.observe(small, docs, history_blind=True).log_prob_N
    close(blind[single], full[single], FLOAT64)
    unnamed = (docs.header != NAMED).all(1)
    blind = observer.observe(small, docs, name_blind=True).log_prob_N
    close(blind[unnamed], full[unnamed], FLOAT64)


def test_a_dictated_bad_answer_says_nothing_about_who_speaks(small):
    """κ = 1: the posterior after a bad answer is the prior (the voice aside)."""
    import dataclasses

    dictated = dataclasses.replace(small.instructions[0], kappa=1.0)
    world = dataclasses.replace(
        small, instructions=(dictated,), voices_CV=np.array([[0.5, 0.5], [0.5, 0.5]])
    )
    docs = corpus.sample(world, 1, np.random.default_rng(0), DIALOGUE, ASSISTANT, turns=1)
    for name, value in (
        ("domain", 0),
        ("situation", 0),
        ("instruction", 0),
        ("behaviour", 1),
        ("answer", 2),
        ("voice", 0),
    ):
        getattr(docs, name)[0, 0] = value
    close(observer.posterior(world, docs)[0, 0], world.assistant_C, FLOAT64)
