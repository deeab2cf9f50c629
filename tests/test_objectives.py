"""Losses, against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerances import LOSS, close
from toyllm.lm import losses


def test_next_token_counts_exactly_the_predicted_positions():
    """Two packed documents and padding: first tokens and padding are not predicted."""
    tokens = jnp.array([[1, 5, 6, 2, 1, 7, 2, 0, 0]])
    segments = jnp.array([[1, 1, 1, 1, 2, 2, 2, 0, 0]])
    logits = jax.random.normal(jax.random.key(0), (1, 9, 11))
    logp = jax.nn.log_softmax(logits)
    positions = [0, 1, 2, 4, 5]  # 3 → 4 crosses documents, 6 → 7 and 7 → 8 are padding
    by_hand = -sum(logp[0, t, tokens[0, t + 1]] for t in positions)
    nll, here = losses.next_token(logits, tokens, segments)
    assert here.sum() == 5
    close(nll.sum(), by_hand, LOSS)
    grad = jax.grad(lambda x: losses.next_token(x, tokens, segments)[0].sum())(logits)
    assert sorted(np.flatnonzero(np.abs(grad[0]).sum(1))) == positions


def test_dpo_is_log_2_at_the_reference():
    """If policy = reference, every margin is 0. Changing this number is never right."""
    chosen, rejected = jnp.array([-3.0, -1.0]), jnp.array([-2.0, -5.0])
    for beta in (0.1, 1.0, 7.0):
        loss = losses.dpo(chosen, rejected, chosen, rejected, beta)
        close(loss, np.log(2), LOSS)


def test_dpo_by_hand_and_its_anchor():
    c, r, cr, rr = (jnp.array([x]) for x in (-1.0, -4.0, -2.0, -3.5))
    by_hand = np.log1p(np.exp(-0.5 * ((-1 + 2) - (-4 + 3.5))))
    close(losses.dpo(c, r, cr, rr, 0.5), by_hand, LOSS)
    close(losses.dpo(c, r, cr, rr, 0.5, anchor=0.3), by_hand + 0.3, LOSS)


@pytest.fixture(scope="module")
def bandit():
    """Log-probabilities of 3 prompts with 5 answers (one absent), a reference, rewards."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 7))
    ref = np.log(rng.dirichlet(np.ones(6), 3)[:, :5])
    ref[1, 4] = -np.inf
    reward = np.zeros((3, 5))
    reward[:, 1:3] = 1
    return logits, ref, reward


def policy(logits):
    """Five listed answers of seven outcomes; row 1 lists only four."""
    logp = jax.nn.log_softmax(logits)[:, :5]
    return logp.at[1, 4].set(-jnp.inf)


def test_rlhf_is_its_expectation_summed_answer_by_answer(bandit):
    logits, ref, reward = bandit
    logp = np.asarray(policy(logits), np.float64)
    beta, total = 0.3, 0.0
    for b in range(3):
        rest, rest_ref = 1 - np.exp(logp[b]).sum(), 1 - np.exp(ref[b]).sum()
        for a in range(5):
            if np.isfinite(logp[b, a]):
                total += np.exp(logp[b, a]) * (reward[b, a] - beta * (logp[b, a] - ref[b, a]))
        total += rest * (0 - beta * (np.log(rest) - np.log(rest_ref)))
    close(losses.rlhf(logp, ref, reward, beta), -total / 3, LOSS)


def test_rlhf_gradient_equals_finite_differences(bandit):
    logits, ref, reward = bandit
    with jax.enable_x64(True):

        def loss(x):
            return losses.rlhf(policy(x), ref, reward, 0.3)

        exact = jax.grad(loss)(jnp.array(logits))
        for b, v in ((0, 0), (0, 6), (1, 2), (2, 4), (2, 5)):
            step = np.zeros_like(logits)
            step[b, v] = 1e-6
            slope = (loss(logits + step) - loss(logits - step)) / 2e-6
            close(exact[b, v], slope, LOSS)


def test_kl_is_zero_at_the_reference_and_right_elsewhere(bandit):
    logits, ref, _ = bandit
    close(losses.kl(ref, ref), 0, LOSS)
    logp = np.asarray(policy(logits), np.float64)
    p = np.append(np.exp(logp[0]), 1 - np.exp(logp[0]).sum())
    q = np.append(np.exp(ref[0]), 1 - np.exp(ref[0]).sum())
    close(losses.kl(logp, ref)[0], (p * np.log(p / q)).sum(), LOSS)


def test_sft_is_the_mean_nll():
    assert losses.sft(jnp.array([-1.0, -3.0])) == 2.0
