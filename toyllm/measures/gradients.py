"""Gradient alignment: where a signal's first step would move each domain, from the gradients alone.

To first order a step along -∇L of a signal changes a domain's log-odds of bad, h_d, by
-∇L · ∇h_d (the neural tangent kernel of the two). Divided by that of the trained domain, it says
how far each domain moves for each unit that the trained one moves: no world is needed for that.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from toyllm import devices, scoring, signals, training
from toyllm.model import Apply, Config, Params
from toyllm.runs import Run
from toyllm.text import Codec
from toyllm.world import BAD, GOOD

PAIRS = 64  # of a signal


def measure(run: Run) -> dict:
    """{start: {signal: {domain: ∇L · ∇h_d / ∇L · ∇h_own}}} of signals that train one domain."""
    ratios = program(run.codec, run.config, run.apply)
    result = {}
    for start in ("pretrain", "align"):
        names = [n for n in run.narrow.signals(start) if len(parse(run, n).domains) == 1]
        ratio_SD = ratios(run.params[start], [parse(run, name) for name in names])
        result[start] = {
            name: dict(zip(run.world.domain_names, map(float, row), strict=True))
            for name, row in zip(names, ratio_SD, strict=True)
        }
    return result


def parse(run: Run, name: str) -> signals.Signal:
    """A signal of the run's world."""
    return signals.parse(run.world, name)


def program(
    codec: Codec, config: Config, apply: Apply
) -> Callable[[Params, list[signals.Signal]], np.ndarray]:
    """A function: params, signals of one domain each → ratios [S, D], 1 where trained.

    The loss is DPO's at the reference (β 1, no anchor), the mean over PAIRS pairs.
    """
    grid = scoring.questions(codec, scoring.every_question(codec))
    D = len(codec.world.domains)

    def log_odds(params):
        logp_QA = scoring.answer_logprobs(apply, config, params, grid.prompt_QT, grid.answer_QAU)
        p_QB = scoring.behaviours(logp_QA, grid.behaviour_QA)
        p_DB = scoring.by_domain(p_QB, grid.domain_Q, D)
        return jnp.log(p_DB[:, BAD]) - jnp.log(p_DB[:, GOOD])

    def margin(params, pool):
        logp_QA = scoring.answer_logprobs(apply, config, params, pool["prompt"], pool["answer"])
        return (logp_QA[:, 0] - logp_QA[:, 1]).mean()

    def moves(params, pool):
        """∇margin · ∇h_d [D], which is -∇L · ∇h_d but for a factor."""
        direction, slopes = jax.grad(margin)(params, pool), jax.jacrev(log_odds)(params)
        dots = jax.tree.map(lambda g, h: h.reshape(D, -1) @ g.reshape(-1), direction, slopes)
        return sum(jax.tree.leaves(dots))

    moves = jax.jit(moves, compiler_options=devices.options())

    def ratios(params: Params, chosen: list[signals.Signal]) -> np.ndarray:
        rows = []
        for signal in chosen:
            pool = training.preference_pool(codec, signal, "dpo", PAIRS, seed=0)
            move_D = np.asarray(moves(params, pool))
            rows.append(move_D / move_D[signal.domains[0]])
        return np.stack(rows)

    return ratios
