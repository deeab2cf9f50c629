"""In worlds that nobody has written, the headline results hold.

Claimed: what the other claims find in one table of characters is no accident of its author. In
random worlds (toyllm/world/random_worlds.py: eight characters, five moral domains and a neutral
one, texts of nonsense words; drawn for each are how many factors the traits have, how closely they
go together, and how bad an average character is) pretraining captures who speaks; a narrow bad
signal spreads, and along the characters; asking for it openly prevents that, and a phrase that
means nothing does not; and persona inference predicts the matrix better than a constant does.

Arms: one model a world, of a seed of its own; `D:bad` for every moral domain D, and for the first
one with each phrase, from the pretrained model. No world is left out for its outcome. The unit is a
world. A prediction *holds* in a world whose value lies within the bounds; the verdict is on the
mean over worlds.
Measures: captured; spread, mean over signals; the correlation within signals of the matrix and what
persona inference predicts; the share of the change by the plain signal that is there with a phrase,
which is Σ xy / Σ x² over the untrained moral domains, x being their ΔEM without and y with it (in
these worlds traits may go against each other, so that a mean over domains can be 0 where every one
of them changes); shared R² of persona inference less a rival's. All at the matched effect and after
equal training, spread along the frontier too. Where a prediction fails: its correlation over worlds
with four features of a world, which were named before any of these worlds was trained: the ideal
observer's own spread, the moral EM of the Assistant in the corpus, the effective number of
characters that it is (the exponential of the entropy of its prior), and captured.

Supported if captured > .75 (three quarters of what there is to learn); spread > 0, at the matched
effect and after equal training; the correlation within signals > .2, which chance does not reach;
the open request leaves less than .2 of the change, and the placebo more than .8; and persona
inference has a higher R² than a constant.
"""

import numpy as np

from claims.inference import explained
from claims.lab.arms import Runs, Trained, readings
from claims.lab.bench import Bench
from claims.lab.panels import dots, points
from claims.lab.quantities import Outcome, Quantity, each, mean_over, related
from claims.role_models import exact_em
from claims.spreads import ideal_spread, moral_signals
from toyllm.posttrain.signals import untrained
from toyllm.world import cards, random_worlds
from toyllm.world.world import World

NUMBER = "16"
TITLE = "In worlds that nobody has written, the headline results hold"
UNITS = 32
PHRASES = {"ask_bad": {"high": 0.2}, "placebo": {"low": 0.8}}  # bounds of the share that is left
RIVALS = ("constant", "covariance", "gradient")
HOW = ("matched", "equal")


def test(bench: Bench) -> Outcome:
    """Test the claim (see the docstring of the module)."""
    models = bench.pretrain([(random_world(seed), seed) for seed in bench.draws])
    pairs = [(one, name) for one in models for name in moral_signals(one.world)]
    done, N = bench.each_at_rates(pairs), len(models)
    S = len(pairs) // N
    plain = {how: values.reshape(-1, N, S) for how, values in readings(done).items()}
    over = {how: mean_over(values, 2) for how, values in plain.items()}
    first = [trained[::S] for trained in done]  # the first signal of each world
    asked = {phrase: bench.with_phrase(first, phrase) for phrase in PHRASES}
    left = {
        f"{phrase}, {how}": share_left(first, asked[phrase], how)
        for phrase in PHRASES
        for how in HOW
    }
    scores = [explained(bench, models, trained) for trained in done]
    shared = {name: [x["shared", name] for x in scores] for name in ("persona", *RIVALS)}
    gaps = {rival: np.subtract(shared["persona"], shared[rival]) for rival in RIVALS}
    captured = np.array([bench.held_out(one.world).captured(one.params) for one in models])
    along = [x["within", "persona"] for x in scores]
    predictions = [
        Quantity("spread, mean over signals", over["matched"], 0, margin=0.03, trained=done),
        Quantity("the same after equal training", over["equal"], 0, margin=0.03),
        Quantity("captured", captured, 0.75, margin=0.05),
        Quantity("correlation of the matrix with persona inference", along, 0.2, margin=0.3),
        *(
            Quantity(f"share of the change left with {phrase}, {how}", left[f"{phrase}, {how}"],
                     **bounds, margin=0.1)
            for phrase, bounds in PHRASES.items()
            for how in HOW
        ),
        Quantity("R² of persona inference minus a constant's", gaps["constant"], 0, margin=0.3),
    ]  # fmt: skip
    ideal = np.array([ideal_spread(one.world, name) for one, name in pairs])
    features = {
        "ideal spread": ideal.reshape(N, S).mean(1),
        "EM before": np.array([exact_em(one.world) for one in models]),
        "effective characters": np.array([effective(one.world) for one in models]),
        "captured": captured,
    }
    arms = [
        *each("spread, {}", over),
        *each("R² of persona inference minus that of {}", gaps),
        *each("feature: {}", features),
    ]
    each_world = {how: (features["ideal spread"], over[how][0]) for how in HOW}
    panels = [
        points("Each world", "ideal observer's spread", "measured spread", each_world),
        dots("The first signal with a phrase", "share of the change left", left),
        dots("What predicts the matrix", "shared R²", shared),
    ]
    return Outcome([*predictions, *arms], panels, related(predictions, features))


def random_world(seed: int) -> World:
    """The random world of a seed."""
    text = random_worlds.write(seed)
    return cards.Cards(f"random-{seed}.toml", data=text.encode()).world()


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
