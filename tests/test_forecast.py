"""The forecast of a signal's training, against small steps, real training and its own parts."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from tests.conftest import mesh_of
from tests.tolerances import FORWARD, approximation, close
from toyllm.lm import training
from toyllm.lm.scoring import Scorer
from toyllm.posttrain import forecast, pools, population, signals
from toyllm.posttrain.forecast import Forecaster
from toyllm.world.quantities import MATCHED, crossing, em, logit, sigmoid

HOW = ("dpo", 1.0, 0.5)


@pytest.fixture(scope="module")
def model(lab):
    """Parameters that a few steps of pretraining have left, so that gradients are no noise."""
    optimizer = optax.adam(1e-2)
    batches = training.document_batches(lab.tokenizer, 48, 16, 50, seed=0)
    state = training.start(lab.init(jax.random.key(0)), optimizer)
    steps = jax.jit(lambda s, b: training.scan_steps(training.document_loss(lab), optimizer, s, b))
    for begin in range(0, 200, 50):
        state, _ = steps(state, batches(begin))
    return jax.device_get(state.params)


@pytest.fixture(scope="module")
def forecaster(lab):
    """Compiled once for all tests."""
    return Forecaster(lab, *HOW)


def own(lab, name: str):
    """A signal, as a list of one."""
    return [signals.parse(lab.world, name)]


def log_odds(lab, params) -> np.ndarray:
    """Of bad in each domain [D]."""
    return logit(em(Scorer(lab).ask(params).astype(np.float64)))


def test_ratios_are_those_of_a_small_step_of_adam(lab, model, monkeypatch):
    monkeypatch.setattr(forecast, "BATCHES", 1)
    monkeypatch.setattr(forecast, "BATCH", 64)
    (signal,) = own(lab, "code:bad")
    (found,) = Forecaster(lab, *HOW)(lab.tokenizer, model, [signal])
    pool = pools.with_reference(pools.draw(lab.tokenizer, {signal: 1.0}, "dpo", 64, 0), lab, model)
    optimizer = optax.adam(1e-5)
    batch = jax.tree.map(lambda x: np.asarray(x)[None], pool)
    state, _ = training.scan_steps(
        pools.loss(lab, *HOW), optimizer, training.start(model, optimizer), batch
    )
    moved_D = log_odds(lab, state.params) - log_odds(lab, model)
    small = approximation(0.01, "a step of 1e-5 is not infinitely small", "another gradient")
    close(found.ratio_D, moved_D / moved_D[signal.domains[0]], small)


def test_shares_add_up_and_every_parameter_has_one_part(lab, model, forecaster):
    (found,) = forecaster(lab.tokenizer, model, own(lab, "code:bad"), split=True)
    plain = forecaster(lab.tokenizer, model, own(lab, "code:bad"))[0]
    small = approximation(2e-3, "a derivative from two steps of 2e-5 in float32", "a missing part")
    close(sum(found.shares.values()), plain.ratio_D, small)
    close(sum(found.stretches.values())[0], 1, FORWARD)
    assert found.shares["unembedding"][0] != 0
    masks = forecast.parts(lab.tokenizer, model)
    whole = jax.tree.map(lambda *each: sum(each), *masks.values())
    for mask, leaf in zip(jax.tree.leaves(whole), jax.tree.leaves(model), strict=True):
        assert (np.broadcast_to(mask, leaf.shape) == 1).all()


def test_stretches_of_a_slope_add_up_to_the_whole(lab, model, forecaster):
    """Gradients through header, history and question, and past them, are the gradient."""
    asked, stretch_GQT = forecast.within_dialogues(lab.tokenizer)
    assert stretch_GQT.sum(0).max() == 1
    header, _, question = (lab.tokenizer.string(asked.prompt_QT[0][s[0]]) for s in stretch_GQT)
    assert header == "<begin> talk with assistant"
    assert question.startswith("<user>")
    assert "<reply>" not in question.removesuffix("<reply>")
    each = forecaster._slopes_by_stretch(model, asked, stretch_GQT)
    whole = forecaster._slopes(model, asked)
    for parts, total in zip(jax.tree.leaves(each), jax.tree.leaves(whole), strict=True):
        close(parts.sum(0), total, dataclasses.replace(FORWARD, atol=1e-4, name="SLOPES"))
    unembedding = np.abs(each["unembed"]["kernel"])
    assert unembedding[:3].max() == 0  # no key or value passes through it
    assert unembedding[3].max() > 0


def test_the_steps_end_where_the_trained_domain_is_at_the_matched_effect(lab, model, forecaster):
    (signal,) = own(lab, "code:bad")
    (found,) = forecaster(lab.tokenizer, model, [signal])
    d, near = signal.domains[0], approximation(2e-3, "regula falsi stops early", "another goal")
    close(found.before_D, em(Scorer(lab).ask(model)), FORWARD)
    for change_D in (found.one_D, found.change_D):
        close((found.before_D + change_D)[d], MATCHED, near)
    half = approximation(0.3, "the first order is only so good", "the goal itself")
    close((found.before_D + found.linear_D)[d], MATCHED, half)
    assert (np.diff(found.sizes[0]) > 0).all()
    assert found.sizes[1, 0] == pytest.approx(found.sizes[1, 1])


def test_the_forecast_is_what_training_does(lab, model, forecaster):
    """Nothing of the trained models enters it, and it says where they are at the matched effect."""
    (signal,) = own(lab, "code:bad")
    (found,) = forecaster(lab.tokenizer, model, [signal])
    recipe = population.Recipe(*HOW, pool=64, batch=16, score_every=2)
    job = population.Job("a", lab.tokenizer, model, {signal: 1.0}, 0, 3e-4)
    programs = population.compile_programs(lab, mesh_of(1), recipe, [job])
    *_, record = population.train_group(programs, [job], 80, until_kept=True)
    em_nD = em(np.stack([now["p_DB"][0] for now in record.history]))
    place = crossing(em_nD[:, signal.domains[0]], MATCHED)
    assert place is not None
    at_D = np.array([np.interp(place, np.arange(len(em_nD)), x_n) for x_n in em_nD.T])
    close(found.change_D, at_D - em_nD[0], approximation(0.05, "two steps for many", "no forecast"))


def test_a_frozen_part_does_not_move(lab, model, forecaster):
    masks = forecast.parts(lab.tokenizer, model)
    slow = jax.tree.map(lambda x: 1 - x, masks["unembedding"])
    (found,) = forecaster(lab.tokenizer, model, own(lab, "code:bad"), slow=slow, split=True)
    assert (found.shares["unembedding"] == 0).all()
    (free,) = forecaster(lab.tokenizer, model, own(lab, "code:bad"))
    assert np.abs(found.change_D - free.change_D).max() > 1e-4


def test_a_prompt_that_is_there_before_is_read_at_the_steps_of_the_plain_signal(
    lab, model, forecaster, monkeypatch
):
    chosen = [own(lab, name)[0] for name in ("code:bad:ask_bad", "code:bad")]
    befores = []
    for signal in chosen:
        asked = *signals.own_questions(lab.tokenizer, signal, 2), forecast._sign(signal)
        befores.append(float(forecaster._preferred_at(np.zeros(1), model, model, asked)[0]))
    assert befores[0] > befores[1] + 0.1
    monkeypatch.setattr(forecast, "MATCHED", sigmoid(np.mean(befores)))  # between the two prompts
    there, plain = forecaster(lab.tokenizer, model, chosen)
    assert (there.sizes == plain.sizes).all()
    assert there.linear_size == plain.linear_size
    for known in (there.change_D, there.one_D, there.linear_D):
        assert np.isfinite(known).all()
    (alone,) = forecaster(lab.tokenizer, model, chosen[:1])
    for unknown in (alone.change_D, alone.one_D, alone.linear_D):
        assert np.isnan(unknown).all()
    monkeypatch.undo()
    monkeypatch.setattr(forecast, "SIZES", np.full(1, 1e-6, np.float32))
    (far,) = forecaster(lab.tokenizer, model, chosen[1:])
    assert np.isnan(far.change_D).all()
