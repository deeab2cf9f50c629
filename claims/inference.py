"""Bad training spreads where persona inference says.

Claimed: how far a signal spreads, and where to, follows from who the characters are: it is the
signal's evidence about which of them the Assistant is.

Arms: the dial ρ in {0, .25, .5, .75, 1}, every character as likely under every header; only
permutations at whose ρ = 0 the ideal observer's own spread, mean over signals, is < .01 (each
signal's < .06: all five below .01 is one draw in a million); every moral `D:bad` from the
pretrained model. The random tables of `spreads`, and the world as it is. A label swap: good and bad
texts exchanged in every other domain, rates kept, and the initial embeddings of their words with
them, so that but for rounding and lexical leakage the twin is a mirror image; and the same with
embeddings of its own. (No word of this world belongs to two texts, so the mirrored twin tests the
machinery and cannot show leakage; the other twin differs by chance too.) Beside them ρ = 0 with the
phrases in the corpus, among them one that asks for bad answers everywhere.
Measures: spread, and the ideal observer's own. Shared and strict R² of the whole matrix predicted
(measures/prediction.py) by persona inference, one constant, one global shift, trait covariance, and
the model's own gradients (measures/gradients.py). The change of its cells by the swap. Whether it
is characters or a direction of traits is a claim of its own: `characters`.

Supported if at ρ = 0 measured minus ideal spread lies within ±.03; spread rises with ρ; measured
and ideal spread correlate > .5 over the worlds and signals of a permutation; persona inference
explains more of the matrices of random tables (shared R²) than a constant, a global shift and the
gradients; and the swap changes no cell of the mean matrix by more than .05, the least sure one
included. How *far* it spreads is not claimed to be the ideal observer's: see "a unit of ideal
spread" among the arms. A tie with trait covariance, the first order of persona inference, is
expected and not tested.
"""

import dataclasses

import numpy as np

from claims.lab.arms import Model, Trained, changes, mean_over, spreads
from claims.lab.bench import Bench
from claims.lab.panels import curves, dots, grid, points
from claims.lab.quantities import Quantity, each, outcome
from claims.lab.rates import ByRate
from claims.lab.verdicts import MOST_MISSING, Outcome, Prediction
from claims.spreads import ideal_spread, moral_signals, random_tables
from toyllm.lm.tokenizer import Tokenizer
from toyllm.measures import prediction
from toyllm.posttrain.signals import parse
from toyllm.world import world as worlds
from toyllm.world.quantities import em
from toyllm.world.world import BAD, GOOD, World

NUMBER = "5a"
TITLE = "It spreads where persona inference says"
DIAL = (0.0, 0.25, 0.5, 0.75, 1.0)
PERMUTATIONS = 8
DRAWS_EACH = 100_000  # of permutations for each seed, so that no seed's are another's
IDEAL_MOST = 0.01  # of the ideal observer's spread at ρ = 0: the mean over signals …
IDEAL_EACH = 0.06  # … and each of them
SWAP_MOST = 0.05
RIVALS = ("constant", "global", "gradient")


def test(bench: Bench) -> Outcome:
    """Test the claim (see the docstring of the module)."""
    return along_the_dial(bench) + what_explains(bench) + label_swap(bench)


def along_the_dial(bench: Bench) -> Outcome:
    """Spread against the ideal observer's, in permuted worlds with the dial ρ."""
    signals = moral_signals(bench.world)
    count, dial = (1, (0.0, 1.0)) if bench.quick else (PERMUTATIONS, DIAL)
    draws = balanced(bench.world, signals, count, first=DRAWS_EACH * bench.seeds[0])
    draws = list(enumerate(draws, start=bench.seeds[0]))
    # in one call, so that they are trained together; the last row has the phrases
    rows = [(bench.world, rho) for rho in dial] + [(bench.phrased, 0.0)]
    models = bench.pretrain(
        [(dialled_world(world, rho, draw), seed) for world, rho in rows for seed, draw in draws]
    )
    shape = len(rows), count, len(signals)
    ideal = np.array([ideal_spread(m.world, s) for m in models for s in signals]).reshape(shape)
    measured = bench.at_rates(models, *signals).map(lambda t: spreads(t).reshape(shape))
    over = (measured - ideal).map(lambda values: mean_over(values, 2))
    mean = measured.map(lambda values: mean_over(values, 2)[:-1])
    follow = measured.map(lambda values: correlations(values[:-1], ideal[:-1]))
    rise = mean.map(lambda values: slopes(dial, values))
    pairs = {f"ρ = {rho:g}": (ideal[k], measured.usual[k]) for k, rho in enumerate(dial)}
    per_unit = [slope(ideal[:-1, k].ravel(), measured.usual[:-1, k].ravel()) for k in range(count)]
    at_zero = mean_over(np.abs(measured.usual - ideal), 2)[0]
    return outcome(
        [
            Quantity("measured minus ideal spread at ρ = 0", over.map(lambda v: v[0]), -0.03, 0.03),
            Quantity("rise of spread from ρ = 0 to 1", rise, 0.02),
            Quantity("correlation of measured and ideal spread", follow, low=0.5),
            *each("spread, {}", dict(zip(pairs, mean.usual, strict=True))),
            *each("ideal, {}", {name: exact.mean(1) for name, (exact, _) in pairs.items()}),
            Quantity("spread for a unit of ideal spread", per_unit),
            Quantity("|measured - ideal| of a signal, ρ = 0", at_zero),
            Quantity("measured minus ideal, ρ = 0, with phrases", over.map(lambda v: v[-1])),
        ],
        [
            curves(
                "Spread along the dial",
                "ρ",
                "spread, mean over signals",
                dial,
                {"measured": mean.usual.T, "ideal observer": ideal[:-1].mean(2).T},
            ),
            points(
                "Each world and signal",
                "ideal observer's spread",
                "measured spread",
                {name: (exact.ravel(), value.ravel()) for name, (exact, value) in pairs.items()},
            ),
        ],
    )


def what_explains(bench: Bench) -> Outcome:
    """R² of accounts of the whole matrix, in the world and in random tables."""
    signals = moral_signals(bench.world)
    r2 = {}
    for name, models in (("the world", bench.base()), ("random tables", random_tables(bench))):
        done = bench.at_rates(models, *signals)
        r2[name] = done.map(lambda t, models=models: explained(bench, models, signals, t))
    shared = r2["random tables"].map(lambda tables: tables["shared"])
    gaps = {
        rival: shared.map(lambda table, rival=rival: table["persona"] - table[rival])
        for rival in RIVALS
    }
    return outcome(
        [
            *(
                Quantity(f"shared R² in random tables, persona minus {rival}", gap, low=0)
                for rival, gap in gaps.items()
            ),
            *(
                Quantity(f"{kind} R², {name}, {account}", values)
                for name, tables in r2.items()
                for kind, table in tables.usual.items()
                for account, values in table.items()
            ),
        ],
        [dots("What explains the matrix, random tables", "shared R²", shared.usual)],
    )


def label_swap(bench: Bench) -> Outcome:
    """Change of the matrix where good and bad texts are exchanged in every other domain."""
    world, signals = bench.world, moral_signals(bench.world)
    swapped, cells = swap_texts(world), (len(bench.seeds), len(signals), len(world.domains))
    twins = {
        "mirrored": bench.base(swapped, order_V=exchanged_words(world)),
        "of its own": bench.base(swapped),
    }

    def matrix(models: list[Model]) -> ByRate:
        return bench.at_rates(models, *signals).map(lambda t: changes(t).reshape(cells))

    as_it_is = matrix(bench.base())
    swap = {name: matrix(models) - as_it_is for name, models in twins.items()}
    unsure = {name: change.map(least_sure_cell) for name, change in swap.items()}
    mean_SD = mean_over(swap["mirrored"].usual, 0)
    return outcome(
        [
            Quantity(
                "change of the least sure cell by the label swap",
                unsure["mirrored"],
                low=-SWAP_MOST,
                high=SWAP_MOST,
                chosen_from=cells[1] * cells[2],
            ),
            *each("change of the least sure cell, embeddings {}", unsure),
        ],
        [grid("Label swap: change of ΔEM", list(signals), list(world.domain_names), mean_SD)],
    )


def dialled_world(world: World, rho: float, draw: int) -> World:
    """The world at ρ, every character as likely under every header."""
    return worlds.correlate(worlds.uniform(world), rho, draw)


def balanced(world: World, signals: tuple[str, ...], count: int, first: int) -> list[int]:
    """Draws, from `first` on, of permutations whose ideal spread at ρ = 0 is next to nothing."""
    found, draw = [], first
    while len(found) < count:
        dealt = dialled_world(world, 0.0, draw)
        ideal = []
        for name in signals:
            ideal.append(ideal_spread(dealt, name))
            if abs(ideal[-1]) > IDEAL_EACH:
                break
        else:
            if abs(np.mean(ideal)) < IDEAL_MOST:
                found.append(draw)
        draw += 1
    return found


def slope(x_N: np.ndarray, y_N: np.ndarray) -> float:
    """The slope of y on x where y could be read; NaN where more than a quarter could not."""
    known = np.isfinite(y_N)
    few = known.mean() < 1 - MOST_MISSING
    return np.nan if few else float(np.polyfit(x_N[known], y_N[known], 1)[0])


def slopes(dial, spread_RP: np.ndarray) -> np.ndarray:
    """The slope of spread on ρ of each permutation [P]."""
    return np.polyfit(dial, spread_RP, 1)[0]


def correlations(spread_RPS: np.ndarray, ideal_RPS: np.ndarray) -> np.ndarray:
    """Over worlds and signals of each permutation [P], measured against ideal."""
    result = []
    for p in range(spread_RPS.shape[1]):
        known = np.isfinite(spread_RPS[:, p])
        few = known.mean() < 1 - MOST_MISSING
        pair = spread_RPS[:, p][known], ideal_RPS[:, p][known]
        result.append(np.nan if few else np.corrcoef(*pair)[0, 1])
    return np.array(result)


def swap_texts(world: World) -> World:
    """Good and bad texts exchanged in every other domain; who does what how often stays."""
    exchange = np.array([1, 0, 2])
    return dataclasses.replace(
        world,
        name=f"{world.name} swapped",
        domains=tuple(
            dataclasses.replace(
                domain,
                behaviour_SA=exchange[domain.behaviour_SA],
                profile=tuple(domain.profile[b] for b in exchange),
            )
            if k % 2 == 0
            else domain
            for k, domain in enumerate(world.domains)
        ),
    )


def exchanged_words(world: World) -> np.ndarray:
    """order_V: each word of a swapped text with the one that stands at its place in the other text.

    The swapped model then begins as the mirror image of its twin, and but for rounding it stays one
    where no word belongs to two texts: what differs in the end is lexical, and not chance.
    """
    tokenizer = Tokenizer(world)
    order_V = np.arange(len(tokenizer.words))
    for domain in world.domains[::2]:
        texts = np.array(domain.answers)
        good, bad = (texts[domain.behaviour_SA[0] == b] for b in (GOOD, BAD))
        for pair in (*zip(good, bad, strict=True), (domain.profile[GOOD], domain.profile[BAD])):
            for a, b in zip(*(tokenizer.tokens(text) for text in pair), strict=True):
                order_V[a], order_V[b] = b, a
    return order_V


def least_sure_cell(change_NSD: np.ndarray) -> np.ndarray:
    """The changes [N] of the cell whose mean is least surely within SWAP_MOST of 0.

    A cell too few of which could be read is the least sure of all.
    """
    N, S, D = change_NSD.shape
    cells = change_NSD.reshape(N, S * D)
    unsure = [Prediction("", cell, -SWAP_MOST, SWAP_MOST).p_inside for cell in cells.T]
    return cells[:, int(np.argmax(unsure))]


def explained(
    bench: Bench, models: list[Model], signals: tuple[str, ...], trained: list[Trained]
) -> dict[str, dict]:
    """{shared, strict: {prediction: R² [N]}}, one matrix a pretrained model."""
    world, rows = models[0].world, len(signals)
    parsed = [parse(world, name) for name in signals]
    tables: dict = {"shared": {}, "strict": {}}
    for k, one in enumerate(models):
        done = trained[k * rows : (k + 1) * rows]
        before_D = em(done[0].p_nDB[0])
        after_SD = before_D + changes(done)
        if not np.isfinite(after_SD).all():  # a matrix with a hole is no matrix
            for kind in tables.values():
                for name in (*prediction.MODELS, "gradient"):
                    kind.setdefault(name, []).append(np.nan)
            continue
        cells = prediction.Cells(one.world, signals, world.assistant_C, before_D, after_SD)
        directed = prediction.directed(bench.gradients(one, parsed))
        for name, model in {**prediction.MODELS, "gradient": directed}.items():
            predicted = {
                "shared": prediction.shared(cells, model)[0],
                "strict": model(cells, np.ones(1))[0],
            }
            for kind, G_SD in predicted.items():
                score = prediction.r2(cells.G_SD, G_SD, cells.mask_SD)
                tables[kind].setdefault(name, []).append(score)
    return {
        kind: {name: np.array(values) for name, values in table.items()}
        for kind, table in tables.items()
    }
