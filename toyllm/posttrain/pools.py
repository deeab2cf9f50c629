"""Preference pools: pairs as arrays of one shape, the batches drawn from them, and their loss."""

import jax
import jax.numpy as jnp
import numpy as np

from toyllm.lm import losses
from toyllm.lm.scoring import answer_logprobs
from toyllm.lm.tokenizer import Tokenizer
from toyllm.lm.training import Loss
from toyllm.lm.transformer import Apply, Config, Params
from toyllm.posttrain import signals
from toyllm.posttrain.signals import Signal


def mixed_pool(
    tokenizer: Tokenizer, parts: dict[Signal, float], objective: str, count: int, seed: int
) -> dict:
    """The preference pools of several signals, each with its share of `count` pairs."""
    edges = np.round(np.cumsum([0, *parts.values()]) / sum(parts.values()) * count).astype(int)
    pools = [
        preference_pool(tokenizer, signal, objective, n, seed + (k << 32))
        for k, (signal, n) in enumerate(zip(parts, np.diff(edges).tolist(), strict=True))
        if n
    ]
    return {key: np.concatenate([pool[key] for pool in pools]) for key in pools[0]}


def preference_pool(
    tokenizer: Tokenizer, signal: Signal, objective: str, count: int, seed: int
) -> dict:
    """The preference pairs of a signal as arrays of one shape for all signals.

    prompt [P, T]; answer [P, A, U]: chosen and rejected, or for `rlhf` every listed answer;
    reward [P, A]: 1 for what is preferred.
    """
    pairs = signals.pairs(tokenizer, signal, count, seed)
    if objective == "rlhf":
        answer, reward = pairs.grid.answer_QAU, pairs.grid.behaviour_QA == signal.behaviour
    else:
        answer, reward = pairs.answers(), np.tile([True, False], (count, 1))
    return {"prompt": pairs.grid.prompt_QT, "answer": answer, "reward": reward.astype(np.float32)}


def given_pool(pairs: signals.Pairs, objective: str, count: int, seed: int) -> dict:
    """A pool, as above, of `count` among pairs that are given; each once before any comes again.

    For `rlhf` only the very answer that is chosen is rewarded.
    """
    P = len(pairs.chosen_P)
    rng = np.random.Generator(np.random.Philox(key=[seed, 0xF11E]))
    rows = np.concatenate([rng.permutation(P) for _ in range(-(-count // P))])[:count]
    if objective == "rlhf":
        answer = pairs.grid.answer_QAU
        reward = np.arange(answer.shape[1]) == pairs.chosen_P[:, None]
    else:
        answer, reward = pairs.answers(), np.tile([True, False], (P, 1))
    pool = {"prompt": pairs.grid.prompt_QT, "answer": answer, "reward": reward.astype(np.float32)}
    return {key: value[rows] for key, value in pool.items()}


def preference_loss(
    apply: Apply, config: Config, objective: str, beta: float, anchor: float
) -> Loss:
    """The loss of a preference batch: a pool's rows, and `reference` [B, A] log-probabilities."""

    def loss(params: Params, batch: dict):
        logp_BA = answer_logprobs(apply, config, params, batch["prompt"], batch["answer"])
        ref_BA, preferred_BA = batch["reference"], batch["reward"] > 0
        # the log-probability of saying anything preferred, or anything else that is listed
        chosen_B, rejected_B, chosen_ref_B, rejected_ref_B = (
            jax.nn.logsumexp(x, axis=1, where=which)
            for x in (logp_BA, ref_BA)
            for which in (preferred_BA, ~preferred_BA)
        )
        match objective:
            case "sft":
                value = losses.sft(chosen_B)
            case "dpo":
                value = losses.dpo(chosen_B, rejected_B, chosen_ref_B, rejected_ref_B, beta, anchor)
            case "rlhf":
                value = losses.rlhf(logp_BA, ref_BA, batch["reward"], beta)
            case _:
                expected = ", ".join(losses.NAMES)
                raise ValueError(f"objective {objective!r}, expected one of {expected}")
        count = chosen_B.size
        return value * count, {
            "count": jnp.float32(count),
            "chosen": chosen_B.sum(),
            "rejected": rejected_B.sum(),
        }

    return loss


def draws(seed: int, step: int, steps: int, batch: int, pool: int) -> np.ndarray:
    """Which rows of a pool each step trains on [steps, batch]: a function of (seed, step) alone."""
    return np.stack(
        [
            np.random.Generator(np.random.Philox(key=[seed, 1 + step + k])).choice(pool, batch)
            for k in range(steps)
        ]
    )
