"""How far two computations of the same number may differ, and why.

Every comparison of floating-point numbers in the tests names one of these bounds. Rounding depends
on the processor, the number of devices and the version of XLA, so no bound may be closer to what
is seen than 5 times: `uv run tests/machines.py` runs the comparisons under several instruction sets
and numbers of devices and prints how near each came.

What is drawn at random is compared in standard errors instead, in plain sight: NumPy draws the same
on every machine.
"""

import dataclasses
import itertools
import json
import os
import sys
from pathlib import Path

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Bound:
    """Differences up to `atol + rtol * |expected|`, as in NumPy.

    Where the bound is more than 100 times the differences that are seen, `fault` says which fault
    of the code would still exceed it.
    """

    name: str
    rtol: float
    atol: float
    reason: str
    fault: str


FLOAT64 = Bound(
    "FLOAT64", 1e-12, 1e-13,
    "closed forms in float64: each operation rounds by 1e-16, and there are thousands of them",
    "a wrong term, factor or index changes the first six digits",
)  # fmt: skip
FORWARD = Bound(
    "FORWARD", 2e-5, 1e-5,
    "one forward pass in float32: sums of about 100 products of rounded numbers, twice a layer",
    "a wrong mask, position or answer moves logits and log-probabilities by more than .001",
)  # fmt: skip
LOSS = Bound(
    "LOSS", 1e-5, 1e-6,
    "a loss or sum in float32 from given log-probabilities: some tens of operations",
    "a wrong sign, term or weight changes the first two digits",
)  # fmt: skip
TRAINED = Bound(
    "TRAINED", 1e-3, 1e-4,
    "losses and scores after up to 40 optimizer steps, over which rounding accumulates: Adam "
    "divides by the size of gradients, so that parameters differ more than what they compute",
    "a step more or less, or another batch, changes the second digit",
)  # fmt: skip
UPDATE = Bound(
    "UPDATE", 0, 0.02,
    "the distance of two trained models, relative to how far they were trained: single parameters "
    "with almost no gradient move by Adam's full step in a direction that rounding decides",
    "a step more or less of 20 is 1/20, another batch or learning rate more",
)  # fmt: skip
SOLVED = Bound(
    "SOLVED", 0, 1e-5,
    "solutions of bisections and interior-point iterations, which stop at a tolerance of 1e-6 to "
    "1e-9 of their own",
    "a wrong goal, constraint or likelihood moves the solution by more than .001",
)  # fmt: skip


def approximation(within: float, reason: str, fault: str) -> Bound:
    """A bound for a method that approximates: the difference is the method's, not rounding's."""
    return Bound("approximation", 0, within, reason, fault)


def close(actual, expected, bound: Bound, fault: str = "") -> None:
    """Assert that two arrays, numbers or dictionaries of them differ by no more than a bound.

    fault: what would exceed the bound here, if that is not the bound's own.
    """
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        actual, expected = (np.concatenate([np.ravel(x[k]) for k in x]) for x in (actual, expected))
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    np.testing.assert_allclose(actual, expected, rtol=bound.rtol, atol=bound.atol)
    if "TOYLLM_MARGINS" in os.environ:
        allowed = bound.atol + bound.rtol * np.abs(expected)
        finite = np.isfinite(expected) & np.isfinite(actual)
        used = np.abs(actual - expected)[finite] / np.broadcast_to(allowed, finite.shape)[finite]
        caller = sys._getframe(1)
        where = f"{Path(caller.f_code.co_filename).name}:{caller.f_lineno}"
        record = {"where": where, "bound": bound.name, "used": float(used.max(initial=0))}
        with open(os.environ["TOYLLM_MARGINS"], "a") as file:
            file.write(json.dumps(record | {"fault": fault or bound.fault}) + "\n")


def distance(a, b, begin=None) -> float:
    """How far apart two trees of parameters are, in units of how far the first is from `begin`.

    begin: a third tree; None: zeros.
    """

    def norm(x, y=None) -> float:
        leaves = map(np.asarray, jax.tree.leaves(x))
        others = map(np.asarray, jax.tree.leaves(y)) if y is not None else itertools.repeat(0)
        return sum(float(((p - q) ** 2).sum()) for p, q in zip(leaves, others, strict=False)) ** 0.5

    assert jax.tree.structure(a) == jax.tree.structure(b)
    return norm(a, b) / norm(a, begin)
