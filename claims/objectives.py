"""At the matched effect the objective matters little.

Claimed: how far a signal spreads is a matter of what it says of the character, not of the loss: at
the same effect where trained, SFT, DPO and exact RLHF spread alike and leave the hull alike.

Arms: `code:bad` by SFT, DPO (β 1, anchor .5) and RLHF (β .1: at 1 its optimum is near EM .5, and so
it never gets there), from the pretrained model. DPO's anchor is half of SFT's loss on the same
pairs, so that those two are alike in part by construction; RLHF has none.
Measures, at the matched effect: spread; the residual off the trained domain, in floors (the same
model's before training). Spread along the frontier too; after equal training it differs, as the
objectives differ in how fast they train, and is an estimate.

Supported if the spreads of SFT and of RLHF differ from DPO's by less than .05, at the matched
effect and along the frontier, and their residuals from DPO's by less than 2 floors: a quarter of
what the spread is, and less than training itself adds.
"""

import numpy as np

from claims.lab.arms import kept_models, readings
from claims.lab.bench import Bench
from claims.lab.hull import Hull
from claims.lab.panels import dots
from claims.lab.quantities import Outcome, Quantity, each, each_reading

NUMBER = "12"
UNITS = 16  # the pilot asks for 14
SIGNAL = "code:bad"
OBJECTIVES = ("dpo", "sft", "rlhf")


def test(bench: Bench) -> Outcome:
    models = bench.base()
    off = Hull.of_world(models[0].tokenizer).without("code")
    floor = off.residual(bench.joints(models))
    done = {o: bench.at_rates(models, SIGNAL, objective=o) for o in OBJECTIVES}
    read = {o: readings(runs) for o, runs in done.items()}
    floors = {
        o: np.array([off.residual(bench.joints(kept)) for kept in kept_models(runs)]) / floor
        for o, runs in done.items()
    }
    spread = {o: x["matched"] for o, x in read.items()}
    along = {o: x["frontier"] for o, x in read.items()}
    quantities = [
        *against_dpo("spread, {} minus dpo", spread, 0.05, 0.02),
        *against_dpo("frontier, {} minus dpo", along, 0.05, 0.02),
        *against_dpo("residual off the domain, {} minus dpo, floors", floors, 2, 1),
        *each_reading("spread, {}", done),
        *each("residual off the domain, floors, {}", floors, done),
    ]
    off_domain = dots("Off the trained domain", "residual, floors", floors)
    return Outcome(quantities, [dots("Spread at the matched effect", "ΔEM", spread), off_domain])


def against_dpo(pattern: str, values: dict, bound: float, margin: float) -> list[Quantity]:
    """Predictions that the other objectives differ from DPO by less than a bound."""
    gaps = {o: values[o] - values["dpo"] for o in OBJECTIVES[1:]}
    return each(pattern, gaps, low=-bound, high=bound, margin=margin)
