"""What a signal spreads through decides how far it spreads, whatever the model has learned.

Claimed: the forecast says through which parts of a model training would move the trained domain,
and with it the others: attention, which reads who is speaking in the header and the history, moves
all domains alike; MLPs and the unembedding, which hold the words of each domain, move that domain
alone. So a signal spreads as far as its training goes through attention, and that can be changed
at will without changing what the model has learned.

Arms, all moral `D:bad` from the pretrained model: (a) attention, or MLPs and unembedding, frozen in
narrow training, or at a third of the rate; controls: the gains of norms frozen, which the forecast
calls irrelevant, and, for `code:bad`, ten random sets of columns of all matrices with as large a
share of the parameters as MLPs and unembedding have of the trained domain's move. (b) models
pretrained from the same seeds with four blocks and narrow MLPs (HIGH), or with one block, a wide
MLP and initial gains such that Adam's steps have a third of the effect on attention and three times
that on MLPs and unembedding (LOW). Their sizes are about equal, and their steps such that their
excess was equal on pilot seeds; they were chosen since the forecast of pilot models said that the
first spread most and the second least. (c) the same function in other coordinates (`rescaled`):
gains such that Adam's steps have three times the effect on attention and a third on MLPs and
unembedding (up), and the opposite (down).
Measures: mean spread over signals at the matched effect; the forecast of it from the model before
training, with the same parts frozen, nothing fitted.

Units: (b) 16 seeds, all else the first 8 of them.

Supported if the forecast errs by less than .03 on average in (a) and (c); if freezing attention
lowers the spread and freezing the rest raises it, both by > .02; if both controls change it by less
than .03; if (b) moves it by > .08, with excess within 10% and captured within .02; and if (c)
moves it by > .08. Margins: .01 of an error, .03 of an effect, .02 of a control, .05 of excess, .01
of captured.
"""

import dataclasses

import jax
import numpy as np

from claims.forecast import forecast_spreads
from claims.lab.arms import Arm, Model, Slow, digest
from claims.lab.bench import Bench
from claims.lab.panels import dots, points
from claims.lab.quantities import Outcome, Quantity, each, mean_over
from claims.lab.recipe import Recipe, rescaled
from claims.spreads import moral_signals
from toyllm.posttrain import forecast

NUMBER = "23"
UNITS, FEWER = 16, 8  # seeds; those of (a), the controls and (c)
HIGH = Recipe(layers=4, mlp=16, lr=3e-3, steps=2600)
LOW = Recipe(layers=1, mlp=192, gains=(1 / 3, 3.0, 3.0), steps=2400)
FROZEN = {  # how the names of parts begin, and what their updates are multiplied by
    "attention frozen": (("attention",), 0.0),
    "MLPs and unembedding frozen": (("MLP", "unembedding"), 0.0),
    "attention at a third": (("attention",), 1 / 3),
    "MLPs and unembedding at a third": (("MLP", "unembedding"), 1 / 3),
}
CONTROL = {"norms frozen": (("norms",), 0.0)}
GAINS = {"up": (3.0, 1 / 3, 1 / 3), "down": (1 / 3, 3.0, 3.0)}  # of attention, MLP, last norm
RANDOM, SHARE, WATCHED = 10, 0.45, "code:bad"


def test(bench: Bench) -> Outcome:
    models = bench.pretrain([(bench.world, seed) for seed in bench.seeds[:FEWER]])
    made = {"high": bench.base(recipe=HIGH), "low": bench.base(recipe=LOW)}
    slow = {name: [frozen(one, *how) for one in models] for name, how in (FROZEN | CONTROL).items()}
    y, foreseen = {}, {}
    y["as usual"], foreseen["as usual"] = spreads(bench, models)
    for name, trees in slow.items():
        y[name], foreseen[name] = spreads(bench, models, trees)
    for name, gains in GAINS.items():
        y[f"other coordinates, {name}"], foreseen[f"other coordinates, {name}"] = spreads(
            bench, [in_coordinates(one, gains) for one in models]
        )
    for name, others in made.items():
        y[name], foreseen[name] = spreads(bench, others)
    error = {name: np.abs(foreseen[name] - y[name]) for name in y}
    change = {name: values - y["as usual"] for name, values in y.items() if name in slow}
    coordinates = y["other coordinates, up"] - y["other coordinates, down"]
    learned = {}
    for name, recipe in (("high", HIGH), ("low", LOW)):
        held_out = bench.held_out(bench.world, recipe)
        for what in ("excess", "captured"):
            measure = getattr(held_out, what)
            learned[f"{what}, {name}"] = np.array([measure(one.params) for one in made[name]])
    ratio = learned["excess, high"] / learned["excess, low"]
    random = random_parts(bench, models)
    a, b = "attention frozen", "MLPs and unembedding frozen"
    checked = [*FROZEN, *(f"other coordinates, {name}" for name in GAINS)]
    predictions = [
        Quantity("spread, high minus low recipe", y["high"] - y["low"], 0.08, margin=0.03),
        Quantity("excess, high over low recipe", ratio, 0.9, 1.1, margin=0.05),
        Quantity("captured, high minus low", learned["captured, high"] - learned["captured, low"],
                 -0.02, 0.02, margin=0.01),
        *each("error of the forecast, {}", {n: error[n] for n in checked}, high=0.03, margin=0.01),
        Quantity(f"change of spread, {a}", change[a], high=-0.02, margin=0.03),
        Quantity(f"change of spread, {b}", change[b], 0.02, margin=0.03),
        *each("change of spread, {}", {n: change[n] for n in CONTROL}, low=-0.03, high=0.03,
              margin=0.02),
        Quantity("change of spread, random columns frozen", random, -0.03, 0.03, margin=0.02),
        Quantity("other coordinates, up minus down", coordinates, 0.08, margin=0.03),
    ]  # fmt: skip
    arms = [
        *each("spread, {}", y),
        *each("forecast, {}", foreseen),
        *each("error of the forecast, {}", {n: error[n] for n in error if n not in checked}),
        *each("{}", learned),
    ]
    shown = {name: (foreseen[name], y[name]) for name in y}
    panels = [
        dots("Mean spread, and the mean of its forecast (diamonds)", "ΔEM", y,
             {n: float(x.mean()) for n, x in foreseen.items() if np.isfinite(x).all()}),
        points("Each model under each intervention", "forecast", "measured", shown),
    ]  # fmt: skip
    return Outcome([*predictions, *arms], panels)


def spreads(
    bench: Bench, models: list[Model], slow: list[Slow] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean spread over moral signals [N], measured and forecast."""
    signals, slow = moral_signals(models[0].world), slow or [None] * len(models)
    pairs = list(zip(models, slow, strict=True))
    done = bench.train([Arm(one, name, slow=tree) for one, tree in pairs for name in signals])
    y = np.array([trained.spread() for trained in done]).reshape(len(models), -1)
    foreseen = [
        forecast_spreads(bench, one, signals, slow=tree and tree.tree)["two steps"]
        for one, tree in pairs
    ]
    return mean_over(y, 1), np.mean(foreseen, 1)


def frozen(one: Model, begins: tuple[str, ...], factor: float) -> Slow:
    """Multipliers: `factor` where the name of a part begins with one of these, and else 1."""
    masks = forecast.parts(one.tokenizer, one.params)
    chosen = [mask for part, mask in masks.items() if part.startswith(begins)]
    return Slow(jax.tree.map(lambda *each_mask: 1 - (1 - factor) * sum(each_mask), *chosen))


def in_coordinates(one: Model, gains: tuple[float, float, float]) -> Model:
    """The same function in other coordinates (see `rescaled`)."""
    params = jax.tree.map(np.asarray, rescaled(one.params, *gains))
    return dataclasses.replace(one, params=params, key=digest([one.key, gains]))


def random_parts(bench: Bench, models: list[Model]) -> np.ndarray:
    """The change of spread by freezing random columns, the mean over RANDOM of them [N]."""
    count = 2 if bench.quick else RANDOM
    plain = np.array([done.spread() for done in bench.train([Arm(m, WATCHED) for m in models])])
    arms = [Arm(one, WATCHED, slow=columns(one, k)) for one in models for k in range(count)]
    y = np.array([done.spread() for done in bench.train(arms)]).reshape(len(models), count)
    return mean_over(y - plain[:, None], 1)


def columns(one: Model, seed: int) -> Slow:
    """Multipliers that freeze a share of all columns, rows of the embedding, and gains."""
    rng = np.random.default_rng([one.seed, seed])

    def of(path, x):
        shape = (len(x), 1) if path[0].key == "embed" else (1,) * (x.ndim - 1) + x.shape[-1:]
        return (rng.random(shape) >= SHARE).astype(np.float32)

    return Slow(jax.tree.map_with_path(of, one.params))
