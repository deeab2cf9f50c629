"""How many units a claim needs, computed from a pilot before any of its own units are trained.

A prediction is low < mean < high. Its power is the probability that it is found to hold (p ≤ the
level) if the true mean lies inside its bounds by the smallest distance that matters, its margin.
Assumed are the upper 80% confidence bound of the standard deviation in the pilot, the strictest
level of Holm's correction over all claims, and that as large a share of units cannot be read as in
the pilot. A claim needs its predictions all at once, so each of k gets a power of 1 - .2 / k
(Bonferroni): together they then have at least .8.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import chdtri, nctdtr, stdtrit

from claims.lab.quantities import FEWEST, MOST_MISSING
from claims.lab.verdicts import ALPHA

POWER, SURE = 0.8, 0.8  # of a claim; confidence in the bound of the standard deviation
MOST = 32  # units that a claim may have


@dataclasses.dataclass(frozen=True)
class Need:
    """What a prediction needs, from the values of a pilot.

    margin: None where the claim has not stated one yet; its power is 0 then. units: that must be
    trained so that enough can be read; None: more than MOST. power: with those, or with MOST.
    reached: the smallest margin that MOST units could tell. inside: how far the pilot's mean lies
    inside its bounds.
    """

    says: str
    margin: float | None
    deviation: float
    unread: float
    units: int | None
    power: float
    reached: float
    inside: float


def needs(predictions: Sequence[dict], family: int) -> list[Need]:
    """What each prediction of a claim needs, of a family of so many claims.

    predictions: their records, with `says`, `values`, `low`, `high` and `margin`.
    """
    level, goal = ALPHA / family, 1 - (1 - POWER) / len(predictions)
    return [need(p, level, goal) for p in predictions]


def need(prediction: dict, level: float, goal: float) -> Need:
    """What one prediction needs at a level, for a power of `goal`."""
    values = np.array(prediction["values"], float)
    known = values[np.isfinite(values)]
    unread = 1 - len(known) / len(values)
    sides = sum(prediction[side] is not None for side in ("low", "high"))
    deviation, margin = upper_deviation(known), prediction["margin"]

    def power(units: int, margin: float | None = margin) -> float:
        """With so many units, of which as many as in the pilot cannot be read."""
        read = int(units * (1 - unread))
        if margin is None or read < FEWEST or unread > MOST_MISSING:
            return 0.0
        # both sides of an interval must be passed
        return max(0.0, 1 - sides * (1 - power_of(read, margin, deviation, level)))

    enough = [units for units in range(FEWEST, MOST + 1) if power(units) >= goal]
    # bisection for what the most units can tell
    small, large = 0.0, 100 * deviation + 1e-9
    for _ in range(60):
        middle = (small + large) / 2
        small, large = (small, middle) if power(MOST, middle) >= goal else (middle, large)
    units = enough[0] if enough else None
    bounds = ((prediction["low"], 1), (prediction["high"], -1))
    inside = min(sign * (known.mean() - bound) for bound, sign in bounds if bound is not None)
    says = prediction["says"]
    return Need(says, margin, deviation, unread, units, power(units or MOST), large, inside)


def power_of(units: int, margin: float, deviation: float, level: float) -> float:
    """The power of a one-sided t-test to find a mean above a bound that it exceeds by `margin`."""
    if deviation <= 1e-12:
        return 1.0
    critical = stdtrit(units - 1, 1 - level)
    return float(1 - nctdtr(units - 1, margin * units**0.5 / deviation, critical))


def upper_deviation(known: np.ndarray) -> float:
    """The upper confidence bound, one-sided, of the standard deviation of normal values."""
    n = len(known)
    if n < 2:
        return np.inf
    # chdtri(n, p) is the value that a χ² exceeds with probability p
    return float(known.std(ddof=1) * ((n - 1) / chdtri(n - 1, SURE)) ** 0.5)
