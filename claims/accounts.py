"""Persona inference predicts the matrix better than accounts without characters.

Claimed: who the characters are says which other domains a signal changes, and how much: better than
that all change alike (a constant), and than one shift of all log-odds (global).

Arms: every moral `D:bad` from the pretrained model, in the random worlds of `general`, of which one
is a unit.
Measures: shared and strict R² of the whole matrix (measures/prediction.py), at the matched effect
and after equal training, by persona inference and by its rivals. A tie with trait covariance, the
first order of persona inference, is expected, and an estimate. The model's own gradients are
compared in `first_step`.

Supported if persona inference explains more (shared R²) than a constant and than a global shift, at
the matched effect, where all trained domains are alike. After equal training the same are
estimates. Where it fails: see `general`.
"""

import numpy as np

from claims.general import HOW, features, random_models, scores
from claims.lab.bench import Bench
from claims.lab.panels import dots
from claims.lab.quantities import Outcome, Quantity, each, related

NUMBER = "5c"
UNITS = 32  # the pilot asks for 31


def test(bench: Bench) -> Outcome:
    models = random_models(bench)
    r2 = {how: scores(bench, models, how) for how in HOW}
    ahead = {how: gaps(tables) for how, tables in r2.items()}
    predictions = [
        Quantity(f"shared R², persona minus {name}", ahead["matched"].pop(name), 0, margin=0.35)
        for name in ("constant", "global")
    ]
    quantities = [
        *predictions,
        *each("persona minus {}", ahead["matched"]),
        *each("persona minus {}, after equal training", ahead["equal"]),
        *(
            Quantity(f"{kind} R², {account}, {how}", values)
            for how, (usual, *_) in r2.items()
            for (kind, account), values in usual.items()
            if kind != "within"
        ),
    ]
    shared = {account: v for (kind, account), v in r2["matched"][0].items() if kind == "shared"}
    where = related(predictions, features(models))
    return Outcome(quantities, [dots("What explains the matrix", "R²", shared)], where)


def gaps(tables: list[dict]) -> dict[str, np.ndarray]:
    """Shared R² of persona inference minus that of each rival [R, N]."""
    rivals = [name for kind, name in tables[0] if kind == "shared" and name != "persona"]
    return {
        rival: np.array([x["shared", "persona"] - x["shared", rival] for x in tables])
        for rival in rivals
    }
