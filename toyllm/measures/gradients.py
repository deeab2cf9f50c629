"""Gradient alignment: how far a signal's first step moves each domain, from gradients alone.

The first step of Adam, on the loss over PAIRS pairs, changes the log-odds of bad h_d of each domain
by step · ∇h_d, to first order. Divided by the trained domain's change, this is how far each domain
moves for each unit that the trained one moves. It needs no world.
"""

from collections.abc import Callable

import jax
import numpy as np
import optax

from toyllm.base import devices
from toyllm.lm import optimizers, scoring
from toyllm.lm.tokenizer import Tokenizer
from toyllm.lm.transformer import LM, Params
from toyllm.measures import named
from toyllm.posttrain import pools, signals
from toyllm.runs.run_folder import Run
from toyllm.world import corpus

PAIRS = 64  # of a signal


def measure(run: Run) -> dict:
    """{start: {signal: {domain: step · ∇h_d / step · ∇h_own}}} of signals that train one domain.

    Signals of files are left out, since a run's measures cannot draw pairs from them.
    """
    ratios = program(run.lm, *(run.args[key] for key in ("objective", "beta", "anchor")))
    result: dict = {}
    for start in ("pretrain", "align"):
        parsed = [signals.parse(run.world, name) for name in run.narrow.signals(start)]
        single = [signal for signal in parsed if len(signal.domains) == 1 and not signal.file]
        rows = ratios(run.lm.tokenizer, run.params[start], single)
        result[start] = {
            signal.name: named(run.world.domain_names, row)
            for signal, row in zip(single, rows, strict=True)
        }
    return result


def program(
    lm: LM, objective: str, beta: float, anchor: float
) -> Callable[[Tokenizer, Params, list[signals.Signal]], np.ndarray]:
    """Return a function: tokenizer, params, signals of one domain → ratios [S, D], 1 where trained.

    Compiled once for all worlds of the shape of this model's; questions and histories are those of
    the tokenizer that it is given.
    """
    D, loss = len(lm.world.domains), pools.loss(lm, objective, beta, anchor)

    def moves(params, pool, asked):
        """step · ∇h_d [D], but for the learning rate."""
        reference = scoring.answer_logprobs(lm, params, pool["prompt"], pool["answer"])
        gradient = jax.grad(lambda p: loss(p, {**pool, "reference": reference})[0])(params)
        adam = optax.scale_by_adam()
        first, _ = optimizers.update(adam, gradient, adam.init(params), params)
        slopes = jax.jacrev(lambda params: scoring.log_odds(lm, params, asked))(params)
        dots = jax.tree.map(lambda g, h: -h.reshape(D, -1) @ g.reshape(-1), first, slopes)
        return sum(jax.tree.leaves(dots))

    moves = jax.jit(moves, compiler_options=devices.options())

    def ratios(tokenizer: Tokenizer, params: Params, chosen: list[signals.Signal]) -> np.ndarray:
        rows = np.empty((len(chosen), D))
        asked = scoring.questions(tokenizer, corpus.every_question(tokenizer.world))
        for s, signal in enumerate(chosen):
            pool = pools.draw(tokenizer, {signal: 1.0}, objective, PAIRS, seed=0)
            move_D = np.asarray(moves(params, pool, asked))
            rows[s] = move_D / move_D[signal.domains[0]]
        return rows

    return ratios
