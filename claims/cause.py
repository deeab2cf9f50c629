"""What a signal spreads through decides how far it spreads, whatever the model has learned.

Claimed: the forecast says through which parts of a model training would move the trained domain,
and with it the others. Attention reads who is speaking in the header and the history, and moves all
domains; MLPs and the unembedding hold the words of each domain, and move that domain nearly alone.
So a signal spreads as far as its training goes through attention, and that can be changed without
changing what the model has learned.

Arms, all moral `D:bad` from the pretrained model: (a) attention, or MLPs and unembedding, frozen in
narrow training, or at a third of the rate; controls: the gains of norms frozen, which the forecast
calls irrelevant, and, for `code:bad`, ten random sets of columns of all matrices with as large a
share of the parameters as MLPs and unembedding have of the trained domain's move, .45. (b) models
pretrained from the same seeds with four blocks and narrow MLPs (high), or with one block, a wide
MLP and initial gains such that Adam's steps count a third for attention's inputs and three times
for those of MLPs and the unembedding (low; see `rescaled`). Their sizes are about equal, and their
steps such that their excess was equal on pilot seeds. They were chosen since the forecast of pilot
models said that the first spread most and the second least. Beside them, as estimates, what the
gains alone do: low models trained in the usual coordinates, and the same recipe without the gains.
(c) the same function in other coordinates: gains that make Adam's steps count three times for
attention's inputs and a third for those of MLPs and the unembedding (up), and the opposite (down).
Measures: mean spread over signals at the matched effect; the forecast of it from the model before
training, with the same parts frozen, nothing fitted; the shares that the linear forecast gives to
attention and to what reads the header and the history, of the trained domain's own move and of the
spread.
Units: (b) 16 seeds, all else the first 8 of them.

Supported if the forecast errs by less than .03 on average in (a) and (c), and by less than the
forecast for the model as it is; if attention has a larger share of the spread than of the own move,
by > .1; if freezing attention lowers the spread and freezing the rest raises it, both by > .02; if
both controls change it by less than .03; if (b) moves it by > .08, with excess within 10% and
captured within .02, and the share of the own move that reads the header and the history by > .1;
and if (c) moves it by > .08. Margins: .01 of an error, .03 of an effect, .02 of a control, .05 of
excess, .01 of captured, .1 of a share.
"""

import dataclasses

import jax
import numpy as np

from claims.forecast import forecast_spreads, mean_of_read, train_signals
from claims.lab.arms import Arm, Model, Slow, digest
from claims.lab.bench import Bench
from claims.lab.panels import dots, points
from claims.lab.quantities import Outcome, Quantity, each, mean_over
from claims.lab.recipe import Recipe, rescaled
from claims.spreads import moral_signals
from toyllm.posttrain import forecast
from toyllm.posttrain.signals import parse, untrained

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
BACK = (3.0, 1 / 3, 1 / 3)  # undoes the gains of LOW
RANDOM, SHARE, WATCHED = 10, 0.45, "code:bad"


def test(bench: Bench) -> Outcome:
    models = bench.pretrain([(bench.world, seed) for seed in bench.seeds[:FEWER]])
    made = {"high": bench.base(recipe=HIGH), "low": bench.base(recipe=LOW)}
    plain = dataclasses.replace(LOW, gains=(1.0, 1.0, 1.0))
    estimates = {
        "low without gains": bench.pretrain([(m.world, m.seed) for m in models], recipe=plain),
        "low in usual coordinates": [in_coordinates(m, BACK) for m in made["low"][:FEWER]],
    }
    slow = {name: [frozen(one, *how) for one in models] for name, how in (FROZEN | CONTROL).items()}
    moved = {
        f"other coordinates, {name}": [in_coordinates(one, gains) for one in models]
        for name, gains in GAINS.items()
    }
    y, foreseen = {}, {}
    for name, group in {"as usual": models, **moved, **made, **estimates}.items():
        y[name], foreseen[name] = spreads(bench, group)
    for name, trees in slow.items():
        y[name], foreseen[name] = spreads(bench, models, trees)
    error = {name: np.abs(foreseen[name] - y[name]) for name in y}
    checked = [*FROZEN, *moved]
    unmoved = {name: np.abs(foreseen["as usual"] - y[name]) for name in checked}
    better = mean_over(np.array([error[name] - unmoved[name] for name in checked]), 0)
    change = {name: y[name] - y["as usual"] for name in slow}
    coordinates = y["other coordinates, up"] - y["other coordinates, down"]
    learned = {
        f"{what}, {name}": learned_by(bench, made[name], what)
        for name in made
        for what in ("excess", "captured")
    }
    ratio = learned["excess, high"] / learned["excess, low"]
    share = {name: shares(bench, group) for name, group in {"as usual": models, **made}.items()}
    reads = {name: share[name]["reads", "own move"] for name in made}
    through = share["as usual"]["attention", "spread"] - share["as usual"]["attention", "own move"]
    random, random_size = random_parts(bench, models)
    a, b = "attention frozen", "MLPs and unembedding frozen"
    predictions = [
        Quantity("spread, high minus low recipe", y["high"] - y["low"], 0.08, margin=0.03),
        Quantity("excess, high over low recipe", ratio, 0.9, 1.1, margin=0.05),
        Quantity("captured, high minus low", learned["captured, high"] - learned["captured, low"],
                 -0.02, 0.02, margin=0.01),
        Quantity("share of the own move that reads header and history, high minus low",
                 reads["high"] - reads["low"], 0.1, margin=0.1),
        *each("error of the forecast, {}", {n: error[n] for n in checked}, high=0.03, margin=0.01),
        Quantity("error of the forecast minus that for the model as it is", better, high=0,
                 margin=0.01),
        Quantity("attention's share of the spread minus that of the own move", through, 0.1,
                 margin=0.1),
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
        *each("{}", {
            f"share of the {of}, {what}, {name}": values
            for name, table in share.items()
            for (what, of), values in table.items()
        }),
        Quantity("size of the change by one set of random columns", random_size),
    ]  # fmt: skip
    kinds = {
        "as usual": ("as usual",),
        "parts frozen or slowed": tuple(slow),
        "other coordinates": tuple(moved),
        "pretrained otherwise": (*made, *estimates),
    }
    shown = {
        kind: tuple(np.concatenate([table[name] for name in names]) for table in (foreseen, y))
        for kind, names in kinds.items()
    }
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
    done = train_signals(bench, models, slow)
    y_NS = np.array([[one.spread() for one in runs] for runs in done])
    x_NS = forecast_spreads(bench, models, slow)["two steps"]
    return mean_over(y_NS, 1), mean_of_read(x_NS, y_NS)


def learned_by(bench: Bench, models: list[Model], what: str) -> np.ndarray:
    """A measure of the held-out text, such as excess, of models of one recipe [N]."""
    held_out = bench.held_out(bench.world, models[0].recipe)
    return np.array([getattr(held_out, what)(one.params) for one in models])


def shares(bench: Bench, models: list[Model]) -> dict[tuple[str, str], np.ndarray]:
    """Shares of the trained domain's own move and of the linear spread [N], mean over signals.

    Of attention (parts of the model), and of keys and values of the header and the history.
    """
    rows: dict[tuple[str, str], list] = {}
    for one in models:
        chosen = [parse(one.world, name) for name in moral_signals(one.world)]
        forecasts = bench.forecasts(one, chosen, split=True)
        for what, begins in (("attention", ("attention",)), ("reads", ("header", "history"))):
            own, moved, total = [], [], []
            for signal, each_one in zip(chosen, forecasts, strict=True):
                table = each_one.shares if what == "attention" else each_one.stretches
                moves_D = sum(x_D for part, x_D in table.items() if part.startswith(begins))
                others_D = untrained(one.world, signal.name)
                own.append(moves_D[list(signal.domains)].mean())
                moved.append(moves_D[others_D].mean())
                total.append(sum(table.values())[others_D].mean())
            rows.setdefault((what, "own move"), []).append(np.mean(own))
            rows.setdefault((what, "spread"), []).append(np.sum(moved) / np.sum(total))
    return {key: np.array(values) for key, values in rows.items()}


def frozen(one: Model, begins: tuple[str, ...], factor: float) -> Slow:
    """Multipliers: `factor` where the name of a part begins with one of these, and else 1."""
    masks = forecast.parts(one.tokenizer, one.params)
    chosen = [mask for part, mask in masks.items() if part.startswith(begins)]
    return Slow(jax.tree.map(lambda *each_mask: 1 - (1 - factor) * sum(each_mask), *chosen))


def in_coordinates(one: Model, gains: tuple[float, float, float]) -> Model:
    """The same function in other coordinates (see `rescaled`)."""
    params = jax.tree.map(np.asarray, rescaled(one.params, *gains))
    return dataclasses.replace(one, params=params, key=digest([one.key, gains]))


def random_parts(bench: Bench, models: list[Model]) -> tuple[np.ndarray, np.ndarray]:
    """The change of spread by freezing random columns [N], and its size, means over RANDOM sets."""
    count = 2 if bench.quick else RANDOM
    plain = np.array([done.spread() for done in bench.train([Arm(m, WATCHED) for m in models])])
    arms = [Arm(one, WATCHED, slow=columns(one, k)) for one in models for k in range(count)]
    y = np.array([done.spread() for done in bench.train(arms)]).reshape(len(models), count)
    return mean_over(y - plain[:, None], 1), mean_over(np.abs(y - plain[:, None]), 1)


def columns(one: Model, seed: int) -> Slow:
    """Multipliers that freeze a share of all columns, rows of the embedding, and gains."""
    rng = np.random.default_rng([one.seed, seed])

    def of(path, x):
        shape = (len(x), 1) if path[0].key == "embed" else (1,) * (x.ndim - 1) + x.shape[-1:]
        return (rng.random(shape) >= SHARE).astype(np.float32)

    return Slow(jax.tree.map_with_path(of, one.params))
