"""From numbers to verdicts: paired Student t over pretraining seeds or worlds, corrected by Holm.

A claim makes one or more predictions, each that a mean lies between two bounds. The unit of every
number is a pretraining seed or a world: narrow seeds of one model only average its noise.

- supported: every prediction is inside its bounds, p ≤ .025. All must be, so the claim's p is the
  largest (an intersection-union test, which needs no correction within the claim); and all means
  are inside their bounds at the other learning rates too.
- not supported: some prediction is outside its bounds, p ≤ .025, the smallest p times their number
  (Bonferroni).
- undecided: neither.

Both families of p are corrected over all claims (Holm 1979). These rules stand here before any
result is shown, and a claim's bounds in its own file.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtr, stdtrit  # scipy.stats takes two seconds to import

ALPHA = 0.025  # of each side
MOST_MISSING = 0.25  # share of units that may be unread (not reached, or incoherent) …
FEWEST = 5  # … and how many must be read


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One thing that a claim predicts: low < mean < high.

    values: one number a pretraining seed or world [N]; NaN where it could not be read.
    repeats: the same at other learning rates, by name.
    chosen_from: of how many numbers this one was chosen as the most extreme; p against it is
        multiplied by that.
    """

    says: str
    values: Sequence[float]
    low: float = -np.inf
    high: float = np.inf
    repeats: dict[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    chosen_from: int = 1

    @property
    def read(self) -> np.ndarray:
        """The values that could be read."""
        values = np.asarray(self.values, float)
        return values[np.isfinite(values)]

    @property
    def effect(self) -> float:
        """Their mean; NaN where there is none."""
        return float(self.read.mean()) if len(self.read) else np.nan

    @property
    def enough(self) -> bool:
        """Whether enough units could be read to say anything."""
        missing = len(self.values) - len(self.read)
        return len(self.read) >= FEWEST and missing <= MOST_MISSING * len(self.values)

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """A Student-t interval of the mean; None with fewer than two units."""
        if len(self.read) < 2:
            return None
        half = stdtrit(len(self.read) - 1, (1 + level) / 2) * self._error
        return self.effect - half, self.effect + half

    @property
    def p_inside(self) -> float:
        """One-sided p of the mean being at or beyond the nearer bound: small speaks for it."""
        if not self.enough:
            return 1.0
        return max(self._p_below(self.low), self._p_above(self.high))

    @property
    def p_outside(self) -> float:
        """p of the mean being inside the bounds: small speaks against it."""
        if not self.enough:
            return 1.0
        sides = [
            1 - p
            for p, bound in (
                (self._p_below(self.low), self.low),
                (self._p_above(self.high), self.high),
            )
            if np.isfinite(bound)
        ]
        return min(1.0, self.chosen_from * len(sides) * min(sides))

    @property
    def repeated(self) -> bool:
        """Whether at all other rates enough is read, and the means are inside the bounds."""
        others = [Prediction(self.says, values) for values in self.repeats.values()]
        return all(other.enough and self.low < other.effect < self.high for other in others)

    @property
    def _error(self) -> float:
        return float(self.read.std(ddof=1) / len(self.read) ** 0.5)

    def _p_below(self, bound: float) -> float:
        """p, were the mean at most `bound`, of one as large as this."""
        return self._p_above(-bound, -1)

    def _p_above(self, bound: float, sign: int = 1) -> float:
        if not np.isfinite(bound):
            return 0.0
        distance = sign * self.effect - bound  # below 0 is inside
        if self._error <= 1e-12:
            return float(distance >= 0)
        return float(stdtr(len(self.read) - 1, distance / self._error))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a test: predictions (the first is the headline), arms, and panels."""

    predictions: Sequence[Prediction]
    arms: dict[str, dict]
    panels: Sequence[dict]

    def __add__(self, other: "Outcome") -> "Outcome":
        """The outcome of two parts of a claim."""
        return Outcome(
            [*self.predictions, *other.predictions],
            {**self.arms, **other.arms},
            [*self.panels, *other.panels],
        )


def p_values(predictions: Sequence[Prediction]) -> tuple[float, float]:
    """A claim's p for and against."""
    against = len(predictions) * min(p.p_outside for p in predictions)
    return max(p.p_inside for p in predictions), min(1.0, against)


def holm(p_by_name: dict[str, float], family: int) -> set[str]:
    """The names that are rejected at ALPHA (Holm 1979) in a family of so many.

    Those of the family that are not here count as not rejected.
    """
    rejected = set()
    for rank, (name, p) in enumerate(sorted(p_by_name.items(), key=lambda item: item[1])):
        if p > ALPHA / (family - rank):
            break
        rejected.add(name)
    return rejected


def verdicts(records: dict[str, dict], family: int) -> dict[str, str]:
    """The verdict of each claim from its record (see `record`), of a family of so many claims."""
    supported = holm({name: r["p_for"] for name, r in records.items()}, family)
    refuted = holm({name: r["p_against"] for name, r in records.items()}, family)

    def say(name: str) -> str:
        if records[name]["quick"]:
            return "undecided (quick)"
        if name in refuted:
            return "not supported"
        if name in supported and all(p["repeated"] for p in records[name]["predictions"]):
            return "supported"
        return "undecided"

    return {name: say(name) for name in records}


def record(name: str, title: str, outcome: Outcome, quick: bool) -> dict:
    """The record of a claim in plain numbers; `verdicts` decides its verdict, over all claims."""
    p_for, p_against = p_values(outcome.predictions)
    headline = outcome.predictions[0]
    return {
        "claim": name,
        "title": title,
        "effect": headline.effect,
        "ci": headline.interval(),
        "verdict": "undecided",
        "quick": quick,
        "p_for": p_for,
        "p_against": p_against,
        "predictions": [
            {
                "says": p.says,
                "effect": p.effect,
                "ci": p.interval(),
                "low": p.low,
                "high": p.high,
                "units": len(p.read),
                "unread": len(p.values) - len(p.read),
                "p_inside": p.p_inside,
                "p_outside": p.p_outside,
                "verdict": alone(p, quick),
                "repeated": p.repeated,
                "repeats": {rate: Prediction("", v).effect for rate, v in p.repeats.items()},
                "values": list(p.values),
            }
            for p in outcome.predictions
        ],
        "arms": outcome.arms,
        "panels": list(outcome.panels),
    }


def alone(p: Prediction, quick: bool) -> str:
    """The verdict of one prediction, uncorrected."""
    if quick:
        return "undecided (quick)"
    if p.p_outside <= ALPHA:
        return "not supported"
    return "supported" if p.p_inside <= ALPHA and p.repeated else "undecided"
