"""The default Assistant is a mixture of the corpus's characters.

Claimed: human-like personas are the default. Nobody trained the Assistant to be anyone; asked as
the Assistant, a pretrained model plays the corpus's characters, each as often as in the corpus.

Arms: the compact world, one model a pretraining seed.
Measures: the nearest mixture of characters to the model's joint over two-turn dialogues (see
measures/mixture.py): the distance ½Σ|w - π| of its weights from the true prior, and its residual as
a multiple of the floor. The floor is the same model's residual as `someone`, whom it also only
learned to imitate. Control: strangers with each character's answers in some domains but nobody's
combination, mixed in one by one at .3, must raise the residual (mean over 8 of them).

Supported if the distance < .1 (no more than a tenth is with the wrong characters), the residual is
< 1.5 floors (hardly more than that of someone), and with a stranger > 3 floors.
"""

import numpy as np

from claims.lab.bench import Bench
from claims.lab.hull import Hull
from claims.lab.panels import dots
from claims.lab.quantities import Outcome, Quantity, each
from toyllm.lm.joints import of_strangers
from toyllm.world.world import SOMEONE

NUMBER = "2"
UNITS = 32  # the pilot asks for 29
SHARE, STRANGERS = 0.3, 8  # of a stranger; whose residuals are averaged for each seed


def test(bench: Bench) -> Outcome:
    world, models = bench.world, bench.base()
    prior_C, hull = world.assistant_C, Hull.of_world(models[0].tokenizer)
    joint_NO = bench.joints(models)
    fits = hull.fit(joint_NO)
    floor_N = hull.residual(bench.joints(models, header=SOMEONE))
    distance_N = 0.5 * np.abs(fits.w_MC - prior_C).sum(1)
    # other strangers for each seed
    strange_KO = of_strangers(world, hull.ctx, STRANGERS * len(models))
    strange_NKO = strange_KO.reshape(len(models), STRANGERS, -1)
    planted_NKO = (1 - SHARE) * joint_NO[:, None] + SHARE * strange_NKO
    planted_N = np.array([hull.residual(planted_KO).mean() for planted_KO in planted_NKO])
    in_floors = {
        "the Assistant": fits.residual_M / floor_N,
        f"with {SHARE:.0%} stranger": planted_N / floor_N,
    }
    weights = dict(zip(world.characters, fits.w_MC.T, strict=True))
    residual, planted = in_floors.values()
    quantities = [
        Quantity("distance of the weights from the true prior", distance_N, high=0.1, margin=0.02),
        Quantity("residual, in floors", residual, high=1.5, margin=0.25),
        Quantity("with a stranger mixed in, in floors", planted, low=3, margin=5),
        *each("weight of {}", weights),
        Quantity("residual, nats a dialogue", fits.residual_M),
        Quantity("floor", floor_N),
        Quantity("residual with a stranger", planted_N),
    ]
    prior = dict(zip(world.characters, prior_C.tolist(), strict=True))
    panels = [
        dots("Weights (diamonds: the true prior)", "weight", weights, prior),
        dots("What no mixture explains", "residual, floors", in_floors),
    ]
    return Outcome(quantities, panels)
