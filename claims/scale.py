"""Models that are larger, or pretrained for longer, do not generalize more like a persona.

Claimed: the better a model has learned who the characters are, the closer a narrow signal should
come to changing the character alone, if persona selection is what an ideal learner does. Within
reach of a laptop the opposite or nothing is seen: spread, relative to that of an observer for whom
training is only evidence about the speaker, does not grow with size or with pretraining.

Arms: every cell of a grid (width, depth, documents a batch, steps) from four seeds, on the compact
world; six larger cells that no trend is fitted to; six cells each on the default world and on a
random one. `D:bad` for the first three moral domains from the pretrained and from the aligned
model.
Measures, each the mean of a cell: relative spread, the mean spread at the matched effect over the
ideal observer's (the primary figure; an amount, 1 where as much spreads as by inference about the
speaker). Beside it: captured, excess, the fraction of the trained domain's move that is persona
inference (shared fit), the residual off the trained domain after the first signal (nats a
dialogue), and the spread that is forecast. Trends are lines over cells in log2 parameters and log2
documents of pretraining (batches times steps) together, and in captured and log2 excess alone;
values are pseudo-values of the jackknife over cells. Larger cells are predicted by the first line.

Supported if the slope for each doubling of parameters and that for each doubling of documents are
< .02, from the pretrained and from the aligned model (the gap of about .5 would take more than 25
doublings to close); and if the larger cells are predicted within .05 on average (their errors share
one line, so that this interval is of the cells alone). Margins: .02, and .02 of an error.
"""

import dataclasses
from itertools import product

import numpy as np

from claims.forecast import forecast_spreads, train_signals
from claims.general import random_world
from claims.lab.arms import Model, Trained
from claims.lab.bench import FRESH, Bench, quiet
from claims.lab.hull import Hull
from claims.lab.panels import dots, points
from claims.lab.quantities import Outcome, each, mean_over, pseudo_values
from claims.lab.recipe import Recipe
from toyllm.lm import transformer
from toyllm.measures import prediction
from toyllm.posttrain.signals import parse, untrained
from toyllm.world import cards, persona
from toyllm.world.quantities import em, spread
from toyllm.world.world import World

NUMBER = "24"
UNITS = 24  # cells that trends are fitted to
SEEDS = 4
BASE = Recipe(rows=0)
GRID = [  # width, layers, documents, steps
    BASE.sized(*cell) for cell in product((24, 40, 64), (1, 3), (16, 32), (600, 1800))
]
LARGER = [
    BASE.sized(*cell)
    for cell in (
        (64, 3, 32, 3600), (40, 2, 48, 3600), (96, 2, 32, 1200),
        (96, 3, 32, 1200), (96, 4, 32, 1200), (128, 2, 32, 1200),
    )
]  # fmt: skip
OTHER = [BASE.sized(*cell) for cell in product((24, 40, 64), (2,), (28,), (1500, 3000))]
OF_DEFAULT = [dataclasses.replace(one, context=88, prompt_weight=0.1) for one in OTHER]
FEW, RANDOM_SEED = 3, 7  # moral signals that are trained; of the random world
STARTS = ("pretrained", "aligned")
BOTH = ("size", "documents")  # log2 of parameters, and of documents of pretraining


def test(bench: Bench) -> Outcome:
    compact = cells(bench, bench.world, GRID)
    larger = cells(bench, bench.world, LARGER)
    elsewhere = {
        "the default world": cells(bench, quiet(cards.load(cards.DEFAULT)), OF_DEFAULT),
        "a random world": cells(bench, random_world(RANDOM_SEED), OTHER),
    }
    slopes, predicted, alone, others = {}, {}, {}, {}
    y, y_larger = (
        {start: table[f"relative spread, {start}"] for start in STARTS}
        for table in (compact, larger)
    )
    for start in STARTS:
        for k, name in ((1, "parameters"), (2, "documents")):
            slopes[f"{name}, {start}"] = over_cells(compact, y[start], BOTH, k)
        x, known = design(compact, BOTH), np.isfinite(y[start])
        line = np.linalg.lstsq(x[known], y[start][known], rcond=None)[0]
        predicted[start] = design(larger, BOTH) @ line
        for name in ("captured", "log2 excess"):
            alone[f"{name}, {start}"] = over_cells(compact, y[start], (name,), 1)
        for where, table in elsewhere.items():
            for name in BOTH:  # in these cells sizes and documents are crossed, so each alone
                of_start = table[f"relative spread, {start}"]
                others[f"{name}, {start}, {where}"] = over_cells(table, of_start, (name,), 1)
    error = {start: np.abs(predicted[start] - y_larger[start]) for start in STARTS}
    beside = {
        f"{what} for each doubling of {key}": over_cells(compact, compact[what], BOTH, k)
        for what in ("captured", "persona's fraction", "residual", "forecast relative spread")
        for k, key in ((1, "parameters"), (2, "documents"))
    }
    quantities = [
        *each("slope of relative spread, {}", slopes, high=0.02, margin=0.02),
        *each("error for larger cells, {}", error, high=0.05, margin=0.02),
        *each("slope in {}", alone),
        *each("slope, {}", others),
        *each("slope of {}", beside),
        *each("{}", {name: values for name, values in compact.items()}),
        *each("relative spread, {}, larger cells", y_larger),
        *each("relative spread, {}, larger cells, predicted", predicted),
    ]  # fmt: skip
    panels = [
        points(
            f"From the {start} model", "parameters (log2)", "spread / ideal spread", {
                "fitted cells": (compact["size"], y[start]),
                "larger cells": (larger["size"], y_larger[start]),
                "larger, predicted": (larger["size"], predicted[start]),
            }, equal=False,
        )
        for start in STARTS
    ]  # fmt: skip
    panels.append(dots("Slope of relative spread for a doubling", "slope", slopes))
    return Outcome(quantities, panels)


def cells(bench: Bench, world: World, grid: list[Recipe]) -> dict[str, np.ndarray]:
    """What is measured in each cell [K], the mean over its models."""
    rows: list[dict] = []
    seeds = range(FRESH, FRESH + SEEDS) if bench.kind == "full" else bench.seeds[:1]
    if bench.quick:  # of the usual shape, so that nothing more is compiled
        usual, other = bench.programs.usual, grid[0]
        if other.context != usual.context:
            how = {name: getattr(other, name) for name in ("context", "rows", "prompt_weight")}
            usual = dataclasses.replace(usual, **how)
        grid = [usual.sized(steps=steps) for steps in (600, 1200, 1800)]
    shape = None
    for recipe in grid:
        if (recipe.width, recipe.layers) != shape:  # earlier programs would fill the memory
            bench.forget()
            shape = recipe.width, recipe.layers
        models = bench.pretrain([(world, seed) for seed in seeds], recipe=recipe)
        rows.append(cell_of(bench, models))
    return {name: np.array([row[name] for row in rows], float) for name in rows[0]}


def cell_of(bench: Bench, models: list[Model]) -> dict[str, float]:
    """The figures of the models of one cell."""
    world, held_out = models[0].world, bench.held_out(models[0].world, models[0].recipe)
    count = 2 if bench.quick else FEW
    excess = np.mean([held_out.excess(model.params) for model in models])
    starts = {"pretrained": models, "aligned": bench.align(models)}
    done = {name: train_signals(bench, group, count=count) for name, group in starts.items()}
    foreseen = forecast_spreads(bench, models, count=count)["two steps"]
    signals = [one.arm.signal for one in done["pretrained"][0]]
    relative = {name: [relative_spread(runs, name) for runs in done[name]] for name in done}
    return {
        "size": np.log2(transformer.count(models[0].params)),
        "documents": np.log2(models[0].recipe.steps * models[0].recipe.documents),
        "captured": np.mean([held_out.captured(model.params) for model in models]),
        "log2 excess": np.log2(max(excess, 1e-6)),
        **{f"relative spread, {name}": mean_over(values, 0) for name, values in relative.items()},
        "persona's fraction": mean_over([fraction(runs) for runs in done["pretrained"]], 0),
        "residual": residual(bench, models, [runs[0] for runs in done["pretrained"]]),
        "forecast relative spread":
            foreseen.mean() / ideal_spreads(world, signals, world.assistant_C).mean(),
    }  # fmt: skip


def relative_spread(runs: list[Trained], start: str) -> float:
    """The mean spread of a model's signals over the ideal observer's from the same start."""
    world, before_D = runs[0].arm.start.world, em(runs[0].p_nDB[0])
    spreads = np.array([done.spread() for done in runs])
    aligned = start == "aligned"
    prior_C = persona.aligned_prior(world, before_D) if aligned else world.assistant_C
    ideal_S = ideal_spreads(world, [done.arm.signal for done in runs], prior_C)
    known = np.isfinite(spreads)
    if known.mean() < 0.75:
        return np.nan
    return float(spreads[known].mean() / ideal_S[known].mean())


def ideal_spreads(world: World, signals, prior_C: np.ndarray) -> np.ndarray:
    """The spread of each signal [S] by an observer who only infers the persona."""
    return np.array(
        [
            spread(persona.ideal_change(world, prior_C, parse(world, name).domains[0]),
                   untrained(world, name))
            for name in signals
        ]
    )  # fmt: skip


def fraction(runs: list[Trained]) -> float:
    """The share of the trained domains' moves that is persona inference (see `prediction`)."""
    world, before_D = runs[0].arm.start.world, em(runs[0].p_nDB[0])
    change_SD = np.stack([done.change() for done in runs])
    if not np.isfinite(change_SD).all() or len(runs) < 2:
        return np.nan
    names = [done.arm.signal for done in runs]
    table = prediction.Cells(world, names, world.assistant_C, before_D, before_D + change_SD)
    return float(prediction.shared(table, prediction.inference)[1].mean())


def residual(bench: Bench, models: list[Model], runs: list[Trained]) -> float:
    """What no mixture of characters explains after a signal, above before, off its domain."""
    world, signal = models[0].world, runs[0].arm.signal
    trained_domain = world.domain_names[parse(world, signal).domains[0]]
    off = Hull.of_world(models[0].tokenizer).without(trained_domain)
    after, before = (
        off.residual(bench.joints(group)) for group in ([done.model for done in runs], models)
    )
    return float(mean_over(after - before, 0))


def design(table: dict, names: tuple[str, ...]) -> np.ndarray:
    """A constant and some columns of a table [K, 1 + …]."""
    return np.column_stack([np.ones(len(table["size"])), *(table[name] for name in names)])


def over_cells(table: dict, y: np.ndarray, names: tuple[str, ...], k: int) -> np.ndarray:
    """Pseudo-values of coefficient k of a line in some columns, leaving out one cell at a time."""
    x = design(table, names)
    known = np.isfinite(y) & np.isfinite(x).all(1)

    def coefficient(rows: np.ndarray) -> float:
        return float(np.linalg.lstsq(x[rows & known], y[rows & known], rcond=None)[0][k])

    return pseudo_values(coefficient, np.arange(len(y)), known)
