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
out one shape (Tukey 1958). A model of which fewer than four of five signals come to the matched
effect with coherent answers has no y, and is not read; forecasts are averaged over the signals that
are. Beside it: the same of other forecasts, of `code:bad` alone, of a mean over all read models
without any fitted number (raw), of differences between models of the same texts, and of rivals:
excess, captured, size, EM before training, persona inference, and one shift of all log-odds.

Supported if R² > .75, for all models and for those with captured ≥ .8; if the forecast with nothing
fitted errs by less than .03 on average; and if R² exceeds by .2 that of excess, captured and size
together. Margins: .1, and .01 of an error.
"""

import csv
import dataclasses
from itertools import islice
from pathlib import Path

import numpy as np

from claims.lab.arms import Arm, Model, Slow, Trained
from claims.lab.bench import FRESH, Bench
from claims.lab.panels import dots, points
from claims.lab.quantities import Outcome, Quantity, each, mean_over, pseudo_values
from claims.lab.recipe import Recipe
from claims.spreads import moral_signals
from toyllm.lm import transformer
from toyllm.posttrain.signals import parse
from toyllm.world import persona
from toyllm.world.quantities import MATCHED, em, logit, sigmoid, spread

NUMBER = "22"
UNITS = 16  # held-out shapes
LIST = Path(__file__).with_name("architectures.csv")
SEEDS, LEARNED = 2, 0.8  # seeds of an architecture; captured of models that have learned the world
FORECASTS = {"two steps": "change", "one step": "one_step", "linear": "linear"}
HALVES = ("fitted", "held out")
BLAMED = ("excess", "captured", "log size")
RIVALS = ("log excess", "EM before", "persona inference", "one shift of all log-odds")
DRAWS = 1000  # of the bootstrap, and permutations


def test(bench: Bench) -> Outcome:
    table = population(bench)
    y, code = table["spread"], table["spread of code:bad"]
    sound = np.isfinite(y)
    held_out = np.where(table["half"] == "held out", table["shape"], "")
    learned = sound & (table["captured"] >= LEARNED)
    blamed = np.stack([table[name] for name in BLAMED], 1)

    def explained(x, where=sound, y=y) -> np.ndarray:
        counted = where & (held_out != "")
        return pseudo_values(lambda rows: centred(table, x, y, rows & where), held_out, counted)

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
    others = {name: explained(table[name]) for name in (*BLAMED, *RIVALS)}
    others |= {"excess, captured, size": explained(blamed)}
    errors = {name: np.abs(table[name] - y) for name in FORECASTS}
    errors |= {"the fitted half's mean": np.abs(mean(y, sound & (table["half"] == "fitted")) - y)}
    x, y_ = (without_texts(table, values, sound) for values in (table["two steps"], y))
    arms = [
        *each("R² of {}", {name: known[name] for name in ("one step", "linear")} | others),
        *each("R² of {}, captured ≥ .8", {n: explained(table[n], learned) for n in FORECASTS}),
        Quantity("R² of the forecast of code:bad", explained(table["two steps, code:bad"], y=code)),
        Quantity("R² of the forecast between models of the same texts", explained(x, y=y_)),
        *each("{}", chance(table, blamed, sound)),
        *each("raw R² of {}", {n: [raw(table[n], y)] for n in FORECASTS}),
        *each("error of {}", {n: of_shapes(table, values, sound) for n, values in errors.items()}),
        *each("models, {}", {
            "all": [len(y)], "read": [sound.sum()],
            f"captured ≥ {LEARNED}": [(table["captured"] >= LEARNED).sum()],
            f"captured ≥ {LEARNED} and read": [learned.sum()],
        }),
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
        done = train_signals(bench, models)
        y_NS = np.array([[one.spread() for one in runs] for runs in done])
        forecasts = forecast_spreads(bench, models)
        values = {
            "shape": [row["shape"]] * len(models),
            "half": [row["half"]] * len(models),
            "texts": [row["texts"]] * len(models),
            "excess": [held_out.excess(one.params) for one in models],
            "captured": [held_out.captured(one.params) for one in models],
            "log size": [np.log(transformer.count(one.params)) for one in models],
            "EM before": [em(runs[0].p_nDB[0])[world.moral].mean() for runs in done],
            "persona inference": [inferred(runs) for runs in done],
            "one shift of all log-odds": [shifted(runs) for runs in done],
            "spread": mean_over(y_NS, 1),
            "spread of code:bad": y_NS[:, 0],
            **{name: mean_of_read(x_NS, y_NS) for name, x_NS in forecasts.items()},
            "two steps, code:bad": forecasts["two steps"][:, 0],
        }
        for name, each_model in values.items():
            columns.setdefault(name, []).extend(each_model)
    columns["log excess"] = np.log(np.maximum(columns["excess"], 1e-6))
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


def train_signals(
    bench: Bench, models: list[Model], slow: list[Slow] | None = None, count: int | None = None
) -> list[list[Trained]]:
    """The first `count` moral signals, by default all, trained from each model [N][S]."""
    names = [moral_signals(one.world)[:count] for one in models]
    each_model = zip(models, names, slow or [None] * len(models), strict=True)
    arms = [Arm(one, name, slow=tree) for one, mine, tree in each_model for name in mine]
    trained = iter(bench.train(arms))
    return [list(islice(trained, len(mine))) for mine in names]


def forecast_spreads(
    bench: Bench, models: list[Model], slow: list[Slow] | None = None, count: int | None = None
) -> dict[str, np.ndarray]:
    """The spread of the same signals from each model [N, S], by every forecast."""
    spreads: dict[str, list] = {name: [] for name in FORECASTS}
    for one, tree in zip(models, slow or [None] * len(models), strict=True):
        chosen = [parse(one.world, name) for name in moral_signals(one.world)[:count]]
        forecasts = bench.forecasts(one, chosen, slow=tree and tree.tree)
        of_signals = [forecast.spreads(one.world) for forecast in forecasts]
        for name, key in FORECASTS.items():
            spreads[name].append([each_signal[key] for each_signal in of_signals])
    return {name: np.array(values) for name, values in spreads.items()}


def mean_of_read(x_NS: np.ndarray, y_NS: np.ndarray) -> np.ndarray:
    """The mean of x over the signals of which y was read [N]; NaN where there is none."""
    read = np.isfinite(y_NS)
    return np.where(read, x_NS, 0).sum(1) / np.where(read.any(1), read.sum(1), np.nan)


def shifted(done: list[Trained]) -> float:
    """The mean spread if all log-odds moved as far as the trained domain's must."""
    spreads = []
    for one in done:
        before_D = em(one.p_nDB[0])
        domain = parse(one.arm.start.world, one.arm.signal).domains[0]
        moved_D = logit(before_D) + logit(MATCHED) - logit(before_D[domain])
        spreads.append(spread(sigmoid(moved_D) - before_D, one.others()))
    return float(np.mean(spreads))


def inferred(done: list[Trained]) -> float:
    """The mean spread that persona inference predicts, from the model's EM before training."""
    spreads = []
    for one in done:
        world, before_D = one.arm.start.world, em(one.p_nDB[0])
        domain = parse(world, one.arm.signal).domains[0]
        prior_D = persona.mixture_em(world, world.assistant_C)
        goal = logit(prior_D[domain]) + logit(MATCHED) - logit(before_D[domain])
        w_C = persona.trained_to(world, world.assistant_C, domain, goal)
        spreads.append(spread(persona.mixture_em(world, w_C) - prior_D, one.others()))
    return float(np.mean(spreads))


def without_texts(table: dict, values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Values less their mean over the counted models of the same texts."""
    means = {t: mean(values, where & (table["texts"] == t)) for t in np.unique(table["texts"])}
    return values - np.array([means[texts] for texts in table["texts"]])


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
    if not known.any():
        return np.nan
    x, y = x[known], y[known]
    return float(1 - ((y - x) ** 2).sum() / max(1e-12, ((y - y.mean()) ** 2).sum()))


def of_shapes(table: dict, values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The mean of each held-out shape; NaN where none of its models counts."""
    shapes = np.unique(table["shape"][table["half"] == "held out"])
    return np.array([mean(values, where & (table["shape"] == shape)) for shape in shapes])


def mean(values: np.ndarray, rows: np.ndarray) -> float:
    """The mean of some rows; NaN where there is none."""
    return float(values[rows].mean()) if rows.any() else np.nan


def chance(table: dict, blamed: np.ndarray, where: np.ndarray) -> dict[str, list[float]]:
    """What R² the forecast has by chance (shapes permuted), and in resamples of all shapes.

    The resamples also draw the shapes that lines are fitted to, unlike the jackknife.
    """
    rng, x, y = np.random.default_rng(0), table["two steps"], table["spread"]
    shapes = len(np.unique(table["shape"]))
    shuffled, drawn, ahead = [], [], []
    for _ in range(DRAWS):
        permuted = rng.permutation(x.reshape(shapes, -1)).ravel()
        shuffled.append(centred(table, permuted, y, where))
    halves = [np.unique(table["shape"][table["half"] == half]) for half in HALVES]
    for _ in range(DRAWS):
        picked = [shape for names in halves for shape in rng.choice(names, len(names))]
        rows = np.concatenate([np.flatnonzero(table["shape"] == s) for s in picked])
        again = {name: column[rows] for name, column in table.items()}
        drawn.append(centred(again, x[rows], y[rows], where[rows]))
        ahead.append(drawn[-1] - centred(again, blamed[rows], y[rows], where[rows]))
    said = {"R² of the forecast": drawn, "R² minus that of excess, captured and size": ahead}
    return {
        "R² by chance, 95th percentile of permutations of shapes": [np.quantile(shuffled, 0.95)],
        **{
            f"{what}, {percent}th percentile of the bootstrap": [np.quantile(values, percent / 100)]
            for what, values in said.items()
            for percent in (2.5, 97.5)
        },
    }
