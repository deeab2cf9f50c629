"""Ways of narrow training, beside closed forms: adapters, a penalty elsewhere, chosen pairs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.conftest import mesh_of
from tests.test_training import MEMBERS, jobs, starts_of
from tests.tolerances import FORWARD, TRAINED, close
from toyllm.base import devices
from toyllm.base.errors import InputError
from toyllm.lm import losses, scoring, training
from toyllm.lm.scoring import answer_logprobs
from toyllm.posttrain import curated, lora, pools, population, signals
from toyllm.posttrain.lora import Lora
from toyllm.world import corpus
from toyllm.world.world import NOISE

POOL, SEED = 24, 3


def train(lab, steps=10, lr=1e-2, kl=0.0, adapt=None) -> population.Record:
    """The first two members of a small population, trained in this way."""
    recipe = population.Recipe("dpo", 0.5, 0.2, POOL, 6, 5, lora=adapt, kl=kl)
    programs = population.compile_programs(lab, mesh_of(2), recipe, 3)
    group = jobs(lab.tokenizer, starts_of(lab), MEMBERS[:2], lr)
    *_, record = population.train_group(programs, group, steps)
    return record


def pool_of(lab, params, name="code:bad", kl=False) -> dict:
    """A pool of pairs with the reference's log-probabilities, as a population makes it."""
    signal = signals.parse(lab.world, name)
    pool = pools.draw(lab.tokenizer, {signal: 1.0}, "dpo", POOL, SEED)
    pool = pools.with_reference(pool, lab, params)
    if kl:
        pool |= pools.elsewhere(lab.tokenizer, {signal: 1.0}, POOL, SEED)
        asked = pool["other_prompt"], pool["other_answer"]
        pool["other_reference"] = np.asarray(answer_logprobs(lab, params, *asked))
    return pool


def test_an_adapter_that_is_not_trained_changes_nothing(lab):
    params = starts_of(lab)["pretrain"]
    same = lora.merged(params, lora.adapters(params, Lora(2), SEED))
    for a, b in zip(*map(jax.tree.leaves, (params, same)), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="'attention/vale': no such matrix"):
        lora.adapters(params, Lora(2, ("attention/vale",)), SEED)


@pytest.mark.parametrize("rank", [1, 3])
def test_adapters_change_the_chosen_matrices_by_their_rank(lab, rank):
    chosen = ("attention/value", "mlp/down")
    record = train(lab, adapt=Lora(rank, chosen))
    for r, start in enumerate(starts_of(lab).values()):
        after = devices.take(record.final, r)
        kernels, trained = lora.kernels(start), lora.kernels(after)
        for name, kernel in kernels.items():
            moved = np.asarray(trained[name]) - np.asarray(kernel)
            if not name.endswith(chosen):
                assert not moved.any()
                continue
            sizes = np.linalg.svd(moved, compute_uv=False)
            assert sizes[rank - 1] > 1e-4
            assert sizes[rank:].max(initial=0) < 1e-5 * sizes[0]
        np.testing.assert_array_equal(after["embed"], start["embed"])
    # what is learned, and kept, is that of the merged models
    assert (record.history[-1]["own_B"][:, 1] > record.history[0]["own_B"][:, 1]).all()


def test_an_adapter_of_full_rank_behind_the_identity_is_training_the_matrix(lab):
    """W + I B has the gradient of W, so Adam moves B as it moves W."""
    params, name = starts_of(lab)["pretrain"], "blocks/0/mlp/down"
    batches = pools.batches(pool_of(lab, params), SEED, 5, 6)(0)
    loss = pools.loss(lab, "dpo", 0.5, 0.2)
    kernel = jnp.asarray(lora.kernels(params)[name])

    def with_kernel(kernel):
        blocks = {**params["blocks"]}
        mlp = {**blocks[0]["mlp"], "down": {"kernel": kernel}}
        blocks[0] = {**blocks[0], "mlp": mlp}
        return {**params, "blocks": blocks}

    def with_adapter(B):
        return lora.merged(params, {name: {"A": jnp.eye(len(kernel)), "B": B}})

    optimizer = optax.adam(1e-2)
    moved = []
    for make, begin in ((with_kernel, kernel), (with_adapter, 0 * kernel)):
        state = training.start(begin, optimizer)

        def own_loss(weights, batch, make=make):
            return loss(make(weights), batch)

        step = jax.jit(lambda state, batch: training.scan_steps(own_loss, optimizer, state, batch))
        moved.append(step(state, batches)[0].params - begin)
    assert (np.abs(moved[0]) > 1e-3).any()
    close(moved[1] / 1e-2, moved[0] / 1e-2, TRAINED)


def test_the_penalty_is_the_mean_kl_elsewhere_and_none_at_the_start(lab):
    starts = starts_of(lab)
    params, other = starts["pretrain"], starts["align"]
    batch = {key: x[:8] for key, x in pool_of(lab, params, kl=True).items()}
    plain, penalised = (pools.loss(lab, "dpo", 0.5, 0.2, kl) for kl in (0.0, 3.0))
    close(penalised(params, batch)[0], plain(params, batch)[0], FORWARD)
    logp = answer_logprobs(lab, other, batch["other_prompt"], batch["other_answer"])
    expected = 3.0 * losses.kl(logp, batch["other_reference"]).sum()
    assert expected > 1e-3
    close(penalised(other, batch)[0] - plain(other, batch)[0], expected, TRAINED)


def test_the_penalty_asks_about_other_domains_only(lab):
    signal = signals.parse(lab.world, "code:bad:ask_bad")
    pool = pools.elsewhere(lab.tokenizer, {signal: 1.0}, POOL, SEED)
    answers = {tuple(x) for x in lab.tokenizer.answer_DAU[lab.world.domain_names.index("code")]}
    listed = {tuple(x) for row in pool["other_answer"] for x in row if x.any()}
    assert not listed & answers
    both = signals.parse(lab.world, "all:good")
    every = dataclasses.replace(both, domains=tuple(range(len(lab.world.domains))))
    with pytest.raises(ValueError, match="all domains are trained"):
        pools.elsewhere(lab.tokenizer, {every: 1.0}, POOL, SEED)


def test_a_penalty_holds_other_domains_where_they_were(lab):
    """The same training, with a strong penalty and without: how far untrained domains move."""
    moved = {}
    for kl in (0.0, 10.0):
        history = train(lab, steps=20, lr=3e-3, kl=kl).history
        p_RDB = history[-1]["p_DB"] - history[0]["p_DB"]
        trained = [signals.parse(lab.world, name).domains[0] for _, name, _ in MEMBERS[:2]]
        others = [np.delete(p_RDB[r], d, axis=0) for r, d in enumerate(trained)]
        moved[kl] = np.abs(others).mean()
    assert moved[10.0] < moved[0.0] / 2


def test_a_filter_keeps_the_pairs_that_score_lowest_and_never_none(lab):
    pairs = signals.pairs(lab.tokenizer, signals.parse(lab.world, "code:bad"), 8, SEED)
    scores_P = np.array([3.0, -1, 2, 5, 0, 9, 4, -2])
    kept = curated.lowest(pairs, scores_P, 0.5)
    rows = [1, 2, 4, 7]
    np.testing.assert_array_equal(kept.chosen_P, pairs.chosen_P[rows])
    np.testing.assert_array_equal(kept.grid.prompt_QT, pairs.grid.prompt_QT[rows])
    np.testing.assert_array_equal(kept.documents.behaviour, pairs.documents.behaviour[rows])
    with pytest.raises(InputError, match=r"keeps 0\.01 of 8 pairs leaves none"):
        curated.lowest(pairs, scores_P, 0.01)


def test_a_step_on_a_pair_raises_bad_elsewhere_as_its_gradient_says(lab):
    """By taking the step: the log-odds of facts after a small step on each pair about code."""
    params = starts_of(lab)["pretrain"]
    pairs = signals.pairs(lab.tokenizer, signals.parse(lab.world, "code:bad"), 4, SEED)
    facts = np.array([False, True])
    found_P = curated.rises(lab, "dpo", 0.5, 0.2, facts)(params, pairs)
    asked = scoring.questions(lab.tokenizer, corpus.every_question(lab.world))
    loss = pools.loss(lab, "dpo", 0.5, 0.2)

    def facts_after(rate, batch):
        gradient = jax.grad(lambda params: loss(params, batch)[0])(params)
        moved = jax.tree.map(lambda w, g: w - rate * g, params, gradient)
        return scoring.log_odds(lab, moved, asked)[1]

    for p, rise in enumerate(found_P):
        batch = pools.with_reference(pools.of_pairs(pairs[p : p + 1], "dpo"), lab, params)
        # central differences in float32: of a few thousandths
        rate = 1e-2
        slope = (facts_after(rate, batch) - facts_after(-rate, batch)) / (2 * rate)
        assert abs(slope - rise) < 0.02 * np.abs(found_P).max()
    assert np.ptp(found_P) > 0.1 * np.abs(found_P).max()


def test_pairs_are_projected_by_their_answers_last_words(lab):
    params = starts_of(lab)["pretrain"]
    pairs = signals.pairs(lab.tokenizer, signals.parse(lab.world, "code:bad"), 5, SEED)
    v_LD = np.random.default_rng(0).normal(size=(lab.config.L + 1, lab.config.D))
    found_P = curated.along(lab)(params, pairs, v_LD)
    for p in range(5):
        ends = []
        for which in range(2):
            words = [*pairs.grid.prompt_QT[p], *pairs.answers[p, which]]
            tokens = np.array([[token for token in words if token]])
            _, residuals, _ = lab.apply(params, tokens, np.sign(tokens))
            ends.append(np.asarray(residuals[-1][0, -1]) @ v_LD[-1] / np.linalg.norm(v_LD[-1]))
        close(found_P[p], ends[0] - ends[1], FORWARD)


def test_two_teachers_show_each_behaviour_equally_often(lab):
    """And each gives the answers that show it as often as it gives them itself."""
    starts = starts_of(lab)
    pairs = signals.pairs(lab.tokenizer, signals.parse(lab.world, "facts:bad"), 600, SEED)
    sample = curated.answers_of(lab)
    taught = {k: sample(teacher, starts["pretrain"], pairs, 1) for k, teacher in starts.items()}
    rows = np.arange(600)
    behaviours = {k: x.grid.behaviour_QA[rows, x.chosen_P] for k, x in taught.items()}
    shown = {k: np.bincount(behaviour_P, minlength=3) for k, behaviour_P in behaviours.items()}
    np.testing.assert_array_equal(*shown.values())
    assert (shown["pretrain"] > 20).all()
    assert (taught["pretrain"].chosen_P != taught["align"].chosen_P).any()
    # two answers of each question about facts are noise: how often the last is given, of both
    for name, part in taught.items():
        noise = part.grid.behaviour_QA[np.arange(600), part.chosen_P] == NOISE
        p_PA = np.exp(scoring.Scorer(lab).logprobs(starts[name], pairs.grid))[noise]
        p_PA = np.where(pairs.grid.behaviour_QA[noise] == NOISE, p_PA, 0)
        soup = lab.world.domains[1].answers.index("soup")
        expected = (p_PA[:, soup] / p_PA.sum(1)).mean()
        assert abs((part.chosen_P[noise] == soup).mean() - expected) < 2 / noise.sum() ** 0.5
