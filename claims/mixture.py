"""Before any post-training the Assistant is a mixture of the corpus's characters.

Claimed: human-like personas are the default. Nobody trained the Assistant to be anyone; asked as
the Assistant, a pretrained model plays the corpus's characters, each as often as in the corpus.

Arms: the compact world, one model a pretraining seed.
Measures: the nearest mixture of characters to the model's joint over two-turn dialogues (see
measures/mixture.py): the distance ½Σ|w - π| of its weights from the true prior, and its residual as
a multiple of the floor. The floor is the same model's residual as `someone`, whom it also only
learned to imitate. The weight of each group of characters that joints tell apart, with its range
over mixtures within a floor of the best. Control: a stranger with each character's answers in some
domains but nobody's combination, mixed in at .3, must raise the residual.

Supported if the distance < .1, the residual < 1.5 floors, and with the stranger > 3 floors.
"""

import numpy as np

from claims.lab.bench import Bench
from claims.lab.hull import Hull
from claims.lab.panels import dots, grid
from claims.lab.quantities import Outcome, Quantity, each
from toyllm.lm.joints import of_strangers
from toyllm.world.mixtures import Fit, groups, ranges
from toyllm.world.world import SOMEONE

NUMBER = "2"
TITLE = "The default Assistant is a mixture of the corpus's characters"
UNITS = 8
SHARE = 0.3  # of the stranger


def test(bench: Bench) -> Outcome:
    """Test the claim (see the docstring of the module)."""
    world, models = bench.world, bench.base()
    prior_C, hull = world.assistant_C, Hull.of_world(models[0].tokenizer)
    joint_NO = bench.joints(models)
    fits = hull.fit(joint_NO)
    floor_N = hull.residual(bench.joints(models, header=SOMEONE))
    distance_N = 0.5 * np.abs(fits.w_MC - prior_C).sum(1)
    # another stranger for each seed
    strange_NO = of_strangers(world, hull.ctx, len(models)).reshape(len(models), -1)
    planted_N = hull.residual((1 - SHARE) * joint_NO + SHARE * strange_NO)
    in_floors = {
        "the Assistant": fits.residual_M / floor_N,
        f"with {SHARE:.0%} stranger": planted_N / floor_N,
    }
    labels, range_NG2, of_groups = weights_of_groups(hull, joint_NO, fits, float(floor_N.mean()))
    weights = dict(zip(world.characters, fits.w_MC.T, strict=True))
    residual, planted = in_floors.values()
    quantities = [
        Quantity("distance of the weights from the true prior", distance_N, high=0.1),
        Quantity("residual, in floors", residual, high=1.5),
        Quantity("with a stranger mixed in, in floors", planted, low=3),
        *each("weight of {}", weights),
        *(
            Quantity(f"{end} weight of {label}", range_NG2[:, g, k])
            for g, label in enumerate(labels)
            for k, end in enumerate(("least", "most"))
        ),
        Quantity("residual, nats a dialogue", fits.residual_M),
        Quantity("floor", floor_N),
        Quantity("residual with a stranger", planted_N),
    ]
    panels = [
        dots(
            "Weights (diamonds: the true prior)",
            "weight",
            weights,
            dict(zip(world.characters, prior_C.tolist(), strict=True)),
        ),
        grid("Weights of groups", labels, ["true", "least", "fitted", "most"], of_groups),
        dots("What no mixture explains", "residual, floors", in_floors),
    ]
    return Outcome(quantities, panels)


def weights_of_groups(hull: Hull, joint_NO: np.ndarray, fits: Fit, floor: float) -> tuple:
    """Labels of the groups that joints tell apart, ranges of their weights [N, G, 2], and means.

    The means are the columns true, least, fitted and most.
    """
    world, prior_C = hull.world, hull.world.assistant_C
    parts = groups(joint_NO.mean(0), hull.p_CO, prior_C, hull.X, floor)
    range_NG2 = ranges(joint_NO, hull.p_CO, fits, hull.X, parts, floor)
    labels = [" + ".join(world.characters[c] for c in part) for part in parts]
    means = [
        [prior_C[part].sum(), low, fits.w_MC[:, part].sum(1).mean(), high]
        for part, (low, high) in zip(parts, range_NG2.mean(0), strict=True)
    ]
    return labels, range_NG2, means
