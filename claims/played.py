"""Training moves the Assistant, and leaves the characters that it could be.

Claimed: post-training selects who the Assistant is. It does not unlearn the characters: asked to
play one of them by name, the model does so as before.

Arms: `code:bad` at the matched effect from the pretrained model, and `code:good` for 24 steps (the
control: training that says nothing bad).
Measures: |Δ log-odds| of EM in the untrained moral domains, as the Assistant, and asked as each
character by name (mean over characters; log-odds, since named rates are near 0 or 1 and have little
room in EM: one shift of all log-odds, which is no selection, gives a share of 1); the error of the
characters' cards, |p(bad) - θ|, after minus before.

Supported if the named characters change by less than half as much as the Assistant does; and the
error of their cards rises by less than .05 more than in the control.
"""

import numpy as np

from claims.lab.arms import Model, kept_models
from claims.lab.bench import Bench
from claims.lab.panels import dots
from claims.lab.quantities import Outcome, Quantity, each
from claims.simulation import named
from toyllm.posttrain.signals import untrained
from toyllm.world.quantities import em, logit
from toyllm.world.world import BAD

NUMBER = "21"
UNITS = 32  # the pilot asks for 32
SIGNAL, CONTROL, STEPS = "code:bad", "code:good", 24


def test(bench: Bench) -> Outcome:
    models, others_D = bench.base(), untrained(bench.world, SIGNAL)
    theta_CD = bench.world.rates_CDB[..., BAD]
    done = {
        SIGNAL: bench.at_rates(models, SIGNAL),
        CONTROL: bench.at_rates(models, CONTROL, steps=STEPS),
    }

    def asked(chosen: list[Model]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log-odds as the Assistant [N, D] and by name [N, C, D]; error of the cards [N]."""
        by_name = np.array([one.read(named(bench, one)) for one in chosen])
        error_N = np.abs(by_name[..., BAD] - theta_CD).mean((1, 2))
        return logit(bench.audit(chosen)), logit(em(by_name)), error_N

    before_ND, before_NCD, error_N = asked(models)
    played, assistant, error = {}, {}, {}
    for name, runs in done.items():
        after = [asked(chosen) for chosen in kept_models(runs)]
        moved = np.abs(np.array([x_ND for x_ND, _, _ in after]) - before_ND)
        assistant[name] = moved[..., others_D].mean(-1)
        moved = np.abs(np.array([x_NCD for _, x_NCD, _ in after]) - before_NCD)
        played[name] = moved[..., others_D].mean((2, 3))
        error[name] = np.array([x_N for _, _, x_N in after]) - error_N
    quantities = [
        Quantity("change of named characters, as a share of the Assistant's",
                 played[SIGNAL] / assistant[SIGNAL], high=0.5, margin=0.21),
        Quantity("rise of the error of the cards, minus the control's",
                 error[SIGNAL] - error[CONTROL], high=0.05, margin=0.03),
        *each("rise of the error of the cards, {}", error),
        *each("|Δ log-odds| as the Assistant, {}", assistant, done),
        *each("|Δ log-odds| as named characters, {}", played, done),
        Quantity("the Assistant's change minus the named characters'",
                 assistant[SIGNAL] - played[SIGNAL]),
    ]  # fmt: skip
    shown = {f"Assistant, {k}": v for k, v in assistant.items()}
    shown |= {f"named, {k}": v for k, v in played.items()}
    return Outcome(quantities, [dots("What changes", "|Δ log-odds|", shown)])
