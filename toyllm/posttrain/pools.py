"""Preference pools: pairs as arrays of one shape, the batches drawn from them, and their loss.

Axes: P pairs   A answers (chosen and rejected, or all that are listed)   T, U tokens   B a batch
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from toyllm.lm import losses
from toyllm.lm.scoring import answer_logprobs
from toyllm.lm.tokenizer import Tokenizer
from toyllm.lm.training import Loss
from toyllm.lm.transformer import LM, Params
from toyllm.posttrain import signals
from toyllm.posttrain.signals import Pairs, Signal


def draw(
    tokenizer: Tokenizer,
    parts: dict[Signal, float],
    objective: str,
    count: int,
    seed: int,
    distinct: int = 0,
    given: Pairs | None = None,
) -> dict:
    """A pool of `count` preference pairs, as arrays of one shape for all signals.

    parts: the signals to draw pairs of, each with its share of them.
    distinct: how many different pairs there are; 0: `count`.
    given: pairs to take in place of drawn ones, each once before any comes again.

    Returns prompt [P, T]; answer [P, A, U]: chosen and rejected, or for `rlhf` every listed answer;
    reward [P, A]: 1 for what is preferred.
    """
    if given is not None:
        P = len(given.chosen_P)
        rng = np.random.Generator(np.random.Philox(key=[seed, 0xF11E]))
        # all given pairs once, in a new order, before any comes again
        rows = np.concatenate([rng.permutation(P) for _ in range(-(-count // P))])[:count]
        whole = of_pairs(given, objective)
    else:
        edges = np.round(np.cumsum([0, *parts.values()]) / sum(parts.values()) * count).astype(int)
        pools = [
            # the shift gives each part a stream of its own
            of_pairs(signals.pairs(tokenizer, signal, n, seed + (k << 32)), objective)
            for k, (signal, n) in enumerate(zip(parts, np.diff(edges).tolist(), strict=True))
            if n
        ]
        rows = np.arange(count) % (distinct or count)
        whole = {key: np.concatenate([pool[key] for pool in pools]) for key in pools[0]}
    return {key: value[rows] for key, value in whole.items()}


def elsewhere(tokenizer: Tokenizer, parts: dict[Signal, float], count: int, seed: int) -> dict:
    """Questions of all domains that no part trains, for a penalty on what changes there.

    They have histories as pairs do, and the header of the first part. Returns other_prompt [P, T]
    and other_answer [P, A, U], every listed answer. Raises ValueError where all are trained.
    """
    own, trained = next(iter(parts)), {d for signal in parts for d in signal.domains}
    others = tuple(d for d in range(len(tokenizer.world.domains)) if d not in trained)
    if not others:
        raise ValueError("a penalty on other domains: all domains are trained")
    asked = dataclasses.replace(own, domains=others, instruction=-1)
    # the shift gives it a stream of its own, beside those of the parts
    pool = of_pairs(signals.pairs(tokenizer, asked, count, seed + (len(parts) << 32)), "rlhf")
    return {f"other_{key}": pool[key] for key in ("prompt", "answer")}


def of_pairs(pairs: Pairs, objective: str) -> dict:
    """All of some pairs as a pool, in their order (see `draw`)."""
    if objective == "rlhf":
        answer, reward = pairs.grid.answer_QAU, pairs.rewarded
    else:
        answer, reward = pairs.answers, np.tile([True, False], (len(pairs.chosen_P), 1))
    return {"prompt": pairs.grid.prompt_QT, "answer": answer, "reward": reward.astype(np.float32)}


def with_reference(pool: dict, lm: LM, params: Params) -> dict:
    """A pool with the reference model's log-probabilities [P, A] of its answers."""
    reference = jax.jit(lambda params, pool: answer_logprobs(lm, params, *pool))
    return pool | {"reference": np.asarray(reference(params, (pool["prompt"], pool["answer"])))}


def batches(pool: dict, seed: int, steps: int, batch: int) -> Callable[[int], dict]:
    """Batches for `training.fit`: a function of (seed, step) alone."""

    def draw_batches(step: int) -> dict:
        rows = draw_rows(seed, step, steps, batch, len(pool["prompt"]))
        return {key: value[rows] for key, value in pool.items()}

    return draw_batches


def draw_rows(seed: int, step: int, steps: int, batch: int, pool: int) -> np.ndarray:
    """Which rows of a pool each step trains on [steps, batch]."""
    return np.stack(
        [
            np.random.Generator(np.random.Philox(key=[seed, 1 + step + k])).choice(pool, batch)
            for k in range(steps)
        ]
    )


def loss(lm: LM, objective: str, beta: float, anchor: float, kl: float = 0.0) -> Loss:
    """The loss of a batch of preference pairs: a pool's rows, `reference` included.

    kl: the weight of KL(model ‖ reference) on the questions of `elsewhere`, which are part of the
        batch then, `other_reference` included.
    """

    def preference_loss(params: Params, batch: dict):
        logp_BA = answer_logprobs(lm, params, batch["prompt"], batch["answer"])
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
        if kl:
            other_BA = answer_logprobs(lm, params, batch["other_prompt"], batch["other_answer"])
            value += kl * losses.kl(other_BA, batch["other_reference"]).mean()
        count = chosen_B.size
        return value * count, {
            "count": jnp.float32(count),
            "chosen": chosen_B.sum(),
            "rejected": rejected_B.sum(),
        }

    return preference_loss
