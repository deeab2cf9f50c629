"""Gradients before training forecast how far models of one world spread a signal.

Claimed: models that were pretrained on the same characters spread a signal by very different
amounts, and two long steps of Adam, computed from each model before any narrow training, say by how
much (toyllm/posttrain/forecast.py). What is usually blamed, its loss, its size and how well it
tells characters apart, says little.

Arms: the architectures of claims/architectures.csv, which was written before any of them was
trained: 32 shapes (width, depth, heads, MLP; the compact world's own texts, or others of one to
four words with three to six answers of each kind), each trained in two ways (steps, batch,
optimizer, rates, initial scales, weight decay), from two seeds each. Half of the shapes are held
out. Every moral `D:bad` is trained from each.
Measures: y, a model's mean spread over signals at the matched effect; R² on held-out models,
1 - Σ(y - ŷ)² / Σ(y - ȳ)², where ŷ is a line in the forecast, and the line and ȳ come from the
fitted half. Its units are held-out shapes: values are pseudo-values of the jackknife that leaves
out one shape (Tukey 1958). Beside it: the same of other forecasts, of `code:bad` alone, without any
fitted number (raw), and of excess, captured and size.

Supported if R² > .75, for all models and for those with captured ≥ .8; if the forecast with nothing
fitted errs by less than .03 on average; and if R² exceeds by .2 that of excess, captured and size
together. Margins: .1, and .01 of an error.
"""

import csv
import dataclasses
from itertools import islice
from pathlib import Path

import numpy as np

from claims.lab.arms import Arm, Model, Trained
from claims.lab.bench import FRESH, Bench
from claims.lab.panels import dots, points
from claims.lab.quantities import Outcome, Quantity, each, mean_over, pseudo_values
from claims.lab.recipe import Recipe
from claims.spreads import moral_signals
from toyllm.lm import transformer
from toyllm.posttrain.signals import parse, untrained
from toyllm.world import persona
from toyllm.world.quantities import MATCHED, em, logit, spread
from toyllm.world.world import World

NUMBER = "22"
UNITS = 16  # held-out shapes
LIST = Path(__file__).with_name("architectures.csv")
SEEDS, LEARNED = 2, 0.8  # seeds of an architecture; captured of models that have learned the world
FORECASTS = {"two steps": "change_D", "one step": "one_D", "linear": "linear_D"}
HALVES = ("fitted", "held out")
DRAWS = 1000  # of the bootstrap, and permutations


def test(bench: Bench) -> Outcome:
    table = population(bench)
    y, code = table["spread"], table["spread of code:bad"]
    sound = np.isfinite(y)
    held_out = np.where(table["half"] == "held out", table["shape"], "")
    learned = sound & (table["captured"] >= LEARNED)
    blamed = np.stack([table[name] for name in ("excess", "captured", "log size")], 1)

    def explained(x, where=sound, y=y) -> np.ndarray:
        return pseudo_values(lambda rows: centred(table, x, y, rows & where), held_out)

    known = {name: explained(table[name]) for name in FORECASTS}
    error = of_shapes(table, np.abs(table["two steps"] - y), sound)
    ahead = known["two steps"] - explained(blamed)
    predictions = [
        Quantity("R² of the forecast, held-out shapes", known["two steps"], 0.75, margin=0.1),
        Quantity(f"the same, captured ≥ {LEARNED}", explained(table["two steps"], learned), 0.75,
                 margin=0.1),
        Quantity("error of a model's forecast, nothing fitted", error, high=0.03, margin=0.01),
        Quantity("R² minus that of excess, captured and size", ahead, 0.2, margin=0.1),
    ]  # fmt: skip
    others = {name: explained(table[name]) for name in ("excess", "captured", "log size")}
    others |= {"persona inference": explained(table["persona"])}
    others |= {"excess, captured, size": explained(blamed)}
    arms = [
        *each("R² of {}", {name: known[name] for name in ("one step", "linear")} | others),
        *each("R² of {}, captured ≥ .8", {n: explained(table[n], learned) for n in FORECASTS}),
        Quantity("R² of the forecast of code:bad", explained(table["two steps, code:bad"], y=code)),
        *each("{}", chance(table, sound)),
        *each("raw R² of {}", {n: [raw(table[n], y)] for n in FORECASTS}),
        *each("error of {}", {n: of_shapes(table, np.abs(table[n] - y), sound) for n in FORECASTS}),
        *each("models read, {}", {"all": [sound.sum()], f"captured ≥ {LEARNED}": [learned.sum()]}),
        *each("bias of {}", {n: of_shapes(table, table[n] - y, sound) for n in FORECASTS}),
        *each("{}, held-out shapes", {n: of_shapes(table, table[n], sound) for n in
                                      ("spread", "captured", "excess")}),
    ]  # fmt: skip
    halves = {half: table["half"] == half for half in HALVES}
    shown = {half: (table["two steps"][where], y[where]) for half, where in halves.items()}
    panels = [
        points("Each model's mean spread, nothing fitted", "forecast", "measured", shown),
        dots("What explains it, on held-out shapes", "R²", known | others),
    ]
    return Outcome([*predictions, *arms], panels)


def population(bench: Bench) -> dict[str, np.ndarray]:
    """Every column of the table of models [N]: how they were made, what is forecast, what comes."""
    columns: dict[str, list] = {}
    shape = None
    for row in architectures(bench):
        if row["shape"] != shape:  # the programs of earlier shapes would fill the memory
            bench.forget()
            shape = row["shape"]
        world = bench.other_words(row["texts"])
        seeds = list(range(FRESH, FRESH + SEEDS)) if bench.kind == "full" else bench.seeds[:SEEDS]
        models = bench.pretrain([(world, seed) for seed in seeds], recipe=row["recipe"])
        held_out = bench.held_out(world, row["recipe"])
        for one, done, forecasts in zip(models, *measured(bench, models), strict=True):
            values = {
                "shape": row["shape"],
                "half": row["half"],
                "excess": held_out.excess(one.params),
                "captured": held_out.captured(one.params),
                "log size": np.log(transformer.count(one.params)),
                "persona": inferred(one.world, done),
                "spread": mean_over(np.array([each.spread() for each in done]), 0),
                "spread of code:bad": done[0].spread(),
                **{name: np.mean(x) for name, x in forecasts.items()},
                "two steps, code:bad": forecasts["two steps"][0],
            }
            for name, value in values.items():
                columns.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in columns.items()}


def architectures(bench: Bench) -> list[dict]:
    """The rows of the list, with the recipe of each; a quick run has one of each half."""
    if bench.quick:  # of the usual shape, so that nothing more is compiled
        usual = bench.programs.usual
        longer = dataclasses.replace(usual, steps=3 * usual.steps // 2)
        row = {"shape": "0", "texts": "own", "recipe": usual, "half": "fitted"}
        return [row, row | {"shape": "1", "recipe": longer, "half": "held out"}]
    with LIST.open(newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = {field.name: type(field.default) for field in dataclasses.fields(Recipe)}
    for row in rows:
        row["recipe"] = Recipe(rows=0, **{k: kinds[k](x) for k, x in row.items() if k in kinds})
    return rows


def measured(bench: Bench, models: list[Model]) -> tuple[list[list[Trained]], list[dict]]:
    """Of each model: every moral signal trained, and the spread that is forecast of each."""
    signals = [moral_signals(one.world) for one in models]
    arms = [Arm(one, name) for one, names in zip(models, signals, strict=True) for name in names]
    trained = iter(bench.train(arms))
    done = [list(islice(trained, len(names))) for names in signals]
    return done, [forecast_spreads(bench, *each) for each in zip(models, signals, strict=True)]


def forecast_spreads(
    bench: Bench, one: Model, signals: tuple[str, ...], **how
) -> dict[str, list[float]]:
    """The spread of each signal, by every forecast; how: see `Forecaster`."""
    forecasts = bench.forecasts(one, [parse(one.world, name) for name in signals], **how)
    return {
        name: [spread(getattr(f, key), untrained(one.world, f.signal)) for f in forecasts]
        for name, key in FORECASTS.items()
    }


def inferred(world: World, done: list[Trained]) -> float:
    """The mean spread that persona inference predicts, from the model's EM before training."""
    spreads = []
    for each_done in done:
        name, before_D = each_done.arm.signal, em(each_done.p_nDB[0])
        domain = parse(world, name).domains[0]
        prior_D = persona.mixture_em(world, world.assistant_C)
        goal = logit(prior_D[domain]) + logit(MATCHED) - logit(before_D[domain])
        w_C = persona.trained_to(world, world.assistant_C, domain, goal)
        spreads.append(spread(persona.mixture_em(world, w_C) - prior_D, untrained(world, name)))
    return float(np.mean(spreads))


def centred(table: dict, x: np.ndarray, y: np.ndarray, rows: np.ndarray) -> float:
    """R² of a line in x on held-out rows; the line and the mean come from the fitted rows."""
    rows = rows & np.isfinite(np.column_stack([x, y])).all(1)
    fitted, held_out = (rows & (table["half"] == half) for half in HALVES)
    if not (fitted.any() and held_out.any()):
        return np.nan
    design = np.column_stack([np.ones(len(y)), x])
    line = np.linalg.lstsq(design[fitted], y[fitted], rcond=None)[0]
    error, spread_ = y - design @ line, y - y[fitted].mean()
    return float(1 - (error[held_out] ** 2).sum() / max(1e-12, (spread_[held_out] ** 2).sum()))


def raw(x: np.ndarray, y: np.ndarray) -> float:
    """R² of x itself, with nothing fitted."""
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    return float(1 - ((y - x) ** 2).sum() / max(1e-12, ((y - y.mean()) ** 2).sum()))


def of_shapes(table: dict, values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The mean of each held-out shape; NaN where none of its models counts."""
    shapes = np.unique(table["shape"][table["half"] == "held out"])
    rows = [where & (table["shape"] == shape) for shape in shapes]
    return np.array([values[r].mean() if r.any() else np.nan for r in rows])


def chance(table: dict, where: np.ndarray) -> dict[str, list[float]]:
    """What R² the forecast has by chance (permuted), and in resamples of all shapes (bootstrap)."""
    rng, x, y = np.random.default_rng(0), table["two steps"], table["spread"]
    known = np.flatnonzero(where)
    shuffled = []
    for _ in range(DRAWS):
        permuted = x.copy()
        permuted[known] = x[rng.permutation(known)]
        shuffled.append(centred(table, permuted, y, where))
    halves, drawn = [np.unique(table["shape"][table["half"] == half]) for half in HALVES], []
    for _ in range(DRAWS):
        picked = [shape for shapes in halves for shape in rng.choice(shapes, len(shapes))]
        rows = np.concatenate([np.flatnonzero(table["shape"] == s) for s in picked])
        again = {name: column[rows] for name, column in table.items()}
        drawn.append(centred(again, x[rows], y[rows], where[rows]))
    return {
        "R² by chance, 95th percentile of permutations": [np.quantile(shuffled, 0.95)],
        "R² of the forecast, 2.5th percentile of the bootstrap": [np.quantile(drawn, 0.025)],
        "R² of the forecast, 97.5th percentile of the bootstrap": [np.quantile(drawn, 0.975)],
    }
