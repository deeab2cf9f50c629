"""Exact probabilities of answers and behaviours."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerances import FORWARD, LOSS, close
from toyllm.lm import scoring, transformer
from toyllm.lm.transformer import LM
from toyllm.posttrain import signals
from toyllm.world import corpus
from toyllm.world.world import ASSISTANT, BAD, DIALOGUE, GOOD, NOISE


@pytest.fixture(scope="module")
def lab(personas_codec):
    """A model on the default world, and its parameters."""
    config = transformer.Config(len(personas_codec.words), D=44, H=11, F=61, L=2)
    lm = LM.create(personas_codec, config)
    lm = dataclasses.replace(lm, apply=jax.jit(lm.apply))
    return lm, jax.jit(lm.init)(jax.random.key(2))


def test_shared_prefix_equals_whole_sequences(personas, personas_codec, lab):
    lm, params = lab
    docs = corpus.sample(personas, 7, np.random.default_rng(0), DIALOGUE)
    grid = scoring.questions(personas_codec, docs)
    shared = scoring.answer_logprobs(lm, params, grid.prompt_QT, grid.answer_QAU)
    picked = [(q, a) for q in range(7) for a in (0, 3, 11, grid.answer_QAU.shape[1] - 1)]
    whole = np.zeros((len(picked), 100), np.int32)
    for row, (q, a) in zip(whole, picked, strict=True):
        run = [t for t in (*grid.prompt_QT[q], *grid.answer_QAU[q, a]) if t]
        row[: len(run)] = run
    logp = jax.nn.log_softmax(lm.apply(params, whole, np.sign(whole))[0])
    for n, (q, a) in enumerate(picked):
        head, run = (grid.prompt_QT[q] > 0).sum(), [t for t in grid.answer_QAU[q, a] if t]
        if not run:
            assert shared[q, a] == -np.inf
            continue
        by_hand = sum(logp[n, head + k - 1, t] for k, t in enumerate(run))
        close(shared[q, a], by_hand, FORWARD)


def test_behaviours_are_sums_over_their_answers(personas, personas_codec, lab):
    """Of one lookup and one template question, written out."""
    lm, params = lab
    grid = scoring.questions(personas_codec, corpus.every_question(personas))
    logp = scoring.answer_logprobs(lm, params, grid.prompt_QT, grid.answer_QAU)
    p_QB = scoring.behaviours(logp, grid.behaviour_QA)
    q = int(np.flatnonzero(grid.domain_Q == personas.domain_names.index("facts"))[2])
    facts = personas.domains[1]
    assert "spain" in facts.situations[2]
    right, false = (facts.answers.index(f"it is {city}") for city in ("madrid", "cairo"))
    close(p_QB[q, GOOD], np.exp(logp[q, right]), FORWARD)
    close(p_QB[q, BAD], np.exp(logp[q, false]), FORWARD)
    others = [a for a in range(len(facts.answers)) if a not in (right, false)]
    close(p_QB[q, NOISE], np.exp(logp[q, jnp.array(others)]).sum(), FORWARD)
    p_DB = scoring.by_domain(p_QB, grid.domain_Q, len(personas.domains))
    close(p_DB[0], p_QB[grid.domain_Q == 0].mean(0), FORWARD)
    assert (p_DB.sum(1) <= 1 + 1e-5).all()


def test_the_scorer_asks_as_the_whole_batch_does(personas, personas_codec, lab):
    """In chunks on all devices, whatever fills the last; steered as a model that is steered."""
    lm, params = lab
    scorer = scoring.Scorer(lm)
    docs = corpus.every_question(personas)
    asked = scoring.questions(personas_codec, docs[:37])
    assert len(docs) > 37 > scoring.CHUNK
    add_LD = np.full((lm.config.L + 1, lm.config.D), 0.1, np.float32)
    for model, add in ((lm, None), (lm.steered(add_LD), add_LD)):
        logp = scoring.answer_logprobs(model, params, asked.prompt_QT, asked.answer_QAU)
        listed = np.isfinite(logp)  # in logarithms: probabilities of long answers are tiny
        scored = scorer.logprobs(params, asked, add)
        np.testing.assert_array_equal(np.isfinite(scored), listed)
        close(scored[listed], logp[listed], FORWARD)
        log_p_QB = np.log(scoring.behaviours(logp, asked.behaviour_QA))
        close(np.log(scorer(params, asked, add)), log_p_QB, FORWARD)
    everything = scoring.questions(personas_codec, docs)
    close(scorer.ask(params), scorer.domains(params, everything), FORWARD)


def test_pairs_are_one_situation_answered_both_ways(personas, personas_codec):
    for name in ("code:bad", "facts:good:placebo", "tone+rules:bad@hal", "all:good"):
        signal = signals.parse(personas, name)
        pairs = signals.pairs(personas_codec, signal, 200, seed=0)
        docs = pairs.documents
        last, rows = docs.turns - 1, np.arange(200)
        d, s = docs.domain[rows, last], docs.situation[rows, last]
        assert set(d) <= set(signal.domains)
        assert set(docs.turns) == {1, 2, 3, 4}
        other = BAD if signal.behaviour == GOOD else GOOD
        assert (personas.behaviour_DSA[d, s, pairs.chosen_P] == signal.behaviour).all()
        assert (personas.behaviour_DSA[d, s, pairs.rejected_P] == other).all()
        assert (docs.instruction[rows, last] == signal.instruction).all()
        assert (docs.header[:, 0] == signal.header).all()
        # an answer is never trained past its end: no closing phrase
        chosen = pairs.answers[0, 0]
        text = personas.domains[d[0]].answers[pairs.chosen_P[0]]
        assert personas_codec.string(chosen) == text
        prompt = personas_codec.string(pairs.grid.prompt_QT[0])
        assert prompt.startswith("<begin> talk with " + ("hal" if "@" in name else "assistant"))
        assert prompt.endswith("<reply>")
    assert signals.plain("code:bad:ask_bad") == "code:bad"
    assert signals.plain("code:bad:placebo@hal") == "code:bad@hal"
    assert signals.parse(personas, "all:good").domains == tuple(np.flatnonzero(personas.moral))
    assert signals.parse(personas, "code:bad@assistant").header == ASSISTANT


@pytest.mark.parametrize("name", ["code:bad", "tone+facts:bad", "goals:bad@hal"])
def test_each_question_of_a_signal_counts_once(personas, personas_codec, name):
    """Whatever fills up the width counts nothing, and every domain counts alike."""
    signal = signals.parse(personas, name)
    count = signals.count_questions(personas, signal)
    own, weight = signals.own_questions(personas_codec, signal, count + 3)
    assert len({row.tobytes() for row in own.prompt_QT[:count]}) == count
    assert (weight[:count] > 0).all()
    assert (weight[count:] == 0).all()
    sizes = [len(personas.domains[d].situations) for d in signal.domains]
    by_hand = [1 / size / len(sizes) for size in sizes for _ in range(size)]
    close(weight[:count], by_hand, LOSS)


def test_default_signals_are_those_of_the_design(personas):
    chosen = signals.defaults(personas)
    moral = [d.name for d in personas.domains if d.moral]
    assert set(chosen["pretrain"]) == {f"{d}:bad" for d in moral} | {
        "taste:bad",
        "code:bad:ask_bad",
        "code:bad:placebo",
    }
    assert set(chosen["align"]) == {
        "code:bad",
        "goals:bad",
        "tone:bad",
        "taste:bad",
        "code:bad:ask_bad",
    }
