"""Quantities of a claim, and their statistics: each gives a prediction, an arm, or both.

Axes: R learning rates, the usual one first   N pretraining seeds or worlds   D domains
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import betaincinv, stdtr  # scipy.stats takes two seconds to import

from claims.lab.arms import RATES, SCORE_EVERY, Runs, readings
from toyllm.world import quantities

MOST_MISSING = 0.25  # share of units that may be unread (not reached, or incoherent) …
FEWEST = 5  # … and how many must be read


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One number for each pretraining seed or world: the unit of every claim.

    With a bound it is a prediction, low < mean < high; without one it is an arm.

    values: [N], or [R, N] at each learning rate; NaN where it could not be read. A prediction must
        hold at every rate; all else is of the values at the usual one.
    trained: the runs whose coherence, where they are read, is listed with the arm.
    margin: the smallest distance of the mean from its bounds that matters (see `power`): of a rate
        of bad answers two in a hundred, of a share or a correlation a tenth, of a residual one
        floor, unless the claim says otherwise.
    """

    name: str
    values: Any
    low: float = -np.inf
    high: float = np.inf
    trained: Runs = ()
    margin: float | None = None

    @property
    def predicted(self) -> bool:
        """Whether the claim predicts something of it."""
        return bool(np.isfinite([self.low, self.high]).any())

    @property
    def usual(self) -> np.ndarray:
        """The values at the usual learning rate [N]."""
        return np.atleast_2d(np.asarray(self.values, float))[0]

    @property
    def repeats(self) -> "dict[str, Quantity]":
        """The same at each of the other learning rates, by its multiple of the usual one."""
        values_RN = np.atleast_2d(self.values)
        return {
            f"{rate:.2g}": dataclasses.replace(self, values=values_N)
            for rate, values_N in zip(RATES[1:], values_RN[1:], strict=False)
        }

    @property
    def known(self) -> np.ndarray:
        """The values that could be read."""
        return self.usual[np.isfinite(self.usual)]

    @property
    def effect(self) -> float:
        """Their mean; NaN where there is none."""
        return float(self.known.mean()) if len(self.known) else np.nan

    @property
    def enough(self) -> bool:
        """Whether enough units could be read to say anything."""
        missing = len(self.usual) - len(self.known)
        return len(self.known) >= FEWEST and missing <= MOST_MISSING * len(self.usual)

    def interval(self) -> list[float] | None:
        """The 95% Student-t interval of the mean; None with fewer than two units."""
        return quantities.interval(self.known)

    @property
    def p_inside(self) -> float:
        """One-sided p of the mean being at or beyond the nearer bound: small speaks for it."""
        return max(self._p_of_sides()) if self.enough else 1.0

    @property
    def p_outside(self) -> float:
        """p of the mean being inside the bounds: small speaks against it."""
        if not self.enough:
            return 1.0
        bounds = self.low, self.high
        sides = [
            1 - p for p, bound in zip(self._p_of_sides(), bounds, strict=True) if np.isfinite(bound)
        ]
        return min(1.0, len(sides) * min(sides))

    @property
    def holds(self) -> np.ndarray:
        """Of each unit that could be read, whether its value lies within the bounds."""
        return (self.low < self.known) & (self.known < self.high)

    @property
    def repeated(self) -> bool:
        """Whether at all other rates enough is read, and the means are inside the bounds."""
        others = self.repeats.values()
        return all(other.enough and self.low < other.effect < self.high for other in others)

    @property
    def as_arm(self) -> dict:
        """Its record as an arm: one value for each unit, and its coherence."""
        record = {"values": self.usual.tolist()}
        if self.trained:
            record["coherence"] = [done.coherence() for done in self.trained[0]]
            if not self.trained[0][0].arm.to_the_end:
                record["steps"] = [SCORE_EVERY * done.place for done in self.trained[0]]
        return record

    @property
    def _error(self) -> float:
        return float(self.known.std(ddof=1) / len(self.known) ** 0.5)

    def _p_of_sides(self) -> tuple[float, float]:
        """p of a mean as large as this, were it at most `low`; and as small, were it `high`."""
        return self._p_below(self.low - self.effect), self._p_below(self.effect - self.high)

    def _p_below(self, distance: float) -> float:
        """p of a mean as far inside a bound as this; a distance above 0 is outside."""
        if np.isinf(distance):  # there is no such bound
            return 0.0
        if self._error <= 1e-12:
            return float(distance >= 0)
        return float(stdtr(len(self.known) - 1, distance / self._error))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a test: quantities (the first is the headline), and panels of a figure.

    related: what goes with a prediction over units (see the function `related`).
    """

    quantities: Sequence[Quantity]
    panels: Sequence[dict]
    related: Sequence[dict] = ()

    @property
    def predictions(self) -> list[Quantity]:
        """What the claim predicts something of."""
        return [q for q in self.quantities if q.predicted]

    @property
    def arms(self) -> dict[str, dict]:
        """The record of each arm, by its name."""
        return {q.name: q.as_arm for q in self.quantities if not q.predicted}


def related(predictions: Sequence[Quantity], features: Mapping[str, np.ndarray]) -> list[dict]:
    """How the values of each prediction that fails somewhere go with features of the units [N].

    Spearman's rank correlation, its p corrected over all that are listed (Bonferroni).
    """
    rows = []
    for prediction in predictions:
        known = np.isfinite(prediction.usual)
        if prediction.holds.all():
            continue
        for name, values_N in features.items():
            if name == prediction.name:
                continue
            x, y = (np.argsort(np.argsort(v[known])) for v in (values_N, prediction.usual))
            r, n = float(np.corrcoef(x, y)[0, 1]) if known.sum() > 2 else np.nan, known.sum()
            t = r * ((n - 2) / max(1e-12, 1 - r * r)) ** 0.5 if n > 2 else np.nan
            p = 2 * float(stdtr(n - 2, -abs(t))) if n > 2 else np.nan
            rows.append({"says": prediction.name, "feature": name, "r": r, "p": p})
    return [row | {"p": min(1.0, row["p"] * len(rows))} for row in rows]


def proportion(holds: np.ndarray) -> list[float]:
    """The 95% interval of a proportion (Clopper & Pearson 1934)."""
    k, n = int(holds.sum()), len(holds)
    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, 0.025))
    high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 0.975))
    return [low, high]


def mean_over(values, axis: int) -> np.ndarray:
    """The mean of what could be read; NaN where more than a quarter could not."""
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(axis)
    enough = known.mean(axis) >= 1 - MOST_MISSING
    return np.where(enough, total / np.maximum(known.sum(axis), 1), np.nan)


def pseudo_values(
    statistic: Callable[[np.ndarray], float], groups: np.ndarray, counted: np.ndarray | None = None
) -> np.ndarray:
    """The jackknife's pseudo-values of a statistic (Tukey 1958), one for each group left out [G].

    statistic: a function of which rows [N] count. groups: of each row; "" belongs to none.
    counted: rows that the statistic can use, by default all; a group without any is unread (NaN).
    The mean of the values is the statistic less its bias, and they are treated as independent.
    """
    counted = np.full(len(groups), True) if counted is None else counted
    names = [name for name in np.unique(groups) if name != ""]
    read = [bool((counted & (groups == name)).any()) for name in names]
    whole, n = statistic(np.full(len(groups), True)), sum(read)
    return np.array(
        [
            n * whole - (n - 1) * statistic(groups != name) if used else np.nan
            for name, used in zip(names, read, strict=True)
        ]
    )


def each(pattern: str, values: Mapping, trained: Mapping | None = None, **how) -> list[Quantity]:
    """A quantity for each item of a table, its key in place of {} in the pattern.

    trained: the runs of each, where there are any. how: what else all have, such as a bound.
    """
    trained = trained or {}
    return [
        Quantity(pattern.format(key), value, trained=trained.get(key, ()), **how)
        for key, value in values.items()
    ]


def each_reading(pattern: str, done: Mapping[str, Runs], others_D=None) -> list[Quantity]:
    """The spread of each of some runs as an arm, in every way of reading it (see `readings`)."""
    arms = []
    for name, runs in done.items():
        for how, values in readings(runs, others_D).items():
            arm, trained = f"{pattern.format(name)}, {how}", runs if how == "matched" else ()
            arms.append(Quantity(arm, values, trained=trained))
    return arms
