"""The ideal observer, against brute-force enumeration of every document of a small world."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from tests.tolerances import FLOAT64, close
from toyllm.world import corpus, observer
from toyllm.world.corpus import Documents
from toyllm.world.world import ASSISTANT, DIALOGUE, NAMED, PROFILE, SCENE, SOMEONE


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
    rows, p = zip(*enumerate_documents(world), strict=True)
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
