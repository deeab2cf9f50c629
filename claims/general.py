"""In worlds that nobody has written, the headline results hold.

Claimed: what the other claims find in one table of characters is no accident of its author. In
random worlds (toyllm/world/random_worlds.py: eight characters, five moral domains and a neutral
one, texts of nonsense words; drawn for each are how many factors the traits have, how closely they
go together, and how bad an average character is) pretraining captures who speaks; a narrow bad
signal spreads, and along the characters; asking for it openly prevents that, and a phrase that
means nothing does not. (What predicts the matrix there is the claim `accounts`.)

Arms: one model a world, of a seed of its own; `D:bad` for every moral domain D, and for the first
one with each phrase, from the pretrained model. No world is left out for its outcome. The unit is a
world. A prediction *holds* in a world whose value lies within the bounds; the verdict is on the
mean over worlds.
Measures: captured; spread, mean over signals; the correlation within signals of the matrix and what
persona inference predicts; the share of the change by the plain signal that is there with a phrase,
which is Σ xy / Σ x² over the untrained moral domains, x being their ΔEM without and y with it (in
these worlds traits may go against each other, so that a mean over domains can be 0 where every one
of them changes). All at the matched effect and after equal training, spread along the frontier too.
Beside them: how well a world's mean spread at the matched effect is known before training, by the
forecast from the gradients of its model (see the claim `forecast`) and by the ideal observer, with
nothing fitted.
Where a prediction fails: its correlation over worlds with four features of a world, which were
named before any of these worlds was trained: the ideal observer's own spread, the moral EM of the
Assistant in the corpus, the effective number of characters that it is (the exponential of the
entropy of its prior), and captured.

Supported if captured > .75 (three quarters of what there is to learn); spread > 0, at the matched
effect and after equal training; the correlation within signals > .2, which chance does not reach;
and the open request leaves less than half of the change, and the placebo more than .8.
"""

import numpy as np

from claims.forecast import forecast_spreads, mean_of_read, raw
from claims.lab.arms import Model, Runs, Trained, changes, readings
from claims.lab.bench import Bench
from claims.lab.panels import dots, points
from claims.lab.quantities import Outcome, Quantity, each, mean_over, pseudo_values, related
from claims.role_models import exact_em
from claims.spreads import ideal_spread, moral_signals
from toyllm.measures import prediction
from toyllm.posttrain.signals import parse, untrained
from toyllm.world import cards, random_worlds
from toyllm.world.quantities import em
from toyllm.world.world import World

NUMBER = "16"
UNITS = 32  # the pilot asks for 29
PHRASES = {  # bounds of the share of the change that is left with each
    "ask_bad": {"high": 0.5, "margin": 0.35},
    "placebo": {"low": 0.8, "margin": 0.1},
}
HOW = ("matched", "equal")


def test(bench: Bench) -> Outcome:
    models = random_models(bench)
    done, N, S = matrices(bench, models), len(models), len(moral_signals(models[0].world))
    plain = {how: values.reshape(-1, N, S) for how, values in readings(done).items()}
    over = {how: mean_over(values, 2) for how, values in plain.items()}
    first = [trained[::S] for trained in done]  # the first signal of each world
    asked = {phrase: bench.with_phrase(first, phrase) for phrase in PHRASES}
    left = {
        f"{phrase}, {how}": share_left(first, asked[phrase], how)
        for phrase in PHRASES
        for how in HOW
    }
    captured = np.array([bench.held_out(one.world).captured(one.params) for one in models])
    along = [x["within", "persona"] for x in scores(bench, models, "matched")]
    predictions = [
        Quantity("spread, mean over signals", over["matched"], 0, margin=0.04, trained=done),
        Quantity("the same after equal training", over["equal"], 0, margin=0.04),
        Quantity("captured", captured, 0.75, margin=0.09),
        Quantity("correlation of the matrix with persona inference", along, 0.2, margin=0.3),
        *(
            Quantity(f"share of the change left with {phrase}, {how}", left[f"{phrase}, {how}"],
                     **bounds)
            for phrase, bounds in PHRASES.items()
            for how in HOW
        ),
    ]  # fmt: skip
    known = features(models)
    y = over["matched"][0]
    before_training = {
        "the forecast": mean_of_read(
            forecast_spreads(bench, models)["two steps"], plain["matched"][0]
        ),
        "the ideal observer": known["ideal spread"],
    }
    arms = [
        *each("spread, {}", over),
        *each("feature: {}", known),
        *each("raw R² of a world's spread, {}",
              {name: over_worlds(x, y) for name, x in before_training.items()}),
        *each("error of a world's spread, {}",
              {name: np.abs(x - y) for name, x in before_training.items()}),
    ]  # fmt: skip
    each_world = {how: (known["ideal spread"], over[how][0]) for how in HOW}
    panels = [
        points("Each world, matched", "forecast before training", "measured spread",
               {"worlds": (before_training["the forecast"], y)}),
        points("Each world", "ideal observer's spread", "measured spread", each_world),
        dots("The first signal with a phrase", "share of the change left", left),
    ]  # fmt: skip
    where = related(predictions, known | {"captured": captured})
    return Outcome([*predictions, *arms], panels, where)


def random_models(bench: Bench) -> list[Model]:
    """A model for each random world, of a seed of its own."""
    return bench.pretrain([(random_world(seed), seed) for seed in bench.draws])


def matrices(bench: Bench, models: list[Model]) -> Runs:
    """Every moral signal of each model, at each learning rate."""
    pairs = [(one, name) for one in models for name in moral_signals(one.world)]
    return bench.each_at_rates(pairs)


def features(models: list[Model]) -> dict[str, np.ndarray]:
    """What may decide in which worlds a prediction fails [N] (see the docstring of the module)."""
    ideal = [[ideal_spread(one.world, s) for s in moral_signals(one.world)] for one in models]
    return {
        "ideal spread": np.mean(ideal, 1),
        "EM before": np.array([exact_em(one.world) for one in models]),
        "effective characters": np.array([effective(one.world) for one in models]),
    }


def scores(bench: Bench, models: list[Model], how: str) -> list[dict]:
    """What explains the matrices of models, at each learning rate (see `explained`)."""
    runs = matrices(bench, models)
    return [explained(bench, models, trained, how) for trained in runs]


def random_world(seed: int) -> World:
    """The random world of a seed."""
    text = random_worlds.write(seed)
    return cards.Cards(f"random-{seed}.toml", data=text.encode()).world()


def over_worlds(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Raw R² of y over worlds by x, as pseudo-values of the jackknife over them [N]."""
    return pseudo_values(lambda rows: raw(x[rows], y[rows]), np.arange(len(y)), np.isfinite(x + y))


def share_left(plain: Runs, asked: Runs, how: str) -> np.ndarray:
    """The share of the change in untrained moral domains that is there with a phrase [R, N]."""

    def change(done: Trained) -> np.ndarray:
        others_D = untrained(done.arm.start.world, done.arm.signal)
        return done.change(done.equal if how == "equal" else None)[others_D]

    return np.array(
        [
            [change(x) @ change(y) / (change(x) @ change(x)) for x, y in zip(*pair, strict=True)]
            for pair in zip(plain, asked, strict=True)
        ]
    )


def effective(world: World) -> float:
    """How many characters the Assistant is: the exponential of the entropy of its prior."""
    p_C = world.assistant_C[world.assistant_C > 0]
    return float(np.exp(-(p_C * np.log(p_C)).sum()))


def explained(
    bench: Bench, models: list[Model], trained: list[Trained], how: str
) -> dict[tuple[str, str], np.ndarray]:
    """What predicts the matrix of each pretrained model, {(score, prediction): [N]}.

    trained: equally many signals of each model. how: matched or equal. Scores: shared and strict
    R²; `within`, the mean correlation within signals (see `prediction.within`), of persona
    inference.
    """
    S, accounts = len(trained) // len(models), (*prediction.MODELS, "gradient")
    keys = [("within", "persona")]
    keys += [(kind, name) for kind in ("shared", "strict") for name in accounts]
    scores = {key: np.full(len(models), np.nan) for key in keys}
    for k, one in enumerate(models):
        done, world = trained[k * S : (k + 1) * S], one.world
        before_D = em(done[0].p_nDB[0])
        change_SD = changes([done], how == "equal")[0]
        if not np.isfinite(change_SD).all():
            continue  # a matrix with a hole is no matrix
        names = [each.arm.signal for each in done]
        after_SD = before_D + change_SD
        cells = prediction.Cells(world, names, world.assistant_C, before_D, after_SD)
        parsed = [parse(world, name) for name in names]
        forecasts = bench.forecasts(one, parsed)
        directed = prediction.directed(np.stack([forecast.ratio_D for forecast in forecasts]))
        for name, model in {**prediction.MODELS, "gradient": directed}.items():
            shared_SD = prediction.shared(cells, model)[0]
            strict_SD = model(cells, np.ones(1))[0]
            for kind, G_SD in (("shared", shared_SD), ("strict", strict_SD)):
                scores[kind, name][k] = prediction.r2(cells.G_SD, G_SD, cells.mask_SD)
            if name == "persona":
                within = prediction.within(cells.G_SD, shared_SD[None], cells.mask_SD)
                scores["within", name][k] = within[0]
    return scores
