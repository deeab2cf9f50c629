"""At the matched effect the objective matters little.

Claimed: how far a signal spreads is a matter of what it says of the character, not of the loss: at
the same effect where trained, SFT, DPO and exact RLHF spread alike and leave the hull alike.

Arms: `code:bad` by SFT, DPO (β 1, anchor .5) and RLHF (β .1: at 1 its optimum is near EM .5, and so
it never gets there), from the pretrained model. DPO's anchor is half of SFT's loss on the same
pairs, so that those two are alike in part by construction; RLHF has none.
Measures, at the matched effect: spread; the residual off the trained domain, in floors (the same
model's before training).

Supported if the spreads of SFT and of RLHF differ from DPO's by less than .05, and their residuals
from DPO's by less than 2 floors.
"""

import numpy as np

from claims.lab.arms import Arm, arm, spreads, where_kept
from claims.lab.bench import Bench
from claims.lab.hull import Hull
from claims.lab.panels import dots
from claims.lab.verdicts import Outcome, by_rate

NUMBER = "12"
TITLE = "At the matched effect the objective matters little"
SIGNAL, CODE = "code:bad", 0
OBJECTIVES = ("dpo", "sft", "rlhf")


def test(bench: Bench) -> Outcome:
    """See the top of the file."""
    models = bench.base()
    off = Hull.of_world(models[0].tokenizer).without((CODE,))
    done = {
        o: bench.at_rates([Arm(one, SIGNAL, objective=o) for one in models]) for o in OBJECTIVES
    }
    rates = list(done["dpo"])

    def residual(chosen) -> np.ndarray:
        return off.fit(off.part(bench.joints(chosen))).residual_M

    floor = residual(models)
    spread = {o: {r: spreads(t) for r, t in done[o].items()} for o in OBJECTIVES}
    left = {
        o: {r: where_kept(t, residual([m.model for m in t]) / floor) for r, t in done[o].items()}
        for o in OBJECTIVES
    }

    def gaps(values: dict, objective: str) -> dict:
        return {r: values[objective][r] - values["dpo"][r] for r in rates}

    return Outcome(
        [
            *(
                by_rate(f"spread, {o} minus dpo", gaps(spread, o), low=-0.05, high=0.05)
                for o in OBJECTIVES[1:]
            ),
            *(
                by_rate(f"residual off the domain, {o} minus dpo, floors", gaps(left, o), -2, 2)
                for o in OBJECTIVES[1:]
            ),
        ],
        {f"spread, {o}": arm(spread[o][1.0], done[o][1.0]) for o in OBJECTIVES}
        | {
            f"residual off the domain, floors, {o}": arm(left[o][1.0], done[o][1.0])
            for o in OBJECTIVES
        },
        [
            dots(
                "Spread at the matched effect",
                "ΔEM",
                {f"{o}, rate × {r:.2g}": spread[o][r] for o in OBJECTIVES for r in rates},
            ),
            dots(
                "Off the trained domain",
                "residual, floors",
                {o: left[o][1.0] for o in OBJECTIVES},
            ),
        ],
    )
