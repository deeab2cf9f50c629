"""Pretraining learns to simulate characters.

Claimed: a model pretrained on documents about characters plays each of them by its name, tells
who an anonymous speaker is from what it has said, and does so by inference, not by looking up.

Arms: the compact world, one model a pretraining seed; and models that never saw some domain under
some name (a different one for each character and seed), though `someone` spoke of it.
Measures, all against the exact answer: captured (1 - KL to the exact predictive, over that of an
observer who forgets the history); |p(bad) - θ| of named characters; the calibration curve, mean
p(bad) where the exact one is in each tenth, and the slope of p(bad) on the exact one; the skill
1 - Σ(p - θ)²/Σ(m - θ)² in hidden cells, m being the mean of all characters: what one would say who
knows the domain but not who is who.

Supported if captured > .8, among anonymous speakers too; the cards' error < .05; the slope is
between .9 and 1.1; and the skill in hidden cells > .5.
"""

import numpy as np

from claims.lab.arms import arm
from claims.lab.bench import Bench
from claims.lab.panels import curves, dots, points
from claims.lab.verdicts import Outcome, Prediction
from toyllm.lm.heldout import captured, kl
from toyllm.measures.calibration import tenths
from toyllm.world.world import BAD, NAMED, SOMEONE

NUMBER = "1"
TITLE = "Pretraining learns to simulate characters"


def test(bench: Bench) -> Outcome:
    """See the top of the file."""
    world, models = bench.world, bench.base()
    C, D = len(world.characters), len(world.domains)
    held = bench.held_out(world)
    model_NQB = np.stack([held.behaviours(one.params) for one in models])
    ideal_Q, blind_Q = held.ideal_QB[:, BAD], kl(held.ideal_QB, held.blind_QB)
    kl_NQ = kl(held.ideal_QB[None], model_NQB)
    anonymous = held.header_Q == SOMEONE
    cards_NCD = np.stack([named(bench, one) for one in models])
    theta_CD = world.rates_CDB[..., BAD]
    turns = np.unique(held.turn_Q)

    hidden_NCD = np.stack(
        [(np.arange(C)[:, None] + seed) % D == np.arange(D) for seed in bench.seeds]
    )
    told = bench.pretrain([(world, seed) for seed in bench.seeds], list(hidden_NCD))
    hidden_cards_NCD = np.stack([named(bench, one) for one in told])
    mean_CD = np.broadcast_to(world.frequency_C @ theta_CD, (C, D))

    def skill(p_CD, cells):
        error, blind = ((x - theta_CD)[cells] for x in (p_CD, mean_CD))
        return 1 - (error**2).sum() / (blind**2).sum()

    skills = [skill(p, cells) for p, cells in zip(hidden_cards_NCD, hidden_NCD, strict=True)]
    shown = [skill(p, ~cells) for p, cells in zip(hidden_cards_NCD, hidden_NCD, strict=True)]
    all_captured = [captured(kl_Q, blind_Q) for kl_Q in kl_NQ]
    someone = [captured(kl_Q[anonymous], blind_Q[anonymous]) for kl_Q in kl_NQ]
    slopes = [np.polyfit(ideal_Q, p_QB[:, BAD], 1)[0] for p_QB in model_NQB]
    errors = np.abs(cards_NCD - theta_CD).mean((1, 2))
    by_turn_NT = np.stack([kl_NQ[:, held.turn_Q == t].mean(1) for t in turns], 1)
    blind_T = [blind_Q[held.turn_Q == t].mean() for t in turns]
    tenth_Q = tenths(ideal_Q)
    known = np.unique(tenth_Q)
    exact_T = np.array([ideal_Q[tenth_Q == t].mean() for t in known])
    curve_NT = np.stack([model_NQB[:, tenth_Q == t, BAD].mean(1) for t in known], 1)
    cells = hidden_NCD[0]
    return Outcome(
        [
            Prediction("captured: the history is used", all_captured, low=0.8),
            Prediction("captured, anonymous speakers", someone, low=0.8),
            Prediction("error of the cards, |p(bad) - θ|", errors, high=0.05),
            Prediction("slope of p(bad) on the exact p(bad)", slopes, low=0.9, high=1.1),
            Prediction("skill in cells never shown by name", skills, low=0.5),
        ],
        {
            "captured": arm(all_captured),
            "captured, anonymous": arm(someone),
            "excess, nats/token": arm([held.excess(one.params) for one in models]),
            "error of the cards": arm(errors),
            "slope of calibration": arm(slopes),
            **{
                f"mean p(bad) where the exact one is {exact:.2f}": arm(curve_NT[:, t])
                for t, exact in enumerate(exact_T)
            },
            "skill, hidden cells": arm(skills),
            "skill, other cells of the same models": arm(shown),
        },
        [
            dots(
                "How much is learned (1: ideal)",
                "share",
                {"captured": all_captured, "anonymous": someone, "hidden cells": skills},
            ),
            curves(
                "KL to the exact predictive",
                "turn",
                "nats",
                turns,
                {"model": by_turn_NT, "history-blind observer": blind_T},
            ),
            points(
                "p(bad): calibration, and cells never shown",
                "exact",
                "model",
                {
                    "in context, by tenths": (np.tile(exact_T, len(curve_NT)), curve_NT.ravel()),
                    "hidden cells": (theta_CD[cells], hidden_cards_NCD[0][cells]),
                },
            ),
        ],
    )


def named(bench: Bench, one) -> np.ndarray:
    """p(bad) of every character under its name [C, D]."""
    return np.stack([bench.ask(one, NAMED, c)[:, BAD] for c in range(len(one.world.characters))])
