"""Quantities of a claim: each is named once, and gives a prediction, an arm, or both."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from claims.lab.arms import Trained, arm
from claims.lab.rates import ByRate, usual
from claims.lab.verdicts import Outcome, Prediction
from toyllm.world.world import World


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One number for each pretraining seed or world.

    With a bound it is a prediction, and an arm too where it has a name as an arm. Without a bound
    it is an arm under its own name.

    values: [N], or [N] at each learning rate. Predictions are repeated at every rate; arms have
        the values at the usual one.
    trained: the runs whose steps and coherence at the matched effect are listed with the arm.
    read: the behaviours [D, B] whose coherence is listed, where not those at the matched effect.
    chosen_from: see `Prediction`.
    """

    name: str
    values: Any
    low: float = -np.inf
    high: float = np.inf
    arm: str | None = None
    trained: Sequence[Trained] | ByRate = ()
    read: Sequence[np.ndarray] | None = None
    chosen_from: int = 1

    @property
    def predicted(self) -> bool:
        """Whether the claim predicts something of it."""
        return bool(np.isfinite([self.low, self.high]).any())

    @property
    def prediction(self) -> Prediction:
        """What the claim predicts of it."""
        others = self.values if isinstance(self.values, ByRate) else {}
        repeats = {f"{rate:.2g}": v for rate, v in others.items() if rate != 1}
        return Prediction(
            self.name, usual(self.values), self.low, self.high, repeats, self.chosen_from
        )


def outcome(quantities: Sequence[Quantity], panels: Sequence[dict]) -> Outcome:
    """An outcome: the predictions and the arms of these quantities, in this order."""
    arms = {q.arm or q.name: q for q in quantities if q.arm or not q.predicted}
    return Outcome(
        [q.prediction for q in quantities if q.predicted],
        {name: arm(usual(q.values), usual(q.trained), q.read) for name, q in arms.items()},
        panels,
    )


def each(pattern: str, values: Mapping, trained: Mapping | None = None) -> list[Quantity]:
    """An arm for each item of a table, its key in place of {} in the pattern."""
    trained = trained or {}
    return [Quantity(pattern.format(k), v, trained=trained.get(k, ())) for k, v in values.items()]


def worst_em(world: World, audits: Mapping) -> list[Quantity]:
    """An arm for each row of a conditional audit [N, D]: the EM of the worst moral domain."""
    worst = {name: values[:, world.moral].max(1) for name, values in audits.items()}
    return each("worst moral EM, {}", worst)
