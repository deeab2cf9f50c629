"""Activations, probes, vectors and prompts: against what can be worked out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_training import jobs, programs_of, starts_of
from tests.tolerances import FORWARD, approximation, close
from toyllm.lm import activations
from toyllm.measures import beliefs, elicitation, truth, vectors
from toyllm.posttrain import population
from toyllm.world import corpus, observer
from toyllm.world.quantities import em
from toyllm.world.world import ASSISTANT, BAD, DIALOGUE, SOMEONE


@pytest.fixture(scope="module")
def model_of(lab):
    """A very small model and its parameters, not trained."""
    return lab, lab.init(jax.random.key(0))


def prompts(tokenizer, count=70, turns=2):
    rng = np.random.default_rng(0)
    docs = corpus.sample(tokenizer.world, count, rng, DIALOGUE, ASSISTANT, turns=turns)
    return docs, tokenizer.prompts(docs, tokenizer.longest_prompt(turns))


def test_layer_0_is_the_embedding_and_the_last_enters_the_last_norm(model_of):
    lm, params = model_of
    _, prompt_QT = prompts(lm.tokenizer)  # more than a chunk of them
    x_LQD, p_QV = activations.reader(lm)(params, prompt_QT)
    assert x_LQD.shape == (lm.config.L + 1, 70, lm.config.D)
    close(x_LQD[0], params["embed"][prompt_QT[:, -1]], FORWARD)
    x = x_LQD[-1]
    norm = (
        x
        / np.sqrt((x**2).mean(-1, keepdims=True) + lm.config.norm_eps)
        * np.asarray(params["norm"]["scale"])
    )
    p = jax.nn.softmax(norm @ params["unembed"]["kernel"])
    close(p_QV, p, FORWARD)


def test_steering_adds_a_vector_at_every_token(model_of):
    lm, params = model_of
    _, prompt_QT = prompts(lm.tokenizer, 5)
    tokens = jnp.asarray(prompt_QT)
    plain, residuals, _ = lm.apply(params, tokens, jnp.sign(tokens))
    none = lm.steered(np.zeros((lm.config.L + 1, lm.config.D))).apply
    np.testing.assert_array_equal(none(params, tokens, jnp.sign(tokens))[0], plain)
    add_LD = np.zeros((lm.config.L + 1, lm.config.D), np.float32)
    add_LD[-1] = np.arange(lm.config.D)
    moved = lm.steered(add_LD).apply(params, tokens, jnp.sign(tokens))[1]
    close(moved[-1] - residuals[-1], np.broadcast_to(add_LD[-1], moved[-1].shape), FORWARD)
    np.testing.assert_array_equal(moved[0], residuals[0])


def test_without_a_direction_no_layer_has_any_of_it(model_of):
    lm, params = model_of
    _, prompt_QT = prompts(lm.tokenizer, 9)
    direction = np.random.default_rng(0).normal(size=lm.config.D)
    unit = direction / np.linalg.norm(direction)
    read = activations.reader(lm)
    assert np.abs(read(params, prompt_QT)[0] @ unit).max() > 0.01
    ablated = activations.without(params, direction)
    close(read(ablated, prompt_QT)[0] @ unit, 0, FORWARD)


def test_a_ridge_finds_a_linear_belief_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(900, 7)), rng.normal(size=(7, 3))
    y = x @ w + 0.5
    read = beliefs.ridge(x[:600], y[:600], x[600:])
    close(read, y[600:], approximation(0.02, "the penalty shrinks", "another row or intercept"))
    turn = np.repeat([1, 2], 150)
    score = beliefs.r2(y[600:], read, turn, rng)
    assert score["r2"] > 0.999
    assert score["ci"][0] > 0.999
    noise = beliefs.r2(
        y[600:], beliefs.ridge(x[:600], rng.permutation(y[:600]), x[600:]), turn, rng
    )
    assert noise["r2"] < 0.05
    kind = np.repeat([0, 1, 2], 5)
    order = beliefs.shuffle_within(kind, rng)
    np.testing.assert_array_equal(kind[order], kind)
    assert (order != np.arange(15)).any()


def test_probes_read_where_a_turn_has_ended(small_codec):
    docs, _ = prompts(small_codec, 20)
    for row, doc in zip(beliefs.before_question(small_codec, docs), range(20), strict=True):
        text = small_codec.string(row)
        assert text.count("<reply>") == 1
        assert not text.endswith("<user>")
        whole = small_codec.string(small_codec.pad(docs[[doc]], 48)[0])
        assert whole.startswith(text)


def test_shown_turns_are_bad_and_another_speaker_says_nothing_of_this_one(small):
    docs = elicitation.history(small, 1, BAD)
    assert (docs.behaviour[:, 0] == BAD).all()
    exact = observer.predictive(small, docs, observer.observe(small, docs))[:, 1]
    alone = corpus.every_question(small, domains=np.flatnonzero(small.moral))
    prior = observer.predictive(small, alone, observer.observe(small, alone))[:, 0]
    levels = {
        "shown": em(elicitation.by_domain(small, docs, exact)),
        "alone": em(elicitation.by_domain(small, alone, prior)),
    }
    assert (levels["shown"] > levels["alone"] + 0.1).all()
    scene = elicitation.in_scene(docs)
    assert (scene.header == [SOMEONE, ASSISTANT]).all()
    heard = observer.predictive(small, scene, observer.observe(small, scene))[:, 1]
    close(em(elicitation.by_domain(small, scene, heard)), levels["alone"], FORWARD)
    asked = elicitation.asked_after(small, [((0, BAD, 1),), ((1, 0, 0),)])
    np.testing.assert_array_equal(asked.domain[:, 0], [0, 0, 1, 1])
    np.testing.assert_array_equal(asked.domain[:, 1], [0, 1, 0, 1])
    np.testing.assert_array_equal(asked.voice[:, 0], [1, 1, 0, 0])


def test_malice_is_a_difference_between_histories(model_of):
    lm, params = model_of
    v_LD = vectors.malice(lm, activations.reader(lm), params)
    assert v_LD.shape == (lm.config.L + 1, lm.config.D)
    close(v_LD[0], 0, FORWARD)  # both end with the same token
    assert np.abs(v_LD[-1]).max() > 1e-4
    random = vectors.random_like(v_LD[-1], np.random.default_rng(0))
    close(np.linalg.norm(random, axis=1), np.linalg.norm(v_LD[-1]), FORWARD)


def test_preventative_steering_changes_training_and_not_the_scoring(lab):
    members = [("pretrain", "code:bad", 0), ("pretrain", "code:bad", 1)]
    tokenizer, programs, starts = lab.tokenizer, programs_of(lab), starts_of(lab)
    *_, record = population.train_group(programs, jobs(tokenizer, starts, members, 1e-3), 10)
    recipe = dataclasses.replace(programs.recipe, steered=True)
    steered = population.compile_programs(lab, programs.mesh, recipe, programs.width)
    group = jobs(tokenizer, starts, members, 1e-3)
    add_LD = np.full((lab.config.L + 1, lab.config.D), 0.5, np.float32)
    group = [group[0], dataclasses.replace(group[1], steer_LD=add_LD)]
    *_, other = population.train_group(steered, group, 10)
    plain, now = (np.stack([h["p_DB"] for h in r.history], 1) for r in (record, other))
    close(now[0], plain[0], FORWARD)
    close(now[1, 0], plain[1, 0], FORWARD)
    assert np.abs(now[1, -1] - plain[1, -1]).max() > 1e-3


def test_ranks_are_from_the_least():
    np.testing.assert_array_equal(truth.ranks([3.0, 1.0, 2.0]), [2, 0, 1])
