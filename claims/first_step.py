"""Persona inference predicts the matrix better than the model's own gradients do.

Claimed: if training selects characters, an account that knows the characters and nothing of the
network predicts the matrix better than the first step of training in that very network.

Arms: as in `accounts`: every moral `D:bad` from the pretrained model, in random worlds.
Measures: shared R² of the matrix by persona inference, minus that by the model's own gradients
before training (the first step of Adam, linearly: `ratio_D` of toyllm/posttrain/forecast.py).

Supported if the difference is > 0 at the matched effect and after equal training.
"""

from claims.accounts import gaps
from claims.general import HOW, random_models, scores
from claims.lab.bench import Bench
from claims.lab.panels import dots
from claims.lab.quantities import Outcome, each

NUMBER = "5d"
UNITS = 32  # the pilot asks for 27


def test(bench: Bench) -> Outcome:
    models = random_models(bench)
    ahead = {how: gaps(scores(bench, models, how))["gradient"] for how in HOW}
    quantities = each(
        "shared R², persona minus the model's gradients, {}", ahead, low=0, margin=0.35
    )
    return Outcome(quantities, [dots("Persona inference minus gradients", "R²", ahead)])
