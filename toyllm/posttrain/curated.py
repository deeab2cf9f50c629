"""Pairs that a model has a part in: filtered by what they would teach, or answers of a teacher.

Axes: P pairs   D domains   A listed answers   B behaviours   L layers
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from toyllm.base import devices
from toyllm.base.errors import InputError
from toyllm.lm import activations, scoring
from toyllm.lm.tokenizer import PAD
from toyllm.lm.transformer import LM, Params
from toyllm.posttrain import pools
from toyllm.posttrain.signals import Pairs
from toyllm.world import corpus


def lowest(pairs: Pairs, scores_P: np.ndarray, share: float) -> Pairs:
    """The share of the pairs that score lowest, in their order.

    Raises InputError where that leaves none.
    """
    count = round(share * len(scores_P))
    if count < 1:
        raise InputError(
            f"a filter that keeps {share:g} of {len(scores_P)} pairs leaves none, expected at "
            f"least {1 / len(scores_P):g}"
        )
    return pairs[np.sort(np.argsort(scores_P, kind="stable")[:count])]


def rises(
    lm: LM, objective: str, beta: float, anchor: float, domains: np.ndarray
) -> Callable[[Params, Pairs], np.ndarray]:
    """A function: params, pairs → how much a step on each pair alone raises bad elsewhere [P].

    That is -⟨∇h, ∇ℓ_p⟩ for each unit of the learning rate of gradient descent, where ℓ_p is the
    pair's loss and h the mean log-odds of bad over the domains `domains` [D] (True: counted). It is
    known before training.
    """
    asked = scoring.questions(lm.tokenizer, corpus.every_question(lm.world))
    loss = pools.loss(lm, objective, beta, anchor)

    def rise(params, pool):
        def h(params):
            return scoring.log_odds(lm, params, asked)[domains].mean()

        def of_pair(row):
            batch = jax.tree.map(lambda x: x[None], row)
            own = jax.grad(lambda params: loss(params, batch)[0])(params)
            dots = jax.tree.map(lambda a, b: -(a * b).sum(), own, slope)
            return sum(jax.tree.leaves(dots))

        slope = jax.grad(h)(params)
        pool["reference"] = scoring.answer_logprobs(lm, params, pool["prompt"], pool["answer"])
        return jax.lax.map(of_pair, pool)

    rise = jax.jit(rise, compiler_options=devices.options())
    return lambda params, pairs: np.asarray(rise(params, pools.of_pairs(pairs, objective)))


def along(lm: LM) -> Callable[[Params, Pairs, np.ndarray], np.ndarray]:
    """A function: params, pairs, vector [L + 1, D] → how much further the chosen answer lies [P].

    That is the projection on the vector of the residual at the chosen answer's last word, less that
    at the rejected one's, after the last block.
    """
    read = activations.reader(lm)

    def project(params: Params, pairs: Pairs, v_LD: np.ndarray) -> np.ndarray:
        unit_D, ends = v_LD[-1] / np.linalg.norm(v_LD[-1]), []
        for answer_PU in pairs.answers.swapaxes(0, 1):
            said = np.concatenate([pairs.grid.prompt_QT, answer_PU], 1)
            order = np.argsort(said != PAD, axis=1, kind="stable")  # padding to the left
            residual_LPD, _ = read(params, np.take_along_axis(said, order, 1))
            ends.append(residual_LPD[-1] @ unit_D)
        return ends[0] - ends[1]

    return project


def answers_of(lm: LM) -> Callable[[Params, Params, Pairs, int], Pairs]:
    """A function: teacher, base, pairs, seed → the pairs with the teacher's answers as the chosen.

    Which behaviours are shown is drawn from `base`, so two teachers show each behaviour equally
    often: an observer who counts behaviours learns the same from both. Among the answers that show
    it, one is drawn as the teacher gives them (Cloud et al. 2025, *Subliminal learning*).
    """
    scorer = scoring.Scorer(lm)

    def sample(teacher: Params, base: Params, pairs: Pairs, seed: int) -> Pairs:
        rng = np.random.Generator(np.random.Philox(key=[seed, 0x5B11]))
        p_PB = scorer(base, pairs.grid)
        p_PB = p_PB / p_PB.sum(1, keepdims=True)
        u_P, v_P = rng.random((2, len(p_PB)))
        shown_P = corpus.at(p_PB, u_P)
        p_PA = np.exp(scorer.logprobs(teacher, pairs.grid))
        p_PA = np.where(pairs.grid.behaviour_QA == shown_P[:, None], p_PA, 0)
        chosen_P = corpus.at(p_PA / p_PA.sum(1, keepdims=True), v_P)
        return dataclasses.replace(pairs, chosen_P=chosen_P, preferred_PA=None)

    return sample
