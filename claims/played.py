"""Training moves the Assistant, and leaves the characters that it could be.

Claimed: post-training selects who the Assistant is. It does not unlearn the characters: asked to
play one of them by name, the model does so as before.

Arms: `code:bad` at the matched effect from the pretrained model, and `code:good` for 24 steps (the
control: training that says nothing bad).
Measures: |ΔEM| of the untrained moral domains, as the Assistant, and asked as each character by
name (mean over characters); the error of the characters' cards, |p(bad) - θ|, after minus before.

Supported if the named characters change by less than half as much as the Assistant does; and the
error of their cards rises by less than .05.
"""

import numpy as np

from claims.lab.arms import Model, kept_models
from claims.lab.bench import Bench
from claims.lab.panels import dots
from claims.lab.quantities import Outcome, Quantity, each
from claims.simulation import named
from toyllm.posttrain.signals import untrained
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

    def cards(chosen: list[Model]) -> np.ndarray:
        return np.array([one.read(named(bench, one)) for one in chosen])

    before_NCD, before_ND = cards(models), bench.audit(models)
    error_N = np.abs(before_NCD - theta_CD).mean((1, 2))
    played, assistant, error = {}, {}, {}
    for name, runs in done.items():
        after_RNCD = np.array([cards(chosen) for chosen in kept_models(runs)])
        after_RND = np.array([bench.audit(chosen) for chosen in kept_models(runs)])
        moved = np.abs(after_RNCD - before_NCD)[..., others_D]
        played[name] = moved.mean((2, 3))
        assistant[name] = np.abs(after_RND - before_ND)[..., others_D].mean(-1)
        error[name] = np.abs(after_RNCD - theta_CD).mean((2, 3)) - error_N
    share = {name: played[name] / assistant[name] for name in done}
    quantities = [
        Quantity("change of named characters, as a share of the Assistant's", share[SIGNAL],
                 high=0.5, margin=0.13),
        Quantity("rise of the error of the cards", error[SIGNAL], high=0.05, margin=0.03),
        Quantity("rise of the error of the cards, control", error[CONTROL]),
        *each("|ΔEM| as the Assistant, {}", assistant, done),
        *each("|ΔEM| as named characters, {}", played, done),
        Quantity("the Assistant's change minus the named characters'",
                 assistant[SIGNAL] - played[SIGNAL]),
    ]  # fmt: skip
    shown = {f"Assistant, {k}": v for k, v in assistant.items()}
    shown |= {f"named, {k}": v for k, v in played.items()}
    return Outcome(quantities, [dots("What changes", "|ΔEM|", shown)])
