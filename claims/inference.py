"""Bad training spreads where persona inference says.

Claimed: how far a signal spreads, and where to, follows from who the characters are: it is the
signal's evidence about which of them the Assistant is.

Arms: the dial ρ in {0, .25, .5, .75, 1}, every character as likely under every header; only
permutations at whose ρ = 0 the ideal observer's own spread, mean over signals, is < .01 (each
signal's < .06: all five below .01 is one draw in a million); every moral `D:bad` from the
pretrained model. The random tables of `spreads`, and the world as it is. Beside them ρ = 0 with the
phrases in the corpus, among them one that asks for bad answers everywhere.
Measures: spread, and the ideal observer's own. Shared and strict R² of the whole matrix predicted
(measures/prediction.py) by persona inference, one constant, one global shift, trait covariance, and
the model's own gradients (measures/gradients.py). Whether it is characters or a direction of traits
is a claim of its own: `characters`.

Supported if at ρ = 0 measured minus ideal spread lies within ±.03; spread rises with ρ; measured
and ideal spread correlate > .5 over the worlds and signals of a permutation; persona inference
explains more of the matrices of random tables (shared R²) than a constant, a global shift and the
gradients. How *far* it spreads is not claimed to be the ideal observer's: see "a unit of ideal
spread" among the arms. A tie with trait covariance, the first order of persona inference, is
expected and not tested.
"""

from collections.abc import Callable
from itertools import count, islice

import numpy as np

from claims.lab.arms import Model, Trained, changes, spreads
from claims.lab.bench import Bench
from claims.lab.panels import curves, dots, points
from claims.lab.quantities import MOST_MISSING, Outcome, Quantity, each, mean_over
from claims.spreads import ideal_spread, moral_signals, random_tables
from toyllm.measures import prediction
from toyllm.posttrain.signals import parse
from toyllm.world import world as worlds
from toyllm.world.quantities import em
from toyllm.world.world import World

NUMBER = "5a"
TITLE = "It spreads where persona inference says"
UNITS = 8
DIAL = (0.0, 0.25, 0.5, 0.75, 1.0)
DRAWS_EACH = 100_000  # of permutations for each seed, so that no seed's are another's
IDEAL_MOST = 0.01  # of the ideal observer's spread at ρ = 0: the mean over signals …
IDEAL_EACH = 0.06  # … and each of them
RIVALS = ("constant", "global", "gradient")


def test(bench: Bench) -> Outcome:
    """Test the claim (see the docstring of the module)."""
    return along_the_dial(bench) + what_explains(bench)


def along_the_dial(bench: Bench) -> Outcome:
    """Spread against the ideal observer's, in permuted worlds with the dial ρ."""
    signals = moral_signals(bench.world)
    P, dial = (1, (0.0, 1.0)) if bench.quick else (len(bench.draws), DIAL)
    draws = balanced(bench.world, signals, P, first=DRAWS_EACH * bench.seeds[0])
    draws = list(enumerate(draws, start=bench.seeds[0]))
    # in one call, so that they are trained together; the last world has the phrases
    rows = [(bench.world, rho) for rho in dial] + [(bench.phrased, 0.0)]
    models = bench.pretrain(
        [(dialled_world(world, rho, draw), seed) for world, rho in rows for seed, draw in draws]
    )
    shape = len(rows), P, len(signals)
    ideal_WPS = np.reshape([ideal_spread(m.world, s) for m in models for s in signals], shape)
    spread_RWPS = spreads(bench.at_rates(models, *signals)).reshape(-1, *shape)
    over_RWP = mean_over(spread_RWPS - ideal_WPS, 3)
    at_zero = mean_over(np.abs(spread_RWPS[0] - ideal_WPS), 2)[0]
    names = [f"ρ = {rho:g}" for rho in dial]
    spread_RWPS, ideal_WPS = spread_RWPS[:, :-1], ideal_WPS[:-1]  # those without phrases
    mean_RWP = mean_over(spread_RWPS, 3)
    follow = [by_permutation(correlation, ideal_WPS, x_WPS) for x_WPS in spread_RWPS]
    pairs_W2 = np.stack([ideal_WPS, spread_RWPS[0]], 1).reshape(len(dial), 2, -1)
    quantities = [
        Quantity("measured minus ideal spread at ρ = 0", over_RWP[:, 0], -0.03, 0.03),
        Quantity("rise of spread from ρ = 0 to 1", [slope(dial, x_WP) for x_WP in mean_RWP], 0.02),
        Quantity("correlation of measured and ideal spread", follow, low=0.5),
        *each("spread, {}", dict(zip(names, mean_RWP[0], strict=True))),
        *each("ideal, {}", dict(zip(names, ideal_WPS.mean(2), strict=True))),
        Quantity(
            "spread for a unit of ideal spread", by_permutation(slope, ideal_WPS, spread_RWPS[0])
        ),
        Quantity("|measured - ideal| of a signal, ρ = 0", at_zero),
        Quantity("measured minus ideal, ρ = 0, with phrases", over_RWP[:, -1]),
    ]
    panels = [
        curves(
            "Spread along the dial",
            "ρ",
            "spread, mean over signals",
            dial,
            {"measured": mean_RWP[0].T, "ideal observer": ideal_WPS.mean(2).T},
        ),
        points(
            "Each world and signal",
            "ideal observer's spread",
            "measured spread",
            dict(zip(names, pairs_W2, strict=True)),
        ),
    ]
    return Outcome(quantities, panels)


def what_explains(bench: Bench) -> Outcome:
    """R² of accounts of the whole matrix, in the world and in random tables."""
    signals, r2 = moral_signals(bench.world), {}
    for name, models in (("the world", bench.base()), ("random tables", random_tables(bench))):
        runs = bench.at_rates(models, *signals)
        r2[name] = [explained(bench, models, trained) for trained in runs]
    tables = r2["random tables"]
    gaps = {
        rival: [table["shared", "persona"] - table["shared", rival] for table in tables]
        for rival in RIVALS
    }
    quantities = [
        *each("shared R² in random tables, persona minus {}", gaps, low=0),
        *(
            Quantity(f"{kind} R², {name}, {account}", values)
            for name, (usual, *_) in r2.items()
            for (kind, account), values in usual.items()
        ),
    ]
    panels = [
        dots(
            "What explains the matrix, random tables",
            "shared R²",
            {account: v for (kind, account), v in tables[0].items() if kind == "shared"},
        )
    ]
    return Outcome(quantities, panels)


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


def explained(
    bench: Bench, models: list[Model], trained: list[Trained]
) -> dict[tuple[str, str], np.ndarray]:
    """What predicts the matrix of each pretrained model, {(score, prediction): [N]}.

    trained: equally many signals of each model. Scores: shared and strict R²; `within`, the mean
    correlation within signals (see `prediction.within`), of persona inference.
    """
    S, accounts = len(trained) // len(models), (*prediction.MODELS, "gradient")
    keys = [("within", "persona")]
    keys += [(kind, name) for kind in ("shared", "strict") for name in accounts]
    scores = {key: np.full(len(models), np.nan) for key in keys}
    for k, one in enumerate(models):
        done, world = trained[k * S : (k + 1) * S], one.world
        before_D, change_SD = em(done[0].p_nDB[0]), changes([done])[0]
        if not np.isfinite(change_SD).all():
            continue  # a matrix with a hole is no matrix
        names = [each.arm.signal for each in done]
        after_SD = before_D + change_SD
        cells = prediction.Cells(world, names, world.assistant_C, before_D, after_SD)
        parsed = [parse(world, name) for name in names]
        directed = prediction.directed(bench.gradients(one, parsed))
        for name, model in {**prediction.MODELS, "gradient": directed}.items():
            shared_SD = prediction.shared(cells, model)[0]
            strict_SD = model(cells, np.ones(1))[0]
            for kind, G_SD in (("shared", shared_SD), ("strict", strict_SD)):
                scores[kind, name][k] = prediction.r2(cells.G_SD, G_SD, cells.mask_SD)
            if name == "persona":
                within = prediction.within(cells.G_SD, shared_SD[None], cells.mask_SD)
                scores["within", name][k] = within[0]
    return scores
