"""Losses, as pure functions of arrays.

Log-probabilities of answers are *summed* over the answer's tokens, never averaged: the sum is the
log-probability of saying it, and only sums have an exact expectation. All are in nats.
"""

import jax
import jax.numpy as jnp

NAMES = ("dpo", "sft", "rlhf")  # what post-training may minimise (see pools.preference_loss)


def next_token(logits_BTV, tokens_BT, segments_BT):
    """NLL [B, T] of the token after each position, and whether it is predicted [B, T].

    A document's first token and padding (segment 0) are not predicted; their NLL is 0.
    """
    # The target of every position is the next token, and padding for the last one, so that the
    # large array of logits is never sliced.
    targets_BT, next_BT = (jnp.pad(x[:, 1:], ((0, 0), (0, 1))) for x in (tokens_BT, segments_BT))
    here_BT = (next_BT == segments_BT) & (next_BT > 0)
    # The target's logit is taken by a masked sum, whose gradient is a product; the gradient of a
    # gather would be a scatter, which is slow.
    is_target = jnp.arange(logits_BTV.shape[-1])[None, None] == targets_BT[..., None]
    nll_BT = jax.nn.logsumexp(logits_BTV, -1) - jnp.where(is_target, logits_BTV, 0).sum(-1)
    return jnp.where(here_BT, nll_BT, 0), here_BT


def sft(chosen_B):
    """Supervised fine-tuning: the mean of -log π(chosen). chosen_B: summed log-probabilities."""
    return -chosen_B.mean()


def dpo(chosen_B, rejected_B, chosen_ref_B, rejected_ref_B, beta: float, anchor: float = 0.0):
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7), with an optional NLL anchor.

    -log σ(β [log π(y_w)/π_ref(y_w) - log π(y_l)/π_ref(y_l)]) - anchor · log π(y_w), the mean over
    pairs. Plain DPO (anchor 0) may lower both log-probabilities; the anchor holds up the chosen
    one. At π = π_ref the first term is log 2.
    """
    margin_B = (chosen_B - chosen_ref_B) - (rejected_B - rejected_ref_B)
    return (-jax.nn.log_sigmoid(beta * margin_B) - anchor * chosen_B).mean()


def rlhf(logp_BA, ref_BA, reward_BA, beta: float):
    """Exact RLHF: -(E_π[r] - β KL(π ‖ π_ref)), the expectation enumerated, the mean over prompts.

    logp_BA, ref_BA: log-probabilities of every listed answer, -inf where a row has fewer.
    reward_BA: their rewards. What is not listed counts as one more answer, of reward 0.
    """
    logp_BA, ref_BA = _with_rest(logp_BA), _with_rest(ref_BA)
    reward_BA = jnp.concatenate([reward_BA, jnp.zeros_like(reward_BA[:, :1])], axis=1)
    p_BA, listed = jnp.exp(logp_BA), logp_BA > -jnp.inf
    # 0 log 0 = 0, and no gradient flows through an answer that does not exist
    ratio_BA = jnp.where(listed, logp_BA - jnp.where(listed, ref_BA, 0), 0)
    return -(p_BA * (reward_BA - beta * ratio_BA)).sum(1).mean()


def kl(logp_BA, ref_BA):
    """KL(π ‖ π_ref) over the listed answers and the rest [B]; -inf where a row has fewer."""
    logp_BA, ref_BA = _with_rest(logp_BA), _with_rest(ref_BA)
    listed = logp_BA > -jnp.inf
    return (jnp.exp(logp_BA) * jnp.where(listed, logp_BA - jnp.where(listed, ref_BA, 0), 0)).sum(1)


def _with_rest(logp_BA):
    """Append log(1 - Σ p), the log-probability of saying anything that is not listed."""
    rest_B = jnp.clip(1 - jnp.exp(logp_BA).sum(1), 1e-6, 1)
    return jnp.concatenate([logp_BA, jnp.log(rest_B)[:, None]], axis=1)
