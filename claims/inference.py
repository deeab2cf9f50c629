"""It spreads where persona inference says.

Claimed: how far a signal spreads, and where to, follows from who the characters are: it is the
signal's evidence about which of them the Assistant is.

Arms: the dial ρ in {0, .25, .5, .75, 1}, every character as likely under every header; only
permutations at whose ρ = 0 the ideal observer's own spread, mean over signals, is < .01 (each
signal's < .06: all five below .01 is one draw in a million); every moral `D:bad` from the
pretrained model. A unit is a permutation with a pretraining seed of its own.
Measures: spread, and the ideal observer's own, in both readings. How *far* it spreads is not
claimed to be the ideal observer's: see "a unit of ideal spread" among the arms.

Supported if at ρ = 0 measured minus ideal spread lies within ±.03 (no worse than three answers in a
hundred); spread rises with ρ by > .02; and measured and ideal spread correlate > .5 over the worlds
and signals of a permutation; each at the matched effect and after equal training. Margin of the
rise: .07, a third of what the ideal observer's own spread rises by.
"""

from collections.abc import Callable
from itertools import count, islice

import numpy as np

from claims.lab.arms import readings
from claims.lab.bench import Bench
from claims.lab.panels import curves, points
from claims.lab.quantities import MOST_MISSING, Outcome, Quantity, each, mean_over
from claims.spreads import ideal_spread, moral_signals
from toyllm.world import world as worlds
from toyllm.world.world import World

NUMBER = "5a"
UNITS = 32  # the pilot asks for 29
DIAL = (0.0, 0.25, 0.5, 0.75, 1.0)
DRAWS_EACH = 100_000  # of permutations for each seed, so that no seed's are another's
IDEAL_MOST = 0.01  # of the ideal observer's spread at ρ = 0: the mean over signals …
IDEAL_EACH = 0.06  # … and each of them


def test(bench: Bench) -> Outcome:
    signals = moral_signals(bench.world)
    P, dial = (1, (0.0, 1.0)) if bench.quick else (len(bench.draws), DIAL)
    draws = balanced(bench.world, signals, P, first=DRAWS_EACH * bench.seeds[0])
    draws = list(enumerate(draws, start=bench.seeds[0]))
    models = bench.pretrain(  # in one call, so that they are trained together
        [(dialled_world(bench.world, rho, draw), seed) for rho in dial for seed, draw in draws]
    )
    shape = len(dial), P, len(signals)
    ideal_WPS = np.reshape([ideal_spread(m.world, s) for m in models for s in signals], shape)
    read = readings(bench.at_rates(models, *signals))
    x_RWPS = {how: values.reshape(-1, *shape) for how, values in read.items()}
    at_zero, rise, follow, names = {}, {}, {}, [f"ρ = {rho:g}" for rho in dial]
    for how, values in x_RWPS.items():
        at_zero[how] = mean_over(values - ideal_WPS, 3)[:, 0]
        rise[how] = [slope(dial, mean_over(x_WPS, 2)) for x_WPS in values]
        follow[how] = [by_permutation(correlation, ideal_WPS, x) for x in values]
    spread_WPS = x_RWPS["matched"][0]
    mean_WP = mean_over(spread_WPS, 2)
    quantities = [
        *each("measured minus ideal spread at ρ = 0, {}", both(at_zero), low=-0.03, high=0.03,
              margin=0.015),
        *each("rise of spread from ρ = 0 to 1, {}", both(rise), low=0.02, margin=0.07),
        *each("correlation of measured and ideal spread, {}", both(follow), low=0.5, margin=0.12),
        *each("spread, {}", dict(zip(names, mean_WP, strict=True))),
        *each("ideal, {}", dict(zip(names, ideal_WPS.mean(2), strict=True))),
        Quantity("spread for a unit of ideal spread", by_permutation(slope, ideal_WPS, spread_WPS)),
        Quantity("frontier at ρ = 0, minus ideal spread", at_zero["frontier"]),
    ]  # fmt: skip
    pairs_W2 = np.stack([ideal_WPS, spread_WPS], 1).reshape(len(dial), 2, -1)
    panels = [
        curves("Spread along the dial", "ρ", "spread, mean over signals", dial,
               {"measured": mean_WP.T, "ideal observer": ideal_WPS.mean(2).T}),
        points("Each world and signal", "ideal observer's spread", "measured spread",
               dict(zip(names, pairs_W2, strict=True))),
    ]  # fmt: skip
    return Outcome(quantities, panels)


def both(by_reading: dict) -> dict:
    """The two readings that are predicted, of three."""
    return {how: by_reading[how] for how in ("matched", "equal")}


def dialled_world(world: World, rho: float, draw: int) -> World:
    """The world at ρ, every character as likely under every header."""
    return worlds.correlate(worlds.uniform(world), rho, draw)


def balanced(world: World, signals: tuple[str, ...], number: int, first: int) -> list[int]:
    """Draws, from `first` on, of permutations whose ideal spread at ρ = 0 is next to nothing."""

    def is_balanced(draw: int) -> bool:
        dealt, ideal = dialled_world(world, 0.0, draw), []
        for name in signals:
            ideal.append(ideal_spread(dealt, name))
            if abs(ideal[-1]) > IDEAL_EACH:  # nearly all draws end here
                return False
        return abs(np.mean(ideal)) < IDEAL_MOST

    return list(islice(filter(is_balanced, count(first)), number))


def slope(x_N, y_N) -> np.ndarray:
    """The slope of y [N, …] on x."""
    return np.polyfit(x_N, y_N, 1)[0]


def correlation(x_N, y_N) -> float:
    """The correlation of x and y."""
    return np.corrcoef(x_N, y_N)[0, 1]


def by_permutation(statistic: Callable, x_WPS: np.ndarray, y_WPS: np.ndarray) -> np.ndarray:
    """A statistic of x and y over worlds and signals, for each permutation [P].

    It is of where y could be read, and NaN where more than a quarter could not.
    """
    result = []
    for x, y in zip(x_WPS.swapaxes(0, 1), y_WPS.swapaxes(0, 1), strict=True):
        known = np.isfinite(y)
        few = known.mean() < 1 - MOST_MISSING
        result.append(np.nan if few else statistic(x[known], y[known]))
    return np.array(result)
