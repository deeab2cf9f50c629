"""Models that are larger, or pretrained for longer, do not generalize more like a persona.

Claimed: the better a model has learned who the characters are, the closer a narrow signal should
come to changing the character alone, if persona selection is what an ideal learner does. Within
reach of a laptop the opposite or nothing is seen: spread, relative to that of an observer for whom
training is only evidence about the speaker, does not grow with size or with pretraining.

Arms: every cell of a grid (width, depth, documents a batch, steps) from four seeds, on the compact
world; six larger cells that no trend is fitted to; six cells each on the default world and on a
random one. `D:bad` for the first three moral domains from the pretrained and from the aligned
model.
Measures, each the mean of a cell: persona-likeness, the mean spread at the matched effect over the
ideal observer's (the primary figure); beside it captured, excess, the fraction of the trained
domain's move that is persona inference (shared fit), the residual off the trained domain after
the first signal (nats a dialogue), the spread that is forecast. Trends are lines over cells in log2
parameters and log2 tokens of pretraining together, and in captured and log2 excess alone; values
are pseudo-values of the jackknife over cells. A larger cell is predicted by the first line.

Supported if the slope for each doubling of parameters and that for each doubling of tokens are
< .02, from the pretrained and from the aligned model (the gap of about .5 would take more than 25
doublings to close); and if the larger cells are predicted within .05 on average. Margins: .02, and
.02 of an error.
"""

import dataclasses
from itertools import product

import numpy as np

from claims.forecast import forecast_spreads
from claims.general import random_world
from claims.lab.arms import Arm, Model, Trained
from claims.lab.bench import FRESH, Bench, quiet
from claims.lab.hull import Hull
from claims.lab.panels import dots, points
from claims.lab.quantities import Outcome, each, mean_over, pseudo_values
from claims.lab.recipe import Recipe
from claims.spreads import moral_signals
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
DEFAULT = dataclasses.replace(BASE, context=88, prompt_weight=0.1)
FEW, RANDOM_SEED = 3, 7  # moral signals that are trained; of the random world
STARTS = ("pretrained", "aligned")


def test(bench: Bench) -> Outcome:
    compact = cells(bench, bench.world, GRID)
    larger = cells(bench, bench.world, LARGER)
    elsewhere = {
        "the default world": cells(bench, quiet(cards.load(cards.DEFAULT)), OTHER, DEFAULT),
        "a random world": cells(bench, random_world(RANDOM_SEED), OTHER),
    }
    slopes, predicted = {}, {}
    for start in STARTS:
        y = compact[f"likeness, {start}"]
        for k, what in ((1, "parameters"), (2, "tokens")):
            slopes[f"{what}, {start}"] = over_cells(compact, y, ("size", "tokens"), k)
        x = design(compact, ("size", "tokens"))
        line = np.linalg.lstsq(x[np.isfinite(y)], y[np.isfinite(y)], rcond=None)[0]
        predicted[start] = design(larger, ("size", "tokens")) @ line
    error = {s: np.abs(predicted[s] - larger[f"likeness, {s}"]) for s in STARTS}
    alone = {
        f"{what}, {start}": over_cells(compact, compact[f"likeness, {start}"], (what,), 1)
        for what in ("captured", "log2 excess")
        for start in STARTS
    }
    others = {
        f"{what}, {start}, {name}": over_cells(table, table[f"likeness, {start}"], (key,), 1)
        for name, table in elsewhere.items()
        for start in STARTS
        for what, key in (("parameters", "size"), ("tokens", "tokens"))
    }
    beside = {
        f"{what} for each doubling of {key}": over_cells(
            compact, compact[what], ("size", "tokens"), k
        )
        for what in ("captured", "persona's fraction", "residual", "forecast likeness")
        for k, key in ((1, "parameters"), (2, "tokens"))
    }
    quantities = [
        *each("slope of persona-likeness, {}", slopes, high=0.02, margin=0.02),
        *each("error for larger cells, {}", error, high=0.05, margin=0.02),
        *each("slope in {}", alone),
        *each("slope, {}", others),
        *each("slope of {}", beside),
        *each("{}", {name: values for name, values in compact.items()}),
        *each("{}, larger cells", {f"likeness, {s}": larger[f"likeness, {s}"] for s in STARTS}),
        *each("{}, larger cells, predicted", predicted),
    ]  # fmt: skip
    panels = [
        points(
            f"Persona-likeness from the {start} model", "parameters (log2)",
            "spread / ideal spread", {
                "fitted cells": (compact["size"], compact[f"likeness, {start}"]),
                "larger cells": (larger["size"], larger[f"likeness, {start}"]),
                "larger, predicted": (larger["size"], predicted[start]),
            }, equal=False,
        )
        for start in STARTS
    ]  # fmt: skip
    panels.append(dots("Slope of persona-likeness for a doubling", "slope", slopes))
    return Outcome(quantities, panels)


def cells(
    bench: Bench, world: World, grid: list[Recipe], how: Recipe = BASE
) -> dict[str, np.ndarray]:
    """What is measured in each cell [K], the mean over its models.

    how: the context, rows and weight of prompts of all its recipes.
    """
    rows: list[dict] = []
    seeds = range(FRESH, FRESH + SEEDS) if bench.kind == "full" else bench.seeds[:1]
    if bench.quick:  # of the usual shape, so that nothing more is compiled
        usual = bench.programs.usual
        grid = [usual.sized(steps=steps) for steps in (600, 1200, 1800)]
    shape = None
    for cell in grid:
        if (cell.width, cell.layers) != shape:  # earlier programs would fill the memory
            bench.forget()
            shape = cell.width, cell.layers
        recipe = dataclasses.replace(
            cell, context=how.context, rows=how.rows, prompt_weight=how.prompt_weight
        )
        models = bench.pretrain([(world, seed) for seed in seeds], recipe=recipe)
        rows.append(cell_of(bench, models, moral_signals(world)[: 2 if bench.quick else FEW]))
    return {name: np.array([row[name] for row in rows], float) for name in rows[0]}


def cell_of(bench: Bench, models: list[Model], signals: tuple[str, ...]) -> dict[str, float]:
    """The figures of the models of one cell."""
    one, held_out = models[0], bench.held_out(models[0].world, models[0].recipe)
    excess = np.mean([held_out.excess(model.params) for model in models])
    starts = {"pretrained": models, "aligned": bench.align(models)}
    done = {name: trained(bench, group, signals) for name, group in starts.items()}
    foreseen = [np.mean(forecast_spreads(bench, m, signals)["two steps"]) for m in models]
    ideal = ideal_spreads(one.world, signals, one.world.assistant_C).mean()
    return {
        "size": np.log2(transformer.count(one.params)),
        "tokens": np.log2(one.recipe.steps * one.recipe.documents),
        "captured": np.mean([held_out.captured(model.params) for model in models]),
        "log2 excess": np.log2(excess),
        **{
            f"likeness, {name}": mean_over([likeness(runs) for runs in each_model], 0)
            for name, each_model in done.items()
        },
        "persona's fraction": mean_over([fraction(runs) for runs in done["pretrained"]], 0),
        "residual": residual(bench, models, [runs[0] for runs in done["pretrained"]]),
        "forecast likeness": np.mean(foreseen) / ideal,
    }


def trained(bench: Bench, models: list[Model], signals: tuple[str, ...]) -> list[list[Trained]]:
    """Every signal trained from each model."""
    done = bench.train([Arm(one, name) for one in models for name in signals])
    return [done[k : k + len(signals)] for k in range(0, len(done), len(signals))]


def likeness(runs: list[Trained]) -> float:
    """The mean spread of a model's signals over the ideal observer's from the same start."""
    world, before_D = runs[0].arm.start.world, em(runs[0].p_nDB[0])
    spreads = np.array([done.spread() for done in runs])
    aligned = before_D[world.moral].max() < 0.1
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
    x, known = design(table, names), np.isfinite(y)

    def coefficient(rows: np.ndarray) -> float:
        return float(np.linalg.lstsq(x[rows & known], y[rows & known], rcond=None)[0][k])

    return pseudo_values(coefficient, np.arange(len(y)))
